//! What holds whatever trains: groups of any optimizers, what they keep, the average of the weights, and their checkpoints.

use minigpt_core::checkpoint::{Checkpoint, Limits, Stream, TensorSpec};
use minigpt_core::config::Optimizer;
use minigpt_core::data::{EvalWindows, Windows};
use minigpt_core::model::Extras;
use minigpt_core::train::Sums;
use minigpt_core::{Bias, Error, GptConfig, Group, Groups, Model, Real, Reference, TrainConfig, Trainer};

#[allow(dead_code)]
#[path = "support/small.rs"]
mod small;

use small::Small;

fn config() -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 2,
        kv_heads: Some(1),
        d_model: 8,
        d_ff: 12,
        gated: true,
        dropout: 0.2,
        bias: Bias::ALL,
        tied_embeddings: false,
        ..GptConfig::new(7, 6)
    }
}

/// Each with a name: AdamW alone, others alone, and each with a rate of its own beside others.
fn all() -> [(&'static str, Groups); 6] {
    let (adamw, muon) = (Groups::adamw(0.9, 0.99, 0.1), Groups::muon(0.9, 0.99, 0.1));
    let sgd = Groups::sgd(0.9, true, 0.1);
    [
        ("AdamW", adamw),
        ("SGD", Groups::sgd(0.0, false, 0.1)),
        ("momentum", sgd),
        ("Muon", muon),
        ("AdamW at four rates", Groups { head: Group { rate: 0.5, ..adamw.head }, ..adamw }),
        ("all at once", Groups { head: sgd.head, embeddings: muon.matrices, ..muon }),
    ]
}

fn settings(groups: Groups, average: Option<f64>) -> TrainConfig {
    TrainConfig { batch: 2, time: 6, accumulation: 2, groups, average, ..TrainConfig::constant(1e-2) }
}

fn text() -> Vec<u32> {
    (0..90u32).map(|i| i * i % 7).collect()
}

fn model<R: Real>() -> Model<Reference<R>> {
    Model::new(Reference::new(), config(), 3).unwrap()
}

fn written<R: Real>(trainer: &Trainer<Reference<R>>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

fn steps<R: Real>(trainer: &mut Trainer<Reference<R>>, count: usize) {
    let text = text();
    let windows = Windows::new(&text, 6).unwrap();
    (0..count).for_each(|_| trainer.step(&windows).unwrap());
}

fn resume_is_bit_exact<R: Real>() {
    for (what, groups) in all() {
        for average in [None, Some(0.9)] {
            for freezes in [false, true] {
                let frozen = |name: &str| freezes && name.starts_with("h.0.");
                let trainer = |model: &Model<Reference<R>>| {
                    let settings = settings(groups, average);
                    Trainer::freezing(model, settings, |tensor| frozen(&tensor.name)).unwrap()
                };
                let mut whole = trainer(&model());
                steps(&mut whole, 3);
                let half = written(&whole);
                steps(&mut whole, 3);
                let end = written(&whole);

                let checkpoint = Checkpoint::open_verified(&half).unwrap();
                assert_eq!(checkpoint.training().unwrap().config, settings(groups, average));
                let mut header = Vec::new();
                let stream = Stream::open(&half[..], &mut header, &Limits::DEFAULT).unwrap();
                let resumed = [
                    Trainer::resume(Reference::<R>::new(), &checkpoint).unwrap(),
                    Trainer::resume_from(Reference::<R>::new(), stream).unwrap(),
                ];
                for mut trainer in resumed {
                    assert_eq!(trainer.plan(), whole.plan(), "{what}");
                    assert!(written(&trainer) == half, "{what}: what is read is what was written");
                    steps(&mut trainer, 3);
                    assert!(written(&trainer) == end, "{what}, average {average:?}, frozen {freezes}");
                }
            }
        }
    }
}

#[test]
fn resume_is_bit_exact_in_either_precision() {
    resume_is_bit_exact::<f32>();
    resume_is_bit_exact::<f64>();
}

#[test]
fn every_optimizer_learns() {
    let text = text();
    let windows = EvalWindows::new(&text, 6).unwrap();
    for (what, groups) in all() {
        let rate = if matches!(groups.vectors.optimizer, Optimizer::Sgd { .. }) { 0.2 } else { 3e-3 };
        let config = GptConfig { dropout: 0.0, ..config() };
        let model = Model::new(Reference::<f32>::new(), config, 3).unwrap();
        let settings = TrainConfig { batch: 2, time: 6, groups, ..TrainConfig::constant(rate) };
        let mut trainer = Trainer::new(&model, settings).unwrap();
        let before = trainer.evaluate(&windows).unwrap();
        steps(&mut trainer, 60);
        let after = trainer.evaluate(&windows).unwrap();
        assert!(after < 0.8 * before, "{what}: from {before} to {after}");
    }
}

#[test]
fn what_is_kept_is_what_the_groups_need_and_nothing_of_what_is_frozen() {
    for (what, groups) in all() {
        for average in [None, Some(0.9)] {
            let frozen = |name: &str| name.contains("c_proj") || name == "wpe.weight";
            let trainer =
                Trainer::freezing(&model::<f32>(), settings(groups, average), |tensor| frozen(&tensor.name));
            let trainer = trainer.unwrap();
            let file = written(&trainer);
            let checkpoint = Checkpoint::open_verified(&file).unwrap();
            let kept = checkpoint.states().unwrap();
            for (tensor, states) in trainer.plan().parameters.list().into_iter().zip(kept) {
                let Some(states) = states else {
                    assert!(frozen(&tensor.name), "{what}: {}", tensor.name);
                    continue;
                };
                let names = groups.of(tensor.kind).optimizer.states();
                for (i, state) in states.optimizer.iter().enumerate() {
                    let expected = names.get(i).map(|name| format!("{name}/{}", tensor.name));
                    assert_eq!(state.map(|view| view.name), expected.as_deref());
                }
                let expected = average.map(|_| format!("ema/{}", tensor.name));
                assert_eq!(states.average.map(|view| view.name), expected.as_deref());
            }
            let specs = TensorSpec::training(trainer.plan());
            assert!(checkpoint.tensors().map(|t| t.name).eq(specs.iter().map(|spec| spec.name.as_str())));
        }
    }
}

#[test]
fn memory_is_what_the_plan_says_and_the_largest_batch_is_the_last_that_fits() {
    for (what, groups) in all() {
        for average in [None, Some(0.9)] {
            let settings = |batch| TrainConfig { batch, ..settings(groups, average) };
            let (room, rows) = (200_000, 24);
            let backend = || Small::<f32>::new(room, rows);
            let model = Model::new(backend(), config(), 3).unwrap();
            let weights = model.device().inspect(Small::used);
            let trainer = Trainer::new(&model, settings(2)).unwrap();
            let bytes = trainer.plan().bytes;
            assert_eq!(
                model.device().inspect(Small::used) - weights,
                bytes.total() - bytes.parameters,
                "{what}"
            );

            let budget = 70_000;
            let batch = settings(1).largest_batch(&config(), &backend(), budget).unwrap();
            let trains = |batch: usize| {
                // Tokens lie in the program's own memory.
                let room = budget - settings(batch).token_bytes(&config(), &backend());
                let model = Model::new(Small::<f32>::new(room, rows), config(), 3).unwrap();
                Trainer::new(&model, settings(batch)).is_ok()
            };
            assert!(trains(batch) && !trains(batch + 1), "{what}: {batch}");
        }
    }
}

#[test]
fn a_step_that_is_not_finite_changes_nothing_that_is_kept() {
    for (what, groups) in all() {
        let mut trainer = Trainer::new(&model::<f32>(), settings(groups, Some(0.9))).unwrap();
        steps(&mut trainer, 2);
        let tensors = |trainer: &Trainer<Reference<f32>>| -> Vec<Vec<u8>> {
            let file = written(trainer);
            let checkpoint = Checkpoint::open(&file).unwrap();
            checkpoint.tensors().map(|tensor| tensor.bytes.to_vec()).collect()
        };
        let before = tensors(&trainer);
        let mut sums = Sums::default();
        trainer.micro_step(&[1; 12], &[2; 12]).unwrap();
        trainer.read_sums(&mut sums).unwrap();
        sums.gradients[5] = f32::NAN;
        trainer.write_sums(&sums).unwrap();
        trainer.finish_step().unwrap();
        assert_eq!(trainer.metrics().unwrap().skipped, 1);
        assert!(tensors(&trainer) == before, "{what}");
        // And the next one goes on as if nothing had been.
        steps(&mut trainer, 1);
        let after = trainer.metrics().unwrap();
        assert!(after.loss.is_finite() && after.skipped_in_a_row == 0, "{what}");
        assert!(tensors(&trainer).iter().zip(&before).all(|(after, before)| after != before), "{what}");
    }
}

#[test]
fn gradients_are_clipped_before_any_optimizer_sees_them() {
    // An update by gradient descent is as long as the rate times the clip allows.
    let config = GptConfig { dropout: 0.0, ..config() };
    let (clip, rate) = (1e-3, 0.5);
    let model = Model::new(Reference::<f64>::new(), config, 3).unwrap();
    let values = || -> Vec<f64> {
        model.parameters().flat_map(|(t, _)| model.parameter(&t.name).unwrap().unwrap()).collect()
    };
    let groups = Groups::sgd(0.0, false, 0.0);
    let settings = TrainConfig { batch: 2, time: 6, groups, clip, ..TrainConfig::constant(rate) };
    let mut trainer = Trainer::new(&model, settings).unwrap();
    let before = values();
    steps(&mut trainer, 1);
    assert!(trainer.metrics().unwrap().grad_norm > clip);
    let moved = before.iter().zip(values()).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    // The norm has 1e-6 added before the clip divides by it.
    assert!((moved / (rate * clip) - 1.0).abs() < 1e-4, "{moved}");
}

#[test]
fn the_average_is_that_of_the_weights_after_each_update() {
    let decay = 0.3;
    let frozen = "h.1.mlp.c_fc.weight";
    let model = model::<f64>();
    let settings = settings(Groups::muon(0.9, 0.99, 0.1), Some(decay));
    let mut trainer = Trainer::freezing(&model, settings, |tensor| tensor.name == frozen).unwrap();
    let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    let values = |model: &Model<Reference<f64>>| -> Vec<Vec<f64>> {
        names.iter().map(|name| model.parameter(name).unwrap().unwrap()).collect()
    };
    let averaged =
        |trainer: &Trainer<Reference<f64>>| values(&trainer.averaged().unwrap().expect("there is one"));
    let mut expected = values(&model);
    assert_eq!(averaged(&trainer), expected);
    for update in 1..=6 {
        steps(&mut trainer, 1);
        let keep = decay.min((1.0 + f64::from(update)) / (10.0 + f64::from(update)));
        for (mean, now) in expected.iter_mut().zip(values(&model)) {
            mean.iter_mut().zip(now).for_each(|(mean, now)| *mean = keep * *mean + (1.0 - keep) * now);
        }
        for (mean, expected) in averaged(&trainer).iter().flatten().zip(expected.iter().flatten()) {
            assert!((mean - expected).abs() < 1e-14, "{mean} {expected}");
        }
    }

    // Evaluating it is evaluating a model with these weights, and leaves the training alone.
    let text = text();
    let windows = EvalWindows::new(&text, 6).unwrap();
    let before = written(&trainer);
    let loss = trainer.evaluate_average(&windows).unwrap().unwrap();
    let model = trainer.averaged().unwrap().unwrap();
    let plain = TrainConfig { batch: 2, time: 6, ..TrainConfig::constant(1e-2) };
    assert_eq!(loss, Trainer::new(&model, plain).unwrap().evaluate(&windows).unwrap());
    assert_ne!(loss, trainer.evaluate(&windows).unwrap());
    assert!(written(&trainer) == before);
    assert_eq!(values(&model)[names.iter().position(|name| name == frozen).unwrap()], {
        trainer.model().parameter(frozen).unwrap().unwrap()
    });
}

#[test]
fn without_an_average_there_is_none_and_with_one_training_is_the_same() {
    let mut plain = Trainer::new(&model::<f32>(), settings(all()[3].1, None)).unwrap();
    let mut averaging = Trainer::new(&model::<f32>(), settings(all()[3].1, Some(0.99))).unwrap();
    steps(&mut plain, 3);
    steps(&mut averaging, 3);
    assert_eq!(plain.metrics().unwrap(), averaging.metrics().unwrap());
    let weights = |trainer: &Trainer<Reference<f32>>| trainer.model().parameter("wte.weight").unwrap();
    assert_eq!(weights(&plain), weights(&averaging));
    let text = text();
    assert_eq!(plain.evaluate_average(&EvalWindows::new(&text, 6).unwrap()).unwrap(), None);
    assert!(plain.averaged().unwrap().is_none());
}

#[test]
fn a_run_goes_on_with_another_optimizer_and_keeps_what_that_one_knows() {
    let [(_, adamw), .., (_, muon), _, _] = all();
    let mut before = Trainer::new(&model::<f32>(), settings(adamw, None)).unwrap();
    steps(&mut before, 3);
    let file = written(&before);
    let checkpoint = Checkpoint::open(&file).unwrap();
    let mut header = Vec::new();
    let stream = Stream::open(&file[..], &mut header, &Limits::DEFAULT).unwrap();
    let other = settings(muon, Some(0.9));
    let after = [
        Trainer::resume_with(Reference::<f32>::new(), &checkpoint, other.clone()).unwrap(),
        Trainer::resume_from_with(Reference::<f32>::new(), stream, other).unwrap(),
    ];
    let mut ends = Vec::new();
    for mut trainer in after {
        let now = written(&trainer);
        let now = Checkpoint::open(&now).unwrap();
        for tensor in now.tensors() {
            let (state, parameter) = tensor.name.split_once('/').unwrap_or(("", tensor.name));
            let kept = |name: &str| checkpoint.tensor(name).unwrap().bytes;
            match state {
                // Matrices have no moments any more, and a velocity that is new; the average begins with the weights.
                "muon.momentum" => assert!(tensor.bytes.iter().all(|byte| *byte == 0), "{}", tensor.name),
                "ema" => assert_eq!(tensor.bytes, kept(parameter), "{}", tensor.name),
                _ => assert_eq!(tensor.bytes, kept(tensor.name), "{}", tensor.name),
            }
        }
        steps(&mut trainer, 2);
        ends.push(written(&trainer));
    }
    assert!(ends[0] == ends[1]);
}

#[test]
fn muon_for_vectors_is_refused_with_advice() {
    let groups = Groups { vectors: Groups::muon(0.9, 0.99, 0.0).matrices, ..Groups::adamw(0.9, 0.99, 0.1) };
    let error = Trainer::new(&model::<f32>(), settings(groups, None)).err().unwrap();
    assert!(matches!(error, Error::Setting { field: "groups.vectors.optimizer", .. }), "{error}");
    let message = error.to_string();
    assert!(message.ends_with("must be AdamW or SGD, since Muon orthogonalises matrices"), "{message}");
}
