//! Training with activations in bf16: what must be as it is without, and what must be near it.

#[path = "support/configs.rs"]
mod configs;
#[path = "support/small.rs"]
mod small;

use configs::{covering_set, given, length};
use minigpt_core::checkpoint::{Checkpoint, Limits, Stream};
use minigpt_core::config::ParameterKind;
use minigpt_core::model::Extras;
use minigpt_core::probe::{Recording, TensorKind};
use minigpt_core::reference::rounded::round;
use minigpt_core::train::{PieceLoss, Row, Sums};
use minigpt_core::{
    Batch, Decoder, Dtype, EvalWindows, GptConfig, Groups, Model, Op, Plan, Precision, Real, Recompute,
    Reference, TrainConfig, Trainer, Windows,
};
use small::Small;

const ALL: [Recompute; 3] = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks];

fn text(vocab: usize) -> Vec<u32> {
    (0..200).map(|i| i * i % vocab as u32).collect()
}

fn settings(config: &GptConfig) -> TrainConfig {
    let precision = Precision::Bf16;
    TrainConfig { batch: 2, time: length(config), precision, ..TrainConfig::constant(1e-2) }
}

fn small() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(11, 8) }
}

fn trainer<R: Real>(config: &GptConfig, settings: TrainConfig) -> Trainer<Reference<R>> {
    let model = Model::new(Reference::<R>::new(), config.clone(), 5).unwrap();
    let mut trainer = Trainer::new(&model, settings).unwrap();
    let batch = trainer.config().batch;
    trainer.set_prefix(&given(config, batch, 6)).unwrap();
    trainer
}

fn saved<B: minigpt_core::Backend>(trainer: &Trainer<B>) -> Vec<u8> {
    let mut bytes = Vec::new();
    trainer.write(&mut bytes, &Extras::default()).unwrap();
    bytes
}

/// A checkpoint after three steps.
fn trained<R: Real>(config: &GptConfig, settings: TrainConfig) -> Vec<u8> {
    let mut trainer = trainer::<R>(config, settings);
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, length(config)).unwrap();
    for _ in 0..3 {
        trainer.step(&windows).unwrap();
    }
    let metrics = trainer.metrics().unwrap();
    assert!(metrics.loss.is_finite() && metrics.skipped == 0, "{config:?}");
    saved(&trainer)
}

#[test]
fn what_is_recomputed_changes_no_bit() {
    for config in covering_set() {
        let kept = trained::<f32>(&config, settings(&config));
        for recompute in [Recompute::Cheap, Recompute::Blocks] {
            let again = trained::<f32>(&config, TrainConfig { recompute, ..settings(&config) });
            assert!(again == kept, "{recompute:?} of {config:?}");
        }
    }
}

/// But for a head that is tied to the embedding: then the gradients of both add to one, and with slices in another order.
#[test]
fn slices_change_no_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        for (recompute, dropout) in ALL.into_iter().flat_map(|recompute| [(recompute, 0.0), (recompute, 0.3)])
        {
            let config = GptConfig { dropout, tied_embeddings: false, ..small() };
            let train = |rows| {
                let model = Model::new(Small::<f32>::new(usize::MAX, rows), config.clone(), 1).unwrap();
                let settings =
                    TrainConfig { batch: 7, accumulation: 2, recompute, precision, ..settings(&config) };
                let mut trainer = Trainer::new(&model, settings).unwrap();
                let text = text(config.vocab_size);
                let windows = Windows::new(&text, 8).unwrap();
                for _ in 0..3 {
                    trainer.step(&windows).unwrap();
                }
                (trainer.plan().batch, saved(&trainer))
            };
            let (7, whole) = train(usize::MAX) else { panic!("not as a whole") };
            for (rows, expected) in [(3 * 8, 3), (1, 1)] {
                let (at_once, sliced) = train(rows);
                assert_eq!(at_once, expected);
                assert!(sliced == whole, "{precision:?}, {recompute:?}, dropout {dropout}, {rows} rows");
            }
        }
    }
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let config = GptConfig { dropout: 0.2, ..small() };
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, 8).unwrap();
    for groups in [Groups::adamw(0.9, 0.99, 0.1), Groups::muon(0.9, 0.99, 0.1)] {
        let settings = TrainConfig { groups, average: Some(0.9), accumulation: 2, ..settings(&config) };
        let mut whole = trainer::<f32>(&config, settings);
        for _ in 0..4 {
            whole.step(&windows).unwrap();
        }
        let half = saved(&whole);
        for _ in 0..4 {
            whole.step(&windows).unwrap();
        }
        let checkpoint = Checkpoint::open(&half).unwrap();
        let kept = checkpoint.training().unwrap().config.precision;
        assert_eq!(kept, Precision::Bf16, "the policy goes with the run");
        let mut opened = Trainer::resume(Reference::<f32>::new(), &checkpoint).unwrap();
        let mut header = Vec::new();
        let stream = Stream::open(&half[..], &mut header, &Limits::default()).unwrap();
        let mut streamed = Trainer::resume_from(Reference::<f32>::new(), stream).unwrap();
        for trainer in [&mut opened, &mut streamed] {
            assert_eq!(trainer.plan().precision, Precision::Bf16);
            for _ in 0..4 {
                trainer.step(&windows).unwrap();
            }
            assert!(saved(trainer) == saved(&whole));
        }
    }
}

