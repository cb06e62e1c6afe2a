//! What a run is asked for once it stands: to go on longer or otherwise, on another text, or no longer than it gains.

use super::*;

#[test]
fn a_finished_run_trains_on_with_other_settings() {
    let scratch = Scratch::new();
    finished(&options(&scratch, ""));
    let summary =
        finished(&resumed_with(&scratch, "--iterations 40 --lr 5e-4 --batch 3 --schedule linear --clip 0.5"));
    assert_eq!(summary.iterations, 40);
    let bytes = checkpoint::load(&summary.checkpoint).unwrap();
    let training = Checkpoint::open_verified(&bytes).unwrap().training().unwrap().config.clone();
    assert_eq!((training.batch, training.clip), (3, 0.5));
    assert_eq!((training.schedule.peak, training.schedule.floor, training.schedule.steps), (5e-4, 5e-5, 40));
    // What was measured before is still there.
    let metrics = Metrics::resume(&scratch.path("run").join("metrics.jsonl"), u32::MAX).unwrap();
    let steps: Vec<f64> = metrics.validation().iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [8.0, 16.0, 24.0, 32.0, 40.0]);
    // And what was changed stays so.
    let again = finished(&resumed_with(&scratch, "--iterations 44"));
    let bytes = checkpoint::load(&again.checkpoint).unwrap();
    assert_eq!(Checkpoint::open_verified(&bytes).unwrap().training().unwrap().config.batch, 3);
}

#[test]
fn fewer_iterations_than_a_run_has_made_are_refused() {
    let scratch = Scratch::new();
    finished(&options(&scratch, ""));
    let message = error(&resumed_with(&scratch, "--iterations 8"));
    assert!(
        message.ends_with("is before step 24, where the run is already: name more, or begin a new run"),
        "{message}"
    );
    assert_eq!(finished(&resumed_with(&scratch, "--iterations 25")).iterations, 25);
    assert_eq!(finished(&options(&scratch, "--iterations 8")).iterations, 8);
}

#[test]
fn a_run_is_resumed_on_its_text_without_naming_it() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), stop_at(5)).unwrap();
    finished(&resumed(&scratch));
    let moved = scratch.path("moved.txt");
    fs::rename(scratch.path("text.txt"), &moved).unwrap();
    let message = error(&resumed_with(&scratch, "--iterations 30"));
    assert!(message.contains("the run was trained with --data") && message.contains("text.txt"), "{message}");
    finished(&resumed_with(&scratch, &format!("--iterations 30 --data {}", moved.display())));
}

#[test]
fn a_checkpoint_is_fine_tuned_on_another_text_as_a_new_run() {
    let scratch = Scratch::new();
    finished(&options(&scratch, ""));
    let other = scratch.path("other.txt");
    fs::write(&other, "the dog jumps over the fox; ".repeat(60)).unwrap();
    let common = |flags: &str| {
        let flags = format!("--data {} --from {} {flags}", other.display(), scratch.path("run").display());
        parsed(
            &format!("--out {} --iterations 30 --eval-every 10 --sample 0", scratch.path("tuned").display()),
            &flags,
        )
    };
    let summary = finished(&common(""));
    let bytes = checkpoint::load(&summary.checkpoint).unwrap();
    let tuned = Checkpoint::open_verified(&bytes).unwrap();
    let source = fs::read(scratch.path("run").join("step-0000000024.mgpt")).unwrap();
    let source = Checkpoint::open_verified(&source).unwrap();
    assert_eq!((tuned.config(), tuned.tokenizer()), (source.config(), source.tokenizer()));
    assert_eq!(summary.iterations, 30);
    // A text that has grown, from the best checkpoint.
    fs::write(&other, TEXT.repeat(50)).unwrap();
    finished(&common("--which best"));
    // Characters that the model does not know are named with their number.
    fs::write(&other, TEXT.repeat(40) + "déjà vu été").unwrap();
    let message = error(&common(""));
    assert!(message.contains("'é' (U+00E9) 3 times") && message.contains("'à' (U+00E0) once"), "{message}");
}

#[test]
fn a_fine_tune_on_fewer_characters_goes_on_with_the_tokenizer_that_it_has() {
    let scratch = Scratch::new();
    finished(&options(&scratch, ""));
    let few = scratch.path("few.txt");
    fs::write(&few, "the fox; ".repeat(60)).unwrap();
    let tune = |out: &str| {
        let common = format!("--out {} --iterations 12 --eval-every 4", scratch.path(out).display());
        let flags = format!("--data {} --from {}", few.display(), scratch.path("run").display());
        parsed(&common, &flags)
    };
    let newest = |out: &str| checkpoint::newest(scratch.path(out)).unwrap().unwrap().bytes;
    finished(&tune("whole"));
    assert!(matches!(train(&tune("parts"), stop_at(5)).unwrap(), End::Interrupted { step: 5, .. }));
    let resumed = parsed(&format!("--out {}", scratch.path("parts").display()), "--resume");
    finished(&resumed);
    assert!(newest("whole") == newest("parts"));
    // On a text with other characters it says so, and not that they are to be removed only.
    fs::write(&few, "the FOX; ".repeat(60)).unwrap();
    let message =
        error(&parsed(&format!("--out {}", scratch.path("parts").display()), "--resume --iterations 20"));
    assert!(
        message.contains("'F' (U+0046) 60 times") && message.contains("the run was on another text"),
        "{message}"
    );
}

#[test]
fn without_another_text_a_new_run_from_a_checkpoint_is_on_its_text() {
    let scratch = Scratch::new();
    finished(&options(&scratch, "--validation-share 0.25"));
    let common = format!("--out {} --iterations 3 --sample 0", scratch.path("tuned").display());
    finished(&parsed(&common, &format!("--from {}", scratch.path("run").display())));
    let text = corpus::remembered(&scratch.path("tuned")).unwrap();
    assert_eq!(text.data, [scratch.path("text.txt")]);
}

