//! The program around a run: signals that stop it, its last line, and its exit code.

use std::io::Write;

use super::{End, Options, train};
use crate::stop::Stop;
use crate::{Closed, Outcome, code_of, say};

/// Runs what the flags say, until it is done or a signal asks to end. Returns the exit code: 0 if the run is done, 128
/// and the number of the signal if it can be resumed, 1 behind an error.
pub fn command(options: &Options) -> u8 {
    code_of(|| {
        let ended = run(options);
        if ended.as_ref().is_err_and(|error| error.is::<Closed>()) {
            let _ = writeln!(std::io::stderr(), "{Closed}; it goes on from what was saved with --resume");
        }
        ended
    })
}

fn run(options: &Options) -> Outcome<u8> {
    let stop = Stop::default();
    match train(options, &stop)? {
        End::Finished(_) => Ok(0),
        End::Interrupted { step, flags } => {
            let again = if options.text.is_piped() { ", pipe the same text in again" } else { "" };
            say(format_args!(
                "stopped after step {step}; to go on{again}: cargo run --release --example train_shakespeare -- {flags}"
            ))
            .map(|()| stop.exit_code())
        }
    }
}