#[test]
fn a_run_may_go_on_in_another_precision() {
    let config = small();
    let bytes = trained::<f32>(&config, settings(&config));
    let checkpoint = Checkpoint::open(&bytes).unwrap();
    let kept = checkpoint.training().unwrap().config.clone();
    let exact = TrainConfig { precision: Precision::F32, ..kept };
    let trainer = Trainer::resume_with(Reference::<f32>::new(), &checkpoint, exact).unwrap();
    assert_eq!((trainer.plan().precision, trainer.plan().bytes.copies), (Precision::F32, 0));
    // The weights are the same: files hold them as they are trained.
    let model = Model::load(Reference::<f32>::new(), &checkpoint).unwrap();
    for (tensor, dtype) in model.parameters() {
        assert_eq!(dtype, Dtype::F32);
        let values = model.parameter(&tensor.name).unwrap().unwrap();
        assert_eq!(trainer.model().parameter(&tensor.name).unwrap().unwrap(), values);
        if tensor.kind == ParameterKind::Matrix {
            assert!(values.iter().any(|&x| x != round(x)), "{} is not rounded", tensor.name);
        }
    }
}

/// The gradients of one micro-batch, and the loss.
fn gradients(config: &GptConfig, precision: Precision) -> (Vec<(String, Vec<f64>)>, f64) {
    let mut trainer = trainer::<f64>(config, TrainConfig { precision, ..settings(config) });
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, length(config)).unwrap();
    let mut batch = (vec![0; 2 * length(config)], vec![0; 2 * length(config)]);
    windows.fill(0, 0, 2, &mut batch.0, &mut batch.1).unwrap();
    trainer.micro_step(&batch.0, &batch.1).unwrap();
    let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    let all = names.into_iter().map(|name| {
        let gradient = trainer.gradient(&name).unwrap().unwrap();
        (name, gradient)
    });
    let all = all.collect();
    trainer.finish_step().unwrap();
    (all, trainer.metrics().unwrap().loss)
}

/// However the model is wired: where an op read what it is not to read, or did not round what others do, gradients would be
/// somewhere else.
#[test]
fn gradients_are_near_those_of_the_whole_precision() {
    let (configs, mut other) = (covering_set(), 0);
    for config in &configs {
        let ((exact, loss), (rounded, near)) =
            (gradients(config, Precision::F32), gradients(config, Precision::Bf16));
        assert!((loss - near).abs() < 0.02 * loss, "{loss} {near} of {config:?}");
        other += usize::from(loss != near);
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let largest = exact.iter().map(|(_, gradient)| norm(gradient)).fold(0.0, f64::max);
        for ((name, exact), (_, rounded)) in exact.iter().zip(&rounded) {
            let off: Vec<f64> = exact.iter().zip(rounded).map(|(a, b)| a - b).collect();
            let (off, size) = (norm(&off), norm(exact));
            assert!(off < 0.1 * size + 0.01 * largest, "{name}: {off} of {size}, {config:?}");
        }
    }
    assert!(2 * other > configs.len(), "{other} losses of {} are rounded", configs.len());
}

#[test]
fn a_model_learns() {
    let config = small();
    let mut trainer = trainer::<f32>(&config, settings(&config));
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, 8).unwrap();
    trainer.step(&windows).unwrap();
    let first = trainer.metrics().unwrap().loss;
    for _ in 0..60 {
        trainer.step(&windows).unwrap();
    }
    let last = trainer.metrics().unwrap().loss;
    assert!(last < 0.5 * first, "{first} {last}");
}

