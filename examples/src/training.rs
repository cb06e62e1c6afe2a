//! A training run from the command line: the flags, the folder it writes to, and the loop.

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use minigpt_core::checkpoint::{self, Checkpoint};
use minigpt_core::data::{EvalWindows, Windows, split};
use minigpt_core::model::Extras;
use minigpt_core::train::schedule::{Decay, Schedule};
use minigpt_core::{
    Activation, AnyTokenizer, Backend, ByteTokenizer, CharTokenizer, Decoder, Dtype, GptConfig, Model, Norm,
    Plan, Position, Real, SampleConfig, Sampler, Tokenizer, TrainConfig, Trainer,
};
use sha2::{Digest, Sha256};

use crate::chart::{Curve, loss_curves};
use crate::corpus::{self, Corpus, Origin, Search};
use crate::metrics::{Measured, Metrics, Record};
use crate::ngram::Ngram;
use crate::options::{BackendName, OnBackend, human, on_backend};
use crate::play::Play;
use crate::{Outcome, memory};

/// Share of the text that trains, by position; the rest validates.
const TRAINING_SHARE: f64 = 0.9;

/// So many steps in a row without a finite loss end the run.
const PATIENCE: u32 = 10;

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
    /// The folder for checkpoint, metrics and loss curve.
    #[arg(long, value_name = "FOLDER", default_value = "runs/shakespeare")]
    pub out: PathBuf,
    /// Go on with the run in --out; its settings are in its checkpoint.
    #[arg(long)]
    pub resume: bool,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    pub backend: BackendName,
    /// Threads; else as many as the machine offers. The result does not depend on it.
    #[arg(long)]
    pub threads: Option<usize>,
    /// What a new run begins from.
    #[command(flatten)]
    pub settings: Settings,
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

/// All that a run goes by besides the model's and the trainer's config. Kept in the checkpoint's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pace {
    iterations: u32,
    eval_every: u32,
    eval_batches: usize,
    log_every: u32,
    sample: usize,
    corpus_sha256: String,
}

impl Settings {
    fn model(&self, vocab: usize) -> GptConfig {
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

    fn training(&self, context: usize) -> TrainConfig {
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
        }
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or(1337)
    }

    fn iterations(&self) -> u32 {
        self.iterations.unwrap_or(if self.preset == Some(Preset::Gpu) { 5000 } else { 2000 })
    }

    fn pace(&self, corpus_sha256: String) -> Pace {
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

impl Pace {
    fn metadata(&self) -> [(&'static str, String); 6] {
        [
            ("iterations", self.iterations.to_string()),
            ("eval_every", self.eval_every.to_string()),
            ("eval_batches", self.eval_batches.to_string()),
            ("log_every", self.log_every.to_string()),
            ("sample", self.sample.to_string()),
            ("corpus_sha256", self.corpus_sha256.clone()),
        ]
    }

    fn from_metadata(metadata: &[(&str, &str)]) -> Option<Pace> {
        let value = |name| metadata.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        Some(Pace {
            iterations: value("iterations")?.parse().ok()?,
            eval_every: value("eval_every")?.parse().ok().filter(|&n| n > 0)?,
            eval_batches: value("eval_batches")?.parse().ok()?,
            log_every: value("log_every")?.parse().ok().filter(|&n| n > 0)?,
            sample: value("sample")?.parse().ok()?,
            corpus_sha256: value("corpus_sha256")?.into(),
        })
    }
}

/// The files of a run.
#[derive(Debug, Clone)]
struct Folder(PathBuf);

impl Folder {
    fn open(path: &Path) -> Outcome<Folder> {
        std::fs::create_dir_all(path).map_err(|e| {
            format!("cannot make the folder {}: {e}; name another with --out", path.display())
        })?;
        Ok(Folder(path.into()))
    }

    fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.mgpt")
    }

    fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    fn curve(&self) -> PathBuf {
        self.0.join("loss.svg")
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// All steps are done.
    Finished(Summary),
    /// It was asked to stop, behind this step, and can be resumed.
    Interrupted(u32),
}

/// The numbers of a finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Mean loss over the whole validation split, in nats per token.
    pub val_loss: f64,
    /// Steps.
    pub iterations: u32,
    /// How long it took, pauses not counted.
    pub seconds: f64,
    /// Training tokens per second of training, validations not counted, since the last resumption.
    pub tokens_per_s: f64,
    /// The entropy per character of the built-in corpus.
    pub entropy: Option<f64>,
    /// Where the model is.
    pub checkpoint: PathBuf,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "result val_loss={:.4} iterations={} seconds={:.1} tokens_per_s={:.0}",
            self.val_loss, self.iterations, self.seconds, self.tokens_per_s
        )?;
        if let Some(entropy) = self.entropy {
            write!(f, " entropy={entropy:.4}")?;
        }
        write!(f, " checkpoint={}", self.checkpoint.display())
    }
}

