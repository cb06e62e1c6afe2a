//! The ops, one file for each family. Each fast op names the reference function that it must equal.

mod draw;
mod linear;

use minigpt_core::op::{LinearBackward, LinearForward};
use minigpt_core::{Dtype, Op, Plan};

use crate::context::{Context, Machine};
use crate::error::CpuError;

/// Runs `op`, which was checked, if there is a kernel for it; says whether there was.
pub(crate) fn run(context: &mut Context<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    match op {
        // Nothing to compute is no work for a kernel.
        Op::LinearForward(LinearForward { rows, d_in, d_out, .. })
        | Op::LinearBackward(LinearBackward { rows, d_in, d_out, .. })
            if [*rows, *d_in, *d_out].contains(&0) =>
        {
            return Ok(false);
        }
        Op::LinearForward(op) if op.weight.dtype == Dtype::F32 => linear::linear_forward(context, op)?,
        Op::LinearBackward(op) => linear::linear_backward(context, op)?,
        Op::NextDraw(op) => draw::next_draw(context, op)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// How many f32 of scratch the ops of `plan` need: they use it in turn, so the largest need counts.
pub(crate) fn scratch_floats(plan: &Plan, machine: Machine) -> usize {
    linear::scratch_floats(plan, machine)
}
