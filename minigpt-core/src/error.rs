//! [`Error`]: what can go wrong when a model is built, trained or run.

use alloc::string::String;
use core::fmt;

use crate::backend::{BackendError, ErrorKind};
use crate::checkpoint::LoadError;
use crate::config::{ConfigError, Rank};
use crate::data::DataError;
use crate::memory::{Dtype, InvalidOp};
use crate::sample::SampleError;

/// Why something could not be done; `E` is the backend's own error.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error<E> {
    /// The model's shape is not possible, or a pass does not fit it.
    Config(ConfigError),
    /// The backend failed.
    Backend(E),
    /// The backend has not enough memory for a plan, or for what a probe wants to see.
    Memory {
        /// Bytes that it and the backend's scratch need together.
        needed: usize,
        /// The same of a training that recomputes [its blocks](crate::Recompute::Blocks), if it does not yet and that
        /// is less.
        recomputing: Option<usize>,
        /// What the backend said.
        source: E,
    },
    /// A token id is not in the vocabulary.
    Token {
        /// The id.
        token: u32,
        /// Its place in the input.
        index: usize,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// A batch does not have the length that its dimensions ask for.
    BatchLength {
        /// How many tokens there are.
        found: usize,
        /// How many are needed.
        expected: usize,
    },
    /// The model begins with given vectors, and there are none.
    NoPrefix {
        /// P: how many it needs before each sequence.
        prefix: usize,
    },
    /// There are not as many numbers as the given vectors of a batch have.
    PrefixLength {
        /// How many numbers there are.
        found: usize,
        /// How many are needed.
        expected: usize,
    },
    /// A cache cannot store its numbers so.
    Cache {
        /// The type asked for.
        cache: Dtype,
        /// The backend's number type.
        elem: Dtype,
    },
    /// The text does not suffice, or a batch does not fit it.
    Data(DataError),
    /// The sampler's settings or the logits are broken.
    Sample(SampleError),
    /// The checkpoint cannot be loaded.
    Load(LoadError),
    /// The checkpoint holds a model but not the state of a training.
    NoTraining,
    /// Micro-batches have been added to a step that is not finished: they would be lost.
    UnfinishedStep,
    /// There is no token to begin from.
    EmptyPrompt,
    /// A number in the training settings has no meaning.
    Setting {
        /// The field of [`TrainConfig`](crate::TrainConfig).
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },
    /// The weights are borrowed or not of the backend's number type, so they cannot be trained.
    Frozen,
    /// A weight cannot be stored in the format that was asked for.
    Unfit {
        /// Its tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// The format.
        dtype: Dtype,
    },
    /// A sequence has left its batch, or belongs to another.
    NoSequence,
    /// A step was to be finished to which no micro-batch had been added.
    EmptyStep,
    /// All parameters were to be frozen.
    NothingToTrain,
    /// One of several ranks was to finish a step without the sums of all ranks.
    SumsNotShared {
        /// Which one.
        rank: Rank,
    },
    /// The schedule gives a learning rate that is negative or not finite, by itself or times the factors of a group.
    LearningRate {
        /// The number of the step, counted from 0.
        step: u32,
        /// The rate.
        rate: f64,
    },
}

impl<E: BackendError> Error<E> {
    /// Whether it is the memory that did not suffice.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::Memory { .. } => true,
            Error::Backend(error) => error.kind() == ErrorKind::OutOfMemory,
            _ => false,
        }
    }
}

/// Turns the backend's "out of memory" into one that says how much was needed.
pub(crate) fn out_of_memory<E: BackendError>(needed: usize, source: E) -> Error<E> {
    match source.kind() {
        ErrorKind::OutOfMemory => Error::Memory { needed, recomputing: None, source },
        _ => Error::Backend(source),
    }
}

impl<E> From<ConfigError> for Error<E> {
    fn from(error: ConfigError) -> Self {
        Error::Config(error)
    }
}

impl<E> From<DataError> for Error<E> {
    fn from(error: DataError) -> Self {
        Error::Data(error)
    }
}

impl<E> From<LoadError> for Error<E> {
    fn from(error: LoadError) -> Self {
        Error::Load(error)
    }
}

impl<E> From<SampleError> for Error<E> {
    fn from(error: SampleError) -> Self {
        Error::Sample(error)
    }
}

