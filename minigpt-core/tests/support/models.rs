//! Small models whose weights are stored in every format, made by a formula and not by a random generator, so that
//! the same bytes can be made again.

use std::convert::Infallible;

use half::{bf16, f16};
use minigpt_core::checkpoint::{self, Contents, Role, TensorSpec};
use minigpt_core::memory::QUANT_BLOCK;
use minigpt_core::{
    Activation, AnyTokenizer, AttentionScale, Backend, Bias, ByteTokenizer, CharTokenizer, Dtype, GptConfig,
    Mask, Model, Norm, NormPlace, Pairing, Plan, Position, Real,
};

/// The formats that a parameter can be stored in.
pub(crate) const FORMATS: [Dtype; 6] =
    [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// What every small model can be asked to continue.
pub(crate) const TOKENS: [u32; 5] = [4, 0, 2, 2, 6];

/// Rows of 8, 40 and 80 numbers: less than a block of 32, and more than one.
pub(crate) fn base() -> GptConfig {
    GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 40, ..GptConfig::new(7, 6) }
}

/// Given vectors for one sequence: (P, C).
pub(crate) fn given(config: &GptConfig) -> Vec<f64> {
    (0..config.prefix * config.d_model).map(|place| (place * 37 % 101) as f64 / 64.0 - 0.75).collect()
}

/// The logits of [`TOKENS`], behind the [given] vectors if the model has a prefix.
pub(crate) fn logits<B: Backend>(model: &Model<B>) -> Vec<B::Elem> {
    let given: Vec<B::Elem> = given(model.config()).into_iter().map(B::Elem::from_f64).collect();
    model.logits_with(&given, &TOKENS, 1, TOKENS.len()).unwrap()
}

/// A config for every position and norm that version 1 has, with its other variants spread over them.
pub(crate) fn configs() -> Vec<GptConfig> {
    let mut configs = Vec::new();
    for (i, position) in
        [Position::Learned, Position::Sinusoidal, Position::ROTARY, Position::None].into_iter().enumerate()
    {
        for (j, norm_place) in [NormPlace::Pre, NormPlace::Post, NormPlace::None].into_iter().enumerate() {
            let n = i + j;
            configs.push(GptConfig {
                position,
                norm_place,
                attention_scale: [
                    AttentionScale::InverseSqrt,
                    AttentionScale::None,
                    AttentionScale::Custom(0.3),
                ][n % 3],
                activation: [Activation::GeluTanh, Activation::GeluErf, Activation::Relu][(i + 2 * j) % 3],
                residual: (i + j) % 2 == 0,
                bias: [Bias::ALL, Bias::NONE][i % 2],
                tied_embeddings: j % 2 == 0,
                norm_eps: [1e-5, 1e-3][i % 2],
                ..base()
            });
        }
    }
    configs
}

