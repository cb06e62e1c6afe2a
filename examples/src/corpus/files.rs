//! The files that paths stand for.

use std::fs;
use std::path::{Path, PathBuf};

use super::{CorpusError, is_standard_input};

/// The files of `paths`: of a folder those that end in `.txt`, or all if none does, by name; folders in it are left
/// alone.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CorpusError> {
    let mut files = Vec::new();
    for path in paths {
        match path.is_dir() {
            true => files.append(&mut in_folder(path)?),
            false => files.push(path.clone()),
        }
    }
    Ok(files)
}

fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, CorpusError> {
    let unreadable = |error| CorpusError::Unreadable(folder.into(), error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let is_text = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "txt");
    if files.iter().any(is_text) {
        files.retain(is_text);
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
        return Ok(Box::new(std::io::stdin()));
    }
    let file = fs::File::open(path).map_err(|error| CorpusError::Unreadable(path.into(), error))?;
    Ok(Box::new(file))
}
