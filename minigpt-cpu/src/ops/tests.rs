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

mod attention;
#[cfg(all(feature = "bf16", target_endian = "little"))]
mod bf16;
mod cached;
mod optimizer;

use attention::{attention, parts, shape};

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
