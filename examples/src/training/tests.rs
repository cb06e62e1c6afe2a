//! Whole runs of seconds, and what stops them.

use std::cell::Cell;
use std::fs;

use clap::Parser;
use minigpt_core::checkpoint::{self, Checkpoint};
use minigpt_core::{Model, Reference};

use super::*;
use crate::metrics::{Measured, Metrics};
use crate::scratch::Scratch;

const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

/// Flags for a run of seconds, on a text in `scratch`.
fn options(scratch: &Scratch, flags: &str) -> Options {
    let data = scratch.path("text.txt");
    if !data.exists() {
        fs::write(&data, TEXT.repeat(40)).unwrap();
    }
    let common = format!(
        "train --data {} --out {} --layers 1 --heads 2 --d-model 16 --context 8 --batch 2 --iterations 24 \
         --eval-every 8 --eval-batches 2 --log-every 4 --sample 5 --warmup 2",
        data.display(),
        scratch.path("run").display()
    );
    Options::try_parse_from(common.split_whitespace().chain(flags.split_whitespace())).unwrap()
}

fn resumed(scratch: &Scratch) -> Options {
    let (data, out) = (scratch.path("text.txt"), scratch.path("run"));
    let flags = format!("train --resume --data {} --out {}", data.display(), out.display());
    Options::try_parse_from(flags.split_whitespace()).unwrap()
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
    assert!(line.ends_with("checkpoint.mgpt") && !line.contains("entropy"), "{line}");
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
    let flags = "--dropout 0.1 --accumulation 2";
    train(&options(&whole, flags), || false).unwrap();
    let asked = Cell::new(0);
    let stop_after = |count: u32| {
        asked.set(0);
        let asked = &asked;
        move || {
            asked.set(asked.get() + 1);
            asked.get() == count
        }
    };
    let End::Interrupted { step: 5, flags } = train(&options(&parts, flags), stop_after(5)).unwrap() else {
        panic!()
    };
    let resumed = || Options::try_parse_from(["train"].into_iter().chain(flags.split(' '))).unwrap();
    assert!(matches!(train(&resumed(), stop_after(9)).unwrap(), End::Interrupted { step: 14, .. }));
    // Metrics from behind the checkpoint, as a run that was killed leaves them, are measured again.
    let metrics = parts.path("run").join("metrics.jsonl");
    let late = "{\"step\":16,\"val_loss\":9.0,\"seconds\":1.0}\n";
    fs::write(&metrics, fs::read_to_string(&metrics).unwrap() + late).unwrap();
    assert!(matches!(train(&resumed(), || false).unwrap(), End::Finished(_)));
    let bytes = |scratch: &Scratch| fs::read(scratch.path("run").join("checkpoint.mgpt")).unwrap();
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
    let origins = [Origin::BuiltIn(1), Origin::File("a b/text".into()), Origin::Downloaded(None)];
    let [built_in, file, downloaded] = origins.map(|origin| options.to_resume(&origin));
    assert_eq!(built_in, r"--resume --out 'it'\''s here' --built-in --backend reference");
    assert_eq!(file, r"--resume --out 'it'\''s here' --data 'a b/text' --backend reference");
    assert_eq!(downloaded, r"--resume --out 'it'\''s here' --backend reference");
}

#[test]
fn settings_cannot_be_changed_in_the_middle_of_a_run() {
    let flags = ["train", "--resume", "--lr", "0.1"];
    let error = Options::try_parse_from(flags).unwrap_err().to_string();
    assert!(error.contains("cannot be used with") && error.contains("--resume"), "{error}");
}

#[test]
fn nothing_to_resume_is_an_error() {
    let scratch = Scratch::new();
    options(&scratch, "");
    let error = error(&resumed(&scratch));
    assert!(error.contains("there is no run to resume") && error.contains("--out"), "{error}");
}

#[test]
fn a_run_is_not_resumed_on_another_text() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), || false).unwrap();
    fs::write(scratch.path("text.txt"), TEXT.repeat(41)).unwrap();
    let error = error(&resumed(&scratch));
    assert!(error.contains("the run was on another text") && error.contains("--built-in"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_not_resumed() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), || false).unwrap();
    let path = scratch.path("run").join("checkpoint.mgpt");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let refused = error(&resumed(&scratch));
    assert!(refused.contains("checksum"), "{refused}");
}

#[test]
fn an_empty_text_is_refused() {
    let scratch = Scratch::new();
    let options = options(&scratch, "");
    fs::write(scratch.path("text.txt"), "").unwrap();
    assert!(error(&options).contains("is empty"));
}

#[test]
fn a_text_shorter_than_the_context_is_refused_with_one_that_fits() {
    let scratch = Scratch::new();
    let options = options(&scratch, "");
    fs::write(scratch.path("text.txt"), &TEXT[..40]).unwrap();
    let error = error(&options);
    assert!(error.contains("40 tokens, of which 4 validate") && error.contains("--context 3"), "{error}");
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
    assert!(error.contains("cannot make the folder") && error.contains("--out"), "{error}");
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused() {
    let scratch = Scratch::new();
    let error = error(&options(&scratch, "--heads 3"));
    assert!(error.contains("try heads 2"), "{error}");
}

#[test]
fn a_learning_rate_that_destroys_the_model_stops_the_run_and_keeps_the_checkpoint() {
    let scratch = Scratch::new();
    let flags = "--iterations 400 --eval-every 400 --lr 1e38 --warmup 0 --clip inf";
    let error = error(&options(&scratch, flags));
    assert!(
        error.contains("The checkpoint of step 0 is kept") && error.contains("Try a lower --lr"),
        "{error}"
    );
    let bytes = checkpoint::load(scratch.path("run").join("checkpoint.mgpt")).unwrap();
    let mut model =
        Model::load(Reference::<f32>::new(), &Checkpoint::open_verified(&bytes).unwrap()).unwrap();
    let logits = model.logits(&[0, 1], 1, 2).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn a_new_run_sets_the_earlier_ones_aside() {
    let scratch = Scratch::new();
    let file = |path: &str| fs::read(scratch.path("run").join(path)).unwrap();
    train(&options(&scratch, "--seed 1"), || false).unwrap();
    let first = ["checkpoint.mgpt", "metrics.jsonl", "loss.svg"].map(file);
    train(&options(&scratch, "--seed 2"), || false).unwrap();
    let second = file("checkpoint.mgpt");
    assert!(second != first[0]);
    train(&options(&scratch, "--seed 3"), || false).unwrap();
    assert!(
        first == ["checkpoint.mgpt", "metrics.jsonl", "loss.svg"].map(|f| file(&format!("earlier-1/{f}")))
    );
    assert!(second == file("earlier-2/checkpoint.mgpt"));
}
