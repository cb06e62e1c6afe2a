//! Whole runs of seconds, and what stops them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;

use clap::Parser;
use minigpt_core::checkpoint::{self, Checkpoint};
use minigpt_core::{Bias, GptConfig, Model, Reference};

use super::*;
use crate::metrics::{Measured, Metrics};
use crate::options::{BackendName, CheckpointOptions, RecomputeName, Which, load_which};
use crate::testing::Scratch;

mod chores;
mod rescue;
mod settings;

const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

/// Flags for a run of seconds, on a text in `scratch`; `flags` besides, or in place of those.
fn options(scratch: &Scratch, flags: &str) -> Options {
    let data = scratch.path("text.txt");
    if !data.exists() {
        fs::write(&data, TEXT.repeat(40)).unwrap();
    }
    let common = format!(
        "--data {} --out {} --layers 1 --heads 2 --d-model 16 --context 8 --batch 2 --iterations 24 --eval-every 8 \
         --eval-windows 4 --log-every 4 --sample 5 --warmup 2",
        data.display(),
        scratch.path("run").display()
    );
    parsed(&common, flags)
}

/// The options of `common` flags, which each have a value, and of `flags`, which take their place.
fn parsed(common: &str, flags: &str) -> Options {
    let words: Vec<&str> = common.split_whitespace().collect();
    let kept = words
        .chunks(2)
        .filter(|pair| !flags.split_whitespace().any(|flag| flag == pair[0]))
        .flatten()
        .copied();
    Options::try_parse_from(["train"].into_iter().chain(kept).chain(flags.split_whitespace())).unwrap()
}

/// Goes on with the run, with these flags besides, on the text that it was on.
fn resumed_with(scratch: &Scratch, flags: &str) -> Options {
    parsed(&format!("--out {}", scratch.path("run").display()), &format!("--resume {flags}"))
}

fn resumed(scratch: &Scratch) -> Options {
    resumed_with(scratch, "")
}

/// Trains to the end.
fn finished(options: &Options) -> Summary {
    match train(options, || false).unwrap() {
        End::Finished(summary) => summary,
        End::Interrupted { step, .. } => panic!("stopped after step {step}"),
    }
}

/// What says stop when it is asked for the `count`-th time.
fn stop_at(count: u32) -> impl Fn() -> bool {
    let asked = Cell::new(0);
    move || {
        asked.set(asked.get() + 1);
        asked.get() == count
    }
}

fn error(options: &Options) -> String {
    train(options, || false).unwrap_err().to_string()
}

#[test]
fn a_run_leaves_a_checkpoint_metrics_and_a_curve() {
    let scratch = Scratch::new();
    let End::Finished(summary) = train(&options(&scratch, ""), || false).unwrap() else { panic!() };
    assert!(summary.val_loss < 3.5 && summary.tokens_per_s > 0.0, "{summary}");
    let line = summary.to_string();
    assert!(line.starts_with("result val_loss=") && line.contains(" iterations=24 seconds="), "{line}");
    assert!(line.ends_with("step-0000000024.mgpt") && !line.contains("entropy"), "{line}");
    let metrics = fs::read_to_string(scratch.path("run").join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("val_loss")).count(), 3);
    assert_eq!(metrics.lines().filter(|line| line.contains("\"loss\"")).count(), 6);
    assert!(fs::read_to_string(scratch.path("run").join("loss.svg")).unwrap().contains("validation"));
    let bytes = checkpoint::load(&summary.checkpoint).unwrap();
    assert!(Checkpoint::open_verified(&bytes).unwrap().tokenizer().is_some());
}

#[test]
fn a_stopped_run_resumes_to_the_same_bytes() {
    let (whole, parts) = (Scratch::new(), Scratch::new());
    // A warm-up that is longer than that of a run without the flag stays so, too.
    let flags = "--dropout 0.1 --accumulation 2 --warmup 20";
    train(&options(&whole, flags), || false).unwrap();
    let End::Interrupted { step: 5, flags } = train(&options(&parts, flags), stop_at(5)).unwrap() else {
        panic!()
    };
    let resumed = || Options::try_parse_from(["train"].into_iter().chain(flags.split(' '))).unwrap();
    assert!(matches!(train(&resumed(), stop_at(9)).unwrap(), End::Interrupted { step: 14, .. }));
    // Metrics from behind the checkpoint, as a run that was killed leaves them, are measured again.
    let metrics = parts.path("run").join("metrics.jsonl");
    let late = "{\"step\":16,\"val_loss\":9.0,\"seconds\":1.0}\n";
    fs::write(&metrics, fs::read_to_string(&metrics).unwrap() + late).unwrap();
    // What is recomputed is the machine's business and may change.
    let last = Options { recompute: RecomputeName::Blocks, ..resumed() };
    assert!(matches!(train(&last, || false).unwrap(), End::Finished(_)));
    let bytes = |scratch: &Scratch| fs::read(scratch.path("run").join("step-0000000024.mgpt")).unwrap();
    assert!(bytes(&whole) == bytes(&parts));
    let losses = |scratch: &Scratch| -> Vec<Measured> {
        let metrics = Metrics::resume(&scratch.path("run").join("metrics.jsonl"), u32::MAX).unwrap();
        metrics.records().iter().map(|record| record.measured).collect()
    };
    assert_eq!(losses(&whole), losses(&parts));
}

