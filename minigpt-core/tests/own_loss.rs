//! A loss of the program's own: it gets the logits and gives back their gradient, and the rest is as with the built-in one.

#[path = "support/configs.rs"]
mod configs;
#[path = "support/small.rs"]
mod small;

use std::convert::Infallible;
use std::fmt;

use configs::{covering_set, given, length};
use minigpt_core::model::Extras;
use minigpt_core::op::IGNORE;
use minigpt_core::train::{LossError, Piece, PieceLoss};
use minigpt_core::{
    Backend, Bias, Checkpoint, Decoder, Error, GptConfig, Model, Recompute, Reference, TrainConfig, Trainer,
};
use small::Small;

fn tokens(seed: usize, len: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i + 3 * i * seed + seed) % vocab) as u32).collect()
}

/// What the built-in loss does, in the same arithmetic.
fn cross_entropy(mut piece: Piece<'_, f64>, targets: &[u32]) -> PieceLoss {
    let mut sums = PieceLoss::default();
    for row in piece.rows() {
        let target = targets[row.number];
        if target == IGNORE {
            continue;
        }
        let largest = row.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.logits.iter().map(|logit| libm::exp(logit - largest)).sum();
        sums.loss += libm::log(sum) - (row.logits[target as usize] - largest);
        sums.targets += 1.0;
        for (d, logit) in row.d_logits.iter_mut().zip(row.logits) {
            *d = libm::exp(logit - largest) / sum;
        }
        row.d_logits[target as usize] -= 1.0;
    }
    sums
}

fn written<B: Backend>(trainer: &Trainer<B>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

/// Three steps of two micro-batches, with the built-in loss or one that does the same; on a backend that takes so many rows.
fn train(config: &GptConfig, recompute: Recompute, batch: usize, rows: usize, own: bool) -> (Vec<u8>, f64) {
    let model = Model::new(Small::<f64>::new(usize::MAX, rows), config.clone(), 5).unwrap();
    let (time, vocab) = (length(config), config.vocab_size);
    let settings = TrainConfig { batch, time, recompute, clip: 0.5, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&model, settings).unwrap();
    trainer.set_prefix(&given(config, batch, 6)).unwrap();
    for step in 0..3 {
        for half in 0..2 {
            let inputs = tokens(2 * step + half, batch * time, vocab);
            let mut targets = tokens(2 * step + half + 1, batch * time, vocab);
            targets[step] = IGNORE;
            if own {
                let loss = |piece: Piece<'_, f64>| Ok::<_, Infallible>(cross_entropy(piece, &targets));
                trainer.micro_step_with(&inputs, loss).unwrap();
            } else {
                trainer.micro_step(&inputs, &targets).unwrap();
            }
        }
        trainer.finish_step().unwrap();
    }
    let metrics = trainer.metrics().unwrap();
    assert_eq!(metrics.tokens as usize, 6 * (batch * time - 1));
    assert!(metrics.skipped == 0 && metrics.grad_norm > 0.0);
    (written(&trainer), metrics.loss)
}

#[test]
fn a_cross_entropy_of_ones_own_trains_as_the_built_in_bit_for_bit() {
    for config in covering_set() {
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
            for rows in [usize::MAX, 2 * config.context] {
                let [built_in, own] = [false, true].map(|own| train(&config, recompute, 5, rows, own));
                assert!(built_in == own, "{recompute:?}, {rows} rows at once, {config:?}");
            }
        }
    }
}

