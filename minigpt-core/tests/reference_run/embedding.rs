//! The embedding.

use minigpt_core::op::*;
use minigpt_core::reference::embedding::*;

use super::memory::Memory;

#[test]
fn embedding_forward_reads_as_many_positions_as_it_has() {
    let mut memory = Memory::new();
    let (batch, time, d_model, vocab) = (2, 3, 4, 5);
    let ids = [4, 0, 1, 1, 2, 4];
    let tokens = memory.put_u32(&ids);
    let (table_span, table) = memory.random(vocab * d_model);
    let (position_span, positions) = memory.random(7 * d_model);
    let (dropout, mask) = memory.dropout(0.3, 5);
    let mut out = vec![0.0; batch * time * d_model];
    let out_span = memory.room(out.len());

    let here = &positions[..time * d_model];
    embedding_forward(&ids, &table, Some(here), Some(&mask), &mut out, batch, time, d_model);
    let op = EmbeddingForward {
        tokens,
        token_embedding: table_span,
        position_embedding: Some(position_span),
        out: out_span,
        batch,
        time,
        d_model,
        vocab,
        dropout,
    };
    memory.expect(op, &[(out_span, &out)]);

    embedding_forward(&ids, &table, None, None, &mut out, batch, time, d_model);
    let plain = EmbeddingForward { position_embedding: None, dropout: None, ..op };
    memory.expect(plain, &[(out_span, &out)]);
}

#[test]
fn embedding_backward_adds_to_the_rows_it_read() {
    let mut memory = Memory::new();
    let (batch, time, d_model, vocab) = (2, 3, 4, 5);
    let ids = [4, 0, 1, 1, 2, 4];
    let tokens = memory.put_u32(&ids);
    let (d_out_span, d_out) = memory.random(batch * time * d_model);
    let (d_table_span, mut d_table) = memory.random(vocab * d_model);
    let (d_position_span, mut d_positions) = memory.random(5 * d_model);
    let (dropout, mask) = memory.dropout(0.3, 5);

    let d_position = Some(&mut d_positions[..time * d_model]);
    embedding_backward(&ids, &d_out, Some(&mask), Some(&mut d_table), d_position, batch, time, d_model);
    let op = EmbeddingBackward {
        tokens,
        d_out: d_out_span,
        d_token_embedding: Some(d_table_span),
        d_position_embedding: Some(d_position_span),
        batch,
        time,
        d_model,
        vocab,
        dropout,
    };
    memory.expect(op, &[(d_table_span, &d_table), (d_position_span, &d_positions)]);

    embedding_backward(&ids, &d_out, None, Some(&mut d_table), None, batch, time, d_model);
    memory.expect(
        EmbeddingBackward { d_position_embedding: None, dropout: None, ..op },
        &[(d_table_span, &d_table)],
    );

    let d_position = Some(&mut d_positions[..time * d_model]);
    embedding_backward(&ids, &d_out, None, None, d_position, batch, time, d_model);
    memory.expect(
        EmbeddingBackward { d_token_embedding: None, dropout: None, ..op },
        &[(d_position_span, &d_positions)],
    );
}
