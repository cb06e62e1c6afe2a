//! The activation on its own, equal to [`activate`](minigpt_core::reference::activation::activate), and bit for bit
//! what a linear layer that ends in it writes.

use minigpt_core::Activation;
use minigpt_core::op::ActivationForward;

use super::lanes::{load, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::math::activate;
use crate::par::Chunks;

struct Activate<'s> {
    x: &'s [f32],
    activation: Activation,
    per_task: usize,
}

impl Job<Chunks<'_, f32>> for Activate<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, y: &mut [f32]) {
        let x = &self.x[index * self.per_task..][..y.len()];
        for i in (0..y.len()).step_by(V::LANES) {
            store(activate(t, self.activation, load::<V>(t, x, i)), y, i);
        }
    }
}

pub(super) fn forward(context: &mut Context<'_, '_>, op: &ActivationForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let per_task = rows_per_task(op.width) * op.width;
    let job = Activate { x: views.f32("x", op.x)?, activation: op.activation, per_task };
    let parts = Chunks::new(views.f32_mut("y", op.y)?, per_task);
    context.team.for_each(parts, &job);
    Ok(())
}
