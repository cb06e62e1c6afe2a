//! The folder of a training run: one writer, the last checkpoints, and the best one.

use std::format;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::string::String;
use std::vec::Vec;

use super::super::{Fault, Limits};
use super::disk::{Disk, System};
use super::replace::{folder_of, remove_leftovers};
use super::{FileError, LoadFileError, RunFolderError, load_from};

/// A run's folder, held by one process: while this lives, another that opens the folder is refused. The system gives
/// the folder free when the process ends, however it ends.
///
/// | name | what |
/// |---|---|
/// | `step-0000000250.mgpt` | the checkpoint behind step 250: ten digits, so that names sort as steps do |
/// | `best.mgpt` | the checkpoint with the lowest validation loss, if the program saves one |
/// | `step-0000000250.mgpt.damaged` | a checkpoint that [`newest`](RunFolder::newest) found damaged; then `.damaged-2`, and so on |
/// | `.minigpt.lock` | what is locked: empty, and it stays |
/// | `.minigpt-1234-0.tmp` | a file that process 1234 is writing, or was when it was killed: then the next who opens the folder or saves in it removes the file |
///
/// A power cut at any moment leaves every checkpoint whole if the program goes through each of its steps in this order:
/// [`Journal::sync`](super::Journal::sync), save the best, save the step's, [`keep_last`](RunFolder::keep_last). Then
/// the journal has all lines up to the newest checkpoint, and the best is at least as good as that one knows.
///
/// ```
/// use minigpt_core::checkpoint::{RunFolder, RunFolderError};
/// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows, model::Extras};
/// # let path = std::env::temp_dir().join(format!("minigpt-doc-run-{}", std::process::id()));
/// let folder = RunFolder::open(&path)?;
/// assert!(matches!(RunFolder::open(&path), Err(RunFolderError::InUse { .. })));
///
/// let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let mut trainer = Trainer::new(&model, TrainConfig { batch: 1, time: 2, ..TrainConfig::constant(0.1) })?;
/// for step in 1..=4 {
///     trainer.step(&Windows::new(&[0u32, 1, 2, 0, 1, 2], 2)?)?;
///     trainer.save(folder.step_path(step), &Extras::default())?;
///     folder.keep_last(step, 2)?;
/// }
/// assert_eq!(folder.steps()?, [3, 4]);
/// assert_eq!(folder.newest()?.unwrap().step, 4);
/// # std::fs::remove_dir_all(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The lock is this open file's.
    _lock: File,
}

const LOCK: &str = ".minigpt.lock";

impl RunFolder {
    /// Makes the folder if there is none, takes it for this process, and removes what killed savers left in it.
    ///
    /// # Errors
    /// If another process or another part of this one holds it, or the system refuses.
    pub fn open(path: impl AsRef<Path>) -> Result<RunFolder, RunFolderError> {
        let path = path.as_ref();
        let fail = |attempt| move |error| RunFolderError::File(FileError::at(path, attempt)(error));
        make_folder(path).map_err(fail("make the folder"))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(fail("write in the folder"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunFolderError::InUse { folder: path.to_path_buf() });
            }
            Err(TryLockError::Error(error)) => return Err(fail("lock the folder")(error)),
        }
        remove_leftovers(&System, path);
        Ok(RunFolder { path: path.to_path_buf(), _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the checkpoint behind `step` belongs.
    pub fn step_path(&self, step: u32) -> PathBuf {
        self.path.join(step_name(step))
    }

    /// Where the best checkpoint belongs.
    pub fn best_path(&self) -> PathBuf {
        self.path.join("best.mgpt")
    }

    /// The steps whose checkpoints are here, the earliest first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn steps(&self) -> Result<Vec<u32>, FileError> {
        steps(&System, &self.path)
    }

    /// The newest checkpoint that is whole, as [`newest`] finds it. Those that are damaged get `.damaged` behind their
    /// names, or the first of `.damaged-2`, `.damaged-3` and so on that is free: nobody counts them again, and nothing
    /// is lost.
    ///
    /// # Errors
    /// As [`newest`].
    pub fn newest(&self) -> Result<Option<Newest>, LoadFileError> {
        let found = newest(&self.path)?;
        for damaged in found.iter().flat_map(|newest| &newest.damaged) {
            if let LoadFileError::Checkpoint { path, .. } = damaged {
                let renamed = name_aside(path).and_then(|aside| System.rename(path, &aside));
                renamed.map_err(FileError::at(path, "set aside"))?;
            }
        }
        Ok(found)
    }

    /// Removes checkpoints of steps before `step`, which has been saved, until `count` are left, its own included. It
    /// leaves those of later steps alone, and always that of `step`.
    ///
    /// # Errors
    /// If the folder cannot be read, or a file not be removed.
    pub fn keep_last(&self, step: u32, count: usize) -> Result<(), FileError> {
        keep_last(&System, &self.path, step, count)
    }
}

/// A checkpoint of a run.
#[derive(Debug)]
pub struct Newest {
    /// The step that it stands behind.
    pub step: u32,
    /// Its file.
    pub path: PathBuf,
    /// Its bytes, verified: [`Checkpoint::open_within`](super::super::Checkpoint::open_within) opens them within
    /// [`Limits::NONE`].
    pub bytes: Vec<u8>,
    /// What is wrong with the newer ones, the newest first.
    pub damaged: Vec<LoadFileError>,
}

/// The newest checkpoint in the folder of a run that is whole. A run may be writing to the folder.
///
/// A run writes these files itself, so they are read within [`Limits::NONE`].
///
/// Of `step-….mgpt`, one that is damaged is passed over for the one before: training on from there gives the same
/// bits, later. One that cannot be read, or that a newer version of this library wrote, is an error instead, because it
/// may be good.
///
/// # Errors
/// If the folder or a checkpoint cannot be read, or all are damaged: then it is the newest one's error.
pub fn newest(folder: impl AsRef<Path>) -> Result<Option<Newest>, LoadFileError> {
    newest_on(&System, folder.as_ref())
}

/// The newest checkpoint of a run by its name: whether it is whole is known to who reads it.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest_path(folder: impl AsRef<Path>) -> Result<Option<PathBuf>, FileError> {
    let folder = folder.as_ref();
    Ok(steps(&System, folder)?.last().map(|&step| folder.join(step_name(step))))
}

