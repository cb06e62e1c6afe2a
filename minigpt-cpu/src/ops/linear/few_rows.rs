//! The product of a few rows with the transpose of a weight: decoding. The weight is read once, row by row, at the
//! speed of memory.

use crate::arch::Vector;
use crate::context::{Job, Team};
use crate::gemm::{Begin, Finish};
use crate::par::{Grid, Tile};

/// Up to so many rows, reading the weight is what takes the time.
pub(super) const FEW_ROWS: usize = 4;

/// y = finish(x W^T), or y = finish(y + x W^T), for x (rows, d_in), weight (d_out, d_in), and rows up to
/// [`FEW_ROWS`]. `kept` is a second result of the shape of `y`, which `finish` writes.
pub(super) fn product<F: Finish>(
    team: &mut Team<'_>,
    x: &[f32],
    weight: &[f32],
    y: &mut [f32],
    kept: Option<&mut [f32]>,
    (rows, d_in, d_out): (usize, usize, usize),
    begin: Begin,
    finish: &F,
) {
    let width = if d_in * d_out < FEW_ELEMENTS { d_out } else { FEW_WIDTH };
    let kept = kept.map(|kept| Grid::new(kept, d_out, rows, width));
    let job = FewRows { x, weight, d_in, begin, finish };
    team.for_each((Grid::new(y, d_out, rows, width), kept), &job);
}

/// Below so many weights, waking threads costs more than they bring.
const FEW_ELEMENTS: usize = 1 << 16;
/// Columns of the result that a task of few rows has.
const FEW_WIDTH: usize = 64;

/// A product of few rows with the transpose of a weight: dot products of contiguous rows.
struct FewRows<'a, F> {
    x: &'a [f32],
    weight: &'a [f32],
    d_in: usize,
    begin: Begin,
    finish: &'a F,
}

impl<F: Finish> Job<(Grid<'_>, Option<Grid<'_>>)> for FewRows<'_, F> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut y, mut kept): (Tile<'_>, Option<Tile<'_>>)) {
        let (rows, cols) = (y.rows(), y.cols());
        match rows.len() {
            1 => self.columns::<V, 1>(t, &mut y),
            2 => self.columns::<V, 2>(t, &mut y),
            3 => self.columns::<V, 3>(t, &mut y),
            _ => self.columns::<V, 4>(t, &mut y),
        }
        for i in 0..rows.len() {
            let kept = kept.as_mut().map(|kept| kept.row(i));
            self.finish.finish::<V>(t, rows.start + i, cols.clone(), y.row(i), kept);
        }
    }
}

impl<F: Finish> FewRows<'_, F> {
    #[inline(always)]
    fn columns<V: Vector, const R: usize>(&self, t: V::Token, y: &mut Tile<'_>) {
        // Four sums for each row: enough additions under way at once to hide the time that one takes.
        const C: usize = 4;
        let cols = y.cols();
        let x: [&[f32]; R] = core::array::from_fn(|r| &self.x[r * self.d_in..][..self.d_in]);
        let mut col = 0;
        while col + C <= cols.len() {
            let first = (cols.start + col) * self.d_in;
            self.put(y, col, dots::<V, R, C>(t, x, &self.weight[first..][..C * self.d_in], self.d_in));
            col += C;
        }
        while col < cols.len() {
            let first = (cols.start + col) * self.d_in;
            self.put(y, col, dots::<V, R, 1>(t, x, &self.weight[first..][..self.d_in], self.d_in));
            col += 1;
        }
    }

    #[inline(always)]
    fn put<const R: usize, const C: usize>(&self, y: &mut Tile<'_>, col: usize, sums: [[f32; C]; R]) {
        for (i, sums) in sums.iter().enumerate() {
            for (y, &sum) in y.row(i)[col..][..C].iter_mut().zip(sums) {
                *y = if self.begin == Begin::Zero { sum } else { *y + sum };
            }
        }
    }
}

/// The dot products of R rows with C rows of a weight.
#[inline(always)]
fn dots<V: Vector, const R: usize, const C: usize>(
    t: V::Token,
    x: [&[f32]; R],
    weight: &[f32],
    d_in: usize,
) -> [[f32; C]; R] {
    let weight: [&[f32]; C] = core::array::from_fn(|c| &weight[c * d_in..][..d_in]);
    let x: [&[f32]; R] = core::array::from_fn(|r| &x[r][..d_in]);
    let mut sum = [[V::splat(t, 0.0); C]; R];
    let whole = d_in - d_in % V::LANES;
    let mut k = 0;
    while k < whole {
        let w: [V; C] = core::array::from_fn(|c| V::load(t, &weight[c][k..k + V::LANES]));
        for r in 0..R {
            let x = V::load(t, &x[r][k..k + V::LANES]);
            for c in 0..C {
                sum[r][c] = w[c].mul_add(x, sum[r][c]);
            }
        }
        k += V::LANES;
    }
    if whole < d_in {
        for r in 0..R {
            let x = V::load_partial(t, &x[r][whole..]);
            for c in 0..C {
                sum[r][c] = V::load_partial(t, &weight[c][whole..]).mul_add(x, sum[r][c]);
            }
        }
    }
    core::array::from_fn(|r| core::array::from_fn(|c| sum[r][c].sum()))
}
