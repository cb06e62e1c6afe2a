//! The flags of a training run, and the configs that they stand for.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser};
use minigpt_core::config::schedule::Decay;
use minigpt_core::{GptConfig, Position, Recompute, TrainConfig};

use super::folder::Pace;
use super::names::{
    ActivationName, BiasName, DecayName, Family, MaskName, NormName, NormPlaceName, OptimizerName,
    PairingName, PositionName, Preset, TokenizerName, biases,
};
use super::{optimizers, schedule};
use crate::Outcome;
use crate::corpus::{TextOptions, word};
use crate::options::{BackendName, PrecisionName, RecomputeName, Which};
use crate::seed::Seed;

/// One to go on from, and one should the last be damaged.
const KEEP: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Train a GPT on tiny Shakespeare, on a text of your own, or on the built-in plays.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "train_shakespeare",
    after_help = "In parentheses: defaults. Those that are not given depend on the preset."
)]
pub struct Options {
    /// What to train on.
    #[command(flatten)]
    pub text: TextOptions,
    /// The folder for checkpoints, metrics and loss curve.
    #[arg(long, value_name = "FOLDER", default_value = "runs/shakespeare")]
    pub out: PathBuf,
    /// Go on with the run in --out, on its text and with its settings but for those that are given: --batch and all
    /// below it here can change, what the model is cannot.
    #[arg(long)]
    pub resume: bool,
    /// Train a new run from the weights and with the tokenizer of this checkpoint, or of a run's folder; on its text too,
    /// if no other is named.
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    pub from: Option<PathBuf>,
    /// Which checkpoint of a run --resume or --from takes (last).
    #[arg(long, value_enum)]
    pub which: Option<Which>,
    /// How many of the last checkpoints stay, as step-0000000250.mgpt; the best one is best.mgpt besides.
    #[arg(long, value_name = "N", default_value_t = KEEP, value_parser = at_least_one)]
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
    /// At the end, write on from what you type.
    #[arg(long)]
    pub interactive: bool,
    /// What only a new run can choose.
    #[command(flatten)]
    pub fixed: Fixed,
    /// What the model is: not to be changed once it has weights.
    #[command(flatten)]
    pub shape: Shape,
    /// How it is trained.
    #[command(flatten)]
    pub settings: Settings,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "it takes a number of at least 1")
}

