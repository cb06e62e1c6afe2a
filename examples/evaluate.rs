//! What a model makes of a text: `cargo run --release --example evaluate -- --data FILE`

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use minigpt_core::{Backend, EvalWindows, Model};
use minigpt_examples::corpus::{self, Search, TextOptions, Vocabulary};
use minigpt_examples::evaluation::Evaluation;
use minigpt_examples::options::{BackendName, CheckpointOptions, OnBackend, on_backend, open};
use minigpt_examples::progress::{Progress, Unit};
use minigpt_examples::stop::Stop;
use minigpt_examples::{Outcome, exit_code, memory, say};

/// About so many tokens go through the model at once.
const AT_ONCE: usize = 2048;

/// Evaluate a checkpoint on a text: loss in nats and bits, perplexity, accuracy, and all of it by position.
#[derive(Debug, Parser)]
#[command(name = "evaluate")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
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
    exit_code(on_backend(options.backend, options.threads, Run(&options)))
}

struct Run<'a>(&'a Options);

impl OnBackend for Run<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let options = self.0;
        let stop = Stop::on_signals()?;
        let loaded = options.checkpoint.load()?;
        let checkpoint = open(&loaded.bytes)?;
        let tokenizer =
            checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: no text has its tokens")?;
        let vocabulary = Vocabulary::Fixed(tokenizer);
        let corpus = corpus::read(&Search::from_environment(), &options.text, vocabulary, &|| stop.asked())?;
        if !options.json {
            corpus.notes.iter().try_for_each(say)?;
            say(format_args!("{} on {}", loaded.path.display(), corpus.origin))?;
        }
        let tokens = match options.part {
            Part::Validation => corpus.validation(),
            Part::Training => corpus.training(),
            Part::All => corpus.tokens.as_tokens(),
        };
        let context = checkpoint.config().context;
        let windows = EvalWindows::new(tokens, context)
            .map_err(|error| format!("{error}; --part all takes all of the text"))?;
        let at_once = (AT_ONCE / context).max(1);
        memory::check_logits(&backend, checkpoint.config(), at_once)?;
        let mut model = Model::load(backend, &checkpoint)?;
        let progress = Progress::new("evaluating", windows.len() as u64, Unit::Windows);
        let tell = |done: usize| {
            progress.at(done as u64, "");
            !stop.asked()
        };
        let evaluation = Evaluation::of(&mut model, tokenizer, &windows, at_once, &tell)?;
        progress.done();
        if options.json { say(evaluation.to_json()) } else { say(evaluation.table().trim_end()) }
    }
}