/// What is known of a built-in corpus, in nats per character.
#[derive(Debug, Clone, Copy)]
struct Truth {
    /// Of the generator.
    entropy: f64,
    /// Of this very validation text.
    validation: f64,
    /// Of the validation text for a perfect reader who sees the model's windows only.
    windowed: f64,
    /// What a smoothed 5-gram model reaches.
    five_gram: f64,
}

impl Truth {
    fn of(text: &str, context: usize) -> Outcome<Truth> {
        let play = Play::new()?;
        let nats = play.nats(text)?;
        let middle = (TRAINING_SHARE * text.len() as f64) as usize;
        let (training, validation) = text.split_at(middle);
        let mean = |nats: &[f64]| nats.iter().sum::<f64>() / nats.len() as f64;
        Ok(Truth {
            entropy: play.entropy(),
            validation: mean(&nats[middle..]),
            windowed: play.window_reader().nats(validation, context),
            five_gram: Ngram::train(training, 5).nats(validation),
        })
    }
}

/// Runs what the flags say. `stop` is asked after each step.
///
/// # Errors
/// A message that says what to do.
pub fn train(options: &Options, stop: impl Fn() -> bool) -> Outcome<End> {
    let folder = Folder::open(&options.out)?;
    let corpus = if options.built_in { corpus::built_in()? } else { corpus::find(&search(options))? };
    for note in &corpus.notes {
        println!("{note}");
    }
    println!("corpus: {} ({} bytes)", corpus.origin, corpus.text.len());
    on_backend(options.backend, options.threads, Run { options, folder, corpus, stop: &stop })
}

fn search(options: &Options) -> Search {
    Search::from_environment(options.data.clone())
}

struct Run<'a> {
    options: &'a Options,
    folder: Folder,
    corpus: Corpus,
    stop: &'a dyn Fn() -> bool,
}

impl OnBackend for Run<'_> {
    type Result = End;

    fn run<B: Backend>(self, backend: B) -> Outcome<End> {
        let Run { options, folder, corpus, stop } = self;
        let sha256: String = Sha256::digest(&corpus.text).iter().map(|byte| format!("{byte:02x}")).collect();
        let (trainer, tokenizer, pace, metrics) = if options.resume {
            resume(backend, &folder, &sha256)?
        } else {
            begin(backend, &folder, &options.settings, &corpus.text, sha256)?
        };
        let tokens = tokenizer.encode(&corpus.text)?;
        let (training, validation) = split(&tokens, TRAINING_SHARE)?;
        let time = trainer.config().time;
        let too_short = |error| format!("{error}; train on a longer text, or with a smaller --context");
        let windows = Windows::new(training, time).map_err(too_short)?;
        let all = EvalWindows::new(validation, time).map_err(too_short)?;
        let truth = match corpus.origin {
            Origin::BuiltIn(_) => Some(Truth::of(&corpus.text, time)?),
            _ => None,
        };
        if let Some(truth) = truth {
            println!(
                "true entropy {:.4} nats per character; of the validation text {:.4}; in windows of {time} no model \
                 can do better than {:.4}; a smoothed 5-gram model reaches {:.4}",
                truth.entropy, truth.validation, truth.windowed, truth.five_gram
            );
        }
        let name = match corpus.origin {
            Origin::BuiltIn(_) => "the built-in plays".into(),
            Origin::Downloaded(_) => "tiny Shakespeare".into(),
            Origin::File(path) => {
                path.file_stem().map_or("a text".into(), |s| s.to_string_lossy().into_owned())
            }
        };
        let mut session = Session {
            trainer,
            tokenizer,
            pace,
            folder,
            metrics,
            started: Instant::now(),
            before: 0.0,
            saved: 0,
            name,
            truth,
        };
        session.before = session.metrics.seconds();
        session.train(&windows, &all, stop)
    }
}

