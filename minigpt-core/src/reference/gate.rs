//! The gate of a gated feed-forward layer.
//!
//! One linear layer makes two vectors side by side, `gate` and `up`, and the activation of the first decides how much of the
//! second comes through:
//!
//! ```text
//! y[r, j] = f(gate[r, j]) up[r, j],      gate[r, j] = x[r, j],  up[r, j] = x[r, F + j]
//!
//! x   (rows, 2F)
//! y   (rows, F)
//! ```
//!
//! The product rule gives
//!
//! ```text
//! d_gate[r, j] = d_y[r, j] up[r, j] f'(gate[r, j])
//! d_up[r, j]   = d_y[r, j] f(gate[r, j])
//! ```
//!
//! Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202, equations 5 and 6. With GELU it is called GEGLU
//! there, with ReLU ReGLU, and with SiLU SwiGLU.

use super::activation::{activate, derivative};
use crate::config::Activation;
use crate::real::Real;

/// y = f(gate) * up.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::{Activation, reference::gate::gate_forward};
/// let x = [2.0, -1.0, 10.0, 20.0]; // (rows, 2F) = (1, 4)
/// let mut y = [0.0; 2];
/// gate_forward(&x, Activation::Relu, &mut y, 1, 2);
/// assert_eq!(y, [20.0, 0.0]);
/// ```
pub fn gate_forward<R: Real>(x: &[R], activation: Activation, y: &mut [R], rows: usize, width: usize) {
    for row in 0..rows {
        let (gate, up) = x[row * 2 * width..][..2 * width].split_at(width);
        let y = &mut y[row * width..][..width];
        for j in 0..width {
            y[j] = activate(activation, gate[j]) * up[j];
        }
    }
}

/// Writes `d_x` (rows, 2F).
///
/// # Panics
/// If a slice does not fit its shape.
pub fn gate_backward<R: Real>(
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
            d_gate[j] = d_y[j] * up[j] * derivative(activation, gate[j]);
            d_up[j] = d_y[j] * activate(activation, gate[j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_gradient, random, weighted_sum};
    use super::*;

    #[test]
    fn the_gradient_matches_finite_differences() {
        let (rows, width) = (3, 5);
        let (x, d_y) = (random(1, rows * 2 * width), random(2, rows * width));
        for activation in [
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::Relu,
            Activation::ReluSquared,
            Activation::Silu,
        ] {
            let mut d_x = [f64::NAN; 30];
            gate_backward(&x, &d_y, activation, &mut d_x, rows, width);
            assert_gradient("d_x", &d_x, &x, |x| {
                let mut y = [0.0; 15];
                gate_forward(x, activation, &mut y, rows, width);
                weighted_sum(&y, &d_y)
            });
        }
    }

    #[test]
    fn each_row_has_its_own_halves() {
        // Two rows of F = 2.
        let x = [1.0, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let mut y = [0.0; 4];
        gate_forward(&x, Activation::Relu, &mut y, 2, 2);
        assert_eq!(y, [2.0, 0.0, 24.0, 35.0]);
    }
}
