//! Every op, a short training and cached decoding against the f64 oracle, on every instruction set of this machine
//! and with several numbers of threads.

use minigpt_core::conformance::{Options, check};
use minigpt_cpu::{Cpu, Isa};

#[test]
fn every_instruction_set_and_number_of_threads_conforms() {
    for isa in Isa::available() {
        for threads in 1..=3 {
            let report =
                check(|| Cpu::builder().isa(isa).threads(threads).build().unwrap(), &Options::default());
            println!("{isa}, {threads} threads\n{report}");
            assert!(report.passed(), "{isa}, {threads} threads:\n{report}");
        }
    }
}
