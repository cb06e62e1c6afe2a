//! Text from a model: samples to a stop, and a conversation in which it writes on from what is typed.

use std::io::{BufRead, ErrorKind, Write};
use std::time::Instant;

use clap::Args;
use minigpt_core::{AnyTokenizer, Backend, Decoder, Dtype, Model, Real, SampleConfig, Sampler, Tokenizer};

use crate::prompt::{Prompt, PromptOptions, cut};
use crate::seed::Seed;
use crate::{Outcome, flags, written};

/// The flags that say how tokens are chosen.
#[derive(Debug, Clone, Args)]
pub struct SamplingOptions {
    /// Below 1 the likely becomes likelier; 0 is greedy.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from so many of the likeliest tokens.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the likeliest tokens that have this share of the probability together.
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f64>,
    /// Sample from tokens that are at least so likely, as a share of the likeliest.
    #[arg(long, allow_negative_numbers = true)]
    pub min_p: Option<f64>,
    /// Make tokens that occurred lately less likely; 1 changes nothing.
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f64>,
    /// How many tokens back the penalty looks.
    #[arg(long, default_value_t = 64)]
    pub repetition_window: usize,
    /// Seed of the draws, a number or random: the same seed writes the same text.
    #[arg(long, default_value = "1")]
    pub seed: Seed,
    /// End before this text; may be given several times.
    #[arg(long = "stop", value_name = "TEXT", allow_hyphen_values = true)]
    pub stops: Vec<String>,
}

impl SamplingOptions {
    /// The sampler's settings, for draws from `seed`.
    pub fn config(&self, seed: u64) -> SampleConfig {
        SampleConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            repetition_window: self.repetition_window,
            seed,
        }
    }

    /// The texts to end before, with what their escapes stand for.
    ///
    /// # Errors
    /// If one is empty, has an escape without meaning, or a character that the model never writes.
    pub fn stops(&self, prompt: &PromptOptions, tokenizer: &AnyTokenizer) -> Outcome<Vec<String>> {
        let stop = |text: &String| -> Outcome<String> {
            let text = prompt.unescaped(text)?;
            if text.is_empty() {
                return Err("--stop needs a text: an empty one stands everywhere".into());
            }
            prompt.encode("--stop", &text, tokenizer)?;
            Ok(text)
        };
        self.stops.iter().map(stop).collect()
    }
}

/// How much is written, and to which end.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// At most so many tokens.
    pub tokens: usize,
    /// Up to the first of these texts.
    pub stops: Vec<String>,
}

/// A model that writes.
#[derive(Debug)]
pub struct Writer<'a, B: Backend> {
    context: usize,
    tokenizer: &'a AnyTokenizer,
    /// The token that a text begins behind where nobody says another.
    start: u32,
    decoder: Decoder<B>,
}

impl<'a, B: Backend> Writer<'a, B> {
    /// Where nobody says what to go on from, it is `start`. It takes in prompts of which up to `prefill` tokens go through
    /// the model at once.
    ///
    /// # Errors
    /// If memory does not suffice.
    pub fn new(model: &Model<B>, tokenizer: &'a AnyTokenizer, start: u32, prefill: usize) -> Outcome<Self> {
        Self::with_cache(model, tokenizer, start, prefill, B::Elem::DTYPE)
    }

    /// The same, with keys and values stored as `cache`.
    ///
    /// # Errors
    /// If memory does not suffice, or the backend cannot store them so.
    pub fn with_cache(
        model: &Model<B>,
        tokenizer: &'a AnyTokenizer,
        start: u32,
        prefill: usize,
        cache: Dtype,
    ) -> Outcome<Self> {
        let decoder = Decoder::with_cache(model, prefill, cache)?;
        Ok(Writer { context: model.config().context, tokenizer, start, decoder })
    }

    /// Shows the model these tokens.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn read(&mut self, tokens: &[u32]) -> Outcome<()> {
        Ok(self.decoder.feed(tokens)?)
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.decoder.reset();
    }

    /// Whether it was shown something.
    pub fn has_read(&self) -> bool {
        !self.decoder.window().is_empty()
    }

    /// Writes on, until a limit or until it is asked to stop, and tells how many tokens that took.
    ///
    /// # Errors
    /// If the backend fails, or `out` does.
    pub fn write(
        &mut self,
        sampler: &mut Sampler,
        limits: &Limits,
        stop: &dyn Fn() -> bool,
        out: &mut dyn Write,
    ) -> Outcome<usize> {
        // Bytes as the tokens have them: those of one character may be in several tokens, and a model of bytes may write
        // what is no UTF-8.
        let (mut bytes, mut filter) = (Vec::new(), StopFilter::new(&limits.stops));
        let mut count = 0;
        let mut write = |bytes: &[u8]| written(out.write_all(bytes).and_then(|()| out.flush()));
        for token in self.decoder.generate(sampler).take(limits.tokens) {
            count += 1;
            bytes.clear();
            self.tokenizer.decode_into(token?, &mut bytes)?;
            write(filter.push(&bytes))?;
            if filter.is_stopped() || stop() {
                break;
            }
        }
        write(filter.rest())?;
        Ok(count)
    }
}

