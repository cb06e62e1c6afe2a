//! Generates from a checkpoint where it lies on disk: nothing is read before it is needed, and processes that map the
//! same file share its memory. `cargo run --release --example mmap -- --prompt "ROMEO:"`

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use minigpt_core::{Decoder, Model, SampleConfig, Sampler, StreamDecoder, Tokenizer};
use minigpt_cpu::Cpu;
use minigpt_examples::options::open;
use minigpt_examples::{Outcome, mapped, memory};

/// Generate text from a checkpoint that is mapped into memory.
#[derive(Debug, Parser)]
#[command(name = "mmap")]
struct Options {
    /// What train_shakespeare saved.
    #[arg(long, value_name = "FILE", default_value = "runs/shakespeare/best.mgpt")]
    checkpoint: PathBuf,
    /// The text to go on from; \n stands for a line break.
    #[arg(long, default_value = "\\n")]
    prompt: String,
    /// How many tokens.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Check every byte first: for files that may be damaged. Reads all of them.
    #[arg(long)]
    verify: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let path = options.checkpoint.display();
    let cpu = Cpu::new()?;
    let begun = Instant::now();
    let bytes = mapped(&options.checkpoint)?;
    let checkpoint = open(&bytes).map_err(|e| format!("{path}: {e}"))?;
    if options.verify {
        checkpoint.verify().map_err(|e| format!("{path}: {e}"))?;
    }
    let mapping = begun.elapsed();
    let tokenizer =
        checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
    let prompt = options.prompt.replace("\\n", "\n");
    let tokens = tokenizer.encode(&prompt)?;
    let prefill = tokens.len().max(1);
    memory::check_decoding_in_place(&cpu, checkpoint.config(), prefill)?;
    // What lies between is not opening: the prompt, and how much memory there is.
    let begun = Instant::now();
    let mut model = Model::borrow(cpu, &checkpoint)?;
    let opening = mapping + begun.elapsed();
    eprintln!(
        "{:.1} MB opened in {:.3} ms; {} bytes of them were copied",
        bytes.len() as f64 / 1e6,
        opening.as_secs_f64() * 1e3,
        model.copied_bytes()
    );

    let mut decoder = Decoder::new(&mut model, prefill)?;
    decoder.feed(&mut model, &tokens)?;
    let mut sampler = Sampler::new(SampleConfig::default(), tokenizer.vocab_size())?;
    let (mut out, mut text) = (stdout().lock(), StreamDecoder::new());
    out.write_all(prompt.as_bytes())?;
    for token in decoder.generate(&mut model, &mut sampler).take(options.tokens) {
        out.write_all(text.push(tokenizer, token?)?.as_bytes())?;
        out.flush()?;
    }
    out.write_all(text.finish()?.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}
