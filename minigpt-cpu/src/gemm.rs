//! Matrix products: one core for all three of a linear layer.
//!
//! The result is cut into tasks by its shape alone. A task goes through the depth in blocks; for each it takes a strip
//! of a few rows of `a`, small enough for the first-level cache, past all its columns of `b`, which the second level
//! holds. Operands are read where they lie, transposed or not. Only a right operand is packed first, if its depth is
//! contiguous (the weight, in the forward pass) so that its lanes would be far apart, or if its rows are far apart.
//!
//! Each element is summed in the order of the depth, block after block: never a function of the threads.

use core::ops::Range;

use crate::arch::tile::{Strided, multiply};
use crate::arch::{Isa, Vector};
use crate::context::{Job, Team};
use crate::par::{Chunks, Grid, Tile};

/// The deepest block: a strip of `a` of this depth fits the first-level cache with room to spare.
pub(crate) const DEPTH: usize = 384;
/// The widest task: a block of `b` of this width and depth fits a second-level cache of 1 MiB.
const WIDTH: usize = 512;
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

/// What a task begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The result is written.
    Zero,
    /// The product is added to what is there.
    Accumulate,
}

/// What is done to the product while it is still in the cache.
pub(crate) trait Finish: Sync {
    /// Changes `c`, which is columns `cols` of row `row` of the product. `kept` is the same place of a second result.
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        kept: Option<&mut [f32]>,
    );
}

/// Nothing is.
pub(crate) struct AsIs;
impl Finish for AsIs {
    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        _: V::Token,
        _: usize,
        _: Range<usize>,
        _: &mut [f32],
        _: Option<&mut [f32]>,
    ) {
    }
}

/// c = finish(a b), or c = finish(c + a b), for a (rows, depth) and b (depth, cols). `kept` is a second result of the
/// same shape, which `finish` writes.
pub(crate) fn product<F: Finish>(
    team: &mut Team<'_>,
    a: Strided<'_>,
    b: Right<'_>,
    c: &mut [f32],
    kept: Option<&mut [f32]>,
    (rows, depth, cols): (usize, usize, usize),
    begin: Begin,
    finish: &F,
) {
    let (tile_rows, tile_cols) = task_tile(rows, cols, team.simd.isa());
    let grid = Grid::new(c, cols, tile_rows, tile_cols);
    let kept = kept.map(|kept| Grid::new(kept, cols, tile_rows, tile_cols));
    team.for_each((grid, kept), &Product { a, b, depth, begin, finish });
}

/// How the result is cut into tasks: whole strips and whole panels, enough tasks for a few threads.
fn task_tile(rows: usize, cols: usize, isa: Isa) -> (usize, usize) {
    let (strip, panel) = register_tile(isa);
    let across = cols.div_ceil(WIDTH).max(1);
    let tile_cols = cols.div_ceil(across).next_multiple_of(panel);
    let down = TASKS.div_ceil(across).min(rows.div_ceil(strip)).max(1);
    let tile_rows = rows.div_ceil(down).next_multiple_of(strip).min(8 * strip);
    (tile_rows, tile_cols)
}

struct Product<'a, F> {
    a: Strided<'a>,
    b: Right<'a>,
    depth: usize,
    begin: Begin,
    finish: &'a F,
}

impl<F: Finish> Job<(Grid<'_>, Option<Grid<'_>>)> for Product<'_, F> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (c, kept): (Tile<'_>, Option<Tile<'_>>)) {
        // The shapes of `register_tile`, where the compiler can see them.
        match V::LANES {
            16 => self.task::<V, 12, 2>(t, c, kept),
            8 => self.task::<V, 6, 2>(t, c, kept),
            _ => self.task::<V, 4, 2>(t, c, kept),
        }
    }
}

