//! Trains a GPT from a fresh clone: `cargo run --release --example train_shakespeare`.
//!
//! It finds or fetches tiny Shakespeare, or else trains on the built-in plays. In `runs/shakespeare` it leaves
//! checkpoints for `generate`, the last ones and the best, metrics as JSON lines and a loss curve. Ctrl-C, SIGTERM and
//! SIGHUP stop it; `--resume` goes on, bit for bit.

use std::process::ExitCode;

use clap::Parser;
use minigpt_examples::training::{Options, command};

fn main() -> ExitCode {
    ExitCode::from(command(&Options::parse()))
}
