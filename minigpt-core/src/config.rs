//! [`GptConfig`]: the shape of a model, and everything that the experiments vary. [`TrainConfig`]: how it is trained.
//!
//! An ablation is a value here and not a fork of the code: the position encoding, where the norm stands, the
//! scale of the attention scores, whether there are residual connections, and so on.

pub mod schedule;
mod training;

use core::fmt;

pub use training::{Recompute, TrainConfig};

/// How a position enters the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Position {
    /// A trained vector per position, added to the token's embedding (GPT-2).
    Learned,
    /// Fixed sines and cosines, added to the token's embedding (Vaswani et al. 2017, section 3.5).
    Sinusoidal,
    /// Queries and keys are rotated by an angle that grows with the position (Su et al. 2021, RoFormer).
    Rotary,
    /// Nothing: only the causal mask tells positions apart (Haviv et al. 2022).
    None,
}

/// Where layer norm stands in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Norm {
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
    /// The longest sequence that the model sees at once, in tokens (T at most).
    pub context: usize,
    /// How many blocks.
    pub layers: usize,
    /// Attention heads per block (H); divides `d_model`.
    pub heads: usize,
    /// Width of the residual stream (C).
    pub d_model: usize,
    /// Width of the feed-forward layer (F), by custom 4 times `d_model`.
    pub d_ff: usize,
    /// How a position enters the model.
    pub position: Position,
    /// Where layer norm stands.
    pub norm: Norm,
    /// The factor on the attention scores.
    pub attention_scale: AttentionScale,
    /// Whether each sub-layer's input is added to its output.
    pub residual: bool,
    /// The non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Whether linear layers and norms have a bias.
    pub bias: bool,
    /// Probability of dropping an element, in training only: of the embeddings, of the attention weights and of
    /// each sub-layer's output.
    pub dropout: f64,
    /// Whether the head is the token embedding, transposed (Press and Wolf 2017).
    pub tied_embeddings: bool,
    /// Added to the variance under layer norm's square root.
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
            d_model: 128,
            d_ff: 512,
            position: Position::Learned,
            norm: Norm::Pre,
            attention_scale: AttentionScale::InverseSqrt,
            residual: true,
            activation: Activation::GeluErf,
            bias: false,
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
        self.d_model / self.heads
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
            ("d_model", self.d_model),
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
        if !self.d_model.is_multiple_of(self.heads) {
            return Err(ConfigError::HeadsDoNotDivide { d_model: self.d_model, heads: self.heads });
        }
        if self.position == Position::Rotary && !self.d_head().is_multiple_of(2) {
            return Err(ConfigError::OddRotaryHead { d_head: self.d_head() });
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
    /// A pass over more tokens than the model can see.
    BeyondContext {
        /// Tokens in a sequence.
        time: usize,
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
    /// Rotary positions turn pairs of elements, so a head's width must be even.
    OddRotaryHead {
        /// Width of a head.
        d_head: usize,
    },
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

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ConfigError::Zero { field } => write!(f, "{field} is 0: it must be at least 1"),
            ConfigError::TooLarge { field } => {
                write!(f, "{field} is too large to be counted on this machine: make the model smaller")
            }
            ConfigError::BeyondContext { time, context } => write!(
                f,
                "{time} tokens in a sequence are more than the context of {context}: use shorter sequences \
                 or a model with a longer context"
            ),
            ConfigError::HeadsDoNotDivide { d_model, heads } => {
                // Divisors come in pairs about the root: a config from a stranger's file may be in the billions.
                let pairs = (1..=d_model.isqrt()).flat_map(|d| [d, d_model / d]);
                let fewer = pairs.filter(|h| *h < heads && d_model.is_multiple_of(*h)).max().unwrap_or(1);
                write!(
                    f,
                    "d_model {d_model} is not a multiple of heads {heads}: every head needs the same width; \
                     try heads {fewer} or d_model {}",
                    d_model.div_ceil(heads).saturating_mul(heads)
                )
            }
            ConfigError::OddRotaryHead { d_head } => write!(
                f,
                "a head is {d_head} wide, but rotary positions turn pairs: make d_model / heads even"
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
