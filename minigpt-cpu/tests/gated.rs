//! Gated feed-forward layers, and the activations that they have, in a training and a decoding: on kernels alone, near the
//! reference, and with the same bits on any number of threads and whatever is recomputed.
#![cfg(feature = "std")]

use minigpt_core::model::Extras;
use minigpt_core::{
    Activation, Backend, Bias, Decoder, GptConfig, Model, Real, Recompute, Reference, TrainConfig, Trainer,
    Windows,
};
use minigpt_cpu::{Cpu, Isa};

const VOCAB: usize = 13;
const TIME: usize = 19;

/// Widths that leave a tail on every instruction set, and one that is wider than a task of an elementwise op.
fn configs() -> Vec<GptConfig> {
    let base = GptConfig { layers: 2, heads: 2, d_model: 22, d_ff: 37, ..GptConfig::new(VOCAB, TIME) };
    let mut all: Vec<GptConfig> = [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
    ]
    .map(|activation| GptConfig { activation, gated: true, ..base.clone() })
    .into();
    all.extend(
        [Activation::ReluSquared, Activation::Silu]
            .map(|activation| GptConfig { activation, ..base.clone() }),
    );
    let silu = GptConfig { activation: Activation::Silu, gated: true, ..base };
    all.push(GptConfig { dropout: 0.1, bias: Bias::ALL, ..silu.clone() });
    all.push(GptConfig { layers: 1, d_model: 4, d_ff: 9001, ..silu });
    all
}

fn text() -> Vec<u32> {
    (0..400).map(|i| i * i % VOCAB as u32).collect()
}

fn trained<B: Backend>(backend: B, config: &GptConfig, recompute: Recompute) -> (Trainer<B>, Vec<f64>) {
    let settings = TrainConfig { batch: 3, time: TIME, recompute, ..TrainConfig::constant(3e-3) };
    let model = Model::new(backend, config.clone(), 1).unwrap();
    let mut trainer = Trainer::new(&model, settings).unwrap();
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    let mut losses = Vec::new();
    for _ in 0..6 {
        trainer.step(&windows).unwrap();
        losses.push(trainer.metrics().unwrap().loss);
    }
    (trainer, losses)
}

fn cpu(isa: Isa, threads: usize) -> Cpu<'static> {
    Cpu::builder().isa(isa).threads(threads).build().unwrap()
}

#[test]
fn losses_are_the_references_and_no_op_falls_back() {
    for config in configs() {
        let (_, expected) = trained(Reference::<f64>::new(), &config, Recompute::Nothing);
        for isa in Isa::available() {
            let (trainer, losses) = trained(cpu(isa, 2), &config, Recompute::Nothing);
            for (found, expected) in losses.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{isa}, {config:?}: {found} {expected}");
            }
            assert_eq!(trainer.model().device().inspect(Cpu::fallbacks), 0, "{isa}, {config:?}");
        }
    }
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    for isa in Isa::available() {
        for config in configs() {
            let run = |threads, recompute| {
                let mut file = Vec::new();
                let (trainer, _) = trained(cpu(isa, threads), &config, recompute);
                trainer.write(&mut file, &Extras::default()).unwrap();
                file
            };
            let alone = run(1, Recompute::Nothing);
            for (threads, recompute) in
                [(3, Recompute::Nothing), (2, Recompute::Cheap), (2, Recompute::Blocks)]
            {
                assert!(
                    run(threads, recompute) == alone,
                    "{isa}, {threads} threads, {recompute:?}, {config:?}"
                );
            }
        }
    }
}

#[test]
fn decoding_gives_the_logits_of_a_full_pass() {
    for isa in Isa::available() {
        for config in configs() {
            let model = trained(cpu(isa, 2), &config, Recompute::Nothing).0.into_model();
            let text = &text()[..TIME];
            let full = model.logits(text, 1, TIME).unwrap();
            let mut decoder = Decoder::new(&model, 8).unwrap();
            // A prompt, a few tokens, and one after the other.
            for fed in [0..9, 9..12, 12..13, 13..14, 14..19] {
                let last = fed.end - 1;
                decoder.feed(&text[fed]).unwrap();
                for (found, expected) in decoder.logits().iter().zip(&full[last * VOCAB..]) {
                    assert!((found.to_f64() - expected.to_f64()).abs() < 1e-4, "{isa}, {config:?}");
                }
            }
            assert_eq!(model.device().inspect(Cpu::fallbacks), 0, "{isa}, {config:?}");
        }
    }
}
