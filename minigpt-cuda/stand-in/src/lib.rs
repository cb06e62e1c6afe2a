//! A CUDA driver without a device, for the tests of minigpt-cuda.
//!
//! It exports those functions of the driver API that minigpt-cuda forwards, and does what the API's reference allows,
//! at its worst:
//!
//! - Device memory lives on the host but under addresses that the host cannot use, and it starts as garbage. Every
//!   range is checked against its allocation.
//! - Work that is asynchronous runs only when its stream is synchronised. Host memory of a copy is read or written
//!   then, and device memory that was freed before is an error then, so that a synchronisation that is missing shows.
//! - Every call but a few needs a context that is current on the calling thread.
//! - Kernels are loaded unseen and never run: `cuLaunchKernel` answers `CUDA_ERROR_NOT_SUPPORTED`.
//!
//! Two environment variables steer it, read on first use: `MINIGPT_STAND_IN_MEMORY` is the size of its memory in bytes
//! (1 GiB if unset), and `MINIGPT_STAND_IN_FAIL` lists calls that answer a code and do nothing, as in
//! `cuInit=100,cuStreamSynchronize=700`.
//!
//! What it does not have: the default stream, several devices, several contexts, events, and time.

#![allow(non_snake_case, reason = "the driver's own names")]
// The contracts are those of the driver API.
#![allow(clippy::missing_safety_doc)]

mod machine;

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::ptr;
use std::sync::{LazyLock, Mutex, PoisonError};

use machine::{
    INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE, Machine, NOT_INITIALIZED, NOT_SUPPORTED,
    SUCCESS, Status, Work,
};

/// `CUdevice`
type Ordinal = c_int;
/// `CUdeviceptr`
type Address = c_ulonglong;
/// `CUcontext`, `CUstream`, `CUmodule` and `CUfunction`
type Handle = *mut c_void;

const NAME: &[u8] = b"minigpt stand-in (no device)\0";
const CONTEXT: usize = 1;
const MODULE: usize = 2;
const FUNCTION: usize = 3;

// The interface that is stood in for is global, and its current context is the thread's.
static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(|| Mutex::new(Machine::new()));
thread_local!(static CURRENT: Cell<bool> = const { Cell::new(false) });

/// Runs a call that needs no context.
fn anywhere(name: &str, call: impl FnOnce(&mut Machine) -> Result<(), Status>) -> Status {
    let mut machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = machine.told_to_fail(name) {
        return code;
    }
    if !machine.initialised && name != "cuInit" {
        return NOT_INITIALIZED;
    }
    call(&mut machine).err().unwrap_or(SUCCESS)
}

/// Runs a call that needs a context.
fn inside(name: &str, call: impl FnOnce(&mut Machine) -> Result<(), Status>) -> Status {
    anywhere(name, |machine| {
        if !CURRENT.get() || machine.retained == 0 {
            return Err(INVALID_CONTEXT);
        }
        call(machine)
    })
}

/// Answers through a pointer.
///
/// # Safety
/// `to` is null or may be written.
unsafe fn answer<T>(to: *mut T, value: T) -> Result<(), Status> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: it is not null, and so may be written.
    unsafe { to.write(value) };
    Ok(())
}

fn handle(value: usize) -> Handle {
    ptr::without_provenance_mut(value)
}

fn only_device(device: Ordinal) -> Result<(), Status> {
    if device == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// Starts the driver.
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> Status {
    anywhere("cuInit", |machine| {
        machine.initialised = true;
        if flags == 0 { Ok(()) } else { Err(INVALID_VALUE) }
    })
}

/// There is one device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: the caller's promise.
    anywhere("cuDeviceGetCount", |_| unsafe { answer(count, 1) })
}

/// Its number is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut Ordinal, ordinal: c_int) -> Status {
    anywhere("cuDeviceGet", |_| {
        only_device(ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { answer(device, 0) }
    })
}

/// Its name says what it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: Ordinal) -> Status {
    anywhere("cuDeviceGetName", |_| {
        only_device(device)?;
        if name.is_null() || usize::try_from(len).map_err(|_| INVALID_VALUE)? < NAME.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: by the caller's promise there are `len` bytes, and the name fits them.
        unsafe { ptr::copy_nonoverlapping(NAME.as_ptr(), name.cast(), NAME.len()) };
        Ok(())
    })
}

/// Makes the one context, or counts one more user of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: Ordinal) -> Status {
    anywhere("cuDevicePrimaryCtxRetain", |machine| {
        only_device(device)?;
        // SAFETY: the caller's promise.
        unsafe { answer(context, handle(CONTEXT)) }?;
        machine.retained += 1;
        Ok(())
    })
}

