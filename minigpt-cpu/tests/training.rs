//! A training and a decoding as a program would run them: on kernels alone, and the same bits on any number of
//! threads.
#![cfg(feature = "std")]

#[path = "support/trained.rs"]
mod trained;

use minigpt_core::config::{Activation, Bias, NormPlace, Position, TrainConfig};
use minigpt_core::model::Extras;
use minigpt_core::train::Trainer;
use minigpt_core::{
    Checkpoint, Decoder, GptConfig, Groups, Recompute, Reference, SampleConfig, Sampler, Windows,
};
use minigpt_cpu::{Cpu, Isa};
use trained::{TIME, VOCAB, text, trained_on};

/// GPT-2 as it is, and what of it the curriculum varies most.
fn configs() -> [GptConfig; 2] {
    let base = GptConfig { layers: 2, heads: 3, d_model: 48, d_ff: 100, ..GptConfig::new(VOCAB, TIME) };
    let varied = GptConfig {
        position: Position::ROTARY,
        norm_place: NormPlace::Post,
        activation: Activation::GeluErf,
        bias: Bias::NONE,
        tied_embeddings: false,
        dropout: 0.0,
        ..base.clone()
    };
    [GptConfig { dropout: 0.1, ..base }, varied]
}

fn trained(isa: Isa, threads: usize, config: &GptConfig, steps: usize) -> Trainer<Cpu<'static>> {
    // Twelve sequences of three heads: attention has enough heads for one to be a task.
    let settings = TrainConfig { batch: 12, time: TIME, ..TrainConfig::constant(1e-3) };
    trained_as(isa, threads, config, settings, steps)
}

fn trained_as(
    isa: Isa,
    threads: usize,
    config: &GptConfig,
    settings: TrainConfig,
    steps: usize,
) -> Trainer<Cpu<'static>> {
    let cpu = Cpu::builder().isa(isa).threads(threads).build().unwrap();
    trained_on(cpu, config, settings, steps)
}

