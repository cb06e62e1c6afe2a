//! Rows that lie apart: what is between them may be another operand's.

use core::marker::PhantomData;
use core::slice;

/// Rows of `width` numbers to read, whose beginnings are `stride` apart.
///
/// It is no slice from the first row to the last, since what lies between the rows may be written meanwhile.
pub(crate) struct Rows<'m> {
    start: *const f32,
    rows: usize,
    stride: usize,
    width: usize,
    owner: PhantomData<&'m [f32]>,
}

/// The same to write. [`Grid::of_rows`](super::Grid::of_rows) shares it out among tasks.
pub(crate) struct RowsMut<'m> {
    pub(super) start: *mut f32,
    pub(super) rows: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) owner: PhantomData<&'m mut [f32]>,
}

// SAFETY: it gives out shared slices of f32, which any thread may read.
unsafe impl Sync for Rows<'_> {}

impl<'m> Rows<'m> {
    /// # Safety
    /// From `start`, aligned for f32, each of the rows must be valid for reads for 'm, and nothing may write it.
    pub(super) unsafe fn new(start: *const f32, rows: usize, stride: usize, width: usize) -> Self {
        Rows { start, rows, stride, width, owner: PhantomData }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'m [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: there is such a row, and whoever made this vouched for it.
        unsafe { slice::from_raw_parts(self.start.add(i * self.stride), self.width) }
    }
}
