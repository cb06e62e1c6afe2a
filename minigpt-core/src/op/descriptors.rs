//! What each op is told: spans and dimensions.

use crate::config::Activation;
use crate::memory::{Span, Strided};

/// Inverted dropout: elements are dropped with `probability`, the others are divided by 1 - `probability`.
///
/// The mask is a pure function of seed, draw, site and element index ([`crate::rng::dropout_words`]), so the
/// backward pass recomputes what the forward pass used, and a batch that goes through the model in slices drops what it
/// would drop as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// In 0..1.
    pub probability: f64,
    /// Which place of the model this is: different places have different masks.
    pub site: u32,
    /// The index that the op's first element has in the mask: how many elements of the batch went before it.
    pub first: u64,
    /// The device counters (u32, [`counter::LEN`](super::counter::LEN)): seed and draw number.
    pub counters: Span,
}

/// x = token_embedding\[token\] + position_embedding\[position\], then dropout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingForward {
    /// u32 (B, T), each below `vocab`.
    pub tokens: Span,
    /// (V, C).
    pub token_embedding: Span,
    /// (at least T, C): trained or sinusoidal.
    pub position_embedding: Option<Span>,
    /// Written: (B, T, C).
    pub out: Span,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// C.
    pub d_model: usize,
    /// V.
    pub vocab: usize,
    /// Applied to the sum.
    pub dropout: Option<Dropout>,
}

/// The gradient of [`EmbeddingForward`]; adds to the gradients that are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingBackward {
    /// u32 (B, T).
    pub tokens: Span,
    /// (B, T, C).
    pub d_out: Span,
    /// Added to, if it is wanted: (V, C).
    pub d_token_embedding: Option<Span>,
    /// Added to, if it is wanted: (at least T, C).
    pub d_position_embedding: Option<Span>,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// C.
    pub d_model: usize,
    /// V.
    pub vocab: usize,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
}

/// Which norm, with what it keeps for its gradient besides [`NormForward::rstd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normalize {
    /// Layer norm, (x - mean) * rstd with rstd = 1 / sqrt(variance + eps).
    Layer {
        /// (rows, groups), the mean of each vector: written by the forward op, read by the backward op.
        mean: Span,
    },
    /// RMS norm, x * rstd with rstd = 1 / sqrt(mean of x^2 + eps).
    Rms,
}

/// y = normalize(x) * weight + bias, vector by vector. A row is `groups` vectors side by side, such as the heads of queries,
/// which share weight and bias but not their statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormForward {
    /// Which norm.
    pub kind: Normalize,
    /// (rows, groups * width).
    pub x: Strided,
    /// (width).
    pub weight: Span,
    /// (width).
    pub bias: Option<Span>,
    /// Written: (rows, groups * width).
    pub y: Strided,
    /// Written: (rows, groups), what [`Normalize`] says.
    pub rstd: Span,
    /// Number of rows.
    pub rows: usize,
    /// Vectors in a row: 1 where the row is one.
    pub groups: usize,
    /// Width of a vector.
    pub width: usize,
    /// Added under the root.
    pub eps: f64,
}

/// The gradient of [`NormForward`]; adds to the parameters' gradients that are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormBackward {
    /// As in the forward pass.
    pub kind: Normalize,
    /// (rows, groups * width), the forward input.
    pub x: Strided,
    /// (width).
    pub weight: Span,
    /// (rows, groups).
    pub rstd: Span,
    /// (rows, groups * width).
    pub d_y: Strided,
    /// Written, or added to if `accumulate`: (rows, groups * width). May be the very rows of `d_y` if not `accumulate`.
    pub d_x: Strided,
    /// Whether `d_x` already holds a gradient, that of the residual connection around the norm.
    pub accumulate: bool,
    /// Added to, if it is wanted: (width).
    pub d_weight: Option<Span>,
    /// Added to, if it is wanted: (width).
    pub d_bias: Option<Span>,
    /// Number of rows.
    pub rows: usize,
    /// Vectors in a row.
    pub groups: usize,
    /// Width of a vector.
    pub width: usize,
}

/// The non-linearity that a linear layer ends in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activate {
    /// Which one.
    pub activation: Activation,
    /// Its input, (rows, width): written by the forward op if given, read by the backward op, which needs it.
    pub input: Option<Span>,
}

/// y = residual + dropout(activation(x weight^T + bias)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearForward {
    /// (rows, d_in).
    pub x: Span,
    /// (d_out, d_in); may be f16, bf16 or quantised along d_in.
    pub weight: Span,
    /// (d_out).
    pub bias: Option<Span>,
    /// Applied to the product.
    pub activate: Option<Activate>,
    /// Applied after the activation.
    pub dropout: Option<Dropout>,
    /// (rows, d_out), added last. May be the very span `y`.
    pub residual: Option<Span>,
    /// Written: (rows, d_out).
    pub y: Span,
    /// Number of rows.
    pub rows: usize,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
}

/// The gradient of [`LinearForward`] without its activation, with the gradient of the activation that made its
/// input fused in: with g = dropout'(d_y), adds g^T x to `d_weight` and the column sums of g to `d_bias`, and
/// d_x = (g weight) * activation'(input). Of the three, what is not wanted is not computed: without `d_weight` nothing reads
/// `x`, and without `d_x` nothing reads `weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearBackward {
    /// (rows, d_in), the forward input.
    pub x: Span,
    /// (d_out, d_in).
    pub weight: Span,
    /// (rows, d_out): the gradient of y, which the residual connection also has.
    pub d_y: Span,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
    /// If it is wanted, written, or added to if `accumulate`: (rows, d_in).
    pub d_x: Option<Span>,
    /// Whether `d_x` already holds a gradient to add to.
    pub accumulate: bool,
    /// The activation that `x` came out of, with its input of shape (rows, d_in). Not with `accumulate`.
    pub activate: Option<Activate>,
    /// Added to, if it is wanted: (d_out, d_in).
    pub d_weight: Option<Span>,
    /// Added to, if it is wanted: (d_out).
    pub d_bias: Option<Span>,
    /// Number of rows.
    pub rows: usize,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
}

