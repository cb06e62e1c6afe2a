//! Runs that diverge: what they keep, and that their advice works.

use super::*;

/// Settings that break the weights in the first step.
const BREAKS: &str = "--iterations 400 --warmup 0 --clip inf --lr 1e30";

/// The flags that a message advises to go on with.
fn advised(message: &str) -> Vec<String> {
    let (_, command) =
        message.split_once("--example train_shakespeare -- ").unwrap_or_else(|| panic!("{message}"));
    command.split_whitespace().map(String::from).collect()
}

fn followed(message: &str) -> Options {
    Options::try_parse_from(["train".into()].into_iter().chain(advised(message))).unwrap()
}

fn is_sound(bytes: &[u8]) -> bool {
    let checkpoint = Checkpoint::open_verified(bytes).unwrap();
    let model = Model::load(Reference::<f32>::new(), &checkpoint).unwrap();
    model.logits(&[0, 1], 1, 2).unwrap().iter().all(|logit| logit.abs() < 100.0)
}

#[test]
fn a_diverged_run_keeps_what_is_from_before_and_its_advice_rescues_it() {
    for every in ["400", "5", "1"] {
        let scratch = Scratch::new();
        let message = error(&options(&scratch, &format!("{BREAKS} --eval-every {every} --keep 9")));
        // The loss is a finite number all along.
        assert!(message.contains("the norm of the gradient has not been a finite number for "), "{message}");
        assert!(message.contains("The checkpoint of step 0"), "{message}");
        let files = files(&scratch);
        let kept: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(".mgpt")).collect();
        assert!(!kept.is_empty());
        for (name, bytes) in kept {
            assert!(is_sound(bytes), "{name} has broken weights, with --eval-every {every}");
        }
        let summary = finished(&followed(&message));
        assert!(summary.val_loss < 3.0 && summary.iterations == 400, "{summary}");
    }
}

#[test]
fn where_only_the_best_is_from_before_it_is_advised_and_rescues_the_run() {
    let scratch = Scratch::new();
    finished(&options(&scratch, "--keep 1"));
    // From the end of that run on with a rate that breaks it; of its steps only the last is kept.
    let message = error(&resumed_with(&scratch, &format!("{BREAKS} --eval-every 1 --keep 1 --batch 3")));
    assert!(
        message.contains("The best checkpoint in ") && message.contains("of step 24, is from before"),
        "{message}"
    );
    assert!(is_sound(&files(&scratch)["best.mgpt"]));
    // What was asked for besides is asked for again.
    assert!(
        message.ends_with(
            " --which best --iterations 400 --batch 3 --warmup 0 --eval-every 1 --lr 0.001 --clip 1"
        ),
        "{message}"
    );
    let summary = finished(&followed(&message));
    assert!(summary.val_loss < 3.0 && summary.iterations == 400, "{summary}");
}

#[test]
fn where_nothing_is_from_before_a_new_run_is_advised_and_succeeds() {
    let scratch = Scratch::new();
    let message = error(&options(&scratch, &format!("{BREAKS} --eval-every 1 --keep 1")));
    let (_, gentler) = message.split_once("begin again with the flags that you had, and ").expect(&message);
    let summary =
        finished(&options(&scratch, &format!("--iterations 400 --warmup 0 --eval-every 1 {gentler}")));
    assert!(summary.val_loss < 3.0, "{summary}");
}

#[test]
fn a_run_whose_last_steps_learned_nothing_does_not_end_well() {
    let scratch = Scratch::new();
    let message = error(&options(&scratch, "--iterations 3 --warmup 0 --clip inf --lr 1e30 --eval-every 0"));
    assert!(message.starts_with("stopped: the norm of the gradient"), "{message}");
    assert_eq!(finished(&followed(&message)).iterations, 3);
}

#[test]
fn a_run_goes_on_from_its_best_and_later_checkpoints_are_set_aside() {
    let scratch = Scratch::new();
    // A rate at which the loss falls and rises.
    let flags = "--eval-every 1 --keep 99 --lr 0.3 --warmup 0 --schedule constant --clip inf";
    let best = finished(&options(&scratch, flags)).best.unwrap().step;
    assert!((1..24).contains(&best));
    let later = files(&scratch)[&format!("step-{:010}.mgpt", best + 1)].clone();
    let stopped = train(&resumed_with(&scratch, "--which best --lr 0.01 --keep 99"), stop_at(1)).unwrap();
    assert!(matches!(stopped, End::Interrupted { step, .. } if step == best + 1), "{stopped:?}");
    assert!(fs::read(scratch.path(&format!("run/earlier-1/step-{:010}.mgpt", best + 1))).unwrap() == later);
    // And on, from there and not from where the first run ended.
    let summary = finished(&resumed(&scratch));
    assert_eq!(summary.iterations, 24);
}

#[test]
fn a_run_without_a_best_says_how_else_to_go_on() {
    let scratch = Scratch::new();
    train(&options(&scratch, ""), stop_at(3)).unwrap();
    let message = error(&resumed_with(&scratch, "--which best"));
    assert!(message.contains("best.mgpt") && message.contains("leave out --which best"), "{message}");
    finished(&resumed(&scratch));
}
