//! Random embeddings.

use super::{Fill, Memory, ODD, coin, dropout, pick, weight};
use crate::op::*;
use crate::rng::Rng;

fn words(rng: &mut Rng, len: usize, below: usize) -> Fill {
    Fill::Words((0..len).map(|_| rng.below(below as u64) as u32).collect())
}

/// Forward or backward.
pub(super) fn case(kind: OpKind, rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, d_model) = (1 + rng.below(3) as usize, pick(rng, &ODD), pick(rng, &ODD));
    let (vocab, start) = (pick(rng, &[2, 65, 97]), rng.below(3) as usize);
    let (rows, with_positions) = (batch * time, coin(rng));
    let tokens = memory.span(rows, words(rng, rows, vocab));
    if kind == OpKind::EmbeddingForward {
        return EmbeddingForward {
            tokens,
            token_embedding: weight(rng, memory, vocab, d_model, 1.0),
            position_embedding: with_positions
                .then(|| memory.span((start + time + 2) * d_model, Fill::Normal(1.0))),
            out: memory.span(rows * d_model, Fill::Poison),
            batch,
            time,
            d_model,
            vocab,
            start,
            dropout: dropout(rng, memory),
        }
        .into();
    }
    EmbeddingBackward {
        tokens,
        d_out: memory.span(rows * d_model, Fill::Normal(1.0)),
        d_token_embedding: memory.span(vocab * d_model, Fill::Normal(1.0)),
        d_position_embedding: with_positions.then(|| memory.span((time + 2) * d_model, Fill::Normal(1.0))),
        batch,
        time,
        d_model,
        vocab,
        dropout: dropout(rng, memory),
    }
    .into()
}