/// y = activation(x): the second half of a [`LinearForward`] with [`Activate`], for a backward pass that kept the
/// activation's input and not its result. Gives the bits that the linear layer gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationForward {
    /// (rows, width).
    pub x: Span,
    /// Written: (rows, width).
    pub y: Span,
    /// Which one.
    pub activation: Activation,
    /// Number of rows.
    pub rows: usize,
    /// Width of a row.
    pub width: usize,
}

/// Rotary positions: turns each pair of neighbours (2i, 2i+1) of every query and key head by an angle
/// position * 10000^(-2i/D); values stay. Its gradient is the turn back (`inverse`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Changed in place: (B, T, 3C), queries, keys and values side by side.
    pub qkv: Span,
    /// (at least T, D): for each position, D/2 pairs (cos, sin).
    pub table: Span,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D, even.
    pub d_head: usize,
    /// Turn back instead.
    pub inverse: bool,
}

/// Causal multi-head attention: out = dropout(softmax(scale q k^T)) v, where a query sees the keys up to its own
/// position. No (T, T) matrix is stored: only `lse`, from which the backward pass recomputes the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionForward {
    /// (B, T, 3C): queries, keys and values side by side, each C wide with the heads in order.
    pub qkv: Span,
    /// Written: (B, T, C).
    pub out: Span,
    /// Written: (B, H, T), the logarithm of the softmax's denominator: ln sum_j exp(scale q_i . k_j).
    pub lse: Span,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
    /// Applied to the attention weights; the element index of weight (b, h, i, j) is ((b H + h) T + i) T + j.
    pub dropout: Option<Dropout>,
}

/// The gradient of [`AttentionForward`].
///
/// Where an operand has a number that is not finite, so has the loss, and the step is skipped: which parts of the gradient
/// are then finite is not promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionBackward {
    /// (B, T, 3C).
    pub qkv: Span,
    /// (B, T, C), the forward result.
    pub out: Span,
    /// (B, H, T), the forward result.
    pub lse: Span,
    /// (B, T, C).
    pub d_out: Span,
    /// Written: (B, T, 3C).
    pub d_qkv: Span,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
}

/// For probes: the (T, T) matrices that attention never stores, recomputed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionScores {
    /// (B, T, 3C).
    pub qkv: Span,
    /// Written: (B, H, T, T); 0 above the diagonal.
    pub scores: Span,
    /// Whether to write the attention weights (after the softmax) or the scaled scores (before it).
    pub softmax: bool,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
}

/// Softmax and cross-entropy with the gradient: adds sum -ln p(target) to the loss and the number of targets to
/// the count; d_logits = p - one_hot(target), zero for rows whose target is [`IGNORE`](super::IGNORE).
///
/// In a row that counts, any logit that is not finite, minus infinity included, makes the loss not finite, so that
/// [`FinishStep`] skips the step.
///
/// Losses and gradients are sums and not means, so that accumulating over micro-batches needs no correction:
/// [`FinishStep`] divides by the number of targets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// (rows, V).
    pub logits: Span,
    /// u32 (rows): token ids below V, or [`IGNORE`](super::IGNORE).
    pub targets: Span,
    /// Written: (rows, V). May be the very span `logits`.
    pub d_logits: Option<Span>,
    /// Written: (rows), each row's -ln p(target), 0 where ignored.
    pub losses: Option<Span>,
    /// The device scalars: [`scalar::LOSS_SUM`](super::scalar::LOSS_SUM) and
    /// [`scalar::TARGETS`](super::scalar::TARGETS) are added to.
    pub scalars: Span,
    /// Number of rows.
    pub rows: usize,
    /// V.
    pub vocab: usize,
}

/// The sum of the squares of `x`, written to [`scalar::GRAD_SQUARED`](super::scalar::GRAD_SQUARED): of so many numbers that it
/// needs partial sums, or f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SquaredNorm {
    /// Any length.
    pub x: Span,
    /// The device scalars.
    pub scalars: Span,
}

/// Advances [`counter::DRAW`](super::counter::DRAW), so that the next batch has fresh dropout masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextDraw {
    /// The device counters.
    pub counters: Span,
}

/// Closes a step on the device: turns sums into means, decides whether the step is finite, clips, and advances the
/// counters. Computed in f64 on every backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FinishStep {
    /// The device scalars: reads `LOSS_SUM`, `TARGETS` and `GRAD_SQUARED`, writes the rest but the learning rate, and
    /// sets `LOSS_SUM` and `TARGETS` back to 0.
    pub scalars: Span,
    /// The device counters.
    pub counters: Span,
    /// The largest norm of the mean gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
}

/// AdamW over all parameters at once (Loshchilov and Hutter 2019). Does nothing if
/// [`scalar::APPLY`](super::scalar::APPLY) is 0, and then leaves every span as it is.
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
    /// The device scalars: `GRAD_SCALE`, `LEARNING_RATE`, `CORRECTION1`, `CORRECTION2`, `APPLY`.
    pub scalars: Span,
    /// The first `decayed` parameters (the matrices) have weight decay, the others have none.
    pub decayed: usize,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f64,
}

/// Sets every element to one value: what a program clears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fill {
    /// Written: any length, of the backend's number type.
    pub to: Span,
    /// The value.
    pub value: f64,
}
