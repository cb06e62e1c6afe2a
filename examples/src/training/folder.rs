//! What a run keeps on disk: the names of its files, and what its checkpoint remembers of its pace and its best.

use std::path::{Path, PathBuf};

use minigpt_core::checkpoint::{RunFolder, sync_folder};

use crate::Outcome;

/// The files of a run, which nobody else writes to.
#[derive(Debug)]
pub(super) struct Folder {
    /// The checkpoints.
    pub(super) run: RunFolder,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Outcome<Folder> {
        let run = RunFolder::open(path).map_err(|e| format!("{e}; --out names another"))?;
        Ok(Folder { run })
    }

    pub(super) fn metrics(&self) -> PathBuf {
        self.run.path().join("metrics.jsonl")
    }

    pub(super) fn curve(&self) -> PathBuf {
        self.run.path().join("loss.svg")
    }

    /// Moves the files of a run that is here already to a folder of their own, which is returned: a new run must not
    /// cost an old one.
    pub(super) fn set_earlier_run_aside(&self) -> Outcome<Option<PathBuf>> {
        // The newest first: should this end in the middle, then what is still here is a shorter run, or none.
        let mut files: Vec<PathBuf> =
            self.run.steps()?.into_iter().rev().map(|step| self.run.step_path(step)).collect();
        files.extend([self.run.best_path(), self.metrics(), self.curve()]);
        // A run that ended before its first checkpoint leaves metrics without a line.
        files.retain(|file| file.metadata().is_ok_and(|file| file.len() > 0));
        if files.is_empty() {
            return Ok(None);
        }
        let fail = |path: &Path, e: std::io::Error| {
            format!("cannot move the earlier run to {}: {e}; name another folder with --out", path.display())
        };
        for number in 1u32.. {
            let aside = self.run.path().join(format!("earlier-{number}"));
            match std::fs::create_dir(&aside) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|e| fail(&aside, e))?,
            }
            for file in files {
                if let Some(name) = file.file_name() {
                    std::fs::rename(&file, aside.join(name)).map_err(|e| fail(&aside, e))?;
                }
            }
            sync_folder(&aside)?;
            sync_folder(self.run.path())?;
            return Ok(Some(aside));
        }
        Ok(None)
    }
}

/// The best validation so far. Kept in the checkpoint's metadata, so that a resumed run knows what to beat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Best {
    pub(super) step: u32,
    pub(super) val_loss: f64,
}

impl Best {
    pub(super) fn metadata(&self) -> [(&'static str, String); 2] {
        [("best_step", self.step.to_string()), ("best_val_loss", self.val_loss.to_string())]
    }

    pub(super) fn from_metadata(metadata: &[(&str, &str)]) -> Option<Best> {
        let step = value(metadata, "best_step")?.parse().ok()?;
        Some(Best { step, val_loss: value(metadata, "best_val_loss")?.parse().ok()? })
    }
}

fn value<'a>(metadata: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    metadata.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
}

/// All that a run goes by besides the model's and the trainer's config. Kept in the checkpoint's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) iterations: u32,
    pub(super) eval_every: u32,
    pub(super) eval_batches: usize,
    pub(super) log_every: u32,
    pub(super) sample: usize,
    pub(super) corpus_sha256: String,
}

impl Pace {
    pub(super) fn metadata(&self) -> [(&'static str, String); 6] {
        [
            ("iterations", self.iterations.to_string()),
            ("eval_every", self.eval_every.to_string()),
            ("eval_batches", self.eval_batches.to_string()),
            ("log_every", self.log_every.to_string()),
            ("sample", self.sample.to_string()),
            ("corpus_sha256", self.corpus_sha256.clone()),
        ]
    }

    pub(super) fn from_metadata(metadata: &[(&str, &str)]) -> Option<Pace> {
        let value = |name| value(metadata, name);
        Some(Pace {
            iterations: value("iterations")?.parse().ok()?,
            eval_every: value("eval_every")?.parse().ok().filter(|&n| n > 0)?,
            eval_batches: value("eval_batches")?.parse().ok()?,
            log_every: value("log_every")?.parse().ok().filter(|&n| n > 0)?,
            sample: value("sample")?.parse().ok()?,
            corpus_sha256: value("corpus_sha256")?.into(),
        })
    }
}
