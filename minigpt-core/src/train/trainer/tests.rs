use super::*;
use crate::checkpoint::{Checkpoint, Limits, Stream, StreamError};
use crate::data::Windows;
use crate::model::Extras;
use crate::{GptConfig, Reference};

fn trainer() -> Trainer<Reference<f32>> {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
    let settings = TrainConfig { batch: 2, time: 2, seed: 0x1234_5678_9abc, ..TrainConfig::constant(0.1) };
    Trainer::new(&Model::new(Reference::new(), config, 1).unwrap(), settings).unwrap()
}

#[test]
fn the_bytes_of_tokens_are_those_that_a_trainer_holds() {
    let Trainer { config, model, inputs, targets, staging, .. } = trainer();
    let held = 4 * (inputs.capacity() + targets.capacity()) + staging.capacity();
    model.device().inspect(|backend| assert_eq!(config.token_bytes(model.config(), backend), held));
}

#[test]
fn a_state_that_is_set_is_the_state_that_is_told() {
    let mut trainer = trainer();
    let state = trainer.state().unwrap();
    assert_eq!(state.counters[counter::SEED..counter::SEED + 2], [0x5678_9abc, 0x1234]);
    assert_eq!(state.windows_drawn, 0);
    let mut counters = [0; counter::LEN];
    counters[counter::TOKENS..counter::TOKENS + 2].copy_from_slice(&[7, 3]);
    counters[counter::STEP] = 9;
    let later = TrainState { counters, windows_drawn: 5 };
    trainer.set_state(&later).unwrap();
    assert_eq!(trainer.state().unwrap(), later);
    let metrics = trainer.metrics().unwrap();
    assert_eq!((metrics.tokens, metrics.step), (7 + (3 << 32), 9));
}

#[test]
fn a_resumed_run_has_the_settings_that_it_was_given() {
    let mut first = trainer();
    let text = [0u32, 1, 2, 0, 1, 2];
    first.step(&Windows::new(&text, 2).unwrap()).unwrap();
    let mut bytes = Vec::new();
    first.write(&mut bytes, &Extras::default()).unwrap();
    let changed = |seed| TrainConfig { batch: 1, time: 2, seed, ..TrainConfig::constant(0.25) };
    type Resumed = Result<Trainer<Reference<f32>>, Error<crate::ReferenceError>>;
    let whole = |config| -> Resumed {
        Trainer::resume_with(Reference::new(), &Checkpoint::open(&bytes).unwrap(), config)
    };
    let streamed = |config| -> Resumed {
        let mut header = Vec::new();
        let stream = Stream::open(&bytes[..], &mut header, &Limits::DEFAULT).unwrap();
        Trainer::resume_from_with(Reference::new(), stream, config).map_err(|error| match error {
            StreamError::Load(error) => error,
            other => panic!("{other}"),
        })
    };
    let mut weights = Vec::new();
    for resumed in [&whole as &dyn Fn(TrainConfig) -> Resumed, &streamed] {
        let mut second = resumed(changed(7)).unwrap();
        assert_eq!(second.config(), &changed(7));
        // The dropout masks follow the seed; how far the run has come is kept.
        let (before, after) = (first.state().unwrap(), second.state().unwrap());
        assert_eq!(after.counters[counter::SEED..counter::SEED + 2], [7, 0]);
        assert_eq!(after.counters[counter::DRAW..], before.counters[counter::DRAW..]);
        assert_eq!(after.windows_drawn, before.windows_drawn);
        second.step(&Windows::new(&text, 2).unwrap()).unwrap();
        let metrics = second.metrics().unwrap();
        assert_eq!((metrics.step, metrics.tokens, metrics.learning_rate), (2, 6, 0.25));
        let mut file = Vec::new();
        second.write(&mut file, &Extras::default()).unwrap();
        weights.push(file);
        let same = resumed(changed(first.config().seed)).unwrap().state().unwrap();
        assert_eq!(same.counters, before.counters);
        let without = TrainConfig { batch: 0, ..changed(7) };
        assert!(matches!(resumed(without).unwrap_err(), Error::Setting { field: "batch", .. }));
    }
    assert_eq!(weights[0], weights[1]);
}

