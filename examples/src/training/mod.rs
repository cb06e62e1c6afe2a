//! A training run from the command line.
//!
//! `options` are the flags, `begin` makes a trainer of them or of a checkpoint, `session` is the loop, `folder` is
//! what the run keeps on disk, `summary` is what it ends with, and `command` is the program around it.

mod begin;
mod command;
mod folder;
mod options;
mod session;
mod summary;
#[cfg(test)]
mod tests;

use minigpt_core::data::{EvalWindows, Windows, split};
use minigpt_core::{Backend, Tokenizer};

use crate::corpus::{self, Corpus, Origin, Search};
use crate::options::{OnBackend, on_backend};
use crate::{Outcome, say};
use folder::Folder;
use session::Session;
use summary::Truth;

pub use command::command;
pub use options::{
    ActivationName, DecayName, NormName, Options, PositionName, Preset, Settings, TokenizerName,
};
pub use summary::{End, Summary};

/// Share of the text that trains, by position; the rest validates.
pub const TRAINING_SHARE: f64 = 0.9;

/// Runs what the flags say. `stop` is asked after each step.
///
/// # Errors
/// A message that says what to do.
pub fn train(options: &Options, stop: impl Fn() -> bool) -> Outcome<End> {
    let folder = Folder::open(&options.out)?;
    let corpus = if options.built_in { corpus::built_in()? } else { corpus::find(&search(options))? };
    for note in &corpus.notes {
        say(note)?;
    }
    say(format_args!("corpus: {} ({} bytes)", corpus.origin, corpus.text.len()))?;
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
        let sha256 = corpus::sha256(corpus.text.as_bytes());
        let begun = if options.resume {
            begin::resume(backend, &folder, options.recompute.into(), &sha256)?
        } else {
            begin::begin(backend, &folder, options, &corpus.text, sha256)?
        };
        let tokens = begun.tokenizer.encode(&corpus.text)?;
        let (training, validation) = split(&tokens, TRAINING_SHARE)?;
        let time = begun.trainer.config().time;
        let too_short = |error| format!("{error}; train on a longer text, or with a smaller --context");
        let windows = Windows::new(training, time).map_err(too_short)?;
        let all = EvalWindows::new(validation, time).map_err(too_short)?;
        let truth = match corpus.origin {
            Origin::BuiltIn(_) => Some(Truth::of(&corpus.text, time)?),
            _ => None,
        };
        if let Some(truth) = truth {
            say(format_args!(
                "true entropy {:.4} nats per character; of the validation text {:.4}; in windows of {time} no model \
                 can do better than {:.4}; a smoothed 5-gram model reaches {:.4}",
                truth.entropy, truth.validation, truth.windowed, truth.five_gram
            ))?;
        }
        let flags = options.to_resume(&corpus.origin);
        let name = match corpus.origin {
            Origin::BuiltIn(_) => "the built-in plays".into(),
            Origin::Downloaded(_) => "tiny Shakespeare".into(),
            Origin::File(path) => {
                path.file_stem().map_or("a text".into(), |s| s.to_string_lossy().into_owned())
            }
        };
        Session::new(begun, folder, options.keep.get(), name, truth).train(&windows, &all, stop, flags)
    }
}