impl<E: From<InvalidOp>> From<InvalidOp> for Error<E> {
    fn from(error: InvalidOp) -> Self {
        Error::Backend(error.into())
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(error) => error.fmt(f),
            Error::Backend(error) => error.fmt(f),
            Error::Memory { needed, recomputing, source } => {
                let mb = |bytes: usize| bytes as f64 / 1e6;
                write!(f, "{:.1} MB are needed: {source}; ", mb(*needed))?;
                if let Some(less) = recomputing {
                    write!(f, "with TrainConfig::recompute set to Recompute::Blocks, {:.1} MB; ", mb(*less))?;
                }
                f.write_str(
                    "a smaller batch, shorter sequences or a smaller model need less (TrainConfig::largest_batch says \
                     what fits in training; decoding needs less with fewer slots, or fewer rows at once)",
                )
            }
            Error::Token { token, index, vocab } => write!(
                f,
                "token {token} at place {index} is not in the vocabulary of {vocab}: encode with the model's tokenizer"
            ),
            Error::BatchLength { found, expected } => {
                write!(f, "a batch of {found} tokens where {expected} are needed (batch times time)")
            }
            Error::NoPrefix { prefix } => write!(
                f,
                "this model begins with {prefix} given vectors: give them first (Trainer::set_prefix, Decoder::begin_with, \
                 Batch::begin_with, Model::logits_with)"
            ),
            Error::PrefixLength { found, expected: 0 } => write!(
                f,
                "{found} numbers as given vectors for a model without a prefix: give none, or make the model with as many \
                 given vectors as GptConfig::prefix says"
            ),
            Error::PrefixLength { found, expected } => write!(
                f,
                "{found} numbers as given vectors, where {expected} are needed (sequences times the model's prefix times \
                 d_model)"
            ),
            Error::Cache { cache, elem } => write!(
                f,
                "a cache stores its numbers as {elem:?}, in which this backend computes, or as F16 or Bf16, not as {cache:?}"
            ),
            Error::Data(error) => error.fmt(f),
            Error::Sample(error) => error.fmt(f),
            Error::Load(error) => error.fmt(f),
            Error::NoTraining => f.write_str(
                "this checkpoint holds a model but no training to continue: load it with Model::load and train it anew",
            ),
            Error::UnfinishedStep => {
                f.write_str("a step is in the making, and a checkpoint does not hold it: call finish_step first")
            }
            Error::EmptyPrompt => {
                f.write_str("the prompt is empty: give at least one token to begin from, such as a line break")
            }
            Error::Setting { field, must } => write!(f, "the training setting `{field}` must be {must}"),
            Error::Frozen => f.write_str(
                "these weights cannot be trained: they are borrowed or stored in fewer bits; load the checkpoint into \
                 memory with Model::load, or train the model that one in another precision was made of",
            ),
            Error::Unfit { tensor, row, col, dtype } => write!(
                f,
                "row {row}, column {col} of {tensor} is not finite or too large for {dtype:?}: choose another format \
                 (bf16 reaches almost as far as f32), or an earlier checkpoint if the training has gone wrong"
            ),
            Error::NoSequence => f.write_str(
                "this sequence has left its batch, or belongs to another: begin a new one with join",
            ),
            Error::NothingToTrain => {
                f.write_str("all parameters are frozen, and nothing is left to train: leave at least one")
            }
            Error::SumsNotShared { rank: Rank { index, count } } => write!(
                f,
                "rank {index} of {count} has not got the sums of all ranks: call accumulate, add up what read_sums gives on \
                 each rank, and call write_sums with the total before finish_step"
            ),
            Error::LearningRate { step, rate } => write!(
                f,
                "the learning rate of step {step} is {rate}, and must be at least 0 and finite, also times the rate and the \
                 decay of each group: set another schedule (Trainer::set_schedule), and finish the step"
            ),
            Error::EmptyStep => f.write_str("there is no gradient to update by: call micro_step before finish_step"),
        }
    }
}

impl<E: core::error::Error + 'static> core::error::Error for Error<E> {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Error::Config(error) => Some(error),
            Error::Backend(error) | Error::Memory { source: error, .. } => Some(error),
            Error::Data(error) => Some(error),
            Error::Sample(error) => Some(error),
            Error::Load(error) => Some(error),
            _ => None,
        }
    }
}
