//! The flags of a training run, and the configs that they stand for.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum};
use minigpt_core::train::schedule::{Decay, Schedule};
use minigpt_core::{Activation, GptConfig, Norm, Position, Recompute, TrainConfig};

use super::folder::Pace;
use crate::corpus::Origin;
use crate::options::{BackendName, RecomputeName};

/// One to go on from, and one should the last be damaged.
const KEEP: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Train a GPT on tiny Shakespeare, on a text of your own, or on the built-in plays.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "train_shakespeare",
    args_override_self = true,
    after_help = "In parentheses: defaults. Those that are not given depend on the preset."
)]
pub struct Options {
    /// The text to train on; else $MINIGPT_DATA/, data/, a download of tiny Shakespeare, or the built-in plays.
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Train on the built-in plays, whose true entropy is known.
    #[arg(long, conflicts_with = "data")]
    pub built_in: bool,
    /// The folder for checkpoints, metrics and loss curve.
    #[arg(long, value_name = "FOLDER", default_value = "runs/shakespeare")]
    pub out: PathBuf,
    /// Go on with the run in --out; its settings are in its checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// How many of the last checkpoints stay, as step-0000000250.mgpt; the best one is best.mgpt besides.
    #[arg(long, value_name = "N", default_value_t = KEEP)]
    pub keep: NonZeroUsize,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    pub backend: BackendName,
    /// Threads; else as many as the machine offers. The result does not depend on it.
    #[arg(long)]
    pub threads: Option<usize>,
    /// What the backward pass computes again, to save memory. The result does not depend on it.
    #[arg(long, value_enum, default_value = "nothing")]
    pub recompute: RecomputeName,
    /// What a new run begins from.
    #[command(flatten)]
    pub settings: Settings,
}

impl Options {
    /// The flags that resume the run on the text from `origin`.
    pub(super) fn to_resume(&self, origin: &Origin) -> String {
        let mut flags = format!("--resume --out {}", word(&self.out));
        match origin {
            Origin::BuiltIn(_) => flags.push_str(" --built-in"),
            Origin::File(path) => flags += &format!(" --data {}", word(path)),
            Origin::Downloaded(_) => {}
        }
        if self.keep != KEEP {
            flags += &format!(" --keep {}", self.keep);
        }
        if self.backend != BackendName::Cpu {
            flags += &format!(" --backend {}", self.backend);
        }
        if self.recompute != RecomputeName::default() {
            flags += &format!(" --recompute {}", self.recompute);
        }
        flags
    }
}

/// A path as one word of a command line.
fn word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:\\".contains(c);
    if path.chars().all(plain) { path } else { format!("'{}'", path.replace('\'', "'\\''")) }
}

/// What a new run begins from.
#[derive(Debug, Clone, Default, Args)]
#[group(id = "settings", multiple = true, conflicts_with = "resume")]
pub struct Settings {
    /// Where the numbers come from that are not given.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Seed of the first weights, the windows and the dropout masks (1337).
    #[arg(long)]
    pub seed: Option<u64>,
    /// Characters or bytes (char).
    #[arg(long, value_enum)]
    pub tokenizer: Option<TokenizerName>,
    /// Blocks.
    #[arg(long)]
    pub layers: Option<usize>,
    /// Attention heads of a block.
    #[arg(long)]
    pub heads: Option<usize>,
    /// Width of the residual stream.
    #[arg(long)]
    pub d_model: Option<usize>,
    /// Width of the feed-forward layers (4 times d-model).
    #[arg(long)]
    pub d_ff: Option<usize>,
    /// Tokens that the model sees at once.
    #[arg(long)]
    pub context: Option<usize>,
    /// How positions enter (learned).
    #[arg(long, value_enum)]
    pub position: Option<PositionName>,
    /// Where layer norm stands (pre).
    #[arg(long, value_enum)]
    pub norm: Option<NormName>,
    /// The non-linearity (gelu-erf).
    #[arg(long, value_enum)]
    pub activation: Option<ActivationName>,
    /// Give linear layers and norms a bias.
    #[arg(long)]
    pub bias: bool,
    /// Give the head a matrix of its own.
    #[arg(long)]
    pub untied: bool,
    /// Leave out the residual connections.
    #[arg(long)]
    pub no_residual: bool,
    /// Probability of dropping an element.
    #[arg(long)]
    pub dropout: Option<f64>,
    /// Added to the variance in layer norm (1e-5).
    #[arg(long)]
    pub norm_eps: Option<f64>,
    /// Sequences in a micro-batch.
    #[arg(long)]
    pub batch: Option<usize>,
    /// Micro-batches in a step (1).
    #[arg(long)]
    pub accumulation: Option<usize>,
    /// Steps.
    #[arg(long)]
    pub iterations: Option<u32>,
    /// The largest learning rate.
    #[arg(long)]
    pub lr: Option<f64>,
    /// The last learning rate (a tenth of --lr).
    #[arg(long)]
    pub min_lr: Option<f64>,
    /// Steps until the learning rate is at its largest.
    #[arg(long)]
    pub warmup: Option<u32>,
    /// How the learning rate falls after that (cosine).
    #[arg(long, value_enum)]
    pub schedule: Option<DecayName>,
    /// The largest norm of the gradient; inf: any (1).
    #[arg(long)]
    pub clip: Option<f64>,
    /// Decay of AdamW's first moment (0.9).
    #[arg(long)]
    pub beta1: Option<f64>,
    /// Decay of AdamW's second moment (0.99).
    #[arg(long)]
    pub beta2: Option<f64>,
    /// Added to the root of AdamW's second moment (1e-8).
    #[arg(long)]
    pub eps: Option<f64>,
    /// Weight decay of matrices (0.1).
    #[arg(long)]
    pub weight_decay: Option<f64>,
    /// Steps from one validation, with sample and checkpoint, to the next (250).
    #[arg(long)]
    pub eval_every: Option<u32>,
    /// Batches of a validation; the last one is over all (20).
    #[arg(long)]
    pub eval_batches: Option<usize>,
    /// Steps from one line of metrics to the next (10).
    #[arg(long)]
    pub log_every: Option<u32>,
    /// Tokens of a sample; 0: none (300).
    #[arg(long)]
    pub sample: Option<usize>,
}

