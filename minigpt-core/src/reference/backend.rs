//! [`Reference`]: the oracle, a backend of the six required methods over the reference ops.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use crate::backend::{Backend, BackendError, Buffer, Dtype, ErrorKind, Import, Span, zeros};
use crate::op::InvalidOp;
use crate::real::Real;

/// The reference as a backend: host memory and plain loops. `Reference<f64>` is what others are compared with.
///
/// ```
/// use minigpt_core::backend::{Backend, Dtype, Span, read_elems, write_elems};
/// use minigpt_core::reference::Reference;
/// let mut backend = Reference::<f64>::new();
/// let buffer = backend.alloc(32)?;
/// let span = Span { buffer, dtype: Dtype::F64, offset: 0, len: 4 };
/// write_elems(&mut backend, span.slice(2, 2), &[1.5, 2.5])?;
/// assert_eq!(read_elems(&mut backend, span)?, [0.0, 0.0, 1.5, 2.5]);
/// # Ok::<(), minigpt_core::reference::ReferenceError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Reference<R: Real> {
    // A buffer's number is its place. Places are not used again, so that a stale handle is an error and not
    // another's memory.
    buffers: Vec<Option<Vec<u8>>>,
    numbers: PhantomData<R>,
}

impl<R: Real> Reference<R> {
    /// A backend without buffers.
    pub const fn new() -> Self {
        Reference { buffers: Vec::new(), numbers: PhantomData }
    }
}

/// What can go wrong in [`Reference`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReferenceError {
    /// An op or a transfer was described wrongly, or needs more memory than the host has.
    Op(InvalidOp),
    /// A buffer does not fit into memory.
    OutOfMemory {
        /// The bytes asked for.
        bytes: usize,
    },
    /// No such buffer: it was released, or another backend handed it out.
    NoBuffer {
        /// The buffer.
        buffer: Buffer,
    },
}

impl From<InvalidOp> for ReferenceError {
    fn from(error: InvalidOp) -> Self {
        ReferenceError::Op(error)
    }
}

impl BackendError for ReferenceError {
    fn kind(&self) -> ErrorKind {
        match self {
            ReferenceError::Op(InvalidOp::HostMemory { .. }) | ReferenceError::OutOfMemory { .. } => {
                ErrorKind::OutOfMemory
            }
            ReferenceError::Op(_) | ReferenceError::NoBuffer { .. } => ErrorKind::Invalid,
        }
    }
}

impl fmt::Display for ReferenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReferenceError::Op(error) => error.fmt(f),
            ReferenceError::OutOfMemory { bytes } => {
                write!(f, "there is no room for a buffer of {bytes} bytes: use a smaller batch or model")
            }
            ReferenceError::NoBuffer { buffer } => {
                write!(f, "there is no buffer {}: it was released, or is another backend's", buffer.0)
            }
        }
    }
}

impl core::error::Error for ReferenceError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            ReferenceError::Op(error) => Some(error),
            _ => None,
        }
    }
}

impl<R: Real> Reference<R> {
    /// The index of a span's buffer and the bytes that the span covers, once both are known to exist.
    fn locate(&self, operand: &'static str, span: Span) -> Result<(usize, Range<usize>), ReferenceError> {
        let index = span.buffer.0 as usize;
        let Some(Some(buffer)) = self.buffers.get(index) else {
            return Err(ReferenceError::NoBuffer { buffer: span.buffer });
        };
        let end = span.bytes().and_then(|bytes| span.offset.checked_add(bytes));
        let end = end.ok_or(InvalidOp::Overflow { operand })?;
        if end > buffer.len() {
            return Err(InvalidOp::OutOfBounds { operand, end, size: buffer.len() }.into());
        }
        Ok((index, span.offset..end))
    }

    fn bytes(&self, operand: &'static str, span: Span) -> Result<&[u8], ReferenceError> {
        let (index, range) = self.locate(operand, span)?;
        Ok(self.buffers[index].as_deref().map_or(&[], |buffer| &buffer[range]))
    }

    fn bytes_mut(&mut self, operand: &'static str, span: Span) -> Result<&mut [u8], ReferenceError> {
        let (index, range) = self.locate(operand, span)?;
        Ok(self.buffers[index].as_deref_mut().map_or(&mut [], |buffer| &mut buffer[range]))
    }
}

/// That `found` bytes are as many as `span`'s.
fn same_size(operand: &'static str, span: &[u8], found: usize) -> Result<(), InvalidOp> {
    if span.len() == found { Ok(()) } else { Err(InvalidOp::Length { operand, expected: span.len(), found }) }
}

impl<R: Real> Backend for Reference<R> {
    type Elem = R;
    type Error = ReferenceError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, ReferenceError> {
        let out_of_memory = ReferenceError::OutOfMemory { bytes };
        let number = u32::try_from(self.buffers.len()).map_err(|_| out_of_memory)?;
        self.buffers.try_reserve(1).map_err(|_| out_of_memory)?;
        self.buffers.push(Some(zeros("alloc", bytes).map_err(|_| out_of_memory)?));
        Ok(Buffer(number))
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), ReferenceError> {
        let place = self.bytes_mut("write", to)?;
        same_size("write", place, bytes.len())?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), ReferenceError> {
        let place = self.bytes("read", from)?;
        same_size("read", place, bytes.len())?;
        bytes.copy_from_slice(place);
        Ok(())
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), ReferenceError> {
        if from.dtype != to.dtype {
            return Err(InvalidOp::Dtype { operand: "to", expected: from.dtype, found: to.dtype }.into());
        }
        if from.len != to.len {
            return Err(InvalidOp::Length { operand: "to", expected: from.len, found: to.len }.into());
        }
        if from.overlaps(&to) {
            return Err(InvalidOp::Overlap { a: "from", b: "to" }.into());
        }
        let (source, range) = self.locate("from", from)?;
        let (target, _) = self.locate("to", to)?;
        if source == target {
            if let Some(Some(buffer)) = self.buffers.get_mut(source) {
                buffer.copy_within(range, to.offset);
            }
        } else if let Ok([Some(source), Some(target)]) = self.buffers.get_disjoint_mut([source, target]) {
            target[to.offset..][..range.len()].copy_from_slice(&source[range]);
        }
        Ok(())
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), ReferenceError> {
        let place = self.bytes_mut("fill", to)?;
        match to.dtype {
            Dtype::F64 => place.chunks_exact_mut(8).for_each(|x| x.copy_from_slice(&value.to_le_bytes())),
            Dtype::F32 => {
                place.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&(value as f32).to_le_bytes()));
            }
            Dtype::U32 => {
                place.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&(value as u32).to_le_bytes()));
            }
            found => return Err(InvalidOp::Dtype { operand: "fill", expected: R::DTYPE, found }.into()),
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ReferenceError> {
        Ok(())
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), ReferenceError> {
        match self.buffers.get_mut(buffer.0 as usize) {
            Some(place @ Some(_)) => {
                *place = None;
                Ok(())
            }
            _ => Err(ReferenceError::NoBuffer { buffer }),
        }
    }
}

impl<R: Real> Import<'_> for Reference<R> {}