#[test]
fn training_and_decoding_never_fall_back_to_the_reference() {
    for isa in Isa::available() {
        for config in configs() {
            let trainer = trained(isa, 2, &config, 2);
            let model = trainer.into_model();
            let mut decoder = Decoder::new(&model, 16).unwrap();
            decoder.feed(&[1; 20]).unwrap();
            let mut sampler = Sampler::new(SampleConfig::greedy(), VOCAB).unwrap();
            // Past the context, where the window slides.
            assert_eq!(decoder.generate(&mut sampler).take(TIME).filter(Result::is_ok).count(), TIME);
            assert_eq!(model.device().inspect(Cpu::fallbacks), 0, "{isa}");
        }
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    for isa in Isa::available() {
        for config in configs() {
            let run = |threads| {
                let mut file = Vec::new();
                trained(isa, threads, &config, 20).write(&mut file, &Extras::default()).unwrap();
                file
            };
            let alone = run(1);
            for threads in [2, 3] {
                assert!(run(threads) == alone, "{isa}, {threads} threads");
            }
        }
    }
}

/// Gradient descent, Muon, and all of them side by side.
fn optimizers() -> [Groups; 4] {
    let (sgd, muon) = (Groups::sgd(0.9, true, 0.1), Groups::muon(0.9, 0.99, 0.1));
    [
        Groups::sgd(0.0, false, 0.1),
        sgd,
        muon,
        Groups { embeddings: muon.matrices, vectors: sgd.vectors, ..muon },
    ]
}

#[test]
fn every_optimizer_runs_on_kernels_alone_and_gives_the_same_bits_on_any_number_of_threads() {
    for isa in Isa::available() {
        for (config, groups) in
            configs().iter().flat_map(|config| optimizers().map(|groups| (config, groups)))
        {
            let average = Some(0.9);
            let settings =
                TrainConfig { batch: 4, time: TIME, groups, average, ..TrainConfig::constant(1e-3) };
            let run = |threads| {
                let trainer = trained_as(isa, threads, config, settings.clone(), 6);
                assert_eq!(trainer.model().device().inspect(Cpu::fallbacks), 0, "{isa}");
                let mut file = Vec::new();
                trainer.write(&mut file, &Extras::default()).unwrap();
                file
            };
            let alone = run(1);
            assert!(run(3) == alone, "{isa}, {groups:?}");

            // And a run that stops half-way ends there too.
            let half = {
                let mut file = Vec::new();
                trained_as(isa, 2, config, settings.clone(), 3).write(&mut file, &Extras::default()).unwrap();
                file
            };
            let cpu = Cpu::builder().isa(isa).threads(2).build().unwrap();
            let mut resumed = Trainer::resume(cpu, &Checkpoint::open_verified(&half).unwrap()).unwrap();
            let text = text();
            let windows = Windows::new(&text, TIME).unwrap();
            (0..3).for_each(|_| resumed.step(&windows).unwrap());
            let mut file = Vec::new();
            resumed.write(&mut file, &Extras::default()).unwrap();
            assert!(file == alone, "{isa}, {groups:?}");
        }
    }
}

#[test]
fn what_is_recomputed_changes_no_bit() {
    for isa in Isa::available() {
        for config in configs() {
            let run = |recompute| {
                let constant = TrainConfig::constant(1e-3);
                let settings = TrainConfig { batch: 6, time: TIME, accumulation: 2, recompute, ..constant };
                let trainer = trained_as(isa, 2, &config, settings, 10);
                assert_eq!(trainer.model().device().inspect(Cpu::fallbacks), 0, "{isa}, {recompute:?}");
                let mut file = Vec::new();
                trainer.write(&mut file, &Extras::default()).unwrap();
                file
            };
            let kept = run(Recompute::Nothing);
            for recompute in [Recompute::Cheap, Recompute::Blocks] {
                assert!(run(recompute) == kept, "{isa}, {recompute:?}");
            }
        }
    }
}

#[test]
fn a_large_batch_goes_through_in_slices_with_the_bits_of_micro_batches() {
    // Without dropout, which draws masks for each micro-batch.
    let config = GptConfig { dropout: 0.0, ..configs()[0].clone() };
    let isa = Isa::available().last().unwrap();
    let run = |batch, accumulation| {
        let settings = TrainConfig { batch, time: TIME, accumulation, ..TrainConfig::constant(1e-3) };
        let trainer = trained_as(isa, 2, &config, settings, 3);
        (trainer.plan().clone(), trainer.into_model())
    };
    // 40 sequences of 33 tokens are two slices of 20.
    let ((whole, large), (half, small)) = (run(40, 1), run(20, 2));
    assert!(whole.activations == half.activations && (whole.batch, whole.sequences) == (20, 40));
    for tensor in whole.parameters.list() {
        let weights = large.parameter(&tensor.name).unwrap().unwrap();
        assert!(weights == small.parameter(&tensor.name).unwrap().unwrap(), "{}", tensor.name);
    }
}

#[test]
fn a_large_batch_in_slices_drops_what_the_reference_drops() {
    let config =
        &GptConfig { layers: 1, heads: 1, d_model: 16, d_ff: 17, dropout: 0.3, ..configs()[0].clone() };
    let settings =
        |recompute| TrainConfig { batch: 40, time: TIME, recompute, ..TrainConfig::constant(1e-3) };
    let mut whole = trained_on(Reference::<f32>::new(), config, settings(Recompute::Nothing), 1);
    assert_eq!(whole.plan().batch, 40);
    let expected = whole.metrics().unwrap();
    for isa in Isa::available() {
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
            let mut slices = trained_as(isa, 2, config, settings(recompute), 1);
            assert_eq!(slices.plan().batch, 20);
            let found = slices.metrics().unwrap();
            // Other masks would change more.
            let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * b;
            assert!(near(found.loss, expected.loss), "{isa}: {found:?}, {expected:?}");
            assert!(near(found.grad_norm, expected.grad_norm), "{isa}: {found:?}, {expected:?}");
        }
    }
}
