//! Tokens to the residual stream, and back.

#[cfg(feature = "train")]
use super::pass::Gradients;
use super::pass::{Flow, Pass, site};
use crate::memory::Dtype;
#[cfg(feature = "train")]
use crate::op::EmbeddingBackward;
use crate::op::{EmbeddingForward, EmbeddingRows, Sink};
use crate::plan::LiveRows;

impl Pass<'_> {
    pub(super) fn embedding_forward(&self, sink: &mut Sink<'_>) -> Flow {
        let (config, activations) = (self.config(), &self.plan.activations);
        let first = activations.blocks.first().map_or(activations.head_in, |block| block.input);
        let fixed = self.weights.position_table.filter(|_| !config.position.is_rotary());
        let token_embedding = self.weights.parameters.token_embedding;
        let position_embedding = self.weights.parameters.position_embedding.or(fixed);
        let (out, d_model, vocab) = (self.stream(first), config.d_model, config.vocab_size);
        if let Some(LiveRows { live, places, positions, .. }) = self.live_rows() {
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
            return sink.put(None, "embedding", op);
        }
        let op = EmbeddingForward {
            tokens: self.tokens(),
            token_embedding,
            position_embedding,
            out,
            batch: self.batch,
            time: self.time,
            d_model,
            vocab,
            dropout: self.dropout_at(site::EMBEDDING, &[self.time, config.d_model]),
        };
        sink.put(None, "embedding", op)
    }
}

#[cfg(feature = "train")]
impl Pass<'_> {
    pub(super) fn embedding_backward(&self, sink: &mut Sink<'_>, gradients: &Gradients<'_>) -> Flow {
        let (config, parameters) = (self.config(), gradients.parameters);
        if !gradients.below(0) {
            return Flow::Continue(());
        }
        let op = EmbeddingBackward {
            tokens: self.tokens(),
            d_out: self.stream(gradients.buffers.d_stream),
            d_token_embedding: parameters.token_embedding,
            d_position_embedding: parameters.position_embedding.flatten(),
            batch: self.batch,
            time: self.time,
            d_model: config.d_model,
            vocab: config.vocab_size,
            dropout: self.dropout_at(site::EMBEDDING, &[self.time, config.d_model]),
        };
        sink.put(None, "embedding", op)
    }
}
