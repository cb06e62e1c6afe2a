//! On every instruction set, against the reference in f64.

use super::forward_scratch_floats;
use crate::context::Machine;
use crate::{Cpu, Isa};
use minigpt_core::backend::{read_elems, write_elems, write_u32};
use minigpt_core::op::{Activate, Dropout, LinearBackward, LinearForward, counter};
use minigpt_core::reference::dropout::Mask;
use minigpt_core::reference::linear;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Activation, Backend, Dtype, Span};
use std::vec;
use std::vec::Vec;

const COUNTERS: [u32; counter::LEN] = [3, 1, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PROBABILITY: f64 = 0.3;
const SITE: u32 = 2;
/// max|difference| / max(max|reference|, 1). The sums have up to 500 terms of size about 1 / 12.
const BOUND: f64 = 1e-5;

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..len).map(|_| rng.uniform() as f32 * 2.0 - 1.0).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn put(cpu: &mut Cpu<'_>, x: &[f32]) -> Span {
    let buffer = cpu.alloc(x.len() * 4).unwrap();
    let span = Span { buffer, dtype: Dtype::F32, offset: 0, len: x.len() };
    write_elems(cpu, span, x).unwrap();
    span
}

fn counters(cpu: &mut Cpu<'_>) -> Span {
    let buffer = cpu.alloc(counter::LEN * 4).unwrap();
    let span = Span { buffer, dtype: Dtype::U32, offset: 0, len: counter::LEN };
    write_u32(cpu, span, &COUNTERS).unwrap();
    span
}

#[track_caller]
fn assert_close(cpu: &mut Cpu<'_>, what: &str, found: Span, exact: &[f64]) {
    let largest = exact.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    for (i, (found, exact)) in read_elems(cpu, found).unwrap().into_iter().zip(exact).enumerate() {
        let error = (f64::from(found) - exact).abs() / largest;
        assert!(error <= BOUND, "{what} on {} at {i}: {found} for {exact}", cpu.isa());
    }
}

fn each_cpu(mut test: impl FnMut(&mut Cpu<'_>)) {
    for isa in Isa::available() {
        let mut cpu = Cpu::builder().isa(isa).threads(2).build().unwrap();
        test(&mut cpu);
        assert_eq!(cpu.fallbacks(), 0);
    }
}

/// (rows, d_in, d_out): few rows and many, round and not.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 7, 65),
    (1, 129, 63),
    (2, 64, 1),
    (3, 65, 7),
    (4, 63, 129),
    (4, 300, 260),
    (5, 1, 7),
    (7, 65, 63),
    (9, 7, 33),
    (63, 129, 65),
    (65, 7, 129),
    (129, 63, 64),
    (17, 530, 33),
    (400, 515, 9),
];

/// All of them; under Miri, which is a thousand times slower, those that it ends.
fn shapes() -> impl Iterator<Item = (usize, usize, usize)> {
    SHAPES.into_iter().filter(|(rows, d_in, d_out)| !cfg!(miri) || rows * d_in * d_out < 2_500)
}

struct Case {
    bias: bool,
    activation: Option<Activation>,
    keep: bool,
    dropout: bool,
    residual: bool,
    in_place: bool,
}

const CASES: [Case; 7] = [
    Case { bias: false, activation: None, keep: false, dropout: false, residual: false, in_place: false },
    Case {
        bias: true,
        activation: Some(Activation::GeluErf),
        keep: true,
        dropout: false,
        residual: false,
        in_place: false,
    },
    Case {
        bias: true,
        activation: Some(Activation::GeluTanh),
        keep: false,
        dropout: true,
        residual: true,
        in_place: false,
    },
    Case {
        bias: false,
        activation: Some(Activation::Relu),
        keep: true,
        dropout: true,
        residual: true,
        in_place: true,
    },
    Case { bias: true, activation: None, keep: false, dropout: true, residual: true, in_place: false },
    Case { bias: true, activation: None, keep: false, dropout: false, residual: true, in_place: false },
    Case { bias: true, activation: None, keep: false, dropout: false, residual: true, in_place: true },
];

