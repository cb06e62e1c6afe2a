//! What the examples share: the corpus, the built-in plays that stand in for it, the training run, and its picture.

pub mod chart;
pub mod corpus;
pub mod memory;
pub mod metrics;
pub mod ngram;
pub mod options;
pub mod play;
pub mod profiled;
#[cfg(test)]
mod scratch;
pub mod training;

/// What an example gives, or a message that says what to do.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
