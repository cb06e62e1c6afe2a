//! What a plan promises is what a training takes.
#![cfg(feature = "std")]

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use minigpt_core::config::TrainConfig;
use minigpt_core::op::{CrossEntropy, LinearBackward, LinearForward, scalar};
use minigpt_core::train::Trainer;
use minigpt_core::{Backend, Buffer, Dtype, GptConfig, Model, Op, Precision, Recompute, Span, Windows};
use minigpt_cpu::Cpu;

#[test]
fn the_plan_and_the_workspace_are_the_memory_that_training_takes() {
    let (vocab, time) = (65, 64);
    let text: Vec<u32> = (0..500).map(|i| i * i % vocab as u32).collect();
    let windows = Windows::new(&text, time).unwrap();
    use Recompute::{Blocks, Cheap, Nothing};
    // 2560 rows go through in slices.
    let precisions = [Precision::F32, Precision::Bf16];
    let all = [(Nothing, 8), (Cheap, 8), (Cheap, 40), (Blocks, 8), (Blocks, 40)];
    for ((recompute, batch), precision) in all.into_iter().flat_map(|all| precisions.map(|p| (all, p))) {
        let config = GptConfig::new(vocab, time);
        let cpu = Cpu::builder().threads(2).build().unwrap();
        let settings = TrainConfig { batch, time, recompute, precision, ..TrainConfig::constant(1e-3) };
        let (taken, trainer) = heap::peak(|| {
            let mut trainer = Trainer::new(&Model::new(cpu, config, 1).unwrap(), settings).unwrap();
            for _ in 0..2 {
                trainer.step(&windows).unwrap();
            }
            trainer
        });
        let (taken, plan) = (taken as f64, trainer.plan());
        let scratch = trainer.model().device().inspect(|cpu| plan.workspace_bytes(cpu));
        let promised = (plan.bytes.total() + scratch) as f64;
        assert!(
            (taken / promised - 1.0).abs() < 0.02,
            "{recompute:?}, {batch}, {precision:?}: {promised} bytes were promised, {taken} were taken"
        );
    }
}

/// Whose activations, logits and weights are hundreds of megabytes.
#[test]
fn ops_under_bf16_take_a_few_megabytes_of_scratch() {
    let (rows, d_in, d_out) = (8192, 768, 50_257);
    let span = |dtype, len| Span { buffer: Buffer(0), dtype, offset: 0, len };
    let of = |rows: usize, cols: usize| span(Dtype::Bf16, rows * cols);
    let (x, y, weight) = (of(rows, d_in), of(rows, d_out), of(d_out, d_in));
    let (activate, dropout, bias, residual) = (None, None, None, None);
    let forward = LinearForward { x, weight, bias, activate, dropout, residual, y, rows, d_in, d_out };
    let backward = LinearBackward {
        x,
        weight,
        d_y: y,
        dropout,
        d_x: Some(Span { buffer: Buffer(1), ..x }),
        accumulate: false,
        activate,
        d_weight: Some(Span { buffer: Buffer(2), ..span(Dtype::F32, d_out * d_in) }),
        d_bias: None,
        rows,
        d_in,
        d_out,
    };
    let loss = CrossEntropy {
        logits: y,
        targets: Span { buffer: Buffer(3), ..span(Dtype::U32, rows) },
        d_logits: Some(y),
        losses: None,
        scalars: Span { buffer: Buffer(4), ..span(Dtype::F32, scalar::LEN) },
        rows,
        vocab: d_out,
    };
    let forward = LinearForward { y: Span { buffer: Buffer(5), ..y }, ..forward };
    let cpu = Cpu::builder().threads(2).build().unwrap();
    for op in [Op::from(forward), backward.into(), loss.into()] {
        let bytes = cpu.workspace_bytes(&[op]);
        assert!((1 << 21..10 << 20).contains(&bytes), "{:?}: {bytes}", op.kind());
    }
}
