//! The names and numbers of the format, and its wire structs.
//!
//! Wire structs stand apart from the public types, so that those can change without changing a byte of a
//! file. The order of their fields and variants is the format: only a new version may change it.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::TrainState;
use super::{Fault, Role, Training};
use crate::config::schedule::{Decay, Schedule};
use crate::config::{
    Activation, AttentionScale, Bias, ConfigError, GptConfig, Group, Groups, Mask, Norm, NormPlace,
    Optimizer, Pairing, Position, Precision, Rank, Recompute, TrainConfig,
};
use crate::memory::Dtype;
use crate::op::counter;
use crate::plan;

pub(super) const MAGIC: [u8; 4] = *b"MGPT";

/// The version of the format that this library writes, and the newest one that it reads.
pub const VERSION: u32 = 2;

/// Tensors begin at multiples of this many bytes.
pub(super) const ALIGN: usize = plan::ALIGN;

/// The most bytes of a tensor that are read at once.
pub(super) const CHUNK: usize = 32 << 10;

/// The most bytes of a tensor of that type that are read at once, whole units.
pub(crate) fn chunk_of(dtype: Dtype) -> usize {
    let unit = dtype.unit().1;
    CHUNK / unit * unit
}

/// Magic, version, header length.
pub(super) const PREAMBLE: usize = 12;

/// Tag, flags, length.
pub(super) const SECTION_HEAD: usize = 12;

/// The bytes of a CRC-32.
pub(super) const CRC: usize = 4;

/// The flag of a section that a reader must know.
pub(super) const REQUIRED: u32 = 1;

/// The longest name of a tensor, in bytes.
pub(super) const MAX_NAME: usize = 255;

pub(super) const CONF: [u8; 4] = *b"CONF";
pub(super) const TOKN: [u8; 4] = *b"TOKN";
pub(super) const TENS: [u8; 4] = *b"TENS";
pub(super) const TRAN: [u8; 4] = *b"TRAN";
pub(super) const OPTM: [u8; 4] = *b"OPTM";
pub(super) const META: [u8; 4] = *b"META";

/// The bytes of a tensor; `None` if they are more than 64 bits can count. Rows are padded to whole blocks.
pub(super) fn tensor_bytes(dtype: Dtype, rows: u64, cols: u64) -> Option<u64> {
    let (elements, bytes) = dtype.unit();
    cols.div_ceil(elements as u64).checked_mul(bytes as u64)?.checked_mul(rows)
}

#[derive(Serialize, Deserialize)]
pub(super) enum WireDtype {
    F64,
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    U32,
}

impl From<Dtype> for WireDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => WireDtype::F64,
            Dtype::F32 => WireDtype::F32,
            Dtype::F16 => WireDtype::F16,
            Dtype::Bf16 => WireDtype::Bf16,
            Dtype::Q8_0 => WireDtype::Q8_0,
            Dtype::Q4_0 => WireDtype::Q4_0,
            Dtype::U32 => WireDtype::U32,
        }
    }
}

impl From<WireDtype> for Dtype {
    fn from(dtype: WireDtype) -> Self {
        match dtype {
            WireDtype::F64 => Dtype::F64,
            WireDtype::F32 => Dtype::F32,
            WireDtype::F16 => Dtype::F16,
            WireDtype::Bf16 => Dtype::Bf16,
            WireDtype::Q8_0 => Dtype::Q8_0,
            WireDtype::Q4_0 => Dtype::Q4_0,
            WireDtype::U32 => Dtype::U32,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) enum WireRole {
    Parameter,
    Training,
}

impl From<Role> for WireRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Parameter => WireRole::Parameter,
            Role::Training => WireRole::Training,
        }
    }
}

impl From<WireRole> for Role {
    fn from(role: WireRole) -> Self {
        match role {
            WireRole::Parameter => Role::Parameter,
            WireRole::Training => Role::Training,
        }
    }
}

