//! Settings that have no meaning, or could never get where they want.

use minigpt_core::{Decay, Precision};

use super::*;

#[test]
fn a_flag_given_twice_is_refused() {
    for flags in ["--lr 1 --lr 2", "--out a --out b", "--resume --resume", "--seed 1 --seed 1"] {
        let words = ["train"].into_iter().chain(flags.split(' '));
        let error = Options::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("cannot be used multiple times"), "{error}");
    }
}

#[test]
fn which_checkpoint_is_a_question_of_runs_that_go_on_from_one() {
    let scratch = Scratch::new();
    let message = error(&options(&scratch, "--which last"));
    assert!(message.ends_with("--resume or --from takes: add one of them, or leave it out"), "{message}");
    finished(&options(&scratch, ""));
    finished(&resumed_with(&scratch, "--which last"));
    let out = scratch.path("other");
    let from = format!("--which last --from {} --sample 0 --iterations 3", scratch.path("run").display());
    let common = format!("--data {} --out {}", scratch.path("text.txt").display(), out.display());
    finished(&parsed(&common, &from));
}

#[test]
fn zero_for_a_period_means_never() {
    let scratch = Scratch::new();
    finished(&options(&scratch, "--eval-every 0 --log-every 0 --sample 0"));
    let metrics = fs::read_to_string(scratch.path("run/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 1, "{metrics}");
    assert!(metrics.contains("\"step\":24") && metrics.contains("val_loss"), "{metrics}");
}

#[test]
fn the_default_warm_up_is_shortened_with_the_run() {
    let warmup = |iterations| {
        let (base, pace) = Shape::default().defaults(8, 1, Some(iterations));
        let settings = Settings { iterations: Some(iterations), ..Settings::default() };
        settings.over(&base, &pace, base.recompute).unwrap().0.schedule.warmup
    };
    assert_eq!([5, 50, 100, 1000, 2000].map(warmup), [0, 5, 10, 100, 100]);
}

/// The advice of an error that must come with these flags, as it stands behind `lead`, up to a blank or comma.
fn refused(flags: &str, lead: &str) -> String {
    let scratch = Scratch::new();
    let message = error(&options(&scratch, flags));
    let (_, advice) = message.split_once(lead).unwrap_or_else(|| panic!("{message}"));
    advice.split([',', ' ', ';']).next().unwrap().into()
}

#[test]
fn a_schedule_that_never_gets_where_it_should_is_refused_and_the_advice_works() {
    let warmup = refused("--iterations 24 --warmup 24", "such as --warmup ");
    finished(&options(&Scratch::new(), &format!("--iterations 24 --warmup {warmup}")));
    let floor = refused("--lr 1e-3 --min-lr 1e-2", "such as --min-lr ");
    finished(&options(&Scratch::new(), &format!("--lr 1e-3 --min-lr {floor}")));
    let decay = refused("--schedule constant --min-lr 1e-5", "or take --schedule ");
    finished(&options(&Scratch::new(), &format!("--schedule {decay} --min-lr 1e-5")));
}

#[test]
fn a_stable_schedule_decays_in_a_fifth_of_the_steps_or_in_as_many_as_are_named() {
    let schedule = |flags: &str| {
        let options = options(&Scratch::new(), flags);
        let (base, pace) = options.shape.defaults(8, 1, options.settings.iterations);
        options.settings.over(&base, &pace, base.recompute).unwrap().0.schedule
    };
    let decay = |flags: &str| schedule(&format!("--schedule wsd {flags}")).decay;
    let stable = |decay_steps| Decay::Stable { decay_steps };
    assert_eq!(decay("--iterations 2000 --warmup 100"), stable(400));
    assert_eq!([decay(""), decay("--warmup 21")], [stable(5), stable(3)]);
    assert_eq!([decay("--decay-steps 22"), decay("--decay-steps 0")], [stable(22), stable(0)]);
    assert_eq!(schedule("").decay, Decay::Cosine);
    let wsd = schedule("--schedule wsd --decay-steps 4 --lr 0.5");
    assert_eq!([2, 20, 22, 24].map(|step| wsd.learning_rate(step)), [0.5, 0.5, 0.275, 0.05]);
}

#[test]
fn a_stable_schedule_is_kept_when_a_run_goes_on_also_for_longer() {
    let scratch = Scratch::new();
    let kept = || {
        let bytes = load_which(&scratch.path("run"), None).unwrap().bytes;
        Checkpoint::open(&bytes).unwrap().training().unwrap().config.schedule
    };
    let stable = |decay_steps| Decay::Stable { decay_steps };
    finished(&options(&scratch, "--schedule wsd --decay-steps 6"));
    assert_eq!((kept().steps, kept().decay), (24, stable(6)));
    finished(&resumed_with(&scratch, "--iterations 30"));
    assert_eq!((kept().steps, kept().decay), (30, stable(6)));
    finished(&resumed_with(&scratch, "--iterations 36 --decay-steps 3"));
    assert_eq!((kept().steps, kept().decay), (36, stable(3)));
    finished(&resumed_with(&scratch, "--iterations 40 --schedule linear"));
    assert_eq!(kept().decay, Decay::Linear);
    finished(&resumed_with(&scratch, "--iterations 50 --schedule wsd"));
    assert_eq!(kept().decay, stable(10));
}

/// What the newest checkpoint of the run is trained by.
fn training(scratch: &Scratch) -> minigpt_core::TrainConfig {
    let bytes = load_which(&scratch.path("run"), None).unwrap().bytes;
    Checkpoint::open(&bytes).unwrap().training().unwrap().config.clone()
}

#[test]
fn a_run_that_goes_on_by_another_optimizer_keeps_the_settings_that_were_given() {
    let scratch = Scratch::new();
    finished(&options(&scratch, "--beta2 0.95 --weight-decay 0.2 --lr 2e-3"));
    finished(&resumed_with(&scratch, "--optimizer muon --iterations 30"));
    let config = training(&scratch);
    assert_eq!(config.groups, minigpt_core::Groups::muon(0.9, 0.95, 0.2));
    assert_eq!(config.schedule.peak, 2e-3);
}

#[test]
fn the_learning_rate_of_gradient_descent_ends_with_it() {
    for (flags, expected) in
        [("--optimizer adamw", (1e-3, 1e-4)), ("--optimizer muon --lr 2e-3", (2e-3, 2e-4))]
    {
        let scratch = Scratch::new();
        finished(&options(&scratch, "--optimizer sgd"));
        assert_eq!(training(&scratch).schedule.peak, 0.1);
        finished(&resumed_with(&scratch, &format!("{flags} --iterations 30")));
        let schedule = training(&scratch).schedule;
        assert_eq!((schedule.peak, schedule.floor), expected);
    }
}

#[test]
fn what_changes_in_a_schedule_is_told_as_its_flags() {
    let (base, pace) = Shape::default().defaults(8, 1, None);
    let of = |decay| {
        let schedule = minigpt_core::Schedule { decay, ..base.schedule };
        minigpt_core::TrainConfig { schedule, ..base.clone() }
    };
    let told = |before, after| {
        let found: Vec<_> = super::options::changes((&of(before), &pace), (&of(after), &pace)).collect();
        assert!(found.iter().all(|(flag, ..)| *flag == "--schedule"));
        found.into_iter().map(|(_, new, old)| [new, old]).collect::<Vec<_>>()
    };
    let stable = |decay_steps| Decay::Stable { decay_steps };
    let [short, long] = ["wsd --decay-steps 4", "wsd --decay-steps 9"].map(String::from);
    assert_eq!(told(Decay::Cosine, stable(4)), [[short.clone(), "cosine".into()]]);
    assert_eq!(told(stable(4), stable(9)), [[long, short]]);
    assert!(told(stable(4), stable(4)).is_empty());
}

#[test]
fn steps_of_a_decay_that_there_is_not_or_that_do_not_fit_are_refused_and_the_advice_works() {
    let name = refused("--schedule linear --decay-steps 3", ": add --schedule ");
    finished(&options(&Scratch::new(), &format!("--schedule {name} --decay-steps 3")));
    finished(&options(&Scratch::new(), "--schedule linear"));
    let steps = refused("--schedule wsd --decay-steps 23", ": take --decay-steps ");
    finished(&options(&Scratch::new(), &format!("--schedule wsd --decay-steps {steps}")));
}

#[test]
fn patience_without_validations_is_refused_and_the_advice_works() {
    let every = refused("--patience 2 --eval-every 0", "such as ");
    finished(&options(&Scratch::new(), &format!("--patience 2 --eval-every {every}")));
    finished(&options(&Scratch::new(), "--patience 0 --eval-every 0"));
}

#[test]
fn a_conversation_and_a_piped_text_cannot_both_have_the_standard_input() {
    let message = error(&options(&Scratch::new(), "--data - --interactive"));
    assert!(message.ends_with("name a file with --data, or leave --interactive out"), "{message}");
}

#[test]
fn errors_of_settings_name_the_flags() {
    for (flags, named) in [
        ("--lr -1", "--lr"),
        ("--min-lr -1", "--min-lr"),
        ("--lr inf", "--lr"),
        ("--clip 0", "--clip"),
        ("--clip -1", "--clip"),
        ("--ema 1", "--ema"),
        ("--beta1 1", "--beta1"),
        ("--beta2 -0.5", "--beta2"),
        ("--eps 0", "--eps"),
        ("--weight-decay -1", "--weight-decay"),
        ("--threads 0", "--threads"),
        ("--batch 0", "--batch"),
        ("--accumulation 0", "--accumulation"),
        ("--dropout 1.5", "--dropout"),
        ("--norm-eps -1", "--norm-eps"),
        ("--layers 0", "--layers"),
        ("--context 0", "--context"),
        ("--heads 3", "--heads"),
        ("--d-ff 0", "--d-ff"),
    ] {
        let message = error(&options(&Scratch::new(), flags));
        assert!(
            message.starts_with(named) || message.starts_with("--d-model 16 is not a"),
            "{flags}: {message}"
        );
    }
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused_and_the_advice_works() {
    let heads = refused("--heads 3", "try --heads ");
    finished(&options(&Scratch::new(), &format!("--heads {heads}")));
    let width = refused("--heads 3", " or --d-model ");
    finished(&options(&Scratch::new(), &format!("--heads 3 --d-model {width}")));
}

#[test]
fn a_text_too_short_for_the_context_is_refused_and_the_advice_works() {
    let scratch = Scratch::new();
    let options = |flags: &str| options(&scratch, flags);
    options("");
    fs::write(scratch.path("text.txt"), &TEXT[..40]).unwrap();
    let message = error(&options(""));
    assert!(message.starts_with("36 tokens of the text train and 4 validate: 4 are too few"), "{message}");
    // One piece of advice and the other.
    assert!(message.ends_with("--validation-share 0.5, or with --context 3 or less"), "{message}");
    finished(&options("--validation-share 0.5"));
    finished(&options("--context 3"));
    let message = error(&options("--validation-share 0.9"));
    assert!(
        message.starts_with("3 tokens of the text train") && message.contains("--validation-share 0.5"),
        "{message}"
    );
    let own = scratch.path("own.txt");
    fs::write(&own, &TEXT[..4]).unwrap();
    let own = format!("--validation {}", own.display());
    let message = error(&options(&own));
    assert!(
        message.ends_with("name a longer text with --validation, or with --context 3 or less"),
        "{message}"
    );
    fs::write(scratch.path("own.txt"), &TEXT[..20]).unwrap();
    finished(&options(&own));
    fs::write(scratch.path("text.txt"), "ab").unwrap();
    let message = error(&options(""));
    assert!(message.ends_with("a context of 8; train on a longer text"), "{message}");
}

#[test]
fn the_validation_loss_does_not_depend_on_the_batch() {
    let losses = |batch: usize| -> f64 {
        let scratch = Scratch::new();
        // Nothing is learned at this rate: the weights are those of the seed.
        finished(&options(&scratch, &format!("--lr 0 --eval-windows 7 --batch {batch}")));
        let metrics = Metrics::resume(&scratch.path("run").join("metrics.jsonl"), u32::MAX).unwrap();
        metrics.validation()[0].1
    };
    for batch in [2, 3, 7, 20] {
        assert!((losses(1) - losses(batch)).abs() < 1e-6, "batch {batch}: {} {}", losses(1), losses(batch));
    }
}

#[test]
fn a_random_seed_is_drawn_anew() {
    let options = |flags: &str| options(&Scratch::new(), flags);
    let seed = |options: &Options| options.fixed.seed();
    assert_ne!(seed(&options("--seed random")), seed(&options("--seed random")));
    assert_eq!((seed(&options("--seed 7")), seed(&options(""))), (7, 1337));
}

#[test]
fn every_optimizer_trains_and_the_average_of_the_weights_is_a_model_too() {
    for optimizer in ["adamw", "sgd", "muon"] {
        let flags = format!("--optimizer {optimizer} --ema 0.9");
        let (whole, parts) = (Scratch::new(), Scratch::new());
        let summary = finished(&options(&whole, &flags));
        let average = summary.ema_val_loss.unwrap();
        assert!(average.is_finite() && average != summary.val_loss, "{summary}");
        assert!(summary.to_string().contains(&format!(" ema_val_loss={average:.4}")), "{summary}");
        let metrics = fs::read_to_string(whole.path("run").join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().filter(|line| line.contains("ema_val_loss")).count(), 3);

        // A run that stops goes on with both.
        let stopped = train(&options(&parts, &flags), stop_at(9)).unwrap();
        assert!(matches!(stopped, End::Interrupted { .. }));
        assert_eq!(finished(&resumed(&parts)).ema_val_loss, Some(average));
        let bytes = |scratch: &Scratch, name: &str| fs::read(scratch.path("run").join(name)).unwrap();
        for name in ["step-0000000024.mgpt", "average.mgpt"] {
            assert!(bytes(&whole, name) == bytes(&parts, name), "{optimizer}: {name}");
        }
        let model = bytes(&whole, "average.mgpt");
        assert!(Checkpoint::open_verified(&model).unwrap().training().is_none());
    }
    let scratch = Scratch::new();
    assert_eq!(finished(&options(&scratch, "")).ema_val_loss, None);
    assert!(!scratch.path("run").join("average.mgpt").exists());
}

#[test]
fn a_run_in_bf16_stays_one_until_it_is_told_otherwise() {
    let (whole, parts) = (Scratch::new(), Scratch::new());
    let rounded = finished(&options(&whole, "--precision bf16"));
    let exact = finished(&options(&Scratch::new(), ""));
    assert!(rounded.val_loss != exact.val_loss, "{rounded} {exact}");
    assert!((rounded.val_loss - exact.val_loss).abs() < 0.05, "{rounded} {exact}");
    // A run that stops goes on with it.
    assert!(matches!(
        train(&options(&parts, "--precision bf16"), stop_at(9)).unwrap(),
        End::Interrupted { .. }
    ));
    assert_eq!(finished(&resumed(&parts)).val_loss, rounded.val_loss);
    let last = |scratch: &Scratch| fs::read(scratch.path("run").join("step-0000000024.mgpt")).unwrap();
    assert!(last(&whole) == last(&parts));
    let precision = |scratch: &Scratch, step: u32| {
        let file = fs::read(scratch.path("run").join(format!("step-{step:010}.mgpt"))).unwrap();
        Checkpoint::open_verified(&file).unwrap().training().unwrap().config.precision
    };
    assert_eq!(precision(&whole, 24), Precision::Bf16);
    finished(&resumed_with(&whole, "--precision f32 --iterations 30"));
    assert_eq!(precision(&whole, 30), Precision::F32);
}
