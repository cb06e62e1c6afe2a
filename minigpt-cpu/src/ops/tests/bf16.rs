//! Ops under bf16, on every instruction set against [`Reference`] in f64, which holds the same numbers: every step is rounded as
//! it rounds, so that nearly all results have the same bits. Blocks are small in tests, so nearly all shapes have several.

use std::boxed::Box;

use minigpt_core::Reference;
use minigpt_core::op::{GateForward, Narrow, NormBackward};

use super::*;
use crate::par::BLOCK;

mod decoding;
mod training;
mod whole;

/// One of two backends with the same operands, made from one stream of random numbers.
struct Side {
    on: On,
    rng: Rng,
}

enum On {
    Cpu(Box<Cpu<'static>>),
    Reference(Reference<f64>),
}

impl Side {
    fn new(on: On) -> Self {
        Side { on, rng: Rng::new(7, Stream::User) }
    }

    fn cpu(isa: Isa, threads: usize) -> Self {
        Side::new(On::Cpu(Box::new(Cpu::builder().isa(isa).threads(threads).build().unwrap())))
    }

    fn span(&mut self, dtype: Dtype, len: usize) -> Span {
        let bytes = dtype.bytes(len).unwrap();
        let buffer = match &mut self.on {
            On::Cpu(cpu) => cpu.alloc(bytes).unwrap(),
            On::Reference(reference) => reference.alloc(bytes).unwrap(),
        };
        Span { buffer, dtype, offset: 0, len }
    }

    fn write(&mut self, to: Span, values: &[f64]) {
        match &mut self.on {
            On::Cpu(cpu) => {
                write_elems(cpu.as_mut(), to, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap()
            }
            On::Reference(reference) => write_elems(reference, to, values).unwrap(),
        }
    }

    /// Of the backend's own number type.
    fn values(&mut self, values: &[f64]) -> Span {
        let dtype = match self.on {
            On::Cpu(_) => Dtype::F32,
            On::Reference(_) => Dtype::F64,
        };
        let span = self.span(dtype, values.len());
        self.write(span, values);
        span
    }

    /// The same in bf16.
    fn rounded(&mut self, values: &[f64]) -> Span {
        let span = self.span(Dtype::Bf16, values.len());
        self.write(span, values);
        span
    }

    fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| f64::from(self.rng.normal() as f32)).collect()
    }

    /// A parameter, or its gradient.
    fn elems(&mut self, len: usize) -> Span {
        let values = self.numbers(len);
        self.values(&values)
    }

    /// Activations.
    fn halves(&mut self, len: usize) -> Span {
        let values = self.numbers(len);
        self.rounded(&values)
    }

