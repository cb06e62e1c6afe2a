//! The gradient of the whole model against central finite differences in f64, over a set of configs in which every
//! pair of variants meets.

#[path = "support/configs.rs"]
mod configs;

use configs::{config, covering_set};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer};

const BATCH: usize = 2;

struct Case {
    config: GptConfig,
    parameters: Vec<(String, Vec<f64>)>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Case {
    fn new(config: GptConfig, seed: u64) -> Case {
        let model = Model::new(Reference::<f64>::new(), config.clone(), seed).unwrap();
        let mut rng = Rng::new(seed, Stream::User);
        let parameters = model
            .parameters()
            .map(|(tensor, _)| {
                // Norm weights around one, everything else wide enough to matter.
                let centre =
                    if tensor.name.contains("ln_") && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
                (tensor.name.clone(), (0..tensor.region.len).map(|_| centre + 0.3 * rng.normal()).collect())
            })
            .collect();
        let tokens = BATCH * config.context;
        let mut draw = || (0..tokens).map(|_| rng.below(config.vocab_size as u64) as u32).collect::<Vec<_>>();
        let (inputs, mut targets) = (draw(), draw());
        targets[1] = minigpt_core::op::IGNORE;
        Case { config: config.clone(), parameters, inputs, targets }
    }

    /// A trainer that has taken in the batch once. Always fresh, so that dropout masks are the same.
    fn forward_backward(&self) -> Trainer<Reference<f64>> {
        let model = Model::new(Reference::<f64>::new(), self.config.clone(), 0).unwrap();
        for (name, values) in &self.parameters {
            assert!(model.set_parameter(name, values).unwrap());
        }
        let settings = TrainConfig { batch: BATCH, time: self.config.context, ..TrainConfig::constant(0.0) };
        let mut trainer = Trainer::new(&model, settings).unwrap();
        trainer.micro_step(&self.inputs, &self.targets).unwrap();
        trainer
    }

    /// The mean loss, whose gradient the trainer tells.
    fn loss(&self) -> f64 {
        let mut trainer = self.forward_backward();
        let before = trainer.loss().unwrap();
        trainer.finish_step().unwrap();
        let after = trainer.metrics().unwrap().loss;
        assert_eq!(before, Some(after));
        after
    }

    /// The worst difference over some elements of each parameter, relative to the largest of them.
    fn worst_error(&mut self) -> (f64, String) {
        const STEP: f64 = 1e-5;
        let mut trainer = self.forward_backward();
        let mut worst = (0.0, String::new());
        for p in 0..self.parameters.len() {
            let name = self.parameters[p].0.clone();
            let gradient = trainer.gradient(&name).unwrap().unwrap();
            assert_eq!(gradient.len(), self.parameters[p].1.len());
            let stride = gradient.len().div_ceil(5);
            let (mut difference, mut scale) = (0.0f64, 1e-5f64);
            for i in (p % stride..gradient.len()).step_by(stride) {
                let begun = self.parameters[p].1[i];
                self.parameters[p].1[i] = begun + STEP;
                let above = self.loss();
                self.parameters[p].1[i] = begun - STEP;
                let below = self.loss();
                self.parameters[p].1[i] = begun;
                let finite = (above - below) / (2.0 * STEP);
                difference = difference.max((finite - gradient[i]).abs());
                scale = scale.max(gradient[i].abs());
            }
            if difference / scale >= worst.0 {
                worst = (difference / scale, name);
            }
        }
        worst
    }
}

#[test]
fn whole_model_gradients_match_finite_differences() {
    let set = covering_set();
    assert!(set.len() >= 12, "four positions times three norms need twelve configs");
    for (i, choice) in set.iter().enumerate() {
        let mut case = Case::new(config(choice), 40 + i as u64);
        let (error, name) = case.worst_error();
        println!("{choice:?}: {error:.1e} at {name}");
        assert!(error < 1e-6, "{error:e} at {name} of {:?}", case.config);
    }
}
