//! The number of the draw that dropout masks belong to.

use minigpt_core::op::{NextDraw, counter};

use crate::context::Context;
use crate::error::CpuError;

/// Adds one to the draw number, low word first.
pub(crate) fn next_draw(context: &mut Context<'_, '_>, op: &NextDraw) -> Result<(), CpuError> {
    let counters = context.views.u32_mut("counters", op.counters)?;
    let (low, carry) = counters[counter::DRAW].overflowing_add(1);
    counters[counter::DRAW] = low;
    if carry {
        counters[counter::DRAW + 1] = counters[counter::DRAW + 1].wrapping_add(1);
    }
    Ok(())
}
