//! Gated feed-forward layers, and the activations that they have: gradients, decoding, recomputation, frozen parts and probes.

use minigpt_core::op::Op;
use minigpt_core::probe::{Recording, TensorKind};
use minigpt_core::reference::activation::activate;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Activation, Bias, Decoder, GptConfig, Model, NormPlace, Real, Recompute, Reference, TrainConfig, Trainer,
};

const ALL: [Activation; 5] =
    [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::ReluSquared, Activation::Silu];

const VOCAB: usize = 7;
const TIME: usize = 5;

fn config(activation: Activation, gated: bool) -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 2,
        d_model: 6,
        d_ff: 5,
        activation,
        gated,
        bias: Bias::ALL,
        ..GptConfig::new(VOCAB, TIME)
    }
}

/// Each activation with a gate and the new ones without, and of gates what else stands around them.
fn configs() -> Vec<GptConfig> {
    let mut all: Vec<GptConfig> = ALL.map(|activation| config(activation, true)).into();
    all.extend([Activation::ReluSquared, Activation::Silu].map(|activation| config(activation, false)));
    let silu = config(Activation::Silu, true);
    all.push(GptConfig { norm_place: NormPlace::Post, bias: Bias::NONE, dropout: 0.2, ..silu.clone() });
    all.push(GptConfig { norm_place: NormPlace::None, residual: false, tied_embeddings: false, ..silu });
    all
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

/// A model of which every part matters.
fn model<R: Real>(config: &GptConfig) -> Model<Reference<R>> {
    let model = Model::new(Reference::<R>::new(), config.clone(), 1).unwrap();
    let mut rng = Rng::new(2, Stream::User);
    for (tensor, _) in model.parameters() {
        let centre = if tensor.name.contains("ln_") && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
        let values: Vec<R> =
            (0..tensor.region.len).map(|_| R::from_f64(centre + 0.4 * rng.normal())).collect();
        model.set_parameter(&tensor.name, &values).unwrap();
    }
    model
}

fn settings(recompute: Recompute) -> TrainConfig {
    TrainConfig { batch: 2, time: TIME, recompute, ..TrainConfig::constant(1e-2) }
}

/// A trainer that has taken in a batch, with one weight nudged.
fn forward_backward(config: &GptConfig, nudge: Option<(&str, usize, f64)>) -> Trainer<Reference<f64>> {
    let model = model::<f64>(config);
    if let Some((name, place, by)) = nudge {
        let mut values = model.parameter(name).unwrap().unwrap();
        values[place] += by;
        model.set_parameter(name, &values).unwrap();
    }
    let mut trainer = Trainer::new(&model, settings(Recompute::Nothing)).unwrap();
    trainer.micro_step(&tokens(3, 2 * TIME), &tokens(4, 2 * TIME)).unwrap();
    trainer
}

#[test]
fn whole_model_gradients_match_finite_differences() {
    const STEP: f64 = 1e-5;
    for config in configs() {
        let mut trainer = forward_backward(&config, None);
        let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
        for (which, name) in names.iter().enumerate() {
            let gradient = trainer.gradient(name).unwrap().unwrap();
            let stride = gradient.len().div_ceil(7);
            let (mut difference, mut scale) = (0.0f64, 1e-5f64);
            for place in (which % stride..gradient.len()).step_by(stride) {
                let loss = |by| forward_backward(&config, Some((name, place, by))).loss().unwrap().unwrap();
                let finite = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
                difference = difference.max((finite - gradient[place]).abs());
                scale = scale.max(gradient[place].abs());
            }
            assert!(difference / scale < 1e-6, "{:e} at {name} of {config:?}", difference / scale);
        }
    }
}

#[test]
fn a_decoder_gives_the_logits_of_a_full_pass() {
    for config in configs() {
        let model = model::<f64>(&config);
        let text = tokens(5, TIME);
        let full = model.logits(&text, 1, TIME).unwrap();
        let mut decoder = Decoder::new(&model, 2).unwrap();
        for (fed, last) in [(0..3, 2), (3..4, 3), (4..5, 4)] {
            decoder.feed(&text[fed]).unwrap();
            for (found, expected) in decoder.logits().iter().zip(&full[last * VOCAB..]) {
                assert!((found - expected).abs() < 1e-12, "{config:?}");
            }
        }
    }
}

fn gradients<R: Real>(config: &GptConfig, recompute: Recompute) -> Vec<Vec<R>> {
    let mut trainer = Trainer::new(&model::<R>(config), settings(recompute)).unwrap();
    trainer.micro_step(&tokens(3, 2 * TIME), &tokens(4, 2 * TIME)).unwrap();
    let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    names.iter().map(|name| trainer.gradient(name).unwrap().unwrap()).collect()
}

#[test]
fn what_is_recomputed_changes_no_bit() {
    for config in configs() {
        let kept = gradients::<f32>(&config, Recompute::Nothing);
        for recompute in [Recompute::Cheap, Recompute::Blocks] {
            assert!(gradients::<f32>(&config, recompute) == kept, "{recompute:?} of {config:?}");
        }
    }
}

#[test]
fn with_parts_frozen_the_others_have_the_gradient_that_they_had() {
    let config = config(Activation::Silu, true);
    let mut whole = forward_backward(&config, None);
    let names: Vec<String> = whole.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        for trained in ["mlp.c_fc", "mlp.c_proj", "h.1.mlp.c_proj", "h.1.mlp.c_fc.bias", "h.0.attn"] {
            let model = model::<f64>(&config);
            let mut trainer =
                Trainer::freezing(&model, settings(recompute), |tensor| !tensor.name.contains(trained))
                    .unwrap();
            trainer.micro_step(&tokens(3, 2 * TIME), &tokens(4, 2 * TIME)).unwrap();
            for name in names.iter().filter(|name| name.contains(trained)) {
                let (found, expected) = (trainer.gradient(name).unwrap(), whole.gradient(name).unwrap());
                assert!(found.is_some() && found == expected, "{name}, {recompute:?}");
            }
        }
    }
}

