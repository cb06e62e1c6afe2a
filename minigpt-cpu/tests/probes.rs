//! Observation runs on kernels too, sees what it sees on the reference, and changes no bit.
#![cfg(feature = "std")]

use minigpt_core::model::Extras;
use minigpt_core::probe::{Point, Recording, TensorKind};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Backend, Bias, Dtype, GptConfig, Model, NormPlace, Position, Recompute, Reference, TrainConfig, Trainer,
    Windows,
};
use minigpt_cpu::{Cpu, Isa};

const VOCAB: usize = 31;
const TIME: usize = 33;

fn configs() -> [GptConfig; 3] {
    let base = GptConfig { layers: 2, heads: 3, d_model: 24, d_ff: 50, ..GptConfig::new(VOCAB, TIME) };
    [
        GptConfig { dropout: 0.1, bias: Bias::ALL, ..base.clone() },
        GptConfig {
            norm_place: NormPlace::Post,
            position: Position::ROTARY,
            tied_embeddings: false,
            ..base.clone()
        },
        GptConfig { norm_place: NormPlace::None, residual: false, dropout: 0.2, ..base },
    ]
}

fn cpu(isa: Isa) -> Cpu<'static> {
    Cpu::builder().isa(isa).threads(2).build().unwrap()
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

fn everything() -> Recording<f32, impl FnMut(&Point) -> bool> {
    Recording::of(|_: &Point| true).with_gradients_of(|_| true)
}

#[test]
fn what_is_observed_trains_to_the_same_bits_on_kernels_alone() {
    let text = tokens(500, 1);
    let windows = Windows::new(&text, TIME).unwrap();
    for isa in Isa::available() {
        for config in configs() {
            for (recompute, batch) in [
                (Recompute::Nothing, 3),
                (Recompute::Cheap, 40),
                (Recompute::Blocks, 40),
                (Recompute::Blocks, 3),
            ] {
                let run = |observed: bool| {
                    let settings = TrainConfig {
                        batch,
                        time: TIME,
                        accumulation: 2,
                        recompute,
                        ..TrainConfig::constant(1e-3)
                    };
                    let mut trainer =
                        Trainer::new(&Model::new(cpu(isa), config.clone(), 1).unwrap(), settings).unwrap();
                    // 40 sequences of 33 tokens are two slices of 20.
                    assert_eq!(trainer.plan().batch, batch.min(20));
                    for _ in 0..2 {
                        if observed {
                            trainer.observe_step(&windows, &mut everything()).unwrap();
                        } else {
                            trainer.step(&windows).unwrap();
                        }
                    }
                    let loss = trainer.metrics().unwrap().loss;
                    assert_eq!(trainer.model().device().inspect(Cpu::fallbacks), 0, "{isa}");
                    let mut file = Vec::new();
                    trainer.write(&mut file, &Extras::default()).unwrap();
                    (file, loss)
                };
                assert!(run(true) == run(false), "{isa}, {recompute:?}, {config:?}");
            }
        }
    }
}

/// Each tensor, by its name, with its values.
type Seen = Vec<(String, Vec<f32>)>;

fn seen_by(recording: &Recording<f32, impl FnMut(&Point) -> bool>) -> Seen {
    let tensors = recording.iter().map(|(at, values)| (at.to_string(), values.to_vec()));
    tensors
        .chain(recording.parameter_gradients().map(|(name, values)| (name.into(), values.to_vec())))
        .collect()
}

fn micro_step<B: Backend<Elem = f32>>(backend: B, config: &GptConfig) -> Seen {
    let settings = TrainConfig { batch: 4, time: TIME, ..TrainConfig::constant(0.0) };
    let mut trainer = Trainer::new(&Model::new(backend, config.clone(), 1).unwrap(), settings).unwrap();
    let mut seen = everything();
    trainer.observe_micro_step(&tokens(4 * TIME, 2), &tokens(4 * TIME, 3), &mut seen).unwrap();
    seen_by(&seen)
}

#[test]
fn every_tensor_is_what_it_is_on_the_reference() {
    for config in configs() {
        let expected = micro_step(Reference::<f32>::new(), &config);
        for isa in Isa::available() {
            let found = micro_step(cpu(isa), &config);
            assert_eq!(found.len(), expected.len());
            for ((name, found), (known, expected)) in found.iter().zip(&expected) {
                assert_eq!((name, found.len()), (known, expected.len()));
                let scale = expected.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-4 * scale, "{isa}, {name}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn an_observed_pass_gives_the_same_logits_also_in_fewer_bits() {
    for isa in Isa::available() {
        for config in configs() {
            let model = Model::new(cpu(isa), config, 1).unwrap();
            let small = model.quantized(cpu(isa), Dtype::Q8_0).unwrap();
            for model in [model, small] {
                for (batch, time) in [(1, 1), (1, 5), (3, TIME)] {
                    let tokens = tokens(batch * time, 4);
                    let mut seen = everything();
                    let observed = model.observe(&tokens, batch, time, &mut seen).unwrap();
                    assert!(
                        observed == model.logits(&tokens, batch, time).unwrap(),
                        "{isa}, {batch}, {time}"
                    );
                    assert!(seen.value(1, TensorKind::PreActivation).is_some());
                    assert!(seen.value(None, TensorKind::Loss).is_some());
                }
                assert_eq!(model.device().inspect(Cpu::fallbacks), 0, "{isa}");
            }
        }
    }
}
