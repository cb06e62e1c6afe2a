//! Writes on from a prompt: `cargo run --release --example generate -- --prompt "MAUD."`

use std::io::{ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use minigpt_core::{Backend, Decoder, Model, SampleConfig, Sampler, StreamDecoder, Tokenizer};
use minigpt_examples::options::{BackendName, OnBackend, load, on_backend, open};
use minigpt_examples::{Outcome, memory};

/// Generate text from a checkpoint.
#[derive(Debug, Parser)]
#[command(name = "generate")]
struct Options {
    /// What train_shakespeare saved: a file, or a run's folder, whose newest checkpoint is taken.
    #[arg(long, value_name = "PATH", default_value = "runs/shakespeare")]
    checkpoint: PathBuf,
    /// The text to go on from; \n stands for a line break.
    #[arg(long, default_value = "\\n")]
    prompt: String,
    /// How many tokens.
    #[arg(long, default_value_t = 500)]
    tokens: usize,
    /// Below 1 the likely becomes likelier; 0 is greedy.
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Sample from so many of the likeliest tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens that have this share of the probability together.
    #[arg(long)]
    top_p: Option<f64>,
    /// Sample from tokens that are at least so likely, as a share of the likeliest.
    #[arg(long)]
    min_p: Option<f64>,
    /// Make tokens that occurred lately less likely; 1 changes nothing.
    #[arg(long)]
    repetition_penalty: Option<f64>,
    /// How many tokens back the penalty looks.
    #[arg(long, default_value_t = 64)]
    repetition_window: usize,
    /// Seed of the draws: the same seed writes the same text.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Threads; else as many as the machine offers.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match on_backend(options.backend, options.threads, Generation(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Generation<'a>(&'a Options);

impl OnBackend for Generation<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let options = self.0;
        let loaded = load(&options.checkpoint)?;
        let checkpoint = open(&loaded.bytes)?;
        let tokenizer =
            checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
        let prompt = options.prompt.replace("\\n", "\n");
        let tokens = tokenizer.encode(&prompt)?;
        let config = SampleConfig {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            repetition_window: options.repetition_window,
            seed: options.seed,
        };
        let mut sampler = Sampler::new(config, tokenizer.vocab_size())?;
        let prefill = tokens.len().max(1);
        memory::check_decoding(&backend, checkpoint.config(), prefill)?;
        let mut model = Model::load(backend, &checkpoint)?;
        let mut decoder = Decoder::new(&mut model, prefill)?;

        let mut out = stdout().lock();
        let mut text = StreamDecoder::new();
        let begun = Instant::now();
        decoder.feed(&mut model, &tokens)?;
        let prefilled = begun.elapsed();
        let begun = Instant::now();
        let mut written = || -> Outcome<usize> {
            out.write_all(prompt.as_bytes())?;
            let mut count = 0;
            for token in decoder.generate(&mut model, &mut sampler).take(options.tokens) {
                out.write_all(text.push(tokenizer, token?)?.as_bytes())?;
                out.flush()?;
                count += 1;
            }
            out.write_all(text.finish()?.as_bytes())?;
            out.write_all(b"\n")?;
            out.flush()?;
            Ok(count)
        };
        let count = match written() {
            // Whoever reads has read enough, for example `head`.
            Err(error)
                if error
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) =>
            {
                return Ok(());
            }
            other => other?,
        };
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!(
            "{} prompt tokens in {:.1} ms; {count} tokens in {seconds:.2} s: {:.0} tokens/s",
            tokens.len(),
            prefilled.as_secs_f64() * 1e3,
            count as f64 / seconds.max(1e-9)
        );
        Ok(())
    }
}