#[test]
fn forward_equals_the_reference() {
    let mask = Mask::new(PROBABILITY, SITE, &COUNTERS);
    each_cpu(|cpu| {
        let counters = counters(cpu);
        for (rows, d_in, d_out) in shapes() {
            let (x, weight) = (numbers(1, rows * d_in), numbers(2, d_out * d_in));
            let (bias, residual) = (numbers(3, d_out), numbers(4, rows * d_out));
            for case in CASES {
                let (mut z, mut y) = (vec![0.0; rows * d_out], vec![0.0; rows * d_out]);
                linear::linear_forward(
                    &wide(&x),
                    &wide(&weight),
                    case.bias.then(|| wide(&bias)).as_deref(),
                    case.activation,
                    Some(&mut z),
                    case.dropout.then_some(&mask),
                    case.residual.then(|| wide(&residual)).as_deref(),
                    &mut y,
                    rows,
                    d_in,
                    d_out,
                );
                let nan = vec![f32::NAN; rows * d_out];
                let kept = case.keep.then(|| put(cpu, &nan));
                let residual_span = case.residual.then(|| put(cpu, &residual));
                let y_span = if case.in_place { residual_span.unwrap() } else { put(cpu, &nan) };
                let op = LinearForward {
                    x: put(cpu, &x),
                    weight: put(cpu, &weight),
                    bias: case.bias.then(|| put(cpu, &bias)),
                    activate: case.activation.map(|activation| Activate { activation, input: kept }),
                    dropout: case.dropout.then_some(Dropout {
                        probability: PROBABILITY,
                        site: SITE,
                        first: 0,
                        counters,
                    }),
                    residual: residual_span,
                    y: y_span,
                    rows,
                    d_in,
                    d_out,
                };
                cpu.run(&op.into()).unwrap();
                assert_close(cpu, "y", y_span, &y);
                if let Some(kept) = kept {
                    assert_close(cpu, "activation's input", kept, &z);
                }
            }
        }
    });
}

