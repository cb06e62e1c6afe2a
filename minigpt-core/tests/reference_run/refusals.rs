//! Wrong descriptors and wrong tokens, and shapes at the edge of what is right.

use minigpt_core::op::*;
use minigpt_core::{Dtype, InvalidOp, Span};

use super::memory::{Memory, SIZE};

/// Five tokens into a table of three rows.
fn small_embedding(memory: &mut Memory, ids: &[u32]) -> EmbeddingForward {
    EmbeddingForward {
        tokens: memory.put_u32(ids),
        token_embedding: memory.random(3 * 2).0,
        position_embedding: None,
        out: memory.room(ids.len() * 2),
        batch: 1,
        time: ids.len(),
        d_model: 2,
        vocab: 3,
        dropout: None,
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_anything_is_written() {
    for bad in [3, 4, IGNORE] {
        let mut memory = Memory::new();
        let op = small_embedding(&mut memory, &[0, 2, bad, 1]);
        let error = InvalidOp::Token { token: bad, vocab: 3 };
        memory.refuse(op, error);
        let backward = EmbeddingBackward {
            tokens: op.tokens,
            d_out: op.out,
            d_token_embedding: Some(op.token_embedding),
            d_position_embedding: None,
            batch: 1,
            time: 4,
            d_model: 2,
            vocab: 3,
            dropout: None,
        };
        memory.refuse(backward, error);
        if bad != IGNORE {
            let logits = memory.random(4 * 3).0;
            let scalars = memory.random(scalar::LEN).0;
            memory.refuse(
                CrossEntropy {
                    logits,
                    targets: op.tokens,
                    d_logits: Some(logits),
                    losses: None,
                    scalars,
                    rows: 4,
                    vocab: 3,
                },
                error,
            );
        }
    }
}

#[test]
fn a_span_past_its_buffer_is_refused_before_anything_is_written() {
    let mut memory = Memory::new();
    let op = small_embedding(&mut memory, &[0, 2, 1]);
    let end = |span: Span| span.offset + span.bytes().unwrap();
    let moved = |span: Span| Span { offset: SIZE - 8, ..span };
    for (op, span) in [
        (EmbeddingForward { tokens: moved(op.tokens), ..op }, moved(op.tokens)),
        (EmbeddingForward { token_embedding: moved(op.token_embedding), ..op }, moved(op.token_embedding)),
        (EmbeddingForward { out: moved(op.out), ..op }, moved(op.out)),
    ] {
        memory.refuse(op, InvalidOp::OutOfBounds { operand: "read", end: end(span), size: SIZE });
    }
}

#[test]
fn a_descriptor_of_astronomical_size_is_an_error_and_not_an_abort() {
    let mut memory = Memory::new();
    let buffer = memory.buffer;
    let span = |len| Span { buffer, dtype: Dtype::F64, offset: 0, len };
    let part = |of: u32| 1_usize << (usize::BITS - of);
    let (x, scalars) = (span(part(6)), Span { offset: part(2), ..span(scalar::LEN) });
    let op = SquaredNorm { x, scalars };
    memory.refuse(op, InvalidOp::OutOfBounds { operand: "read", end: part(3), size: SIZE });

    // All spans are empty, and the loops over the rows would never end.
    let nothing = span(0);
    let linear = LinearForward {
        x: nothing,
        weight: nothing,
        bias: None,
        activate: None,
        dropout: None,
        residual: None,
        y: nothing,
        rows: usize::MAX,
        d_in: 0,
        d_out: 0,
    };
    memory.expect(linear, &[]);

    // A row of this many elements cannot even be padded to whole blocks.
    let weight = Span { dtype: Dtype::Q8_0, ..nothing };
    let endless = LinearForward { weight, rows: 0, d_in: usize::MAX, ..linear };
    memory.refuse(endless, InvalidOp::Overflow { operand: "weight" });
}

#[test]
fn an_op_that_fails_its_check_is_refused() {
    let mut memory = Memory::new();
    let op = small_embedding(&mut memory, &[0, 2, 1]);
    let longer = EmbeddingForward { batch: 2, ..op };
    memory.refuse(longer, InvalidOp::Length { operand: "tokens", expected: 6, found: 3 });
    let over = EmbeddingForward { out: op.token_embedding, ..op };
    memory.refuse(over, InvalidOp::Overlap { a: "token_embedding", b: "out" });
}

#[test]
fn an_operand_may_be_empty() {
    let mut memory = Memory::new();
    let (scalars_span, mut scalars) = memory.random(scalar::LEN);
    scalars[scalar::GRAD_SQUARED] = 0.0;
    let nothing = Span { len: 0, ..scalars_span };
    memory.expect(SquaredNorm { x: nothing, scalars: scalars_span }, &[(scalars_span, &scalars)]);
}
