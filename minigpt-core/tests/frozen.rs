//! Frozen parameters: they keep their bits, take no bytes and no work, and the others train as if the frozen ones had no
//! gradient.

#[path = "support/configs.rs"]
mod configs;
#[macro_use]
#[path = "support/forwarding.rs"]
mod forwarding;
#[path = "support/small.rs"]
mod small;

use configs::{covering_set, given, length};
use minigpt_core::checkpoint::{Limits, Stream, TensorSpec};
use minigpt_core::model::Extras;
use minigpt_core::op::{LinearBackward, NormBackward, Program};
use minigpt_core::plan::Tensor;
use minigpt_core::rng::{self, Rng};
use minigpt_core::train::Sums;
use minigpt_core::{
    Backend, Bias, Checkpoint, Dtype, Error, GptConfig, Model, NormPlace, Op, OpKind, Plan, Recompute,
    Reference, ReferenceError, TrainConfig, Trainer, Windows,
};
use small::Small;

type Double = Trainer<Reference<f64>>;

fn settings(config: &GptConfig, recompute: Recompute) -> TrainConfig {
    TrainConfig {
        batch: 3,
        time: length(config),
        accumulation: 2,
        recompute,
        clip: 0.2,
        ..TrainConfig::constant(1e-2)
    }
}

/// Weights spread widely enough that every part matters.
fn model(config: &GptConfig) -> Model<Reference<f64>> {
    let model = Model::new(Reference::new(), config.clone(), 5).unwrap();
    let mut rng = Rng::new(6, rng::Stream::User);
    for (tensor, _) in model.parameters() {
        let mut values = model.parameter(&tensor.name).unwrap().unwrap();
        values.iter_mut().for_each(|value| *value += 0.2 * rng.normal());
        model.set_parameter(&tensor.name, &values).unwrap();
    }
    model
}

fn parameters(model: &Model<Reference<f64>>) -> Vec<(String, Vec<f64>)> {
    let named = |tensor: &Tensor| (tensor.name.clone(), model.parameter(&tensor.name).unwrap().unwrap());
    model.parameters().map(|(tensor, _)| named(tensor)).collect()
}

fn text(vocab: usize) -> Vec<u32> {
    (0..200).map(|i| i * i % vocab as u32).collect()
}

