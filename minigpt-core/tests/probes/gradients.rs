//! The gradient of every tensor against central finite differences: one number of what an op has just written is nudged, and
//! the loss shows by how much.

use minigpt_core::op::{Columns, IGNORE, Operand, Step};
use minigpt_core::probe::{Recording, TensorKind};
use minigpt_core::reference::activation::activate;
use minigpt_core::{
    Backend, GptConfig, Mask, NormPlace, Op, Reference, ReferenceError, Span, TrainConfig, Trainer,
};

use super::configs::{covering_set, given, length};
use super::{BATCH, model, tokens};
use TensorKind::*;

const STEP: f64 = 1e-5;

/// After which op, which of its operands, which element, and by how much.
#[derive(Debug, Clone, Copy)]
struct Nudge {
    op: usize,
    operand: &'static str,
    element: usize,
    by: f64,
}

/// The reference, which nudges a number once.
struct Nudging {
    inner: Reference<f64>,
    ran: usize,
    nudge: Option<Nudge>,
}

impl Backend for Nudging {
    type Elem = f64;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.inner.run(op)?;
        if let Some(nudge) = self.nudge.filter(|nudge| nudge.op == self.ran) {
            let span = op.operands()?.get(nudge.operand).expect("an operand").span.slice(nudge.element, 1);
            let mut bytes = [0; 8];
            self.inner.read(span, &mut bytes)?;
            self.inner.write(span, &(f64::from_le_bytes(bytes) + nudge.by).to_le_bytes())?;
        }
        self.ran += 1;
        Ok(())
    }
}

