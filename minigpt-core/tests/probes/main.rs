//! Probes see what there is, once and whole, and change nothing.

#[path = "../support/configs.rs"]
mod configs;
#[macro_use]
#[path = "../support/forwarding.rs"]
mod forwarding;
#[path = "../support/small.rs"]
mod small;

mod bits;
mod gradients;
mod refusals;
mod values;

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, GptConfig, Model, Real};

const BATCH: usize = 2;

/// A model whose weights are wide enough to matter.
fn model<B: Backend>(backend: B, config: &GptConfig, seed: u64) -> Model<B> {
    let model = Model::new(backend, config.clone(), seed).unwrap();
    let mut rng = Rng::new(seed, Stream::User);
    let parameters: Vec<_> = model.parameters().map(|(tensor, _)| tensor.clone()).collect();
    for tensor in parameters {
        let is_norm = tensor.name.contains("ln_") || tensor.name.contains("_norm");
        let centre = if is_norm && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
        let values: Vec<_> =
            (0..tensor.region.len).map(|_| B::Elem::from_f64(centre + 0.3 * rng.normal())).collect();
        assert!(model.set_parameter(&tensor.name, &values).unwrap());
    }
    model
}

fn tokens(config: &GptConfig, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::Data);
    (0..count).map(|_| rng.below(config.vocab_size as u64) as u32).collect()
}
