//! The conformance suite on the oracle itself and on two backends that know nothing but the trait.

#[macro_use]
#[path = "support/forwarding.rs"]
mod forwarding;

mod backends;
#[path = "support/rounding.rs"]
mod rounding;

use backends::{Deferred, SevenMethods};
use minigpt_core::backend::{read_elems, write_elems};
use minigpt_core::conformance::{Options, Report, check, crosses_threads};
use minigpt_core::data::Windows;
use rounding::Rounds;

use minigpt_core::{
    Backend, Dtype, GptConfig, Model, Op, OpKind, Precision, Reference, ReferenceError, Span, TrainConfig,
    Trainer,
};

const _: () = (crosses_threads::<Reference<f32>>(), crosses_threads::<Reference<f64>>()).0;

fn passes(name: &str, report: &Report) {
    println!("{name}\n{report}");
    assert!(report.passed(), "{name}\n{report}");
}

/// Plain loops have no tiles to be past: small shapes, and all variants.
fn small() -> Options {
    Options { work: 100_000, ..Options::default() }
}

/// Their arithmetic is the reference's: a few cases show that the transfers are right.
fn few() -> Options {
    Options { cases: 3, ..small() }
}

#[test]
fn reference_conforms_in_both_precisions() {
    passes("Reference<f64>", &check(Reference::<f64>::new, &small()));
    passes("Reference<f32>", &check(Reference::<f32>::new, &small()));
}

#[test]
fn seven_methods_make_a_backend() {
    passes("SevenMethods", &check(SevenMethods::default, &few()));
}

#[test]
fn a_backend_may_do_its_work_later() {
    passes("Deferred", &check(Deferred::default, &few()));
}

/// The reference with `run` in its place: what a faulty backend would do with an op.
struct Faulty<F> {
    inner: Reference<f32>,
    run: F,
}

impl<F: FnMut(&mut Reference<f32>, &Op) -> Result<(), ReferenceError>> Backend for Faulty<F> {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), ReferenceError> {
        (self.run)(&mut self.inner, op)
    }
}

/// One op is wrong, of which one operand comes out wrong: one element of it, or one place of the scalars.
fn wrong_operand(
    inner: &mut Reference<f32>,
    op: &Op,
    wrong: OpKind,
    name: &str,
    index: usize,
) -> Result<(), ReferenceError> {
    inner.run(op)?;
    if op.kind() != wrong {
        return Ok(());
    }
    let Some(operand) = op.operands()?.get(name).copied() else { return Ok(()) };
    let place = operand.span.slice(index, 1);
    if place.dtype == Dtype::Bf16 {
        // One element is another number altogether: by one part in a hundred it may be off.
        let values = read_elems(inner, place)?;
        return write_elems(inner, place, &values.iter().map(|x| 2.0 * x + 1.0).collect::<Vec<_>>());
    }
    // One element is off by one part in a hundred (or, for counters, by one).
    let place = Span { dtype: Dtype::U32, ..place };
    let mut bytes = [0; 4];
    inner.read(place, &mut bytes)?;
    if operand.span.dtype == Dtype::U32 {
        bytes = (u32::from_le_bytes(bytes).wrapping_add(1)).to_le_bytes();
    } else {
        bytes = (f32::from_le_bytes(bytes) * 1.01 + 0.01).to_le_bytes();
    }
    inner.write(place, &bytes)
}

/// That the suite finds `wrong` when `operand` of it is.
fn is_found(wrong: &'static OpKind, operand: &'static str, place: usize) {
    let run = |inner: &mut Reference<f32>, op: &Op| wrong_operand(inner, op, *wrong, operand, place);
    let make = || Faulty { inner: Reference::new(), run };
    // In f32 and, of what a precision rounds, in bf16.
    for precisions in [&[Precision::F32], &[Precision::Bf16]] {
        let ops = core::slice::from_ref(wrong);
        let report = check(make, &Options { ops, precisions, model: false, stop_early: true, ..small() });
        is_named(*wrong, &report, precisions[0], || format!("with {operand}[{place}] of {wrong:?} wrong"));
    }
}

