//! Equal to [`attention_cached`](minigpt_core::reference::attention::attention_cached), for rows of any sequences.
//!
//! Rows of a sequence that follow each other, as in a prompt, go by tiles, as in the forward pass, and read the cache where it
//! lies. A few go one by one: then each key and value is streamed through once, which the memory bounds. Heads of queries that
//! share a head of keys and values take it a few positions at a time, so that it comes from memory once for all of them.
//!
//! A tile begins at a position that is a multiple of its width, whichever of its rows are there; or all of its rows see the
//! same positions, and then none of them depends on its place. So what a row gives does not depend on where the rows of its
//! sequence were cut into passes.

use minigpt_core::Dtype;
use minigpt_core::op::AttentionRows;

use super::forward::QUERIES_PER_TASK;
use super::tile::{
    Head, KEYS, MAX_LANES, MAX_QUERIES, Packed, Work, padded, queries, score_row, softmax_row, take,
};
use crate::arch::Vector;
use crate::arch::tile::{Strided, multiply_onto};
use crate::context::{Context, Job, whole_lines};
use crate::error::CpuError;
use crate::gemm::Begin;
use crate::ops::cache::Stored;
use crate::ops::lanes::{load, store};
use crate::ops::rows::{indices, live_rows};
use crate::ops::weight::{Bf16, F16, Format};
use crate::par::{Grid, PerWorker, Tile};

/// From so many rows that follow each other on, tiles pay: fewer would leave most of a tile empty.
const TILED: usize = 8;

/// Products that make a task of one-by-one attention, for each of which it reads eight bytes: a microsecond or two.
const TASK: usize = 1 << 13;

/// With so many tasks, heads of queries that share one of keys are not parted for more.
const FEW_TASKS: usize = 4;

/// The most heads of queries that share one reading of the cache: there is scratch for the scores of so many.
const TOGETHER: usize = 8;

/// Numbers of keys or values that are taken at a time, where they are widened or shared: they stay in the first cache.
const BLOCK: usize = 1 << 10;

/// Some of the rows, the first of which is number `first` of all.
#[derive(Clone, Copy)]
struct Rows<'s> {
    q: &'s [f32],
    /// How far the rows of `q` are apart.
    stride: usize,
    keys: Stored<'s>,
    values: Stored<'s>,
    slots: &'s [u32],
    last: &'s [u32],
    d_head: usize,
    kv_heads: usize,
    /// How many heads of queries in a row share a head of keys and values.
    share: usize,
    scale: f32,
    capacity: usize,
    first: usize,
}

impl<'s> Rows<'s> {
    /// The query of `head` in row number `row`.
    #[inline(always)]
    fn query(&self, row: usize, head: usize) -> &'s [f32] {
        &self.q[row * self.stride + head * self.d_head..][..self.d_head]
    }

    /// The cache of a head of keys and values for row number `row`.
    #[inline(always)]
    fn head(&self, row: usize, kv_head: usize) -> Head<'s> {
        let d_head = self.d_head;
        let size = self.capacity * d_head;
        let at = (self.slots[row] as usize * self.kv_heads + kv_head) * size;
        let [keys, values] = [self.keys, self.values].map(|all| all.slice(at, size));
        Head { keys, values, stride: d_head, d_head }
    }

    /// How many rows of one sequence follow each other, from `row` on: all see the same positions, and then the other result
    /// is true, or each one more than the row before.
    fn run(&self, row: usize) -> (usize, bool) {
        let (slots, last) = (&self.slots[row..], &self.last[row..]);
        let level = slots.len() > 1 && slots[1] == slots[0] && last[1] == last[0];
        let follows = |row: &usize| {
            let before = row - 1;
            let next = if level { Some(last[before]) } else { last[before].checked_add(1) };
            slots[*row] == slots[before] && next == Some(last[*row])
        };
        (1 + (1..slots.len()).take_while(follows).count(), level)
    }

    /// How many heads of queries are a task of one-by-one attention, at least `least` of `rows` rows: all that share a head of
    /// keys and values, those of several such heads, or an equal part of them where there would be few tasks.
    fn heads_per_task(&self, least: usize, rows: usize) -> usize {
        let share = self.share;
        if least >= share {
            return least - least % share;
        }
        let parts = || (least..=share).filter(|&heads| share.is_multiple_of(heads));
        let enough = |&heads: &usize| rows * self.kv_heads * (share / heads) >= FEW_TASKS;
        parts().rev().find(enough).or_else(|| parts().next()).unwrap_or(share)
    }
}

