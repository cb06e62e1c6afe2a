//! Every op, a short training and cached decoding against the f64 oracle, on every instruction set of this machine
//! and with several numbers of threads.
//!
//! ```sh
//! MINIGPT_SEEDS=20 cargo test -p minigpt-cpu --test conformance -- --nocapture   # twenty times as many cases
//! ```

#[path = "support/runs.rs"]
mod runs;

use minigpt_core::Precision;
use minigpt_core::conformance::{Options, check, crosses_threads};
use minigpt_cpu::{Builder, Cpu, Isa};

const _: () = crosses_threads::<Cpu<'static>>();

const ALL: &[Precision] = &[Precision::F32, Precision::Bf16];

/// Every instruction set of this machine, with one, two and three threads. What is under bf16 runs on the same kernels, and its
/// bits do not depend on threads: once for each set.
#[cfg(feature = "std")]
fn machines() -> Vec<(String, Builder, &'static [Precision])> {
    let with = |isa: Isa| {
        [(2, ALL), (1, &ALL[..1]), (3, &ALL[..1])].map(|(threads, precisions)| {
            (format!("{isa}, {threads} threads"), Cpu::builder().isa(isa).threads(threads), precisions)
        })
    };
    Isa::available().flat_map(with).collect()
}

/// Every instruction set of this machine. Under bf16 nothing depends on std.
#[cfg(not(feature = "std"))]
fn machines() -> Vec<(String, Builder, &'static [Precision])> {
    Isa::available().map(|isa| (isa.to_string(), Cpu::builder().isa(isa), &ALL[..1])).collect()
}

#[test]
fn every_instruction_set_and_number_of_threads_conforms() {
    runs::on_every_core(&machines(), |(name, machine, precisions)| {
        for seed in runs::seeds(1) {
            let options = Options { seed, precisions, ..Options::default() };
            let report = check(|| machine.build().unwrap(), &options);
            println!("{name}, seed {seed}\n{report}");
            assert!(report.passed(), "{name}, seed {seed}:\n{report}");
        }
    });
}
