//! What a plan promises is what a training takes.
#![cfg(feature = "std")]

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use minigpt_core::config::TrainConfig;
use minigpt_core::train::Trainer;
use minigpt_core::{GptConfig, Model, Recompute, Windows};
use minigpt_cpu::Cpu;

#[test]
fn the_plan_and_the_workspace_are_the_memory_that_training_takes() {
    let (vocab, time) = (65, 64);
    let text: Vec<u32> = (0..500).map(|i| i * i % vocab as u32).collect();
    let windows = Windows::new(&text, time).unwrap();
    use Recompute::{Blocks, Cheap, Nothing};
    // 2560 rows go through in slices.
    for (recompute, batch) in [(Nothing, 8), (Cheap, 8), (Cheap, 40), (Blocks, 8), (Blocks, 40)] {
        let config = GptConfig::new(vocab, time);
        let cpu = Cpu::builder().threads(2).build().unwrap();
        let settings = TrainConfig { batch, time, recompute, ..TrainConfig::constant(1e-3) };
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
            "{recompute:?}, {batch}: {promised} bytes were promised, {taken} were taken"
        );
    }
}
