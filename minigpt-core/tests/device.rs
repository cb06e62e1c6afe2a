//! Many things on one device: they do not disturb each other, and what they took comes back.

#[path = "support/small.rs"]
mod small;

use minigpt_core::checkpoint::{Limits, Stream};
use minigpt_core::model::Extras;
use minigpt_core::{
    Checkpoint, Decoder, Device, Dtype, EvalWindows, GptConfig, Model, Reference, ReferenceError,
    SampleConfig, Sampler, TrainConfig, Trainer, Windows,
};
use small::Small;

type Backend = Reference<f32>;

fn config() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, dropout: 0.1, ..GptConfig::new(11, 8) }
}

fn settings() -> TrainConfig {
    TrainConfig { batch: 3, time: 8, ..TrainConfig::constant(1e-2) }
}

fn text() -> Vec<u32> {
    (0..300).map(|i| i * i % 11).collect()
}

/// Twelve tokens, of which the first two are given.
fn spoken(decoder: &mut Decoder<Backend>, seed: u64) -> Vec<u32> {
    let mut sampler = Sampler::new(SampleConfig { seed, ..SampleConfig::default() }, 11).unwrap();
    decoder.reset();
    decoder.feed(&[seed as u32, 1]).unwrap();
    decoder.generate(&mut sampler).take(10).map(Result::unwrap).collect()
}

/// What a trainer, an evaluation, three decoders and another model come to, step by step in turns: on the devices that
/// `place` gives them.
fn together(mut place: impl FnMut() -> Device<Backend>) -> (Vec<f64>, Vec<Vec<u32>>, Vec<f32>) {
    let text = text();
    let (windows, eval) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text, 8).unwrap());
    let model = Model::new(place(), config(), 1).unwrap();
    let other = Model::new(place(), GptConfig { heads: 4, ..config() }, 2).unwrap();
    let mut trainer = Trainer::new(&model, settings()).unwrap();
    let mut decoders = [&model, &model, &other].map(|model| Decoder::new(model, 3).unwrap());
    let (mut losses, mut texts) = (Vec::new(), Vec::new());
    for step in 0..4 {
        trainer.step(&windows).unwrap();
        texts.extend(decoders.iter_mut().zip(step..).map(|(decoder, seed)| spoken(decoder, seed)));
        losses.extend([trainer.metrics().unwrap().loss, trainer.evaluate(&eval).unwrap()]);
    }
    let logits = other.logits(&[1, 2, 3], 1, 3).unwrap();
    (losses, texts, logits)
}

#[test]
fn a_trainer_an_evaluation_three_decoders_and_another_model_live_on_one_device() {
    let device = Device::new(Reference::new());
    let shared = together(|| device.clone());
    assert_eq!(shared, together(|| Device::new(Reference::new())));
    assert!(device.into_backend().is_ok(), "something still lives on the device");
}

#[test]
fn whoever_lives_on_a_device_outlives_those_who_do_not() {
    let model = Model::new(Reference::<f32>::new(), config(), 1).unwrap();
    let logits = model.logits(&[3, 1], 1, 2).unwrap();
    let mut decoder = Decoder::new(&model, 8).unwrap();
    // The weights stay as long as a decoder needs them.
    drop(model);
    decoder.feed(&[3, 1]).unwrap();
    let near = decoder.logits().iter().zip(&logits[11..]).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(near, "{:?} {logits:?}", decoder.logits());
}

#[test]
fn ten_thousand_decoders_and_passes_leave_a_device_as_it_was() {
    let device = Device::new(Reference::<f32>::new());
    let config = GptConfig { layers: 1, heads: 1, d_model: 2, d_ff: 2, ..GptConfig::new(3, 2) };
    let model = Model::new(&device, config, 1).unwrap();
    {
        let _at_once = Decoder::new(&model, 1).unwrap();
        model.logits(&[0, 1], 1, 2).unwrap();
    }
    // A buffer that is not given back keeps its place.
    let places = device.inspect(Reference::places);
    for i in 0..10_000 {
        let mut decoder = Decoder::new(&model, 1).unwrap();
        if i % 1000 == 0 {
            decoder.feed(&[1, 2, 0]).unwrap();
            model.logits(&[0, 1], 1, 2).unwrap();
        }
    }
    assert_eq!(device.inspect(Reference::places), places);
}

