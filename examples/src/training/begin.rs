//! A run from its first step, from the weights of another, or from where its checkpoint left it.

use std::fmt::Display;
use std::path::Path;

use minigpt_core::checkpoint::{Checkpoint, Limits, load_within};
use minigpt_core::{AnyTokenizer, Backend, GptConfig, Model, Tokenizer, Trainer};

use super::folder::{Best, Folder, Pace, text_of, training_tokens};
use super::names::TokenizerName;
use super::options::{Options, changes};
use crate::corpus::{self, Corpus, CorpusError, Search, TextOptions, Vocabulary};
use crate::memory::Remedy;
use crate::metrics::Metrics;
use crate::options::{Loaded, Which, load_which, open};
use crate::{Outcome, flags, memory, say};

/// What a new run can still change.
const NEW: Remedy<'_> = Remedy {
    batch: "set it with --batch, and make up for it with --accumulation",
    model: "make the model or the context smaller",
};

/// What a run can whose model is in a checkpoint.
const TRAINED: Remedy<'_> = Remedy {
    batch: "set it with --batch, and make up for it with --accumulation",
    model: "train it where there is more memory, or begin a new run with a smaller model or context",
};

/// Where a run begins.
pub(super) enum Start {
    /// At fresh weights.
    New,
    /// At the weights of this checkpoint.
    From(Loaded),
    /// Where this checkpoint of the same run left it.
    Resume(Vec<u8>),
}

impl Start {
    /// Where the flags say.
    pub(super) fn of(options: &Options, folder: &Folder) -> Outcome<Start> {
        if options.resume {
            return Ok(Start::Resume(kept(options, folder)?));
        }
        match &options.from {
            Some(path) => Ok(Start::From(
                load_which(path, options.which)
                    .map_err(|error| format!("{error}; name another checkpoint or folder with --from"))?,
            )),
            None => Ok(Start::New),
        }
    }

    /// Reads the text that it trains on.
    pub(super) fn text(&self, options: &Options, folder: &Folder) -> Outcome<Corpus> {
        let search = Search::from_environment();
        let read = |vocabulary: Vocabulary<'_>| corpus::read(&search, &options.text, vocabulary);
        match self {
            Start::New if options.shape.tokenizer == Some(TokenizerName::Byte) => Ok(read(Vocabulary::Byte)?),
            Start::New => Ok(read(Vocabulary::Char)?),
            Start::From(source) => {
                let checkpoint = open(&source.bytes)?;
                let vocabulary = Vocabulary::Fixed(tokenizer(&checkpoint)?);
                corpus::read_of_checkpoint(&search, &options.text, source, vocabulary)
            }
            Start::Resume(bytes) => {
                let checkpoint = open(bytes)?;
                let vocabulary = Vocabulary::Fixed(tokenizer(&checkpoint)?);
                let corpus = corpus::read_of_run(&search, &options.text, folder.run.path(), vocabulary);
                corpus.map_err(|error| match &error {
                    // Its own text has its characters.
                    CorpusError::Unknown { .. } => other_text(folder, &options.text, &error).into(),
                    CorpusError::OfRun(_, inner) if matches!(**inner, CorpusError::Unknown { .. }) => {
                        other_text(folder, &options.text, inner).into()
                    }
                    _ => error.into(),
                })
            }
        }
    }
}

/// What to say of a folder without a run.
pub(super) fn nothing_to_resume(folder: &Path) -> String {
    format!(
        "there is no run to resume: {} has no checkpoint; name the run's folder with --out, or leave out --resume",
        folder.display()
    )
}

