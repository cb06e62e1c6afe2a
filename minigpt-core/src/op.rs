//! The ops: everything that a backend is asked to compute.
//!
//! An op is a small `Copy` descriptor: spans of device memory and dimensions. The letters are those of the crate's
//! front page: B batch, T time, C d_model, H heads, D d_head, F d_ff, V vocabulary; all matrices are row-major.
//! Weights of linear layers are `(d_out, d_in)`, as in PyTorch. [`crate::reference`] says what each op computes.
//!
//! Unless a field says otherwise, a span that an op writes overlaps no other span of that op.

use core::fmt;

use crate::backend::{Dtype, Span};
use crate::config::Activation;
use crate::train::schedule::Schedule;

/// A target that counts neither in the loss nor in the gradient.
pub const IGNORE: u32 = u32::MAX;

/// Places in the span of device scalars (of the backend's number type, [`scalar::LEN`] long).
pub mod scalar {
    /// Sum of -ln p over the targets since the step began. [`CrossEntropy`](super::CrossEntropy) adds to it.
    pub const LOSS_SUM: usize = 0;
    /// How many targets were counted in `LOSS_SUM`.
    pub const TARGETS: usize = 1;
    /// Squared norm of the summed gradient, written by [`SquaredNorm`](super::SquaredNorm).
    pub const GRAD_SQUARED: usize = 2;
    /// Mean loss of the last finished step, in nats per token.
    pub const LOSS: usize = 3;
    /// Norm of the mean gradient of the last finished step, before clipping.
    pub const GRAD_NORM: usize = 4;
    /// What AdamW multiplies the summed gradient by: clip factor / targets. 0 in a step that is skipped.
    pub const GRAD_SCALE: usize = 5;
    /// Learning rate of the last finished step.
    pub const LEARNING_RATE: usize = 6;
    /// 1 - beta1^t for update number t.
    pub const CORRECTION1: usize = 7;
    /// 1 - beta2^t for update number t.
    pub const CORRECTION2: usize = 8;
    /// 1 if the last finished step's loss and gradient were finite and AdamW is to apply it, else 0.
    pub const APPLY: usize = 9;
    /// How many scalars there are.
    pub const LEN: usize = 16;
}

/// Places in the span of device counters (u32, [`counter::LEN`] long). Pairs are (low, high) words.
pub mod counter {
    /// Low word of the seed, the key of the dropout masks.
    pub const SEED: usize = 0;
    /// Low word of the draw number: which forward pass the dropout masks belong to.
    pub const DRAW: usize = 2;
    /// Low word of the number of targets trained on.
    pub const TOKENS: usize = 4;
    /// Steps finished, skipped ones included.
    pub const STEP: usize = 6;
    /// Updates applied: t in AdamW's bias corrections.
    pub const UPDATES: usize = 7;
    /// Steps skipped because the loss or the gradient was not finite.
    pub const SKIPPED: usize = 8;
    /// Steps skipped since the last update.
    pub const SKIPPED_IN_A_ROW: usize = 9;
    /// How many counters there are.
    pub const LEN: usize = 16;
}

/// Inverted dropout: elements are dropped with `probability`, the others are divided by 1 - `probability`.
///
/// The mask is a pure function of seed, draw, site and element index ([`crate::rng::dropout_words`]), so the
/// backward pass recomputes what the forward pass used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// In 0..1.
    pub probability: f64,
    /// Which place of the model this is: different places have different masks.
    pub site: u32,
    /// The device counters (u32, [`counter::LEN`]): seed and draw number.
    pub counters: Span,
}

/// x = token_embedding\[token\] + position_embedding\[position\], then dropout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingForward {
    /// u32 (B, T), each below `vocab`.
    pub tokens: Span,
    /// (V, C).
    pub token_embedding: Span,
    /// (at least `start` + T, C): trained or sinusoidal.
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
    /// The position of the first token of every row.
    pub start: usize,
    /// Applied to the sum.
    pub dropout: Option<Dropout>,
}

/// The gradient of [`EmbeddingForward`] with `start` 0; adds to both gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingBackward {
    /// u32 (B, T).
    pub tokens: Span,
    /// (B, T, C).
    pub d_out: Span,
    /// Added to: (V, C).
    pub d_token_embedding: Span,
    /// Added to: (at least T, C).
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

