//! The CUDA backend of minigpt, over [cust](https://docs.rs/cust).
//!
//! [`Cuda`] is a [`minigpt_core::Backend`]: device memory, one stream, transfers and fills that are queued on it. It
//! has **no kernels yet**. Every op reads its operands back, runs [`minigpt_core::reference`] on the host in f32, and
//! writes its results, so a model trains with the very bits of `Reference<f32>`, and far slower than on `minigpt-cpu`.
//!
//! ```
//! match minigpt_cuda::Cuda::new(0) {
//!     Ok(cuda) => println!("{} has {:?} bytes free", cuda.name(), cuda.free_bytes()),
//!     Err(error) => println!("{error}"), // says what to do
//! }
//! ```
//!
//! # Switching it on
//!
//! The feature `cuda` is off by default. Without it this crate compiles everywhere, needs neither CUDA nor cust, and
//! [`Cuda::new`] answers [`CudaError::Unavailable`]; so a program can offer CUDA without a `cfg` of its own.
//!
//! With it, a program needs NVIDIA's driver to run on a device, but neither to build nor to start: the driver is
//! opened by the first [`Cuda::new`], and if there is none, that answers [`CudaError::Unavailable`] too. The toolkit
//! is never needed. What cust's build script does need is a folder that looks like one. In minigpt's own repository
//! `.cargo/config.toml` names it. Cargo does not hand that on to dependents, so a program of your own makes such a
//! folder once, with an empty archive in it,
//!
//! ```sh
//! mkdir -p cuda/lib64 && printf '!<arch>\n' > cuda/lib64/libcuda.a
//! ```
//!
//! and names it in its own `.cargo/config.toml`:
//!
//! ```toml
//! [env]
//! CUDA_LIBRARY_PATH = { value = "cuda", relative = true }
//! ```
//!
//! Where a CUDA toolkit is installed in its usual place, cust finds that by itself and neither is needed.
//!
//! The driver is `libcuda.so.1`, found as the system finds libraries, or what the environment variable
//! `MINIGPT_CUDA_DRIVER` names. Since the library is run, take that variable only from whom you trust. The driver's
//! functions are symbols of this crate, so a program can hold one version of it only.
//!
//! # What ran where
//!
//! | | |
//! |---|---|
//! | on a GPU, with NVIDIA's driver | **nothing so far** |
//! | on the stand-in driver, Linux on x86-64 | the tests of this crate: allocation, transfers, fills, errors; the conformance suite; training and decoding |
//! | on Windows and other targets | nothing with the feature `cuda` |
//!
//! The stand-in (`minigpt-cuda/stand-in` in the repository) is a small library for the tests. It keeps "device" memory
//! on the host, runs queued work as late as the driver API allows, and refuses to launch kernels;
//! [`Cuda::check_launch`] tells such a driver from one with a device.

mod backend;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
mod device;
mod error;
#[cfg(feature = "cuda")]
mod forward;

pub use backend::Cuda;
pub use error::CudaError;