type Begun<B> = (Trainer<B>, AnyTokenizer, Pace, Metrics);

fn begin<B: Backend>(
    backend: B,
    folder: &Folder,
    settings: &Settings,
    text: &str,
    sha256: String,
) -> Outcome<Begun<B>> {
    let tokenizer: AnyTokenizer = match settings.tokenizer.unwrap_or(TokenizerName::Char) {
        TokenizerName::Char => CharTokenizer::from_text(text)?.into(),
        TokenizerName::Byte => ByteTokenizer.into(),
    };
    let config = settings.model(tokenizer.vocab_size());
    let training = settings.training(config.context);
    let pace = settings.pace(sha256);
    // A text that cannot be trained on is refused before memory is.
    let tokens =
        if settings.tokenizer == Some(TokenizerName::Byte) { text.len() } else { text.chars().count() };
    let validation = tokens - (TRAINING_SHARE * tokens as f64) as usize;
    if validation <= config.context {
        return Err(format!(
            "the text has {tokens} tokens, of which {validation} validate: too few for a context of {}; train on a \
             longer text, or with --context {} or less",
            config.context,
            validation.saturating_sub(1).max(1)
        )
        .into());
    }
    check_memory(&backend, &config, &training)?;
    let model = Model::new(backend, config, settings.seed())?;
    let trainer = Trainer::new(model, training)?;
    let metrics = Metrics::create(&folder.metrics()).map_err(|e| {
        format!("cannot write {}: {e}; name another folder with --out", folder.metrics().display())
    })?;
    Ok((trainer, tokenizer, pace, metrics))
}

fn resume<B: Backend>(backend: B, folder: &Folder, sha256: &str) -> Outcome<Begun<B>> {
    let path = folder.checkpoint();
    if !path.is_file() {
        return Err(format!(
            "there is no run to resume: {} does not exist; name the run's folder with --out, or leave out --resume",
            path.display()
        )
        .into());
    }
    let bytes = checkpoint::load(&path)?;
    let checkpoint = Checkpoint::open_verified(&bytes)?;
    let pace = Pace::from_metadata(checkpoint.metadata());
    let (Some(pace), Some(tokenizer), Some(training)) = (pace, checkpoint.tokenizer(), checkpoint.training())
    else {
        return Err(
            format!("{} is not a checkpoint of train_shakespeare: begin a new run", path.display()).into()
        );
    };
    if pace.corpus_sha256 != sha256 {
        return Err(
            "the run was on another text: name it with --data, or begin a new run without --resume".into()
        );
    }
    check_memory(&backend, checkpoint.config(), &training.config)?;
    let tokenizer = tokenizer.clone();
    let mut trainer = Trainer::resume(backend, &checkpoint)?;
    let step = trainer.metrics()?.step;
    let metrics = Metrics::resume(&folder.metrics(), step)?;
    println!("resumed behind step {step} of {}", pace.iterations);
    Ok((trainer, tokenizer, pace, metrics))
}

/// Refuses what does not fit, before anything is allocated.
fn check_memory<B: Backend>(backend: &B, config: &GptConfig, training: &TrainConfig) -> Outcome<()> {
    let plan = Plan::training(config, B::Elem::DTYPE, training.batch, training.time)?;
    match memory::available() {
        Some(available) => fits(backend, &plan, available),
        None => Ok(()),
    }
}

