//! What cannot be written costs nothing that was.

use std::process::Stdio;

use super::child::{Process, Run, Scratch};

/// The message of a run that must fail.
pub(crate) fn error(command: &mut std::process::Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn two_trainers_of_one_folder_refuse_each_other_until_one_is_killed() {
    let scratch = Scratch::new();
    let run = scratch.run("run", "--iterations 100000000 --eval-every 100000000 --log-every 1");
    let mut first = Process::start(&mut run.command(&[]));
    first.wait_until(|| run.folder.is_dir() && !run.steps().is_empty());
    let refused = error(&mut run.command(&[]));
    assert!(refused.contains("another run writes to") && refused.contains("--out"), "{refused}");
    assert!(refused.contains(run.folder.to_str().unwrap()), "{refused}");
    drop(first);
    let files = run.files();
    run.train_until(3);
    assert_eq!(run.steps(), [0, 3]);
    assert!(run.files()["step-0000000000.mgpt"] == files["step-0000000000.mgpt"]);
}

/// A run of 40 steps that cannot write in the middle, by `refused`, has lost nothing and ends as another did.
fn loses_nothing(scratch: &Scratch, flags: &str, refused: impl FnOnce(&Run) -> String) {
    let flags = format!("--iterations 40 --eval-every 10 --log-every 1 {flags}");
    let (whole, run) = (scratch.run("whole", &flags), scratch.run("run", &flags));
    whole.train_until(u32::MAX);
    run.train_until(25);
    let before = run.checkpoints();
    let message = refused(&run);
    assert!(message.contains("--resume") && message.contains(run.folder.to_str().unwrap()), "{message}");
    let after = run.checkpoints();
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name}");
    }
    assert!(!run.has_temporary());
    assert_eq!(run.metrics_until(25), whole.metrics_until(25));
    run.train_until(u32::MAX);
    assert!(run.checkpoints() == whole.checkpoints());
    assert_eq!(run.metrics_until(u32::MAX), whole.metrics_until(u32::MAX));
}

/// Files may not grow beyond so many units of 512 bytes, and a write that would is an error, as on a full disk.
fn with_small_files(run: &Run, units: u64) -> std::process::Command {
    let limit = format!("trap '' XFSZ; ulimit -f {units}; exec \"$0\" \"$@\"");
    run.command(&["sh", "-c", &limit])
}

#[test]
fn a_checkpoint_that_finds_no_room_loses_nothing() {
    loses_nothing(&Scratch::new(), "--keep 2", |run| {
        let message = error(&mut with_small_files(run, 16));
        assert!(message.contains("cannot write to") && message.contains("step-"), "{message}");
        message
    });
}

#[test]
fn metrics_that_find_no_room_lose_nothing() {
    loses_nothing(&Scratch::new(), "--keep 2", |run| {
        // As if the steps before had left much to read: these lines are cut off, and the file has room for few more.
        let checkpoint = run.files()["step-0000000025.mgpt"].len();
        let path = run.folder.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(checkpoint > text.len());
        // Blanks within the first line make the file as long as the limit, but for a part of the next line.
        let limit = checkpoint.div_ceil(1024) * 1024 + 1024;
        let padded = text.replacen('{', &format!("{{{}", " ".repeat(limit - 50 - text.len())), 1);
        std::fs::write(&path, padded).unwrap();
        let message = error(&mut with_small_files(run, limit as u64 / 512));
        assert!(message.contains("cannot write to") && message.contains("metrics.jsonl"), "{message}");
        message
    });
}

#[test]
fn a_first_checkpoint_that_finds_no_room_is_begun_again() {
    let scratch = Scratch::new();
    let run = scratch.run("run", "--iterations 4");
    let message = error(&mut with_small_files(&run, 16));
    assert!(message.trim_end().ends_with("then begin again, for nothing was saved yet"), "{message}");
    run.train_until(u32::MAX);
    assert_eq!(run.steps(), [0, 4]);
}

/// The program takes care of the signal that ends others there.
#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_sudden_end() {
    loses_nothing(&Scratch::new(), "--keep 2", |run| {
        let limit = "ulimit -f 16; exec \"$0\" \"$@\"";
        let message = error(&mut run.command(&["sh", "-c", limit]));
        assert!(message.contains("raise the limit on the size of files"), "{message}");
        message
    });
}

/// By another user where this one may write anywhere: permissions do not bind root.
#[test]
fn a_folder_that_becomes_read_only_loses_nothing() {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65534;
    let scratch = Scratch::new();
    loses_nothing(&scratch, "--keep 2", |run| {
        let set = |mode| fs::set_permissions(&run.folder, Permissions::from_mode(mode)).unwrap();
        set(0o555);
        let root = fs::write(run.folder.join("probe"), "").is_ok();
        let mut command = if root {
            fs::remove_file(run.folder.join("probe")).unwrap();
            for entry in fs::read_dir(&run.folder).unwrap() {
                chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            chown(&run.folder, Some(NOBODY), Some(NOBODY)).unwrap();
            // The program may lie where only root can go.
            let program = scratch.path("program");
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
            let mut command = run.command_of(&program, &[]);
            command.uid(NOBODY).gid(NOBODY).current_dir(scratch.path(""));
            command
        } else {
            run.command(&[])
        };
        let message = error(&mut command);
        set(0o755);
        assert!(message.contains("choose a place where this program may"), "{message}");
        message
    });
}
