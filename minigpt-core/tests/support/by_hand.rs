//! Whole checkpoints of version 2 from the prose of the format, without the writer and without a plan: a second encoder, which
//! also writes configs that the library refuses.

use minigpt_core::checkpoint::{Role, TensorSpec, Training};
use minigpt_core::{
    Activation, AnyTokenizer, AttentionScale, Decay, Dtype, GptConfig, Group, Mask, Norm, NormPlace,
    Optimizer, Pairing, Position,
};

use crate::support::{header, string, varint};

/// CONF.
pub(crate) fn conf(config: &GptConfig) -> Vec<u8> {
    let mut body = Vec::new();
    let number = |body: &mut Vec<u8>, value: usize| body.extend(varint(value as u64));
    let optional = |body: &mut Vec<u8>, value: Option<usize>| {
        body.push(u8::from(value.is_some()));
        value.into_iter().for_each(|value| number(body, value));
    };
    for value in [config.vocab_size, config.context, config.layers, config.heads] {
        number(&mut body, value);
    }
    optional(&mut body, config.kv_heads);
    number(&mut body, config.d_model);
    optional(&mut body, config.d_head);
    number(&mut body, config.d_ff);
    number(&mut body, config.prefix);
    match config.position {
        Position::Learned => body.push(0),
        Position::Sinusoidal => body.push(1),
        Position::Rotary { base, pairing } => {
            body.push(2);
            body.extend(base.to_le_bytes());
            body.push(u8::from(pairing == Pairing::Halves));
        }
        Position::None => body.push(3),
        other => panic!("the prose does not know {other:?}"),
    }
    let place = |found: Option<usize>| found.expect("the prose knows it") as u8;
    body.push(place([Mask::Causal, Mask::Prefix, Mask::None].iter().position(|m| *m == config.mask)));
    body.push(place([Norm::Layer, Norm::Rms].iter().position(|n| *n == config.norm)));
    let places = [NormPlace::Pre, NormPlace::Post, NormPlace::None];
    body.push(place(places.iter().position(|p| *p == config.norm_place)));
    body.push(u8::from(config.qk_norm));
    match config.attention_scale {
        AttentionScale::InverseSqrt => body.push(0),
        AttentionScale::None => body.push(1),
        AttentionScale::Custom(scale) => {
            body.push(2);
            body.extend(scale.to_le_bytes());
        }
        other => panic!("the prose does not know {other:?}"),
    }
    body.push(u8::from(config.residual));
    let activations = [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
    ];
    body.push(place(activations.iter().position(|a| *a == config.activation)));
    body.extend([config.gated, config.bias.qkv, config.bias.linear, config.bias.norm].map(u8::from));
    body.extend(config.dropout.to_le_bytes());
    body.push(u8::from(config.tied_embeddings));
    body.extend(config.norm_eps.to_le_bytes());
    body
}

/// TRAN, of a training by AdamW.
pub(crate) fn tran(Training { config, state, .. }: &Training) -> Vec<u8> {
    let mut body = [config.batch, config.time, config.accumulation].map(|n| varint(n as u64)).concat();
    let schedule = config.schedule;
    body.extend([schedule.peak, schedule.floor].map(f64::to_le_bytes).concat());
    body.extend([schedule.warmup, schedule.steps].map(|n| varint(n.into())).concat());
    body.extend(match schedule.decay {
        Decay::Constant => vec![0],
        Decay::Linear => vec![1],
        Decay::Cosine => vec![2],
        Decay::Stable { decay_steps } => [vec![3], varint(decay_steps.into())].concat(),
        other => panic!("the prose does not know {other:?}"),
    });
    let Group { optimizer: Optimizer::AdamW { beta1, beta2, eps }, weight_decay, .. } =
        config.groups.matrices
    else {
        panic!("TRAN alone says AdamW, not {:?}", config.groups);
    };
    let numbers = [config.clip, beta1, beta2, eps, weight_decay];
    body.extend(numbers.map(f64::to_le_bytes).concat());
    body.extend(varint(config.seed));
    body.extend(state.counters.map(|counter| varint(counter.into())).concat());
    body.extend(varint(state.windows_drawn));
    body
}

