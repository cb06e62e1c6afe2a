//! What a step has summed up is open between its micro-batches and its update: ranks add up theirs and train as one.

#[path = "support/small.rs"]
mod small;

use minigpt_core::model::Extras;
use minigpt_core::op::IGNORE;
use minigpt_core::train::Sums;
use minigpt_core::{Bias, Error, GptConfig, InvalidOp, Model, Reference, TrainConfig, Trainer};
use small::Small;

const TIME: usize = 4;

fn config() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 6, d_ff: 9, bias: Bias::ALL, ..GptConfig::new(11, TIME) }
}

/// One that clips, so that the norm must be that of all ranks together.
fn trainer(batch: usize) -> Trainer<Reference<f64>> {
    let settings = TrainConfig { batch, time: TIME, clip: 0.3, ..TrainConfig::constant(1e-2) };
    Trainer::new(&Model::new(Reference::new(), config(), 1).unwrap(), settings).unwrap()
}

/// Inputs and targets of so many sequences, some of which do not count.
fn batch(step: usize, sequences: usize) -> (Vec<u32>, Vec<u32>) {
    let tokens: Vec<u32> = (0..=sequences * TIME).map(|i| ((i * i + 7 * step) % 11) as u32).collect();
    let mut targets = tokens[1..].to_vec();
    targets[3 * step % 7] = IGNORE;
    (tokens[..sequences * TIME].to_vec(), targets)
}

