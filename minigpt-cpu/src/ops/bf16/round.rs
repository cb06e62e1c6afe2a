//! What an op writes: sums in scratch, rounded on their way to where they belong, step by step.

use minigpt_core::op::Dropout;
use minigpt_core::{Activation, Span, Strided};

use super::Block;
use super::lanes;
use crate::arch::Vector;
use crate::context::Job;
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::math::activate;
#[cfg(feature = "train")]
use crate::math::derivative;
use crate::ops::lanes::{load, rows_per_task, store};
use crate::par::{Grid, Rows, Tile};

/// What becomes of sums. Every step is rounded, beginning with the sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Rows of `width` that lie side by side.
    pub(super) from: Span,
    pub(super) to: Strided,
    pub(super) width: usize,
    /// Written: the sum.
    pub(super) kept: Option<Strided>,
    pub(super) activation: Option<Activation>,
    /// The derivative of an activation at its input, to be multiplied by.
    #[cfg(feature = "train")]
    pub(super) slope: Option<(Activation, Strided)>,
    pub(super) dropout: Option<Dropout>,
    /// How far rows are apart in the mask of dropout.
    pub(super) pitch: usize,
    pub(super) onto: Onto,
}

/// What the rest is added to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Onto {
    Nothing,
    /// What the result held.
    Result,
    Rows(Strided),
}

impl Round {
    /// Nothing but that.
    pub(super) fn new(from: Span, to: Strided, width: usize) -> Self {
        let (kept, activation, dropout, onto) = (None, None, None, Onto::Nothing);
        #[cfg(feature = "train")]
        return Round { from, to, width, kept, activation, slope: None, dropout, pitch: 0, onto };
        #[cfg(not(feature = "train"))]
        Round { from, to, width, kept, activation, dropout, pitch: 0, onto }
    }

    pub(super) fn run(self, block: &mut Block<'_, '_, '_>) -> Result<(), CpuError> {
        let (mut context, width) = (block.step()?, self.width);
        let views = &mut context.views;
        let mut job = Steps {
            activation: self.activation,
            #[cfg(feature = "train")]
            slope: None,
            mask: Mask::new(views, self.dropout)?,
            pitch: self.pitch,
            accumulate: matches!(self.onto, Onto::Result),
            residual: None,
        };
        #[cfg(feature = "train")]
        if let Some((activation, input)) = self.slope {
            job.slope = Some((activation, views.bf16_rows("activate.input", input, width)?));
        }
        if let Onto::Rows(residual) = self.onto {
            job.residual = Some(views.bf16_rows("residual", residual, width)?);
        }
        let rows = rows_per_task(width);
        let kept = self.kept.map(|kept| views.bf16_rows_mut("kept", kept, width)).transpose()?;
        let parts = (
            Grid::new(views.f32_mut("from", self.from)?, width, rows, width),
            Grid::of_rows(views.bf16_rows_mut("to", self.to, width)?, rows, width),
            kept.map(|kept| Grid::of_rows(kept, rows, width)),
        );
        context.team.for_each(parts, &job);
        Ok(())
    }
}

struct Steps<'s> {
    activation: Option<Activation>,
    #[cfg(feature = "train")]
    slope: Option<(Activation, Rows<'s, [u8; 2]>)>,
    mask: Option<Mask>,
    pitch: usize,
    accumulate: bool,
    residual: Option<Rows<'s, [u8; 2]>>,
}

impl Steps<'_> {
    /// Whether the derivative of an activation is multiplied by.
    #[inline(always)]
    fn is_slope(&self) -> bool {
        #[cfg(feature = "train")]
        return self.slope.is_some();
        #[cfg(not(feature = "train"))]
        false
    }
}

/// Sums, results and what is kept, by the block of rows.
type Parts<'s> = (Grid<'s>, Grid<'s, [u8; 2]>, Option<Grid<'s, [u8; 2]>>);

impl Job<Parts<'_>> for Steps<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        _: usize,
        (mut sums, mut to, mut kept): (Tile<'_>, Tile<'_, [u8; 2]>, Option<Tile<'_, [u8; 2]>>),
    ) {
        let is_plain = self.activation.is_none() && !self.is_slope() && self.mask.is_none();
        for (i, row) in to.rows().enumerate() {
            let (sums, to) = (sums.row(i), to.row(i));
            let mut kept = kept.as_mut().map(|kept| kept.row(i));
            if !is_plain || kept.is_some() {
                #[cfg(feature = "train")]
                let slope = self.slope.as_ref().map(|(activation, input)| (*activation, input.row(row)));
                for c in (0..sums.len()).step_by(V::LANES) {
                    let mut value = load::<V>(t, sums, c).round_bf16();
                    if let Some(kept) = kept.as_deref_mut() {
                        lanes::store(value, kept, c);
                    }
                    if let Some(activation) = self.activation {
                        value = activate(t, activation, value).round_bf16();
                    }
                    #[cfg(feature = "train")]
                    if let Some((activation, input)) = slope {
                        value = (value * derivative(t, activation, lanes::load(t, input, c))).round_bf16();
                    }
                    store(value, sums, c);
                }
            }
            if let Some(mask) = &self.mask {
                mask.apply(row * self.pitch, sums);
            }
            let residual = self.residual.as_ref().map(|residual| residual.row(row));
            for c in (0..sums.len()).step_by(V::LANES) {
                let mut value = load::<V>(t, sums, c);
                if self.accumulate {
                    value = lanes::load::<V>(t, to, c) + value.round_bf16();
                }
                if let Some(residual) = residual {
                    value = lanes::load::<V>(t, residual, c) + value.round_bf16();
                }
                lanes::store(value, to, c);
            }
        }
    }
}
