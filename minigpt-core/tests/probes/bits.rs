//! Observation changes no bit, and shows each tensor once and whole, however the batch goes through the model.

use minigpt_core::model::Extras;
use minigpt_core::op::CrossEntropy;
use minigpt_core::probe::{Point, Probe, Recording, TensorKind, when};
use minigpt_core::{
    Backend, GptConfig, InvalidOp, Op, OpKind, Recompute, Reference, ReferenceError, TrainConfig, Trainer,
    Windows,
};

use super::configs::{covering_set, given, length};
use super::small::Small;
use super::{model, tokens};

const ALL: [Recompute; 3] = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks];

/// Sequences of a batch: two at a time, they go in three slices.
const SEQUENCES: usize = 5;

fn settings(config: &GptConfig, recompute: Recompute) -> TrainConfig {
    let time = length(config);
    TrainConfig { batch: SEQUENCES, time, accumulation: 2, recompute, ..TrainConfig::constant(1e-2) }
}

fn trainer(config: &GptConfig, recompute: Recompute, rows: usize) -> Trainer<Small<f32>> {
    let model = model(Small::new(usize::MAX, rows), config, 3);
    let mut trainer = Trainer::new(&model, settings(config, recompute)).unwrap();
    trainer.set_prefix(&given(config, SEQUENCES, 4)).unwrap();
    trainer
}

/// A checkpoint and the losses of three steps.
fn trained(mut trainer: Trainer<Small<f32>>, config: &GptConfig, observed: bool) -> (Vec<u8>, Vec<f64>) {
    let text = tokens(config, 60, 1);
    let windows = Windows::new(&text, length(config)).unwrap();
    let mut losses = Vec::new();
    for _ in 0..3 {
        if observed {
            let mut all = Recording::of(|_| true).with_gradients_of(|_| true);
            trainer.observe_step(&windows, &mut all).unwrap();
        } else {
            trainer.step(&windows).unwrap();
        }
        losses.push(trainer.metrics().unwrap().loss);
    }
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    (file, losses)
}

#[test]
fn what_is_observed_trains_to_the_same_bits() {
    for config in covering_set() {
        for rows in [usize::MAX, 2 * config.context] {
            for recompute in ALL {
                let run = |observed| trained(trainer(&config, recompute, rows), &config, observed);
                assert!(run(true) == run(false), "{rows} rows, {recompute:?}, {config:?}");
            }
        }
    }
}

/// What a micro-step asks about and shows.
#[derive(Default)]
struct All {
    asked: Vec<Point>,
    seen: Vec<(Point, Vec<f32>)>,
}

impl Probe<f32> for All {
    fn wants(&mut self, at: &Point) -> bool {
        assert!(!self.asked.contains(at), "{at} is asked about twice");
        self.asked.push(*at);
        true
    }

    fn see(&mut self, at: &Point, values: Vec<f32>) -> Result<(), InvalidOp> {
        assert!(self.asked.contains(at) && self.seen.iter().all(|(seen, _)| seen != at), "{at}");
        self.seen.push((*at, values));
        Ok(())
    }
}

/// Shows each tensor once and whole, however the batch goes through the model.
fn is_shown_whole(config: &GptConfig) {
    let batch = SEQUENCES * length(config);
    let (inputs, targets) = (tokens(config, batch, 1), tokens(config, batch, 2));
    let seen = |recompute, rows| {
        let mut all = All::default();
        let mut trainer = trainer(config, recompute, rows);
        trainer.observe_micro_step(&inputs, &targets, &mut all).unwrap();
        // What comes in pieces is there when its last one is.
        all.seen.sort_by_key(|(at, _)| all.asked.iter().position(|asked| asked == at));
        let shown: Vec<Point> = all.seen.iter().map(|(at, _)| *at).collect();
        let missing = all.asked.iter().find(|at| !shown.contains(at));
        assert!(missing.is_none(), "{missing:?} is not shown, {config:?}");
        (trainer.plan().batch, all.seen)
    };
    let (at_once, whole) = seen(Recompute::Nothing, usize::MAX);
    assert_eq!(at_once, SEQUENCES);
    for (at, values) in &whole {
        assert_eq!(at.count(), values.len(), "{at}");
    }
    for recompute in ALL {
        assert!(seen(recompute, usize::MAX).1 == whole, "{recompute:?}, {config:?}");
        let (at_once, slices) = seen(recompute, 2 * config.context);
        assert_eq!(at_once, 2);
        assert!(slices == whole, "slices, {recompute:?}, {config:?}");
    }
}