pub(super) fn newest_on<D: Disk>(disk: &D, folder: &Path) -> Result<Option<Newest>, LoadFileError> {
    let mut damaged = Vec::new();
    for step in steps(disk, folder)?.into_iter().rev() {
        let path = folder.join(step_name(step));
        match load_from(disk, &path, &Limits::NONE) {
            Ok(bytes) => return Ok(Some(Newest { step, path, bytes, damaged })),
            // Its run has replaced it by newer ones since the folder was read.
            Err(LoadFileError::File(error)) if error.error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if is_damage(&error) => damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    match damaged.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(None),
    }
}

/// Whether the bytes are at fault, and not this program or machine.
fn is_damage(error: &LoadFileError) -> bool {
    match error {
        LoadFileError::File(_) => false,
        LoadFileError::Checkpoint { error, .. } => !matches!(
            error.fault,
            Fault::Version { found: 1.. } | Fault::UnknownSection { .. } | Fault::OutOfMemory { .. }
        ),
    }
}

pub(super) fn steps<D: Disk>(disk: &D, folder: &Path) -> Result<Vec<u32>, FileError> {
    let names = disk.names(folder).map_err(FileError::at(folder, "read the folder"))?;
    let mut steps: Vec<u32> = names.iter().filter_map(|name| step_of(name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

pub(super) fn keep_last<D: Disk>(disk: &D, folder: &Path, step: u32, count: usize) -> Result<(), FileError> {
    let mut earlier = steps(disk, folder)?;
    earlier.retain(|&other| other < step);
    let removed = earlier.len().saturating_sub(count.saturating_sub(1));
    for step in &earlier[..removed] {
        let path = folder.join(step_name(*step));
        disk.remove(&path).map_err(FileError::at(&path, "remove"))?;
    }
    Ok(())
}

pub(super) fn step_name(step: u32) -> String {
    format!("step-{step:010}.mgpt")
}

/// A name for what is damaged that nothing else has. Nobody takes it meanwhile: the folder is this process's.
fn name_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1u64;
    loop {
        let mut name = path.as_os_str().to_os_string();
        name.push(".damaged");
        if number > 1 {
            name.push(format!("-{number}"));
        }
        match fs::symlink_metadata(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(name.into()),
            Err(error) => return Err(error),
            Ok(_) => number += 1,
        }
    }
}

fn step_of(name: &str) -> Option<u32> {
    let step = name.strip_prefix("step-")?.strip_suffix(".mgpt")?.parse().ok()?;
    // Digits in another number, or a sign, are no name of ours.
    (step_name(step) == name).then_some(step)
}

/// Makes a folder that lasts: its name is data of the folder above.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder_of(path);
    if above != path {
        make_folder(above)?;
    }
    match fs::create_dir(path) {
        // Somebody else made it meanwhile, or it is something else.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !path.is_dir() {
                return Err(io::ErrorKind::NotADirectory.into());
            }
        }
        made => made?,
    }
    System.sync_folder(above)
}
