//! Generation of one sequence by weight format, the prefill of prompts, and sequences side by side: `cargo bench -p
//! minigpt-benches --bench decode`.
//!
//! [`minigpt_benches::decode`] and [`minigpt_benches::rows`] say what takes turns with what. `-- --pairs 5` takes fewer rounds,
//! `-- --only M` one shape. Of a ratio, the table has the median and the lower bound of its 95 % bootstrap interval.

use std::process::ExitCode;

use clap::Parser;
use minigpt_benches::Shape;
use minigpt_benches::decode::measure;
use minigpt_benches::machine;
use minigpt_benches::program::Flags;
use minigpt_benches::rows;
use minigpt_core::Error;
use minigpt_cpu::CpuError;

fn main() -> ExitCode {
    let flags = Flags::parse();
    flags.begin();
    for shape in [Shape::medium(), Shape::small()] {
        if !flags.wants(shape.name) {
            continue;
        }
        // A test runs everything on the smallest model.
        let shape = if flags.bench { shape } else { Shape::tiny() };
        let mut counts = vec![1, machine::threads()];
        counts.dedup();
        for threads in counts {
            let tables = table(&shape, threads, flags.rounds())
                .and_then(|()| by_rows(&shape, threads, flags.rounds()));
            if let Err(error) = tables {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn table(shape: &Shape, threads: usize, rounds: usize) -> Result<(), Error<CpuError>> {
    let (decodings, sgemm) = measure(shape, threads, rounds)?;
    let plural = if threads == 1 { "" } else { "s" };
    println!("\n{}, {threads} thread{plural}, {rounds} rounds; SGEMM {sgemm:.0} GFLOP/s", shape.name);
    println!(
        "{:<7}{:>10}{:>11}{:>8}{:>22}{:>18}{:>12}{:>20}",
        "weights",
        "MB/token",
        "tokens/s",
        "GB/s",
        "of the bandwidth",
        "over f32",
        "prefill ms",
        "of the SGEMM peak"
    );
    for decoding in decodings {
        println!(
            "{:<7}{:>10.2}{:>11.0}{:>8.1}{:>22}{:>18}{:>12.2}{:>20}",
            format!("{:?}", decoding.dtype),
            decoding.bytes / 1e6,
            1.0 / decoding.token,
            decoding.bytes / decoding.token / 1e9,
            decoding.of_bandwidth.to_string(),
            decoding.over_f32.to_string(),
            decoding.prefill * 1e3,
            decoding.of_sgemm.to_string(),
        );
        if decoding.fallbacks > 0 {
            println!("{} ops had no kernel and ran on the reference", decoding.fallbacks);
        }
    }
    Ok(())
}

/// What rows that are not live cost, and what sequences gain side by side.
fn by_rows(shape: &Shape, threads: usize, rounds: usize) -> Result<(), Error<CpuError>> {
    println!("\na prompt, by a decoder with room for the context, over one made for its length:");
    for (length, ratio) in rows::prompts(shape, threads, rounds)? {
        println!("{length:>7} tokens {ratio}");
    }
    println!("tokens a second of sequences side by side in 64 slots, over a decoder of one:");
    for (count, ratio) in rows::side_by_side(shape, threads, rounds)? {
        println!("{count:>7} sequences {ratio}");
    }
    Ok(())
}