/// Sets of frozen parameters: the name of each, and what it says of a tensor.
type Choice = (&'static str, fn(&Tensor) -> bool);

const CHOICES: [Choice; 14] = [
    ("all but the last block", |t| !t.name.starts_with("h.1.")),
    ("all but the first block", |t| !t.name.starts_with("h.0.")),
    ("embeddings", |t| t.name.starts_with("wte") || t.name.starts_with("wpe")),
    ("tokens", |t| t.name.starts_with("wte")),
    ("all but positions and norms", |t| !t.name.starts_with("wpe") && !t.name.contains("ln_")),
    ("all but the head", |t| t.name != "lm_head.weight" && t.name != "wte.weight"),
    ("all but the first attention", |t| !t.name.starts_with("h.0.attn")),
    ("all but the first projection out of attention", |t| !t.name.starts_with("h.0.attn.c_proj")),
    ("all but queries, keys and values", |t| !t.name.contains("c_attn")),
    ("all but the first feed-forward layer down", |t| !t.name.starts_with("h.0.mlp.c_proj")),
    ("all but the first feed-forward layer up", |t| !t.name.starts_with("h.0.mlp.c_fc")),
    ("all but one norm", |t| !t.name.starts_with("h.0.ln_2") && !t.name.starts_with("h.0.mlp.c_proj.b")),
    ("matrices", |t| t.is_matrix() && t.name != "h.0.mlp.c_fc.weight"),
    ("vectors", |t| !t.is_matrix()),
];

/// A step of the trainer, in which the gradients of what is frozen are set to zero before the update.
fn step_without(
    trainer: &mut Double,
    windows: &Windows<'_>,
    sums: &mut Sums<f64>,
    frozen: fn(&Tensor) -> bool,
) {
    let TrainConfig { batch, time, accumulation, seed, .. } = *trainer.config();
    let (mut inputs, mut targets) = (vec![0; batch * time], vec![0; batch * time]);
    let first = u64::from(trainer.metrics().unwrap().step) * (batch * accumulation) as u64;
    for part in 0..accumulation {
        windows.fill(seed, first + (part * batch) as u64, batch, &mut inputs, &mut targets).unwrap();
        trainer.micro_step(&inputs, &targets).unwrap();
    }
    trainer.read_sums(sums).unwrap();
    for tensor in trainer.plan().parameters.list().into_iter().filter(|tensor| frozen(tensor)) {
        sums.gradients[tensor.region.offset / 8..][..tensor.region.len].fill(0.0);
    }
    trainer.write_sums(sums).unwrap();
    trainer.finish_step().unwrap();
}

#[test]
fn the_others_train_as_if_the_frozen_ones_had_no_gradient() {
    for (number, config) in covering_set().into_iter().enumerate() {
        let recompute = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks][number % 3];
        let text = text(config.vocab_size);
        let windows = Windows::new(&text, length(&config)).unwrap();
        for (what, frozen) in CHOICES {
            let (model, other) = (model(&config), model(&config));
            let before = parameters(&model);
            let is_frozen: Vec<bool> = model.parameters().map(|(tensor, _)| frozen(tensor)).collect();
            let trainer = Trainer::freezing(&model, settings(&config, recompute), frozen);
            if !is_frozen.contains(&false) {
                // Except whoever made the given vectors.
                let error = trainer.err();
                assert_eq!(
                    error,
                    (config.prefix == 0).then_some(Error::NothingToTrain),
                    "{what} of {config:?}"
                );
                continue;
            }
            let mut trainer = trainer.unwrap();
            let mut whole = Trainer::new(&other, settings(&config, Recompute::Nothing)).unwrap();
            for trainer in [&mut trainer, &mut whole] {
                trainer.set_prefix(&given(&config, 3, 6)).unwrap();
            }
            let mut sums = Sums::default();
            for _ in 0..3 {
                trainer.step(&windows).unwrap();
                step_without(&mut whole, &windows, &mut sums, frozen);
                let [found, expected] = [&mut trainer, &mut whole].map(|t| t.metrics().unwrap());
                assert_eq!(found, expected, "{what}, {recompute:?} of {config:?}");
                assert!(found.skipped == 0 && found.grad_norm > 0.0);
                // The weight decay of what is frozen is undone, since it is no part of the gradient.
                for ((name, values), _) in before.iter().zip(&is_frozen).filter(|(_, frozen)| **frozen) {
                    other.set_parameter(name, values).unwrap();
                }
            }
            let after = parameters(&model).into_iter().zip(parameters(&other)).zip(&before).zip(&is_frozen);
            for ((((name, found), (_, expected)), (_, before)), &frozen) in after {
                assert!(found == expected, "{what}: {name}, {recompute:?} of {config:?}");
                assert_eq!(found == *before, frozen, "{what}: {name} of {config:?}");
                let gradient = trainer.gradient(&name).unwrap();
                assert_eq!(gradient.is_none(), frozen);
                if let Some(gradient) = gradient {
                    assert!(gradient == whole.gradient(&name).unwrap().unwrap(), "{what}: {name}");
                }
            }
        }
    }
}

fn kinds(program: &Program, kind: OpKind) -> usize {
    program.steps().iter().filter(|step| step.op.kind() == kind).count()
}

fn names(program: &Program) -> Vec<String> {
    let backward = program.steps().iter().filter(|step| step.op.kind().name().ends_with("Backward"));
    backward.map(|step| step.name.to_string()).collect()
}

