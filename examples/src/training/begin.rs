//! A run from its first step, or from where its checkpoint left it.

use minigpt_core::{
    AnyTokenizer, Backend, ByteTokenizer, CharTokenizer, Model, Recompute, Tokenizer, TrainConfig, Trainer,
};

use super::TRAINING_SHARE;
use super::folder::{Best, Folder, Pace};
use super::options::{Options, TokenizerName};
use crate::memory::Remedy;
use crate::metrics::Metrics;
use crate::options::open;
use crate::{Outcome, memory, say};

/// What a new run can still change.
const NEW: Remedy<'_> = Remedy {
    batch: "set it with --batch, and make up for it with --accumulation",
    model: "make the model or the context smaller",
};

/// What a run that goes on can: its batch and its model are in its checkpoint.
const RESUMED: Remedy<'_> = Remedy {
    batch: "a run that is resumed keeps its batch, so resume it where there is more memory, or begin a new run with a \
            smaller --batch",
    model: "resume the run where there is more memory, or begin a new run with a smaller model or context",
};

/// What a run goes on with.
pub(super) struct Begun<B: Backend> {
    pub(super) trainer: Trainer<B>,
    pub(super) tokenizer: AnyTokenizer,
    pub(super) pace: Pace,
    pub(super) best: Option<Best>,
    pub(super) metrics: Metrics,
}

/// A new run.
pub(super) fn begin<B: Backend>(
    backend: B,
    folder: &Folder,
    Options { settings, recompute, .. }: &Options,
    text: &str,
    sha256: String,
) -> Outcome<Begun<B>> {
    let tokenizer: AnyTokenizer = match settings.tokenizer.unwrap_or(TokenizerName::Char) {
        TokenizerName::Char => CharTokenizer::from_text(text)?.into(),
        TokenizerName::Byte => ByteTokenizer.into(),
    };
    let config = settings.model(tokenizer.vocab_size());
    let training = settings.training(config.context, (*recompute).into());
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
    memory::check_training(&backend, &config, &training, &NEW)?;
    let model = Model::new(backend, config, settings.seed())?;
    let trainer = Trainer::new(model, training)?;
    if let Some(aside) = folder.set_earlier_run_aside()? {
        say(format_args!("the run that was here is now in {}", aside.display()))?;
    }
    let metrics = Metrics::create(&folder.metrics())?;
    Ok(Begun { trainer, tokenizer, pace, best: None, metrics })
}

/// The run in `folder`, if it was on the text with this SHA-256.
pub(super) fn resume<B: Backend>(
    backend: B,
    folder: &Folder,
    recompute: Recompute,
    sha256: &str,
) -> Outcome<Begun<B>> {
    let Some(newest) = folder.run.newest()? else {
        return Err(format!(
            "there is no run to resume: {} has no checkpoint; name the run's folder with --out, or leave out --resume",
            folder.run.path().display()
        )
        .into());
    };
    for damaged in &newest.damaged {
        say(format_args!("{damaged}\nit is set aside; the run goes on from the checkpoint before"))?;
    }
    let checkpoint = open(&newest.bytes)?;
    let pace = Pace::from_metadata(checkpoint.metadata());
    let (Some(pace), Some(tokenizer), Some(training)) = (pace, checkpoint.tokenizer(), checkpoint.training())
    else {
        return Err(format!(
            "{} is not a checkpoint of train_shakespeare: begin a new run",
            newest.path.display()
        )
        .into());
    };
    if pace.corpus_sha256 != sha256 {
        return Err(
            "the run was on another text: name it with --data, or --built-in if it was the built-in plays; or \
             begin a new run without --resume"
                .into()
        );
    }
    let training = TrainConfig { recompute, ..training.config.clone() };
    memory::check_training(&backend, checkpoint.config(), &training, &RESUMED)?;
    let tokenizer = tokenizer.clone();
    let mut trainer = Trainer::resume_with(backend, &checkpoint, training)?;
    let step = trainer.metrics()?.step;
    let best = Best::from_metadata(checkpoint.metadata());
    let metrics = Metrics::resume(&folder.metrics(), step)?;
    say(format_args!("resumed behind step {step} of {}", pace.iterations))?;
    Ok(Begun { trainer, tokenizer, pace, best, metrics })
}