/// How many positions of heads of D are taken at a time.
fn positions(d_head: usize) -> usize {
    (BLOCK / d_head).max(1)
}

struct OneByOne<'s>(Rows<'s>);

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for OneByOne<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, scratch): (Tile<'_>, &mut [f32])) {
        let Rows { d_head, share, capacity, first, .. } = self.0;
        let row = first + out.rows().start;
        let start = out.cols().start / d_head;
        let end = start + out.cols().len() / d_head;
        let line = whole_lines(capacity);
        let (mut head, mut kv_head) = (start, start / share);
        while head < end {
            let shared = (kv_head + 1) * share;
            let count = TOGETHER.min(end.min(shared) - head);
            let out = &mut out.row(0)[(head - start) * d_head..][..count * d_head];
            let (scores, widened) = scratch.split_at_mut(count * line);
            self.heads::<V>(t, row, (head, kv_head, count), (scores, line), widened, out);
            head += count;
            kv_head += usize::from(head == shared);
        }
    }
}

impl OneByOne<'_> {
    /// Some heads of queries in a row that share a head of keys and values: each has a line of `scores`.
    // Without iterators over chunks, or by steps, each of which begins with a division.
    #[inline(always)]
    fn heads<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        (head, kv_head, count): (usize, usize, usize),
        (scores, line): (&mut [f32], usize),
        widened: &mut [f32],
        out: &mut [f32],
    ) {
        let d_head = self.0.d_head;
        let seen = self.0.last[row] as usize + 1;
        let cache = self.0.head(row, kv_head);
        // With no other head to share the work of widening, it is done in registers: by a kernel for each format, which takes
        // more room than it is worth where vectors are short.
        if count == 1 && V::LANES > 4 {
            let (q, scores) = (self.0.query(row, head), &mut scores[..seen]);
            match (cache.keys, cache.values) {
                (Stored::F16(k), Stored::F16(v)) => {
                    return one_in_registers::<V, F16>(t, q, k, v, self.0.scale, scores, out);
                }
                (Stored::Bf16(k), Stored::Bf16(v)) => {
                    return one_in_registers::<V, Bf16>(t, q, k, v, self.0.scale, scores, out);
                }
                _ => {}
            }
        }
        // A head that shares with none goes through what is stored as f32 in one go.
        let alone = count == 1 && matches!(cache.keys, Stored::F32(_));
        let block = if alone { seen } else { positions(d_head) };
        let mut from = 0;
        while from < seen {
            let there = block.min(seen - from);
            let keys = cache.keys.read::<V>(t, from * d_head, there * d_head, widened);
            for g in 0..count {
                let q = self.0.query(row, head + g);
                let key = |j: usize| &keys[j * d_head..][..q.len()];
                score_row::<V>(t, q, key, self.0.scale, &mut scores[g * line + from..][..there]);
            }
            from += there;
        }
        let mut parts = [0.0; TOGETHER];
        for g in 0..count {
            parts[g] = 1.0 / softmax_row::<V>(t, &mut scores[g * line..][..seen]);
        }
        from = 0;
        while from < seen {
            let there = block.min(seen - from);
            let values = cache.values.read::<V>(t, from * d_head, there * d_head, widened);
            for g in 0..count {
                let begin = if from == 0 { Begin::Zero } else { Begin::Accumulate };
                let part = if from + there == seen { parts[g] } else { 1.0 };
                let out = &mut out[g * d_head..][..d_head];
                mix::<V>(t, &scores[g * line + from..][..there], values, begin, part, out);
            }
            from += there;
        }
    }
}

