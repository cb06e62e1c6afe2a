//! A batch that goes through the model in slices trains as one that goes through it as a whole.

#[path = "support/small.rs"]
mod small;

use minigpt_core::{GptConfig, Model, Recompute, TrainConfig, Trainer, Windows};
use small::Small;

const TIME: usize = 5;

/// The loss and the gradient's norm of each of three steps of two micro-batches of 7 sequences, and how many of these
/// go through the model at once.
fn train(dropout: f64, recompute: Recompute, rows: usize) -> (Vec<(f64, f64)>, usize) {
    let config = GptConfig { layers: 2, heads: 2, d_model: 6, d_ff: 9, dropout, ..GptConfig::new(11, TIME) };
    let settings =
        TrainConfig { batch: 7, time: TIME, accumulation: 2, recompute, ..TrainConfig::constant(1e-2) };
    let model = Model::new(Small::<f64>::new(usize::MAX, rows), config, 1).unwrap();
    let mut trainer = Trainer::new(&model, settings).unwrap();
    let text: Vec<u32> = (0..100).map(|i| i * i % 11).collect();
    let windows = Windows::new(&text, TIME).unwrap();
    let steps = (0..3).map(|_| {
        trainer.step(&windows).unwrap();
        let metrics = trainer.metrics().unwrap();
        (metrics.loss, metrics.grad_norm)
    });
    (steps.collect(), trainer.plan().batch)
}

#[test]
fn a_batch_in_slices_trains_as_the_whole_also_with_dropout() {
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        for dropout in [0.0, 0.3] {
            let (whole, 7) = train(dropout, recompute, usize::MAX) else { panic!("not as a whole") };
            for (rows, expected) in [(6 * TIME, 4), (3 * TIME, 3), (2 * TIME, 2), (1, 1)] {
                let (sliced, at_once) = train(dropout, recompute, rows);
                assert_eq!(at_once, expected);
                for (a, b) in whole.iter().zip(&sliced) {
                    let near = |a: f64, b: f64| (a - b).abs() <= 1e-10 * a;
                    assert!(near(a.0, b.0) && near(a.1, b.1), "{dropout} {rows}: {a:?} {b:?}");
                }
            }
        }
        // What is dropped changes the loss: the comparison above would show other masks.
        assert_ne!(train(0.0, recompute, 1).0, train(0.3, recompute, 1).0);
    }
}
