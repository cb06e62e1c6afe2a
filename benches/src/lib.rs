//! What the benchmarks share. They stand beside this package's manifest, and `cargo bench` runs them.

use minigpt_core::GptConfig;
use minigpt_cpu::{Cpu, CpuError, Isa};
use minigpt_cuda::Cuda;

/// A model and the batch that it is trained with.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What the benchmarks call it.
    pub name: &'static str,
    /// The model.
    pub config: GptConfig,
    /// Sequences in a batch (B).
    pub batch: usize,
    /// Tokens in a sequence (T).
    pub time: usize,
}

impl Shape {
    /// So small that fixed costs show: 2 layers, 4 heads, width 64, context 32, batch 4.
    pub fn tiny() -> Self {
        let config = GptConfig { layers: 2, d_model: 64, d_ff: 256, ..GptConfig::new(65, 32) };
        Shape { name: "tiny", config, batch: 4, time: 32 }
    }

    /// S, the `cpu` preset of the training example: 4 layers, 4 heads, width 128, context 64, batch 12.
    pub fn small() -> Self {
        Shape { name: "S", config: GptConfig::new(65, 64), batch: 12, time: 64 }
    }
}

/// The CPU backend on plain Rust and on the fastest instruction set of this machine, each with all threads.
///
/// # Errors
/// If a thread cannot be started.
pub fn cpus() -> Result<Vec<(String, Cpu<'static>)>, CpuError> {
    // Slowest first; a machine may have nothing but the portable one.
    let all: Vec<Isa> = Isa::available().collect();
    let mut chosen = vec![Isa::Portable];
    chosen.extend(all.last().filter(|&&isa| isa != Isa::Portable));
    chosen
        .into_iter()
        .map(|isa| Ok((format!("cpu {}", isa.name()), Cpu::builder().isa(isa).build()?)))
        .collect()
}

/// Why no CUDA numbers stand beside the others.
pub fn about_cuda() -> String {
    match Cuda::new(0) {
        Ok(cuda) => format!("cuda is not measured: {} is here, but there are no kernels yet", cuda.name()),
        Err(error) => format!("cuda is not measured: {error}"),
    }
}
