//! Narrowing and filling: bf16 that nothing is computed of.

use minigpt_core::Dtype;
use minigpt_core::op::{Fill, Narrow};
use minigpt_core::reference::weights::encode_half;

use super::Steps;
use super::lanes::store;
use crate::arch::Vector;
use crate::context::Job;
use crate::error::CpuError;
use crate::ops::lanes::{load, rows_per_task};
use crate::par::Chunks;

struct Narrowed<'s> {
    from: &'s [f32],
    per_task: usize,
}

impl Job<Chunks<'_, [u8; 2]>> for Narrowed<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, to: &mut [[u8; 2]]) {
        let from = &self.from[index * self.per_task..][..to.len()];
        for i in (0..to.len()).step_by(V::LANES) {
            store(load::<V>(t, from, i), to, i);
        }
    }
}

pub(super) fn narrow(steps: &mut Steps<'_, '_>, op: &Narrow) -> Result<(), CpuError> {
    let mut context = steps.step();
    let views = &mut context.views;
    let per_task = rows_per_task(1);
    let job = Narrowed { from: views.f32("from", op.from)?, per_task };
    let to = views.bytes_mut("to", op.to)?.as_chunks_mut().0;
    context.team.for_each(Chunks::new(to, per_task), &job);
    Ok(())
}

pub(super) fn fill(steps: &mut Steps<'_, '_>, op: &Fill) -> Result<(), CpuError> {
    let to = steps.views().bytes_mut("to", op.to)?;
    to.as_chunks_mut().0.fill(encode_half(op.value, Dtype::Bf16));
    Ok(())
}
