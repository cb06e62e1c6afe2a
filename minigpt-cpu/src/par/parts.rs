//! From one slice to the pieces of it that tasks work on.

use core::marker::PhantomData;
use core::ops::Range;
use core::slice;

use super::apart::RowsMut;
use crate::executor::{Executor, Task};

/// Something mutable that tasks share out: each task gets its own part.
///
/// Implemented for tuples, so that a task can have a part of each of several slices.
///
/// # Safety
/// For tasks of different index *and* different worker, parts must not overlap.
pub(crate) unsafe trait Parts: Sync {
    /// What a task gets.
    type Part<'t>;
    /// How many tasks there are parts for; `usize::MAX` if that does not depend on the task.
    fn count(&self) -> usize;
    /// The part of `task`.
    ///
    /// # Safety
    /// No two live parts may come from calls with the same index, nor with the same worker, and a part must not
    /// outlive the slices that these parts are of.
    unsafe fn part<'t>(&self, task: Task) -> Self::Part<'t>;
}

/// Runs `f(task's index, task's part)` for as many tasks as there are parts, on the executor's threads.
pub(crate) fn for_each<P: Parts>(
    executor: &mut Executor,
    parts: P,
    f: impl for<'t> Fn(usize, P::Part<'t>) + Sync,
) {
    executor.run(parts.count(), &|task| {
        // SAFETY: the executor gives each index to one task, and a worker runs one task at a time; `f` takes parts
        // of any lifetime, so it cannot keep this one.
        let part = unsafe { parts.part(task) };
        f(task.index(), part);
    });
}

/// A slice in pieces of `size` elements; the last one may be shorter.
pub(crate) struct Chunks<'s, T> {
    start: *mut T,
    len: usize,
    size: usize,
    owner: PhantomData<&'s mut [T]>,
}

// SAFETY: it is a `&mut [T]` of which each thread takes its own part.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'s, T> Chunks<'s, T> {
    /// `size` must not be 0; it is taken as 1 then.
    pub(crate) fn new(slice: &'s mut [T], size: usize) -> Self {
        Chunks { start: slice.as_mut_ptr(), len: slice.len(), size: size.max(1), owner: PhantomData }
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index.saturating_mul(self.size).min(self.len);
        start..start.saturating_add(self.size).min(self.len)
    }
}

// SAFETY: pieces of different index do not overlap.
unsafe impl<T: Send + 'static> Parts for Chunks<'_, T> {
    type Part<'t> = &'t mut [T];
    fn count(&self) -> usize {
        self.len.div_ceil(self.size)
    }
    unsafe fn part<'t>(&self, task: Task) -> &'t mut [T] {
        let range = self.range(task.index());
        // SAFETY: the range is inside the slice, and the caller holds no other part of this index.
        unsafe { slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// A slice of which each worker has a piece of its own: scratch. What it holds at the start of a task is whatever an
/// earlier task left.
pub(crate) struct PerWorker<'s, T>(Chunks<'s, T>);

impl<'s, T> PerWorker<'s, T> {
    /// `size` elements for each worker: `slice` must have that many for each. A worker beyond gets an empty piece.
    pub(crate) fn new(slice: &'s mut [T], size: usize) -> Self {
        PerWorker(Chunks::new(slice, size))
    }
}

// SAFETY: pieces of different workers do not overlap.
unsafe impl<T: Send + 'static> Parts for PerWorker<'_, T> {
    type Part<'t> = &'t mut [T];
    fn count(&self) -> usize {
        usize::MAX
    }
    unsafe fn part<'t>(&self, task: Task) -> &'t mut [T] {
        let range = self.0.range(task.worker());
        // SAFETY: the range is inside the slice, and the caller holds no other part of this worker.
        unsafe { slice::from_raw_parts_mut(self.0.start.add(range.start), range.len()) }
    }
}

/// A row-major matrix in a grid of tiles of `tile_rows` x `tile_cols`, numbered row by row; those at the right and
/// lower edge may be smaller.
pub(crate) struct Grid<'s, T = f32> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    tile_rows: usize,
    tile_cols: usize,
    by_columns: bool,
    owner: PhantomData<&'s mut [T]>,
}

// SAFETY: it is a `&mut [T]` of which each thread takes its own part.
unsafe impl<T: Send> Sync for Grid<'_, T> {}

impl<'s, T> Grid<'s, T> {
    /// The matrix has as many whole rows of `cols` as `slice` holds. Sizes of 0 are taken as 1.
    pub(crate) fn new(slice: &'s mut [T], cols: usize, tile_rows: usize, tile_cols: usize) -> Self {
        let (cols, tile_rows, tile_cols) = (cols.max(1), tile_rows.max(1), tile_cols.max(1));
        let rows = slice.len() / cols;
        let start = slice.as_mut_ptr();
        Grid { start, rows, cols, stride: cols, tile_rows, tile_cols, by_columns: false, owner: PhantomData }
    }

    /// The same of rows that may lie apart.
    pub(crate) fn of_rows(rows: RowsMut<'s, T>, tile_rows: usize, tile_cols: usize) -> Self {
        let RowsMut { start, rows, stride, width, owner } = rows;
        let (tile_rows, tile_cols) = (tile_rows.max(1), tile_cols.max(1));
        Grid { start, rows, cols: width, stride, tile_rows, tile_cols, by_columns: false, owner }
    }

