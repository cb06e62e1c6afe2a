//! Matrix products: one core for all three of a linear layer.
//!
//! The result is cut into tasks by its shape alone. A task goes through the depth in blocks; for each it takes a strip
//! of a few rows of `a`, small enough for the first-level cache, past all its columns of `b`, which the second level
//! holds. Operands are read where they lie, transposed or not. Only a right operand whose depth is contiguous (the
//! weight, in the forward pass), so that its lanes would be far apart, is packed first.
//!
//! Each element is summed in the order of the depth, block after block: never a function of the threads.

use core::ops::Range;

use crate::arch::tile::{MultiplyInto, Onto, Panels, Strided};
use crate::arch::{Isa, Vector};
use crate::context::{Job, Team};
use crate::par::{Chunks, Grid, Tile};

/// A depth up to this is one block: a strip of `a` of it fits the first-level cache with room to spare.
const WHOLE_DEPTH: usize = 384;
/// A depth that is cut has blocks at least this deep, and deeper ones if `b` is narrow:
const DEPTH: usize = 256;
/// then a block of `b` has so many elements.
const BLOCK: usize = DEPTH * WIDTH;
/// The widest task: a block of `b` of this width and the depth fits a second-level cache of 1 MiB, with room for more.
const WIDTH: usize = 384;
/// The tallest task.
const HEIGHT: usize = 192;
/// No task is more than so many times as wide as it is tall.
const FLAT: usize = 3;
/// With so many tasks, the last one to end does not matter on a few threads.
const TASKS: usize = 16;

/// Rows and columns of the tile that the registers hold.
pub(crate) const fn register_tile(isa: Isa) -> (usize, usize) {
    match isa {
        Isa::Avx512 => (12, 32),
        Isa::Avx2 => (6, 16),
        Isa::Portable => (4, 8),
    }
}

/// The right operand (depth, cols).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Row-major, read where it lies.
    Rows { data: &'a [f32], cols: usize },
    /// In panels of as many columns as the register tile has, each (depth, those columns), the last one padded.
    Packed { data: &'a [f32] },
}

/// What a product begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The result is written.
    Zero,
    /// The product is added to what is there.
    Accumulate,
}

/// What is done to the product while it is still in the cache.
pub(crate) trait Finish: Sync {
    /// Whether there is nothing to do.
    fn is_idle(&self) -> bool {
        false
    }

    /// Changes `c`, which is columns `cols` of row `row` of the product. `kept` is the same place of a second result.
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        kept: Option<&mut [f32]>,
    );

    /// What [`Finish::finish`] will read for columns `cols` of row `row` and no product before it has read: it is asked
    /// for while the product is made.
    fn reads(&self, _row: usize, _cols: Range<usize>) -> &[f32] {
        &[]
    }
}

/// c = finish(bias + a b), or that with `onto` added before `finish`, for a (rows, depth) and b (depth, cols): one or
/// several of these are the work of a parallel region.
pub(crate) struct Product<'a, F> {
    pub(crate) a: Strided<'a>,
    pub(crate) b: Right<'a>,
    pub(crate) depth: usize,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) onto: Onto<'a>,
    pub(crate) finish: F,
}

/// The result of a product, of `cols` columns, in tiles that make good tasks.
pub(crate) fn tasks(c: &mut [f32], cols: usize, isa: Isa) -> Grid<'_> {
    let (tile_rows, tile_cols) = task_tile(c.len() / cols.max(1), cols, isa);
    // Column by column, so that a thread's next task finds its block of `b` in the cache.
    Grid::new(c, cols, tile_rows, tile_cols).by_columns()
}

/// How the result is cut into tasks: whole strips and whole panels, enough tasks for a few threads, none so flat that
/// it would read much more of `b` than it uses.
fn task_tile(rows: usize, cols: usize, isa: Isa) -> (usize, usize) {
    let (strip, panel) = register_tile(isa);
    let mut across = cols.div_ceil(WIDTH).max(1);
    loop {
        let tile_cols = cols.div_ceil(across).next_multiple_of(panel);
        let down = TASKS.div_ceil(across).max(rows.div_ceil(HEIGHT)).max(1);
        let tile_rows = rows.div_ceil(down).next_multiple_of(strip);
        if tile_cols <= FLAT * tile_rows || tile_rows >= rows || tile_cols <= panel {
            return (tile_rows, tile_cols);
        }
        across *= 2;
    }
}

/// The whole product as a region of its own. `kept` is a second result of the same shape, which the finish writes.
pub(crate) fn product<F: Finish>(
    team: &mut Team<'_>,
    product: &Product<'_, F>,
    c: &mut [f32],
    kept: Option<&mut [f32]>,
    cols: usize,
) {
    let isa = team.simd.isa();
    team.for_each((tasks(c, cols, isa), kept.map(|kept| tasks(kept, cols, isa))), product);
}

impl<F: Finish> Job<(Grid<'_>, Option<Grid<'_>>)> for Product<'_, F> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (c, kept): (Tile<'_>, Option<Tile<'_>>)) {
        self.task::<V>(t, c, kept);
    }
}

