//! The calls that change a disk, behind a trait, so that tests can cut the power between any two of them.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::string::String;
use std::vec::Vec;

/// A place for files.
///
/// What is written lasts once the file is synced, and a name once its folder is. Until then a power cut may undo any
/// part of it, in any order.
pub(super) trait Disk {
    /// An open file. The lock on it, if there is one, goes when it is dropped.
    type File;

    /// A new file, locked. The error is `AlreadyExists` if this name is not to be had.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// The file of this name, or a new one, to be written to behind its end once its length is set.
    fn open(&self, path: &Path) -> io::Result<Self::File>;

    /// The file of this name, locked; nothing if its writer lives.
    fn try_lock(&self, path: &Path) -> io::Result<Option<Self::File>>;

    /// Writes where the last write ended.
    fn write(&self, file: &Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file; the next write begins there.
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;

    /// Sets who may do what with the file.
    fn set_permissions(&self, file: &Self::File, permissions: Permissions) -> io::Result<()>;

    /// Makes all that was written to the file last.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Reads a file whole.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Gives a file another name in its folder, in place of what has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a file's name away.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder last.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// All names in a folder that are text.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
}

/// The disk of this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct System;

impl Disk for System {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        match file.try_lock() {
            // On a disk without locks nobody else gets one, and so nobody takes the file for a leftover.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            // Between the two calls somebody did, and is about to remove it.
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::AlreadyExists.into()),
        }
        // Or has removed it already.
        if fs::exists(path)? { Ok(file) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        // Windows cannot cut a file that is open for appending only.
        OpenOptions::new().write(true).create(true).truncate(false).open(path)
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<File>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn set_len(&self, mut file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)?;
        file.seek(SeekFrom::Start(len)).map(|_| ())
    }

    fn set_permissions(&self, file: &File, permissions: Permissions) -> io::Result<()> {
        file.set_permissions(permissions)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let metadata = fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            // A device or a pipe has no length that would bound what is read.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let length = metadata.len();
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX))
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        File::open(path)?.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// On Unix, names are data of their folder.
    #[cfg(unix)]
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Other systems keep names with their files, or cannot open a folder.
    #[cfg(not(unix))]
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}
