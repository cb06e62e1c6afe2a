//! Checkpoints on disk: read whole, replaced as one.

use std::ffi::OsStr;
use std::format;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process;
use std::vec::Vec;

use core::fmt;

use super::{Checkpoint, Contents, IoWriter, LoadError, SaveError, Write, write};

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

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.attempt, self.path.display(), self.error)?;
        f.write_str(match self.error.kind() {
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
            io::ErrorKind::OutOfMemory => "; free some memory, or use a smaller model",
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

impl core::error::Error for LoadFileError {}

/// Reads a file into memory and checks every byte of it. [`Checkpoint::open`] then opens what is returned.
///
/// # Errors
/// If the file cannot be read, does not fit in memory, or is not a checkpoint, whole and undamaged.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<u8>, LoadFileError> {
    let path = path.as_ref();
    let bytes = read_whole(path).map_err(|error| {
        LoadFileError::File(FileError { path: path.to_path_buf(), attempt: "read", error })
    })?;
    match Checkpoint::open_verified(&bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(LoadFileError::Checkpoint { path: path.to_path_buf(), error }),
    }
}

fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
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

/// Writes a checkpoint to a file, as one: whatever happens, the power going off included, `path` names either
/// what it named before or the new checkpoint, whole.
///
/// The bytes go to a new file in the same folder, which is flushed to the disk and then takes the name. If
/// something fails, that file is removed. A link is followed, and what it leads to is replaced. A device or a
/// pipe cannot be replaced: it is written to directly.
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
    let fail =
        |attempt| move |error| SaveError::Write(FileError { path: asked.to_path_buf(), attempt, error });
    // What is not there yet has no other path; what cannot be reached fails below.
    let target = fs::canonicalize(asked).unwrap_or_else(|_| asked.to_path_buf());
    let before = fs::metadata(&target).ok();
    if before.as_ref().is_some_and(fs::Metadata::is_dir) || target.file_name().is_none() {
        return Err(fail("write to")(io::ErrorKind::IsADirectory.into()));
    }
    if before.as_ref().is_some_and(|before| !before.is_file()) {
        let device = OpenOptions::new().write(true).open(&target).map_err(fail("open"))?;
        return write(Sink { asked, file: IoWriter(&device) }, contents, read);
    }

    let folder = match target.parent() {
        Some(folder) if folder != OsStr::new("") => folder,
        _ => Path::new("."),
    };
    let (file, temporary) = Temporary::create(folder).map_err(fail("make a new file for"))?;
    write(Sink { asked, file: IoWriter(&file) }, contents, read)?;
    if let Some(before) = before {
        file.set_permissions(before.permissions()).map_err(fail("set the permissions of"))?;
    }
    file.sync_all().map_err(fail("flush to the disk"))?;
    // Windows does not rename an open file.
    drop(file);
    temporary.rename_to(&target).map_err(fail("replace"))?;
    sync_folder(folder).map_err(fail("flush to the disk the name of the saved"))
}

/// The file that is written, and the path to name in errors.
struct Sink<'a> {
    asked: &'a Path,
    file: IoWriter<&'a File>,
}

impl Write for Sink<'_> {
    type Error = FileError;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(|error| FileError {
            path: self.asked.to_path_buf(),
            attempt: "write to",
            error,
        })
    }
}

/// A file that is removed when this is dropped.
struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    /// A file that nobody else writes to: its name holds the process, and it must be new.
    fn create(folder: &Path) -> io::Result<(File, Temporary)> {
        let mut number = 0u32;
        loop {
            let path = folder.join(format!(".minigpt-{}-{number}.tmp", process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((file, Temporary { path: Some(path) })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn rename_to(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The error that led here is the one to report.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes the new name last: on Unix, names are data of their folder.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Other systems keep names with their files, or cannot open a folder.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
