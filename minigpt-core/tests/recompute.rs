//! What the backward pass computes again costs time and saves bytes, and is seen nowhere else.

#[path = "support/configs.rs"]
mod configs;

use configs::{covering_set, given, length};
use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::data::EvalWindows;
use minigpt_core::model::Extras;
use minigpt_core::{
    Dtype, GptConfig, Model, NormPlace, Plan, Real, Recompute, Reference, TrainConfig, Trainer, Windows,
};

const ALL: [Recompute; 3] = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks];

fn text(vocab: usize) -> Vec<u32> {
    (0..200).map(|i| i * i % vocab as u32).collect()
}

fn settings(config: &GptConfig, recompute: Recompute) -> TrainConfig {
    TrainConfig { batch: 2, time: length(config), accumulation: 2, recompute, ..TrainConfig::constant(1e-2) }
}

/// A checkpoint and every gradient after three steps: weights, moments and counters.
fn trained<R: Real>(config: &GptConfig, recompute: Recompute) -> (Vec<u8>, Vec<Vec<R>>, f64) {
    let model = Model::new(Reference::<R>::new(), config.clone(), 5).unwrap();
    let mut trainer = Trainer::new(&model, settings(config, recompute)).unwrap();
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, length(config)).unwrap();
    trainer.set_prefix(&given(config, 2, 6)).unwrap();
    for _ in 0..3 {
        trainer.step(&windows).unwrap();
    }
    let loss = trainer.metrics().unwrap().loss;
    assert!(loss.is_finite() && trainer.metrics().unwrap().skipped == 0);
    let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    let gradients = names.iter().map(|name| trainer.gradient(name).unwrap().unwrap()).collect();
    let mut checkpoint = Vec::new();
    trainer.write(&mut checkpoint, &Extras::default()).unwrap();
    (checkpoint, gradients, loss)
}

#[test]
fn what_is_recomputed_changes_no_bit() {
    for config in covering_set() {
        let double = trained::<f64>(&config, Recompute::Nothing);
        let single = trained::<f32>(&config, Recompute::Nothing);
        for recompute in [Recompute::Cheap, Recompute::Blocks] {
            assert!(trained::<f64>(&config, recompute) == double, "{recompute:?} of {config:?}");
            assert!(trained::<f32>(&config, recompute) == single, "{recompute:?} of {config:?}");
        }
    }
}

#[test]
fn a_run_may_go_on_with_another_setting_and_gives_the_same_bits() {
    let config =
        GptConfig { layers: 3, heads: 2, d_model: 8, d_ff: 12, dropout: 0.2, ..GptConfig::new(7, 6) };
    let text = text(7);
    let windows = Windows::new(&text, 6).unwrap();
    let held_out = EvalWindows::new(&text, 6).unwrap();
    let mut ends = Vec::new();
    for (first, then) in [(0, 0), (0, 2), (2, 1), (1, 2)] {
        let model = Model::new(Reference::<f32>::new(), config.clone(), 5).unwrap();
        let mut trainer = Trainer::new(&model, settings(&config, ALL[first])).unwrap();
        for _ in 0..3 {
            trainer.step(&windows).unwrap();
        }
        let mut bytes = Vec::new();
        trainer.write(&mut bytes, &Extras::default()).unwrap();
        let checkpoint = Checkpoint::open(&bytes).unwrap();
        let mut trainer =
            Trainer::resume_with(Reference::<f32>::new(), &checkpoint, settings(&config, ALL[then])).unwrap();
        assert_eq!(trainer.plan().recompute, ALL[then]);
        // A validation in between uses the same buffers.
        let validation = trainer.evaluate(&held_out).unwrap();
        for _ in 0..3 {
            trainer.step(&windows).unwrap();
        }
        let mut end = Vec::new();
        trainer.write(&mut end, &Extras::default()).unwrap();
        ends.push((validation.to_bits(), end));
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn each_setting_takes_less_than_the_one_before() {
    for norm_place in [NormPlace::Pre, NormPlace::Post, NormPlace::None] {
        let config =
            GptConfig { layers: 6, heads: 6, d_model: 96, d_ff: 384, norm_place, ..GptConfig::new(65, 32) };
        let [nothing, cheap, blocks] = ALL.map(|recompute| {
            Plan::training_with(&config, Dtype::F32, 8, 32, recompute).unwrap().bytes.activations as f64
        });
        assert!(cheap < 0.85 * nothing, "{norm_place:?}: {cheap} of {nothing}");
        assert!(blocks < 0.5 * cheap, "{norm_place:?}: {blocks} of {cheap}");
    }
}

#[test]
fn with_blocks_recomputed_a_layer_more_is_a_stream_more() {
    let config = |layers| GptConfig { layers, heads: 4, d_model: 64, d_ff: 256, ..GptConfig::new(65, 32) };
    let bytes = |layers| {
        let plan = Plan::training_with(&config(layers), Dtype::F32, 4, 32, Recompute::Blocks).unwrap();
        plan.bytes.activations
    };
    let (stream, norm_statistics) = (4 * 32 * 64 * 4, 2 * 2 * 4 * 32 * 4);
    assert_eq!(bytes(9) - bytes(8), stream + norm_statistics);
}

/// A vocabulary whose logits do not fit at once.
fn many_words(batch: usize) -> (Trainer<Reference<f64>>, Vec<u32>) {
    let (vocab, time) = (5000, 4);
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(vocab, time) };
    let settings = TrainConfig { batch, time, ..TrainConfig::constant(1e-2) };
    let trainer = Trainer::new(&Model::new(Reference::new(), config, 5).unwrap(), settings).unwrap();
    (trainer, (0..301).map(|i| i * 17 % vocab as u32).collect())
}

#[test]
fn a_head_that_goes_piece_by_piece_has_the_loss_and_the_gradient_of_the_whole() {
    // 300 rows: a piece of 256 and one of 44.
    let (mut pieces, tokens) = many_words(75);
    assert_eq!(pieces.plan().activations.logits.len, 256 * 5000);
    let (mut whole, _) = many_words(25);
    assert_eq!(whole.plan().activations.logits.len, 100 * 5000);
    pieces.micro_step(&tokens[..300], &tokens[1..]).unwrap();
    for rows in [0, 100, 200] {
        whole.micro_step(&tokens[rows..rows + 100], &tokens[rows + 1..rows + 101]).unwrap();
    }
    for name in ["wte.weight", "h.0.attn.c_attn.weight", "ln_f.weight"] {
        let (a, b) = (pieces.gradient(name).unwrap().unwrap(), whole.gradient(name).unwrap().unwrap());
        assert!(a.iter().any(|&x| x != 0.0));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{name}");
    }
    pieces.finish_step().unwrap();
    whole.finish_step().unwrap();
    let (a, b) = (pieces.metrics().unwrap(), whole.metrics().unwrap());
    assert!((a.loss - b.loss).abs() < 1e-12 && a.tokens == 300 && b.tokens == 300);
    let windows = EvalWindows::new(&tokens, 4).unwrap();
    let (a, b) = (pieces.evaluate(&windows).unwrap(), whole.evaluate(&windows).unwrap());
    assert!((a - b).abs() < 1e-9, "{a} {b}");
}
