//! The gate of a feed-forward layer, equal to [`gate_forward`](minigpt_core::reference::gate::gate_forward) and
//! [`gate_backward`](minigpt_core::reference::gate::gate_backward).
//!
//! It reads and writes each number once, so it runs at the speed of memory or of the activation's arithmetic.

use minigpt_core::Activation;
use minigpt_core::op::{GateBackward, GateForward};

use super::lanes::{load, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::math::{activate, derivative};
use crate::par::Chunks;

struct Forward<'s> {
    x: &'s [f32],
    activation: Activation,
    rows_per_task: usize,
    width: usize,
}

impl Job<Chunks<'_, f32>> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, y: &mut [f32]) {
        let width = self.width;
        let x = self.x[index * self.rows_per_task * 2 * width..].chunks_exact(2 * width);
        for (y, x) in y.chunks_exact_mut(width).zip(x) {
            let (gate, up) = x.split_at(width);
            for c in (0..width).step_by(V::LANES) {
                store(activate(t, self.activation, load::<V>(t, gate, c)) * load(t, up, c), y, c);
            }
        }
    }
}

pub(super) fn forward(context: &mut Context<'_, '_>, op: &GateForward) -> Result<(), CpuError> {
    let (views, width) = (&mut context.views, op.width);
    let rows_per_task = rows_per_task(2 * width);
    let job = Forward { x: views.f32("x", op.x)?, activation: op.activation, rows_per_task, width };
    let parts = Chunks::new(views.f32_mut("y", op.y)?, rows_per_task * width);
    context.team.for_each(parts, &job);
    Ok(())
}

struct Backward<'s> {
    x: &'s [f32],
    d_y: &'s [f32],
    activation: Activation,
    rows_per_task: usize,
    width: usize,
}

impl Job<Chunks<'_, f32>> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, d_x: &mut [f32]) {
        let width = self.width;
        let first = index * self.rows_per_task * width;
        let rows = self.x[2 * first..].chunks_exact(2 * width).zip(self.d_y[first..].chunks_exact(width));
        for (d_x, (x, d_y)) in d_x.chunks_exact_mut(2 * width).zip(rows) {
            let (gate, up) = x.split_at(width);
            let (d_gate, d_up) = d_x.split_at_mut(width);
            for c in (0..width).step_by(V::LANES) {
                let (g, d) = (load::<V>(t, gate, c), load::<V>(t, d_y, c));
                store(d * load(t, up, c) * derivative(t, self.activation, g), d_gate, c);
                store(d * activate(t, self.activation, g), d_up, c);
            }
        }
    }
}

pub(super) fn backward(context: &mut Context<'_, '_>, op: &GateBackward) -> Result<(), CpuError> {
    let (views, width) = (&mut context.views, op.width);
    let rows_per_task = rows_per_task(2 * width);
    let (x, d_y) = (views.f32("x", op.x)?, views.f32("d_y", op.d_y)?);
    let job = Backward { x, d_y, activation: op.activation, rows_per_task, width };
    let parts = Chunks::new(views.f32_mut("d_x", op.d_x)?, rows_per_task * 2 * width);
    context.team.for_each(parts, &job);
    Ok(())
}
