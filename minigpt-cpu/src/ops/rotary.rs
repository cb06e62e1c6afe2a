//! Rotary positions, equal to [`rotary`](minigpt_core::reference::rotary::rotary).
//!
//! Pairs of neighbours turn with plain loops, which the compiler makes vectors of: inside a kernel it does so for
//! the kernel's instruction set.

use minigpt_core::op::Rotary;

use super::lanes::rows_per_task;
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::par::Chunks;

/// Turns each head of a row by the angles of its position; back, if `sign` is -1.
#[inline(always)]
pub(super) fn turn_row(heads: &mut [f32], turns: &[f32], sign: f32) {
    for head in heads.chunks_exact_mut(turns.len()) {
        for (x, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns.as_chunks::<2>().0) {
            let (cos, sin) = (turn[0], sign * turn[1]);
            *x = [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos];
        }
    }
}

struct Turn<'s> {
    table: &'s [f32],
    sign: f32,
    rows_per_task: usize,
    time: usize,
    heads: usize,
    d_head: usize,
}

impl Job<Chunks<'_, f32>> for Turn<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, index: usize, qkv: &mut [f32]) {
        let d_model = self.heads * self.d_head;
        for (i, row) in qkv.chunks_exact_mut(3 * d_model).enumerate() {
            let position = (index * self.rows_per_task + i) % self.time;
            let turns = &self.table[position * self.d_head..][..self.d_head];
            turn_row(&mut row[..2 * d_model], turns, self.sign);
        }
    }
}

pub(super) fn rotary(context: &mut Context<'_, '_>, op: &Rotary) -> Result<(), CpuError> {
    let views = &mut context.views;
    let width = 3 * op.heads * op.d_head;
    let rows_per_task = rows_per_task(width);
    let job = Turn {
        table: views.f32("table", op.table.first(op.time * op.d_head))?,
        sign: if op.inverse { -1.0 } else { 1.0 },
        rows_per_task,
        time: op.time,
        heads: op.heads,
        d_head: op.d_head,
    };
    let parts = Chunks::new(views.f32_mut("qkv", op.qkv)?, rows_per_task * width);
    context.team.for_each(parts, &job);
    Ok(())
}
