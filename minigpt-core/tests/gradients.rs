//! The gradient of the whole model against central finite differences in f64, over a set of configs in which every
//! pair of variants meets.

#[path = "support/configs.rs"]
mod configs;

use configs::{covering_set, given, length};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer};

const BATCH: usize = 2;

/// How far the slope of the loss at 0 is from `expected`, relative to `scale`.
fn difference(mut loss: impl FnMut(f64) -> f64, expected: f64, scale: f64) -> f64 {
    let mut least = f64::INFINITY;
    for step in [1e-5, 1e-6] {
        let slope = (loss(step) - loss(-step)) / (2.0 * step);
        least = least.min((slope - expected).abs() / scale);
        // Where a ReLU has its kink between the two sides, it seldom has it between those of a smaller step. A wrong
        // gradient is wrong with both.
        if least < 1e-7 {
            break;
        }
    }
    least
}

struct Case {
    config: GptConfig,
    parameters: Vec<(String, Vec<f64>)>,
    prefix: Vec<f64>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

/// What a gradient must reach for its digits to count: below it, differences of losses have none. The gradient by the keys'
/// bias is nothing at all where every score of a query has the same of it.
const NOTHING: f64 = 1e-4;

impl Case {
    fn new(config: GptConfig, seed: u64) -> Case {
        let model = Model::new(Reference::<f64>::new(), config.clone(), seed).unwrap();
        let mut rng = Rng::new(seed, Stream::User);
        let parameters = model
            .parameters()
            .map(|(tensor, _)| {
                // Norm weights around one, everything else wide enough to matter.
                let is_norm = tensor.name.contains("ln_") || tensor.name.contains("_norm");
                let centre = if is_norm && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
                (tensor.name.clone(), (0..tensor.region.len).map(|_| centre + 0.3 * rng.normal()).collect())
            })
            .collect();
        let tokens = BATCH * length(&config);
        let mut draw = || (0..tokens).map(|_| rng.below(config.vocab_size as u64) as u32).collect::<Vec<_>>();
        let (inputs, mut targets) = (draw(), draw());
        targets[1] = minigpt_core::op::IGNORE;
        let prefix = given(&config, BATCH, seed);
        Case { config, parameters, prefix, inputs, targets }
    }

    /// A trainer that has taken in the batch once. Always fresh, so that dropout masks are the same.
    fn forward_backward(&self) -> Trainer<Reference<f64>> {
        let model = Model::new(Reference::<f64>::new(), self.config.clone(), 0).unwrap();
        for (name, values) in &self.parameters {
            assert!(model.set_parameter(name, values).unwrap());
        }
        let settings = TrainConfig { batch: BATCH, time: length(&self.config), ..TrainConfig::constant(0.0) };
        let mut trainer = Trainer::new(&model, settings).unwrap();
        trainer.set_prefix(&self.prefix).unwrap();
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

    /// What the loss depends on: each parameter, and the prefix if there is one.
    fn variable(&mut self, number: usize) -> &mut Vec<f64> {
        match self.parameters.get_mut(number) {
            Some((_, values)) => values,
            None => &mut self.prefix,
        }
    }

    /// The name and the gradient of each of them.
    fn gradients(&self) -> Vec<(String, Vec<f64>)> {
        let mut trainer = self.forward_backward();
        let of = |(name, values): &(String, Vec<f64>)| {
            let gradient = trainer.gradient(name).unwrap().unwrap();
            assert_eq!(gradient.len(), values.len());
            (name.clone(), gradient)
        };
        let mut gradients: Vec<_> = self.parameters.iter().map(of).collect();
        if !self.prefix.is_empty() {
            gradients.push(("prefix".to_string(), trainer.prefix_gradient().unwrap()));
        }
        gradients
    }

    /// The worst difference over some elements of each parameter, relative to the largest of its gradient.
    fn worst_error(&mut self) -> (f64, String) {
        let mut worst = (0.0, String::new());
        for (p, (name, gradient)) in self.gradients().into_iter().enumerate() {
            let stride = gradient.len().div_ceil(3);
            let scale = gradient.iter().fold(NOTHING, |most, g| most.max(g.abs()));
            for i in (p % stride..gradient.len()).step_by(stride) {
                let begun = self.variable(p)[i];
                let loss = |by| {
                    self.variable(p)[i] = begun + by;
                    self.loss()
                };
                let error = difference(loss, gradient[i], scale);
                self.variable(p)[i] = begun;
                if error >= worst.0 {
                    worst = (error, name.clone());
                }
            }
        }
        worst
    }

    /// The worst difference along a random direction in which one parameter goes, and along one in which all do, relative to
    /// the length of the gradient.
    fn worst_direction(&mut self, rng: &mut Rng) -> (f64, String) {
        let gradients = self.gradients();
        let all = 0..gradients.len();
        let mut worst = (0.0, String::new());
        for (what, moved) in all.clone().map(|p| (gradients[p].0.as_str(), p..p + 1)).chain([("all", all)]) {
            let gradients = &gradients[moved.clone()];
            let norm = |vector: &[Vec<f64>]| vector.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
            let gradient: Vec<Vec<f64>> = gradients.iter().map(|(_, gradient)| gradient.clone()).collect();
            let mut direction = gradient.clone();
            direction.iter_mut().flatten().for_each(|d| *d = rng.normal());
            let length = norm(&direction);
            direction.iter_mut().flatten().for_each(|d| *d /= length);

            let begun: Vec<Vec<f64>> = moved.clone().map(|p| self.variable(p).clone()).collect();
            let mut loss = |by: f64| {
                for ((p, begun), direction) in moved.clone().zip(&begun).zip(&direction) {
                    *self.variable(p) = begun.iter().zip(direction).map(|(x, d)| x + by * d).collect();
                }
                self.loss()
            };
            let along = gradient.iter().flatten().zip(direction.iter().flatten()).map(|(g, d)| g * d).sum();
            let error = difference(&mut loss, along, norm(&gradient).max(NOTHING));
            loss(0.0);
            if error >= worst.0 {
                worst = (error, what.to_string());
            }
        }
        worst
    }
}

#[test]
fn whole_model_gradients_match_finite_differences() {
    for (i, config) in covering_set().into_iter().enumerate() {
        let mut case = Case::new(config, 40 + i as u64);
        let (error, name) = case.worst_error();
        println!("{i}: {error:.1e} at {name}");
        assert!(error < 1e-6, "{error:e} at {name} of {:?}", case.config);
    }
}

#[test]
fn the_slope_of_the_loss_along_any_direction_is_the_gradients() {
    let mut rng = Rng::new(7, Stream::User);
    for (i, config) in covering_set().into_iter().enumerate() {
        let mut case = Case::new(config, 140 + i as u64);
        let (error, what) = case.worst_direction(&mut rng);
        println!("{i}: {error:.1e} along {what}");
        assert!(error < 1e-6, "{error:e} along {what} of {:?}", case.config);
    }
}