#[test]
fn windows_are_counted_one_by_one() {
    let mut trainer = trainer();
    let text = [0u32, 1, 2, 0, 1, 2];
    trainer.step(&Windows::new(&text, 2).unwrap()).unwrap();
    trainer.step(&Windows::new(&text, 2).unwrap()).unwrap();
    assert_eq!(trainer.state().unwrap().windows_drawn, 4);
    let metrics = trainer.metrics().unwrap();
    assert_eq!((metrics.tokens, metrics.learning_rate), (8, f64::from(0.1f32)));
    // The gradient is that of the mean over the targets, and so is its norm.
    let names: Vec<_> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    let mut squared = 0.0;
    for name in names {
        let gradient = trainer.gradient(&name).unwrap().unwrap();
        squared += gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
    }
    assert!((metrics.grad_norm - libm::sqrt(squared)).abs() < 1e-6);
    assert!(trainer.gradient("no such parameter").unwrap().is_none());
}

#[test]
fn a_step_in_the_making_is_added_to_and_a_finished_one_is_not() {
    let mut trainer = trainer();
    let gradient = |trainer: &mut Trainer<_>| trainer.gradient("h.0.mlp.c_fc.weight").unwrap().unwrap();
    trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
    let once = gradient(&mut trainer);
    trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
    // The same batch twice has the same mean.
    let twice = gradient(&mut trainer);
    for (once, twice) in once.iter().zip(&twice) {
        assert!((once - twice).abs() <= 1e-6 * once.abs());
    }
    let mut sums = Sums::default();
    trainer.read_sums(&mut sums).unwrap();
    assert_eq!(sums.targets, 8.0);
    trainer.set_state(&TrainState { counters: [0; counter::LEN], windows_drawn: 0 }).unwrap();
    trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
    assert_eq!(gradient(&mut trainer), once);
    trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
    trainer.finish_step().unwrap();
    assert_eq!(trainer.config().batch, 2);
    assert_eq!(trainer.model().config().vocab_size, 3);
}

#[test]
fn a_step_that_failed_half_way_leaves_nothing_for_the_next() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
    let settings = TrainConfig { batch: 1, time: 2, accumulation: 2, ..TrainConfig::constant(0.1) };
    let mut trainer =
        Trainer::new(&Model::new(Reference::<f32>::new(), config, 1).unwrap(), settings).unwrap();
    // The first window is good, the second has a token that the model does not know.
    let seed = trainer.config().seed;
    let numbers: Vec<u32> = (0..40).collect();
    let places = Windows::new(&numbers, 2).unwrap();
    let (first, second) = (places.start(seed, 0), places.start(seed, 1));
    assert!(first.abs_diff(second) > 2);
    let mut text = [1u32; 40];
    text[second] = 9;
    assert!(matches!(trainer.step(&Windows::new(&text, 2).unwrap()), Err(Error::Token { token: 9, .. })));
    trainer.step(&Windows::new(&[1u32; 40], 2).unwrap()).unwrap();
    assert_eq!(trainer.metrics().unwrap().tokens, 4);
    assert_eq!(trainer.metrics().unwrap().step, 1);
}

#[test]
fn the_number_of_windows_wraps_around() {
    let mut trainer = trainer();
    let state = TrainState { windows_drawn: u64::MAX, ..trainer.state().unwrap() };
    trainer.set_state(&state).unwrap();
    trainer.step(&Windows::new(&[0u32, 1, 2, 0, 1, 2], 2).unwrap()).unwrap();
    assert_eq!(trainer.state().unwrap().windows_drawn, 1);
}