    /// A weight of `rows` rows, of any type.
    fn weight(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Span {
        match dtype {
            Dtype::F32 => return self.elems(rows * cols),
            Dtype::Bf16 => return self.halves(rows * cols),
            _ => {}
        }
        let span = self.span(dtype, rows * dtype.padded(cols));
        // Scales and floats of ordinary size, whatever the type.
        let bytes: Vec<u8> = (0..span.bytes().unwrap()).map(|_| self.rng.next_u32() as u8 & 0x3f).collect();
        match &mut self.on {
            On::Cpu(cpu) => cpu.write(span, &bytes).unwrap(),
            On::Reference(reference) => reference.write(span, &bytes).unwrap(),
        }
        span
    }

    fn words(&mut self, words: &[u32]) -> Span {
        let span = self.span(Dtype::U32, words.len());
        match &mut self.on {
            On::Cpu(cpu) => write_u32(cpu.as_mut(), span, words).unwrap(),
            On::Reference(reference) => write_u32(reference, span, words).unwrap(),
        }
        span
    }

    fn dropout(&mut self) -> Option<Dropout> {
        let words: Vec<u32> = (0..counter::LEN as u32).collect();
        Some(Dropout { probability: 0.2, site: 3, first: 5, counters: self.words(&words) })
    }

    fn run(&mut self, op: &Op) {
        match &mut self.on {
            On::Cpu(cpu) => {
                let bytes = cpu.workspace_bytes(&[*op]);
                cpu.reserve(bytes).unwrap();
                let reserved = cpu.scratch.bytes();
                cpu.run(op).unwrap();
                assert_eq!(cpu.fallbacks_of(op.kind()), 0);
                assert_eq!(cpu.scratch.bytes(), reserved, "{op:?}");
            }
            On::Reference(reference) => reference.run(op).unwrap(),
        }
    }

    fn read(&mut self, from: Span) -> Vec<f64> {
        match &mut self.on {
            On::Cpu(cpu) if from.dtype == Dtype::U32 => {
                read_u32(cpu.as_mut(), from).unwrap().into_iter().map(f64::from).collect()
            }
            On::Cpu(cpu) => read_elems(cpu.as_mut(), from).unwrap().into_iter().map(f64::from).collect(),
            On::Reference(reference) if from.dtype == Dtype::U32 => {
                read_u32(reference, from).unwrap().into_iter().map(f64::from).collect()
            }
            On::Reference(reference) => read_elems(reference, from).unwrap(),
        }
    }
}

/// Whether two are the same number, or both none.
fn same(x: f64, y: f64) -> bool {
    x == y || x.is_nan() && y.is_nan()
}

/// That the op of `make` leaves in the spans that stand with it what the reference leaves there: sums to within f32's rounding,
/// and what is rounded to the bit, but for one in some that lies between two bf16 and goes the other way.
fn assert_rounded(make: impl Fn(&mut Side) -> (Op, Vec<Span>)) {
    let mut slow = Side::new(On::Reference(Reference::new()));
    let (op, spans) = make(&mut slow);
    slow.run(&op);
    let expected: Vec<Vec<f64>> = spans.into_iter().map(|span| slow.read(span)).collect();
    for isa in Isa::available() {
        let [one, three] = [1, 3].map(|threads| {
            let mut fast = Side::cpu(isa, threads);
            let (op, spans) = make(&mut fast);
            assert_eq!(op.precision(), minigpt_core::Precision::Bf16);
            fast.run(&op);
            spans.into_iter().map(|span| (span.dtype, fast.read(span))).collect::<Vec<_>>()
        });
        for (i, expected) in expected.iter().enumerate() {
            let ((dtype, found), same_bits) = (&one[i], &three[i].1);
            assert!(found.iter().zip(same_bits).all(|(x, y)| same(*x, *y)), "{isa}: threads change {i}");
            assert_eq!(found.len(), expected.len());
            let scale =
                expected.iter().fold(1e-3f64, |max, x| if x.is_finite() { max.max(x.abs()) } else { max });
            let (tolerance, most) = match dtype {
                Dtype::Bf16 => (1.0 / 64.0, 1 + expected.len() / 100),
                Dtype::U32 => (0.0, 0),
                _ => (2e-5, usize::MAX),
            };
            let mut others = 0;
            for (k, (&x, &y)) in found.iter().zip(expected).enumerate() {
                let near = same(x, y) || (x - y).abs() <= tolerance * scale;
                assert!(near, "{isa}, {op:?}, span {i}[{k}]: {x} is not {y}");
                others += usize::from(!same(x, y));
            }
            assert!(others <= most, "{isa}, {op:?}, span {i}: {others} of {} differ", expected.len());
        }
    }
}

#[test]
fn a_caller_has_no_block_of_scratch() {
    let mut cpu = Cpu::builder().isa(Isa::Portable).build().unwrap();
    let buffer = cpu.alloc(64).unwrap();
    let span = |buffer| Span { buffer, dtype: Dtype::Bf16, offset: 0, len: 8 };
    for (x, y) in [(BLOCK, buffer), (buffer, BLOCK)] {
        let (x, y) = (span(x), span(y).first(4));
        let op = GateForward { x, y, activation: Activation::Silu, rows: 1, width: 4 };
        let refused = cpu.run(&op.into()).unwrap_err();
        assert!(matches!(refused, CpuError::Invalid(InvalidOp::OutOfBounds { .. })), "{refused}");
    }
}

#[test]
fn weights_are_narrowed_and_numbers_filled_in() {
    for len in [0, 1, 7, 63, 65, 40_001] {
        assert_rounded(|side| {
            let (from, to) = (side.elems(len), side.halves(len));
            (Narrow { from, to }.into(), [to].into())
        });
        for value in [1.001, -1.0 - 1.0 / 256.0 - 1e-12, f64::NAN, 1e39] {
            assert_rounded(|side| {
                let to = side.halves(len + 2);
                (minigpt_core::op::Fill { to: to.slice(1, len), value }.into(), [to].into())
            });
        }
    }
}
