//! The device over cust. This is the only module that knows cust, so that replacing it is a matter of one file.
//!
//! Faults of cust 0.3.2 that shape it: `Stream::new` drops `NON_BLOCKING`, so the stream is an ordinary one and the
//! legacy default stream is never used beside it; `DeviceBuffer::cast` to an element of another size frees twice,
//! so buffers are bytes from first to last; `Context::new` ignores a failure to make the context current; and its
//! errors lose most codes of `cuInit`, which is therefore called directly.
//!
//! The driver may read or write pageable host memory of an asynchronous copy until the stream is synchronised
//! ("API synchronization behavior" in NVIDIA's reference of the driver API). So the caller's slices are never handed
//! to it: every transfer passes through one page-locked buffer that the device owns.

use core::fmt;
use core::ops::Range;

use cust::context::{Context, CurrentContext};
use cust::error::CudaError as DriverError;
use cust::memory::{AsyncCopyDestination, DeviceBuffer, DeviceSlice, LockedBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use cust::sys::{CUresult, cuInit};

use crate::{CudaError, forward};

/// Bytes of the page-locked buffer: large enough for the tokens of many steps, so that a training loop does not wait.
const STAGING: usize = 4 << 20;

/// An empty kernel for the oldest device that the backend's kernels are to support.
const EMPTY_KERNEL: &str = "\
.version 7.0
.target sm_80
.address_size 64
.visible .entry nothing()
{
    ret;
}
";

/// A stretch of device memory.
#[derive(Debug)]
pub(crate) struct Memory(DeviceBuffer<u8>);

impl Memory {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// `range` must lie inside: the caller has checked its spans.
    fn part(&self, range: Range<usize>) -> DeviceSlice<u8> {
        self.0.index(range)
    }
}

/// An open device: a context, a stream, and the buffer that host transfers pass through.
pub(crate) struct Device {
    name: String,
    // In the order in which they must be dropped: each needs those after it.
    staging: LockedBuffer<u8>,
    stream: Stream,
    context: Context,
    /// Bytes at the start of `staging` that queued work may still read.
    staged: usize,
}

impl Device {
    pub(crate) fn open(ordinal: u32) -> Result<Self, CudaError> {
        forward::load().map_err(|why| CudaError::Unavailable {
            reason: format!(
                "{why}; install NVIDIA's driver, name another one in {}, or choose another backend",
                forward::DRIVER_VARIABLE
            ),
        })?;
        // SAFETY: it takes no pointers, and may be called any number of times.
        match unsafe { cuInit(0) } {
            CUresult::CUDA_SUCCESS => {}
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(no_device(ordinal, 0)),
            code => {
                return Err(CudaError::Unavailable {
                    reason: format!(
                        "the driver does not start and answers {code:?} ({}); `nvidia-smi` may say more, and a \
                         restart helps after the driver was updated",
                        code as u32
                    ),
                });
            }
        }
        let count = cust::device::Device::num_devices().map_err(failed("count its devices"))?;
        if ordinal >= count {
            return Err(no_device(ordinal, count));
        }
        let device = cust::device::Device::get_device(ordinal).map_err(failed("find the device"))?;
        let name = device.name().map_err(failed("name the device"))?;
        let context = Context::new(device).map_err(failed("make a context"))?;
        CurrentContext::set_current(&context).map_err(failed("enter its context"))?;
        let stream = Stream::new(StreamFlags::DEFAULT, None).map_err(failed("make a stream"))?;
        let staging = LockedBuffer::new(&0, STAGING).map_err(failed("lock host memory"))?;
        Ok(Device { name, staging, stream, context, staged: 0 })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn free_bytes(&self) -> Result<usize, CudaError> {
        self.enter()?;
        let (free, _) = cust::memory::mem_get_info().map_err(failed("tell its free memory"))?;
        Ok(free)
    }

    /// New memory, all zero.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<Memory, CudaError> {
        self.enter()?;
        // SAFETY: the memory is zeroed below, in stream order before anything else can touch it.
        let buffer = match unsafe { DeviceBuffer::<u8>::uninitialized(bytes) } {
            Ok(buffer) => buffer,
            Err(DriverError::OutOfMemory) => {
                return Err(CudaError::OutOfMemory { bytes, free: self.free_bytes().unwrap_or(0) });
            }
            Err(error) => return Err(failed("allocate")(error)),
        };
        // SAFETY: the slice is the whole of a live allocation, which is freed after a synchronisation only.
        unsafe { buffer.index(..).set_8_async(0, &self.stream) }.map_err(failed("clear new memory"))?;
        Ok(Memory(buffer))
    }

    pub(crate) fn release(&mut self, memory: Memory) -> Result<(), CudaError> {
        self.sync()?;
        DeviceBuffer::drop(memory.0).map_err(|(error, _)| failed("free memory")(error))
    }

    pub(crate) fn write(&mut self, to: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        self.enter()?;
        let mut done = 0;
        while done < bytes.len() {
            if self.staged == STAGING {
                self.sync()?;
            }
            let len = (bytes.len() - done).min(STAGING - self.staged);
            let staged = self.staged..self.staged + len;
            self.staged += len;
            self.staging[staged.clone()].copy_from_slice(&bytes[done..done + len]);
            let mut target = to.part(offset + done..offset + done + len);
            // SAFETY: `staged` keeps this part of the staging buffer untouched until a synchronisation, and the
            // target is freed after one only.
            unsafe { target.async_copy_from(&self.staging[staged], &self.stream) }
                .map_err(failed("copy to the device"))?;
            done += len;
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.sync()?;
        let mut offset = offset;
        for chunk in bytes.chunks_mut(STAGING) {
            let source = from.part(offset..offset + chunk.len());
            let stage = &mut self.staging[..chunk.len()];
            // SAFETY: nothing reads or writes the staging buffer before the synchronisation below; if that fails,
            // the buffer still lives as long as the context.
            unsafe { source.async_copy_to(stage, &self.stream) }.map_err(failed("copy to the host"))?;
            self.staged = chunk.len();
            self.sync()?;
            chunk.copy_from_slice(&self.staging[..chunk.len()]);
            offset += chunk.len();
        }
        Ok(())
    }

    pub(crate) fn copy(
        &mut self,
        from: &Memory,
        from_offset: usize,
        to: &Memory,
        to_offset: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        self.enter()?;
        let source = from.part(from_offset..from_offset + bytes);
        let mut target = to.part(to_offset..to_offset + bytes);
        // SAFETY: both are parts of live allocations, do not overlap, and are freed after a synchronisation only.
        unsafe { target.async_copy_from(&source, &self.stream) }.map_err(failed("copy on the device"))
    }

    /// Sets `words` 32-bit words from `offset` on. The offset is a multiple of 4, as allocations are of 256.
    pub(crate) fn fill(
        &mut self,
        to: &Memory,
        offset: usize,
        words: usize,
        value: u32,
    ) -> Result<(), CudaError> {
        self.enter()?;
        let mut target = to.part(offset..offset + 4 * words);
        // SAFETY: the target is part of a live allocation, which is freed after a synchronisation only.
        unsafe { target.set_32_async(value, &self.stream) }.map_err(failed("fill memory"))
    }

    /// Sets `halves` 16-bit words from `offset` on, which is even.
    pub(crate) fn fill_halves(
        &mut self,
        to: &Memory,
        offset: usize,
        halves: usize,
        value: u16,
    ) -> Result<(), CudaError> {
        self.enter()?;
        let mut target = to.part(offset..offset + 2 * halves);
        // SAFETY: as in `fill`.
        unsafe { target.set_16_async(value, &self.stream) }.map_err(failed("fill memory"))
    }

    pub(crate) fn sync(&mut self) -> Result<(), CudaError> {
        self.enter()?;
        self.stream.synchronize().map_err(failed("finish the work that was queued"))?;
        self.staged = 0;
        Ok(())
    }

    pub(crate) fn check_launch(&mut self) -> Result<(), CudaError> {
        self.enter()?;
        let module = Module::from_ptx(EMPTY_KERNEL, &[]).map_err(failed("load a kernel"))?;
        let kernel = module.get_function("nothing").map_err(failed("find a kernel"))?;
        let stream = &self.stream;
        // SAFETY: the kernel takes no arguments and touches no memory; the synchronisation below comes before the
        // module is unloaded.
        match unsafe { cust::launch!(kernel<<<1, 1, 0, stream>>>()) } {
            Ok(()) => self.sync(),
            Err(DriverError::NotSupported) => Err(CudaError::Unsupported {
                what: "this CUDA driver refuses to launch kernels: it is a stand-in without a device, so run where \
                       NVIDIA's driver is installed, or choose another backend",
            }),
            Err(error) => Err(failed("launch a kernel")(error)),
        }
    }

    /// Makes the context current: it is so per thread, and the backend may have moved.
    fn enter(&self) -> Result<(), CudaError> {
        CurrentContext::set_current(&self.context).map_err(failed("enter its context"))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("staged", &self.staged)
            .finish_non_exhaustive()
    }
}

fn no_device(ordinal: u32, count: u32) -> CudaError {
    CudaError::Unavailable {
        reason: format!(
            "there is no device {ordinal}, the driver sees {count}; they count from 0, `nvidia-smi -L` lists them and \
             CUDA_VISIBLE_DEVICES can hide them"
        ),
    }
}

/// Turns a refusal of the driver into this crate's error.
///
/// Its own text is not asked for: cust's `Display` calls the driver and panics when that fails.
fn failed(action: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { action, code: error as u32, name: format!("{error:?}") }
}
