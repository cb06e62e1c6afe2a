//! Where the text of a run lies, as the run's folder remembers it.
//!
//! Not in the checkpoint: who gives one away need not give away the names of folders, and the same run writes the same
//! bytes wherever its text lies.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use minigpt_core::checkpoint::{FileError, sync_folder};
use serde_json::Value;

use super::{Corpus, CorpusError, Search, TextOptions, Vocabulary, read};
use crate::Outcome;
use crate::options::Loaded;

/// The file in the folder of a run.
pub fn path_in(folder: &Path) -> PathBuf {
    folder.join("text.json")
}

/// Remembers the text of the run in `folder`.
///
/// # Errors
/// If it cannot be written.
pub fn remember(folder: &Path, text: &TextOptions) -> Outcome<()> {
    if remembered(folder).as_ref() == Some(text) {
        return Ok(());
    }
    let (path, partial) = (path_in(folder), folder.join("text.json.part"));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(format!("{:#}\n", text.to_json()).as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written.map_err(|error| FileError { path: path.clone(), attempt: "write to", error })?;
    Ok(sync_folder(folder)?)
}

/// The text of the run in `folder`. `None` where nobody remembers it.
pub fn remembered(folder: &Path) -> Option<TextOptions> {
    let value: Value = serde_json::from_str(&fs::read_to_string(path_in(folder)).ok()?).ok()?;
    TextOptions::from_json(&value)
}

/// Reads the text that `given` names, and for what it leaves open, that of the run in `folder`.
///
/// # Errors
/// As [`read`], with the flags that the run was trained with; or if its text has to be piped in again.
pub fn read_of_run(
    search: &Search,
    given: &TextOptions,
    folder: &Path,
    vocabulary: Vocabulary<'_>,
) -> Result<Corpus, CorpusError> {
    let Some(kept) = remembered(folder) else {
        return read(search, given, vocabulary);
    };
    let flags = kept.flags();
    let text = given.or(kept);
    if text.is_piped() && !given.is_piped() {
        return Err(CorpusError::Piped(flags));
    }
    read(search, &text, vocabulary).map_err(|error| match flags.as_str() {
        "" => error,
        _ => CorpusError::OfRun(flags, error.into()),
    })
}

/// Reads the text that `given` names; if it names none, that of the run whose folder the checkpoint lies in, with what
/// else is given.
///
/// # Errors
/// As [`read_of_run`].
pub fn read_of_checkpoint(
    search: &Search,
    given: &TextOptions,
    checkpoint: &Loaded,
    vocabulary: Vocabulary<'_>,
) -> Outcome<Corpus> {
    let named = !given.data.is_empty() || given.built_in;
    let of_run = || {
        let folder = checkpoint.path.parent().filter(|_| !named)?;
        remembered(folder).map(|_| read_of_run(search, given, folder, vocabulary))
    };
    let mut corpus = of_run().unwrap_or_else(|| read(search, given, vocabulary));
    if let Ok(corpus) = &mut corpus
        && !named
        && checkpoint.text_hash().is_some_and(|hash| hash != corpus.sha256)
    {
        corpus
            .notes
            .push("the text is not the one that the model was trained on, or is read otherwise".into());
    }
    corpus.map_err(|error| match named {
        true => error.into(),
        false => {
            format!("{error}\nif the model was trained on another text: name it with --data, or --built-in")
                .into()
        }
    })
}
