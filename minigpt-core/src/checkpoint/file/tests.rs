//! Power cuts at every call, and calls that fail, on a simulated disk.

use std::cell::Cell;
use std::convert::Infallible;
use std::format;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::vec::Vec;

use super::disk::Disk;
use super::replace::{remove_leftovers, replace};
use super::run::{keep_last, newest_on, step_name, steps};
use super::simulated::{Broken, Simulated, Trouble};
use super::*;
use crate::checkpoint::{Role, TensorSpec};
use crate::{Dtype, GptConfig};

/// A checkpoint of a few bytes that knows its step and the best step so far, and what writing it says.
fn checkpoint<W: Write>(out: W, step: u32, best: u32) -> Result<(), SaveError<Infallible, W::Error>> {
    let config = GptConfig::new(3, 2);
    let tensors =
        [TensorSpec { name: "w".into(), role: Role::Parameter, dtype: Dtype::F32, rows: 1, cols: 2 }];
    let metadata = [("step", &*format!("{step}")), ("best", &*format!("{best}"))];
    let contents =
        Contents { config: &config, tokenizer: None, training: None, metadata: &metadata, tensors: &tensors };
    write(out, &contents, |_, offset, bytes: &mut [u8]| {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = step as u8 + (offset + i) as u8;
        }
        Ok(())
    })
}

fn bytes_of(step: u32, best: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    checkpoint(&mut bytes, step, best).unwrap();
    bytes
}

fn folder() -> &'static Path {
    Path::new("run")
}

fn save_to(disk: &Simulated, path: &Path, step: u32, best: u32) -> Result<(), String> {
    replace(disk, path, path, None, |sink| checkpoint(sink, step, best)).map_err(|error| error.to_string())
}

/// Saves a checkpoint in place of another, with the power off at each call in turn, and counts the disks on which the
/// file is neither the old one nor the new one, or not the new one although the save had succeeded.
fn losses_of_a_save(broken: Broken) -> usize {
    let path = folder().join("model.mgpt");
    let (old, new) = (bytes_of(1, 1), bytes_of(2, 1));
    let mut lost = 0;
    for call in 1.. {
        let files = [(path.as_path(), old.as_slice())];
        let disk = Simulated::with_files(Trouble::PowerCut(call), broken, files);
        let saved = save_to(&disk, &path, 2, 1).is_ok();
        let all = disk.after_power_cut(100_000, |left| {
            let found = left.files().remove(&path);
            let whole = found.as_ref() == Some(&new) || (!saved && found.as_ref() == Some(&old));
            lost += usize::from(!whole);
            if broken == Broken::Nothing {
                remove_leftovers(&left, folder());
                assert_eq!(left.files().len(), usize::from(found.is_some()), "a leftover stays");
            }
        });
        assert!(all, "what may be left was only sampled");
        if saved {
            assert_eq!(disk.calls(), call - 1);
            // The names, one file, four writes, and the way to its name.
            assert!(call > 8, "{call} calls");
            return lost;
        }
    }
    unreachable!()
}

#[test]
fn a_power_cut_at_any_call_leaves_the_old_file_or_the_new_one_whole() {
    assert_eq!(losses_of_a_save(Broken::Nothing), 0);
}

#[test]
fn a_save_that_does_not_sync_the_file_loses_it() {
    assert!(losses_of_a_save(Broken::Sync) > 0);
}

#[test]
fn a_save_that_does_not_sync_the_folder_forgets_it() {
    assert!(losses_of_a_save(Broken::SyncFolder) > 0);
}

#[test]
fn a_save_in_which_any_call_fails_leaves_the_old_file_or_the_new_one_alone() {
    let path = folder().join("model.mgpt");
    let (old, new) = (bytes_of(1, 1), bytes_of(2, 1));
    for call in 1.. {
        let files = [(path.as_path(), old.as_slice())];
        let disk = Simulated::with_files(Trouble::Fails(call), Broken::Nothing, files);
        let saved = save_to(&disk, &path, 2, 1);
        if disk.calls() < call {
            assert_eq!(saved, Ok(()));
            return;
        }
        let files = disk.files();
        assert_eq!(files.len(), 1, "call {call} leaves {files:?}");
        let there = &files[&path];
        assert!(*there == new || (*there == old && saved.is_err()), "call {call}");
        if let Err(message) = saved {
            assert!(message.contains("model.mgpt") && message.contains("make room"), "{message}");
        }
    }
}

/// The validation loss falls at each of these steps.
const BETTER: [u32; 3] = [0, 1, 3];
const STEPS: u32 = 5;
const KEPT: usize = 2;

fn best_at(step: u32) -> u32 {
    BETTER.into_iter().rfind(|&better| better <= step).unwrap()
}

fn line(step: u32) -> String {
    format!("{{\"step\":{step}}}")
}

fn journal_path() -> PathBuf {
    folder().join("metrics.jsonl")
}

fn best_path() -> PathBuf {
    folder().join("best.mgpt")
}

