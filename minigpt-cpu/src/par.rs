//! The one place outside `arch/` with unsafe code: from spans to slices, from one slice to the threads' pieces of
//! it, and a closure lent to threads that outlive it.

use core::marker::PhantomData;
use core::ops::Range;
use core::slice;

use minigpt_core::{Dtype, InvalidOp, Span};

use crate::error::CpuError;
use crate::executor::{Executor, Task};
use crate::memory::{Line, Memory, Storage};

// ---------------------------------------------------------------------------------------------------------------
// Spans as slices

/// More than any op has operands.
const MAX_VIEWS: usize = 16;

/// The spans of one op as slices.
///
/// Each span is checked when it is asked for: that it lies in its buffer, has the right type and alignment, and
/// overlaps no other that was handed out if either of the two is written. So no two slices conflict, whether or not
/// the op's description was checked before.
pub(crate) struct Views<'m, 'a> {
    memory: &'m mut Memory<'a>,
    handed: [Option<(Span, bool)>; MAX_VIEWS],
}

impl<'m, 'a> Views<'m, 'a> {
    pub(crate) fn new(memory: &'m mut Memory<'a>) -> Self {
        Views { memory, handed: [None; MAX_VIEWS] }
    }

    /// f32 to read.
    pub(crate) fn f32(&mut self, operand: &'static str, span: Span) -> Result<&'m [f32], CpuError> {
        self.typed(operand, span, Dtype::F32)?;
        let from = self.claim(operand, span, false)?;
        // SAFETY: `claim` found `span` inside a live buffer that stays borrowed for 'm, at an address that is a
        // multiple of four, and all slices handed out for 'm that overlap it are shared. Any bits are an f32.
        Ok(unsafe { slice::from_raw_parts(from.cast_const().cast(), span.len) })
    }

    /// u32 to read.
    pub(crate) fn u32(&mut self, operand: &'static str, span: Span) -> Result<&'m [u32], CpuError> {
        self.typed(operand, span, Dtype::U32)?;
        let from = self.claim(operand, span, false)?;
        // SAFETY: as for f32.
        Ok(unsafe { slice::from_raw_parts(from.cast_const().cast(), span.len) })
    }

    /// f32 to write.
    pub(crate) fn f32_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [f32], CpuError> {
        self.typed(operand, span, Dtype::F32)?;
        let from = self.claim(operand, span, true)?;
        // SAFETY: `claim` found `span` inside a live owned buffer that stays exclusively borrowed for 'm, at an
        // address that is a multiple of four, and no slice handed out for 'm overlaps it. Any bits are an f32.
        Ok(unsafe { slice::from_raw_parts_mut(from.cast(), span.len) })
    }

    /// u32 to write.
    pub(crate) fn u32_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [u32], CpuError> {
        self.typed(operand, span, Dtype::U32)?;
        let from = self.claim(operand, span, true)?;
        // SAFETY: as for f32.
        Ok(unsafe { slice::from_raw_parts_mut(from.cast(), span.len) })
    }

    /// The span's bytes as they lie in memory (see [`crate::memory`]), to read.
    pub(crate) fn bytes(&mut self, operand: &'static str, span: Span) -> Result<&'m [u8], CpuError> {
        let from = self.claim(operand, span, false)?;
        // SAFETY: as for f32; bytes need no alignment, and `claim` has counted them.
        Ok(unsafe { slice::from_raw_parts(from.cast_const(), span.bytes().unwrap_or(0)) })
    }

    /// The span's bytes as they lie in memory (see [`crate::memory`]), to write.
    pub(crate) fn bytes_mut(&mut self, operand: &'static str, span: Span) -> Result<&'m mut [u8], CpuError> {
        let from = self.claim(operand, span, true)?;
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

    /// Checks `span` and notes it as handed out; returns its address.
    fn claim(&mut self, operand: &'static str, span: Span, write: bool) -> Result<*mut u8, CpuError> {
        let bytes = span.bytes().ok_or(InvalidOp::Overflow { operand })?;
        let end = span.offset.checked_add(bytes).ok_or(InvalidOp::Overflow { operand })?;
        let (address, size) = match self.memory.storage(span.buffer, operand)? {
            Storage::Owned { lines, bytes } => (lines.as_mut_ptr().cast::<u8>(), *bytes),
            Storage::Borrowed(_) if write => return Err(InvalidOp::ReadOnly { operand }.into()),
            Storage::Borrowed(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
            Storage::Gone => (core::ptr::null_mut(), 0),
        };
        if end > size || address.is_null() {
            return Err(InvalidOp::OutOfBounds { operand, end, size }.into());
        }
        let (elements, unit) = span.dtype.unit();
        let align = if elements == 1 { unit.min(4) } else { 2 };
        if !span.offset.is_multiple_of(align) {
            return Err(InvalidOp::Misaligned { operand, offset: span.offset }.into());
        }
        let conflict = self.handed.iter().flatten().find(|(other, w)| (write || *w) && span.overlaps(other));
        if conflict.is_some() {
            return Err(InvalidOp::Overlap { a: operand, b: "another operand" }.into());
        }
        let free = self.handed.iter_mut().find(|h| h.is_none()).ok_or(InvalidOp::Value { operand })?;
        *free = Some((span, write));
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

// ---------------------------------------------------------------------------------------------------------------
// Pieces for tasks

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
pub(crate) struct Grid<'s> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
    by_columns: bool,
    owner: PhantomData<&'s mut [f32]>,
}

// SAFETY: it is a `&mut [f32]` of which each thread takes its own part.
unsafe impl Sync for Grid<'_> {}

impl<'s> Grid<'s> {
    /// The matrix has as many whole rows of `cols` as `slice` holds. Sizes of 0 are taken as 1.
    pub(crate) fn new(slice: &'s mut [f32], cols: usize, tile_rows: usize, tile_cols: usize) -> Self {
        let (cols, tile_rows, tile_cols) = (cols.max(1), tile_rows.max(1), tile_cols.max(1));
        let rows = slice.len() / cols;
        let start = slice.as_mut_ptr();
        Grid { start, rows, cols, tile_rows, tile_cols, by_columns: false, owner: PhantomData }
    }

    /// The same, numbered column by column.
    pub(crate) fn by_columns(self) -> Self {
        Grid { by_columns: true, ..self }
    }
}

// SAFETY: tiles of different index do not overlap.
unsafe impl Parts for Grid<'_> {
    type Part<'t> = Tile<'t>;
    fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows) * self.cols.div_ceil(self.tile_cols)
    }
    unsafe fn part<'t>(&self, task: Task) -> Tile<'t> {
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
            stride: self.cols,
            row,
            col,
            rows: self.tile_rows.min(self.rows - row),
            cols: self.tile_cols.min(self.cols - col),
            owner: PhantomData,
        }
    }
}

/// One tile of a matrix.
pub(crate) struct Tile<'t> {
    start: *mut f32,
    stride: usize,
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
    owner: PhantomData<&'t mut [f32]>,
}

impl Tile<'_> {
    /// Which rows of the matrix it has.
    pub(crate) fn rows(&self) -> Range<usize> {
        self.row..self.row + self.rows
    }

    /// Which columns of the matrix it has.
    pub(crate) fn cols(&self) -> Range<usize> {
        self.col..self.col + self.cols
    }

    /// Its part of row `i` of the tile, counted from the tile's first row.
    ///
    /// # Panics
    /// If the tile has no such row.
    #[inline(always)]
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
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

// ---------------------------------------------------------------------------------------------------------------
// A closure lent to threads

/// Lends one closure at a time to the threads of a team.
///
/// The gate is one word: the number of the loan, whether it is open, and how many threads are inside. A thread may
/// only enter while it is open; the lender closes it and waits until nobody is inside. A thread that wakes late
/// finds the gate closed and is not waited for.
#[cfg(feature = "std")]
pub(crate) struct Loan {
    gate: std::sync::atomic::AtomicU64,
    lent: std::sync::atomic::AtomicBool,
    closure: core::cell::UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
}

// SAFETY: the closure's cell is written only by the lender, while `lent` keeps other lenders out and the gate keeps
// borrowers out; the closure itself is Sync.
#[cfg(feature = "std")]
unsafe impl Sync for Loan {}
// SAFETY: a reference to a Sync closure may be sent.
#[cfg(feature = "std")]
unsafe impl Send for Loan {}

#[cfg(feature = "std")]
impl Loan {
    const OPEN: u64 = 1 << 16;
    const INSIDE: u64 = Self::OPEN - 1;
    const NUMBER: u64 = !(Self::OPEN | Self::INSIDE);

    pub(crate) fn new() -> Self {
        Loan { gate: 0.into(), lent: false.into(), closure: None.into() }
    }

    /// Opens the gate to `closure`, runs `own`, closes the gate and waits for those inside, also if `own` panics.
    pub(crate) fn lend(&self, closure: &(dyn Fn(usize) + Sync), own: impl FnOnce()) {
        use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

        struct Close<'l>(&'l Loan);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.gate.fetch_and(!Loan::OPEN, AcqRel);
                let mut spins = 0u32;
                while self.0.gate.load(Acquire) & Loan::INSIDE != 0 {
                    // A thread inside may have lost its processor: then let it have this one.
                    if spins < 1 << 12 {
                        core::hint::spin_loop();
                        spins += 1;
                    } else {
                        std::thread::yield_now();
                    }
                }
                // SAFETY: the gate is closed and nobody is inside.
                unsafe { *self.0.closure.get() = None };
                self.0.lent.store(false, Release);
            }
        }

