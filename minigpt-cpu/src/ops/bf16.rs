//! Ops under [`Precision::Bf16`](minigpt_core::Precision::Bf16), by the kernels of f32: equal to
//! [`minigpt_core::reference::rounded`].
//!
//! An op goes block by block. What it reads of bf16 is widened into a [`BLOCK`] of scratch, the op of f32 runs on that, and its
//! result is rounded on the way to where it belongs, step by step, as what follows the sum asks for. So a kernel is there
//! once. Widening and rounding take a pass over numbers that are in the caches, and a matrix product far more of them.
//!
//! What reads and writes each number once, the gate and the activation, has kernels of its own.
//!
//! Blocks depend on shapes alone, so threads change no bit.

mod attention;
mod blocks;
mod embedding;
mod gate;
mod lanes;
mod linear;
#[cfg(feature = "train")]
mod loss;
mod norm;
#[cfg(feature = "train")]
mod plain;
mod rotary;
mod round;
mod rows;
mod widen;

use minigpt_core::op::{GateRows, LinearRows, NormRows};
use minigpt_core::{Dtype, InvalidOp, Op};

use super::empty;
use super::rows::live_rows;
use super::weight::Weight;
use crate::context::{Context, Machine, Room, Scratch, Team};
use crate::error::CpuError;
use crate::memory::Memory;
use crate::par::{BLOCK, Views};

/// What an op has at hand for its steps, one after the other.
pub(crate) struct Steps<'s, 'a> {
    pub(crate) memory: &'s mut Memory<'a>,
    pub(crate) scratch: &'s mut Scratch,
    pub(crate) team: Team<'s>,
}

/// How many f32 of scratch an op needs.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// For what is widened and what is not rounded yet.
    block: usize,
    /// For the kernel of f32.
    kernel: usize,
}

impl Needs {
    fn floats(self) -> usize {
        self.block.saturating_add(self.kernel)
    }
}

/// The steps of an op that has its scratch.
struct Block<'b, 's, 'a> {
    steps: &'b mut Steps<'s, 'a>,
    needs: Needs,
}

impl<'a> Steps<'_, 'a> {
    /// Without scratch.
    fn views(&mut self) -> Views<'_, 'a> {
        Views::new(self.memory)
    }

    /// Without scratch.
    fn step(&mut self) -> Context<'_, 'a> {
        Context { views: Views::new(self.memory), scratch: Room::Rest(&mut []), team: self.team.lend() }
    }
}

impl<'b, 's, 'a> Block<'b, 's, 'a> {
    fn new(steps: &'b mut Steps<'s, 'a>, needs: Needs) -> Self {
        Block { steps, needs }
    }

    /// What the next step has at hand. What an earlier one left in the block is still there.
    fn step(&mut self) -> Result<Context<'_, 'a>, CpuError> {
        let Steps { memory, scratch, team } = &mut *self.steps;
        let (block, rest) = scratch.floats(self.needs.floats())?.split_at_mut(self.needs.block);
        let (views, scratch) = (Views::with_block(memory, block), Room::Rest(rest));
        Ok(Context { views, scratch, team: team.lend() })
    }

    /// Runs an op of f32.
    fn run(&mut self, op: impl Into<Op>) -> Result<(), CpuError> {
        let op = op.into();
        debug_assert_eq!(op.verify(Dtype::F32), Ok(()), "{op:?}");
        if super::run(&mut self.step()?, &op)? { Ok(()) } else { Err(InvalidOp::NoKernel.into()) }
    }
}

