//! Equal to [`attention_scores`](minigpt_core::reference::attention::attention_scores). For probes, so plain.

use minigpt_core::op::AttentionScores;

use super::Shape;
use super::tile::{score_row, softmax_row};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::ops::lanes::{load, store};
use crate::par::{Chunks, Rows};

struct Scores<'s> {
    q: Rows<'s>,
    k: Rows<'s>,
    shape: Shape,
    scale: f32,
    softmax: bool,
}

impl<'s> Job<Chunks<'_, f32>> for Scores<'s> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, scores: &mut [f32]) {
        let Shape { time, heads, d_head, share, prefix, .. } = self.shape;
        let (first, head) = (index / heads * time, index % heads);
        // Heads without a dimension have no rows either.
        let part = |rows: &Rows<'s>, row: usize, head: usize| match d_head {
            0 => &[][..],
            _ => &rows.row(first + row)[head * d_head..][..d_head],
        };
        for (i, row) in scores.chunks_exact_mut(time).enumerate() {
            let (seen, hidden) = row.split_at_mut(prefix.max(i + 1));
            let key = |j| part(&self.k, j, head / share);
            score_row::<V>(t, part(&self.q, i, head), key, self.scale, seen);
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
    let shape = Shape::new(&op.shape);
    let job = Scores {
        q: views.f32_rows("q", op.q, shape.width())?,
        k: views.f32_rows("k", op.k, shape.kv_width())?,
        shape,
        scale: op.shape.scale as f32,
        softmax: op.softmax,
    };
    let parts = Chunks::new(views.f32_mut("scores", op.scores)?, shape.time * shape.time);
    context.team.for_each(parts, &job);
    Ok(())
}