#[test]
fn the_flags_to_resume_name_the_text_and_survive_a_shell() {
    let options = Options::try_parse_from(["train", "--out", "it's here", "--backend", "reference"]).unwrap();
    let flags = options.to_resume("--data 'a b/text'");
    assert_eq!(flags, r"--resume --out 'it'\''s here' --data 'a b/text' --backend reference");
    assert_eq!(options.to_resume(""), r"--resume --out 'it'\''s here' --backend reference");
    let keeping = Options { keep: NonZeroUsize::MIN, ..options };
    assert!(keeping.to_resume("--built-in").ends_with(" --built-in --keep 1 --backend reference"));
    let frugal = Options { backend: BackendName::Cpu, recompute: RecomputeName::Blocks, ..keeping };
    assert!(frugal.to_resume("").ends_with(" --keep 1 --recompute blocks"));
}

#[test]
fn the_shape_of_a_model_cannot_be_changed_in_the_middle_of_a_run() {
    let scratch = Scratch::new();
    finished(&options(&scratch, ""));
    for (flags, named) in [
        ("--layers 2", "--layers says"),
        ("--context 8 --bias", "--context --bias say"),
        ("--preset gpu", "--preset says"),
        ("--seed 3", "--seed is"),
    ] {
        let message = error(&resumed_with(&scratch, flags));
        assert!(message.starts_with(named) && message.contains("leave "), "{message}");
    }
    // As they say.
    finished(&resumed(&scratch));
    let words = ["train", "--resume", "--from", "x"];
    let error = Options::try_parse_from(words).unwrap_err().to_string();
    assert!(error.contains("cannot be used with"), "{error}");
}

#[test]
fn each_part_of_a_family_can_be_taken_back() {
    let config = |flags: &str| {
        let words = ["train", "--family", "llama"].into_iter().chain(flags.split_whitespace());
        Options::try_parse_from(words).unwrap().shape.model(65)
    };
    let llama = GptConfig::llama(65, 64);
    assert_eq!(config(""), llama);
    assert_eq!(config("--tied"), GptConfig { tied_embeddings: true, ..llama.clone() });
    assert_eq!(config("--gated false"), GptConfig { gated: false, ..llama.clone() });
    assert_eq!(config("--gated --bias none"), llama);
    let biased = Bias { qkv: true, norm: true, ..Bias::NONE };
    assert_eq!(config("--bias qkv,norm --gated"), GptConfig { bias: biased, ..llama.clone() });
    assert_eq!(config("--bias=none"), llama);
    assert_eq!(config("--bias --layers 4"), GptConfig { bias: Bias::ALL, ..llama });
    let error = Options::try_parse_from(["train", "--tied", "--untied"]).unwrap_err().to_string();
    assert!(error.contains("cannot be used with"), "{error}");
}

#[test]
fn nothing_to_resume_is_an_error() {
    let scratch = Scratch::new();
    let error = error(&resumed(&scratch));
    assert!(error.contains("there is no run to resume"), "{error}");
    assert!(error.ends_with("name the run's folder with --out, or leave out --resume"), "{error}");
    // Both of it.
    finished(&options(&scratch, ""));
    finished(&resumed(&scratch));
}