/// One record of TENS.
#[derive(Serialize, Deserialize)]
pub(super) struct WireTensor<'a> {
    pub(super) name: &'a str,
    pub(super) role: WireRole,
    pub(super) dtype: WireDtype,
    pub(super) rows: u32,
    pub(super) cols: u32,
    /// From the beginning of the payload.
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) crc: u32,
}

impl WireTensor<'_> {
    /// The shortest record: one byte for each field. (An empty name has a rule of its own.)
    pub(super) const MIN_BYTES: usize = 8;
}

/// TOKN.
#[derive(Serialize, Deserialize)]
pub(super) enum WireTokenizer<'a> {
    Bytes,
    Chars(&'a str),
}

#[derive(Serialize, Deserialize)]
enum WirePosition {
    Learned,
    Sinusoidal,
    Rotary { base: f64, pairing: WirePairing },
    None,
}

#[derive(Serialize, Deserialize)]
enum WirePairing {
    Adjacent,
    Halves,
}

#[derive(Serialize, Deserialize)]
enum WireMask {
    Causal,
    Prefix,
    None,
}

#[derive(Serialize, Deserialize)]
enum WireNorm {
    Layer,
    Rms,
}

#[derive(Serialize, Deserialize)]
enum WireNormPlace {
    Pre,
    Post,
    None,
}

#[derive(Serialize, Deserialize)]
enum WireScale {
    InverseSqrt,
    None,
    Custom(f64),
}

#[derive(Serialize, Deserialize)]
enum WireActivation {
    GeluTanh,
    GeluErf,
    Relu,
    ReluSquared,
    Silu,
}

/// CONF.
#[derive(Serialize, Deserialize)]
pub(super) struct WireConfig {
    vocab_size: u32,
    context: u32,
    layers: u32,
    heads: u32,
    kv_heads: Option<u32>,
    d_model: u32,
    d_head: Option<u32>,
    d_ff: u32,
    prefix: u32,
    position: WirePosition,
    mask: WireMask,
    norm: WireNorm,
    norm_place: WireNormPlace,
    qk_norm: bool,
    attention_scale: WireScale,
    residual: bool,
    activation: WireActivation,
    gated: bool,
    qkv_bias: bool,
    linear_bias: bool,
    norm_bias: bool,
    dropout: f64,
    tied_embeddings: bool,
    norm_eps: f64,
}

#[derive(Deserialize)]
enum WirePosition1 {
    Learned,
    Sinusoidal,
    Rotary,
    None,
}

#[derive(Deserialize)]
enum WireActivation1 {
    GeluTanh,
    GeluErf,
    Relu,
}

/// CONF of version 1.
#[derive(Deserialize)]
pub(super) struct WireConfig1 {
    vocab_size: u32,
    context: u32,
    layers: u32,
    heads: u32,
    d_model: u32,
    d_ff: u32,
    position: WirePosition1,
    norm_place: WireNormPlace,
    attention_scale: WireScale,
    residual: bool,
    activation: WireActivation1,
    bias: bool,
    dropout: f64,
    tied_embeddings: bool,
    norm_eps: f64,
}

impl From<WireConfig1> for WireConfig {
    fn from(wire: WireConfig1) -> Self {
        WireConfig {
            vocab_size: wire.vocab_size,
            context: wire.context,
            layers: wire.layers,
            heads: wire.heads,
            kv_heads: None,
            d_model: wire.d_model,
            d_head: None,
            d_ff: wire.d_ff,
            prefix: 0,
            position: match wire.position {
                WirePosition1::Learned => WirePosition::Learned,
                WirePosition1::Sinusoidal => WirePosition::Sinusoidal,
                WirePosition1::Rotary => {
                    WirePosition::Rotary { base: 10_000.0, pairing: WirePairing::Adjacent }
                }
                WirePosition1::None => WirePosition::None,
            },
            mask: WireMask::Causal,
            norm: WireNorm::Layer,
            norm_place: wire.norm_place,
            qk_norm: false,
            attention_scale: wire.attention_scale,
            residual: wire.residual,
            activation: match wire.activation {
                WireActivation1::GeluTanh => WireActivation::GeluTanh,
                WireActivation1::GeluErf => WireActivation::GeluErf,
                WireActivation1::Relu => WireActivation::Relu,
            },
            gated: false,
            qkv_bias: wire.bias,
            linear_bias: wire.bias,
            norm_bias: wire.bias,
            dropout: wire.dropout,
            tied_embeddings: wire.tied_embeddings,
            norm_eps: wire.norm_eps,
        }
    }
}