/// Configs that only version 2 has: each of its fields away from its default, alone and with others.
pub(crate) fn wide_configs() -> Vec<GptConfig> {
    let rotary = |base, pairing| Position::Rotary { base, pairing };
    let four = GptConfig { heads: 4, position: Position::ROTARY, ..base() };
    let llama = GptConfig {
        kv_heads: Some(2),
        position: rotary(10_000.0, Pairing::Halves),
        norm: Norm::Rms,
        activation: Activation::Silu,
        gated: true,
        tied_embeddings: false,
        ..four.clone()
    };
    let prefix = GptConfig { prefix: 2, context: 8, ..base() };
    let some = |qkv, linear, norm| GptConfig { bias: Bias { qkv, linear, norm }, ..base() };
    vec![
        some(true, false, false),
        some(false, true, false),
        some(false, false, true),
        GptConfig { kv_heads: Some(1), bias: Bias::ALL, ..four.clone() },
        GptConfig { kv_heads: Some(2), ..four.clone() },
        GptConfig { d_head: Some(6), bias: Bias::ALL, ..base() },
        GptConfig { kv_heads: Some(2), d_head: Some(2), heads: 6, position: Position::Sinusoidal, ..base() },
        GptConfig { position: rotary(500.0, Pairing::Adjacent), ..base() },
        GptConfig { position: rotary(500_000.0, Pairing::Halves), ..base() },
        GptConfig { mask: Mask::None, ..base() },
        GptConfig { norm: Norm::Rms, bias: Bias::ALL, ..base() },
        GptConfig { norm: Norm::Rms, norm_place: NormPlace::Post, norm_eps: 1e-2, ..base() },
        GptConfig { qk_norm: true, bias: Bias::ALL, ..base() },
        GptConfig { qk_norm: true, norm_place: NormPlace::None, ..four.clone() },
        GptConfig { activation: Activation::ReluSquared, ..base() },
        GptConfig { activation: Activation::Silu, bias: Bias::ALL, ..base() },
        GptConfig { activation: Activation::GeluTanh, gated: true, bias: Bias::ALL, ..base() },
        GptConfig { activation: Activation::Relu, gated: true, d_ff: 13, ..base() },
        GptConfig { qk_norm: true, ..llama.clone() },
        GptConfig { mask: Mask::None, attention_scale: AttentionScale::None, ..llama.clone() },
        prefix.clone(),
        GptConfig { mask: Mask::Prefix, position: Position::Sinusoidal, ..prefix.clone() },
        GptConfig { mask: Mask::None, norm_place: NormPlace::Post, ..prefix },
        GptConfig { prefix: 3, context: 8, mask: Mask::Prefix, ..llama.clone() },
        llama,
    ]
}

/// One of the golden models: its file's name and what is in it.
pub(crate) struct Golden {
    pub(crate) name: &'static str,
    pub(crate) config: GptConfig,
    pub(crate) format: Dtype,
    pub(crate) tokenizer: Option<AnyTokenizer>,
    pub(crate) metadata: &'static [(&'static str, &'static str)],
}

/// Changing one of them would change a golden file, which must stay readable as it is: add to them.
pub(crate) fn goldens() -> Vec<Golden> {
    let plain = |name, format, config| Golden { name, config, format, tokenizer: None, metadata: &[] };
    let chars = CharTokenizer::from_text("ehlo ñ🦀").unwrap();
    vec![
        Golden {
            tokenizer: Some(chars.into()),
            ..plain("chars", Dtype::F32, GptConfig { bias: Bias::ALL, ..base() })
        },
        Golden {
            tokenizer: Some(ByteTokenizer.into()),
            metadata: &[("corpus", "plays"), ("leer", ""), ("größe", "🦀")],
            ..plain(
                "bytes",
                Dtype::F32,
                GptConfig { layers: 1, vocab_size: 256, tied_embeddings: false, ..base() },
            )
        },
        plain(
            "f64",
            Dtype::F64,
            GptConfig { norm_place: NormPlace::Post, activation: Activation::GeluTanh, ..base() },
        ),
        plain("f16", Dtype::F16, GptConfig { position: Position::ROTARY, ..base() }),
        plain("bf16", Dtype::Bf16, GptConfig { position: Position::Sinusoidal, ..base() }),
        plain("q8_0", Dtype::Q8_0, GptConfig { tied_embeddings: false, ..base() }),
        plain("q4_0", Dtype::Q4_0, GptConfig { position: Position::None, bias: Bias::ALL, ..base() }),
    ]
}

