//! The specification: every op as plain loops, forward beside backward.
//!
//! This is the code to read first. Each file opens with the formula, the shapes and the derivation of the gradient,
//! and then says the same in loops over plain slices. Nothing here is fast on purpose; a fast kernel names the
//! function that it must equal.
//!
//! - [`embedding`]: tokens to vectors.
//! - [`norm`]: vectors to a common size.
//! - [`linear`], with the non-linearities of [`activation`]: matrix products.
//! - [`gate`]: one half of a row lets the other through.
//! - [`rotary`] and [`position`]: where in the sequence a token stands.
//! - [`attention`]: tokens look at earlier tokens.
//! - [`cross_entropy`]: how wrong the prediction was.
//! - [`dropout`]: noise against overfitting.
//! - [`optimizer`]: from the gradient to the next weights; [`newton_schulz`] for one of the optimizers.
//! - [`weights`]: half precision and quantised storage; [`rounded`]: what is rounded where activations are bf16.
//!
//! Gradients are written `d_x` for dL/dx, where L is the loss. All of them follow from one rule: if y depends on x,
//! then d_x = sum over y of d_y (dy/dx). Gradients of parameters are added to what is there, since a parameter may
//! serve in several places and over several micro-batches; gradients of activations are written, unless an op has
//! an `accumulate` flag that says otherwise.
//!
//! Everything is generic over [`Real`]. In `f64` this is the oracle that fast backends are held against; in `f32`
//! it gives the same bits on every machine, because sums run in one fixed order, nothing fuses a multiplication
//! with an addition, and the transcendental functions are `libm`'s.
//!
//! [`fall_back`](crate::backend::fall_back) is the bridge to the ops: it carries a backend's memory to these functions and
//! back. [`Reference`](crate::Reference) is the backend that does nothing else.

pub mod activation;
pub mod attention;
#[cfg(test)]
mod check;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gate;
pub mod linear;
pub mod newton_schulz;
pub mod norm;
pub mod optimizer;
pub mod position;
pub mod rotary;
pub mod rounded;
pub mod weights;

use crate::real::Real;

/// Rows that lie `stride` numbers apart, such as the keys in a matrix of queries, keys and values. They begin with the first
/// row's first number.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, R> {
    /// From the first number of the first row on.
    pub data: &'a [R],
    /// How many numbers lie between the beginnings of two rows.
    pub stride: usize,
}

impl<'a, R> Rows<'a, R> {
    /// `width` numbers of row `row`, from number `first` of it on.
    ///
    /// # Panics
    /// If they are not there.
    pub fn part(&self, row: usize, first: usize, width: usize) -> &'a [R] {
        &self.data[row * self.stride + first..][..width]
    }
}

/// The sum of `a[i] b[i]`, from the first to the last.
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut sum = R::zero();
    for (&a, &b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

/// Adds `factor * x[i]` to every `y[i]`.
fn add_scaled<R: Real>(y: &mut [R], factor: R, x: &[R]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}
