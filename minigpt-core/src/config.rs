//! [`GptConfig`]: the shape of a model, and everything that the experiments vary. [`TrainConfig`]: how it is trained.
//!
//! An ablation is a value here and not a fork of the code: the position encoding, where the norm stands, the
//! scale of the attention scores, whether there are residual connections, and so on.

mod optimizer;
mod precision;
mod presets;
mod rank;
pub mod schedule;
mod training;

use core::fmt;

pub use optimizer::{Group, Groups, Optimizer, ParameterKind};
pub use precision::Precision;
pub use presets::{PRESETS, Preset};
pub use rank::Rank;
pub use training::{Recompute, TrainConfig};

/// How a position enters the model.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Position {
    /// A trained vector per position, added to the token's embedding (GPT-2).
    Learned,
    /// Fixed sines and cosines, added to the token's embedding (Vaswani et al. 2017, section 3.5).
    Sinusoidal,
    /// Queries and keys are rotated: pair i by the angle position * base^(-2i/D) (Su et al. 2021, RoFormer).
    Rotary {
        /// 10000 in the paper; larger for longer contexts, such as Llama 3's 500000.
        base: f64,
        /// Which elements of a head are a pair.
        pairing: Pairing,
    },
    /// Nothing: only the causal mask tells positions apart (Haviv et al. 2022).
    None,
}

impl Position {
    /// Rotary positions as the paper has them.
    pub const ROTARY: Position = Position::Rotary { base: 10_000.0, pairing: Pairing::Adjacent };

    /// Whether queries and keys are rotated.
    pub const fn is_rotary(self) -> bool {
        matches!(self, Position::Rotary { .. })
    }
}

/// Which elements of a head rotary positions turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Pairing {
    /// Elements 2i and 2i + 1 (the paper; GPT-J; Meta's own Llama).
    Adjacent,
    /// Elements i and i + D/2 (GPT-NeoX; Llama and its kin in Hugging Face's files).
    Halves,
}

/// Which positions a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// Those up to its own (GPT-2).
    Causal,
    /// Those of the whole [prefix](GptConfig::prefix), and those up to its own: the prefix sees itself both ways
    /// (Liu et al. 2018, arXiv:1801.10198, and PaliGemma, Beyer et al. 2024, arXiv:2407.07726, section 3.1).
    Prefix,
    /// All (BERT). A model that is trained to tell the next token sees it then: an experiment, and an encoder for a loss of
    /// one's own.
    None,
}

/// How a vector is brought to a common size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Norm {
    /// (x - mean) / sqrt(variance + eps) (Ba et al. 2016; GPT-2).
    Layer,
    /// x / sqrt(mean of x^2 + eps): no mean is taken away (Zhang and Sennrich 2019; Llama).
    Rms,
}

/// Where the norms stand in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormPlace {
    /// Before each sub-layer, and once more before the head (GPT-2; Xiong et al. 2020).
    Pre,
    /// After each residual addition (Vaswani et al. 2017; GPT-1). There is no final norm: the last block ends in one.
    Post,
    /// None at all.
    None,
}

/// What the scores `q . k` are multiplied by before the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum AttentionScale {
    /// 1 / sqrt(d_k), which keeps the scores' variance near 1 (Vaswani et al. 2017, section 3.2.1).
    InverseSqrt,
    /// 1: the raw dot product.
    None,
    /// Any other finite factor.
    Custom(f64),
}

/// The non-linearity of the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016): what GPT-2 was trained with.
    GeluTanh,
    /// GELU exactly, by the error function: PyTorch's default.
    GeluErf,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2 (So et al. 2021, Primer).
    ReluSquared,
    /// x / (1 + exp(-x)), also called swish (Elfwing et al. 2017; gated in Llama).
    Silu,
}

/// Which layers add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bias {
    /// The layer that makes queries, keys and values.
    pub qkv: bool,
    /// The other linear layers of a block. The head never has one.
    pub linear: bool,
    /// The norms.
    pub norm: bool,
}

