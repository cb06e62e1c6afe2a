//! What can be wrong with a checkpoint, and with saving one.

use alloc::string::String;
use core::fmt;

use super::format::{MAX_NAME, VERSION};
use crate::config::ConfigError;
use crate::tokenizer::TokenizerError;

/// Why bytes are not a checkpoint that can be used, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadError {
    /// The byte of the file where the fault shows.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
}

impl LoadError {
    pub(super) fn new(offset: usize, fault: Fault) -> Self {
        LoadError { offset: offset as u64, fault }
    }

    /// The bytes end after `found` of at least `needed`.
    pub(super) fn truncated(needed: u64, found: u64) -> Self {
        LoadError { offset: found, fault: Fault::Truncated { needed, found } }
    }
}

/// What is wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// It does not begin with `MGPT`.
    Magic,
    /// The format is of a version that this library does not know.
    Version {
        /// The version in the file.
        found: u32,
    },
    /// It ends too early.
    Truncated {
        /// How long it must be, as far as is known.
        needed: u64,
        /// How long it is.
        found: u64,
    },
    /// It goes on after its end.
    Trailing {
        /// How many bytes too many; of a stream, as many as were read of them.
        bytes: u64,
    },
    /// The header's length is not that of a header.
    HeaderLength {
        /// The length in the file.
        found: u32,
    },
    /// The header's bytes are not those that were written.
    HeaderCrc {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A section does not end where the header does, or its list is longer than its bytes.
    SectionLength {
        /// The section's tag.
        tag: [u8; 4],
    },
    /// A section has a flag that this version does not define.
    SectionFlags {
        /// The section's tag.
        tag: [u8; 4],
        /// All its flags.
        flags: u32,
    },
    /// A section that cannot be skipped, and that this library does not know.
    UnknownSection {
        /// The section's tag.
        tag: [u8; 4],
    },
    /// A section that stands there twice.
    RepeatedSection {
        /// The section's tag.
        tag: [u8; 4],
    },
    /// A section that every checkpoint has, and this one not.
    MissingSection {
        /// The section's tag.
        tag: [u8; 4],
    },
    /// The bytes of a section do not decode to what its tag says.
    Malformed {
        /// The section's tag.
        tag: [u8; 4],
    },
    /// No model can have this config.
    Config(ConfigError),
    /// No tokenizer can have these characters.
    Tokenizer(TokenizerError),
    /// There are more tokens than the model can tell apart.
    Vocabulary {
        /// The tokenizer's tokens.
        tokens: usize,
        /// The model's.
        vocab_size: usize,
    },
    /// An entry of the metadata without a key.
    EmptyKey,
    /// The name of a tensor is empty or too long.
    NameLength {
        /// In bytes.
        bytes: usize,
    },
    /// Two tensors have the same name.
    RepeatedTensor {
        /// That name.
        name: String,
    },
    /// A tensor without elements, or larger than can be counted.
    TensorSize {
        /// The tensor.
        name: String,
    },
    /// A tensor's length is not that of its shape.
    TensorLength {
        /// The tensor.
        name: String,
        /// The bytes of its shape.
        expected: u64,
        /// The bytes in the index.
        found: u64,
    },
    /// A tensor does not begin right behind the one before it.
    TensorOffset {
        /// The tensor.
        name: String,
        /// Where it must begin, in the payload.
        expected: u64,
        /// Where the index says it does.
        found: u64,
    },
    /// A parameter behind a tensor that only training needs.
    TensorOrder {
        /// The parameter.
        name: String,
    },
    /// A tensor's bytes are not those that were written.
    TensorCrc {
        /// The tensor.
        name: String,
        /// The checksum in the index.
        stored: u32,
        /// The checksum of its bytes.
        computed: u32,
    },
    /// A byte that only fills up to the alignment is not zero.
    Padding,
    /// The config has more layers than the tensors can be for: a layer has four matrices at least.
    Layers {
        /// The config's layers.
        layers: usize,
        /// The parameters in the file.
        tensors: usize,
    },
    /// The model needs a tensor that is not there.
    MissingTensor {
        /// That tensor.
        name: String,
    },
    /// A tensor that the model has no place for.
    UnknownTensor {
        /// That tensor.
        name: String,
    },
    /// A tensor has another shape than the model needs.
    TensorShape {
        /// The tensor.
        name: String,
        /// Rows and columns that the model needs.
        expected: (usize, usize),
        /// Rows and columns of the tensor.
        found: (usize, usize),
    },
    /// It is larger than the [`Limits`](super::Limits) allow.
    Limit {
        /// The limit, a field of [`Limits`](super::Limits).
        field: &'static str,
        /// What the file needs.
        found: u64,
        /// What is allowed.
        limit: u64,
    },
    /// There is no memory for what the header holds, or for a piece of a tensor.
    OutOfMemory {
        /// What could not be allocated.
        bytes: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Magic => write!(f, "this is not a minigpt checkpoint: it does not begin with MGPT"),
            Fault::Version { found: 0 } => write!(f, "there is no format version 0: the file is damaged"),
            Fault::Version { found } => write!(
                f,
                "format version {found} is newer than {VERSION}, the newest that this program reads: \
                 update the program"
            ),
            Fault::Truncated { needed, found } => write!(
                f,
                "the file ends after {found} of at least {needed} bytes: copy it again from its source, \
                 or use an earlier checkpoint"
            ),
            Fault::Trailing { bytes } => {
                write!(f, "{bytes} bytes follow the end: this is not what was saved, copy it again")
            }
            Fault::HeaderLength { found } => {
                write!(f, "a header cannot be {found} bytes long: the file is damaged, copy it again")
            }
            Fault::HeaderCrc { stored, computed } => write!(
                f,
                "the header's checksum is {computed:08x} and should be {stored:08x}: the file is damaged, \
                 copy it again"
            ),
            Fault::SectionLength { tag } => {
                write!(f, "section {} does not fit its length", tag.escape_ascii())
            }
            Fault::SectionFlags { tag, flags } => write!(
                f,
                "section {} has flags {flags:#x}, of which this program knows only 1: update the program",
                tag.escape_ascii()
            ),
            Fault::UnknownSection { tag } => write!(
                f,
                "this checkpoint cannot be used without its section {}, which this program does not know: \
                 update the program",
                tag.escape_ascii()
            ),
            Fault::RepeatedSection { tag } => {
                write!(f, "section {} stands there twice", tag.escape_ascii())
            }
            Fault::MissingSection { tag } => write!(f, "section {} is missing", tag.escape_ascii()),
            Fault::Malformed { tag } => {
                write!(f, "section {} holds something else than its tag says", tag.escape_ascii())
            }
            Fault::Config(error) => write!(f, "the model's config is invalid: {error}"),
            Fault::Tokenizer(error) => write!(f, "the tokenizer is invalid: {error}"),
            Fault::Vocabulary { tokens, vocab_size } => write!(
                f,
                "the tokenizer has {tokens} tokens, but the model's vocab_size is {vocab_size}: they do not \
                 belong together"
            ),
            Fault::EmptyKey => write!(f, "an entry of the metadata has an empty key"),
            Fault::NameLength { bytes } => {
                write!(f, "a tensor's name is {bytes} bytes long: it must be 1 to {MAX_NAME}")
            }
            Fault::RepeatedTensor { name } => write!(f, "two tensors are named {name:?}"),
            Fault::TensorSize { name } => {
                write!(f, "tensor {name:?} has no elements, or more than can be counted")
            }
            Fault::TensorLength { name, expected, found } => {
                write!(f, "tensor {name:?} has {found} bytes, but its shape makes {expected}")
            }
            Fault::TensorOffset { name, expected, found } => write!(
                f,
                "tensor {name:?} begins at byte {found} of the payload, but the one before it makes that \
                 {expected}"
            ),
            Fault::TensorOrder { name } => {
                write!(f, "parameter {name:?} stands behind a tensor that only training needs")
            }
            Fault::TensorCrc { name, stored, computed } => write!(
                f,
                "the checksum of tensor {name:?} is {computed:08x} and should be {stored:08x}: the file is \
                 damaged, copy it again or use an earlier checkpoint"
            ),
            Fault::Padding => {
                write!(f, "a byte between tensors is not zero: the file is damaged, copy it again")
            }
            Fault::Layers { layers, tensors } => {
                write!(f, "{tensors} parameters are too few for the {layers} layers of the config")
            }
            Fault::MissingTensor { name } => {
                write!(f, "tensor {name:?} is missing: this checkpoint cannot be used for this")
            }
            Fault::UnknownTensor { name } => {
                write!(f, "tensor {name:?} is none that a model of this config has")
            }
            Fault::TensorShape { name, expected, found } => write!(
                f,
                "tensor {name:?} is {} x {}, but the config makes it {} x {}",
                found.0, found.1, expected.0, expected.1
            ),
            Fault::Limit { field, found, limit } => write!(
                f,
                "its {field} would be {found}, and {limit} is allowed: if you trust the file, open it within \
                 Limits whose `{field}` is that large"
            ),
            Fault::OutOfMemory { bytes } => {
                write!(
                    f,
                    "there is no memory for {bytes} bytes to read it: free some, or use a smaller model"
                )
            }
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "checkpoint, byte {}: {}", self.offset, self.fault)
    }
}

