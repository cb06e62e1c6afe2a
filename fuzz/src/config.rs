//! What a config's validation and its plans say of it is true.

use arbitrary::{Result, Unstructured};
use minigpt_core::plan::{ALIGN, NormActivations, Region};
use minigpt_core::{
    ConfigError, Decoder, Dtype, Error, GptConfig, Model, Plan, Real, Recompute, Reference, ReferenceError,
    TrainConfig, Trainer, Windows,
};

use super::draw;

/// What is planned for this many bytes or fewer is also allocated and run.
const RUN: usize = 48 << 10;

/// A plan is as long as the model has layers.
const LAYERS: usize = 200;

/// A config, then a batch and a time.
pub fn config_plan(data: &[u8]) {
    let _ = plan(&mut Unstructured::new(data));
}

fn plan(u: &mut Unstructured<'_>) -> Result<()> {
    let config = draw::config(u, draw::dimension)?;
    let (batch, time) = (draw::dimension(u)?, draw::dimension(u)?);
    let elem = *u.choose(&[Dtype::F32, Dtype::F64])?;
    let slots = draw::dimension(u)?;
    let budget = draw::dimension(u)?;
    let recompute = *u.choose(&[Recompute::Cheap, Recompute::Blocks, Recompute::Nothing])?;
    let precision = draw::precision(u)?;
    let rounding = |plan: core::result::Result<Plan, ConfigError>| plan?.in_precision(precision);
    let train = |batch| rounding(Plan::training_with(&config, elem, batch, time, recompute));
    let settings = TrainConfig { time, recompute, precision, ..TrainConfig::constant(1e-3) };
    let largest = match elem {
        Dtype::F64 => largest_batch::<f64>,
        _ => largest_batch::<f32>,
    };
    let valid = config.validate();
    if let Err(error) = valid {
        let _ = error.to_string();
        // Compared as text, because the number that it names may be NaN.
        let refused = train(batch).expect_err("the config is not valid");
        assert_eq!(refused.to_string(), error.to_string());
        assert_eq!(largest(&config, &settings, budget), None);
        return Ok(());
    }
    if config.layers > LAYERS {
        return Ok(());
    }
    let cache = *u.choose(&[elem, Dtype::F16, Dtype::Bf16])?;
    let plans = [
        train(batch),
        rounding(Plan::inference(&config, elem, batch, time)),
        rounding(Plan::decoding_with(&config, elem, slots, time, cache)),
    ];
    for plan in &plans {
        match plan {
            Ok(plan) => adds_up(plan),
            Err(ConfigError::Zero { field: "batch" }) => assert_eq!(batch, 0),
            Err(ConfigError::Zero { field: "time" }) => assert_eq!(time, 0),
            Err(ConfigError::Zero { field: "slots" }) => assert_eq!(slots, 0),
            Err(ConfigError::Zero { field: "rows" }) => assert_eq!(time, 0),
            Err(ConfigError::BeyondContext { .. }) => assert!(time > config.context),
            Err(ConfigError::PrefixFillsContext { .. }) => assert!(time <= config.prefix),
            Err(ConfigError::TooLarge { .. }) => {
                let attention = [config.d_attention(), config.d_qkv()];
                let largest =
                    [config.vocab_size, config.context, config.d_model, config.d_ff, batch, time, slots];
                let mut largest = largest.iter().chain(&attention);
                assert!(largest.any(|dimension| *dimension > 1 << 8), "{config:?} is small");
            }
            Err(error) => panic!("a valid config is refused: {error}"),
        }
    }
    largest(&config, &settings, budget);
    let decoding = Plan::decoding(&config, elem, 1, time);
    if let ([Ok(training), ..], Ok(decoding)) = (plans, decoding)
        && training.bytes.total().saturating_add(decoding.bytes.total()) <= RUN
    {
        run(config, batch, &settings).unwrap_or_else(|error| panic!("{training:?} does not run: {error}"));
    }
    Ok(())
}

/// The largest batch that fits into `budget`, which does fit, and the next one does not.
fn largest_batch<R: Real>(config: &GptConfig, settings: &TrainConfig, budget: usize) -> Option<usize> {
    let backend = Reference::<R>::new();
    let largest = settings.largest_batch(config, &backend, budget)?;
    let fits = |batch| {
        let settings = TrainConfig { batch, ..settings.clone() };
        let tokens = settings.token_bytes(config, &backend);
        let plan = settings.plan(config, &backend);
        plan.is_ok_and(|plan| plan.bytes.total().checked_add(tokens).is_some_and(|bytes| bytes <= budget))
    };
    assert!(fits(largest) && !fits(largest + 1), "{largest}");
    Some(largest)
}

