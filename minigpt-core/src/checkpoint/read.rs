//! [`Checkpoint`]: opened where it lies. Any bytes give one or an error, in time and memory linear in their length.

use alloc::string::ToString;
use alloc::vec::Vec;

use super::crc::crc32;
use super::format::ALIGN;
use super::header::{Entry, Header};
use super::{Fault, Limits, LoadError, Role, Training};
use crate::config::GptConfig;
use crate::memory::Dtype;
use crate::plan::States;
use crate::tokenizer::AnyTokenizer;

/// A tensor of a checkpoint, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// Its name; a parameter's is that of [`crate::plan::Tensor`].
    pub name: &'a str,
    /// What it is for.
    pub role: Role,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns, without the padding of quantised types.
    pub cols: usize,
    /// Where it begins in the file; a multiple of 64.
    pub offset: usize,
    /// Its numbers, row by row, little-endian.
    pub bytes: &'a [u8],
}

/// A checkpoint, opened where it lies: in a `Vec`, in flash, in a mapped file.
///
/// [`open`](Checkpoint::open) reads the header and no tensor; [`verify`](Checkpoint::verify) reads all the
/// rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint<'a> {
    bytes: &'a [u8],
    /// Where the payload begins.
    payload: usize,
    header: Header<'a>,
}

impl<'a> Checkpoint<'a> {
    /// Opens a checkpoint, after checking its structure and the checksum of its header, within
    /// [`Limits::DEFAULT`].
    ///
    /// # Errors
    /// If `bytes` are not a checkpoint that this version reads.
    pub fn open(bytes: &'a [u8]) -> Result<Self, LoadError> {
        Checkpoint::open_within(bytes, &Limits::DEFAULT)
    }

    /// [`open`](Checkpoint::open) within limits of the program's own.
    ///
    /// # Errors
    /// Also if it is beyond a limit.
    pub fn open_within(bytes: &'a [u8], limits: &Limits) -> Result<Self, LoadError> {
        let header = Header::parse(bytes, limits)?;
        let (payload, end, found) = (header.payload(), header.file_length()?, bytes.len() as u64);
        if found < end {
            return Err(LoadError::truncated(end, found));
        }
        // Both fit in usize, being at most the length of the bytes.
        let (payload, end) = (payload as usize, end as usize);
        if found > end as u64 {
            return Err(LoadError::new(end, Fault::Trailing { bytes: found - end as u64 }));
        }
        check_padding(&bytes[header.length..payload], header.length as u64)?;
        Ok(Checkpoint { bytes, payload, header })
    }

    /// Opens a checkpoint and checks every byte of it.
    ///
    /// # Errors
    /// If `bytes` are not a checkpoint, whole and undamaged.
    pub fn open_verified(bytes: &'a [u8]) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(bytes)?;
        checkpoint.verify()?;
        Ok(checkpoint)
    }

    /// Checks each tensor's checksum, and that the bytes between tensors are zero.
    ///
    /// # Errors
    /// The first damage.
    pub fn verify(&self) -> Result<(), LoadError> {
        for (entry, tensor) in self.header.tensors.iter().zip(self.tensors()) {
            let computed = crc32(tensor.bytes);
            if computed != entry.crc {
                let fault = Fault::TensorCrc { name: entry.name.to_string(), stored: entry.crc, computed };
                return Err(LoadError::new(tensor.offset, fault));
            }
            let end = tensor.offset + tensor.bytes.len();
            check_padding(&self.bytes[end..end.next_multiple_of(ALIGN)], end as u64)?;
        }
        Ok(())
    }

    /// The model's shape; valid.
    pub fn config(&self) -> &GptConfig {
        &self.header.config
    }

    /// What turns text into the model's tokens, if the checkpoint has it. At most `vocab_size` tokens.
    pub fn tokenizer(&self) -> Option<&AnyTokenizer> {
        self.header.tokenizer.as_ref()
    }

    /// What a run needs to continue, besides what optimizers keep, if the checkpoint has it. Its values are as they
    /// were saved: whoever trains with them checks them.
    pub fn training(&self) -> Option<&Training> {
        self.header.training.as_ref()
    }

    /// The program's own keys and values, as they were saved.
    pub fn metadata(&self) -> &[(&'a str, &'a str)] {
        &self.header.metadata
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'a>> + '_ {
        self.header.tensors.iter().map(|entry| self.view(entry))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'a>> {
        self.header.find(name).map(|i| self.view(&self.header.tensors[i]))
    }

    /// The model's parameters, in the order of [`Plan::parameters`](crate::Plan::parameters)`.list()`, each with
    /// the shape that the config gives it.
    ///
    /// Only after this has succeeded is the number of layers known to be backed by tensors: a config alone
    /// may ask for billions, and a [`Plan`](crate::Plan) of it would take memory to match.
    ///
    /// # Errors
    /// If one is missing, there are others, or a shape is wrong.
    pub fn parameters(&self) -> Result<Vec<TensorView<'a>>, LoadError> {
        Ok(self.header.parameters()?.into_iter().map(|i| self.view(&self.header.tensors[i])).collect())
    }

    /// What the optimizers of the [training](Checkpoint::training) keep of each parameter, and its average if there is one, in
    /// the order of [`Plan::parameters`](crate::Plan::parameters)`.list()`; `None` of a parameter that is frozen.
    ///
    /// # Errors
    /// If a parameter that is trained lacks one, or none is trained; if there are other tensors for training, or a shape is
    /// wrong.
    pub fn states(&self) -> Result<Vec<Option<States<TensorView<'a>>>>, LoadError> {
        let view = |i: usize| self.view(&self.header.tensors[i]);
        Ok(self.header.states()?.into_iter().map(|states| states.map(|states| states.map(view))).collect())
    }

    fn view(&self, entry: &Entry<'a>) -> TensorView<'a> {
        // `open` has compared the end of the last tensor with the length of the bytes.
        let offset = self.payload + entry.start as usize;
        TensorView {
            name: entry.name,
            role: entry.role,
            dtype: entry.dtype,
            rows: entry.rows,
            cols: entry.cols,
            offset,
            bytes: &self.bytes[offset..offset + entry.length as usize],
        }
    }
}

/// `bytes`, which begin at `offset` of the file, must be zero.
pub(super) fn check_padding(bytes: &[u8], offset: u64) -> Result<(), LoadError> {
    match bytes.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(i) => Err(LoadError { offset: offset + i as u64, fault: Fault::Padding }),
    }
}
