//! What the trainer promises, on the reference backend.

use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::config::schedule::{Decay, Schedule};
use minigpt_core::data::{EvalWindows, Windows};
use minigpt_core::model::Extras;
use minigpt_core::op::IGNORE;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Bias, CharTokenizer, Decoder, Error, GptConfig, Groups, Model, Reference, SampleConfig, Sampler,
    TrainConfig, Trainer,
};

fn small() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(11, 8) }
}

fn text(len: usize) -> Vec<u32> {
    let mut rng = Rng::new(5, Stream::User);
    let mut last = 0;
    (0..len)
        .map(|_| {
            last = (last * 3 + 1 + (rng.below(4) == 0) as u32) % 11;
            last
        })
        .collect()
}

fn settings() -> TrainConfig {
    let schedule = Schedule { peak: 1e-2, floor: 1e-3, warmup: 5, steps: 200, decay: Decay::Cosine };
    TrainConfig { batch: 3, time: 8, schedule, ..TrainConfig::constant(1e-2) }
}

fn trainer(config: GptConfig, settings: TrainConfig) -> Trainer<Reference<f32>> {
    Trainer::new(&Model::new(Reference::new(), config, 3).unwrap(), settings).unwrap()
}

fn saved(trainer: &mut Trainer<Reference<f32>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let extras = Extras { tokenizer: None, metadata: &[("note", "a test")] };
    trainer.write(&mut bytes, &extras).unwrap();
    bytes
}

#[test]
fn resume_is_bit_exact() {
    for (dropout, accumulation) in [(0.0, 1), (0.3, 2)] {
        let config = GptConfig { dropout, bias: Bias::ALL, ..small() };
        let settings = TrainConfig { accumulation, ..settings() };
        let text = text(300);
        let windows = Windows::new(&text, 8).unwrap();
        let mut whole = trainer(config.clone(), settings.clone());
        for _ in 0..200 {
            whole.step(&windows).unwrap();
        }
        let mut first = trainer(config, settings);
        for _ in 0..100 {
            first.step(&windows).unwrap();
        }
        let half = saved(&mut first);
        drop(first);
        let checkpoint = Checkpoint::open(&half).unwrap();
        assert_eq!(checkpoint.metadata(), [("note", "a test")]);
        let mut second = Trainer::resume(Reference::<f32>::new(), &checkpoint).unwrap();
        assert_eq!(second.metrics().unwrap().step, 100);
        for _ in 0..100 {
            second.step(&windows).unwrap();
        }
        assert_eq!(second.metrics().unwrap(), whole.metrics().unwrap());
        assert!(saved(&mut second) == saved(&mut whole), "dropout {dropout}: the checkpoints differ");
    }
}

#[test]
fn accumulated_gradients_equal_the_large_batch() {
    let text = text(300);
    let windows = Windows::new(&text, 8).unwrap();
    let run = |batch, accumulation| {
        let mut trainer = trainer(small(), TrainConfig { batch, accumulation, ..settings() });
        trainer.step(&windows).unwrap();
        let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
        let gradients: Vec<Vec<f32>> =
            names.iter().map(|name| trainer.gradient(name).unwrap().unwrap()).collect();
        (gradients, trainer.metrics().unwrap())
    };
    let ((split, split_metrics), (whole, whole_metrics)) = (run(3, 4), run(12, 1));
    assert_eq!(split_metrics.tokens, whole_metrics.tokens);
    assert!((split_metrics.loss - whole_metrics.loss).abs() < 1e-5);
    for (split, whole) in split.iter().zip(&whole) {
        let scale = whole.iter().fold(0f32, |max, x| max.max(x.abs()));
        assert!(scale > 0.0);
        for (a, b) in split.iter().zip(whole) {
            assert!((a - b).abs() <= 1e-5 * scale, "{a} {b} of {scale}");
        }
    }
}

#[test]
fn ignored_targets_count_neither_in_loss_nor_gradient() {
    let mut trainer = trainer(small(), settings());
    let inputs = text(24);
    let mut targets = text(24);
    let mut run = |targets: &[u32]| {
        trainer.micro_step(&inputs, targets).unwrap();
        let gradient = trainer.gradient("h.1.mlp.c_proj.weight").unwrap().unwrap();
        let before = trainer.metrics().unwrap().tokens;
        trainer.finish_step().unwrap();
        (gradient, trainer.metrics().unwrap().tokens - before)
    };
    targets[8..].fill(IGNORE);
    let (gradient, counted) = run(&targets);
    assert_eq!(counted, 8);
    assert!(gradient.iter().any(|g| *g != 0.0));
    targets.fill(IGNORE);
    let (gradient, counted) = run(&targets);
    assert_eq!(counted, 0);
    assert!(gradient.iter().all(|g| *g == 0.0));
    // A step with nothing to learn from is skipped, not divided by zero.
    assert_eq!(trainer.metrics().unwrap().skipped, 1);
}

