//! Random norms.

use super::{Fill, Memory, ODD, On, coin, left_behind, normals, pick};
use crate::op::*;
use crate::reference::Reference;
use crate::rng::Rng;

/// Forward or backward.
pub(super) fn case(kind: OpKind, rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    // At a width of 2 or 3 the gradient is a small difference of large numbers, in any arithmetic.
    let (rows, width) = (pick(rng, &ODD), pick(rng, &[5, 7, 16, 33, 63, 65, 128, 384]));
    // The larger one is seen in the result.
    let eps = if coin(rng) { 1e-5 } else { 0.5 };
    let (with_bias, accumulate, in_place) = (coin(rng), coin(rng), coin(rng));
    let n = rows * width;
    if kind == OpKind::LayerNormForward {
        return LayerNormForward {
            x: memory.span(n, Fill::Normal(2.0)),
            weight: memory.span(width, Fill::Normal(1.0)),
            bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
            y: memory.span(n, Fill::Poison),
            mean: memory.span(rows, Fill::Poison),
            rstd: memory.span(rows, Fill::Poison),
            rows,
            width,
            eps,
        }
        .into();
    }
    let x = normals(rng, n, 2.0);
    let mut oracle = Reference::<f64>::new();
    let mut at = On::new(&mut oracle, rng.clone());
    let forward = LayerNormForward {
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
    let mut left = left_behind(forward.into(), &mut oracle, &[forward.mean, forward.rstd]);
    let (rstd, mean) = (left.pop().unwrap_or_default(), left.pop().unwrap_or_default());
    let d_y = memory.span(n, Fill::Normal(1.0));
    LayerNormBackward {
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
        d_weight: memory.span(width, Fill::Normal(1.0)),
        d_bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        rows,
        width,
    }
    .into()
}
