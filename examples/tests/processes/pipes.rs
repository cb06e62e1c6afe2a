//! Texts that come in by a pipe, and output that nobody reads to its end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::child::{Run, Scratch};
use super::refusals::error;

#[test]
fn who_reads_no_further_ends_the_run_quietly_and_it_goes_on_later() {
    let scratch = Scratch::new();
    let run = scratch.run("run", "--iterations 100000000 --eval-every 1");
    let mut child = run.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // As head does.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().starts_with("step 2:")).unwrap().unwrap();
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 13), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("the standard output was closed") && message.lines().count() == 1, "{message}");
    assert!(message.contains("--resume") && !run.has_temporary());
    // As it says: what was saved is there, and it goes on from that.
    let last = *run.steps().last().unwrap();
    assert!(last >= 2);
    let other = scratch.run("other", "--iterations 100000000 --eval-every 1");
    for run in [&run, &other] {
        run.train_until(last + 2);
    }
    assert!(run.checkpoints() == other.checkpoints());
}

#[test]
fn a_text_that_is_piped_in_is_piped_in_again_to_go_on() {
    let scratch = Scratch::new();
    let flags = "--iterations 20 --eval-every 10";
    let (piped, named) = (scratch.run("piped", flags).piped(), scratch.run("named", flags));
    let command = |run: &Run| {
        let mut command = run.command(&[]);
        command.stdin(File::open(scratch.path("text.txt")).unwrap());
        command
    };
    named.train_until(u32::MAX);
    assert!(command(&piped).status().unwrap().success());
    assert!(piped.checkpoints() == named.checkpoints());
    // Without the pipe the run says how to go on, and so it does.
    let message = error(&mut piped.clone().nameless().command(&[]));
    assert!(
        message.contains("trained with --data -") && message.contains("and name it with --data -"),
        "{message}"
    );
    assert!(command(&piped).status().unwrap().success());
}

/// What comes in by the standard input may be in another encoding; the advice is a stage of the pipe.
#[cfg(target_os = "linux")]
#[test]
fn a_text_in_another_encoding_is_piped_through_what_is_advised() {
    let scratch = Scratch::new();
    let latin1: Vec<u8> = b"caf\xe9 au lait; ".repeat(40);
    std::fs::write(scratch.path("text.txt"), latin1).unwrap();
    let run = scratch.run("run", "--iterations 3").piped();
    let input = || File::open(scratch.path("text.txt")).unwrap();
    let message = error(run.command(&[]).stdin(input()));
    let (_, stage) = message.lines().next().unwrap().split_once("pipe it through: ").unwrap();
    let mut stage =
        Command::new("sh").args(["-c", stage]).stdin(input()).stdout(Stdio::piped()).spawn().unwrap();
    let mut converted = run.command(&[]);
    assert!(converted.stdin(stage.stdout.take().unwrap()).status().unwrap().success());
    assert!(stage.wait().unwrap().success());
}