impl Bias {
    /// Every layer (GPT-2).
    pub const ALL: Bias = Bias { qkv: true, linear: true, norm: true };
    /// No layer (Llama).
    pub const NONE: Bias = Bias { qkv: false, linear: false, norm: false };
}

/// The shape of a GPT. Plain data: change fields freely, [`validate`](GptConfig::validate) is the only gate.
///
/// ```
/// use minigpt_core::GptConfig;
/// let config = GptConfig { layers: 2, heads: 2, d_model: 32, d_ff: 128, ..GptConfig::new(65, 16) };
/// assert!(config.validate().is_ok());
///
/// let uneven = GptConfig { heads: 5, ..config };
/// assert_eq!(uneven.validate().unwrap_err().to_string(),
///     "d_model 32 is not a multiple of heads 5: every head needs the same width; try heads 4 or d_model 35");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GptConfig {
    /// How many different tokens there are (V).
    pub vocab_size: usize,
    /// The longest sequence that the model sees at once: tokens, and given vectors before them.
    pub context: usize,
    /// How many blocks.
    pub layers: usize,
    /// Attention heads per block (H).
    pub heads: usize,
    /// Heads of keys and values per block (K), each of which serves `heads / kv_heads` heads of queries (Ainslie et al. 2023,
    /// arXiv:2305.13245); divides `heads`. `None`: as many as `heads`.
    pub kv_heads: Option<usize>,
    /// Width of the residual stream (C).
    pub d_model: usize,
    /// Width of a head (D). `None`: `d_model / heads`, which `heads` must divide then.
    pub d_head: Option<usize>,
    /// Width of the feed-forward layer (F), by custom 4 times `d_model`, or 8/3 of it if `gated`.
    pub d_ff: usize,
    /// How many given vectors stand before the tokens, such as those of an image (P). They take up positions of the context.
    pub prefix: usize,
    /// How a position enters the model.
    pub position: Position,
    /// Which positions a query sees.
    pub mask: Mask,
    /// What kind of norms they are.
    pub norm: Norm,
    /// Where the norms stand.
    pub norm_place: NormPlace,
    /// Whether each head's queries and keys go through a norm of that kind too (Dehghani et al. 2023, arXiv:2302.05442; Qwen3).
    pub qk_norm: bool,
    /// The factor on the attention scores.
    pub attention_scale: AttentionScale,
    /// Whether each sub-layer's input is added to its output.
    pub residual: bool,
    /// The non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Whether the activation's result is multiplied by a second linear layer's: activation(x W) * (x V) (Shazeer 2020,
    /// arXiv:2002.05202; with SiLU it is called SwiGLU).
    pub gated: bool,
    /// Which layers have a bias.
    pub bias: Bias,
    /// Probability of dropping an element, in training only: of the embeddings, of the attention weights and of
    /// each sub-layer's output.
    pub dropout: f64,
    /// Whether the head is the token embedding, transposed (Press and Wolf 2017).
    pub tied_embeddings: bool,
    /// Added under the norm's square root.
    pub norm_eps: f64,
}

impl GptConfig {
    /// nanoGPT's small CPU model, for a vocabulary and a context: 4 layers, 4 heads, 128 wide, GELU erf, no bias,
    /// no dropout, tied embeddings.
    pub fn new(vocab_size: usize, context: usize) -> Self {
        GptConfig {
            vocab_size,
            context,
            layers: 4,
            heads: 4,
            kv_heads: None,
            d_model: 128,
            d_head: None,
            d_ff: 512,
            prefix: 0,
            position: Position::Learned,
            mask: Mask::Causal,
            norm: Norm::Layer,
            norm_place: NormPlace::Pre,
            qk_norm: false,
            attention_scale: AttentionScale::InverseSqrt,
            residual: true,
            activation: Activation::GeluErf,
            gated: false,
            bias: Bias::NONE,
            dropout: 0.0,
            tied_embeddings: true,
            norm_eps: 1e-5,
        }
    }

    /// Width of one head (D).
    ///
    /// # Panics
    /// If `heads` is 0, which [`validate`](GptConfig::validate) refuses.
    pub fn d_head(&self) -> usize {
        self.d_head.unwrap_or(self.d_model / self.heads)
    }

