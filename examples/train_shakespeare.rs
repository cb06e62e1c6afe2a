//! Trains a GPT from a fresh clone: `cargo run --release --example train_shakespeare`.
//!
//! It finds or fetches tiny Shakespeare, or else trains on the built-in plays. In `runs/shakespeare` it leaves a
//! checkpoint for `generate`, metrics as JSON lines and a loss curve. Ctrl-C stops it; `--resume` goes on, bit for bit.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use minigpt_examples::Outcome;
use minigpt_examples::training::{End, Options, train};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(End::Finished(summary)) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Ok(End::Interrupted(step)) => {
            let text = match &options.data {
                Some(data) => format!(" --data {}", data.display()),
                None if options.built_in => " --built-in".into(),
                None => String::new(),
            };
            println!(
                "stopped behind step {step}; to go on: cargo run --release --example train_shakespeare -- --resume \
                 --out {}{text}",
                options.out.display(),
            );
            ExitCode::from(130)
        }
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