/// y = (x - mean) * rstd * weight + bias, over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormForward {
    /// (rows, C).
    pub x: Span,
    /// (C).
    pub weight: Span,
    /// (C).
    pub bias: Option<Span>,
    /// Written: (rows, C).
    pub y: Span,
    /// Written: (rows), the mean of each row.
    pub mean: Span,
    /// Written: (rows), 1 / sqrt(variance + eps).
    pub rstd: Span,
    /// Number of rows.
    pub rows: usize,
    /// C.
    pub width: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// The gradient of [`LayerNormForward`]; adds to the parameters' gradients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormBackward {
    /// (rows, C), the forward input.
    pub x: Span,
    /// (C).
    pub weight: Span,
    /// (rows).
    pub mean: Span,
    /// (rows).
    pub rstd: Span,
    /// (rows, C).
    pub d_y: Span,
    /// Written, or added to if `accumulate`: (rows, C). May be the very span `d_y` if not `accumulate`.
    pub d_x: Span,
    /// Whether `d_x` already holds a gradient, that of the residual connection around the norm.
    pub accumulate: bool,
    /// Added to: (C).
    pub d_weight: Span,
    /// Added to: (C).
    pub d_bias: Option<Span>,
    /// Number of rows.
    pub rows: usize,
    /// C.
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
/// d_x = (g weight) * activation'(input).
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
    /// Written, or added to if `accumulate`: (rows, d_in).
    pub d_x: Option<Span>,
    /// Whether `d_x` already holds a gradient to add to.
    pub accumulate: bool,
    /// The activation that `x` came out of, with its input of shape (rows, d_in). Not with `accumulate`.
    pub activate: Option<Activate>,
    /// Added to: (d_out, d_in).
    pub d_weight: Span,
    /// Added to: (d_out).
    pub d_bias: Option<Span>,
    /// Number of rows.
    pub rows: usize,
    /// Width of the input.
    pub d_in: usize,
    /// Width of the output.
    pub d_out: usize,
}

/// Rotary positions: turns each pair of neighbours (2i, 2i+1) of every query and key head by an angle
/// position * 10000^(-2i/D); values stay. Its gradient is the turn back (`inverse`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Changed in place: (B, T, 3C), queries, keys and values side by side.
    pub qkv: Span,
    /// (at least `start` + T, D): for each position, D/2 pairs (cos, sin).
    pub table: Span,
    /// B.
    pub batch: usize,
    /// T.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D, even.
    pub d_head: usize,
    /// The position of the first row of every sequence.
    pub start: usize,
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

/// Attention of new positions over a cache of earlier ones: first stores the new keys and values at positions
/// `past .. past + time` of the caches, then lets query i see the cached positions `0 ..= past + i`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionCached {
    /// (B, T, 3C), of the new positions.
    pub qkv: Span,
    /// Read, and written at the new positions: (B, H, capacity, D).
    pub keys: Span,
    /// Read, and written at the new positions: (B, H, capacity, D).
    pub values: Span,
    /// Written: (B, T, C).
    pub out: Span,
    /// How many positions the caches hold already.
    pub past: usize,
    /// How many positions the caches have room for.
    pub capacity: usize,
    /// B.
    pub batch: usize,
    /// T: how many positions are new.
    pub time: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
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
/// the count; d_logits = p - one_hot(target), zero for rows whose target is [`IGNORE`].
///
/// Losses and gradients are sums and not means, so that accumulating over micro-batches needs no correction:
/// [`FinishStep`] divides by the number of targets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// (rows, V).
    pub logits: Span,
    /// u32 (rows): token ids below V, or [`IGNORE`].
    pub targets: Span,
    /// Written: (rows, V). May be the very span `logits`.
    pub d_logits: Option<Span>,
    /// Written: (rows), each row's -ln p(target), 0 where ignored.
    pub losses: Option<Span>,
    /// The device scalars: [`scalar::LOSS_SUM`] and [`scalar::TARGETS`] are added to.
    pub scalars: Span,
    /// Number of rows.
    pub rows: usize,
    /// V.
    pub vocab: usize,
}

/// The sum of the squares of `x`, written to [`scalar::GRAD_SQUARED`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SquaredNorm {
    /// Any length.
    pub x: Span,
    /// The device scalars.
    pub scalars: Span,
}