/// Every region lies in its buffer, those of parameters side by side, and the sums are those of their parts.
fn adds_up(plan: &Plan) {
    let (unit, rounded) = (plan.elem.unit().1, plan.activation_dtype().unit().1);
    let end = |region: Region, unit: usize| {
        assert_eq!(region.offset % ALIGN, 0);
        region.offset as u128 + region.len as u128 * unit as u128
    };
    let total: u128 = plan.bytes.categories().iter().map(|(_, bytes)| *bytes as u128).sum();
    assert_eq!(plan.bytes.total() as u128, total.min(usize::MAX as u128));
    let training = plan.backward.is_some();
    assert_eq!(plan.bytes.gradients, if training { plan.bytes.parameters } else { 0 });
    assert_eq!(plan.bytes.optimizer as u128, 2 * plan.bytes.gradients as u128);
    assert_eq!(plan.updates.is_empty(), !training);

    let mut parameters = plan.parameters.list();
    let count: u128 = parameters.iter().map(|tensor| tensor.rows as u128 * tensor.cols as u128).sum();
    assert_eq!(plan.parameter_count as u128, count);
    parameters.sort_unstable_by_key(|tensor| tensor.region.offset);
    let mut free = 0;
    for tensor in parameters {
        assert_eq!(tensor.region.len, tensor.rows * tensor.cols);
        assert!(tensor.region.offset as u128 >= free);
        assert!(tensor.is_matrix() || tensor.rows == 1, "{}", tensor.name);
        free = end(tensor.region, unit);
    }
    assert!(free <= plan.bytes.parameters as u128);
    assert_eq!(plan.parameter_span * unit, plan.bytes.parameters);

    let activations = &plan.activations;
    let mut inside = vec![activations.head_in, activations.wanted, activations.logits];
    let statistics = |norm: &NormActivations| norm.mean.into_iter().chain([norm.rstd]);
    let mut exact: Vec<Region> = statistics(&activations.final_norm).collect();
    for block in &activations.blocks {
        inside.extend([block.input, block.attention_in, block.qkv, block.attended, block.attention_sum]);
        inside.extend([
            block.middle,
            block.feed_forward_in,
            block.hidden,
            block.feed_forward_sum,
            block.output,
        ]);
        exact.push(block.lse);
        exact.extend([&block.norm1, &block.norm2].into_iter().flat_map(statistics));
        inside.extend(block.normed_qk.iter().map(|normed| normed.heads));
        exact.extend(block.normed_qk.iter().flat_map(|qk| [&qk.queries, &qk.keys]).flat_map(statistics));
        inside.extend(block.pre_activation);
    }
    inside.extend(plan.backward.iter().flat_map(|b| [b.d_stream, b.d_scratch, b.d_qkv, b.d_hidden]));
    inside.extend(plan.backward.iter().flat_map(|b| [b.normed, b.d_gate]).flatten());
    let mut inside = inside.into_iter().map(|region| (region, rounded));
    let mut exact = exact.into_iter().map(|region| (region, unit));
    let fits = |(region, unit)| end(region, unit) <= plan.bytes.activations as u128;
    assert!(inside.all(fits) && exact.all(fits));
    let mut copies = plan.copies.list().into_iter().flatten();
    assert!(copies.all(|region| end(*region, 2) <= plan.bytes.copies as u128));
    let caches = plan.caches.iter().flat_map(|cache| [cache.keys, cache.values]);
    let cached = plan.cache_dtype.unit().1;
    assert!(caches.into_iter().all(|region| end(region, cached) <= plan.bytes.cache as u128));
    let table = plan.position_table.map_or(0, |region| end(region, unit));
    assert!(table <= plan.bytes.constants as u128);
    let state = [
        (plan.tokens, 4),
        (plan.rows, 4),
        (plan.targets, 4),
        (plan.counters, 4),
        (plan.scalars, unit),
        (plan.evaluation, unit),
    ];
    assert!(state.into_iter().all(|(region, unit)| end(region, unit) <= plan.bytes.state as u128));
    let _ = plan.training_flops(plan.batch);
}

/// A step of training, and a token of what follows.
fn run(
    config: GptConfig,
    batch: usize,
    settings: &TrainConfig,
) -> core::result::Result<(), Error<ReferenceError>> {
    let TrainConfig { time, .. } = *settings;
    let tokens: Vec<u32> = (0..time as u32 + 2).map(|token| token % config.vocab_size as u32).collect();
    // As many of the positions as the prefix has are given.
    let (text, given) = (time - config.prefix, vec![0.5; config.prefix * config.d_model]);
    let model = Model::new(Reference::<f32>::new(), config, 1)?;
    let mut decoder = Decoder::new(&model.in_precision(settings.precision)?, time)?;
    decoder.begin_with(&given)?;
    decoder.feed(&tokens)?;
    drop(decoder);
    let settings = TrainConfig { batch, time: text, ..settings.clone() };
    let mut trainer = Trainer::new(&model, settings)?;
    trainer.set_prefix(&given.repeat(batch))?;
    trainer.step(&Windows::new(&tokens, text)?)?;
    assert_eq!(trainer.metrics()?.step, 1);
    Ok(())
}
