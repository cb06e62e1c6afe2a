//! minigpt: train and run a GPT inside any program.
//!
//! This crate holds the model, its maths and the training step, `no_std` with `alloc` and without `unsafe`. A
//! [`Backend`] does the arithmetic: the plain [`Reference`] of this crate, which is also the specification, or one of
//! the fast ones, `minigpt-cpu` and `minigpt-cuda`. They compute the same and share their checkpoints.
//!
//! ```
//! use minigpt_core::{
//!     AnyTokenizer, CharTokenizer, Decoder, GptConfig, Model, Reference, SampleConfig, Sampler, Tokenizer,
//!     TrainConfig, Trainer, Windows, checkpoint::Checkpoint, model::Extras,
//! };
//!
//! // Train: text, tokens, windows, steps.
//! let text = "to be or not to be, that is the question. ".repeat(8);
//! let tokenizer: AnyTokenizer = CharTokenizer::from_text(&text)?.into();
//! let tokens = tokenizer.encode(&text)?;
//! let windows = Windows::new(&tokens, 16)?;
//! let config =
//!     GptConfig { layers: 1, heads: 2, d_model: 32, d_ff: 64, ..GptConfig::new(tokenizer.vocab_size(), 16) };
//! let model = Model::new(Reference::<f32>::new(), config, 1)?;
//! let settings = TrainConfig { batch: 4, time: 16, ..TrainConfig::constant(1e-2) };
//! let mut trainer = Trainer::new(&model, settings)?;
//! for _ in 0..60 {
//!     trainer.step(&windows)?;
//! }
//! assert!(trainer.metrics()?.loss < 1.0);
//!
//! // Save: a file, or any writer. `Trainer::resume` would go on from here.
//! let mut file = Vec::new();
//! trainer.write(&mut file, &Extras { tokenizer: Some(&tokenizer), metadata: &[] })?;
//!
//! // Load and generate, in this program or another.
//! let checkpoint = Checkpoint::open_verified(&file)?;
//! let tokenizer = checkpoint.tokenizer().ok_or("no tokenizer")?;
//! let model = Model::load(Reference::<f32>::new(), &checkpoint)?;
//! let mut decoder = Decoder::new(&model, 16)?;
//! decoder.feed(&tokenizer.encode("to be")?)?;
//! let mut sampler = Sampler::new(SampleConfig::greedy(), tokenizer.vocab_size())?;
//! let tokens: Vec<u32> = decoder.generate(&mut sampler).take(7).collect::<Result<_, _>>()?;
//! assert_eq!(tokenizer.decode(&tokens)?.len(), 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The way through
//!
//! Data flows one way: text, [`tokenizer`], [`data`], [`train::Trainer`], [`model`], [`Backend`]; and back out as
//! metrics, [probes](probe) and [`checkpoint`]s. To understand a GPT, read in this order:
//!
//! 1. [`config`]: everything that can be varied, each with its paper.
//! 2. [`reference`](mod@reference): each op as plain loops, with its formula and the derivation of its gradient.
//! 3. [`model`]: how the ops make a model, forward and backward; [`Plan::program`] prints them.
//! 4. [`train`]: loss, clipping, the optimizers and the learning rate.
//! 5. [`sample`]: how a distribution becomes text.
//! 6. [`plan`]: what it all costs in bytes.
//! 7. [`probe`]: how to look inside while it runs.
//!
//! Models, trainers and decoders live on a [`Device`], which owns the backend: one of its own for a model that is given a
//! backend, or one that any number of them share. A [`Batch`] runs many texts side by side.
//!
//! To write a backend, read [`backend`] and [`op`], and let the `conformance` feature's suite check it.
//!
//! # Letters
//!
//! Shapes are written `(B, T, C)`, row-major, the last dimension contiguous:
//!
//! | letter | field | what |
//! |---|---|---|
//! | B | `batch` | sequences side by side |
//! | T | `time` | tokens of a sequence; for an op positions, given vectors before the tokens among them |
//! | C | `d_model` | width of the residual stream |
//! | H | `heads` | attention heads |
//! | K | `kv_heads` | heads of keys and values, H unless several heads of queries share one |
//! | D | `d_head` | width of a head, C / H unless it is given |
//! | P | `prefix` | given vectors before the tokens |
//! | F | `d_ff` | width of the feed-forward layer |
//! | V | `vocab` | size of the vocabulary |
//! | L | `layers` | blocks |
//! | R | `rows` | rows of a pass of decoding, each a token of some sequence |
//! | S | `slot_count` | slots of the cache, each for one sequence |
//! | W | | rows from which logits are wanted |
//!
//! # Features
//!
//! - `train` (default): the [`Trainer`] and the ops that only a step runs. Without it a program that only runs models is
//!   smaller.
//! - `std` (default): files and `std::io` adapters for checkpoints. Everything else is there without it.
//! - `conformance`: the suite by which a backend proves itself.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod backend;
pub mod checkpoint;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod data;
pub mod error;
pub mod memory;
pub mod model;
pub mod op;
pub mod plan;
pub mod probe;
mod real;
pub mod reference;
pub mod rng;
pub mod sample;
pub mod tokenizer;
#[cfg(feature = "train")]
pub mod train;

pub use backend::{Backend, BackendError, Device, ErrorKind, Import, Imported, Reference, ReferenceError};
pub use checkpoint::Checkpoint;
pub use config::schedule::{Decay, Schedule};
pub use config::{
    Activation, AttentionScale, Bias, ConfigError, GptConfig, Group, Groups, Mask, Norm, NormPlace,
    Optimizer, PRESETS, Pairing, ParameterKind, Position, Precision, Rank, Recompute, TrainConfig,
};
pub use data::{DataError, EvalWindows, Windows};
pub use error::Error;
#[cfg(target_has_atomic = "ptr")]
pub use memory::SharedBytes;
pub use memory::{Buffer, Dtype, InvalidOp, Span, Strided};
pub use model::{Batch, Chosen, Decoder, Model, Sequence};
pub use op::{Op, OpKind};
pub use plan::Plan;
pub use probe::Probe;
pub use real::Real;
pub use sample::{SampleConfig, SampleError, Sampler};
pub use tokenizer::{
    AnyTokenizer, ByteTokenizer, CharTokenizer, StreamDecoder, TokenBuf, Tokenizer, TokenizerError, Tokens,
};
#[cfg(feature = "train")]
pub use train::Trainer;
