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

/// Every instruction set of this machine, with two threads; and with one and three a third of the cases, none of them under bf16:
/// that runs on the same kernels, and other tests hold the bits of a whole training to be those of any number of threads.
#[cfg(feature = "std")]
fn machines() -> Vec<(String, Builder, Options)> {
    let all = Options::default();
    let some = Options { precisions: &[Precision::F32], cases: all.cases / 3, ..all.clone() };
    let with = |isa: Isa| {
        [(2, &all), (1, &some), (3, &some)].map(|(threads, options)| {
            (format!("{isa}, {threads} threads"), Cpu::builder().isa(isa).threads(threads), options.clone())
        })
    };
    Isa::available().flat_map(with).collect()
}

/// Every instruction set of this machine. Under bf16 nothing depends on std.
#[cfg(not(feature = "std"))]
fn machines() -> Vec<(String, Builder, Options)> {
    let options = Options { precisions: &[Precision::F32], ..Options::default() };
    Isa::available().map(|isa| (isa.to_string(), Cpu::builder().isa(isa), options.clone())).collect()
}

#[test]
fn every_instruction_set_and_number_of_threads_conforms() {
    runs::on_every_core(&machines(), |(name, machine, options)| {
        for seed in runs::seeds(1) {
            let report = check(|| machine.build().unwrap(), &Options { seed, ..options.clone() });
            println!("{name}, seed {seed}\n{report}");
            assert!(report.passed(), "{name}, seed {seed}:\n{report}");
            // It has kernels for both precisions; the suite itself asks only for those of an op's first.
            for line in report.lines.iter().filter(|line| line.name.ends_with(", bf16")) {
                let fell_back = line.kernels.map(|(_, fell_back)| fell_back);
                assert_eq!(fell_back, Some(0), "{name}, seed {seed}, {}:\n{report}", line.name);
            }
        }
    });
}
