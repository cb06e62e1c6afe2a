//! Whole models whose attention is another than GPT-2's: heads that share keys and values, heads of a width of their own, other
//! rotations, no mask.

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Batch, Bias, Decoder, Dtype, Error, GptConfig, Mask, Model, NormPlace, Pairing, Plan, Position,
    Reference, TrainConfig, Trainer,
};

const VOCAB: usize = 11;
const CONTEXT: usize = 6;
const BATCH: usize = 2;

const HALVES: Position = Position::Rotary { base: 50.0, pairing: Pairing::Halves };
const ADJACENT: Position = Position::Rotary { base: 50.0, pairing: Pairing::Adjacent };

/// Four heads of 6 on a stream of 10.
fn base() -> GptConfig {
    let shape = GptConfig::new(VOCAB, CONTEXT);
    GptConfig { layers: 2, heads: 4, d_model: 10, d_head: Some(6), d_ff: 14, ..shape }
}

/// Every number of heads of keys and values with every mask, and the rest spread over them.
fn configs() -> Vec<GptConfig> {
    let mut configs = Vec::new();
    for (i, mask) in [Mask::Causal, Mask::None].into_iter().enumerate() {
        for (j, kv_heads) in [4, 2, 1].into_iter().enumerate() {
            configs.push(GptConfig {
                mask,
                kv_heads: Some(kv_heads),
                position: [HALVES, ADJACENT, Position::Learned][(i + j) % 3],
                norm_place: [NormPlace::Pre, NormPlace::Post][j % 2],
                bias: [Bias::ALL, Bias::NONE][(i + j) % 2],
                dropout: if i == j { 0.1 } else { 0.0 },
                ..base()
            });
        }
    }
    configs
}

type Parameters = Vec<(String, Vec<f64>)>;

/// Numbers that are spread widely enough that every part of the model matters.
fn parameters(config: &GptConfig, seed: u64) -> Parameters {
    let plan = Plan::inference(config, Dtype::F64, 1, 1).unwrap();
    let mut rng = Rng::new(seed, Stream::User);
    plan.parameters
        .list()
        .into_iter()
        .map(|tensor| {
            let centre =
                if tensor.name.contains("ln_") && tensor.name.ends_with("weight") { 1.0 } else { 0.0 };
            (tensor.name.clone(), (0..tensor.region.len).map(|_| centre + 0.4 * rng.normal()).collect())
        })
        .collect()
}

fn model(config: &GptConfig, parameters: &Parameters) -> Model<Reference<f64>> {
    let model = Model::new(Reference::<f64>::new(), config.clone(), 0).unwrap();
    for (name, values) in parameters {
        assert!(model.set_parameter(name, values).unwrap(), "{name}");
    }
    model
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

fn close(found: &[f64], expected: &[f64], within: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= within * (1.0 + expected.abs()),
            "{what}[{i}]: {found} {expected}"
        );
    }
}

/// A trainer that has taken in a batch; always fresh, so that dropout drops the same.
fn trained(config: &GptConfig, parameters: &Parameters) -> Trainer<Reference<f64>> {
    let settings = TrainConfig { batch: BATCH, time: CONTEXT, ..TrainConfig::constant(0.0) };
    let mut trainer = Trainer::new(&model(config, parameters), settings).unwrap();
    trainer.micro_step(&tokens(1, BATCH * CONTEXT), &tokens(2, BATCH * CONTEXT)).unwrap();
    trainer
}

#[test]
fn the_gradient_matches_finite_differences_along_a_direction_of_each_parameter() {
    const STEP: f64 = 1e-5;
    for (i, config) in configs().into_iter().enumerate() {
        let mut parameters = parameters(&config, i as u64);
        let mut trainer = trained(&config, &parameters);
        let mut rng = Rng::new(99, Stream::User);
        for p in 0..parameters.len() {
            let (name, begun) = parameters[p].clone();
            let direction: Vec<f64> = begun.iter().map(|_| rng.normal()).collect();
            let mut loss = |step: f64| {
                let moved = begun.iter().zip(&direction).map(|(x, d)| x + step * d);
                parameters[p].1 = moved.collect();
                trained(&config, &parameters).loss().unwrap().unwrap()
            };
            let finite = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            parameters[p].1 = begun;
            let gradient = trainer.gradient(&name).unwrap().unwrap();
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let scale = gradient.iter().map(|g| g * g).sum::<f64>().sqrt().max(1e-3);
            assert!((slope - finite).abs() / scale < 1e-6, "{name}: {slope} {finite}, {config:?}");
        }
    }
}

/// The rows of a matrix of queries, keys and values (or numbers of a bias), head by head.
fn heads(config: &GptConfig, numbers: &[f64]) -> Vec<Vec<f64>> {
    let heads = config.heads + 2 * config.kv_heads();
    numbers.chunks(numbers.len() / heads).map(<[f64]>::to_vec).collect()
}

/// The same parameters with other heads of queries, keys and values.
fn with_heads(parameters: &Parameters, change: impl Fn(&[f64]) -> Vec<f64>) -> Parameters {
    let changed = |(name, values): &(String, Vec<f64>)| {
        let is_qkv = name.contains("attn.c_attn");
        (name.clone(), if is_qkv { change(values) } else { values.clone() })
    };
    parameters.iter().map(changed).collect()
}

