//! Equal to [`attention_forward`](minigpt_core::reference::attention::attention_forward).
//!
//! A task is a head of a sequence; where those are few, it is a run of queries of one, which packs the keys and
//! values that it sees.

use minigpt_core::op::AttentionForward;

use super::tile::{Drop, Head, Work, copy_scaled, padded, queries, take};
use super::{KEY, QUERY, Shape, VALUE};
use crate::arch::Vector;
use crate::context::{Context, Job, whole_lines};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::par::{Grid, PerWorker, Tile};

/// With so many heads in a batch, a head is a task.
const MANY_HEADS: usize = 32;

/// Queries in a task, where a head is cut up: whole tiles of any vector.
pub(super) const QUERIES_PER_TASK: usize = 64;

struct Forward<'s> {
    qkv: &'s [f32],
    shape: Shape,
    scale: f32,
    mask: Option<Mask>,
    /// The first sequence of this run of tasks.
    batch: usize,
}

impl Job<(Grid<'_>, Grid<'_>, PerWorker<'_, f32>)> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        _: usize,
        (mut out, mut lse, mut scratch): (Tile<'_>, Tile<'_>, &mut [f32]),
    ) {
        let Shape { time, heads, d_head } = self.shape;
        let (batch, head) = (self.batch + out.rows().start / time, out.cols().start / d_head);
        let start = out.rows().start % time;
        let end = start + out.rows().len();
        let keys = take(&mut scratch, end * d_head);
        let values = take(&mut scratch, end * d_head);
        let padded = padded::<V>(d_head);
        let mut work = Work::new::<V>(&mut scratch, d_head);
        for (part, rows) in [(KEY, &mut *keys), (VALUE, &mut *values)] {
            for (j, row) in rows.chunks_exact_mut(d_head).enumerate() {
                row.copy_from_slice(self.shape.of(self.qkv, batch * time + j, part, head));
            }
        }
        let packed = Head { keys, values, d_head };
        for first in (start..end).step_by(queries::<V>()) {
            let count = queries::<V>().min(end - first);
            if count < queries::<V>() {
                work.rows.fill(0.0);
            }
            for i in 0..count {
                let q = self.shape.of(self.qkv, batch * time + first + i, QUERY, head);
                copy_scaled::<V>(t, q, self.scale, &mut work.rows[i * padded..]);
            }
            let line = (batch * heads + head) * time + first;
            let drop = self.mask.map(|mask| Drop { mask, line, time });
            let denominators = work.attend::<V>(t, packed, first, count, drop);
            lse.row(0)[first - start..][..count].copy_from_slice(&denominators[..count]);
            for i in 0..count {
                out.row(first - start + i).copy_from_slice(&work.rows[i * padded..][..d_head]);
            }
        }
    }
}

/// Scratch of a thread.
pub(super) fn scratch_floats(time: usize, d_head: usize) -> usize {
    let rows = whole_lines(time.saturating_mul(d_head));
    rows.saturating_mul(2).saturating_add(Work::floats(d_head))
}

pub(in crate::ops) fn forward(context: &mut Context<'_, '_>, op: &AttentionForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let shape = Shape { time: op.time, heads: op.heads, d_head: op.d_head };
    let mut job = Forward {
        qkv: views.f32("qkv", op.qkv)?,
        shape,
        scale: op.scale as f32,
        mask: Mask::new(views, op.dropout)?,
        batch: 0,
    };
    let out = views.f32_mut("out", op.out)?;
    let lse = views.f32_mut("lse", op.lse)?;
    let each = scratch_floats(op.time, op.d_head);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    let (time, width) = (op.time, shape.d_model());
    if op.batch * op.heads >= MANY_HEADS {
        let parts = (
            Grid::new(out, width, time, op.d_head),
            Grid::new(lse, time, 1, time),
            PerWorker::new(scratch, each),
        );
        context.team.for_each(parts, &job);
        return Ok(());
    }
    let sequences = out.chunks_exact_mut(time * width).zip(lse.chunks_exact_mut(op.heads * time));
    for (batch, (out, lse)) in sequences.enumerate() {
        job.batch = batch;
        let parts = (
            Grid::new(out, width, QUERIES_PER_TASK, op.d_head).by_columns(),
            Grid::new(lse, time, 1, QUERIES_PER_TASK),
            PerWorker::new(scratch, each),
        );
        context.team.for_each(parts, &job);
    }
    Ok(())
}
