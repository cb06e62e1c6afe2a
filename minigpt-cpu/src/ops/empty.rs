//! Ops of inference of which a dimension is 0: what little there is to do, so that kernels need not think of it.

use minigpt_core::Op;
use minigpt_core::op::{AttentionForward, LayerNormForward, LayerNormRows, LinearRows};

use super::rows::live_rows;
use crate::error::CpuError;
use crate::par::Views;

/// Does it; says whether nothing else is left to do of `op`.
pub(super) fn run(views: &mut Views<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    match op {
        Op::LayerNormForward(op) if op.width == 0 => statistics(views, op)?,
        Op::LayerNormRows(LayerNormRows { live, norm }) if norm.width == 0 => {
            let live = live_rows(views, *live, norm.rows)?;
            statistics(views, &norm.first_rows(live))?;
        }
        // Rows that lie apart may have a span though they have no width.
        Op::Rotary(op) if op.heads == 0 || op.d_head == 0 => return Ok(true),
        Op::RotaryRows(op) if op.heads == 0 || op.d_head == 0 => return Ok(true),
        Op::AttentionForward(op) if op.shape.d_head == 0 => denominators(views, op)?,
        _ => {}
    }
    let written = match op {
        Op::EmbeddingForward(op) => op.out,
        Op::LayerNormForward(op) => op.y,
        Op::LinearForward(op) => op.y,
        Op::Rotary(op) => op.x.span,
        Op::AttentionForward(op) => op.out,
        Op::AttentionScores(op) => op.scores,
        Op::EmbeddingRows(op) => op.out,
        Op::LayerNormRows(op) => op.norm.y,
        Op::LinearRows(LinearRows { linear, .. }) => linear.y,
        Op::RotaryRows(op) => op.x.span,
        Op::CacheAppend(op) => op.keys,
        Op::AttentionRows(op) => op.out,
        Op::GatherRows(op) => op.to,
        _ => return Ok(false),
    };
    Ok(written.len == 0)
}

/// The mean of nothing is not a number.
fn statistics(views: &mut Views<'_, '_>, op: &LayerNormForward) -> Result<(), CpuError> {
    views.f32_mut("mean", op.mean)?.fill(f32::NAN);
    views.f32_mut("rstd", op.rstd)?.fill(f32::NAN);
    Ok(())
}

/// Every score is the scale times 0, so a position weighs all that it sees alike.
fn denominators(views: &mut Views<'_, '_>, op: &AttentionForward) -> Result<(), CpuError> {
    if let Some(dropout) = op.dropout {
        views.u32("dropout.counters", dropout.counters)?;
    }
    let score = op.shape.scale as f32 * 0.0;
    for (at, lse) in views.f32_mut("lse", op.lse)?.iter_mut().enumerate() {
        *lse = score + libm::logf(op.shape.seen(at % op.shape.time) as f32);
    }
    Ok(())
}
