//! Ops by rows of which some dimension is 0: there is little to do, or nothing.

use alloc::vec;

use super::{Fill, Memory};
use crate::config::{Activation, Pairing};
use crate::memory::Span;
use crate::op::*;

/// Each subset of an op's dimensions, as bits, but for all of them. Those of the subset are 2 and the others 0.
pub(super) fn numbers(kind: OpKind) -> core::ops::Range<u32> {
    let dimensions = match kind {
        OpKind::LayerNormRows | OpKind::GateRows => 2,
        OpKind::LinearRows | OpKind::RotaryRows | OpKind::GatherRows => 3,
        OpKind::EmbeddingRows => 4,
        OpKind::CacheAppend | OpKind::AttentionRows => 5,
        _ => 0,
    };
    0..(1 << dimensions) - 1
}

fn words(memory: &mut dyn Memory, words: &[u32]) -> Span {
    memory.span(words.len(), Fill::Words(words.into()))
}

fn zeros(memory: &mut dyn Memory, len: usize) -> Span {
    words(memory, &vec![0; len])
}

fn numbers_of(memory: &mut dyn Memory, dims: &[usize]) -> Span {
    memory.span(dims.iter().product(), Fill::Normal(1.0))
}

/// One live row of an op, if there may be one: all that its words name must be there.
pub(super) fn case(kind: OpKind, number: u32, memory: &mut dyn Memory) -> Op {
    let [rows, a, b, c, d] = core::array::from_fn(|place| 2 * (number >> place & 1) as usize);
    match kind {
        OpKind::EmbeddingRows => embedding(memory, [rows, a, b, c]).into(),
        OpKind::LayerNormRows => layernorm(memory, [rows, a]).into(),
        OpKind::LinearRows => linear(memory, [rows, a, b]).into(),
        OpKind::GateRows => gate(memory, [rows, a]).into(),
        OpKind::RotaryRows => rotary(memory, [rows, a, b]).into(),
        OpKind::GatherRows => gather(memory, [rows, a, b]).into(),
        OpKind::CacheAppend => append(memory, [rows, a, b, c, d]).into(),
        _ => attention(memory, [rows, a, b, c, d]).into(),
    }
}

fn embedding(memory: &mut dyn Memory, [rows, tokens, vocab, d_model]: [usize; 4]) -> EmbeddingRows {
    EmbeddingRows {
        live: words(memory, &[u32::from(tokens * vocab > 0)]),
        tokens: zeros(memory, tokens),
        places: zeros(memory, rows),
        positions: zeros(memory, rows),
        token_embedding: numbers_of(memory, &[vocab, d_model]),
        position_embedding: Some(numbers_of(memory, &[2, d_model])),
        out: numbers_of(memory, &[rows, d_model]),
        rows,
        d_model,
        vocab,
    }
}

fn layernorm(memory: &mut dyn Memory, [rows, width]: [usize; 2]) -> LayerNormRows {
    LayerNormRows {
        live: words(memory, &[1]),
        norm: LayerNormForward {
            x: numbers_of(memory, &[rows, width]),
            weight: numbers_of(memory, &[width]),
            bias: None,
            y: numbers_of(memory, &[rows, width]),
            mean: numbers_of(memory, &[rows]),
            rstd: numbers_of(memory, &[rows]),
            rows,
            width,
            eps: 0.5,
        },
    }
}

fn linear(memory: &mut dyn Memory, [rows, d_in, d_out]: [usize; 3]) -> LinearRows {
    LinearRows {
        live: words(memory, &[1]),
        linear: LinearForward {
            x: numbers_of(memory, &[rows, d_in]),
            weight: numbers_of(memory, &[d_out, d_in]),
            bias: Some(numbers_of(memory, &[d_out])),
            activate: None,
            dropout: None,
            residual: None,
            y: numbers_of(memory, &[rows, d_out]),
            rows,
            d_in,
            d_out,
        },
    }
}

fn gate(memory: &mut dyn Memory, [rows, width]: [usize; 2]) -> GateRows {
    let (x, y) = (numbers_of(memory, &[rows, 2, width]), numbers_of(memory, &[rows, width]));
    let gate = GateForward { x, y, activation: Activation::Silu, rows, width };
    GateRows { live: words(memory, &[1]), gate }
}

fn rotary(memory: &mut dyn Memory, [rows, heads, d_head]: [usize; 3]) -> RotaryRows {
    RotaryRows {
        live: words(memory, &[1]),
        positions: zeros(memory, rows),
        x: numbers_of(memory, &[rows, 2, heads * d_head]).columns(0, heads * d_head, 2 * heads * d_head),
        table: numbers_of(memory, &[1, d_head]),
        pairing: Pairing::Adjacent,
        rows,
        heads,
        d_head,
    }
}

fn gather(memory: &mut dyn Memory, [rows, count, width]: [usize; 3]) -> GatherRows {
    GatherRows {
        live: words(memory, &[u32::from(rows > 0)]),
        wanted: zeros(memory, count),
        from: numbers_of(memory, &[rows, width]),
        to: numbers_of(memory, &[count, width]),
        rows,
        count,
        width,
    }
}

type Cached = [usize; 5];

fn append(memory: &mut dyn Memory, [rows, slot_count, capacity, heads, d_head]: Cached) -> CacheAppend {
    let (width, kv) = (heads * d_head, numbers_of(memory, &[rows, 2, heads, d_head]));
    CacheAppend {
        live: words(memory, &[u32::from(slot_count * capacity > 0)]),
        slots: zeros(memory, rows),
        positions: zeros(memory, rows),
        k: kv.columns(0, width, 2 * width),
        v: kv.columns(width, width, 2 * width),
        keys: numbers_of(memory, &[slot_count, heads, capacity, d_head]),
        values: numbers_of(memory, &[slot_count, heads, capacity, d_head]),
        rows,
        slot_count,
        capacity,
        kv_heads: heads,
        d_head,
    }
}

fn attention(memory: &mut dyn Memory, [rows, slot_count, capacity, heads, d_head]: Cached) -> AttentionRows {
    AttentionRows {
        live: words(memory, &[u32::from(slot_count * capacity > 0)]),
        slots: zeros(memory, rows),
        last: zeros(memory, rows),
        q: numbers_of(memory, &[rows, heads, d_head]).rows(heads * d_head),
        keys: numbers_of(memory, &[slot_count, heads, capacity, d_head]),
        values: numbers_of(memory, &[slot_count, heads, capacity, d_head]),
        out: numbers_of(memory, &[rows, heads, d_head]),
        rows,
        slot_count,
        capacity,
        heads,
        kv_heads: heads,
        d_head,
        scale: 1.0,
    }
}
