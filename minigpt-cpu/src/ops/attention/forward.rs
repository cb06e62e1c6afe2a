//! Equal to [`attention_forward`](minigpt_core::reference::attention::attention_forward).
//!
//! A task is some neighbouring heads of a sequence; where those are few, it is a run of queries of one, which packs
//! the keys and values that it sees.

use minigpt_core::op::AttentionForward;

use super::Shape;
use super::ahead::Ahead;
use super::tile::{Drop, Head, MAX_LANES, MAX_QUERIES, Packed, Work, is_finite, padded, queries, take};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::ops::cache::Stored;
use crate::par::{Grid, PerWorker, Rows, Tile};

/// With so many heads in a batch, a head is a task.
const MANY_HEADS: usize = 32;

/// Queries in a task, where a head is cut up: whole tiles of any vector.
pub(super) const QUERIES_PER_TASK: usize = 64;

/// Portions that a later task's rows are fetched in by each tile of queries of a head: its products with one tile of
/// keys. More tiles of keys find the work done.
const PORTIONS: usize = 2;

struct Forward<'s> {
    q: Rows<'s>,
    k: Rows<'s>,
    v: Rows<'s>,
    shape: Shape,
    scale: f32,
    mask: Option<Mask>,
    /// The first sequence of this run of tasks.
    batch: usize,
    /// Of them; 0 if heads are cut up, which leaves little to fetch.
    threads: usize,
}

impl Job<(Grid<'_>, Grid<'_>, PerWorker<'_, f32>)> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (mut out, mut lse, mut scratch): (Tile<'_>, Tile<'_>, &mut [f32]),
    ) {
        let Shape { time, heads, d_head, share, prefix, .. } = self.shape;
        let (batch, head) = (self.batch + out.rows().start / time, out.cols().start / d_head);
        let group = out.cols().len() / d_head;
        let start = out.rows().start % time;
        let end = start + out.rows().len();
        // The keys that the last of these queries sees.
        let seen = end.max(prefix);
        let kv_group = self.shape.kv_heads_of(group);
        let [cols, kv_cols] = self.shape.cols(head, group);
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        let keys = take(&mut scratch, kv_group * seen * padded);
        let values = take(&mut scratch, kv_group * seen * padded);
        let rows = take(&mut scratch, group * width * padded);
        let mut work = Work::new::<V>(&mut scratch, d_head, 0);
        // All heads at once: of each position, what is read lies side by side.
        let size = seen * padded;
        let packed = Packed { heads: kv_group, d_head, stride: size };
        for j in 0..seen {
            for (part, to) in [(&self.k, &mut *keys), (&self.v, &mut *values)] {
                packed.take_apart::<V>(t, &part.row(batch * time + j)[kv_cols.clone()], 1.0, j, to);
            }
        }
        let packed = Packed { heads: group, d_head, stride: width * padded };
        // All of these queries see the keys before.
        let behind = |g: usize| &values[g * size + start.max(prefix) * padded..(g + 1) * size];
        // Where a value is not finite, each query is a tile of its own, of the keys that it sees.
        let finite = (0..kv_group).all(|g| is_finite::<V>(t, behind(g)));
        let step = if finite { width } else { 1 };
        let portions = if self.threads == 0 || !finite { 0 } else { group * time.div_ceil(width) * PORTIONS };
        let (rows_later, [q_later, kv_later]) = self.shape.task(index + self.threads, group);
        let operands = [(&self.q, q_later), (&self.k, kv_later.clone()), (&self.v, kv_later)];
        let mut ahead = Ahead::new(operands, rows_later, portions);
        for first in (start..end).step_by(step) {
            let count = step.min(end - first);
            if count < width {
                rows.fill(0.0);
            }
            for i in 0..count {
                let q = &self.q.row(batch * time + first + i)[cols.clone()];
                packed.take_apart::<V>(t, q, self.scale, i, rows);
            }
            for (g, rows) in rows.chunks_exact_mut(width * padded).enumerate() {
                let at = g / share * size;
                let [keys, values] = [&*keys, &*values].map(|all| Stored::F32(&all[at..][..size]));
                let packed = Head { keys, values, stride: padded, d_head };
                let line = (batch * heads + head + g) * time + first;
                let drop = self.mask.map(|mask| Drop { mask, line, time });
                let lse = &mut lse.row(g)[first - start..][..count];
                work.attend::<V>(t, rows, packed, (first, prefix), lse, drop, Some(&mut ahead));
            }
            for i in 0..count {
                packed.put_together::<V>(t, rows, 1.0, i, out.row(first - start + i));
            }
        }
    }
}

/// Scratch of a thread.
pub(super) fn scratch_floats(shape: Shape) -> usize {
    let rows = shape.largest_task(true, |group, time| {
        let rows = time.saturating_mul(2).saturating_mul(shape.kv_heads_of(group));
        rows.saturating_add(group.saturating_mul(MAX_QUERIES))
    });
    let padded = shape.d_head.next_multiple_of(MAX_LANES);
    padded.saturating_mul(rows).saturating_add(Work::floats(shape.d_head))
}

pub(in crate::ops) fn forward(context: &mut Context<'_, '_>, op: &AttentionForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let shape = Shape::new(&op.shape);
    let (time, width) = (shape.time, shape.width());
    let mut job = Forward {
        q: views.f32_rows("q", op.q, width)?,
        k: views.f32_rows("k", op.k, shape.kv_width())?,
        v: views.f32_rows("v", op.v, shape.kv_width())?,
        shape,
        scale: op.shape.scale as f32,
        mask: Mask::new(views, op.dropout)?,
        batch: 0,
        threads: 0,
    };
    let out = views.f32_mut("out", op.out)?;
    let lse = views.f32_mut("lse", op.lse)?;
    let each = scratch_floats(shape);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    if shape.batch * shape.heads >= MANY_HEADS {
        job.threads = threads;
        let group = shape.heads_per_task(true);
        let parts = (
            Grid::new(out, width, time, group * shape.d_head),
            Grid::new(lse, time, group, time),
            PerWorker::new(scratch, each),
        );
        context.team.for_each(parts, &job);
        return Ok(());
    }
    let sequences = out.chunks_exact_mut(time * width).zip(lse.chunks_exact_mut(shape.heads * time));
    for (batch, (out, lse)) in sequences.enumerate() {
        job.batch = batch;
        let parts = (
            Grid::new(out, width, QUERIES_PER_TASK, shape.d_head).by_columns(),
            Grid::new(lse, time, 1, QUERIES_PER_TASK),
            PerWorker::new(scratch, each),
        );
        context.team.for_each(parts, &job);
    }
    Ok(())
}