/// That the report says that this op is wrong, if it ran under this policy, and nothing else.
fn is_named(wrong: OpKind, report: &Report, precision: Precision, fault: impl Fn() -> String) {
    let name = match precision {
        Precision::F32 => wrong.name().into(),
        Precision::Bf16 => format!("{}, bf16", wrong.name()),
    };
    let failed: Vec<&str> =
        report.lines.iter().filter(|line| !line.passed()).map(|line| &*line.name).collect();
    let context = || format!("{}:\n{report}", fault());
    if report.lines.iter().any(|line| line.name == name) {
        assert_eq!(failed.first(), Some(&&*name), "{}", context());
    }
    // Linear layers have lines for weights in narrow types too.
    assert!(failed.iter().all(|line| line.starts_with(wrong.name())), "{}", context());
}

#[test]
fn every_op_that_is_wrong_is_found() {
    use OpKind::*;
    // A result that is wrong, and an operand that was to be read only.
    const CASES: [(OpKind, &[&str]); 34] = [
        (EmbeddingForward, &["out", "token_embedding", "position_embedding"]),
        (EmbeddingBackward, &["d_token_embedding", "d_position_embedding", "d_out"]),
        (NormForward, &["y", "mean", "rstd", "x"]),
        (NormBackward, &["d_x", "d_weight", "d_bias", "d_y"]),
        (LinearForward, &["y", "activate.input", "residual", "x"]),
        (LinearBackward, &["d_x", "d_weight", "d_bias", "d_y"]),
        (ActivationForward, &["y", "x"]),
        (GateForward, &["y", "x"]),
        (GateBackward, &["d_x", "x", "d_y"]),
        (Rotary, &["x", "table"]),
        (AttentionForward, &["out", "lse", "q", "k", "v"]),
        (AttentionBackward, &["d_q", "d_k", "d_v", "d_out"]),
        (AttentionScores, &["scores", "q", "k"]),
        (EmbeddingRows, &["out", "token_embedding", "tokens", "places", "positions", "live"]),
        (NormRows, &["y", "mean", "rstd", "x", "live"]),
        (LinearRows, &["y", "activate.input", "residual", "x", "live"]),
        (GateRows, &["y", "x", "live"]),
        (RotaryRows, &["x", "table", "positions"]),
        (CacheAppend, &["keys", "values", "k", "v", "slots"]),
        (AttentionRows, &["out", "keys", "values", "q", "last"]),
        (GatherRows, &["to", "from", "wanted"]),
        (Sample, &["tokens", "choices", "settings", "logits"]),
        (CrossEntropy, &["d_logits", "losses", "scalars", "logits", "targets"]),
        (SquaredNorm, &["x"]),
        (NextDraw, &["counters"]),
        (FinishStep, &["scalars", "counters"]),
        (AdamW, &["params", "m", "v", "grads", "scalars", "counters"]),
        (Sgd, &["params", "velocity", "grads", "scalars"]),
        (Momentum, &["velocity", "direction", "grads", "scalars"]),
        (NewtonSchulz, &["x"]),
        (Descend, &["params", "direction", "scalars"]),
        (Average, &["average", "params", "scalars", "counters"]),
        (Narrow, &["to", "from"]),
        (Fill, &["to"]),
    ];
    assert!(CASES.iter().map(|(wrong, _)| wrong).eq(OpKind::ALL));
    for (wrong, operands) in &CASES {
        operands.iter().for_each(|operand| is_found(wrong, operand, 0));
    }
}

#[test]
fn every_scalar_that_is_wrong_is_found() {
    use minigpt_core::op::scalar;
    for place in [scalar::LOSS_SUM, scalar::TARGETS] {
        is_found(&OpKind::CrossEntropy, "scalars", place);
    }
    is_found(&OpKind::SquaredNorm, "scalars", scalar::GRAD_SQUARED);
    for place in 0..scalar::LEN {
        is_found(&OpKind::FinishStep, "scalars", place);
    }
}

