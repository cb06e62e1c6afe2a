//! [`Reference`]: the oracle, a backend of the seven required methods over the reference ops.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;

use super::{Backend, BackendError, ErrorKind, Import};
use crate::memory::{Buffer, BufferTable, Dtype, InvalidOp, Span, zeros};
use crate::real::Real;
use crate::reference::weights::encode_half;

/// The reference as a backend: host memory and plain loops. `Reference<f64>` is what others are compared with.
///
/// ```
/// use minigpt_core::backend::{read_elems, write_elems};
/// use minigpt_core::{Backend, Dtype, Reference, Span};
/// let mut backend = Reference::<f64>::new();
/// let buffer = backend.alloc(32)?;
/// let span = Span { buffer, dtype: Dtype::F64, offset: 0, len: 4 };
/// write_elems(&mut backend, span.slice(2, 2), &[1.5, 2.5])?;
/// assert_eq!(read_elems(&mut backend, span)?, [0.0, 0.0, 1.5, 2.5]);
/// # Ok::<(), minigpt_core::ReferenceError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Reference<R: Real> {
    buffers: BufferTable<Vec<u8>>,
    numbers: PhantomData<R>,
}

impl<R: Real> Reference<R> {
    /// A backend without buffers.
    pub const fn new() -> Self {
        Reference { buffers: BufferTable::new(), numbers: PhantomData }
    }

