//! What cannot be observed is an error, and leaves nothing behind.

use minigpt_core::model::Extras;
use minigpt_core::probe::{Point, Probe, Recording, TensorKind, when};
use minigpt_core::{
    Error, GptConfig, InvalidOp, Model, Reference, ReferenceError, TrainConfig, Trainer, Windows,
};

use super::small::Small;
use super::{model, tokens};

fn config() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(11, 32) }
}

fn used(model: &Model<Small<f32>>) -> usize {
    model.device().inspect(Small::used)
}

fn weights() -> Recording<f32, impl FnMut(&Point) -> bool> {
    Recording::of(|at: &Point| at.kind == TensorKind::AttentionWeights)
}

#[test]
fn a_pass_for_whose_probe_there_is_no_room_gives_back_what_it_took() {
    let tokens = tokens(&config(), 32, 1);
    let model = model(Small::<f32>::new(usize::MAX, usize::MAX), &config(), 1);
    let before = used(&model);
    let mut seen = weights();
    model.observe(&tokens, 1, 32, &mut seen).unwrap();
    assert_eq!(used(&model), before);
    // Without the (H, T, T) of one layer it would fit.
    let plan = minigpt_core::Plan::inference(&config(), minigpt_core::Dtype::F32, 1, 32);
    let bytes = plan.unwrap().bytes;
    let matrix = 4 * 2 * 32 * 32;
    let room = before + bytes.activations + bytes.state + matrix;
    let model = super::model(Small::<f32>::new(room - 1, usize::MAX), &config(), 1);
    let error = model.observe(&tokens, 1, 32, &mut weights()).unwrap_err();
    assert!(matches!(error, Error::Memory { needed, .. } if needed == matrix), "{error}");
    assert_eq!(used(&model), before);
    model.observe(&tokens, 1, 32, &mut when(|_| false, |_, _: &[f32]| ())).unwrap();
    let model = super::model(Small::<f32>::new(room, usize::MAX), &config(), 1);
    model.observe(&tokens, 1, 32, &mut weights()).unwrap();
}

#[test]
fn a_micro_step_for_whose_probe_there_is_no_room_leaves_the_step_in_the_making() {
    let settings = TrainConfig { batch: 2, time: 32, ..TrainConfig::constant(0.1) };
    let (inputs, targets) = (tokens(&config(), 64, 1), tokens(&config(), 64, 2));
    let of = |room| {
        let model = model(Small::<f32>::new(room, usize::MAX), &config(), 1);
        let mut trainer = Trainer::new(&model, settings.clone()).unwrap();
        trainer.micro_step(&inputs, &targets).unwrap();
        trainer
    };
    let finished = |mut trainer: Trainer<Small<f32>>| {
        trainer.micro_step(&targets, &inputs).unwrap();
        trainer.finish_step().unwrap();
        let mut file = Vec::new();
        trainer.write(&mut file, &Extras::default()).unwrap();
        file
    };
    let unobserved = of(usize::MAX);
    let mut full = of(used(unobserved.model()));
    let error = full.observe_micro_step(&inputs, &targets, &mut weights()).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    assert!(full.observe_micro_step(&inputs[1..], &targets, &mut weights()).is_err());
    assert!(finished(full) == finished(unobserved));
}

/// Has no room for the tensor number `.0`.
struct Full(usize);

impl Probe<f32> for Full {
    fn wants(&mut self, _: &Point) -> bool {
        true
    }

    fn see(&mut self, _: &Point, _: Vec<f32>) -> Result<(), InvalidOp> {
        self.0 = self.0.checked_sub(1).ok_or(InvalidOp::HostMemory { operand: "picture", bytes: 7 })?;
        Ok(())
    }
}

#[test]
fn a_probes_error_ends_the_pass_and_drops_the_step() {
    let is_probes = |error: Error<ReferenceError>| {
        matches!(
            error,
            Error::Backend(ReferenceError::Op(InvalidOp::HostMemory { operand: "picture", bytes: 7 }))
        )
    };
    let text = tokens(&config(), 100, 1);
    let windows = Windows::new(&text, 32).unwrap();
    let model = model(Small::<f32>::new(usize::MAX, usize::MAX), &config(), 1);
    let mut trainer = Trainer::new(&model, TrainConfig { time: 32, ..TrainConfig::constant(0.1) }).unwrap();
    let before = used(&model);
    for seen in [0, 5, 40] {
        assert!(is_probes(model.observe(&text[..32], 1, 32, &mut Full(seen.min(20))).unwrap_err()));
        assert!(is_probes(trainer.observe_step(&windows, &mut Full(seen)).unwrap_err()));
        let micro_step = trainer.observe_micro_step(&text[..32], &text[1..33], &mut Full(seen));
        assert!(is_probes(micro_step.unwrap_err()));
        assert_eq!(trainer.finish_step(), Err(Error::EmptyStep));
        assert_eq!(used(&model), before);
    }
    trainer.observe_step(&windows, &mut Full(usize::MAX)).unwrap();
    assert_eq!(trainer.metrics().unwrap().step, 1);
}

/// Panics at what it sees, after so many others; or at a gradient of a parameter.
struct Panics(usize);

impl Probe<f32> for Panics {
    fn wants(&mut self, _: &Point) -> bool {
        true
    }

    fn see(&mut self, _: &Point, _: Vec<f32>) -> Result<(), InvalidOp> {
        self.0 = self.0.checked_sub(1).expect("on purpose");
        Ok(())
    }

    fn wants_gradient(&mut self, _: &minigpt_core::plan::Tensor) -> bool {
        true
    }

    fn see_gradient(&mut self, _: &minigpt_core::plan::Tensor, _: Vec<f32>) -> Result<(), InvalidOp> {
        panic!("on purpose")
    }
}

#[test]
fn a_probe_that_panics_drops_the_step() {
    let (inputs, targets) = (tokens(&config(), 32, 1), tokens(&config(), 32, 2));
    let model = model(Reference::<f32>::new(), &config(), 1);
    let mut trainer = Trainer::new(&model, TrainConfig { time: 32, ..TrainConfig::constant(0.1) }).unwrap();
    for seen in [5, usize::MAX] {
        trainer.micro_step(&inputs, &targets).unwrap();
        let panics =
            std::panic::AssertUnwindSafe(|| trainer.observe_micro_step(&inputs, &targets, &mut Panics(seen)));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(trainer.finish_step(), Err(Error::EmptyStep));
    }
    trainer.micro_step(&inputs, &targets).unwrap();
    trainer.finish_step().unwrap();
    assert_eq!(trainer.metrics().unwrap().tokens, 32);
}

#[test]
fn a_probe_may_use_the_model_and_its_device() {
    let model = model(Reference::<f32>::new(), &config(), 1);
    let (asked, shown) = (model.clone(), model.clone());
    let mut names = Vec::new();
    let mut probe = when(
        |at| asked.parameter("wte.weight").is_ok() && at.kind == TensorKind::Logits,
        |_, logits: &[f32]| names.push(shown.logits(&[1, 2, 3], 1, 3).is_ok_and(|l| l == logits)),
    );
    model.observe(&[1, 2, 3], 1, 3, &mut probe).unwrap();
    drop(probe);
    assert_eq!(names, [true]);
}
