//! The learning rate is the schedule's or any function's, and a schedule is what it was when a run goes on.

#[path = "support/by_hand.rs"]
#[expect(dead_code, reason = "shared with the golden files")]
mod by_hand;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use minigpt_core::checkpoint::{self, Contents, Training};
use minigpt_core::model::Extras;
use minigpt_core::{
    Checkpoint, Decay, Error, GptConfig, Group, Groups, Model, Reference, ReferenceError, Schedule,
    TrainConfig, Trainer, Windows,
};
use support::{header, small_config, small_training, varint};

const TEXT: [u32; 13] = [0, 1, 4, 4, 1, 0, 1, 4, 4, 2, 0, 3, 1];

const STABLE: Schedule =
    Schedule { peak: 0.1, floor: 0.01, warmup: 2, steps: 9, decay: Decay::Stable { decay_steps: 4 } };

fn trainer() -> Trainer<Reference<f32>> {
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(5, 4) };
    let settings = TrainConfig { batch: 2, time: 4, schedule: STABLE, ..TrainConfig::constant(0.5) };
    Trainer::new(&Model::new(Reference::new(), config, 1).unwrap(), settings).unwrap()
}

fn windows() -> Windows<'static> {
    Windows::new(&TEXT, 4).unwrap()
}

fn steps(trainer: &mut Trainer<Reference<f32>>, count: u32) {
    (0..count).for_each(|_| trainer.step(&windows()).unwrap());
}