    /// How many buffers it keeps a place for: as many as the most that lived at once.
    pub fn places(&self) -> usize {
        self.buffers.places()
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
    /// The bytes that `span` covers of its buffer, once both are known to exist.
    fn range(&self, operand: &'static str, span: Span) -> Result<Range<usize>, ReferenceError> {
        let buffer = self.buffers.get(span.buffer).ok_or(ReferenceError::NoBuffer { buffer: span.buffer })?;
        let end = span.bytes().and_then(|bytes| span.offset.checked_add(bytes));
        let end = end.ok_or(InvalidOp::Overflow { operand })?;
        if end > buffer.len() {
            return Err(InvalidOp::OutOfBounds { operand, end, size: buffer.len() }.into());
        }
        Ok(span.offset..end)
    }

    fn bytes(&self, operand: &'static str, span: Span) -> Result<&[u8], ReferenceError> {
        let range = self.range(operand, span)?;
        Ok(self.buffers.get(span.buffer).map_or(&[], |buffer| &buffer[range]))
    }

    fn bytes_mut(&mut self, operand: &'static str, span: Span) -> Result<&mut [u8], ReferenceError> {
        let range = self.range(operand, span)?;
        Ok(self.buffers.get_mut(span.buffer).map_or(&mut [], |buffer| &mut buffer[range]))
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
        let buffer = zeros("alloc", bytes).map_err(|_| out_of_memory)?;
        self.buffers.insert(buffer).map_err(|_| out_of_memory)
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
        from.check_copy(&to)?;
        let range = self.range("from", from)?;
        self.range("to", to)?;
        if from.buffer == to.buffer {
            if let Some(buffer) = self.buffers.get_mut(from.buffer) {
                buffer.copy_within(range, to.offset);
            }
        } else if let Some([source, target]) = self.buffers.get_pair_mut(from.buffer, to.buffer) {
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
            Dtype::Bf16 => {
                let value = encode_half(value, Dtype::Bf16);
                place.as_chunks_mut().0.iter_mut().for_each(|x| *x = value);
            }
            found => return Err(InvalidOp::Dtype { operand: "fill", expected: R::DTYPE, found }.into()),
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ReferenceError> {
        Ok(())
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), ReferenceError> {
        self.buffers.remove(buffer).map(drop).ok_or(ReferenceError::NoBuffer { buffer })
    }
}

impl<R: Real> Import<'_> for Reference<R> {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use core::error::Error;

    fn bytes(buffer: Buffer, offset: usize, len: usize) -> Span {
        // Half-precision spans stand in for bytes by twos.
        Span { buffer, dtype: Dtype::F16, offset, len: len / 2 }
    }

    fn read(backend: &mut Reference<f64>, buffer: Buffer, len: usize) -> Vec<u8> {
        let mut out = alloc::vec![99; len];
        backend.read(bytes(buffer, 0, len), &mut out).unwrap();
        out
    }

    #[test]
    fn a_new_buffer_is_zero_and_keeps_what_is_written() {
        let mut backend = Reference::<f64>::new();
        let (a, b) = (backend.alloc(6).unwrap(), backend.alloc(4).unwrap());
        assert_ne!(a, b);
        assert_eq!(read(&mut backend, a, 6), [0; 6]);
        backend.write(bytes(a, 2, 4), &[1, 2, 3, 4]).unwrap();
        assert_eq!(read(&mut backend, a, 6), [0, 0, 1, 2, 3, 4]);
        assert_eq!(read(&mut backend, b, 4), [0; 4]);
        backend.sync().unwrap();
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let mut backend = Reference::<f64>::new();
        for size in [usize::MAX, isize::MAX as usize] {
            let error = backend.alloc(size).unwrap_err();
            assert_eq!(error, ReferenceError::OutOfMemory { bytes: size });
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(error.to_string().contains(&size.to_string()), "{error}");
        }
        assert_eq!(backend.alloc(2).unwrap(), Buffer(0), "a failure leaves no trace");
    }

    #[test]
    fn transfers_must_be_as_long_as_their_span() {
        let mut backend = Reference::<f64>::new();
        let buffer = backend.alloc(8).unwrap();
        let error = |operand| Err(InvalidOp::Length { operand, expected: 4, found: 2 }.into());
        assert_eq!(backend.write(bytes(buffer, 0, 4), &[1; 2]), error("write"));
        assert_eq!(backend.read(bytes(buffer, 0, 4), &mut [1; 2]), error("read"));
        assert_eq!(read(&mut backend, buffer, 8), [0; 8]);
    }

    #[test]
    fn spans_outside_their_buffer_are_refused() {
        let mut backend = Reference::<f64>::new();
        let buffer = backend.alloc(8).unwrap();
        backend.write(bytes(buffer, 6, 2), &[1, 2]).unwrap();
        let past = |operand| Err(InvalidOp::OutOfBounds { operand, end: 10, size: 8 }.into());
        assert_eq!(backend.write(bytes(buffer, 6, 4), &[1; 4]), past("write"));
        assert_eq!(backend.read(bytes(buffer, 6, 4), &mut [1; 4]), past("read"));
        assert_eq!(backend.fill(Span { dtype: Dtype::U32, ..bytes(buffer, 6, 2) }, 1.0), past("fill"));
        assert_eq!(backend.copy(bytes(buffer, 6, 4), bytes(buffer, 0, 4)), past("from"));
        assert_eq!(backend.copy(bytes(buffer, 0, 4), bytes(buffer, 6, 4)), past("to"));

        let uncountable = Span { buffer, dtype: Dtype::F64, offset: 0, len: usize::MAX };
        let overflow = ReferenceError::Op(InvalidOp::Overflow { operand: "read" });
        assert_eq!(backend.read(uncountable, &mut []), Err(overflow));
        assert_eq!(overflow.kind(), ErrorKind::Invalid);
        assert_eq!(backend.read(bytes(buffer, usize::MAX, 2), &mut [0; 2]), Err(overflow));
    }

    #[test]
    fn a_copy_moves_bytes_within_and_between_buffers() {
        let mut backend = Reference::<f64>::new();
        let (a, b) = (backend.alloc(8).unwrap(), backend.alloc(8).unwrap());
        backend.write(bytes(a, 0, 8), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        backend.copy(bytes(a, 2, 4), bytes(b, 4, 4)).unwrap();
        assert_eq!(read(&mut backend, b, 8), [0, 0, 0, 0, 3, 4, 5, 6]);
        backend.copy(bytes(b, 4, 4), bytes(a, 0, 4)).unwrap();
        assert_eq!(read(&mut backend, a, 8), [3, 4, 5, 6, 5, 6, 7, 8]);
        backend.copy(bytes(a, 6, 2), bytes(a, 2, 2)).unwrap();
        assert_eq!(read(&mut backend, a, 8), [3, 4, 7, 8, 5, 6, 7, 8]);
    }

    #[test]
    fn a_copy_between_spans_that_do_not_match_is_refused() {
        let mut backend = Reference::<f64>::new();
        let a = backend.alloc(8).unwrap();
        let other = Span { dtype: Dtype::Bf16, ..bytes(a, 4, 4) };
        let dtype = InvalidOp::Dtype { operand: "to", expected: Dtype::F16, found: Dtype::Bf16 };
        assert_eq!(backend.copy(bytes(a, 0, 4), other), Err(dtype.into()));
        let length = InvalidOp::Length { operand: "to", expected: 2, found: 1 };
        assert_eq!(backend.copy(bytes(a, 0, 4), bytes(a, 4, 2)), Err(length.into()));
        let overlap = InvalidOp::Overlap { a: "from", b: "to" };
        assert_eq!(backend.copy(bytes(a, 0, 4), bytes(a, 2, 4)), Err(overlap.into()));
    }

    #[test]
    fn fill_knows_the_plain_types() {
        let mut backend = Reference::<f64>::new();
        let buffer = backend.alloc(16).unwrap();
        let mut filled = |dtype, value| {
            backend.fill(Span { buffer, dtype, offset: 8, len: 8 / dtype.unit().1 }, value)?;
            Ok::<_, ReferenceError>(read(&mut backend, buffer, 16))
        };
        let zeros = [0; 8];
        assert_eq!(filled(Dtype::F64, 1.1).unwrap(), [zeros, 1.1f64.to_le_bytes()].concat());
        let f32s = [1.1f32.to_le_bytes(); 2].concat();
        assert_eq!(filled(Dtype::F32, 1.1).unwrap(), [&zeros[..], &f32s].concat());
        let u32s = [u32::MAX.to_le_bytes(); 2].concat();
        assert_eq!(filled(Dtype::U32, f64::from(u32::MAX)).unwrap(), [&zeros[..], &u32s].concat());
        assert_eq!(filled(Dtype::Bf16, 1.001).unwrap(), [&zeros[..], &[0x80, 0x3f].repeat(4)].concat());
        let error = InvalidOp::Dtype { operand: "fill", expected: Dtype::F64, found: Dtype::F16 };
        assert_eq!(filled(Dtype::F16, 0.0), Err(error.into()));
    }

    #[test]
    fn a_released_buffer_is_gone_and_its_handle_is_not_given_out_again() {
        let mut backend = Reference::<f64>::new();
        let (a, b) = (backend.alloc(2).unwrap(), backend.alloc(2).unwrap());
        backend.write(bytes(b, 0, 2), &[5, 6]).unwrap();
        backend.release(a).unwrap();
        let error = ReferenceError::NoBuffer { buffer: a };
        assert_eq!(backend.release(a), Err(error));
        assert_eq!(backend.read(bytes(a, 0, 2), &mut [0; 2]), Err(error));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(error.to_string(), "there is no buffer 0: it was released, or is another backend's");
        assert_eq!(read(&mut backend, b, 2), [5, 6]);
        assert_ne!(backend.alloc(2).unwrap(), a);
        assert_eq!(backend.read(bytes(a, 0, 2), &mut [0; 2]), Err(error));
        assert_eq!(backend.release(Buffer(3)), Err(ReferenceError::NoBuffer { buffer: Buffer(3) }));
    }

    #[test]
    fn an_ops_error_is_passed_on_with_its_message() {
        let cause = InvalidOp::Value { operand: "d_head" };
        let error = ReferenceError::from(cause);
        assert_eq!(error.to_string(), cause.to_string());
        assert_eq!(error.source().map(ToString::to_string), Some(cause.to_string()));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(ReferenceError::OutOfMemory { bytes: 1 }.source().is_none());
    }
}
