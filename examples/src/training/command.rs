//! The program around a run: signals that stop it, its last line, and its exit code.

use std::io::Write;

use super::{End, Options, train};
use crate::stop::Stop;
use crate::{Closed, Outcome, say};

/// Runs what the flags say, until it is done or a signal asks to end. Returns the exit code: 0 if the run is done, 128
/// and the number of the signal if it can be resumed, 1 behind an error. Who reads no further than `head` does ends a
/// program as the signal SIGPIPE would.
pub fn command(options: &Options) -> u8 {
    run(options).unwrap_or_else(|error| {
        // The terminal may be gone, and then nobody reads it.
        let _ = writeln!(std::io::stderr(), "error: {error}");
        if error.is::<Closed>() { Closed::EXIT_CODE } else { 1 }
    })
}

fn run(options: &Options) -> Outcome<u8> {
    let stop = Stop::on_signals()?;
    match train(options, || stop.asked())? {
        End::Finished(_) => Ok(0),
        End::Interrupted { step, flags } => say(format_args!(
            "stopped behind step {step}; to go on: cargo run --release --example train_shakespeare -- {flags}"
        ))
        .map(|()| stop.exit_code()),
    }
}
