//! The first inputs of each target, so that the fuzzer begins behind the simple checks.

use core::convert::Infallible;

use minigpt_core::checkpoint::{self, Contents, TensorSpec, TrainState, Training};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Activation, AnyTokenizer, AttentionScale, Bias, CharTokenizer, Dtype, GptConfig, Groups, Mask, Norm,
    NormPlace, Pairing, Plan, Position, Precision, TrainConfig,
};

use super::file::of_version_1;

/// Target, name and bytes of each. All checkpoints among them are valid.
pub fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut all = Vec::new();
    for (i, text) in ["", "to be, or not to be", "añ€🦀\0\n", "\u{7F}\u{80}\u{7FF}\u{800}\u{10FFFF}"]
        .into_iter()
        .enumerate()
    {
        // Half of it is the vocabulary's text.
        let twice = [&[127], text.as_bytes(), text.as_bytes()].concat();
        all.push(("tokenizer_roundtrip", format!("text{i}"), twice));
        let mut chars: Vec<char> = text.chars().collect();
        chars.sort_unstable();
        chars.dedup();
        let sorted: String = chars.iter().collect();
        all.push((
            "tokenizer_load",
            format!("sorted{i}"),
            [&[4, 1, sorted.len() as u8], sorted.as_bytes()].concat(),
        ));
        all.push((
            "tokenizer_load",
            format!("text{i}"),
            [&[3, 1, text.len() as u8], text.as_bytes()].concat(),
        ));
        let points = chars.iter().flat_map(|character| u32::from(*character).to_le_bytes());
        all.push(("tokenizer_load", format!("points{i}"), [4].into_iter().chain(points).collect()));
    }
    all.push(("tokenizer_load", "bytes".into(), vec![3, 0]));

    let positions = [Position::Learned, Position::Sinusoidal, Position::ROTARY, Position::None];
    let norms = [NormPlace::Pre, NormPlace::Post, NormPlace::None];
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::F64];
    for i in 0..12 {
        let config = GptConfig {
            layers: 1 + i / 11,
            heads: 1 + i % 2,
            d_model: 2 + 2 * (i % 2),
            d_ff: 2 + i % 4,
            position: positions[i % 4],
            norm_place: norms[i % 3],
            attention_scale: [AttentionScale::InverseSqrt, AttentionScale::None, AttentionScale::Custom(0.5)]
                [i % 3],
            residual: i % 5 > 0,
            activation: [Activation::GeluErf, Activation::GeluTanh, Activation::Relu][i / 4],
            bias: [Bias::NONE, Bias::ALL][i % 2],
            dropout: if i % 4 == 1 { 0.1 } else { 0.0 },
            tied_embeddings: i % 3 > 0,
            ..GptConfig::new(5, 3)
        };
        let file = file(&config, dtypes[i % 6], i % 3 == 0);
        if let Some(old) = of_version_1(&file) {
            all.push(("checkpoint_load", format!("old_model{i}"), old));
        }
        all.push(("checkpoint_load", format!("model{i}"), file));
    }
    for (i, config) in wide_configs().into_iter().enumerate() {
        // What no pass is written for cannot be written either.
        if config.validate().is_ok() {
            let file = file(&config, dtypes[i % 6], i % 3 == 0);
            all.push(("checkpoint_load", format!("wide{i}"), file));
        }
    }
    for (i, (groups, average)) in [
        (Groups::muon(0.9, 0.99, 0.1), Some(0.9)),
        (Groups::sgd(0.0, false, 0.1), None),
        (Groups { head: Groups::sgd(0.9, true, 0.0).head, ..Groups::adamw(0.9, 0.99, 0.1) }, None),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = TrainConfig { groups, average, ..settings() };
        let config = &wide_configs()[i];
        all.push(("checkpoint_load", format!("optimizers{i}"), file_of(config, Dtype::F32, Some(settings))));
    }
    let settings = TrainConfig { precision: Precision::Bf16, ..settings() };
    all.push(("checkpoint_load", "bf16".into(), file_of(&wide_configs()[0], Dtype::F32, Some(settings))));
    // The other targets read numbers, of which any will do.
    for target in ["checkpoint_roundtrip", "config_plan", "sampler"] {
        for i in 0..16 {
            let mut rng = Rng::new(i, Stream::User);
            let bytes = (0..200).map(|_| rng.below(if i % 2 == 0 { 256 } else { 16 }) as u8).collect();
            all.push((target, format!("numbers{i}"), bytes));
        }
    }
    all
}

