//! Replacing a file as one: a new file beside it is written, synced, and takes its name.

use std::ffi::OsStr;
use std::format;
use std::fs::Permissions;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::{SaveError, Write};
use super::FileError;
use super::disk::Disk;

/// Writes a file by `fill` and gives it the name `target`. Errors name the path that was `asked` for.
pub(super) fn replace<D: Disk, R>(
    disk: &D,
    asked: &Path,
    target: &Path,
    permissions: Option<Permissions>,
    fill: impl FnOnce(Sink<'_, D>) -> Result<(), SaveError<R, FileError>>,
) -> Result<(), SaveError<R, FileError>> {
    let fail = |attempt| move |error| SaveError::Write(FileError::at(asked, attempt)(error));
    let folder = folder_of(target);
    // First, because they may be what fills the disk.
    remove_leftovers(disk, folder);
    let temporary = Temporary::create(disk, folder).map_err(fail("make a new file for"))?;
    fill(Sink { asked, disk, file: &temporary.file })?;
    if let Some(permissions) = permissions {
        disk.set_permissions(&temporary.file, permissions).map_err(fail("set the permissions of"))?;
    }
    disk.sync(&temporary.file).map_err(fail("flush to the disk"))?;
    temporary.rename_to(target).map_err(fail("replace"))?;
    disk.sync_folder(folder).map_err(fail("flush to the disk the name of the saved"))
}

/// Where a path's last name stands.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != OsStr::new("") => folder,
        _ => Path::new("."),
    }
}

/// The file that is written, and the path to name in errors.
pub(super) struct Sink<'a, D: Disk> {
    asked: &'a Path,
    disk: &'a D,
    file: &'a D::File,
}

impl<D: Disk> Write for Sink<'_, D> {
    type Error = FileError;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.disk.write(self.file, bytes).map_err(FileError::at(self.asked, "write to"))
    }
}

const PREAMBLE: &str = ".minigpt-";
const SUFFIX: &str = ".tmp";

/// Removes the files of savers that were killed. Those of savers that live are locked and stay.
pub(super) fn remove_leftovers<D: Disk>(disk: &D, folder: &Path) {
    // What cannot be listed or removed harms nobody: the next saver tries again.
    for name in disk.names(folder).unwrap_or_default() {
        if is_temporary(&name) {
            let path = folder.join(name);
            if let Ok(Some(_locked)) = disk.try_lock(&path) {
                let _ = disk.remove(&path);
            }
        }
    }
}

/// Whether a saver makes files of that name: not every name that begins and ends so is ours to remove.
fn is_temporary(name: &str) -> bool {
    let numbers = name.strip_prefix(PREAMBLE).and_then(|name| name.strip_suffix(SUFFIX));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once('-')).is_some_and(|(a, b)| is_number(a) && is_number(b))
}

/// A file that is removed when this is dropped. It stays open, and so locked, until it has its last name.
struct Temporary<'a, D: Disk> {
    disk: &'a D,
    file: D::File,
    path: Option<PathBuf>,
}

impl<'a, D: Disk> Temporary<'a, D> {
    /// A file that nobody else writes to: its name holds the process, and it must be new.
    fn create(disk: &'a D, folder: &Path) -> io::Result<Self> {
        // Never the same number again: who removes leftovers may have opened the file before it got its last name, finds
        // it unlocked after that, and removes what then has its first name.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut tries = 0;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{PREAMBLE}{}-{number}{SUFFIX}", process::id()));
            match disk.create(&path) {
                Ok(file) => return Ok(Temporary { disk, file, path: Some(path) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < 1000 => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn rename_to(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            self.disk.rename(path, target)?;
        }
        self.path = None;
        Ok(())
    }
}

impl<D: Disk> Drop for Temporary<'_, D> {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The error that led here is the one to report.
            let _ = self.disk.remove(path);
        }
    }
}
