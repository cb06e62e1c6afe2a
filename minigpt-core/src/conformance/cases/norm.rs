//! Random norms.

use super::{Draw, Fill, Memory, Recording, Sizes, left_behind, result};
use crate::op::*;

/// Rows and width. At a width of 2 or 3 the gradient is a small difference of large numbers, in any arithmetic.
pub(super) fn shape(draw: &mut Draw) -> (usize, usize) {
    let (rows, width) = draw.rows(Sizes(33, 130, 257, 400), Sizes(33, 130, 1030, 1200), 5);
    (rows.min(draw.work.div_ceil(width)), width)
}

/// The larger one is seen in the result.
fn eps(draw: &mut Draw) -> f64 {
    if draw.variant() { 1e-5 } else { 0.5 }
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, width) = shape(draw);
    forward_of(draw, memory, (rows, width), rows).into()
}

/// Of this shape. What it reads of the rows from `live` on is no number.
pub(super) fn forward_of(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    (rows, width): (usize, usize),
    live: usize,
) -> NormForward {
    let (eps, with_bias) = (eps(draw), !draw.variant());
    let (far, broken) = (draw.variant(), draw.variant());
    let mut x = draw.normals(rows * width, 2.0);
    if far {
        // A mean far from 0, where a difference of squares has no digits left.
        x.iter_mut().for_each(|x| *x = f64::from((*x + 60.0) as f32));
    }
    // What is no number in one row is no matter of the others.
    if broken {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    x[live * width..].fill(f64::NAN);
    NormForward {
        x: memory.span(x.len(), Fill::Values(x)),
        weight: memory.span(width, Fill::Normal(1.0)),
        bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        y: result(draw, memory, (rows, width), live),
        mean: result(draw, memory, (rows, 1), live),
        rstd: result(draw, memory, (rows, 1), live),
        rows,
        width,
        eps,
    }
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, width) = shape(draw);
    let eps = eps(draw);
    let (with_bias, accumulate, in_place) = (!draw.variant(), draw.variant(), draw.variant());
    let n = rows * width;
    let x = draw.normals(n, 2.0);
    let mut at = Recording::new(draw.rng.clone());
    let forward = NormForward {
        x: at.span(n, Fill::Values(x.clone())),
        weight: at.span(width, Fill::Normal(1.0)),
        bias: None,
        y: at.span(n, Fill::Poison),
        mean: at.span(rows, Fill::Poison),
        rstd: at.span(rows, Fill::Poison),
        rows,
        width,
        eps,
    };
    let mut left = left_behind(forward.into(), &mut at, &[forward.mean, forward.rstd]);
    let (rstd, mean) = (left.pop().unwrap_or_default(), left.pop().unwrap_or_default());
    let d_y = memory.span(n, Fill::Normal(1.0));
    NormBackward {
        x: memory.span(n, Fill::Values(x)),
        weight: memory.span(width, Fill::Normal(1.0)),
        mean: memory.span(rows, Fill::Values(mean)),
        rstd: memory.span(rows, Fill::Values(rstd)),
        d_y,
        d_x: match (accumulate, in_place) {
            (true, _) => memory.span(n, Fill::Normal(1.0)),
            (false, true) => d_y,
            (false, false) => memory.span(n, Fill::Poison),
        },
        accumulate,
        d_weight: draw.keeps().then(|| memory.span(width, Fill::Normal(1.0))),
        d_bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        rows,
        width,
    }
    .into()
}