fn written(trainer: &Trainer<Reference<f32>>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

fn rate(trainer: &mut Trainer<Reference<f32>>) -> f64 {
    trainer.metrics().unwrap().learning_rate
}

#[test]
fn a_function_that_is_the_schedule_gives_its_bits() {
    let (mut built_in, mut own) = (trainer(), trainer());
    own.set_schedule(|step| STABLE.learning_rate(step));
    for _ in 0..11 {
        steps(&mut built_in, 1);
        steps(&mut own, 1);
        assert_eq!(built_in.metrics().unwrap(), own.metrics().unwrap());
    }
    assert!(written(&built_in) == written(&own));
}

#[test]
fn a_function_takes_the_place_of_the_schedule_for_what_follows() {
    let mut trainer = trainer();
    steps(&mut trainer, 2);
    trainer.set_schedule(|step| f64::from(step) / 64.0);
    steps(&mut trainer, 1);
    assert_eq!(rate(&mut trainer), 2.0 / 64.0);
    trainer.set_schedule(|_| 0.0);
    steps(&mut trainer, 1);
    assert_eq!(rate(&mut trainer), 0.0);

    // It is not saved: a run that is resumed goes on by the config's.
    let file = written(&trainer);
    let checkpoint = Checkpoint::open(&file).unwrap();
    let mut resumed = Trainer::resume(Reference::new(), &checkpoint).unwrap();
    steps(&mut resumed, 1);
    assert_eq!(rate(&mut resumed), f64::from(STABLE.learning_rate(4) as f32));
}

#[test]
fn a_rate_that_is_none_is_refused_and_nothing_is_lost() {
    // The last is infinite as an f32.
    for bad in [-0.1, -f64::MIN_POSITIVE, f64::NAN, f64::INFINITY, 1e300] {
        let (mut quiet, mut tried) = (trainer(), trainer());
        let good = |step| STABLE.learning_rate(step);
        let at_two = move |step| if step == 2 { bad } else { good(step) };
        let refused = |result: Result<(), Error<ReferenceError>>| match result {
            Err(Error::LearningRate { step: 2, rate }) => assert_eq!(rate.to_bits(), bad.to_bits()),
            other => panic!("{other:?}"),
        };
        steps(&mut quiet, 2);
        tried.set_schedule(at_two);
        steps(&mut tried, 2);

        // Before a step has begun.
        let before = written(&tried);
        refused(tried.step(&windows()));
        refused(tried.accumulate(&windows()));
        assert!(written(&tried) == before);
        // And with a step in the making, which the next schedule finishes.
        for trainer in [&mut quiet, &mut tried] {
            trainer.micro_step(&TEXT[..8], &TEXT[1..9]).unwrap();
        }
        refused(tried.finish_step());
        refused(tried.finish_step());
        assert_eq!(tried.loss().unwrap(), quiet.loss().unwrap());
        tried.set_schedule(good);
        for trainer in [&mut quiet, &mut tried] {
            trainer.finish_step().unwrap();
            steps(trainer, 1);
        }
        assert!(written(&tried) == written(&quiet), "{bad}");
    }
    let message = Error::<ReferenceError>::LearningRate { step: 2, rate: -0.1 }.to_string();
    assert!(
        message.starts_with("the learning rate of step 2 is -0.1, and must be at least 0 and"),
        "{message}"
    );
}

#[test]
fn a_factor_of_a_group_beyond_the_numbers_is_refused_before_it_breaks_the_weights() {
    let usual = Groups::adamw(0.9, 0.99, 0.1);
    for group in [Group { rate: 1e300, ..usual.head }, Group { weight_decay: 1e300, ..usual.head }] {
        for groups in [
            Groups { embeddings: group, ..usual },
            Groups { matrices: group, ..usual },
            Groups { vectors: group, ..usual },
        ] {
            let settings = TrainConfig { groups, ..trainer().config().clone() };
            let mut trainer = Trainer::new(trainer().model(), settings).unwrap();
            let before = written(&trainer);
            let refused = trainer.step(&windows()).unwrap_err();
            assert!(matches!(refused, Error::LearningRate { step: 0, .. }), "{refused:?}");
            assert!(written(&trainer) == before);
        }
    }
}

#[test]
fn a_stable_schedule_goes_on_where_it_was_saved() {
    let mut whole = trainer();
    steps(&mut whole, 6);
    let file = written(&whole);
    let checkpoint = Checkpoint::open(&file).unwrap();
    assert_eq!(checkpoint.training().unwrap().config.schedule, STABLE);
    let mut resumed = Trainer::resume(Reference::new(), &checkpoint).unwrap();
    for _ in 0..5 {
        steps(&mut whole, 1);
        steps(&mut resumed, 1);
        assert_eq!(whole.metrics().unwrap(), resumed.metrics().unwrap());
    }
    assert_eq!(rate(&mut whole), f64::from(STABLE.floor as f32));
    assert!(written(&whole) == written(&resumed));
}

#[test]
fn every_decay_is_written_as_the_prose_says_and_comes_back() {
    let config = small_config();
    let stable = |decay_steps| Decay::Stable { decay_steps };
    for decay in [Decay::Constant, Decay::Linear, Decay::Cosine, stable(0), stable(300), stable(u32::MAX)] {
        let mut training: Training = small_training();
        training.config.schedule.decay = decay;
        let contents = Contents {
            config: &config,
            tokenizer: None,
            training: Some(&training),
            metadata: &[],
            tensors: &[],
        };
        let mut file = Vec::new();
        checkpoint::write(&mut file, &contents, support::fill).unwrap();
        let sections = [
            (b"CONF", 1, by_hand::conf(&config)),
            (b"TRAN", 0, by_hand::tran(&training)),
            (b"TENS", 1, varint(0)),
        ];
        assert!(file == header(2, &sections), "{decay:?} is written otherwise than the prose says");
        assert_eq!(Checkpoint::open_verified(&file).unwrap().training(), Some(&training));
    }
}

#[test]
fn a_decay_that_there_is_not_is_refused() {
    let mut training = small_training();
    training.config.schedule.decay = Decay::Stable { decay_steps: 7 };
    let body = by_hand::tran(&training);
    let place = body.windows(2).position(|bytes| bytes == [3, 7]).unwrap();
    let conf = by_hand::conf(&small_config());
    let open = |body: &[u8]| {
        let sections = [(b"CONF", 1, conf.clone()), (b"TRAN", 0, body.to_vec()), (b"TENS", 1, varint(0))];
        Checkpoint::open(&header(2, &sections)).map(drop)
    };
    assert_eq!(open(&body), Ok(()));
    let mut other = body.clone();
    other[place] = 4;
    open(&other).unwrap_err();
    // The choices before it carry nothing.
    other[place] = 2;
    open(&other).unwrap_err();
}