#[test]
fn backward_equals_the_reference() {
    let mask = Mask::new(PROBABILITY, SITE, &COUNTERS);
    // The gradients of bias, input and weight are wanted or not.
    let cases = [
        ([false, false, true], false, None),
        ([true, true, true], true, None),
        ([true, true, true], false, Some(Activation::GeluErf)),
        ([false, false, true], true, Some(Activation::GeluTanh)),
        ([true, false, true], false, Some(Activation::Relu)),
        ([false, true, false], true, None),
        ([true, true, false], false, Some(Activation::GeluTanh)),
        ([true, false, false], true, None),
    ];
    each_cpu(|cpu| {
        let counters = counters(cpu);
        for (rows, d_in, d_out) in shapes() {
            let (x, weight) = (numbers(1, rows * d_in), numbers(2, d_out * d_in));
            let (d_y, input) = (numbers(3, rows * d_out), numbers(4, rows * d_in));
            let (d_x, d_weight, d_bias) =
                (numbers(5, rows * d_in), numbers(6, d_out * d_in), numbers(7, d_out));
            for ([with_bias, with_d_x, with_d_weight], dropout, activation) in cases {
                let accumulate = with_d_x && activation.is_none();
                let (mut d_x64, mut d_weight64, mut d_bias64) = (wide(&d_x), wide(&d_weight), wide(&d_bias));
                let input64 = wide(&input);
                linear::linear_backward(
                    &wide(&x),
                    &wide(&weight),
                    &wide(&d_y),
                    dropout.then_some(&mask),
                    activation.map(|activation| (activation, &input64[..])),
                    with_d_x.then_some(&mut d_x64[..]),
                    accumulate,
                    with_d_weight.then_some(&mut d_weight64[..]),
                    with_bias.then_some(&mut d_bias64[..]),
                    rows,
                    d_in,
                    d_out,
                );
                let op = LinearBackward {
                    x: put(cpu, &x),
                    weight: put(cpu, &weight),
                    d_y: put(cpu, &d_y),
                    dropout: dropout.then_some(Dropout {
                        probability: PROBABILITY,
                        site: SITE,
                        first: 0,
                        counters,
                    }),
                    d_x: with_d_x.then(|| put(cpu, &d_x)),
                    accumulate,
                    activate: activation
                        .map(|activation| Activate { activation, input: Some(put(cpu, &input)) }),
                    d_weight: with_d_weight.then(|| put(cpu, &d_weight)),
                    d_bias: with_bias.then(|| put(cpu, &d_bias)),
                    rows,
                    d_in,
                    d_out,
                };
                cpu.run(&op.into()).unwrap();
                if let Some(d_x) = op.d_x {
                    assert_close(cpu, "d_x", d_x, &d_x64);
                }
                if let Some(d_weight) = op.d_weight {
                    assert_close(cpu, "d_weight", d_weight, &d_weight64);
                }
                if let Some(d_bias) = op.d_bias {
                    assert_close(cpu, "d_bias", d_bias, &d_bias64);
                }
            }
        }
    });
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    // Miri looks at the threads, not at the cut.
    let shapes = if cfg!(miri) {
        [(1, 30, 26), (9, 13, 7), (4, 6, 5)]
    } else {
        [(1, 300, 260), (96, 130, 70), (40, 600, 65)]
    };
    for isa in Isa::available() {
        for (rows, d_in, d_out) in shapes {
            let results = [1, 2, 3].map(|threads| {
                let mut cpu = Cpu::builder().isa(isa).threads(threads).build().unwrap();
                let forward = LinearForward {
                    x: put(&mut cpu, &numbers(1, rows * d_in)),
                    weight: put(&mut cpu, &numbers(2, d_out * d_in)),
                    bias: None,
                    activate: None,
                    dropout: None,
                    residual: None,
                    y: put(&mut cpu, &vec![0.0; rows * d_out]),
                    rows,
                    d_in,
                    d_out,
                };
                let backward = LinearBackward {
                    x: forward.x,
                    weight: forward.weight,
                    d_y: forward.y,
                    dropout: None,
                    d_x: Some(put(&mut cpu, &vec![0.0; rows * d_in])),
                    accumulate: false,
                    activate: None,
                    d_weight: Some(put(&mut cpu, &vec![0.0; d_out * d_in])),
                    d_bias: Some(put(&mut cpu, &vec![0.0; d_out])),
                    rows,
                    d_in,
                    d_out,
                };
                cpu.run(&forward.into()).unwrap();
                cpu.run(&backward.into()).unwrap();
                [forward.y, backward.d_x.unwrap(), backward.d_weight.unwrap(), backward.d_bias.unwrap()]
                    .map(|span| read_elems(&mut cpu, span).unwrap())
            });
            assert!(results[0] == results[1] && results[0] == results[2], "{isa} {rows} {d_in} {d_out}");
        }
    }
}

#[test]
fn one_row_needs_no_scratch_and_many_need_the_packed_weight() {
    let span = |len| Span { buffer: minigpt_core::Buffer(0), dtype: Dtype::F32, offset: 0, len };
    let (d_in, d_out) = (128, 512);
    let of = |rows: usize, isa| {
        let op = LinearForward {
            x: span(rows * d_in),
            weight: span(d_out * d_in),
            bias: None,
            activate: None,
            dropout: None,
            residual: None,
            y: span(rows * d_out),
            rows,
            d_in,
            d_out,
        };
        forward_scratch_floats(&op, Machine { threads: 2, isa })
    };
    for isa in Isa::available() {
        assert_eq!(of(1, isa), 0);
        assert!(of(8, isa) >= d_in * d_out);
    }
}
