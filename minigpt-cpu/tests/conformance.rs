//! Every op, a short training and cached decoding against the f64 oracle, on every instruction set of this machine
//! and with several numbers of threads.
//!
//! ```sh
//! MINIGPT_SEEDS=20 cargo test -p minigpt-cpu --test conformance -- --nocapture   # twenty times as many cases
//! ```

#[path = "support/runs.rs"]
mod runs;

use minigpt_core::conformance::{Options, check, crosses_threads};
use minigpt_cpu::{Builder, Cpu, Isa};

const _: () = crosses_threads::<Cpu<'static>>();

/// Every instruction set of this machine, with one, two and three threads.
#[cfg(feature = "std")]
fn machines() -> Vec<(String, Builder)> {
    let with =
        |isa: Isa| (1..=3).map(move |n| (format!("{isa}, {n} threads"), Cpu::builder().isa(isa).threads(n)));
    Isa::available().flat_map(with).collect()
}

/// Every instruction set of this machine.
#[cfg(not(feature = "std"))]
fn machines() -> Vec<(String, Builder)> {
    Isa::available().map(|isa| (isa.to_string(), Cpu::builder().isa(isa))).collect()
}

#[test]
fn every_instruction_set_and_number_of_threads_conforms() {
    runs::on_every_core(&machines(), |(name, machine)| {
        for seed in runs::seeds(1) {
            let report = check(|| machine.build().unwrap(), &Options { seed, ..Options::default() });
            println!("{name}, seed {seed}\n{report}");
            assert!(report.passed(), "{name}, seed {seed}:\n{report}");
        }
    });
}