#[test]
fn shared_heads_are_heads_of_which_some_are_alike() {
    for config in configs() {
        let own = GptConfig { kv_heads: None, ..config.clone() };
        let (q, kv) = (config.heads, config.kv_heads());
        let shared = parameters(&config, 5);
        let copied = with_heads(&shared, |numbers| {
            let heads = heads(&config, numbers);
            let of = |first: usize| (0..q).map(move |h| first + h * kv / q);
            (0..q).chain(of(q)).chain(of(q + kv)).flat_map(|head| heads[head].clone()).collect()
        });
        let text = tokens(3, BATCH * CONTEXT);
        let found = model(&config, &shared).logits(&text, BATCH, CONTEXT).unwrap();
        let expected = model(&own, &copied).logits(&text, BATCH, CONTEXT).unwrap();
        close(&found, &expected, 1e-12, "logits");
    }
}

/// What llama.cpp and others do when they bring a model in: the elements of each head of queries and keys in another order.
#[test]
fn the_two_pairings_are_one_anothers_in_another_order() {
    for kv_heads in [4, 2, 1] {
        let adjacent = GptConfig { position: ADJACENT, kv_heads: Some(kv_heads), bias: Bias::ALL, ..base() };
        let halves = GptConfig { position: HALVES, ..adjacent.clone() };
        let (d, with_pairs) = (6, parameters(&adjacent, 6));
        let in_halves = with_heads(&with_pairs, |numbers| {
            let mut heads = heads(&adjacent, numbers);
            for head in &mut heads[..adjacent.heads + kv_heads] {
                let rows: Vec<Vec<f64>> = head.chunks(head.len() / d).map(<[f64]>::to_vec).collect();
                *head =
                    (0..d).step_by(2).chain((1..d).step_by(2)).flat_map(|row| rows[row].clone()).collect();
            }
            heads.concat()
        });
        let text = tokens(4, BATCH * CONTEXT);
        let found = model(&halves, &in_halves).logits(&text, BATCH, CONTEXT).unwrap();
        let expected = model(&adjacent, &with_pairs).logits(&text, BATCH, CONTEXT).unwrap();
        close(&found, &expected, 1e-12, "logits");
    }
}

/// Without a mask and without positions, a sequence is a set.
#[test]
fn without_a_mask_every_token_sees_every_other() {
    let config = GptConfig { mask: Mask::None, position: Position::None, kv_heads: Some(2), ..base() };
    let (parameters, mut text) = (parameters(&config, 7), (0..CONTEXT as u32).collect::<Vec<_>>());
    let model = model(&config, &parameters);
    let forth = model.logits(&text, 1, CONTEXT).unwrap();
    text.reverse();
    let back = model.logits(&text, 1, CONTEXT).unwrap();
    let reversed: Vec<f64> = back.chunks(VOCAB).rev().flatten().copied().collect();
    close(&forth, &reversed, 1e-12, "logits");
    text[0] = 9;
    let other = model.logits(&text, 1, CONTEXT).unwrap();
    assert!(back.chunks(VOCAB).zip(other.chunks(VOCAB)).all(|(a, b)| a != b), "a token is not seen");
}

#[test]
fn cached_decoding_equals_full_passes() {
    for config in configs().into_iter().filter(|config| config.mask == Mask::Causal) {
        let model = model(&config, &parameters(&config, 8));
        for prefill in [1, 4] {
            let mut decoder = Decoder::new(&model, prefill).unwrap();
            // Past the context too.
            for piece in
                tokens(9, 3 * CONTEXT).chunks(5).flat_map(|part| [&part[..2], &part[2..3], &part[3..]])
            {
                if piece.is_empty() {
                    continue;
                }
                decoder.feed(piece).unwrap();
                let window = decoder.window().to_vec();
                let full = model.logits(&window, 1, window.len()).unwrap();
                close(decoder.logits(), &full[(window.len() - 1) * VOCAB..], 1e-12, "logits");
            }
        }
    }
}

#[test]
fn a_decoder_that_cannot_be_is_refused_in_its_own_words() {
    let model = Model::new(Reference::<f64>::new(), base(), 1).unwrap();
    let error = Decoder::with_cache(&model, 4, Dtype::Q8_0).unwrap_err();
    assert_eq!(error, Error::Cache { cache: Dtype::Q8_0, elem: Dtype::F64 });
    let said =
        "a cache stores its numbers as F64, in which this backend computes, or as F16 or Bf16, not as Q8_0";
    assert_eq!(error.to_string(), said);
    let error = Batch::with_cache(&model, 2, 4, Dtype::F32).unwrap_err();
    assert_eq!(error, Error::Cache { cache: Dtype::F32, elem: Dtype::F64 });
    assert_eq!(Decoder::new(&model, 0).unwrap_err().to_string(), "prefill is 0: it must be at least 1");
}

#[test]
fn a_cache_is_as_large_as_its_heads_and_its_numbers() {
    // So wide that no region is rounded up.
    let own = GptConfig { d_head: Some(64), context: 64, ..base() };
    let bytes =
        |config: &GptConfig, cache| Plan::decoding_with(config, Dtype::F32, 3, 1, cache).unwrap().bytes.cache;
    let whole = bytes(&own, Dtype::F32);
    assert_eq!(whole, own.layers * 2 * 3 * 4 * 64 * 64 * 4);
    assert_eq!(bytes(&GptConfig { kv_heads: Some(1), ..own.clone() }, Dtype::F32), whole / 4);
    for cache in [Dtype::F16, Dtype::Bf16] {
        assert_eq!(bytes(&own, cache), whole / 2);
        assert_eq!(bytes(&GptConfig { kv_heads: Some(2), ..own.clone() }, cache), whole / 4);
    }
}
