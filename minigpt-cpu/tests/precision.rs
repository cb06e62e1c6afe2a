//! Training with activations in bf16, as a program would run it: on kernels alone, near the reference, the same bits on any
//! number of threads, and in less memory.
#![cfg(all(feature = "std", feature = "bf16", target_endian = "little"))]

#[path = "support/trained.rs"]
mod trained;

use minigpt_core::model::Extras;
use minigpt_core::{
    Activation, Batch, Bias, Checkpoint, Decoder, GptConfig, Mask, Model, Norm, NormPlace, OpKind, Plan,
    Position, Precision, Recompute, Reference, TrainConfig, Trainer, Windows,
};
use minigpt_cpu::{Cpu, Isa};
use trained::{TIME, VOCAB, text, trained_on};

/// GPT-2 as it is, a Llama, and what of both is rarer.
fn configs() -> [GptConfig; 3] {
    let base = GptConfig { layers: 2, heads: 3, d_model: 48, d_ff: 100, ..GptConfig::new(VOCAB, TIME) };
    let llama = GptConfig {
        heads: 4,
        kv_heads: Some(2),
        position: Position::ROTARY,
        norm: Norm::Rms,
        activation: Activation::Silu,
        gated: true,
        tied_embeddings: false,
        dropout: 0.1,
        ..base.clone()
    };
    let varied = GptConfig {
        norm_place: NormPlace::Post,
        qk_norm: true,
        mask: Mask::None,
        activation: Activation::ReluSquared,
        bias: Bias::NONE,
        ..base.clone()
    };
    [GptConfig { dropout: 0.1, bias: Bias::ALL, ..base }, llama, varied]
}

fn settings() -> TrainConfig {
    TrainConfig { batch: 12, time: TIME, precision: Precision::Bf16, ..TrainConfig::constant(1e-3) }
}

fn cpu(isa: Isa, threads: usize) -> Cpu<'static> {
    Cpu::builder().isa(isa).threads(threads).build().unwrap()
}

fn saved(trainer: &Trainer<Cpu<'_>>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

#[test]
fn neither_training_nor_decoding_falls_back_to_the_reference() {
    for isa in Isa::available() {
        for config in configs() {
            for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
                let trainer = trained_on(cpu(isa, 2), &config, TrainConfig { recompute, ..settings() }, 2);
                assert_eq!(trainer.model().device().inspect(Cpu::fallbacks), 0, "{isa}, {config:?}");
            }
            let model = Model::new(cpu(isa, 2), config.clone(), 1).unwrap();
            let rounded = model.in_precision(Precision::Bf16).unwrap();
            let mut decoder = Decoder::new(&rounded, 16).unwrap();
            decoder.feed(&[1; 50]).unwrap();
            let mut batch = Batch::new(&rounded, 2, 9).unwrap();
            let sequence = batch.join().unwrap();
            batch.feed(sequence, &[1; 20]).unwrap();
            batch.step().unwrap();
            rounded.logits(&[1; 2 * TIME], 2, TIME).unwrap();
            for &kind in OpKind::ALL {
                assert_eq!(model.device().inspect(|cpu| cpu.fallbacks_of(kind)), 0, "{isa}, {kind:?}");
            }
        }
    }
}

#[test]
fn every_number_of_threads_and_everything_recomputed_gives_the_same_bits() {
    for isa in Isa::available() {
        for config in configs() {
            let run = |threads, recompute| {
                saved(&trained_on(cpu(isa, threads), &config, TrainConfig { recompute, ..settings() }, 8))
            };
            let alone = run(1, Recompute::Nothing);
            for (threads, recompute) in [
                (2, Recompute::Nothing),
                (3, Recompute::Cheap),
                (1, Recompute::Cheap),
                (2, Recompute::Blocks),
            ] {
                assert!(run(threads, recompute) == alone, "{isa}, {threads} threads, {recompute:?}");
            }
        }
    }
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let config = &configs()[0];
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    let mut whole = trained_on(cpu(Isa::Portable, 2), config, settings(), 5);
    let half = saved(&whole);
    let mut resumed = Trainer::resume(cpu(Isa::Portable, 2), &Checkpoint::open(&half).unwrap()).unwrap();
    for _ in 0..5 {
        whole.step(&windows).unwrap();
        resumed.step(&windows).unwrap();
    }
    assert!(saved(&resumed) == saved(&whole));
}

#[test]
fn losses_are_those_of_the_reference() {
    for config in configs() {
        let text = text();
        let windows = Windows::new(&text, TIME).unwrap();
        let settings = TrainConfig { batch: 3, ..settings() };
        let mut oracle = trained_on(Reference::<f64>::new(), &config, settings.clone(), 0);
        let mut all: Vec<Trainer<Cpu<'_>>> =
            Isa::available().map(|isa| trained_on(cpu(isa, 2), &config, settings.clone(), 0)).collect();
        for step in 0..10 {
            oracle.step(&windows).unwrap();
            let expected = oracle.metrics().unwrap();
            for trainer in &mut all {
                trainer.step(&windows).unwrap();
                let found = trainer.metrics().unwrap();
                let isa = trainer.model().device().inspect(Cpu::isa);
                // A sum in another order may round to the next bf16, and what comes of it grows from step to step.
                assert!(
                    (found.loss - expected.loss).abs() < 2e-3,
                    "{isa}, step {step}: {found:?} {expected:?}"
                );
                let off = (found.grad_norm / expected.grad_norm - 1.0).abs();
                assert!(off < 0.03, "{isa}, step {step}: {found:?} {expected:?}");
            }
        }
    }
}

/// 6 layers, 384 wide, context 256, batch 8: M of the benchmarks.
#[test]
fn a_step_in_bf16_takes_less_memory() {
    let config = GptConfig { layers: 6, heads: 6, d_model: 384, d_ff: 1536, ..GptConfig::new(65, 256) };
    let cpu = Cpu::builder().threads(2).build().unwrap();
    let bytes = |precision| {
        let settings = TrainConfig { batch: 8, time: 256, precision, ..TrainConfig::constant(1e-3) };
        let plan: Plan = settings.plan(&config, &cpu).unwrap();
        (plan.bytes.total() + plan.workspace_bytes(&cpu)) as f64
    };
    let ratio = bytes(Precision::Bf16) / bytes(Precision::F32);
    assert!(ratio <= 0.84, "{ratio}");
}