fn dimension(field: &'static str, value: usize) -> Result<u32, Fault> {
    u32::try_from(value).map_err(|_| Fault::Config(ConfigError::TooLarge { field }))
}

fn size(field: &'static str, value: u32) -> Result<usize, Fault> {
    usize::try_from(value).map_err(|_| Fault::Config(ConfigError::TooLarge { field }))
}

impl TryFrom<&GptConfig> for WireConfig {
    type Error = Fault;

    fn try_from(config: &GptConfig) -> Result<Self, Fault> {
        let optional = |field, value: Option<usize>| value.map(|value| dimension(field, value)).transpose();
        Ok(WireConfig {
            vocab_size: dimension("vocab_size", config.vocab_size)?,
            context: dimension("context", config.context)?,
            layers: dimension("layers", config.layers)?,
            heads: dimension("heads", config.heads)?,
            kv_heads: optional("kv_heads", config.kv_heads)?,
            d_model: dimension("d_model", config.d_model)?,
            d_head: optional("d_head", config.d_head)?,
            d_ff: dimension("d_ff", config.d_ff)?,
            prefix: dimension("prefix", config.prefix)?,
            position: match config.position {
                Position::Learned => WirePosition::Learned,
                Position::Sinusoidal => WirePosition::Sinusoidal,
                Position::Rotary { base, pairing: Pairing::Adjacent } => {
                    WirePosition::Rotary { base, pairing: WirePairing::Adjacent }
                }
                Position::Rotary { base, pairing: Pairing::Halves } => {
                    WirePosition::Rotary { base, pairing: WirePairing::Halves }
                }
                Position::None => WirePosition::None,
            },
            mask: match config.mask {
                Mask::Causal => WireMask::Causal,
                Mask::Prefix => WireMask::Prefix,
                Mask::None => WireMask::None,
            },
            norm: match config.norm {
                Norm::Layer => WireNorm::Layer,
                Norm::Rms => WireNorm::Rms,
            },
            norm_place: match config.norm_place {
                NormPlace::Pre => WireNormPlace::Pre,
                NormPlace::Post => WireNormPlace::Post,
                NormPlace::None => WireNormPlace::None,
            },
            qk_norm: config.qk_norm,
            attention_scale: match config.attention_scale {
                AttentionScale::InverseSqrt => WireScale::InverseSqrt,
                AttentionScale::None => WireScale::None,
                AttentionScale::Custom(scale) => WireScale::Custom(scale),
            },
            residual: config.residual,
            activation: match config.activation {
                Activation::GeluTanh => WireActivation::GeluTanh,
                Activation::GeluErf => WireActivation::GeluErf,
                Activation::Relu => WireActivation::Relu,
                Activation::ReluSquared => WireActivation::ReluSquared,
                Activation::Silu => WireActivation::Silu,
            },
            gated: config.gated,
            qkv_bias: config.bias.qkv,
            linear_bias: config.bias.linear,
            norm_bias: config.bias.norm,
            dropout: config.dropout,
            tied_embeddings: config.tied_embeddings,
            norm_eps: config.norm_eps,
        })
    }
}

impl TryFrom<WireConfig> for GptConfig {
    type Error = Fault;

