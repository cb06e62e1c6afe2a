//! A training run in a process of its own, and what it leaves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::Parser;
use minigpt_examples::testing;
use minigpt_examples::training::{End, Options, command, train};

/// Set in the process that trains: its flags, separated by line breaks.
const FLAGS: &str = "MINIGPT_TEST_FLAGS";

/// Nothing in the process that `cargo test` starts; the program train_shakespeare in one that a test starts.
#[test]
fn train_in_this_process() {
    if let Ok(flags) = std::env::var(FLAGS) {
        std::process::exit(command(&options(&flags)).into());
    }
}

fn options(flags: &str) -> Options {
    Options::try_parse_from(["train"].into_iter().chain(flags.lines())).unwrap_or_else(|e| panic!("{e}"))
}

/// A folder with a text to train on, for the runs of one test; removed at the end.
pub(crate) struct Scratch(testing::Scratch);

impl Scratch {
    pub(crate) fn new() -> Self {
        let folder = testing::Scratch::new();
        fs::write(folder.path("text.txt"), "the quick brown fox jumps over the lazy dog; ".repeat(40))
            .unwrap();
        Scratch(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// A run of a small model in the folder `run`, with these flags besides, separated by blanks.
    pub(crate) fn run(&self, run: &str, flags: &str) -> Run {
        let (data, out) = (self.path("text.txt"), self.path(run));
        let data = format!("--data\n{}\n", data.display());
        let model = "--layers 1 --heads 2 --d-model 16 --context 8 --batch 2 --warmup 2 --sample 0 --threads 1 \
                     --eval-windows 2";
        let settings = [model, flags].join(" ").split_whitespace().collect::<Vec<_>>().join("\n");
        Run { folder: out, data, settings }
    }
}

/// A run, which may be trained in pieces.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) folder: PathBuf,
    /// The flag that names the text.
    data: String,
    settings: String,
}

impl Run {
    /// The flags that begin the run, or those that go on with it if it has a checkpoint.
    fn flags(&self) -> String {
        let resume = self.folder.is_dir() && !self.steps().is_empty();
        let settings = if resume { "--resume" } else { &self.settings };
        format!("{}--out\n{}\n{settings}", self.data, self.folder.display())
    }

    /// The same on a text that comes in by the standard input.
    pub(crate) fn piped(self) -> Run {
        Run { data: "--data\n-\n".into(), ..self }
    }

    /// The same, where nobody says on which text.
    pub(crate) fn nameless(self) -> Run {
        Run { data: String::new(), ..self }
    }

    /// What starts the training in a process of its own; `wrapper` are words before the program's.
    pub(crate) fn command(&self, wrapper: &[&str]) -> Command {
        self.command_of(&std::env::current_exe().unwrap(), wrapper)
    }

    /// The same by a copy of this program.
    pub(crate) fn command_of(&self, program: &Path, wrapper: &[&str]) -> Command {
        let words = wrapper.iter().map(OsString::from).chain([program.as_os_str().to_owned()]);
        let mut words =
            words.chain(["child::train_in_this_process", "--exact", "--nocapture"].map(OsString::from));
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env(FLAGS, self.flags()).stdout(Stdio::null());
        command
    }

    /// Trains in this process until behind `step`, or to the end.
    pub(crate) fn train_until(&self, step: u32) -> End {
        let before =
            minigpt_core::checkpoint::newest(&self.folder).ok().flatten().map_or(0, |newest| newest.step);
        let steps = std::cell::Cell::new(before);
        train(&options(&self.flags()), || {
            steps.set(steps.get() + 1);
            steps.get() == step
        })
        .unwrap()
    }

    /// All files, by name.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).unwrap() {
            let entry = entry.unwrap();
            if let Ok(bytes) = fs::read(entry.path()) {
                files.insert(entry.file_name().into_string().unwrap(), bytes);
            }
        }
        files
    }

    /// The checkpoints, by name.
    pub(crate) fn checkpoints(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files();
        files.retain(|name, _| name.ends_with(".mgpt"));
        files
    }

    pub(crate) fn steps(&self) -> Vec<u32> {
        let names =
            fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u32> = names
            .filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".mgpt")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    /// The metrics without the time that they took, up to `step`.
    pub(crate) fn metrics_until(&self, step: u32) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.folder.join("metrics.jsonl")).unwrap();
        let records = text.lines().map_while(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        records
            .filter(|record| record["step"].as_u64().unwrap() <= step.into())
            .map(|mut record| {
                record.as_object_mut().unwrap().remove("seconds").unwrap();
                record
            })
            .collect()
    }

    /// Whether a file lies there that a process is writing, or was when it was killed.
    pub(crate) fn has_temporary(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.folder) else { return false };
        entries.flatten().any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(".minigpt-") && name.ends_with(".tmp")
        })
    }
}

/// A process; killed when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Process(command.spawn().unwrap())
    }

    /// Waits until `ready`, which must be while the process runs.
    pub(crate) fn wait_until(&mut self, ready: impl Fn() -> bool) {
        while !ready() {
            assert!(self.0.try_wait().unwrap().is_none(), "the process ended before its time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
