//! A catalogue of faults, of the kinds that kernels have: tails, offsets, strides, stale scratch, a forgotten accumulation,
//! missing rows, sums in too short a type, races, writes past the end, a mask off by one, a wrong head; and where the device's
//! words say what is to be done, dead rows that are written, words of an earlier call or read in too few bits, a neighbour's
//! slot or position. Each is planted in the kernel of one op, and the suite must find it and name the op.
//!
//! ```sh
//! MINIGPT_SEEDS=20 cargo test -p minigpt-cpu --test faults -- --nocapture
//! ```

mod attention;
mod cached;
mod corners;
mod embedding;
mod gate;
mod kernel;
mod linear;
mod norm;
mod optimizer;
mod rows;
#[path = "../support/runs.rs"]
mod runs;
mod sample;
mod step;

use kernel::{Fault, Planted};
use minigpt_core::conformance::{Options, check};
use minigpt_core::{OpKind, Precision};

fn catalogue() -> Vec<&'static Fault> {
    let passes = [linear::FAULTS, norm::FAULTS, attention::FAULTS, embedding::FAULTS];
    let steps = [step::FAULTS, optimizer::FAULTS];
    let decoding = [rows::FAULTS, cached::FAULTS, sample::FAULTS, gate::FAULTS];
    passes.into_iter().chain(steps).chain(decoding).chain([corners::FAULTS]).flatten().collect()
}

/// Those with which each fault must be found.
fn seeds() -> core::ops::RangeInclusive<u64> {
    runs::seeds(1)
}

/// The policy under which faults of this op are looked for. Those of rounding are planted in the suite's own tests.
fn precisions(kind: OpKind) -> &'static [Precision] {
    if kind == OpKind::Narrow { &[Precision::Bf16] } else { &[Precision::F32] }
}

/// Whether the suite with this seed finds the fault, and names the op.
fn is_found(fault: &'static Fault, seed: u64) -> bool {
    let options = Options {
        ops: core::slice::from_ref(&fault.op),
        precisions: precisions(fault.op),
        seed,
        model: false,
        stop_early: true,
        ..Options::default()
    };
    let report = check(|| Planted::new(*fault), &options);
    let names_it = |line: &minigpt_core::conformance::Line| line.name.starts_with(fault.op.name());
    let failed: Vec<_> = report.lines.iter().filter(|line| !line.passed()).collect();
    !failed.is_empty() && failed.iter().all(|line| names_it(line))
}

/// What finds faults must find none where there is none.
#[test]
fn without_a_fault_the_suite_passes() {
    for kind in OpKind::ALL {
        let sound = Fault { name: "none", op: *kind, plant: |kernel, op| kernel.run(*op) };
        let (ops, precisions) = (core::slice::from_ref(kind), precisions(*kind));
        let options = Options { ops, precisions, model: false, ..Options::default() };
        for seed in seeds() {
            let report = check(|| Planted::new(sound), &Options { seed, ..options.clone() });
            assert!(report.passed(), "seed {seed}:\n{report}");
        }
    }
}

#[test]
fn the_suite_finds_every_fault_and_names_its_op() {
    let seeds = seeds();
    let faults = catalogue();
    assert!(
        faults.len() >= 500 && OpKind::ALL.iter().all(|kind| faults.iter().any(|fault| fault.op == *kind))
    );
    let missed: Vec<Vec<u64>> =
        runs::on_every_core(&faults, |fault| seeds.clone().filter(|&seed| !is_found(fault, seed)).collect());
    let all = *seeds.end();
    for (fault, missed) in faults.iter().zip(&missed) {
        let times = all - missed.len() as u64;
        println!("{times:>3} of {all}  {:<18} {}", fault.op.name(), fault.name);
    }
    let escaped: Vec<String> = faults
        .iter()
        .zip(&missed)
        .filter(|(_, missed)| !missed.is_empty())
        .map(|(fault, missed)| format!("{}: {} (seeds {missed:?})", fault.op.name(), fault.name))
        .collect();
    assert!(
        escaped.is_empty(),
        "{} of {} faults escaped:\n{}",
        escaped.len(),
        faults.len(),
        escaped.join("\n")
    );
}
