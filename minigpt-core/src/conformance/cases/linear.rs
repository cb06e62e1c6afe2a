//! Random linear layers.

use super::{Fill, Memory, ODD, coin, dropout, pick, stored, weight};
use crate::backend::Dtype;
use crate::config::Activation;
use crate::op::*;
use crate::rng::Rng;

/// Shape of a linear op: rows, d_in, d_out. Mostly odd, sometimes large enough for every level of blocking.
pub(super) fn shape(rng: &mut Rng) -> (usize, usize, usize) {
    if rng.below(4) == 0 {
        (pick(rng, &[129, 257, 300]), pick(rng, &[192, 385, 512]), pick(rng, &[65, 129, 384]))
    } else {
        (pick(rng, &ODD), pick(rng, &ODD), pick(rng, &ODD))
    }
}

pub(super) fn forward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let shape = shape(rng);
    forward_with(rng, memory, shape, None)
}

/// Of this shape, and with a weight of this type, if there is one.
pub(super) fn forward_with(
    rng: &mut Rng,
    memory: &mut dyn Memory,
    (rows, d_in, d_out): (usize, usize, usize),
    dtype: Option<Dtype>,
) -> Op {
    let (with_bias, with_activation, keep, residual) = (coin(rng), coin(rng), coin(rng), rng.below(3));
    let n = rows * d_out;
    let y = memory.span(n, if residual == 1 { Fill::Normal(1.0) } else { Fill::Poison });
    LinearForward {
        x: memory.span(rows * d_in, Fill::Normal(1.0)),
        weight: match dtype {
            Some(dtype) => stored(rng, memory, dtype, d_out, d_in, 0.5),
            None => weight(rng, memory, d_out, d_in, 0.5),
        },
        bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        activate: with_activation.then(|| Activate {
            activation: activation(rng),
            input: keep.then(|| memory.span(n, Fill::Poison)),
        }),
        dropout: dropout(rng, memory),
        residual: match residual {
            0 => None,
            1 => Some(y),
            _ => Some(memory.span(n, Fill::Normal(1.0))),
        },
        y,
        rows,
        d_in,
        d_out,
    }
    .into()
}

pub(super) fn backward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (rows, d_in, d_out) = shape(rng);
    let (with_bias, with_d_x, with_activation) = (coin(rng), rng.below(4) > 0, coin(rng));
    let accumulate = coin(rng) && !with_activation;
    LinearBackward {
        x: memory.span(rows * d_in, Fill::Normal(1.0)),
        weight: memory.span(d_out * d_in, Fill::Normal(0.5)),
        d_y: memory.span(rows * d_out, Fill::Normal(1.0)),
        dropout: dropout(rng, memory),
        d_x: with_d_x
            .then(|| memory.span(rows * d_in, if accumulate { Fill::Normal(1.0) } else { Fill::Poison })),
        accumulate,
        activate: with_activation.then(|| Activate {
            activation: activation(rng),
            input: Some(memory.span(rows * d_in, Fill::Normal(1.5))),
        }),
        d_weight: memory.span(d_out * d_in, Fill::Normal(1.0)),
        d_bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        rows,
        d_in,
        d_out,
    }
    .into()
}

fn activation(rng: &mut Rng) -> Activation {
    [Activation::GeluTanh, Activation::GeluErf, Activation::Relu][rng.below(3) as usize]
}

pub(super) fn activation_forward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (rows, width) = (pick(rng, &ODD), pick(rng, &ODD));
    ActivationForward {
        x: memory.span(rows * width, Fill::Normal(2.0)),
        y: memory.span(rows * width, Fill::Poison),
        activation: activation(rng),
        rows,
        width,
    }
    .into()
}
