//! Random updates.

use alloc::vec;
use alloc::vec::Vec;

use super::step::count;
use super::{Draw, Fill, Memory, Sizes, counters};
use crate::memory::Span;
use crate::op::{AdamW, Average, Descend, Momentum, NewtonSchulz, Op, Sgd, scalar};

/// The scalars of a step that is applied, or skipped.
fn scalars(apply: bool, memory: &mut dyn Memory) -> Span {
    let mut scalars = vec![0.0; scalar::LEN];
    scalars[scalar::GRAD_SCALE] = if apply { 0.01 } else { 0.0 };
    scalars[scalar::LEARNING_RATE] = 1e-2;
    scalars[scalar::APPLY] = if apply { 1.0 } else { 0.0 };
    memory.span(scalar::LEN, Fill::Values(scalars))
}

/// Gradients, or a direction: in a step that is skipped one is broken, and must not get through.
fn gradients(draw: &mut Draw, n: usize, apply: bool) -> Vec<f64> {
    let mut grads = draw.normals(n, 3.0);
    if !apply {
        grads[n / 2] = f64::NAN;
    }
    grads
}

/// Whether the step is applied, and a weight decay and a factor on the rate that are seen in the result.
fn settings(draw: &Draw) -> (bool, f64, f64) {
    (draw.turn(&[true, true, true, false]), draw.turn(&[0.0, 2.5]), draw.turn(&[1.0, 1.0, 3.5]))
}

pub(super) fn adamw(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (n, (apply, weight_decay, rate)) = (count(draw), settings(draw));
    // The larger one is seen in the result.
    let eps = if draw.variant() { 0.3 } else { 1e-8 };
    let mut grads = gradients(draw, n, apply);
    let (mut m, mut v) = (draw.normals(n, 0.1), draw.normals(n, 0.1));
    v.iter_mut().for_each(|v| *v = v.abs());
    // A parameter that has never had a gradient: only eps keeps 0 / 0 away.
    (grads[0], m[0], v[0]) = (if apply { 0.0 } else { grads[0] }, 0.0, 0.0);
    AdamW {
        params: memory.span(n, Fill::Normal(1.0)),
        grads: memory.span(n, Fill::Values(grads)),
        m: memory.span(n, Fill::Values(m)),
        v: memory.span(n, Fill::Values(v)),
        scalars: scalars(apply, memory),
        counters: memory.span(crate::op::counter::LEN, counters(draw)),
        beta1: 0.9,
        beta2: 0.99,
        eps,
        weight_decay,
        rate,
    }
    .into()
}

pub(super) fn sgd(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (n, (apply, weight_decay, rate)) = (count(draw), settings(draw));
    let (moving, nesterov) = (!draw.variant(), draw.variant());
    let grads = gradients(draw, n, apply);
    Sgd {
        params: memory.span(n, Fill::Normal(0.1)),
        grads: memory.span(n, Fill::Values(grads)),
        velocity: moving.then(|| memory.span(n, Fill::Normal(1.0))),
        scalars: scalars(apply, memory),
        momentum: if moving { 0.75 } else { 0.0 },
        nesterov,
        weight_decay,
        rate,
    }
    .into()
}

pub(super) fn momentum(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (n, (apply, ..)) = (count(draw), settings(draw));
    let nesterov = draw.variant();
    let grads = gradients(draw, n, apply);
    Momentum {
        grads: memory.span(n, Fill::Values(grads)),
        velocity: memory.span(n, Fill::Normal(0.1)),
        direction: memory.span(n, Fill::Poison),
        scalars: scalars(apply, memory),
        momentum: 0.95,
        nesterov,
    }
    .into()
}

/// A wide matrix, a tall one or a square, and how often it is iterated.
pub(super) fn newton_schulz(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    const SIDE: Sizes = Sizes(33, 130, 257, 400);
    let (mut rows, mut cols) = draw.rows(SIDE, SIDE, 1);
    let (mut steps, square) = (draw.turn(&[5, 1, 5, 2, 5, 3, 5, 0]), draw.variant());
    if square {
        rows = cols;
    }
    // A multiply-add is soon done where so many are side by side.
    let work = |rows: usize, cols: usize, steps: u32| {
        let (m, n) = (rows.min(cols), rows.max(cols));
        // Without an iteration the matrix is read and written, and is not to be larger for that.
        steps.max(1) as usize * m * m * (2 * n + m) / 2
    };
    while work(rows, cols, steps) > draw.work {
        if steps > 1 {
            steps -= 1;
        } else {
            let longest = if rows > cols { &mut rows } else { &mut cols };
            *longest = longest.div_ceil(2);
        }
    }
    let n = rows * cols;
    // Those whose squares f32 has no room for, and those beside which what is added to the norm is seen.
    let (large, small, broken) = (draw.variant(), draw.variant(), draw.variant());
    let deviation = match (large, small) {
        (true, false) => 1e25,
        (false, true) => 1e-7,
        _ => 1.0,
    };
    let mut x = draw.normals(n, deviation);
    match draw.turn(&[0, 1, 2, 3]) {
        // All rows alike but for their size: of one singular value, and the rest is what rounding leaves.
        1 => (cols..n).for_each(|i| x[i] = f64::from((x[i % cols] * (i / cols % 3) as f64) as f32)),
        // A row and a column of zeros.
        2 => (0..n).filter(|i| i / cols == rows / 2 || i % cols == cols / 2).for_each(|i| x[i] = 0.0),
        _ => {}
    }
    if broken {
        x[n / 2] = f64::NAN;
    }
    NewtonSchulz { x: memory.span(n, Fill::Values(x)), rows, cols, steps }.into()
}

pub(super) fn descend(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (n, (apply, weight_decay, rate)) = (count(draw), settings(draw));
    let scale = if draw.variant() { 2.0 } else { 1.0 };
    let direction = gradients(draw, n, apply);
    Descend {
        params: memory.span(n, Fill::Normal(0.1)),
        direction: memory.span(n, Fill::Values(direction)),
        scalars: scalars(apply, memory),
        weight_decay,
        rate,
        scale,
    }
    .into()
}

pub(super) fn average(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (n, (apply, ..)) = (count(draw), settings(draw));
    // Below what the first updates keep, and above.
    let decay = draw.turn(&[0.999, 0.25]);
    let params = gradients(draw, n, apply);
    Average {
        params: memory.span(n, Fill::Values(params)),
        average: memory.span(n, Fill::Normal(1.0)),
        scalars: scalars(apply, memory),
        counters: memory.span(crate::op::counter::LEN, counters(draw)),
        decay,
    }
    .into()
}
