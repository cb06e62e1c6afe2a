//! What the system refuses, and what to do about it.

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::super::LoadError;

/// What the system refused, and for which path.
#[derive(Debug)]
pub struct FileError {
    /// The file that the program asked for.
    pub path: PathBuf,
    /// What was attempted: `write to`, `open`.
    pub attempt: &'static str,
    /// What the system says.
    pub error: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(super) fn at(path: &Path, attempt: &'static str) -> impl Fn(io::Error) -> FileError {
        move |error| FileError { path: path.to_path_buf(), attempt, error }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.attempt, self.path.display(), self.error)?;
        f.write_str(match self.error.kind() {
            io::ErrorKind::NotFound if self.attempt.starts_with("read") => "; check the path",
            io::ErrorKind::NotFound => "; check the path, and make its folder if there is none",
            io::ErrorKind::NotADirectory => {
                "; a part of the path is a file and no folder, choose another path"
            }
            io::ErrorKind::IsADirectory => "; it is a folder, name a file in it",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; choose a place where this program may do that"
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; make room, or choose another disk"
            }
            io::ErrorKind::FileTooLarge => "; raise the limit on the size of files, or choose another disk",
            io::ErrorKind::OutOfMemory => "; free some memory, or use a smaller model",
            io::ErrorKind::Unsupported => "; choose another disk",
            _ => "; check the path and its disk",
        })
    }
}

impl core::error::Error for FileError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Why a file was not loaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadFileError {
    /// It could not be read.
    File(FileError),
    /// It is no checkpoint, or a damaged one.
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: LoadError,
    },
}

impl fmt::Display for LoadFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadFileError::File(error) => write!(f, "{error}"),
            LoadFileError::Checkpoint { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl core::error::Error for LoadFileError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            LoadFileError::File(error) => Some(error),
            LoadFileError::Checkpoint { error, .. } => Some(error),
        }
    }
}

impl From<FileError> for LoadFileError {
    fn from(error: FileError) -> Self {
        LoadFileError::File(error)
    }
}

/// Why a run's folder cannot be had.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunFolderError {
    /// Another process holds it.
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// It could not be made, or not be locked.
    File(FileError),
}

impl fmt::Display for RunFolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunFolderError::InUse { folder } => write!(
                f,
                "another run writes to {}: wait until it ends, stop it, or choose another folder",
                folder.display()
            ),
            RunFolderError::File(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for RunFolderError {}
