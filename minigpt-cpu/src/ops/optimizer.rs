//! From the gradient to the next weights, equal to [`squared_norm`](minigpt_core::reference::optimizer::squared_norm),
//! [`finish_step`](minigpt_core::reference::optimizer::finish_step) and
//! [`adamw`](minigpt_core::reference::optimizer::adamw).
//!
//! All of it is bound by memory: AdamW reads and writes every number once, in one pass.

use minigpt_core::op::{AdamW, FinishStep, SquaredNorm, scalar};
use minigpt_core::reference;

use super::lanes::{load, store};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::par::Chunks;

/// Elements of a task.
const CHUNK: usize = 1 << 14;

struct Squares<'s> {
    x: &'s [f32],
}

impl Job<Chunks<'_, f32>> for Squares<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, index: usize, sum: &mut [f32]) {
        let start = index * CHUNK;
        let x = &self.x[start..(start + CHUNK).min(self.x.len())];
        // A plain loop, because lanes are f32. It becomes vectors only if it is too long to be unrolled first.
        let mut sums = [0.0; 128];
        for group in x.chunks(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(group) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sum[0] = sums.iter().sum::<f64>() as f32;
    }
}

/// Scratch for `len` elements.
pub(super) fn scratch_floats(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

pub(super) fn squared_norm(context: &mut Context<'_, '_>, op: &SquaredNorm) -> Result<(), CpuError> {
    let job = Squares { x: context.views.f32("x", op.x)? };
    let scalars = context.views.f32_mut("scalars", op.scalars)?;
    let sums = context.scratch.floats(scratch_floats(op.x.len))?;
    context.team.for_each(Chunks::new(sums, 1), &job);
    scalars[scalar::GRAD_SQUARED] = sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() as f32;
    Ok(())
}

/// A few scalars: the reference itself, on the memory where they lie.
pub(super) fn finish_step(context: &mut Context<'_, '_>, op: &FinishStep) -> Result<(), CpuError> {
    let scalars = context.views.f32_mut("scalars", op.scalars)?;
    let counters = context.views.u32_mut("counters", op.counters)?;
    reference::optimizer::finish_step(scalars, counters, op.clip, op.beta1, op.beta2);
    Ok(())
}

struct Update<'s> {
    grads: &'s [f32],
    decayed: usize,
    /// lr * weight_decay.
    decay: f32,
    scale: f32,
    keep1: f32,
    take1: f32,
    keep2: f32,
    take2: f32,
    /// lr / correction1.
    rate: f32,
    /// 1 / correction2.
    correct2: f32,
    eps: f32,
}

/// Parameters and both moments.
type State<'s> = (Chunks<'s, f32>, Chunks<'s, f32>, Chunks<'s, f32>);

impl Job<State<'_>> for Update<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (params, m, v): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let start = index * CHUNK;
        let grads = &self.grads[start..][..params.len()];
        let decayed = self.decayed.saturating_sub(start).min(params.len());
        let (params, rest) = params.split_at_mut(decayed);
        let (m, m_rest) = m.split_at_mut(decayed);
        let (v, v_rest) = v.split_at_mut(decayed);
        let (grads, grads_rest) = grads.split_at(decayed);
        self.update::<V>(t, params, grads, m, v, self.decay);
        self.update::<V>(t, rest, grads_rest, m_rest, v_rest, 0.0);
    }
}

impl Update<'_> {
    #[inline(always)]
    fn update<V: Vector>(
        &self,
        t: V::Token,
        params: &mut [f32],
        grads: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        decay: f32,
    ) {
        let [scale, keep1, take1, keep2, take2] =
            [self.scale, self.keep1, self.take1, self.keep2, self.take2].map(|x| V::splat(t, x));
        let [rate, correct2, eps, decay] =
            [self.rate, self.correct2, self.eps, decay].map(|x| V::splat(t, x));
        for i in (0..params.len()).step_by(V::LANES) {
            let g = load::<V>(t, grads, i) * scale;
            let m_new = load::<V>(t, m, i).mul_add(keep1, g * take1);
            let v_new = load::<V>(t, v, i).mul_add(keep2, g * g * take2);
            let p = load::<V>(t, params, i);
            let p = (-decay).mul_add(p, p);
            let p = p - rate * m_new / ((v_new * correct2).sqrt() + eps);
            store(m_new, m, i);
            store(v_new, v, i);
            store(p, params, i);
        }
    }
}

pub(super) fn adamw(context: &mut Context<'_, '_>, op: &AdamW) -> Result<(), CpuError> {
    let views = &mut context.views;
    let scalars = views.f32("scalars", op.scalars)?;
    if scalars[scalar::APPLY] == 0.0 {
        return Ok(());
    }
    let lr = f64::from(scalars[scalar::LEARNING_RATE]);
    let job = Update {
        grads: views.f32("grads", op.grads)?,
        decayed: op.decayed,
        decay: (lr * op.weight_decay) as f32,
        scale: scalars[scalar::GRAD_SCALE],
        keep1: op.beta1 as f32,
        take1: (1.0 - op.beta1) as f32,
        keep2: op.beta2 as f32,
        take2: (1.0 - op.beta2) as f32,
        rate: (lr / f64::from(scalars[scalar::CORRECTION1])) as f32,
        correct2: (1.0 / f64::from(scalars[scalar::CORRECTION2])) as f32,
        eps: op.eps as f32,
    };
    let parts = (
        Chunks::new(views.f32_mut("params", op.params)?, CHUNK),
        Chunks::new(views.f32_mut("m", op.m)?, CHUNK),
        Chunks::new(views.f32_mut("v", op.v)?, CHUNK),
    );
    context.team.for_each(parts, &job);
    Ok(())
}
