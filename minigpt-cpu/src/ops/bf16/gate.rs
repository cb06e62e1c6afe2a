//! The gate of a feed-forward layer, and the activation alone: each number is widened, worked on and rounded in registers.

use minigpt_core::Activation;
use minigpt_core::op::GateForward;
#[cfg(feature = "train")]
use minigpt_core::op::{ActivationForward, GateBackward};

use super::Steps;
use super::lanes::{load, store};
use crate::arch::Vector;
use crate::context::Job;
use crate::error::CpuError;
use crate::math::activate;
#[cfg(feature = "train")]
use crate::math::derivative;
use crate::ops::lanes::rows_per_task;
use crate::par::{Grid, Rows, Tile};

struct Forward<'s> {
    x: Rows<'s, [u8; 2]>,
    activation: Activation,
}

impl Job<Grid<'_, [u8; 2]>> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, mut y: Tile<'_, [u8; 2]>) {
        for (i, row) in y.rows().enumerate() {
            let y = y.row(i);
            let (gate, up) = self.x.row(row).split_at(y.len());
            for c in (0..y.len()).step_by(V::LANES) {
                let h = activate(t, self.activation, load::<V>(t, gate, c)).round_bf16();
                store(h * load(t, up, c), y, c);
            }
        }
    }
}

pub(super) fn forward(steps: &mut Steps<'_, '_>, op: &GateForward) -> Result<(), CpuError> {
    let (mut context, width) = (steps.step(), op.width);
    let views = &mut context.views;
    let job =
        Forward { x: views.bf16_rows("x", op.x.rows(2 * width), 2 * width)?, activation: op.activation };
    let y = views.bf16_rows_mut("y", op.y.rows(width), width)?;
    context.team.for_each(Grid::of_rows(y, rows_per_task(2 * width), width), &job);
    Ok(())
}

#[cfg(feature = "train")]
struct Backward<'s> {
    x: Rows<'s, [u8; 2]>,
    d_y: Rows<'s, [u8; 2]>,
    activation: Activation,
}

#[cfg(feature = "train")]
impl Job<Grid<'_, [u8; 2]>> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, mut d_x: Tile<'_, [u8; 2]>) {
        for (i, row) in d_x.rows().enumerate() {
            let d_y = self.d_y.row(row);
            let (gate, up) = self.x.row(row).split_at(d_y.len());
            let (d_gate, d_up) = d_x.row(i).split_at_mut(d_y.len());
            for c in (0..d_y.len()).step_by(V::LANES) {
                let (g, d) = (load::<V>(t, gate, c), load::<V>(t, d_y, c));
                let u = (d * load(t, up, c)).round_bf16();
                store(u * derivative(t, self.activation, g), d_gate, c);
                store(d * activate(t, self.activation, g).round_bf16(), d_up, c);
            }
        }
    }
}

#[cfg(feature = "train")]
pub(super) fn backward(steps: &mut Steps<'_, '_>, op: &GateBackward) -> Result<(), CpuError> {
    let (mut context, width) = (steps.step(), op.width);
    let views = &mut context.views;
    let job = Backward {
        x: views.bf16_rows("x", op.x.rows(2 * width), 2 * width)?,
        d_y: views.bf16_rows("d_y", op.d_y.rows(width), width)?,
        activation: op.activation,
    };
    let d_x = views.bf16_rows_mut("d_x", op.d_x.rows(2 * width), 2 * width)?;
    context.team.for_each(Grid::of_rows(d_x, rows_per_task(2 * width), 2 * width), &job);
    Ok(())
}

#[cfg(feature = "train")]
struct Activate<'s> {
    x: Rows<'s, [u8; 2]>,
    activation: Activation,
}

#[cfg(feature = "train")]
impl Job<Grid<'_, [u8; 2]>> for Activate<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, mut y: Tile<'_, [u8; 2]>) {
        for (i, row) in y.rows().enumerate() {
            let (x, y) = (self.x.row(row), y.row(i));
            for c in (0..y.len()).step_by(V::LANES) {
                store(activate(t, self.activation, load::<V>(t, x, c)), y, c);
            }
        }
    }
}

/// What a linear layer that ends in it gives, bit for bit: there as here it meets a number that was rounded.
#[cfg(feature = "train")]
pub(super) fn activation(steps: &mut Steps<'_, '_>, op: &ActivationForward) -> Result<(), CpuError> {
    let (mut context, width) = (steps.step(), op.width);
    let views = &mut context.views;
    let job = Activate { x: views.bf16_rows("x", op.x.rows(width), width)?, activation: op.activation };
    let y = views.bf16_rows_mut("y", op.y.rows(width), width)?;
    context.team.for_each(Grid::of_rows(y, rows_per_task(width), width), &job);
    Ok(())
}
