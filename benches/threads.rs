//! What it costs to share work out: the backend's own team of threads beside rayon, on a region in which no task does
//! anything. A step of S has some eighty regions, and a token of its decoding some thirty.
//!
//! `cargo bench -p minigpt-benches --bench threads`

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use minigpt_benches::machine;
use minigpt_benches::program::Flags;
use minigpt_benches::rounds::{Ratio, interleave, median, seconds_each};
use minigpt_cpu::Cpu;
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    flags.begin();
    let threads = machine::threads();
    let mut cpu = Cpu::builder().threads(threads).build()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let helpers = rayon::ThreadPoolBuilder::new().num_threads(threads.saturating_sub(1).max(1)).build()?;
    // As many tasks as a region of multiply_adds has.
    let tasks = 16 * threads;
    let drain = |next: &AtomicUsize| while black_box(next.fetch_add(1, Relaxed)) < tasks {};

    // No rounds of multiply-adds: a region and nothing in it.
    let mut team = || {
        black_box(cpu.multiply_adds(0));
    };
    let parallel_iterator = || {
        pool.install(|| {
            (0..tasks).into_par_iter().for_each(|task| {
                black_box(task);
            })
        })
    };
    let broadcast = || {
        let next = AtomicUsize::new(0);
        pool.broadcast(|_| drain(&next));
    };
    let scope = || {
        let next = AtomicUsize::new(0);
        helpers.in_place_scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| drain(&next));
            }
            drain(&next);
        });
    };

    println!("\na region of {tasks} empty tasks on {threads} threads, microseconds; times as fast as rayon");
    println!("{:<28}{:>10}{:>30}{:>30}{:>30}", "", "the team", "parallel iterator", "broadcast", "scope");
    for (name, pause) in [("one after the other", None), ("after 2 ms without any", Some(2))] {
        // The pause is not counted: each call is timed by itself.
        let calls = match pause {
            _ if !flags.bench => 1,
            Some(_) => 10,
            None => 500,
        };
        let time = |work: &mut dyn FnMut()| match pause {
            None => seconds_each(calls, work),
            Some(milliseconds) => {
                let mut total = 0.0;
                for _ in 0..calls {
                    sleep(Duration::from_millis(milliseconds));
                    total += seconds_each(1, &mut *work);
                }
                total / calls as f64
            }
        };
        let [ours, rivals @ ..] = interleave(
            flags.rounds(),
            [
                &mut || time(&mut team),
                &mut || time(&mut { parallel_iterator }),
                &mut || time(&mut { broadcast }),
                &mut || time(&mut { scope }),
            ],
        );
        print!("{name:<28}{:>10.2}", median(&ours) * 1e6);
        for times in &rivals {
            print!("{:>12.2}{:>18}", median(times) * 1e6, Ratio::of(times, &ours).to_string());
        }
        println!();
    }
    Ok(())
}
