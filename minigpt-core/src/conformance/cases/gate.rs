//! Random gates.

use alloc::vec::Vec;

use super::rows::live;
use super::{Draw, Fill, Memory, SIZES, linear, result};
use crate::op::*;

fn shape(draw: &mut Draw) -> (usize, usize) {
    let (rows, width) = draw.rows(SIZES, SIZES, 1);
    (rows.min((draw.work / 60).div_ceil(width)).max(1), width)
}

/// How much larger some gates are, so that a careless exponential overflows.
const LARGE: f64 = 60.0;

/// Gates and their factors, side by side in each row. Some gates are large, with small factors, so that no result is so
/// large that nobody sees what is wrong with another; and some are at the corner of ReLU.
fn inputs(draw: &mut Draw, rows: usize, width: usize) -> Vec<f64> {
    let mut x = draw.normals(rows * 2 * width, 1.0);
    for row in x.chunks_exact_mut(2 * width) {
        let (gates, factors) = row.split_at_mut(width);
        for (place, (gate, factor)) in gates.iter_mut().zip(factors).enumerate() {
            match place % 7 {
                2 => (*gate, *factor) = (*gate * LARGE, *factor / LARGE),
                4 => *gate = 0.0,
                _ => *gate *= 2.0,
            }
        }
    }
    x
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    forward_of(draw, memory, shape, shape.0).into()
}

/// Of this shape. What it reads of the rows from `live` on is no number.
fn forward_of(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    (rows, width): (usize, usize),
    live: usize,
) -> GateForward {
    let mut x = inputs(draw, rows, width);
    // What is no number in one row is no matter of the others.
    if draw.variant() {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    x[live * 2 * width..].fill(f64::NAN);
    GateForward {
        x: memory.span(x.len(), Fill::Values(x)),
        y: result(draw, memory, (rows, width), live),
        activation: linear::activation(draw),
        rows,
        width,
    }
}

pub(super) fn rows(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    let (rows, live) = live(draw, memory, shape.0);
    GateRows { live, gate: forward_of(draw, memory, shape, rows) }.into()
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, width) = shape(draw);
    let x = inputs(draw, rows, width);
    let mut d_y = draw.normals(rows * width, 1.0);
    d_y.chunks_exact_mut(width).flat_map(|row| row.iter_mut().skip(2).step_by(7)).for_each(|d| *d /= LARGE);
    GateBackward {
        x: memory.span(x.len(), Fill::Values(x)),
        d_y: memory.span(rows * width, Fill::Values(d_y)),
        d_x: memory.span(rows * 2 * width, Fill::Poison),
        activation: linear::activation(draw),
        rows,
        width,
    }
    .into()
}
