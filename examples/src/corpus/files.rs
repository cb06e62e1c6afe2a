//! The files that paths stand for.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::{CorpusError, is_standard_input};

/// The files of `paths`: of a folder those that end in `.txt`, or all if none does, by name; hidden and empty files, and
/// folders in it, are left alone. What is left out is noted.
pub(super) fn files(paths: &[PathBuf], notes: &mut Vec<String>) -> Result<Vec<PathBuf>, CorpusError> {
    let mut files = Vec::new();
    for path in paths {
        match path.is_dir() {
            true => files.append(&mut in_folder(path, notes)?),
            false => files.push(path.clone()),
        }
    }
    Ok(files)
}

fn in_folder(folder: &Path, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, CorpusError> {
    let unreadable = |error| CorpusError::Unreadable(folder.into(), error);
    let is_hidden =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if !is_hidden(&path) && path.metadata().is_ok_and(|file| file.is_file() && file.len() > 0) {
            files.push(path);
        }
    }
    files.sort();
    let all = files.len();
    let is_text = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "txt");
    if files.iter().any(is_text) {
        files.retain(is_text);
    }
    if files.len() < all {
        notes.push(format!(
            "of {} its .txt files are taken, {} of {all} files; name others one by one",
            folder.display(),
            files.len()
        ));
    }
    if files.is_empty() { Err(CorpusError::NoFiles(folder.into())) } else { Ok(files) }
}

/// Bytes of the files, as far as that can be told before they are read.
pub(super) fn sizes(files: &[PathBuf]) -> u64 {
    files
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

/// Opens a file, or the standard input for `-`.
pub(super) fn open(path: &Path) -> Result<Box<dyn std::io::Read>, CorpusError> {
    if is_standard_input(path) {
        if std::io::stdin().is_terminal() {
            // Who closed the error output does not wait for it.
            let _ = writeln!(
                std::io::stderr(),
                "reading the text from the terminal; Ctrl-D at the beginning of a line ends it"
            );
        }
        return Ok(Box::new(std::io::stdin()));
    }
    let file = fs::File::open(path).map_err(|error| CorpusError::Unreadable(path.into(), error))?;
    Ok(Box::new(file))
}
