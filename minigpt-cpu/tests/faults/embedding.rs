//! Faults of embeddings.

use minigpt_core::Dtype;
use minigpt_core::op::{Dropout, EmbeddingBackward, EmbeddingForward};

use crate::kernel::{Fault, faults};

fn cut(dropout: Option<Dropout>) -> Option<Dropout> {
    dropout.map(|d| Dropout { first: u64::from(d.first as u32), ..d })
}

pub(crate) const FAULTS: &[Fault] = faults! {
    EmbeddingForward {
        "positions go on from one sequence to the next" => |k, op| {
            let Some(positions) = op.position_embedding.filter(|_| op.dropout.is_none()) else { return k.run(op) };
            let table = k.get(positions)?;
            k.run(op)?;
            let (c, held) = (op.d_model, table.len());
            k.edit(op.out, |i, x| {
                let (row, at) = (i / c, i % c);
                let (right, wrong) = (row % op.time * c + at, row * c + at);
                x - table[right] + table[wrong % held]
            })
        };
        "a token is read in 16 bits, with a sign" => |k, op| k.run_on_narrow(op, op.tokens);
        "rows of a table in blocks are read without their padding" => |k, op| {
            k.run(op)?;
            let blocks = matches!(op.token_embedding.dtype, Dtype::Q8_0 | Dtype::Q4_0) && op.d_model % 32 != 0;
            k.edit(op.out, |i, x| if blocks && i >= op.d_model { x * 0.9 } else { x })
        };
        "the first index of a mask is cut to 32 bits" => |k, op| k.run(EmbeddingForward { dropout: cut(op.dropout), ..op });
        "the offset of the positions is ignored" => |k, op| {
            let positions = op.position_embedding.and_then(|span| k.at_zero(span)).or(op.position_embedding);
            k.run(EmbeddingForward { position_embedding: positions, ..op })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.out, op.d_model.next_multiple_of(8) - op.d_model);
            Ok(())
        };
        "a tail of a row that fills no vector of 16 has no position" => |k, op| {
            let Some(positions) = op.position_embedding.filter(|_| op.dropout.is_none()) else { return k.run(op) };
            let table = k.get(positions)?;
            k.run(op)?;
            let (c, whole) = (op.d_model, op.d_model / 16 * 16);
            k.edit(op.out, |i, x| if i % c >= whole { x - table[i / c % op.time * c + i % c] } else { x })
        };
    }
    EmbeddingBackward {
        "of a token that comes twice only the last counts, in long batches" => |k, op| {
            if op.batch * op.time <= 64 || op.dropout.is_some() {
                return k.run(op);
            }
            let Some(table) = op.d_token_embedding else { return k.run(op) };
            let before = k.get(table)?;
            let (tokens, d_out) = (k.words(op.tokens)?, k.get(op.d_out)?);
            k.run(op)?;
            let mut lost = before.clone();
            for (row, &token) in tokens.iter().enumerate() {
                for c in 0..op.d_model {
                    let place = token as usize * op.d_model + c;
                    lost[place] = before[place] + d_out[row * op.d_model + c];
                }
            }
            k.put(table, &lost)
        };
        "the gradient of positions is that of the last sequence" => |k, op| {
            let Some(positions) = op.d_position_embedding.filter(|_| op.batch > 1) else { return k.run(op) };
            let before = k.get(positions)?;
            k.run(op)?;
            let (d_out, c) = (k.get(op.d_out)?, op.d_model);
            let last = (op.batch - 1) * op.time * c;
            k.edit(positions, |i, x| if i < op.time * c { before[i] + d_out[last + i] } else { x })
        };
        "the gradient of tokens is written and not added to" => |k, op| {
            if let Some(table) = op.d_token_embedding {
                k.edit(table, |_, _| 0.0)?;
            }
            k.run(op)
        };
        "positions beyond the last are touched" => |k, op| {
            k.run(op)?;
            let Some(positions) = op.d_position_embedding else { return Ok(()) };
            let end = op.time * op.d_model;
            k.edit(positions, |i, x| if i == end { x + 1.0 } else { x })
        };
        "the mask is forgotten for the positions" => |k, op| {
            k.run(EmbeddingBackward { d_position_embedding: None, ..op })?;
            k.run(EmbeddingBackward { d_token_embedding: None, dropout: None, ..op })
        };
        "without the gradient of tokens there is none of positions" => |k, op| {
            let positions = op.d_position_embedding.filter(|_| op.d_token_embedding.is_some());
            k.run(EmbeddingBackward { d_position_embedding: positions, ..op })
        };
        "threads lose a token's share now and then" => |k, op| {
            let Some(table) = op.d_token_embedding else { return k.run(op) };
            let before = k.get(table)?;
            k.run(op)?;
            let lost = k.calls % 2 == 0 && op.batch * op.time > 100;
            k.edit(table, |i, x| if lost && i < op.d_model { before[i] } else { x })
        };
        "a large vocabulary is read in 16 bits, with a sign" => |k, op| k.run_on_narrow(op, op.tokens);
    }
};
