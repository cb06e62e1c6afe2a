//! What tests of the programs share: a folder for one test, and a run of seconds in it.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;

use crate::Outcome;
use crate::training::{End, Options, Summary, train};

/// A new folder, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it.
    ///
    /// # Panics
    /// If the system has no room for it.
    #[expect(clippy::new_without_default, reason = "two are never the same")]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("minigpt-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    /// What is called `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Trains on `text`, which is then in the file `text.txt`, with these flags besides, and leaves the run in the folder
    /// `run`. It is a small model, unless the flags name one to begin with.
    ///
    /// # Errors
    /// Those of the training.
    pub fn trained(&self, text: &str, flags: &str) -> Outcome<Summary> {
        let (data, out) = (self.path("text.txt"), self.path("run"));
        fs::write(&data, text)?;
        let model =
            if flags.contains("--from") { "" } else { "--layers 1 --heads 2 --d-model 16 --context 8" };
        let words = ["train", "--batch", "2", "--sample", "0"].into_iter();
        let words = words.chain(model.split_whitespace()).chain(flags.split_whitespace()).map(OsString::from);
        let words = words.chain(["--data".into(), data.into(), "--out".into(), out.into()]);
        match train(&Options::try_parse_from(words)?, || false)? {
            End::Finished(summary) => Ok(summary),
            End::Interrupted { .. } => Err("nobody interrupts".into()),
        }
    }
}

/// Flags of a run whose validation loss falls and rises, so that its best checkpoint is not its last.
pub const PAST_ITS_BEST: &str = "--iterations 16 --lr 0.3 --warmup 0 --schedule constant --clip inf --eval-every 1 \
                                 --eval-windows 4";

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
