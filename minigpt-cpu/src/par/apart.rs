//! Rows that lie apart: what is between them may be another operand's.

use core::marker::PhantomData;
use core::slice;

/// Rows of `width` numbers to read, whose beginnings are `stride` apart.
///
/// It is no slice from the first row to the last, since what lies between the rows may be written meanwhile.
pub(crate) struct Rows<'m, T = f32> {
    start: *const T,
    rows: usize,
    stride: usize,
    width: usize,
    owner: PhantomData<&'m [T]>,
}

/// The same to write. [`Grid::of_rows`](super::Grid::of_rows) shares it out among tasks.
pub(crate) struct RowsMut<'m, T = f32> {
    pub(super) start: *mut T,
    pub(super) rows: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) owner: PhantomData<&'m mut [T]>,
}

// SAFETY: it gives out shared slices, which any thread may read.
unsafe impl<T: Sync> Sync for Rows<'_, T> {}

impl<'m, T> Rows<'m, T> {
    /// # Safety
    /// From `start`, aligned for T, each of the rows must be valid for reads for 'm, and nothing may write it.
    pub(super) unsafe fn new(start: *const T, rows: usize, stride: usize, width: usize) -> Self {
        Rows { start, rows, stride, width, owner: PhantomData }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &'m [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: there is such a row, and whoever made this vouched for it.
        unsafe { slice::from_raw_parts(self.start.add(i * self.stride), self.width) }
    }
}
