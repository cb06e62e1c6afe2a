//! Equal to [`attention_backward`](minigpt_core::reference::attention::attention_backward).
//!
//! A task is a head of a sequence: the gradients of its keys and values are sums over its queries and stay in the
//! cache until all have been added. The weights are recomputed from `lse`, tile by tile.

use minigpt_core::op::AttentionBackward;

use super::tile::{
    ACROSS, Drop, KEYS, MAX_LANES, MAX_QUERIES, Sight, copy_scaled, dot, dropped, padded, product, queries,
    take, turn,
};
use super::{KEY, QUERY, Shape, VALUE};
use crate::arch::Vector;
use crate::arch::tile::Strided;
use crate::context::{Context, Job, whole_lines};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::gemm::Begin;
use crate::math::exp;
use crate::par::{Grid, PerWorker, Tile};

struct Backward<'s> {
    qkv: &'s [f32],
    out: &'s [f32],
    lse: &'s [f32],
    d_out: &'s [f32],
    shape: Shape,
    scale: f32,
    mask: Option<Mask>,
}

impl Job<(Grid<'_>, PerWorker<'_, f32>)> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut d_qkv, mut scratch): (Tile<'_>, &mut [f32])) {
        let Shape { time, heads, d_head } = self.shape;
        let (batch, head) = (d_qkv.rows().start / (3 * time), d_qkv.cols().start / d_head);
        let padded = padded::<V>(d_head);
        let width = queries::<V>();
        let scratch = &mut scratch;
        let [keys, values] = [(); 2].map(|()| take(scratch, time * d_head));
        let [d_k, d_v] = [(); 2].map(|()| take(scratch, time * padded));
        let [q_turned, d_out_turned, d_q_turned] = [(); 3].map(|()| take(scratch, padded * width));
        let [q, d_out] = [(); 2].map(|()| take(scratch, width * padded));
        let [weights, d_s, factors, factor_rows] = [(); 4].map(|()| take(scratch, KEYS * width));

        for (part, rows) in [(KEY, &mut *keys), (VALUE, &mut *values)] {
            for (j, row) in rows.chunks_exact_mut(d_head).enumerate() {
                row.copy_from_slice(self.shape.of(self.qkv, batch * time + j, part, head));
            }
        }
        for zeroed in [&mut *d_k, d_v, q, d_out] {
            zeroed.fill(0.0);
        }

        for first in (0..time).step_by(width) {
            let count = width.min(time - first);
            let mut lse = [0.0; MAX_QUERIES];
            let mut mean_d_p = [0.0; MAX_QUERIES];
            let line = (batch * heads + head) * time + first;
            lse[..count].copy_from_slice(&self.lse[line..][..count]);
            if count < width {
                q.fill(0.0);
                d_out.fill(0.0);
            }
            for i in 0..count {
                let row = batch * time + first + i;
                let q_row = self.shape.of(self.qkv, row, QUERY, head);
                let here = (row * heads + head) * d_head;
                let (out_row, d_out_row) = (&self.out[here..][..d_head], &self.d_out[here..][..d_head]);
                copy_scaled::<V>(t, q_row, self.scale, &mut q[i * padded..]);
                d_out[i * padded..][..d_head].copy_from_slice(d_out_row);
                mean_d_p[i] = dot::<V>(t, d_out_row, out_row);
            }
            turn::<V>(t, q, (width, padded), q_turned);
            turn::<V>(t, d_out, (width, padded), d_out_turned);
            let (lse, mean_d_p) = (lanes_of::<V>(t, &lse), lanes_of::<V>(t, &mean_d_p));
            let sight = Sight::<V>::new(t, first);
            let drop = self.mask.map(|mask| Drop { mask, line, time });
            let end = first + count;
            for from in (0..end).step_by(KEYS) {
                let count_keys = KEYS.min(end - from);
                let (k, v) = (&keys[from * d_head..], &values[from * d_head..]);
                let scores = (count_keys, d_head, width);
                product::<V>(t, Strided::rows(k, d_head), q_turned, weights, scores, Begin::Zero);
                product::<V>(t, Strided::rows(v, d_head), d_out_turned, d_s, scores, Begin::Zero);
                if let Some(drop) = &drop {
                    drop.factors::<V>(t, from, count_keys, count, factor_rows, factors);
                }
                let cut = sight.is_cut(from + count_keys);
                for j in 0..count_keys {
                    for i in 0..ACROSS {
                        let at = j * width + i * V::LANES;
                        let mut p = exp(t, V::load(t, &weights[at..]) - lse[i]);
                        let mut d_p = V::load(t, &d_s[at..]);
                        let mut weight = p;
                        if drop.is_some() {
                            let factor = V::load(t, &factors[at..]);
                            weight = dropped(t, p, factor);
                            d_p = dropped(t, d_p, factor);
                        }
                        p = p * (d_p - mean_d_p[i]);
                        if cut {
                            weight = sight.select(t, i, from + j, weight, 0.0);
                            p = sight.select(t, i, from + j, p, 0.0);
                        }
                        weight.store(&mut weights[at..]);
                        p.store(&mut d_s[at..]);
                    }
                }
                let back = (count_keys, count, padded);
                let (d_k, d_v) = (&mut d_k[from * padded..], &mut d_v[from * padded..]);
                product::<V>(t, Strided::rows(weights, width), d_out, d_v, back, Begin::Accumulate);
                product::<V>(t, Strided::rows(d_s, width), q, d_k, back, Begin::Accumulate);
                let begin = if from == 0 { Begin::Zero } else { Begin::Accumulate };
                let shape = (d_head, count_keys, width);
                product::<V>(t, Strided::transposed(k, d_head), d_s, d_q_turned, shape, begin);
            }
            // The queries themselves are done with: their rows take the gradient.
            turn::<V>(t, d_q_turned, (padded, width), q);
            for (i, row) in q.chunks_exact(padded).take(count).enumerate() {
                copy_scaled::<V>(t, &row[..d_head], self.scale, d_qkv.row(3 * (first + i) + QUERY));
            }
            q.fill(0.0);
        }
        for (part, rows) in [(KEY, d_k), (VALUE, d_v)] {
            for (j, row) in rows.chunks_exact(padded).enumerate() {
                d_qkv.row(3 * j + part).copy_from_slice(&row[..d_head]);
            }
        }
    }
}

