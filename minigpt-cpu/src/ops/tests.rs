//! What the conformance suite leaves open: shapes that are cut up in other ways, stored types, refusals. Each op runs
//! on two backends that hold the same numbers, on one by its kernel and on the other by the reference.

use std::vec::Vec;

use minigpt_core::backend::{fall_back, read_elems, read_u32, write_elems, write_u32};
use minigpt_core::op::{
    Activate, ActivationForward, AdamW, AttentionBackward, AttentionForward, AttentionRows, AttentionScores,
    AttentionShape, Average, CacheAppend, CrossEntropy, Descend, Dropout, EmbeddingForward, IGNORE,
    LinearForward, Momentum, NO_TOKEN, NewtonSchulz, NormBackward, NormForward, Normalize, Rotary,
    RotaryRows, Sample, SampleRow, Sgd, SquaredNorm, counter, scalar,
};
use minigpt_core::reference::weights::{encode_half, weight_at};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Activation, Backend, Dtype, InvalidOp, Op, Pairing, SampleConfig, Span, Strided};

use super::weight::Weight;
use crate::{Cpu, CpuError, Isa};

/// A backend with operands on it, made from one stream of random numbers.
struct Bench {
    cpu: Cpu<'static>,
    rng: Rng,
}

impl Bench {
    fn new(isa: Isa) -> Self {
        let cpu = Cpu::builder().isa(isa).threads(2).build().unwrap();
        Bench { cpu, rng: Rng::new(5, Stream::User) }
    }

    fn span(&mut self, dtype: Dtype, len: usize) -> Span {
        let buffer = self.cpu.alloc(dtype.bytes(len).unwrap()).unwrap();
        Span { buffer, dtype, offset: 0, len }
    }

    fn values(&mut self, values: &[f32]) -> Span {
        let span = self.span(Dtype::F32, values.len());
        write_elems(&mut self.cpu, span, values).unwrap();
        span
    }

    fn normal(&mut self, len: usize) -> Span {
        let values: Vec<f32> = (0..len).map(|_| self.rng.normal() as f32).collect();
        self.values(&values)
    }

    /// To be written: what is left out shows.
    fn poison(&mut self, len: usize) -> Span {
        self.values(&std::vec![f32::NAN; len])
    }

    fn words(&mut self, words: &[u32]) -> Span {
        let span = self.span(Dtype::U32, words.len());
        write_u32(&mut self.cpu, span, words).unwrap();
        span
    }

    fn dropout(&mut self) -> Option<Dropout> {
        let words: Vec<u32> = (0..counter::LEN as u32).collect();
        Some(Dropout { probability: 0.2, site: 3, first: 0, counters: self.words(&words) })
    }

    fn read(&mut self, span: Span) -> Vec<f32> {
        read_elems(&mut self.cpu, span).unwrap()
    }
}

/// That the op of `make` gives what the reference gives in the spans that stand with it, on every instruction set,
/// relative to each span's largest value.
fn assert_like_the_reference(tolerance: f32, make: impl Fn(&mut Bench) -> (Op, Vec<Span>)) {
    for isa in Isa::available() {
        let (mut fast, mut slow) = (Bench::new(isa), Bench::new(isa));
        let ((op, spans), same) = (make(&mut fast), make(&mut slow));
        assert_eq!((op, &spans), (same.0, &same.1), "the two hand out the same buffers");
        let before = fast.cpu.fallbacks();
        fast.cpu.run(&op).unwrap();
        assert_eq!(fast.cpu.fallbacks(), before);
        fall_back(&mut slow.cpu, &op).unwrap();
        for (i, span) in spans.into_iter().enumerate() {
            let (found, expected) = (fast.read(span), slow.read(span));
            let scale = expected.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
            for (k, (x, y)) in found.iter().zip(&expected).enumerate() {
                let alike = x == y || (x - y).abs() <= tolerance * scale || x.is_nan() && y.is_nan();
                assert!(alike, "{isa}, span {i}[{k}]: {x} is not {y}");
            }
        }
    }
}

const fn shape(
    batch: usize,
    time: usize,
    [heads, kv_heads]: [usize; 2],
    d_head: usize,
    prefix: usize,
) -> AttentionShape {
    AttentionShape { batch, time, heads, kv_heads, d_head, scale: 0.3, prefix }
}

/// Queries, keys and values, or their gradients: columns of one matrix, with or without one that is nobody's, or the values
/// in a matrix of their own.
fn parts(bench: &mut Bench, shape: &AttentionShape, make: fn(&mut Bench, usize) -> Span) -> [Strided; 3] {
    let AttentionShape { batch, time, heads, kv_heads, d_head, .. } = *shape;
    let (rows, q, kv) = (batch * time, heads * d_head, kv_heads * d_head);
    let gap = time % 3;
    if time % 2 == 0 {
        let stride = q + 2 * kv + gap;
        let matrix = make(bench, rows * stride);
        return [(0, q), (q, kv), (q + kv + gap, kv)]
            .map(|(first, width)| matrix.columns(first, width, stride));
    }
    let (matrix, values) = (make(bench, rows * (kv + gap + q)), make(bench, rows * kv));
    let of = |first, width| matrix.columns(first, width, kv + gap + q);
    [of(kv + gap, q), of(0, kv), values.rows(kv)]
}

