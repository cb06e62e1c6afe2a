//! [`CudaError`]: what can go wrong, and what to do about it.

use core::fmt;

use minigpt_core::memory::InvalidOp;
use minigpt_core::{BackendError, Buffer, ErrorKind};

/// An error of the CUDA backend.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaError {
    /// No CUDA device can be used here.
    Unavailable {
        /// Why not, and what to do.
        reason: String,
    },
    /// An allocation does not fit the device.
    OutOfMemory {
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes that the device has free.
        free: usize,
    },
    /// An op or a transfer was described wrongly, or its fallback needs more memory than the host has.
    Invalid(InvalidOp),
    /// No such buffer: it was released, or another backend handed it out.
    NoBuffer {
        /// The buffer.
        buffer: Buffer,
    },
    /// This backend cannot do what was asked.
    Unsupported {
        /// What was asked, and what to do instead.
        what: &'static str,
    },
    /// The driver refused a call, or work that was queued before it failed.
    Driver {
        /// What the backend was doing.
        action: &'static str,
        /// The driver's `CUresult`; 999 also stands for the codes that are newer than CUDA 11.4.
        code: u32,
        /// The name of that code.
        name: String,
    },
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: u32 = 2;

impl BackendError for CudaError {
    fn kind(&self) -> ErrorKind {
        match self {
            CudaError::Unavailable { .. } => ErrorKind::Unavailable,
            CudaError::OutOfMemory { .. }
            | CudaError::Invalid(InvalidOp::HostMemory { .. })
            | CudaError::Driver { code: OUT_OF_MEMORY, .. } => ErrorKind::OutOfMemory,
            CudaError::Invalid(_) | CudaError::NoBuffer { .. } => ErrorKind::Invalid,
            CudaError::Unsupported { .. } => ErrorKind::Unsupported,
            CudaError::Driver { .. } => ErrorKind::Device,
        }
    }
}

impl From<InvalidOp> for CudaError {
    fn from(error: InvalidOp) -> Self {
        CudaError::Invalid(error)
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaError::Unavailable { reason } => write!(f, "no CUDA device can be used: {reason}"),
            CudaError::OutOfMemory { bytes, free } => write!(
                f,
                "{bytes} bytes do not fit the CUDA device, which has {free} free: use a smaller batch or context \
                 (`TrainConfig::largest_batch` says what fits), or end other programs that use the device"
            ),
            CudaError::Invalid(error) => error.fmt(f),
            CudaError::NoBuffer { buffer } => {
                write!(f, "there is no buffer {}: it was released, or is another backend's", buffer.0)
            }
            CudaError::Unsupported { what } => f.write_str(what),
            CudaError::Driver { action, code, name } => write!(
                f,
                "the CUDA driver failed to {action}: {name} ({code}); if it happens again with a new backend, \
                 look for the device's own messages (`nvidia-smi`, the kernel's log)"
            ),
        }
    }
}

impl core::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            CudaError::Invalid(error) => Some(error),
            _ => None,
        }
    }
}
