//! What each config of the covering set must do: be there with every pair of values, come back from a file, and decode from
//! its cache what a full pass gives.

#[path = "support/configs.rs"]
mod configs;

use std::collections::BTreeSet;

use configs::{covering_set, given, length};
use minigpt_core::model::Extras;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Backend, Bias, Checkpoint, ConfigError, Decoder, GptConfig, Mask, Model, Reference, TrainConfig, Trainer,
};

/// Every field and its value. A field that is new must be named here, and so be covered.
fn fields(config: &GptConfig) -> Vec<(&'static str, String)> {
    let GptConfig {
        vocab_size,
        context,
        layers,
        heads,
        kv_heads,
        d_model,
        d_head,
        d_ff,
        prefix,
        position,
        mask,
        norm,
        norm_place,
        qk_norm,
        attention_scale,
        residual,
        activation,
        gated,
        bias: Bias { qkv, linear, norm: norm_bias },
        dropout,
        tied_embeddings,
        norm_eps,
    } = config;
    vec![
        ("shape", format!("{:?}", (vocab_size, context, layers, heads, d_model, d_ff))),
        ("kv_heads", format!("{kv_heads:?}")),
        ("d_head", format!("{d_head:?}")),
        ("prefix", format!("{prefix:?}")),
        ("position", format!("{position:?}")),
        ("mask", format!("{mask:?}")),
        ("norm", format!("{norm:?}")),
        ("norm_place", format!("{norm_place:?}")),
        ("qk_norm", format!("{qk_norm:?}")),
        ("attention_scale", format!("{attention_scale:?}")),
        ("residual", format!("{residual:?}")),
        ("activation", format!("{activation:?}")),
        ("gated", format!("{gated:?}")),
        ("bias.qkv", format!("{qkv:?}")),
        ("bias.linear", format!("{linear:?}")),
        ("bias.norm", format!("{norm_bias:?}")),
        ("dropout", format!("{dropout:?}")),
        ("tied_embeddings", format!("{tied_embeddings:?}")),
        ("norm_eps", format!("{norm_eps:?}")),
    ]
}

type Value = (&'static str, String);

/// Those of each field.
fn values(set: &[Vec<Value>]) -> Vec<BTreeSet<Value>> {
    (0..set[0].len()).map(|field| set.iter().map(|config| config[field].clone()).collect()).collect()
}

/// What no config may have together.
fn is_refused(values: &[&Value]) -> bool {
    let refused = GptConfig { mask: Mask::Prefix, prefix: 0, ..GptConfig::new(5, 4) };
    assert_eq!(refused.validate(), Err(ConfigError::NoPrefixToSee));
    let refused = [("prefix", "0".to_string()), ("mask", "Prefix".to_string())];
    refused.iter().all(|value| values.contains(&value))
}

#[test]
fn every_two_values_of_any_two_fields_meet() {
    let set: Vec<_> = covering_set().iter().map(fields).collect();
    assert_eq!(set.len(), 57);
    let values = values(&set);
    let counts: Vec<usize> = values.iter().map(BTreeSet::len).collect();
    assert_eq!(counts, [2, 3, 2, 2, 5, 3, 2, 3, 2, 3, 2, 5, 2, 2, 2, 2, 2, 2, 2]);
    for (a, firsts) in values.iter().enumerate() {
        for second in values[a + 1..].iter().flatten() {
            for first in firsts {
                let meet = set.iter().any(|config| config.contains(first) && config.contains(second));
                assert_eq!(meet, !is_refused(&[first, second]), "{first:?} and {second:?}");
            }
        }
    }
}

#[test]
fn every_three_values_of_fields_of_attention_meet_and_of_the_rest_of_a_block() {
    let attention = ["position", "kv_heads", "qk_norm", "d_head", "mask", "prefix"];
    let rest = ["norm_place", "norm", "residual", "activation", "gated", "bias.linear", "bias.norm"];
    for names in [&attention[..], &rest] {
        let of = |config: &GptConfig| {
            fields(config).into_iter().filter(|(field, _)| names.contains(field)).collect::<Vec<_>>()
        };
        let set: Vec<_> = covering_set().iter().map(of).collect();
        assert_eq!(set[0].len(), names.len());
        let values = values(&set);
        for (a, firsts) in values.iter().enumerate() {
            for (b, seconds) in values.iter().enumerate().skip(a + 1) {
                for third in values[b + 1..].iter().flatten() {
                    for (first, second) in
                        firsts.iter().flat_map(|first| seconds.iter().map(move |s| (first, s)))
                    {
                        let three = [first, second, third];
                        let meet = set.iter().any(|config| three.iter().all(|value| config.contains(value)));
                        assert_eq!(meet, !is_refused(&three), "{three:?}");
                    }
                }
            }
        }
    }
}

/// A model whose weights are spread widely enough that every part of it matters.
fn model(config: &GptConfig, seed: u64) -> Model<Reference<f64>> {
    let model = Model::new(Reference::new(), config.clone(), seed).unwrap();
    let mut rng = Rng::new(seed, Stream::User);
    let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    for name in names {
        let mut values = model.parameter(&name).unwrap().unwrap();
        values.iter_mut().for_each(|value| *value += 0.3 * rng.normal());
        assert!(model.set_parameter(&name, &values).unwrap());
    }
    model
}

fn tokens(config: &GptConfig, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::Data);
    (0..count).map(|_| rng.below(config.vocab_size as u64) as u32).collect()
}