/// out = part * (sum over j of `weights[j]` values_j), or with that added to what is there.
#[inline(always)]
fn mix<V: Vector>(t: V::Token, weights: &[f32], values: &[f32], begin: Begin, part: f32, out: &mut [f32]) {
    // Enough vectors side by side that additions need not wait for each other.
    const N: usize = 4;
    let (d_head, depth) = (out.len(), weights.len());
    for at in (0..d_head).step_by(N * V::LANES) {
        let width = (N * V::LANES).min(d_head - at);
        let mut sum = [V::splat(t, 0.0); N];
        if begin == Begin::Accumulate {
            for j in 0..N {
                if j * V::LANES < width {
                    sum[j] = load(t, out, at + j * V::LANES);
                }
            }
        }
        let a = Strided::rows(weights, depth);
        let [sum] = multiply_onto::<V, 1, N>(t, [sum], a, &values[at..], d_head, 1, depth, width);
        for j in 0..N {
            if j * V::LANES < width {
                store(sum[j] * V::splat(t, part), out, at + j * V::LANES);
            }
        }
    }
}

/// Attention of one query over keys and values in fewer bits, as many as it has scores. Gives the bits that f32 gives.
#[inline(always)]
fn one_in_registers<V: Vector, W: Format>(
    t: V::Token,
    q: &[f32],
    keys: &[W::Unit],
    values: &[W::Unit],
    scale: f32,
    scores: &mut [f32],
    out: &mut [f32],
) {
    const N: usize = 4;
    let d_head = q.len();
    let whole = d_head - d_head % V::LANES;
    for (j, score) in scores.iter_mut().enumerate() {
        let key = &keys[j * d_head..][..d_head];
        let mut sum = V::splat(t, 0.0);
        for k in (0..whole).step_by(V::LANES) {
            sum = V::load(t, &q[k..]).mul_add(W::load::<V>(t, key, k), sum);
        }
        if whole < d_head {
            sum = V::load_partial(t, &q[whole..]).mul_add(W::load_rest::<V>(t, key, whole), sum);
        }
        *score = scale * sum.sum();
    }
    let part = V::splat(t, 1.0 / softmax_row::<V>(t, scores));
    let rows = || scores.iter().enumerate().map(|(j, &weight)| (V::splat(t, weight), j * d_head));
    let panels = whole - whole % (N * V::LANES);
    for at in (0..panels).step_by(N * V::LANES) {
        let mut sum = [V::splat(t, 0.0); N];
        for (weight, row) in rows() {
            let row = &values[row + at..][..N * V::LANES];
            for n in 0..N {
                sum[n] = weight.mul_add(W::load::<V>(t, row, n * V::LANES), sum[n]);
            }
        }
        for n in 0..N {
            (sum[n] * part).store(&mut out[at + n * V::LANES..]);
        }
    }
    for at in (panels..d_head).step_by(V::LANES) {
        let mut sum = V::splat(t, 0.0);
        for (weight, row) in rows() {
            let row = &values[row..][..d_head];
            let value = if at < whole { W::load::<V>(t, row, at) } else { W::load_rest::<V>(t, row, at) };
            sum = weight.mul_add(value, sum);
        }
        store(sum * part, out, at);
    }
}

/// Rows that follow each other.
struct Tiled<'s> {
    rows: Rows<'s>,
    /// Whether all see the same positions, and not each one more than the row before.
    level: bool,
}

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for Tiled<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut out, mut scratch): (Tile<'_>, &mut [f32])) {
        let d_head = self.rows.d_head;
        let head = out.cols().start / d_head;
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        let packed = Packed { heads: 1, d_head, stride: width * padded };
        let tile = take(&mut scratch, width * padded);
        let first_row = self.rows.first + out.rows().start;
        let cache = self.rows.head(first_row, head / self.rows.share);
        let mut work = Work::new::<V>(&mut scratch, d_head, widened(cache.keys, d_head));
        let start = self.rows.last[first_row] as usize;
        let rows = out.rows().len();
        // All of them see all values, or those before.
        let finite = self.level || work.is_finite::<V>(t, cache, start, rows);
        let mut row = 0;
        while row < rows {
            // The tile's first query, how many queries of it are not there, and how many are.
            let (base, skip, count, prefix) = if self.level {
                let seen = start + 1;
                // Queries that see the same keys can stand at any positions among these.
                let count = width.min(rows - row).min(seen);
                (seen - count, 0, count, seen)
            } else {
                let skip = (start + row) % width;
                // Where a value is not finite, a tile has one query, of the keys that it sees.
                let count = if finite { (width - skip).min(rows - row) } else { 1 };
                (start + row - skip, skip, count, 0)
            };
            tile.fill(0.0);
            for i in 0..count {
                let q = self.rows.query(first_row + row + i, head);
                packed.take_apart::<V>(t, q, self.rows.scale, skip + i, tile);
            }
            let mut lse = [0.0; MAX_QUERIES];
            work.attend::<V>(t, tile, cache, (base, prefix), &mut lse[..skip + count], None, None);
            for i in 0..count {
                packed.put_together::<V>(t, tile, 1.0, skip + i, out.row(row + i));
            }
            row += count;
        }
    }
}