struct Case {
    config: GptConfig,
    seed: u64,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Case {
    fn new(config: GptConfig, seed: u64) -> Self {
        let count = BATCH * length(&config);
        let mut targets = tokens(&config, count, seed + 100);
        targets[1] = IGNORE;
        Case { inputs: tokens(&config, count, seed), targets, seed, config }
    }

    /// Always fresh, so that dropout masks are the same.
    fn trainer(&self, nudge: Option<Nudge>) -> Trainer<Nudging> {
        let backend = Nudging { inner: Reference::new(), ran: 0, nudge };
        let settings = TrainConfig { batch: BATCH, time: length(&self.config), ..TrainConfig::constant(0.0) };
        let mut trainer = Trainer::new(&model(backend, &self.config, self.seed), settings).unwrap();
        trainer.set_prefix(&given(&self.config, BATCH, self.seed)).unwrap();
        trainer
    }

    fn loss(&self, nudge: Nudge) -> f64 {
        let mut trainer = self.trainer(Some(nudge));
        trainer.micro_step(&self.inputs, &self.targets).unwrap();
        trainer.finish_step().unwrap();
        trainer.metrics().unwrap().loss * (self.inputs.len() - 1) as f64
    }

    /// The operand that a forward step writes, and the kinds that it is: parts of a row of queries, keys and values, or each
    /// all of it.
    fn written(&self, step: &Step) -> Option<(&'static str, Vec<TensorKind>)> {
        let (post, rotary) = (self.config.norm_place == NormPlace::Post, self.config.position.is_rotary());
        Some(match (step.name.part, &step.op) {
            ("embedding", Op::EmbeddingForward(_)) => ("out", vec![Embedding]),
            ("attention.norm", Op::NormForward(_)) if post => ("y", vec![AttentionNorm, ResidualMiddle]),
            ("attention.norm", Op::NormForward(_)) => ("y", vec![AttentionNorm]),
            ("attention.q_norm", Op::NormForward(_)) if rotary => ("y", vec![QueryBeforeRotary]),
            ("attention.q_norm", Op::NormForward(_)) => ("y", vec![Query]),
            ("attention.k_norm", Op::NormForward(_)) if rotary => ("y", vec![KeyBeforeRotary]),
            ("attention.k_norm", Op::NormForward(_)) => ("y", vec![Key]),
            ("attention.qkv", Op::LinearForward(_)) if self.config.qk_norm => ("y", vec![Value]),
            ("attention.qkv", Op::LinearForward(_)) if rotary => {
                ("y", vec![QueryBeforeRotary, KeyBeforeRotary, Value])
            }
            ("attention.qkv", Op::LinearForward(_)) => ("y", vec![Query, Key, Value]),
            ("attention.rotary", Op::Rotary(op)) if !op.inverse => ("x", vec![Query, Key]),
            ("attention", Op::AttentionForward(_)) => ("out", vec![Attended]),
            ("attention.out", Op::LinearForward(_)) if post => ("y", vec![AttentionOutput, AttentionSum]),
            ("attention.out", Op::LinearForward(_)) => ("y", vec![AttentionOutput, ResidualMiddle]),
            ("feed_forward.norm", Op::NormForward(_)) if post => ("y", vec![FeedForwardNorm, ResidualOutput]),
            ("feed_forward.norm", Op::NormForward(_)) => ("y", vec![FeedForwardNorm]),
            ("feed_forward.up", Op::LinearForward(_)) if self.config.gated => ("y", vec![PreActivation]),
            ("feed_forward.up", Op::LinearForward(_)) | ("feed_forward.gate", Op::GateForward(_)) => {
                ("y", vec![Activation])
            }
            ("feed_forward.down", Op::LinearForward(_)) if post => {
                ("y", vec![FeedForwardOutput, FeedForwardSum])
            }
            ("feed_forward.down", Op::LinearForward(_)) => ("y", vec![FeedForwardOutput, ResidualOutput]),
            ("final_norm", Op::NormForward(_)) => ("y", vec![FinalNorm]),
            ("head", Op::LinearForward(_)) => ("y", vec![Logits]),
            _ => return None,
        })
    }

    /// The kinds with the place in each of element number `element` of the operand, whose rows may lie apart.
    fn places(
        &self,
        kinds: &[TensorKind],
        apart: Option<Columns>,
        element: usize,
    ) -> Vec<(TensorKind, usize)> {
        let (queries, keys) = (self.config.d_attention(), self.config.kv_heads() * self.config.d_head());
        let stride = match (apart, kinds) {
            (Some(Columns { stride, .. }), _) => stride,
            (None, [_, Key]) => queries + keys,
            (None, _) => self.config.d_qkv(),
        };
        let (row, column) = (element / stride, element % stride);
        match *kinds {
            // Queries and keys are what their norms give.
            [Value] => {
                let column = column.checked_sub(queries + keys);
                column.map(|column| (Value, row * keys + column)).into_iter().collect()
            }
            // What lies between the rows is another's.
            [kind] if apart.is_some() => {
                let width = apart.map_or(0, |columns| columns.width);
                (column < width).then(|| (kind, row * width + column)).into_iter().collect()
            }
            [query, Key] if column < queries => vec![(query, row * queries + column)],
            [_, Key] if column < queries + keys => vec![(Key, row * keys + column - queries)],
            [_, Key] => vec![],
            [query, _, _] if column < queries => vec![(query, row * queries + column)],
            [_, key, value] => {
                let (kind, column) = match column - queries {
                    column if column < keys => (key, column),
                    column => (value, column - keys),
                };
                vec![(kind, row * keys + column)]
            }
            _ => kinds.iter().map(|kind| (*kind, element)).collect(),
        }
    }
}

#[test]
fn the_gradient_of_every_tensor_matches_finite_differences() {
    for (i, config) in covering_set().into_iter().enumerate() {
        // With a prefix, several ops write one tensor.
        let mask = if config.mask == Mask::Prefix { Mask::Causal } else { config.mask };
        let case = Case::new(GptConfig { prefix: 0, mask, ..config }, i as u64);
        let mut seen = Recording::of(|at| at.gradient);
        let mut trainer = case.trainer(None);
        trainer.observe_micro_step(&case.inputs, &case.targets, &mut seen).unwrap();
        let program = trainer.plan().program().unwrap();
        let mut compared = 0;
        for (op, step) in program.steps().iter().enumerate() {
            let Some((operand, kinds)) = case.written(step) else { continue };
            let operands = step.op.operands().unwrap();
            let Operand { span: Span { len, .. }, columns, .. } = *operands.get(operand).unwrap();
            let compare = |element: usize| {
                let loss = |by| case.loss(Nudge { op, operand, element, by });
                let expected = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
                for (kind, place) in case.places(&kinds, columns, element) {
                    let gradient = seen.gradient(step.name.layer, kind);
                    let gradient =
                        gradient.unwrap_or_else(|| panic!("{}: no gradient of {kind:?}", step.name));
                    let scale = gradient.iter().fold(1e-3f64, |most, g| most.max(g.abs()));
                    let difference = (gradient[place] - expected).abs() / scale;
                    assert!(
                        difference < 1e-6,
                        "{difference:e} of {kind:?} in {}, {:?}",
                        step.name,
                        case.config
                    );
                }
            };
            // So that each part of a row is met.
            (0..7).map(|k| (k * len / 7 + k * 3) % len).for_each(compare);
            compared += kinds.len();
        }
        // All but those of what the activation reads.
        assert!(
            compared >= seen.iter().count() - case.config.layers,
            "{compared} of {}",
            seen.iter().count()
        );
    }
}

#[test]
fn the_gradient_of_what_an_activation_reads_is_that_of_its_result_times_its_slope() {
    for (i, config) in covering_set().into_iter().enumerate() {
        let case = Case::new(config, i as u64);
        let mut seen = Recording::of(|at| matches!(at.kind, PreActivation | Activation));
        case.trainer(None).observe_micro_step(&case.inputs, &case.targets, &mut seen).unwrap();
        for layer in 0..case.config.layers {
            let before = seen.value(layer, PreActivation).unwrap();
            let gradients = [PreActivation, Activation].map(|kind| seen.gradient(layer, kind).unwrap());
            let f = |x| activate(case.config.activation, x);
            let slope = |x| (f(x + STEP) - f(x - STEP)) / (2.0 * STEP);
            // A gate's row has what it lets through behind it.
            let d_ff = case.config.d_ff;
            let width = if case.config.gated { 2 * d_ff } else { d_ff };
            let rows = before.chunks(width).zip(gradients[0].chunks(width)).zip(gradients[1].chunks(d_ff));
            for ((x, found), d_y) in rows {
                for i in 0..d_ff {
                    let up = if case.config.gated { x[d_ff + i] } else { 1.0 };
                    let expected = d_y[i] * up * slope(x[i]);
                    let close = |found: f64, expected: f64| {
                        assert!(
                            (found - expected).abs() < 1e-8 * (1.0 + expected.abs()),
                            "{found} {expected}"
                        );
                    };
                    close(found[i], expected);
                    if case.config.gated {
                        close(found[d_ff + i], d_y[i] * f(x[i]));
                    }
                }
            }
        }
    }
}

#[test]
fn gradients_of_parameters_are_those_of_the_trainer() {
    let case = Case::new(covering_set().swap_remove(0), 1);
    let (mut seen, mut trainer) = (Recording::of(|_| false).with_gradients_of(|_| true), case.trainer(None));
    for _ in 0..2 {
        trainer.observe_micro_step(&case.inputs, &case.targets, &mut seen).unwrap();
        let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
        assert_eq!(seen.parameter_gradients().count(), names.len());
        for name in names {
            let gradient = trainer.gradient(&name).unwrap().unwrap();
            assert!(gradient.iter().any(|g| *g != 0.0), "{name}");
            assert_eq!(seen.parameter_gradient(&name), Some(&gradient[..]), "{name}");
        }
    }
    assert_eq!(seen.iter().count(), 0);
}