/// Each of the fields that only version 2 has, alone and with others.
fn wide_configs() -> Vec<GptConfig> {
    let base = GptConfig { layers: 1, heads: 2, d_model: 4, d_ff: 3, ..GptConfig::new(5, 3) };
    let llama = GptConfig {
        kv_heads: Some(1),
        position: Position::Rotary { base: 500.0, pairing: Pairing::Halves },
        norm: Norm::Rms,
        activation: Activation::Silu,
        gated: true,
        ..base.clone()
    };
    vec![
        GptConfig { bias: Bias { qkv: true, linear: false, norm: false }, ..base.clone() },
        GptConfig { bias: Bias { qkv: false, linear: true, norm: false }, ..base.clone() },
        GptConfig { bias: Bias { qkv: false, linear: false, norm: true }, ..base.clone() },
        GptConfig { kv_heads: Some(1), bias: Bias::ALL, ..base.clone() },
        GptConfig { d_head: Some(3), ..base.clone() },
        GptConfig { mask: Mask::None, ..base.clone() },
        GptConfig { norm: Norm::Rms, ..base.clone() },
        GptConfig { qk_norm: true, bias: Bias::ALL, ..base.clone() },
        GptConfig { activation: Activation::ReluSquared, ..base.clone() },
        GptConfig { activation: Activation::GeluErf, gated: true, ..base.clone() },
        GptConfig { prefix: 1, mask: Mask::Prefix, ..base },
        GptConfig { prefix: 2, d_head: Some(4), qk_norm: true, tied_embeddings: false, ..llama.clone() },
        llama,
    ]
}

/// A checkpoint with matrices of type `dtype`, and with the state of a training or without.
fn file(config: &GptConfig, dtype: Dtype, with_training: bool) -> Vec<u8> {
    file_of(config, dtype, with_training.then(settings))
}

fn settings() -> TrainConfig {
    TrainConfig { batch: 2, time: 3, ..TrainConfig::constant(1e-2) }
}

/// The same with these settings. If something other than AdamW trains, a parameter is frozen.
fn file_of(config: &GptConfig, dtype: Dtype, training: Option<TrainConfig>) -> Vec<u8> {
    const FROZEN: &str = "h.0.attn.c_proj.weight";
    let settings = training.clone().unwrap_or_else(settings);
    let freezes = settings.groups != Groups::adamw(0.9, 0.99, 0.1);
    let plan =
        Plan::training(config, Dtype::F32, settings.batch, settings.time).expect("the config is valid");
    let plan = plan.optimizing(&settings.groups, settings.average).expect("it is small");
    let plan = plan.freezing(|tensor| freezes && tensor.name == FROZEN);
    let mut tensors =
        if training.is_some() { TensorSpec::training(&plan) } else { TensorSpec::parameters(&plan) };
    let parameters = plan.parameters.list();
    for (i, tensor) in tensors.iter_mut().enumerate() {
        let parameter = parameters[i % parameters.len()];
        if parameter.is_matrix() && parameter.name != "wpe.weight" && i < parameters.len() {
            tensor.dtype = dtype;
        }
    }
    let tokenizer: AnyTokenizer = CharTokenizer::from_text("añ€🦀").expect("it has characters").into();
    let state = TrainState { counters: [1; 16], windows_drawn: 9 };
    let frozen = if freezes { vec![FROZEN.into()] } else { Vec::new() };
    let training = training.map(|config| Training { config, state, frozen });
    let contents = Contents {
        config,
        tokenizer: Some(&tokenizer),
        training: training.as_ref(),
        metadata: &[("corpus", "plays"), ("größe", "🦀")],
        tensors: &tensors,
    };
    let mut file = Vec::new();
    // Bytes that make small numbers in every type.
    let some = |tensor: usize, offset: usize, bytes: &mut [u8]| {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = [0x3c, 0x21, 0x3b, 0x3d][(tensor + offset + i * 3) % 4];
        }
        Ok::<(), Infallible>(())
    };
    checkpoint::write(&mut file, &contents, some).expect("the contents are valid");
    file
}