impl Options {
    /// The flags that resume the run; `text` are those that name its text.
    pub(super) fn to_resume(&self, text: &str) -> String {
        let mut flags = format!("--resume --out {}", word(&self.out));
        if !text.is_empty() {
            flags += &format!(" {text}");
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

    /// Refuses what no run can have, before any work is done.
    pub(super) fn check(&self) -> Outcome<()> {
        if self.which.is_some() && !self.resume && self.from.is_none() {
            return Err("--which says what --resume or --from takes: add one of them, or leave it out".into());
        }
        if self.interactive && self.text.is_piped() {
            return Err("--interactive reads what you type, and --data - the text where that would come in: name a file \
                        with --data, or leave --interactive out"
                .into());
        }
        self.shape.check()?;
        let given = self.shape.given();
        if !given.is_empty() && (self.resume || self.from.is_some()) {
            let way = if self.resume { "--resume" } else { "--from" };
            return Err(format!(
                "{} {} what the model in the checkpoint is, and that stays: leave {} out, or begin a new run without {way}",
                given.join(" "),
                if given.len() == 1 { "says" } else { "say" },
                if given.len() == 1 { "it" } else { "them" },
            )
            .into());
        }
        if self.resume && self.fixed.seed.is_some() {
            return Err("--seed is where a run began, and stays: leave it out to go on with --resume".into());
        }
        if self.resume {
            // What a run has now decides what these settings make of it.
            return Ok(());
        }
        let (config, pace) = self.shape.defaults(1, 0, self.settings.iterations);
        self.settings.over(&config, &pace, config.recompute).map(drop)
    }
}

/// What only a new run can choose.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Fixed {
    /// Seed of the first weights, the windows and the dropout masks; a number or random (1337).
    #[arg(long)]
    pub seed: Option<Seed>,
}

impl Fixed {
    /// The seed, drawn if it is to be random.
    pub(super) fn seed(&self) -> u64 {
        self.seed.map_or(1337, Seed::resolve)
    }
}

/// What the model is.
#[derive(Debug, Clone, Default, Args)]
pub struct Shape {
    /// Where the numbers come from that are not given.
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Characters or bytes (char).
    #[arg(long, value_enum)]
    pub tokenizer: Option<TokenizerName>,
    /// What the blocks are like where no other flag says (nanogpt).
    #[arg(long, value_enum)]
    pub family: Option<Family>,
    /// Blocks.
    #[arg(long)]
    pub layers: Option<usize>,
    /// Attention heads of a block.
    #[arg(long)]
    pub heads: Option<usize>,
    /// Heads of keys and values, each of which serves several attention heads (--heads).
    #[arg(long)]
    pub kv_heads: Option<usize>,
    /// Width of the residual stream.
    #[arg(long)]
    pub d_model: Option<usize>,
    /// Width of a head (--d-model / --heads).
    #[arg(long)]
    pub d_head: Option<usize>,
    /// Width of the feed-forward layers (4 times d-model; with the family llama 8/3 of it, rounded up to a multiple of 32).
    #[arg(long)]
    pub d_ff: Option<usize>,
    /// Tokens that the model sees at once.
    #[arg(long)]
    pub context: Option<usize>,
    /// How positions enter (learned).
    #[arg(long, value_enum)]
    pub position: Option<PositionName>,
    /// How fast rotary positions turn (10000).
    #[arg(long, allow_negative_numbers = true)]
    pub rotary_base: Option<f64>,
    /// Which elements rotary positions turn together (adjacent; halves with the family llama).
    #[arg(long, value_enum)]
    pub pairing: Option<PairingName>,
    /// What a position sees (causal).
    #[arg(long, value_enum)]
    pub mask: Option<MaskName>,
    /// Which kind of norm (layer).
    #[arg(long, value_enum)]
    pub norm: Option<NormName>,
    /// Where the norms stand (pre).
    #[arg(long, value_enum)]
    pub norm_place: Option<NormPlaceName>,
    /// Send queries and keys through a norm.
    #[arg(long)]
    pub qk_norm: bool,
    /// The non-linearity (gelu-erf).
    #[arg(long, value_enum)]
    pub activation: Option<ActivationName>,
    /// Multiply what the non-linearity gives by a second linear layer's result. It makes the feed-forward layers half as large
    /// again, if --d-ff stays.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub gated: Option<bool>,
    /// Which layers have a bias, with commas between them; all, if none is named (none).
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0..=1, default_missing_value = "all")]
    pub bias: Vec<BiasName>,
    /// Give the head a matrix of its own.
    #[arg(long)]
    pub untied: bool,
    /// Let the head have the matrix of the token embedding.
    #[arg(long, conflicts_with = "untied")]
    pub tied: bool,
    /// Leave out the residual connections.
    #[arg(long)]
    pub no_residual: bool,
    /// Probability of dropping an element.
    #[arg(long, allow_negative_numbers = true)]
    pub dropout: Option<f64>,
    /// Added under the norm's square root (1e-5).
    #[arg(long, allow_negative_numbers = true)]
    pub norm_eps: Option<f64>,
}

/// How a model is trained: what a run that goes on can change.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// Sequences in a micro-batch.
    #[arg(long)]
    pub batch: Option<usize>,
    /// Micro-batches in a step (1).
    #[arg(long)]
    pub accumulation: Option<usize>,
    /// Steps.
    #[arg(long)]
    pub iterations: Option<u32>,
    /// The largest learning rate (1e-3; 0.1 with --optimizer sgd).
    #[arg(long, allow_negative_numbers = true)]
    pub lr: Option<f64>,
    /// The last learning rate (a tenth of --lr).
    #[arg(long, allow_negative_numbers = true)]
    pub min_lr: Option<f64>,
    /// Steps until the learning rate is at its largest (100, or a tenth of --iterations if that is less).
    #[arg(long)]
    pub warmup: Option<u32>,
    /// How the learning rate falls after that (cosine).
    #[arg(long, value_enum)]
    pub schedule: Option<DecayName>,
    /// Steps in which the learning rate falls at the end of the schedule wsd (a fifth of --iterations).
    #[arg(long)]
    pub decay_steps: Option<u32>,
    /// The largest norm of the gradient; inf: any (1).
    #[arg(long, allow_negative_numbers = true)]
    pub clip: Option<f64>,
    /// What is rounded as it trains (f32). Checkpoints hold the weights unrounded; validations on the way are of the rounded ones.
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionName>,
    /// What makes updates of gradients (adamw).
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerName>,
    /// Keep a moving average of the weights, of which each step leaves so much, such as 0.999; 0: none (0). Validations are of
    /// both. Samples, checkpoints, generate and others use the weights themselves; at the end the average is a model of its own,
    /// average.mgpt in the folder of the run.
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true)]
    pub ema: Option<f64>,
    /// Decay of AdamW's first moment (0.9).
    #[arg(long, allow_negative_numbers = true)]
    pub beta1: Option<f64>,
    /// Decay of AdamW's second moment (0.99).
    #[arg(long, allow_negative_numbers = true)]
    pub beta2: Option<f64>,
    /// Added to the root of AdamW's second moment (1e-8).
    #[arg(long, allow_negative_numbers = true)]
    pub eps: Option<f64>,
    /// Weight decay of matrices (0.1; 0.001 with --optimizer sgd).
    #[arg(long, allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Steps from one validation, with sample and checkpoint, to the next; 0: only at the end (250).
    #[arg(long)]
    pub eval_every: Option<u32>,
    /// Windows of such a validation, spread over the text; 0: all, as in the last one (240).
    #[arg(long)]
    pub eval_windows: Option<usize>,
    /// End the run after so many validations in a row that are no better than the best; 0: never (0).
    #[arg(long)]
    pub patience: Option<u32>,
    /// Steps from one line of metrics to the next; 0: none (10).
    #[arg(long)]
    pub log_every: Option<u32>,
    /// Tokens of a sample; 0: none (300).
    #[arg(long)]
    pub sample: Option<usize>,
}

