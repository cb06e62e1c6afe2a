//! The flags that the examples share.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use minigpt_core::checkpoint::{self, Checkpoint, Fault, IoReader, Limits, LoadError, Stream, StreamError};
use minigpt_core::{Backend, Dtype, Precision, Recompute, Reference};
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

/// [`Precision`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PrecisionName {
    /// Nothing is rounded.
    #[default]
    F32,
    /// Activations and copies of the weights have 16 bits: less memory.
    Bf16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Precision::F32,
            PrecisionName::Bf16 => Precision::Bf16,
        }
    }
}

impl From<Precision> for PrecisionName {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => PrecisionName::F32,
            Precision::Bf16 => PrecisionName::Bf16,
        }
    }
}

impl fmt::Display for PrecisionName {
    /// As it is written on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PrecisionName::F32 => "f32",
            PrecisionName::Bf16 => "bf16",
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

/// What a cache stores keys and values as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheName {
    /// As they are.
    F32,
    /// Rounded to 11 bits; beyond 65504 infinite.
    F16,
    /// Rounded to 8 bits.
    Bf16,
}

impl From<CacheName> for Dtype {
    fn from(name: CacheName) -> Dtype {
        match name {
            CacheName::F32 => Dtype::F32,
            CacheName::F16 => Dtype::F16,
            CacheName::Bf16 => Dtype::Bf16,
        }
    }
}

/// A checkpoint in memory, verified.
#[derive(Debug)]
pub struct Loaded {
    /// Its file.
    pub path: PathBuf,
    /// What is wrong with newer ones, which it stands in for.
    pub notes: Vec<String>,
    /// Its bytes, which [`open`] opens.
    pub bytes: Vec<u8>,
}

impl Loaded {
    /// The SHA-256 of the text that its run was trained on, if it says so.
    pub fn text_hash(&self) -> Option<String> {
        let checkpoint = open(&self.bytes).ok()?;
        let mut metadata = checkpoint.metadata().iter();
        metadata.find(|(name, _)| *name == "corpus_sha256").map(|(_, hash)| hash.to_string())
    }
}

/// A checkpoint of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// The one with the lowest validation loss.
    Best,
    /// The newest that is whole.
    Last,
}

/// The flags that name a checkpoint.
#[derive(Debug, Clone, Args)]
pub struct CheckpointOptions {
    /// What train_shakespeare saved: a file, or the folder of a run.
    #[arg(long, value_name = "PATH", default_value = "runs/shakespeare")]
    pub checkpoint: PathBuf,
    /// Which checkpoint of a run's folder (last).
    #[arg(long, value_enum)]
    pub which: Option<Which>,
}

impl CheckpointOptions {
    /// Reads the checkpoint.
    ///
    /// # Errors
    /// If there is none, or it cannot be read or is damaged.
    pub fn load(&self) -> Outcome<Loaded> {
        load_which(&self.checkpoint, self.which).map_err(|error| {
            if self.checkpoint.is_file()
                || checkpoint::newest_path(&self.checkpoint).is_ok_and(|path| path.is_some())
            {
                return error;
            }
            format!("{error}; train first with the example train_shakespeare, or name another --checkpoint")
                .into()
        })
    }
}

/// Reads a checkpoint: that of a file, or one of the folder of a run.
///
/// # Errors
/// If there is none, or it cannot be read or is damaged.
pub fn load_which(path: &Path, which: Option<Which>) -> Outcome<Loaded> {
    match (path.is_dir(), which) {
        (false, Some(_)) if path.exists() => Err(format!(
            "{} is one checkpoint: leave out --which, or name the folder of a run",
            path.display()
        )
        .into()),
        (true, Some(Which::Best)) => load_file(&best(path)?),
        (true, _) => match checkpoint::newest(path)? {
            Some(newest) => {
                let over = |damaged| format!("{damaged}\nit is passed over for {}", newest.path.display());
                let notes = newest.damaged.iter().map(over).collect();
                Ok(Loaded { path: newest.path, notes, bytes: newest.bytes })
            }
            None if best(path).is_ok() => {
                Err(format!("{} has only the best checkpoint of a run: add --which best", path.display())
                    .into())
            }
            None => Err(format!("there is no checkpoint of a run in {}", path.display()).into()),
        },
        (false, _) => load_file(path),
    }
}