#[test]
fn what_an_op_asks_for_and_a_backend_leaves_out_is_found() {
    use minigpt_core::op::*;
    fn site(dropout: Option<Dropout>) -> Option<Dropout> {
        dropout.map(|dropout| Dropout { site: 0, ..dropout })
    }
    fn first(dropout: Option<Dropout>) -> Option<Dropout> {
        dropout.map(|dropout| Dropout { first: u64::from(dropout.first as u32), ..dropout })
    }
    type Careless = (OpKind, fn(Op) -> Op);
    let careless: [Careless; 15] = [
        (OpKind::GateRows, |op| if let Op::GateRows(GateRows { gate, .. }) = op { gate.into() } else { op }),
        (OpKind::LinearRows, |op| match op {
            Op::LinearRows(LinearRows { linear, .. }) => linear.into(),
            op => op,
        }),
        (OpKind::NormRows, |op| if let Op::NormRows(NormRows { norm, .. }) = op { norm.into() } else { op }),
        (OpKind::EmbeddingRows, |op| match op {
            Op::EmbeddingRows(op) => EmbeddingRows { positions: op.places, ..op }.into(),
            op => op,
        }),
        (OpKind::AttentionRows, |op| match op {
            Op::AttentionRows(op) => AttentionRows { slots: op.last, ..op }.into(),
            op => op,
        }),
        (OpKind::Rotary, |op| match op {
            Op::Rotary(op) => Rotary { inverse: false, ..op }.into(),
            op => op,
        }),
        (OpKind::NormForward, |op| match op {
            Op::NormForward(op) => NormForward { eps: 0.0, ..op }.into(),
            op => op,
        }),
        (OpKind::LinearForward, |op| match op {
            Op::LinearForward(op) => LinearForward { dropout: site(op.dropout), ..op }.into(),
            op => op,
        }),
        (OpKind::AttentionBackward, |op| match op {
            Op::AttentionBackward(op) => AttentionBackward { dropout: site(op.dropout), ..op }.into(),
            op => op,
        }),
        (OpKind::LinearBackward, |op| match op {
            Op::LinearBackward(op) => LinearBackward { dropout: first(op.dropout), ..op }.into(),
            op => op,
        }),
        (OpKind::AttentionForward, |op| match op {
            Op::AttentionForward(op) => AttentionForward { dropout: first(op.dropout), ..op }.into(),
            op => op,
        }),
        (OpKind::FinishStep, |op| match op {
            Op::FinishStep(op) => FinishStep { clip: f64::INFINITY, ..op }.into(),
            op => op,
        }),
        (OpKind::AdamW, |op| if let Op::AdamW(op) = op { AdamW { eps: 1e-8, ..op }.into() } else { op }),
        (OpKind::AdamW, |op| if let Op::AdamW(op) = op { AdamW { rate: 1.0, ..op }.into() } else { op }),
        (OpKind::AdamW, |op| match op {
            Op::AdamW(op) => AdamW { weight_decay: 0.0, ..op }.into(),
            op => op,
        }),
    ];
    let nothing = careless.into_iter().map(|careless| (careless, ""));
    let forgets = [
        (OpKind::LinearBackward, "d_weight"),
        (OpKind::LinearBackward, "d_bias"),
        (OpKind::EmbeddingBackward, "d_token_embedding"),
        (OpKind::EmbeddingBackward, "d_position_embedding"),
        (OpKind::CacheAppend, "keys"),
    ];
    let forgets = forgets.map(|(kind, name)| ((kind, Op::from as fn(Op) -> Op), name));
    for (i, ((kind, instead), forgets)) in nothing.chain(forgets).enumerate() {
        // It does not do what an op asks for, but another op, or writes a result where it should add.
        let run = |inner: &mut Reference<f32>, op: &Op| {
            if let Some(operand) = op.operands()?.get(forgets) {
                inner.fill(operand.span, 0.0)?;
            }
            inner.run(&instead(*op))
        };
        let make = || Faulty { inner: Reference::new(), run };
        let ops = OpKind::ALL.iter().position(|of| *of == kind).map(|at| &OpKind::ALL[at..=at]).unwrap();
        let report = check(make, &Options { ops, model: false, stop_early: true, ..small() });
        assert!(!report.passed(), "number {i}, {kind:?} {forgets}:\n{report}");
    }
}

