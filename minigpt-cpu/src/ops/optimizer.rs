//! From the gradient to the next weights, equal to the functions of the same names in [`minigpt_core::reference::optimizer`].
//!
//! All of it is bound by memory: an optimizer reads and writes every number once, in one pass. But for Muon's
//! [`newton_schulz`](mod@newton_schulz), which is matrix products.

pub(super) mod newton_schulz;

use minigpt_core::op::{AdamW, Average, Descend, FinishStep, Momentum, Sgd, SquaredNorm, scalar};
use minigpt_core::reference::optimizer::{average_share, bias_corrections};
use minigpt_core::{Span, reference};

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
        sum[0] = sum_of_squares(&self.x[start..(start + CHUNK).min(self.x.len())]) as f32;
    }
}

/// In f64, and in an order that the length alone decides.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f64 {
    // A plain loop, because lanes are f32. It becomes vectors only if it is too long to be unrolled first.
    let mut sums = [0.0; 128];
    for group in x.chunks(sums.len()) {
        for (sum, &x) in sums.iter_mut().zip(group) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>()
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
    reference::optimizer::finish_step(scalars, counters, op.clip);
    Ok(())
}

struct Adam<'s> {
    grads: &'s [f32],
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

impl Job<State<'_>> for Adam<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (params, m, v): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let grads = &self.grads[index * CHUNK..][..params.len()];
        let [scale, keep1, take1, keep2, take2] =
            [self.scale, self.keep1, self.take1, self.keep2, self.take2].map(|x| V::splat(t, x));
        let [rate, correct2, eps, decay] =
            [self.rate, self.correct2, self.eps, self.decay].map(|x| V::splat(t, x));
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

/// The scalars of an op, if its step is not skipped.
fn applied<'m>(context: &mut Context<'m, '_>, scalars: Span) -> Result<Option<&'m [f32]>, CpuError> {
    let scalars = context.views.f32("scalars", scalars)?;
    Ok(Some(scalars).filter(|scalars| scalars[scalar::APPLY] != 0.0))
}

/// The learning rate of a group.
fn learning_rate(scalars: &[f32], rate: f64) -> f64 {
    f64::from(scalars[scalar::LEARNING_RATE]) * rate
}

pub(super) fn adamw(context: &mut Context<'_, '_>, op: &AdamW) -> Result<(), CpuError> {
    let Some(scalars) = applied(context, op.scalars)? else { return Ok(()) };
    let views = &mut context.views;
    let counters = views.u32("counters", op.counters)?;
    let [correction1, correction2]: [f32; 2] = bias_corrections(counters, [op.beta1, op.beta2]);
    let lr = learning_rate(scalars, op.rate);
    let job = Adam {
        grads: views.f32("grads", op.grads)?,
        decay: (lr * op.weight_decay) as f32,
        scale: scalars[scalar::GRAD_SCALE],
        keep1: op.beta1 as f32,
        take1: (1.0 - op.beta1) as f32,
        keep2: op.beta2 as f32,
        take2: (1.0 - op.beta2) as f32,
        rate: (lr / f64::from(correction1)) as f32,
        correct2: (1.0 / f64::from(correction2)) as f32,
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

/// Gradient descent: what becomes of a parameter, and of its velocity if there is one.
struct Descent<'s> {
    grads: &'s [f32],
    /// lr * weight_decay.
    decay: f32,
    scale: f32,
    momentum: f32,
    nesterov: bool,
    rate: f32,
}

impl Job<(Chunks<'_, f32>, Option<Chunks<'_, f32>>)> for Descent<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (params, mut velocity): (&mut [f32], Option<&mut [f32]>),
    ) {
        let grads = &self.grads[index * CHUNK..][..params.len()];
        let [scale, momentum, rate, decay] =
            [self.scale, self.momentum, self.rate, self.decay].map(|x| V::splat(t, x));
        for i in (0..params.len()).step_by(V::LANES) {
            let g = load::<V>(t, grads, i) * scale;
            let direction = match velocity.as_deref_mut() {
                Some(velocity) => accelerate(t, velocity, i, g, momentum, self.nesterov),
                None => g,
            };
            let p = load::<V>(t, params, i);
            let p = (-decay).mul_add(p, p);
            store((-rate).mul_add(direction, p), params, i);
        }
    }
}