impl core::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match &self.fault {
            Fault::Config(error) => Some(error),
            Fault::Tokenizer(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a checkpoint was not loaded from a stream: `R` is the reader's own error, `E` says what is wrong with the
/// checkpoint, or with what became of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum StreamError<R, E = LoadError> {
    /// The reader failed.
    Read {
        /// How many bytes had been read.
        offset: u64,
        /// Its error.
        error: R,
    },
    /// What was read cannot be used.
    Load(E),
}

impl<R, E> StreamError<R, E> {
    /// With another error of the second kind.
    pub(crate) fn map<F>(self, f: impl FnOnce(E) -> F) -> StreamError<R, F> {
        match self {
            StreamError::Read { offset, error } => StreamError::Read { offset, error },
            StreamError::Load(error) => StreamError::Load(f(error)),
        }
    }
}

impl<R: fmt::Display, E: fmt::Display> fmt::Display for StreamError<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamError::Read { offset, error } => {
                write!(f, "cannot read on behind byte {offset} of the checkpoint: {error}")
            }
            StreamError::Load(error) => error.fmt(f),
        }
    }
}

impl<R, E> core::error::Error for StreamError<R, E>
where
    R: core::error::Error + 'static,
    E: core::error::Error + 'static,
{
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            StreamError::Read { error, .. } => Some(error),
            StreamError::Load(error) => Some(error),
        }
    }
}

