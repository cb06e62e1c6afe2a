//! Random norms.

use alloc::vec;

use super::{Draw, Fill, Memory, Recording, Sizes, left_behind, result, result_values, side_by_side};
use crate::memory::Strided;
use crate::op::*;

/// Rows, vectors in each, and their width.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    groups: usize,
    width: usize,
}

impl Shape {
    fn row(&self) -> usize {
        self.groups * self.width
    }

    fn vectors(&self) -> usize {
        self.rows * self.groups
    }
}

/// At a width of 2 or 3 the gradient is a small difference of large numbers, in any arithmetic.
pub(super) fn shape(draw: &mut Draw) -> Shape {
    let (rows, width) = draw.rows(Sizes(33, 130, 257, 400), Sizes(33, 130, 1030, 1200), 5);
    let groups = if draw.variant() { draw.turn(&[2, 8, 3, 5]) } else { 1 };
    Shape { rows: rows.min(draw.work.div_ceil(groups * width)), groups, width }
}

/// The larger one is seen in the result.
fn eps(draw: &mut Draw) -> f64 {
    if draw.variant() { 1e-5 } else { 0.5 }
}

/// How far rows lie apart, of two operands; and whether both are columns of one matrix.
fn gaps(draw: &mut Draw) -> ([usize; 2], bool) {
    let (apart, shared) = (draw.variant(), draw.variant());
    let mut gap = || if draw.is_even() { 64 } else { 1 + draw.below(40) };
    (if apart { [gap(), gap()] } else { [0; 2] }, apart && shared)
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    forward_of(draw, memory, shape, shape.rows).into()
}

/// Of this shape. What it reads of the rows from `live` on is no number.
pub(super) fn forward_of(draw: &mut Draw, memory: &mut dyn Memory, shape: Shape, live: usize) -> NormForward {
    let Shape { rows, groups, width } = shape;
    let (eps, with_bias) = (eps(draw), !draw.variant());
    let (far, broken, rms) = (draw.variant(), draw.variant(), draw.variant());
    let ([x_gap, y_gap], shared) = gaps(draw);
    let mut x = draw.normals(rows * shape.row(), 2.0);
    if far {
        // A mean far from 0, where a difference of squares has no digits left.
        x.iter_mut().for_each(|x| *x = f64::from((*x + 60.0) as f32));
    }
    // What is no number in one vector is no matter of the others.
    if broken {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    x[live * shape.row()..].fill(f64::NAN);
    let y = result_values(draw, (rows, shape.row()), live);
    let [x, y] = if shared {
        side_by_side(draw, memory, [x, y], shape.row(), y_gap, true)
    } else {
        let [x] = side_by_side(draw, memory, [x], shape.row(), x_gap, false);
        let [y] = side_by_side(draw, memory, [y], shape.row(), y_gap, true);
        [x, y]
    };
    NormForward {
        kind: match rms {
            true => Normalize::Rms,
            false => Normalize::Layer { mean: result(draw, memory, (rows, groups), live) },
        },
        x,
        weight: memory.span(width, Fill::Normal(1.0)),
        bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        y,
        rstd: result(draw, memory, (rows, groups), live),
        rows,
        groups,
        width,
        eps,
    }
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    let Shape { rows, groups, width } = shape;
    let eps = eps(draw);
    let (with_bias, accumulate, in_place) = (!draw.variant(), draw.variant(), draw.variant());
    let rms = draw.variant();
    let ([x_gap, d_gap], shared) = gaps(draw);
    let n = rows * shape.row();
    let x = draw.normals(n, 2.0);
    let x = draw.as_stored(x);
    let mut at = Recording::new(draw.rng.clone());
    let [mean, rstd] = [(); 2].map(|()| at.span(shape.vectors(), Fill::Poison));
    let forward = NormForward {
        kind: if rms { Normalize::Rms } else { Normalize::Layer { mean } },
        x: at.span(n, Fill::Values(x.clone())).rows(shape.row()),
        weight: at.span(width, Fill::Normal(1.0)),
        bias: None,
        y: at.span(n, Fill::Poison).rows(shape.row()),
        rstd,
        rows,
        groups,
        width,
        eps,
    };
    let mut left = left_behind(draw, forward.into(), &mut at, &[mean, rstd]);
    let (rstd, mean) = (left.pop().unwrap_or_default(), left.pop().unwrap_or_default());

    let in_place = in_place && !accumulate;
    let d_y = draw.normals(n, 1.0);
    let [d_y] = side_by_side(draw, memory, [d_y], shape.row(), d_gap, in_place);
    let before = if accumulate { draw.normals(n, 1.0) } else { vec![f64::NAN; n] };
    let apart = |draw: &mut Draw, memory: &mut dyn Memory, x| -> Strided {
        let [x] = side_by_side(draw, memory, [x], shape.row(), x_gap, false);
        x
    };
    let [x, d_x] = if in_place {
        [apart(draw, memory, x), d_y]
    } else if shared {
        side_by_side(draw, memory, [x, before], shape.row(), x_gap, true)
    } else {
        let [d_x] = side_by_side(draw, memory, [before], shape.row(), d_gap / 2, true);
        [apart(draw, memory, x), d_x]
    };
    NormBackward {
        kind: match rms {
            true => Normalize::Rms,
            false => Normalize::Layer { mean: memory.span(shape.vectors(), Fill::Values(mean)) },
        },
        x,
        weight: memory.span(width, Fill::Normal(1.0)),
        rstd: memory.span(shape.vectors(), Fill::Values(rstd)),
        d_y,
        d_x,
        accumulate,
        d_weight: draw.keeps().then(|| memory.span(width, Fill::Normal(1.0))),
        d_bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        rows,
        groups,
        width,
    }
    .into()
}
