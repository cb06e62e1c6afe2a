//! Text from a model inside another program, which need not have an operating system.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

#[cfg(target_os = "none")]
mod firmware;

use alloc::string::String;

use minigpt_core::plan::Logits;
use minigpt_core::{CharTokenizer, Dtype, GptConfig, Plan, Tokenizer, TokenizerError};

/// What the program wants of the model.
fn speak() -> Result<(String, usize), TokenizerError> {
    let tokenizer = CharTokenizer::from_text("to be or not")?;
    let config = GptConfig { layers: 1, d_model: 16, d_ff: 32, ..GptConfig::new(tokenizer.vocab_size(), 8) };
    let bytes = Plan::inference(&config, Dtype::F32, 1, 8, Logits::Last, 8).map_or(0, |p| p.bytes.total());
    Ok((tokenizer.decode(&tokenizer.encode("be")?)?, bytes))
}

#[cfg(not(target_os = "none"))]
fn main() {
    let (text, bytes) = speak().expect("the tokenizer knows the prompt");
    println!("{text:?} by a model of {bytes} bytes");
}