#[test]
fn a_step_that_is_not_finite_changes_no_weight_and_is_counted() {
    let text = text(300);
    let windows = Windows::new(&text, 8).unwrap();
    let mut trainer = trainer(small(), settings());
    trainer.step(&windows).unwrap();
    let name = "h.0.mlp.c_fc.weight";
    let healthy = trainer.model().parameter(name).unwrap().unwrap();
    let mut broken = healthy.clone();
    broken[7] = f32::NAN;
    trainer.model().set_parameter(name, &broken).unwrap();
    let other = trainer.model().parameter("wte.weight").unwrap().unwrap();
    for _ in 0..3 {
        trainer.step(&windows).unwrap();
    }
    let metrics = trainer.metrics().unwrap();
    assert!(metrics.loss.is_nan());
    assert_eq!((metrics.step, metrics.skipped, metrics.skipped_in_a_row), (4, 3, 3));
    assert_eq!(trainer.model().parameter("wte.weight").unwrap().unwrap(), other);
    trainer.model().set_parameter(name, &healthy).unwrap();
    trainer.step(&windows).unwrap();
    let metrics = trainer.metrics().unwrap();
    assert!(metrics.loss.is_finite());
    assert_eq!((metrics.step, metrics.skipped, metrics.skipped_in_a_row), (5, 3, 0));
    assert_ne!(trainer.model().parameter("wte.weight").unwrap().unwrap(), other);
}

#[test]
fn evaluation_is_the_mean_over_all_windows_and_disturbs_nothing() {
    let text = text(300);
    let windows = Windows::new(&text, 8).unwrap();
    let config = GptConfig { dropout: 0.2, ..small() };
    let (mut quiet, mut watched) = (trainer(config.clone(), settings()), trainer(config, settings()));
    let eval = EvalWindows::new(&text[..60], 8).unwrap();
    let micro: Vec<u32> = text[..24].to_vec();
    for t in [&mut quiet, &mut watched] {
        t.micro_step(&micro, &text[1..25]).unwrap();
    }
    let loss = watched.evaluate(&eval).unwrap();
    for t in [&mut quiet, &mut watched] {
        t.finish_step().unwrap();
        t.step(&windows).unwrap();
    }
    assert!(saved(&mut quiet) == saved(&mut watched), "evaluation changed the run");

    // The same by hand, from the logits. 7 windows: two full batches of three, and one alone.
    let model = trainer(GptConfig { dropout: 0.2, ..small() }, settings()).into_model();
    let mut fresh = trainer(GptConfig { dropout: 0.2, ..small() }, settings());
    assert_eq!(eval.len(), 7);
    let by_trainer = fresh.evaluate(&eval).unwrap();
    let (mut sum, mut count) = (0.0, 0.0);
    let (mut inputs, mut targets) = ([0; 56], [0; 56]);
    eval.fill(0, 7, &mut inputs, &mut targets).unwrap();
    for (inputs, targets) in inputs.chunks(8).zip(targets.chunks(8)) {
        let logits = model.logits(inputs, 1, 8).unwrap();
        for (row, &target) in logits.chunks(11).zip(targets) {
            let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum += total.ln() - f64::from(row[target as usize]);
            count += 1.0;
        }
    }
    assert!((by_trainer - sum / count).abs() < 1e-6, "{by_trainer} {}", sum / count);
    assert!((loss - by_trainer).abs() < 1e-6);
}