impl Shape {
    /// The flags that were given.
    fn given(&self) -> Vec<&'static str> {
        let flags = [
            ("--preset", self.preset.is_some()),
            ("--tokenizer", self.tokenizer.is_some()),
            ("--family", self.family.is_some()),
            ("--layers", self.layers.is_some()),
            ("--heads", self.heads.is_some()),
            ("--kv-heads", self.kv_heads.is_some()),
            ("--d-model", self.d_model.is_some()),
            ("--d-head", self.d_head.is_some()),
            ("--d-ff", self.d_ff.is_some()),
            ("--context", self.context.is_some()),
            ("--position", self.position.is_some()),
            ("--rotary-base", self.rotary_base.is_some()),
            ("--pairing", self.pairing.is_some()),
            ("--mask", self.mask.is_some()),
            ("--norm", self.norm.is_some()),
            ("--norm-place", self.norm_place.is_some()),
            ("--qk-norm", self.qk_norm),
            ("--activation", self.activation.is_some()),
            ("--gated", self.gated.is_some()),
            ("--bias", !self.bias.is_empty()),
            ("--untied", self.untied),
            ("--tied", self.tied),
            ("--no-residual", self.no_residual),
            ("--dropout", self.dropout.is_some()),
            ("--norm-eps", self.norm_eps.is_some()),
        ];
        flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }

    /// Refuses what says something of positions that the model does not have.
    fn check(&self) -> Outcome<()> {
        let turning = [("--rotary-base", self.rotary_base.is_some()), ("--pairing", self.pairing.is_some())];
        match turning.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) if !self.model(1).position.is_rotary() => Err(format!(
                "{flag} says how rotary positions turn, and these are not rotary: add --position rotary, or leave it out"
            )
            .into()),
            _ => Ok(()),
        }
    }

    fn gpu(&self) -> bool {
        self.preset == Some(Preset::Gpu)
    }

    pub(super) fn model(&self, vocab: usize) -> GptConfig {
        let gpu = self.gpu();
        let context = self.context.unwrap_or(if gpu { 256 } else { 64 });
        let d_model = self.d_model.unwrap_or(if gpu { 384 } else { 128 });
        let family = self.family.unwrap_or(Family::Nanogpt);
        let base = family.config(vocab, context);
        let d_ff = match family {
            Family::Llama => d_model.saturating_mul(8).div_ceil(3).next_multiple_of(32),
            Family::Nanogpt | Family::Gpt2 => d_model.saturating_mul(4),
        };
        GptConfig {
            layers: self.layers.unwrap_or(if gpu { 6 } else { 4 }),
            heads: self.heads.unwrap_or(if gpu { 6 } else { 4 }),
            d_model,
            kv_heads: self.kv_heads,
            d_head: self.d_head,
            d_ff: self.d_ff.unwrap_or(d_ff),
            position: self.position(base.position),
            mask: self.mask.map_or(base.mask, Into::into),
            qk_norm: self.qk_norm,
            norm: self.norm.map_or(base.norm, Into::into),
            norm_place: self.norm_place.map_or(base.norm_place, Into::into),
            activation: self.activation.map_or(base.activation, Into::into),
            gated: self.gated.unwrap_or(base.gated),
            residual: !self.no_residual,
            bias: if self.bias.is_empty() { base.bias } else { biases(&self.bias) },
            dropout: self.dropout.unwrap_or(if gpu { 0.2 } else { 0.0 }),
            tied_embeddings: (base.tied_embeddings || self.tied) && !self.untied,
            norm_eps: self.norm_eps.unwrap_or(base.norm_eps),
            ..base
        }
    }

    /// Positions of the family or the one that is named, turned as the flags say if they are rotary.
    fn position(&self, of_family: Position) -> Position {
        let named = self.position.map(Position::from);
        let position = match named {
            // A family's own rotary positions.
            Some(named) if named.is_rotary() && of_family.is_rotary() => of_family,
            named => named.unwrap_or(of_family),
        };
        match position {
            Position::Rotary { base, pairing } => Position::Rotary {
                base: self.rotary_base.unwrap_or(base),
                pairing: self.pairing.map_or(pairing, Into::into),
            },
            other => other,
        }
    }

    /// The settings of a new run of which none is given but perhaps its length.
    pub(super) fn defaults(&self, context: usize, seed: u64, length: Option<u32>) -> (TrainConfig, Pace) {
        let (batch, usual) = if self.gpu() { (64, 5000) } else { (12, 2000) };
        let iterations = length.unwrap_or(usual);
        let schedule = schedule::of_length(iterations);
        let config =
            TrainConfig { batch, time: context, schedule, seed, ..TrainConfig::constant(schedule.peak) };
        let pace =
            Pace { iterations, eval_every: 250, eval_windows: 240, patience: 0, log_every: 10, sample: 300 };
        (config, pace)
    }
}