#[test]
fn activations_are_rounded_and_parameters_gradients_are_not() {
    let config = small();
    let mut trainer = trainer::<f32>(&config, settings(&config));
    let text = text(config.vocab_size);
    let mut recording = Recording::of(|_| true);
    trainer.observe_step(&Windows::new(&text, 8).unwrap(), &mut recording).unwrap();
    let mut seen = 0;
    for (at, values) in recording.iter() {
        seen += 1;
        // What no pass keeps in bf16.
        let exact = [TensorKind::AttentionScores, TensorKind::AttentionWeights, TensorKind::Loss];
        let rounded = values.iter().all(|&x| x == round(x));
        assert!(rounded || exact.contains(&at.kind), "{at}");
    }
    assert!(seen > 40, "{seen}");
    for name in ["wte.weight", "h.0.attn.c_attn.weight", "h.1.ln_2.weight"] {
        let gradient = trainer.gradient(name).unwrap().unwrap();
        assert!(gradient.iter().any(|&x| x != round(x)), "{name}");
    }
}

/// What changes weights changes the copies too, by whatever route.
#[test]
fn no_pass_reads_copies_of_other_weights() {
    let config = small();
    let text = text(config.vocab_size);
    let (windows, held_out) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text, 8).unwrap());
    let mut trainer = trainer::<f32>(&config, settings(&config));
    trainer.step(&windows).unwrap();
    let after = trainer.evaluate(&held_out).unwrap();
    // From the weights that were saved, which no copy has been made of yet.
    let bytes = saved(&trainer);
    let mut fresh = Trainer::resume(Reference::<f32>::new(), &Checkpoint::open(&bytes).unwrap()).unwrap();
    assert_eq!(fresh.evaluate(&held_out).unwrap(), after);

    let name = "h.0.mlp.c_fc.weight";
    let zeros = vec![0.0; trainer.model().parameter(name).unwrap().unwrap().len()];
    trainer.model().set_parameter(name, &zeros).unwrap();
    let changed = trainer.evaluate(&held_out).unwrap();
    assert_ne!(changed, after);
    trainer.step(&windows).unwrap();
    fresh.model().set_parameter(name, &zeros).unwrap();
    fresh.step(&windows).unwrap();
    assert!(saved(&trainer) == saved(&fresh));
}

/// Also in the midst of a step, and where a step begins with the sums of others.
#[test]
fn no_micro_step_reads_copies_of_other_weights() {
    let config = small();
    let text = text(config.vocab_size);
    let (windows, held_out) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text, 8).unwrap());
    let (mut inputs, mut targets) = (vec![0; 16], vec![0; 16]);
    windows.fill(7, 0, 2, &mut inputs, &mut targets).unwrap();
    let micro_step = |trainer: &mut Trainer<Reference<f32>>| trainer.micro_step(&inputs, &targets).unwrap();

    let mut twice = trainer::<f32>(&config, settings(&config));
    micro_step(&mut twice);
    let mut sums = Sums::default();
    twice.read_sums(&mut sums).unwrap();
    micro_step(&mut twice);
    let mut joined = trainer::<f32>(&config, settings(&config));
    joined.write_sums(&sums).unwrap();
    micro_step(&mut joined);
    for trainer in [&mut twice, &mut joined] {
        trainer.finish_step().unwrap();
    }
    for (tensor, _) in twice.model().parameters() {
        let [one, other] = [&twice, &joined].map(|trainer| trainer.model().parameter(&tensor.name).unwrap());
        assert_eq!(one, other, "{}", tensor.name);
    }

    let name = "h.0.mlp.c_fc.weight";
    let zeros = vec![0.0; twice.model().parameter(name).unwrap().unwrap().len()];
    let run = |evaluated: bool| {
        let mut trainer = trainer::<f32>(&config, settings(&config));
        micro_step(&mut trainer);
        let before = trainer.gradient(name).unwrap().unwrap();
        trainer.model().set_parameter(name, &zeros).unwrap();
        if evaluated {
            trainer.evaluate(&held_out).unwrap();
        }
        micro_step(&mut trainer);
        let after = trainer.gradient(name).unwrap().unwrap();
        assert_ne!(before, after);
        after
    };
    assert_eq!(run(false), run(true));
}

