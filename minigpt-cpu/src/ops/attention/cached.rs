//! Equal to [`attention_cached`](minigpt_core::reference::attention::attention_cached).
//!
//! Many new positions go by tiles, as in the forward pass, and read the cache where it lies. A few go one by one: then
//! each key and value is streamed through once, which the memory bounds.

use minigpt_core::op::AttentionCached;

use super::forward::QUERIES_PER_TASK;
use super::tile::{
    Head, MAX_LANES, MAX_QUERIES, Packed, Work, is_finite, padded, queries, score_row, softmax_row, take,
};
use super::{KEY, QUERY, Shape, VALUE};
use crate::arch::Vector;
use crate::arch::tile::{Strided, multiply};
use crate::context::{Context, Job, whole_lines};
use crate::error::CpuError;
use crate::ops::lanes::store;
use crate::par::{Grid, PerWorker, Tile};

/// From so many new positions on, tiles pay: fewer would leave most of a tile empty.
const TILED: usize = 8;

/// Products that make a task of one-by-one attention, for each of which it reads eight bytes: a microsecond or two.
const TASK: usize = 1 << 13;

struct Cached<'s> {
    qkv: &'s [f32],
    keys: &'s [f32],
    values: &'s [f32],
    shape: Shape,
    scale: f32,
    past: usize,
    capacity: usize,
    /// The first sequence of this run of tasks.
    batch: usize,
}

impl<'s> Cached<'s> {
    /// The cache of a head.
    #[inline(always)]
    fn head(&self, batch: usize, head: usize) -> Head<'s> {
        let Shape { heads, d_head, .. } = self.shape;
        let size = self.capacity * d_head;
        let at = (batch * heads + head) * size;
        Head { keys: &self.keys[at..][..size], values: &self.values[at..][..size], stride: d_head, d_head }
    }
}

struct OneByOne<'s>(Cached<'s>);

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for OneByOne<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, scores): (Tile<'_>, &mut [f32])) {
        let Shape { time, d_head, .. } = self.0.shape;
        let batch = out.rows().start / time;
        for at in (0..out.cols().len()).step_by(d_head) {
            let head = (out.cols().start + at) / d_head;
            let cache = self.0.head(batch, head);
            for i in 0..time {
                let seen = self.0.past + i + 1;
                let scores = &mut scores[..seen];
                let q = self.0.shape.of(self.0.qkv, batch * time + i, QUERY, head);
                score_row::<V>(t, q, cache.keys, d_head, self.0.scale, scores);
                let part = 1.0 / softmax_row::<V>(t, scores);
                let out = &mut out.row(i)[at..][..d_head];
                mix::<V>(t, scores, cache.values, part, out);
            }
        }
    }
}

/// out = part * sum over j of `weights[j]` values_j.
#[inline(always)]
fn mix<V: Vector>(t: V::Token, weights: &[f32], values: &[f32], part: f32, out: &mut [f32]) {
    // Enough vectors side by side that additions need not wait for each other.
    const N: usize = 4;
    let (d_head, depth) = (out.len(), weights.len());
    for at in (0..d_head).step_by(N * V::LANES) {
        let width = (N * V::LANES).min(d_head - at);
        let a = Strided::rows(weights, depth);
        let [sum] = multiply::<V, 1, N>(t, a, &values[at..], d_head, 1, depth, width);
        for j in 0..N {
            if j * V::LANES < width {
                store(sum[j] * V::splat(t, part), out, at + j * V::LANES);
            }
        }
    }
}

struct Tiled<'s>(Cached<'s>);

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for Tiled<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, mut scratch): (Tile<'_>, &mut [f32])) {
        let Shape { time, d_head, .. } = self.0.shape;
        let (batch, head) = (self.0.batch, out.cols().start / d_head);
        let (start, end) = (out.rows().start, out.rows().end);
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        let rows = take(&mut scratch, width * padded);
        let mut work = Work::new::<V>(&mut scratch, d_head);
        let new = self.0.past * d_head..;
        let behind = &self.0.head(batch, head).values[new][start * d_head..end * d_head];
        let step = if is_finite::<V>(t, behind) { width } else { 1 };
        for first in (start..end).step_by(step) {
            let count = step.min(end - first);
            if count < width {
                rows.fill(0.0);
            }
            let packed = Packed { heads: 1, d_head, stride: width * padded };
            for i in 0..count {
                let q = self.0.shape.of(self.0.qkv, batch * time + first + i, QUERY, head);
                packed.take_apart::<V>(t, q, self.0.scale, i, rows);
            }
            let mut lse = [0.0; MAX_QUERIES];
            let head = self.0.head(batch, head);
            work.attend::<V>(t, rows, head, self.0.past + first, &mut lse[..count], None, None);
            for i in 0..count {
                packed.put_together::<V>(t, rows, 1.0, i, out.row(first - start + i));
            }
        }
    }
}

/// Scratch of a thread: for few new positions the scores of one, for more what a tile takes. At least as much as for fewer,
/// as a decoder asks for its longest piece.
pub(super) fn scratch_floats(op: &AttentionCached) -> usize {
    let scores = whole_lines(op.capacity);
    if op.time < TILED {
        return scores;
    }
    let rows = op.d_head.next_multiple_of(MAX_LANES).saturating_mul(MAX_QUERIES);
    rows.saturating_add(Work::floats(op.d_head)).max(scores)
}

pub(in crate::ops) fn cached(context: &mut Context<'_, '_>, op: &AttentionCached) -> Result<(), CpuError> {
    let views = &mut context.views;
    let shape = Shape { time: op.time, heads: op.heads, d_head: op.d_head };
    let qkv = views.f32("qkv", op.qkv)?;
    let keys = views.f32_mut("keys", op.keys)?;
    let values = views.f32_mut("values", op.values)?;
    let out = views.f32_mut("out", op.out)?;
    for (part, cache) in [(KEY, &mut *keys), (VALUE, &mut *values)] {
        for (head, cache) in cache.chunks_exact_mut(op.capacity * op.d_head).enumerate() {
            let (batch, head) = (head / op.heads, head % op.heads);
            let new = cache[op.past * op.d_head..].chunks_exact_mut(op.d_head).take(op.time);
            for (i, row) in new.enumerate() {
                row.copy_from_slice(shape.of(qkv, batch * op.time + i, part, head));
            }
        }
    }

    let each = scratch_floats(op);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    let cached = Cached {
        qkv,
        keys,
        values,
        shape,
        scale: op.scale as f32,
        past: op.past,
        capacity: op.capacity,
        batch: 0,
    };
    let width = shape.d_model();
    if op.time < TILED {
        let products = (op.past + op.time) * op.time * op.d_head;
        let heads = (TASK / products).clamp(1, op.heads);
        let parts = (Grid::new(out, width, op.time, heads * op.d_head), PerWorker::new(scratch, each));
        context.team.for_each(parts, &OneByOne(cached));
        return Ok(());
    }
    let mut job = Tiled(cached);
    for (batch, out) in out.chunks_exact_mut(op.time * width).enumerate() {
        job.0.batch = batch;
        let parts = (Grid::new(out, width, QUERIES_PER_TASK, op.d_head), PerWorker::new(scratch, each));
        context.team.for_each(parts, &job);
    }
    Ok(())
}