    /// Heads of keys and values (K).
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of the heads of queries side by side, H D: what attention gives for a token.
    ///
    /// # Panics
    /// As [`d_head`](GptConfig::d_head).
    pub fn d_attention(&self) -> usize {
        self.heads.saturating_mul(self.d_head())
    }

    /// Width of queries, keys and values side by side, (H + 2K) D.
    ///
    /// # Panics
    /// As [`d_head`](GptConfig::d_head).
    pub fn d_qkv(&self) -> usize {
        self.kv_heads().saturating_mul(2).saturating_add(self.heads).saturating_mul(self.d_head())
    }

    /// Width of what the first feed-forward layer gives: F, or 2F if `gated`, the activation's input and behind it its factor.
    pub fn d_up(&self) -> usize {
        if self.gated { self.d_ff.saturating_mul(2) } else { self.d_ff }
    }

    /// The factor on the scores, as a number.
    pub fn score_scale(&self) -> f64 {
        match self.attention_scale {
            AttentionScale::InverseSqrt => 1.0 / libm::sqrt(self.d_head() as f64),
            AttentionScale::None => 1.0,
            AttentionScale::Custom(scale) => scale,
        }
    }

    /// Whether a model of this shape can be built.
    ///
    /// # Errors
    /// The first rule that is broken, with the numbers that break it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("context", self.context),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads()),
            ("d_model", self.d_model),
            ("d_head", self.d_head.unwrap_or(1)),
            ("d_ff", self.d_ff),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
            // Token ids, dimensions and checkpoint fields are u32.
            if u32::try_from(value).is_err() {
                return Err(ConfigError::TooLarge { field });
            }
        }
        if self.d_head.is_none() && !self.d_model.is_multiple_of(self.heads) {
            return Err(ConfigError::HeadsDoNotDivide { d_model: self.d_model, heads: self.heads });
        }
        let heads = self.heads.saturating_add(self.kv_heads().saturating_mul(2));
        if u32::try_from(heads.saturating_mul(self.d_head())).is_err() {
            return Err(ConfigError::TooLarge { field: "heads * d_head" });
        }
        if self.gated && self.d_ff > u32::MAX as usize / 2 {
            return Err(ConfigError::TooLarge { field: "2 * d_ff" });
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            return Err(ConfigError::KvHeadsDoNotDivide { heads: self.heads, kv_heads: self.kv_heads() });
        }
        if let Position::Rotary { base, .. } = self.position {
            if !self.d_head().is_multiple_of(2) {
                return Err(ConfigError::OddRotaryHead { d_head: self.d_head() });
            }
            if !(base.is_finite() && base >= 1.0) {
                return Err(ConfigError::RotaryBase { base });
            }
        }
        if self.prefix >= self.context {
            return Err(ConfigError::PrefixFillsContext { prefix: self.prefix, context: self.context });
        }
        if self.mask == Mask::Prefix && self.prefix == 0 {
            return Err(ConfigError::NoPrefixToSee);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::Dropout { dropout: self.dropout });
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(ConfigError::NormEps { norm_eps: self.norm_eps });
        }
        if let AttentionScale::Custom(scale) = self.attention_scale
            && !scale.is_finite()
        {
            return Err(ConfigError::Scale { scale });
        }
        Ok(())
    }
}