/// The checkpoint that a run goes on from.
fn kept(options: &Options, folder: &Folder) -> Outcome<Vec<u8>> {
    if options.which == Some(Which::Best) {
        let path = folder.run.best_path();
        return load_within(&path, &Limits::NONE).map_err(|error| {
            format!("{error}; to go on from the last checkpoint leave out --which best").into()
        });
    }
    let Some(newest) = folder.run.newest()? else {
        return Err(nothing_to_resume(folder.run.path()).into());
    };
    for damaged in &newest.damaged {
        say(format_args!("{damaged}\nit is set aside; the run goes on from the checkpoint before"))?;
    }
    Ok(newest.bytes)
}

fn tokenizer<'a>(checkpoint: &'a Checkpoint<'_>) -> Outcome<&'a AnyTokenizer> {
    checkpoint
        .tokenizer()
        .ok_or_else(|| "this checkpoint has no tokenizer, so no text can train it: name another one".into())
}

/// What a run goes on with.
pub(super) struct Begun<B: Backend> {
    pub(super) trainer: Trainer<B>,
    pub(super) pace: Pace,
    pub(super) best: Option<Best>,
    pub(super) metrics: Metrics,
}

/// A new run, from the weights of `source` if there is one.
pub(super) fn begin<B: Backend>(
    backend: B,
    folder: &Folder,
    options: &Options,
    corpus: &Corpus,
    source: Option<&[u8]>,
) -> Outcome<Begun<B>> {
    let source = source.map(open).transpose()?;
    let config = match &source {
        Some(checkpoint) => checkpoint.config().clone(),
        None => options.shape.model(corpus.tokenizer.vocab_size()),
    };
    config.validate().map_err(|error| flags::config_error(&error))?;
    let seed = options.fixed.seed();
    let (defaults, pace) = options.shape.defaults(config.context, seed, options.settings.iterations);
    let (training, pace) = options.settings.over(&defaults, &pace, options.recompute.into())?;
    // A text that cannot be trained on is refused before memory is.
    check_lengths(options, corpus, &config)?;
    let remedy = if source.is_some() { &TRAINED } else { &NEW };
    memory::check_training(&backend, &config, &training, corpus.tokens.bytes(), remedy)?;
    let model = match &source {
        Some(checkpoint) => Model::load(backend, checkpoint),
        None => Model::new(backend, config, seed),
    };
    let model = model.map_err(|error| flags::error(&error))?;
    let trainer = Trainer::new(&model, training).map_err(|error| flags::error(&error))?;
    if let Some(aside) = folder.set_earlier_run_aside()? {
        say(format_args!("the run that was here is now in {}", aside.display()))?;
    }
    let metrics = Metrics::create(&folder.metrics())?;
    Ok(Begun { trainer, pace, best: None, metrics })
}

/// Refuses a text of which a part is shorter than one window and its last target.
fn check_lengths(options: &Options, corpus: &Corpus, config: &GptConfig) -> Outcome<()> {
    let (training, validation, context) =
        (corpus.training().len(), corpus.validation().len(), config.context);
    let least = training.min(validation);
    if least > context {
        return Ok(());
    }
    let shorter = match least.saturating_sub(1) {
        0 => String::new(),
        // The context of a model that has weights is what it is.
        _ if options.from.is_some() => ", or a model with a shorter context".into(),
        most => format!(", or with --context {most} or less"),
    };
    let total = training + validation;
    let enough = |share: f64| {
        ((1.0 - share) * total as f64) as usize > context && share * total as f64 > context as f64 + 1.0
    };
    let remedy = match [0.1, 0.5].into_iter().find(|&share| enough(share)) {
        _ if !options.text.validation.is_empty() && validation == least => {
            "name a longer text with --validation".into()
        }
        Some(share) if options.text.validation.is_empty() => {
            format!("divide it otherwise, such as with --validation-share {share}")
        }
        _ => "train on a longer text".to_string(),
    };
    Err(format!(
        "{training} tokens of the text train and {validation} validate: {least} are too few for a context of \
         {context}; {remedy}{shorter}"
    )
    .into())
}

