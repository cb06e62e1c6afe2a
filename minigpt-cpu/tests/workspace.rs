//! What is enough for an op is enough for the same op with fewer rows, sequences or positions.
#![cfg(feature = "std")]

use minigpt_core::op::{
    AttentionBackward, AttentionForward, AttentionRows, AttentionScores, AttentionShape, CacheAppend,
    CrossEntropy, Dropout, EmbeddingBackward, EmbeddingForward, EmbeddingRows, LinearBackward, LinearForward,
    LinearRows, NormBackward, NormForward, NormRows, Normalize, Rotary, RotaryRows, Sample, SampleRow,
    counter, scalar,
};
use minigpt_core::{Backend, Buffer, Dtype, Op, Pairing, Span};
use minigpt_cpu::{Cpu, Isa};

/// Hands out spans of buffers that do not exist.
struct Places {
    /// Of what is rounded.
    rounded: Dtype,
    next: u64,
}

impl Places {
    fn of(&mut self, dtype: Dtype, len: usize) -> Span {
        self.next += 1;
        Span { buffer: Buffer(self.next), dtype, offset: 0, len }
    }

    fn words(&mut self, len: usize) -> Span {
        self.of(Dtype::U32, len)
    }

    fn elems(&mut self, len: usize) -> Span {
        self.of(Dtype::F32, len)
    }

    fn rounded(&mut self, len: usize) -> Span {
        self.of(self.rounded, len)
    }

    fn dropout(&mut self) -> Option<Dropout> {
        let counters = self.words(counter::LEN);
        Some(Dropout { probability: 0.5, site: 0, first: 0, counters })
    }
}

/// That the ops of more of something need no less, under either precision.
fn assert_grows(counts: impl IntoIterator<Item = usize>, make: impl Fn(&mut Places, usize) -> Vec<Op>) {
    let cpu = Cpu::builder().isa(Isa::Portable).threads(2).build().unwrap();
    let mut most = [const { Vec::new() }; 2];
    for count in counts {
        for (rounded, most) in [Dtype::F32, Dtype::Bf16].into_iter().zip(&mut most) {
            let ops = make(&mut Places { rounded, next: 0 }, count);
            most.resize(ops.len(), 0);
            for (op, most) in ops.iter().zip(most) {
                assert!(op.check(Dtype::F32).is_ok(), "{op:?}");
                let bytes = cpu.workspace_bytes(&[*op]);
                assert!(bytes >= *most, "{bytes} is less than {most}, with more than for {count}: {op:?}");
                *most = bytes;
            }
        }
    }
}

/// All small numbers, some larger ones, and those on either side of what blocks are cut by.
fn rows() -> Vec<usize> {
    let near = (9..=13).flat_map(|bits| [4, 5, 6, 7].map(|quarters| quarters << (bits - 2)));
    let mut all: Vec<usize> = near.flat_map(|rows| [rows - 1, rows, rows + 1]).collect();
    all.extend((1..=300).chain((301..2000).step_by(7)).chain([683, 5461]));
    all.sort_unstable();
    all
}

