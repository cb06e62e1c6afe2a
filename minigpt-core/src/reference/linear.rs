//! The linear layer, with what usually follows it: bias, non-linearity, dropout, residual connection.
//!
//! ```text
//! z[r, o] = sum_i x[r, i] weight[o, i] + bias[o]
//! y[r, o] = residual[r, o] + dropout(f(z[r, o]))
//!
//! x             (rows, d_in)
//! weight        (d_out, d_in), bias (d_out)
//! y, residual   (rows, d_out)
//! ```
//!
//! Without f (the backward op has no activation of its own), let g = dropout'(d_y), the gradient of z. Then z is
//! linear in each of its three inputs, and the chain rule gives
//!
//! ```text
//! d_x[r, i]      = sum_o g[r, o] weight[o, i]       g weight
//! d_weight[o, i] += sum_r g[r, o] x[r, i]           g^T x
//! d_bias[o]      += sum_r g[r, o]
//! ```
//!
//! The residual's gradient is d_y itself; the caller has it already. The activation is undone by the layer *after*
//! it, which writes the gradient of its input anyway: if x = f(input), then d_input = d_x f'(input).

use super::activation::{activate, derivative};
use super::dropout::{Mask, drop_out};
use super::{add_scaled, dot};
use crate::config::Activation;
use crate::real::Real;

/// y = residual + dropout(activation(x weight^T + bias)). `pre_activation` (rows, d_out) receives z.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::{Activation, reference::linear::linear_forward};
/// let x = [1.0, 2.0]; // (rows, d_in) = (1, 2)
/// let weight = [3.0, 4.0, -5.0, 0.0]; // (d_out, d_in) = (2, 2)
/// let (mut z, mut y) = ([0.0; 2], [0.0; 2]);
/// linear_forward(
///     &x, &weight, Some(&[0.5, 0.5]), Some(Activation::Relu), Some(&mut z), None, Some(&[100.0, 200.0]), &mut y,
///     1, 2, 2,
/// );
/// assert_eq!(z, [11.5, -4.5]);
/// assert_eq!(y, [111.5, 200.0]);
/// ```
pub fn linear_forward<R: Real>(
    x: &[R],
    weight: &[R],
    bias: Option<&[R]>,
    activation: Option<Activation>,
    mut pre_activation: Option<&mut [R]>,
    dropout: Option<&Mask>,
    residual: Option<&[R]>,
    y: &mut [R],
    rows: usize,
    d_in: usize,
    d_out: usize,
) {
    for row in 0..rows {
        let x = &x[row * d_in..][..d_in];
        for o in 0..d_out {
            let index = row * d_out + o;
            let mut value = dot(x, &weight[o * d_in..][..d_in]);
            if let Some(bias) = bias {
                value += bias[o];
            }
            if let Some(z) = pre_activation.as_deref_mut() {
                z[index] = value;
            }
            if let Some(activation) = activation {
                value = activate(activation, value);
            }
            value = drop_out(dropout, index, value);
            if let Some(residual) = residual {
                value += residual[index];
            }
            y[index] = value;
        }
    }
}

