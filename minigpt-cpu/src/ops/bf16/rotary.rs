//! Rotary positions, by sequences or by runs of positions.

use minigpt_core::Span;
use minigpt_core::op::Rotary;

use super::blocks::{Layout, Sequences, part_of, rows_of};
use super::round::Round;
use super::widen::widen;
use super::{Block, Needs, Steps};
use crate::error::CpuError;

/// How it is cut up.
pub(super) struct Plan {
    sequences: Sequences,
    x: Span,
    pub(super) needs: Needs,
}

impl Plan {
    pub(super) fn new(op: &Rotary) -> Self {
        let width = op.heads.saturating_mul(op.d_head);
        let sequences = Sequences::new(op.batch, op.time, width);
        let mut layout = Layout::default();
        let x = layout.take(sequences.room(width, width));
        Plan { sequences, x, needs: Needs { block: layout.floats(), kernel: 0 } }
    }
}

pub(super) fn rotary(steps: &mut Steps<'_, '_>, op: &Rotary) -> Result<(), CpuError> {
    let (plan, width) = (Plan::new(op), op.heads * op.d_head);
    let block = &mut Block::new(steps, plan.needs);
    for [batch, positions] in plan.sequences.iter() {
        let first = batch.start * op.time + positions.start;
        let rows = rows_of(op.x, first..first + batch.len() * positions.len(), width);
        let x = plan.x.first(batch.len() * positions.len() * width);
        widen(block, rows, x, width)?;
        block.run(Rotary {
            x: x.rows(width),
            table: part_of(op.table, positions.clone(), op.d_head),
            batch: batch.len(),
            time: positions.len(),
            ..*op
        })?;
        Round::new(x, rows, width).run(block)?;
    }
    Ok(())
}
