//! Numbers and configs from the fuzzer's bytes: mostly those that mean something, at times any.

use arbitrary::{Result, Unstructured};
use minigpt_core::config::schedule::{Decay, Schedule};
use minigpt_core::{
    Activation, AttentionScale, Bias, GptConfig, Group, Groups, Mask, Norm, NormPlace, Optimizer, Pairing,
    Position, Precision, Rank, Recompute, TrainConfig,
};

/// One of the values that settings have, or any float.
pub(super) fn float(u: &mut Unstructured<'_>) -> Result<f64> {
    const USUAL: [f64; 16] = [
        0.0,
        1.0,
        0.5,
        0.9,
        1e-5,
        1e-300,
        f64::MIN_POSITIVE,
        2.0,
        40.0,
        -1.0,
        -0.0,
        f64::MAX,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::EPSILON,
    ];
    match u.arbitrary::<u8>()? {
        place @ 0..16 => Ok(USUAL[usize::from(place)]),
        16..=200 => Ok(f64::from(u.arbitrary::<i16>()?) / 1024.0),
        _ => u.arbitrary(),
    }
}

/// A small number, one about a power of two, or any.
pub(super) fn dimension(u: &mut Unstructured<'_>) -> Result<usize> {
    match u.arbitrary::<u8>()? {
        small @ 0..=199 => Ok(usize::from(small % 12)),
        power @ 200..=246 => {
            Ok((1usize << u32::from(power - 200).min(usize::BITS - 1)) + u.int_in_range(0..=2)? - 1)
        }
        _ => u.arbitrary(),
    }
}

/// 1 to 8.
pub(super) fn tiny(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(1..=8)
}

/// A config whose dimensions `dimension` draws; not always a valid one.
pub(super) fn config(
    u: &mut Unstructured<'_>,
    mut dimension: impl FnMut(&mut Unstructured<'_>) -> Result<usize>,
) -> Result<GptConfig> {
    let heads = dimension(u)?;
    Ok(GptConfig {
        vocab_size: dimension(u)?,
        context: dimension(u)?,
        layers: dimension(u)?,
        heads,
        kv_heads: if u.arbitrary()? { None } else { Some(dimension(u)?) },
        d_head: if u.arbitrary()? { None } else { Some(dimension(u)?) },
        // Mostly a width that the heads divide.
        d_model: if u.arbitrary()? { dimension(u)? } else { heads.wrapping_mul(dimension(u)?) },
        d_ff: dimension(u)?,
        prefix: if u.arbitrary()? { 0 } else { dimension(u)? },
        position: match u.int_in_range(0..=3)? {
            0 => Position::Learned,
            1 => Position::Sinusoidal,
            2 => Position::Rotary {
                base: float(u)?,
                pairing: *u.choose(&[Pairing::Adjacent, Pairing::Halves])?,
            },
            _ => Position::None,
        },
        mask: *u.choose(&[Mask::Causal, Mask::Prefix, Mask::None])?,
        norm: *u.choose(&[Norm::Layer, Norm::Rms])?,
        norm_place: *u.choose(&[NormPlace::Pre, NormPlace::Post, NormPlace::None])?,
        qk_norm: u.arbitrary()?,
        attention_scale: match u.int_in_range(0..=2)? {
            0 => AttentionScale::InverseSqrt,
            1 => AttentionScale::None,
            _ => AttentionScale::Custom(float(u)?),
        },
        residual: u.arbitrary()?,
        activation: *u.choose(&[
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::Relu,
            Activation::ReluSquared,
            Activation::Silu,
        ])?,
        gated: u.arbitrary()?,
        bias: Bias { qkv: u.arbitrary()?, linear: u.arbitrary()?, norm: u.arbitrary()? },
        dropout: if u.arbitrary()? { 0.0 } else { float(u)? },
        tied_embeddings: u.arbitrary()?,
        norm_eps: if u.arbitrary()? { 1e-5 } else { float(u)? },
    })
}

/// Settings of a training; not always valid ones.
pub(super) fn train_config(u: &mut Unstructured<'_>) -> Result<TrainConfig> {
    Ok(TrainConfig {
        batch: tiny(u)?,
        time: tiny(u)?,
        accumulation: tiny(u)?,
        schedule: Schedule {
            peak: float(u)?,
            floor: float(u)?,
            warmup: u.arbitrary()?,
            steps: u.arbitrary()?,
            decay: match u.int_in_range(0..=3)? {
                0 => Decay::Constant,
                1 => Decay::Linear,
                2 => Decay::Cosine,
                _ => Decay::Stable { decay_steps: u.arbitrary()? },
            },
        },
        clip: float(u)?,
        groups: if u.arbitrary()? { Groups::adamw(float(u)?, float(u)?, float(u)?) } else { groups(u)? },
        average: if u.arbitrary()? { Some(float(u)?) } else { None },
        seed: u.arbitrary()?,
        precision: precision(u)?,
        // Checkpoints do not hold these.
        recompute: Recompute::default(),
        rank: Rank::ALONE,
    })
}

pub(super) fn precision(u: &mut Unstructured<'_>) -> Result<Precision> {
    u.choose(&[Precision::F32, Precision::Bf16]).copied()
}

fn groups(u: &mut Unstructured<'_>) -> Result<Groups> {
    Ok(Groups { embeddings: group(u)?, matrices: group(u)?, head: group(u)?, vectors: group(u)? })
}

fn group(u: &mut Unstructured<'_>) -> Result<Group> {
    let optimizer = match u.int_in_range(0..=2)? {
        0 => Optimizer::AdamW { beta1: float(u)?, beta2: float(u)?, eps: float(u)? },
        1 => Optimizer::Sgd { momentum: float(u)?, nesterov: u.arbitrary()? },
        _ => Optimizer::Muon { momentum: float(u)?, nesterov: u.arbitrary()?, steps: u.arbitrary()? },
    };
    Ok(Group { optimizer, weight_decay: float(u)?, rate: float(u)? })
}
