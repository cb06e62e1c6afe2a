//! [`Dtype`], [`Buffer`], [`Span`]: how ops name the memory of a device. [`InvalidOp`]: what can be wrong with that.

mod invalid;
#[cfg(target_has_atomic = "ptr")]
mod shared;
mod table;

use alloc::vec::Vec;

use crate::config::Precision;

pub use invalid::InvalidOp;
#[cfg(target_has_atomic = "ptr")]
pub use shared::SharedBytes;
pub use table::BufferTable;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 signed bytes under one f16 scale; a row is padded to whole blocks.
    Q8_0,
    /// Blocks of 32 four-bit numbers under one f16 scale; a row is padded to whole blocks.
    Q4_0,
    /// Unsigned 32-bit integers: tokens and counters.
    U32,
}

/// Elements in a block of the quantised types.
pub const QUANT_BLOCK: usize = 32;

impl Dtype {
    /// (elements, bytes) of the smallest unit that is stored whole.
    pub const fn unit(self) -> (usize, usize) {
        match self {
            Dtype::F64 => (1, 8),
            Dtype::F32 | Dtype::U32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (QUANT_BLOCK, 2 + QUANT_BLOCK),
            Dtype::Q4_0 => (QUANT_BLOCK, 2 + QUANT_BLOCK / 2),
        }
    }

    /// The bytes of `len` elements; `None` if they do not fill whole units or cannot be counted.
    pub const fn bytes(self, len: usize) -> Option<usize> {
        let (elements, bytes) = self.unit();
        if len.is_multiple_of(elements) { (len / elements).checked_mul(bytes) } else { None }
    }

    /// The length in elements of a row of `cols`, padded to whole units.
    pub const fn padded(self, cols: usize) -> usize {
        cols.next_multiple_of(self.unit().0)
    }
}

impl Precision {
    /// How activations are stored by a backend whose numbers are `elem`.
    pub const fn activations(self, elem: Dtype) -> Dtype {
        match self {
            Precision::F32 => elem,
            Precision::Bf16 => Dtype::Bf16,
        }
    }

    /// The policy of what stores activations as `dtype`.
    pub(crate) const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

/// A buffer that a backend has handed out. Meaningful to that backend only, which hands out no number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub u64);

/// A stretch of a buffer: `len` elements of `dtype`, from byte `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The buffer it lies in.
    pub buffer: Buffer,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Where it begins, in bytes; a multiple of the element's size.
    pub offset: usize,
    /// How many elements it has. For quantised types, rows count with their padding.
    pub len: usize,
}

/// A matrix whose rows lie apart, such as the columns of keys in a matrix of queries, keys and values. How wide a row is, and
/// how many there are, the op says that it is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strided {
    /// From the first element of the first row to the last element of the last row.
    pub span: Span,
    /// How many elements lie between the beginnings of two rows, at least as many as a row is wide.
    pub stride: usize,
}

impl Strided {
    /// Columns `first..first + width` of these columns, which are `of` wide. Past the end, the result is empty.
    #[must_use]
    pub fn part(self, first: usize, width: usize, of: usize) -> Strided {
        let fits = first.checked_add(width).is_some_and(|end| end <= of);
        let len = if fits && self.span.len >= of { self.span.len - of + width } else { 0 };
        Strided { span: self.span.slice(first, len), ..self }
    }

    /// The first `rows` rows, each `width` wide; all, if there are fewer.
    #[must_use]
    pub fn first_rows(self, rows: usize, width: usize) -> Strided {
        let len = match rows {
            0 => 0,
            _ => (rows - 1).saturating_mul(self.stride).saturating_add(width),
        };
        Strided { span: self.span.first(len), ..self }
    }
}

impl Span {
    /// Its size in bytes; `None` if it is not well formed.
    pub const fn bytes(&self) -> Option<usize> {
        self.dtype.bytes(self.len)
    }

    /// The first `len` elements of it (all of it, if it has fewer).
    #[must_use]
    pub fn first(self, len: usize) -> Span {
        Span { len: len.min(self.len), ..self }
    }

    /// `len` elements from element `start` on, of a type that is stored element by element.
    ///
    /// Past the end, the result is empty: the op that it goes to then refuses it.
    #[must_use]
    pub fn slice(self, start: usize, len: usize) -> Span {
        let offset = self.dtype.bytes(start).and_then(|skip| self.offset.checked_add(skip));
        match offset {
            Some(offset) if start.checked_add(len).is_some_and(|end| end <= self.len) => {
                Span { offset, len, ..self }
            }
            _ => Span { len: 0, ..self },
        }
    }

    /// Columns `first..first + width` of a matrix whose rows are `stride` wide and lie side by side in this span.
    ///
    /// Past the end of a row, the result is empty: the op that it goes to then refuses it.
    ///
    /// ```
    /// use minigpt_core::{Buffer, Dtype, Span};
    /// // Two rows of three: a b c, d e f. The last two columns begin at b and end with f.
    /// let matrix = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len: 6 };
    /// let columns = matrix.columns(1, 2, 3);
    /// assert_eq!((columns.span, columns.stride), (matrix.slice(1, 5), 3));
    /// ```
    #[must_use]
    pub fn columns(self, first: usize, width: usize, stride: usize) -> Strided {
        self.rows(stride).part(first, width, stride)
    }

    /// The whole of it, as a matrix whose rows are `width` wide.
    #[must_use]
    pub fn rows(self, width: usize) -> Strided {
        Strided { span: self, stride: width }
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        let end = |s: &Span| s.offset.saturating_add(s.bytes().unwrap_or(usize::MAX));
        self.buffer == other.buffer
            && self.len > 0
            && other.len > 0
            && self.offset < end(other)
            && other.offset < end(self)
    }

    /// What every [`Backend::copy`](crate::Backend::copy) to `to` asks for, whatever buffers there are.
    ///
    /// # Errors
    /// If the two are of different types or lengths, or share a byte.
    ///
    /// ```
    /// use minigpt_core::{Buffer, Dtype, InvalidOp, Span};
    /// let from = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len: 4 };
    /// let to = Span { offset: 8, ..from };
    /// assert_eq!(from.check_copy(&to), Err(InvalidOp::Overlap { a: "from", b: "to" }));
    /// assert_eq!(from.first(2).check_copy(&to.first(2)), Ok(()));
    /// ```
    pub fn check_copy(&self, to: &Span) -> Result<(), InvalidOp> {
        if self.dtype != to.dtype {
            return Err(InvalidOp::Dtype { operand: "to", expected: self.dtype, found: to.dtype });
        }
        if self.len != to.len {
            return Err(InvalidOp::Length { operand: "to", expected: self.len, found: to.len });
        }
        if self.overlaps(to) {
            return Err(InvalidOp::Overlap { a: "from", b: "to" });
        }
        Ok(())
    }
}

/// `len` zeros on the host's heap, or an error that names the operand they are for.
pub(crate) fn zeros<T: Clone + Default>(operand: &'static str, len: usize) -> Result<Vec<T>, InvalidOp> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| InvalidOp::HostMemory { operand, bytes: len.saturating_mul(size_of::<T>()) })?;
    values.resize(len, T::default());
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_inside_its_span_or_empty() {
        let span = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 64, len: 10 };
        assert_eq!(span.slice(3, 7), Span { offset: 76, len: 7, ..span });
        assert_eq!(span.slice(3, 8).len, 0);
        assert_eq!(span.slice(usize::MAX, 2).len, 0);
        // Where the offset itself cannot be counted.
        assert_eq!(Span { offset: usize::MAX - 3, ..span }.slice(1, 1).len, 0);
    }
}