/// One number for each query of a tile, as vectors.
#[inline(always)]
fn lanes_of<V: Vector>(t: V::Token, x: &[f32; MAX_QUERIES]) -> [V; ACROSS] {
    let mut lanes = [V::splat(t, 0.0); ACROSS];
    for i in 0..ACROSS {
        lanes[i] = V::load(t, &x[i * V::LANES..]);
    }
    lanes
}

/// Scratch of a thread.
pub(super) fn scratch_floats(time: usize, d_head: usize) -> usize {
    let padded = d_head.next_multiple_of(MAX_LANES);
    let rows = whole_lines(time.saturating_mul(d_head)).saturating_add(time.saturating_mul(padded));
    let tile = padded.saturating_mul(5).saturating_add(4 * KEYS);
    rows.saturating_mul(2).saturating_add(tile.saturating_mul(MAX_QUERIES))
}

pub(in crate::ops) fn backward(
    context: &mut Context<'_, '_>,
    op: &AttentionBackward,
) -> Result<(), CpuError> {
    let views = &mut context.views;
    let shape = Shape { time: op.time, heads: op.heads, d_head: op.d_head };
    let job = Backward {
        qkv: views.f32("qkv", op.qkv)?,
        out: views.f32("out", op.out)?,
        lse: views.f32("lse", op.lse)?,
        d_out: views.f32("d_out", op.d_out)?,
        shape,
        scale: op.scale as f32,
        mask: Mask::new(views, op.dropout)?,
    };
    let each = scratch_floats(op.time, op.d_head);
    let threads = context.team.machine().threads;
    let scratch = context.scratch.floats(each.saturating_mul(threads))?;
    let parts = (
        // A row of this matrix is the query, key or value of a position.
        Grid::new(views.f32_mut("d_qkv", op.d_qkv)?, shape.d_model(), 3 * op.time, op.d_head),
        PerWorker::new(scratch, each),
    );
    context.team.for_each(parts, &job);
    Ok(())
}
