//! How long it takes until a file of 100 MB, mapped into memory, is a model that can run, and what that takes of the
//! heap: `cargo bench -p minigpt-benches --bench open`. The targets are a millisecond and 64 KiB.
//!
//! The backend is made before, and no weight is read: the system brings in a page when the first token needs it.

#[path = "../minigpt-core/tests/support/heap.rs"]
mod heap;

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use minigpt_benches::program::Flags;
use minigpt_benches::rounds::median;
use minigpt_core::checkpoint::{self, Contents, TensorSpec};
use minigpt_core::{Checkpoint, Dtype, GptConfig, Model, Plan};
use minigpt_cpu::Cpu;
use minigpt_examples::mapped;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A file that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a model of zeros: 12 layers, 12 heads, 420 wide in a benchmark, 25 million parameters.
fn write(path: &Path, flags: &Flags) -> Outcome<()> {
    let width = if flags.bench { 420 } else { 12 };
    let config =
        GptConfig { layers: 12, heads: 12, d_model: width, d_ff: 4 * width, ..GptConfig::new(256, 256) };
    let plan = Plan::smallest(&config, Dtype::F32)?;
    let tensors = TensorSpec::parameters(&plan);
    let contents =
        Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &tensors };
    checkpoint::save(path, &contents, |_, _, bytes| {
        bytes.fill(0);
        Ok::<(), Infallible>(())
    })?;
    Ok(())
}

/// Opens the file, and says how many seconds that took and how many bytes of heap.
fn open(path: &Path) -> Outcome<(f64, usize)> {
    let cpu = Cpu::builder().threads(1).build()?;
    let (heap, opened) = heap::peak(|| -> Outcome<(f64, usize)> {
        let begun = Instant::now();
        let bytes = mapped(path)?;
        let model = Model::borrow(cpu, &Checkpoint::open(&bytes)?)?;
        Ok((begun.elapsed().as_secs_f64(), model.copied_bytes()))
    });
    match opened? {
        (seconds, 0) => Ok((seconds, heap)),
        (_, copied) => Err(format!("{copied} bytes were copied").into()),
    }
}

fn main() -> Outcome<()> {
    let flags = Flags::parse();
    flags.begin();
    let scratch =
        Scratch(std::env::temp_dir().join(format!("minigpt-bench-open-{}.mgpt", std::process::id())));
    write(&scratch.0, &flags)?;
    let (mut times, mut heap) = (Vec::new(), 0);
    for _ in 0..10 * flags.rounds() {
        let (seconds, bytes) = open(&scratch.0)?;
        times.push(seconds);
        heap = heap.max(bytes);
    }
    println!(
        "{:.1} MB opened by mmap: median {:.3} ms of {} times, {:.1} KiB of heap",
        fs::metadata(&scratch.0)?.len() as f64 / 1e6,
        median(&times) * 1e3,
        times.len(),
        heap as f64 / 1024.0
    );
    Ok(())
}