fn attention(bench: &mut Bench, shape: AttentionShape) -> AttentionForward {
    let lines = shape.batch * shape.time * shape.heads;
    let [q, k, v] = parts(bench, &shape, Bench::normal);
    AttentionForward {
        q,
        k,
        v,
        out: bench.poison(lines * shape.d_head),
        lse: bench.poison(lines),
        shape,
        dropout: bench.dropout(),
    }
}

/// The gradient of [`attention`], behind the reference's forward pass.
fn attention_backward(bench: &mut Bench, shape: AttentionShape) -> AttentionBackward {
    let forward = attention(bench, shape);
    fall_back(&mut bench.cpu, &forward.into()).unwrap();
    let AttentionForward { q, k, v, out, lse, dropout, .. } = forward;
    let [d_q, d_k, d_v] = parts(bench, &shape, Bench::poison);
    AttentionBackward { q, k, v, out, lse, d_out: bench.normal(out.len), d_q, d_k, d_v, shape, dropout }
}

fn assert_forward(shape: AttentionShape) {
    assert_like_the_reference(1e-5, |bench| {
        let op = attention(bench, shape);
        (op.into(), [op.out, op.lse].into())
    });
}

fn assert_backward(shape: AttentionShape) {
    assert_like_the_reference(2e-5, |bench| {
        let op = attention_backward(bench, shape);
        (op.into(), [op.d_q, op.d_k, op.d_v].map(|gradient| gradient.span).into())
    });
}

#[test]
fn attention_over_several_tiles_of_keys_is_the_references() {
    // Few heads, cut into runs of queries; many heads, each a task.
    for (batch, heads) in [(2, 3), (11, 3)] {
        assert_forward(shape(batch, 130, [heads; 2], 20, 0));
    }
}

#[test]
fn attentions_gradient_over_several_tiles_of_keys_is_the_references() {
    assert_backward(shape(2, 130, [3, 3], 20, 0));
}

/// Contexts and head sizes that fill no vector, no tile, or one more than some.
const ODD_HEADS: [(usize, usize); 7] = [(1, 1), (7, 7), (33, 12), (63, 20), (65, 33), (64, 32), (97, 12)];

#[test]
fn attention_by_several_heads_at_once_is_the_references() {
    for (time, d_head) in ODD_HEADS {
        for heads in [3, 4] {
            assert_forward(shape(13, time, [heads; 2], d_head, 0));
        }
    }
}

#[test]
fn attentions_gradient_by_several_heads_at_once_is_the_references() {
    for (time, d_head) in ODD_HEADS {
        for heads in [3, 4] {
            assert_backward(shape(13, time, [heads; 2], d_head, 0));
        }
    }
}

/// Shared heads and prefixes: those that end in the first tile, on its edge, behind it, with the sequence and beyond it.
fn shared_heads_and_prefixes() -> impl Iterator<Item = AttentionShape> {
    let heads =
        [([2, 2], 2), ([4, 2], 1), ([6, 1], 2), ([8, 4], 6), ([9, 3], 13), ([24, 2], 3), ([4, 1], 16)];
    let prefixes = [(33, 1), (70, 5), (70, 32), (71, 33), (97, 64), (100, 70), (66, 66), (35, 999), (65, 0)];
    heads.into_iter().flat_map(move |(heads, batch)| {
        prefixes.map(|(time, prefix)| shape(batch, time, heads, 4 + time % 7, prefix))
    })
}

#[test]
fn attention_with_shared_heads_or_a_prefix_is_the_references() {
    shared_heads_and_prefixes().for_each(assert_forward);
}

#[test]
fn attentions_gradient_with_shared_heads_or_a_prefix_is_the_references() {
    shared_heads_and_prefixes().for_each(assert_backward);
}

#[test]
fn attentions_matrices_are_the_references() {
    for shape in [shape(2, 9, [4, 2], 20, 0), shape(1, 37, [3, 1], 7, 5), shape(2, 6, [2, 2], 8, 9)] {
        for softmax in [false, true] {
            assert_like_the_reference(1e-5, |bench| {
                let [q, k, _] = parts(bench, &shape, Bench::normal);
                let scores = bench.poison(shape.batch * shape.heads * shape.time * shape.time);
                (AttentionScores { q, k, scores, softmax, shape }.into(), [scores].into())
            });
        }
    }
}

