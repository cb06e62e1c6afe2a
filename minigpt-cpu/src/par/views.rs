//! From spans to slices.

use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::slice;

use minigpt_core::op::{Columns, MAX_OPERANDS};
use minigpt_core::{Buffer, Dtype, InvalidOp, Span, Strided};

use super::apart::{Rows, RowsMut};
use crate::error::CpuError;
#[cfg(target_has_atomic = "ptr")]
use crate::memory::is_usable;
use crate::memory::{Line, Memory, Storage};

/// The buffer that a block of scratch is to the spans that name it. No other is called so: the numbers of buffers begin at 0,
/// and count how often a place was used before they come to their upper half.
#[cfg(feature = "bf16")]
pub(crate) const BLOCK: Buffer = Buffer(u64::MAX - 64);

/// The spans of one op as slices.
///
/// Each span is checked when it is asked for: that it lies in its buffer, has the right type and alignment, and
/// overlaps no other that was handed out if either of the two is written. So no two slices conflict, whether or not
/// the op's description was checked before.
pub(crate) struct Views<'m, 'a> {
    memory: &'m mut Memory<'a>,
    /// The first `count` are written; the others are not, since an op takes but a few.
    handed: [MaybeUninit<Handed>; MAX_OPERANDS],
    count: usize,
    /// Where the [`BLOCK`] begins, and how many bytes it has.
    #[cfg(feature = "bf16")]
    block: (*mut u8, usize),
}

/// What was handed out: bytes of a buffer.
#[derive(Clone, Copy)]
struct Handed {
    buffer: Buffer,
    start: usize,
    end: usize,
    write: bool,
    /// If they are rows that lie apart: how, in bytes.
    rows: Option<Columns>,
}

impl Handed {
    /// Whether the two share a byte that either may write.
    fn conflicts(&self, other: &Handed) -> bool {
        self.buffer == other.buffer
            && (self.write || other.write)
            && self.start.max(other.start) < self.end.min(other.end)
            && !self.is_beside(other)
    }

    /// Whether the two are rows of different columns of one matrix.
    fn is_beside(&self, other: &Handed) -> bool {
        let (Some(rows), Some(others)) = (self.rows, other.rows) else { return false };
        let between = self.start.abs_diff(other.start);
        if self.start <= other.start { rows.leaves(others, between) } else { others.leaves(rows, between) }
    }
}

impl<'m, 'a> Views<'m, 'a> {
    pub(crate) fn new(memory: &'m mut Memory<'a>) -> Self {
        Views {
            memory,
            handed: [const { MaybeUninit::uninit() }; MAX_OPERANDS],
            count: 0,
            #[cfg(feature = "bf16")]
            block: (core::ptr::null_mut(), 0),
        }
    }

    /// The same, where spans may also be of the [`BLOCK`].
    #[cfg(feature = "bf16")]
    pub(crate) fn with_block(memory: &'m mut Memory<'a>, block: &'m mut [f32]) -> Self {
        Views { block: (block.as_mut_ptr().cast(), size_of_val(block)), ..Views::new(memory) }
    }

    /// f32 to read.
    pub(crate) fn f32(&mut self, operand: &'static str, span: Span) -> Result<&'m [f32], CpuError> {
        self.typed(operand, span, Dtype::F32)?;
        let from = self.claim(operand, span, None, false)?;
        // SAFETY: `claim` found `span` inside a live buffer that stays borrowed for 'm, at an address that is a
        // multiple of four, and all slices handed out for 'm that overlap it are shared. Any bits are an f32.
        Ok(unsafe { slice::from_raw_parts(from.cast_const().cast(), span.len) })
    }

    /// Rows of `width` f32 to read.
    pub(crate) fn f32_rows(
        &mut self,
        operand: &'static str,
        rows: Strided,
        width: usize,
    ) -> Result<Rows<'m>, CpuError> {
        let (from, count) = self.claim_rows(operand, rows, width, Dtype::F32, false)?;
        // SAFETY: as for f32, of each row: `claim_rows` found all of them inside the span, and what overlaps the span without
        // being shared is beside the rows.
        Ok(unsafe { Rows::new(from.cast_const().cast(), count, rows.stride, width) })
    }

