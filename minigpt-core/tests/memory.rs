//! When memory does not suffice: an error, and nothing that stays taken.

#[path = "support/small.rs"]
mod small;

use minigpt_core::{ConfigError, Decoder, Error, GptConfig, Model, Recompute, TrainConfig, Trainer};
use small::Small;

fn model(room: usize) -> Model<Small<f32>> {
    let config = GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(11, 32) };
    Model::new(Small::new(room, 64), config, 1).unwrap()
}

fn used(model: &Model<Small<f32>>) -> usize {
    model.device().inspect(Small::used)
}

#[test]
fn a_decoder_or_a_pass_that_does_not_fit_leaves_nothing_behind() {
    let weights = used(&model(usize::MAX));
    let model = model(usize::MAX);
    let plan = Decoder::new(&model, 32).unwrap().plan().clone();
    // Room for each buffer but the last that is taken.
    for missing in [1, plan.bytes.state + 1, plan.bytes.state + plan.bytes.cache + 1] {
        let model =
            self::model(weights + plan.bytes.activations + plan.bytes.cache + plan.bytes.state - missing);
        let error = Decoder::new(&model, 32).unwrap_err();
        assert!(matches!(error, Error::Memory { needed, .. } if needed == plan.bytes.total()), "{error}");
        assert_eq!(used(&model), weights);
        assert!(model.logits(&[1; 64 * 32], 64, 32).unwrap_err().is_out_of_memory());
        assert_eq!(used(&model), weights);
        let mut decoder = Decoder::new(&model, 1).unwrap();
        decoder.feed(&[1, 2]).unwrap();
        drop(decoder);
        assert_eq!(used(&model), weights);
    }
}

#[test]
fn what_a_trainer_takes_is_its_plan_to_the_byte() {
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        let settings = TrainConfig { batch: 3, time: 9, recompute, ..TrainConfig::constant(1e-3) };
        let trainer = Trainer::new(&model(usize::MAX), settings.clone()).unwrap();
        let bytes = trainer.plan().bytes.total();
        assert_eq!(used(trainer.model()), bytes);
        assert!(Trainer::new(&model(bytes), settings.clone()).is_ok());
        assert!(Trainer::new(&model(bytes - 1), settings).unwrap_err().is_out_of_memory());
    }
}

#[test]
fn a_training_that_does_not_fit_is_told_what_recomputing_would_need() {
    let settings = |recompute| TrainConfig { batch: 3, time: 9, recompute, ..TrainConfig::constant(1e-3) };
    let needs = |recompute| {
        let trainer = Trainer::new(&model(usize::MAX), settings(recompute)).unwrap();
        trainer.plan().bytes.total()
    };
    let least = needs(Recompute::Blocks);
    let refused = |recompute, room| match Trainer::new(&model(room), settings(recompute)).unwrap_err() {
        Error::Memory { recomputing, source, needed } => {
            let text = Error::Memory { recomputing, source, needed }.to_string();
            assert_eq!(text.contains("Recompute::Blocks"), recomputing.is_some(), "{text}");
            (needed, recomputing)
        }
        other => panic!("{other}"),
    };
    for recompute in [Recompute::Nothing, Recompute::Cheap] {
        // Too small for the activations, and for the moments already.
        for room in [needs(recompute) - 1, needs(recompute) / 3] {
            assert_eq!(refused(recompute, room), (needs(recompute), Some(least)));
        }
        let mut frugal = Trainer::new(&model(least), settings(Recompute::Blocks)).unwrap();
        let text: Vec<u32> = (0..100).map(|i| i * i % 11).collect();
        frugal.step(&minigpt_core::Windows::new(&text, 9).unwrap()).unwrap();
    }
    assert_eq!(refused(Recompute::Blocks, least - 1), (least, None));
}

#[test]
fn a_batch_of_more_tokens_than_can_be_counted_is_refused_before_anything_is_taken() {
    let weights = used(&model(usize::MAX));
    let settings = TrainConfig { batch: usize::MAX / 2, time: 9, ..TrainConfig::constant(1e-3) };
    let error = Trainer::new(&model(weights), settings).unwrap_err();
    assert!(matches!(error, Error::Config(ConfigError::TooLarge { field: "batch" })), "{error}");
}

#[test]
fn a_decoder_that_is_reset_is_as_new() {
    let model = model(usize::MAX);
    let mut decoder = Decoder::new(&model, 8).unwrap();
    decoder.feed(&[1, 2, 3]).unwrap();
    let first = decoder.logits().to_vec();
    // Bad input changes nothing.
    decoder.feed(&[1, 99]).unwrap_err();
    decoder.feed(&[]).unwrap_err();
    assert_eq!((decoder.window(), decoder.logits()), (&[1, 2, 3][..], &first[..]));
    decoder.reset();
    assert_eq!((decoder.window(), decoder.logits()), (&[][..], &[0.0; 11][..]));
    decoder.feed(&[1, 2, 3]).unwrap();
    assert_eq!(decoder.logits(), first);
}