/// What a query does not see does not reach it, however little of a number it is.
#[test]
fn a_value_that_is_not_finite_reaches_those_who_see_it_and_no_others() {
    for (batch, prefix, place) in [2, 20].into_iter().flat_map(|batch| {
        [(0, 41), (50, 41), (50, 60), (20, 41), (99, 41)].map(|(prefix, place)| (batch, prefix, place))
    }) {
        let shape = shape(batch, 70, [4, 2], 12, prefix);
        for isa in Isa::available() {
            let mut bench = Bench::new(isa);
            let op = AttentionForward { dropout: None, ..attention(&mut bench, shape) };
            let bad = op.v.span.slice(place * op.v.stride + 13, 1);
            write_elems(&mut bench.cpu, bad, &[f32::INFINITY]).unwrap();
            bench.cpu.run(&op.into()).unwrap();
            for (i, x) in bench.read(op.out).into_iter().enumerate() {
                let (row, head, d) = (i / 48, i / 12 % 4, i % 12);
                let reached = row < 70 && shape.seen(row) > place && head / 2 == 1 && d == 1;
                assert_eq!(x.is_finite(), !reached, "{isa}: row {row}, head {head}, {d}, {shape:?}");
            }
        }
    }
}

#[test]
fn gradients_may_be_columns_of_the_matrix_that_they_are_the_gradients_of() {
    let shape = shape(3, 40, [4, 2], 6, 7);
    assert_like_the_reference(2e-5, |bench| {
        let op = attention_backward(bench, shape);
        let (q, kv) = (24, 12);
        let matrix = bench.normal(120 * 2 * (q + 2 * kv));
        let of = |first, width| matrix.columns(first, width, 2 * (q + 2 * kv));
        let op = AttentionBackward {
            q: of(0, q),
            d_q: of(q, q),
            k: of(2 * q, kv),
            d_k: of(2 * q + kv, kv),
            d_v: of(2 * q + 2 * kv, kv),
            v: of(2 * q + 3 * kv, kv),
            ..op
        };
        let forward = AttentionForward {
            q: op.q,
            k: op.k,
            v: op.v,
            out: op.out,
            lse: op.lse,
            shape,
            dropout: op.dropout,
        };
        fall_back(&mut bench.cpu, &forward.into()).unwrap();
        (op.into(), [matrix].into())
    });
}

#[test]
fn threads_change_no_bit_of_attention_with_shared_heads() {
    let rows: Vec<(u32, u32)> =
        (0..40).map(|row| (row % 3, if row < 12 { 150 } else { 150 + row })).collect();
    for isa in Isa::available() {
        let [one, three] = [1, 3].map(|threads| {
            let mut bench = Bench::new(isa);
            bench.cpu = Cpu::builder().isa(isa).threads(threads).build().unwrap();
            let shape = shape(3, 70, [6, 2], 12, 40);
            let (forward, backward) = (attention(&mut bench, shape), attention_backward(&mut bench, shape));
            let rows = attention_rows(&mut bench, &rows, 3, [6, 2], Dtype::F32);
            let ops: [Op; 3] = [forward.into(), backward.into(), rows.into()];
            ops.iter().for_each(|op| bench.cpu.run(op).unwrap());
            let results = [backward.d_q, backward.d_k, backward.d_v].map(|gradient| gradient.span);
            [&[forward.out, forward.lse, rows.out][..], &results]
                .concat()
                .into_iter()
                .map(|span| bench.read(span).into_iter().map(f32::to_bits).collect::<Vec<u32>>())
                .collect::<Vec<_>>()
        });
        assert!(one == three, "{isa}");
    }
}

/// Keys or values of `dtype`.
fn cache(bench: &mut Bench, dtype: Dtype, len: usize) -> Span {
    if dtype == Dtype::F32 {
        return bench.normal(len);
    }
    let bytes: Vec<u8> = (0..len).flat_map(|_| encode_half(bench.rng.normal(), dtype)).collect();
    let span = bench.span(dtype, len);
    bench.cpu.write(span, &bytes).unwrap();
    span
}

/// Attention of rows over a cache of `slot_count` slots of 190 positions: shared heads of 20, others of 68.
fn attention_rows(
    bench: &mut Bench,
    rows: &[(u32, u32)],
    slot_count: usize,
    [heads, kv_heads]: [usize; 2],
    dtype: Dtype,
) -> AttentionRows {
    let (d_head, capacity) = (if heads == kv_heads { 68 } else { 20 }, 190);
    let len = slot_count * kv_heads * capacity * d_head;
    let [slots, last] = [|row: &(u32, u32)| row.0, |row: &(u32, u32)| row.1]
        .map(|of| rows.iter().map(of).collect::<Vec<u32>>());
    let (width, gap) = (heads * d_head, rows.len() % 3);
    AttentionRows {
        live: bench.words(&[rows.len() as u32]),
        slots: bench.words(&slots),
        last: bench.words(&last),
        q: bench.normal(rows.len() * (gap + width)).columns(gap, width, gap + width),
        keys: cache(bench, dtype, len),
        values: cache(bench, dtype, len),
        out: bench.poison(rows.len() * width),
        rows: rows.len(),
        slot_count,
        capacity,
        heads,
        kv_heads,
        d_head,
        scale: 0.3,
    }
}

// A big-endian processor leaves caches in fewer bits to the reference itself.
const CACHES: &[Dtype] =
    if Weight::READS_ALL { &[Dtype::F32, Dtype::F16, Dtype::Bf16] } else { &[Dtype::F32] };

