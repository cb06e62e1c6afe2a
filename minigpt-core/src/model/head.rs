//! The end of the model: the final norm, the head, and in training the loss with the head's gradient.

use super::pass::{Flow, Pass};
#[cfg(feature = "train")]
use super::pass::{Gradients, is_trained};
use crate::memory::{Dtype, Span};
#[cfg(feature = "train")]
use crate::op::{CrossEntropy, Fill, LinearBackward, NormBackward};
use crate::op::{GatherRows, LinearForward, LinearRows, NormForward, NormRows, Sample, Sink};
use crate::plan::{Affine, LiveRows, Region};

impl Pass<'_> {
    /// After the [forward](Pass::forward) pass: the logits of every token, or in decoding of those rows from which they are
    /// wanted, and then only these go through the final norm and the head.
    pub(crate) fn logits(&self, sink: &mut Sink<'_>) -> Flow {
        let (c, vocab) = (self.config().d_model, self.config().vocab_size);
        let activations = &self.plan.activations;
        let logits = self.activation(activations.logits);
        let Some(LiveRows { wanted_live: live, wanted, .. }) = self.live_rows() else {
            self.final_norm_forward(sink)?;
            for (row, token, rows) in self.runs() {
                self.head_forward(sink, row, rows, logits.slice(token * vocab, rows * vocab))?;
            }
            return Flow::Continue(());
        };
        let rows = |region: Region, width: usize| self.activation(region).first(wanted.len * width);
        let to = rows(activations.wanted, c);
        let from = self.stream(self.last());
        let (count, width) = (wanted.len, c);
        sink.put(None, "wanted", GatherRows { live, wanted, from, to, rows: self.rows(), count, width })?;
        let mut x = to;
        if let Some(norm) = &self.weights.parameters.final_norm {
            x = rows(activations.head_in, c);
            let whole = self.norm_forward(norm, self.last(), activations.head_in, &activations.final_norm);
            let norm = NormForward { x: to.rows(c), y: x.rows(c), ..whole.first_rows(count) };
            sink.put(None, "final_norm", NormRows { live, norm })?;
        }
        let weight = *self.weights.parameters.head_weight();
        let head =
            self.linear_forward(x, &Affine { weight, bias: None }, logits.first(count * vocab), [c, vocab]);
        let linear = LinearForward { rows: count, ..head };
        sink.put(None, "head", LinearRows { live, linear })
    }

    /// After the [logits](Pass::logits) of a pass of decoding: the tokens that are chosen by them.
    pub(crate) fn choose(&self, sink: &mut Sink<'_>) -> Flow {
        let Some(LiveRows { choosing_live: live, wanted, settings, .. }) = self.live_rows() else {
            return Flow::Continue(());
        };
        let vocab = self.config().vocab_size;
        let logits = self.activation(self.plan.activations.logits);
        let rows = wanted.len;
        let logits = logits.first(rows * vocab);
        let [tokens, choices] =
            [self.plan.tokens, self.plan.choices].map(|region| region.on(self.buffers.state, Dtype::U32));
        let choices = choices.first(rows);
        sink.put(None, "choice", Sample { live, logits, settings, tokens, choices, rows, vocab })
    }

    fn final_norm_forward(&self, sink: &mut Sink<'_>) -> Flow {
        let Some(norm) = &self.weights.parameters.final_norm else { return Flow::Continue(()) };
        let activations = &self.plan.activations;
        let op = self.norm_forward(norm, self.last(), activations.head_in, &activations.final_norm);
        sink.put(None, "final_norm", op)
    }

    pub(crate) fn head_forward(&self, sink: &mut Sink<'_>, first: usize, rows: usize, logits: Span) -> Flow {
        let (c, vocab) = (self.config().d_model, self.config().vocab_size);
        let weight = *self.weights.parameters.head_weight();
        let op = self.linear_forward(
            self.head_in(first, rows),
            &Affine { weight, bias: None },
            logits,
            [c, vocab],
        );
        sink.put(None, "head", LinearForward { rows, ..op })
    }

    fn head_in(&self, first: usize, rows: usize) -> Span {
        let c = self.config().d_model;
        self.stream(self.plan.activations.head_in).slice(first * c, rows * c)
    }

    /// Where the last block leaves its result, or the embedding if there is no block.
    fn last(&self) -> Region {
        let activations = &self.plan.activations;
        activations.blocks.last().map_or(activations.head_in, |block| block.output)
    }
}

/// Rows that go through the head at once.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadPiece {
    /// Where the first is among the rows of the pass, given vectors counted.
    pub(crate) row: usize,
    /// And where among those of tokens.
    pub(crate) token: usize,
    /// How many there are.
    pub(crate) rows: usize,
}

