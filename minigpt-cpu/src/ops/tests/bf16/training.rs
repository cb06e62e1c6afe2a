//! The backward pass, and the loss.

use minigpt_core::op::{EmbeddingBackward, GateBackward, LinearBackward};

use super::whole::{LINEAR, NORM, attention, columns, linear, norm, parts, shapes};
use super::*;

#[test]
fn gradients_of_linear_layers() {
    for [rows, d_in, d_out] in LINEAR {
        for options in 0..16 {
            assert_rounded(|side| {
                let d_x = (options & 1 > 0 || options == 2).then(|| side.halves(rows * d_in));
                let d_weight = (options & 2 > 0).then(|| side.elems(d_out * d_in));
                let d_bias = (options & 4 > 0).then(|| side.elems(d_out));
                let activation = if options % 3 == 0 { Activation::Silu } else { Activation::GeluErf };
                let input = (options & 8 > 0).then(|| side.halves(rows * d_in));
                let op = LinearBackward {
                    x: side.halves(rows * d_in),
                    weight: side.halves(d_out * d_in),
                    d_y: side.halves(rows * d_out),
                    dropout: if options % 5 > 1 { side.dropout() } else { None },
                    d_x,
                    accumulate: input.is_none() && options % 3 > 0,
                    activate: input.map(|input| Activate { activation, input: Some(input) }),
                    d_weight,
                    d_bias,
                    rows,
                    d_in,
                    d_out,
                };
                (op.into(), [d_x, d_weight, d_bias].into_iter().flatten().collect())
            });
        }
    }
}

#[test]
fn gradients_of_norms() {
    for shape in NORM {
        for options in 0..8 {
            assert_rounded(|side| {
                let [rows, groups, width] = shape;
                let (forward, _) = norm(side, shape, options & 1 > 0);
                side.run(&forward.into());
                let gap = rows % 3;
                let d_x = columns(side, rows, groups * width, gap);
                let other = columns(side, rows, groups * width, gap);
                let accumulate = options & 2 > 0;
                let wanted = options & 4 > 0;
                let (d_weight, d_bias) = (side.elems(width), side.elems(width));
                // Statistics as both have them, which each has made with its own precision.
                let rstd: Vec<f64> =
                    (0..rows * groups).map(|i| 0.5 + f64::from(i as u32 % 8) / 8.0).collect();
                side.write(forward.rstd, &rstd);
                if let Normalize::Layer { mean } = forward.kind {
                    side.write(mean, &rstd);
                }
                let op = NormBackward {
                    kind: forward.kind,
                    x: forward.x,
                    weight: forward.weight,
                    rstd: forward.rstd,
                    d_y: if accumulate || wanted { other } else { d_x },
                    d_x,
                    accumulate,
                    d_weight: wanted.then_some(d_weight),
                    d_bias: wanted.then_some(d_bias),
                    rows,
                    groups,
                    width,
                };
                (op.into(), [d_x.span, d_weight, d_bias].into())
            });
        }
    }
}

#[test]
fn gradients_of_embeddings() {
    for [batch, time, d_model] in [[1, 1, 1], [3, 7, 65], [2, 63, 63], [1, 65, 7], [3, 2, 3000]] {
        for options in 0..4 {
            assert_rounded(|side| {
                let tokens: Vec<u32> = (0..batch * time).map(|i| i as u32 * 7 % 11).collect();
                let d_tokens = (options != 1).then(|| side.elems(11 * d_model));
                let d_positions = (options != 2).then(|| side.elems((time + 2) * d_model));
                let op = EmbeddingBackward {
                    tokens: side.words(&tokens),
                    d_out: side.halves(batch * time * d_model),
                    d_token_embedding: d_tokens,
                    d_position_embedding: d_positions,
                    batch,
                    time,
                    d_model,
                    vocab: 11,
                    dropout: if options > 0 { side.dropout() } else { None },
                };
                (op.into(), [d_tokens, d_positions].into_iter().flatten().collect())
            });
        }
    }
}