/// Takes the gradient of the elements from `i` on into their velocity. The result is the direction of the update.
#[inline(always)]
fn accelerate<V: Vector>(
    t: V::Token,
    velocity: &mut [f32],
    i: usize,
    g: V,
    momentum: V,
    nesterov: bool,
) -> V {
    let v = load::<V>(t, velocity, i).mul_add(momentum, g);
    store(v, velocity, i);
    if nesterov { v.mul_add(momentum, g) } else { v }
}

pub(super) fn sgd(context: &mut Context<'_, '_>, op: &Sgd) -> Result<(), CpuError> {
    let Some(scalars) = applied(context, op.scalars)? else { return Ok(()) };
    let views = &mut context.views;
    let lr = learning_rate(scalars, op.rate);
    let job = Descent {
        grads: views.f32("grads", op.grads)?,
        decay: (lr * op.weight_decay) as f32,
        scale: scalars[scalar::GRAD_SCALE],
        momentum: op.momentum as f32,
        nesterov: op.nesterov,
        rate: lr as f32,
    };
    let velocity = op.velocity.map(|velocity| views.f32_mut("velocity", velocity)).transpose()?;
    let params = Chunks::new(views.f32_mut("params", op.params)?, CHUNK);
    context.team.for_each((params, velocity.map(|velocity| Chunks::new(velocity, CHUNK))), &job);
    Ok(())
}

struct Accelerate<'s> {
    grads: &'s [f32],
    scale: f32,
    momentum: f32,
    nesterov: bool,
}

impl Job<(Chunks<'_, f32>, Chunks<'_, f32>)> for Accelerate<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, (velocity, direction): (&mut [f32], &mut [f32])) {
        let grads = &self.grads[index * CHUNK..][..velocity.len()];
        let [scale, momentum] = [self.scale, self.momentum].map(|x| V::splat(t, x));
        for i in (0..velocity.len()).step_by(V::LANES) {
            let g = load::<V>(t, grads, i) * scale;
            store(accelerate(t, velocity, i, g, momentum, self.nesterov), direction, i);
        }
    }
}

pub(super) fn momentum(context: &mut Context<'_, '_>, op: &Momentum) -> Result<(), CpuError> {
    let scalars = applied(context, op.scalars)?;
    let views = &mut context.views;
    let direction = views.f32_mut("direction", op.direction)?;
    let Some(scalars) = scalars else {
        direction.fill(0.0);
        return Ok(());
    };
    let job = Accelerate {
        grads: views.f32("grads", op.grads)?,
        scale: scalars[scalar::GRAD_SCALE],
        momentum: op.momentum as f32,
        nesterov: op.nesterov,
    };
    let velocity = Chunks::new(views.f32_mut("velocity", op.velocity)?, CHUNK);
    context.team.for_each((velocity, Chunks::new(direction, CHUNK)), &job);
    Ok(())
}

pub(super) fn descend(context: &mut Context<'_, '_>, op: &Descend) -> Result<(), CpuError> {
    let Some(scalars) = applied(context, op.scalars)? else { return Ok(()) };
    let lr = learning_rate(scalars, op.rate);
    let job = Descent {
        grads: context.views.f32("direction", op.direction)?,
        decay: (lr * op.weight_decay) as f32,
        scale: 1.0,
        momentum: 0.0,
        nesterov: false,
        rate: (lr * op.scale) as f32,
    };
    let params = context.views.f32_mut("params", op.params)?;
    context.team.for_each((Chunks::new(params, CHUNK), None), &job);
    Ok(())
}

struct Follow<'s> {
    params: &'s [f32],
    share: f32,
}

impl Job<Chunks<'_, f32>> for Follow<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, average: &mut [f32]) {
        let params = &self.params[index * CHUNK..][..average.len()];
        let share = V::splat(t, self.share);
        for i in (0..average.len()).step_by(V::LANES) {
            let before = load::<V>(t, average, i);
            store(share.mul_add(load::<V>(t, params, i) - before, before), average, i);
        }
    }
}

pub(super) fn average(context: &mut Context<'_, '_>, op: &Average) -> Result<(), CpuError> {
    if applied(context, op.scalars)?.is_none() {
        return Ok(());
    }
    let share = average_share(context.views.u32("counters", op.counters)?, op.decay);
    let job = Follow { params: context.views.f32("params", op.params)?, share };
    let average = context.views.f32_mut("average", op.average)?;
    context.team.for_each(Chunks::new(average, CHUNK), &job);
    Ok(())
}
