//! Attention, forward and backward.

use super::cached::attention_rows;
use super::*;

pub(super) const fn shape(
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
pub(super) fn parts(
    bench: &mut Bench,
    shape: &AttentionShape,
    make: fn(&mut Bench, usize) -> Span,
) -> [Strided; 3] {
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

pub(super) fn attention(bench: &mut Bench, shape: AttentionShape) -> AttentionForward {
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
