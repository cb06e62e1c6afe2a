//! Trains a GPT from a fresh clone: `cargo run --release --example train_shakespeare`.
//!
//! It finds or fetches tiny Shakespeare, or else trains on the built-in plays. In `runs/shakespeare` it leaves a
//! checkpoint for `generate`, metrics as JSON lines and a loss curve. Ctrl-C stops it; `--resume` goes on, bit for bit.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use minigpt_examples::training::{End, Options, train};
use minigpt_examples::{Outcome, say};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let options = Options::parse();
    let end = run(&options).and_then(|end| match end {
        End::Finished(summary) => say(summary).map(|()| ExitCode::SUCCESS),
        End::Interrupted { step, flags } => say(format_args!(
            "stopped behind step {step}; to go on: cargo run --release --example train_shakespeare -- {flags}"
        ))
        .map(|()| ExitCode::from(130)),
    });
    match end {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<End> {
    ctrlc::set_handler(|| {
        // Whoever asks twice does not want to wait for the step.
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    train(options, || STOP.load(Ordering::SeqCst))
}
