//! From the summed gradient to the next weights: the gradient's norm, the end of a step, AdamW.
//!
//! A step is: forward and backward over one or more micro-batches, whose losses and gradients are *summed*; then
//! [`squared_norm`] of the gradient, [`finish_step`], and [`adamw`].
//!
//! ```text
//! n      = TARGETS                             how many targets the sums are over
//! loss   = LOSS_SUM / n
//! norm   = sqrt(GRAD_SQUARED) / n              the norm of the mean gradient
//! factor = min(1, clip / (norm + 1e-6))        clipping by the global norm
//! g      = (factor / n) * gradient             what AdamW sees
//! ```
//!
//! Clipping scales the whole gradient and so keeps its direction (Pascanu, Mikolov and Bengio 2013,
//! arXiv:1211.5063, algorithm 1). The 1e-6 is that of PyTorch's `clip_grad_norm_`.
//!
//! AdamW keeps two moving averages for each parameter, of the gradient and of its square. They begin at 0, and are
//! divided by the sum of the weights that they have given out so far, which removes the pull towards 0. With t the
//! number of this update, from 1:
//!
//! ```text
//! m <- beta1 m + (1 - beta1) g          m^ = m / (1 - beta1^t)
//! v <- beta2 v + (1 - beta2) g^2        v^ = v / (1 - beta2^t)
//! p <- p - lr weight_decay p            matrices only
//! p <- p - lr m^ / (sqrt(v^) + eps)
//! ```
//!
//! The decay stands apart from the gradient ("decoupled"), or else it would be divided by sqrt(v^) too.
//!
//! A step whose loss or gradient is not finite is skipped: the counters say so, and AdamW changes nothing.
//!
//! Sources: Kingma and Ba 2015, "Adam", arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, "Decoupled Weight
//! Decay Regularization", arXiv:1711.05101, algorithm 2.

use crate::op::{counter, scalar};
use crate::real::Real;

/// What is added to the norm before the clip divides by it.
const CLIP_EPS: f64 = 1e-6;

/// The sum of squares, taken in f64: a gradient has millions of elements, and an f32 sum would lose digits.
///
/// ```
/// assert_eq!(minigpt_core::reference::optimizer::squared_norm(&[3.0f32, -4.0]), 25.0);
/// ```
pub fn squared_norm<R: Real>(x: &[R]) -> f64 {
    let mut sum = 0.0;
    for &x in x {
        sum += x.to_f64() * x.to_f64();
    }
    sum
}

/// Advances [`counter::DRAW`], a number of 64 bits in two words.
///
/// # Panics
/// If `counters` is shorter than [`counter::LEN`].
///
/// ```
/// use minigpt_core::op::counter;
/// let mut counters = [0; counter::LEN];
/// counters[counter::DRAW] = u32::MAX;
/// minigpt_core::reference::optimizer::next_draw(&mut counters);
/// assert_eq!(counters[counter::DRAW..][..2], [0, 1]);
/// ```
pub fn next_draw(counters: &mut [u32]) {
    add_u64(counters, counter::DRAW, 1);
}

/// Adds to the 64-bit number whose low word is at `low`.
fn add_u64(counters: &mut [u32], low: usize, amount: u64) {
    let value = u64::from(counters[low]) + (u64::from(counters[low + 1]) << 32);
    let value = value.wrapping_add(amount);
    counters[low] = value as u32;
    counters[low + 1] = (value >> 32) as u32;
}

