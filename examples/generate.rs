//! Writes on from a prompt: `cargo run --release --example generate -- --prompt "MAUD."`

use std::io::{stderr, stdin, stdout};
use std::process::ExitCode;

use clap::{Parser, value_parser};
use minigpt_core::{Backend, Model};
use minigpt_examples::generation::{Limits, SamplingOptions, Terminal, Writer, converse, samples};
use minigpt_examples::options::{BackendName, CacheName, CheckpointOptions, OnBackend, on_backend, open};
use minigpt_examples::prompt::{PromptOptions, default_start};
use minigpt_examples::stop::Interrupts;
use minigpt_examples::{Outcome, finish, memory};

/// Generate text from a checkpoint.
#[derive(Debug, Parser)]
#[command(name = "generate")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
    #[command(flatten)]
    prompt: PromptOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// How many tokens, at most.
    #[arg(long, default_value_t = 500)]
    tokens: usize,
    /// How many texts, each from the next seed.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    samples: u32,
    /// Go on from lines that you type, one after the other.
    #[arg(short, long, conflicts_with_all = ["samples", "prompt", "prompt_file"])]
    interactive: bool,
    /// What keys and values are stored as: in 16 bits they take half the memory, and are rounded.
    #[arg(long, value_enum, default_value = "f32")]
    cache: CacheName,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Threads; else as many as the machine offers.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (mut input, mut out, mut log) = (stdin().lock(), stdout().lock(), stderr());
    let terminal = Terminal { input: &mut input, out: &mut out, log: &mut log };
    finish(|| run(&options, terminal).map(|()| 0))
}

fn run(options: &Options, terminal: Terminal<'_>) -> Outcome<()> {
    on_backend(options.backend, options.threads, Generation { options, terminal })
}

struct Generation<'a, 't> {
    options: &'a Options,
    terminal: Terminal<'t>,
}

