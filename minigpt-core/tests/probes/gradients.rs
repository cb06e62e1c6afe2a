//! The gradient of every tensor against central finite differences: one number of what an op has just written is nudged, and
//! the loss shows by how much.

use minigpt_core::op::{IGNORE, Step};
use minigpt_core::probe::{Recording, TensorKind};
use minigpt_core::reference::activation::activate;
use minigpt_core::{Backend, GptConfig, NormPlace, Op, Reference, ReferenceError, TrainConfig, Trainer};

use super::configs::{config, covering_set};
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
        let count = BATCH * config.context;
        let mut targets = tokens(&config, count, seed + 100);
        targets[1] = IGNORE;
        Case { inputs: tokens(&config, count, seed), targets, seed, config }
    }

    /// Always fresh, so that dropout masks are the same.
    fn trainer(&self, nudge: Option<Nudge>) -> Trainer<Nudging> {
        let backend = Nudging { inner: Reference::new(), ran: 0, nudge };
        let settings = TrainConfig { batch: BATCH, time: self.config.context, ..TrainConfig::constant(0.0) };
        Trainer::new(&model(backend, &self.config, self.seed), settings).unwrap()
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
            ("attention.norm", Op::LayerNormForward(_)) if post => ("y", vec![AttentionNorm, ResidualMiddle]),
            ("attention.norm", Op::LayerNormForward(_)) => ("y", vec![AttentionNorm]),
            ("attention.qkv", Op::LinearForward(_)) if rotary => {
                ("y", vec![QueryBeforeRotary, KeyBeforeRotary, Value])
            }
            ("attention.qkv", Op::LinearForward(_)) => ("y", vec![Query, Key, Value]),
            // Of which the values lie between its rows.
            ("attention.rotary", Op::Rotary(op)) if !op.inverse => ("x", vec![Query, Key, Value]),
            ("attention", Op::AttentionForward(_)) => ("out", vec![Attended]),
            ("attention.out", Op::LinearForward(_)) if post => ("y", vec![AttentionOutput, AttentionSum]),
            ("attention.out", Op::LinearForward(_)) => ("y", vec![AttentionOutput, ResidualMiddle]),
            ("feed_forward.norm", Op::LayerNormForward(_)) if post => {
                ("y", vec![FeedForwardNorm, ResidualOutput])
            }
            ("feed_forward.norm", Op::LayerNormForward(_)) => ("y", vec![FeedForwardNorm]),
            ("feed_forward.up", Op::LinearForward(_)) => ("y", vec![Activation]),
            ("feed_forward.down", Op::LinearForward(_)) if post => {
                ("y", vec![FeedForwardOutput, FeedForwardSum])
            }
            ("feed_forward.down", Op::LinearForward(_)) => ("y", vec![FeedForwardOutput, ResidualOutput]),
            ("final_norm", Op::LayerNormForward(_)) => ("y", vec![FinalNorm]),
            ("head", Op::LinearForward(_)) => ("y", vec![Logits]),
            _ => return None,
        })
    }

    /// The kinds with the place in each of element number `element` of the operand.
    fn places(&self, kinds: &[TensorKind], element: usize) -> Vec<(TensorKind, usize)> {
        let [q, kv] = [self.config.heads, self.config.kv_heads()].map(|heads| heads * self.config.d_head());
        let (row, column) = (element / (q + 2 * kv), element % (q + 2 * kv));
        match kinds {
            [query, _, _] if column < q => vec![(*query, row * q + column)],
            [_, key, _] if column < q + kv => vec![(*key, row * kv + column - q)],
            [_, _, value] => vec![(*value, row * kv + column - q - kv)],
            _ => kinds.iter().map(|kind| (*kind, element)).collect(),
        }
    }
}

#[test]
fn the_gradient_of_every_tensor_matches_finite_differences() {
    for (i, choice) in covering_set().iter().enumerate() {
        let case = Case::new(config(choice), i as u64);
        let mut seen = Recording::of(|at| at.gradient);
        let mut trainer = case.trainer(None);
        trainer.observe_micro_step(&case.inputs, &case.targets, &mut seen).unwrap();
        let program = trainer.plan().program().unwrap();
        let mut compared = 0;
        for (op, step) in program.steps().iter().enumerate() {
            let Some((operand, kinds)) = case.written(step) else { continue };
            let len = step.op.operands().unwrap().get(operand).unwrap().span.len;
            let compare = |element: usize| {
                let loss = |by| case.loss(Nudge { op, operand, element, by });
                let expected = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
                for (kind, place) in case.places(&kinds, element) {
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
    for (i, choice) in covering_set().iter().enumerate() {
        let case = Case::new(config(choice), i as u64);
        let mut seen = Recording::of(|at| matches!(at.kind, PreActivation | Activation));
        case.trainer(None).observe_micro_step(&case.inputs, &case.targets, &mut seen).unwrap();
        for layer in 0..case.config.layers {
            let before = seen.value(layer, PreActivation).unwrap();
            let gradients = [PreActivation, Activation].map(|kind| seen.gradient(layer, kind).unwrap());
            for ((x, found), d_y) in before.iter().zip(gradients[0]).zip(gradients[1]) {
                let f = |x| activate(case.config.activation, x);
                let slope = (f(x + STEP) - f(x - STEP)) / (2.0 * STEP);
                assert!((found - d_y * slope).abs() < 1e-8, "{found} {d_y} {slope}");
            }
        }
    }
}

#[test]
fn gradients_of_parameters_are_those_of_the_trainer() {
    let case = Case::new(config(&covering_set()[0]), 1);
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
