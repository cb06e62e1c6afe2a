//! Generates from a checkpoint where it lies on disk: nothing is read before it is needed, and processes that map the
//! same file share its memory. `cargo run --release --example mmap -- --prompt "ROMEO:"`

use std::io::{Write, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use minigpt_core::Model;
use minigpt_cpu::Cpu;
use minigpt_examples::generation::{Limits, SamplingOptions, Writer, samples};
use minigpt_examples::options::{CheckpointOptions, Which, best, open};
use minigpt_examples::prompt::PromptOptions;
use minigpt_examples::{Outcome, exit_code, mapped, memory};

/// Generate text from a checkpoint that is mapped into memory.
#[derive(Debug, Parser)]
#[command(name = "mmap")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
    #[command(flatten)]
    prompt: PromptOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// How many tokens, at most.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Check every byte first: for files that may be damaged. Reads all of them.
    #[arg(long)]
    verify: bool,
}

fn main() -> ExitCode {
    exit_code(run(&Options::parse()))
}

fn run(options: &Options) -> Outcome<()> {
    let file = file(&options.checkpoint)?;
    let path = file.display();
    let cpu = Cpu::new()?;
    let begun = Instant::now();
    let bytes = mapped(&file)?;
    let checkpoint = open(&bytes).map_err(|e| format!("{path}: {e}"))?;
    if options.verify {
        checkpoint.verify().map_err(|e| format!("{path}: {e}"))?;
    }
    let mapping = begun.elapsed();
    let tokenizer =
        checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
    let limits = Limits { tokens: options.tokens, stops: options.sampling.stops(&options.prompt)? };
    let prompt = options.prompt.read(tokenizer, &mut stdin().lock())?;
    let prefill = prompt.tokens.len();
    memory::check_decoding_in_place(&cpu, checkpoint.config(), prefill)?;
    // What lies between is not opening: the prompt, and how much memory there is.
    let begun = Instant::now();
    let mut model = Model::borrow(cpu, &checkpoint)?;
    let opening = mapping + begun.elapsed();
    let _ = writeln!(
        stderr(),
        "{:.1} MB opened in {:.3} ms; {} bytes of them were copied",
        bytes.len() as f64 / 1e6,
        opening.as_secs_f64() * 1e3,
        model.copied_bytes()
    );
    let mut writer = Writer::new(&mut model, tokenizer, prefill)?;
    let ways = (&options.sampling, options.sampling.seed.resolve(), 1);
    samples(&mut writer, &prompt, ways, &limits, (&mut stdout().lock(), &mut stderr()))
}

/// The file to map: of a run's folder the best checkpoint, if it is not to be the last.
fn file(options: &CheckpointOptions) -> Outcome<PathBuf> {
    match options.which {
        None | Some(Which::Best) if options.checkpoint.is_dir() => best(&options.checkpoint),
        // The newest whole one is known when all of it is read.
        Some(_) => Ok(options.load()?.path),
        None => Ok(options.checkpoint.clone()),
    }
}
