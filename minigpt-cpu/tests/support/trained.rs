//! A training of a small model on any text.

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, GptConfig, Model, TrainConfig, Trainer, Windows};

pub(crate) const VOCAB: usize = 65;
pub(crate) const TIME: usize = 33;

pub(crate) fn text() -> Vec<u32> {
    let mut rng = Rng::new(1, Stream::User);
    (0..2000).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

/// After so many steps.
pub(crate) fn trained_on<B: Backend>(
    backend: B,
    config: &GptConfig,
    settings: TrainConfig,
    steps: usize,
) -> Trainer<B> {
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    let model = Model::new(backend, config.clone(), 1).unwrap();
    let mut trainer = Trainer::new(&model, settings).unwrap();
    for _ in 0..steps {
        trainer.step(&windows).unwrap();
    }
    trainer
}