const BATCH: usize = 2;

/// Step `number`, of two sequences of whole contexts.
fn step(trainer: &mut Trainer<Reference<f64>>, number: u64) {
    let config = trainer.model().config().clone();
    let count = BATCH * length(&config);
    let [inputs, targets] = [2 * number, 2 * number + 1].map(|seed| tokens(&config, count, seed));
    trainer.set_prefix(&given(&config, BATCH, number)).unwrap();
    trainer.micro_step(&inputs, &targets).unwrap();
    trainer.finish_step().unwrap();
}

fn written<B: Backend>(trainer: &Trainer<B>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

#[test]
fn what_is_saved_and_loaded_has_the_same_bits_and_goes_on_with_the_same() {
    for (seed, config) in (0..).zip(covering_set()) {
        let model = model(&config, seed);
        let settings = TrainConfig { batch: BATCH, time: length(&config), ..TrainConfig::constant(1e-2) };
        let mut trainer = Trainer::new(&model, settings).unwrap();
        (0..2).for_each(|number| step(&mut trainer, number));
        let file = written(&trainer);

        let checkpoint = Checkpoint::open_verified(&file).unwrap();
        assert_eq!(checkpoint.config(), &config);
        let loaded = Model::load(Reference::<f64>::new(), &checkpoint).unwrap();
        let inputs = tokens(&config, length(&config), seed);
        let prefix = given(&config, 1, seed);
        let logits = |model: &Model<_>| model.logits_with(&prefix, &inputs, 1, inputs.len()).unwrap();
        assert!(logits(&loaded) == logits(&model), "{config:?}");

        let mut resumed = Trainer::resume(Reference::<f64>::new(), &checkpoint).unwrap();
        assert!(written(&resumed) == file, "{config:?}");
        step(&mut trainer, 2);
        step(&mut resumed, 2);
        assert!(trainer.metrics().unwrap() == resumed.metrics().unwrap(), "{config:?}");
        assert!(trainer.metrics().unwrap().loss.is_finite() && trainer.metrics().unwrap().skipped == 0);
        assert!(written(&resumed) == written(&trainer), "{config:?}");
    }
}

#[test]
fn decoding_from_the_cache_gives_what_a_full_pass_gives() {
    for (seed, config) in (0..).zip(covering_set()) {
        let (model, vocab) = (model(&config, seed), config.vocab_size);
        let (prefix, room) = (given(&config, 1, seed), length(&config));
        let text = tokens(&config, 35, seed);
        let mut decoder = Decoder::new(&model, 4).unwrap();
        if config.prefix > 0 {
            decoder.begin_with(&prefix).unwrap();
        }
        let mut fed = 0;
        // One by one past the context, several at once, and more than the context holds.
        for piece in [1; 9].into_iter().chain([3, 1, 2, 1, 1, room + 1, 1, room, 1]) {
            decoder.feed(&text[fed..fed + piece]).unwrap();
            fed += piece;
            let window = decoder.window();
            assert!(window.len() >= piece.min(room) && window.len() <= room, "{config:?}");
            assert!(text[..fed].ends_with(window), "{config:?}");
            let full = model.logits_with(&prefix, window, 1, window.len()).unwrap();
            let expected = &full[full.len() - vocab..];
            let scale = expected.iter().fold(1.0, |most: f64, logit| most.max(logit.abs()));
            for (found, expected) in decoder.logits().iter().zip(expected) {
                let error = (found - expected).abs() / scale;
                assert!(error < 1e-11, "after {fed} tokens {error:e}, {config:?}");
            }
        }
    }
}