/// Goes on with the run on this disk as [`RunFolder`] says, to its end or until a call fails. `done` is the last step
/// whose save returned.
fn run(disk: &Simulated, done: &Cell<Option<u32>>) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    remove_leftovers(disk, folder());
    let newest = newest_on(disk, folder()).map_err(|error| error.to_string())?;
    let first = newest.map_or(0, |newest| newest.step + 1);
    let kept: Vec<String> = (0..first).map(line).collect();
    let journal =
        journal::cut(disk, &journal_path(), |line| kept.iter().any(|kept| kept == line)).map_err(text)?;
    for step in first..STEPS {
        journal::append(disk, &journal, &line(step)).map_err(text)?;
        disk.sync(&journal).map_err(text)?;
        if best_at(step) == step {
            save_to(disk, &best_path(), step, step)?;
        }
        save_to(disk, &folder().join(step_name(step)), step, best_at(step))?;
        done.set(Some(step));
        keep_last(disk, folder(), step, KEPT).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What is wrong with what a run left on this disk.
fn fault(left: &Simulated, done: Option<u32>) -> Option<String> {
    let newest = match newest_on(left, folder()) {
        Err(error) => return Some(error.to_string()),
        Ok(newest) => newest,
    };
    let step = newest.as_ref().map(|newest| newest.step);
    if step < done || step > Some(done.map_or(0, |done| done + 1)) {
        return Some(format!("the newest is {step:?}, the last saved {done:?}"));
    }
    let files = left.files();
    let steps = steps(left, folder()).unwrap();
    if steps.len() < KEPT.min(done.map_or(0, |done| done as usize + 1)) {
        return Some(format!("only {steps:?} are kept behind step {done:?}"));
    }
    for step in steps {
        if files[&folder().join(step_name(step))] != bytes_of(step, best_at(step)) {
            return Some(format!("step {step} is damaged"));
        }
    }
    let step = step?;
    let lines = files.get(&journal_path()).map_or("".into(), |bytes| String::from_utf8_lossy(bytes));
    if let Some(lost) = (0..=step).find(|&i| lines.lines().nth(i as usize) != Some(&line(i))) {
        return Some(format!("step {step} is there, but line {lost} is not: {lines}"));
    }
    let known = best_at(step);
    let bests = BETTER.into_iter().filter(|&better| better >= known).map(|better| bytes_of(better, better));
    if !bests.into_iter().any(|best| files.get(&best_path()) == Some(&best)) {
        return Some(format!("the best of step {known} is lost"));
    }
    None
}

/// Cuts the power of a run at each of its calls, and counts the disks that it leaves in disorder.
fn faults_of_a_run(broken: Broken, mut each: impl FnMut(Simulated)) -> usize {
    let mut faults = 0;
    for call in 1.. {
        let disk = Simulated::new(Trouble::PowerCut(call), broken);
        let done = Cell::new(None);
        let ended = run(&disk, &done).is_ok();
        disk.after_power_cut(300, |left| match fault(&left, done.get()) {
            Some(fault) if broken == Broken::Nothing => panic!("call {call}: {fault}"),
            Some(_) => faults += 1,
            None => each(left),
        });
        if ended {
            return faults;
        }
    }
    unreachable!()
}

#[test]
fn a_power_cut_at_any_call_of_a_run_leaves_one_that_goes_on_to_the_same_files() {
    let whole = Simulated::new(Trouble::None, Broken::Nothing);
    run(&whole, &Cell::new(None)).unwrap();
    assert_eq!(steps(&whole, folder()).unwrap(), [3, 4]);
    let mut number = 0;
    let faults = faults_of_a_run(Broken::Nothing, |left| {
        number += 1;
        // Checkpoints that were removed, but not for good, may be back until the next step removes them.
        let behind_the_last = newest_on(&left, folder()).unwrap().is_some_and(|n| n.step + 1 == STEPS);
        run(&left, &Cell::new(None)).unwrap();
        if behind_the_last {
            keep_last(&left, folder(), STEPS - 1, KEPT).unwrap();
        }
        assert!(left.files() == whole.files());
    });
    assert_eq!(faults, 0);
    assert!(number > 1000);
}

#[test]
fn a_run_that_does_not_sync_is_found_in_disorder() {
    assert!(faults_of_a_run(Broken::Sync, drop) > 0);
    assert!(faults_of_a_run(Broken::SyncFolder, drop) > 0);
}

#[test]
fn a_run_in_which_any_call_fails_loses_nothing_that_was_saved() {
    for call in 1.. {
        let disk = Simulated::new(Trouble::Fails(call), Broken::Nothing);
        let done = Cell::new(None);
        let _ = run(&disk, &done);
        if disk.calls() < call {
            return;
        }
        assert_eq!(fault(&disk, done.get()), None, "call {call}");
    }
}

#[test]
fn a_file_in_use_is_no_leftover() {
    let disk = Simulated::new(Trouble::None, Broken::Nothing);
    let path = folder().join(".minigpt-1-0.tmp");
    let file = disk.create(&path).unwrap();
    save_to(&disk, &folder().join("model.mgpt"), 1, 1).unwrap();
    assert_eq!(disk.files().len(), 2);
    drop(file);
    save_to(&disk, &folder().join("model.mgpt"), 2, 1).unwrap();
    assert_eq!(disk.files().into_keys().collect::<Vec<_>>(), [folder().join("model.mgpt")]);
}

#[test]
fn names_that_no_saver_gives_are_left_alone() {
    let names =
        [".minigpt-notes.tmp", ".minigpt-1.tmp", ".minigpt-1-.tmp", ".minigpt-1-0-2.tmp", "minigpt-1-0.tmp"];
    let paths = names.map(|name| folder().join(name));
    let files = paths.iter().map(|path| (path.as_path(), &b"mine"[..]));
    let disk = Simulated::with_files(Trouble::None, Broken::Nothing, files);
    remove_leftovers(&disk, folder());
    assert_eq!(disk.files().len(), names.len());
}

#[test]
fn a_saver_never_uses_the_name_of_a_temporary_file_again() {
    let disk = Simulated::new(Trouble::None, Broken::Nothing);
    for step in 0..3 {
        save_to(&disk, &folder().join("model.mgpt"), step, 0).unwrap();
    }
    assert_eq!(disk.names_given(), 4);
}

#[test]
fn a_damaged_newest_is_passed_over_and_one_from_the_future_is_not() {
    let whole = bytes_of(7, 7);
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() = 1;
    let mut later = whole.clone();
    later[4] = 99;
    let path = |step| folder().join(step_name(step));
    let disk = |newer: &[u8]| {
        let files = [(path(7), whole.as_slice()), (path(8), newer), (path(9), &damaged)];
        let files = files.iter().map(|(path, bytes)| (path.as_path(), *bytes));
        Simulated::with_files(Trouble::None, Broken::Nothing, files)
    };
    let found = newest_on(&disk(&damaged), folder()).unwrap().unwrap();
    assert_eq!((found.step, found.bytes, found.path), (7, whole.clone(), path(7)));
    let named: Vec<String> = found.damaged.iter().map(ToString::to_string).collect();
    assert!(named.len() == 2 && named[0].contains("step-0000000009.mgpt"), "{named:?}");
    let refused = newest_on(&disk(&later), folder()).unwrap_err().to_string();
    assert!(refused.contains("step-0000000008.mgpt") && refused.contains("update the program"), "{refused}");

    let all = [(path(3), damaged.as_slice()), (path(4), damaged.as_slice())];
    let all = all.iter().map(|(path, bytes)| (path.as_path(), *bytes));
    let all = Simulated::with_files(Trouble::None, Broken::Nothing, all);
    assert!(newest_on(&all, folder()).unwrap_err().to_string().contains("step-0000000004.mgpt"));
}

#[test]
fn what_a_run_wrote_is_no_damage_however_large() {
    let path = folder().join(step_name(1));
    let vocab_size = Limits::DEFAULT.vocab_size as usize + 1;
    let config = GptConfig::new(vocab_size, 2);
    let contents = Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &[] };
    let mut bytes = Vec::new();
    write(&mut bytes, &contents, |_, _, _| Ok::<(), Infallible>(())).unwrap();
    let disk = Simulated::with_files(Trouble::None, Broken::Nothing, [(path.as_path(), &bytes[..])]);
    assert_eq!(newest_on(&disk, folder()).unwrap().unwrap().bytes, bytes);
    assert!(
        load_from(&disk, &path, &Limits::DEFAULT)
            .unwrap_err()
            .to_string()
            .contains("its vocab_size would be")
    );
}

#[test]
fn only_earlier_steps_make_room() {
    let disk = || {
        let names = [0, 5, 10, 20, u32::MAX].map(|step| folder().join(step_name(step)));
        let others = ["step-5.mgpt", "step-+000000005.mgpt", "step-00000000005.mgpt", "best.mgpt"];
        let others = others.map(|name| folder().join(name));
        let files = names.iter().chain(&others).map(|path| (path.as_path(), &[][..]));
        Simulated::with_files(Trouble::None, Broken::Nothing, files)
    };
    for (step, count, left) in [
        (10, 1, &[10, 20, u32::MAX][..]),
        (10, 0, &[10, 20, u32::MAX]),
        (10, 2, &[5, 10, 20, u32::MAX]),
        (u32::MAX, 3, &[10, 20, u32::MAX]),
        (u32::MAX, usize::MAX, &[0, 5, 10, 20, u32::MAX]),
        (0, 1, &[0, 5, 10, 20, u32::MAX]),
    ] {
        let disk = disk();
        keep_last(&disk, folder(), step, count).unwrap();
        assert_eq!(steps(&disk, folder()).unwrap(), left);
        assert_eq!(disk.files().len(), left.len() + 4);
    }
}
