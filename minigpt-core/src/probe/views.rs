//! Which tensors there are after a step of a program: by the part of the model that it is, and by the op.

use super::TensorKind;
use crate::config::{GptConfig, NormPlace};
use crate::memory::{Buffer, Dtype, Span, Strided};
use crate::op::{Activate, AttentionForward, AttentionScores, Columns, LinearForward, Op, Step};
#[cfg(feature = "train")]
use crate::op::{CrossEntropy, LinearBackward};
use crate::plan::ALIGN;

/// A tensor, and where its values are once a step has run.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub(super) layer: Option<usize>,
    pub(super) kind: TensorKind,
    pub(super) gradient: bool,
    pub(super) span: Span,
    /// If it is columns of a matrix, such as the keys beside queries and values.
    pub(super) columns: Option<Columns>,
    /// The op that writes the span, if the step does not.
    pub(super) writer: Option<Writer>,
}

/// An op that writes to scratch what a program leaves out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writer {
    pub(super) op: Op,
    /// Whether it is the step's own op with one more output, and runs in its place; else it runs behind it.
    pub(super) instead: bool,
    /// How large the scratch must be.
    pub(super) bytes: usize,
}

/// The views of one step.
#[derive(Debug)]
pub(super) struct Views {
    list: [Option<View>; Views::MOST],
    layer: Option<usize>,
    scratch: Scratch,
    /// With norms last a norm's result is the residual stream.
    norms_last: bool,
}

/// Memory that the ops beside a program write to, one after the other.
#[derive(Debug, Clone, Copy)]
struct Scratch {
    buffer: Buffer,
    elem: Dtype,
    end: usize,
}

impl Scratch {
    fn take(&mut self, len: usize) -> Span {
        self.take_as(self.elem, len)
    }

    /// Room for as many numbers as `span` has, stored alike.
    fn take_like(&mut self, span: Span) -> Span {
        self.take_as(span.dtype, span.len)
    }

    fn take_as(&mut self, dtype: Dtype, len: usize) -> Span {
        let span = Span { buffer: self.buffer, dtype, offset: self.end, len };
        let end = span.bytes().and_then(|bytes| self.end.checked_add(bytes)?.checked_next_multiple_of(ALIGN));
        // Of so many bytes no backend has room.
        self.end = end.unwrap_or(usize::MAX);
        span
    }
}

impl Views {
    /// Attention has the most: queries, keys, values, scores, weights and its result.
    const MOST: usize = 6;

    pub(super) fn iter(&self) -> impl Iterator<Item = &View> {
        self.list.iter().flatten()
    }

    fn push(&mut self, view: View) {
        if let Some(place) = self.list.iter_mut().find(|place| place.is_none()) {
            *place = Some(view);
        }
    }

    fn tensor(&mut self, kind: TensorKind, span: Span) {
        self.push(View { layer: self.layer, kind, gradient: false, span, columns: None, writer: None });
    }

    /// Queries, keys or values, whose rows may lie apart.
    fn heads(&mut self, kind: TensorKind, gradient: bool, rows: Strided, width: usize) {
        let columns = Some(Columns { width, stride: rows.stride });
        self.push(View { layer: self.layer, kind, gradient, span: rows.span, columns, writer: None });
    }

    /// What `op` writes to the `span` of `scratch`.
    fn written(
        &mut self,
        kind: TensorKind,
        gradient: bool,
        scratch: Scratch,
        span: Span,
        op: Op,
        instead: bool,
    ) {
        let writer = Some(Writer { op, instead, bytes: scratch.end });
        self.push(View { layer: self.layer, kind, gradient, span, columns: None, writer });
    }

    /// The residual stream, and the norm's result that it is with norms last.
    fn stream(&mut self, layer: Option<usize>, kind: TensorKind, gradient: bool, span: Span) {
        let norm = match kind {
            TensorKind::ResidualMiddle => Some(TensorKind::AttentionNorm),
            TensorKind::ResidualOutput => Some(TensorKind::FeedForwardNorm),
            _ => None,
        };
        for kind in norm.filter(|_| self.norms_last).into_iter().chain([kind]) {
            self.push(View { layer, kind, gradient, span, columns: None, writer: None });
        }
    }

