//! The whole training step of tiny, S and M, on one thread and on all, as a share of what the machine can do; and
//! models that are not round beside their round neighbours.
//!
//! `cargo bench -p minigpt-benches --bench train_step -- --only M`: the parts are tiny, S, M and odd.

use clap::Parser;
use minigpt_benches::machine;
use minigpt_benches::peaks::Peaks;
use minigpt_benches::program::Flags;
use minigpt_benches::rounds::{Ratio, interleave, median, repeats, seconds_each};
use minigpt_benches::shape::{Shape, Training};
use minigpt_cpu::Cpu;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let flags = Flags::parse();
    flags.begin();
    let peaks = [Peaks::measure(1, flags.rounds())?, Peaks::measure(machine::threads(), flags.rounds())?];
    println!("{}\n{}\n", peaks[0], peaks[1]);
    println!(
        "{:<10}{:>8}{:>11}{:>12}{:>10}{:>8}{:>8}  all threads over one",
        "step of", "threads", "ms", "tokens/s", "GFLOP/s", "SGEMM", "FMA"
    );
    for shape in [Shape::tiny(), Shape::small(), Shape::medium()] {
        if flags.wants(shape.name) {
            threads(&shape, &flags, &peaks)?;
        }
    }
    if flags.wants("odd") {
        println!("\nrate of the odd one over the round one's");
        for (odd, round) in Shape::odd_and_round() {
            neighbours(&odd, &round, &flags)?;
        }
    }
    Ok(())
}

/// A step on one thread and on all, in turns.
fn threads(shape: &Shape, flags: &Flags, peaks: &[Peaks; 2]) -> Outcome<()> {
    let mut one = Training::new(shape, Cpu::builder().threads(1).build()?)?;
    let mut all = Training::new(shape, Cpu::builder().threads(peaks[1].threads).build()?)?;
    let calls = repeats(flags.bench, || all.step());
    let flops = all.flops();
    let times = interleave(
        flags.rounds(),
        [&mut || seconds_each(calls, || one.step()), &mut || seconds_each(calls, || all.step())],
    );
    let over_one = ["".to_string(), Ratio::of(&times[0], &times[1]).to_string()];
    for ((peaks, times), over_one) in peaks.iter().zip(&times).zip(over_one) {
        let time = median(times);
        let gflops = flops / time / 1e9;
        println!(
            "{:<10}{:>8}{:>11.3}{:>12.0}{gflops:>10.1}{:>7.1}%{:>7.1}%  {over_one}",
            shape.name,
            peaks.threads,
            time * 1e3,
            shape.rows() as f64 / time,
            100.0 * gflops / peaks.sgemm,
            100.0 * gflops / peaks.fma
        );
    }
    Ok(())
}

/// A step of an odd shape and one of the round shape beside it, in turns, all threads.
fn neighbours(odd: &Shape, round: &Shape, flags: &Flags) -> Outcome<()> {
    let mut odd_training = Training::new(odd, Cpu::new()?)?;
    let mut round_training = Training::new(round, Cpu::new()?)?;
    let calls = repeats(flags.bench, || round_training.step());
    let (odd_flops, round_flops) = (odd_training.flops(), round_training.flops());
    let [odd_times, round_times] = interleave(
        flags.rounds(),
        [&mut || seconds_each(calls, || odd_training.step()) / odd_flops, &mut || {
            seconds_each(calls, || round_training.step()) / round_flops
        }],
    );
    println!(
        "{:<10}{:>7.1} GFLOP/s, {:<10}{:>7.1} GFLOP/s: {}",
        odd.name,
        1e-9 / median(&odd_times),
        round.name,
        1e-9 / median(&round_times),
        Ratio::of(&round_times, &odd_times)
    );
    Ok(())
}