/// The best checkpoint in the folder of a run.
///
/// # Errors
/// If there is none.
pub fn best(folder: &Path) -> Outcome<PathBuf> {
    let path = folder.join("best.mgpt");
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "{} is not there (a run saves it at its first validation); --which last takes another",
            path.display()
        )
        .into()),
    }
}

fn load_file(path: &Path) -> Outcome<Loaded> {
    let bytes = checkpoint::load_within(path, &Limits::NONE)?;
    Ok(Loaded { path: path.to_path_buf(), notes: Vec::new(), bytes })
}

/// Opens a checkpoint of any size. [`Limits`] are for what it makes a program do later; in their place,
/// [`memory`](crate::memory) holds what a model would take against what there is, before anything is allocated.
///
/// # Errors
/// If the bytes are no checkpoint of a model.
pub fn open(bytes: &[u8]) -> Outcome<Checkpoint<'_>> {
    let checkpoint = Checkpoint::open_within(bytes, &Limits::NONE)?;
    // Only then has the config no more layers than there are tensors for, and can be planned.
    checkpoint.parameters()?;
    Ok(checkpoint)
}

/// Refuses to save a model for use over the checkpoint that it is made of, over one from which a training can go on, or
/// over one of which that cannot be told: none of them could be had back. Of `out` only the header is read.
///
/// # Errors
/// If `out` names such a file, also by a link, or a file that cannot be read.
pub fn check_out(out: &Path, source: &Path) -> Outcome<()> {
    let same =
        fs::canonicalize(out).is_ok_and(|out| fs::canonicalize(source).is_ok_and(|source| out == source));
    let lost = match same {
        true => Some("is the checkpoint that the model is made of".into()),
        // A device is written to, and not replaced.
        false if out.is_file() => trains(out),
        false => None,
    };
    match lost {
        Some(lost) => {
            Err(format!("{} {lost}, and would be lost: name another file with --out", out.display()).into())
        }
        None => Ok(()),
    }
}