    /// The same, numbered column by column.
    pub(crate) fn by_columns(self) -> Self {
        Grid { by_columns: true, ..self }
    }
}

// SAFETY: tiles of different index do not overlap.
unsafe impl<T: Send + 'static> Parts for Grid<'_, T> {
    type Part<'t> = Tile<'t, T>;
    fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows) * self.cols.div_ceil(self.tile_cols)
    }
    unsafe fn part<'t>(&self, task: Task) -> Tile<'t, T> {
        let (down, across) = (self.rows.div_ceil(self.tile_rows), self.cols.div_ceil(self.tile_cols));
        let (tile_row, tile_col) = if self.by_columns {
            (task.index() % down.max(1), task.index() / down.max(1))
        } else {
            (task.index() / across, task.index() % across)
        };
        let row = tile_row.saturating_mul(self.tile_rows).min(self.rows);
        let col = tile_col.saturating_mul(self.tile_cols).min(self.cols);
        Tile {
            start: self.start,
            stride: self.stride,
            row,
            col,
            rows: self.tile_rows.min(self.rows - row),
            cols: self.tile_cols.min(self.cols - col),
            owner: PhantomData,
        }
    }
}

/// One tile of a matrix.
pub(crate) struct Tile<'t, T = f32> {
    start: *mut T,
    stride: usize,
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
    owner: PhantomData<&'t mut [T]>,
}

impl<T> Tile<'_, T> {
    /// Which rows of the matrix it has.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.row..self.row + self.rows
    }

    /// Which columns of the matrix it has.
    pub(crate) fn cols(&self) -> Range<usize> {
        self.col..self.col + self.cols
    }

    /// Where its first element is. The elements of a row stand side by side, and rows are [`Tile::stride`] apart.
    #[inline(always)]
    pub(crate) fn start(&mut self) -> *mut T {
        // `wrapping_add`, because a tile without elements may lie beyond the matrix.
        self.start.wrapping_add(self.row * self.stride + self.col)
    }

    /// How far its rows are apart: the columns of the matrix, or more.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A part of it: `rows` and `cols` counted from its first row and column.
    ///
    /// # Panics
    /// If the tile does not have them.
    #[inline(always)]
    pub(crate) fn part(&mut self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols);
        let (row, col) = (self.row + rows.start, self.col + cols.start);
        let (start, stride) = (self.start, self.stride);
        Tile { start, stride, row, col, rows: rows.len(), cols: cols.len(), owner: PhantomData }
    }

    /// Its part of row `i` of the tile, counted from the tile's first row.
    ///
    /// # Panics
    /// If the tile has no such row.
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of a tile of {}", self.rows);
        // SAFETY: row and columns are inside the matrix, and the tile alone has them.
        unsafe {
            slice::from_raw_parts_mut(self.start.add((self.row + i) * self.stride + self.col), self.cols)
        }
    }
}

// SAFETY: `None` is no memory at all, `Some` is as safe as what it holds.
unsafe impl<A: Parts> Parts for Option<A> {
    type Part<'t> = Option<A::Part<'t>>;
    fn count(&self) -> usize {
        self.as_ref().map_or(usize::MAX, A::count)
    }
    unsafe fn part<'t>(&self, task: Task) -> Self::Part<'t> {
        // SAFETY: passed on to the caller.
        self.as_ref().map(|a| unsafe { a.part(task) })
    }
}

/// Two jobs in one: the first tasks have the parts of `A`, those after them the parts of `B`.
pub(crate) struct Chain<A, B>(pub(crate) A, pub(crate) B);

/// A part of one of two jobs.
pub(crate) enum Either<A, B> {
    /// Of the first.
    First(A),
    /// Of the second, and which of its parts it is.
    Second(usize, B),
}

// SAFETY: parts of different members are of different borrows, and parts of one member come from calls with
// different index if the tasks have.
unsafe impl<A: Parts, B: Parts> Parts for Chain<A, B> {
    type Part<'t> = Either<A::Part<'t>, B::Part<'t>>;
    fn count(&self) -> usize {
        self.0.count().saturating_add(self.1.count())
    }
    unsafe fn part<'t>(&self, task: Task) -> Self::Part<'t> {
        match task.index().checked_sub(self.0.count()) {
            // SAFETY: passed on to the caller.
            None => Either::First(unsafe { self.0.part(task) }),
            // SAFETY: passed on to the caller; tasks of different index have different ones here too.
            Some(index) => Either::Second(index, unsafe { self.1.part(task.renumbered(index)) }),
        }
    }
}

macro_rules! tuple {
    ($($name:ident $index:tt),+) => {
        // SAFETY: each member's parts are disjoint, and different members are different borrows.
        unsafe impl<$($name: Parts),+> Parts for ($($name,)+) {
            type Part<'t> = ($($name::Part<'t>,)+);
            fn count(&self) -> usize {
                usize::MAX$(.min(self.$index.count()))+
            }
            unsafe fn part<'t>(&self, task: Task) -> Self::Part<'t> {
                // SAFETY: passed on to the caller.
                unsafe { ($(self.$index.part(task),)+) }
            }
        }
    };
}
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
