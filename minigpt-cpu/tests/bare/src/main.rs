//! The conformance suite on small shapes: on a microcontroller, in WebAssembly, and on the host. `.ci/run` says how.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod firmware;

use minigpt_core::conformance::{Options, Report, check};
use minigpt_cpu::{Cpu, CpuError};

/// Every op, a short training and cached decoding.
fn conformance() -> Result<Report, CpuError> {
    // An error here would be one in each case.
    Cpu::new()?;
    let options = Options { work: 2000, ..Options::default() };
    Ok(check(|| Cpu::new().expect("it could be made before"), &options))
}

/// Takes what the program has to say.
#[cfg(target_family = "wasm")]
fn print(text: &str) {
    mod host {
        #[link(wasm_import_module = "host")]
        unsafe extern "C" {
            pub(super) safe fn print(text: *const u8, len: usize);
        }
    }
    host::print(text.as_ptr(), text.len());
}

/// Takes what the program has to say.
#[cfg(not(any(target_family = "wasm", target_os = "none")))]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(not(target_os = "none"))]
fn main() {
    let report = conformance().expect("a backend on one thread needs nothing");
    print(&report.to_string());
    assert!(report.passed(), "{report}");
}