#[test]
fn a_long_prompt_behind_a_cache_is_the_references() {
    let rows: Vec<(u32, u32)> = (0..2).flat_map(|slot| (37..187).map(move |at| (slot, at))).collect();
    for (&dtype, heads) in
        CACHES.iter().flat_map(|dtype| [[2, 2], [4, 2], [3, 1]].map(|heads| (dtype, heads)))
    {
        assert_like_the_reference(1e-5, |bench| {
            let op = attention_rows(bench, &rows, 2, heads, dtype);
            (op.into(), [op.out].into())
        });
    }
}

#[test]
fn rows_that_see_the_same_positions_are_the_references() {
    // A prefix that sees itself both ways, and what follows it; few rows that do, and few positions.
    let prompt = |slot, prefix: u32, end: u32| (0..end).map(move |at| (slot, at.max(prefix - 1)));
    let rows: Vec<(u32, u32)> =
        prompt(0, 70, 100).chain(prompt(2, 5, 9)).chain([(1, 2); 12]).chain(prompt(1, 33, 33)).collect();
    for (&dtype, heads) in CACHES.iter().flat_map(|dtype| [[2, 2], [6, 2]].map(|heads| (dtype, heads))) {
        assert_like_the_reference(1e-5, |bench| {
            let op = attention_rows(bench, &rows, 3, heads, dtype);
            (op.into(), [op.out].into())
        });
    }
}

#[test]
fn a_few_rows_over_shared_heads_are_the_references() {
    let rows = [(0, 3), (2, 189), (1, 88), (1, 89), (0, 0)];
    for (&dtype, heads) in CACHES
        .iter()
        .flat_map(|dtype| [[2, 2], [4, 2], [7, 1], [12, 1], [30, 3], [1, 1]].map(|heads| (dtype, heads)))
    {
        for count in [1, 3, 5] {
            assert_like_the_reference(1e-5, |bench| {
                let op = attention_rows(bench, &rows[..count], 3, heads, dtype);
                (op.into(), [op.out].into())
            });
        }
    }
}

/// A shared head gives the bits that a copy of it for each head of queries gives, and numbers in fewer bits those that the same
/// numbers give in f32.
#[test]
fn how_a_cache_is_stored_and_shared_changes_no_bit() {
    let prompt: Vec<(u32, u32)> = (60..130).map(|at| (1, at)).collect();
    let few = [(0, 3), (1, 150), (0, 88)];
    for isa in Isa::available() {
        let heads = [(&few[..], 15), (&few, 3), (&prompt, 15)];
        for (&dtype, (rows, heads)) in CACHES.iter().flat_map(|dtype| heads.map(|heads| (dtype, heads))) {
            let mut bench = Bench::new(isa);
            let shared = attention_rows(&mut bench, rows, 2, [heads, 3], dtype);
            let [keys, values] = [shared.keys, shared.values].map(|span| {
                let mut bytes = std::vec![0; span.bytes().unwrap()];
                bench.cpu.read(span, &mut bytes).unwrap();
                let head = shared.capacity * shared.d_head;
                let from = (0..2 * heads).map(|head| head / heads * 3 + head % heads / (heads / 3));
                let copies: Vec<f32> = from
                    .flat_map(|from| from * head..(from + 1) * head)
                    .map(|at| weight_at(&bytes, dtype, at) as f32)
                    .collect();
                bench.values(&copies)
            });
            let out = bench.poison(shared.out.len);
            let copied = AttentionRows { keys, values, kv_heads: heads, out, ..shared };
            bench.cpu.run(&shared.into()).unwrap();
            bench.cpu.run(&copied.into()).unwrap();
            assert!(bench.read(shared.out) == bench.read(out), "{isa}, {dtype:?}, {} rows", rows.len());
        }
    }
}

#[test]
fn what_is_appended_to_a_cache_has_the_references_bits() {
    for &dtype in CACHES {
        for isa in Isa::available() {
            let (mut fast, mut slow) = (Bench::new(isa), Bench::new(isa));
            let [found, expected] = [&mut fast, &mut slow].map(|bench| {
                let numbers = [0.1, -65519.9, 65520.0, 1e-7, -3e-8, 6e-5, f32::NAN, f32::NEG_INFINITY, 3e38];
                let k: Vec<f32> = (0..3 * 21).map(|i| numbers[i % 9] * (1 + i / 9) as f32).collect();
                let len = 2 * 3 * 11 * 5;
                CacheAppend {
                    live: bench.words(&[2]),
                    slots: bench.words(&[1, 0, 9]),
                    positions: bench.words(&[10, 3, 99]),
                    k: bench.values(&k).columns(2, 15, 21),
                    v: bench.normal(3 * 15).rows(15),
                    keys: cache(bench, dtype, len),
                    values: cache(bench, dtype, len),
                    rows: 3,
                    slot_count: 2,
                    capacity: 11,
                    kv_heads: 3,
                    d_head: 5,
                }
            });
            fast.cpu.run(&found.into()).unwrap();
            assert_eq!(fast.cpu.fallbacks(), 0);
            fall_back(&mut slow.cpu, &expected.into()).unwrap();
            for span in [found.keys, found.values] {
                let [mut a, mut b] = [(); 2].map(|()| std::vec![0; span.bytes().unwrap()]);
                fast.cpu.read(span, &mut a).unwrap();
                slow.cpu.read(span, &mut b).unwrap();
                assert!(a == b, "{isa}, {dtype:?}");
            }
        }
    }
}

