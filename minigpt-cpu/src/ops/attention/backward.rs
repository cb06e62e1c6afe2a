//! Equal to [`attention_backward`](minigpt_core::reference::attention::attention_backward).
//!
//! A task is some neighbouring heads of a sequence: the gradients of their keys and values are sums over the queries
//! and stay in the cache until all have been added. The weights are recomputed from `lse`, tile by tile.

use minigpt_core::op::AttentionBackward;

use super::Shape;
use super::ahead::Ahead;
use super::tile::{
    Drop, KEYS, MAX_LANES, MAX_QUERIES, Packed, Sight, dot, dropped, padded, queries, take, turn,
};
use crate::arch::Vector;
use crate::arch::tile::Strided;
use crate::context::{Context, Job};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::gemm::Begin;
use crate::math::exp;
use crate::par::{Grid, PerWorker, Rows, Tile};

struct Backward<'s> {
    q: Rows<'s>,
    k: Rows<'s>,
    v: Rows<'s>,
    out: Rows<'s>,
    lse: &'s [f32],
    d_out: Rows<'s>,
    shape: Shape,
    scale: f32,
    mask: Option<Mask>,
    threads: usize,
}

/// Of the gradients of queries, keys and values.
type Results<'s> = (Grid<'s>, Grid<'s>, Grid<'s>, PerWorker<'s, f32>);

impl Job<Results<'_>> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (mut d_q, mut d_k, mut d_v, mut scratch): (Tile<'_>, Tile<'_>, Tile<'_>, &mut [f32]),
    ) {
        let Shape { time, heads, d_head, share, prefix, .. } = self.shape;
        let (batch, head) = (d_q.rows().start / time, d_q.cols().start / d_head);
        let group = d_q.cols().len() / d_head;
        let kv_group = group / share;
        let [cols, kv_cols] = self.shape.cols(head, group);
        let padded = padded::<V>(d_head);
        let width = queries::<V>();
        let scratch = &mut scratch;
        let size = time * padded;
        let [keys, values, d_keys, d_values] = [(); 4].map(|()| take(scratch, kv_group * size));
        let [q_rows, d_out_rows] = [(); 2].map(|()| take(scratch, group * width * padded));
        let means = take(scratch, group * width);
        let mut work = Work::new::<V>(scratch, d_head);
        // Whichever thread takes that task: it is the likeliest for this one.
        let portions = group * time.div_ceil(width);
        let (rows_later, [q_later, kv_later]) = self.shape.task(index + self.threads, group);
        let of_q = |rows| (rows, q_later.clone());
        let of_kv = |rows| (rows, kv_later.clone());
        let operands = [of_q(&self.q), of_kv(&self.k), of_kv(&self.v), of_q(&self.out), of_q(&self.d_out)];
        let mut ahead = Ahead::new(operands, rows_later, portions * PORTIONS);

        // All heads at once: of each position, what is read lies side by side.
        let packed = Packed { heads: kv_group, d_head, stride: size };
        for j in 0..time {
            for (part, to) in [(&self.k, &mut *keys), (&self.v, &mut *values)] {
                packed.take_apart::<V>(t, &part.row(batch * time + j)[kv_cols.clone()], 1.0, j, to);
            }
        }
        d_keys.fill(0.0);
        d_values.fill(0.0);

        let rows = Packed { heads: group, d_head, stride: width * padded };
        for first in (0..time).step_by(width) {
            let count = width.min(time - first);
            if count < width {
                q_rows.fill(0.0);
                d_out_rows.fill(0.0);
                means.fill(0.0);
            }
            for i in 0..count {
                let row = batch * time + first + i;
                let [q, out, d_out] =
                    [&self.q, &self.out, &self.d_out].map(|rows| &rows.row(row)[cols.clone()]);
                rows.take_apart::<V>(t, q, self.scale, i, q_rows);
                rows.take_apart::<V>(t, d_out, 1.0, i, d_out_rows);
                for g in 0..group {
                    let head = g * d_head..(g + 1) * d_head;
                    means[g * width + i] = dot::<V>(t, &d_out[head.clone()], &out[head]);
                }
            }
            // What several heads of queries give to one of keys and values is added up in their order, tile by tile.
            for g in 0..group {
                let (at, size_of_rows) = (g / share * size, width * padded);
                let (keys, values) = (&keys[at..][..size], &values[at..][..size]);
                let (d_keys, d_values) = (&mut d_keys[at..][..size], &mut d_values[at..][..size]);
                let q = &mut q_rows[g * size_of_rows..][..size_of_rows];
                let d_out = &d_out_rows[g * size_of_rows..][..size_of_rows];
                let line = (batch * heads + head + g) * time + first;
                let mut lse = [0.0; MAX_QUERIES];
                lse[..count].copy_from_slice(&self.lse[line..][..count]);
                let drop = self.mask.map(|mask| Drop { mask, line, time });
                let mean = &means[g * width..][..width];
                work.queries::<V>(
                    t,
                    (keys, values),
                    (q, d_out),
                    (&lse, mean),
                    (d_keys, d_values),
                    (first, count, prefix),
                    d_head,
                    drop,
                    &mut ahead,
                );
            }
            for i in 0..count {
                rows.put_together::<V>(t, q_rows, self.scale, i, d_q.row(first + i));
            }
        }
        for j in 0..time {
            packed.put_together::<V>(t, d_keys, 1.0, j, d_k.row(j));
            packed.put_together::<V>(t, d_values, 1.0, j, d_v.row(j));
        }
    }
}

