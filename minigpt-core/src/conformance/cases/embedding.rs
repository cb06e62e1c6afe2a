//! Random embeddings.

use alloc::vec::Vec;

use super::{Draw, Fill, Memory, Sizes, dropout, stored, weight_dtype};
use crate::op::*;

/// Forward or backward.
pub(super) fn case(kind: OpKind, draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (time, vocab) = (draw.size(Sizes(33, 100, 129, 200)), draw.size(Sizes(33, 1000, 40_000, 50_257)));
    let d_model = draw.size(Sizes(33, 130, 257, 400));
    // A large vocabulary is narrow: each entry is written and compared some times.
    let vocab = vocab.min(draw.work);
    let d_model = d_model.min((draw.work / 16).div_ceil(vocab)).max(1);
    let time = time.min(draw.work.div_ceil(d_model));
    let (with_positions, batch) = (!draw.variant(), 1 + draw.below(3));
    let spare = if draw.variant() { 0 } else { 1 + draw.below(4) };
    let rows = batch * time;
    let mut tokens: Vec<u32> = (0..rows).map(|_| draw.below(vocab) as u32).collect();
    // The last of the vocabulary among them, and some of them twice.
    tokens[rows - 1] = vocab as u32 - 1;
    for place in (1..rows).step_by(3) {
        tokens[place] = tokens[place / 2];
    }
    let tokens = memory.span(rows, Fill::Words(tokens));
    if kind == OpKind::EmbeddingForward {
        let dtype = weight_dtype(draw);
        return EmbeddingForward {
            tokens,
            token_embedding: match dtype {
                Some(dtype) => stored(draw, memory, dtype, vocab, d_model, 1.0),
                None => memory.span(vocab * d_model, Fill::Normal(1.0)),
            },
            position_embedding: with_positions
                .then(|| memory.span((time + spare) * d_model, Fill::Normal(1.0))),
            out: memory.span(rows * d_model, Fill::Poison),
            batch,
            time,
            d_model,
            vocab,
            dropout: dropout(draw, memory),
        }
        .into();
    }
    EmbeddingBackward {
        tokens,
        d_out: memory.span(rows * d_model, Fill::Normal(1.0)),
        d_position_embedding: with_positions.then(|| memory.span((time + 2) * d_model, Fill::Normal(1.0))),
        batch,
        time,
        d_model,
        vocab,
        dropout: dropout(draw, memory),
        // Without it, if there is something else to see.
        d_token_embedding: (!with_positions || draw.keeps())
            .then(|| memory.span(vocab * d_model, Fill::Normal(1.0))),
    }
    .into()
}