/// Advances [`counter::DRAW`], so that the next forward pass has fresh dropout masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextDraw {
    /// The device counters.
    pub counters: Span,
}

/// Closes a step on the device: turns sums into means, decides whether the step is finite, clips, looks up the
/// learning rate, and advances the counters. Computed in f64 on every backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FinishStep {
    /// The device scalars: reads `LOSS_SUM`, `TARGETS` and `GRAD_SQUARED`, writes the rest, and sets `LOSS_SUM`
    /// and `TARGETS` back to 0.
    pub scalars: Span,
    /// The device counters.
    pub counters: Span,
    /// The learning rate by step.
    pub schedule: Schedule,
    /// The largest norm of the mean gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
}

/// AdamW over all parameters at once (Loshchilov and Hutter 2019). Does nothing if [`scalar::APPLY`] is 0, and
/// then leaves every span as it is.
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

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Any op, with its operands.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $name($name),)*
        }

        /// Any op, without its operands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum OpKind {
            $($(#[$doc])* $name,)*
        }

        impl OpKind {
            /// All kinds, in order.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$name),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(OpKind::$name => stringify!($name),)*
                }
            }
        }

        impl Op {
            /// Its kind.
            pub const fn kind(&self) -> OpKind {
                match self {
                    $(Op::$name(_) => OpKind::$name,)*
                }
            }

            fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
                match self {
                    $(Op::$name(op) => op.describe(visit),)*
                }
            }
        }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

ops! {
    /// See [`struct@EmbeddingForward`].
    EmbeddingForward,
    /// See [`struct@EmbeddingBackward`].
    EmbeddingBackward,
    /// See [`struct@LayerNormForward`].
    LayerNormForward,
    /// See [`struct@LayerNormBackward`].
    LayerNormBackward,
    /// See [`struct@LinearForward`].
    LinearForward,
    /// See [`struct@LinearBackward`].
    LinearBackward,
    /// See [`struct@Rotary`].
    Rotary,
    /// See [`struct@AttentionForward`].
    AttentionForward,
    /// See [`struct@AttentionBackward`].
    AttentionBackward,
    /// See [`struct@AttentionCached`].
    AttentionCached,
    /// See [`struct@AttentionScores`].
    AttentionScores,
    /// See [`struct@CrossEntropy`].
    CrossEntropy,
    /// See [`struct@SquaredNorm`].
    SquaredNorm,
    /// See [`struct@NextDraw`].
    NextDraw,
    /// See [`struct@FinishStep`].
    FinishStep,
    /// See [`struct@AdamW`].
    AdamW,
}

/// What an op does with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes all of it, whatever it held.
    Write,
    /// It reads it and changes it.
    Update,
}

/// One operand of an op, as [`Op::operands`] lists them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operand {
    /// The descriptor's field.
    pub name: &'static str,
    /// The span.
    pub span: Span,
    /// What the op does with it.
    pub access: Access,
    /// What its elements must be.
    pub kind: OperandKind,
}

/// What the elements of an operand must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperandKind {
    /// The backend's own number type.
    Elem,
    /// A weight, which may also be f16, bf16 or quantised along rows of this length.
    Weight {
        /// Length of a row, without padding.
        cols: usize,
    },
    /// [`Dtype::U32`].
    U32,
}

/// Collects operands and checks their lengths.
struct Describe<'a> {
    visit: &'a mut dyn FnMut(Operand),
}

fn product(operand: &'static str, dims: &[usize]) -> Result<usize, InvalidOp> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(InvalidOp::Overflow { operand })
}

