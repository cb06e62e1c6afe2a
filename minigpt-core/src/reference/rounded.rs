//! What [`Precision::Bf16`](crate::Precision::Bf16) rounds inside of an op, besides what the op writes.
//!
//! Each function here is one of the files beside this one, taken apart into its steps, with [`round`] after each:
//!
//! ```text
//! linear     z = round(x weight^T + bias)      h = round(f(z))         d = round(dropout(h))    y = round(residual + d)
//!            g = round(dropout'(d_y))          p = round(g weight)     d_x = round(p f'(input)) or round(before + p)
//! embedding  s = round(token + position)       out = round(dropout(s))
//!            g = round(dropout'(d_out))
//! gate       h = round(f(gate))                y = round(h up)
//!            u = round(d_y up)                 d_gate = round(u f'(gate))                       d_up = round(d_y h)
//! norm       d = round(the gradient of x)      d_x = round(before + d)
//! ```
//!
//! The gradients of parameters are sums, which are not rounded. The other ops have no step of their own to round: their results
//! are rounded where they are written.

use half::bf16;

use super::activation::{activate, derivative};
use super::dropout::{self, Mask};
use super::embedding::embedding_forward;
use super::linear::{linear_backward, linear_forward};
use super::weights::encode_half;
use crate::config::Activation;
use crate::memory::Dtype;
use crate::real::Real;

/// The nearest bf16; ties to even.
///
/// ```
/// use minigpt_core::reference::rounded::round;
/// // 8 bits: from 256 on, every second integer.
/// assert_eq!([255.0f32, 256.0, 257.0, 258.0, 259.0].map(round), [255.0, 256.0, 256.0, 258.0, 260.0]);
/// ```
pub fn round<R: Real>(x: R) -> R {
    R::from_f64(bf16::from_le_bytes(encode_half(Real::to_f64(x), Dtype::Bf16)).to_f64())
}

fn round_all<R: Real>(values: &mut [R]) {
    values.iter_mut().for_each(|x| *x = round(*x));
}

/// Applies `f` to each number with its index, and rounds the result.
fn step<R: Real>(values: &mut [R], f: impl Fn(usize, R) -> R) {
    for (i, x) in values.iter_mut().enumerate() {
        *x = round(f(i, *x));
    }
}

/// As [`linear_forward`], in steps.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn linear<R: Real>(
    x: &[R],
    weight: &[R],
    bias: Option<&[R]>,
    activation: Option<Activation>,
    pre_activation: Option<&mut [R]>,
    dropout: Option<&Mask>,
    residual: Option<&[R]>,
    y: &mut [R],
    rows: usize,
    d_in: usize,
    d_out: usize,
) {
    linear_forward(x, weight, bias, None, None, None, None, y, rows, d_in, d_out);
    round_all(y);
    if let Some(z) = pre_activation {
        z.copy_from_slice(y);
    }
    if let Some(activation) = activation {
        step(y, |_, z| activate(activation, z));
    }
    drop_out(dropout, y);
    if let Some(residual) = residual {
        step(y, |i, d| residual[i] + d);
    }
}

/// g = round(dropout'(d)): the gradient of what drops out, in the place of that of what is left.
///
/// ```
/// use minigpt_core::reference::{dropout::Mask, rounded};
/// let mask = Mask::new(0.5, 0, &[1, 0, 0, 0]);
/// let mut d = [1.0 / 3.0; 8];
/// rounded::drop_out(Some(&mask), &mut d);
/// assert!(d.iter().all(|&g| g == 0.0 || g == rounded::round(2.0 / 3.0)));
/// ```
pub fn drop_out<R: Real>(dropout: Option<&Mask>, d: &mut [R]) {
    if dropout.is_some() {
        step(d, |i, d| dropout::drop_out(dropout, i, d));
    }
}

/// As [`linear_backward`], in steps. `d_y` becomes g. What `d_x` is to be added to is `before`, if anything is.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn linear_gradient<R: Real>(
    x: &[R],
    weight: &[R],
    d_y: &mut [R],
    dropout: Option<&Mask>,
    activated: Option<(Activation, &[R])>,
    mut d_x: Option<&mut [R]>,
    before: Option<&[R]>,
    d_weight: Option<&mut [R]>,
    d_bias: Option<&mut [R]>,
    rows: usize,
    d_in: usize,
    d_out: usize,
) {
    drop_out(dropout, d_y);
    let product = d_x.as_deref_mut();
    linear_backward(x, weight, d_y, None, None, product, false, d_weight, d_bias, rows, d_in, d_out);
    let Some(d_x) = d_x else { return };
    round_all(d_x);
    if let Some((activation, input)) = activated {
        step(d_x, |i, p| p * derivative(activation, input[i]));
    }
    if let Some(before) = before {
        add(before, d_x);
    }
}

/// d = round(before + d), after d was rounded itself: the gradient that a residual connection brings, and that of a norm.
pub fn add<R: Real>(before: &[R], d: &mut [R]) {
    round_all(d);
    step(d, |i, d| before[i] + d);
}

/// As [`gate_forward`](super::gate::gate_forward), in steps.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn gate<R: Real>(x: &[R], activation: Activation, y: &mut [R], rows: usize, width: usize) {
    for row in 0..rows {
        let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
        let y = &mut y[row * width..][..width];
        for j in 0..width {
            y[j] = round(round(activate(activation, gate[j])) * up[j]);
        }
    }
}

/// As [`gate_backward`](super::gate::gate_backward), in steps.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn gate_gradient<R: Real>(
    x: &[R],
    d_y: &[R],
    activation: Activation,
    d_x: &mut [R],
    rows: usize,
    width: usize,
) {
    for row in 0..rows {
        let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
        let d_y = &d_y[row * width..][..width];
        let (d_gate, d_up) = d_x[row * 2 * width..][..2 * width].split_at_mut(width);
        for j in 0..width {
            d_gate[j] = round(round(d_y[j] * up[j]) * derivative(activation, gate[j]));
            d_up[j] = round(d_y[j] * round(activate(activation, gate[j])));
        }
    }
}