impl Settings {
    /// These settings, and for those that are not given the ones of `config` and `pace`.
    ///
    /// # Errors
    /// If the learning rate could never get where these settings want it.
    pub(super) fn over(
        &self,
        config: &TrainConfig,
        pace: &Pace,
        recompute: Recompute,
    ) -> Outcome<(TrainConfig, Pace)> {
        let pace = Pace {
            iterations: self.iterations.unwrap_or(pace.iterations),
            eval_every: self.eval_every.unwrap_or(pace.eval_every),
            eval_windows: self.eval_windows.unwrap_or(pace.eval_windows),
            patience: self.patience.unwrap_or(pace.patience),
            log_every: self.log_every.unwrap_or(pace.log_every),
            sample: self.sample.unwrap_or(pace.sample),
        };
        if pace.patience > 0 && pace.eval_every == 0 {
            let message = "--patience counts validations on the way, and --eval-every 0 makes none: give another \
                           --eval-every, such as 250, or --patience 0";
            return Err(message.into());
        }
        let (groups, usual_rate) = optimizers::over(self, &config.groups)?;
        let config = TrainConfig {
            batch: self.batch.unwrap_or(config.batch),
            accumulation: self.accumulation.unwrap_or(config.accumulation),
            schedule: self.schedule_over(config.schedule, pace.iterations, usual_rate)?,
            clip: self.clip.unwrap_or(config.clip),
            groups,
            average: self.ema.map_or(config.average, |decay| Some(decay).filter(|decay| *decay != 0.0)),
            precision: self.precision.map_or(config.precision, Into::into),
            recompute,
            ..config.clone()
        };
        Ok((config, pace))
    }
}

/// A number as somebody would type it: without the digits that only a division left.
pub(super) fn typed(number: f64) -> String {
    let rounded: f64 = format!("{number:.11e}").parse().unwrap_or(number);
    format!("{rounded:?}")
}

/// What --schedule is given for this decay, with the flag that says how long it takes if it has one.
fn schedule_flags(decay: Decay) -> String {
    let name = DecayName::of(decay);
    match decay {
        Decay::Stable { decay_steps } => format!("{name} --decay-steps {decay_steps}"),
        _ => name.to_string(),
    }
}

/// The flags that would make `before` of `after`, each with its value, and what the value was.
pub(super) fn changes(
    before: (&TrainConfig, &Pace),
    after: (&TrainConfig, &Pace),
) -> impl Iterator<Item = (&'static str, String, String)> {
    let values = |(config, pace): (&TrainConfig, &Pace)| {
        let TrainConfig { batch, accumulation, schedule, clip, groups, average, precision, .. } = config;
        let [optimizer, beta1, beta2, eps, weight_decay] = optimizers::values(groups);
        [
            ("--iterations", pace.iterations.to_string()),
            ("--batch", batch.to_string()),
            ("--accumulation", accumulation.to_string()),
            ("--lr", typed(schedule.peak)),
            ("--min-lr", typed(schedule.floor)),
            ("--warmup", schedule.warmup.to_string()),
            ("--schedule", schedule_flags(schedule.decay)),
            ("--clip", typed(*clip)),
            ("--precision", PrecisionName::from(*precision).to_string()),
            optimizer,
            ("--ema", typed(average.unwrap_or(0.0))),
            beta1,
            beta2,
            eps,
            weight_decay,
            ("--eval-every", pace.eval_every.to_string()),
            ("--eval-windows", pace.eval_windows.to_string()),
            ("--patience", pace.patience.to_string()),
            ("--log-every", pace.log_every.to_string()),
            ("--sample", pace.sample.to_string()),
        ]
    };
    let pairs = values(before).into_iter().zip(values(after));
    // A setting that the optimizer does not have is no text.
    let changed = pairs.filter(|((_, old), (_, new))| old != new && !new.is_empty());
    changed.map(|((flag, old), (_, new))| (flag, new, if old.is_empty() { "none".into() } else { old }))
}