/// Closes a step: see [`FinishStep`](crate::op::FinishStep). Computed in f64; each result is rounded once.
///
/// The bias corrections are those of update number [`counter::UPDATES`] + 1. TARGETS are added to the count of tokens whether or not the step is skipped.
///
/// # Panics
/// If `scalars` is shorter than [`scalar::LEN`] or `counters` than [`counter::LEN`].
pub fn finish_step<R: Real>(scalars: &mut [R], counters: &mut [u32], clip: f64, beta1: f64, beta2: f64) {
    let targets = scalars[scalar::TARGETS].to_f64();
    let loss = scalars[scalar::LOSS_SUM].to_f64() / targets;
    let norm = libm::sqrt(scalars[scalar::GRAD_SQUARED].to_f64()) / targets;
    let apply = targets > 0.0 && loss.is_finite() && norm.is_finite();

    let room = clip / (norm + CLIP_EPS);
    let factor = if room < 1.0 { room } else { 1.0 };
    let update = f64::from(counters[counter::UPDATES]) + 1.0;
    for (place, value) in [
        (scalar::LOSS, loss),
        (scalar::GRAD_NORM, norm),
        (scalar::GRAD_SCALE, if apply { factor / targets } else { 0.0 }),
        (scalar::CORRECTION1, 1.0 - libm::pow(beta1, update)),
        (scalar::CORRECTION2, 1.0 - libm::pow(beta2, update)),
        (scalar::APPLY, if apply { 1.0 } else { 0.0 }),
        (scalar::LOSS_SUM, 0.0),
        (scalar::TARGETS, 0.0),
    ] {
        scalars[place] = R::from_f64(value);
    }

    add_u64(counters, counter::TOKENS, targets as u64);
    // Saturating: after 2^32 steps the schedule has long ended, and the corrections are 1.
    let mut increment = |place: usize| counters[place] = counters[place].saturating_add(1);
    increment(counter::STEP);
    if apply {
        increment(counter::UPDATES);
        counters[counter::SKIPPED_IN_A_ROW] = 0;
    } else {
        increment(counter::SKIPPED);
        increment(counter::SKIPPED_IN_A_ROW);
    }
}

