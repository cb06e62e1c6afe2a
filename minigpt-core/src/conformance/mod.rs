//! The suite by which any backend proves itself against [`Reference<f64>`](crate::Reference).
//!
//! [`check`] runs every op on the backend and on the oracle, from the same numbers, linear layers also with weights of every
//! narrow type, and what a [`Precision`] rounds also under bf16; then the seven basic methods, a short training, and cached
//! decoding. The result is a [`Report`]: the worst error of each op beside its bound, how often the backend's own kernel ran
//! and how large it got, to print and to assert on.
//!
//! ```
//! use minigpt_core::{Reference, conformance};
//! let options = conformance::Options { cases: 2, work: 100_000, ..Default::default() };
//! let report = conformance::check(Reference::<f32>::new, &options);
//! println!("{report}");
//! assert!(report.passed());
//! ```
//!
//! With its defaults it takes about a minute, if this crate is optimised: in a crate of your own say so in `Cargo.toml`,
//! `[profile.dev.package.minigpt-core]`, `opt-level = 3`.
//!
//! What kernels get wrong is looked for where they do. Shapes reach past every tile and leave every remainder; operands lie
//! side by side at any offset, with guards between them, so that what is read or written outside shows; what an op must
//! overwrite is NaN before, and what it only reads must be unchanged after. Of rows that are not live, operands are NaN,
//! words name what there is not, and results must stay as they are; how many are live, and where, changes between two runs.
//! Before each case the same op runs on NaN, and so does one of other shapes, so that whatever a kernel keeps is broken; and
//! each case runs twice, to the same bits. Every variant is met both ways, and with every other, whatever the seed.
//! `minigpt-cpu/tests/faults` plants faults of all these kinds, and the suite finds each.
//!
//! The error of an operand is max|x - oracle| / max(max|oracle|, floor): relative to the operand's largest value, so that a
//! value near zero between large ones is not held to digits that it cannot have; the device scalars, which have nothing to
//! do with each other, are compared one by one.
//!
//! # Under bf16
//!
//! An op under [`Precision::Bf16`] has a line of its own. Its cases are those of f32, but activations are bf16 for the backend
//! and for the oracle, and so are the weights of half of them. Sums are f32's, in the backend's own order: a number may be on
//! the other side of a tie before it is rounded, and is then the next one. So a line gives errors as parts of what they may be,
//! and its bound is 1. With M the largest magnitude of a result, the floor at least, a unit is 2^-7 M: no two neighbours among
//! its numbers are farther apart. Beside f32's bound, a result may be off by
//!
//! | result | units |
//! |---|---|
//! | what is copied, narrowed or filled; what is not rounded, such as statistics, losses and the gradients of parameters | 0 |
//! | any other result, for its own rounding | 1 |
//! | and for each step before it, as [`rounded`](crate::reference::rounded) names them: s, h, d, p; of a norm d | 1 |
//! | for z, of which an activation is taken: an error grows with the slope, at most 1.13 of GELU and twice the number of ReLU squared | 1.3, of ReLU squared 2 |
//! | attention, of its largest value, and where dropout is, times 1 / (1 - p) | 1 |
//! | the gradients of attention | 1 |
//!
//! The last two are what is left open: a backend may round the weights before they meet the values, and the gradients of the
//! scores. Where a step adds two numbers, their sum may be far smaller than either, so M is the largest of the one and of the
//! other, added up. Far below 0 an activation f of z is nearly 0 although z f'(z), by which an error of z grows, may be 0.27: so
//! M has 0.21 more there, which times 1.3 is that.
//!
//! The gradient g of what dropped out has no unit, nor has u of a gate. The product of two numbers of 8 bits is exact in f32;
//! that of one and a factor of dropout, which here is 4/3, 10/9 or 5/2, is a tie or a twentieth of a unit from any. So g is
//! the same for whoever takes the f32 nearest to 1 / (1 - p), and the gradients of parameters are held to f32's bound.
//!
//! A step that is left out, or cut off instead of rounded, is hardly a unit itself. But it changes many numbers, while
//! few are so near a tie that another sum crosses it: one or two in a thousand for `Reference<f32>`. So of a result in bf16 no
//! more than one number in a hundred, or one of fewer, may be farther from the oracle's than f32's bound. Attention is
//! excepted, for what is left open: of a thousand of its numbers or more, the magnitudes may differ from the oracle's by a
//! quarter of a unit in the mean.
//!
//! A backend may have kernels for one precision alone, and fall back for the other: that is no failure. The report says for
//! each line in how many of its cases the backend's own kernel ran, and [`Line::kernels`] is there to assert on.

