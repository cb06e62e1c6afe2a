//! Equal to [`attention_forward`](minigpt_core::reference::attention::attention_forward).
//!
//! A task is some neighbouring heads of a sequence; where those are few, it is a run of queries of one, which packs
//! the keys and values that it sees.

use minigpt_core::op::AttentionForward;

use super::ahead::Ahead;
use super::tile::{Drop, Head, MAX_LANES, MAX_QUERIES, Packed, Work, is_finite, padded, queries, take};
use super::{KEY, QUERY, Shape, VALUE};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::par::{Grid, PerWorker, Tile};

/// With so many heads in a batch, a head is a task.
const MANY_HEADS: usize = 32;

/// Queries in a task, where a head is cut up: whole tiles of any vector.
pub(super) const QUERIES_PER_TASK: usize = 64;

/// Portions that a later task's rows are fetched in by each tile of queries of a head: its products with one tile of
/// keys. More tiles of keys find the work done.
const PORTIONS: usize = 2;

struct Forward<'s> {
    qkv: &'s [f32],
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
        let Shape { time, heads, d_head } = self.shape;
        let (batch, head) = (self.batch + out.rows().start / time, out.cols().start / d_head);
        let group = out.cols().len() / d_head;
        let start = out.rows().start % time;
        let end = start + out.rows().len();
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        let keys = take(&mut scratch, group * end * padded);
        let values = take(&mut scratch, group * end * padded);
        let rows = take(&mut scratch, group * width * padded);
        let mut work = Work::new::<V>(&mut scratch, d_head);
        // All heads at once: of each position, what is read lies side by side.
        let size = end * padded;
        let packed = Packed { heads: group, d_head, stride: size };
        for j in 0..end {
            for (part, to) in [(KEY, &mut *keys), (VALUE, &mut *values)] {
                let row = self.shape.group(self.qkv, batch * time + j, part, head, group);
                packed.take_apart::<V>(t, row, 1.0, j, to);
            }
        }
        let packed = Packed { stride: width * padded, ..packed };
        let behind = |g: usize| &values[g * size + start * padded..(g + 1) * size];
        // Where a value is not finite, each query is a tile of its own, of the keys that it sees.
        let finite = (0..group).all(|g| is_finite::<V>(t, behind(g)));
        let step = if finite { width } else { 1 };
        let portions = if self.threads == 0 || !finite { 0 } else { group * time.div_ceil(width) * PORTIONS };
        let operands = (self.qkv, [&[][..]; 2]);
        let mut ahead = Ahead::new(self.shape, operands, index + self.threads, group, portions);
        for first in (start..end).step_by(step) {
            let count = step.min(end - first);
            if count < width {
                rows.fill(0.0);
            }
            for i in 0..count {
                let q = self.shape.group(self.qkv, batch * time + first + i, QUERY, head, group);
                packed.take_apart::<V>(t, q, self.scale, i, rows);
            }
            for (g, rows) in rows.chunks_exact_mut(width * padded).enumerate() {
                let (keys, values) = (&keys[g * size..][..size], &values[g * size..][..size]);
                let packed = Head { keys, values, stride: padded, d_head };
                let line = (batch * heads + head + g) * time + first;
                let drop = self.mask.map(|mask| Drop { mask, line, time });
                let lse = &mut lse.row(g)[first - start..][..count];
                work.attend::<V>(t, rows, packed, first, lse, drop, Some(&mut ahead));
            }
            for i in 0..count {
                packed.put_together::<V>(t, rows, 1.0, i, out.row(first - start + i));
            }
        }
    }
}

/// Scratch of a thread, for a task of `group` heads.
pub(super) fn scratch_floats(time: usize, group: usize, d_head: usize) -> usize {
    let padded = d_head.next_multiple_of(MAX_LANES);
    let rows = time.saturating_mul(2).saturating_add(MAX_QUERIES);
    group.saturating_mul(padded).saturating_mul(rows).saturating_add(Work::floats(d_head))
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
        threads: 0,
    };
    let out = views.f32_mut("out", op.out)?;
    let lse = views.f32_mut("lse", op.lse)?;
    let group = shape.heads_per_task(op.batch);
    let each = scratch_floats(op.time, group, op.d_head);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    let (time, width) = (op.time, shape.d_model());
    if op.batch * op.heads >= MANY_HEADS {
        job.threads = threads;
        let parts = (
            Grid::new(out, width, time, group * op.d_head),
            Grid::new(lse, time, group, time),
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