fn fits<B: Backend>(backend: &B, plan: &Plan, available: usize) -> Outcome<()> {
    let needed = plan.bytes.total().saturating_add(backend.workspace_bytes(plan));
    if needed <= available {
        return Ok(());
    }
    let largest =
        Plan::largest_batch(&plan.config, Dtype::F32, plan.time, available, |p| backend.workspace_bytes(p));
    let remedy = match largest {
        Some(batch) => format!(
            "the largest batch that fits is --batch {batch}; --accumulation makes up for a smaller one"
        ),
        None => "not even one sequence fits: make the model or the context smaller".into(),
    };
    let parts: Vec<String> = (plan.bytes.categories().into_iter())
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", human(bytes)))
        .collect();
    Err(format!(
        "training needs {} ({}), and {} are available: {remedy}",
        human(needed),
        parts.join(", "),
        human(available)
    )
    .into())
}

struct Session<B: Backend> {
    trainer: Trainer<B>,
    tokenizer: AnyTokenizer,
    pace: Pace,
    folder: Folder,
    metrics: Metrics,
    started: Instant,
    /// Seconds that the run had taken before it was resumed.
    before: f64,
    /// The step of the checkpoint on disk.
    saved: u32,
    name: String,
    truth: Option<Truth>,
}

impl<B: Backend> Session<B> {
    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    fn train(
        &mut self,
        windows: &Windows<'_>,
        all: &EvalWindows<'_>,
        stop: &dyn Fn() -> bool,
    ) -> Outcome<End> {
        let TrainConfig { batch, time, accumulation, .. } = *self.trainer.config();
        let sample = all.spread(self.pace.eval_batches.saturating_mul(batch));
        let first = self.trainer.metrics()?.step;
        let Pace { iterations, eval_every, log_every, .. } = self.pace;
        // From here on there is always a checkpoint of this run, and none of an earlier one in the same folder.
        self.save(first)?;
        let bar = progress(iterations, first);
        println!(
            "{} parameters, {} steps of {} tokens",
            self.trainer.model().parameter_count(),
            iterations,
            batch * time * accumulation
        );
        let mut training_time = Duration::ZERO;
        for step in first + 1..=iterations {
            let begun = Instant::now();
            self.trainer.step(windows)?;
            let logged = step % log_every == 0 || step == iterations;
            if logged {
                self.log(&bar, step, (step - first) as usize * batch * time * accumulation, training_time)?;
            }
            training_time += begun.elapsed();
            bar.set_position(u64::from(step));
            if step % eval_every == 0 || step == iterations {
                self.validate(&bar, step, &sample)?;
                self.save(step)?;
            }
            if stop() && step < iterations {
                bar.abandon();
                self.refuse_what_is_lost()?;
                self.save(step)?;
                return Ok(End::Interrupted(step));
            }
        }
        bar.finish_and_clear();
        self.finish(
            all,
            (iterations.saturating_sub(first)) as usize * batch * time * accumulation,
            training_time,
        )
    }

    fn log(&mut self, bar: &ProgressBar, step: u32, tokens: usize, elapsed: Duration) -> Outcome<()> {
        let now = self.refuse_what_is_lost()?;
        let measured = Measured::Training {
            loss: now.loss,
            grad_norm: now.grad_norm,
            learning_rate: now.learning_rate,
            tokens: now.tokens,
        };
        self.record(Record { step, measured, seconds: self.seconds() })?;
        let speed = tokens as f64 / elapsed.as_secs_f64().max(1e-9);
        bar.set_message(format!("loss {:.3}, {:.0} tokens/s", now.loss, speed));
        Ok(())
    }

    fn record(&mut self, record: Record) -> Outcome<()> {
        let path = self.folder.metrics();
        self.metrics.push(record).map_err(|e| {
            format!("cannot write {}: {e}; make room, then go on with --resume", path.display()).into()
        })
    }

