//! Once a model stands, nothing is allocated: not in a training step, not in decoding, on no thread.
//!
//! A program of its own, without the test harness, whose main thread allocates when it pleases.

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use std::convert::Infallible;
use std::hint::black_box;

use heap::allocations;
use minigpt_core::config::TrainConfig;
use minigpt_core::model::{Extras, Sequence};
use minigpt_core::train::{PieceLoss, Sums, Trainer};
use minigpt_core::{Batch, Checkpoint, Decoder, GptConfig, Groups, Model, Precision, SampleConfig, Windows};
use minigpt_cpu::Cpu;

fn main() {
    neither_training_nor_decoding_allocates();
}

fn neither_training_nor_decoding_allocates() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);

    let (vocab, time) = (65, 40);
    let config = GptConfig {
        layers: 2,
        heads: 4,
        d_model: 48,
        d_ff: 192,
        dropout: 0.1,
        ..GptConfig::new(vocab, time)
    };
    let text: Vec<u32> = (0..500).map(|i| i * i % vocab as u32).collect();
    let windows = Windows::new(&text, time).unwrap();
    let cpu = Cpu::builder().threads(3).build().unwrap();
    let settings = TrainConfig { batch: 9, time, ..TrainConfig::constant(1e-3) };
    let mut trainer = Trainer::new(&Model::new(cpu, config, 1).unwrap(), settings).unwrap();
    assert_eq!(allocations(|| (0..200).for_each(|_| trainer.step(&windows).unwrap())), 0);
    nor_do_a_loss_of_ones_own_and_ranks(trainer.model(), trainer.config().clone());
    let rounded = TrainConfig { precision: Precision::Bf16, ..trainer.config().clone() };
    nor_do_a_loss_of_ones_own_and_ranks(trainer.model(), rounded);
    for (groups, precision) in [
        (Groups::muon(0.9, 0.99, 0.1), Precision::F32),
        (Groups::sgd(0.9, true, 0.1), Precision::Bf16),
        (Groups::adamw(0.9, 0.99, 0.1), Precision::Bf16),
    ] {
        let settings = TrainConfig { groups, precision, average: Some(0.9), ..trainer.config().clone() };
        let mut trainer = Trainer::new(trainer.model(), settings).unwrap();
        assert_eq!(allocations(|| (0..50).for_each(|_| trainer.step(&windows).unwrap())), 0);
    }

    // On a device of its own, where no step has made room for it.
    let mut file = Vec::new();
    trainer.model().write(&mut file, &Extras::default()).unwrap();
    let cpu = Cpu::builder().threads(3).build().unwrap();
    let model = Model::load(cpu, &Checkpoint::open(&file).unwrap()).unwrap();
    let mut decoder = Decoder::new(&model, 16).unwrap();
    // The window slides four times on the way.
    let decoded = allocations(|| text[..200].iter().for_each(|&token| decoder.feed(&[token]).unwrap()));
    assert_eq!(decoded, 0);
    nor_do_sequences_side_by_side();
}

/// They come and go, with prompts and tokens that the device chooses.
fn nor_do_sequences_side_by_side() {
    let config = GptConfig { layers: 2, heads: 4, d_model: 48, d_ff: 192, ..GptConfig::new(65, 40) };
    let model = Model::new(Cpu::builder().threads(3).build().unwrap(), config, 1).unwrap();
    let mut batch = Batch::new(&model, 5, 16).unwrap();
    let settings =
        SampleConfig { top_p: Some(0.9), repetition_penalty: Some(1.1), ..SampleConfig::default() };
    let generated = allocations(|| {
        for round in 0..60 {
            if let Some(sequence) = batch.join() {
                batch.feed(sequence, &[1; 20]).unwrap();
                batch.generate(sequence, settings, &[], 10 + round).unwrap();
            }
            let ended: [Option<Sequence>; 5] = {
                let mut ended = batch.step().unwrap().iter().filter(|chosen| chosen.ended);
                core::array::from_fn(|_| ended.next().map(|chosen| chosen.sequence))
            };
            ended.into_iter().flatten().for_each(|sequence| batch.leave(sequence).unwrap());
        }
    });
    assert_eq!(generated, 0);
    assert!(batch.is_generating());
}

/// Once the first step has made room on the host.
fn nor_do_a_loss_of_ones_own_and_ranks(model: &Model<Cpu<'static>>, settings: TrainConfig) {
    let inputs: Vec<u32> = (0..settings.batch * settings.time).map(|i| (i * i % 65) as u32).collect();
    let mut trainer = Trainer::freezing(model, settings, |tensor| tensor.name.starts_with("h.0.")).unwrap();
    let mut sums = Sums::default();
    let mut step = || {
        trainer
            .micro_step_with(&inputs, |piece| {
                for (d, logit) in piece.d_logits.iter_mut().zip(piece.logits) {
                    *d = *logit;
                }
                Ok::<_, Infallible>(PieceLoss { loss: 1.0, targets: 1.0 })
            })
            .unwrap();
        trainer.read_sums(&mut sums).unwrap();
        trainer.write_sums(&sums).unwrap();
        trainer.finish_step().unwrap();
    };
    assert!(allocations(&mut step) > 0, "the first step makes room");
    assert_eq!(allocations(|| (0..20).for_each(|_| step())), 0);
}