impl Describe<'_> {
    fn push(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        kind: OperandKind,
        fits: impl Fn(usize) -> bool,
        expected: usize,
    ) -> Result<(), InvalidOp> {
        if !fits(span.len) {
            return Err(InvalidOp::Length { operand: name, expected, found: span.len });
        }
        (self.visit)(Operand { name, span, access, kind });
        Ok(())
    }

    fn elem(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        let expected = product(name, dims)?;
        self.push(name, span, access, OperandKind::Elem, |len| len == expected, expected)
    }

    /// A span that may be longer than the op needs.
    fn at_least(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        let expected = product(name, dims)?;
        self.push(name, span, access, OperandKind::Elem, |len| len >= expected, expected)
    }

    fn weight(&mut self, name: &'static str, span: Span, rows: usize, cols: usize) -> Result<(), InvalidOp> {
        let expected = product(name, &[rows, span.dtype.padded(cols)])?;
        self.push(name, span, Access::Read, OperandKind::Weight { cols }, |len| len == expected, expected)
    }

    fn u32(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        let expected = product(name, dims)?;
        self.push(name, span, access, OperandKind::U32, |len| len == expected, expected)
    }

    fn dropout(&mut self, dropout: &Option<Dropout>) -> Result<(), InvalidOp> {
        match dropout {
            None => Ok(()),
            Some(d) if !(0.0..1.0).contains(&d.probability) => Err(InvalidOp::Value { operand: "dropout" }),
            Some(d) => self.u32("dropout.counters", d.counters, Access::Read, &[counter::LEN]),
        }
    }

    fn scalars(&mut self, span: Span) -> Result<(), InvalidOp> {
        self.elem("scalars", span, Access::Update, &[scalar::LEN])
    }
}

use Access::{Read, Update, Write};

fn write_or_update(accumulate: bool) -> Access {
    if accumulate { Update } else { Write }
}

impl EmbeddingForward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, c) = (self.batch, self.time, self.d_model);
        let mut d = Describe { visit };
        d.u32("tokens", self.tokens, Read, &[b, t])?;
        d.weight("token_embedding", self.token_embedding, self.vocab, c)?;
        if let Some(span) = self.position_embedding {
            let positions =
                self.start.checked_add(t).ok_or(InvalidOp::Overflow { operand: "position_embedding" })?;
            d.at_least("position_embedding", span, Read, &[positions, c])?;
        }
        d.dropout(&self.dropout)?;
        d.elem("out", self.out, Write, &[b, t, c])
    }
}

impl EmbeddingBackward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, c) = (self.batch, self.time, self.d_model);
        let mut d = Describe { visit };
        d.u32("tokens", self.tokens, Read, &[b, t])?;
        d.elem("d_out", self.d_out, Read, &[b, t, c])?;
        d.dropout(&self.dropout)?;
        d.elem("d_token_embedding", self.d_token_embedding, Update, &[self.vocab, c])?;
        if let Some(span) = self.d_position_embedding {
            d.at_least("d_position_embedding", span, Update, &[t, c])?;
        }
        Ok(())
    }
}

impl LayerNormForward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.rows, self.width])?;
        d.elem("weight", self.weight, Read, &[self.width])?;
        if let Some(bias) = self.bias {
            d.elem("bias", bias, Read, &[self.width])?;
        }
        d.elem("y", self.y, Write, &[self.rows, self.width])?;
        d.elem("mean", self.mean, Write, &[self.rows])?;
        d.elem("rstd", self.rstd, Write, &[self.rows])
    }
}

impl LayerNormBackward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.rows, self.width])?;
        d.elem("weight", self.weight, Read, &[self.width])?;
        d.elem("mean", self.mean, Read, &[self.rows])?;
        d.elem("rstd", self.rstd, Read, &[self.rows])?;
        d.elem("d_y", self.d_y, Read, &[self.rows, self.width])?;
        d.elem("d_x", self.d_x, write_or_update(self.accumulate), &[self.rows, self.width])?;
        d.elem("d_weight", self.d_weight, Update, &[self.width])?;
        match self.d_bias {
            Some(d_bias) => d.elem("d_bias", d_bias, Update, &[self.width]),
            None => Ok(()),
        }
    }
}

impl LinearForward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.rows, self.d_in])?;
        d.weight("weight", self.weight, self.d_out, self.d_in)?;
        if let Some(bias) = self.bias {
            d.elem("bias", bias, Read, &[self.d_out])?;
        }
        if let Some(Activate { input: Some(input), .. }) = self.activate {
            d.elem("activate.input", input, Write, &[self.rows, self.d_out])?;
        }
        d.dropout(&self.dropout)?;
        if let Some(residual) = self.residual {
            d.elem("residual", residual, Read, &[self.rows, self.d_out])?;
        }
        d.elem("y", self.y, Write, &[self.rows, self.d_out])
    }
}

