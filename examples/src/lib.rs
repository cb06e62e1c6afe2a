//! What the examples share: the corpus, the built-in plays that stand in for it, the training run, and its picture.

pub mod chart;
pub mod corpus;
mod mapped;
pub mod memory;
pub mod metrics;
pub mod ngram;
pub mod options;
pub mod play;
pub mod profiled;
#[cfg(test)]
mod scratch;
pub mod stop;
pub mod training;

pub use mapped::mapped;

use std::fmt::Display;
use std::io::Write;

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

fn say_to(out: &mut impl Write, line: impl Display) -> Outcome<()> {
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("cannot write to the standard output: {error}").into())
}

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
