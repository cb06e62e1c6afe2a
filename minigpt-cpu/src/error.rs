//! [`CpuError`]: what can go wrong here.

use alloc::string::String;
use core::fmt;

use minigpt_core::{BackendError, ErrorKind, InvalidOp};

use crate::arch::Isa;

/// An error of the CPU backend.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CpuError {
    /// An op or a transfer was described wrongly.
    Invalid(InvalidOp),
    /// An allocation failed.
    OutOfMemory {
        /// How much was asked for, in bytes.
        bytes: usize,
    },
    /// The instruction set that was asked for, by the builder, the environment or the build, is not there.
    Isa {
        /// Its name as it was given.
        asked: String,
    },
    /// An op is under bf16, and the feature `bf16` of minigpt-cpu, with the kernels of such ops, is off.
    WithoutBf16,
    /// The system refused to start a thread.
    Thread {
        /// How many threads were asked for.
        asked: usize,
    },
}

impl From<InvalidOp> for CpuError {
    fn from(error: InvalidOp) -> Self {
        CpuError::Invalid(error)
    }
}

impl BackendError for CpuError {
    fn kind(&self) -> ErrorKind {
        match self {
            CpuError::Invalid(InvalidOp::ReadOnly { .. } | InvalidOp::NoKernel) => ErrorKind::Unsupported,
            CpuError::Invalid(_) => ErrorKind::Invalid,
            CpuError::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            CpuError::Isa { .. } => ErrorKind::Unavailable,
            CpuError::WithoutBf16 => ErrorKind::Unsupported,
            CpuError::Thread { .. } => ErrorKind::Device,
        }
    }
}

impl fmt::Display for CpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuError::Invalid(error) => error.fmt(f),
            CpuError::OutOfMemory { bytes } => write!(
                f,
                "out of memory: {bytes} bytes were asked for; use a smaller batch, shorter sequences or a smaller \
                 model (a plan tells the bytes ahead)"
            ),
            CpuError::Isa { asked } => {
                write!(f, "the instruction set `{asked}` is not available; this machine has")?;
                let mut separator = " ";
                for isa in Isa::available() {
                    write!(f, "{separator}{isa}")?;
                    separator = ", ";
                }
                Ok(())
            }
            CpuError::WithoutBf16 => f.write_str(
                "the CPU backend was built without the feature `bf16` of minigpt-cpu: enable it, or use Precision::F32",
            ),
            CpuError::Thread { asked } => {
                write!(f, "the system refused to start {asked} threads: ask for fewer, or for 1")
            }
        }
    }
}

impl core::error::Error for CpuError {}
