//! Checkpoints on disk: read whole, replaced as one; and the folder of a run that keeps several.

mod disk;
mod error;
mod journal;
mod replace;
mod run;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::vec::Vec;

use super::{Checkpoint, Contents, IoWriter, Limits, SaveError, Write, write};
use disk::{Disk, System};
use replace::{folder_of, replace};

pub use error::{FileError, LoadFileError, RunFolderError};
pub use journal::Journal;
pub use run::{Newest, RunFolder, newest, newest_path};

/// Reads a file into memory and checks every byte of it, within [`Limits::DEFAULT`]. [`Checkpoint::open`] then opens
/// what is returned.
///
/// # Errors
/// If the file cannot be read, does not fit in memory, or is not a checkpoint, whole and undamaged.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<u8>, LoadFileError> {
    load_within(path, &Limits::DEFAULT)
}

/// [`load`] within limits of the program's own. [`Checkpoint::open_within`] then opens what is returned.
///
/// # Errors
/// Also if the checkpoint is beyond a limit.
pub fn load_within(path: impl AsRef<Path>, limits: &Limits) -> Result<Vec<u8>, LoadFileError> {
    load_from(&System, path.as_ref(), limits)
}

fn load_from<D: Disk>(disk: &D, path: &Path, limits: &Limits) -> Result<Vec<u8>, LoadFileError> {
    let bytes = disk.read(path).map_err(FileError::at(path, "read"))?;
    match Checkpoint::open_within(&bytes, limits).and_then(|checkpoint| checkpoint.verify()) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(LoadFileError::Checkpoint { path: path.to_path_buf(), error }),
    }
}

/// Writes a checkpoint to a file, as one: whatever happens, the power going off included, `path` names either
/// what it named before or the new checkpoint, whole.
///
/// The bytes go to a new file in the same folder, `.minigpt-PROCESS-NUMBER.tmp`, which is flushed to the disk and
/// then takes the name. If something fails, that file is removed; those of processes that were killed are removed by
/// the next that saves in the folder. A link is followed, and what it leads to is replaced, or made if it is not there
/// yet. A device or a pipe cannot be replaced: it is written to directly.
///
/// `read` is that of [`write()`].
///
/// # Errors
/// As [`write()`]; the sink's errors say which path, and what to do.
///
/// ```
/// use minigpt_core::{Dtype, GptConfig, checkpoint::{self, Checkpoint, Contents, Role, TensorSpec}};
/// # let folder = std::env::temp_dir().join(format!("minigpt-doc-save-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let config = GptConfig::new(256, 8);
/// let tensors =
///     [TensorSpec { name: "zeros".into(), role: Role::Parameter, dtype: Dtype::F32, rows: 2, cols: 3 }];
/// let contents =
///     Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &tensors };
/// checkpoint::save(folder.join("model.mgpt"), &contents, |_, _, bytes| {
///     bytes.fill(0);
///     Ok::<(), core::convert::Infallible>(())
/// })?;
///
/// let bytes = checkpoint::load(folder.join("model.mgpt"))?;
/// let checkpoint = Checkpoint::open(&bytes)?;
/// assert_eq!(checkpoint.tensor("zeros").unwrap().bytes, [0; 24]);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save<R>(
    path: impl AsRef<Path>,
    contents: &Contents<'_>,
    read: impl FnMut(usize, usize, &mut [u8]) -> Result<(), R>,
) -> Result<(), SaveError<R, FileError>> {
    let asked = path.as_ref();
    let fail = |attempt| move |error| SaveError::Write(FileError::at(asked, attempt)(error));
    let target = target_of(asked).map_err(fail("follow the links of"))?;
    let before = fs::metadata(&target).ok();
    if before.as_ref().is_some_and(fs::Metadata::is_dir) || target.file_name().is_none() {
        return Err(fail("write to")(io::ErrorKind::IsADirectory.into()));
    }
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        let device = OpenOptions::new().write(true).open(&target).map_err(fail("open"))?;
        return write(Device { asked, device: IoWriter(device) }, contents, read);
    }
    let permissions = before.map(|before| before.permissions());
    replace(&System, asked, &target, permissions, |sink| write(sink, contents, read))
}

/// Where a path leads, also through a link to what is not there yet: such a link stands for a place, for example on
/// another disk, that the program was told to save to.
fn target_of(asked: &Path) -> io::Result<PathBuf> {
    /// As many links as Linux follows.
    const MOST: usize = 40;
    let mut path = asked.to_path_buf();
    for _ in 0..MOST {
        if let Ok(target) = fs::canonicalize(&path) {
            return Ok(target);
        }
        match fs::read_link(&path) {
            Ok(link) => path = folder_of(&path).join(link),
            // Nothing is there, or what cannot be reached, which the saving then says.
            Err(_) => return Ok(path),
        }
    }
    // In a circle: as the system says it.
    fs::canonicalize(asked)
}

/// What cannot be replaced, and the path to name in errors.
struct Device<'a> {
    asked: &'a Path,
    device: IoWriter<fs::File>,
}

impl Write for Device<'_> {
    type Error = FileError;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.device.write_all(bytes).map_err(FileError::at(self.asked, "write to"))
    }
}

/// Makes the names in a folder last: files that were made, renamed or removed there stay so when the power goes off.
/// [`save`] does this by itself.
///
/// # Errors
/// If the disk fails.
pub fn sync_folder(folder: impl AsRef<Path>) -> Result<(), FileError> {
    let folder = folder.as_ref();
    System.sync_folder(folder).map_err(FileError::at(folder, "flush to the disk"))
}