impl<F: Finish> Product<'_, F> {
    #[inline(always)]
    fn task<V: Vector, const M: usize, const N: usize>(
        &self,
        t: V::Token,
        mut c: Tile<'_>,
        mut kept: Option<Tile<'_>>,
    ) {
        let (rows, cols) = (c.rows(), c.cols());
        // Even blocks: a short last one would pay for the result's way through memory and bring little.
        let block = self.depth.div_ceil(self.depth.div_ceil(DEPTH).max(1)).max(1);
        let mut k = 0;
        loop {
            let depth = block.min(self.depth - k);
            let last = k + depth == self.depth;
            let begin = if k == 0 { self.begin } else { Begin::Accumulate };
            for strip in (0..rows.len()).step_by(M) {
                let strip_rows = M.min(rows.len() - strip);
                let a = self.a.from(rows.start + strip, k);
                for col in (0..cols.len()).step_by(N * V::LANES) {
                    let width = (N * V::LANES).min(cols.len() - col);
                    let (b, stride) = self.b.block(cols.start + col, k, depth, self.depth, N * V::LANES);
                    if width > V::LANES || N == 1 {
                        let sum = multiply::<V, M, N>(t, a, b, stride, strip_rows, depth, width);
                        store(t, &sum, &mut c, strip..strip + strip_rows, col..col + width, begin);
                    } else {
                        let sum = multiply::<V, M, 1>(t, a, b, stride, strip_rows, depth, width);
                        store(t, &sum, &mut c, strip..strip + strip_rows, col..col + width, begin);
                    }
                }
                if last {
                    for i in strip..strip + strip_rows {
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
    /// From column `col` and depth `k` on: the elements, and how far the rows are apart.
    #[inline(always)]
    fn block(
        &self,
        col: usize,
        k: usize,
        depth: usize,
        whole_depth: usize,
        panel: usize,
    ) -> (&'a [f32], usize) {
        match *self {
            Right::Rows { data, cols } => (&data[k * cols + col..], cols),
            Right::Packed { data } => (&data[col * whole_depth + k * panel..][..depth * panel], panel),
        }
    }
}

/// Writes or adds a register tile to the place (`rows`, `cols`) of a task's tile.
#[inline(always)]
fn store<V: Vector, const M: usize, const N: usize>(
    t: V::Token,
    sum: &[[V; N]; M],
    c: &mut Tile<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    begin: Begin,
) {
    let whole = cols.len() == N * V::LANES;
    for i in 0..M {
        if i < rows.len() {
            let c = &mut c.row(rows.start + i)[cols.clone()];
            for j in 0..N {
                if whole {
                    let c = &mut c[j * V::LANES..][..V::LANES];
                    let sum = if begin == Begin::Zero { sum[i][j] } else { V::load(t, c) + sum[i][j] };
                    sum.store(c);
                } else {
                    let from = (j * V::LANES).min(c.len());
                    let c = &mut c[from..];
                    let sum =
                        if begin == Begin::Zero { sum[i][j] } else { V::load_partial(t, c) + sum[i][j] };
                    sum.store_partial(c);
                }
            }
        }
    }
}

/// How many f32 the packed transpose of a matrix (rows, cols) takes.
pub(crate) const fn packed_floats(rows: usize, cols: usize, isa: Isa) -> usize {
    rows.next_multiple_of(register_tile(isa).1).saturating_mul(cols)
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

/// Packs a row-major matrix of `cols` columns as a right operand: its rows are the depth.
///
/// `packed` has as many elements as
/// [`packed_floats`] of (`cols`, the depth).
pub(crate) fn pack_rows(team: &mut Team<'_>, matrix: &[f32], cols: usize, packed: &mut [f32]) {
    struct Pack<'a> {
        matrix: &'a [f32],
        cols: usize,
        panel: usize,
    }
    impl Job<Chunks<'_, f32>> for Pack<'_> {
        #[inline(always)]
        fn run<V: Vector>(&self, _: V::Token, index: usize, packed: &mut [f32]) {
            let first = index * self.panel;
            let lanes = self.panel.min(self.cols - first);
            let rows = self.matrix.chunks_exact(self.cols);
            for (row, packed) in rows.zip(packed.chunks_exact_mut(self.panel)) {
                packed[..lanes].copy_from_slice(&row[first..][..lanes]);
                packed[lanes..].fill(0.0);
            }
        }
    }
    let panel = register_tile(team.simd.isa()).1;
    let chunks = Chunks::new(packed, panel * (matrix.len() / cols));
    team.for_each(chunks, &Pack { matrix, cols, panel });
}

#[cfg(all(test, feature = "std"))]
mod tests;