impl OnBackend for Generation<'_, '_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let Generation { options, mut terminal } = self;
        let loaded = options.checkpoint.load()?;
        for note in &loaded.notes {
            let _ = writeln!(terminal.log, "{note}");
        }
        let checkpoint = open(&loaded.bytes)?;
        let tokenizer =
            checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
        let limits =
            Limits { tokens: options.tokens, stops: options.sampling.stops(&options.prompt, tokenizer)? };
        let start = default_start(&checkpoint, tokenizer);
        let prompt = options.prompt.read(tokenizer, start, &mut terminal.input)?;
        let prefill = if options.interactive { checkpoint.config().context } else { prompt.tokens.len() };
        let cache = options.cache.into();
        memory::check_decoding(&backend, checkpoint.config(), prefill, cache)?;
        let model = Model::load(backend, &checkpoint)?;
        let mut writer = Writer::with_cache(&model, tokenizer, start, prefill, cache)?;
        let seed = options.sampling.seed.resolve();
        if options.interactive {
            let interrupts = Interrupts::new()?;
            let config = options.sampling.config(seed);
            return converse(&mut writer, config, &limits, &options.prompt, &interrupts, &mut terminal);
        }
        samples(&mut writer, &prompt, (&options.sampling, seed, options.samples), &limits, &mut terminal)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minigpt_examples::testing::{PAST_ITS_BEST, Scratch};

    use super::*;

    const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

    /// What is written and what is said, by the model in `scratch`, with these flags and this input.
    fn generated(scratch: &Scratch, flags: &[&str], input: &str) -> Outcome<(String, String)> {
        let checkpoint = scratch.path("run");
        let words = ["generate", "--checkpoint", checkpoint.to_str().unwrap(), "--tokens", "12"];
        let options = Options::try_parse_from(words.iter().chain(flags))?;
        let (mut out, mut log) = (Vec::new(), Vec::new());
        let terminal = Terminal { input: &mut input.as_bytes(), out: &mut out, log: &mut log };
        run(&options, terminal)?;
        Ok((String::from_utf8(out)?, String::from_utf8(log)?))
    }

    fn trained(text: &str) -> Scratch {
        let scratch = Scratch::new();
        scratch.trained(&text.repeat(40), "--iterations 24").unwrap();
        scratch
    }

    fn error(scratch: &Scratch, flags: &[&str]) -> String {
        generated(scratch, flags, "").unwrap_err().to_string()
    }

    #[test]
    fn a_model_of_one_line_writes_without_a_prompt() {
        let (text, _) = generated(&trained(TEXT), &[], "").unwrap();
        assert_eq!(text.chars().count(), 13, "{text:?}");
        // Also one that has no blank to begin with.
        assert_eq!(generated(&trained("abcdefgh"), &[], "").unwrap().0.len(), 13);
    }

    #[test]
    fn a_cache_in_16_bits_writes_on_too() {
        let scratch = trained(TEXT);
        let [exact, half, short] = ["f32", "f16", "bf16"]
            .map(|cache| generated(&scratch, &["--temperature", "0", "--cache", cache], "").unwrap().0);
        assert_eq!(exact.chars().count(), 13, "{exact:?}");
        // The likeliest characters of a text of one line are so by far.
        assert_eq!([&half, &short], [&exact, &exact]);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
        let scratch = Scratch::new();
        scratch.trained(&TEXT.repeat(40), "--iterations 24 --eval-every 12").unwrap();
        let step = |step: u32| scratch.path(&format!("run/step-{step:010}.mgpt"));
        let whole = fs::read(step(24)).unwrap();
        fs::write(step(24), &whole[..whole.len() - 1]).unwrap();
        let expected = {
            let loaded = CheckpointOptions { checkpoint: scratch.path("run"), which: None }.load().unwrap();
            assert_eq!(loaded.path, step(12));
            loaded.notes
        };
        assert!(
            expected[0].contains("step-0000000024.mgpt") && expected[0].contains("passed over"),
            "{expected:?}"
        );
        let (_, log) = generated(&scratch, &[], "").unwrap();
        assert!(log.starts_with(&expected[0]), "{log}");
    }

    #[test]
    fn values_may_begin_with_a_dash() {
        let scratch = trained("- the quick brown fox\n");
        assert!(generated(&scratch, &["--prompt", "- the"], "").unwrap().0.starts_with("- the"));
        assert!(generated(&scratch, &["--prompt", "--the"], "").unwrap().0.starts_with("--the"));
        generated(&scratch, &["--stop", "- "], "").unwrap();
        assert!(error(&scratch, &["--temperature", "-1"]).starts_with("--temperature -1 is not"));
        assert!(error(&scratch, &["--top-p", "-0.5"]).starts_with("--top-p -0.5 is not"));
        assert!(error(&scratch, &["--min-p", "-0.5"]).starts_with("--min-p -0.5 is not"));
        assert!(
            error(&scratch, &["--repetition-penalty", "-2"]).starts_with("--repetition-penalty -2 is not")
        );
    }

    #[test]
    fn a_model_of_bytes_reads_and_writes_any_bytes() {
        let scratch = Scratch::new();
        let latin1: Vec<u8> = b"caf\xe9 caf\xe9; ".repeat(60);
        fs::write(scratch.path("latin1.txt"), &latin1).unwrap();
        let data = scratch.path("latin1.txt");
        let words = format!(
            "train --data {} --out {} --tokenizer byte --layers 1 --heads 2 --d-model 16 --context 8 --iterations 300 \
             --lr 1e-2 --sample 0",
            data.display(),
            scratch.path("run").display()
        );
        let train = minigpt_examples::training::Options::parse_from(words.split(' '));
        minigpt_examples::training::train(&train, || false).unwrap();
        let raw = |flags: &[&str]| {
            let checkpoint = scratch.path("run");
            let words = ["generate", "--checkpoint", checkpoint.to_str().unwrap(), "--tokens", "24"];
            let options = Options::try_parse_from(words.iter().chain(flags)).unwrap();
            let mut out = Vec::new();
            let terminal = Terminal { input: &mut &b"caf\xe9 caf"[..], out: &mut out, log: &mut Vec::new() };
            run(&options, terminal).unwrap();
            out
        };
        let text = raw(&["--prompt-file", "-", "--temperature", "0"]);
        assert!(text.starts_with(b"caf\xe9 caf\xe9"), "{text:?}");
        // Without a prompt it begins with what the text has, and so goes on in its way.
        let text = raw(&["--temperature", "0"]);
        assert!(text.windows(4).any(|bytes| bytes == b"caf\xe9"), "{text:?}");
    }

    #[test]
    fn a_flag_given_twice_is_refused() {
        for twice in [&["--prompt", "a", "--prompt", "b"][..], &["--seed", "1", "--seed", "2"], &["-i", "-i"]]
        {
            let message = error(&Scratch::new(), twice);
            assert!(message.contains("cannot be used multiple times"), "{message}");
        }
    }

    #[test]
    fn a_backslash_is_a_backslash_and_escapes_are_asked_for() {
        let scratch = trained("C:\\new folder\n");
        assert!(generated(&scratch, &["--prompt", r"C:\new"], "").unwrap().0.starts_with(r"C:\new"));
        let (text, _) = generated(&scratch, &["-e", "--prompt", r"C:\\new\n"], "").unwrap();
        assert!(text.starts_with("C:\\new\n"), "{text:?}");
    }

    #[test]
    fn what_a_model_does_not_see_of_a_prompt_is_said_and_the_rest_decides() {
        let scratch = trained(TEXT);
        let greedy = |prompt: &str| {
            let (text, log) = generated(&scratch, &["--temperature", "0", "--prompt", prompt], "").unwrap();
            (text[prompt.len()..].to_string(), log)
        };
        // The context is 8.
        let (last, log) = greedy("n fox ju");
        assert!(!log.contains("more than the context"), "{log}");
        let (long, log) = greedy("quick brown fox ju");
        assert!(log.contains("the prompt has 18 tokens, 10 more than the context of 8"), "{log}");
        assert_eq!(last, long);
    }

    #[test]
    fn a_prompt_comes_from_a_file_or_from_the_input() {
        let scratch = trained(TEXT);
        let path = scratch.path("prompt.txt");
        fs::write(&path, "the fox").unwrap();
        let (from_file, _) = generated(&scratch, &["--prompt-file", path.to_str().unwrap()], "").unwrap();
        let (piped, _) = generated(&scratch, &["--prompt-file", "-"], "the fox").unwrap();
        assert!(from_file.starts_with("the fox") && from_file == piped, "{from_file} {piped}");
    }

    #[test]
    fn several_texts_are_those_of_the_seeds_that_are_named() {
        let scratch = trained(TEXT);
        let (both, _) = generated(&scratch, &["--samples", "2", "--seed", "7"], "").unwrap();
        let (second, _) = generated(&scratch, &["--seed", "8"], "").unwrap();
        assert!(both.ends_with(&format!("--- sample 2 of 2, seed 8 ---\n{second}")), "{both}");
        assert_eq!(generated(&scratch, &["--seed", "random"], "").unwrap().0.len(), second.len());
    }

    #[test]
    fn a_text_ends_before_the_stop() {
        let scratch = trained(TEXT);
        let (whole, _) = generated(&scratch, &["--seed", "3"], "").unwrap();
        let stop: String = whole.chars().skip(6).take(2).collect();
        let (cut, _) = generated(&scratch, &["--seed", "3", "--stop", &stop], "").unwrap();
        assert_eq!(cut, format!("{}\n", &whole[..whole.find(&stop).unwrap()]));
        let message = error(&scratch, &["--stop", ""]);
        assert!(message.starts_with("--stop needs a text"), "{message}");
        // One that can never come.
        let message = error(&scratch, &["--stop", r"\n"]);
        assert!(
            message.starts_with("--stop: character '\\\\'") && message.ends_with("add --escapes"),
            "{message}"
        );
    }

    #[test]
    fn a_conversation_goes_on_from_each_line_until_the_input_ends() {
        let scratch = trained(TEXT);
        let (text, log) = generated(&scratch, &["--interactive"], "the fox\nZ\nthe dog\n").unwrap();
        let answers: Vec<&str> = text.lines().collect();
        assert_eq!(answers.len(), 2, "{text}");
        assert!(answers[0].starts_with("the fox") && answers[0].len() > "the fox".len(), "{text}");
        assert!(answers[1].starts_with("the dog") && log.contains("'Z'"), "{text} {log}");
    }

    #[test]
    fn the_best_or_the_last_of_a_run_writes() {
        let scratch = Scratch::new();
        let summary = scratch.trained(&TEXT.repeat(40), PAST_ITS_BEST).unwrap();
        assert_ne!(summary.best.unwrap().step, summary.iterations);
        let text = |flags: &[&str]| generated(&scratch, flags, "").unwrap().0;
        assert_eq!(text(&["--which", "last"]), text(&[]));
        assert_ne!(text(&["--which", "best"]), text(&[]));
        let file = scratch.path("run/best.mgpt");
        let file = ["generate", "--checkpoint", file.to_str().unwrap(), "--tokens", "12"];
        let mut out = Vec::new();
        let terminal = Terminal { input: &mut &b""[..], out: &mut out, log: &mut Vec::new() };
        run(&Options::parse_from(file), terminal).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), text(&["--which", "best"]));
    }
}
