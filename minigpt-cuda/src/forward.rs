//! The driver API's functions as this crate's own symbols, each forwarding to a driver that is opened at run time.
//!
//! cust wants the driver at link time, and a program that is linked against it does not start where there is none.
//! These forwarders satisfy the linker instead. On first use they open `libcuda.so.1`, or what the environment
//! variable [`DRIVER_VARIABLE`] names, so that one binary starts without a driver, runs with a real one, and can be
//! tested on a stand-in.
//!
//! Only what the backend uses is here; the linker names what is missing when it comes to use more.

use core::ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::error::Error;
use std::ffi::OsString;
use std::sync::OnceLock;

use libloading::Library;

/// The environment variable that names another driver to open.
pub(crate) const DRIVER_VARIABLE: &str = "MINIGPT_CUDA_DRIVER";

const DEFAULT_DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// `CUDA_ERROR_NOT_INITIALIZED`.
const NOT_INITIALIZED: c_int = 3;
/// `CUDA_ERROR_UNKNOWN`.
const UNKNOWN: c_int = 999;

/// Opens the driver, or says why it cannot.
pub(crate) fn load() -> Result<(), &'static str> {
    driver().map(|_| ())
}

fn driver() -> Result<&'static Driver, &'static str> {
    // The C interface has no place for a context, and a driver cannot be opened twice, so this one thing is global.
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    let opened = DRIVER.get_or_init(|| {
        let path = std::env::var_os(DRIVER_VARIABLE).unwrap_or_else(|| OsString::from(DEFAULT_DRIVER));
        Driver::open(&path).map_err(|error| {
            // The error itself says which step failed, its source what was missing.
            let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            format!("the driver {} cannot be opened ({why})", path.to_string_lossy())
        })
    });
    opened.as_ref().map_err(String::as_str)
}

/// cust reads a status as a Rust enum that ends with CUDA 11.4: a code that it does not have would be undefined
/// behaviour. (`cust::sys::CUresult` has the list.)
fn clamp(status: c_int) -> c_int {
    match status {
        0..=8 | 34 | 100..=102 | 200..=202 | 205..=224 | 300..=304 | 400 | 401 | 500 | 600 => status,
        700..=705 | 708..=720 | 800..=809 | 900..=911 => status,
        _ => UNKNOWN,
    }
}

macro_rules! forward {
    ($(fn $name:ident($($arg:ident: $type:ty),*);)*) => {
        #[allow(non_snake_case, reason = "the driver's own names")]
        struct Driver {
            $($name: unsafe extern "C" fn($($type),*) -> c_int,)*
            // Keeps the functions above in memory.
            _library: Library,
        }

        impl Driver {
            fn open(path: &std::ffi::OsStr) -> Result<Self, libloading::Error> {
                // SAFETY: this runs the initialisers of a library that the system or the user names as the CUDA
                // driver; that is to be trusted as much as the program's other libraries.
                let library = unsafe { Library::new(path) }?;
                Ok(Driver {
                    // SAFETY: the signatures below are those of the driver API.
                    $($name: *unsafe { library.get(stringify!($name)) }?,)*
                    _library: library,
                })
            }
        }

        $(
            // SAFETY of the name: a program holds one driver API, and this is it; nothing else may define it.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "the driver's own names")]
            unsafe extern "C" fn $name($($arg: $type),*) -> c_int {
                match driver() {
                    // SAFETY: the caller keeps the contract of the driver's function of this name.
                    Ok(driver) => clamp(unsafe { (driver.$name)($($arg),*) }),
                    Err(_) => NOT_INITIALIZED,
                }
            }
        )*
    };
}

/// `CUdevice`
type Ordinal = c_int;
/// `CUdeviceptr`
type Address = c_ulonglong;
/// `CUcontext`, `CUstream`, `CUmodule` and `CUfunction`
type Handle = *mut c_void;

forward! {
    fn cuInit(flags: c_uint);
    fn cuDeviceGetCount(count: *mut c_int);
    fn cuDeviceGet(device: *mut Ordinal, ordinal: c_int);
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: Ordinal);
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: Ordinal);
    fn cuDevicePrimaryCtxRelease_v2(device: Ordinal);
    fn cuCtxSetCurrent(context: Handle);
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemAlloc_v2(address: *mut Address, bytes: usize);
    fn cuMemFree_v2(address: Address);
    fn cuMemAllocHost_v2(host: *mut *mut c_void, bytes: usize);
    fn cuMemFreeHost(host: *mut c_void);
    fn cuMemcpyHtoDAsync_v2(to: Address, from: *const c_void, bytes: usize, stream: Handle);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: Address, bytes: usize, stream: Handle);
    fn cuMemcpyDtoDAsync_v2(to: Address, from: Address, bytes: usize, stream: Handle);
    fn cuMemsetD8Async(to: Address, value: c_uchar, count: usize, stream: Handle);
    fn cuMemsetD16Async(to: Address, value: c_ushort, count: usize, stream: Handle);
    fn cuMemsetD32Async(to: Address, value: c_uint, count: usize, stream: Handle);
    fn cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int);
    fn cuStreamSynchronize(stream: Handle);
    fn cuStreamDestroy_v2(stream: Handle);
    fn cuModuleLoadDataEx(
        module: *mut Handle,
        image: *const c_void,
        options: c_uint,
        keys: *mut c_uint,
        values: *mut *mut c_void
    );
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    fn cuModuleUnload(module: Handle);
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: Handle,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    );
}

#[cfg(test)]
mod tests {
    use super::{UNKNOWN, clamp};
    use cust::sys::CUresult;

    #[test]
    fn codes_that_cust_has_pass() {
        // The ends of every range of `clamp`.
        for code in [
            CUresult::CUDA_SUCCESS,
            CUresult::CUDA_ERROR_PROFILER_ALREADY_STOPPED,
            CUresult::CUDA_ERROR_STUB_LIBRARY,
            CUresult::CUDA_ERROR_NO_DEVICE,
            CUresult::CUDA_ERROR_DEVICE_NOT_LICENSED,
            CUresult::CUDA_ERROR_INVALID_IMAGE,
            CUresult::CUDA_ERROR_CONTEXT_ALREADY_CURRENT,
            CUresult::CUDA_ERROR_MAP_FAILED,
            CUresult::CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY,
            CUresult::CUDA_ERROR_INVALID_SOURCE,
            CUresult::CUDA_ERROR_OPERATING_SYSTEM,
            CUresult::CUDA_ERROR_INVALID_HANDLE,
            CUresult::CUDA_ERROR_ILLEGAL_STATE,
            CUresult::CUDA_ERROR_NOT_FOUND,
            CUresult::CUDA_ERROR_NOT_READY,
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED,
            CUresult::CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE,
            CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
            CUresult::CUDA_ERROR_NOT_PERMITTED,
            CUresult::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED,
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
            CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
            CUresult::CUDA_ERROR_UNKNOWN,
        ] {
            assert_eq!(clamp(code as i32), code as i32, "{code:?}");
        }
    }

    #[test]
    fn codes_that_cust_lacks_become_unknown() {
        for code in
            [-1, 9, 33, 35, 103, 203, 204, 225, 305, 402, 707, 721, 810, 912, 1000, i32::MIN, i32::MAX]
        {
            assert_eq!(clamp(code), UNKNOWN, "{code}");
        }
    }
}