#[test]
fn with_rows() {
    for (d_in, d_out) in [(16, 50_257), (64, 131_072), (768, 3072), (7, 13), (65_536, 5)] {
        assert_grows(rows(), |at, rows| {
            let (x, y) = (at.rounded(rows * d_in), at.rounded(rows * d_out));
            let (weight, residual) = (at.elems(d_in * d_out), Some(at.rounded(rows * d_out)));
            let linear = |bias, dropout, residual| LinearForward {
                x,
                weight,
                bias,
                activate: None,
                dropout,
                residual,
                y,
                rows,
                d_in,
                d_out,
            };
            let backward = LinearBackward {
                x,
                weight: at.rounded(d_in * d_out),
                d_y: y,
                dropout: at.dropout(),
                d_x: Some(at.rounded(rows * d_in)),
                accumulate: false,
                activate: None,
                d_weight: Some(at.elems(d_in * d_out)),
                d_bias: None,
                rows,
                d_in,
                d_out,
            };
            let (bias, dropout, live) = (Some(at.elems(d_out)), at.dropout(), at.words(1));
            [
                linear(None, None, None).into(),
                linear(bias, dropout, residual).into(),
                LinearRows { live, linear: linear(bias, None, residual) }.into(),
                backward.into(),
            ]
            .into()
        });
    }
    for (groups, width) in [(1, 768), (1, 7), (12, 64), (1, 5000), (3, 1000)] {
        assert_grows(rows(), |at, rows| {
            let row = groups * width;
            let (x, y) = (at.rounded(rows * row).rows(row), at.rounded(rows * row).rows(row));
            let (weight, rstd) = (at.elems(width), at.elems(rows * groups));
            let kind = Normalize::Layer { mean: at.elems(rows * groups) };
            let norm = NormForward { kind, x, weight, bias: None, y, rstd, rows, groups, width, eps: 1e-5 };
            let backward = NormBackward {
                kind,
                x,
                weight,
                rstd,
                d_y: y,
                d_x: at.rounded(rows * row).rows(row),
                accumulate: false,
                d_weight: Some(at.elems(width)),
                d_bias: None,
                rows,
                groups,
                width,
            };
            [norm.into(), NormRows { live: at.words(1), norm }.into(), backward.into()].into()
        });
    }
    for width in [5, 768, 50_257] {
        assert_grows(rows(), |at, rows| {
            let x = at.rounded(rows * width);
            let [live, one, two] = [1, rows, rows].map(|len| at.words(len));
            let (settings, tokens) = (at.words(rows * SampleRow::WORDS), at.words(64));
            let sample = Sample { live, logits: x, settings, tokens, choices: one, rows, vocab: width };
            let (token_embedding, position_embedding) = (at.elems(11 * width), Some(at.elems(8 * width)));
            let embedding = EmbeddingRows {
                live,
                tokens,
                places: one,
                positions: two,
                token_embedding,
                position_embedding,
                out: x,
                rows,
                d_model: width,
                vocab: 11,
            };
            let loss = |losses, d_logits, scalars| CrossEntropy {
                logits: x,
                targets: one,
                d_logits,
                losses,
                scalars,
                rows,
                vocab: width,
            };
            let (scalars, losses) = (at.elems(scalar::LEN), Some(at.elems(rows)));
            let losses = [loss(None, Some(x), scalars).into(), loss(losses, None, scalars).into()];
            [&[sample.into(), embedding.into()], &losses[..]].concat()
        });
    }
    for (heads, kv_heads, d_head) in [(4, 4, 32), (12, 4, 64), (1, 1, 2)] {
        for cache in [Dtype::F32, Dtype::Bf16] {
            assert_grows(rows(), |at, rows| {
                let (slot_count, capacity) = (3, 100);
                let kept = slot_count * capacity * kv_heads * d_head;
                let [live, slots, last] = [1, rows, rows].map(|len| at.words(len));
                let [q, k, v] = [heads, kv_heads, kv_heads]
                    .map(|heads| at.rounded(rows * heads * d_head).rows(heads * d_head));
                let [keys, values] = [(); 2].map(|()| at.of(cache, kept));
                let out = at.rounded(rows * heads * d_head);
                let attention = AttentionRows {
                    live,
                    slots,
                    last,
                    q,
                    keys,
                    values,
                    out,
                    rows,
                    slot_count,
                    capacity,
                    heads,
                    kv_heads,
                    d_head,
                    scale: 0.1,
                };
                let append = CacheAppend {
                    live,
                    slots,
                    positions: last,
                    k,
                    v,
                    keys,
                    values,
                    rows,
                    slot_count,
                    capacity,
                    kv_heads,
                    d_head,
                };
                let rotary = RotaryRows {
                    live,
                    positions: last,
                    x: q,
                    table: at.elems(capacity * d_head),
                    pairing: Pairing::Halves,
                    rows,
                    heads,
                    d_head,
                };
                [attention.into(), append.into(), rotary.into()].into()
            });
        }
    }
}

/// Ops over sequences: embedding, rotary positions and attention.
fn over_sequences(at: &mut Places, [batch, time]: [usize; 2], heads: [usize; 2], d_head: usize) -> Vec<Op> {
    let ([heads, kv_heads], rows) = (heads, batch * time);
    let d_model = heads * d_head;
    let (tokens, token_embedding) = (at.words(rows), at.elems(11 * d_model));
    let embedding = EmbeddingForward {
        tokens,
        token_embedding,
        position_embedding: None,
        out: at.rounded(rows * d_model),
        batch,
        time,
        d_model,
        vocab: 11,
        dropout: None,
    };
    let embedding_backward = EmbeddingBackward {
        tokens,
        d_out: embedding.out,
        d_token_embedding: Some(token_embedding),
        d_position_embedding: None,
        batch,
        time,
        d_model,
        vocab: 11,
        dropout: None,
    };
    let shape = AttentionShape { batch, time, heads, kv_heads, d_head, scale: 0.1, prefix: 0 };
    let [q, d_q, k, v, d_k, d_v] = [heads, heads, kv_heads, kv_heads, kv_heads, kv_heads]
        .map(|heads| at.rounded(rows * heads * d_head).rows(heads * d_head));
    let [out, d_out] = [(); 2].map(|()| at.rounded(rows * d_model));
    let (lse, dropout) = (at.elems(rows * heads), None);
    let table = at.elems(time * d_head);
    let rotary = Rotary { x: q, table, pairing: Pairing::Halves, batch, time, heads, d_head, inverse: false };
    let scores = at.elems(rows * heads * time);
    [
        embedding.into(),
        embedding_backward.into(),
        rotary.into(),
        AttentionForward { q, k, v, out, lse, shape, dropout }.into(),
        AttentionBackward { q, k, v, out, lse, d_out, d_q, d_k, d_v, shape, dropout }.into(),
        AttentionScores { q, k, scores, softmax: true, shape }.into(),
    ]
    .into()
}

const HEADS: [([usize; 2], usize); 8] = [
    ([4, 4], 32),
    ([6, 6], 64),
    ([8, 8], 16),
    ([12, 4], 64),
    ([16, 2], 128),
    ([7, 7], 10),
    ([1, 1], 2),
    ([5, 1], 200),
];

#[test]
fn with_sequences() {
    for (heads, d_head) in HEADS {
        for time in [1, 2, 17, 64, 100, 128, 256, 1024, 4096] {
            assert_grows(1..70, |at, batch| over_sequences(at, [batch, time], heads, d_head));
        }
    }
}

#[test]
fn with_positions() {
    for (heads, d_head) in HEADS {
        for batch in [1, 2, 3, 8, 20] {
            let times = rows().into_iter().filter(|&time| time < 5000);
            assert_grows(times, |at, time| over_sequences(at, [batch, time], heads, d_head));
        }
    }
}