mod basics;
mod cases;
mod draw;
mod model;
mod placed;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::backend::{Backend, BackendError};
use crate::config::Precision;
use crate::error::Error;
use crate::memory::Dtype;
use crate::op::{Op, OpKind};
use crate::real::Real;

/// Below this magnitude, errors are absolute in units of it.
pub const FLOOR: f64 = 1e-3;

/// A unit of bf16 for numbers from 1 to 2: how far the next one is.
const UNIT: f64 = 1.0 / 128.0;

/// How thorough to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which ops. The basic methods and the refusal of invalid ops are always checked.
    pub ops: &'static [OpKind],
    /// Under which policies ops run. Whatever a policy does not round is checked under [`Precision::F32`] alone.
    pub precisions: &'static [Precision],
    /// Cases per op. With 36, the default, every pair of sizes and every variant is met, whatever the seed.
    pub cases: usize,
    /// About so many multiply-adds a case may take: larger shapes are drawn smaller, down to 1 by 1. With as many as the
    /// default they are past every tile; with a tenth of them most tiles are not met.
    pub work: usize,
    /// Seed of shapes and numbers.
    pub seed: u64,
    /// Whether the short trainings and the decoding run too.
    pub model: bool,
    /// Whether to leave out the other cases of an op after the first that fails, and the op's other policies.
    pub stop_early: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ops: OpKind::ALL,
            precisions: &[Precision::F32, Precision::Bf16],
            cases: draw::CASES,
            work: 25_000_000,
            seed: 1,
            model: true,
            stop_early: false,
        }
    }
}

impl Options {
    /// The numbers of the cases. They go through the plan in leaps: the first is without variants, the second has some, the
    /// third has all, and the fourth is even.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        const ALL: u64 = draw::CASES as u64;
        // It has no factor in common with `ALL`, so the leaps come everywhere.
        const LEAP: u64 = 25;
        (0..self.cases as u64).map(|case| case / ALL * ALL + case % ALL * LEAP % ALL)
    }
}

/// The worst that was seen of one op or one check.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The op's name, or the check's.
    pub name: String,
    /// How many cases ran.
    pub cases: usize,
    /// The worst error; under bf16, as a part of what it may be.
    pub worst: f64,
    /// The bound that it is held to.
    pub bound: f64,
    /// Where the worst error was.
    pub place: String,
    /// What failed outright, if anything: an error where none was due, none where one was, a write outside of what the op
    /// may write. The first of all cases.
    pub failure: Option<String>,
    /// In how many cases the backend's own kernel ran, and in how many the reference; `None` where nobody counts.
    pub kernels: Option<(usize, usize)>,
    /// The dimensions of the case with the most work, among those in which the backend's own kernel ran, or among all where
    /// nobody counts.
    pub largest: String,
    /// How much work that was.
    most: u64,
}

impl Line {
    fn new(name: impl Into<String>, bound: f64) -> Self {
        Line {
            name: name.into(),
            cases: 0,
            worst: 0.0,
            bound,
            place: String::new(),
            failure: None,
            kernels: None,
            largest: String::new(),
            most: 0,
        }
    }

    /// Whether it keeps its bound.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.cases > 0 && self.worst <= self.bound
    }

    fn note(&mut self, error: f64, place: impl FnOnce() -> String) {
        // NaN counts as the worst of all.
        if error.is_nan() || error > self.worst {
            self.worst = if error.is_nan() { f64::INFINITY } else { error };
            self.place = place();
        }
    }

    /// Notes that the op ran, and whether it fell back to the reference.
    fn ran(&mut self, op: &Op, fell_back: Option<bool>) {
        if let Some(fell_back) = fell_back {
            let (own, reference) = self.kernels.get_or_insert((0, 0));
            *(if fell_back { reference } else { own }) += 1;
        }
        let work = op.flops().max(op.bytes());
        if work > self.most && fell_back != Some(true) {
            (self.most, self.largest) = (work, format!("{}", op.sizes()));
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.failure.get_or_insert_with(|| what.into());
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
        writeln!(
            f,
            "{:<42} {:>5} {:>8} {:>10} {:>10}        {:<34} worst at",
            "op", "cases", "own", "worst", "bound", "largest"
        )?;
        for line in &self.lines {
            let verdict = if line.passed() { "ok" } else { "FAILED" };
            let own = line.kernels.map_or_else(String::new, |(own, _)| format!("{own}"));
            writeln!(
                f,
                "{:<42} {:>5} {own:>8} {:>10.2e} {:>10.0e} {verdict:<6} {:<34} {}",
                line.name, line.cases, line.worst, line.bound, line.largest, line.place
            )?;
            if let Some(failure) = &line.failure {
                writeln!(f, "    {failure}")?;
            } else if line.cases == 0 {
                writeln!(f, "    no case ran")?;
            }
        }
        writeln!(f, "own: in so many cases the backend's own kernel ran, in the others the reference")
    }
}

