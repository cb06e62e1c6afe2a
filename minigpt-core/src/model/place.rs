//! Where the tensors of a checkpoint go on a backend, in the format that they are stored in or in its own numbers.

use alloc::vec::Vec;

use crate::backend::{Backend, Device, write_elems};
use crate::checkpoint::{self, Read, Stream, StreamError, TensorView};
use crate::error::Error;
use crate::memory::{Dtype, InvalidOp, Span, zeros};
use crate::reference::weights::decode_weight;

/// Writes a stored tensor to `to`, whatever it is stored as.
pub(crate) fn write_tensor<B: Backend>(
    device: &Device<B>,
    tensor: &TensorView<'_>,
    to: Span,
) -> Result<(), Error<B::Error>> {
    let backend = &mut *device.lock();
    let place = Place { to, dtype: tensor.dtype, cols: tensor.cols };
    if place.dtype == to.dtype {
        return place.write(backend, 0, tensor.bytes);
    }
    // In pieces, so that no second copy of a large tensor is made.
    let step = checkpoint::chunk_of(tensor.dtype);
    for (i, piece) in tensor.bytes.chunks(step).enumerate() {
        place.write(backend, i * step, piece)?;
    }
    Ok(())
}

/// Where a stored tensor goes: to a span of its own type, or of the backend's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) to: Span,
    /// What it is stored as.
    pub(crate) dtype: Dtype,
    pub(crate) cols: usize,
}

impl Place {
    /// Writes whole units of the stored tensor, from its byte `offset` on.
    pub(crate) fn write<B: Backend>(
        &self,
        backend: &mut B,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Error<B::Error>> {
        let (elements, unit) = self.dtype.unit();
        if self.dtype == self.to.dtype {
            let len = bytes.len() / unit * elements;
            let to = Span { offset: self.to.offset + offset, len, ..self.to };
            return backend.write(to, bytes).map_err(Error::Backend);
        }
        // Without what fills up the last unit of each row, the numbers of one unit follow those of the one before.
        let units_of_row = self.cols.div_ceil(elements);
        let begin = |unit: usize| unit / units_of_row * self.cols + unit % units_of_row * elements;
        let (first, end) = (offset / unit, (offset + bytes.len()) / unit);
        let (start, len) = (begin(first), begin(end) - begin(first));
        let mut numbers: Vec<B::Elem> = zeros("piece", len)?;
        for (i, stored) in bytes.chunks_exact(unit).enumerate() {
            let numbers = &mut numbers[begin(first + i) - start..begin(first + i + 1) - start];
            let count = numbers.len();
            decode_weight(stored, self.dtype, numbers, 1, count);
        }
        write_elems(backend, self.to.slice(start, len), &numbers).map_err(Error::Backend)
    }
}

/// Where each tensor of a stream goes; some go nowhere.
pub(crate) type Places = Vec<Option<Place>>;

/// Reads all tensors of a stream; tensor `i` goes to `places[i]`, or nowhere.
pub(crate) fn read_into<B: Backend, R: Read>(
    stream: Stream<'_, R>,
    device: &Device<B>,
    places: &[Option<Place>],
) -> Result<(), StreamError<R::Error, Error<B::Error>>> {
    stream.read_tensors(|i, offset, bytes| match &places[i] {
        Some(place) => place.write(&mut *device.lock(), offset, bytes),
        None => Ok(()),
    })
}

/// A place for none of `tensors` tensors.
pub(crate) fn nowhere(tensors: usize) -> Result<Places, InvalidOp> {
    zeros("places", tensors)
}
