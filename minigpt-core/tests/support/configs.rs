//! A set of configs in which every pair of variants meets.

use std::collections::BTreeSet;

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Activation, AttentionScale, Bias, GptConfig, NormPlace, Position};

/// How many values each varied field has: position, norm, scale, residual, activation, bias, dropout, tied, shape.
const CHOICES: [usize; 9] = [4, 3, 3, 2, 3, 2, 2, 2, 2];

pub(crate) fn config(choice: &[usize; 9]) -> GptConfig {
    let shape = [(2, 3, 12, 10, 7, 5), (1, 2, 8, 9, 11, 4)][choice[8]];
    let (layers, heads, d_model, d_ff, vocab, context) = shape;
    GptConfig {
        layers,
        heads,
        d_model,
        d_ff,
        position: [Position::Learned, Position::Sinusoidal, Position::ROTARY, Position::None][choice[0]],
        norm_place: [NormPlace::Pre, NormPlace::Post, NormPlace::None][choice[1]],
        attention_scale: [AttentionScale::InverseSqrt, AttentionScale::None, AttentionScale::Custom(0.3)]
            [choice[2]],
        residual: choice[3] == 0,
        activation: [Activation::GeluTanh, Activation::GeluErf, Activation::Relu][choice[4]],
        bias: [Bias::ALL, Bias::NONE][choice[5]],
        dropout: [0.0, 0.2][choice[6]],
        tied_embeddings: choice[7] == 0,
        ..GptConfig::new(vocab, context)
    }
}

type Pair = (usize, usize, usize, usize);

fn pairs(choice: &[usize; 9]) -> impl Iterator<Item = Pair> + '_ {
    (0..9).flat_map(move |i| (i + 1..9).map(move |j| (i, choice[i], j, choice[j])))
}

/// Greedily, the best of many random candidates, until every pair of values stands in some config.
pub(crate) fn covering_set() -> Vec<[usize; 9]> {
    let mut missing = BTreeSet::new();
    for i in 0..9 {
        for j in i + 1..9 {
            for a in 0..CHOICES[i] {
                missing.extend((0..CHOICES[j]).map(|b| (i, a, j, b)));
            }
        }
    }
    let mut rng = Rng::new(1, Stream::User);
    let mut set = Vec::new();
    while !missing.is_empty() {
        let candidates = (0..60).map(|_| CHOICES.map(|n| rng.below(n as u64) as usize));
        let best = candidates.max_by_key(|c| pairs(c).filter(|p| missing.contains(p)).count()).unwrap();
        for pair in pairs(&best) {
            missing.remove(&pair);
        }
        set.push(best);
    }
    set
}
