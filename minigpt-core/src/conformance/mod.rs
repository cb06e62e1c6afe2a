//! The suite by which any backend proves itself against [`Reference<f64>`](crate::Reference).
//!
//! [`check`] runs every op on random shapes, odd ones included, on the backend and on the oracle, from the same
//! numbers, linear layers also with weights of every narrow type; then the six basic methods, a short training, and
//! cached decoding. The result is a [`Report`]: the worst error of each op beside its bound, to print and to assert on.
//!
//! ```
//! use minigpt_core::{Reference, conformance};
//! let report = conformance::check(Reference::<f32>::new, &conformance::Options { cases: 2, ..Default::default() });
//! println!("{report}");
//! assert!(report.passed());
//! ```
//!
//! The error of an operand is max|x - oracle| / max(max|oracle|, floor): relative to the operand's largest value, so
//! that a value near zero between large ones is not held to digits that it cannot have; the device scalars, which have
//! nothing to do with each other, are compared one by one. What an op must overwrite is filled with NaN before, so that
//! an element left out shows, and what it only reads must be unchanged after.

mod basics;
mod cases;
mod model;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::backend::{Backend, BackendError, Dtype};
use crate::op::OpKind;
use crate::real::Real;

/// Below this magnitude, errors are absolute in units of it.
pub const FLOOR: f64 = 1e-3;

/// How thorough to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which ops.
    pub ops: &'static [OpKind],
    /// Random cases per op.
    pub cases: usize,
    /// Seed of shapes and numbers.
    pub seed: u64,
    /// Whether the short trainings and the decoding run too.
    pub model: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { ops: OpKind::ALL, cases: 12, seed: 1, model: true }
    }
}

/// The worst that was seen of one op or one check.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The op's name, or the check's.
    pub name: String,
    /// How many cases ran.
    pub cases: usize,
    /// The worst error.
    pub worst: f64,
    /// The bound that it is held to.
    pub bound: f64,
    /// Where the worst error was, or what failed.
    pub place: String,
    /// Whether a case failed outright: an error where none was due, or none where one was.
    pub failed: bool,
}

impl Line {
    fn new(name: impl Into<String>, bound: f64) -> Self {
        Line { name: name.into(), cases: 0, worst: 0.0, bound, place: String::new(), failed: false }
    }

    /// Whether it keeps its bound.
    pub fn passed(&self) -> bool {
        !self.failed && self.cases > 0 && self.worst <= self.bound
    }

    fn note(&mut self, error: f64, place: impl FnOnce() -> String) {
        // NaN counts as the worst of all.
        if error.is_nan() || error > self.worst {
            self.worst = if error.is_nan() { f64::INFINITY } else { error };
            self.place = place();
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        if !self.failed {
            self.failed = true;
            self.place = what.into();
        }
    }
}

/// What the suite found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// One line for each op and each check.
    pub lines: Vec<Line>,
}

impl Report {
    /// Whether every op and every check keeps its bound.
    pub fn passed(&self) -> bool {
        !self.lines.is_empty() && self.lines.iter().all(Line::passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<34} {:>5} {:>10} {:>10}        worst at", "op", "cases", "worst", "bound")?;
        for line in &self.lines {
            let verdict = if line.passed() { "ok" } else { "FAILED" };
            writeln!(
                f,
                "{:<34} {:>5} {:>10.2e} {:>10.0e} {verdict:<6} {}",
                line.name, line.cases, line.worst, line.bound, line.place
            )?;
        }
        Ok(())
    }
}

/// The largest error that an op may have in f32; in f64 it is 1e-12 throughout.
pub fn bound(kind: OpKind, elem: Dtype) -> f64 {
    if elem == Dtype::F64 {
        return 1e-12;
    }
    match kind {
        OpKind::EmbeddingForward | OpKind::Rotary => 1e-6,
        // Their inputs are sums with cancellation, or they divide by a small spread.
        OpKind::LayerNormBackward | OpKind::AttentionBackward | OpKind::CrossEntropy => 5e-5,
        OpKind::NextDraw => 0.0,
        _ => 2e-5,
    }
}

/// max|x - oracle| / max(max|oracle|, floor), and where it is. Infinite if one of the two is finite and the other not;
/// of what is not finite, no kind is better than another.
pub(crate) fn error(found: &[f64], oracle: &[f64]) -> (f64, usize) {
    let scale = oracle.iter().filter(|x| x.is_finite()).fold(FLOOR, |max, x| max.max(x.abs()));
    let mut worst = (0.0, 0);
    for (i, (x, y)) in found.iter().zip(oracle).enumerate() {
        let same = x == y || !(x.is_finite() || y.is_finite());
        let e = if same { 0.0 } else { (x - y).abs() / scale };
        let e = if e.is_nan() { f64::INFINITY } else { e };
        if e > worst.0 {
            worst = (e, i);
        }
    }
    worst
}

/// Runs the whole suite on backends made by `make`.
pub fn check<B: Backend>(mut make: impl FnMut() -> B, options: &Options) -> Report {
    let mut report = Report::default();
    report.lines.push(basics::check(&mut make()));
    for &kind in options.ops {
        let mut line = Line::new(kind.name(), bound(kind, B::Elem::DTYPE));
        cases::check(&mut make(), kind, options, &mut line);
        report.lines.push(line);
    }
    if options.ops.contains(&OpKind::LinearForward) {
        for dtype in cases::STORED {
            let name = format!("{}, {dtype:?} weight", OpKind::LinearForward.name());
            // Its numbers are exact in f32, so it is held to the bound of f32 weights.
            let mut line = Line::new(name, bound(OpKind::LinearForward, B::Elem::DTYPE));
            cases::check_stored(&mut make(), dtype, options, &mut line);
            report.lines.push(line);
        }
    }
    report.lines.push(cases::check_refusals(&mut make()));
    if options.model {
        report.lines.extend(model::check(&mut make));
    }
    report
}

fn describe<E: BackendError>(error: &E) -> String {
    format!("{:?}: {}", error.kind(), error)
}
