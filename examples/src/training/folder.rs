//! What a run keeps on disk: the names of its files, and what its checkpoint remembers of its pace and its best.

use std::path::{Path, PathBuf};

use minigpt_core::checkpoint::{RunFolder, sync_folder};

use crate::{Outcome, corpus};

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

    /// The average of the weights, as a model.
    pub(super) fn average(&self) -> PathBuf {
        self.run.path().join("average.mgpt")
    }

    pub(super) fn curve(&self) -> PathBuf {
        self.run.path().join("loss.svg")
    }

    /// Moves the files of a run that is here already to a folder of their own, which is returned: a new run must not
    /// cost an old one.
    pub(super) fn set_earlier_run_aside(&self) -> Outcome<Option<PathBuf>> {
        let mut files = self.steps_from(0)?;
        files.extend([self.run.best_path(), self.average(), self.metrics(), self.curve()]);
        files.push(corpus::path_in(self.run.path()));
        self.set_aside(files)
    }

    /// Moves the checkpoints of steps behind `step` to a folder of their own, which is returned: the run goes on from
    /// `step`, and must not take them for its own.
    pub(super) fn set_later_aside(&self, step: u32) -> Outcome<Option<PathBuf>> {
        let later = step.checked_add(1).map_or(Ok(Vec::new()), |first| self.steps_from(first))?;
        self.set_aside(self.with_average(later))
    }

    /// Moves the checkpoints of `step` and later ones to a folder of their own, which is returned: their weights are
    /// broken, and no run should go on from them. The best goes with them if it is one of them.
    pub(super) fn set_broken_aside(&self, step: u32, best: Option<Best>) -> Outcome<Option<PathBuf>> {
        let mut files = self.steps_from(step)?;
        if best.is_some_and(|best| best.step >= step) {
            files.push(self.run.best_path());
        }
        self.set_aside(self.with_average(files))
    }

    /// Moves the average to a folder of its own, which is returned: the run has none any more, and this one is of weights of
    /// before.
    pub(super) fn set_average_aside(&self) -> Outcome<Option<PathBuf>> {
        self.set_aside(vec![self.average()])
    }

    /// These files, if there are any, and the average before them: it is of the end that the run had with them.
    fn with_average(&self, mut files: Vec<PathBuf>) -> Vec<PathBuf> {
        if !files.is_empty() {
            files.insert(0, self.average());
        }
        files
    }

    /// The checkpoints of `first` and later steps, the newest first: should moving them end in the middle, then what is
    /// still here is a shorter run, or none.
    fn steps_from(&self, first: u32) -> Outcome<Vec<PathBuf>> {
        let steps = self.run.steps()?.into_iter().rev().take_while(|&step| step >= first);
        Ok(steps.map(|step| self.run.step_path(step)).collect())
    }

    fn set_aside(&self, mut files: Vec<PathBuf>) -> Outcome<Option<PathBuf>> {
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
pub struct Best {
    /// Steps finished.
    pub step: u32,
    /// The mean loss over its windows, in nats per token.
    pub val_loss: f64,
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
    /// 0: never but at the end.
    pub(super) eval_every: u32,
    /// 0: all.
    pub(super) eval_windows: usize,
    /// 0: without end.
    pub(super) patience: u32,
    /// 0: never.
    pub(super) log_every: u32,
    /// 0: none.
    pub(super) sample: usize,
}

impl Pace {
    pub(super) fn metadata(&self) -> [(&'static str, String); 6] {
        [
            ("iterations", self.iterations.to_string()),
            ("eval_every", self.eval_every.to_string()),
            ("eval_windows", self.eval_windows.to_string()),
            ("patience", self.patience.to_string()),
            ("log_every", self.log_every.to_string()),
            ("sample", self.sample.to_string()),
        ]
    }

    /// The pace of a run with this `batch`.
    pub(super) fn from_metadata(metadata: &[(&str, &str)], batch: usize) -> Option<Pace> {
        let value = |name| value(metadata, name);
        // Earlier versions of this program counted validations in batches, and had no patience.
        let eval_windows = match value("eval_windows") {
            Some(windows) => windows.parse().ok()?,
            None => value("eval_batches")?.parse::<usize>().ok()?.saturating_mul(batch),
        };
        Some(Pace {
            iterations: value("iterations")?.parse().ok()?,
            eval_every: value("eval_every")?.parse().ok()?,
            eval_windows,
            patience: value("patience").map_or(Some(0), |patience| patience.parse().ok())?,
            log_every: value("log_every")?.parse().ok()?,
            sample: value("sample")?.parse().ok()?,
        })
    }
}

/// The SHA-256 of the text that a run is on. Kept in the checkpoint's metadata.
pub(super) fn text_of(metadata: &[(&str, &str)]) -> Option<String> {
    value(metadata, "corpus_sha256").map(Into::into)
}

/// How many tokens of it train. Kept in the checkpoint's metadata since runs can choose.
pub(super) fn training_tokens(metadata: &[(&str, &str)]) -> Option<usize> {
    value(metadata, "training_tokens")?.parse().ok()
}
