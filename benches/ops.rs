//! Each kernel at the shapes of S and M, as a share of what the machine can do; each matrix product of their linear
//! layers beside the same product by other crates; and shapes that are not round beside their round neighbours.
//!
//! `cargo bench -p minigpt-benches --bench ops -- --only M`: the parts are S, M and odd. Operands stay where the
//! caches hold them from one call to the next, as far as they fit.

use clap::Parser;
use minigpt_benches::machine;
use minigpt_benches::operands::ops;
use minigpt_benches::peaks::Peaks;
use minigpt_benches::products::{self, Product};
use minigpt_benches::program::Flags;
use minigpt_benches::rounds::{Ratio, interleave, median, repeats, seconds_each};
use minigpt_benches::shape::Shape;
use minigpt_core::{Backend, Op};
use minigpt_cpu::{Cpu, CpuError};

fn main() -> Result<(), CpuError> {
    let flags = Flags::parse();
    flags.begin();
    let threads = machine::threads();
    let peaks = Peaks::measure(threads, flags.rounds())?;
    println!("{peaks}");
    for shape in [Shape::small(), Shape::medium()] {
        if flags.wants(shape.name) {
            kernels(&shape, &flags, &peaks)?;
            compare(&shape, &flags, &peaks)?;
        }
    }
    if flags.wants("odd") {
        for (odd, round) in Shape::odd_and_round() {
            neighbours(&odd, &round, &flags)?;
        }
    }
    Ok(())
}

fn run(cpu: &mut Cpu<'_>, op: &Op) {
    cpu.run(op).expect("the op is valid");
}

/// Milliseconds and rates of each kind of op, and its share of the ceiling that it is nearer to.
fn kernels(shape: &Shape, flags: &Flags, peaks: &Peaks) -> Result<(), CpuError> {
    println!("\nthe kernels of {}, {} threads", shape.name, peaks.threads);
    println!("{:<24}{:>10}{:>10}{:>9}  share of the machine", "op", "ms", "GFLOP/s", "GB/s");
    let mut cpu = Cpu::builder().threads(peaks.threads).build()?;
    for (name, op) in ops(&mut cpu, shape)? {
        let calls = repeats(flags.bench, || run(&mut cpu, &op));
        let [times] = interleave(flags.rounds(), [&mut || seconds_each(calls, || run(&mut cpu, &op))]);
        let time = median(&times);
        let (gflops, gb) = (op.flops() as f64 / time / 1e9, op.bytes() as f64 / time / 1e9);
        let (of_fma, of_read) = (100.0 * gflops / peaks.fma, 100.0 * gb / peaks.read);
        let share = if of_fma > of_read {
            format!("{of_fma:.0} % of the multiply-adds")
        } else {
            format!("{of_read:.0} % of the reading")
        };
        println!("{name:<24}{:>10.4}{gflops:>10.1}{gb:>9.1}  {share}", time * 1e3);
    }
    Ok(())
}

/// The products of each linear layer, in turns with the other crates.
fn compare(shape: &Shape, flags: &Flags, peaks: &Peaks) -> Result<(), CpuError> {
    println!(
        "\nthe matrix products of {}, {} threads; times as fast: median (95 % bound)",
        shape.name, peaks.threads
    );
    println!(
        "{:<24}{:>9}{:>8}{:>9}{:>17}{:>17}{:>17}",
        "layer and product", "GFLOP/s", "SGEMM", "gemm", "ours over it", "matrixmultiply", "ours over it"
    );
    for product in products::compare(shape, peaks.threads, flags.rounds(), flags.bench)? {
        let Product { name, flops, ours, gemm, matrixmultiply } = product;
        let gflops = |times: &[f64]| flops / median(times) / 1e9;
        println!(
            "{name:<24}{:>9.1}{:>7.0}%{:>9.1}{:>17}{:>17.1}{:>17}",
            gflops(&ours),
            100.0 * gflops(&ours) / peaks.sgemm,
            gflops(&gemm),
            Ratio::of(&gemm, &ours).to_string(),
            gflops(&matrixmultiply),
            Ratio::of(&matrixmultiply, &ours).to_string(),
        );
    }
    Ok(())
}

/// Each kind of op at an odd shape and at the round one beside it.
fn neighbours(odd: &Shape, round: &Shape, flags: &Flags) -> Result<(), CpuError> {
    let describe = |shape: &Shape| {
        let config = &shape.config;
        format!(
            "width {}, {} heads, vocabulary {}, context {}",
            config.d_model, config.heads, config.vocab_size, config.context
        )
    };
    println!("\n{}: {}\nbeside {}: {}", odd.name, describe(odd), round.name, describe(round));
    println!("{:<24}{:>12}{:>12}  rate of the odd one over the round one's", "op", "odd ms", "round ms");
    let mut cpus = [Cpu::new()?, Cpu::new()?];
    let odd_ops = ops(&mut cpus[0], odd)?;
    let round_ops = ops(&mut cpus[1], round)?;
    let [odd_cpu, round_cpu] = &mut cpus;
    for ((name, odd), (_, round)) in odd_ops.into_iter().zip(round_ops) {
        let calls = repeats(flags.bench, || run(round_cpu, &round));
        let [odd_times, round_times] = interleave(
            flags.rounds(),
            [&mut || seconds_each(calls, || run(odd_cpu, &odd)), &mut || {
                seconds_each(calls, || run(round_cpu, &round))
            }],
        );
        let work = |op: &Op| if op.flops() > 0 { op.flops() as f64 } else { op.bytes() as f64 };
        let per_work =
            |times: &[f64], op: &Op| times.iter().map(|time| time / work(op)).collect::<Vec<f64>>();
        let ratio = Ratio::of(&per_work(&round_times, &round), &per_work(&odd_times, &odd));
        println!("{name:<24}{:>12.4}{:>12.4}  {ratio}", median(&odd_times) * 1e3, median(&round_times) * 1e3);
    }
    Ok(())
}
