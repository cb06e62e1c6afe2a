//! Random linear layers.

use super::{Draw, Fill, Memory, SIZES, dropout, result, stored, weight_dtype};
use crate::config::{Activation, Precision};
use crate::memory::Dtype;
use crate::op::*;

/// Shape of a linear op: rows, d_in, d_out. In half of the cases that have few rows, and in some that are wide both ways, it is
/// one, as in decoding.
pub(super) fn shape(draw: &mut Draw) -> (usize, usize, usize) {
    let (mut rows, mut d_in, mut d_out) = (draw.size(SIZES), draw.size(SIZES), draw.size(SIZES));
    let vector = draw.variant();
    if draw.is_tall() {
        (rows, d_in, d_out) = (65_536 + 1 + rows, d_in % 7 + 1, d_out % 7 + 1);
    } else if vector && d_in.min(d_out) >= SIZES.2 && !draw.is_large() {
        rows = 1;
    } else if rows <= 33 && draw.turn(&[true, false]) {
        rows = 1;
        // And a head as wide as vocabularies are.
        if d_in <= 33 {
            d_out = 50_257.min(draw.work);
        }
    }
    // Whole tiles stay whole ones: where there is too much work, rows and what is large are as small as that may be.
    let tile = 64;
    if draw.is_even() && rows >= tile && tile * d_in * d_out > draw.work {
        let least = |size: usize| if size >= SIZES.2 { SIZES.2.next_multiple_of(tile) } else { size };
        (rows, d_in, d_out) = (tile, least(d_in), least(d_out));
    }
    // The widths give way only where one row is too much.
    while d_in * d_out > draw.work {
        let widest = if d_in > d_out { &mut d_in } else { &mut d_out };
        *widest = widest.div_ceil(2);
    }
    let most = draw.work / (d_in * d_out);
    let most = if draw.is_even() && most >= tile { most / tile * tile } else { most };
    (rows.min(most), d_in, d_out)
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    let dtype = match draw.precision {
        // Narrow weights have lines of their own.
        Precision::F32 => None,
        Precision::Bf16 => weight_dtype(draw),
    };
    forward_with(draw, memory, shape, dtype, shape.0).into()
}

/// Of this shape, and with a weight of this type, if there is one. What it reads of the rows from `live` on is no number.
pub(super) fn forward_with(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    (rows, d_in, d_out): (usize, usize, usize),
    dtype: Option<Dtype>,
    live: usize,
) -> LinearForward {
    let (with_bias, with_activation, keep) = (draw.variant(), draw.variant(), draw.variant());
    let (residual, in_place, broken) = (draw.variant(), draw.variant(), draw.variant());
    let n = rows * d_out;
    let y = match residual && in_place {
        true => memory.span(n, Fill::Normal(1.0)),
        false => result(draw, memory, (rows, d_out), live),
    };
    let mut x = draw.normals(rows * d_in, 1.0);
    // What is no number in one row is no matter of the others.
    if broken {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    x[live * d_in..].fill(f64::NAN);
    LinearForward {
        x: memory.span(rows * d_in, Fill::Values(x)),
        weight: match dtype {
            Some(dtype) => stored(draw, memory, dtype, d_out, d_in, 0.5),
            None => memory.span(d_out * d_in, Fill::Normal(0.5)),
        },
        bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        activate: with_activation.then(|| Activate {
            activation: activation(draw),
            input: keep.then(|| result(draw, memory, (rows, d_out), live)),
        }),
        dropout: dropout(draw, memory),
        residual: match (residual, in_place) {
            (false, _) => None,
            (true, true) => Some(y),
            (true, false) if live == rows => Some(memory.span(n, Fill::Normal(1.0))),
            (true, false) => {
                let mut values = draw.normals(n, 1.0);
                values[live * d_out..].fill(f64::NAN);
                Some(memory.span(n, Fill::Values(values)))
            }
        },
        y,
        rows,
        d_in,
        d_out,
    }
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, d_in, d_out) = shape(draw);
    let with_bias = !draw.variant();
    // Not both: that is no op.
    let (with_activation, accumulate) =
        draw.turn(&[(false, false), (true, false), (false, true), (false, true)]);
    let mut inputs = draw.normals(rows * d_in, 1.5);
    // Some where a careless exponential overflows, and some at the corner of ReLU.
    for (place, input) in inputs.iter_mut().enumerate() {
        match place % 7 {
            0 => *input *= 40.0,
            3 => *input = 0.0,
            _ => {}
        }
    }
    // Of accumulation there is nothing to see without it.
    let with_d_x = accumulate || with_activation || draw.below(4) > 0;
    LinearBackward {
        x: memory.span(rows * d_in, Fill::Normal(1.0)),
        weight: memory.span(d_out * d_in, Fill::Normal(0.5)),
        d_y: memory.span(rows * d_out, Fill::Normal(1.0)),
        dropout: dropout(draw, memory),
        d_x: with_d_x
            .then(|| memory.span(rows * d_in, if accumulate { Fill::Normal(1.0) } else { Fill::Poison })),
        accumulate,
        activate: with_activation.then(|| Activate {
            activation: activation(draw),
            input: Some(memory.span(rows * d_in, Fill::Values(inputs))),
        }),
        // Without it, if there is something else to see.
        d_weight: (!with_d_x || draw.keeps()).then(|| memory.span(d_out * d_in, Fill::Normal(1.0))),
        d_bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        rows,
        d_in,
        d_out,
    }
    .into()
}

/// Each comes in every block, and also among the cases of [`backward`] that have one.
pub(super) fn activation(draw: &Draw) -> Activation {
    use Activation::*;
    draw.turn(&[Silu, GeluTanh, ReluSquared, Silu, Relu, GeluErf, ReluSquared, GeluErf, Relu])
}

pub(super) fn activation_forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, width) = draw.rows(SIZES, SIZES, 1);
    let rows = rows.min((draw.work / 20).div_ceil(width)).max(1);
    let mut x = draw.normals(rows * width, 2.0);
    // Some so large that a careless exponential overflows.
    for place in (0..x.len()).step_by(7) {
        x[place] *= 40.0;
    }
    // NaN must come through.
    if draw.variant() {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    ActivationForward {
        x: memory.span(rows * width, Fill::Values(x)),
        y: memory.span(rows * width, Fill::Poison),
        activation: activation(draw),
        rows,
        width,
    }
    .into()
}