/// Why it cannot be ruled out that a training goes on from this file.
fn trains(path: &Path) -> Option<String> {
    let mut header = Vec::new();
    let file = match fs::File::open(path) {
        Ok(file) => IoReader(file),
        Err(error) => return Some(format!("cannot be read ({error})")),
    };
    match Stream::open(file, &mut header, &Limits::NONE) {
        Ok(stream) => stream.training().map(|_| "is a checkpoint from which a training can go on".into()),
        // Too short for the mark that every checkpoint begins with, or without it.
        Err(StreamError::Load(LoadError { fault: Fault::Magic, .. })) => None,
        Err(StreamError::Load(LoadError { fault: Fault::Truncated { found: 0..4, .. }, .. })) => None,
        // Another program may read it, or what remains of it.
        Err(error) => Some(format!("is a checkpoint that cannot be read ({error})")),
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

#[cfg(test)]
mod tests {
    use minigpt_core::model::Extras;
    use minigpt_core::{GptConfig, Model, TrainConfig, Trainer};

    use super::*;
    use crate::memory::check_decoding;
    use crate::testing::Scratch;

    fn model(config: &GptConfig) -> Model<Reference<f32>> {
        Model::new(Reference::new(), config.clone(), 1).unwrap()
    }

    #[test]
    fn a_model_beyond_the_limits_for_strangers_is_opened_and_one_beyond_memory_is_not_decoded() {
        let scratch = Scratch::new();
        let path = scratch.path("model.mgpt");
        for (context, fits) in [((1 << 20) + 1, true), ((1 << 32) - 1, false)] {
            let position = minigpt_core::Position::None;
            let config = GptConfig {
                layers: 1,
                heads: 1,
                d_model: 64,
                d_ff: 1,
                position,
                ..GptConfig::new(3, context)
            };
            model(&config).save(&path, &Extras::default()).unwrap();
            assert!(checkpoint::load(&path).unwrap_err().to_string().contains("its context would be"));
            let loaded = load_which(&path, None).unwrap();
            let checkpoint = open(&loaded.bytes).unwrap();
            assert_eq!(checkpoint.config().context, context);
            let checked = check_decoding(&Reference::<f32>::new(), checkpoint.config(), 1, Dtype::F32);
            // Only Linux tells how much memory there is.
            if cfg!(target_os = "linux") {
                assert_eq!(checked.is_ok(), fits, "{checked:?}");
            }
        }
    }

    #[test]
    fn what_is_no_model_is_not_opened() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 2, d_ff: 2, ..GptConfig::new(3, 2) };
        let contents = checkpoint::Contents {
            config: &config,
            tokenizer: None,
            training: None,
            metadata: &[],
            tensors: &[],
        };
        let mut bytes = Vec::new();
        checkpoint::write(&mut bytes, &contents, |_, _, _| Ok::<(), std::convert::Infallible>(())).unwrap();
        assert!(open(&bytes).unwrap_err().to_string().contains("too few"));
    }

    #[test]
    fn a_checkpoint_is_not_replaced_by_what_is_made_of_it() {
        let scratch = Scratch::new();
        let config = GptConfig { layers: 1, heads: 1, d_model: 2, d_ff: 2, ..GptConfig::new(3, 2) };
        let [source, training, plain, new] =
            ["source.mgpt", "step.mgpt", "plain.mgpt", "new.mgpt"].map(|name| scratch.path(name));
        for path in [&source, &plain] {
            model(&config).save(path, &Extras::default()).unwrap();
        }
        let settings = TrainConfig { time: 2, ..TrainConfig::constant(0.1) };
        let trainer = Trainer::new(&model(&config), settings).unwrap();
        trainer.save(&training, &Extras::default()).unwrap();
        for out in [&plain, &new] {
            check_out(out, &source).unwrap();
        }
        let refused = |out: &Path, why: &str| {
            let error = check_out(out, &source).unwrap_err().to_string();
            assert!(error.starts_with(out.to_str().unwrap()) && error.contains(why), "{error}");
            assert!(error.contains("name another file with --out"), "{error}");
        };
        refused(&source, "is the checkpoint that the model is made of");
        refused(&scratch.path("./source.mgpt"), "is the checkpoint that the model is made of");
        refused(&training, "is a checkpoint from which a training can go on");
        #[cfg(unix)]
        {
            let link = scratch.path("link");
            std::os::unix::fs::symlink("source.mgpt", &link).unwrap();
            refused(&link, "is the checkpoint that the model is made of");
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_is_not_replaced_and_any_other_file_is() {
        let scratch = Scratch::new();
        let config = GptConfig { layers: 1, heads: 1, d_model: 2, d_ff: 2, ..GptConfig::new(3, 2) };
        let [source, out] = ["source.mgpt", "out.mgpt"].map(|name| scratch.path(name));
        model(&config).save(&source, &Extras::default()).unwrap();
        let settings = TrainConfig { time: 2, ..TrainConfig::constant(0.1) };
        let mut whole = Vec::new();
        Trainer::new(&model(&config), settings).unwrap().write(&mut whole, &Extras::default()).unwrap();
        let check = |bytes: &[u8]| {
            fs::write(&out, bytes).unwrap();
            check_out(&out, &source).map_err(|error| error.to_string())
        };
        let refused = |bytes: &[u8], why: &str| {
            let error = check(bytes).unwrap_err();
            assert!(error.contains(why) && error.contains("name another file with --out"), "{error}");
        };

        let mut newer = whole.clone();
        newer[4..8].copy_from_slice(&(checkpoint::VERSION + 1).to_le_bytes());
        refused(&newer, "cannot be read (checkpoint, byte 4: format version 3 is newer");
        let header = u32::from_le_bytes(whole[8..12].try_into().unwrap()) as usize;
        for byte in 4..header {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << (byte % 8);
            refused(&damaged, "is a checkpoint that cannot be read (");
        }
        // What is left of a copy that was broken off.
        refused(&whole[..4], "is a checkpoint that cannot be read (");
        refused(&whole[..header - 1], "is a checkpoint that cannot be read (");
        refused(&whole[..whole.len() - 1], "is a checkpoint from which a training can go on");

        for other in [&b""[..], b"MGP", b"a plain text file\n", &[0xff; 100]] {
            assert_eq!(check(other), Ok(()));
        }
    }
}