#[test]
fn rotary_positions_of_either_pairing_are_the_references() {
    for (pairing, inverse) in
        [Pairing::Adjacent, Pairing::Halves].into_iter().flat_map(|p| [(p, false), (p, true)])
    {
        for (heads, d_head, gap) in [(1, 2, 0), (3, 14, 5), (40, 64, 64)] {
            assert_like_the_reference(1e-6, |bench| {
                let (batch, time, width) = (3, 7, heads * d_head);
                let matrix = bench.normal(batch * time * (width + gap));
                let x = matrix.columns(gap / 2, width, width + gap);
                let table = bench.normal(9 * d_head);
                let op = Rotary { x, table, pairing, batch, time, heads, d_head, inverse };
                (op.into(), [matrix].into())
            });
            assert_like_the_reference(1e-6, |bench| {
                let width = heads * d_head;
                let matrix = bench.normal(4 * (width + gap));
                let op = RotaryRows {
                    live: bench.words(&[3]),
                    positions: bench.words(&[8, 0, 3, 99]),
                    x: matrix.columns(gap / 2, width, width + gap),
                    table: bench.normal(9 * d_head),
                    pairing,
                    rows: 4,
                    heads,
                    d_head,
                };
                (op.into(), [matrix].into())
            });
        }
    }
}

/// A prompt in one pass, or in two, at any place among others: by tiles, a query gives the same bits.
#[test]
fn where_a_prompt_is_cut_and_who_stands_beside_it_changes_no_bit() {
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let prompt: Vec<(u32, u32)> = (3..140).map(|at| (1, at)).collect();
        let whole = attention_rows(&mut bench, &prompt, 3, [4, 2], Dtype::F32);
        bench.cpu.run(&whole.into()).unwrap();
        let (expected, width) = (bench.read(whole.out), whole.heads * whole.d_head);
        for cut in [8, 29, 61, 64, 100, 129] {
            let others: Vec<(u32, u32)> = (0..cut as u32 % 7).map(|at| (2 * (at % 2), 5 + 9 * at)).collect();
            let mut out = Vec::new();
            for part in [0..cut, cut..prompt.len()] {
                let (first, count) = (part.start, part.len());
                let rows: Vec<(u32, u32)> = others.iter().chain(&prompt[part]).copied().collect();
                let mut op = attention_rows(&mut bench, &rows, 3, [4, 2], Dtype::F32);
                (op.keys, op.values) = (whole.keys, whole.values);
                for row in 0..count {
                    let from = whole.q.span.slice((first + row) * whole.q.stride, width);
                    let to = op.q.span.slice((others.len() + row) * op.q.stride, width);
                    bench.cpu.copy(from, to).unwrap();
                }
                bench.cpu.run(&op.into()).unwrap();
                out.extend(bench.read(op.out.slice(others.len() * width, count * width)));
            }
            assert_eq!(out, expected, "{isa}, cut at {cut}");
        }
    }
}

#[test]
fn a_head_gives_the_same_bits_whole_or_in_runs_of_queries() {
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let (batch, time, d_head) = (32, 70, 12);
        let op = attention(&mut bench, shape(batch, time, [1, 1], d_head, 0));
        let whole = AttentionForward { dropout: None, ..op };
        bench.cpu.run(&whole.into()).unwrap();
        let out = bench.poison(time * d_head);
        let lse = bench.poison(time);
        for b in 0..batch {
            let [q, k, v] = [whole.q, whole.k, whole.v].map(|part| Strided {
                span: part.span.slice(b * time * part.stride, (time - 1) * part.stride + d_head),
                ..part
            });
            let shape = AttentionShape { batch: 1, ..whole.shape };
            bench.cpu.run(&AttentionForward { q, k, v, out, lse, shape, ..whole }.into()).unwrap();
            assert_eq!(bench.read(out), bench.read(whole.out.slice(b * time * d_head, time * d_head)));
            assert_eq!(bench.read(lse), bench.read(whole.lse.slice(b * time, time)));
        }
    }
}

