//! Rotary positions, equal to [`rotary`](minigpt_core::reference::rotary::rotary).
//!
//! Pairs turn with plain loops, which the compiler makes vectors of: inside a kernel it does so for the kernel's
//! instruction set.

use minigpt_core::Pairing;
use minigpt_core::op::Rotary;

use super::lanes::rows_per_task;
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::par::{Grid, Tile};

/// Turns each head of a row by the angles of its position; back, if `sign` is -1.
#[inline(always)]
pub(super) fn turn_row(heads: &mut [f32], turns: &[f32], pairing: Pairing, sign: f32) {
    let turns = turns.as_chunks::<2>().0;
    let turned = |[a, b]: [f32; 2], turn: &[f32; 2]| {
        let (cos, sin) = (turn[0], sign * turn[1]);
        [a * cos - b * sin, a * sin + b * cos]
    };
    for head in heads.chunks_exact_mut(2 * turns.len()) {
        match pairing {
            Pairing::Adjacent => {
                for (x, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                    *x = turned(*x, turn);
                }
            }
            _ => {
                let (first, second) = head.split_at_mut(turns.len());
                for ((a, b), turn) in first.iter_mut().zip(second).zip(turns) {
                    [*a, *b] = turned([*a, *b], turn);
                }
            }
        }
    }
}

struct Turn<'s> {
    table: &'s [f32],
    pairing: Pairing,
    sign: f32,
    time: usize,
    d_head: usize,
}

impl Job<Grid<'_>> for Turn<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, _: usize, mut x: Tile<'_>) {
        for (i, row) in x.rows().enumerate() {
            let turns = &self.table[row % self.time * self.d_head..][..self.d_head];
            turn_row(x.row(i), turns, self.pairing, self.sign);
        }
    }
}

pub(super) fn rotary(context: &mut Context<'_, '_>, op: &Rotary) -> Result<(), CpuError> {
    let views = &mut context.views;
    let width = op.heads * op.d_head;
    let job = Turn {
        table: views.f32("table", op.table.first(op.time * op.d_head))?,
        pairing: op.pairing,
        sign: if op.inverse { -1.0 } else { 1.0 },
        time: op.time,
        d_head: op.d_head,
    };
    let x = views.f32_rows_mut("x", op.x, width)?;
    context.team.for_each(Grid::of_rows(x, rows_per_task(width), width), &job);
    Ok(())
}