/// Also of what is not copied: biases, norms, and positions that are learned.
#[test]
fn an_average_has_the_loss_of_the_model_that_it_is() {
    let config = GptConfig { bias: minigpt_core::Bias::ALL, ..small() };
    let text = text(config.vocab_size);
    let (windows, held_out) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text, 8).unwrap());
    for precision in [Precision::F32, Precision::Bf16] {
        let settings = TrainConfig { average: Some(0.9), precision, ..settings(&config) };
        let mut trainer = trainer::<f32>(&config, settings.clone());
        for _ in 0..20 {
            trainer.step(&windows).unwrap();
        }
        let average = trainer.evaluate_average(&held_out).unwrap().unwrap();
        assert_ne!(average, trainer.evaluate(&held_out).unwrap());
        let mut averaged = Trainer::new(&trainer.averaged().unwrap().unwrap(), settings).unwrap();
        assert_eq!(averaged.evaluate(&held_out).unwrap(), average, "{precision:?}");
    }
}

#[test]
fn an_average_is_evaluated_in_the_midst_of_a_step_and_leaves_it_alone() {
    let config = small();
    let text = text(config.vocab_size);
    let (windows, held_out) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text, 8).unwrap());
    let run = |disturbed: bool| {
        let settings = TrainConfig { average: Some(0.5), ..settings(&config) };
        let mut trainer = trainer::<f32>(&config, settings);
        for _ in 0..3 {
            trainer.step(&windows).unwrap();
        }
        let (mut inputs, mut targets) = (vec![0; 16], vec![0; 16]);
        for draw in 0..2 {
            windows.fill(7, draw, 2, &mut inputs, &mut targets).unwrap();
            trainer.micro_step(&inputs, &targets).unwrap();
            if disturbed {
                let average = trainer.evaluate_average(&held_out).unwrap().unwrap();
                assert_ne!(average, trainer.evaluate(&held_out).unwrap());
                trainer.evaluate_average(&held_out).unwrap();
            }
        }
        trainer.finish_step().unwrap();
        saved(&trainer)
    };
    assert!(run(false) == run(true));
}

#[test]
fn a_loss_of_ones_own_has_logits_and_gives_gradients_in_bf16() {
    let config = small();
    let text = text(config.vocab_size);
    let windows = Windows::new(&text, 8).unwrap();
    let (mut inputs, mut targets) = (vec![0; 16], vec![0; 16]);
    windows.fill(7, 0, 2, &mut inputs, &mut targets).unwrap();
    let mut built_in = trainer::<f64>(&config, settings(&config));
    built_in.micro_step(&inputs, &targets).unwrap();
    let mut own = trainer::<f64>(&config, settings(&config));
    own.micro_step_with(&inputs, |mut piece| {
        let mut sums = PieceLoss { loss: 0.0, targets: 0.0 };
        for Row { sequence, position, logits, d_logits, .. } in piece.rows() {
            assert!(logits.iter().all(|&x| x == round(x)));
            let target = targets[sequence * 8 + position] as usize;
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
            for (i, (d, x)) in d_logits.iter_mut().zip(logits).enumerate() {
                *d = (x - largest).exp() / sum - f64::from(u8::from(i == target));
            }
            sums.loss += sum.ln() - (logits[target] - largest);
            sums.targets += 1.0;
        }
        Ok::<_, core::convert::Infallible>(sums)
    })
    .unwrap();
    for name in ["wte.weight", "h.0.attn.c_attn.weight"] {
        let (a, b) = (built_in.gradient(name).unwrap().unwrap(), own.gradient(name).unwrap().unwrap());
        let largest = a.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-2 * largest), "{name}");
    }
}

#[test]
fn a_plan_in_bf16_has_copies_of_what_linear_layers_and_embeddings_of_tokens_read() {
    let config = GptConfig { tied_embeddings: false, bias: minigpt_core::Bias::ALL, ..small() };
    let whole = Plan::training(&config, Dtype::F32, 3, 8).unwrap();
    let plan = whole.clone().in_precision(Precision::Bf16).unwrap();
    assert_eq!(plan.clone().in_precision(Precision::F32).unwrap(), whole);
    for (tensor, copy) in plan.parameters.list().into_iter().zip(plan.copies.list()) {
        let expected = tensor.is_matrix() && tensor.name != "wpe.weight";
        assert_eq!(copy.is_some(), expected, "{}", tensor.name);
        assert!(copy.is_none_or(|copy| copy.len == tensor.region.len));
    }
    let program = plan.program().unwrap();
    let narrowed = program.steps().iter().filter(|step| matches!(step.op, Op::Narrow(_))).count();
    assert_eq!(narrowed, 2 + 4 * config.layers);
    for step in program.steps() {
        step.op.check(Dtype::F32).unwrap();
        // What a pass computes is rounded, and what an update changes is not.
        let exact = ["gradients", "sums", "dropout", "norm", "finish", "update", "average"];
        let of_update = step.name.layer.is_none() && exact.contains(&step.name.part);
        assert_eq!(step.op.precision() == Precision::F32, of_update, "{}", step.name);
    }
    // What is frozen has no gradients, and copies none the less: a pass reads it.
    let frozen = plan.clone().freezing(|tensor| tensor.name != "lm_head.weight");
    assert_eq!((frozen.bytes.copies, &frozen.copies), (plan.bytes.copies, &plan.copies));
}