#[test]
fn a_head_that_goes_piece_by_piece_shows_each_row_once_and_in_order() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(5000, 4) };
    // 300 rows in pieces of 256 and 44; and 38, 37 sequences, which is less than a piece.
    for (rows, pieces) in [(usize::MAX, vec![256, 44]), (160, vec![152, 148])] {
        let [built_in, own] = [false, true].map(|own| train(&config, Recompute::Nothing, 75, rows, own));
        assert!(built_in == own);

        let model = Model::new(Small::<f64>::new(usize::MAX, rows), config.clone(), 5).unwrap();
        let settings = TrainConfig { batch: 75, time: 4, ..TrainConfig::constant(1e-2) };
        let mut trainer = Trainer::new(&model, settings).unwrap();
        let inputs = tokens(1, 300, 5000);
        let (mut seen, mut found) = (Vec::new(), Vec::new());
        trainer
            .micro_step_with(&inputs, |mut piece| {
                assert_eq!((piece.time, piece.vocab, piece.first), (4, 5000, seen.len()));
                assert!(piece.d_logits.iter().all(|&d| d == 0.0));
                found.push(piece.logits.len() / 5000);
                for row in piece.rows() {
                    assert_eq!(row.number, 4 * row.sequence + row.position);
                    assert!(row.logits.len() == 5000 && row.d_logits.len() == 5000);
                    // What is left behind must not be there in the next piece.
                    row.d_logits.fill(3.0);
                    seen.push((row.sequence, row.position, row.logits[17]));
                }
                Ok::<_, Infallible>(PieceLoss::default())
            })
            .unwrap();
        assert_eq!(found, pieces);
        assert_eq!(seen.len(), 300);
        // They are the logits of these very rows; and the trainer's device is free while the loss looks at them.
        for (number, &(sequence, position, logit)) in seen.iter().enumerate() {
            assert_eq!((sequence, position), (number / 4, number % 4));
            if sequence % 10 == 0 {
                let logits = model.logits(&inputs[4 * sequence..][..4], 1, 4).unwrap();
                assert!((logits[position * 5000 + 17] - logit).abs() < 1e-12);
            }
        }
    }
}

/// Smoothed targets, a penalty on the logarithm of the softmax's denominator, and a weight for each row.
fn smoothed(mut piece: Piece<'_, f64>, targets: &[u32]) -> PieceLoss {
    let (epsilon, penalty, vocab) = (0.2, 0.05, piece.vocab as f64);
    let mut sums = PieceLoss::default();
    for row in piece.rows() {
        let weight = [1.0, 0.25, 0.0][row.position % 3];
        let lse = row.logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        for (v, (&logit, d)) in row.logits.iter().zip(row.d_logits).enumerate() {
            let p = (logit - lse).exp();
            let wanted = epsilon / vocab + if v as u32 == targets[row.number] { 1.0 - epsilon } else { 0.0 };
            sums.loss -= weight * wanted * (logit - lse);
            *d = weight * (p - wanted + 2.0 * penalty * lse * p);
        }
        sums.loss += weight * penalty * lse * lse;
        sums.targets += weight;
    }
    sums
}

