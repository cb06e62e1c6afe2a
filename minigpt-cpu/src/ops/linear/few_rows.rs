//! The product of a few rows with the transpose of a weight: decoding. The weight is read once, from its first byte to
//! its last, at the speed of memory, and widened in registers.

use minigpt_core::memory::QUANT_BLOCK;

use crate::arch::Vector;
use crate::context::{Job, Team};
use crate::gemm::{Begin, Finish};
use crate::ops::weight::{Format, row_of};
use crate::par::{Grid, Tile};

/// Up to so many rows, reading the weight is what takes the time.
pub(in crate::ops) const FEW_ROWS: usize = 4;

/// Bytes of the weight that a task reads: a microsecond or two, more than it costs to hand the task to a thread.
const TASK_BYTES: usize = 1 << 15;

/// Columns of a task are a multiple of this, so that no two write to one cache line.
const LINE: usize = 16;

/// y = finish(x W^T), or y = finish(y + x W^T), for x (rows, d_in), weight (d_out, d_in), and rows up to
/// [`FEW_ROWS`]. `kept` is a second result of the shape of `y`, which `finish` writes.
pub(super) fn product<W: Format, F: Finish>(
    team: &mut Team<'_>,
    x: &[f32],
    weight: &[W::Unit],
    y: &mut [f32],
    kept: Option<&mut [f32]>,
    (rows, d_in, d_out): (usize, usize, usize),
    begin: Begin,
    finish: &F,
) {
    let tasks = (size_of_val(weight) / TASK_BYTES).max(1);
    let width = d_out.div_ceil(tasks).next_multiple_of(LINE);
    let kept = kept.map(|kept| Grid::new(kept, d_out, rows, width));
    let job = FewRows::<W, F> { x, weight, d_in, begin, finish };
    team.for_each((Grid::new(y, d_out, rows, width), kept), &job);
}

struct FewRows<'a, W: Format, F> {
    x: &'a [f32],
    weight: &'a [W::Unit],
    d_in: usize,
    begin: Begin,
    finish: &'a F,
}

impl<W: Format, F: Finish> Job<(Grid<'_>, Option<Grid<'_>>)> for FewRows<'_, W, F> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut y, mut kept): (Tile<'_>, Option<Tile<'_>>)) {
        let (rows, cols) = (y.rows(), y.cols());
        // So many sums for each row that additions need not wait for each other, and all stay in registers.
        let mut first = 0;
        while first < rows.len() {
            first += match rows.len() - first {
                1 => self.columns::<V, 1, 4>(t, first, &mut y),
                // Three rows as two and one: a quarter of all this code less, for a small machine.
                3 if !V::SHARES_CODE => self.columns::<V, 3, 2>(t, first, &mut y),
                2 | 3 => self.columns::<V, 2, 4>(t, first, &mut y),
                _ => self.columns::<V, 4, 2>(t, first, &mut y),
            };
        }
        for i in 0..rows.len() {
            let kept = kept.as_mut().map(|kept| kept.row(i));
            self.finish.finish::<V>(t, rows.start + i, cols.clone(), y.row(i), kept);
        }
    }
}

impl<W: Format, F: Finish> FewRows<'_, W, F> {
    /// R rows, from number `first` on.
    #[inline(always)]
    fn columns<V: Vector, const R: usize, const S: usize>(
        &self,
        t: V::Token,
        first: usize,
        y: &mut Tile<'_>,
    ) -> usize {
        let cols = y.cols();
        let mut y = y.part(first..first + R, 0..cols.len());
        let x: [&[f32]; R] = core::array::from_fn(|r| &self.x[(first + r) * self.d_in..][..self.d_in]);
        // One row of the weight after the other, though several at a time would need x less often: the processor
        // fetches ahead on one stream, and loses its way among several that end after a kilobyte or two.
        for col in 0..cols.len() {
            let weight = row_of::<W>(self.weight, cols.start + col, self.d_in);
            let sums = dots::<V, W, R, S>(t, x, weight, self.d_in);
            for (i, sum) in sums.into_iter().enumerate() {
                let y = &mut y.row(i)[col];
                *y = if self.begin == Begin::Zero { sum } else { *y + sum };
            }
        }
        R
    }
}

/// Elements that [`dots`] takes at a time: two blocks, four of the widest vectors.
const PIECE: usize = 2 * QUANT_BLOCK;

/// The dot products of R rows with a row of a weight, each in S sums side by side.
#[inline(always)]
fn dots<V: Vector, W: Format, const R: usize, const S: usize>(
    t: V::Token,
    x: [&[f32]; R],
    weight: &[W::Unit],
    d_in: usize,
) -> [f32; R] {
    let mut sums = [[V::splat(t, 0.0); S]; R];
    // In pieces of a known size, of which the compiler knows that blocks begin with them.
    let pieces = weight.chunks_exact(PIECE / W::ELEMENTS).take(d_in / PIECE);
    for (i, weight) in pieces.enumerate() {
        for (v, k) in (0..PIECE).step_by(V::LANES).enumerate() {
            let w = W::load::<V>(t, weight, k);
            for r in 0..R {
                let x = &x[r][i * PIECE..][..PIECE];
                sums[r][v % S] = w.mul_add(V::load(t, &x[k..]), sums[r][v % S]);
            }
        }
    }
    let mut k = d_in - d_in % PIECE;
    while k + V::LANES <= d_in {
        let w = W::load::<V>(t, weight, k);
        for r in 0..R {
            sums[r][0] = w.mul_add(V::load(t, &x[r][k..]), sums[r][0]);
        }
        k += V::LANES;
    }
    if k < d_in {
        let w = W::load_rest::<V>(t, weight, k);
        for r in 0..R {
            sums[r][0] = w.mul_add(V::load_partial(t, &x[r][k..]), sums[r][0]);
        }
    }
    // A loop and not a closure, which would be a function of its own, compiled for the build's baseline.
    let mut dots = [0.0; R];
    for r in 0..R {
        let mut all = sums[r][0];
        for s in 1..S {
            all = all + sums[r][s];
        }
        dots[r] = all.sum();
    }
    dots
}
