//! The library's choices as they are written on the command line.

use clap::ValueEnum;
use minigpt_core::config::schedule::Decay;
use minigpt_core::{Activation, Bias, GptConfig, Mask, Norm, NormPlace, Pairing, Position};

/// A set of numbers that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Preset {
    /// 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps: minutes on a laptop.
    #[default]
    Cpu,
    /// 6 layers, 6 heads, 384 wide, context 256, batch 64, dropout 0.2, 5000 steps.
    Gpu,
}

/// What the blocks are like where no other flag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// nanoGPT's: learned positions, layer norm, GELU by the error function, no bias.
    Nanogpt,
    /// GPT-2's: as nanoGPT's, with GELU by tanh, and biases.
    Gpt2,
    /// Llama's: rotary positions, RMS norm, a gated SiLU, no bias, and a head with a matrix of its own.
    Llama,
}

impl Family {
    /// A model of this family; its layers and widths are to be set.
    pub(super) fn config(self, vocab: usize, context: usize) -> GptConfig {
        match self {
            Family::Nanogpt => GptConfig::new(vocab, context),
            Family::Gpt2 => GptConfig {
                activation: Activation::GeluTanh,
                bias: Bias::ALL,
                ..GptConfig::new(vocab, context)
            },
            Family::Llama => GptConfig::llama(vocab, context),
        }
    }
}

macro_rules! names {
    ($(#[$doc:meta] $name:ident for $of:ty { $(#[$variant_doc:meta] $variant:ident => $value:expr),* $(,)? })*) => {$(
        #[$doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
        pub enum $name { $(#[$variant_doc] $variant),* }

        impl From<$name> for $of {
            fn from(name: $name) -> $of {
                match name { $($name::$variant => $value),* }
            }
        }
    )*};
}

names! {
    /// [`Position`] on the command line.
    PositionName for Position {
        /// A trained vector for each.
        Learned => Position::Learned,
        /// Fixed sines and cosines.
        Sinusoidal => Position::Sinusoidal,
        /// Rotated queries and keys.
        Rotary => Position::ROTARY,
        /// Not at all.
        None => Position::None,
    }
    /// [`Pairing`] on the command line.
    PairingName for Pairing {
        /// Neighbours.
        Adjacent => Pairing::Adjacent,
        /// One of each half of a head.
        Halves => Pairing::Halves,
    }
    /// [`Mask`] on the command line.
    MaskName for Mask {
        /// Itself, and what comes before it.
        Causal => Mask::Causal,
        /// Everything, also the token that it is to tell.
        None => Mask::None,
    }
    /// [`Norm`] on the command line.
    NormName for Norm {
        /// Layer norm.
        Layer => Norm::Layer,
        /// RMS norm.
        Rms => Norm::Rms,
    }
    /// [`NormPlace`] on the command line.
    NormPlaceName for NormPlace {
        /// Before each sub-layer.
        Pre => NormPlace::Pre,
        /// After each sum.
        Post => NormPlace::Post,
        /// Nowhere.
        None => NormPlace::None,
    }
    /// [`Activation`] on the command line.
    ActivationName for Activation {
        /// GELU by the error function.
        GeluErf => Activation::GeluErf,
        /// GELU by tanh.
        GeluTanh => Activation::GeluTanh,
        /// max(x, 0).
        Relu => Activation::Relu,
        /// max(x, 0)^2.
        ReluSquared => Activation::ReluSquared,
        /// x / (1 + exp(-x)).
        Silu => Activation::Silu,
    }
}

/// [`Decay`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DecayName {
    /// Along half a cosine.
    Cosine,
    /// In a straight line.
    Linear,
    /// Not at all until the last steps, and then in a straight line (warm-up, stable, decay).
    Wsd,
    /// Not at all.
    Constant,
}

impl DecayName {
    /// That of a decay.
    pub(super) fn of(decay: Decay) -> Self {
        match decay {
            Decay::Constant => DecayName::Constant,
            Decay::Linear => DecayName::Linear,
            Decay::Stable { .. } => DecayName::Wsd,
            _ => DecayName::Cosine,
        }
    }

    /// The decay, which takes so many steps if it has a stable part before it.
    pub(super) fn decay(self, decay_steps: u32) -> Decay {
        match self {
            DecayName::Cosine => Decay::Cosine,
            DecayName::Linear => Decay::Linear,
            DecayName::Wsd => Decay::Stable { decay_steps },
            DecayName::Constant => Decay::Constant,
        }
    }

    /// A fifth of all steps (Hägele et al. 2024, arXiv:2405.18392).
    pub(super) fn usual_steps(iterations: u32) -> u32 {
        iterations.div_ceil(5)
    }
}

impl std::fmt::Display for DecayName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DecayName::Cosine => "cosine",
            DecayName::Linear => "linear",
            DecayName::Wsd => "wsd",
            DecayName::Constant => "constant",
        })
    }
}

/// Layers with a bias, on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BiasName {
    /// All of them.
    All,
    /// None of them.
    None,
    /// The one that makes queries, keys and values.
    Qkv,
    /// The other linear layers, but for the head.
    Linear,
    /// The norms.
    Norm,
}

/// The layers that are named.
pub(super) fn biases(names: &[BiasName]) -> Bias {
    let has = |name| names.contains(&name) || names.contains(&BiasName::All);
    Bias { qkv: has(BiasName::Qkv), linear: has(BiasName::Linear), norm: has(BiasName::Norm) }
}

/// An optimizer on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OptimizerName {
    /// AdamW for all.
    Adamw,
    /// Gradient descent with Nesterov's momentum for all.
    Sgd,
    /// Muon for the matrices of the blocks, at 20 times the learning rate, and AdamW for the rest.
    Muon,
}

/// A tokenizer on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenizerName {
    /// One token for each character of the text.
    Char,
    /// One token for each byte.
    Byte,
}