#[test]
fn the_gradient_of_another_loss_matches_finite_differences() {
    for (tied_embeddings, rows) in [(true, usize::MAX), (false, 5)] {
        let config = GptConfig {
            layers: 2,
            heads: 2,
            d_model: 8,
            d_ff: 12,
            bias: Bias::ALL,
            tied_embeddings,
            ..GptConfig::new(7, 5)
        };
        let (inputs, targets) = (tokens(1, 15, 7), tokens(2, 15, 7));
        // Always fresh; with one parameter changed.
        let run = |changed: Option<(&str, usize, f64)>| {
            let model = Model::new(Small::<f64>::new(usize::MAX, rows), config.clone(), 3).unwrap();
            let names: Vec<String> = model.parameters().map(|(t, _)| t.name.clone()).collect();
            for name in &names {
                let mut values = model.parameter(name).unwrap().unwrap();
                values.iter_mut().enumerate().for_each(|(i, x)| *x += 0.2 * (1.7 * i as f64).sin());
                if let Some((_, place, by)) = changed.filter(|(other, ..)| other == name) {
                    values[place] += by;
                }
                model.set_parameter(name, &values).unwrap();
            }
            let settings = TrainConfig { batch: 3, time: 5, ..TrainConfig::constant(0.0) };
            let mut trainer = Trainer::new(&model, settings).unwrap();
            let loss = |piece: Piece<'_, f64>| Ok::<_, Infallible>(smoothed(piece, &targets));
            trainer.micro_step_with(&inputs, loss).unwrap();
            (trainer, names)
        };
        let loss = |changed| run(Some(changed)).0.loss().unwrap().unwrap();
        let (mut trainer, names) = run(None);
        let mut squared = 0.0;
        for name in &names {
            let gradient = trainer.gradient(name).unwrap().unwrap();
            squared += gradient.iter().map(|g| g * g).sum::<f64>();
            let scale = gradient.iter().fold(1e-4, |max: f64, g| max.max(g.abs()));
            for place in (0..gradient.len()).step_by(gradient.len().div_ceil(4)) {
                let step = 1e-5;
                let finite = (loss((name, place, step)) - loss((name, place, -step))) / (2.0 * step);
                let off = (finite - gradient[place]).abs() / scale;
                assert!(off < 1e-6, "{name}[{place}]: {} where {finite} is found", gradient[place]);
            }
        }
        // The weights of a sequence are 1, 1/4, 0, 1, 1/4, and what is told afterwards is of the weighted mean too.
        let before = trainer.loss().unwrap().unwrap();
        trainer.finish_step().unwrap();
        let metrics = trainer.metrics().unwrap();
        assert_eq!((metrics.loss, metrics.tokens), (before, 7));
        assert!((metrics.grad_norm - squared.sqrt()).abs() < 1e-12);
    }
}

#[derive(Debug, PartialEq)]
struct TooLarge(u32);

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a reward of {}", self.0)
    }
}

impl std::error::Error for TooLarge {}

fn small_trainer() -> Trainer<Small<f64>> {
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, dropout: 0.2, ..GptConfig::new(5, 4) };
    let settings = TrainConfig { batch: 3, time: 4, ..TrainConfig::constant(0.1) };
    Trainer::new(&Model::new(Small::new(usize::MAX, 4), config, 1).unwrap(), settings).unwrap()
}

#[test]
fn a_loss_that_fails_drops_the_step_and_nothing_else() {
    let (inputs, targets) = (tokens(1, 12, 5), tokens(2, 12, 5));
    // In the first slice, and in the last.
    for fails in [0, 8] {
        let mut run = small_trainer();
        run.micro_step(&inputs, &targets).unwrap();
        run.finish_step().unwrap();

        run.micro_step(&inputs, &targets).unwrap();
        let error = run
            .micro_step_with(&inputs, |piece| {
                if piece.first == fails { Err(TooLarge(7)) } else { Ok(cross_entropy(piece, &targets)) }
            })
            .unwrap_err();
        assert_eq!(error, LossError::Loss(TooLarge(7)));
        assert_eq!(error.to_string(), "the loss failed, and the step is dropped: a reward of 7");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "a reward of 7");
        assert!(matches!(run.finish_step(), Err(Error::EmptyStep)));
        assert_eq!(run.loss().unwrap(), None);

        // A run that goes on from what there is now does the same.
        let file = written(&run);
        let mut resumed =
            Trainer::resume(Reference::<f64>::new(), &Checkpoint::open_verified(&file).unwrap()).unwrap();
        for _ in 0..2 {
            run.micro_step(&inputs, &targets).unwrap();
            run.finish_step().unwrap();
            resumed.micro_step(&inputs, &targets).unwrap();
            resumed.finish_step().unwrap();
        }
        let (found, expected) = (run.metrics().unwrap(), resumed.metrics().unwrap());
        assert!((found.loss - expected.loss).abs() < 1e-12 && found.step == 3 && found.tokens == 36);
        assert_eq!(expected.tokens, 36);
    }
}