#[test]
fn gradients_of_gates_and_activations_alone() {
    for (rows, width) in [(1, 1), (7, 63), (65, 65), (3, 20_000)] {
        for activation in [Activation::GeluErf, Activation::ReluSquared, Activation::Silu] {
            assert_rounded(|side| {
                let (x, d_x) = (side.halves(rows * 2 * width), side.halves(rows * 2 * width));
                let d_y = side.halves(rows * width);
                (GateBackward { x, d_y, d_x, activation, rows, width }.into(), [d_x].into())
            });
            assert_rounded(|side| {
                let (x, y) = (side.halves(rows * width), side.halves(rows * width));
                (ActivationForward { x, y, activation, rows, width }.into(), [y].into())
            });
        }
    }
}

#[test]
fn gradients_of_attention() {
    for shape in shapes() {
        assert_rounded(|side| {
            let AttentionForward { q, k, v, out, lse, dropout, .. } = attention(side, shape);
            // Of the size that it has, and the same on both.
            let lines = std::vec![(shape.time as f64).ln().ceil() + 2.0; lse.len];
            side.write(lse, &lines);
            let d_out = side.halves(out.len);
            let [d_q, d_k, d_v] = parts(side, &shape);
            let op = AttentionBackward { q, k, v, out, lse, d_out, d_q, d_k, d_v, shape, dropout };
            (op.into(), [d_q, d_k, d_v].map(|gradient| gradient.span).into())
        });
    }
}

#[test]
fn losses() {
    for (rows, vocab) in [(1, 1), (7, 63), (65, 65), (3, 3000), (200, 7)] {
        for options in 0..6 {
            assert_rounded(|side| {
                let targets: Vec<u32> =
                    (0..rows).map(|i| if i % 5 == 3 { IGNORE } else { (i * 13 % vocab) as u32 }).collect();
                let (logits, other) = (side.halves(rows * vocab), side.halves(rows * vocab));
                let (losses, scalars) = (side.elems(rows), side.values(&[0.5; scalar::LEN]));
                let op = CrossEntropy {
                    logits,
                    targets: side.words(&targets),
                    d_logits: [None, Some(logits), Some(other)][options % 3],
                    losses: (options < 3).then_some(losses),
                    scalars,
                    rows,
                    vocab,
                };
                (op.into(), [logits, other, losses, scalars].into())
            });
        }
    }
}

#[test]
fn what_is_wrong_with_a_later_block_is_found_before_anything_is_written() {
    let side = &mut Side::cpu(Isa::Portable, 1);
    let mut tokens = std::vec![0; 200];
    tokens[199] = 11;
    let (tokens, out) = (side.words(&tokens), side.halves(200 * 63));
    let embedding = EmbeddingForward {
        tokens,
        token_embedding: side.elems(11 * 63),
        position_embedding: None,
        out,
        batch: 1,
        time: 200,
        d_model: 63,
        vocab: 11,
        dropout: None,
    };
    let scalars = side.elems(scalar::LEN);
    let logits = side.halves(200 * 11);
    let loss = CrossEntropy {
        logits,
        targets: tokens,
        d_logits: Some(logits),
        losses: None,
        scalars,
        rows: 200,
        vocab: 11,
    };
    for (op, written) in [(Op::from(embedding), out), (loss.into(), logits)] {
        let before = side.read(written);
        let On::Cpu(cpu) = &mut side.on else { return };
        let refused = cpu.run(&op).unwrap_err();
        assert_eq!(refused, CpuError::Invalid(InvalidOp::Token { token: 11, vocab: 11 }));
        assert!(side.read(written) == before);
    }
}

#[test]
fn without_a_number_there_is_nothing_to_round() {
    assert_rounded(|side| {
        let (op, spans) = linear(side, [3, 5, 0], Dtype::F32, 2);
        (op.into(), spans)
    });
    assert_rounded(|side| {
        let nothing = side.halves(0);
        (
            GateForward { x: nothing, y: nothing, activation: Activation::Silu, rows: 0, width: 9 }.into(),
            std::vec![],
        )
    });
}
