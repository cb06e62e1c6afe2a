//! The model and its training on every instruction set of this machine, against PyTorch's numbers in f64.
//! `minigpt-core/tests/golden/make_golden.py` says where they come from.

#[allow(dead_code, reason = "minigpt-core's tests read the rest of it")]
#[path = "../../minigpt-core/tests/golden/load.rs"]
mod load;

use minigpt_cpu::{Cpu, Isa};

#[test]
fn logits_are_within_a_ten_thousandth_of_pytorchs_on_every_instruction_set() {
    for golden in load::all() {
        let all = golden.expected_logits();
        let largest = all.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        for isa in Isa::available() {
            let model = golden.model(Cpu::builder().isa(isa).build().unwrap());
            let logits = golden.logits(&model);
            assert_eq!(logits.len(), all.len());
            for (i, (found, expected)) in logits.into_iter().zip(&all).enumerate() {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= 1e-4 * largest, "{} on {isa:?}: logit {i} is off by {error:e}", golden.name);
            }
        }
    }
}

#[test]
fn fifty_steps_stay_within_a_thousandth_of_pytorchs_losses_on_every_instruction_set() {
    for golden in load::all() {
        for isa in Isa::available() {
            let mut trainer = golden.trainer(Cpu::builder().isa(isa).build().unwrap(), golden.batch);
            for (i, expected) in golden.losses.iter().enumerate() {
                golden.step(&mut trainer, i);
                let loss = trainer.metrics().unwrap().loss;
                let error = (loss - expected).abs();
                assert!(error <= 1e-3, "{} on {isa:?}, step {i}: off by {error:e}", golden.name);
            }
        }
    }
}