#[test]
fn a_run_is_not_resumed_on_another_text() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), || false).unwrap();
    fs::write(scratch.path("text.txt"), TEXT.repeat(41)).unwrap();
    let error = error(&resumed(&scratch));
    assert!(error.contains("the run was on another text") && error.contains("--built-in"), "{error}");
    // It says which one, and how to train the model on this one.
    assert!(error.contains("text.txt"), "{error}");
    let (_, command) =
        error.split_once("begin a new run: cargo run --release --example train_shakespeare -- ").unwrap();
    let words = ["train"].into_iter().chain(command.split(' ')).chain(["--iterations", "3", "--sample", "0"]);
    finished(&Options::try_parse_from(words).unwrap());
    let moved = corpus::remembered(&scratch.path("run.new")).unwrap();
    assert_eq!(moved.data, [scratch.path("text.txt")]);
    // And the run goes on when it gets its text.
    fs::write(scratch.path("named.txt"), TEXT.repeat(40)).unwrap();
    finished(&resumed_with(
        &scratch,
        &format!("--iterations 30 --data {}", scratch.path("named.txt").display()),
    ));
}

/// The files of the run, by name.
fn files(scratch: &Scratch) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(scratch.path("run")).unwrap().map(|entry| entry.unwrap());
    let file = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()));
    entries.map(file).filter_map(|(name, bytes)| Some((name, bytes.ok()?))).collect()
}

#[test]
fn a_run_goes_on_to_the_same_bytes_on_any_number_of_threads() {
    let (whole, parts) = (Scratch::new(), Scratch::new());
    let flags = "--dropout 0.2 --accumulation 3 --d-model 32 --keep 9";
    train(&options(&whole, &format!("{flags} --threads 1")), || false).unwrap();
    train(&options(&parts, &format!("{flags} --threads 1")), stop_at(5)).unwrap();
    for (threads, steps, behind) in [(3, 6, 11), (1, 8, 19)] {
        let options = Options { threads: Some(threads), ..resumed(&parts) };
        let End::Interrupted { step, .. } = train(&options, stop_at(steps)).unwrap() else { panic!() };
        assert_eq!(step, behind);
    }
    train(&Options { threads: Some(2), ..resumed(&parts) }, || false).unwrap();
    let (whole, parts) = (files(&whole), files(&parts));
    for name in ["step-0000000024.mgpt", "best.mgpt"] {
        assert!(whole[name] == parts[name], "{name}");
    }
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let scratch = Scratch::new();
    train(&options(&scratch, "--eval-every 4 --keep 3"), || false).unwrap();
    let names = |scratch: &Scratch| -> Vec<String> {
        files(scratch).into_keys().filter(|name| name.ends_with(".mgpt")).collect()
    };
    let kept = ["best.mgpt", "step-0000000016.mgpt", "step-0000000020.mgpt", "step-0000000024.mgpt"];
    assert_eq!(names(&scratch), kept);
    // What is kept can be changed when the run goes on.
    let one = Options { keep: NonZeroUsize::MIN, ..resumed(&scratch) };
    train(&one, || false).unwrap();
    assert_eq!(names(&scratch), ["best.mgpt", "step-0000000024.mgpt"]);
}

#[test]
fn the_best_is_that_of_the_lowest_validation_loss_also_when_resumed() {
    let (whole, parts) = (Scratch::new(), Scratch::new());
    // A rate at which the loss falls and rises.
    let flags = "--eval-every 1 --keep 99 --lr 0.3 --warmup 0 --schedule constant --clip inf";
    train(&options(&whole, flags), || false).unwrap();
    let losses = |scratch: &Scratch| -> Vec<(f64, f64)> {
        Metrics::resume(&scratch.path("run").join("metrics.jsonl"), u32::MAX).unwrap().validation()
    };
    let best = losses(&whole).into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert!(1.0 < best && best < 24.0, "{best} does not lie within the run: {:?}", losses(&whole));
    let of_whole = files(&whole);
    assert!(of_whole["best.mgpt"] == of_whole[&format!("step-{best:010}.mgpt")]);
    // Stopped right behind the best one, so that only the checkpoint can know what is to beat.
    let stopped = train(&options(&parts, flags), stop_at(best as u32 + 1)).unwrap();
    assert!(matches!(stopped, End::Interrupted { .. }));
    train(&Options { keep: NonZeroUsize::new(99).unwrap(), ..resumed(&parts) }, || false).unwrap();
    assert!(files(&parts)["best.mgpt"] == of_whole["best.mgpt"]);
    assert_eq!(losses(&parts), losses(&whole));
}

