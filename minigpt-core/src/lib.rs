//! minigpt: train and run a GPT inside any program.
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
pub mod model;
pub mod op;
pub mod plan;
mod real;
pub mod reference;
pub mod rng;
pub mod sample;
pub mod tokenizer;
pub mod train;

pub use backend::{Backend, BackendError, Buffer, Dtype, ErrorKind, Import, Span};
pub use checkpoint::Checkpoint;
pub use config::{Activation, AttentionScale, ConfigError, GptConfig, Norm, Position};
pub use data::{DataError, EvalWindows, Windows};
pub use error::Error;
pub use model::{Decoder, Model};
pub use op::{InvalidOp, Op, OpKind};
pub use plan::Plan;
pub use real::Real;
pub use reference::{Reference, ReferenceError};
pub use sample::{SampleConfig, SampleError, Sampler};
pub use tokenizer::{AnyTokenizer, ByteTokenizer, CharTokenizer, StreamDecoder, Tokenizer, TokenizerError};
pub use train::{TrainConfig, Trainer};