#[test]
fn a_loss_that_panics_drops_the_step() {
    let (inputs, targets) = (tokens(1, 12, 5), tokens(2, 12, 5));
    let mut run = small_trainer();
    run.micro_step(&inputs, &targets).unwrap();
    let panics = std::panic::AssertUnwindSafe(|| {
        run.micro_step_with(&inputs, |_| -> Result<PieceLoss, Infallible> { panic!("on purpose") })
    });
    assert!(std::panic::catch_unwind(panics).is_err());
    assert!(matches!(run.finish_step(), Err(Error::EmptyStep)));
    run.micro_step(&inputs, &targets).unwrap();
    run.finish_step().unwrap();
    assert_eq!(run.metrics().unwrap().tokens, 12);
}

#[test]
fn a_batch_that_does_not_fit_leaves_the_step_as_it_was() {
    let (mut inputs, targets) = (tokens(1, 12, 5), tokens(2, 12, 5));
    let mut run = small_trainer();
    run.micro_step(&inputs, &targets).unwrap();
    let never = |_: Piece<'_, f64>| -> Result<PieceLoss, Infallible> { panic!("nothing to see") };
    let error = run.micro_step_with(&inputs[1..], never).unwrap_err();
    assert_eq!(error, LossError::Step(Error::BatchLength { found: 11, expected: 12 }));
    inputs[3] = 5;
    let error = run.micro_step_with(&inputs, never).unwrap_err();
    assert_eq!(error, LossError::Step(Error::Token { token: 5, index: 3, vocab: 5 }));
    run.finish_step().unwrap();
    assert_eq!(run.metrics().unwrap().tokens, 12);
}

#[test]
fn a_loss_without_targets_or_without_a_number_is_a_step_that_is_skipped() {
    let inputs = tokens(1, 12, 5);
    for (loss, targets) in [(0.0, 0.0), (f64::NAN, 4.0), (1.0, -1.0), (1.0, f64::NAN)] {
        let mut run = small_trainer();
        let before = run.model().parameter("wte.weight").unwrap();
        run.micro_step_with(&inputs, |piece| {
            piece.d_logits.fill(1.0);
            Ok::<_, Infallible>(PieceLoss { loss, targets })
        })
        .unwrap();
        run.finish_step().unwrap();
        assert_eq!(run.metrics().unwrap().skipped, 1, "{loss} {targets}");
        assert_eq!(run.model().parameter("wte.weight").unwrap(), before);
    }
}

#[test]
fn the_loss_may_run_another_model_on_the_same_device() {
    // Distillation: the student's logits shall be the teacher's.
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(5, 4) };
    let teacher = Model::new(Reference::<f64>::new(), config.clone(), 7).unwrap();
    let student = Model::new(teacher.device(), config, 8).unwrap();
    let settings = TrainConfig { batch: 2, time: 4, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&student, settings).unwrap();
    let inputs = tokens(1, 8, 5);
    let mut losses = Vec::new();
    for _ in 0..30 {
        trainer
            .micro_step_with(&inputs, |mut piece| {
                let wanted = teacher.logits(&inputs, 2, 4)?;
                let mut sums = PieceLoss::default();
                for row in piece.rows() {
                    let wanted = &wanted[row.number * 5..][..5];
                    for ((d, logit), wanted) in row.d_logits.iter_mut().zip(row.logits).zip(wanted) {
                        *d = logit - wanted;
                        sums.loss += 0.5 * *d * *d;
                    }
                    sums.targets += 1.0;
                }
                Ok::<_, Error<minigpt_core::ReferenceError>>(sums)
            })
            .unwrap();
        trainer.finish_step().unwrap();
        losses.push(trainer.metrics().unwrap().loss);
    }
    assert!(losses[29] < 0.1 * losses[0], "{losses:?}");
    let mut decoder = Decoder::new(&student, 4).unwrap();
    decoder.feed(&[1, 2]).unwrap();
}
