//! The flags that the examples share.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;
use minigpt_core::checkpoint;
use minigpt_core::{Backend, Recompute, Reference};
use minigpt_cpu::Cpu;

use crate::Outcome;

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// SIMD and threads.
    Cpu,
    /// The plain loops of the specification, in f32: slow.
    Reference,
}

impl fmt::Display for BackendName {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackendName::Cpu => "cpu",
            BackendName::Reference => "reference",
        })
    }
}

/// [`Recompute`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum RecomputeName {
    /// Nothing: everything is kept.
    #[default]
    Nothing,
    /// What one pass over memory computes.
    Cheap,
    /// All but the input of each block: slower, and far less memory.
    Blocks,
}

impl From<RecomputeName> for Recompute {
    fn from(name: RecomputeName) -> Self {
        match name {
            RecomputeName::Nothing => Recompute::Nothing,
            RecomputeName::Cheap => Recompute::Cheap,
            RecomputeName::Blocks => Recompute::Blocks,
        }
    }
}

impl fmt::Display for RecomputeName {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecomputeName::Nothing => "nothing",
            RecomputeName::Cheap => "cheap",
            RecomputeName::Blocks => "blocks",
        })
    }
}

/// Something to be done on a backend that is chosen at run time.
pub trait OnBackend {
    /// What it gives.
    type Result;

    /// Does it.
    ///
    /// # Errors
    /// Whatever can go wrong.
    fn run<B: Backend>(self, backend: B) -> Outcome<Self::Result>;
}

/// Makes the backend and does `what` on it. `threads` of `None`: as many as the machine offers.
///
/// # Errors
/// If the backend cannot be made; else those of `what`.
pub fn on_backend<W: OnBackend>(name: BackendName, threads: Option<usize>, what: W) -> Outcome<W::Result> {
    match name {
        BackendName::Cpu => {
            let builder = Cpu::builder();
            let builder = match threads {
                Some(0) => return Err("--threads 0: at least one thread has to do the work".into()),
                Some(threads) => builder.threads(threads),
                None => builder,
            };
            what.run(builder.build()?)
        }
        BackendName::Reference => what.run(Reference::<f32>::new()),
    }
}

/// The bytes of a checkpoint, verified: those of a file, or of the newest whole one in the folder of a run.
///
/// # Errors
/// If there is none, or it cannot be read or is damaged.
pub fn load(path: &Path) -> Outcome<Vec<u8>> {
    let advice = "train first with the example train_shakespeare, or name a --checkpoint";
    if !path.is_dir() {
        return checkpoint::load(path).map_err(|error| format!("{error}; {advice}").into());
    }
    match checkpoint::newest(path)? {
        Some(newest) => Ok(newest.bytes),
        None => Err(format!("there is no checkpoint of a run in {}; {advice}", path.display()).into()),
    }
}

/// The largest size that is not shorter in another unit, such as `1.5 GB`.
pub fn human(bytes: usize) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}
