//! What the fuzz targets do with an input, without the fuzzer: so that `minigpt-core/tests/fuzz.rs` can include this
//! file and do the same on stable Rust, with the seeds and with every input that once broke something.
//!
//! A target panics where a claim of the library does not hold. How to run the fuzzer stands in `fuzz/Cargo.toml`.

mod checkpoint;
mod conf;
mod config;
mod draw;
mod file;
mod roundtrip;
mod sampler;
mod seeds;
mod tokenizer;

pub use checkpoint::checkpoint_load;
pub use config::config_plan;
pub use file::mutate;
pub use roundtrip::checkpoint_roundtrip;
pub use sampler::sampler;
pub use seeds::seeds;
pub use tokenizer::{tokenizer_load, tokenizer_roundtrip};

/// What a target does with an input.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("tokenizer_roundtrip", tokenizer_roundtrip),
    ("tokenizer_load", tokenizer_load),
    ("checkpoint_load", checkpoint_load),
    ("checkpoint_roundtrip", checkpoint_roundtrip),
    ("config_plan", config_plan),
    ("sampler", sampler),
];