#[cfg(feature = "std")]
#[test]
fn threads_share_one_set_of_weights() {
    let model = Model::new(Reference::<f32>::new(), config(), 1).unwrap();
    let alone: Vec<Vec<u32>> =
        (0..4).map(|seed| spoken(&mut Decoder::new(&model, 2).unwrap(), seed)).collect();
    let side_by_side: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let start = |seed| {
            scope.spawn({
                let model = &model;
                move || spoken(&mut Decoder::new(model, 2).unwrap(), seed)
            })
        };
        let threads: Vec<_> = (0..4).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(side_by_side, alone);
}

#[test]
fn a_constructor_that_fails_leaves_the_device_and_the_model_usable() {
    let model = Model::new(Small::<f32>::new(100_000, usize::MAX), config(), 1).unwrap();
    let used = model.device().inspect(Small::used);
    let error = Trainer::new(&model, settings()).map(drop).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    assert_eq!(model.device().inspect(Small::used), used);
    let error = Model::<Small<f32>>::new(model.device(), GptConfig { d_ff: 4096, ..config() }, 1)
        .map(drop)
        .unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    assert_eq!(model.device().inspect(Small::used), used);
    let _: ReferenceError = match error {
        minigpt_core::Error::Memory { source, .. } => source,
        other => panic!("{other}"),
    };
    model.logits(&[1, 2], 1, 2).unwrap();
}

#[cfg(feature = "std")]
#[test]
fn one_thread_trains_while_others_decode_and_drop() {
    let text = text();
    let (model, other) =
        (Model::new(Reference::<f32>::new(), config(), 1).unwrap(), GptConfig { heads: 4, ..config() });
    let still = Model::new(model.device(), other, 2).unwrap();
    let mut trainer = Trainer::new(&model, settings()).unwrap();
    let mut alone =
        Trainer::new(&Model::new(Reference::<f32>::new(), config(), 1).unwrap(), settings()).unwrap();
    let windows = Windows::new(&text, 8).unwrap();
    let expected = spoken(&mut Decoder::new(&still, 2).unwrap(), 3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                (0..20).for_each(|_| assert_eq!(spoken(&mut Decoder::new(&still, 2).unwrap(), 3), expected))
            });
        }
        (0..20).for_each(|_| trainer.step(&windows).unwrap());
    });
    (0..20).for_each(|_| alone.step(&windows).unwrap());
    assert_eq!(trainer.metrics().unwrap(), alone.metrics().unwrap());
}

#[test]
fn a_model_that_does_not_fit_leaves_none_of_its_tensors_behind() {
    let wide = Model::new(Small::<f32>::new(usize::MAX, usize::MAX), config(), 1).unwrap();
    let narrow = wide.quantized(Small::new(usize::MAX, usize::MAX), Dtype::Q8_0).unwrap();
    let mut file = Vec::new();
    narrow.write(&mut file, &Extras::default()).unwrap();
    let checkpoint = Checkpoint::open_verified(&file).unwrap();
    let needed = narrow.device().inspect(Small::used);
    for room in [needed - 1, needed / 2, needed / 7] {
        let device = Device::new(Small::<f32>::new(room, usize::MAX));
        let mut header = Vec::new();
        let stream = Stream::open(&file[..], &mut header, &Limits::DEFAULT).unwrap();
        assert!(Model::load_from(&device, stream).is_err());
        assert!(Model::borrow(&device, &checkpoint).is_err());
        assert!(wide.quantized(&device, Dtype::Q8_0).is_err());
        assert_eq!(device.inspect(Small::used), 0, "{room} of {needed} bytes");
    }
}