#[test]
fn the_backward_pass_ends_where_nothing_below_is_trained() {
    let config =
        GptConfig { layers: 3, heads: 2, d_model: 8, d_ff: 12, bias: Bias::ALL, ..GptConfig::new(11, 8) };
    for (norm_place, recompute) in [(NormPlace::Pre, Recompute::Cheap), (NormPlace::Post, Recompute::Nothing)]
    {
        let config = GptConfig { norm_place, ..config.clone() };
        let plan = Plan::training_with(&config, Dtype::F32, 2, 8, recompute).unwrap();
        let program = |frozen: fn(&Tensor) -> bool| plan.clone().freezing(frozen).program().unwrap();
        let whole = program(|_| false);
        assert_eq!(whole, plan.program().unwrap());

        let last = program(|t| !t.name.starts_with("h.2."));
        assert!(names(&last).iter().all(|name| !name.starts_with("h.0.") && !name.starts_with("h.1.")));
        assert!(names(&last).iter().any(|name| name == "h.2.attention.qkv"));
        assert_eq!(kinds(&last, OpKind::EmbeddingBackward), 0);
        assert_eq!(kinds(&last, OpKind::AttentionBackward), 1);

        // Only the last layer of a block: not even its own other half.
        let down = program(|t| t.name != "h.1.mlp.c_proj.weight");
        let expected: &[&str] = match norm_place {
            NormPlace::Pre => &["head", "final_norm"],
            _ => &["head", "h.2.feed_forward.norm"],
        };
        let found = names(&down);
        assert_eq!(found[..2], *expected);
        assert_eq!(found.last().unwrap(), "h.1.feed_forward.down");
        let Some(Op::LinearBackward(op)) = down.steps().iter().map(|s| s.op).rfind(is_linear) else {
            panic!("a linear layer")
        };
        assert!(matches!(op, LinearBackward { d_x: None, d_weight: Some(_), d_bias: None, .. }), "{op:?}");

        // The frozen layers above it pass the gradient on, and compute none of their own.
        let steps = down.steps().iter().map(|step| step.op);
        let own = |op: &Op| match op {
            Op::LinearBackward(LinearBackward { d_weight, d_bias, .. })
            | Op::NormBackward(NormBackward { d_weight, d_bias, .. }) => {
                d_weight.is_some() || d_bias.is_some()
            }
            _ => false,
        };
        assert_eq!(steps.filter(own).count(), 1);
        assert!(down.flops() < whole.flops() && last.flops() < whole.flops());
        // What is not read is not recomputed.
        let activations = kinds(&down, OpKind::ActivationForward);
        assert_eq!(activations, if recompute == Recompute::Cheap { 1 } else { 0 });
    }
}

fn is_linear(op: &Op) -> bool {
    op.kind() == OpKind::LinearBackward
}

/// The reference, which remembers what it ran.
#[derive(Default)]
struct Recorder {
    inner: Reference<f32>,
    ran: Vec<OpKind>,
}

impl Backend for Recorder {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.ran.push(op.kind());
        self.inner.run(op)
    }
}

#[test]
fn what_runs_is_what_the_plan_says() {
    for config in covering_set() {
        for (what, frozen) in CHOICES {
            let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
            let settings = TrainConfig { batch: 2, time: length(&config), ..TrainConfig::constant(1e-2) };
            let Ok(mut trainer) = Trainer::freezing(&model, settings, frozen) else { continue };
            trainer.set_prefix(&given(&config, 2, 6)).unwrap();
            let tokens = vec![1; 2 * length(&config)];
            trainer.micro_step(&tokens, &tokens).unwrap();
            trainer.finish_step().unwrap();
            let program = trainer.plan().program().unwrap();
            let planned: Vec<OpKind> = program.steps().iter().map(|step| step.op.kind()).collect();
            assert!(model.device().inspect(|backend| backend.ran == planned), "{what} of {config:?}");
        }
    }
}

#[test]
fn frozen_parameters_take_no_bytes() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(11, 32) };
    let small = |room| Model::new(Small::<f32>::new(room, usize::MAX), config.clone(), 1).unwrap();
    let settings = TrainConfig { batch: 3, time: 9, ..TrainConfig::constant(1e-3) };
    let used = |model: &Model<Small<f32>>| model.device().inspect(Small::used);
    let all = Trainer::new(&small(usize::MAX), settings.clone()).unwrap().plan().bytes;
    for (what, frozen) in CHOICES {
        let trainer = Trainer::freezing(&small(usize::MAX), settings.clone(), frozen);
        let Ok(trainer) = trainer else { panic!("{what}") };
        let plan = trainer.plan();
        let kept: usize = plan.trained().map(|tensor| tensor.region.len).sum();
        // Each begins at a multiple of 64 bytes.
        assert!(plan.bytes.gradients >= 4 * kept && plan.bytes.gradients < 4 * kept + 64 * 30, "{what}");
        assert_eq!(plan.bytes.optimizer, 2 * plan.bytes.gradients);
        assert_eq!(all.total() - plan.bytes.total(), 3 * (all.gradients - plan.bytes.gradients));
        // To the byte, and with not one less.
        let bytes = plan.bytes.total();
        assert_eq!(used(trainer.model()), bytes, "{what}");
        assert!(Trainer::freezing(&small(bytes), settings.clone(), frozen).is_ok());
        let error = Trainer::freezing(&small(bytes - 1), settings.clone(), frozen).unwrap_err();
        assert!(matches!(error, Error::Memory { needed, .. } if needed == bytes), "{error}");
        // So a larger batch fits.
        let backend = Reference::<f32>::new();
        let budget = all.total();
        let [with, without] = [
            settings.largest_batch(&config, &backend, budget),
            settings.largest_batch_freezing(&config, &backend, budget, frozen),
        ];
        assert!(without >= with, "{what}");
    }
    let backend = Reference::<f32>::new();
    let head = |t: &Tensor| t.name != "ln_f.weight";
    let fits = settings.largest_batch_freezing(&config, &backend, all.total(), head);
    assert!(fits > settings.largest_batch(&config, &backend, all.total()));
}

