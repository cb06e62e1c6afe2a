//! A matrix made nearly orthogonal, equal to
//! [`newton_schulz`](minigpt_core::reference::newton_schulz::newton_schulz).
//!
//! Each iteration is three products by the core that linear layers have. What is added to a product is added while it is in the
//! cache. The iterate goes to and fro between its own place and scratch, so that nothing is copied. A tall matrix is not transposed:
//! its products take their operands the other way around.

use core::ops::Range;

use minigpt_core::op::NewtonSchulz;
use minigpt_core::reference::newton_schulz::{COEFFICIENTS, divisor};

use super::CHUNK;
use crate::arch::tile::{Onto, Strided};
use crate::arch::{Isa, Vector};
use crate::context::{Context, Job, Machine, Team, whole_lines};
use crate::error::CpuError;
use crate::gemm::{Finish, Product, Right, pack_transposed, packed_floats, product};
use crate::ops::lanes::{load, store};
use crate::par::Chunks;

/// The matrix divided by a number, in f64: its squares may be beyond f32.
struct Divide {
    factor: f64,
}

impl Job<Chunks<'_, f32>> for Divide {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, _: usize, x: &mut [f32]) {
        for x in x {
            *x = (f64::from(*x) * self.factor) as f32;
        }
    }
}

/// What follows a product: `times` it, and `plus` times a matrix of the same shape.
struct Blend<'a> {
    times: f32,
    plus: f32,
    of: &'a [f32],
    cols: usize,
}

impl Finish for Blend<'_> {
    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        _: Option<&mut [f32]>,
    ) {
        let of = &self.of[row * self.cols + cols.start..][..c.len()];
        let [times, plus] = [self.times, self.plus].map(|x| V::splat(t, x));
        for i in (0..c.len()).step_by(V::LANES) {
            store(load::<V>(t, c, i).mul_add(times, load::<V>(t, of, i) * plus), c, i);
        }
    }

    fn reads(&self, row: usize, cols: Range<usize>) -> &[f32] {
        &self.of[row * self.cols..][cols]
    }
}

/// A product as it is.
struct Whole;

impl Finish for Whole {
    fn is_idle(&self) -> bool {
        true
    }

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

/// c = finish(a b), for b of `cols` columns.
fn multiply<F: Finish>(
    team: &mut Team<'_>,
    (a, b, depth): (Strided<'_>, Right<'_>, usize),
    finish: F,
    c: &mut [f32],
    cols: usize,
) {
    let job = Product { a, b, depth, bias: None, onto: Onto::Zero, finish };
    product(team, &job, c, None, cols);
}

/// Where the intermediates of an iteration lie.
struct Room<'s> {
    /// X X^T, or X^T X of a tall matrix.
    gram: &'s mut [f32],
    /// b A + c A A.
    polynomial: &'s mut [f32],
    /// The transpose of a wide matrix.
    packed: &'s mut [f32],
}

/// f32 of the second iterate, of either square, and of the packed transpose.
fn parts(op: &NewtonSchulz, isa: Isa) -> [usize; 3] {
    let least = op.rows.min(op.cols);
    let packed = if op.rows > op.cols { 0 } else { packed_floats(op.rows, op.cols, isa) };
    [op.x.len, least.saturating_mul(least), packed].map(whole_lines)
}

pub(in crate::ops) fn scratch_floats(op: &NewtonSchulz, machine: Machine) -> usize {
    let [other, square, packed] = parts(op, machine.isa);
    [other, square, square, packed].into_iter().fold(0, usize::saturating_add)
}

pub(in crate::ops) fn newton_schulz(
    context: &mut Context<'_, '_>,
    op: &NewtonSchulz,
) -> Result<(), CpuError> {
    let (least, machine) = (op.rows.min(op.cols), context.team.machine());
    let x = context.views.f32_mut("x", op.x)?;
    let scratch = context.scratch.floats(scratch_floats(op, machine))?;
    let [other, square, _] = parts(op, machine.isa);
    let (other, scratch) = scratch.split_at_mut(other);
    let (gram, scratch) = scratch.split_at_mut(square);
    let (polynomial, packed) = scratch.split_at_mut(square);
    let packed = match op.rows > op.cols {
        true => packed,
        false => &mut packed[..packed_floats(op.rows, op.cols, machine.isa)],
    };
    let square = least * least;
    let mut room = Room { gram: &mut gram[..square], polynomial: &mut polynomial[..square], packed };
    let other = &mut other[..x.len()];

    let team = &mut context.team;
    let factor = 1.0 / divisor(x);
    team.for_each(Chunks::new(x, CHUNK), &Divide { factor });
    // So that the last iteration ends in the matrix's own place.
    let (mut from, mut to) = (x, other);
    if op.steps % 2 == 1 {
        to.copy_from_slice(from);
        (from, to) = (to, from);
    }
    for _ in 0..op.steps {
        iterate(team, from, to, &mut room, (op.rows, op.cols));
        (from, to) = (to, from);
    }
    Ok(())
}

fn iterate(
    team: &mut Team<'_>,
    x: &[f32],
    next: &mut [f32],
    room: &mut Room<'_>,
    (rows, cols): (usize, usize),
) {
    let [a, b, c] = COEFFICIENTS.map(|x| x as f32);
    let (least, tall) = (rows.min(cols), rows > cols);
    let Room { gram, polynomial, packed } = room;
    let as_rows = |data| Right::Rows { data, cols: least };
    let factors = if tall {
        (Strided::transposed(x, cols), as_rows(x), rows)
    } else {
        pack_transposed(team, x, cols, packed);
        (Strided::rows(x, cols), Right::Packed { data: packed }, cols)
    };
    multiply(team, factors, Whole, gram, least);
    let finish = Blend { times: c, plus: b, of: gram, cols: least };
    multiply(team, (Strided::rows(gram, least), as_rows(gram), least), finish, polynomial, least);
    let factors = if tall {
        (Strided::rows(x, least), as_rows(polynomial), least)
    } else {
        (Strided::rows(polynomial, least), Right::Rows { data: x, cols }, least)
    };
    multiply(team, factors, Blend { times: 1.0, plus: a, of: x, cols }, next, cols);
}