        assert!(!self.lent.swap(true, Acquire), "a team runs one region at a time");
        // SAFETY: only the lifetime changes. `Close` ends the loan before this function returns or unwinds, and
        // nobody uses the closure after that.
        let closure: &'static (dyn Fn(usize) + Sync) = unsafe { core::mem::transmute(closure) };
        // SAFETY: `lent` keeps other lenders out, and the gate has been closed and empty since the last loan.
        unsafe { *self.closure.get() = Some(closure) };
        let number = (self.gate.load(Relaxed) & Self::NUMBER).wrapping_add(Self::OPEN << 1);
        let close = Close(self);
        self.gate.store(number | Self::OPEN, SeqCst);
        own();
        drop(close);
    }

    /// Whether a loan other than `seen` is open.
    pub(crate) fn is_open(&self, seen: u64) -> bool {
        let gate = self.gate.load(std::sync::atomic::Ordering::SeqCst);
        gate & Self::OPEN != 0 && gate & Self::NUMBER != seen
    }

    /// If a loan other than `seen` is open: notes it as seen, goes inside and calls the closure with `argument`,
    /// which must not unwind. Returns whether it did.
    pub(crate) fn borrow(&self, seen: &mut u64, argument: usize) -> bool {
        use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
        let mut gate = self.gate.load(Relaxed);
        loop {
            if gate & Self::OPEN == 0 || gate & Self::NUMBER == *seen {
                return false;
            }
            match self.gate.compare_exchange_weak(gate, gate + 1, Acquire, Relaxed) {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        *seen = gate & Self::NUMBER;
        struct Leave<'l>(&'l Loan);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.gate.fetch_sub(1, Release);
            }
        }
        let _leave = Leave(self);
        // SAFETY: inside the gate the cell is not written, and the closure is alive until this thread leaves.
        if let Some(closure) = unsafe { *self.closure.get() } {
            closure(argument);
        }
        true
    }
}

#[cfg(all(test, feature = "std"))]
mod tests;