// A big-endian processor leaves them to the reference itself.
#[cfg(target_endian = "little")]
#[test]
fn packed_embeddings_are_the_references() {
    let (vocab, d_model, tokens) = (7, 45, [6, 0, 3, 3]);
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0] {
        assert_like_the_reference(0.0, |bench| {
            let len = vocab * dtype.padded(d_model);
            // Two bytes on: not the start of a word.
            let bytes = dtype.bytes(len).unwrap();
            let buffer = bench.cpu.alloc(bytes + 2).unwrap();
            let table = Span { buffer, dtype, offset: 2, len };
            // Scales and floats of ordinary size, whatever the type: no byte is above 0x3f.
            let bytes: Vec<u8> = (0..bytes).map(|_| bench.rng.next_u32() as u8 & 0x3f).collect();
            bench.cpu.write(table, &bytes).unwrap();
            let op = EmbeddingForward {
                tokens: bench.words(&tokens),
                token_embedding: table,
                position_embedding: None,
                out: bench.poison(tokens.len() * d_model),
                batch: 2,
                time: 2,
                d_model,
                vocab,
                dropout: None,
            };
            (op.into(), [op.out].into())
        });
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_anything_is_written() {
    let mut bench = Bench::new(Isa::Portable);
    let words = bench.words(&[1, 5]);
    let (table, out) = (bench.normal(15), bench.values(&[7.0; 6]));
    let embedding = EmbeddingForward {
        tokens: words,
        token_embedding: table,
        position_embedding: None,
        out,
        batch: 1,
        time: 2,
        d_model: 3,
        vocab: 5,
        dropout: None,
    };
    let scalars = bench.values(&[7.0; scalar::LEN]);
    let loss = CrossEntropy {
        logits: table.first(10),
        targets: words,
        d_logits: Some(table.first(10)),
        losses: Some(out.first(2)),
        scalars,
        rows: 2,
        vocab: 5,
    };
    let before = bench.read(table);
    for op in [embedding.into(), loss.into()] {
        let refused = bench.cpu.run(&op).unwrap_err();
        assert_eq!(refused, CpuError::Invalid(InvalidOp::Token { token: 5, vocab: 5 }));
    }
    assert_eq!(bench.cpu.fallbacks(), 0);
    assert_eq!(bench.read(table), before);
    assert_eq!((bench.read(out), bench.read(scalars)), ([7.0; 6].into(), [7.0; scalar::LEN].into()));
}

#[test]
fn a_logit_that_is_not_finite_gives_a_loss_that_is_not() {
    for isa in Isa::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            // In a whole vector and in the rest, in front of the target and behind it.
            for place in [0, 20, 66] {
                let mut bench = Bench::new(isa);
                let vocab = 67;
                let mut logits = std::vec![0.5; 3 * vocab];
                logits[place] = bad;
                // A row that is ignored may hold anything.
                logits[2 * vocab + place] = bad;
                let op = CrossEntropy {
                    logits: bench.values(&logits),
                    targets: bench.words(&[20, 3, IGNORE]),
                    d_logits: None,
                    losses: Some(bench.poison(3)),
                    scalars: bench.values(&[0.0; scalar::LEN]),
                    rows: 3,
                    vocab,
                };
                bench.cpu.run(&op.into()).unwrap();
                let (losses, scalars) = (bench.read(op.losses.unwrap()), bench.read(op.scalars));
                assert!(losses[0].is_nan() && (losses[1] - 67f32.ln()).abs() < 1e-5, "{losses:?}");
                assert_eq!(losses[2], 0.0);
                assert!(scalars[scalar::LOSS_SUM].is_nan());
                assert_eq!(scalars[scalar::TARGETS], 2.0);
            }
        }
    }
}

#[test]
fn the_optimizer_is_the_references_over_several_chunks() {
    for (apply, weight_decay, rate) in [(1.0, 0.1, 1.0), (1.0, 0.0, 3.0), (0.0, 0.1, 1.0)] {
        assert_like_the_reference(1e-6, |bench| {
            let n = 40_000;
            let mut scalars = [0.0; scalar::LEN];
            scalars[scalar::APPLY] = apply;
            scalars[scalar::GRAD_SCALE] = 0.5;
            scalars[scalar::LEARNING_RATE] = 0.1;
            let squares: Vec<f32> = (0..n).map(|_| bench.rng.uniform() as f32).collect();
            let op = AdamW {
                params: bench.normal(n),
                grads: bench.normal(n),
                m: bench.normal(n),
                v: bench.values(&squares),
                scalars: bench.values(&scalars),
                counters: bench.words(&[2; counter::LEN]),
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay,
                rate,
            };
            (op.into(), [op.params, op.m, op.v].into())
        });
    }
}

#[test]
fn newton_and_schulz_are_the_references_whichever_way_the_matrix_lies() {
    // Deep, wide, more rows than a task has; small beside every tile.
    for (rows, cols) in [(1, 1), (1, 63), (65, 1), (7, 7), (31, 450), (450, 31), (200, 210), (130, 97)] {
        for steps in [0, 1, 2, 5] {
            assert_like_the_reference(1e-4, |bench| {
                let x = bench.normal(rows * cols);
                (NewtonSchulz { x, rows, cols, steps }.into(), [x].into())
            });
        }
    }
}

