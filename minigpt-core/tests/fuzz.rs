//! The fuzz targets without the fuzzer: on their seeds, on edited checkpoints, and on what the fuzzer found, which lies in
//! `tests/fuzz/TARGET/`: every input that once broke something, and a few that reach far.

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the fuzzer calls them too")]
mod fuzz;

use std::fs;
use std::path::Path;

use fuzz::{TARGETS, mutate, seeds};
use minigpt_core::Checkpoint;
use minigpt_core::rng::{Rng, Stream};

fn target(name: &str) -> fuzz::Target {
    TARGETS.iter().find(|(target, _)| *target == name).expect(name).1
}

#[test]
fn the_seeds_of_all_targets_pass() {
    let seeds = seeds();
    for (name, run) in TARGETS {
        let of_target: Vec<_> = seeds.iter().filter(|(target, ..)| *target == name).collect();
        assert!(!of_target.is_empty(), "{name}");
        of_target.iter().for_each(|(_, _, bytes)| run(bytes));
    }
}

#[test]
fn seeds_that_are_checkpoints_hold_models() {
    for (_, name, bytes) in seeds().iter().filter(|(target, ..)| *target == "checkpoint_load") {
        let checkpoint = Checkpoint::open_verified(bytes).expect(name);
        checkpoint.parameters().expect(name);
        if checkpoint.training().is_some() {
            checkpoint.states().expect(name);
        }
    }
}

#[test]
fn what_the_fuzzer_found_passes() {
    for (name, run) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name);
        for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            println!("{}", file.display());
            run(&fs::read(file).unwrap());
        }
    }
}

/// What the fuzzer's editor does to bytes, in short: it sets one, removes one or adds one.
fn scramble(rng: &mut Rng, bytes: &mut [u8], size: usize) -> usize {
    let place = rng.below(size.max(1) as u64) as usize;
    match rng.below(4) {
        0 if size > 0 => {
            bytes.copy_within(place + 1..size, place);
            size - 1
        }
        1 if size < bytes.len() => {
            bytes[size] = rng.below(256) as u8;
            size + 1
        }
        _ => {
            if size > 0 {
                bytes[place] = rng.below(256) as u8;
            }
            size
        }
    }
}

#[test]
fn edited_checkpoints_are_loaded_or_refused_and_many_of_them_get_past_the_header() {
    let run = target("checkpoint_load");
    let seeds: Vec<Vec<u8>> =
        seeds().into_iter().filter(|(target, ..)| *target == "checkpoint_load").map(|seed| seed.2).collect();
    let mut rng = Rng::new(5, Stream::User);
    let (mut opened, mut loadable, total) = (0, 0, 1500);
    let mut data = vec![0; 1 << 16];
    for i in 0..total {
        let seed = &seeds[i as usize % seeds.len()];
        data[..seed.len()].copy_from_slice(seed);
        let mut size = seed.len();
        for _ in 0..1 + rng.below(3) {
            let seed = rng.next_u32();
            size = mutate(&mut data, size, seed, &mut |bytes, size| scramble(&mut rng, bytes, size));
        }
        run(&data[..size]);
        let checkpoint = Checkpoint::open(&data[..size]);
        opened += i32::from(checkpoint.is_ok());
        loadable += i32::from(checkpoint.is_ok_and(|checkpoint| checkpoint.parameters().is_ok()));
    }
    assert!(opened > total / 3 && loadable > total / 6, "{opened} opened, {loadable} loadable of {total}");
}
