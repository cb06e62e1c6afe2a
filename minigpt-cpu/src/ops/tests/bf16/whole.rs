//! The forward pass of whole sequences.

use super::*;

/// Rows, width of the input and of the output: a few rows and many, one block and several, of rows and of columns.
pub(super) const LINEAR: [[usize; 3]; 9] = [
    [1, 7, 65],
    [1, 63, 600],
    [3, 65, 1],
    [4, 1, 7],
    [7, 63, 63],
    [65, 63, 130],
    [63, 65, 7],
    [130, 7, 65],
    [11, 300, 33],
];

const ACTIVATIONS: [Option<Activation>; 6] = [
    None,
    Some(Activation::GeluErf),
    Some(Activation::GeluTanh),
    Some(Activation::Relu),
    Some(Activation::ReluSquared),
    Some(Activation::Silu),
];

pub(super) fn linear(
    side: &mut Side,
    [rows, d_in, d_out]: [usize; 3],
    dtype: Dtype,
    options: usize,
) -> (LinearForward, Vec<Span>) {
    let y = side.halves(rows * d_out);
    let input = (options & 1 > 0).then(|| side.halves(rows * d_out));
    let activation = ACTIVATIONS[options % ACTIVATIONS.len()];
    let op = LinearForward {
        x: side.halves(rows * d_in),
        weight: side.weight(dtype, d_out, d_in),
        bias: (options & 4 > 0).then(|| side.elems(d_out)),
        activate: activation.map(|activation| Activate { activation, input }),
        dropout: if options & 2 > 0 { side.dropout() } else { None },
        residual: match options % 3 {
            0 => None,
            1 => Some(y),
            _ => Some(side.halves(rows * d_out)),
        },
        y,
        rows,
        d_in,
        d_out,
    };
    (op, [y].into_iter().chain(input).collect())
}

#[test]
fn linear_layers() {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];
    for (i, shape) in LINEAR.into_iter().enumerate() {
        for options in 0..12 {
            assert_rounded(|side| {
                let (op, spans) = linear(side, shape, dtypes[(i + options) % dtypes.len()], options);
                (op.into(), spans)
            });
        }
    }
    // Without an input, what follows the product is all there is.
    for rows in [1, 9] {
        assert_rounded(|side| {
            let (op, spans) = linear(side, [rows, 0, 37], Dtype::Q8_0, 5);
            (op.into(), spans)
        });
    }
}

/// Columns of a matrix of bf16, with or without others beside them.
pub(super) fn columns(side: &mut Side, rows: usize, width: usize, gap: usize) -> Strided {
    side.halves(rows * (width + gap)).columns(gap / 2, width, width + gap)
}

pub(super) fn norm(
    side: &mut Side,
    [rows, groups, width]: [usize; 3],
    is_layer: bool,
) -> (NormForward, Vec<Span>) {
    let gap = rows % 3;
    let y = columns(side, rows, groups * width, gap);
    let rstd = side.elems(rows * groups);
    let mean = is_layer.then(|| side.elems(rows * groups));
    let op = NormForward {
        kind: mean.map_or(Normalize::Rms, |mean| Normalize::Layer { mean }),
        x: columns(side, rows, groups * width, gap),
        weight: side.elems(width),
        bias: if is_layer { Some(side.elems(width)) } else { None },
        y,
        rstd,
        rows,
        groups,
        width,
        eps: 1e-5,
    };
    (op, [y.span, rstd].into_iter().chain(mean).collect())
}

/// Rows, vectors in a row, and their width.
pub(super) const NORM: [[usize; 3]; 6] =
    [[1, 1, 1], [7, 3, 7], [64, 1, 63], [65, 2, 65], [3, 1, 3000], [200, 1, 64]];

#[test]
fn norms() {
    for shape in NORM {
        for is_layer in [true, false] {
            assert_rounded(|side| {
                let (op, spans) = norm(side, shape, is_layer);
                (op.into(), spans)
            });
        }
    }
    // The mean of nothing.
    assert_rounded(|side| {
        let (op, spans) = norm(side, [3, 1, 0], true);
        (op.into(), spans)
    });
}

#[test]
fn embeddings() {
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];
    for (i, [batch, time, d_model]) in
        [[1, 1, 1], [3, 7, 65], [2, 63, 63], [1, 65, 7], [3, 2, 3000]].into_iter().enumerate()
    {
        for options in 0..4 {
            assert_rounded(|side| {
                let (vocab, out) = (11, side.halves(batch * time * d_model));
                let tokens: Vec<u32> = (0..batch * time).map(|i| i as u32 * 7 % 11).collect();
                let op = EmbeddingForward {
                    tokens: side.words(&tokens),
                    token_embedding: side.weight(dtypes[(i + options) % dtypes.len()], vocab, d_model),
                    position_embedding: (options & 1 > 0).then(|| side.elems((time + 2) * d_model)),
                    out,
                    batch,
                    time,
                    d_model,
                    vocab,
                    dropout: if options & 2 > 0 { side.dropout() } else { None },
                };
                (op.into(), [out].into())
            });
        }
    }
}

