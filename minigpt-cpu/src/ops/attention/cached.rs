//! Equal to [`attention_cached`](minigpt_core::reference::attention::attention_cached), for rows of any sequences.
//!
//! Rows of a sequence that follow each other, as in a prompt, go by tiles, as in the forward pass, and read the cache where it
//! lies. A few go one by one: then each key and value is streamed through once, which the memory bounds.
//!
//! A tile begins at a position that is a multiple of its width, whichever of its rows are there. So what a row gives does not
//! depend on where the rows of its sequence were cut into passes.

use minigpt_core::op::AttentionRows;

use super::forward::QUERIES_PER_TASK;
use super::tile::{
    Head, MAX_LANES, MAX_QUERIES, Packed, Work, is_finite, padded, queries, score_row, softmax_row, take,
};
use super::{QUERY, Shape};
use crate::arch::Vector;
use crate::arch::tile::{Strided, multiply};
use crate::context::{Context, Job, whole_lines};
use crate::error::CpuError;
use crate::ops::lanes::store;
use crate::ops::rows::{indices, live_rows};
use crate::par::{Grid, PerWorker, Tile};

/// From so many rows that follow each other on, tiles pay: fewer would leave most of a tile empty.
const TILED: usize = 8;

/// Products that make a task of one-by-one attention, for each of which it reads eight bytes: a microsecond or two.
const TASK: usize = 1 << 13;

/// Some of the rows, the first of which is number `first` of all.
#[derive(Clone, Copy)]
struct Rows<'s> {
    qkv: &'s [f32],
    keys: &'s [f32],
    values: &'s [f32],
    slots: &'s [u32],
    positions: &'s [u32],
    shape: Shape,
    scale: f32,
    capacity: usize,
    first: usize,
}

impl<'s> Rows<'s> {
    /// The cache of a head of row number `row`.
    #[inline(always)]
    fn head(&self, row: usize, head: usize) -> Head<'s> {
        let Shape { heads, d_head, .. } = self.shape;
        let size = self.capacity * d_head;
        let at = (self.slots[row] as usize * heads + head) * size;
        Head { keys: &self.keys[at..][..size], values: &self.values[at..][..size], stride: d_head, d_head }
    }

    /// How many rows of one sequence follow each other, from `row` on.
    fn run(&self, row: usize) -> usize {
        let follows = |row: usize| {
            self.slots[row + 1] == self.slots[row]
                && self.positions[row].checked_add(1) == Some(self.positions[row + 1])
        };
        1 + (row..self.slots.len() - 1).take_while(|&row| follows(row)).count()
    }
}

struct OneByOne<'s>(Rows<'s>);

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for OneByOne<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, scores): (Tile<'_>, &mut [f32])) {
        let d_head = self.0.shape.d_head;
        let row = self.0.first + out.rows().start;
        for at in (0..out.cols().len()).step_by(d_head) {
            let head = (out.cols().start + at) / d_head;
            let cache = self.0.head(row, head);
            let scores = &mut scores[..=self.0.positions[row] as usize];
            let q = self.0.shape.of(self.0.qkv, row, QUERY, head);
            score_row::<V>(t, q, cache.keys, d_head, self.0.scale, scores);
            let part = 1.0 / softmax_row::<V>(t, scores);
            mix::<V>(t, scores, cache.values, part, &mut out.row(0)[at..][..d_head]);
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

/// Rows that follow each other.
struct Tiled<'s>(Rows<'s>);

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for Tiled<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, mut scratch): (Tile<'_>, &mut [f32])) {
        let d_head = self.0.shape.d_head;
        let head = out.cols().start / d_head;
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        let packed = Packed { heads: 1, d_head, stride: width * padded };
        let rows = take(&mut scratch, width * padded);
        let mut work = Work::new::<V>(&mut scratch, d_head);
        let first_row = self.0.first + out.rows().start;
        let cache = self.0.head(first_row, head);
        let start = self.0.positions[first_row] as usize;
        let end = start + out.rows().len();
        let finite = is_finite::<V>(t, &cache.values[start * d_head..end * d_head]);
        let mut position = start;
        while position < end {
            let base = position - position % width;
            // Where a value is not finite, a tile has one query, of the keys that it sees.
            let next = if finite { end.min(base + width) } else { position + 1 };
            rows.fill(0.0);
            for at in position..next {
                let q = self.0.shape.of(self.0.qkv, first_row + at - start, QUERY, head);
                packed.take_apart::<V>(t, q, self.0.scale, at - base, rows);
            }
            let mut lse = [0.0; MAX_QUERIES];
            work.attend::<V>(t, rows, cache, base, &mut lse[..next - base], None, None);
            for at in position..next {
                packed.put_together::<V>(t, rows, 1.0, at - base, out.row(at - start));
            }
            position = next;
        }
    }
}

/// Scratch of a thread: for few rows the scores of one, for more what a tile takes, and at least as much as for fewer.
pub(super) fn scratch_floats(op: &AttentionRows) -> usize {
    let scores = whole_lines(op.capacity);
    if op.rows < TILED {
        return scores;
    }
    let rows = op.d_head.next_multiple_of(MAX_LANES).saturating_mul(MAX_QUERIES);
    rows.saturating_add(Work::floats(op.d_head)).max(scores)
}

pub(in crate::ops) fn rows(context: &mut Context<'_, '_>, op: &AttentionRows) -> Result<(), CpuError> {
    let views = &mut context.views;
    let live = live_rows(views, op.live, op.rows)?;
    let shape = Shape { time: 1, heads: op.heads, d_head: op.d_head };
    let mut rows = Rows {
        qkv: views.f32("qkv", op.qkv)?,
        keys: views.f32("keys", op.keys)?,
        values: views.f32("values", op.values)?,
        slots: indices(views, "slots", op.slots, live, op.slot_count)?,
        positions: indices(views, "positions", op.positions, live, op.capacity)?,
        shape,
        scale: op.scale as f32,
        capacity: op.capacity,
        first: 0,
    };
    let width = shape.d_model();
    let mut out = views.f32_mut("out", op.out.first(live * width))?;
    // Without positions no row is live, however large the capacity.
    if op.keys.len == 0 {
        return Ok(());
    }
    let each = scratch_floats(op);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    while rows.first < live {
        let run = rows.run(rows.first);
        if run >= TILED {
            let (now, rest) = out.split_at_mut(run * width);
            let parts =
                (Grid::new(now, width, QUERIES_PER_TASK, op.d_head), PerWorker::new(&mut *scratch, each));
            context.team.for_each(parts, &Tiled(rows));
            (out, rows.first) = (rest, rows.first + run);
            continue;
        }
        // All short runs up to the next long one.
        let (mut end, mut longest) = (rows.first, 0);
        while end < live {
            let run = rows.run(end);
            if run >= TILED {
                break;
            }
            end += run;
            longest = longest.max(rows.positions[end - 1] as usize + 1);
        }
        let (now, rest) = out.split_at_mut((end - rows.first) * width);
        let heads = (TASK / (longest * op.d_head)).clamp(1, op.heads);
        let parts = (Grid::new(now, width, 1, heads * op.d_head), PerWorker::new(&mut *scratch, each));
        context.team.for_each(parts, &OneByOne(rows));
        (out, rows.first) = (rest, end);
    }
    Ok(())
}