#[test]
fn the_parts_of_muon_and_gradient_descent_are_the_references_over_several_chunks() {
    for apply in [1.0, 0.0] {
        let n = 40_001;
        let scalars = |bench: &mut Bench| {
            let mut scalars = [0.5; scalar::LEN];
            scalars[scalar::APPLY] = apply;
            bench.values(&scalars)
        };
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, velocity) = (scalars(bench), bench.normal(n));
            let (grads, direction) = (bench.normal(n), bench.poison(n));
            let op = Momentum { grads, velocity, direction, scalars, momentum: 0.9, nesterov: true };
            (op.into(), [velocity, direction].into())
        });
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, params, direction) = (scalars(bench), bench.normal(n), bench.normal(n));
            let op = Descend { params, direction, scalars, weight_decay: 0.3, rate: 0.5, scale: 1.5 };
            (op.into(), [params].into())
        });
        for velocity in [true, false] {
            assert_like_the_reference(1e-6, |bench| {
                let (scalars, params, grads) = (scalars(bench), bench.normal(n), bench.normal(n));
                let velocity = velocity.then(|| bench.normal(n));
                let momentum = if velocity.is_some() { 0.9 } else { 0.0 };
                let (nesterov, weight_decay, rate) = (true, 0.3, 0.5);
                let op = Sgd { params, grads, velocity, scalars, momentum, nesterov, weight_decay, rate };
                (op.into(), [params].into_iter().chain(velocity).collect())
            });
        }
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, counters) = (scalars(bench), bench.words(&[3; counter::LEN]));
            let (params, average) = (bench.normal(n), bench.normal(n));
            (Average { params, average, scalars, counters, decay: 0.9 }.into(), [average].into())
        });
    }
}

#[test]
fn squares_are_summed_in_double_precision() {
    // In f32 the ones would be lost beside 2^26.
    let mut x = std::vec![1.0; 40_001];
    x[0] = 8192.0;
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let op = SquaredNorm { x: bench.values(&x), scalars: bench.poison(scalar::LEN) };
        bench.cpu.run(&op.into()).unwrap();
        assert_eq!(bench.read(op.scalars)[scalar::GRAD_SQUARED], 67_108_864.0 + 40_000.0);
    }
}

#[test]
fn lanes_beyond_a_row_of_large_numbers_do_not_reach_layer_norms_gradient() {
    let (rows, width) = (2, 4);
    assert_like_the_reference(1e-5, |bench| {
        let (d_x, d_weight) = (bench.poison(rows * width), bench.values(&[0.0; 4]));
        let op = NormBackward {
            kind: Normalize::Layer { mean: bench.values(&[1e37; 2]) },
            x: bench.values(&[1e37; 8]).rows(width),
            weight: bench.normal(width),
            // Of a variance of 0.
            rstd: bench.values(&[316.0; 2]),
            d_y: bench.normal(rows * width).rows(width),
            d_x: d_x.rows(width),
            accumulate: false,
            d_weight: Some(d_weight),
            d_bias: None,
            rows,
            groups: 1,
            width,
        };
        (op.into(), [d_x, d_weight].into())
    });
}

#[test]
fn what_inference_does_where_a_dimension_is_0_needs_no_reference() {
    // More rows than go one by one, with all that follows a product, of which there is none.
    for (rows, d_out) in [(1, 37), (9, 37), (9, 0), (0, 5)] {
        assert_like_the_reference(1e-6, |bench| {
            let (y, input) = (bench.normal(rows * d_out), bench.normal(rows * d_out));
            let op = LinearForward {
                x: bench.normal(0),
                weight: bench.normal(0),
                bias: Some(bench.normal(d_out)),
                activate: Some(Activate { activation: Activation::GeluErf, input: Some(input) }),
                dropout: bench.dropout(),
                residual: Some(bench.normal(rows * d_out)),
                y,
                rows,
                d_in: 0,
                d_out,
            };
            (op.into(), [y, input].into())
        });
    }
    for (rows, in_place, dtype) in [1, 9]
        .into_iter()
        .flat_map(|rows| [true, false].map(|in_place| (rows, in_place)))
        .flat_map(|(rows, in_place)| [Dtype::F32, Dtype::Q8_0].map(|dtype| (rows, in_place, dtype)))
        .filter(|&(_, _, dtype)| Weight::reads(dtype))
    {
        assert_like_the_reference(1e-6, |bench| {
            let y = bench.normal(rows * 37);
            let residual = if in_place { y } else { bench.normal(rows * 37) };
            let x = bench.normal(0);
            let op = LinearForward {
                x,
                weight: Span { dtype, ..x },
                bias: Some(bench.normal(37)),
                activate: None,
                dropout: None,
                residual: Some(residual),
                y,
                rows,
                d_in: 0,
                d_out: 37,
            };
            (op.into(), [y].into())
        });
    }
    assert_like_the_reference(1e-6, |bench| {
        let [mean, rstd] = [bench.normal(3), bench.normal(3)];
        let weight = bench.normal(0);
        let (kind, x, y) = (Normalize::Layer { mean }, weight.rows(0), weight.rows(0));
        let (bias, rows, groups, width) = (None, 3, 1, 0);
        let op = NormForward { kind, x, weight, bias, y, rstd, rows, groups, width, eps: 0.1 };
        (op.into(), [mean, rstd].into())
    });
    for [batch, time, heads, d_head] in [[2, 5, 3, 0], [2, 6, 3, 0], [2, 5, 0, 4], [2, 0, 3, 4], [0, 5, 3, 4]]
    {
        assert_like_the_reference(1e-6, |bench| {
            let scale = if time == 5 { 0.3 } else { f64::INFINITY };
            let shape = AttentionShape { scale, ..shape(batch, time, [heads; 2], d_head, batch) };
            let op = attention(bench, shape);
            (op.into(), [op.out, op.lse].into())
        });
        assert_like_the_reference(1e-6, |bench| {
            let scores = bench.normal(batch * heads * time * time);
            let shape = shape(batch, time, [heads; 2], d_head, batch);
            let [q, k, _] = parts(bench, &shape, Bench::normal);
            let op = AttentionScores { q, k, scores, softmax: batch == 2, shape };
            (op.into(), [scores].into())
        });
    }
}

