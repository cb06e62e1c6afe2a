//! The whole suite on shapes so small that an interpreter runs it, on any machine that it stands for: Miri with its checks
//! of every access, a big-endian one, one of 32 bits. `.ci/run` says how.

use minigpt_core::conformance::{Options, check};
use minigpt_cpu::{Cpu, Isa};

#[test]
fn every_op_conforms_on_tiny_shapes() {
    let options = Options {
        cases: if cfg!(miri) { 4 } else { 36 },
        work: if cfg!(miri) { 24 } else { 2000 },
        model: !cfg!(miri),
        ..Options::default()
    };
    let make = || {
        let builder = Cpu::builder().isa(Isa::Portable);
        #[cfg(feature = "std")]
        let builder = builder.threads(if cfg!(miri) { 1 } else { 2 });
        builder.build().unwrap()
    };
    let report = check(make, &options);
    println!("{report}");
    assert!(report.passed(), "{report}");
}