/// The run in `folder`, if it was on this text.
pub(super) fn resume<B: Backend>(
    backend: B,
    folder: &Folder,
    options: &Options,
    corpus: &Corpus,
    bytes: &[u8],
) -> Outcome<Begun<B>> {
    let checkpoint = open(bytes)?;
    let metadata = checkpoint.metadata();
    let training = checkpoint.training();
    let kept = training.and_then(|training| Pace::from_metadata(metadata, training.config.batch));
    let (Some(kept), Some(training), Some(sha256)) = (kept, training, text_of(metadata)) else {
        let message = "this is not a checkpoint of train_shakespeare: begin a new run from its weights with --from in \
                       place of --resume";
        return Err(message.into());
    };
    if sha256 != corpus.sha256 {
        let text = options.text.or(corpus::remembered(folder.run.path()).unwrap_or_default());
        return Err(other_text(folder, &text.to_find(&corpus.origin), &"").into());
    }
    let step = training.state.counters[minigpt_core::op::counter::STEP];
    let (config, pace) = options.settings.over(&training.config, &kept, options.recompute.into())?;
    if pace.iterations < step {
        return Err(format!(
            "--iterations {} is before step {step}, where the run is already: name more, or begin a new run",
            pace.iterations
        )
        .into());
    }
    memory::check_training(&backend, checkpoint.config(), &config, corpus.tokens.bytes(), &TRAINED)?;
    let trainer =
        Trainer::resume_with(backend, &checkpoint, config.clone()).map_err(|error| flags::error(&error))?;
    if options.which == Some(Which::Best)
        && let Some(aside) = folder.set_later_aside(step)?
    {
        say(format_args!("the checkpoints of later steps are now in {}", aside.display()))?;
    }
    let mut best = Best::from_metadata(metadata);
    let metrics = Metrics::resume(&folder.metrics(), step)?;
    say(format_args!("resumed after step {step} of {}", pace.iterations))?;
    if step == pace.iterations {
        say("the run is at its end: to train on, add --iterations with a larger number")?;
    }
    for (flag, new, old) in changes((&training.config, &kept), (&config, &pace)) {
        say(format_args!("from here on {flag} {new}; it was {old}"))?;
    }
    if let Some(before) = training_tokens(metadata).filter(|&before| before != corpus.training) {
        say(format_args!(
            "from here on {} tokens of the text train; there were {before}. What has trained may validate now, and the \
             best validation of before counts no more: it was on another text",
            corpus.training
        ))?;
        best = None;
    }
    let changed = config.schedule != training.config.schedule;
    if changed && step < pace.iterations {
        say(format_args!("the learning rate goes on at {:.3e}", config.schedule.learning_rate(step)))?;
    }
    Ok(Begun { trainer, pace, best, metrics })
}

/// What to say of a text, which the flags name, that the run was not on.
fn other_text(folder: &Folder, this: &TextOptions, why: &dyn Display) -> String {
    let path = folder.run.path();
    let kept = corpus::remembered(path).unwrap_or_default();
    let otherwise = [
        ("--newlines", this.newlines.is_some() && this.newlines != kept.newlines),
        ("--validation", !this.validation.is_empty() && this.validation != kept.validation),
    ];
    let otherwise = otherwise.into_iter().filter(|(_, other)| *other);
    let leave: String = otherwise.map(|(flag, _)| format!("leave {flag} out, or ")).collect();
    let was = match kept.flags().as_str() {
        "" => String::new(),
        flags => format!(" ({flags}, unless what is there has changed since)"),
    };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let (run, new, this) = (corpus::word(path), corpus::word(new.as_ref()), this.or(kept).flags());
    let why = why.to_string();
    let why = if why.is_empty() { why } else { format!("{why}\n") };
    format!(
        "{why}the run was on another text{was}: {leave}name it with --data, or --built-in if it was the built-in plays; to \
         train its model on this text, begin a new run: cargo run --release --example train_shakespeare -- --from {run} --out \
         {new} {this}"
    )
}
