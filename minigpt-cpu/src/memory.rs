//! The backend's buffers: owned and 64-byte aligned, or borrowed from the program and read-only.
//!
//! Bytes lie in memory as the processor wants them, in words of four: a little-endian byte at address `p` of a
//! span's description is at address `p` on a little-endian processor and at `p ^ 3` on a big-endian one. So f32 and
//! u32 are always native numbers, whatever type the host named when it brought the bytes in.

use alloc::vec::Vec;

#[cfg(target_has_atomic = "ptr")]
use minigpt_core::SharedBytes;
use minigpt_core::memory::BufferTable;
use minigpt_core::{Buffer, InvalidOp};

use crate::error::CpuError;

/// A cache line, and the unit in which buffers are allocated.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; 16]);

impl Line {
    pub(crate) const BYTES: usize = 64;
    const ZERO: Line = Line([0; 16]);
}

/// So many zeroed lines that `bytes` fit.
pub(crate) fn lines(bytes: usize) -> Result<Vec<Line>, CpuError> {
    let count = bytes.div_ceil(Line::BYTES);
    let mut lines = Vec::new();
    lines.try_reserve_exact(count).map_err(|_| CpuError::OutOfMemory { bytes })?;
    lines.resize(count, Line::ZERO);
    Ok(lines)
}

/// Whether this processor can use bytes of the program as they lie.
pub(crate) fn is_usable(bytes: &[u8]) -> bool {
    cfg!(target_endian = "little") && bytes.as_ptr().addr().is_multiple_of(4)
}

/// Where a buffer's bytes are.
#[derive(Debug)]
pub(crate) enum Storage<'a> {
    /// Ours.
    Owned {
        /// As many as `bytes` need.
        lines: Vec<Line>,
        /// The size that was asked for.
        bytes: usize,
    },
    /// The program's, on a little-endian processor, aligned to four bytes.
    Borrowed(&'a [u8]),
    /// The same, kept with their owner.
    #[cfg(target_has_atomic = "ptr")]
    Shared(SharedBytes),
}

/// All buffers, by number.
#[derive(Debug, Default)]
pub(crate) struct Memory<'a> {
    buffers: BufferTable<Storage<'a>>,
}

impl<'a> Memory<'a> {
    fn insert(&mut self, storage: Storage<'a>) -> Result<Buffer, CpuError> {
        self.buffers.insert(storage).map_err(|_| CpuError::OutOfMemory { bytes: size_of::<Storage<'_>>() })
    }

    /// A new zeroed buffer.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<Buffer, CpuError> {
        let lines = lines(bytes)?;
        // There, bytes are reached by way of the word that they are in.
        let bytes = if cfg!(target_endian = "big") { bytes.next_multiple_of(4) } else { bytes };
        self.insert(Storage::Owned { lines, bytes })
    }

    /// A buffer that is the program's own memory; `None` if this processor cannot use it as it lies.
    pub(crate) fn borrow(&mut self, bytes: &'a [u8]) -> Option<Result<Buffer, CpuError>> {
        is_usable(bytes).then(|| self.insert(Storage::Borrowed(bytes)))
    }

    /// The same of bytes that come with their owner.
    #[cfg(target_has_atomic = "ptr")]
    pub(crate) fn share(&mut self, bytes: &SharedBytes) -> Option<Result<Buffer, CpuError>> {
        is_usable(bytes).then(|| self.insert(Storage::Shared(bytes.clone())))
    }

    /// Frees a buffer.
    pub(crate) fn release(&mut self, buffer: Buffer) -> Result<(), CpuError> {
        let none = InvalidOp::OutOfBounds { operand: "buffer", end: 0, size: 0 };
        self.buffers.remove(buffer).map(drop).ok_or(none.into())
    }

    /// The storage of a live buffer.
    pub(crate) fn storage(
        &mut self,
        buffer: Buffer,
        operand: &'static str,
    ) -> Result<&mut Storage<'a>, CpuError> {
        self.buffers.get_mut(buffer).ok_or(InvalidOp::OutOfBounds { operand, end: 0, size: 0 }.into())
    }
}