fn written(trainer: &Double) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

#[test]
fn a_run_with_frozen_parameters_resumes_bit_for_bit_and_keeps_them_frozen() {
    let config = GptConfig {
        layers: 2,
        heads: 2,
        d_model: 8,
        d_ff: 12,
        dropout: 0.2,
        bias: Bias::ALL,
        ..GptConfig::new(7, 6)
    };
    let text = text(7);
    let windows = Windows::new(&text, 6).unwrap();
    for (what, frozen) in CHOICES {
        let model = model(&config);
        let mut whole = Trainer::freezing(&model, settings(&config, Recompute::Nothing), frozen).unwrap();
        for _ in 0..3 {
            whole.step(&windows).unwrap();
        }
        let half = written(&whole);
        for _ in 0..3 {
            whole.step(&windows).unwrap();
        }
        let end = written(&whole);

        let checkpoint = Checkpoint::open_verified(&half).unwrap();
        let states = checkpoint.states().unwrap();
        assert!(states.iter().map(Option::is_none).eq(model.parameters().map(|(t, _)| frozen(t))), "{what}");
        let specs = TensorSpec::training(whole.plan());
        assert!(checkpoint.tensors().map(|t| t.name).eq(specs.iter().map(|spec| spec.name.as_str())));

        let mut header = Vec::new();
        let stream = Stream::open(&half[..], &mut header, &Limits::DEFAULT).unwrap();
        let resumed = [
            Trainer::resume(Reference::<f64>::new(), &checkpoint).unwrap(),
            Trainer::resume_from(Reference::<f64>::new(), stream).unwrap(),
        ];
        for mut trainer in resumed {
            assert_eq!(trainer.plan(), whole.plan());
            assert!(written(&trainer) == half, "{what}: what is read is what was written");
            for _ in 0..3 {
                trainer.step(&windows).unwrap();
            }
            assert!(written(&trainer) == end, "{what}");
        }
    }
}

#[test]
fn ranks_that_freeze_the_same_train_as_one() {
    let config = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(7, 6) };
    let frozen: fn(&Tensor) -> bool = |t| t.name.starts_with("h.0.");
    let tokens = text(7);
    let trainer = |batch| {
        let settings = TrainConfig { batch, time: 6, clip: 0.1, ..TrainConfig::constant(1e-2) };
        Trainer::freezing(&model(&config), settings, frozen).unwrap()
    };
    let (mut one, mut ranks) = (trainer(4), [trainer(2), trainer(2)]);
    let (mut total, mut sums) = (Sums::default(), Sums::default());
    for _ in 0..3 {
        one.micro_step(&tokens[..24], &tokens[1..25]).unwrap();
        one.finish_step().unwrap();
        ranks[0].micro_step(&tokens[..12], &tokens[1..13]).unwrap();
        ranks[1].micro_step(&tokens[12..24], &tokens[13..25]).unwrap();
        ranks[0].read_sums(&mut total).unwrap();
        ranks[1].read_sums(&mut sums).unwrap();
        assert_eq!(total.gradients.len(), one.plan().gradient_span);
        total.add(&sums).unwrap();
        for rank in &mut ranks {
            rank.write_sums(&total).unwrap();
            rank.finish_step().unwrap();
        }
    }
    for ((name, a), (_, b)) in parameters(one.model()).iter().zip(parameters(ranks[1].model())) {
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-10), "{name}");
    }
    // Ranks that do not are told so.
    let settings = TrainConfig { batch: 2, time: 6, ..TrainConfig::constant(1e-2) };
    assert!(Trainer::new(&model(&config), settings).unwrap().write_sums(&total).is_err());
}