    /// A config that is valid.
    fn try_from(wire: WireConfig) -> Result<Self, Fault> {
        let optional = |field, value: Option<u32>| value.map(|value| size(field, value)).transpose();
        let config = GptConfig {
            vocab_size: size("vocab_size", wire.vocab_size)?,
            context: size("context", wire.context)?,
            layers: size("layers", wire.layers)?,
            heads: size("heads", wire.heads)?,
            kv_heads: optional("kv_heads", wire.kv_heads)?,
            d_model: size("d_model", wire.d_model)?,
            d_head: optional("d_head", wire.d_head)?,
            d_ff: size("d_ff", wire.d_ff)?,
            prefix: size("prefix", wire.prefix)?,
            position: match wire.position {
                WirePosition::Learned => Position::Learned,
                WirePosition::Sinusoidal => Position::Sinusoidal,
                WirePosition::Rotary { base, pairing: WirePairing::Adjacent } => {
                    Position::Rotary { base, pairing: Pairing::Adjacent }
                }
                WirePosition::Rotary { base, pairing: WirePairing::Halves } => {
                    Position::Rotary { base, pairing: Pairing::Halves }
                }
                WirePosition::None => Position::None,
            },
            mask: match wire.mask {
                WireMask::Causal => Mask::Causal,
                WireMask::Prefix => Mask::Prefix,
                WireMask::None => Mask::None,
            },
            norm: match wire.norm {
                WireNorm::Layer => Norm::Layer,
                WireNorm::Rms => Norm::Rms,
            },
            norm_place: match wire.norm_place {
                WireNormPlace::Pre => NormPlace::Pre,
                WireNormPlace::Post => NormPlace::Post,
                WireNormPlace::None => NormPlace::None,
            },
            qk_norm: wire.qk_norm,
            attention_scale: match wire.attention_scale {
                WireScale::InverseSqrt => AttentionScale::InverseSqrt,
                WireScale::None => AttentionScale::None,
                WireScale::Custom(scale) => AttentionScale::Custom(scale),
            },
            residual: wire.residual,
            activation: match wire.activation {
                WireActivation::GeluTanh => Activation::GeluTanh,
                WireActivation::GeluErf => Activation::GeluErf,
                WireActivation::Relu => Activation::Relu,
                WireActivation::ReluSquared => Activation::ReluSquared,
                WireActivation::Silu => Activation::Silu,
            },
            gated: wire.gated,
            bias: Bias { qkv: wire.qkv_bias, linear: wire.linear_bias, norm: wire.norm_bias },
            dropout: wire.dropout,
            tied_embeddings: wire.tied_embeddings,
            norm_eps: wire.norm_eps,
        };
        config.validate().map_err(Fault::Config)?;
        Ok(config)
    }
}

#[derive(Serialize, Deserialize)]
enum WireDecay {
    Constant,
    Linear,
    Cosine,
    Stable { decay_steps: u32 },
}

/// TRAN.
#[derive(Serialize, Deserialize)]
pub(super) struct WireTraining {
    batch: u32,
    time: u32,
    accumulation: u32,
    peak: f64,
    floor: f64,
    warmup: u32,
    steps: u32,
    decay: WireDecay,
    clip: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    seed: u64,
    counters: [u32; 16],
    windows_drawn: u64,
}

// The format has 16 counters; a 17th needs a section of its own or a new version.
const _: () = assert!(counter::LEN == 16);

impl TryFrom<&Training> for WireTraining {
    type Error = Fault;

    fn try_from(training: &Training) -> Result<Self, Fault> {
        let Training { config, state, .. } = training;
        let schedule = config.schedule;
        // With OPTM, an eps of 0 keeps those from training who do not know it.
        let adamw = if has_optimizers(training) { None } else { config.groups.as_adamw() };
        let [beta1, beta2, eps, weight_decay] = adamw.unwrap_or_default();
        Ok(WireTraining {
            batch: dimension("batch", config.batch)?,
            time: dimension("time", config.time)?,
            accumulation: dimension("accumulation", config.accumulation)?,
            peak: schedule.peak,
            floor: schedule.floor,
            warmup: schedule.warmup,
            steps: schedule.steps,
            decay: match schedule.decay {
                Decay::Constant => WireDecay::Constant,
                Decay::Linear => WireDecay::Linear,
                Decay::Cosine => WireDecay::Cosine,
                Decay::Stable { decay_steps } => WireDecay::Stable { decay_steps },
            },
            clip: config.clip,
            beta1,
            beta2,
            eps,
            weight_decay,
            seed: config.seed,
            counters: state.counters,
            windows_drawn: state.windows_drawn,
        })
    }
}