    fn attention(&mut self, op: &AttentionForward) {
        let AttentionForward { q, k, v, shape, .. } = *op;
        let [wide, narrow] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.d_head);
        self.heads(TensorKind::Query, false, q, wide);
        self.heads(TensorKind::Key, false, k, narrow);
        self.heads(TensorKind::Value, false, v, narrow);
        let dims = [shape.batch, shape.heads, shape.time, shape.time];
        let len = dims.iter().fold(1, |len: usize, &dim| len.saturating_mul(dim));
        for (kind, softmax) in [(TensorKind::AttentionScores, false), (TensorKind::AttentionWeights, true)] {
            let mut scratch = self.scratch;
            let scores = scratch.take(len);
            let op = AttentionScores { q, k, scores, softmax, shape };
            self.written(kind, false, scratch, scores, op.into(), false);
        }
        self.tensor(TensorKind::Attended, op.out);
    }

    /// What a sub-layer adds to the residual stream, and the sum.
    fn sublayer(&mut self, kinds: [TensorKind; 3], op: &LinearForward) {
        let [output, sum, stream] = kinds;
        if op.residual.is_none() {
            self.tensor(output, op.y);
        } else {
            let mut scratch = self.scratch;
            let y = scratch.take_like(op.y);
            self.written(output, false, scratch, y, LinearForward { residual: None, y, ..*op }.into(), false);
        }
        if self.norms_last {
            self.tensor(sum, op.y);
        } else {
            self.stream(self.layer, stream, false, op.y);
        }
    }

    fn up(&mut self, op: &LinearForward) {
        match op.activate {
            Some(Activate { input: Some(input), .. }) => self.tensor(TensorKind::PreActivation, input),
            Some(activate) => {
                let mut scratch = self.scratch;
                let input = scratch.take_like(op.y);
                let activate = Some(Activate { input: Some(input), ..activate });
                let op = LinearForward { activate, ..*op };
                self.written(TensorKind::PreActivation, false, scratch, input, op.into(), true);
            }
            // A gate follows, which gives the activation.
            None => return self.tensor(TensorKind::PreActivation, op.y),
        }
        self.tensor(TensorKind::Activation, op.y);
    }
}

/// Reads a program step by step.
#[derive(Debug)]
pub(super) struct Reader<'c> {
    config: &'c GptConfig,
    elem: Dtype,
    /// Whether the loss of the sequences in the model has been taken: a forward op of a block is recomputation then.
    after_loss: bool,
}

impl<'c> Reader<'c> {
    pub(super) fn new(config: &'c GptConfig, elem: Dtype) -> Self {
        Reader { config, elem, after_loss: false }
    }

    /// What there is to see after `step`, which comes behind those that were read before. Ops beside the program write to
    /// `scratch`.
    pub(super) fn views(&mut self, step: &Step, scratch: Buffer) -> Views {
        let mut views = Views {
            list: [None; Views::MOST],
            layer: step.name.layer,
            scratch: Scratch { buffer: scratch, elem: self.elem, end: 0 },
            norms_last: self.config.norm_place == NormPlace::Post,
        };
        self.forward(step, &mut views);
        #[cfg(feature = "train")]
        self.backward(step, &mut views);
        views
    }

    fn forward(&mut self, step: &Step, views: &mut Views) {
        use TensorKind::*;
        let layer = step.name.layer;
        if let Op::EmbeddingForward(op) = step.op {
            self.after_loss = false;
            return views.tensor(Embedding, op.out);
        }
        if self.after_loss && layer.is_some() {
            return;
        }
        let rotary = self.config.position.is_rotary();
        match (step.name.part, &step.op) {
            ("attention.norm", Op::NormForward(op)) if views.norms_last => {
                views.stream(layer, ResidualMiddle, false, op.y.span);
            }
            ("attention.norm", Op::NormForward(op)) => views.tensor(AttentionNorm, op.y.span),
            ("attention.qkv", Op::LinearForward(op)) if rotary && !self.config.qk_norm => {
                let (q, k) = (self.config.d_attention(), self.config.kv_heads() * self.config.d_head());
                views.heads(QueryBeforeRotary, false, op.y.columns(0, q, op.d_out), q);
                views.heads(KeyBeforeRotary, false, op.y.columns(q, k, op.d_out), k);
            }
            ("attention.q_norm", Op::NormForward(op)) if rotary => {
                views.heads(QueryBeforeRotary, false, op.y, op.groups * op.width);
            }
            ("attention.k_norm", Op::NormForward(op)) if rotary => {
                views.heads(KeyBeforeRotary, false, op.y, op.groups * op.width);
            }
            ("attention", Op::AttentionForward(op)) => views.attention(op),
            ("attention.out", Op::LinearForward(op)) => {
                views.sublayer([AttentionOutput, AttentionSum, ResidualMiddle], op);
            }
            ("feed_forward.norm", Op::NormForward(op)) if views.norms_last => {
                views.stream(layer, ResidualOutput, false, op.y.span);
            }
            ("feed_forward.norm", Op::NormForward(op)) => views.tensor(FeedForwardNorm, op.y.span),
            ("feed_forward.up", Op::LinearForward(op)) => views.up(op),
            ("feed_forward.gate", Op::GateForward(op)) => views.tensor(Activation, op.y),
            ("feed_forward.down", Op::LinearForward(op)) => {
                views.sublayer([FeedForwardOutput, FeedForwardSum, ResidualOutput], op);
            }
            ("final_norm", Op::NormForward(op)) => views.tensor(FinalNorm, op.y.span),
            ("head", Op::LinearForward(op)) => views.tensor(Logits, op.y),
            _ => {}
        }
    }
}

