//! Writes on from a prompt: `cargo run --release --example generate -- --prompt "MAUD."`

use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

use clap::Parser;
use minigpt_core::{Backend, Model};
use minigpt_examples::generation::{Limits, SamplingOptions, Writer, converse, samples};
use minigpt_examples::options::{BackendName, CheckpointOptions, OnBackend, on_backend, open};
use minigpt_examples::prompt::PromptOptions;
use minigpt_examples::stop::Interrupts;
use minigpt_examples::{Outcome, exit_code, memory};

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
    #[arg(long, default_value_t = 1)]
    samples: u32,
    /// Go on from lines that you type, one after the other.
    #[arg(short, long, conflicts_with_all = ["samples", "prompt", "prompt_file"])]
    interactive: bool,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Threads; else as many as the machine offers.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    exit_code(on_backend(options.backend, options.threads, Generation(&options)))
}

struct Generation<'a>(&'a Options);

impl OnBackend for Generation<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let options = self.0;
        let loaded = options.checkpoint.load()?;
        let checkpoint = open(&loaded.bytes)?;
        let tokenizer =
            checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
        let limits = Limits { tokens: options.tokens, stops: options.sampling.stops(&options.prompt)? };
        let prompt = options.prompt.read(tokenizer, &mut stdin().lock())?;
        let prefill = if options.interactive { checkpoint.config().context } else { prompt.tokens.len() };
        memory::check_decoding(&backend, checkpoint.config(), prefill)?;
        let mut model = Model::load(backend, &checkpoint)?;
        let mut writer = Writer::new(&mut model, tokenizer, prefill)?;
        let seed = options.sampling.seed.resolve();
        let mut out = stdout().lock();
        if options.interactive {
            let interrupts = Interrupts::new()?;
            let config = options.sampling.config(seed);
            return converse(&mut writer, config, &limits, &interrupts, (&mut stdin().lock(), &mut out));
        }
        let ways = (&options.sampling, seed, options.samples);
        samples(&mut writer, &prompt, ways, &limits, (&mut out, &mut stderr()))?;
        Ok(out.flush()?)
    }
}