impl<F: Finish> Product<'_, F> {
    /// Computes a tile of the result, and writes the same tile of a second result.
    #[inline(always)]
    pub(crate) fn task<V: Vector>(&self, t: V::Token, c: Tile<'_>, kept: Option<Tile<'_>>) {
        // The shapes of `register_tile`, where the compiler can see them.
        match V::LANES {
            16 => self.blocks::<V, 12, 2>(t, c, kept),
            8 => self.blocks::<V, 6, 2>(t, c, kept),
            _ => self.blocks::<V, 4, 2>(t, c, kept),
        }
    }

    #[inline(always)]
    fn blocks<V: Vector, const M: usize, const N: usize>(
        &self,
        t: V::Token,
        mut c: Tile<'_>,
        mut kept: Option<Tile<'_>>,
    ) {
        let (rows, cols) = (c.rows(), c.cols());
        let panel = N * V::LANES;
        let whole = cols.len() - cols.len() % panel;
        // By the whole result's columns: some rows of it alone come to the same bits.
        let width = c.stride().clamp(1, WIDTH);
        let deepest =
            if self.depth <= WHOLE_DEPTH { WHOLE_DEPTH } else { (BLOCK / width).clamp(DEPTH, WHOLE_DEPTH) };
        // Even blocks: a short last one would pay for the result's way through memory and bring little.
        let block = self.depth.div_ceil(self.depth.div_ceil(deepest).max(1)).max(1);
        let mut k = 0;
        loop {
            let depth = block.min(self.depth - k);
            let last = k + depth == self.depth;
            let (bias, onto) = if k == 0 { (self.bias, self.onto) } else { (None, Onto::Result) };
            for strip in (0..rows.len()).step_by(M) {
                let strip_end = rows.len().min(strip + M);
                let a = self.a.from(rows.start + strip, k);
                let kept = &mut kept;
                // Far from what the product reads, and so unforeseen: without this, the finish would wait for memory.
                let mut ask = |row: usize| {
                    if last {
                        V::prefetch(t, self.finish.reads(rows.start + strip + row, cols.clone()));
                        if let Some(kept) = kept {
                            V::prefetch(t, kept.row(strip + row));
                        }
                    }
                };
                for (from, to) in [(0, whole), (whole, cols.len())] {
                    if from == to {
                        continue;
                    }
                    let b = self.b.block(cols.start + from, k, self.depth, panel);
                    let bias = bias.map(|bias| &bias[cols.start + from..cols.start + to]);
                    let c = c.part(strip..strip_end, from..to);
                    let meanwhile = &mut ask;
                    // The last columns may fill only one vector.
                    if to - from > V::LANES || N == 1 {
                        let job = MultiplyInto::<M, N> { a, b, depth, bias, onto, c, meanwhile };
                        V::apart(t, job);
                    } else {
                        let job = MultiplyInto::<M, 1> { a, b, depth, bias, onto, c, meanwhile };
                        V::apart(t, job);
                    }
                }
                if last && !self.finish.is_idle() {
                    for i in strip..strip_end {
                        let kept = kept.as_mut().map(|kept| kept.row(i));
                        self.finish.finish::<V>(t, rows.start + i, cols.clone(), c.row(i), kept);
                    }
                }
            }
            k += depth;
            if last {
                break;
            }
        }
    }
}

impl<'a> Right<'a> {
    /// From column `col`, where a panel begins, and depth `k` on.
    #[inline(always)]
    fn block(&self, col: usize, k: usize, depth: usize, panel: usize) -> Panels<'a> {
        match *self {
            Right::Rows { data, cols } => {
                Panels { data: &data[k * cols + col..], stride: panel, row_stride: cols }
            }
            Right::Packed { data } => {
                Panels { data: &data[col * depth + k * panel..], stride: depth * panel, row_stride: panel }
            }
        }
    }
}

/// How many f32 the packed transpose of a matrix (rows, cols) takes.
pub(crate) const fn packed_floats(rows: usize, cols: usize, isa: Isa) -> usize {
    match rows.checked_next_multiple_of(register_tile(isa).1) {
        Some(rows) => rows.saturating_mul(cols),
        None => usize::MAX,
    }
}

/// Packs the transpose of a row-major matrix of `cols` columns as a right operand: its columns are the depth.
///
/// `packed` has [`packed_floats`] elements.
pub(crate) fn pack_transposed(team: &mut Team<'_>, matrix: &[f32], cols: usize, packed: &mut [f32]) {
    struct Pack<'a> {
        matrix: &'a [f32],
        cols: usize,
        panel: usize,
    }
    impl Job<Chunks<'_, f32>> for Pack<'_> {
        #[inline(always)]
        fn run<V: Vector>(&self, t: V::Token, index: usize, packed: &mut [f32]) {
            let rows = &self.matrix[index * self.panel * self.cols..];
            let lanes = self.panel.min(rows.len() / self.cols);
            let square = V::LANES;
            for lane in (0..self.panel).step_by(square) {
                for col in (0..self.cols).step_by(square) {
                    let to = &mut packed[col * self.panel + lane..];
                    if lane + square <= lanes && col + square <= self.cols {
                        V::transpose(t, &rows[lane * self.cols + col..], self.cols, to, self.panel);
                        continue;
                    }
                    for j in 0..square {
                        for i in 0..square.min(self.cols - col) {
                            let inside = lane + j < lanes;
                            to[i * self.panel + j] =
                                if inside { rows[(lane + j) * self.cols + col + i] } else { 0.0 };
                        }
                    }
                }
            }
        }
    }
    let panel = register_tile(team.simd.isa()).1;
    let chunks = Chunks::new(packed, panel * cols);
    team.for_each(chunks, &Pack { matrix, cols, panel });
}

#[cfg(all(test, feature = "std"))]
mod tests;