/// A set of numbers that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Preset {
    /// 4 layers, 4 heads, 128 wide, context 64, batch 12, 2000 steps: minutes on a laptop.
    #[default]
    Cpu,
    /// 6 layers, 6 heads, 384 wide, context 256, batch 64, dropout 0.2, 5000 steps.
    Gpu,
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
        Rotary => Position::Rotary,
        /// Not at all.
        None => Position::None,
    }
    /// [`Norm`] on the command line.
    NormName for Norm {
        /// Before each sub-layer.
        Pre => Norm::Pre,
        /// After each sum.
        Post => Norm::Post,
        /// Nowhere.
        None => Norm::None,
    }
    /// [`Activation`] on the command line.
    ActivationName for Activation {
        /// GELU by the error function.
        GeluErf => Activation::GeluErf,
        /// GELU by tanh.
        GeluTanh => Activation::GeluTanh,
        /// max(x, 0).
        Relu => Activation::Relu,
    }
    /// [`Decay`] on the command line.
    DecayName for Decay {
        /// Along half a cosine.
        Cosine => Decay::Cosine,
        /// In a straight line.
        Linear => Decay::Linear,
        /// Not at all.
        Constant => Decay::Constant,
    }
}

/// A tokenizer on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenizerName {
    /// One token for each character of the text.
    Char,
    /// One token for each byte.
    Byte,
}

impl Settings {
    pub(super) fn model(&self, vocab: usize) -> GptConfig {
        let gpu = self.preset == Some(Preset::Gpu);
        let context = self.context.unwrap_or(if gpu { 256 } else { 64 });
        let d_model = self.d_model.unwrap_or(if gpu { 384 } else { 128 });
        let base = GptConfig::new(vocab, context);
        GptConfig {
            layers: self.layers.unwrap_or(if gpu { 6 } else { 4 }),
            heads: self.heads.unwrap_or(if gpu { 6 } else { 4 }),
            d_model,
            d_ff: self.d_ff.unwrap_or(d_model.saturating_mul(4)),
            position: self.position.map_or(base.position, Into::into),
            norm: self.norm.map_or(base.norm, Into::into),
            activation: self.activation.map_or(base.activation, Into::into),
            residual: !self.no_residual,
            bias: self.bias,
            dropout: self.dropout.unwrap_or(if gpu { 0.2 } else { 0.0 }),
            tied_embeddings: !self.untied,
            norm_eps: self.norm_eps.unwrap_or(base.norm_eps),
            ..base
        }
    }

    pub(super) fn training(&self, context: usize, recompute: Recompute) -> TrainConfig {
        let gpu = self.preset == Some(Preset::Gpu);
        let peak = self.lr.unwrap_or(1e-3);
        let base = TrainConfig::constant(peak);
        TrainConfig {
            batch: self.batch.unwrap_or(if gpu { 64 } else { 12 }),
            time: context,
            accumulation: self.accumulation.unwrap_or(1),
            schedule: Schedule {
                peak,
                floor: self.min_lr.unwrap_or(peak / 10.0),
                warmup: self.warmup.unwrap_or(100),
                steps: self.iterations(),
                decay: self.schedule.map_or(Decay::Cosine, Into::into),
            },
            clip: self.clip.unwrap_or(base.clip),
            beta1: self.beta1.unwrap_or(base.beta1),
            beta2: self.beta2.unwrap_or(base.beta2),
            eps: self.eps.unwrap_or(base.eps),
            weight_decay: self.weight_decay.unwrap_or(base.weight_decay),
            seed: self.seed(),
            recompute,
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(1337)
    }

    pub(super) fn iterations(&self) -> u32 {
        self.iterations.unwrap_or(if self.preset == Some(Preset::Gpu) { 5000 } else { 2000 })
    }

    pub(super) fn pace(&self, corpus_sha256: String) -> Pace {
        Pace {
            iterations: self.iterations(),
            eval_every: self.eval_every.unwrap_or(250).max(1),
            eval_batches: self.eval_batches.unwrap_or(20).max(1),
            log_every: self.log_every.unwrap_or(10).max(1),
            sample: self.sample.unwrap_or(300),
            corpus_sha256,
        }
    }
}