/// One update of all parameters, of which the first `decayed` have weight decay. Leaves everything as it is if
/// [`scalar::APPLY`] is 0.
///
/// # Panics
/// If the slices differ in length, or `scalars` is shorter than [`scalar::LEN`].
///
/// ```
/// use minigpt_core::op::scalar;
/// use minigpt_core::reference::optimizer::adamw;
/// let mut scalars = [0.0f64; scalar::LEN];
/// scalars[scalar::APPLY] = 1.0;
/// scalars[scalar::GRAD_SCALE] = 0.5;
/// scalars[scalar::LEARNING_RATE] = 0.1;
/// scalars[scalar::CORRECTION1] = 1.0 - 0.9;
/// scalars[scalar::CORRECTION2] = 1.0 - 0.99;
/// let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
/// adamw(&mut p, &[8.0], &mut m, &mut v, &scalars, 1, 0.9, 0.99, 0.0, 0.2);
/// // The first update is lr times the sign of the gradient, whatever its size; the decay takes 2 % before.
/// assert!((p[0] - (0.98 - 0.1)).abs() < 1e-15);
/// ```
pub fn adamw<R: Real>(
    params: &mut [R],
    grads: &[R],
    m: &mut [R],
    v: &mut [R],
    scalars: &[R],
    decayed: usize,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
) {
    if scalars[scalar::APPLY] == R::zero() {
        return;
    }
    let lr = scalars[scalar::LEARNING_RATE];
    let (correction1, correction2) = (scalars[scalar::CORRECTION1], scalars[scalar::CORRECTION2]);
    let (keep1, keep2) = (R::from_f64(beta1), R::from_f64(beta2));
    let (take1, take2) = (R::from_f64(1.0 - beta1), R::from_f64(1.0 - beta2));
    let (eps, weight_decay) = (R::from_f64(eps), R::from_f64(weight_decay));
    for i in 0..params.len() {
        let g = grads[i] * scalars[scalar::GRAD_SCALE];
        m[i] = keep1 * m[i] + take1 * g;
        v[i] = keep2 * v[i] + take2 * g * g;
        if i < decayed {
            params[i] -= lr * weight_decay * params[i];
        }
        params[i] -= lr * (m[i] / correction1) / ((v[i] / correction2).sqrt() + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::assert_close;
    use super::*;

    /// 4 targets, a mean loss of 2.5 and a mean gradient of norm 3.
    fn start() -> ([f64; scalar::LEN], [u32; counter::LEN]) {
        let mut scalars = [0.125; scalar::LEN];
        scalars[scalar::LOSS_SUM] = 10.0;
        scalars[scalar::TARGETS] = 4.0;
        scalars[scalar::GRAD_SQUARED] = 144.0;
        let mut counters = [77; counter::LEN];
        counters[counter::TOKENS] = u32::MAX - 1;
        counters[counter::TOKENS + 1] = 8;
        counters[counter::STEP] = 7;
        counters[counter::UPDATES] = 2;
        counters[counter::SKIPPED] = 5;
        counters[counter::SKIPPED_IN_A_ROW] = 3;
        (scalars, counters)
    }

    #[test]
    fn a_finite_step_gives_means_clip_and_corrections() {
        let (mut scalars, mut counters) = start();
        finish_step(&mut scalars, &mut counters, 0.75, 0.5, 0.75);
        let factor = 0.75 / (3.0 + 1e-6);
        // The host's learning rate stays; this is update 3.
        let expected = [0.0, 0.0, 144.0, 2.5, 3.0, factor / 4.0, 0.125, 1.0 - 0.125, 1.0 - 0.421875, 1.0];
        assert_close(&scalars[..10], &expected, 1e-15);
        assert_eq!(scalars[10..], [0.125; 6]);
        let mut after = [77; counter::LEN];
        // The 64-bit count of tokens carries: 2^32 - 2 + 4.
        after[counter::TOKENS] = 2;
        after[counter::TOKENS + 1] = 9;
        after[counter::STEP] = 8;
        after[counter::UPDATES] = 3;
        after[counter::SKIPPED] = 5;
        after[counter::SKIPPED_IN_A_ROW] = 0;
        assert_eq!(counters, after);
    }

    #[test]
    fn a_gradient_below_the_clip_is_only_divided_by_the_targets() {
        for clip in [3.1, f64::INFINITY] {
            let (mut scalars, mut counters) = start();
            finish_step(&mut scalars, &mut counters, clip, 0.9, 0.99);
            assert_eq!(scalars[scalar::GRAD_SCALE], 0.25);
        }
    }

    #[test]
    fn a_gradient_of_zero_is_a_step_like_any_other() {
        let (mut scalars, mut counters) = start();
        scalars[scalar::GRAD_SQUARED] = 0.0;
        finish_step(&mut scalars, &mut counters, 1.0, 0.9, 0.99);
        assert_eq!((scalars[scalar::GRAD_SCALE], scalars[scalar::APPLY]), (0.25, 1.0));
    }

    #[test]
    fn a_step_that_is_not_finite_is_skipped_and_counted() {
        for (place, value) in [
            (scalar::LOSS_SUM, f64::NAN),
            (scalar::LOSS_SUM, f64::INFINITY),
            (scalar::GRAD_SQUARED, f64::NAN),
            (scalar::GRAD_SQUARED, f64::INFINITY),
            (scalar::TARGETS, 0.0),
        ] {
            let (mut scalars, mut counters) = start();
            scalars[place] = value;
            let targets = scalars[scalar::TARGETS] as u32;
            finish_step(&mut scalars, &mut counters, 1.0, 0.9, 0.99);
            assert_eq!(scalars[scalar::APPLY], 0.0);
            assert_eq!(scalars[scalar::GRAD_SCALE], 0.0);
            assert_eq!(scalars[scalar::LEARNING_RATE], 0.125);
            assert_eq!((scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]), (0.0, 0.0));
            assert_eq!(scalars[scalar::LOSS].is_finite(), place == scalar::GRAD_SQUARED);
            assert_eq!(counters[counter::STEP], 8);
            assert_eq!(counters[counter::UPDATES], 2);
            assert_eq!(counters[counter::SKIPPED], 6);
            assert_eq!(counters[counter::SKIPPED_IN_A_ROW], 4);
            assert_eq!(counters[counter::TOKENS], (u32::MAX - 1).wrapping_add(targets));
        }
    }

    #[test]
    fn no_targets_is_skipped_even_with_sums_of_zero() {
        let mut scalars = [0.0f64; scalar::LEN];
        let mut counters = [0; counter::LEN];
        finish_step(&mut scalars, &mut counters, 1.0, 0.9, 0.99);
        assert_eq!(scalars[scalar::APPLY], 0.0);
        assert_eq!(counters[counter::SKIPPED], 1);
        assert_eq!(counters[counter::TOKENS], 0);
    }

    #[test]
    fn counters_stay_at_their_end() {
        let (mut scalars, _) = start();
        let mut counters = [u32::MAX; counter::LEN];
        finish_step(&mut scalars, &mut counters, 1.0, 0.9, 0.99);
        assert_eq!(counters[counter::STEP], u32::MAX);
        assert_eq!(counters[counter::UPDATES], u32::MAX);
        assert_eq!(scalars[scalar::CORRECTION1], 1.0);
    }

    #[test]
    fn squares_are_summed_in_double_precision() {
        assert_eq!(squared_norm::<f64>(&[]), 0.0);
        assert_eq!(squared_norm(&[1.0, -2.0, 3.0f64]), 14.0);
        // In f32 the ones would be lost beside 2^26.
        let mut x = [1.0f32; 101];
        x[0] = 8192.0;
        assert_eq!(squared_norm(&x), 67_108_864.0 + 100.0);
    }

    #[test]
    fn the_draw_number_carries_into_its_high_word_only() {
        let mut counters = [3; counter::LEN];
        next_draw(&mut counters);
        assert_eq!(counters[..5], [3, 3, 4, 3, 3]);
        counters[counter::DRAW] = u32::MAX;
        next_draw(&mut counters);
        assert_eq!(counters[..5], [3, 3, 0, 4, 3]);
    }

    fn applied() -> [f64; scalar::LEN] {
        let mut scalars = [0.0; scalar::LEN];
        scalars[scalar::APPLY] = 1.0;
        scalars[scalar::GRAD_SCALE] = 0.5;
        scalars[scalar::LEARNING_RATE] = 0.1;
        scalars[scalar::CORRECTION1] = 0.75;
        scalars[scalar::CORRECTION2] = 0.5;
        scalars
    }

    #[test]
    fn adamw_matches_numbers_worked_out_by_hand() {
        let (mut p, mut m, mut v) = ([2.0, 2.0], [3.0, 3.0], [0.5, 0.5]);
        adamw(&mut p, &[12.0, 12.0], &mut m, &mut v, &applied(), 1, 0.5, 0.75, 0.25, 0.4);
        // g = 6; m = 1.5 + 3 = 4.5; v = 0.375 + 0.25 * 36 = 9.375.
        assert_eq!((m, v), ([4.5, 4.5], [9.375, 9.375]));
        // m^ = 6; sqrt(v^) = sqrt(18.75). The first is decayed by 0.1 * 0.4 first.
        let step = 0.1 * 6.0 / (18.75f64.sqrt() + 0.25);
        assert_close(&p, &[2.0 * 0.96 - step, 2.0 - step], 1e-15);
    }

    #[test]
    fn ten_updates_match_the_papers_algorithm() {
        let (b1, b2, eps, lr, decay) = (0.9f64, 0.95f64, 1e-8, 0.02, 0.1);
        let (mut p, mut m, mut v) = ([0.3, -0.7, 1.1], [0.0; 3], [0.0; 3]);
        let (mut theta, mut mt, mut vt) = (p, [0.0f64; 3], [0.0f64; 3]);
        let mut scalars = applied();
        scalars[scalar::LEARNING_RATE] = lr;
        for t in 1..=10 {
            let gradient: [f64; 3] = core::array::from_fn(|i| (t as f64 * (i + 1) as f64).sin());
            scalars[scalar::CORRECTION1] = 1.0 - b1.powi(t);
            scalars[scalar::CORRECTION2] = 1.0 - b2.powi(t);
            adamw(&mut p, &gradient.map(|g| 2.0 * g), &mut m, &mut v, &scalars, 2, b1, b2, eps, decay);
            for i in 0..3 {
                mt[i] = b1 * mt[i] + (1.0 - b1) * gradient[i];
                vt[i] = b2 * vt[i] + (1.0 - b2) * gradient[i].powi(2);
                let adam = mt[i] / (1.0 - b1.powi(t)) / ((vt[i] / (1.0 - b2.powi(t))).sqrt() + eps);
                let decayed = if i < 2 { decay * theta[i] } else { 0.0 };
                theta[i] -= lr * (adam + decayed);
            }
            // The paper decays and steps at once, the code one after the other: the step does not read the weight.
            assert_close(&p, &theta, 1e-14);
        }
    }

    #[test]
    fn a_skipped_update_touches_nothing() {
        let mut scalars = applied();
        scalars[scalar::APPLY] = 0.0;
        let (mut p, mut m, mut v) = ([2.0], [3.0], [0.5]);
        adamw(&mut p, &[f64::NAN], &mut m, &mut v, &scalars, 1, 0.5, 0.75, 0.25, 0.4);
        assert_eq!((p, m, v), ([2.0], [3.0], [0.5]));
    }
}