/// How many numbers of a tile of keys or values are widened.
fn widened(stored: Stored<'_>, d_head: usize) -> usize {
    if matches!(stored, Stored::F32(_)) { 0 } else { KEYS * d_head }
}

/// Scratch of a thread: for few rows the scores of the heads that share a reading, for more what a tile takes, and at least as
/// much as for fewer.
pub(super) fn scratch_floats(op: &AttentionRows) -> usize {
    let share = op.heads.checked_div(op.kv_heads).unwrap_or(1);
    let widened = |positions: usize| match op.keys.dtype {
        Dtype::F32 => 0,
        _ => positions.saturating_mul(op.d_head),
    };
    let scores = whole_lines(op.capacity).saturating_mul(share.clamp(1, TOGETHER));
    let few = scores.saturating_add(widened(positions(op.d_head)));
    if op.rows < TILED {
        return whole_lines(few);
    }
    let rows = op.d_head.next_multiple_of(MAX_LANES).saturating_mul(MAX_QUERIES);
    rows.saturating_add(Work::floats(op.d_head)).saturating_add(widened(KEYS)).max(whole_lines(few))
}

pub(in crate::ops) fn rows(context: &mut Context<'_, '_>, op: &AttentionRows) -> Result<(), CpuError> {
    let views = &mut context.views;
    let live = live_rows(views, op.live, op.rows)?;
    let width = op.heads * op.d_head;
    let mut rows = Rows {
        q: views.f32("q", op.q.first_rows(live, width).span)?,
        stride: op.q.stride,
        keys: Stored::new(views, "keys", op.keys)?,
        values: Stored::new(views, "values", op.values)?,
        slots: indices(views, "slots", op.slots, live, op.slot_count)?,
        last: indices(views, "last", op.last, live, op.capacity)?,
        d_head: op.d_head,
        kv_heads: op.kv_heads,
        share: op.heads / op.kv_heads.max(1),
        scale: op.scale as f32,
        capacity: op.capacity,
        first: 0,
    };
    let mut out = views.f32_mut("out", op.out.first(live * width))?;
    // Without positions no row is live, however large the capacity.
    if op.keys.len == 0 {
        return Ok(());
    }
    let each = scratch_floats(op);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    while rows.first < live {
        let (run, level) = rows.run(rows.first);
        if run >= TILED {
            let (now, rest) = out.split_at_mut(run * width);
            let parts =
                (Grid::new(now, width, QUERIES_PER_TASK, op.d_head), PerWorker::new(&mut *scratch, each));
            context.team.for_each(parts, &Tiled { rows, level });
            (out, rows.first) = (rest, rows.first + run);
            continue;
        }
        // All short runs up to the next long one.
        let (mut end, mut longest) = (rows.first, 0);
        while end < live {
            let (run, _) = rows.run(end);
            if run >= TILED {
                break;
            }
            end += run;
            longest = longest.max(rows.last[end - 1] as usize + 1);
        }
        let (now, rest) = out.split_at_mut((end - rows.first) * width);
        let least = (TASK / (longest * op.d_head)).clamp(1, op.heads);
        let heads = rows.heads_per_task(least, end - rows.first);
        let parts = (Grid::new(now, width, 1, heads * op.d_head), PerWorker::new(&mut *scratch, each));
        context.team.for_each(parts, &OneByOne(rows));
        (out, rows.first) = (rest, end);
    }
    Ok(())
}