#[test]
fn gates() {
    for (rows, width) in [(1, 1), (7, 63), (65, 65), (3, 20_000)] {
        for activation in ACTIVATIONS.into_iter().flatten() {
            assert_rounded(|side| {
                let (x, y) = (side.halves(rows * 2 * width), side.halves(rows * width));
                (GateForward { x, y, activation, rows, width }.into(), [y].into())
            });
        }
    }
}

#[test]
fn an_activation_alone_gives_the_bits_of_the_linear_layer_that_ends_in_it() {
    for isa in Isa::available() {
        for (shape, activation) in
            LINEAR.into_iter().flat_map(|shape| ACTIVATIONS.into_iter().flatten().map(move |a| (shape, a)))
        {
            let ([rows, d_in, width], side) = (shape, &mut Side::cpu(isa, 2));
            let [y, again, input] = [(); 3].map(|()| side.halves(rows * width));
            let linear = LinearForward {
                x: side.halves(rows * d_in),
                weight: side.halves(width * d_in),
                bias: Some(side.elems(width)),
                activate: Some(Activate { activation, input: Some(input) }),
                dropout: None,
                residual: None,
                y,
                rows,
                d_in,
                d_out: width,
            };
            side.run(&linear.into());
            side.run(&ActivationForward { x: input, y: again, activation, rows, width }.into());
            assert!(side.read(y) == side.read(again), "{isa}: {activation:?}, {shape:?}");
        }
    }
}

#[test]
fn rotary_positions() {
    for (pairing, inverse) in [(Pairing::Adjacent, false), (Pairing::Halves, true)] {
        for (batch, time, heads, d_head) in [(1, 1, 1, 2), (3, 7, 3, 14), (2, 63, 5, 64), (1, 65, 1, 2)] {
            assert_rounded(|side| {
                let x = columns(side, batch * time, heads * d_head, 2 * (time % 3));
                let table = side.elems((time + 1) * d_head);
                let op = Rotary { x, table, pairing, batch, time, heads, d_head, inverse };
                (op.into(), [x.span].into())
            });
        }
    }
}

/// Queries, keys and values, or their gradients: columns of one matrix, or matrices of their own.
pub(super) fn parts(side: &mut Side, shape: &AttentionShape) -> [Strided; 3] {
    let AttentionShape { batch, time, heads, kv_heads, d_head, .. } = *shape;
    let (rows, q, kv) = (batch * time, heads * d_head, kv_heads * d_head);
    if time % 2 == 0 {
        return [q, kv, kv].map(|width| columns(side, rows, width, time % 3));
    }
    let matrix = side.halves(rows * (q + 2 * kv));
    [(0, q), (q, kv), (q + kv, kv)].map(|(first, width)| matrix.columns(first, width, q + 2 * kv))
}

/// Several sequences in a block, one, and heads of one.
pub(super) fn shapes() -> impl Iterator<Item = AttentionShape> {
    [
        shape(1, 1, [1, 1], 1, 0),
        shape(9, 7, [2, 2], 7, 0),
        shape(40, 3, [2, 1], 3, 2),
        shape(2, 63, [4, 4], 20, 0),
        shape(3, 65, [6, 2], 7, 33),
        shape(1, 64, [12, 3], 8, 99),
        shape(2, 130, [1, 1], 65, 0),
    ]
    .into_iter()
}

pub(super) fn attention(side: &mut Side, shape: AttentionShape) -> AttentionForward {
    let lines = shape.batch * shape.time * shape.heads;
    let [q, k, v] = parts(side, &shape);
    let (out, lse) = (side.halves(lines * shape.d_head), side.elems(lines));
    let dropout = if shape.time % 2 == 1 { side.dropout() } else { None };
    AttentionForward { q, k, v, out, lse, shape, dropout }
}

#[test]
fn attention_of_sequences() {
    for shape in shapes().chain([shape(2, 5, [3, 3], 0, 0)]) {
        assert_rounded(|side| {
            let op = attention(side, shape);
            (op.into(), [op.out, op.lse].into())
        });
    }
}

#[test]
fn attentions_matrices() {
    for (shape, softmax) in shapes().flat_map(|shape| [(shape, false), (shape, true)]) {
        assert_rounded(|side| {
            let [q, k, _] = parts(side, &shape);
            let scores = side.elems(shape.batch * shape.heads * shape.time * shape.time);
            (AttentionScores { q, k, scores, softmax, shape }.into(), [scores].into())
        });
    }
}
