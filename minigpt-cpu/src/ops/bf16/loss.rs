//! Softmax and cross-entropy, by blocks of rows.

use core::ops::Range;

use minigpt_core::Span;
use minigpt_core::op::{CrossEntropy, IGNORE};

use super::blocks::{Blocks, Layout, part_of, rows_of};
use super::round::Round;
use super::widen::widen;
use super::{Block, Needs, Steps};
use crate::context::Machine;
use crate::error::CpuError;
use crate::ops::embedding::check_tokens;
use crate::ops::scratch_floats;

/// How it is cut up.
pub(super) struct Plan {
    rows: Blocks,
    logits: Span,
    pub(super) needs: Needs,
}

impl Plan {
    pub(super) fn new(op: &CrossEntropy, machine: Machine) -> Self {
        let rows = Blocks::of_rows(op.rows, op.vocab);
        let mut layout = Layout::default();
        let logits = layout.take(rows.room().saturating_mul(op.vocab));
        let mut plan = Plan { rows, logits, needs: Needs { block: layout.floats(), kernel: 0 } };
        plan.needs.kernel = scratch_floats(&plan.part(op, 0..rows.room()).into(), machine);
        plan
    }

    /// The op of f32 of a block: the gradient takes the place of the logits.
    fn part(&self, op: &CrossEntropy, rows: Range<usize>) -> CrossEntropy {
        let logits = self.logits.first(rows.len().saturating_mul(op.vocab));
        CrossEntropy {
            logits,
            targets: part_of(op.targets, rows.clone(), 1),
            d_logits: op.d_logits.map(|_| logits),
            losses: op.losses.map(|losses| part_of(losses, rows.clone(), 1)),
            rows: rows.len(),
            ..*op
        }
    }
}

pub(super) fn cross_entropy(steps: &mut Steps<'_, '_>, op: &CrossEntropy) -> Result<(), CpuError> {
    let targets = steps.views().u32("targets", op.targets)?;
    check_tokens(targets.iter().copied().filter(|&target| target != IGNORE), op.vocab)?;
    let (plan, vocab) = (Plan::new(op, steps.team.machine()), op.vocab);
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let part = plan.part(op, rows.clone());
        widen(block, rows_of(op.logits.rows(vocab), rows.clone(), vocab), part.logits, vocab)?;
        block.run(part)?;
        if let Some(d_logits) = op.d_logits {
            Round::new(part.logits, rows_of(d_logits.rows(vocab), rows, vocab), vocab).run(block)?;
        }
    }
    Ok(())
}
