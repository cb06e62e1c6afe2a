//! What the benchmarks share: shapes, operands, interleaved timing, the machine's peaks, and the alternatives that the
//! library is held against. The benchmarks stand beside this package's manifest, and `cargo bench` runs them.

pub mod decode;
pub mod machine;
pub mod operands;
pub mod peaks;
pub mod products;
pub mod program;
pub mod rivals;
pub mod rounds;
pub mod rows;
pub mod shape;
pub mod torch;

pub use shape::Shape;

use minigpt_cpu::{Cpu, CpuError, Isa};
use minigpt_cuda::Cuda;

/// The CPU backend on every instruction set of this machine, slowest first, each with all threads.
///
/// # Errors
/// If a thread cannot be started.
pub fn cpus() -> Result<Vec<(String, Cpu<'static>)>, CpuError> {
    Isa::available()
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