#[cfg(feature = "train")]
impl Pass<'_> {
    /// After the [forward](Pass::forward) pass: adds the loss of the targets to `scalars`. With `gradients`, also begins the
    /// backward pass: through the head, up to the final norm.
    ///
    /// The logits of a large vocabulary are the largest matrix of all. So the head goes over the rows piece by piece, as
    /// many at once as the plan has room for: logits, loss, the logits' gradient in their place, and the head's gradient
    /// from it, before the next piece takes the room.
    pub(crate) fn loss(&self, sink: &mut Sink<'_>, scalars: Span, gradients: Option<&Gradients<'_>>) -> Flow {
        let vocab = self.config().vocab_size;
        self.before_head(sink)?;
        for HeadPiece { row, token, rows } in self.head_pieces() {
            let logits = self.piece_logits(rows);
            self.head_forward(sink, row, rows, logits)?;
            let targets = self.targets().slice(token, rows);
            let d_logits = gradients.map(|_| logits);
            sink.put(
                None,
                "loss",
                CrossEntropy { logits, targets, d_logits, losses: None, scalars, rows, vocab },
            )?;
            if let Some(gradients) = gradients {
                self.head_backward(sink, row, rows, logits, gradients)?;
            }
        }
        Flow::Continue(())
    }

    /// What the head reads, of all rows.
    pub(crate) fn before_head(&self, sink: &mut Sink<'_>) -> Flow {
        self.final_norm_forward(sink)
    }

    /// The rows that go through the head at once.
    pub(crate) fn head_pieces(&self) -> impl Iterator<Item = HeadPiece> {
        let at_once = self.plan.activations.logits.len / self.config().vocab_size;
        self.runs().flat_map(move |(row, token, len)| {
            let pieces = self.pieces(len, at_once);
            pieces.map(move |(first, rows)| HeadPiece { row: row + first, token: token + first, rows })
        })
    }

    /// The logits of a piece of so many rows, and their gradient: (rows, V).
    pub(crate) fn piece_logits(&self, rows: usize) -> Span {
        let logits = self.activation(self.plan.activations.logits);
        logits.first(rows * self.config().vocab_size)
    }

    /// Of all rows at once.
    pub(super) fn final_norm_backward(&self, sink: &mut Sink<'_>, gradients: &Gradients<'_>) -> Flow {
        let norms = self.weights.parameters.final_norm.as_ref().zip(gradients.parameters.final_norm.as_ref());
        let Some(norms) = norms.filter(|_| self.needs_head_input(gradients)) else {
            return Flow::Continue(());
        };
        let op = self.norm_backward(norms, self.last(), &self.plan.activations.final_norm, gradients);
        sink.put(
            None,
            "final_norm",
            NormBackward { d_y: self.stream(gradients.buffers.d_scratch).rows(self.config().d_model), ..op },
        )
    }

    /// Whether anything before the head is trained.
    fn needs_head_input(&self, gradients: &Gradients<'_>) -> bool {
        gradients.parameters.final_norm.iter().any(is_trained) || gradients.below(self.config().layers)
    }

    /// Where the gradient of what the head reads goes: (B, T, C).
    fn d_head_in(&self, gradients: &Gradients<'_>) -> Span {
        let (has_norm, buffers) = (self.weights.parameters.final_norm.is_some(), gradients.buffers);
        self.stream(if has_norm { buffers.d_scratch } else { buffers.d_stream })
    }

    pub(crate) fn head_backward(
        &self,
        sink: &mut Sink<'_>,
        first: usize,
        rows: usize,
        d_logits: Span,
        gradients: &Gradients<'_>,
    ) -> Flow {
        let (c, vocab) = (self.config().d_model, self.config().vocab_size);
        let w = Affine { weight: *self.weights.parameters.head_weight(), bias: None };
        let g = Affine { weight: *gradients.parameters.head_weight(), bias: None };
        let whole = self.needs_head_input(gradients).then(|| self.d_head_in(gradients));
        let (prefix, time) = (self.config().prefix, self.time);
        if let Some(whole) = whole.filter(|_| prefix > 0 && first % time == prefix) {
            // The vectors that stand before these rows do not go through the head.
            let to = whole.slice((first - prefix) * c, prefix * c);
            sink.put(None, "head", Fill { to, value: 0.0 })?;
        }
        let d_x = whole.map(|whole| whole.slice(first * c, rows * c));
        let op = self.linear_backward(self.head_in(first, rows), (&w, &g), (d_logits, d_x), [c, vocab]);
        self.put_linear_backward(sink, None, "head", LinearBackward { rows, ..op })
    }
}