#[test]
fn a_run_ends_early_when_validations_get_no_better() {
    let scratch = Scratch::new();
    let flags = "--eval-every 1 --keep 99 --lr 0.3 --warmup 0 --schedule constant --clip inf --patience 3";
    let summary = finished(&options(&scratch, &format!("{flags} --iterations 200")));
    let best = summary.best.unwrap();
    assert_eq!(summary.iterations, best.step + 3);
    assert!(summary.to_string().contains(&format!("best_step={}", best.step)), "{summary}");
    // Without more patience it is at its end; with it, it goes on.
    assert_eq!(finished(&resumed(&scratch)).iterations, best.step + 3);
    assert_eq!(finished(&resumed_with(&scratch, "--patience 0 --iterations 210")).iterations, 210);
}

#[test]
fn a_last_validation_that_is_interrupted_is_made_up_for() {
    let (whole, parts) = (Scratch::new(), Scratch::new());
    for scratch in [&whole, &parts] {
        // So long that the last validation goes in several parts.
        fs::write(scratch.path("text.txt"), TEXT.repeat(12_000)).unwrap();
    }
    let flags = "--eval-every 0 --log-every 0 --sample 0 --iterations 1 --warmup 0";
    let expected = finished(&options(&whole, flags)).val_loss;
    let stopped = train(&options(&parts, flags), || parts.path("run").join("step-0000000001.mgpt").exists());
    assert!(matches!(stopped.unwrap(), End::Interrupted { step: 1, .. }));
    assert_eq!(finished(&resumed(&parts)).val_loss, expected);
}

#[test]
fn a_validation_text_of_its_own_and_another_share_are_taken() {
    let scratch = Scratch::new();
    let own = scratch.path("own.txt");
    fs::write(&own, "the lazy dog; the quick fox").unwrap();
    let trained = || {
        let newest = checkpoint::newest(scratch.path("run")).unwrap().unwrap().bytes;
        let checkpoint = Checkpoint::open_verified(&newest).unwrap();
        super::super::folder::training_tokens(checkpoint.metadata()).unwrap()
    };
    finished(&options(&scratch, &format!("--validation {}", own.display())));
    assert_eq!(trained(), 1800);
    // A resumed run goes by it too, and again.
    finished(&resumed_with(&scratch, "--iterations 30"));
    finished(&resumed_with(&scratch, "--iterations 33"));
    assert_eq!(trained(), 1800);
    finished(&options(&scratch, "--validation-share 0.25"));
    finished(&resumed_with(&scratch, "--iterations 30"));
    assert_eq!(trained(), 1350);
    // The best of before was the best of another text.
    let best = finished(&resumed_with(&scratch, "--iterations 33 --validation-share 0.2")).best.unwrap();
    assert!(trained() == 1440 && best.step > 30, "{best:?}");
}

/// Where the averages of the run and of what was set aside are.
fn averages(scratch: &Scratch) -> Vec<&'static str> {
    let paths = ["run/average.mgpt", "run/earlier-1/average.mgpt", "run/earlier-2/average.mgpt"];
    paths.into_iter().filter(|path| scratch.path(path).exists()).collect()
}

#[test]
fn an_average_of_earlier_weights_does_not_pass_for_that_of_the_last() {
    let scratch = Scratch::new();
    finished(&options(&scratch, "--ema 0.9"));
    assert_eq!(averages(&scratch), ["run/average.mgpt"]);
    finished(&resumed_with(&scratch, "--ema 0 --iterations 30"));
    assert_eq!(averages(&scratch), ["run/earlier-1/average.mgpt"]);
}

#[test]
fn an_average_is_set_aside_with_the_checkpoints_of_its_run() {
    let scratch = Scratch::new();
    let flags = "--ema 0.5 --eval-every 1 --keep 99 --lr 0.3 --warmup 0 --schedule constant --clip inf";
    finished(&options(&scratch, flags));
    train(&resumed_with(&scratch, "--which best --lr 0.01 --keep 99"), stop_at(1)).unwrap();
    assert_eq!(averages(&scratch), ["run/earlier-1/average.mgpt"]);
}

#[test]
fn an_average_that_cannot_be_saved_says_how_to_go_on() {
    let scratch = Scratch::new();
    train(&options(&scratch, "--ema 0.9"), stop_at(5)).unwrap();
    // No file can take the place of a folder.
    fs::create_dir_all(scratch.path("run/average.mgpt/taken")).unwrap();
    let message = error(&resumed(&scratch));
    assert!(message.contains("average.mgpt") && message.ends_with("; then go on with --resume"), "{message}");
    fs::remove_dir_all(scratch.path("run/average.mgpt")).unwrap();
    finished(&resumed(&scratch));
    assert_eq!(averages(&scratch), ["run/average.mgpt"]);
}

#[test]
fn where_the_validation_is_interrupted_that_of_the_average_does_not_begin() {
    let scratch = Scratch::new();
    // So long that the last validation goes in several parts.
    fs::write(scratch.path("text.txt"), TEXT.repeat(12_000)).unwrap();
    let flags = "--ema 0.9 --eval-every 0 --log-every 0 --sample 0 --iterations 1 --warmup 0";
    let asked = Cell::new(0);
    let stopped = train(&options(&scratch, flags), || {
        let stop = scratch.path("run").join("step-0000000001.mgpt").exists();
        asked.set(asked.get() + u32::from(stop));
        stop
    });
    assert!(matches!(stopped.unwrap(), End::Interrupted { step: 1, .. }));
    // Behind the last step, and then once in the validation.
    assert_eq!(asked.get(), 2);
}
