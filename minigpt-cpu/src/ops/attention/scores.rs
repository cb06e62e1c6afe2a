//! Equal to [`attention_scores`](minigpt_core::reference::attention::attention_scores). For probes, so plain.

use minigpt_core::op::AttentionScores;

use super::tile::{score_row, softmax_row};
use super::{KEY, QUERY, Shape};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::ops::lanes::{load, store};
use crate::par::Chunks;

struct Scores<'s> {
    qkv: &'s [f32],
    shape: Shape,
    scale: f32,
    softmax: bool,
}

impl Job<Chunks<'_, f32>> for Scores<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, scores: &mut [f32]) {
        let Shape { time, heads, .. } = self.shape;
        let (batch, head) = (index / heads, index % heads);
        let stride = 3 * self.shape.d_model();
        let keys = &self.qkv[(batch * time * 3 + KEY) * self.shape.d_model() + head * self.shape.d_head..];
        for (i, row) in scores.chunks_exact_mut(time).enumerate() {
            let (seen, hidden) = row.split_at_mut(i + 1);
            let q = self.shape.of(self.qkv, batch * time + i, QUERY, head);
            score_row::<V>(t, q, keys, stride, self.scale, seen);
            if self.softmax {
                let part = V::splat(t, 1.0 / softmax_row::<V>(t, seen));
                for i in (0..seen.len()).step_by(V::LANES) {
                    store(load::<V>(t, seen, i) * part, seen, i);
                }
            }
            hidden.fill(0.0);
        }
    }
}

pub(in crate::ops) fn scores(context: &mut Context<'_, '_>, op: &AttentionScores) -> Result<(), CpuError> {
    let views = &mut context.views;
    let job = Scores {
        qkv: views.f32("qkv", op.qkv)?,
        shape: Shape { time: op.time, heads: op.heads, d_head: op.d_head },
        scale: op.scale as f32,
        softmax: op.softmax,
    };
    let parts = Chunks::new(views.f32_mut("scores", op.scores)?, op.time * op.time);
    context.team.for_each(parts, &job);
    Ok(())
}