#[test]
fn nothing_below_a_gate_that_is_not_trained_is_computed() {
    let config = config(Activation::Silu, true);
    let last = |name: &str| name.starts_with("h.1.mlp.c_proj");
    let trainer =
        Trainer::freezing(&model::<f64>(&config), settings(Recompute::Cheap), |tensor| !last(&tensor.name))
            .unwrap();
    let program = trainer.plan().program().unwrap();
    assert!(!program.steps().iter().any(|step| matches!(step.op, Op::GateBackward(_))));
}

/// What probes see of a layer: what `up` gives, and what the gate makes of it.
#[test]
fn probes_see_both_sides_of_a_gate() {
    let config = config(Activation::Silu, true);
    let width = config.d_ff;
    let model = model::<f64>(&config);
    let (inputs, targets) = (tokens(3, 2 * TIME), tokens(4, 2 * TIME));
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        let mut trainer = Trainer::new(&model, settings(recompute)).unwrap();
        let kinds = [TensorKind::PreActivation, TensorKind::Activation];
        let mut seen = Recording::of(|at| kinds.contains(&at.kind));
        trainer.observe_micro_step(&inputs, &targets, &mut seen).unwrap();
        for layer in 0..config.layers {
            let [x, y] = kinds.map(|kind| seen.value(layer, kind).unwrap());
            let [d_x, d_y] = kinds.map(|kind| seen.gradient(layer, kind).unwrap());
            assert_eq!((x.len(), y.len()), (2 * TIME * 2 * width, 2 * TIME * width));
            assert_eq!((d_x.len(), d_y.len()), (x.len(), y.len()));
            for (place, &y) in y.iter().enumerate() {
                let (row, j) = (place / width, place % width);
                let (gate, up) = (x[2 * width * row + j], x[2 * width * row + width + j]);
                assert_eq!(y, activate(config.activation, gate) * up);
                let d_up = d_x[2 * width * row + width + j];
                assert_eq!(d_up, d_y[place] * activate(config.activation, gate));
            }
        }
    }
    let mut seen = Recording::of(|at| at.kind == TensorKind::PreActivation);
    model.observe(&inputs, 2, TIME, &mut seen).unwrap();
    assert_eq!(seen.value(1, TensorKind::PreActivation).unwrap().len(), 2 * TIME * 2 * width);
}