/// Lets text pass up to the first of some texts, and holds back what may be the beginning of one.
#[derive(Debug)]
struct StopFilter<'a> {
    stops: &'a [String],
    held: Vec<u8>,
    passed: Vec<u8>,
    stopped: bool,
}

impl<'a> StopFilter<'a> {
    fn new(stops: &'a [String]) -> Self {
        StopFilter { stops, held: Vec::new(), passed: Vec::new(), stopped: false }
    }

    fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes more text, and returns what passes.
    fn push(&mut self, text: &[u8]) -> &[u8] {
        self.passed.clear();
        if self.stopped {
            return &self.passed;
        }
        self.held.extend_from_slice(text);
        let place = |stop: &String| self.held.windows(stop.len()).position(|held| held == stop.as_bytes());
        let first = self.stops.iter().filter_map(place).min();
        self.stopped = first.is_some();
        let end = first.unwrap_or_else(|| self.held.len() - self.beginning());
        self.passed.extend(self.held.drain(..end));
        &self.passed
    }

    /// The length of the longest end of what is held that begins one of the texts.
    fn beginning(&self) -> usize {
        let begins =
            |from: &usize| self.stops.iter().any(|stop| stop.as_bytes().starts_with(&self.held[*from..]));
        (0..self.held.len()).find(begins).map_or(0, |from| self.held.len() - from)
    }

    /// What was held back, if no more text comes.
    fn rest(&self) -> &[u8] {
        if self.stopped { &[] } else { &self.held }
    }
}

/// Where a program reads what is typed, and where it writes.
#[expect(missing_debug_implementations, reason = "its parts are any streams")]
pub struct Terminal<'a> {
    /// The standard input.
    pub input: &'a mut dyn BufRead,
    /// The standard output.
    pub out: &'a mut dyn Write,
    /// The error output: what is no part of the result.
    pub log: &'a mut dyn Write,
}

/// Writes `samples` continuations of the prompt, each from a seed of its own, and to the log the speed.
///
/// # Errors
/// If a setting of the sampler has no meaning, the backend fails, or the output does.
pub fn samples<B: Backend>(
    writer: &mut Writer<'_, B>,
    prompt: &Prompt,
    (sampling, seed, samples): (&SamplingOptions, u64, u32),
    limits: &Limits,
    terminal: &mut Terminal<'_>,
) -> Outcome<()> {
    let Terminal { out, log, .. } = terminal;
    if let Some(cut) = cut(prompt.tokens.len(), writer.context) {
        let _ = writeln!(log, "{cut}");
    }
    for sample in 0..samples {
        let seed = seed.wrapping_add(u64::from(sample));
        let vocab = writer.tokenizer.vocab_size();
        let mut sampler = Sampler::new(sampling.config(seed), vocab).map_err(|e| flags::sample_error(&e))?;
        if samples > 1 {
            written(writeln!(out, "--- sample {} of {samples}, seed {seed} ---", sample + 1))?;
        }
        writer.forget();
        let begun = Instant::now();
        writer.read(&prompt.tokens)?;
        let prefilled = begun.elapsed();
        written(out.write_all(&prompt.text))?;
        let begun = Instant::now();
        let count = writer.write(&mut sampler, limits, &|| false, out)?;
        written(out.write_all(b"\n").and_then(|()| out.flush()))?;
        let seconds = begun.elapsed().as_secs_f64();
        let _ = writeln!(
            log,
            "{} prompt tokens in {:.1} ms; {count} tokens in {seconds:.2} s: {:.0} tokens/s",
            prompt.tokens.len(),
            prefilled.as_secs_f64() * 1e3,
            count as f64 / seconds.max(1e-9)
        );
    }
    Ok(())
}

/// What a conversation needs of the terminal.
pub trait Interruption {
    /// Called when an answer begins and ends: in between, an interruption ends the answer and not the program.
    fn answering(&self, answering: bool);
    /// Whether the answer was interrupted.
    fn interrupted(&self) -> bool;
}

/// Nobody interrupts.
impl Interruption for () {
    fn answering(&self, _: bool) {}

    fn interrupted(&self) -> bool {
        false
    }
}