/// With so many seeds each fault is to be found.
const SEEDS: u64 = 3;

/// What the suite says of a backend that rounds like this.
fn report_of(rounds: Rounds, kind: &'static OpKind, seed: u64, stop_early: bool) -> Report {
    let run = |inner: &mut Reference<f32>, op: &Op| rounds.run(inner, op);
    let make = || Faulty { inner: Reference::new(), run };
    let ops = core::slice::from_ref(kind);
    let precisions = &[Precision::Bf16];
    check(make, &Options { ops, precisions, model: false, seed, stop_early, ..small() })
}

/// The ops that [`Rounds`] computes in steps.
const IN_STEPS: &[OpKind] = &[
    OpKind::EmbeddingForward,
    OpKind::EmbeddingBackward,
    OpKind::NormBackward,
    OpKind::LinearForward,
    OpKind::LinearBackward,
    OpKind::ActivationForward,
    OpKind::GateForward,
    OpKind::GateBackward,
    OpKind::LinearRows,
    OpKind::RotaryRows,
    OpKind::Narrow,
    OpKind::AttentionForward,
    OpKind::AttentionBackward,
];

#[test]
fn a_backend_that_rounds_in_steps_of_its_own_conforms() {
    for kind in IN_STEPS {
        passes("rounds as it should", &report_of(Rounds::AsItShould, kind, 1, false));
    }
    for kind in &[OpKind::AttentionForward, OpKind::AttentionBackward] {
        passes("rounds inside attention", &report_of(Rounds::InsideAttention, kind, 1, false));
    }
}

#[test]
fn a_step_that_is_rounded_wrongly_is_found() {
    use OpKind::*;
    const FAULTS: [(Rounds, &[OpKind]); 12] = [
        (Rounds::ByTruncation, IN_STEPS),
        (Rounds::TiesUp, &[LinearForward, LinearBackward, Narrow]),
        (Rounds::NotBeforeActivation, &[LinearForward, LinearRows]),
        (Rounds::NotBeforeDropout, &[EmbeddingForward, LinearForward]),
        (Rounds::NotBeforeResidual, &[LinearForward]),
        (Rounds::NotBeforeGradients, &[EmbeddingBackward, LinearBackward]),
        (Rounds::NotBeforeSlope, &[LinearBackward]),
        (Rounds::NotBeforeSum, &[NormBackward, LinearBackward]),
        (Rounds::NotInsideGate, &[GateForward, GateBackward]),
        (Rounds::NotBeforeGateSlope, &[GateBackward]),
        (Rounds::GradientsOfWeights, &[LinearBackward]),
        (Rounds::PartialSums, &[LinearForward]),
    ];
    for (rounds, kinds) in &FAULTS {
        for kind in *kinds {
            for seed in 1..=SEEDS {
                let report = report_of(*rounds, kind, seed, true);
                let failed: Vec<&str> =
                    report.lines.iter().filter(|line| !line.passed()).map(|line| &*line.name).collect();
                assert_eq!(failed, [format!("{}, bf16", kind.name())], "{rounds:?}, seed {seed}:\n{report}");
            }
        }
    }
}

