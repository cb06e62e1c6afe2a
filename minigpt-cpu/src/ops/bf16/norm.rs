//! Layer norm and RMS norm, by blocks of rows.

use core::ops::Range;

#[cfg(feature = "train")]
use minigpt_core::op::NormBackward;
use minigpt_core::op::{NormForward, Normalize};
use minigpt_core::{Span, Strided};

use super::blocks::{Blocks, Layout, part_of, rows_of};
#[cfg(feature = "train")]
use super::round::Onto;
use super::round::Round;
use super::widen::widen;
use super::{Block, Needs, Steps};
#[cfg(feature = "train")]
use crate::context::Machine;
use crate::error::CpuError;
#[cfg(feature = "train")]
use crate::ops::scratch_floats;

/// How it is cut up, either pass.
pub(super) struct Plan {
    rows: Blocks,
    x: Span,
    /// What comes out; in the backward pass its gradient, and in the same place that of x.
    y: Span,
    pub(super) needs: Needs,
}

impl Plan {
    fn new(rows: usize, width: usize) -> Self {
        let rows = Blocks::of_rows(rows, width.saturating_mul(2));
        let mut layout = Layout::default();
        let [x, y] = [(); 2].map(|()| layout.take(rows.room().saturating_mul(width)));
        Plan { rows, x, y, needs: Needs { block: layout.floats(), kernel: 0 } }
    }

    pub(super) fn forward(op: &NormForward) -> Self {
        Plan::new(op.rows, op.groups.saturating_mul(op.width))
    }

    #[cfg(feature = "train")]
    pub(super) fn backward(op: &NormBackward, machine: Machine) -> Self {
        let mut plan = Plan::new(op.rows, op.groups.saturating_mul(op.width));
        plan.needs.kernel = scratch_floats(&plan.gradient(op, 0..plan.rows.room()).into(), machine);
        plan
    }

    /// x and y of a block of rows.
    fn matrices(&self, rows: usize, width: usize) -> [Strided; 2] {
        [self.x, self.y].map(|all| all.first(rows.saturating_mul(width)).rows(width))
    }

    /// The backward op of f32 of a block.
    #[cfg(feature = "train")]
    fn gradient(&self, op: &NormBackward, rows: Range<usize>) -> NormBackward {
        let [x, d_y] = self.matrices(rows.len(), op.groups.saturating_mul(op.width));
        NormBackward {
            kind: statistics(op.kind, rows.clone(), op.groups),
            x,
            rstd: part_of(op.rstd, rows.clone(), op.groups),
            d_y,
            d_x: d_y,
            accumulate: false,
            rows: rows.len(),
            ..*op
        }
    }
}

fn statistics(kind: Normalize, rows: Range<usize>, groups: usize) -> Normalize {
    match kind {
        Normalize::Layer { mean } => Normalize::Layer { mean: part_of(mean, rows, groups) },
        Normalize::Rms => Normalize::Rms,
    }
}

pub(super) fn forward(steps: &mut Steps<'_, '_>, op: &NormForward) -> Result<(), CpuError> {
    let (plan, width) = (Plan::forward(op), op.groups * op.width);
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let [x, y] = plan.matrices(rows.len(), width);
        widen(block, rows_of(op.x, rows.clone(), width), x.span, width)?;
        block.run(NormForward {
            kind: statistics(op.kind, rows.clone(), op.groups),
            x,
            y,
            rstd: part_of(op.rstd, rows.clone(), op.groups),
            rows: rows.len(),
            ..*op
        })?;
        Round::new(y.span, rows_of(op.y, rows, width), width).run(block)?;
    }
    Ok(())
}

#[cfg(feature = "train")]
pub(super) fn backward(steps: &mut Steps<'_, '_>, op: &NormBackward) -> Result<(), CpuError> {
    let (plan, width) = (Plan::backward(op, steps.team.machine()), op.groups * op.width);
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let gradient = plan.gradient(op, rows.clone());
        widen(block, rows_of(op.x, rows.clone(), width), gradient.x.span, width)?;
        widen(block, rows_of(op.d_y, rows.clone(), width), gradient.d_y.span, width)?;
        block.run(gradient)?;
        let onto = if op.accumulate { Onto::Result } else { Onto::Nothing };
        Round { onto, ..Round::new(gradient.d_x.span, rows_of(op.d_x, rows, width), width) }.run(block)?;
    }
    Ok(())
}