#[test]
fn where_no_row_is_live_no_dimension_is_too_large() {
    let large = usize::MAX >> 8;
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let (live, words, nothing) = (bench.words(&[0]), bench.words(&[]), bench.normal(0));
        let sample = Sample {
            live,
            logits: nothing,
            settings: words,
            tokens: bench.words(&[1, 2]),
            choices: words,
            rows: 0,
            vocab: large,
        };
        bench.cpu.run(&sample.into()).unwrap();
        let attention = AttentionRows {
            live,
            slots: bench.words(&[0; 9]),
            last: bench.words(&[0; 9]),
            q: bench.normal(9).rows(1),
            keys: nothing,
            values: nothing,
            out: bench.normal(9),
            rows: 9,
            slot_count: 0,
            capacity: large,
            heads: 1,
            kv_heads: 1,
            d_head: 1,
            scale: 1.0,
        };
        bench.cpu.run(&attention.into()).unwrap();
        assert_eq!(bench.cpu.fallbacks(), 0);
    }
}

#[test]
fn an_activation_alone_gives_the_bits_of_the_linear_layer_that_ends_in_it() {
    for isa in Isa::available() {
        for (rows, d_in, d_out) in [(1, 7, 65), (3, 63, 33), (65, 33, 1), (129, 64, 300)] {
            for activation in [
                Activation::GeluErf,
                Activation::GeluTanh,
                Activation::Relu,
                Activation::ReluSquared,
                Activation::Silu,
            ] {
                let mut bench = Bench::new(isa);
                let input = bench.poison(rows * d_out);
                let linear = LinearForward {
                    x: bench.normal(rows * d_in),
                    weight: bench.normal(d_out * d_in),
                    bias: Some(bench.normal(d_out)),
                    activate: Some(Activate { activation, input: Some(input) }),
                    dropout: None,
                    residual: None,
                    y: bench.poison(rows * d_out),
                    rows,
                    d_in,
                    d_out,
                };
                let y = bench.poison(rows * d_out);
                let alone = ActivationForward { x: input, y, activation, rows, width: d_out };
                bench.cpu.run(&linear.into()).unwrap();
                bench.cpu.run(&alone.into()).unwrap();
                assert_eq!(bench.cpu.fallbacks(), 0);
                assert!(
                    bench.read(y) == bench.read(linear.y),
                    "{isa}: {activation:?}, {rows} {d_in} {d_out}"
                );
            }
        }
    }
}

#[test]
fn settings_beyond_f32_choose_as_the_reference_does() {
    let (least, plain) = (f32::NEG_INFINITY, SampleConfig::default());
    let of = |temperature| SampleConfig { temperature, ..plain };
    let penalty = SampleConfig { repetition_penalty: Some(1e39), ..plain };
    for (logits, config) in [
        ([least, 1.0, 2.0, least, 1.5], of(1e39)),
        ([0.0, 1.0, 2.0, 2.0, 1.5], of(1e-60)),
        ([0.0, 0.0, 0.0, 0.0, -1.0], penalty),
        ([-1.0, -1.0, -1.0, -1.0, least], penalty),
        ([0.0, 1.0, 2.0, 2.0, 1.5], SampleConfig { min_p: Some(1.0), ..plain }),
    ] {
        for (isa, uniform) in Isa::available().flat_map(|isa| [0.0, 0.4, 0.8].map(|uniform| (isa, uniform))) {
            let mut bench = Bench::new(isa);
            let recent = if config.repetition_penalty.is_some() { 4 } else { 0 };
            let row = SampleRow { next: 4, ring: 0, ring_len: 5, recent, uniform, config };
            let op = Sample {
                live: bench.words(&[1]),
                logits: bench.values(&logits),
                settings: bench.words(&row.words()),
                tokens: bench.words(&[0, 1, 2, 3, 4]),
                choices: bench.words(&[9]),
                rows: 1,
                vocab: 5,
            };
            let slow = Sample { tokens: bench.words(&[0, 1, 2, 3, 4]), choices: bench.words(&[9]), ..op };
            bench.cpu.run(&op.into()).unwrap();
            fall_back(&mut bench.cpu, &slow.into()).unwrap();
            let [found, expected] = [op, slow].map(|op| read_u32(&mut bench.cpu, op.tokens).unwrap()[4]);
            assert_eq!(found, expected, "{isa}: {logits:?} at {uniform}, {config:?}");
            assert_ne!(found, NO_TOKEN);
            for op in [op, slow] {
                assert_eq!(read_u32(&mut bench.cpu, op.choices).unwrap(), [found]);
            }
        }
    }
}