/// Counts one user of the context less; after the last, all that belongs to it is gone.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: Ordinal) -> Status {
    anywhere("cuDevicePrimaryCtxRelease_v2", |machine| {
        only_device(device)?;
        machine.retained = machine.retained.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if machine.retained == 0 {
            machine.reset();
        }
        Ok(())
    })
}

/// Makes a context current on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    anywhere("cuCtxSetCurrent", |machine| {
        if !context.is_null() && (context.addr() != CONTEXT || machine.retained == 0) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.set(!context.is_null());
        Ok(())
    })
}

/// Tells the memory's size and what is left of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    inside("cuMemGetInfo_v2", |machine| {
        // SAFETY: the caller's promise, for both.
        unsafe {
            answer(free, machine.free)?;
            answer(total, machine.total)
        }
    })
}

/// Allocates device memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut Address, bytes: usize) -> Status {
    inside("cuMemAlloc_v2", |machine| {
        let new = machine.allocate(bytes)?;
        // SAFETY: the caller's promise.
        unsafe { answer(address, new) }
    })
}

/// Frees device memory, without waiting for work that uses it.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: Address) -> Status {
    inside("cuMemFree_v2", |machine| machine.release(address))
}

/// Allocates page-locked host memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(host: *mut *mut c_void, bytes: usize) -> Status {
    inside("cuMemAllocHost_v2", |machine| {
        let new = machine.allocate_host(bytes)?;
        // SAFETY: the caller's promise.
        unsafe { answer(host, new) }
    })
}

/// Finishes all work and frees page-locked host memory.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(host: *mut c_void) -> Status {
    inside("cuMemFreeHost", |machine| machine.release_host(host))
}

/// Queues a copy from the host; the host's memory is read when it runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: Address,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> Status {
    inside("cuMemcpyHtoDAsync_v2", |machine| {
        machine.queue(stream.addr(), Work::ToDevice { to, from: from.expose_provenance(), bytes })
    })
}

/// Queues a copy to the host; the host's memory is written when it runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: Address,
    bytes: usize,
    stream: Handle,
) -> Status {
    inside("cuMemcpyDtoHAsync_v2", |machine| {
        machine.queue(stream.addr(), Work::ToHost { to: to.expose_provenance(), from, bytes })
    })
}

/// Queues a copy on the device.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: Address, from: Address, bytes: usize, stream: Handle) -> Status {
    inside("cuMemcpyDtoDAsync_v2", |machine| machine.queue(stream.addr(), Work::Copy { to, from, bytes }))
}

/// Queues setting bytes.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: Address, value: c_uchar, count: usize, stream: Handle) -> Status {
    inside("cuMemsetD8Async", |machine| {
        machine.queue(stream.addr(), Work::Fill { to, word: vec![value], count })
    })
}

/// Queues setting 16-bit words.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD16Async(to: Address, value: c_ushort, count: usize, stream: Handle) -> Status {
    inside("cuMemsetD16Async", |machine| {
        machine.queue(stream.addr(), Work::Fill { to, word: value.to_ne_bytes().to_vec(), count })
    })
}

/// Queues setting 32-bit words.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(to: Address, value: c_uint, count: usize, stream: Handle) -> Status {
    inside("cuMemsetD32Async", |machine| {
        machine.queue(stream.addr(), Work::Fill { to, word: value.to_ne_bytes().to_vec(), count })
    })
}

/// Opens a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut Handle,
    _flags: c_uint,
    _priority: c_int,
) -> Status {
    inside("cuStreamCreateWithPriority", |machine| {
        // SAFETY: the caller's promise.
        unsafe { answer(stream, handle(machine.open_stream())) }
    })
}

/// Runs all that was queued on a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    inside("cuStreamSynchronize", |machine| machine.run(stream.addr()))
}

/// Runs what is left on a stream, and closes it.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    inside("cuStreamDestroy_v2", |machine| machine.close_stream(stream.addr()))
}

/// Takes any image, unseen.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_void,
    _options: c_uint,
    _keys: *mut c_uint,
    _values: *mut *mut c_void,
) -> Status {
    inside("cuModuleLoadDataEx", |_| {
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { answer(module, handle(MODULE)) }
    })
}

/// Finds any function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Status {
    inside("cuModuleGetFunction", |_| {
        if module.addr() != MODULE {
            return Err(INVALID_HANDLE);
        }
        if name.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { answer(function, handle(FUNCTION)) }
    })
}

/// Forgets a module.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Status {
    inside("cuModuleUnload", |_| if module.addr() == MODULE { Ok(()) } else { Err(INVALID_HANDLE) })
}