/// Golden models that only version 2 has, with every field of it away from its default in one of them.
pub(crate) fn wide_goldens() -> Vec<Golden> {
    let plain = |name, config| Golden { name, config, format: Dtype::F32, tokenizer: None, metadata: &[] };
    vec![
        plain(
            "wide",
            GptConfig {
                heads: 4,
                kv_heads: Some(2),
                d_head: Some(6),
                d_ff: 12,
                position: Position::Rotary { base: 500.0, pairing: Pairing::Halves },
                mask: Mask::None,
                norm: Norm::Rms,
                qk_norm: true,
                activation: Activation::Silu,
                gated: true,
                bias: Bias { qkv: true, linear: false, norm: true },
                tied_embeddings: false,
                norm_eps: 1e-6,
                ..base()
            },
        ),
        plain(
            "prefix",
            GptConfig {
                context: 8,
                prefix: 2,
                kv_heads: Some(1),
                mask: Mask::Prefix,
                norm_place: NormPlace::Post,
                qk_norm: true,
                activation: Activation::ReluSquared,
                bias: Bias { qkv: false, linear: true, norm: true },
                ..base()
            },
        ),
    ]
}

/// A number for each place, in 0..65536.
fn scrambled(tensor: usize, place: usize) -> u32 {
    let x = (tensor as u32).wrapping_mul(0x9E37_79B1) ^ (place as u32).wrapping_mul(0x85EB_CA77);
    (x ^ x >> 15).wrapping_mul(0xC2B2_AE3D) >> 16
}

/// The tensors of `config`, matrices in `format` where the format allows it, vectors and positions in the nearest
/// plain one.
pub(crate) fn specs(config: &GptConfig, format: Dtype) -> Vec<TensorSpec> {
    let plan = Plan::smallest(config, Dtype::F32).unwrap();
    let plain = if format == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    plan.parameters
        .list()
        .into_iter()
        .map(|tensor| {
            let narrow = tensor.is_matrix() && tensor.name != "wpe.weight";
            let (name, dtype) = (tensor.name.clone(), if narrow { format } else { plain });
            TensorSpec { name, role: Role::Parameter, dtype, rows: tensor.rows, cols: tensor.cols }
        })
        .collect()
}

/// The stored bytes of tensor number `i`. What fills up the last block of a row is no zero: readers ignore it.
pub(crate) fn stored(spec: &TensorSpec, i: usize) -> Vec<u8> {
    let value = |place: usize| (f64::from(scrambled(i, place)) - 32768.0) / 65536.0;
    let (block, size) = spec.dtype.unit();
    let units = spec.rows * spec.cols.div_ceil(block);
    let mut bytes = Vec::new();
    for unit in 0..units {
        match spec.dtype {
            Dtype::F64 => bytes.extend(value(unit).to_le_bytes()),
            Dtype::F32 => bytes.extend((value(unit) as f32).to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f64(value(unit)).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f64(value(unit)).to_le_bytes()),
            Dtype::Q8_0 | Dtype::Q4_0 => {
                let largest = if spec.dtype == Dtype::Q8_0 { 128.0 } else { 8.0 };
                bytes.extend(f16::from_f64((0.25 + value(unit).abs()) / largest).to_le_bytes());
                bytes.extend((0..size - 2).map(|k| scrambled(i, unit * QUANT_BLOCK + k) as u8));
            }
            other => unreachable!("no parameter is stored as {other:?}"),
        }
    }
    bytes
}

/// A checkpoint of the model.
pub(crate) fn checkpoint_of(
    config: &GptConfig,
    format: Dtype,
    tokenizer: Option<&AnyTokenizer>,
    metadata: &[(&str, &str)],
) -> Vec<u8> {
    let tensors = specs(config, format);
    let all: Vec<Vec<u8>> = tensors.iter().enumerate().map(|(i, spec)| stored(spec, i)).collect();
    let contents = Contents { config, tokenizer, training: None, metadata, tensors: &tensors };
    let mut file = Vec::new();
    checkpoint::write(&mut file, &contents, |i, offset, bytes| {
        bytes.copy_from_slice(&all[i][offset..][..bytes.len()]);
        Ok::<(), Infallible>(())
    })
    .unwrap();
    file
}

impl Golden {
    pub(crate) fn write(&self) -> Vec<u8> {
        checkpoint_of(&self.config, self.format, self.tokenizer.as_ref(), self.metadata)
    }
}
