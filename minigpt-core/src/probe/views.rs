//! Which tensors there are after a step of a program: by the part of the model that it is, and by the op.

use super::TensorKind;
use crate::config::{GptConfig, NormPlace};
use crate::memory::{Buffer, Dtype, Span};
use crate::op::{Activate, AttentionForward, AttentionScores, LinearForward, Op, Step};
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
    /// Queries, keys or values, 0, 1 or 2, if the span has all three side by side: (B, T, 3, C).
    pub(super) third: Option<usize>,
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
        let span = Span { buffer: self.buffer, dtype: self.elem, offset: self.end, len };
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
        self.push(View { layer: self.layer, kind, gradient: false, span, third: None, writer: None });
    }

    /// The thirds of (B, T, 3, C), as many as there are kinds.
    fn thirds(&mut self, kinds: &[TensorKind], gradient: bool, span: Span) {
        for (third, &kind) in kinds.iter().enumerate() {
            let layer = self.layer;
            self.push(View { layer, kind, gradient, span, third: Some(third), writer: None });
        }
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
        self.push(View { layer: self.layer, kind, gradient, span, third: None, writer });
    }

    /// The residual stream, and the norm's result that it is with norms last.
    fn stream(&mut self, layer: Option<usize>, kind: TensorKind, gradient: bool, span: Span) {
        let norm = match kind {
            TensorKind::ResidualMiddle => Some(TensorKind::AttentionNorm),
            TensorKind::ResidualOutput => Some(TensorKind::FeedForwardNorm),
            _ => None,
        };
        for kind in norm.filter(|_| self.norms_last).into_iter().chain([kind]) {
            self.push(View { layer, kind, gradient, span, third: None, writer: None });
        }
    }

    fn attention(&mut self, op: &AttentionForward) {
        self.thirds(&[TensorKind::Query, TensorKind::Key, TensorKind::Value], false, op.qkv);
        let AttentionForward { qkv, batch, time, heads, d_head, scale, .. } = *op;
        let len = [batch, heads, time, time].iter().fold(1, |len: usize, &dim| len.saturating_mul(dim));
        for (kind, softmax) in [(TensorKind::AttentionScores, false), (TensorKind::AttentionWeights, true)] {
            let mut scratch = self.scratch;
            let scores = scratch.take(len);
            let op = AttentionScores { qkv, scores, softmax, batch, time, heads, d_head, scale };
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
            let y = scratch.take(op.y.len);
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
                let input = scratch.take(op.y.len);
                let activate = Some(Activate { input: Some(input), ..activate });
                let op = LinearForward { activate, ..*op };
                self.written(TensorKind::PreActivation, false, scratch, input, op.into(), true);
            }
            None => {}
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
        match (step.name.part, &step.op) {
            ("attention.norm", Op::NormForward(op)) if views.norms_last => {
                views.stream(layer, ResidualMiddle, false, op.y.span);
            }
            ("attention.norm", Op::NormForward(op)) => views.tensor(AttentionNorm, op.y.span),
            ("attention.qkv", Op::LinearForward(op)) if self.config.position.is_rotary() => {
                views.thirds(&[QueryBeforeRotary, KeyBeforeRotary], false, op.y);
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
        self.push(View { layer: self.layer, kind, gradient: true, span, third: None, writer: None });
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
        let mut scratch = self.scratch;
        let d_activation = scratch.take(d_x.len);
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
            ("attention", Op::AttentionBackward(op)) => views.thirds(&[Query, Key, Value], true, op.d_qkv),
            ("attention.rotary", Op::Rotary(op)) if op.inverse => {
                views.thirds(&[QueryBeforeRotary, KeyBeforeRotary], true, op.qkv);
            }
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
