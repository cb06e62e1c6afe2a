//! What the examples share.

pub mod ngram;
pub mod play;