/// Runs `op`, which was checked and is under bf16, if there is a kernel for it; says whether there was.
pub(crate) fn run(steps: &mut Steps<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    // There, bytes are reached by way of their words.
    if !Weight::READS_ALL {
        return Ok(false);
    }
    // No caller has scratch.
    if let Some(operand) = op.operands()?.iter().find(|operand| operand.span.buffer == BLOCK) {
        return Err(InvalidOp::OutOfBounds { operand: operand.name, end: 0, size: 0 }.into());
    }
    if empty::run(&mut steps.views(), op)? {
        return Ok(true);
    }
    match op {
        Op::LinearForward(op) => linear::forward(steps, op)?,
        Op::EmbeddingForward(op) => embedding::forward(steps, op)?,
        Op::NormForward(op) => norm::forward(steps, op)?,
        Op::GateForward(op) => gate::forward(steps, op)?,
        Op::Rotary(op) => rotary::rotary(steps, op)?,
        Op::AttentionForward(op) => attention::forward(steps, op)?,
        Op::AttentionScores(op) => attention::scores(steps, op)?,
        Op::LinearRows(LinearRows { live, linear: op }) => {
            let rows = live_rows(&mut steps.views(), *live, op.rows)?;
            linear::forward(steps, &op.first_rows(rows))?;
        }
        Op::NormRows(NormRows { live, norm: op }) => {
            let rows = live_rows(&mut steps.views(), *live, op.rows)?;
            norm::forward(steps, &op.first_rows(rows))?;
        }
        Op::GateRows(GateRows { live, gate: op }) => {
            let rows = live_rows(&mut steps.views(), *live, op.rows)?;
            gate::forward(steps, &op.first_rows(rows))?;
        }
        Op::EmbeddingRows(op) => rows::embedding(steps, op)?,
        Op::RotaryRows(op) => rows::rotary(steps, op)?,
        Op::CacheAppend(op) => rows::append(steps, op)?,
        Op::AttentionRows(op) => rows::attention(steps, op)?,
        Op::GatherRows(op) => rows::gather(steps, op)?,
        Op::Sample(op) => rows::sample(steps, op)?,
        #[cfg(feature = "train")]
        _ => return train(steps, op),
        #[cfg(not(feature = "train"))]
        _ => return Ok(false),
    }
    Ok(true)
}

/// The same of what only training runs. Without a number in it, it is left to the reference.
#[cfg(feature = "train")]
fn train(steps: &mut Steps<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    match op {
        Op::LinearBackward(op) if ![op.rows, op.d_in, op.d_out].contains(&0) => linear::backward(steps, op)?,
        Op::EmbeddingBackward(op) if op.d_out.len > 0 => embedding::backward(steps, op)?,
        Op::NormBackward(op) if ![op.rows, op.groups, op.width].contains(&0) => norm::backward(steps, op)?,
        Op::ActivationForward(op) if op.y.len > 0 => gate::activation(steps, op)?,
        Op::GateBackward(op) if op.d_x.len > 0 => gate::backward(steps, op)?,
        Op::AttentionBackward(op) if op.out.len > 0 => attention::backward(steps, op)?,
        Op::CrossEntropy(op) if op.logits.len > 0 => loss::cross_entropy(steps, op)?,
        Op::Narrow(op) => plain::narrow(steps, op)?,
        Op::Fill(op) => plain::fill(steps, op)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// How many f32 of scratch `op` needs, which is under bf16: blocks, and what the kernels of f32 need beside them.
pub(crate) fn scratch_floats(op: &Op, machine: Machine) -> usize {
    if !Weight::READS_ALL {
        return 0;
    }
    let needs = match op {
        Op::LinearForward(op) => return linear::forward_scratch_floats(op, machine),
        Op::LinearRows(op) => return linear::forward_scratch_floats(&op.linear, machine),
        Op::EmbeddingForward(op) => embedding::Plan::forward(op).needs,
        Op::NormForward(op) => norm::Plan::forward(op).needs,
        Op::NormRows(op) => norm::Plan::forward(&op.norm).needs,
        Op::Rotary(op) => rotary::Plan::new(op).needs,
        Op::AttentionForward(op) => attention::plan_forward(op, machine).needs,
        Op::AttentionScores(op) => attention::plan_scores(op).needs,
        Op::EmbeddingRows(op) => rows::plan_embedding(op, op.rows).needs,
        Op::RotaryRows(op) => rows::plan_rotary(op, op.rows).needs,
        Op::CacheAppend(op) => rows::plan_append(op, op.rows).needs,
        Op::AttentionRows(op) => rows::plan_attention(op, op.rows, machine).needs,
        Op::Sample(op) => rows::plan_sample(op, op.rows, machine).needs,
        #[cfg(feature = "train")]
        Op::LinearBackward(op) => linear::Backward::new(op).needs,
        #[cfg(feature = "train")]
        Op::EmbeddingBackward(op) => embedding::Plan::backward(op).needs,
        #[cfg(feature = "train")]
        Op::NormBackward(op) => norm::Plan::backward(op, machine).needs,
        #[cfg(feature = "train")]
        Op::AttentionBackward(op) => attention::plan_backward(op, machine).needs,
        #[cfg(feature = "train")]
        Op::CrossEntropy(op) => loss::Plan::new(op, machine).needs,
        _ => return 0,
    };
    needs.floats()
}