impl LinearBackward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.rows, self.d_in])?;
        d.elem("weight", self.weight, Read, &[self.d_out, self.d_in])?;
        d.elem("d_y", self.d_y, Read, &[self.rows, self.d_out])?;
        d.dropout(&self.dropout)?;
        if let Some(activate) = self.activate {
            let input = activate.input.ok_or(InvalidOp::Value { operand: "activate.input" })?;
            d.elem("activate.input", input, Read, &[self.rows, self.d_in])?;
            if self.accumulate {
                return Err(InvalidOp::Value { operand: "accumulate" });
            }
        }
        if let Some(d_x) = self.d_x {
            d.elem("d_x", d_x, write_or_update(self.accumulate), &[self.rows, self.d_in])?;
        }
        d.elem("d_weight", self.d_weight, Update, &[self.d_out, self.d_in])?;
        match self.d_bias {
            Some(d_bias) => d.elem("d_bias", d_bias, Update, &[self.d_out]),
            None => Ok(()),
        }
    }
}

impl Rotary {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        if !self.d_head.is_multiple_of(2) {
            return Err(InvalidOp::Value { operand: "d_head" });
        }
        let mut d = Describe { visit };
        let positions = self.start.checked_add(self.time).ok_or(InvalidOp::Overflow { operand: "table" })?;
        d.at_least("table", self.table, Read, &[positions, self.d_head])?;
        d.elem("qkv", self.qkv, Update, &[self.batch, self.time, 3, self.heads, self.d_head])
    }
}

impl AttentionForward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, h, dh) = (self.batch, self.time, self.heads, self.d_head);
        let mut d = Describe { visit };
        d.elem("qkv", self.qkv, Read, &[b, t, 3, h, dh])?;
        d.dropout(&self.dropout)?;
        d.elem("out", self.out, Write, &[b, t, h, dh])?;
        d.elem("lse", self.lse, Write, &[b, h, t])
    }
}

impl AttentionBackward {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, h, dh) = (self.batch, self.time, self.heads, self.d_head);
        let mut d = Describe { visit };
        d.elem("qkv", self.qkv, Read, &[b, t, 3, h, dh])?;
        d.elem("out", self.out, Read, &[b, t, h, dh])?;
        d.elem("lse", self.lse, Read, &[b, h, t])?;
        d.elem("d_out", self.d_out, Read, &[b, t, h, dh])?;
        d.dropout(&self.dropout)?;
        d.elem("d_qkv", self.d_qkv, Write, &[b, t, 3, h, dh])
    }
}

impl AttentionCached {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, h, dh) = (self.batch, self.time, self.heads, self.d_head);
        if self.past.checked_add(t).is_none_or(|end| end > self.capacity) {
            return Err(InvalidOp::Value { operand: "past" });
        }
        let mut d = Describe { visit };
        d.elem("qkv", self.qkv, Read, &[b, t, 3, h, dh])?;
        d.elem("keys", self.keys, Update, &[b, h, self.capacity, dh])?;
        d.elem("values", self.values, Update, &[b, h, self.capacity, dh])?;
        d.elem("out", self.out, Write, &[b, t, h, dh])
    }
}

impl AttentionScores {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, h, dh) = (self.batch, self.time, self.heads, self.d_head);
        let mut d = Describe { visit };
        d.elem("qkv", self.qkv, Read, &[b, t, 3, h, dh])?;
        d.elem("scores", self.scores, Write, &[b, h, t, t])
    }
}

impl CrossEntropy {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("logits", self.logits, Read, &[self.rows, self.vocab])?;
        d.u32("targets", self.targets, Read, &[self.rows])?;
        if let Some(d_logits) = self.d_logits {
            d.elem("d_logits", d_logits, Write, &[self.rows, self.vocab])?;
        }
        if let Some(losses) = self.losses {
            d.elem("losses", losses, Write, &[self.rows])?;
        }
        d.scalars(self.scalars)
    }
}

impl SquaredNorm {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.x.len])?;
        d.scalars(self.scalars)
    }
}

impl NextDraw {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.u32("counters", self.counters, Update, &[counter::LEN])
    }
}

impl FinishStep {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.scalars(self.scalars)?;
        d.u32("counters", self.counters, Update, &[counter::LEN])
    }
}