/// As [`embedding_forward`], in steps.
///
/// # Panics
/// If a slice does not fit its shape or a token is outside the table.
pub fn embedding<R: Real>(
    tokens: &[u32],
    token_embedding: &[R],
    position_embedding: Option<&[R]>,
    dropout: Option<&Mask>,
    out: &mut [R],
    batch: usize,
    time: usize,
    d_model: usize,
) {
    embedding_forward(tokens, token_embedding, position_embedding, None, out, batch, time, d_model);
    round_all(out);
    drop_out(dropout, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_rounded_to_the_nearest_with_a_tie_to_even() {
        let unit = 1.0 / 128.0;
        for (x, near) in [
            (1.0 + 0.49 * unit, 1.0),
            (1.0 + 0.5 * unit, 1.0),
            (1.0 + 0.51 * unit, 1.0 + unit),
            (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
            (-1.0 - 1.5 * unit, -1.0 - 2.0 * unit),
            (f64::INFINITY, f64::INFINITY),
            (1e-45, 0.0),
        ] {
            assert_eq!(round(x), near);
            assert_eq!(round(x as f32), near as f32);
        }
        assert!(round(f64::NAN).is_nan());
    }

    #[test]
    fn a_linear_layer_is_rounded_after_each_step() {
        // One number each: z = 3 * 100 + 1 = 301, which is between 300 and 302, the even one of which is 300.
        let (mut z, mut y) = ([0.0f64], [0.0f64]);
        let relu_squared = Some(Activation::ReluSquared);
        let mask = Mask::new(0.25, 0, &[9, 0, 0, 0]);
        let kept = (0..64).find(|&i| mask.starting_at(i).apply(0, 1.0) != 0.0).unwrap_or(0);
        let mask = mask.starting_at(kept);
        linear(
            &[3.0],
            &[100.0],
            Some(&[1.0]),
            relu_squared,
            Some(&mut z),
            Some(&mask),
            Some(&[7.0]),
            &mut y,
            1,
            1,
            1,
        );
        assert_eq!(z, [300.0]);
        let h = round(300.0 * 300.0);
        assert_eq!(y, [round(7.0 + round(h / 0.75))]);
        assert_ne!(y, [round(7.0 + 301.0 * 301.0 / 0.75)]);
    }

    #[test]
    fn a_linear_layers_gradient_is_rounded_after_each_step() {
        let (third, mut d_y) = (1.0f64 / 3.0, [1.0 / 3.0]);
        let (mut d_x, mut d_weight, mut d_bias) = ([f64::NAN], [1.0], [1.0]);
        let silu = Some((Activation::Silu, &[0.7][..]));
        let (x, weight) = ([round(third)], [round(1.7)]);
        let mask = Mask::new(0.25, 0, &[9, 0, 0, 0]);
        let kept = (0..64).find(|&i| mask.starting_at(i).apply(0, 1.0) != 0.0).unwrap_or(0);
        let mask = mask.starting_at(kept);
        linear_gradient(
            &x,
            &weight,
            &mut d_y,
            Some(&mask),
            silu,
            Some(&mut d_x),
            None,
            Some(&mut d_weight),
            Some(&mut d_bias),
            1,
            1,
            1,
        );
        let g = round(third / 0.75);
        assert_eq!((d_y, d_weight, d_bias), ([g], [1.0 + g * x[0]], [1.0 + g]), "sums are not rounded");
        assert_eq!(d_x, [round(round(g * weight[0]) * derivative(Activation::Silu, 0.7))]);

        let before = [round(0.1)];
        let (mut d_y, mut d_x) = ([g], [f64::NAN]);
        linear_gradient(
            &x,
            &weight,
            &mut d_y,
            None,
            None,
            Some(&mut d_x),
            Some(&before),
            None,
            None,
            1,
            1,
            1,
        );
        assert_eq!(d_x, [round(before[0] + round(g * weight[0]))]);
    }

    #[test]
    fn a_gate_is_rounded_after_each_step() {
        let x = [0.7f64, 1.3].map(round);
        let (mut y, mut d_x, d_y) = ([0.0], [0.0; 2], [round(0.9)]);
        gate(&x, Activation::Silu, &mut y, 1, 1);
        let h = round(activate(Activation::Silu, x[0]));
        assert_eq!(y, [round(h * x[1])]);
        gate_gradient(&x, &d_y, Activation::Silu, &mut d_x, 1, 1);
        let slope = derivative(Activation::Silu, x[0]);
        assert_eq!(d_x, [round(round(d_y[0] * x[1]) * slope), round(d_y[0] * h)]);
    }

    #[test]
    fn an_embedding_is_rounded_before_and_after_it_drops_out() {
        let mut out = [0.0f64; 2];
        embedding(&[1], &[9.0, 9.0, 1.0, 2.0], Some(&[0.004, 0.003]), None, &mut out, 1, 1, 2);
        assert_eq!(out, [1.0078125, 2.0], "to the nearest of 1 and 1 + 1/128, and of 2 and 2 + 1/64");
        let mask = Mask::new(0.25, 0, &[9, 0, 0, 0]);
        let mut dropped = out;
        drop_out(Some(&mask), &mut dropped);
        let mut whole = [0.0f64; 2];
        embedding(&[1], &[9.0, 9.0, 1.0, 2.0], Some(&[0.004, 0.003]), Some(&mask), &mut whole, 1, 1, 2);
        assert_eq!(whole, dropped);
    }
}