#[test]
fn slices_are_joined_and_recomputation_is_not_shown() {
    covering_set().iter().filter(|config| config.prefix == 0).for_each(is_shown_whole);
}

#[test]
fn slices_with_given_vectors_are_joined_too() {
    covering_set().iter().filter(|config| config.prefix > 0).for_each(is_shown_whole);
}

#[test]
fn the_pieces_of_a_head_are_joined() {
    // Of so large a vocabulary the head takes 256 rows at once.
    let (time, vocab) = (60, 4099);
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(vocab, time) };
    let mut trainer = trainer(&config, Recompute::Nothing, usize::MAX);
    assert_eq!(trainer.plan().activations.logits.len, 256 * vocab);
    let (inputs, targets) = (tokens(&config, 300, 1), tokens(&config, 300, 2));
    let mut seen = Recording::of(|at| matches!(at.kind, TensorKind::Logits | TensorKind::Loss));
    trainer.observe_micro_step(&inputs, &targets, &mut seen).unwrap();
    let logits = seen.value(None, TensorKind::Logits).unwrap();
    assert!(logits == trainer.model().logits(&inputs, SEQUENCES, time).unwrap());
    let losses = seen.value(None, TensorKind::Loss).unwrap();
    let gradient = seen.gradient(None, TensorKind::Logits).unwrap();
    assert_eq!((losses.len(), gradient.len()), (300, 300 * vocab));
    for (row, target) in targets.iter().enumerate() {
        let probability = f64::from(gradient[row * vocab + *target as usize]) + 1.0;
        assert!((f64::from(losses[row]) + probability.ln()).abs() < 1e-3, "row {row}");
    }
    trainer.finish_step().unwrap();
    let mean = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / 300.0;
    assert!((trainer.metrics().unwrap().loss - mean).abs() < 1e-5);
}

/// The reference, which remembers what it ran.
#[derive(Default)]
struct Recorder {
    inner: Reference<f32>,
    ran: Vec<Op>,
}

impl Backend for Recorder {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.ran.push(*op);
        self.inner.run(op)
    }
}

#[test]
fn only_what_is_wanted_adds_ops() {
    let config =
        GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, dropout: 0.1, ..GptConfig::new(11, 8) };
    let batch = SEQUENCES * 8;
    let (inputs, targets) = (tokens(&config, batch, 1), tokens(&config, batch, 2));
    let ran = |probe: Option<&mut dyn Probe<f32>>| {
        let model = model(Recorder::default(), &config, 1);
        let mut trainer = Trainer::new(&model, settings(&config, Recompute::Blocks)).unwrap();
        match probe {
            Some(probe) => trainer.observe_micro_step(&inputs, &targets, probe).unwrap(),
            None => trainer.micro_step(&inputs, &targets).unwrap(),
        }
        model.device().inspect(|recorder| recorder.ran.clone())
    };
    let plain = ran(None);
    assert_eq!(ran(Some(&mut when(|_| false, |at, _: &[f32]| panic!("{at} was not wanted")))), plain);
    // What the program leaves behind anyway.
    let mut there = Recording::of(|at| at.kind == TensorKind::Attended || at.kind.is_residual_stream());
    assert_eq!(ran(Some(&mut there)), plain);
    assert_eq!(there.iter().count(), 2 * (1 + 3 * 2));

    // Two more for each layer, and the losses from the op that is there.
    let wanted = |at: &Point| matches!(at.kind, TensorKind::AttentionScores | TensorKind::AttentionWeights);
    let observed = ran(Some(&mut Recording::of(|at: &Point| wanted(at) || at.kind == TensorKind::Loss)));
    let without: Vec<Op> = observed
        .iter()
        .filter(|op| op.kind() != OpKind::AttentionScores)
        .map(|op| match *op {
            Op::CrossEntropy(op) => {
                assert!(op.losses.is_some());
                CrossEntropy { losses: None, ..op }.into()
            }
            op => op,
        })
        .collect();
    assert_eq!(without, plain);
    assert_eq!(observed.len(), plain.len() + 2 * 2);
}
