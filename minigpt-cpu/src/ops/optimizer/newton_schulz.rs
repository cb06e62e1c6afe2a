//! A matrix made nearly orthogonal, equal to
//! [`newton_schulz`](minigpt_core::reference::newton_schulz::newton_schulz).
//!
//! Each iteration is three products by the core that linear layers have: X X^T, its square, and (a I + b A + c A A) X. The
//! iterate goes to and fro between its own place and scratch, so that nothing is copied. A tall matrix is not transposed: its
//! products take their operands the other way around.

use minigpt_core::op::NewtonSchulz;
use minigpt_core::reference::newton_schulz::{COEFFICIENTS, divisor};

use super::CHUNK;
use crate::arch::tile::{Onto, Strided};
use crate::arch::{Isa, Vector};
use crate::context::{Context, Job, Machine, Team, whole_lines};
use crate::error::CpuError;
use crate::gemm::{Product, Right, pack_transposed, packed_floats, product};
use crate::ops::linear::Slope;
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

/// c = a b, for b of `cols` columns.
fn multiply(team: &mut Team<'_>, (a, b, depth): (Strided<'_>, Right<'_>, usize), c: &mut [f32], cols: usize) {
    // What a linear layer's gradient ends with where there was no activation: nothing.
    let job = Product { a, b, depth, bias: None, onto: Onto::Zero, finish: Slope::none(cols) };
    product(team, &job, c, None, cols);
}

/// Where the intermediates of an iteration lie.
struct Room<'s> {
    /// X X^T, or X^T X of a tall matrix.
    gram: &'s mut [f32],
    /// a I + b A + c A A.
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
    multiply(team, factors, gram, least);
    multiply(team, (Strided::rows(gram, least), as_rows(gram), least), polynomial, least);
    // With the first coefficient on the diagonal, the last product has all three.
    for (i, (row, gram)) in polynomial.chunks_exact_mut(least).zip(gram.chunks_exact(least)).enumerate() {
        row.iter_mut().zip(gram).for_each(|(square, gram)| *square = c * *square + b * gram);
        row[i] += a;
    }
    let factors = if tall {
        (Strided::rows(x, least), as_rows(polynomial), least)
    } else {
        (Strided::rows(polynomial, least), Right::Rows { data: x, cols }, least)
    };
    multiply(team, factors, next, cols);
}
