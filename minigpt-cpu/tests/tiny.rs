//! The whole suite on shapes so small that an interpreter runs it, on any machine that it stands for: Miri with its checks
//! of every access, a big-endian one, one of 32 bits. `.ci/run` says how.

use minigpt_core::Precision;
use minigpt_core::conformance::{Options, check};
use minigpt_cpu::{Cpu, Isa};

fn conforms(options: &Options) {
    let make = || {
        let builder = Cpu::builder().isa(Isa::Portable);
        #[cfg(feature = "std")]
        let builder = builder.threads(if cfg!(miri) { 1 } else { 2 });
        builder.build().unwrap()
    };
    let report = check(make, options);
    println!("{report}");
    assert!(report.passed(), "{report}");
}

#[test]
fn every_op_conforms_on_tiny_shapes() {
    if !cfg!(miri) {
        return conforms(&Options { work: 2000, ..Options::default() });
    }
    // A second takes minutes there. Under bf16 the kernels are f32's, and two cases show what is lent to them and taken back.
    let tiny = Options { work: 24, model: false, ..Options::default() };
    conforms(&Options { precisions: &[Precision::F32], cases: 4, ..tiny.clone() });
    conforms(&Options { precisions: &[Precision::Bf16], cases: 2, ..tiny });
}
