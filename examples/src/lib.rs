//! What the examples share: the corpus, the built-in plays that stand in for it, the training run, and its picture.

pub mod chart;
pub mod corpus;
pub mod evaluation;
pub mod flags;
pub mod generation;
mod mapped;
pub mod memory;
pub mod metrics;
pub mod ngram;
pub mod options;
pub mod play;
pub mod profiled;
pub mod progress;
pub mod prompt;
pub mod seed;
pub mod stop;
pub mod testing;
pub mod training;

pub use mapped::mapped;

use std::fmt::{self, Display};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// What an example gives, or a message that says what to do.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Prints a line. An output that is full or closed is an error, where `println!` would panic.
///
/// # Errors
/// If it cannot be written.
pub fn say(line: impl Display) -> Outcome<()> {
    say_to(&mut std::io::stdout().lock(), line)
}

/// Writes a line to `out`, and out of every buffer.
///
/// # Errors
/// If it cannot be written.
pub fn say_to(out: &mut (impl Write + ?Sized), line: impl Display) -> Outcome<()> {
    written(writeln!(out, "{line}").and_then(|()| out.flush()))
}

/// What came of writing to the standard output.
pub(crate) fn written(result: std::io::Result<()>) -> Outcome<()> {
    result.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Closed.into(),
        _ => format!("cannot write to the standard output: {error}").into(),
    })
}

/// Runs a program: says what went wrong, if something did, and gives what it ends with. Who reads no further than `head`
/// does has what they wanted, and ends it as the signal SIGPIPE would.
pub fn finish(run: impl FnOnce() -> Outcome<u8>) -> ExitCode {
    ExitCode::from(code_of(run))
}

/// The same as a number.
pub(crate) fn code_of(run: impl FnOnce() -> Outcome<u8>) -> u8 {
    match stop::heed_file_limit().map_err(Into::into).and_then(|()| run()) {
        Ok(code) => code,
        Err(error) if error.is::<Closed>() => Closed::EXIT_CODE,
        Err(error) => {
            // Nothing is left to do about an error output that is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            1
        }
    }
}

/// Whoever read the standard output has closed it, as `head` does when it has seen enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl Closed {
    /// What a program ends with: 128 and the number of SIGPIPE, as shells have it.
    pub const EXIT_CODE: u8 = 128 + 13;
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the standard output was closed, so the program ended")
    }
}

impl std::error::Error for Closed {}

#[cfg(test)]
mod tests {
    #[test]
    fn an_output_that_takes_no_more_is_an_error() {
        let mut room = [0; 5];
        let error = super::say_to(&mut &mut room[..], "six is too long").unwrap_err().to_string();
        assert!(error.starts_with("cannot write to the standard output: "), "{error}");
        let mut out = Vec::new();
        super::say_to(&mut out, format_args!("a line of {}", 1)).unwrap();
        assert_eq!(out, b"a line of 1\n");
    }
}
