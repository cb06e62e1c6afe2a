//! What each op is told: spans and dimensions.

use crate::config::{Activation, GptConfig, Mask, Pairing};
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

/// y = activation(gate) * up, where a row of x has the gate in its first half and up in its second (Shazeer 2020,
/// arXiv:2002.05202).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateForward {
    /// (rows, 2F).
    pub x: Span,
    /// Written: (rows, F).
    pub y: Span,
    /// Which one.
    pub activation: Activation,
    /// Number of rows.
    pub rows: usize,
    /// F.
    pub width: usize,
}

/// The gradient of [`GateForward`]: d_gate = d_y * up * activation'(gate), d_up = d_y * activation(gate).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateBackward {
    /// (rows, 2F), the forward input.
    pub x: Span,
    /// (rows, F).
    pub d_y: Span,
    /// Written: (rows, 2F).
    pub d_x: Span,
    /// As in the forward pass.
    pub activation: Activation,
    /// Number of rows.
    pub rows: usize,
    /// F.
    pub width: usize,
}

/// Rotary positions: turns each pair of elements of every head by an angle position * base^(-2i/D). Its gradient is the turn
/// back (`inverse`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Changed in place: (B, T, H, D), whose rows may lie apart. Queries and keys that lie side by side are turned together.
    pub x: Strided,
    /// (at least T, D): for each position, D/2 pairs (cos, sin).
    pub table: Span,
    /// Which elements are a pair.
    pub pairing: Pairing,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// How many heads: those of queries and keys, if they lie side by side.
    pub heads: usize,
    /// D, even.
    pub d_head: usize,
    /// Turn back instead.
    pub inverse: bool,
}

/// The dimensions of attention over whole sequences, and what a query sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H: heads of queries.
    pub heads: usize,
    /// K: heads of keys and values, of which each serves H / K heads of queries in a row.
    pub kv_heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
    /// So many positions, the first ones, every query sees besides those up to its own: 0 is a causal mask, and T none.
    pub prefix: usize,
}

impl AttentionShape {
    /// That of a block of such a model.
    pub(crate) fn new(config: &GptConfig, batch: usize, time: usize) -> Self {
        AttentionShape {
            batch,
            time,
            heads: config.heads,
            kv_heads: config.kv_heads(),
            d_head: config.d_head(),
            scale: config.score_scale(),
            prefix: match config.mask {
                Mask::Causal => 0,
                Mask::Prefix => config.prefix,
                Mask::None => time,
            },
        }
    }

    /// How many positions, the first ones, the query at `position` sees.
    pub fn seen(&self, position: usize) -> usize {
        position.saturating_add(1).max(self.prefix.min(self.time))
    }

    /// The head of keys and values that this head of queries reads.
    pub fn kv_head(&self, head: usize) -> usize {
        head / self.heads.checked_div(self.kv_heads).unwrap_or(1).max(1)
    }

    /// How many pairs of a query and a key that it sees there are in a sequence.
    pub(crate) fn pairs(&self) -> u64 {
        let (time, prefix) = (self.time as u64, self.prefix.min(self.time) as u64);
        // Behind the prefix they are a triangle: P + 1, ..., T. Twice as many first, so that no half is lost.
        let behind = (time - prefix).saturating_mul((time + prefix).saturating_add(1));
        prefix.saturating_mul(prefix).saturating_add(behind / 2)
    }
}

/// Multi-head attention: out = dropout(softmax(scale q k^T)) v, where a query sees what its [shape](AttentionShape) says.
/// No (T, T) matrix is stored: only `lse`, from which the backward pass recomputes the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionForward {
    /// (B, T, H, D), whose rows may lie apart.
    pub q: Strided,
    /// (B, T, K, D), whose rows may lie apart.
    pub k: Strided,
    /// (B, T, K, D), whose rows may lie apart.
    pub v: Strided,
    /// Written: (B, T, H, D).
    pub out: Span,
    /// Written: (B, H, T), the logarithm of the softmax's denominator: ln sum_j exp(scale q_i . k_j).
    pub lse: Span,
    /// B, T, H, K and D.
    pub shape: AttentionShape,
    /// Applied to the attention weights; the element index of weight (b, h, i, j) is ((b H + h) T + i) T + j.
    pub dropout: Option<Dropout>,
}

/// The gradient of [`AttentionForward`].
///
/// Where an operand has a number that is not finite, so has the loss, and the step is skipped: which parts of the gradient
/// are then finite is not promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionBackward {
    /// As in the forward pass.
    pub q: Strided,
    /// As in the forward pass.
    pub k: Strided,
    /// As in the forward pass.
    pub v: Strided,
    /// (B, T, H, D), the forward result.
    pub out: Span,
    /// (B, H, T), the forward result.
    pub lse: Span,
    /// (B, T, H, D).
    pub d_out: Span,
    /// Written: (B, T, H, D), whose rows may lie apart.
    pub d_q: Strided,
    /// Written: (B, T, K, D), whose rows may lie apart.
    pub d_k: Strided,
    /// Written: (B, T, K, D), whose rows may lie apart.
    pub d_v: Strided,
    /// B, T, H, K and D.
    pub shape: AttentionShape,
    /// As in the forward pass.
    pub dropout: Option<Dropout>,
}

/// For probes: the (T, T) matrices that attention never stores, recomputed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionScores {
    /// As in the forward pass.
    pub q: Strided,
    /// As in the forward pass.
    pub k: Strided,
    /// Written: (B, H, T, T); 0 where a query does not see a key.
    pub scores: Span,
    /// Whether to write the attention weights (after the softmax) or the scaled scores (before it).
    pub softmax: bool,
    /// B, T, H, K and D.
    pub shape: AttentionShape,
}

/// Softmax and cross-entropy with the gradient: adds sum -ln p(target) to the loss and the number of targets to
/// the count; d_logits = p - one_hot(target), zero for rows whose target is [`IGNORE`](super::IGNORE).
///
/// In a row that counts, any logit that is not finite, minus infinity included, makes the loss not finite, so that
/// [`FinishStep`](super::FinishStep) skips the step.
///
/// Losses and gradients are sums and not means, so that accumulating over micro-batches needs no correction:
/// [`FinishStep`](super::FinishStep) divides by the number of targets.
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

/// Sets every element to one value: what a program clears.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fill {
    /// Written: any length, of the backend's number type.
    pub to: Span,
    /// The value.
    pub value: f64,
}
