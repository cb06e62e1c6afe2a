//! Tokens and given vectors to the residual stream, and back.
//!
//! Given vectors stand in the place of embedded tokens at the first positions. They are looked up as tokens are, in a table
//! of their own in which each stands once: so one op serves both, and its gradient is theirs.

#[cfg(feature = "train")]
use super::pass::Gradients;
use super::pass::{Flow, Pass, site};
use crate::memory::{Dtype, Span};
#[cfg(feature = "train")]
use crate::op::EmbeddingBackward;
use crate::op::{Dropout, EmbeddingForward, EmbeddingRows, Sink};
use crate::plan::LiveRows;

/// Rows of the residual stream that lie side by side, and what is looked up for them.
struct Lookup {
    /// Where the first lies among the rows of the pass, and which position it has.
    row: usize,
    position: usize,
    batch: usize,
    time: usize,
    tokens: Span,
    /// Whether these are given vectors.
    given: bool,
}

impl Pass<'_> {
    /// All tokens at once; or sequence by sequence the given vectors, and the tokens behind them.
    fn lookups(&self) -> impl Iterator<Item = Lookup> + use<> {
        let (prefix, time, batch, text) = (self.config().prefix, self.time, self.batch, self.text());
        let tokens = self.tokens();
        let numbers = self.plan.prefix_numbers.on(self.buffers.state, Dtype::U32);
        let numbers = numbers.slice(self.before * prefix, batch * prefix);
        let whole = Lookup { row: 0, position: 0, batch, time, tokens, given: false };
        let sequences = if prefix == 0 { 0 } else { self.one_by_one() };
        let each = (0..sequences).flat_map(move |b| {
            let (row, batch) = (b * time, 1);
            let given = numbers.slice(b * prefix, prefix);
            let tokens = tokens.slice(b * text, text);
            [
                Lookup { row, position: 0, batch, time: prefix, tokens: given, given: true },
                Lookup { row: row + prefix, position: prefix, batch, time: text, tokens, given: false },
            ]
        });
        (prefix == 0).then_some(whole).into_iter().chain(each)
    }

    /// The given vectors as a table: (sequences P, C), and how many rows it has.
    fn given(&self) -> (Span, usize) {
        let table = self.plan.prefix.on(self.buffers.state, self.plan.elem);
        (table, self.plan.sequences * self.config().prefix)
    }

    /// The elements of the residual stream count on from row to row and from slice to slice.
    fn embedding_dropout(&self, row: usize) -> Option<Dropout> {
        let c = self.config().d_model;
        let dropout = self.dropout_at(site::EMBEDDING, &[self.time, c]);
        dropout.map(|dropout| Dropout { first: dropout.first.wrapping_add((row * c) as u64), ..dropout })
    }

    pub(super) fn embedding_forward(&self, sink: &mut Sink<'_>) -> Flow {
        let (config, activations) = (self.config(), &self.plan.activations);
        let first = activations.blocks.first().map_or(activations.head_in, |block| block.input);
        let fixed = self.weights.position_table.filter(|_| !config.position.is_rotary());
        let token_embedding = self.weights.parameters.token_embedding;
        let position_embedding = self.weights.parameters.position_embedding.or(fixed);
        let (out, d_model, vocab) = (self.stream(first), config.d_model, config.vocab_size);
        let (given, given_count) = self.given();
        if let Some(rows) = self.live_rows() {
            let LiveRows { live, places, positions, given_live, given: numbers, .. } = rows;
            let op = EmbeddingRows {
                live,
                tokens: self.plan.tokens.on(self.buffers.state, Dtype::U32),
                places,
                positions,
                token_embedding,
                position_embedding,
                out,
                rows: self.time,
                d_model,
                vocab,
            };
            sink.put(None, "embedding", op)?;
            if config.prefix == 0 {
                return Flow::Continue(());
            }
            // In the place of the tokens that stand in for the first rows.
            let tokens = self.plan.prefix_numbers.on(self.buffers.state, Dtype::U32);
            let op = EmbeddingRows {
                live: given_live,
                places: numbers,
                tokens,
                token_embedding: given,
                vocab: given_count,
                ..op
            };
            return sink.put(None, "prefix", op);
        }
        for Lookup { row, position, batch, time, tokens, given: is_given } in self.lookups() {
            let from = |table: Span| table.slice(position * d_model, table.len - position * d_model);
            let (table, vocab) = if is_given { (given, given_count) } else { (token_embedding, vocab) };
            let op = EmbeddingForward {
                tokens,
                token_embedding: table,
                position_embedding: position_embedding.map(from),
                out: out.slice(row * d_model, batch * time * d_model),
                batch,
                time,
                d_model,
                vocab,
                dropout: self.embedding_dropout(row),
            };
            sink.put(None, if is_given { "prefix" } else { "embedding" }, op)?;
        }
        Flow::Continue(())
    }
}

#[cfg(feature = "train")]
impl Pass<'_> {
    pub(super) fn embedding_backward(&self, sink: &mut Sink<'_>, gradients: &Gradients<'_>) -> Flow {
        let (config, parameters) = (self.config(), gradients.parameters);
        if !gradients.below(0) {
            return Flow::Continue(());
        }
        let (d_model, d_stream) = (config.d_model, self.stream(gradients.buffers.d_stream));
        for Lookup { row, position, batch, time, tokens, given } in self.lookups() {
            let from = |table: Span| table.slice(position * d_model, table.len - position * d_model);
            let (table, vocab) = match given {
                true => (gradients.d_prefix, self.given().1),
                false => (parameters.token_embedding, config.vocab_size),
            };
            let op = EmbeddingBackward {
                tokens,
                d_out: d_stream.slice(row * d_model, batch * time * d_model),
                d_token_embedding: table,
                d_position_embedding: parameters.position_embedding.flatten().map(from),
                batch,
                time,
                d_model,
                vocab,
                dropout: self.embedding_dropout(row),
            };
            sink.put(None, if given { "prefix" } else { "embedding" }, op)?;
        }
        Flow::Continue(())
    }
}
