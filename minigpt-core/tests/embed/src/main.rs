//! Text from a model inside another program, which need not have an operating system.
//!
//! The model is part of the program: its weights are read where they lie, in flash or in the executable.
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

#[cfg(target_os = "none")]
mod firmware;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::error::Error;

use minigpt_core::{Checkpoint, Decoder, Model, SampleConfig, Sampler, Tokenizer};
use minigpt_cpu::Cpu;

/// Bytes at the alignment that weights need to be used where they lie.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// Made by `examples/make_model.rs`.
static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../model.mgpt"));

/// What the model says after `prompt`, in `len` tokens.
fn speak(prompt: &str, len: usize) -> Result<String, Box<dyn Error>> {
    let checkpoint = Checkpoint::open_verified(&MODEL.0)?;
    let tokenizer = checkpoint.tokenizer().ok_or("the checkpoint has no tokenizer")?;
    let model = Model::borrow(Cpu::new()?, &checkpoint)?;
    let mut decoder = Decoder::new(&model, 4)?;
    decoder.feed(&tokenizer.encode(prompt)?)?;
    let mut sampler = Sampler::new(SampleConfig::greedy(), tokenizer.vocab_size())?;
    let tokens: Vec<u32> = decoder.generate(&mut sampler).take(len).collect::<Result<_, _>>()?;
    Ok(tokenizer.decode(&tokens)?)
}

#[cfg(not(target_os = "none"))]
fn main() {
    let text = speak("a small model", 40).expect("the model and the prompt are good");
    println!("a small model{text}");
    // It learned one sentence by heart; past its context of 16 characters it still knows it.
    assert_eq!(text, " speaks from flash. a small model speaks");
}