/// Refuses: there is no device to run it on.
#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    function: Handle,
    _grid_x: c_uint,
    _grid_y: c_uint,
    _grid_z: c_uint,
    _block_x: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared_bytes: c_uint,
    _stream: Handle,
    _arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    inside("cuLaunchKernel", |_| {
        Err(if function.addr() == FUNCTION { NOT_SUPPORTED } else { INVALID_HANDLE })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enters the context and opens a stream. The machine is shared by all tests; streams and memory are not.
    fn start() -> Handle {
        let (mut context, mut stream) = (ptr::null_mut(), ptr::null_mut());
        assert_eq!(cuInit(0), SUCCESS);
        // SAFETY: both are places of this function.
        unsafe {
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), SUCCESS);
            assert_eq!(cuCtxSetCurrent(context), SUCCESS);
            assert_eq!(cuStreamCreateWithPriority(&mut stream, 0, 0), SUCCESS);
        }
        stream
    }

    fn allocate(bytes: usize) -> Address {
        let mut address = 0;
        // SAFETY: it is a place of this function.
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, SUCCESS);
        address
    }

    #[test]
    fn work_runs_and_touches_the_host_at_synchronisation_only() {
        let stream = start();
        let address = allocate(4);
        let (mut input, mut output) = ([1u8; 4], [0u8; 4]);
        // SAFETY: both arrays live past the synchronisation.
        unsafe {
            assert_eq!(cuMemcpyHtoDAsync_v2(address, (&raw const input).cast(), 4, stream), SUCCESS);
            assert_eq!(cuMemcpyDtoHAsync_v2((&raw mut output).cast(), address, 4, stream), SUCCESS);
        }
        assert_eq!(std::hint::black_box(&output), &[0; 4]);
        std::hint::black_box(&mut input)[0] = 2;
        assert_eq!(cuStreamSynchronize(stream), SUCCESS);
        assert_eq!(std::hint::black_box(&output), &[2, 1, 1, 1]);
    }

    #[test]
    fn ranges_that_leave_their_allocation_are_refused() {
        let stream = start();
        let (a, b) = (allocate(64), allocate(64));
        assert_eq!(cuMemsetD8Async(a, 0, 64, stream), SUCCESS);
        assert_eq!(cuMemsetD8Async(a, 0, 65, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(b + 64, 0, 1, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(0, 0, 1, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD16Async(a + 2, 0, 31, stream), SUCCESS);
        assert_eq!(cuMemsetD16Async(a + 1, 0, 1, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD16Async(a + 2, 0, 32, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD32Async(a + 2, 0, 1, stream), INVALID_VALUE);
        assert_eq!(cuMemsetD32Async(a, 0, usize::MAX, stream), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoDAsync_v2(a, b + 1, 64, stream), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(a + 1), INVALID_VALUE);
        assert_eq!(cuMemFree_v2(a), SUCCESS);
        assert_eq!(cuMemFree_v2(a), INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(a, 0, 1, stream), INVALID_VALUE);
    }

    #[test]
    fn work_on_memory_that_was_freed_fails() {
        let stream = start();
        let address = allocate(64);
        assert_eq!(cuMemsetD8Async(address, 0, 64, stream), SUCCESS);
        assert_eq!(cuMemFree_v2(address), SUCCESS);
        assert_eq!(cuStreamSynchronize(stream), machine::ILLEGAL_ADDRESS);
        assert_eq!(cuStreamSynchronize(stream), SUCCESS);
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        start();
        let mut address = 0;
        // SAFETY: it is a place of this function.
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 1 << 40) }, machine::OUT_OF_MEMORY);
    }

    #[test]
    fn a_thread_without_a_context_is_refused() {
        let stream = start().addr();
        std::thread::spawn(move || assert_eq!(cuStreamSynchronize(handle(stream)), INVALID_CONTEXT))
            .join()
            .unwrap();
    }

    #[test]
    fn a_launch_is_refused() {
        let stream = start();
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the pointers are to places of this function and to constants.
        unsafe {
            let image = c"any image".as_ptr().cast();
            let none = ptr::null_mut();
            assert_eq!(cuModuleLoadDataEx(&mut module, image, 0, ptr::null_mut(), none), SUCCESS);
            assert_eq!(cuModuleGetFunction(&mut function, module, c"any".as_ptr()), SUCCESS);
        }
        let none = ptr::null_mut();
        assert_eq!(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, none, none), NOT_SUPPORTED);
        assert_eq!(cuModuleUnload(module), SUCCESS);
    }
}
