//! Models with RMS norm: their gradients against finite differences, their plans, and what is recomputed.

use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::config::Norm;
use minigpt_core::model::Extras;
use minigpt_core::plan::NormActivations;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Bias, Decoder, Dtype, GptConfig, Model, NormPlace, Op, Plan, Position, Recompute, Reference, TrainConfig,
    Trainer, Windows,
};

const BATCH: usize = 2;

/// Every place of the norms, with biases and without.
fn configs() -> Vec<GptConfig> {
    let places = [NormPlace::Pre, NormPlace::Post, NormPlace::None];
    let of = |norm_place, bias, position| GptConfig {
        layers: 2,
        heads: 3,
        d_model: 12,
        d_ff: 10,
        norm: Norm::Rms,
        norm_place,
        bias,
        position,
        dropout: if bias == Bias::ALL { 0.2 } else { 0.0 },
        ..GptConfig::new(7, 5)
    };
    places
        .into_iter()
        .flat_map(|place| [of(place, Bias::ALL, Position::Learned), of(place, Bias::NONE, Position::ROTARY)])
        .collect()
}

fn tokens(rng: &mut Rng, config: &GptConfig) -> Vec<u32> {
    (0..BATCH * config.context).map(|_| rng.below(config.vocab_size as u64) as u32).collect()
}

/// Values that matter, norm weights around one.
fn values(config: &GptConfig, rng: &mut Rng) -> Vec<(String, Vec<f64>)> {
    let model = Model::new(Reference::<f64>::new(), config.clone(), 1).unwrap();
    model
        .parameters()
        .map(|(tensor, _)| {
            let centre =
                if tensor.name.contains("ln_") && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
            (tensor.name.clone(), (0..tensor.region.len).map(|_| centre + 0.3 * rng.normal()).collect())
        })
        .collect()
}

/// A trainer that has taken in a batch once. Always fresh, so that dropout masks are the same.
fn trainer(
    config: &GptConfig,
    values: &[(String, Vec<f64>)],
    batch: &[Vec<u32>; 2],
) -> Trainer<Reference<f64>> {
    let model = Model::new(Reference::<f64>::new(), config.clone(), 0).unwrap();
    for (name, values) in values {
        assert!(model.set_parameter(name, values).unwrap());
    }
    let settings = TrainConfig { batch: BATCH, time: config.context, ..TrainConfig::constant(0.0) };
    let mut trainer = Trainer::new(&model, settings).unwrap();
    trainer.micro_step(&batch[0], &batch[1]).unwrap();
    trainer
}

#[test]
fn gradients_of_models_with_rms_norm_match_finite_differences() {
    const STEP: f64 = 1e-5;
    for (i, config) in configs().iter().enumerate() {
        let mut rng = Rng::new(i as u64, Stream::User);
        let mut values = values(config, &mut rng);
        let batch = [(); 2].map(|()| tokens(&mut rng, config));
        let mut begun = trainer(config, &values, &batch);
        for p in 0..values.len() {
            let name = values[p].0.clone();
            let gradient = begun.gradient(&name).unwrap().unwrap();
            let stride = gradient.len().div_ceil(5);
            let (mut difference, mut scale) = (0.0f64, 1e-5f64);
            for i in (p % stride..gradient.len()).step_by(stride) {
                let before = values[p].1[i];
                let [above, below] = [STEP, -STEP].map(|step| {
                    values[p].1[i] = before + step;
                    trainer(config, &values, &batch).loss().unwrap().unwrap()
                });
                values[p].1[i] = before;
                difference = difference.max(((above - below) / (2.0 * STEP) - gradient[i]).abs());
                scale = scale.max(gradient[i].abs());
            }
            assert!(difference / scale < 1e-6, "{:e} at {name} of {config:?}", difference / scale);
        }
    }
}

#[test]
fn a_plan_of_rms_norms_has_no_room_for_means_and_the_parameters_of_layer_norms() {
    for config in configs() {
        let layer = GptConfig { norm: Norm::Layer, ..config.clone() };
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
            let [rms, layer] = [&config, &layer].map(|config| {
                Plan::training_with(config, Dtype::F32, BATCH, config.context, recompute).unwrap()
            });
            assert_eq!(rms.parameters, layer.parameters);
            let norms = |plan: &Plan| -> Vec<NormActivations> {
                let blocks = plan.activations.blocks.iter().flat_map(|block| [block.norm1, block.norm2]);
                blocks.chain([plan.activations.final_norm]).collect()
            };
            assert!(norms(&rms).iter().all(|norm| norm.mean.is_none()));
            let means: usize =
                norms(&layer).iter().map(|norm| 4 * norm.mean.unwrap().len.next_multiple_of(16)).sum();
            assert_eq!(layer.bytes.activations - rms.bytes.activations, means);
            let count =
                rms.program().unwrap().steps().iter().filter(|s| matches!(s.op, Op::NormForward(_))).count();
            assert_eq!(count > 0, config.norm_place != NormPlace::None);
        }
    }
}

#[test]
fn what_is_recomputed_of_rms_norms_changes_no_bit() {
    for config in configs() {
        let text: Vec<u32> = (0..100).map(|i| i * i % 7).collect();
        let windows = Windows::new(&text, config.context).unwrap();
        let run = |recompute| {
            let model = Model::new(Reference::<f32>::new(), config.clone(), 5).unwrap();
            let settings =
                TrainConfig { batch: BATCH, time: config.context, recompute, ..TrainConfig::constant(1e-2) };
            let mut trainer = Trainer::new(&model, settings).unwrap();
            (0..3).for_each(|_| trainer.step(&windows).unwrap());
            assert!(trainer.metrics().unwrap().loss.is_finite());
            let mut file = Vec::new();
            trainer.write(&mut file, &Extras::default()).unwrap();
            file
        };
        let nothing = run(Recompute::Nothing);
        assert!(run(Recompute::Cheap) == nothing && run(Recompute::Blocks) == nothing, "{config:?}");
        assert_eq!(Checkpoint::open(&nothing).unwrap().config().norm, Norm::Rms);
    }
}

#[test]
fn rows_of_rms_norms_give_the_logits_of_a_full_pass() {
    for config in configs() {
        let model = Model::new(Reference::<f64>::new(), config.clone(), 3).unwrap();
        for (name, values) in values(&config, &mut Rng::new(4, Stream::User)) {
            assert!(model.set_parameter(&name, &values).unwrap());
        }
        let tokens = [3, 1, 6, 0, 2];
        let full = model.logits(&tokens, 1, tokens.len()).unwrap();
        let mut decoder = Decoder::new(&model, 3).unwrap();
        for (fed, full) in
            [(0..2), (2..3), (3..5)].into_iter().map(|fed| (fed.clone(), &full[(fed.end - 1) * 7..][..7]))
        {
            decoder.feed(&tokens[fed]).unwrap();
            let worst =
                decoder.logits().iter().zip(full).fold(0.0f64, |worst, (x, y)| worst.max((x - y).abs()));
            assert!(worst < 1e-12, "{worst:e} of {config:?}");
        }
    }
}