/// Text after text, whichever way it goes through the model.
#[test]
fn a_decoder_in_bf16_tells_the_logits_of_a_whole_pass() {
    for config in covering_set().into_iter().filter(|config| config.prefix == 0).take(12) {
        let config = GptConfig { dropout: 0.0, ..config };
        let model = Model::new(Reference::<f64>::new(), config.clone(), 5).unwrap();
        let rounded = model.in_precision(Precision::Bf16).unwrap();
        assert_eq!((model.precision(), rounded.precision()), (Precision::F32, Precision::Bf16));
        let tokens: Vec<u32> = (0..length(&config)).map(|i| (i * i % config.vocab_size) as u32).collect();
        let whole = rounded.logits(&tokens, 1, tokens.len()).unwrap();
        assert!(whole.iter().all(|&x| x == round(x)));
        let mut decoder = Decoder::new(&rounded, 2).unwrap();
        assert_eq!(decoder.plan().cache_dtype, Dtype::Bf16);
        decoder.feed(&tokens).unwrap();
        let last = &whole[(tokens.len() - 1) * config.vocab_size..];
        assert_eq!(decoder.logits(), last, "{config:?}");

        let mut batch = Batch::new(&rounded, 2, 3).unwrap();
        let sequence = batch.join().unwrap();
        batch.feed(sequence, &tokens).unwrap();
        while batch.waiting(sequence).unwrap() > 0 {
            batch.step().unwrap();
        }
        assert_eq!(batch.logits(sequence).unwrap(), last, "{config:?}");

        // What it reads of the weights is theirs, rounded, and no second copy of what is not.
        for ((name, dtype), (tensor, other)) in
            rounded.parameters().map(|(tensor, dtype)| (tensor.name.clone(), dtype)).zip(model.parameters())
        {
            let [copy, own] = [&rounded, &model].map(|model| model.parameter(&name).unwrap().unwrap());
            match dtype {
                Dtype::Bf16 => assert!(own.iter().zip(&copy).all(|(x, y)| round(*x) == *y), "{name}"),
                dtype => assert_eq!((dtype, own), (other, copy)),
            }
            assert_eq!(dtype == Dtype::Bf16, tensor.is_matrix() && name != "wpe.weight");
        }
        assert_eq!(
            rounded.in_precision(Precision::Bf16).unwrap().logits(&tokens, 1, tokens.len()).unwrap(),
            whole
        );
        // What it is made of stays as it is, and is what is written.
        let written = |model: &Model<Reference<f64>>| {
            let mut bytes = Vec::new();
            model.write(&mut bytes, &Extras::default()).unwrap();
            bytes
        };
        assert!(written(&rounded) == written(&model));
        let [small, same] =
            [&model, &rounded].map(|model| model.quantized(model.device(), Dtype::Q8_0).unwrap());
        assert_eq!(small.logits(&tokens, 1, tokens.len()), same.logits(&tokens, 1, tokens.len()));
        let back = rounded.in_precision(Precision::F32).unwrap();
        assert_eq!(back.logits(&tokens, 1, tokens.len()), model.logits(&tokens, 1, tokens.len()));
        assert!(
            Trainer::new(&back, settings(&config)).is_ok()
                && Trainer::new(&rounded, settings(&config)).is_err()
        );
        let stored = model.quantized(model.device(), Dtype::Bf16).unwrap();
        let of_stored =
            stored.in_precision(Precision::Bf16).unwrap().logits(&tokens, 1, tokens.len()).unwrap();
        assert_eq!(of_stored, whole, "what is stored in bf16 is the copy");
    }
}
