//! Lines that a run appends while it goes on.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::vec::Vec;

use super::FileError;
use super::disk::{Disk, System};
use super::replace::folder_of;

/// A file of lines that a run appends, such as its metrics, cut back to where the run goes on.
///
/// After a power cut the end of the file may be torn, missing or arbitrary bytes, but what stood before a call of
/// [`sync`](Journal::sync) is all there. So sync, then save the checkpoint; and when resuming, keep the lines up to the
/// checkpoint's step.
///
/// ```
/// use minigpt_core::checkpoint::Journal;
/// # let path = std::env::temp_dir().join(format!("minigpt-doc-journal-{}", std::process::id()));
/// let mut journal = Journal::open(&path, |_| false)?;
/// journal.append("step 1: 3.2")?;
/// journal.append("step 2: 2.9")?;
/// journal.sync()?;
/// # drop(journal);
///
/// // A run that goes on behind step 1.
/// let mut kept = Vec::new();
/// let mut journal = Journal::open(&path, |line| {
///     let keep = line.starts_with("step 1:");
///     kept.extend(keep.then(|| line.to_string()));
///     keep
/// })?;
/// journal.append("step 2: 2.8")?;
/// assert_eq!(kept, ["step 1: 3.2"]);
/// assert_eq!(std::fs::read_to_string(&path)?, "step 1: 3.2\nstep 2: 2.8\n");
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// The lines at `path`, if there are any, as long as `keep` says so, which is asked line by line. From the first
    /// that it does not want, or that was cut off while it was written, everything is removed.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: impl AsRef<Path>, keep: impl FnMut(&str) -> bool) -> Result<Journal, FileError> {
        let path = path.as_ref();
        let file = cut(&System, path, keep).map_err(FileError::at(path, "go on with"))?;
        Ok(Journal { path: path.to_path_buf(), file })
    }

    /// Appends a line, which has no line break in it. Other processes see it at once. After an error the line may stand
    /// there in part: open the journal again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, line: &str) -> Result<(), FileError> {
        append(&System, &self.file, line).map_err(FileError::at(&self.path, "write to"))
    }

    /// Makes all lines last.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<(), FileError> {
        System.sync(&self.file).map_err(FileError::at(&self.path, "flush to the disk"))
    }
}

pub(super) fn cut<D: Disk>(disk: &D, path: &Path, mut keep: impl FnMut(&str) -> bool) -> io::Result<D::File> {
    let file = disk.open(path)?;
    let bytes = disk.read(path)?;
    let mut kept = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let text = line.strip_suffix(b"\n").and_then(|line| str::from_utf8(line).ok());
        match text {
            Some(text) if keep(text) => kept += line.len(),
            _ => break,
        }
    }
    disk.set_len(&file, kept as u64)?;
    // Else a power cut could bring old lines back behind new ones.
    disk.sync(&file)?;
    disk.sync_folder(folder_of(path))?;
    Ok(file)
}

/// In one write, so that other processes see whole lines.
pub(super) fn append<D: Disk>(disk: &D, file: &D::File, line: &str) -> io::Result<()> {
    let mut bytes = Vec::from(line);
    bytes.push(b'\n');
    disk.write(file, &bytes)
}