impl TryFrom<WireTraining> for Training {
    type Error = Fault;

    fn try_from(wire: WireTraining) -> Result<Self, Fault> {
        let config = TrainConfig {
            batch: size("batch", wire.batch)?,
            time: size("time", wire.time)?,
            accumulation: size("accumulation", wire.accumulation)?,
            schedule: Schedule {
                peak: wire.peak,
                floor: wire.floor,
                warmup: wire.warmup,
                steps: wire.steps,
                decay: match wire.decay {
                    WireDecay::Constant => Decay::Constant,
                    WireDecay::Linear => Decay::Linear,
                    WireDecay::Cosine => Decay::Cosine,
                    WireDecay::Stable { decay_steps } => Decay::Stable { decay_steps },
                },
            },
            clip: wire.clip,
            groups: Groups::from_adamw([wire.beta1, wire.beta2, wire.eps, wire.weight_decay]),
            average: None,
            seed: wire.seed,
            precision: Precision::F32,
            recompute: Recompute::default(),
            rank: Rank::ALONE,
        };
        Ok(Training {
            config,
            state: TrainState { counters: wire.counters, windows_drawn: wire.windows_drawn },
            frozen: Vec::new(),
        })
    }
}

#[derive(Serialize, Deserialize)]
enum WireOptimizer {
    AdamW { beta1: f64, beta2: f64, eps: f64 },
    Sgd { momentum: f64, nesterov: bool },
    Muon { momentum: f64, nesterov: bool, steps: u32 },
}

/// OPTM has four: of embeddings, matrices, the head and vectors. Behind them stands the average, and then what is frozen.
#[derive(Serialize, Deserialize)]
pub(super) struct WireGroup {
    optimizer: WireOptimizer,
    weight_decay: f64,
    rate: f64,
}

/// Whether a training is more than TRAN can say.
pub(super) fn has_optimizers(training: &Training) -> bool {
    let Training { config, frozen, .. } = training;
    config.groups.as_adamw().is_none()
        || config.average.is_some()
        || config.precision != Precision::F32
        || !frozen.is_empty()
}

/// Behind what is frozen; where OPTM ends before, it is F32.
#[derive(Serialize, Deserialize)]
pub(super) enum WirePrecision {
    F32,
    Bf16,
}

impl From<Precision> for WirePrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => WirePrecision::F32,
            Precision::Bf16 => WirePrecision::Bf16,
        }
    }
}

impl From<WirePrecision> for Precision {
    fn from(wire: WirePrecision) -> Self {
        match wire {
            WirePrecision::F32 => Precision::F32,
            WirePrecision::Bf16 => Precision::Bf16,
        }
    }
}

impl From<&Group> for WireGroup {
    fn from(group: &Group) -> Self {
        let optimizer = match group.optimizer {
            Optimizer::AdamW { beta1, beta2, eps } => WireOptimizer::AdamW { beta1, beta2, eps },
            Optimizer::Sgd { momentum, nesterov } => WireOptimizer::Sgd { momentum, nesterov },
            Optimizer::Muon { momentum, nesterov, steps } => {
                WireOptimizer::Muon { momentum, nesterov, steps }
            }
        };
        WireGroup { optimizer, weight_decay: group.weight_decay, rate: group.rate }
    }
}

impl From<WireGroup> for Group {
    fn from(wire: WireGroup) -> Self {
        let optimizer = match wire.optimizer {
            WireOptimizer::AdamW { beta1, beta2, eps } => Optimizer::AdamW { beta1, beta2, eps },
            WireOptimizer::Sgd { momentum, nesterov } => Optimizer::Sgd { momentum, nesterov },
            WireOptimizer::Muon { momentum, nesterov, steps } => {
                Optimizer::Muon { momentum, nesterov, steps }
            }
        };
        Group { optimizer, weight_decay: wire.weight_decay, rate: wire.rate }
    }
}