/// Why a [`GptConfig`] cannot be built.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A dimension is zero.
    Zero {
        /// The field's name.
        field: &'static str,
    },
    /// A dimension, or a product of dimensions, is beyond what the machine or the format can count.
    TooLarge {
        /// The field's name, or what is counted.
        field: &'static str,
    },
    /// A pass over more than the model can see.
    BeyondContext {
        /// Tokens in a sequence.
        time: usize,
        /// Given vectors before them.
        prefix: usize,
        /// The model's context.
        context: usize,
    },
    /// The heads cannot share the width evenly.
    HeadsDoNotDivide {
        /// Width of the model.
        d_model: usize,
        /// Number of heads.
        heads: usize,
    },
    /// The heads of queries cannot share those of keys and values evenly.
    KvHeadsDoNotDivide {
        /// Heads of queries.
        heads: usize,
        /// Heads of keys and values.
        kv_heads: usize,
    },
    /// The given vectors leave no position to a token.
    PrefixFillsContext {
        /// Given vectors.
        prefix: usize,
        /// The model's context.
        context: usize,
    },
    /// A prefix mask without a prefix.
    NoPrefixToSee,
    /// The base of rotary positions is below 1, or not finite.
    RotaryBase {
        /// The value given.
        base: f64,
    },
    /// Rotary positions turn pairs of elements, so a head's width must be even.
    OddRotaryHead {
        /// Width of a head.
        d_head: usize,
    },
    /// There is no preset of that name.
    UnknownPreset,
    /// Dropout is not a probability below one.
    Dropout {
        /// The value given.
        dropout: f64,
    },
    /// The norm's epsilon is not positive.
    NormEps {
        /// The value given.
        norm_eps: f64,
    },
    /// The attention scale is not a number.
    Scale {
        /// The value given.
        scale: f64,
    },
}

/// The largest divisor of `n` that is at most `most`.
fn largest_divisor(n: usize, most: usize) -> usize {
    // Divisors come in pairs about the root: a config from a stranger's file may be in the billions.
    let pairs = (1..=n.isqrt()).flat_map(|d| [d, n / d]);
    pairs.filter(|d| *d <= most && n.is_multiple_of(*d)).max().unwrap_or(1)
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ConfigError::Zero { field } => write!(f, "{field} is 0: it must be at least 1"),
            ConfigError::TooLarge { field } => {
                write!(f, "{field} is too large to be counted on this machine: make the model smaller")
            }
            ConfigError::BeyondContext { time, prefix: 0, context } => write!(
                f,
                "{time} tokens in a sequence are more than the context of {context}: use shorter sequences \
                 or a model with a longer context"
            ),
            ConfigError::BeyondContext { time, prefix, context } => write!(
                f,
                "{time} tokens behind a prefix of {prefix} are more than the context of {context}: use sequences of at \
                 most {} tokens or a model with a longer context",
                context.saturating_sub(prefix)
            ),
            ConfigError::HeadsDoNotDivide { d_model, heads } => {
                write!(
                    f,
                    "d_model {d_model} is not a multiple of heads {heads}: every head needs the same width; \
                     try heads {} or d_model {}",
                    largest_divisor(d_model, heads),
                    d_model.div_ceil(heads).saturating_mul(heads)
                )
            }
            ConfigError::KvHeadsDoNotDivide { heads, kv_heads } => write!(
                f,
                "heads {heads} is not a multiple of kv_heads {kv_heads}: each head of keys and values serves as many \
                 heads of queries; try kv_heads {}",
                largest_divisor(heads, kv_heads)
            ),
            ConfigError::PrefixFillsContext { prefix, context } => write!(
                f,
                "a prefix of {prefix} leaves no position of the context of {context} to a token: make the context \
                 longer, by as many tokens as a text has"
            ),
            ConfigError::NoPrefixToSee => write!(
                f,
                "the mask is Prefix and the prefix is 0: set `prefix` to the number of given vectors, or the mask to \
                 Causal"
            ),
            ConfigError::RotaryBase { base } => {
                write!(f, "rotary base {base} is not a number from 1 on: 10000 is common")
            }
            ConfigError::OddRotaryHead { d_head } => write!(
                f,
                "a head is {d_head} wide, but rotary positions turn pairs: make d_head even, or where it is not given \
                 d_model / heads"
            ),
            // A literal, because the list would bring the presets themselves into every image.
            ConfigError::UnknownPreset => f.write_str(
                "there is no preset of that name; there are gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2-135m",
            ),
            ConfigError::Dropout { dropout } => {
                write!(f, "dropout {dropout} is not at least 0 and below 1: 0 turns it off, 0.2 is common")
            }
            ConfigError::NormEps { norm_eps } => {
                write!(f, "norm_eps {norm_eps} is not positive: 1e-5 is common")
            }
            ConfigError::Scale { scale } => write!(f, "attention scale {scale} is not a finite number"),
        }
    }
}

impl core::error::Error for ConfigError {}