impl AdamW {
    fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let n = self.params.len;
        if self.decayed > n {
            return Err(InvalidOp::Value { operand: "decayed" });
        }
        let mut d = Describe { visit };
        d.elem("grads", self.grads, Read, &[n])?;
        d.elem("scalars", self.scalars, Read, &[scalar::LEN])?;
        d.elem("params", self.params, Update, &[n])?;
        d.elem("m", self.m, Update, &[n])?;
        d.elem("v", self.v, Update, &[n])
    }
}

/// At most this many operands has any op.
pub const MAX_OPERANDS: usize = 10;

/// The operands of one op, without a heap.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    list: [Option<Operand>; MAX_OPERANDS],
    len: usize,
}

impl Operands {
    /// In the order of [`Op::operands`].
    pub fn iter(&self) -> impl Iterator<Item = &Operand> {
        self.list[..self.len].iter().flatten()
    }

    /// The operand called `name`.
    pub fn get(&self, name: &str) -> Option<&Operand> {
        self.iter().find(|operand| operand.name == name)
    }
}

impl Op {
    /// What it reads and writes: reads first, then what it changes.
    ///
    /// # Errors
    /// If a span's length does not fit the dimensions.
    pub fn operands(&self) -> Result<Operands, InvalidOp> {
        let mut operands = Operands { list: [None; MAX_OPERANDS], len: 0 };
        self.describe(&mut |operand| {
            operands.list[operands.len] = Some(operand);
            operands.len += 1;
        })?;
        Ok(operands)
    }

    /// Whether a backend whose numbers are `elem` may run this op: lengths fit the dimensions, types are right,
    /// offsets are aligned, and nothing that is written overlaps another operand except where the op allows it.
    ///
    /// What remains to the backend is whether each span lies inside its buffer.
    ///
    /// # Errors
    /// The first operand that is wrong.
    pub fn check(&self, elem: Dtype) -> Result<Operands, InvalidOp> {
        let operands = self.operands()?;
        for operand in operands.iter() {
            let (name, span) = (operand.name, operand.span);
            let fits = match operand.kind {
                OperandKind::Elem => span.dtype == elem,
                OperandKind::U32 => span.dtype == Dtype::U32,
                OperandKind::Weight { .. } => {
                    span.dtype == elem
                        || matches!(span.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0)
                }
            };
            if !fits {
                let expected = if operand.kind == OperandKind::U32 { Dtype::U32 } else { elem };
                return Err(InvalidOp::Dtype { operand: name, expected, found: span.dtype });
            }
            let bytes = span.bytes().ok_or(InvalidOp::Overflow { operand: name })?;
            if span.offset.checked_add(bytes).is_none() {
                return Err(InvalidOp::Overflow { operand: name });
            }
            let (elements, unit) = span.dtype.unit();
            let align = if elements == 1 { unit } else { 2 };
            if !span.offset.is_multiple_of(align) {
                return Err(InvalidOp::Misaligned { operand: name, offset: span.offset });
            }
        }
        for (i, a) in operands.iter().enumerate() {
            for b in operands.iter().skip(i + 1) {
                let written = a.access != Access::Read || b.access != Access::Read;
                if written && a.span.overlaps(&b.span) && !self.may_alias(a, b) {
                    return Err(InvalidOp::Overlap { a: a.name, b: b.name });
                }
            }
        }
        Ok(operands)
    }

    /// The pairs that may be one and the same span.
    fn may_alias(&self, a: &Operand, b: &Operand) -> bool {
        a.span == b.span
            && match self {
                Op::LayerNormBackward(op) => (a.name, b.name) == ("d_y", "d_x") && !op.accumulate,
                Op::LinearForward(_) => (a.name, b.name) == ("residual", "y"),
                Op::CrossEntropy(_) => (a.name, b.name) == ("logits", "d_logits"),
                _ => false,
            }
    }

    /// Floating-point operations, counting a multiply-add as two and only what the mathematics needs: the matrix
    /// products and the causal half of attention. Elementwise work counts as nothing.
    pub fn flops(&self) -> u64 {
        let mul = |dims: &[usize]| dims.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
        match self {
            Op::LinearForward(op) => mul(&[2, op.rows, op.d_in, op.d_out]),
            Op::LinearBackward(op) => {
                mul(&[if op.d_x.is_some() { 4 } else { 2 }, op.rows, op.d_in, op.d_out])
            }
            Op::AttentionForward(op) => mul(&[4, op.batch, op.heads, op.d_head, op.time * (op.time + 1) / 2]),
            Op::AttentionBackward(op) => {
                mul(&[8, op.batch, op.heads, op.d_head, op.time * (op.time + 1) / 2])
            }
            Op::AttentionCached(op) => {
                let seen = op.time * op.past + op.time * (op.time + 1) / 2;
                mul(&[4, op.batch, op.heads, op.d_head, seen])
            }
            Op::AttentionScores(op) => mul(&[2, op.batch, op.heads, op.d_head, op.time * (op.time + 1) / 2]),
            _ => 0,
        }
    }

