//! The folder of a run on the real disk: one writer at a time, and what killed ones leave.
#![cfg(feature = "std")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use minigpt_core::checkpoint::{self, Journal, RunFolder, RunFolderError};
use support::*;

/// Set in the process that plays the other one: the folder, and what it does there.
const FOLDER: &str = "MINIGPT_TEST_FOLDER";
const TASK: &str = "MINIGPT_TEST_TASK";

/// A folder of its own for each test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("minigpt-run-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Another process; killed when dropped.
struct Other(Child);

impl Other {
    /// Returns once it holds what it is to hold.
    fn start(task: &str, folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["the_other_process", "--exact", "--nocapture"])
            .envs([(FOLDER, folder.as_os_str()), (TASK, task.as_ref())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.as_mut().unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"ready") {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        Other(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing in the process that `cargo test` starts; holds a folder or a file in one that a test starts.
#[test]
fn the_other_process() {
    let (Some(folder), Ok(task)) = (std::env::var_os(FOLDER), std::env::var(TASK)) else { return };
    let wait = || {
        print!("ready");
        std::io::Write::flush(&mut std::io::stdout()).unwrap();
        // Until it is killed, or its parent is gone.
        let _ = std::io::stdin().read(&mut [0]);
    };
    match task.as_str() {
        "hold" => {
            let _folder = RunFolder::open(folder).unwrap();
            wait();
        }
        "save" => {
            let path = Path::new(&folder).join("model.mgpt");
            let mut reads = 0;
            let _ = with_small_contents(|contents| {
                checkpoint::save(path, contents, |_, _, bytes| {
                    bytes.fill(0);
                    reads += 1;
                    if reads < 40 {
                        return Ok(());
                    }
                    wait();
                    Err("its parent is gone")
                })
            });
        }
        other => panic!("{other}"),
    }
}

fn temporaries(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".minigpt-") && name.ends_with(".tmp")).count()
}

#[test]
fn two_processes_refuse_each_other_until_one_is_killed() {
    let scratch = Scratch::new("two");
    let path = scratch.0.join("deep/run");
    let other = Other::start("hold", &path);
    let refused = RunFolder::open(&path).unwrap_err();
    assert!(matches!(refused, RunFolderError::InUse { .. }));
    let message = refused.to_string();
    assert!(message.contains(path.to_str().unwrap()) && message.contains("wait until it ends"), "{message}");
    // Another folder is free, and reading is for all.
    RunFolder::open(scratch.0.join("other")).unwrap();
    assert!(checkpoint::newest(&path).unwrap().is_none());
    other.kill();
    let held = RunFolder::open(&path).unwrap();
    assert!(matches!(RunFolder::open(&path), Err(RunFolderError::InUse { .. })));
    drop(held);
    RunFolder::open(&path).unwrap();
}

#[test]
fn what_a_killed_saver_leaves_is_removed_and_what_a_living_one_writes_is_not() {
    let scratch = Scratch::new("leftovers");
    for open_the_folder in [false, true] {
        let living = Other::start("save", &scratch.0);
        let killed = Other::start("save", &scratch.0);
        assert_eq!(temporaries(&scratch.0), 2);
        killed.kill();
        assert_eq!(temporaries(&scratch.0), 2);
        if open_the_folder {
            RunFolder::open(&scratch.0).unwrap();
        } else {
            let path = scratch.0.join("another.mgpt");
            with_small_contents(|contents| checkpoint::save(path, contents, fill)).unwrap();
        }
        assert_eq!(temporaries(&scratch.0), 1);
        living.kill();
        RunFolder::open(&scratch.0).unwrap();
        assert_eq!(temporaries(&scratch.0), 0);
    }
}

#[test]
fn the_newest_whole_checkpoint_is_found_and_damaged_ones_are_set_aside() {
    let scratch = Scratch::new("newest");
    let folder = RunFolder::open(&scratch.0).unwrap();
    assert!(folder.newest().unwrap().is_none());
    for step in [9, 10, 100] {
        with_small_contents(|contents| checkpoint::save(folder.step_path(step), contents, fill)).unwrap();
    }
    fs::write(folder.step_path(200), &small_checkpoint()[..1000]).unwrap();
    assert_eq!(folder.steps().unwrap(), [9, 10, 100, 200]);
    // Names sort as steps do.
    let mut paths = [200, 9, 100, 10].map(|step| folder.step_path(step));
    paths.sort();
    assert_eq!(paths, [9, 10, 100, 200].map(|step| folder.step_path(step)));

    let read_only = checkpoint::newest(&scratch.0).unwrap().unwrap();
    assert_eq!((read_only.step, read_only.damaged.len()), (100, 1));
    assert_eq!(folder.steps().unwrap().len(), 4);
    let newest = folder.newest().unwrap().unwrap();
    assert_eq!((newest.step, &newest.path), (100, &folder.step_path(100)));
    assert_eq!(newest.bytes, small_checkpoint());
    assert!(newest.damaged[0].to_string().contains("step-0000000200.mgpt"));
    assert_eq!(folder.steps().unwrap(), [9, 10, 100]);
    assert_eq!(fs::read(scratch.0.join("step-0000000200.mgpt.damaged")).unwrap().len(), 1000);
    folder.keep_last(100, 2).unwrap();
    assert_eq!(folder.steps().unwrap(), [10, 100]);
}

#[test]
fn what_was_set_aside_before_stays() {
    let scratch = Scratch::new("aside");
    let folder = RunFolder::open(&scratch.0).unwrap();
    with_small_contents(|contents| checkpoint::save(folder.step_path(1), contents, fill)).unwrap();
    let whole = small_checkpoint();
    for length in [100, 200, 300] {
        fs::write(folder.step_path(2), &whole[..length]).unwrap();
        assert_eq!(folder.newest().unwrap().unwrap().step, 1);
    }
    for (name, length) in [("damaged", 100), ("damaged-2", 200), ("damaged-3", 300)] {
        let path = scratch.0.join(format!("step-0000000002.mgpt.{name}"));
        assert_eq!(fs::read(path).unwrap(), whole[..length]);
    }
    assert_eq!(folder.steps().unwrap(), [1]);
}

#[test]
fn a_checkpoint_that_cannot_be_read_is_not_taken_for_a_damaged_one() {
    let scratch = Scratch::new("unreadable");
    let folder = RunFolder::open(&scratch.0).unwrap();
    with_small_contents(|contents| checkpoint::save(folder.step_path(1), contents, fill)).unwrap();
    fs::create_dir(folder.step_path(2)).unwrap();
    let message = folder.newest().unwrap_err().to_string();
    assert!(message.contains("step-0000000002.mgpt"), "{message}");
}

#[test]
fn a_folder_that_cannot_be_is_named_with_advice() {
    let scratch = Scratch::new("paths");
    fs::write(scratch.0.join("file"), "").unwrap();
    for path in [scratch.0.join("file"), scratch.0.join("file/run")] {
        let message = RunFolder::open(&path).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains("choose another"), "{message}");
    }
}

#[test]
fn a_journal_ends_where_it_is_torn_or_no_longer_wanted() {
    let scratch = Scratch::new("journal");
    let path = scratch.0.join("lines");
    for (there, kept) in [
        (&b""[..], ""),
        (b"1\n2\n3\n", "1\n2\n"),
        (b"1\n2", "1\n"),
        (b"1\n\xff\xfe\n2\n", "1\n"),
        (b"1\n\0\0\0\0\n2\n", "1\n"),
        (b"1\n9\n2\n", "1\n"),
        (b"\n1\n", ""),
    ] {
        fs::write(&path, there).unwrap();
        let mut journal = Journal::open(&path, |line| ["1", "2"].contains(&line)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), kept);
        journal.append("new").unwrap();
        journal.append("newer").unwrap();
        journal.sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{kept}new\nnewer\n"));
    }
    let message = Journal::open(&scratch.0, |_| true).unwrap_err().to_string();
    assert!(message.contains(scratch.0.to_str().unwrap()), "{message}");
}
