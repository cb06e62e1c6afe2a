//! What makes an update of a gradient.

use alloc::vec::Vec;

use crate::backend::fallback::{read_optional, write_optional};
use crate::backend::{Backend, read_elems, read_u32, write_elems, write_u32};
use crate::memory::{Span, zeros};
use crate::op::{AdamW, Average, Descend, FinishStep, Momentum, NewtonSchulz, Sgd, scalar};
use crate::real::Real;
use crate::reference::{newton_schulz, optimizer};

pub(super) fn finish<B: Backend + ?Sized>(backend: &mut B, op: &FinishStep) -> Result<(), B::Error> {
    let mut scalars = read_elems(backend, op.scalars)?;
    let mut counters = read_u32(backend, op.counters)?;
    optimizer::finish_step(&mut scalars, &mut counters, op.clip);
    write_elems(backend, op.scalars, &scalars)?;
    write_u32(backend, op.counters, &counters)
}

/// The scalars; `None` if the step is skipped, so that nothing else needs to be read.
fn applied<B: Backend + ?Sized>(backend: &mut B, scalars: Span) -> Result<Option<Vec<B::Elem>>, B::Error> {
    let scalars = read_elems(backend, scalars)?;
    let skipped = scalars[scalar::APPLY] == B::Elem::from_f64(0.0);
    Ok((!skipped).then_some(scalars))
}

pub(super) fn adamw<B: Backend + ?Sized>(backend: &mut B, op: &AdamW) -> Result<(), B::Error> {
    let Some(scalars) = applied(backend, op.scalars)? else { return Ok(()) };
    let counters = read_u32(backend, op.counters)?;
    let grads = read_elems(backend, op.grads)?;
    let mut params = read_elems(backend, op.params)?;
    let mut m = read_elems(backend, op.m)?;
    let mut v = read_elems(backend, op.v)?;
    optimizer::adamw(
        &mut params,
        &grads,
        &mut m,
        &mut v,
        &scalars,
        &counters,
        op.beta1,
        op.beta2,
        op.eps,
        op.weight_decay,
        op.rate,
    );
    write_elems(backend, op.params, &params)?;
    write_elems(backend, op.m, &m)?;
    write_elems(backend, op.v, &v)
}

pub(super) fn sgd<B: Backend + ?Sized>(backend: &mut B, op: &Sgd) -> Result<(), B::Error> {
    let Some(scalars) = applied(backend, op.scalars)? else { return Ok(()) };
    let grads = read_elems(backend, op.grads)?;
    let mut params = read_elems(backend, op.params)?;
    let mut velocity = read_optional(backend, op.velocity)?;
    let Sgd { momentum, nesterov, weight_decay, rate, .. } = *op;
    let moving = velocity.as_deref_mut();
    optimizer::sgd(&mut params, &grads, moving, &scalars, momentum, nesterov, weight_decay, rate);
    write_elems(backend, op.params, &params)?;
    write_optional(backend, op.velocity, velocity.as_deref())
}

pub(super) fn momentum<B: Backend + ?Sized>(backend: &mut B, op: &Momentum) -> Result<(), B::Error> {
    let scalars = read_elems(backend, op.scalars)?;
    let grads = read_elems(backend, op.grads)?;
    let mut velocity = read_elems(backend, op.velocity)?;
    let mut direction = zeros("direction", op.direction.len)?;
    optimizer::momentum(&grads, &mut velocity, &mut direction, &scalars, op.momentum, op.nesterov);
    write_elems(backend, op.velocity, &velocity)?;
    write_elems(backend, op.direction, &direction)
}

pub(super) fn orthogonalize<B: Backend + ?Sized>(backend: &mut B, op: &NewtonSchulz) -> Result<(), B::Error> {
    let mut x = read_elems(backend, op.x)?;
    let mut work = zeros("work", newton_schulz::room(op.rows, op.cols))?;
    newton_schulz::newton_schulz(&mut x, &mut work, op.rows, op.cols, op.steps);
    write_elems(backend, op.x, &x)
}

pub(super) fn descend<B: Backend + ?Sized>(backend: &mut B, op: &Descend) -> Result<(), B::Error> {
    let Some(scalars) = applied(backend, op.scalars)? else { return Ok(()) };
    let direction = read_elems(backend, op.direction)?;
    let mut params = read_elems(backend, op.params)?;
    optimizer::descend(&mut params, &direction, &scalars, op.weight_decay, op.rate, op.scale);
    write_elems(backend, op.params, &params)
}

pub(super) fn average<B: Backend + ?Sized>(backend: &mut B, op: &Average) -> Result<(), B::Error> {
    let Some(scalars) = applied(backend, op.scalars)? else { return Ok(()) };
    let counters = read_u32(backend, op.counters)?;
    let params = read_elems(backend, op.params)?;
    let mut average = read_elems(backend, op.average)?;
    optimizer::average(&params, &mut average, &scalars, &counters, op.decay);
    write_elems(backend, op.average, &average)
}
