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

/// Bytes at the alignment that weights need to be used where they lie.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// Made by `examples/make_model.rs`.
static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../model.mgpt"));

const PROMPT: &str = "a small model";
/// It learned one sentence by heart; past its context of 16 characters it still knows it.
const KNOWN: &str = " speaks from flash. a small model speaks";

#[cfg(not(feature = "reference"))]
fn backend() -> Result<minigpt_cpu::Cpu<'static>, minigpt_cpu::CpuError> {
    minigpt_cpu::Cpu::new()
}

#[cfg(feature = "reference")]
fn backend() -> Result<minigpt_core::Reference<f32>, core::convert::Infallible> {
    Ok(minigpt_core::Reference::new())
}

/// What the model says after `prompt`, in `len` tokens.
fn speak(prompt: &str, len: usize) -> Result<String, Box<dyn Error>> {
    let checkpoint = Checkpoint::open_verified(&MODEL.0)?;
    let tokenizer = checkpoint.tokenizer().ok_or("the checkpoint has no tokenizer")?;
    let model = Model::borrow(backend()?, &checkpoint)?;
    let mut decoder = Decoder::new(&model, 4)?;
    decoder.feed(&tokenizer.encode(prompt)?)?;
    let mut sampler = Sampler::new(SampleConfig::greedy(), tokenizer.vocab_size())?;
    let tokens: Vec<u32> = decoder.generate(&mut sampler).take(len).collect::<Result<_, _>>()?;
    Ok(tokenizer.decode(&tokens)?)
}

/// The loss after so many steps in which a new model learns another sentence.
#[cfg(feature = "train")]
fn learn(steps: usize) -> Result<f64, Box<dyn Error>> {
    use minigpt_core::{TrainConfig, Trainer, Windows};

    let checkpoint = Checkpoint::open_verified(&MODEL.0)?;
    let tokenizer = checkpoint.tokenizer().ok_or("the checkpoint has no tokenizer")?;
    let text = tokenizer.encode(&"a model speaks from a small flash. ".repeat(8))?;
    let windows = Windows::new(&text, 16)?;
    let model = Model::new(backend()?, checkpoint.config().clone(), 1)?;
    let settings = TrainConfig { batch: 4, time: 16, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&model, settings)?;
    for _ in 0..steps {
        trainer.step(&windows)?;
    }
    Ok(trainer.metrics()?.loss)
}

#[cfg(not(target_os = "none"))]
fn main() {
    let text = speak(PROMPT, 40).expect("the model and the prompt are good");
    println!("{PROMPT}{text}");
    assert_eq!(text, KNOWN);
    #[cfg(feature = "train")]
    assert!(learn(6).expect("the model and the text are good") < learn(2).expect("as before"));
}