/// Lets the model write on from each line that comes in, until the input ends. What was typed and written before stays in its
/// context; `/reset` clears it. A line that cannot be used is said so, and the next one asked for.
///
/// # Errors
/// If a setting of the sampler has no meaning, the backend fails, or the terminal does.
pub fn converse<B: Backend>(
    writer: &mut Writer<'_, B>,
    config: SampleConfig,
    limits: &Limits,
    prompt: &PromptOptions,
    interruption: &impl Interruption,
    terminal: &mut Terminal<'_>,
) -> Outcome<()> {
    let Terminal { input, out, log } = terminal;
    let mut sampler =
        Sampler::new(config, writer.tokenizer.vocab_size()).map_err(|e| flags::sample_error(&e))?;
    // What is said to who types is no part of the text; and who closed the error output need not hear it.
    let _ = writeln!(
        log,
        "Type a line, and the model writes on from it; an empty line lets it go on. /reset forgets what was written; \
         Ctrl-C ends an answer, Ctrl-D the conversation."
    );
    loop {
        let _ = log.write_all(b"> ").and_then(|()| log.flush());
        let mut line = String::new();
        match input.read_line(&mut line) {
            Ok(0) => {
                let _ = writeln!(log);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                let _ = writeln!(log, "that was not UTF-8; try again");
                continue;
            }
            other => other?,
        };
        let line = line.trim_end_matches(['\r', '\n']);
        if line == "/reset" {
            writer.forget();
            continue;
        }
        let typed = prompt
            .unescaped(line)
            .and_then(|line| Ok((prompt.encode("the line", &line, writer.tokenizer)?, line)));
        let (mut tokens, line) = match typed {
            Ok(typed) => typed,
            Err(error) => {
                let _ = writeln!(log, "{error}");
                continue;
            }
        };
        if tokens.is_empty() && !writer.has_read() {
            tokens = vec![writer.start];
        }
        if let Some(cut) = cut(tokens.len(), writer.context) {
            let _ = writeln!(log, "{cut}");
        }
        if !tokens.is_empty() {
            writer.read(&tokens)?;
        }
        written(out.write_all(line.as_bytes()))?;
        interruption.answering(true);
        let answered = writer.write(&mut sampler, limits, &|| interruption.interrupted(), out);
        interruption.answering(false);
        answered?;
        written(out.write_all(b"\n"))?;
    }
}

#[cfg(test)]
mod tests {
    use minigpt_core::rng::{Rng, Stream};
    use minigpt_core::{CharTokenizer, GptConfig, Reference};

    use super::*;

    const CONTEXT: usize = 8;

    fn letters() -> AnyTokenizer {
        CharTokenizer::from_text("\n abcdefgh").unwrap().into()
    }