#[test]
fn a_damaged_newest_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), || false).unwrap();
    let before = files(&scratch);
    let newest = "step-0000000024.mgpt";
    let mut damaged = before[newest].clone();
    let last = damaged.len() - 100;
    damaged[last] ^= 1;
    fs::write(scratch.path("run").join(newest), &damaged).unwrap();
    train(&resumed(&scratch), || false).unwrap();
    let after = files(&scratch);
    assert!(after[newest] == before[newest] && after["best.mgpt"] == before["best.mgpt"]);
    assert!(after["step-0000000024.mgpt.damaged"] == damaged);
}

#[test]
fn a_run_without_a_whole_checkpoint_is_not_resumed() {
    let scratch = Scratch::new();
    train(&options(&scratch, "--keep 1"), || false).unwrap();
    let path = scratch.path("run").join("step-0000000024.mgpt");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = error(&resumed(&scratch));
    assert!(refused.contains("checksum") && refused.contains(path.to_str().unwrap()), "{refused}");
}

#[test]
fn a_folder_that_another_run_writes_to_is_refused() {
    let scratch = Scratch::new();
    let other = Folder::open(&scratch.path("run")).unwrap();
    let refused = error(&options(&scratch, ""));
    finished(&options(&scratch, &format!("--out {}", scratch.path("another").display())));
    drop(other);
    finished(&options(&scratch, ""));
    assert!(refused.contains("another run writes to") && refused.contains("--out"), "{refused}");
    assert!(refused.contains(scratch.path("run").to_str().unwrap()), "{refused}");
}

#[test]
fn programs_take_a_file_or_the_best_or_last_of_a_folder() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), || false).unwrap();
    let run = scratch.path("run");
    let files = files(&scratch);
    let loaded = |path: &std::path::Path, which| load_which(path, which).unwrap().bytes;
    assert!(loaded(&run, None) == files["step-0000000024.mgpt"]);
    assert!(loaded(&run, Some(Which::Last)) == files["step-0000000024.mgpt"]);
    assert!(loaded(&run, Some(Which::Best)) == files["best.mgpt"]);
    assert!(loaded(&run.join("best.mgpt"), None) == files["best.mgpt"]);
    let refused = load_which(&run.join("best.mgpt"), Some(Which::Best)).unwrap_err().to_string();
    assert!(refused.contains("leave out --which"), "{refused}");
    fs::remove_file(run.join("best.mgpt")).unwrap();
    let refused = load_which(&run, Some(Which::Best)).unwrap_err().to_string();
    assert!(refused.ends_with("; --which last takes another"), "{refused}");
    loaded(&run, Some(Which::Last));
    fs::create_dir(scratch.path("empty")).unwrap();
    for missing in ["empty", "nothing"] {
        let missing = scratch.path(missing);
        let error = load_which(&missing, None).unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()), "{error}");
        let options = CheckpointOptions { checkpoint: missing, which: None };
        let error = options.load().unwrap_err().to_string();
        assert!(error.contains("train first") && !error.contains("make its folder"), "{error}");
    }
}

#[test]
fn an_empty_text_is_refused() {
    let scratch = Scratch::new();
    let options = options(&scratch, "");
    fs::write(scratch.path("text.txt"), "").unwrap();
    assert!(error(&options).contains("is empty"));
}

#[test]
fn a_batch_beyond_memory_is_refused_before_it_is_allocated() {
    let scratch = Scratch::new();
    let error = error(&options(&scratch, "--batch 3000000000"));
    assert!(
        error.contains("are available: the largest batch that fits is ") && error.contains("--batch"),
        "{error}"
    );
}

#[test]
fn a_folder_under_a_file_is_refused() {
    let scratch = Scratch::new();
    let mut options = options(&scratch, "");
    options.out = scratch.path("text.txt").join("run");
    let error = error(&options);
    assert!(error.contains("cannot make the folder") && error.ends_with("--out names another"), "{error}");
    options.out = scratch.path("run");
    finished(&options);
}

#[test]
fn a_new_run_sets_the_earlier_ones_aside() {
    let scratch = Scratch::new();
    let file = |path: &str| fs::read(scratch.path("run").join(path)).unwrap();
    train(&options(&scratch, "--seed 1"), || false).unwrap();
    let names = ["step-0000000016.mgpt", "step-0000000024.mgpt", "best.mgpt", "metrics.jsonl", "loss.svg"];
    let first = names.map(file);
    train(&options(&scratch, "--seed 2"), || false).unwrap();
    let second = file(names[1]);
    assert!(second != first[1]);
    train(&options(&scratch, "--seed 3"), || false).unwrap();
    assert!(first == names.map(|name| file(&format!("earlier-1/{name}"))));
    assert!(second == file(&format!("earlier-2/{}", names[1])));
}