#[test]
fn it_learns_a_text_that_can_be_learnt() {
    let text = text(2000);
    let windows = Windows::new(&text, 8).unwrap();
    let mut trainer = trainer(small(), settings());
    for _ in 0..200 {
        trainer.step(&windows).unwrap();
    }
    let loss = trainer.evaluate(&EvalWindows::new(&text, 8).unwrap()).unwrap();
    // Three quarters of the tokens follow from the one before, the others are one step further: 0.56 nats.
    assert!(loss < 0.65, "{loss}");
    let checkpoint = saved(&mut trainer);
    let opened = Checkpoint::open(&checkpoint).unwrap();
    let copied = Model::load(Reference::<f32>::new(), &opened).unwrap();
    let borrowed = Model::borrow(Reference::<f32>::new(), &opened).unwrap();
    let logits = trainer.model().logits(&text[..8], 1, 8).unwrap();
    assert_eq!(copied.logits(&text[..8], 1, 8).unwrap(), logits);
    assert_eq!(borrowed.logits(&text[..8], 1, 8).unwrap(), logits);
    assert!(matches!(Trainer::new(&borrowed, settings()), Err(Error::Frozen)));
    // Another number type is converted where it is copied, and refused at once where it would be borrowed.
    assert!(Model::load(Reference::<f64>::new(), &opened).is_ok());
    let error = Model::borrow(Reference::<f64>::new(), &opened).unwrap_err();
    assert_eq!(error.to_string(), "`a matrix` holds F32 where F64 is needed");

    let mut inference = Vec::new();
    let characters = CharTokenizer::from_text("abcdefghijk").unwrap().into();
    copied.write(&mut inference, &Extras { tokenizer: Some(&characters), metadata: &[] }).unwrap();
    assert!(inference.len() < checkpoint.len() / 2);
    let opened = Checkpoint::open_verified(&inference).unwrap();
    assert_eq!(opened.tokenizer(), Some(&characters));
    assert!(matches!(Trainer::resume(Reference::<f32>::new(), &opened), Err(Error::NoTraining)));
}

#[test]
fn bad_settings_and_bad_batches_are_errors() {
    let model = || Model::new(Reference::<f32>::new(), small(), 1).unwrap();
    let refused = |settings| Trainer::new(&model(), settings).err().map(|error| error.to_string());
    assert_eq!(
        refused(TrainConfig { time: 9, ..settings() }).unwrap(),
        "9 tokens in a sequence are more than the context of 8: use shorter sequences or a model with a longer context"
    );
    assert_eq!(
        refused(TrainConfig { batch: 0, ..settings() }).unwrap(),
        "the training setting `batch` must be at least 1"
    );
    assert_eq!(
        refused(TrainConfig { groups: Groups::adamw(0.9, 1.0, 0.1), ..settings() }).unwrap(),
        "the training setting `groups.embeddings.beta2` must be at least 0 and below 1"
    );
    assert!(refused(TrainConfig { clip: f64::NAN, ..settings() }).is_some());
    assert!(refused(TrainConfig { clip: f64::INFINITY, ..settings() }).is_none());
    let huge = refused(TrainConfig { batch: 1 << (usize::BITS - 8), ..settings() }).unwrap();
    assert!(huge.contains("too large") || huge.contains("MB are needed"), "{huge}");

    let mut trainer = trainer(small(), settings());
    let good = vec![1; 24];
    let mut unknown = good.clone();
    unknown[5] = 11;
    assert_eq!(
        trainer.micro_step(&unknown, &good).unwrap_err().to_string(),
        "token 11 at place 5 is not in the vocabulary of 11: encode with the model's tokenizer"
    );
    assert!(matches!(trainer.micro_step(&good, &unknown), Err(Error::Token { token: 11, index: 5, .. })));
    assert!(matches!(
        trainer.micro_step(&good[1..], &good),
        Err(Error::BatchLength { found: 23, expected: 24 })
    ));
    let tokens = text(100);
    let longer = Windows::new(&tokens, 9).unwrap();
    assert!(matches!(trainer.step(&longer), Err(Error::BatchLength { found: 27, expected: 24 })));
    let longer = EvalWindows::new(&tokens, 9).unwrap();
    assert!(matches!(trainer.evaluate(&longer), Err(Error::BatchLength { found: 9, expected: 8 })));
    let mut decoder = Decoder::new(trainer.model(), 8).unwrap();
    assert!(matches!(decoder.feed(&[]), Err(Error::EmptyPrompt)));
    assert!(matches!(decoder.feed(&[0, 99]), Err(Error::Token { token: 99, index: 1, .. })));
}