#[test]
fn what_an_optimizer_asks_for_and_a_backend_leaves_out_is_found() {
    use minigpt_core::op::*;
    type Instead = fn(Op) -> Op;
    let careless: [(&[OpKind], Instead); 7] = [
        (&[OpKind::Sgd], |op| if let Op::Sgd(op) = op { Sgd { nesterov: false, ..op }.into() } else { op }),
        (&[OpKind::Sgd], |op| if let Op::Sgd(op) = op { Sgd { weight_decay: 0.0, ..op }.into() } else { op }),
        (&[OpKind::Momentum], |op| match op {
            Op::Momentum(op) => Momentum { nesterov: false, ..op }.into(),
            op => op,
        }),
        (&[OpKind::NewtonSchulz], |op| match op {
            Op::NewtonSchulz(op) => NewtonSchulz { steps: 5, ..op }.into(),
            op => op,
        }),
        (
            &[OpKind::Descend],
            |op| if let Op::Descend(op) = op { Descend { scale: 1.0, ..op }.into() } else { op },
        ),
        (&[OpKind::Descend], |op| match op {
            Op::Descend(op) => Descend { weight_decay: 0.0, ..op }.into(),
            op => op,
        }),
        (
            &[OpKind::Average],
            |op| if let Op::Average(op) = op { Average { decay: 0.9, ..op }.into() } else { op },
        ),
    ];
    for (i, (ops, instead)) in careless.into_iter().enumerate() {
        let run = |inner: &mut Reference<f32>, op: &Op| inner.run(&instead(*op));
        let make = || Faulty { inner: Reference::new(), run };
        let report = check(make, &Options { ops, model: false, stop_early: true, ..small() });
        assert!(!report.passed(), "number {i}:\n{report}");
    }
}

#[test]
fn a_step_only_enqueues() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(5, 8) };
    let text: Vec<u32> = (0..200).map(|i| i * i % 5).collect();
    let windows = Windows::new(&text, 8).unwrap();
    let settings = TrainConfig { batch: 2, time: 8, ..TrainConfig::constant(1e-2) };

    let model = Model::new(Deferred::default(), config.clone(), 3).unwrap();
    let mut late = Trainer::new(&model, settings.clone()).unwrap();
    for _ in 0..10 {
        late.step(&windows).unwrap();
    }
    // Nothing has been waited for: ten whole steps are in the queue.
    assert!(late.model().device().inspect(|backend| backend.longest_queue) > 10 * 40);

    let mut early = Trainer::new(&Model::new(Reference::<f32>::new(), config, 3).unwrap(), settings).unwrap();
    for _ in 0..10 {
        early.step(&windows).unwrap();
    }
    assert_eq!(late.metrics().unwrap(), early.metrics().unwrap());
}

#[test]
fn fallbacks_are_counted() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 8, ..GptConfig::new(5, 8) };
    let model = Model::new(SevenMethods::default(), config, 3).unwrap();
    model.logits(&[1, 2], 1, 2).unwrap();
    // Embedding, two norms and the last, four linear layers, attention, head.
    assert_eq!(model.device().inspect(|backend| backend.fallbacks), 10);
}

/// A backend that claims kernels that it has not, or does not count.
struct Boastful<const COUNTS: bool>(SevenMethods);

impl<const COUNTS: bool> Backend for Boastful<COUNTS> {
    type Elem = f32;
    type Error = backends::TestError;

    forward!(0: alloc release write read copy fill sync run);
    fn fallback_count(&self, _: OpKind) -> Option<u64> {
        COUNTS.then_some(self.0.fallbacks as u64)
    }
    fn kernels(&self) -> &'static [OpKind] {
        &[OpKind::SquaredNorm]
    }
}

#[test]
fn a_kernel_that_never_ran_is_a_failure_and_the_report_says_what_did() {
    let options = Options { ops: &[OpKind::SquaredNorm, OpKind::NextDraw], model: false, ..few() };
    for report in [
        check(|| Boastful::<true>(SevenMethods::default()), &options),
        check(|| Boastful::<false>(SevenMethods::default()), &options),
    ] {
        let failed: Vec<&str> =
            report.lines.iter().filter(|line| !line.passed()).map(|line| &*line.name).collect();
        assert_eq!(failed, ["SquaredNorm"], "{report}");
        assert!(report.to_string().contains("it never ran, or nobody counted"), "{report}");
    }
    let report = check(|| Boastful::<true>(SevenMethods::default()), &options);
    assert_eq!(report.lines[1].kernels, Some((0, 3)));
    assert_eq!(report.lines[1].largest, "", "of the kernel, which never ran: {report}");
    let uncounted = check(SevenMethods::default, &options);
    assert_eq!(uncounted.lines[1].kernels, None);
    assert!(uncounted.lines[1].largest.starts_with("n "), "{uncounted}");
}