#[cfg(feature = "train")]
impl Views {
    fn gradient(&mut self, kind: TensorKind, span: Span) {
        self.push(View { layer: self.layer, kind, gradient: true, span, columns: None, writer: None });
    }

    fn loss(&mut self, op: &CrossEntropy) {
        let mut scratch = self.scratch;
        let losses = scratch.take(op.rows);
        let with_losses = CrossEntropy { losses: Some(losses), ..*op };
        self.written(TensorKind::Loss, false, scratch, losses, with_losses.into(), true);
        if let Some(d_logits) = op.d_logits {
            self.gradient(TensorKind::Logits, d_logits);
        }
    }

    /// The gradients of the activation's result, which the op multiplies by the slope at once, and of its input.
    fn down(&mut self, op: &LinearBackward, d_x: Span) {
        if op.activate.is_none() {
            // The gate has a gradient of its own.
            return self.gradient(TensorKind::Activation, d_x);
        }
        let mut scratch = self.scratch;
        let d_activation = scratch.take_like(d_x);
        // What it adds to the gradients of the parameters is in them already.
        let apart =
            LinearBackward { activate: None, d_x: Some(d_activation), d_weight: None, d_bias: None, ..*op };
        self.written(TensorKind::Activation, true, scratch, d_activation, apart.into(), false);
        self.gradient(TensorKind::PreActivation, d_x);
    }
}

#[cfg(feature = "train")]
impl Reader<'_> {
    fn backward(&mut self, step: &Step, views: &mut Views) {
        use TensorKind::*;
        let (layer, norm) = (step.name.layer, self.config.norm_place);
        // What the block of this step reads, and what the head reads.
        let (before, input) = match layer {
            Some(layer) if layer > 0 => (Some(layer - 1), ResidualOutput),
            _ => (None, Embedding),
        };
        let last = self.config.layers.checked_sub(1);
        match (step.name.part, &step.op) {
            ("loss", Op::CrossEntropy(op)) => {
                self.after_loss = true;
                views.loss(op);
            }
            ("final_norm", Op::NormBackward(op)) => views.stream(last, ResidualOutput, true, op.d_x.span),
            ("feed_forward.norm", Op::NormBackward(op)) if norm == NormPlace::Post => {
                views.gradient(FeedForwardSum, op.d_x.span);
            }
            ("feed_forward.norm", Op::NormBackward(op)) => {
                views.stream(layer, ResidualMiddle, true, op.d_x.span);
            }
            ("attention.norm", Op::NormBackward(op)) if norm == NormPlace::Post => {
                views.gradient(AttentionSum, op.d_x.span);
            }
            ("attention.norm", Op::NormBackward(op)) => views.stream(before, input, true, op.d_x.span),
            ("attention", Op::AttentionBackward(op)) => {
                let [wide, narrow] = [op.shape.heads, op.shape.kv_heads].map(|heads| heads * op.shape.d_head);
                views.heads(Query, true, op.d_q, wide);
                views.heads(Key, true, op.d_k, narrow);
                views.heads(Value, true, op.d_v, narrow);
            }
            ("feed_forward.gate", Op::GateBackward(op)) => views.gradient(PreActivation, op.d_x),
            ("attention.rotary", Op::Rotary(op)) if op.inverse => {
                let (q, k) = (self.config.d_attention(), self.config.kv_heads() * self.config.d_head());
                views.heads(QueryBeforeRotary, true, op.x.part(0, q, q + k), q);
                views.heads(KeyBeforeRotary, true, op.x.part(q, k, q + k), k);
            }
            // Given vectors have none.
            ("head", Op::Fill(op)) if norm == NormPlace::Pre => views.gradient(FinalNorm, op.to),
            ("head", Op::Fill(op)) => views.stream(last, ResidualOutput, true, op.to),
            (part, Op::LinearBackward(op)) => {
                let Some(d_x) = op.d_x else { return };
                match part {
                    "head" if norm == NormPlace::Pre => views.gradient(FinalNorm, d_x),
                    "head" => views.stream(last, ResidualOutput, true, d_x),
                    "feed_forward.down" => {
                        views.gradient(FeedForwardOutput, op.d_y);
                        views.down(op, d_x);
                    }
                    "feed_forward.up" if norm == NormPlace::Pre => views.gradient(FeedForwardNorm, d_x),
                    "feed_forward.up" => views.stream(layer, ResidualMiddle, true, d_x),
                    "attention.out" => {
                        views.gradient(AttentionOutput, op.d_y);
                        views.gradient(Attended, d_x);
                    }
                    "attention.qkv" if norm == NormPlace::Pre => views.gradient(AttentionNorm, d_x),
                    "attention.qkv" => views.stream(before, input, true, d_x),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
