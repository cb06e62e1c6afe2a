//! Rows of decoding: the live ones, and the others are as they were.

use minigpt_core::op::{EmbeddingRows, GateRows, GatherRows, LinearRows, NormRows};

use super::whole::{LINEAR, NORM, columns, linear, norm};
use super::*;

/// How many of `rows` may be live.
fn lives(rows: usize) -> [u32; 4] {
    [0, 1.min(rows), rows.div_ceil(2), rows + 3].map(|live| live as u32)
}

#[test]
fn linear_layers_of_live_rows() {
    for shape in LINEAR {
        for live in lives(shape[0]) {
            for (options, dtype) in [(3, Dtype::F32), (8, Dtype::Q8_0), (10, Dtype::Bf16)] {
                assert_rounded(|side| {
                    let (linear, spans) = linear(side, shape, dtype, options);
                    (LinearRows { live: side.words(&[live]), linear }.into(), spans)
                });
            }
        }
    }
}

#[test]
fn norms_and_gates_of_live_rows() {
    for shape in NORM {
        for live in lives(shape[0]) {
            assert_rounded(|side| {
                let (norm, spans) = norm(side, shape, live % 2 == 0);
                (NormRows { live: side.words(&[live]), norm }.into(), spans)
            });
            assert_rounded(|side| {
                let [rows, _, width] = shape;
                let (x, y) = (side.halves(rows * 2 * width), side.halves(rows * width));
                let gate = GateForward { x, y, activation: Activation::GeluTanh, rows, width };
                (GateRows { live: side.words(&[live]), gate }.into(), [y].into())
            });
        }
    }
}

#[test]
fn embeddings_of_live_rows() {
    for (rows, d_model) in [(1, 7), (7, 65), (65, 63), (3, 3000)] {
        for live in lives(rows) {
            assert_rounded(|side| {
                let out = side.halves(rows * d_model);
                let [places, positions] = [7, 3].map(|step| {
                    let words: Vec<u32> =
                        (0..rows as u32).map(|i| if i < live { i * step % 5 } else { 99 }).collect();
                    side.words(&words)
                });
                let op = EmbeddingRows {
                    live: side.words(&[live]),
                    tokens: side.words(&[3, 0, 10, 7, 7]),
                    places,
                    positions,
                    token_embedding: side.weight(
                        if live % 2 == 0 { Dtype::F16 } else { Dtype::F32 },
                        11,
                        d_model,
                    ),
                    position_embedding: if live % 3 == 0 { None } else { Some(side.elems(5 * d_model)) },
                    out,
                    rows,
                    d_model,
                    vocab: 11,
                };
                (op.into(), [out].into())
            });
        }
    }
}

#[test]
fn rotary_positions_of_live_rows() {
    for (rows, heads, d_head) in [(1, 1, 2), (7, 3, 14), (65, 5, 64)] {
        for live in lives(rows) {
            assert_rounded(|side| {
                let x = columns(side, rows, heads * d_head, 2 * (rows % 3));
                let positions: Vec<u32> =
                    (0..rows as u32).map(|i| if i < live { i * 5 % 9 } else { 99 }).collect();
                let op = RotaryRows {
                    live: side.words(&[live]),
                    positions: side.words(&positions),
                    x,
                    table: side.elems(9 * d_head),
                    pairing: Pairing::Halves,
                    rows,
                    heads,
                    d_head,
                };
                (op.into(), [x.span].into())
            });
        }
    }
}

const CACHES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Keys or values of earlier positions.
fn cache(side: &mut Side, dtype: Dtype, len: usize) -> Span {
    if dtype == Dtype::F32 {
        return side.elems(len);
    }
    let span = side.span(dtype, len);
    let values = side.numbers(len);
    side.write(span, &values);
    span
}

#[test]
fn caches_take_live_rows() {
    for (rows, kv_heads, d_head) in [(1, 1, 1), (7, 2, 33), (65, 3, 20)] {
        for (live, dtype) in lives(rows).into_iter().flat_map(|live| CACHES.map(|dtype| (live, dtype))) {
            assert_rounded(|side| {
                let (slot_count, capacity) = (3, 30);
                let len = slot_count * kv_heads * capacity * d_head;
                let (keys, values) = (cache(side, dtype, len), cache(side, dtype, len));
                let of = |f: fn(u32) -> u32| (0..rows as u32).map(f).collect::<Vec<u32>>();
                let op = CacheAppend {
                    live: side.words(&[live]),
                    slots: side.words(&of(|i| i % 3)),
                    positions: side.words(&of(|i| i / 3)),
                    k: columns(side, rows, kv_heads * d_head, 1),
                    v: columns(side, rows, kv_heads * d_head, 0),
                    keys,
                    values,
                    rows,
                    slot_count,
                    capacity,
                    kv_heads,
                    d_head,
                };
                (op.into(), [keys, values].into())
            });
        }
    }
}