    /// The metrics, unless the run is beyond help.
    fn refuse_what_is_lost(&mut self) -> Outcome<minigpt_core::train::Metrics> {
        let now = self.trainer.metrics()?;
        if now.skipped_in_a_row < PATIENCE {
            return Ok(now);
        }
        let TrainConfig { schedule, clip, .. } = self.trainer.config();
        Err(format!(
            "stopped at step {}: the loss has not been a finite number for {} steps. The checkpoint of step {} is \
             kept in {}. Try a lower --lr (it was {}), a longer --warmup (it was {}), or a smaller --clip (it was \
             {clip})",
            now.step,
            now.skipped_in_a_row,
            self.saved,
            self.folder.checkpoint().display(),
            schedule.peak,
            schedule.warmup
        )
        .into())
    }

    fn validate(&mut self, bar: &ProgressBar, step: u32, windows: &EvalWindows<'_>) -> Outcome<()> {
        self.refuse_what_is_lost()?;
        let loss = self.trainer.evaluate(windows)?;
        if !loss.is_finite() {
            return Err(format!(
                "stopped at step {step}: the validation loss is {loss}. The checkpoint of step {} is kept in {}. Try a \
                 lower --lr, a longer --warmup, or a smaller --clip",
                self.saved,
                self.folder.checkpoint().display()
            )
            .into());
        }
        self.record(Record { step, measured: Measured::Validation(loss), seconds: self.seconds() })?;
        let text = self.sample()?;
        bar.suspend(|| {
            println!("step {step}: validation loss {loss:.4}");
            if !text.is_empty() {
                println!("    {}\n", text.replace('\n', "\n    "));
            }
        });
        Ok(())
    }

    /// What the model writes now.
    fn sample(&mut self) -> Outcome<String> {
        if self.pace.sample == 0 {
            return Ok(String::new());
        }
        // Most texts have line breaks; any token will do for one that has none.
        let prompt = self.tokenizer.encode("\n").unwrap_or_else(|_| vec![0]);
        let mut sampler =
            Sampler::new(SampleConfig { seed: 1, ..SampleConfig::default() }, self.tokenizer.vocab_size())?;
        let model = self.trainer.model_mut();
        let mut decoder = Decoder::new(model, 1)?;
        decoder.feed(model, &prompt)?;
        let tokens: Vec<u32> =
            decoder.generate(model, &mut sampler).take(self.pace.sample).collect::<Result<_, _>>()?;
        decoder.release(model)?;
        Ok(self.tokenizer.decode(&tokens)?.trim_matches('\n').into())
    }

    fn save(&mut self, step: u32) -> Outcome<()> {
        let metadata = self.pace.metadata();
        let metadata: Vec<(&str, &str)> =
            metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let extras = Extras { tokenizer: Some(&self.tokenizer), metadata: &metadata };
        self.trainer.save(self.folder.checkpoint(), &extras).map_err(|error| error.to_string())?;
        self.saved = step;
        Ok(())
    }

    fn finish(&mut self, all: &EvalWindows<'_>, tokens: usize, training_time: Duration) -> Outcome<End> {
        let val_loss = self.trainer.evaluate(all)?;
        let title = format!("minigpt on {}: validation loss {val_loss:.3}", self.name);
        let curves = [
            Curve { name: "training batches", color: "#9bb8d3", points: self.metrics.training() },
            Curve { name: "validation", color: "#d1495b", points: self.metrics.validation() },
        ];
        let bound = self.truth.map(|truth| ("true entropy", truth.entropy));
        std::fs::write(self.folder.curve(), loss_curves(&title, &curves, bound))
            .map_err(|error| format!("cannot write {}: {error}", self.folder.curve().display()))?;
        if let Some(truth) = self.truth {
            println!(
                "validation loss {val_loss:.4}; no model can do better in these windows than {:.4}; a smoothed 5-gram \
                 model reaches {:.4}; true entropy {:.4}, of this text {:.4}",
                truth.windowed, truth.five_gram, truth.entropy, truth.validation
            );
        }
        println!(
            "loss curve: {}; metrics: {}",
            self.folder.curve().display(),
            self.folder.metrics().display()
        );
        Ok(End::Finished(Summary {
            val_loss,
            iterations: self.pace.iterations,
            seconds: self.seconds(),
            tokens_per_s: tokens as f64 / training_time.as_secs_f64().max(1e-9),
            entropy: self.truth.map(|truth| truth.entropy),
            checkpoint: self.folder.checkpoint(),
        }))
    }
}

