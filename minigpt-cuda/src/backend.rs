//! [`Cuda`]: the [`Backend`], the same in both builds; what differs is the [`Device`] under it.

use minigpt_core::memory::{BufferTable, InvalidOp};
use minigpt_core::op::OpKind;
use minigpt_core::reference::weights::encode_half;
use minigpt_core::{Backend, Buffer, Dtype, Import, Span};

use crate::CudaError;
use crate::device::{Device, Memory};

/// A CUDA device as a [`Backend`].
///
/// Its transfers and fills are queued on one stream. It has no kernels yet: every op falls back to
/// [`minigpt_core::reference`], in f32, and [`fallbacks`](Cuda::fallbacks) counts how often.
///
/// Without the feature `cuda` this type has no values, since [`Cuda::new`] never succeeds.
#[derive(Debug)]
pub struct Cuda {
    // Before `device`, so that buffers are freed while their context lives.
    buffers: BufferTable<Memory>,
    device: Device,
    fallbacks: u64,
}

impl Cuda {
    /// Opens the device with this ordinal; the driver counts them from 0.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`] if the crate was built without the feature `cuda`, or if there is no driver or no
    /// such device. It says what to do.
    ///
    /// ```
    /// use minigpt_core::{BackendError, ErrorKind};
    /// use minigpt_cuda::Cuda;
    ///
    /// match Cuda::new(0) {
    ///     Ok(cuda) => println!("training on {}", cuda.name()),
    ///     Err(error) => {
    ///         assert_eq!(error.kind(), ErrorKind::Unavailable);
    ///         println!("{error}");
    ///     }
    /// }
    /// ```
    pub fn new(ordinal: u32) -> Result<Self, CudaError> {
        Ok(Cuda { buffers: BufferTable::new(), device: Device::open(ordinal)?, fallbacks: 0 })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Bytes of device memory that are free now: what a [`Plan`](minigpt_core::Plan) may use.
    ///
    /// # Errors
    /// [`CudaError::Driver`] if the driver does not say.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        self.device.free_bytes()
    }

    /// How many ops have fallen back to the reference since this backend was opened.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks
    }

    /// Runs an empty kernel, to see whether this driver and this device run kernels at all.
    ///
    /// Nothing else in this version launches a kernel, so a driver that cannot still trains, slowly.
    ///
    /// # Errors
    /// [`CudaError::Unsupported`] if the driver refuses launches, as the stand-in does; [`CudaError::Driver`] if the
    /// kernel cannot be loaded, for example because the device is older than compute capability 8.0.
    pub fn check_launch(&mut self) -> Result<(), CudaError> {
        self.device.check_launch()
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Nothing may be freed while queued work still uses it. An error has nowhere to go here; after one, the
        // driver runs no more of the queue.
        let _ = self.device.sync();
    }
}

impl Backend for Cuda {
    type Elem = f32;
    type Error = CudaError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, CudaError> {
        let memory = self.device.alloc(bytes)?;
        self.buffers.insert(memory).or_else(|memory| {
            self.device.release(memory)?;
            Err(InvalidOp::HostMemory { operand: "buffers", bytes: size_of::<Memory>() }.into())
        })
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), CudaError> {
        let (memory, size) = locate(&self.buffers, "to", to)?;
        same_length(size, bytes.len())?;
        self.device.write(memory, to.offset, bytes)
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), CudaError> {
        let (memory, size) = locate(&self.buffers, "from", from)?;
        same_length(size, bytes.len())?;
        self.device.read(memory, from.offset, bytes)
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), CudaError> {
        from.check_copy(&to)?;
        let (source, size) = locate(&self.buffers, "from", from)?;
        let (target, _) = locate(&self.buffers, "to", to)?;
        self.device.copy(source, from.offset, target, to.offset, size)
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), CudaError> {
        let word = match to.dtype {
            Dtype::F32 => (value as f32).to_bits(),
            Dtype::U32 if f64::from(value as u32) == value => value as u32,
            Dtype::U32 => return Err(InvalidOp::Value { operand: "value" }.into()),
            Dtype::Bf16 => {
                let (memory, _) = locate(&self.buffers, "to", to)?;
                let value = u16::from_le_bytes(encode_half(value, Dtype::Bf16));
                return self.device.fill_halves(memory, to.offset, to.len, value);
            }
            _ => {
                return Err(CudaError::Unsupported {
                    what: "CUDA fills spans of F32, Bf16 and U32 only: write the bytes of other types instead",
                });
            }
        };
        let (memory, _) = locate(&self.buffers, "to", to)?;
        self.device.fill(memory, to.offset, to.len, word)
    }

    fn sync(&mut self) -> Result<(), CudaError> {
        self.device.sync()
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), CudaError> {
        let memory = self.buffers.remove(buffer).ok_or(CudaError::NoBuffer { buffer })?;
        self.device.release(memory)
    }

    fn fell_back(&mut self, _: OpKind) {
        self.fallbacks += 1;
    }
}

impl Import<'_> for Cuda {}

/// The memory that a span lies in, and the span's size in bytes.
fn locate<'m>(
    buffers: &'m BufferTable<Memory>,
    operand: &'static str,
    span: Span,
) -> Result<(&'m Memory, usize), CudaError> {
    let memory = buffers.get(span.buffer).ok_or(CudaError::NoBuffer { buffer: span.buffer })?;
    let bytes = span.bytes().ok_or(InvalidOp::Overflow { operand })?;
    let end = span.offset.checked_add(bytes).ok_or(InvalidOp::Overflow { operand })?;
    if end > memory.len() {
        return Err(InvalidOp::OutOfBounds { operand, end, size: memory.len() }.into());
    }
    let (elements, unit) = span.dtype.unit();
    if !span.offset.is_multiple_of(if elements == 1 { unit } else { 2 }) {
        return Err(InvalidOp::Misaligned { operand, offset: span.offset }.into());
    }
    Ok((memory, bytes))
}

/// Host bytes must be exactly as long as the span.
fn same_length(span: usize, bytes: usize) -> Result<(), InvalidOp> {
    if span == bytes {
        Ok(())
    } else {
        Err(InvalidOp::Length { operand: "bytes", expected: span, found: bytes })
    }
}
