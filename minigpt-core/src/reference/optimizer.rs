//! From the summed gradient to the next weights: the gradient's norm, the end of a step, and the optimizers.
//!
//! A step is: forward and backward over one or more micro-batches, whose losses and gradients are *summed*; then
//! [`squared_norm`] of the gradient, [`finish_step`], and for each parameter its optimizer.
//!
//! ```text
//! n      = TARGETS                             how many targets the sums are over
//! loss   = LOSS_SUM / n
//! norm   = sqrt(GRAD_SQUARED) / n              the norm of the mean gradient
//! factor = min(1, clip / (norm + 1e-6))        clipping by the global norm
//! g      = (factor / n) * gradient             what the optimizers see
//! ```
//!
//! Clipping scales the whole gradient and so keeps its direction (Pascanu, Mikolov and Bengio 2013,
//! arXiv:1211.5063, algorithm 1). The 1e-6 is that of PyTorch's `clip_grad_norm_`.
//!
//! A step whose loss or gradient is not finite is skipped: the counters say so, and no optimizer changes anything.
//!
//! All optimizers begin with the weight decay, which stands apart from the gradient ("decoupled", Loshchilov and Hutter 2019). lr
//! is the step's learning rate times the group's factor on it:
//!
//! ```text
//! p <- p - lr weight_decay p
//! ```
//!
//! [`adamw`] keeps two moving averages for each parameter, of the gradient and of its square. They begin at 0, and are
//! divided by the sum of the weights that they have given out so far, which removes the pull towards 0. With t the
//! number of this update, from 1:
//!
//! ```text
//! m <- beta1 m + (1 - beta1) g          m^ = m / (1 - beta1^t)
//! v <- beta2 v + (1 - beta2) g^2        v^ = v / (1 - beta2^t)
//! p <- p - lr m^ / (sqrt(v^) + eps)
//! ```
//!
//! If the decay did not stand apart, it would be divided by sqrt(v^) too.
//!
//! [`sgd`] goes down the gradient, or with momentum mu down a velocity, which the gradients of earlier steps have made. With
//! Nesterov's look ahead it goes where the velocity will be after the next gradient of the same kind:
//!
//! ```text
//! v <- mu v + g
//! d = v, or with the look ahead g + mu v
//! p <- p - lr d
//! ```
//!
//! Muon takes the same d of a whole matrix ([`momentum`]) and brings it near the closest orthogonal matrix
//! ([`newton_schulz`](super::newton_schulz)), so that no direction of the space is left behind; then it takes a step
//! ([`descend`]). An orthogonal matrix of more rows than columns has smaller numbers, which the scale makes good:
//!
//! ```text
//! p <- p - lr sqrt(max(1, rows / cols)) orthogonal(d)
//! ```
//!
//! An [`average`] of the weights is often better than the weights. Early ones are soon forgotten:
//!
//! ```text
//! keep = min(decay, (1 + t) / (10 + t))
//! a <- a + (1 - keep) (p - a)                  that is, keep a + (1 - keep) p
//! ```
//!
//! In this form the average of weights that stay is these weights, also where keep is rounded.
//!
//! Sources: Kingma and Ba 2015, "Adam", arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, "Decoupled Weight
//! Decay Regularization", arXiv:1711.05101, algorithm 2; Sutskever et al. 2013, "On the importance of initialization and
//! momentum in deep learning", in the form of PyTorch's `SGD`; Jordan et al. 2024, "Muon",
//! <https://kellerjordan.github.io/posts/muon/>; for the average, TensorFlow's `ExponentialMovingAverage`.

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
/// TARGETS are added to the count of tokens whether or not the step is skipped.
///
/// # Panics
/// If `scalars` is shorter than [`scalar::LEN`] or `counters` than [`counter::LEN`].
pub fn finish_step<R: Real>(scalars: &mut [R], counters: &mut [u32], clip: f64) {
    let targets = scalars[scalar::TARGETS].to_f64();
    let loss = scalars[scalar::LOSS_SUM].to_f64() / targets;
    let norm = libm::sqrt(scalars[scalar::GRAD_SQUARED].to_f64()) / targets;
    let apply = targets > 0.0 && loss.is_finite() && norm.is_finite();

    let room = clip / (norm + CLIP_EPS);
    let factor = if room < 1.0 { room } else { 1.0 };
    for (place, value) in [
        (scalar::LOSS, loss),
        (scalar::GRAD_NORM, norm),
        (scalar::GRAD_SCALE, if apply { factor / targets } else { 0.0 }),
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

/// What AdamW's moments are divided by in update number [`counter::UPDATES`]: 1 - beta^t for each beta. Computed in f64 and
/// rounded once.
///
/// # Panics
/// If `counters` is shorter than [`counter::LEN`].
///
/// ```
/// use minigpt_core::{op::counter, reference::optimizer::bias_corrections};
/// let mut counters = [0; counter::LEN];
/// counters[counter::UPDATES] = 2;
/// assert_eq!(bias_corrections::<f64>(&counters, [0.5, 0.75]), [0.75, 0.4375]);
/// ```
pub fn bias_corrections<R: Real>(counters: &[u32], betas: [f64; 2]) -> [R; 2] {
    let update = f64::from(counters[counter::UPDATES]);
    betas.map(|beta| R::from_f64(1.0 - libm::pow(beta, update)))
}

/// Which share of an average the weights of update number [`counter::UPDATES`] have. Computed in f64 and rounded once.
///
/// # Panics
/// If `counters` is shorter than [`counter::LEN`].
///
/// ```
/// use minigpt_core::{op::counter, reference::optimizer::average_share};
/// let mut counters = [0; counter::LEN];
/// counters[counter::UPDATES] = 5;
/// assert_eq!(average_share::<f64>(&counters, 0.999), 0.6);
/// counters[counter::UPDATES] = 100_000;
/// assert_eq!(average_share::<f64>(&counters, 0.75), 0.25);
/// ```
pub fn average_share<R: Real>(counters: &[u32], decay: f64) -> R {
    let update = f64::from(counters[counter::UPDATES]);
    let early = (1.0 + update) / (10.0 + update);
    let keep = if early < decay { early } else { decay };
    R::from_f64(1.0 - keep)
}

/// Whether the optimizers are to leave everything as it is.
fn is_skipped<R: Real>(scalars: &[R]) -> bool {
    scalars[scalar::APPLY] == R::zero()
}

/// The learning rate of a group.
fn learning_rate<R: Real>(scalars: &[R], rate: f64) -> R {
    R::from_f64(scalars[scalar::LEARNING_RATE].to_f64() * rate)
}

/// p <- p - lr `weight_decay` p.
fn decay<R: Real>(param: &mut R, lr: R, weight_decay: f64) {
    if weight_decay != 0.0 {
        *param -= lr * R::from_f64(weight_decay) * *param;
    }
}

/// One update of parameters by AdamW. Leaves everything as it is if [`scalar::APPLY`] is 0.
///
/// # Panics
/// If the slices differ in length, `scalars` is shorter than [`scalar::LEN`], or `counters` than [`counter::LEN`].
///
/// ```
/// use minigpt_core::op::{counter, scalar};
/// use minigpt_core::reference::optimizer::adamw;
/// let mut scalars = [0.0f64; scalar::LEN];
/// scalars[scalar::APPLY] = 1.0;
/// scalars[scalar::GRAD_SCALE] = 0.5;
/// scalars[scalar::LEARNING_RATE] = 0.1;
/// let mut counters = [0; counter::LEN];
/// counters[counter::UPDATES] = 1;
/// let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
/// adamw(&mut p, &[8.0], &mut m, &mut v, &scalars, &counters, 0.9, 0.99, 0.0, 0.2, 1.0);
/// // The first update is lr times the sign of the gradient, whatever its size; the decay takes 2 % before.
/// assert!((p[0] - (0.98 - 0.1)).abs() < 1e-15);
/// ```
pub fn adamw<R: Real>(
    params: &mut [R],
    grads: &[R],
    m: &mut [R],
    v: &mut [R],
    scalars: &[R],
    counters: &[u32],
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    rate: f64,
) {
    if is_skipped(scalars) {
        return;
    }
    let lr = learning_rate(scalars, rate);
    let [correction1, correction2] = bias_corrections(counters, [beta1, beta2]);
    let (keep1, keep2) = (R::from_f64(beta1), R::from_f64(beta2));
    let (take1, take2) = (R::from_f64(1.0 - beta1), R::from_f64(1.0 - beta2));
    let eps = R::from_f64(eps);
    for i in 0..params.len() {
        let g = grads[i] * scalars[scalar::GRAD_SCALE];
        m[i] = keep1 * m[i] + take1 * g;
        v[i] = keep2 * v[i] + take2 * g * g;
        decay(&mut params[i], lr, weight_decay);
        params[i] -= lr * (m[i] / correction1) / ((v[i] / correction2).sqrt() + eps);
    }
}

/// Takes gradient `g` into a velocity. The result is the direction of the update.
fn accelerate<R: Real>(velocity: &mut R, g: R, momentum: R, nesterov: bool) -> R {
    *velocity = momentum * *velocity + g;
    if nesterov { g + momentum * *velocity } else { *velocity }
}

/// One update of parameters by gradient descent, with momentum if there is a velocity. Leaves everything as it is if
/// [`scalar::APPLY`] is 0.
///
/// # Panics
/// If the slices differ in length, or `scalars` is shorter than [`scalar::LEN`].
///
/// ```
/// use minigpt_core::op::scalar;
/// use minigpt_core::reference::optimizer::sgd;
/// let mut scalars = [0.0f64; scalar::LEN];
/// (scalars[scalar::APPLY], scalars[scalar::GRAD_SCALE]) = (1.0, 0.5);
/// scalars[scalar::LEARNING_RATE] = 0.25;
/// let (mut p, mut v) = ([1.0], [4.0]);
/// sgd(&mut p, &[2.0], Some(&mut v), &scalars, 0.5, false, 0.0, 1.0);
/// assert_eq!((p, v), ([1.0 - 0.25 * 3.0], [0.5 * 4.0 + 0.5 * 2.0]));
/// ```
pub fn sgd<R: Real>(
    params: &mut [R],
    grads: &[R],
    mut velocity: Option<&mut [R]>,
    scalars: &[R],
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    rate: f64,
) {
    if is_skipped(scalars) {
        return;
    }
    let (lr, momentum) = (learning_rate(scalars, rate), R::from_f64(momentum));
    for i in 0..params.len() {
        let g = grads[i] * scalars[scalar::GRAD_SCALE];
        let direction = match &mut velocity {
            Some(velocity) => accelerate(&mut velocity[i], g, momentum, nesterov),
            None => g,
        };
        decay(&mut params[i], lr, weight_decay);
        params[i] -= lr * direction;
    }
}

/// The first part of Muon: the gradient goes into the velocity, and the velocity into the direction. If [`scalar::APPLY`] is 0
/// the velocity stays, and the direction is 0.
///
/// # Panics
/// If the slices differ in length, or `scalars` is shorter than [`scalar::LEN`].
///
/// ```
/// use minigpt_core::op::scalar;
/// use minigpt_core::reference::optimizer::momentum;
/// let mut scalars = [0.0f64; scalar::LEN];
/// (scalars[scalar::APPLY], scalars[scalar::GRAD_SCALE]) = (1.0, 0.5);
/// let (mut velocity, mut direction) = ([4.0], [0.0]);
/// momentum(&[2.0], &mut velocity, &mut direction, &scalars, 0.5, true);
/// assert_eq!((velocity, direction), ([3.0], [1.0 + 0.5 * 3.0]));
/// ```
pub fn momentum<R: Real>(
    grads: &[R],
    velocity: &mut [R],
    direction: &mut [R],
    scalars: &[R],
    momentum: f64,
    nesterov: bool,
) {
    if is_skipped(scalars) {
        return direction.fill(R::zero());
    }
    let momentum = R::from_f64(momentum);
    for i in 0..grads.len() {
        let g = grads[i] * scalars[scalar::GRAD_SCALE];
        direction[i] = accelerate(&mut velocity[i], g, momentum, nesterov);
    }
}

/// The last part of Muon: a step down a direction. Leaves everything as it is if [`scalar::APPLY`] is 0.
///
/// # Panics
/// If the slices differ in length, or `scalars` is shorter than [`scalar::LEN`].
///
/// ```
/// use minigpt_core::op::scalar;
/// use minigpt_core::reference::optimizer::descend;
/// let mut scalars = [0.0f64; scalar::LEN];
/// (scalars[scalar::APPLY], scalars[scalar::LEARNING_RATE]) = (1.0, 0.25);
/// let mut params = [4.0];
/// descend(&mut params, &[3.0], &scalars, 0.5, 2.0, 1.5);
/// // A learning rate of 0.5: the decay takes a quarter, and the direction 0.5 * 1.5 * 3.
/// assert_eq!(params, [3.0 - 2.25]);
/// ```
pub fn descend<R: Real>(
    params: &mut [R],
    direction: &[R],
    scalars: &[R],
    weight_decay: f64,
    rate: f64,
    scale: f64,
) {
    if is_skipped(scalars) {
        return;
    }
    let lr = learning_rate(scalars, rate);
    let step = learning_rate(scalars, rate * scale);
    for (param, &direction) in params.iter_mut().zip(direction) {
        decay(param, lr, weight_decay);
        *param -= step * direction;
    }
}

/// Takes parameters into their moving average. Leaves it as it is if [`scalar::APPLY`] is 0.
///
/// # Panics
/// If the slices differ in length, `scalars` is shorter than [`scalar::LEN`], or `counters` than [`counter::LEN`].
///
/// ```
/// use minigpt_core::op::{counter, scalar};
/// use minigpt_core::reference::optimizer::average;
/// let (mut scalars, mut counters) = ([0.0f64; scalar::LEN], [0; counter::LEN]);
/// (scalars[scalar::APPLY], counters[counter::UPDATES]) = (1.0, 8);
/// let mut mean = [2.0];
/// average(&[6.0], &mut mean, &scalars, &counters, 0.999);
/// assert_eq!(mean, [0.5 * 2.0 + 0.5 * 6.0]);
/// ```
pub fn average<R: Real>(params: &[R], average: &mut [R], scalars: &[R], counters: &[u32], decay: f64) {
    if is_skipped(scalars) {
        return;
    }
    let share: R = average_share(counters, decay);
    for (average, &param) in average.iter_mut().zip(params) {
        *average += share * (param - *average);
    }
}

#[cfg(test)]
mod tests;
