//! What a model makes of a text: `cargo run --release --example evaluate -- --data FILE`

use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use minigpt_core::{Backend, EvalWindows, Model};
use minigpt_examples::corpus::{self, Search, TextOptions, Vocabulary};
use minigpt_examples::evaluation::Evaluation;
use minigpt_examples::options::{BackendName, CheckpointOptions, OnBackend, on_backend, open};
use minigpt_examples::progress::{Progress, Unit};
use minigpt_examples::stop::{Signals, Stop};
use minigpt_examples::{Outcome, finish, memory, say_to};

/// About so many tokens go through the model at once.
const AT_ONCE: usize = 2048;

/// Evaluate a checkpoint on a text: loss in nats and bits, perplexity, accuracy, and all of it by position.
#[derive(Debug, Parser)]
#[command(name = "evaluate")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
    /// Else the text that the run was trained on.
    #[command(flatten)]
    text: TextOptions,
    /// Which part of the text.
    #[arg(long, value_enum, default_value = "validation")]
    part: Part,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Threads; else as many as the machine offers.
    #[arg(long)]
    threads: Option<usize>,
    /// Print a line of JSON and no table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The end, which a training with the same flags validates on and does not train on.
    Validation,
    /// The beginning, which it trains on.
    Training,
    /// All of it: for a text that was not trained on.
    All,
}

fn main() -> ExitCode {
    let options = Options::parse();
    finish(|| run(&options, &mut stdout().lock()))
}

/// Returns the exit code: 128 and the number of a signal that ended it early.
fn run(options: &Options, out: &mut dyn Write) -> Outcome<u8> {
    let stop = Stop::default();
    on_backend(options.backend, options.threads, Run { options, stop: &stop, out })?;
    Ok(stop.exit_code())
}

struct Run<'a> {
    options: &'a Options,
    stop: &'a Stop,
    out: &'a mut dyn Write,
}

impl OnBackend for Run<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let Run { options, stop, out } = self;
        let loaded = options.checkpoint.load()?;
        let checkpoint = open(&loaded.bytes)?;
        let tokenizer =
            checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: no text has its tokens")?;
        let vocabulary = Vocabulary::Fixed(tokenizer);
        let search = Search::from_environment();
        let corpus = corpus::read_of_checkpoint(&search, &options.text, &loaded, vocabulary)?;
        if !options.json {
            corpus.notes.iter().try_for_each(|note| say_to(out, note))?;
        }
        let tokens = match options.part {
            Part::Validation => corpus.validation(),
            Part::Training => corpus.training(),
            Part::All => corpus.tokens.as_tokens(),
        };
        let part = match (options.part, &corpus.validated_on) {
            (Part::All, None) => format!("all of {}", corpus.origin),
            (Part::All, Some((origin, _))) => format!("all of {} and {origin}", corpus.origin),
            (Part::Validation, Some((origin, _))) => format!("all of {origin}"),
            (Part::Training, Some(_)) => format!("all of {}", corpus.origin),
            (Part::Training, None) => format!("the first {} tokens of {}", tokens.len(), corpus.origin),
            (Part::Validation, None) => format!("the last {} tokens of {}", tokens.len(), corpus.origin),
        };
        if !options.json {
            say_to(out, format_args!("{} on {part}", loaded.path.display()))?;
        }
        let context = checkpoint.config().context;
        if tokens.len() <= context {
            let (found, of) = (tokens.len(), corpus.tokens.len());
            let all = if options.part == Part::All || of <= context { "" } else { ", or take --part all" };
            return Err(format!(
                "{found} tokens of the text's {of} are too few for a window of {context} and what follows it: name a \
                 longer text with --data{all}"
            )
            .into());
        }
        let windows = EvalWindows::new(tokens, context)?;
        let at_once = (AT_ONCE / context).max(1);
        memory::check_logits(&backend, checkpoint.config(), at_once)?;
        let model = Model::load(backend, &checkpoint)?;
        stop.take_over()?;
        let progress = Progress::new("evaluating", windows.len() as u64, Unit::Windows);
        let tell = |done: usize| {
            progress.at(done as u64, "");
            !stop.asked()
        };
        let evaluation = Evaluation::of(&model, tokenizer, &windows, at_once, &tell)?;
        progress.done();
        match options.json {
            true => {
                let mut json = evaluation.to_json();
                json["checkpoint"] = loaded.path.to_string_lossy().into();
                json["text"] = part.into();
                say_to(out, json)
            }
            false => say_to(out, evaluation.table().trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use minigpt_examples::testing::Scratch;
    use serde_json::Value;

    use super::*;

    const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

    fn evaluated(scratch: &Scratch, flags: &str) -> Outcome<String> {
        let checkpoint = scratch.path("run");
        let words = ["evaluate", "--checkpoint", checkpoint.to_str().unwrap()];
        let options = Options::try_parse_from(words.into_iter().chain(flags.split_whitespace()))?;
        let mut out = Vec::new();
        run(&options, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn the_loss_is_that_of_the_last_validation_and_of_each_position() {
        let scratch = Scratch::new();
        let trained = scratch.trained(&TEXT.repeat(40), "--iterations 24").unwrap().val_loss;
        let json: Value = serde_json::from_str(&evaluated(&scratch, "--json").unwrap()).unwrap();
        let number = |name: &str| json[name].as_f64().unwrap();
        assert!((number("loss") - trained).abs() < 1e-5, "{json} {trained}");
        assert!((number("bits_per_character") - trained / std::f64::consts::LN_2).abs() < 1e-5);
        assert!((number("perplexity") - trained.exp()).abs() < 1e-3);
        assert!((0.0..1.0).contains(&number("accuracy")));
        let positions = json["loss_by_position"].as_array().unwrap();
        assert_eq!(positions.len(), 8);
        let mean = positions.iter().map(|loss| loss.as_f64().unwrap()).sum::<f64>() / 8.0;
        assert!((mean - trained).abs() < 1e-5);
        let table = evaluated(&scratch, "").unwrap();
        for line in [
            "on the last 180 tokens of ".into(),
            format!("{trained:.4} nats per token"),
            "\n5 to 8 ".into(),
            "next tokens".into(),
        ] {
            assert!(table.contains(&line), "{table}");
        }
    }

    #[test]
    fn a_part_that_is_too_short_says_what_to_take_and_that_works() {
        let scratch = Scratch::new();
        scratch.trained(&TEXT.repeat(40), "--iterations 24").unwrap();
        let other = scratch.path("other.txt");
        let data = format!("--data {}", other.display());
        std::fs::write(&other, TEXT).unwrap();
        let message = evaluated(&scratch, &data).unwrap_err().to_string();
        assert!(message.ends_with("name a longer text with --data, or take --part all"), "{message}");
        assert!(evaluated(&scratch, &format!("{data} --part all")).unwrap().contains("accuracy"));
        std::fs::write(&other, "THE DOG").unwrap();
        let message = evaluated(&scratch, &data).unwrap_err().to_string();
        assert!(
            message.starts_with("6 characters of the text (") && message.contains(") are not among the 28"),
            "{message}"
        );
    }
}