/// A bar for people; nothing where the output goes to a file.
fn progress(iterations: u32, first: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(iterations)).with_position(u64::from(first));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use minigpt_core::Reference;

    use super::*;
    use crate::scratch::Scratch;

    const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

    /// Flags for a run of seconds, on a text in `scratch`.
    fn options(scratch: &Scratch, flags: &str) -> Options {
        let data = scratch.path("text.txt");
        if !data.exists() {
            fs::write(&data, TEXT.repeat(40)).unwrap();
        }
        let common = format!(
            "train --data {} --out {} --layers 1 --heads 2 --d-model 16 --context 8 --batch 2 --iterations 24 \
             --eval-every 8 --eval-batches 2 --log-every 4 --sample 5 --warmup 2",
            data.display(),
            scratch.path("run").display()
        );
        Options::try_parse_from(common.split_whitespace().chain(flags.split_whitespace())).unwrap()
    }

    fn resumed(scratch: &Scratch) -> Options {
        let (data, out) = (scratch.path("text.txt"), scratch.path("run"));
        let flags = format!("train --resume --data {} --out {}", data.display(), out.display());
        Options::try_parse_from(flags.split_whitespace()).unwrap()
    }

    fn error(options: &Options) -> String {
        train(options, || false).unwrap_err().to_string()
    }

    #[test]
    fn a_run_leaves_a_checkpoint_metrics_and_a_curve() {
        let scratch = Scratch::new();
        let End::Finished(summary) = train(&options(&scratch, ""), || false).unwrap() else { panic!() };
        assert!(summary.val_loss < 3.5 && summary.tokens_per_s > 0.0, "{summary}");
        let line = summary.to_string();
        assert!(line.starts_with("result val_loss=") && line.contains(" iterations=24 seconds="), "{line}");
        assert!(line.ends_with("checkpoint.mgpt") && !line.contains("entropy"), "{line}");
        let metrics = fs::read_to_string(scratch.path("run").join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().filter(|line| line.contains("val_loss")).count(), 3);
        assert_eq!(metrics.lines().filter(|line| line.contains("\"loss\"")).count(), 6);
        assert!(fs::read_to_string(scratch.path("run").join("loss.svg")).unwrap().contains("validation"));
        let bytes = checkpoint::load(&summary.checkpoint).unwrap();
        assert!(Checkpoint::open_verified(&bytes).unwrap().tokenizer().is_some());
    }

    #[test]
    fn a_stopped_run_resumes_to_the_same_bytes() {
        let (whole, parts) = (Scratch::new(), Scratch::new());
        let flags = "--dropout 0.1 --accumulation 2";
        train(&options(&whole, flags), || false).unwrap();
        let asked = Cell::new(0);
        let stop_after = |count: u32| {
            asked.set(0);
            let asked = &asked;
            move || {
                asked.set(asked.get() + 1);
                asked.get() == count
            }
        };
        assert_eq!(train(&options(&parts, flags), stop_after(5)).unwrap(), End::Interrupted(5));
        assert_eq!(train(&resumed(&parts), stop_after(9)).unwrap(), End::Interrupted(14));
        // Metrics from behind the checkpoint, as a run that was killed leaves them, are measured again.
        let metrics = parts.path("run").join("metrics.jsonl");
        let late = "{\"step\":16,\"val_loss\":9.0,\"seconds\":1.0}\n";
        fs::write(&metrics, fs::read_to_string(&metrics).unwrap() + late).unwrap();
        assert!(matches!(train(&resumed(&parts), || false).unwrap(), End::Finished(_)));
        let bytes = |scratch: &Scratch| fs::read(scratch.path("run").join("checkpoint.mgpt")).unwrap();
        assert!(bytes(&whole) == bytes(&parts));
        let losses = |scratch: &Scratch| -> Vec<Measured> {
            let metrics = Metrics::resume(&scratch.path("run").join("metrics.jsonl"), u32::MAX).unwrap();
            metrics.records().iter().map(|record| record.measured).collect()
        };
        assert_eq!(losses(&whole), losses(&parts));
    }

    #[test]
    fn settings_cannot_be_changed_in_the_middle_of_a_run() {
        let flags = ["train", "--resume", "--lr", "0.1"];
        let error = Options::try_parse_from(flags).unwrap_err().to_string();
        assert!(error.contains("cannot be used with") && error.contains("--resume"), "{error}");
    }

    #[test]
    fn nothing_to_resume_is_an_error() {
        let scratch = Scratch::new();
        options(&scratch, "");
        let error = error(&resumed(&scratch));
        assert!(error.contains("there is no run to resume") && error.contains("--out"), "{error}");
    }

    #[test]
    fn a_run_is_not_resumed_on_another_text() {
        let scratch = Scratch::new();
        train(&options(&scratch, ""), || false).unwrap();
        fs::write(scratch.path("text.txt"), TEXT.repeat(41)).unwrap();
        let error = error(&resumed(&scratch));
        assert!(error.contains("the run was on another text"), "{error}");
    }

    #[test]
    fn a_damaged_checkpoint_is_not_resumed() {
        let scratch = Scratch::new();
        train(&options(&scratch, ""), || false).unwrap();
        let path = scratch.path("run").join("checkpoint.mgpt");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(!error(&resumed(&scratch)).is_empty());
    }

    #[test]
    fn an_empty_text_is_refused() {
        let scratch = Scratch::new();
        let options = options(&scratch, "");
        fs::write(scratch.path("text.txt"), "").unwrap();
        assert!(error(&options).contains("is empty"));
    }

    #[test]
    fn a_text_shorter_than_the_context_is_refused_with_one_that_fits() {
        let scratch = Scratch::new();
        let options = options(&scratch, "");
        fs::write(scratch.path("text.txt"), &TEXT[..40]).unwrap();
        let error = error(&options);
        assert!(error.contains("40 tokens, of which 4 validate") && error.contains("--context 3"), "{error}");
    }

    #[test]
    fn a_batch_beyond_memory_is_refused_before_it_is_allocated() {
        let scratch = Scratch::new();
        let error = error(&options(&scratch, "--batch 3000000000"));
        assert!(error.contains("are available: the largest batch that fits is --batch "), "{error}");
    }

    #[test]
    fn what_fits_is_said() {
        let backend = Reference::<f32>::new();
        let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(4, 8) };
        let plan = |batch| Plan::training(&config, Dtype::F32, batch, 8).unwrap();
        let budget = plan(5).bytes.total();
        assert!(fits(&backend, &plan(5), budget).is_ok());
        let error = fits(&backend, &plan(6), budget).unwrap_err().to_string();
        assert!(error.contains("the largest batch that fits is --batch 5;"), "{error}");
        let error = fits(&backend, &plan(6), 100).unwrap_err().to_string();
        assert!(error.contains("not even one sequence fits"), "{error}");
    }

    #[test]
    fn a_folder_under_a_file_is_refused() {
        let scratch = Scratch::new();
        let mut options = options(&scratch, "");
        options.out = scratch.path("text.txt").join("run");
        let error = error(&options);
        assert!(error.contains("cannot make the folder") && error.contains("--out"), "{error}");
    }

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let scratch = Scratch::new();
        let error = error(&options(&scratch, "--heads 3"));
        assert!(error.contains("try heads 2"), "{error}");
    }

    #[test]
    fn a_learning_rate_that_destroys_the_model_stops_the_run_and_keeps_the_checkpoint() {
        let scratch = Scratch::new();
        let flags = "--iterations 400 --eval-every 400 --lr 1e38 --warmup 0 --clip inf";
        let error = error(&options(&scratch, flags));
        assert!(
            error.contains("The checkpoint of step 0 is kept") && error.contains("Try a lower --lr"),
            "{error}"
        );
        let bytes = checkpoint::load(scratch.path("run").join("checkpoint.mgpt")).unwrap();
        let mut model =
            Model::load(Reference::<f32>::new(), &Checkpoint::open_verified(&bytes).unwrap()).unwrap();
        let logits = model.logits(&[0, 1], 1, 2).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}