/// The largest error that an op may have in f32; in f64 it is 1e-12 throughout. Under bf16 more is added to it, as the
/// [module](self) has it.
pub fn bound(kind: OpKind, elem: Dtype) -> f64 {
    if elem == Dtype::F64 {
        return 1e-12;
    }
    match kind {
        OpKind::EmbeddingForward | OpKind::EmbeddingRows | OpKind::Rotary | OpKind::RotaryRows => 1e-6,
        // They take the exponentials of scores near 100, the spread of numbers far from 0, or sums with cancellation.
        OpKind::AttentionForward
        | OpKind::AttentionBackward
        | OpKind::AttentionRows
        | OpKind::AttentionScores
        | OpKind::NormForward
        | OpKind::NormRows
        | OpKind::NormBackward
        | OpKind::CrossEntropy => 5e-5,
        // Small singular values grow by a hundred and more, and their errors with them.
        OpKind::NewtonSchulz => 2e-4,
        OpKind::NextDraw | OpKind::CacheAppend | OpKind::GatherRows | OpKind::Sample | OpKind::Narrow => 0.0,
        _ => 2e-5,
    }
}

/// max|x - oracle| / max(max|oracle|, floor), and where it is. Infinite if one of the two is finite and the other not;
/// of what is not finite, no kind is better than another.
pub(crate) fn error(found: &[f64], oracle: &[f64]) -> (f64, usize) {
    error_above(FLOOR, found, oracle)
}

/// The same with this floor.
fn error_above(floor: f64, found: &[f64], oracle: &[f64]) -> (f64, usize) {
    let scale = oracle.iter().filter(|x| x.is_finite()).fold(floor, |max, x| max.max(x.abs()));
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
    let precisions = |kind| {
        let of_kind = cases::precisions(kind).iter().copied();
        of_kind.filter(|precision| options.precisions.contains(precision))
    };
    let runs = |&kind| precisions(kind).map(move |precision| (kind, precision));
    let mut failed = None;
    for (kind, precision) in options.ops.iter().flat_map(runs) {
        if options.stop_early && failed == Some(kind) {
            continue;
        }
        let mut line = match precision {
            Precision::F32 => Line::new(kind.name(), bound(kind, B::Elem::DTYPE)),
            Precision::Bf16 => Line::new(format!("{}, bf16", kind.name()), 1.0),
        };
        let mut backend = make();
        cases::check(&mut backend, kind, precision, options, &mut line);
        let claimed = backend.kernels().contains(&kind);
        // A kernel may be one for a single precision.
        let first = precisions(kind).next() == Some(precision);
        if first && claimed && line.cases > 0 && line.kernels.is_none_or(|(own, _)| own == 0) {
            line.fail("the backend says that it has a kernel, and it never ran, or nobody counted");
        }
        // Every backend has a `fill`.
        if !claimed && kind != OpKind::Fill && line.kernels.is_some_and(|(own, _)| own > 0) {
            line.fail("a kernel ran that `Backend::kernels` does not list, or `fell_back` is not counted");
        }
        failed = (!line.passed()).then_some(kind);
        report.lines.push(line);
        if kind == OpKind::ActivationForward {
            let name = match precision {
                Precision::F32 => "ActivationForward, bits of a layer's",
                Precision::Bf16 => "ActivationForward, bf16, bits of a layer's",
            };
            let mut line = Line::new(name, 0.0);
            cases::check_same_bits(&mut make(), precision, options, &mut line);
            report.lines.push(line);
        }
    }
    if options.ops.contains(&OpKind::LinearForward) && options.precisions.contains(&Precision::F32) {
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

/// Compiles only for a backend of which all that a program keeps may be sent to other threads and shared with them, as the
/// reference's may: `const _: () = conformance::crosses_threads::<MyBackend>();`
#[cfg(feature = "std")]
pub const fn crosses_threads<B>()
where
    B: Backend + Send + Sync,
    crate::backend::Device<B>: Send + Sync,
    crate::model::Model<B>: Send + Sync,
    crate::model::Decoder<B>: Send + Sync,
    crate::train::Trainer<B>: Send + Sync,
    Error<B::Error>: Send + Sync + 'static,
{
}

/// Compiles only for a backend that may itself be sent to other threads and shared with them. What lives on its
/// [`Device`](crate::Device) stays on one thread without the feature `std`.
#[cfg(not(feature = "std"))]
pub const fn crosses_threads<B>()
where
    B: Backend + Send + Sync,
    Error<B::Error>: Send + Sync + 'static,
{
}

fn describe<E: BackendError>(error: &E) -> String {
    format!("{:?}: {}", error.kind(), error)
}
