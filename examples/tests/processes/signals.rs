//! Signals that ask a run to end make it save first.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::child::{Process, Run, Scratch};

/// More steps than any test has time for, and no save on the way.
const ENDLESS: &str = "--iterations 100000000 --eval-every 100000000 --log-every 1";

fn send(signal: &str, process: &Process) {
    let kill = format!("kill -{signal} {}", process.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

fn lines(run: &Run) -> usize {
    fs::read_to_string(run.folder.join("metrics.jsonl")).unwrap_or_default().lines().count()
}

/// The run was stopped with this code, and its checkpoint is that of a run that stopped behind the same step.
fn assert_saved(scratch: &Scratch, run: &Run, mut process: Process, code: i32) {
    assert_eq!(process.0.wait().unwrap().code(), Some(code));
    let step = *run.steps().last().unwrap();
    assert!(step > 0);
    let other = scratch.run(&format!("other-{code}"), ENDLESS);
    other.train_until(step);
    assert!(run.checkpoints() == other.checkpoints());
    // And both go on alike.
    run.train_until(step + 3);
    other.train_until(step + 3);
    assert!(run.checkpoints() == other.checkpoints());
    assert_eq!(run.metrics_until(u32::MAX), other.metrics_until(u32::MAX));
}

/// Makes a process heed SIGHUP, also where these tests run under nohup.
#[cfg(target_os = "linux")]
const HEEDS_HANGUP: &[&str] = &["env", "--default-signal=HUP"];
#[cfg(not(target_os = "linux"))]
const HEEDS_HANGUP: &[&str] = &[];

#[test]
fn a_run_that_is_asked_to_end_saves_first() {
    let scratch = Scratch::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let run = scratch.run(signal, ENDLESS);
        let mut process = Process::start(&mut run.command(HEEDS_HANGUP));
        process.wait_until(|| lines(&run) > 0);
        send(signal, &process);
        assert_saved(&scratch, &run, process, code);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let scratch = Scratch::new();
    let run = scratch.run("nohup", ENDLESS);
    let mut process = Process::start(&mut run.command(&["sh", "-c", "trap '' HUP; exec \"$0\" \"$@\""]));
    process.wait_until(|| lines(&run) > 0);
    send("HUP", &process);
    let before = lines(&run);
    process.wait_until(|| lines(&run) > before + 20);
    send("TERM", &process);
    assert_saved(&scratch, &run, process, 143);
}

/// While a text comes in there is nothing to save, and a signal ends the process as it ends others.
#[test]
fn a_run_that_waits_for_its_text_ends_at_once() {
    let scratch = Scratch::new();
    let run = scratch.run("run", ENDLESS).piped();
    for (signal, number) in [("TERM", 15), ("INT", 2)] {
        let mut process = Process::start(run.command(&[]).stdin(Stdio::piped()));
        process.wait_until(|| run.folder.is_dir());
        send(signal, &process);
        assert_eq!(process.0.wait().unwrap().signal(), Some(number));
        fs::remove_dir_all(&run.folder).unwrap();
    }
}

/// In a conversation behind the training nothing is left to save.
#[test]
fn a_conversation_behind_a_training_ends_by_a_signal() {
    let scratch = Scratch::new();
    let run = scratch.run("run", "--iterations 3 --interactive");
    let mut process = Process::start(run.command(&[]).stdin(Stdio::piped()).stderr(Stdio::piped()));
    let mut said = BufReader::new(process.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Type a line") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0);
    }
    send("TERM", &process);
    assert_eq!(process.0.wait().unwrap().signal(), Some(15));
}