/// The parameters of the model, in the order of the prose, matrices in `format` where it is one for parameters, and the rest
/// and positions in the nearest plain one.
pub(crate) fn specs(config: &GptConfig, format: Dtype) -> Vec<TensorSpec> {
    let (v, c, f) = (config.vocab_size, config.d_model, config.d_ff);
    let (heads, kv_heads) = (config.heads, config.kv_heads.unwrap_or(config.heads));
    let d_head = config.d_head.unwrap_or(c / heads);
    let plain = if format == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    let mut all = Vec::new();
    let mut push = |name: &str, rows, cols, dtype| {
        all.push(TensorSpec { name: name.into(), role: Role::Parameter, dtype, rows, cols });
    };
    push("wte.weight", v, c, format);
    if config.position == Position::Learned {
        push("wpe.weight", config.context, c, plain);
    }
    // A weight, and its bias if there is one.
    let mut affine = |name: &str, rows, cols, is_norm: bool, bias| {
        push(&format!("{name}.weight"), rows, cols, if is_norm { plain } else { format });
        if bias {
            push(&format!("{name}.bias"), 1, if is_norm { cols } else { rows }, plain);
        }
    };
    let bias = config.bias;
    for i in 0..config.layers {
        let has_norms = config.norm_place != NormPlace::None;
        if has_norms {
            affine(&format!("h.{i}.ln_1"), 1, c, true, bias.norm);
        }
        affine(&format!("h.{i}.attn.c_attn"), (heads + 2 * kv_heads) * d_head, c, false, bias.qkv);
        if config.qk_norm {
            affine(&format!("h.{i}.attn.q_norm"), 1, d_head, true, bias.norm);
            affine(&format!("h.{i}.attn.k_norm"), 1, d_head, true, bias.norm);
        }
        affine(&format!("h.{i}.attn.c_proj"), c, heads * d_head, false, bias.linear);
        if has_norms {
            affine(&format!("h.{i}.ln_2"), 1, c, true, bias.norm);
        }
        affine(&format!("h.{i}.mlp.c_fc"), if config.gated { 2 * f } else { f }, c, false, bias.linear);
        affine(&format!("h.{i}.mlp.c_proj"), c, f, false, bias.linear);
    }
    if config.norm_place == NormPlace::Pre {
        affine("ln_f", 1, c, true, bias.norm);
    }
    if !config.tied_embeddings {
        push("lm_head.weight", v, c, format);
    }
    all
}

/// A model without training; `stored` are the bytes of a tensor by its number.
pub(crate) fn file(
    config: &GptConfig,
    format: Dtype,
    tokenizer: Option<&AnyTokenizer>,
    metadata: &[(&str, &str)],
    stored: impl Fn(&TensorSpec, usize) -> Vec<u8>,
) -> Vec<u8> {
    let mut sections = vec![(b"CONF", 1, conf(config))];
    match tokenizer {
        None => {}
        Some(AnyTokenizer::Byte(_)) => sections.push((b"TOKN", 0, vec![0])),
        Some(AnyTokenizer::Char(chars)) => {
            let text: String = chars.chars().iter().collect();
            sections.push((b"TOKN", 0, [vec![1], string(&text)].concat()));
        }
        Some(other) => panic!("the prose does not know {other:?}"),
    }
    if !metadata.is_empty() {
        let entries = metadata.iter().map(|(key, value)| [string(key), string(value)].concat());
        let body = [vec![varint(metadata.len() as u64)], entries.collect()].concat().concat();
        sections.push((b"META", 0, body));
    }
    let tensors = specs(config, format);
    let (mut index, mut payload) = (varint(tensors.len() as u64), Vec::new());
    let dtypes = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::U32];
    for (i, spec) in tensors.iter().enumerate() {
        let bytes = stored(spec, i);
        index.extend(string(&spec.name));
        index.push(u8::from(spec.role == Role::Training));
        index.push(dtypes.iter().position(|dtype| *dtype == spec.dtype).unwrap() as u8);
        for number in [spec.rows, spec.cols, payload.len(), bytes.len(), crc32fast::hash(&bytes) as usize] {
            index.extend(varint(number as u64));
        }
        payload.extend(bytes);
        payload.resize(payload.len().next_multiple_of(64), 0);
    }
    sections.push((b"TENS", 1, index));
    [header(2, &sections), payload].concat()
}
