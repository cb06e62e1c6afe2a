//! What an op reads: bf16, widened into scratch.

use minigpt_core::op::Dropout;
use minigpt_core::{Span, Strided};

use super::Block;
use crate::arch::Vector;
use crate::context::Job;
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::ops::lanes::{load, rows_per_task, store};
use crate::ops::weight::{Bf16, widen as widen_row};
use crate::par::{Grid, Rows, Tile};

struct Widen<'s> {
    from: Rows<'s, [u8; 2]>,
    mask: Option<Mask>,
    pitch: usize,
}

impl Job<Grid<'_>> for Widen<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, mut to: Tile<'_>) {
        for (i, row) in to.rows().enumerate() {
            let to = to.row(i);
            widen_row::<V, Bf16>(t, self.from.row(row), to);
            let Some(mask) = &self.mask else { continue };
            mask.apply(row * self.pitch, to);
            for c in (0..to.len()).step_by(V::LANES) {
                store(load::<V>(t, to, c).round_bf16(), to, c);
            }
        }
    }
}

/// Widens rows of `width` to rows that lie side by side.
pub(super) fn widen(
    block: &mut Block<'_, '_, '_>,
    from: Strided,
    to: Span,
    width: usize,
) -> Result<(), CpuError> {
    widen_dropped(block, from, to, width, (None, 0))
}

/// The same, and drops out of them what the forward pass dropped out. In the mask, rows are `pitch` apart.
pub(super) fn widen_dropped(
    block: &mut Block<'_, '_, '_>,
    from: Strided,
    to: Span,
    width: usize,
    (dropout, pitch): (Option<Dropout>, usize),
) -> Result<(), CpuError> {
    let mut context = block.step()?;
    let views = &mut context.views;
    let mask = Mask::new(views, dropout)?;
    let job = Widen { from: views.bf16_rows("from", from, width)?, mask, pitch };
    let to = views.f32_mut("to", to)?;
    context.team.for_each(Grid::new(to, width, rows_per_task(width), width), &job);
    Ok(())
}