#[test]
fn attention_of_live_rows() {
    for (rows, [heads, kv_heads], d_head) in [(1, [1, 1], 7), (7, [4, 2], 20), (80, [3, 1], 33)] {
        for (live, dtype) in lives(rows).into_iter().flat_map(|live| CACHES.map(|dtype| (live, dtype))) {
            assert_rounded(|side| {
                let (slot_count, capacity) = (2, 90);
                let len = slot_count * kv_heads * capacity * d_head;
                let out = side.halves(rows * heads * d_head);
                let of = |f: fn(u32) -> u32| (0..rows as u32).map(f).collect::<Vec<u32>>();
                let op = AttentionRows {
                    live: side.words(&[live]),
                    slots: side.words(&of(|i| u32::from(i >= 50))),
                    last: side.words(&of(|i| i % 50 + 3)),
                    q: columns(side, rows, heads * d_head, rows % 3),
                    keys: cache(side, dtype, len),
                    values: cache(side, dtype, len),
                    out,
                    rows,
                    slot_count,
                    capacity,
                    heads,
                    kv_heads,
                    d_head,
                    scale: 0.3,
                };
                (op.into(), [out].into())
            });
        }
    }
}

#[test]
fn rows_are_gathered() {
    for (rows, count, width) in [(1, 1, 1), (9, 4, 63), (65, 70, 65)] {
        for live in lives(count) {
            assert_rounded(|side| {
                let to = side.halves(count * width);
                let wanted: Vec<u32> = (0..count).map(|i| (i * 7 % rows) as u32).collect();
                let op = GatherRows {
                    live: side.words(&[live]),
                    wanted: side.words(&wanted),
                    from: side.halves(rows * width),
                    to,
                    rows,
                    count,
                    width,
                };
                (op.into(), [to].into())
            });
        }
    }
}

#[test]
fn tokens_are_chosen_by_live_rows() {
    for (rows, vocab) in [(1, 7), (7, 65), (3, 3000)] {
        for live in lives(rows) {
            assert_rounded(|side| {
                let settings: Vec<u32> = (0..rows as u32)
                    .flat_map(|row| {
                        let config = SampleConfig {
                            temperature: f64::from(row % 2) * 0.8,
                            repetition_penalty: Some(1.2),
                            ..SampleConfig::default()
                        };
                        SampleRow {
                            next: 3 * row,
                            ring: 3 * row,
                            ring_len: 3,
                            recent: 2,
                            uniform: 0.4,
                            config,
                        }
                        .words()
                    })
                    .collect();
                let tokens: Vec<u32> = (0..3 * rows as u32).map(|i| i % 7).collect();
                let (tokens, choices) = (side.words(&tokens), side.words(&std::vec![99; rows]));
                let op = Sample {
                    live: side.words(&[live]),
                    logits: side.halves(rows * vocab),
                    settings: side.words(&settings),
                    tokens,
                    choices,
                    rows,
                    vocab,
                };
                (op.into(), [tokens, choices].into())
            });
        }
    }
}

/// A row may look back at places where others put what they choose: it sees what was there before, in later blocks too.
#[test]
fn rows_of_one_ring_choose_before_any_is_written() {
    let (rows, vocab) = (5, 3000);
    assert_rounded(|side| {
        let config =
            SampleConfig { temperature: 0.0, repetition_penalty: Some(1e3), ..SampleConfig::default() };
        let (ring, ring_len, uniform) = (0, rows as u32, 0.4);
        let settings: Vec<u32> = (0..rows as u32)
            .flat_map(|next| SampleRow { next, ring, ring_len, recent: 3, uniform, config }.words())
            .collect();
        let logits = side.numbers(vocab).repeat(rows);
        let (tokens, choices) = (side.words(&[0, 1, 2, 3, 4]), side.words(&[99; 5]));
        let op = Sample {
            live: side.words(&[rows as u32]),
            logits: side.rounded(&logits),
            settings: side.words(&settings),
            tokens,
            choices,
            rows,
            vocab,
        };
        (op.into(), [tokens, choices].into())
    });
}