fn written(trainer: &Trainer<Reference<f64>>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

fn parameters(trainer: &Trainer<Reference<f64>>) -> Vec<f64> {
    let model = trainer.model();
    model.parameters().flat_map(|(tensor, _)| model.parameter(&tensor.name).unwrap().unwrap()).collect()
}

#[test]
fn two_ranks_with_half_the_batch_each_train_as_one() {
    let (mut one, mut ranks) = (trainer(6), [trainer(3), trainer(3)]);
    let (mut total, mut sums) = (Sums::default(), Sums::default());
    for step in 0..5 {
        let (inputs, targets) = batch(step, 6);
        one.micro_step(&inputs, &targets).unwrap();
        one.finish_step().unwrap();

        let half = 3 * TIME;
        for (rank, trainer) in ranks.iter_mut().enumerate() {
            let rows = rank * half..(rank + 1) * half;
            trainer.micro_step(&inputs[rows.clone()], &targets[rows]).unwrap();
        }
        ranks[0].read_sums(&mut total).unwrap();
        ranks[1].read_sums(&mut sums).unwrap();
        // Ranks may have different numbers of targets: a mean of means would be another gradient.
        assert_eq!(total.targets + sums.targets, 23.0);
        total.add(&sums).unwrap();
        for rank in &mut ranks {
            rank.write_sums(&total).unwrap();
            rank.finish_step().unwrap();
        }
        let [expected, found] = [&mut one, &mut ranks[0]].map(|trainer| trainer.metrics().unwrap());
        assert!((expected.loss - found.loss).abs() < 1e-10 && expected.tokens == found.tokens);
        assert!((expected.grad_norm - found.grad_norm).abs() < 1e-10 && found.grad_norm > 0.3);
    }
    for (a, b) in parameters(&one).iter().zip(parameters(&ranks[0])) {
        assert!((a - b).abs() < 1e-10, "{a} {b}");
    }
    assert!(written(&ranks[0]) == written(&ranks[1]), "the ranks differ");
}

#[test]
fn sums_that_are_written_back_change_no_bit() {
    let (mut quiet, mut watched) = (trainer(2), trainer(2));
    let mut sums = Sums::default();
    for step in 0..3 {
        let (inputs, targets) = batch(step, 2);
        for trainer in [&mut quiet, &mut watched] {
            trainer.micro_step(&inputs, &targets).unwrap();
        }
        watched.read_sums(&mut sums).unwrap();
        watched.write_sums(&sums).unwrap();
        assert!(watched.loss().unwrap() == Some(sums.loss / sums.targets));
        for trainer in [&mut quiet, &mut watched] {
            trainer.micro_step(&inputs, &targets).unwrap();
            trainer.finish_step().unwrap();
        }
    }
    assert!(written(&quiet) == written(&watched));
}

#[test]
fn the_gradient_of_a_tensor_is_its_part_of_the_sums_by_the_number_of_targets() {
    let mut trainer = trainer(2);
    let (inputs, targets) = batch(0, 2);
    let mut sums = Sums::default();
    trainer.micro_step(&inputs, &targets).unwrap();
    trainer.micro_step(&inputs, &targets).unwrap();
    trainer.read_sums(&mut sums).unwrap();
    assert_eq!(sums.targets, 14.0);
    let tensors: Vec<_> = trainer.plan().parameters.list().into_iter().cloned().collect();
    let check = |trainer: &mut Trainer<Reference<f64>>| {
        for tensor in &tensors {
            let part = &sums.gradients[tensor.region.offset / 8..][..tensor.region.len];
            let mean = trainer.gradient(&tensor.name).unwrap().unwrap();
            assert!(part.iter().zip(&mean).all(|(sum, mean)| sum / 14.0 == *mean), "{}", tensor.name);
            assert!(part.iter().any(|&sum| sum != 0.0), "{}", tensor.name);
        }
    };
    check(&mut trainer);
    // And it is that of the last step until the next one begins.
    trainer.finish_step().unwrap();
    check(&mut trainer);
    trainer.read_sums(&mut sums).unwrap();
    assert_eq!((sums.loss, sums.targets), (0.0, 0.0));
    assert!(sums.gradients.iter().all(|&sum| sum == 0.0), "the last step's are no part of the next");
    assert_eq!(trainer.loss().unwrap(), None);
}

#[test]
fn a_rank_without_a_batch_takes_part() {
    let (mut one, mut ranks) = (trainer(2), [trainer(2), trainer(2)]);
    let (inputs, targets) = batch(1, 2);
    one.micro_step(&inputs, &targets).unwrap();
    ranks[0].micro_step(&inputs, &targets).unwrap();
    let (mut total, mut none) = (Sums::default(), Sums::default());
    ranks[0].read_sums(&mut total).unwrap();
    ranks[1].read_sums(&mut none).unwrap();
    total.add(&none).unwrap();
    ranks[1].write_sums(&total).unwrap();
    assert_eq!(ranks[1].loss().unwrap(), one.loss().unwrap());
    for trainer in [&mut one, &mut ranks[1]] {
        trainer.finish_step().unwrap();
    }
    assert_eq!(parameters(&one), parameters(&ranks[1]));
}

#[test]
fn sums_of_another_model_are_refused_and_the_step_goes_on() {
    let mut trainer = trainer(2);
    let (inputs, targets) = batch(1, 2);
    trainer.micro_step(&inputs, &targets).unwrap();
    let mut sums = Sums::default();
    trainer.read_sums(&mut sums).unwrap();
    let other = Sums { gradients: sums.gradients[1..].to_vec(), ..sums.clone() };
    let Err(InvalidOp::Length { operand: "gradients", expected, found }) = sums.add(&other) else {
        panic!("it was added")
    };
    assert_eq!((expected, found), (sums.gradients.len(), other.gradients.len()));
    let error = trainer.write_sums(&other).unwrap_err();
    assert!(matches!(error, Error::Backend(_)), "{error}");
    assert_eq!(trainer.loss().unwrap(), Some(sums.loss / sums.targets));
    trainer.finish_step().unwrap();
}

#[test]
fn many_gradients_go_in_pieces() {
    // More than a mebibyte of them.
    let config = GptConfig { layers: 1, heads: 1, d_model: 64, d_ff: 2, ..GptConfig::new(3000, 2) };
    let model = Model::new(Small::<f64>::new(usize::MAX, usize::MAX), config, 1).unwrap();
    let settings = TrainConfig { batch: 1, time: 2, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&model, settings).unwrap();
    trainer.micro_step(&[1, 2999], &[2999, 7]).unwrap();
    let mut sums = Sums::default();
    trainer.read_sums(&mut sums).unwrap();
    assert!(sums.gradients.len() > 3000 * 64);
    for gradient in &mut sums.gradients {
        *gradient *= 2.0;
    }
    trainer.write_sums(&sums).unwrap();
    let mut twice = Sums::default();
    trainer.read_sums(&mut twice).unwrap();
    assert!(twice == sums && sums.gradients.iter().any(|&gradient| gradient != 0.0));
}