    /// Bytes read and written, each operand once (updates twice).
    pub fn bytes(&self) -> u64 {
        self.operands().map_or(0, |operands| {
            operands
                .iter()
                .map(|o| {
                    let bytes = o.span.bytes().unwrap_or(0) as u64;
                    if o.access == Access::Update { 2 * bytes } else { bytes }
                })
                .sum()
        })
    }
}

/// What is wrong with an op or a transfer: a bug of the caller, told instead of a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidOp {
    /// A span's length does not fit the op's dimensions.
    Length {
        /// The operand.
        operand: &'static str,
        /// Elements that the dimensions ask for.
        expected: usize,
        /// Elements that the span has.
        found: usize,
    },
    /// A span's elements are of the wrong type.
    Dtype {
        /// The operand.
        operand: &'static str,
        /// What is needed.
        expected: Dtype,
        /// What it is.
        found: Dtype,
    },
    /// A span reaches past the end of its buffer, or its buffer does not exist.
    OutOfBounds {
        /// The operand.
        operand: &'static str,
        /// Where the span ends, in bytes.
        end: usize,
        /// The size of the buffer, in bytes; 0 if there is none.
        size: usize,
    },
    /// A span's offset is not a multiple of its element's size.
    Misaligned {
        /// The operand.
        operand: &'static str,
        /// The offset in bytes.
        offset: usize,
    },
    /// A span that is written shares bytes with another.
    Overlap {
        /// One operand.
        a: &'static str,
        /// The other.
        b: &'static str,
    },
    /// A size cannot be counted in `usize`.
    Overflow {
        /// The operand.
        operand: &'static str,
    },
    /// A number or a combination of fields has no meaning.
    Value {
        /// The field.
        operand: &'static str,
    },
    /// A token id or a target is not below the vocabulary's size.
    Token {
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// The host has no memory to carry a span through the reference; of the kind
    /// [`OutOfMemory`](crate::backend::ErrorKind::OutOfMemory).
    HostMemory {
        /// The operand.
        operand: &'static str,
        /// The bytes that it needs.
        bytes: usize,
    },
    /// A span that is to be written is read-only.
    ReadOnly {
        /// The operand.
        operand: &'static str,
    },
}

impl fmt::Display for InvalidOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            InvalidOp::Length { operand, expected, found } => {
                write!(f, "`{operand}` has {found} elements where its dimensions ask for {expected}")
            }
            InvalidOp::Dtype { operand, expected, found } => {
                write!(f, "`{operand}` holds {found:?} where {expected:?} is needed")
            }
            InvalidOp::OutOfBounds { operand, end, size } => {
                write!(f, "`{operand}` ends at byte {end} of a buffer of {size}")
            }
            InvalidOp::Misaligned { operand, offset } => {
                write!(f, "`{operand}` begins at byte {offset}, which its element type does not allow")
            }
            InvalidOp::Overlap { a, b } => write!(f, "`{a}` and `{b}` overlap, and one of them is written"),
            InvalidOp::Overflow { operand } => write!(f, "the size of `{operand}` cannot be counted"),
            InvalidOp::Value { operand } => write!(f, "`{operand}` has a value that the op cannot take"),
            InvalidOp::Token { token, vocab } => {
                write!(
                    f,
                    "token {token} is not below the vocabulary's size {vocab}: use the model's own tokenizer"
                )
            }
            InvalidOp::HostMemory { operand, bytes } => {
                write!(
                    f,
                    "`{operand}` needs {bytes} bytes on the host, which has no room: use a smaller batch"
                )
            }
            InvalidOp::ReadOnly { operand } => write!(f, "`{operand}` is read-only: it is borrowed"),
        }
    }
}

impl core::error::Error for InvalidOp {}
