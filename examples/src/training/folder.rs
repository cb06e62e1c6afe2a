//! What a run keeps on disk: the names of its files, and the pace that its checkpoint remembers.

use std::path::{Path, PathBuf};

use crate::Outcome;

/// The files of a run.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn open(path: &Path) -> Outcome<Folder> {
        std::fs::create_dir_all(path).map_err(|e| {
            format!("cannot make the folder {}: {e}; name another with --out", path.display())
        })?;
        Ok(Folder(path.into()))
    }

    pub(super) fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.mgpt")
    }

    pub(super) fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    pub(super) fn curve(&self) -> PathBuf {
        self.0.join("loss.svg")
    }

    /// Moves the files of a run that is here already to a folder of their own, which is returned: a new run must not
    /// cost an old one.
    pub(super) fn set_earlier_run_aside(&self) -> Outcome<Option<PathBuf>> {
        if !self.checkpoint().exists() {
            return Ok(None);
        }
        let fail = |path: &Path, e: std::io::Error| {
            format!("cannot move the earlier run to {}: {e}; name another folder with --out", path.display())
        };
        for number in 1u32.. {
            let aside = self.0.join(format!("earlier-{number}"));
            match std::fs::create_dir(&aside) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|e| fail(&aside, e))?,
            }
            for file in [self.metrics(), self.curve(), self.checkpoint()] {
                if let (true, Some(name)) = (file.exists(), file.file_name()) {
                    std::fs::rename(&file, aside.join(name)).map_err(|e| fail(&aside, e))?;
                }
            }
            return Ok(Some(aside));
        }
        Ok(None)
    }
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
        let value = |name| metadata.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
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
