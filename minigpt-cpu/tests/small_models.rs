//! Whole trainings and decodings of models so small and odd that every op works at its edges, alone and side by side.
#![cfg(feature = "std")]

use minigpt_core::config::{Activation, Bias, NormPlace, Position, TrainConfig};
use minigpt_core::model::Extras;
use minigpt_core::train::Trainer;
use minigpt_core::{Decoder, GptConfig, Model, Windows};
use minigpt_cpu::{Cpu, Isa};

const VOCAB: usize = 11;
const STEPS: usize = 20;

/// Every op at odd sizes, and a sequence that attention cuts into several tiles.
fn configs() -> [(GptConfig, usize); 2] {
    let varied = GptConfig {
        layers: 1,
        heads: 3,
        d_model: 9,
        d_ff: 13,
        bias: Bias::ALL,
        dropout: 0.2,
        activation: Activation::GeluTanh,
        ..GptConfig::new(VOCAB, 5)
    };
    let long = GptConfig {
        layers: 1,
        heads: 1,
        d_model: 2,
        d_ff: 3,
        position: Position::ROTARY,
        norm_place: NormPlace::Post,
        activation: Activation::Relu,
        tied_embeddings: false,
        ..GptConfig::new(VOCAB, 70)
    };
    [(varied, 2), (long, 1)]
}

/// The checkpoint after some steps, and logits past the context.
fn run(isa: Isa, threads: usize, config: &GptConfig, batch: usize) -> (Vec<u8>, Vec<f32>) {
    let time = config.context;
    let text: Vec<u32> = (0..3 * time as u32).map(|i| i * i % VOCAB as u32).collect();
    let windows = Windows::new(&text, time).unwrap();
    let cpu = Cpu::builder().isa(isa).threads(threads).build().unwrap();
    let model = Model::new(cpu, config.clone(), 1).unwrap();
    let settings = TrainConfig { batch, time, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&model, settings).unwrap();
    for _ in 0..STEPS {
        trainer.step(&windows).unwrap();
    }
    assert!(trainer.metrics().unwrap().loss.is_finite());
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    let model = trainer.into_model();
    let mut decoder = Decoder::new(&model, 3).unwrap();
    decoder.feed(&text[..time - 2]).unwrap();
    for &token in &text[time - 2..time + 2] {
        decoder.feed(&[token]).unwrap();
    }
    assert_eq!(model.device().inspect(Cpu::fallbacks), 0);
    (file, decoder.logits().to_vec())
}

#[test]
fn small_models_train_and_decode_with_the_same_bits_on_any_number_of_threads() {
    for isa in Isa::available() {
        for (config, batch) in configs() {
            let alone = run(isa, 1, &config, batch);
            for threads in 2..5 {
                assert!(run(isa, threads, &config, batch) == alone, "{isa}, {threads} threads");
            }
        }
    }
}

#[test]
fn backends_side_by_side_in_threads_of_the_callers_give_the_bits_of_one_alone() {
    let [(config, batch), _] = configs();
    let alone = run(Isa::Portable, 1, &config, batch);
    std::thread::scope(|scope| {
        let (config, alone) = (&config, &alone);
        for i in 0..8 {
            scope.spawn(move || assert!(run(Isa::Portable, 1 + i % 3, config, batch) == *alone));
        }
    });
}
