//! A set of configs in which every two values of any two fields meet, and every three of the fields that make up attention,
//! and of those that make up the rest of a block.

use std::ops::Range;

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Activation, AttentionScale, Bias, GptConfig, Mask, Norm, NormPlace, Pairing, Position, Real,
};

/// How many values each field has, in the order of `config`.
const VALUES: [usize; 19] = [5, 3, 2, 2, 3, 2, 3, 2, 2, 5, 2, 2, 2, 2, 3, 2, 2, 2, 2];
/// Among them those that make up attention, and those of the rest of a block.
const ATTENTION: Range<usize> = 0..6;
const BLOCK: Range<usize> = 6..13;

type Choice = [usize; VALUES.len()];

/// Fields with a value each.
type Combination = Vec<(usize, usize)>;

fn config(choice: &Choice) -> GptConfig {
    let [
        position,
        kv_heads,
        qk_norm,
        d_head,
        mask,
        prefix,
        norm_place,
        norm,
        residual,
        activation,
        gated,
        bias_linear,
        bias_norm,
        bias_qkv,
        attention_scale,
        dropout,
        tied_embeddings,
        norm_eps,
        shape,
    ] = *choice;
    // Queries' heads divide by 2 and leave more than one to each head of keys.
    let shape = [(2, 4, 16, 10, 7, 7), (1, 6, 12, 9, 11, 6)][shape];
    let (layers, heads, d_model, d_ff, vocab, context) = shape;
    let halves = Position::Rotary { base: 500.0, pairing: Pairing::Halves };
    GptConfig {
        layers,
        heads,
        kv_heads: [None, Some(1), Some(2)][kv_heads],
        d_model,
        d_head: [None, Some(6)][d_head],
        d_ff,
        prefix: [0, 2][prefix],
        position: [Position::Learned, Position::Sinusoidal, Position::ROTARY, halves, Position::None]
            [position],
        mask: [Mask::Causal, Mask::Prefix, Mask::None][mask],
        norm: [Norm::Layer, Norm::Rms][norm],
        norm_place: [NormPlace::Pre, NormPlace::Post, NormPlace::None][norm_place],
        qk_norm: qk_norm == 1,
        attention_scale: [AttentionScale::InverseSqrt, AttentionScale::None, AttentionScale::Custom(0.3)]
            [attention_scale],
        residual: residual == 0,
        activation: [
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::Relu,
            Activation::ReluSquared,
            Activation::Silu,
        ][activation],
        gated: gated == 1,
        bias: Bias { qkv: bias_qkv == 0, linear: bias_linear == 0, norm: bias_norm == 0 },
        dropout: [0.0, 0.2][dropout],
        tied_embeddings: tied_embeddings == 0,
        norm_eps: [1e-5, 1e-2][norm_eps],
        ..GptConfig::new(vocab, context)
    }
}

/// Whether the values make sense together: the config refuses a prefix mask without a prefix.
fn is_allowed(combination: impl IntoIterator<Item = (usize, usize)>) -> bool {
    let refused = [(4, 1), (5, 0)];
    combination.into_iter().filter(|value| refused.contains(value)).count() < 2
}

/// Each combination with one more value, of each field behind its last.
fn with_another(combinations: &[Combination], fields: Range<usize>) -> Vec<Combination> {
    let mut all = Vec::new();
    for combination in combinations {
        let first = combination.last().map_or(fields.start, |last| last.0 + 1);
        for field in first..fields.end {
            all.extend((0..VALUES[field]).map(|value| [&combination[..], &[(field, value)]].concat()));
        }
    }
    all
}

/// All combinations of so many of the fields.
fn combinations(fields: Range<usize>, count: usize) -> Vec<Combination> {
    (0..count).fold(vec![Vec::new()], |all, _| with_another(&all, fields.clone()))
}

/// Greedily, the best of many random candidates that have what is missing, until nothing is.
pub(crate) fn covering_set() -> Vec<GptConfig> {
    let mut missing = combinations(0..VALUES.len(), 2);
    missing.extend([ATTENTION, BLOCK].into_iter().flat_map(|fields| combinations(fields, 3)));
    missing.retain(|combination| is_allowed(combination.iter().copied()));

    let meets = |choice: &Choice, combination: &Combination| {
        combination.iter().all(|&(field, value)| choice[field] == value)
    };
    let mut rng = Rng::new(1, Stream::User);
    let mut set = Vec::new();
    // From the end, since three are rarer than two.
    while let Some(wanted) = missing.last() {
        let candidates = (0..40).map(|_| {
            let mut choice = VALUES.map(|n| rng.below(n as u64) as usize);
            wanted.iter().for_each(|&(field, value)| choice[field] = value);
            choice
        });
        let allowed = candidates.filter(|choice| is_allowed(choice.iter().copied().enumerate()));
        let found = |choice: &Choice| missing.iter().filter(|combination| meets(choice, combination)).count();
        let Some(best) = allowed.max_by_key(found) else { continue };
        missing.retain(|combination| !meets(&best, combination));
        set.push(config(&best));
    }
    set
}

/// How many tokens a sequence has that fills the context.
pub(crate) fn length(config: &GptConfig) -> usize {
    config.context - config.prefix
}

/// Vectors (B, P, C) to stand before the tokens of so many sequences.
pub(crate) fn given<R: Real>(config: &GptConfig, sequences: usize, seed: u64) -> Vec<R> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..sequences * config.prefix * config.d_model).map(|_| R::from_f64(0.5 * rng.normal())).collect()
}