#[test]
fn dropout_acts_in_training_alone_and_is_fresh_in_each_pass() {
    let text = text(9);
    let eval = EvalWindows::new(&text, 8).unwrap();
    let losses = |dropout| {
        let settings = TrainConfig { batch: 1, time: 8, ..TrainConfig::constant(0.0) };
        let mut trainer = trainer(GptConfig { dropout, ..small() }, settings);
        let steps = [(); 3].map(|()| {
            trainer.micro_step(&text[..8], &text[1..]).unwrap();
            trainer.finish_step().unwrap();
            trainer.metrics().unwrap().loss
        });
        (steps, trainer.evaluate(&eval).unwrap())
    };
    // Without dropout, and with a learning rate of 0, all passes are alike.
    let (steps, evaluated) = losses(0.0);
    assert_eq!(steps, [steps[0]; 3]);
    assert!((steps[0] - evaluated).abs() < 1e-6);
    let (dropped, evaluated_with_dropout) = losses(0.5);
    assert_eq!(evaluated_with_dropout, evaluated);
    assert!(dropped[0] != dropped[1] && dropped[1] != dropped[2] && dropped[0] != steps[0], "{dropped:?}");
}

#[cfg(feature = "std")]
#[test]
fn a_saved_file_is_what_was_written() {
    let folder = std::env::temp_dir().join(format!("minigpt-training-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (run, weights) = (folder.join("run.mgpt"), folder.join("weights.mgpt"));
    let mut trainer = trainer(small(), settings());
    let extras = Extras { tokenizer: None, metadata: &[("note", "a test")] };
    trainer.save(&run, &extras).unwrap();
    assert!(minigpt_core::checkpoint::load(&run).unwrap() == saved(&mut trainer));
    trainer.model().save(&weights, &extras).unwrap();
    let mut bytes = Vec::new();
    trainer.model().write(&mut bytes, &extras).unwrap();
    assert!(minigpt_core::checkpoint::load(&weights).unwrap() == bytes);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_step_in_the_making_is_not_saved() {
    let mut trainer = trainer(small(), settings());
    let batch = text(25);
    trainer.micro_step(&batch[..24], &batch[1..]).unwrap();
    let refused = trainer.write(Vec::new(), &Extras::default()).unwrap_err().to_string();
    assert!(refused.contains("call finish_step first"), "{refused}");
    trainer.finish_step().unwrap();
    trainer.write(Vec::new(), &Extras::default()).unwrap();
}

#[test]
fn a_step_without_a_batch_is_refused_and_counts_for_nothing() {
    let mut trainer = trainer(small(), settings());
    assert!(matches!(trainer.finish_step(), Err(Error::EmptyStep)));
    let batch = text(25);
    trainer.micro_step(&batch[..24], &batch[1..]).unwrap();
    trainer.finish_step().unwrap();
    assert!(matches!(trainer.finish_step(), Err(Error::EmptyStep)));
    assert_eq!(trainer.metrics().unwrap().step, 1);
}

#[test]
fn generation_goes_on_where_it_stopped() {
    let model = Model::new(Reference::<f32>::new(), small(), 1).unwrap();
    let run = |pieces: &[usize]| {
        let mut sampler = Sampler::new(SampleConfig { seed: 3, ..SampleConfig::default() }, 11).unwrap();
        let mut decoder = Decoder::new(&model, 8).unwrap();
        decoder.feed(&[1, 2]).unwrap();
        let mut tokens: Vec<u32> = Vec::new();
        for &piece in pieces {
            tokens.extend(decoder.generate(&mut sampler).take(piece).map(Result::unwrap));
        }
        decoder.feed(&[5]).unwrap();
        assert!(decoder.recent().ends_with(&[&tokens[15..], &[5]].concat()));
        (tokens, decoder.logits().to_vec())
    };
    assert_eq!(run(&[20]), run(&[7, 1, 12]));
}

#[test]
fn a_prompt_longer_than_the_context_is_seen_as_far_as_the_context_reaches() {
    let text = text(30);
    let model = trainer(small(), settings()).into_model();
    let context = model.config().context;
    for more in [1, 2, context, 2 * context + 1] {
        let prompt = &text[..context + more];
        for before in [0, 3] {
            let mut decoder = Decoder::new(&model, 3).unwrap();
            if before > 0 {
                decoder.feed(&text[..before]).unwrap();
            }
            decoder.feed(prompt).unwrap();
            assert_eq!(decoder.window(), &prompt[more..]);
            let full = model.logits(&prompt[more..], 1, context).unwrap();
            for (found, expected) in decoder.logits().iter().zip(&full[(context - 1) * 11..]) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}