/// Adds to `d_weight` and `d_bias`, and writes `d_x`, or adds to it if `accumulate`; each if it is given.
///
/// `activated` is the activation that `x` came out of, with its input (rows, d_in); then `d_x` receives the gradient
/// of that input, which cannot be combined with `accumulate`.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::reference::linear::linear_backward;
/// let (mut d_x, mut d_weight, mut d_bias) = ([0.0; 2], [0.0; 2], [0.0; 1]);
/// // y = 1 * 3 + 2 * 4, and dL/dy = 10.
/// linear_backward(
///     &[1.0, 2.0], &[3.0, 4.0], &[10.0], None, None, Some(&mut d_x), false, Some(&mut d_weight),
///     Some(&mut d_bias), 1, 2, 1,
/// );
/// assert_eq!((d_x, d_weight, d_bias), ([30.0, 40.0], [10.0, 20.0], [10.0]));
/// ```
pub fn linear_backward<R: Real>(
    x: &[R],
    weight: &[R],
    d_y: &[R],
    dropout: Option<&Mask>,
    activated: Option<(Activation, &[R])>,
    mut d_x: Option<&mut [R]>,
    accumulate: bool,
    mut d_weight: Option<&mut [R]>,
    mut d_bias: Option<&mut [R]>,
    rows: usize,
    d_in: usize,
    d_out: usize,
) {
    if let (Some(d_x), false) = (d_x.as_deref_mut(), accumulate) {
        d_x.fill(R::zero());
    }
    for row in 0..rows {
        let x = &x[row * d_in..][..d_in];
        for o in 0..d_out {
            let index = row * d_out + o;
            let g = drop_out(dropout, index, d_y[index]);
            if let Some(d_weight) = d_weight.as_deref_mut() {
                add_scaled(&mut d_weight[o * d_in..][..d_in], g, x);
            }
            if let Some(d_bias) = d_bias.as_deref_mut() {
                d_bias[o] += g;
            }
            if let Some(d_x) = d_x.as_deref_mut() {
                add_scaled(&mut d_x[row * d_in..][..d_in], g, &weight[o * d_in..][..d_in]);
            }
        }
    }
    if let (Some(d_x), Some((activation, input))) = (d_x, activated) {
        for (d_x, &input) in d_x.iter_mut().zip(input) {
            *d_x *= derivative(activation, input);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const SHAPES: [(usize, usize, usize); 4] = [(1, 6, 2), (2, 3, 5), (5, 4, 3), (3, 7, 2)];

    fn less_one(d: Vec<f64>) -> Vec<f64> {
        d.into_iter().map(|d| d - 1.0).collect()
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for (rows, d_in, d_out) in SHAPES {
            let (x, weight) = (random(1, rows * d_in), random(2, d_out * d_in));
            let (bias, residual) = (random(3, d_out), random(4, rows * d_out));
            let weights = random(5, rows * d_out);
            let mask = Mask::new(0.3, 7, &[1, 2, 4, 4]);
            for (with_bias, with_residual, dropout, accumulate) in [
                (true, true, Some(&mask), false),
                (true, false, None, true),
                (false, true, None, false),
                (false, false, Some(&mask), true),
            ] {
                let forward = |x: &[f64], weight: &[f64], bias: &[f64]| {
                    let mut y = vec![f64::NAN; rows * d_out];
                    linear_forward(
                        x,
                        weight,
                        with_bias.then_some(bias),
                        None,
                        None,
                        dropout,
                        with_residual.then_some(&residual[..]),
                        &mut y,
                        rows,
                        d_in,
                        d_out,
                    );
                    weighted_sum(&y, &weights)
                };
                // What is added to begins at 1, what is written begins as NaN.
                let mut d_x = vec![if accumulate { 1.0 } else { f64::NAN }; rows * d_in];
                let (mut d_weight, mut d_bias) = (vec![1.0; d_out * d_in], vec![1.0; d_out]);
                linear_backward(
                    &x,
                    &weight,
                    &weights,
                    dropout,
                    None,
                    Some(&mut d_x),
                    accumulate,
                    Some(&mut d_weight),
                    with_bias.then_some(&mut d_bias[..]),
                    rows,
                    d_in,
                    d_out,
                );
                let d_x = if accumulate { less_one(d_x) } else { d_x };
                assert_gradient("x", &d_x, &x, |x| forward(x, &weight, &bias));
                assert_gradient("weight", &less_one(d_weight), &weight, |w| forward(&x, w, &bias));
                if with_bias {
                    assert_gradient("bias", &less_one(d_bias), &bias, |b| forward(&x, &weight, b));
                }
            }
        }
    }

    #[test]
    fn the_gradient_goes_back_through_the_activation_before_the_layer() {
        let mask = Mask::new(0.3, 7, &[1, 2, 4, 4]);
        for activation in [
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::Relu,
            Activation::ReluSquared,
            Activation::Silu,
        ] {
            for (rows, d_in, d_out) in SHAPES {
                // Off the kink of ReLU by more than the steps of the differences.
                let input: Vec<f64> =
                    random(1, rows * d_in).iter().map(|x| x + 0.1f64.copysign(*x)).collect();
                let (weight, weights) = (random(2, d_out * d_in), random(5, rows * d_out));
                let through =
                    |input: &[f64]| -> Vec<f64> { input.iter().map(|&x| activate(activation, x)).collect() };
                let x = through(&input);
                let mut d_input = vec![f64::NAN; rows * d_in];
                let mut d_weight = vec![0.0; d_out * d_in];
                linear_backward(
                    &x,
                    &weight,
                    &weights,
                    Some(&mask),
                    Some((activation, &input)),
                    Some(&mut d_input),
                    false,
                    Some(&mut d_weight),
                    None,
                    rows,
                    d_in,
                    d_out,
                );
                let forward = |input: &[f64]| {
                    let mut y = vec![f64::NAN; rows * d_out];
                    linear_forward(
                        &through(input),
                        &weight,
                        None,
                        None,
                        None,
                        Some(&mask),
                        None,
                        &mut y,
                        rows,
                        d_in,
                        d_out,
                    );
                    weighted_sum(&y, &weights)
                };
                assert_gradient("input", &d_input, &input, forward);
            }
        }
    }

    #[test]
    fn the_order_is_product_bias_activation_dropout_residual() {
        let (rows, d_in, d_out) = (3, 2, 4);
        let (x, weight) = (random(1, rows * d_in), random(2, d_out * d_in));
        let (bias, residual) = (random(3, d_out), random(4, rows * d_out));
        let mask = Mask::new(0.5, 1, &[3, 0, 0, 0]);
        let (mut z, mut y) = (vec![f64::NAN; rows * d_out], vec![f64::NAN; rows * d_out]);
        linear_forward(
            &x,
            &weight,
            Some(&bias),
            Some(Activation::GeluErf),
            Some(&mut z),
            Some(&mask),
            Some(&residual),
            &mut y,
            rows,
            d_in,
            d_out,
        );
        for r in 0..rows {
            for o in 0..d_out {
                let i = r * d_out + o;
                let sum = x[2 * r] * weight[2 * o] + x[2 * r + 1] * weight[2 * o + 1] + bias[o];
                assert_close(&[z[i]], &[sum], 1e-15);
                let hidden = mask.apply(i, activate(Activation::GeluErf, sum));
                assert_close(&[y[i]], &[hidden + residual[i]], 1e-15);
            }
        }
        let dropped = (0..y.len()).filter(|&i| y[i] == residual[i]).count();
        assert!(dropped > 0 && dropped < y.len(), "the mask must drop some and keep some: {dropped}");
    }

    #[test]
    fn no_gradient_is_computed_that_is_not_asked_for() {
        let (mut d_weight, mut d_bias) = ([0.5], [0.25]);
        linear_backward(
            &[3.0],
            &[2.0],
            &[10.0],
            None,
            None,
            None,
            false,
            Some(&mut d_weight),
            Some(&mut d_bias),
            1,
            1,
            1,
        );
        assert_eq!((d_weight, d_bias), ([30.5], [10.25]));
        let mut d_x = [0.5];
        linear_backward(&[3.0], &[2.0], &[10.0], None, None, Some(&mut d_x), true, None, None, 1, 1, 1);
        assert_eq!(d_x, [20.5]);
    }
}
