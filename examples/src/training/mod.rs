//! A training run from the command line.
//!
//! `options` are the flags and `names` the words for choices among them, `begin` makes a trainer of them or of a
//! checkpoint, `schedule` the learning rate of them and `optimizers` what goes by it, `session` is the loop, `rescue` what to
//! do when it diverges, `folder` is what the run keeps on disk, `summary` is what it ends with, and `command` is the program
//! around it.

mod begin;
mod command;
mod folder;
mod names;
mod optimizers;
mod options;
mod rescue;
mod schedule;
mod session;
mod summary;
#[cfg(test)]
mod tests;

use std::io::{stderr, stdin, stdout};

use minigpt_core::data::{EvalWindows, Windows};
use minigpt_core::{Backend, Mask, Model, SampleConfig};

use crate::corpus::{self, Corpus, Origin};
use crate::generation::{self, Limits, Terminal, Writer};
use crate::options::{OnBackend, on_backend};
use crate::prompt::PromptOptions;
use crate::stop::{Interrupts, Signals};
use crate::{Outcome, say};
use begin::Start;
use folder::Folder;
use session::{Run, Session};
use summary::Truth;

pub use command::command;
pub use folder::Best;
pub use names::{
    ActivationName, BiasName, DecayName, Family, MaskName, NormName, NormPlaceName, PairingName,
    PositionName, Preset, TokenizerName,
};
pub use options::{Fixed, Options, Settings, Shape};
pub use summary::{End, Summary};

/// Share of the text that trains, by position; the rest validates.
pub const TRAINING_SHARE: f64 = 0.9;

/// Runs what the flags say. The signals are taken over when there is something to save, and asked after each step.
///
/// # Errors
/// A message that says what to do.
pub fn train(options: &Options, signals: impl Signals) -> Outcome<End> {
    options.check()?;
    if options.resume && !options.out.is_dir() {
        return Err(begin::nothing_to_resume(&options.out).into());
    }
    let folder = Folder::open(&options.out)?;
    let start = Start::of(options, &folder)?;
    let corpus = start.text(options, &folder)?;
    for note in &corpus.notes {
        say(note)?;
    }
    say(format_args!("corpus: {} ({} bytes)", corpus.origin, corpus.bytes))?;
    if let Some((origin, bytes)) = &corpus.validated_on {
        say(format_args!("validation: {origin} ({bytes} bytes)"))?;
    }
    on_backend(
        options.backend,
        options.threads,
        Training { options, folder, start, corpus, signals: &signals },
    )
}

/// What the losses are held against, if it is known, once it was said.
fn introduced(corpus: &mut Corpus, mask: Mask, context: usize) -> Outcome<Option<Truth>> {
    let text = corpus.text.take();
    if mask == Mask::None {
        say(
            "without a mask each token sees the one that it is to tell: the loss is that of copying, and says nothing of \
             what the model could write",
        )?;
        return Ok(None);
    }
    let truth = text.map(|text| Truth::of(&text, corpus.training, context)).transpose()?;
    if let Some(truth) = truth {
        truth.introduce(context)?;
    }
    Ok(truth)
}

struct Training<'a> {
    options: &'a Options,
    folder: Folder,
    start: Start,
    corpus: Corpus,
    signals: &'a dyn Signals,
}

impl OnBackend for Training<'_> {
    type Result = End;

    fn run<B: Backend>(self, backend: B) -> Outcome<End> {
        let Training { options, folder, start, mut corpus, signals } = self;
        signals.take_over()?;
        let begun = match &start {
            Start::New => begin::begin(backend, &folder, options, &corpus, None)?,
            Start::From(source) => begin::begin(backend, &folder, options, &corpus, Some(&source.bytes))?,
            Start::Resume(bytes) => begin::resume(backend, &folder, options, &corpus, bytes)?,
        };
        // The trainer has what was in the file.
        drop(start);
        let text = match corpus::remembered(folder.run.path()).filter(|_| options.resume) {
            Some(kept) => options.text.or(kept),
            None => options.text.clone(),
        };
        let text = text.to_find(&corpus.origin);
        corpus::remember(folder.run.path(), &text)?;
        let time = begun.trainer.config().time;
        let too_short = |error| format!("{error}; train on a longer text, or with a smaller --context");
        let truth = introduced(&mut corpus, begun.trainer.model().config().mask, time)?;
        let run = Run {
            folder,
            tokenizer: corpus.tokenizer.clone(),
            sha256: corpus.sha256.clone(),
            training_tokens: corpus.training,
            start: corpus.start(),
            name: name(&corpus.origin),
            keep: options.keep.get(),
            flags: options.to_resume(&text.flags()),
            truth,
            signals,
        };
        let windows = Windows::new(corpus.training(), time).map_err(too_short)?;
        let all = EvalWindows::new(corpus.validation(), time).map_err(too_short)?;
        let mut session = Session::new(begun, run);
        let end = session.train(&windows, &all)?;
        if let End::Finished(summary) = &end {
            // The result is the last line, and is said also where the average cannot be saved.
            let saved = session.save_average();
            say(summary)?;
            saved?;
            signals.give_back();
            if options.interactive {
                converse(&session.into_model(), &corpus)?;
            }
        }
        Ok(end)
    }
}

/// What the model writes on from what is typed.
fn converse<B: Backend>(model: &Model<B>, corpus: &Corpus) -> Outcome<()> {
    let context = model.config().context;
    let mut writer = Writer::new(model, &corpus.tokenizer, corpus.start(), context)?;
    let config = SampleConfig { temperature: 0.8, seed: 1, ..SampleConfig::default() };
    let limits = Limits { tokens: 300, stops: Vec::new() };
    let (mut input, mut out, mut log) = (stdin().lock(), stdout().lock(), stderr());
    let mut terminal = Terminal { input: &mut input, out: &mut out, log: &mut log };
    let prompt = PromptOptions::default();
    generation::converse(&mut writer, config, &limits, &prompt, &Interrupts::new()?, &mut terminal)
}

/// What the text is called in titles.
fn name(origin: &Origin) -> String {
    match origin {
        Origin::BuiltIn(_) => "the built-in plays".into(),
        Origin::Downloaded(_) => "tiny Shakespeare".into(),
        Origin::StandardInput => "a text".into(),
        Origin::Files(paths) => match paths.as_slice() {
            [path] => path.file_stem().map_or("a text".into(), |stem| stem.to_string_lossy().into_owned()),
            paths => format!("{} texts", paths.len()),
        },
    }
}
