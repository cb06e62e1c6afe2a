//! A run that is killed at random moments, again and again, ends with the bytes of one that never was.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use minigpt_core::rng::{Rng, Stream};

use super::child::{Process, Run, Scratch};

/// How many kills, in place of 10.
const KILLS: &str = "MINIGPT_KILLS";

const STEPS: u32 = 60;

/// Saves behind each step, and the best besides, so that a good part of its time is in saves.
fn flags() -> String {
    format!("--iterations {STEPS} --eval-every 1 --log-every 1 --dropout 0.1 --accumulation 2")
}

#[test]
fn kills_at_any_moment_cost_no_bit() {
    let wanted: u32 =
        std::env::var(KILLS).map_or(10, |kills| kills.parse().expect("MINIGPT_KILLS is a number"));
    let scratch = Scratch::new();
    let whole = scratch.run("whole", &format!("{} --keep 1000", flags()));
    let begun = Instant::now();
    let status = Process::start(&mut whole.command(&[])).0.wait().unwrap();
    assert!(status.success());
    // How long a life lasts at most: at this rate a run is killed about ten times.
    let longest = begun.elapsed() / 5;
    let expected = whole.checkpoints();

    let mut rng = Rng::new(u64::from(wanted), Stream::User);
    let (mut kills, mut inside, mut finished) = (0, 0, 0);
    let mut run = scratch.run("killed-0", &flags());
    // Until enough of them hit a save, too.
    while kills < wanted || inside < wanted / 4 {
        assert!(kills < 20 * wanted, "of {kills} kills {inside} hit a save");
        let mut process = Process::start(run.command(&[]).stderr(Stdio::null()));
        std::thread::sleep(longest.mul_f64(f64::from(rng.below(1 << 20) as u32) / f64::from(1 << 20)));
        // Every other waits for the next save, and a part of it.
        if kills % 2 == 1 {
            while !run.has_temporary() && process.0.try_wait().unwrap().is_none() {}
            std::thread::sleep(Duration::from_micros(rng.below(1000)));
        }
        if let Some(status) = process.0.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            assert_done(&run, &whole, &expected);
            finished += 1;
            run = scratch.run(&format!("killed-{finished}"), &flags());
            continue;
        }
        drop(process);
        kills += 1;
        inside += u32::from(run.has_temporary());
        assert_whole(&run, &whole, &expected);
    }
    let status = Process::start(&mut run.command(&[])).0.wait().unwrap();
    assert!(status.success());
    assert_done(&run, &whole, &expected);
    println!(
        "{kills} kills, {inside} of them while a file was written; {} runs ended with the same bytes",
        finished + 1
    );
}

/// What a killed run leaves is part of the run that was not.
fn assert_whole(run: &Run, whole: &Run, expected: &BTreeMap<String, Vec<u8>>) {
    if !run.folder.is_dir() {
        return;
    }
    for (name, bytes) in run.checkpoints() {
        let found = if name == "best.mgpt" {
            expected.values().any(|expected| *expected == bytes)
        } else {
            expected[&name] == bytes
        };
        assert!(found, "{name} is none of the run's checkpoints");
    }
    if let Some(&step) = run.steps().last() {
        assert_eq!(run.metrics_until(step), whole.metrics_until(step));
    }
}

fn assert_done(run: &Run, whole: &Run, expected: &BTreeMap<String, Vec<u8>>) {
    let files = run.checkpoints();
    let names = ["best.mgpt", "step-0000000059.mgpt", "step-0000000060.mgpt"];
    assert_eq!(files.keys().collect::<Vec<_>>(), names);
    for name in names {
        assert!(files[name] == expected[name], "{name}");
    }
    assert!(!run.has_temporary());
    assert_eq!(run.metrics_until(STEPS), whole.metrics_until(STEPS));
}