    fn model() -> Model<Reference<f32>> {
        let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(10, CONTEXT) };
        let model = Model::new(Reference::new(), config, 5).unwrap();
        let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
        let mut rng = Rng::new(1, Stream::User);
        // So that what it writes depends on what it has read.
        for name in names {
            let mut weights = model.parameter(&name).unwrap().unwrap();
            weights.iter_mut().for_each(|weight| *weight += rng.normal() as f32);
            model.set_parameter(&name, &weights).unwrap();
        }
        model
    }

    fn sampling() -> SamplingOptions {
        SamplingOptions {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            repetition_window: 64,
            seed: Seed::Number(1),
            stops: Vec::new(),
        }
    }

    fn prompt(text: &str) -> Prompt {
        Prompt { text: text.into(), tokens: letters().encode(text).unwrap() }
    }

    /// What is written, and what is said of it.
    fn written(text: &str, seed: u64, count: u32, limits: &Limits) -> (String, String) {
        let tokenizer = letters();
        let mut writer = Writer::new(&model(), &tokenizer, 0, 4).unwrap();
        let (mut out, mut log) = (Vec::new(), Vec::new());
        let mut terminal = Terminal { input: &mut &b""[..], out: &mut out, log: &mut log };
        samples(&mut writer, &prompt(text), (&sampling(), seed, count), limits, &mut terminal).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(log).unwrap())
    }

    fn limits(tokens: usize, stops: &[&str]) -> Limits {
        Limits { tokens, stops: stops.iter().map(|stop| stop.to_string()).collect() }
    }

    #[test]
    fn each_sample_is_that_of_its_seed_alone() {
        let limits = limits(30, &[]);
        let (all, _) = written("abc", 7, 3, &limits);
        let expected: String = (0..3)
            .map(|i| {
                let seed = 7 + i;
                format!("--- sample {} of 3, seed {seed} ---\n{}", i + 1, written("abc", seed, 1, &limits).0)
            })
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_stop_text_ends_a_sample_before_it() {
        let (whole, _) = written("abc", 3, 1, &limits(60, &[]));
        let continuation = &whole[3..whole.len() - 1];
        // Texts of one, two and three characters from its middle.
        for length in 1..4 {
            let stop = &continuation[20..20 + length];
            let end = continuation.find(stop).unwrap();
            let (cut, _) = written("abc", 3, 1, &limits(60, &["no such text", stop]));
            assert_eq!(cut, format!("abc{}\n", &continuation[..end]), "{stop:?}");
        }
    }

    #[test]
    fn a_stop_text_is_found_however_its_parts_come_and_nothing_of_it_passes() {
        let stops = ["END".to_string(), "é".to_string()];
        for pieces in [&["some E", "N", "D more"][..], &["some EN", "D"], &["some ", "END"], &["some é"]] {
            let mut filter = StopFilter::new(&stops);
            let passed: Vec<u8> =
                pieces.iter().flat_map(|piece| filter.push(piece.as_bytes()).to_vec()).collect();
            assert_eq!((&passed[..], filter.is_stopped(), filter.rest()), (&b"some "[..], true, &b""[..]));
        }
        let mut filter = StopFilter::new(&stops);
        let passed: Vec<u8> =
            ["EN", "EN", "\u{E8}"].iter().flat_map(|piece| filter.push(piece.as_bytes()).to_vec()).collect();
        assert_eq!(
            ([&passed[..], filter.rest()].concat(), filter.is_stopped()),
            ("ENEN\u{E8}".into(), false)
        );
    }

    #[test]
    fn a_prompt_beyond_the_context_is_said_to_be_cut() {
        let (_, log) = written("abcdefgh ", 1, 1, &limits(1, &[]));
        assert!(log.starts_with("the prompt has 9 tokens, 1 more than the context of 8"), "{log}");
        let (_, log) = written("abcdefgh", 1, 1, &limits(1, &[]));
        assert!(!log.contains("more than the context"), "{log}");
    }

    #[test]
    fn a_setting_without_meaning_names_its_flag() {
        let tokenizer = letters();
        let mut writer = Writer::new(&model(), &tokenizer, 0, 4).unwrap();
        let options = SamplingOptions { temperature: -1.0, ..sampling() };
        let mut terminal = Terminal { input: &mut &b""[..], out: &mut Vec::new(), log: &mut Vec::new() };
        let error = samples(&mut writer, &prompt("a"), (&options, 1, 1), &limits(1, &[]), &mut terminal);
        assert!(error.unwrap_err().to_string().starts_with("--temperature -1 is not"));
    }

    /// What is written, and what is said.
    fn conversation(input: &str, escapes: bool) -> (String, String) {
        let tokenizer = letters();
        let mut writer = Writer::new(&model(), &tokenizer, 0, 4).unwrap();
        let (mut out, mut log) = (Vec::new(), Vec::new());
        // Without draws, which would go on from one answer to the next.
        let config = SampleConfig { temperature: 0.0, ..sampling().config(1) };
        let prompt = PromptOptions { escapes, ..PromptOptions::default() };
        let mut terminal = Terminal { input: &mut input.as_bytes(), out: &mut out, log: &mut log };
        converse(&mut writer, config, &limits(5, &["\n"]), &prompt, &(), &mut terminal).unwrap();
        (String::from_utf8(out).unwrap(), String::from_utf8(log).unwrap())
    }

    #[test]
    fn a_conversation_writes_on_from_each_line_and_ends_with_the_input() {
        let (text, log) = conversation("abc\n\nde\n", false);
        let answers: Vec<&str> = text.lines().collect();
        assert_eq!(answers.len(), 3, "{text}");
        assert!(answers[0].starts_with("abc") && answers[2].starts_with("de"), "{text}");
        assert_eq!(log.matches("> ").count(), 4, "{log}");
    }

    #[test]
    fn what_is_reset_is_forgotten() {
        let last = |input: &str| conversation(input, false).0.lines().last().unwrap().to_string();
        assert_eq!(last("hgfedh\n/reset\nabc\n"), last("abc\n"));
        assert_ne!(last("hgfedh\nabc\n"), last("abc\n"));
    }

    #[test]
    fn a_line_that_cannot_be_used_does_not_end_a_conversation() {
        let (text, log) = conversation("xyz\na\\nb\nabc\n", false);
        assert!(log.contains("the line: character 'x'") && log.contains("add --escapes"), "{log}");
        assert!(text.starts_with("abc") && text.lines().count() == 1, "{text}");
        let (text, log) = conversation("a\\nb\n\\q\n", true);
        assert!(text.starts_with("a\nb") && log.contains("is no escape"), "{text} {log}");
    }
}