/// Portions that a later task's rows are fetched in by each tile of queries of a head: its products with one tile of
/// keys. More tiles of keys find the work done.
const PORTIONS: usize = 5;

/// Scratch for a tile of queries of a head. P is D, padded to whole vectors.
struct Work<'s> {
    /// (P, queries).
    q_turned: &'s mut [f32],
    /// (P, queries).
    d_out_turned: &'s mut [f32],
    /// (P, queries).
    d_q_turned: &'s mut [f32],
    /// (keys, queries).
    weights: &'s mut [f32],
    /// (keys, queries).
    d_s: &'s mut [f32],
    /// (keys, queries).
    factors: &'s mut [f32],
    /// (queries, keys).
    factor_rows: &'s mut [f32],
}

impl<'s> Work<'s> {
    #[inline(always)]
    fn new<V: Vector>(scratch: &mut &'s mut [f32], d_head: usize) -> Self {
        let (head, keys) = (padded::<V>(d_head) * queries::<V>(), KEYS * queries::<V>());
        Work {
            q_turned: take(scratch, head),
            d_out_turned: take(scratch, head),
            d_q_turned: take(scratch, head),
            weights: take(scratch, keys),
            d_s: take(scratch, keys),
            factors: take(scratch, keys),
            factor_rows: take(scratch, keys),
        }
    }

    /// What it takes of scratch.
    fn floats(d_head: usize) -> usize {
        let head = d_head.next_multiple_of(MAX_LANES).saturating_mul(3);
        head.saturating_add(4 * KEYS).saturating_mul(MAX_QUERIES)
    }

