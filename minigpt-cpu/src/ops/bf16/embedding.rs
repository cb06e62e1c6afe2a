//! Embedding, by sequences or by runs of positions.

use minigpt_core::Span;
#[cfg(feature = "train")]
use minigpt_core::op::EmbeddingBackward;
use minigpt_core::op::EmbeddingForward;

use super::blocks::{Layout, Sequences, later, part_of, rows_of};
use super::round::Round;
#[cfg(feature = "train")]
use super::widen::widen_dropped;
use super::{Block, Needs, Steps};
use crate::error::CpuError;
use crate::ops::embedding::check_tokens;

/// How it is cut up, either pass.
pub(super) struct Plan {
    sequences: Sequences,
    /// What comes out, or its gradient.
    out: Span,
    pub(super) needs: Needs,
}

impl Plan {
    fn new(batch: usize, time: usize, d_model: usize) -> Self {
        let sequences = Sequences::new(batch, time, d_model);
        let mut layout = Layout::default();
        let out = layout.take(sequences.room(d_model, d_model));
        Plan { sequences, out, needs: Needs { block: layout.floats(), kernel: 0 } }
    }

    pub(super) fn forward(op: &EmbeddingForward) -> Self {
        Plan::new(op.batch, op.time, op.d_model)
    }

    #[cfg(feature = "train")]
    pub(super) fn backward(op: &EmbeddingBackward) -> Self {
        Plan::new(op.batch, op.time, op.d_model)
    }
}

/// Before anything is written.
fn check(steps: &mut Steps<'_, '_>, tokens: Span, vocab: usize) -> Result<(), CpuError> {
    let tokens = steps.views().u32("tokens", tokens)?;
    Ok(check_tokens(tokens.iter().copied(), vocab)?)
}

pub(super) fn forward(steps: &mut Steps<'_, '_>, op: &EmbeddingForward) -> Result<(), CpuError> {
    check(steps, op.tokens, op.vocab)?;
    let (plan, d_model) = (Plan::forward(op), op.d_model);
    let block = &mut Block::new(steps, plan.needs);
    for [batch, positions] in plan.sequences.iter() {
        let first = batch.start * op.time + positions.start;
        let rows = first..first + batch.len() * positions.len();
        let out = plan.out.first(rows.len() * d_model);
        block.run(EmbeddingForward {
            tokens: part_of(op.tokens, rows.clone(), 1),
            position_embedding: op.position_embedding.map(|p| part_of(p, positions.clone(), d_model)),
            out,
            batch: batch.len(),
            time: positions.len(),
            dropout: None,
            ..*op
        })?;
        let dropout = later(op.dropout, (first * d_model) as u64);
        let result = rows_of(op.out.rows(d_model), rows, d_model);
        Round { dropout, pitch: d_model, ..Round::new(out, result, d_model) }.run(block)?;
    }
    Ok(())
}

#[cfg(feature = "train")]
pub(super) fn backward(steps: &mut Steps<'_, '_>, op: &EmbeddingBackward) -> Result<(), CpuError> {
    check(steps, op.tokens, op.vocab)?;
    let (plan, d_model) = (Plan::backward(op), op.d_model);
    let block = &mut Block::new(steps, plan.needs);
    for [batch, positions] in plan.sequences.iter() {
        let first = batch.start * op.time + positions.start;
        let rows = first..first + batch.len() * positions.len();
        let g = plan.out.first(rows.len() * d_model);
        let dropout = later(op.dropout, (first * d_model) as u64);
        let d_out = rows_of(op.d_out.rows(d_model), rows.clone(), d_model);
        widen_dropped(block, d_out, g, d_model, (dropout, d_model))?;
        block.run(EmbeddingBackward {
            tokens: part_of(op.tokens, rows, 1),
            d_out: g,
            d_position_embedding: op.d_position_embedding.map(|d| part_of(d, positions.clone(), d_model)),
            batch: batch.len(),
            time: positions.len(),
            dropout: None,
            ..*op
        })?;
    }
    Ok(())
}
