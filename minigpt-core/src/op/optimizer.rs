//! The ops that make an update of a gradient: what closes a step, and the optimizers.
//!
//! All optimizers leave every parameter and all that they keep as it is if [`scalar::APPLY`](super::scalar::APPLY) is 0. A
//! learning rate is [`scalar::LEARNING_RATE`](super::scalar::LEARNING_RATE) times `rate`, and a gradient the summed one times
//! [`scalar::GRAD_SCALE`](super::scalar::GRAD_SCALE). [`crate::reference::optimizer`] has the formulas.

use crate::memory::Span;

/// Closes a step on the device: turns sums into means, decides whether the step is finite, clips, and advances the
/// counters. Computed in f64 on every backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FinishStep {
    /// The device scalars: reads `LOSS_SUM`, `TARGETS` and `GRAD_SQUARED`; writes `LOSS`, `GRAD_NORM`, `GRAD_SCALE` and
    /// `APPLY`; and sets `LOSS_SUM` and `TARGETS` back to 0.
    pub scalars: Span,
    /// The device counters.
    pub counters: Span,
    /// The largest norm of the mean gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
}

/// AdamW over any number of parameters (Loshchilov and Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Changed: (n).
    pub params: Span,
    /// The summed gradient: (n).
    pub grads: Span,
    /// Changed: (n), first moment.
    pub m: Span,
    /// Changed: (n), second moment.
    pub v: Span,
    /// The device scalars: `GRAD_SCALE`, `LEARNING_RATE`, `APPLY`.
    pub scalars: Span,
    /// The device counters: `UPDATES` is the number of this update, from 1.
    pub counters: Span,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; multiplied by the learning rate. 0: none.
    pub weight_decay: f64,
    /// A factor on the learning rate.
    pub rate: f64,
}

/// Gradient descent over any number of parameters, with momentum if there is a velocity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Changed: (n).
    pub params: Span,
    /// The summed gradient: (n).
    pub grads: Span,
    /// Changed: (n). Without one, `momentum` is 0.
    pub velocity: Option<Span>,
    /// The device scalars: `GRAD_SCALE`, `LEARNING_RATE`, `APPLY`.
    pub scalars: Span,
    /// How much of the velocity stays.
    pub momentum: f64,
    /// Whether the update looks ahead along the velocity.
    pub nesterov: bool,
    /// Decoupled weight decay; multiplied by the learning rate. 0: none.
    pub weight_decay: f64,
    /// A factor on the learning rate.
    pub rate: f64,
}

/// The first part of Muon: the gradient becomes part of the velocity, and the velocity a direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// The summed gradient: (n).
    pub grads: Span,
    /// Changed: (n).
    pub velocity: Span,
    /// Written: (n), the direction of the update, upwards. 0 in a step that is skipped.
    pub direction: Span,
    /// The device scalars: `GRAD_SCALE`, `APPLY`.
    pub scalars: Span,
    /// How much of the velocity stays.
    pub momentum: f64,
    /// Whether the direction looks ahead along the velocity.
    pub nesterov: bool,
}

/// The second part of Muon: brings a matrix near the orthogonal one that is closest to it, by an iteration of Newton and Schulz.
/// Its singular values come near 1, but for those that were small beside the largest. Of zeros it makes zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewtonSchulz {
    /// Changed: (rows, cols).
    pub x: Span,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// How many iterations.
    pub steps: u32,
}

/// The last part of Muon: a step down a direction that is used as it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descend {
    /// Changed: (n).
    pub params: Span,
    /// What is subtracted, times the learning rate and `scale`: (n).
    pub direction: Span,
    /// The device scalars: `LEARNING_RATE`, `APPLY`.
    pub scalars: Span,
    /// Decoupled weight decay; multiplied by the learning rate, and not by `scale`. 0: none.
    pub weight_decay: f64,
    /// A factor on the learning rate.
    pub rate: f64,
    /// A factor on the direction.
    pub scale: f64,
}

/// A moving average of parameters, after an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    /// (n).
    pub params: Span,
    /// Changed: (n).
    pub average: Span,
    /// The device scalars: `APPLY`.
    pub scalars: Span,
    /// The device counters: `UPDATES` is the number of this update, from 1.
    pub counters: Span,
    /// How much of the average stays, at most: in the first updates it is less, so that the beginning is soon forgotten.
    pub decay: f64,
}

/// Rounds numbers to the nearest bf16, ties to even: the copies that a pass reads, of the weights that are trained. What is beyond
/// the largest becomes infinite, and NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Narrow {
    /// (n), of the backend's number type.
    pub from: Span,
    /// Written: (n), [`Dtype::Bf16`](crate::Dtype::Bf16).
    pub to: Span,
}