    /// Adds what `count` queries, of which the first is at `first`, give to the gradients of the keys and values
    /// that they see, the first `prefix` among them; puts the gradient of the queries, to be scaled, in their place. Rows
    /// are P long.
    #[inline(always)]
    fn queries<V: Vector>(
        &mut self,
        t: V::Token,
        (keys, values): (&[f32], &[f32]),
        (q, d_out): (&mut [f32], &[f32]),
        (lse, mean_d_p): (&[f32], &[f32]),
        (d_keys, d_values): (&mut [f32], &mut [f32]),
        (first, count, prefix): (usize, usize, usize),
        d_head: usize,
        drop: Option<Drop>,
        ahead: &mut Ahead<'_, 5>,
    ) {
        let (padded, width) = (padded::<V>(d_head), queries::<V>());
        turn::<V>(t, q, (width, padded), self.q_turned);
        turn::<V>(t, d_out, (width, padded), self.d_out_turned);
        let sight = Sight::<V>::new(t, first, count, prefix);
        let end = sight.end;
        for from in (0..end).step_by(KEYS) {
            let count_keys = KEYS.min(end - from);
            let (k, v) = (&keys[from * padded..], &values[from * padded..]);
            let shape = (from, count_keys, d_head);
            ahead.fetch::<V>(t);
            sight.scores(t, Strided::rows(k, padded), self.q_turned, self.weights, shape);
            ahead.fetch::<V>(t);
            sight.scores(t, Strided::rows(v, padded), self.d_out_turned, self.d_s, shape);
            if let Some(drop) = &drop {
                drop.factors::<V>(t, from, count_keys, count, self.factor_rows, self.factors);
            }
            for i in 0..sight.across {
                let clear = sight.clear(i, from, count_keys);
                let lse = V::load(t, &lse[i * V::LANES..]);
                let mean_d_p = V::load(t, &mean_d_p[i * V::LANES..]);
                let rows = self.weights.chunks_exact_mut(width).zip(self.d_s.chunks_exact_mut(width));
                for (j, (weights, d_s)) in rows.enumerate().take(sight.seen(i, from, count_keys)) {
                    let (weights, d_s) = (&mut weights[i * V::LANES..], &mut d_s[i * V::LANES..]);
                    let mut p = exp(t, V::load(t, weights) - lse);
                    let mut d_p = V::load(t, d_s);
                    let mut weight = p;
                    if drop.is_some() {
                        let factor = V::load(t, &self.factors[j * width + i * V::LANES..]);
                        weight = dropped(t, p, factor);
                        d_p = dropped(t, d_p, factor);
                    }
                    p = p * (d_p - mean_d_p);
                    if j >= clear {
                        weight = sight.select(t, i, from + j, weight, 0.0);
                        p = sight.select(t, i, from + j, p, 0.0);
                    }
                    weight.store(weights);
                    p.store(d_s);
                }
            }
            let (d_k, d_v) = (&mut d_keys[from * padded..], &mut d_values[from * padded..]);
            ahead.fetch::<V>(t);
            sight.back(t, self.weights, d_out, d_v, (from, count_keys, count, padded));
            ahead.fetch::<V>(t);
            sight.back(t, self.d_s, q, d_k, (from, count_keys, count, padded));
            ahead.fetch::<V>(t);
            let begin = if from == 0 { Begin::Zero } else { Begin::Accumulate };
            sight.mix(t, Strided::transposed(k, padded), self.d_s, self.d_q_turned, shape, begin);
        }
        turn::<V>(t, self.d_q_turned, (padded, width), q);
    }
}

/// Scratch of a thread.
pub(super) fn scratch_floats(shape: Shape) -> usize {
    let padded = shape.d_head.next_multiple_of(MAX_LANES);
    let task = shape.largest_task(false, |group, time| {
        let kv = shape.kv_heads_of(group).saturating_mul(padded.saturating_mul(time.saturating_mul(4)));
        let rows = padded.saturating_mul(2 * MAX_QUERIES).saturating_add(MAX_QUERIES);
        kv.saturating_add(group.saturating_mul(rows))
    });
    task.saturating_add(Work::floats(shape.d_head))
}

pub(in crate::ops) fn backward(
    context: &mut Context<'_, '_>,
    op: &AttentionBackward,
) -> Result<(), CpuError> {
    let views = &mut context.views;
    let shape = Shape::new(&op.shape);
    let (width, kv_width) = (shape.width(), shape.kv_width());
    let threads = context.team.machine().threads;
    let job = Backward {
        q: views.f32_rows("q", op.q, width)?,
        k: views.f32_rows("k", op.k, kv_width)?,
        v: views.f32_rows("v", op.v, kv_width)?,
        out: views.f32_rows("out", op.out.rows(width), width)?,
        lse: views.f32("lse", op.lse)?,
        d_out: views.f32_rows("d_out", op.d_out.rows(width), width)?,
        shape,
        scale: op.shape.scale as f32,
        mask: Mask::new(views, op.dropout)?,
        threads,
    };
    let group = shape.heads_per_task(false);
    let kv_cols = shape.kv_heads_of(group) * shape.d_head;
    let each = scratch_floats(shape);
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    let parts = (
        Grid::of_rows(views.f32_rows_mut("d_q", op.d_q, width)?, shape.time, group * shape.d_head),
        Grid::of_rows(views.f32_rows_mut("d_k", op.d_k, kv_width)?, shape.time, kv_cols),
        Grid::of_rows(views.f32_rows_mut("d_v", op.d_v, kv_width)?, shape.time, kv_cols),
        PerWorker::new(scratch, each),
    );
    context.team.for_each(parts, &job);
    Ok(())
}