/// Why a checkpoint was not saved: `R` is the error of reading a tensor, `W` that of the sink.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SaveError<R, W> {
    /// It would be a checkpoint that cannot be loaded. Nothing was written.
    Invalid(Fault),
    /// A tensor could not be read.
    Read {
        /// Its name.
        tensor: String,
        /// Why.
        error: R,
    },
    /// A tensor had other bytes the second time that it was read.
    Changed {
        /// Its name.
        tensor: String,
    },
    /// The sink failed.
    Write(W),
    /// There is no memory for the header or a chunk. Nothing was written.
    OutOfMemory {
        /// What could not be allocated.
        bytes: usize,
    },
}

impl<R, W> From<Fault> for SaveError<R, W> {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::OutOfMemory { bytes } => SaveError::OutOfMemory { bytes },
            fault => SaveError::Invalid(fault),
        }
    }
}

impl<R: fmt::Display, W: fmt::Display> fmt::Display for SaveError<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SaveError::Invalid(fault) => write!(f, "this cannot be saved: {fault}"),
            SaveError::Read { tensor, error } => {
                write!(f, "not saved, because tensor {tensor:?} cannot be read: {error}")
            }
            SaveError::Changed { tensor } => write!(
                f,
                "not saved, because tensor {tensor:?} changed meanwhile: nothing may train while it is saved"
            ),
            SaveError::Write(error) => write!(f, "not saved: {error}"),
            SaveError::OutOfMemory { bytes } => {
                write!(f, "not saved: no memory for {bytes} bytes, free some and save again")
            }
        }
    }
}

impl<R, W> core::error::Error for SaveError<R, W>
where
    R: core::error::Error + 'static,
    W: core::error::Error + 'static,
{
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            SaveError::Read { error, .. } => Some(error),
            SaveError::Write(error) => Some(error),
            _ => None,
        }
    }
}