    /// Rows of `width` f32 to write.
    pub(crate) fn f32_rows_mut(
        &mut self,
        operand: &'static str,
        rows: Strided,
        width: usize,
    ) -> Result<RowsMut<'m>, CpuError> {
        let (start, count) = self.claim_rows(operand, rows, width, Dtype::F32, true)?;
        Ok(RowsMut { start: start.cast(), rows: count, stride: rows.stride, width, owner: PhantomData })
    }

    /// Rows of `width` bf16 to read.
    #[cfg(feature = "bf16")]
    pub(crate) fn bf16_rows(
        &mut self,
        operand: &'static str,
        rows: Strided,
        width: usize,
    ) -> Result<Rows<'m, [u8; 2]>, CpuError> {
        let (from, count) = self.claim_rows(operand, rows, width, Dtype::Bf16, false)?;
        // SAFETY: as for rows of f32; bytes need no alignment.
        Ok(unsafe { Rows::new(from.cast_const().cast(), count, rows.stride, width) })
    }

    /// Rows of `width` bf16 to write.
    #[cfg(feature = "bf16")]
    pub(crate) fn bf16_rows_mut(
        &mut self,
        operand: &'static str,
        rows: Strided,
        width: usize,
    ) -> Result<RowsMut<'m, [u8; 2]>, CpuError> {
        let (start, count) = self.claim_rows(operand, rows, width, Dtype::Bf16, true)?;
        Ok(RowsMut { start: start.cast(), rows: count, stride: rows.stride, width, owner: PhantomData })
    }

    /// u32 to read.
    pub(crate) fn u32(&mut self, operand: &'static str, span: Span) -> Result<&'m [u32], CpuError> {
        self.typed(operand, span, Dtype::U32)?;
        let from = self.claim(operand, span, None, false)?;
        // SAFETY: as for f32.
        Ok(unsafe { slice::from_raw_parts(from.cast_const().cast(), span.len) })
    }

    /// f32 to write.
    pub(crate) fn f32_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [f32], CpuError> {
        self.typed(operand, span, Dtype::F32)?;
        let from = self.claim(operand, span, None, true)?;
        // SAFETY: `claim` found `span` inside a live owned buffer that stays exclusively borrowed for 'm, at an
        // address that is a multiple of four, and no slice handed out for 'm overlaps it. Any bits are an f32.
        Ok(unsafe { slice::from_raw_parts_mut(from.cast(), span.len) })
    }

    /// u32 to write.
    pub(crate) fn u32_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [u32], CpuError> {
        self.typed(operand, span, Dtype::U32)?;
        let from = self.claim(operand, span, None, true)?;
        // SAFETY: as for f32.
        Ok(unsafe { slice::from_raw_parts_mut(from.cast(), span.len) })
    }

    /// The span's bytes as they lie in memory (see [`crate::memory`]), to read.
    pub(crate) fn bytes(&mut self, operand: &'static str, span: Span) -> Result<&'m [u8], CpuError> {
        let from = self.claim(operand, span, None, false)?;
        // SAFETY: as for f32; bytes need no alignment, and `claim` has counted them.
        Ok(unsafe { slice::from_raw_parts(from.cast_const(), span.bytes().unwrap_or(0)) })
    }

    /// The span's bytes as they lie in memory (see [`crate::memory`]), to write.
    pub(crate) fn bytes_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [u8], CpuError> {
        let from = self.claim(operand, span, None, true)?;
        // SAFETY: as for f32; bytes need no alignment, and `claim` has counted them.
        Ok(unsafe { slice::from_raw_parts_mut(from, span.bytes().unwrap_or(0)) })
    }

    fn typed(&self, operand: &'static str, span: Span, expected: Dtype) -> Result<(), CpuError> {
        if span.dtype == expected {
            Ok(())
        } else {
            Err(InvalidOp::Dtype { operand, expected, found: span.dtype }.into())
        }
    }

    /// Checks rows of `width` elements and notes them as handed out; returns the address of the first, and how many there are.
    fn claim_rows(
        &mut self,
        operand: &'static str,
        Strided { span, stride }: Strided,
        width: usize,
        dtype: Dtype,
        write: bool,
    ) -> Result<(*mut u8, usize), CpuError> {
        self.typed(operand, span, dtype)?;
        if stride < width {
            return Err(InvalidOp::Value { operand }.into());
        }
        // The last row has nothing behind it.
        let before = match span.len.checked_sub(width) {
            Some(before) if width > 0 => before,
            _ => return Ok((self.claim(operand, span, None, write)?, 0)),
        };
        // One row, as in decoding, is a span like any other, and need not divide.
        if before == 0 {
            return Ok((self.claim(operand, span, None, write)?, 1));
        }
        let bytes = |elements| dtype.bytes(elements).ok_or(InvalidOp::Overflow { operand });
        let rows = Columns { width: bytes(width)?, stride: bytes(stride)? };
        let from = self.claim(operand, span, Some(rows), write)?;
        Ok((from, before / stride + 1))
    }

    /// Where the buffer of `span` begins, and how many bytes it has.
    fn buffer(
        &mut self,
        operand: &'static str,
        span: Span,
        write: bool,
    ) -> Result<(*mut u8, usize), CpuError> {
        #[cfg(feature = "bf16")]
        if span.buffer == BLOCK {
            return Ok(self.block);
        }
        Ok(match self.memory.storage(span.buffer, operand)? {
            Storage::Owned { lines, bytes } => (lines.as_mut_ptr().cast::<u8>(), *bytes),
            Storage::Borrowed(_) if write => return Err(InvalidOp::ReadOnly { operand }.into()),
            Storage::Borrowed(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
            #[cfg(target_has_atomic = "ptr")]
            Storage::Shared(_) if write => return Err(InvalidOp::ReadOnly { operand }.into()),
            #[cfg(target_has_atomic = "ptr")]
            Storage::Shared(shared) => {
                // Asked for once: an owner may have others each time, all of which it has for as long as it is borrowed,
                // for 'm.
                let bytes: &[u8] = shared;
                if !is_usable(bytes) {
                    return Err(InvalidOp::Misaligned { operand, offset: span.offset }.into());
                }
                (bytes.as_ptr().cast_mut(), bytes.len())
            }
        })
    }

    /// Checks `span` and notes it as handed out, or only its `rows`; returns its address.
    fn claim(
        &mut self,
        operand: &'static str,
        span: Span,
        rows: Option<Columns>,
        write: bool,
    ) -> Result<*mut u8, CpuError> {
        let bytes = span.bytes().ok_or(InvalidOp::Overflow { operand })?;
        let end = span.offset.checked_add(bytes).ok_or(InvalidOp::Overflow { operand })?;
        let (address, size) = self.buffer(operand, span, write)?;
        if end > size || address.is_null() {
            return Err(InvalidOp::OutOfBounds { operand, end, size }.into());
        }
        let (elements, unit) = span.dtype.unit();
        let align = if elements == 1 { unit.min(4) } else { 2 };
        if !span.offset.is_multiple_of(align) {
            return Err(InvalidOp::Misaligned { operand, offset: span.offset }.into());
        }
        let this = Handed { buffer: span.buffer, start: span.offset, end, write, rows };
        let handed = self.handed[..self.count].iter();
        // SAFETY: the first `count` are written.
        if handed.map(|other| unsafe { other.assume_init_ref() }).any(|other| this.conflicts(other)) {
            return Err(InvalidOp::Overlap { a: operand, b: "another operand" }.into());
        }
        self.handed.get_mut(self.count).ok_or(InvalidOp::Value { operand })?.write(this);
        self.count += 1;
        // SAFETY: the offset is inside the allocation, or one past its end.
        Ok(unsafe { address.add(span.offset) })
    }
}

/// Lines as numbers, for scratch.
pub(crate) fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 64 initialised bytes without padding, aligned to more than an f32; any bits are an f32 and
    // any f32 is u32 words. The borrow of the lines goes over to the result.
    unsafe { slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * (Line::BYTES / 4)) }
}
