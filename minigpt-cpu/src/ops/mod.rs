//! The ops, one file for each family. Each fast op names the reference function that it must equal.

mod draw;

use minigpt_core::{Op, Plan};

use crate::context::{Context, Machine};
use crate::error::CpuError;

/// Runs `op`, which was checked, if there is a kernel for it; says whether there was.
pub(crate) fn run(context: &mut Context<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    match op {
        Op::NextDraw(op) => draw::next_draw(context, op)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// How many f32 of scratch the ops of `plan` need: they use it in turn, so the largest need counts.
pub(crate) fn scratch_floats(_plan: &Plan, _machine: Machine) -> usize {
    0
}
