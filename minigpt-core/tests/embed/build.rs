//! Tells the linker where a microcontroller has its memory.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    const MEMORY: &str = "../../../minigpt-cpu/tests/bare/memory.x";
    println!("cargo:rerun-if-changed={MEMORY}");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "none") {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
        fs::copy(MEMORY, out.join("memory.x")).expect("the memory map can be copied");
        println!("cargo:rustc-link-search={}", out.display());
        println!("cargo:rustc-link-arg-bins=-Tlink.x");
        // Each section where it is to lie in memory; the pages of a system with an MMU are of no use here.
        println!("cargo:rustc-link-arg-bins=--nmagic");
    }
}
