//! What to do about a run that has diverged: which checkpoint is from before, and with what settings it gets further.

use std::path::Path;

use minigpt_core::TrainConfig;

use super::folder::{Best, Folder, Pace};
use super::optimizers::usual_rate;
use super::options::{changes, typed};
use crate::options::{load_which, open};
use crate::{Outcome, say};

/// A loss of so many times that of guessing is that of broken weights.
const BROKEN: f64 = 1.5;

/// What is known of a run at the step where it is given up.
pub(super) struct Diverged<'a> {
    /// The last step whose update was made: the one that broke the weights, or a later one.
    pub(super) broken_at: u32,
    /// What was seen, such as "the norm of the gradient has not been a finite number for 10 steps".
    pub(super) seen: String,
    pub(super) config: &'a TrainConfig,
    pub(super) pace: &'a Pace,
    pub(super) best: Option<Best>,
    /// (step, loss) of the validations.
    pub(super) validations: Vec<(f64, f64)>,
    /// The loss of guessing: ln V.
    pub(super) guessing: f64,
    /// The flags that resume the run.
    pub(super) flags: &'a str,
}

impl Diverged<'_> {
    /// Sets the checkpoints of broken weights aside, and says what was seen and how to go on.
    pub(super) fn give_up(&self, folder: &Folder) -> Outcome<String> {
        if let Some(aside) = folder.set_broken_aside(self.broken_at, self.best)? {
            say(format_args!("the checkpoints of broken weights are now in {}", aside.display()))?;
        }
        let kept = folder.run.steps()?;
        Ok(format!("stopped: {}. {}", self.seen, self.remedy(&kept, folder)))
    }

    /// How to go on, where `kept` are the steps whose checkpoints are from before.
    fn remedy(&self, kept: &[u32], folder: &Folder) -> String {
        let go_on = |besides: &str| {
            format!(
                "cargo run --release --example train_shakespeare -- {}{besides}{}",
                self.flags,
                self.gentler()
            )
        };
        let best_path = folder.run.best_path();
        let folder = folder.run.path().display();
        if let Some(&last) = kept.last().filter(|&&step| self.is_sound(step)) {
            return format!(
                "The checkpoint of step {last} in {folder} is from before; to go on from it more gently: {}",
                go_on("")
            );
        }
        let best = self.best.filter(|best| best.step < self.broken_at && self.is_sound(best.step));
        match best {
            Some(best) => format!(
                "The best checkpoint in {folder}, of step {}, is from before; to go on from it more gently: {}",
                best.step,
                go_on(&format!(" --which best{}", self.since(&best_path)))
            ),
            None => format!(
                "No checkpoint in {folder} is from before; begin again with the flags that you had, and{}",
                self.gentler()
            ),
        }
    }

    /// The flags that the run has been given since the best checkpoint was saved, but for those that are to be gentler.
    fn since(&self, best: &Path) -> String {
        let flags = || -> Outcome<String> {
            let loaded = load_which(best, None)?;
            let checkpoint = open(&loaded.bytes)?;
            let training = checkpoint.training().ok_or("it has no settings")?;
            let pace =
                Pace::from_metadata(checkpoint.metadata(), training.config.batch).ok_or("it has no pace")?;
            let changed = changes((&training.config, &pace), (self.config, self.pace));
            let kept = changed.filter(|(flag, ..)| !["--lr", "--min-lr", "--clip"].contains(flag));
            Ok(kept.map(|(flag, value, _)| format!(" {flag} {value}")).collect())
        };
        // Without them the run goes on as it did when that checkpoint was saved.
        flags().unwrap_or_default()
    }

    /// Whether the weights of this step were better than guessing, or nearly so, as far as anybody looked.
    fn is_sound(&self, step: u32) -> bool {
        let measured = self.validations.iter().rev().find(|(at, _)| *at == f64::from(step));
        measured.is_none_or(|(_, loss)| *loss < BROKEN * self.guessing)
    }

    /// Flags that break no weights where those of the run did.
    fn gentler(&self) -> String {
        let TrainConfig { schedule, clip, groups, .. } = self.config;
        // What small models are trained with; a rate that is not far above it may only be unlucky.
        let usual = usual_rate(groups);
        let lr = if schedule.peak > 10.0 * usual { usual } else { schedule.peak / 10.0 };
        let clip = if *clip > 1.0 { " --clip 1" } else { "" };
        format!(" --lr {}{clip}", typed(lr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    const PACE: Pace =
        Pace { iterations: 40, eval_every: 10, eval_windows: 0, patience: 0, log_every: 10, sample: 0 };

    fn diverged<'a>(
        config: &'a TrainConfig,
        validations: &[(f64, f64)],
        best: Option<(u32, f64)>,
    ) -> Diverged<'a> {
        Diverged {
            broken_at: 30,
            seen: "it is broken".into(),
            config,
            pace: &PACE,
            best: best.map(|(step, val_loss)| Best { step, val_loss }),
            validations: validations.to_vec(),
            guessing: 4.0,
            flags: "--resume --out x",
        }
    }

    #[test]
    fn the_last_sound_checkpoint_is_advised_then_the_best_then_a_new_run() {
        let config = TrainConfig { clip: f64::INFINITY, ..TrainConfig::constant(1e30) };
        let scratch = Scratch::new();
        let folder = Folder::open(&scratch.path("x")).unwrap();
        let advice = |validations: &[(f64, f64)], best, kept: &[u32]| {
            diverged(&config, validations, best).remedy(kept, &folder)
        };
        let last = advice(&[(10.0, 3.0), (20.0, 3.5)], Some((10, 3.0)), &[10, 20]);
        assert!(
            last.contains("step 20") && last.ends_with("-- --resume --out x --lr 0.001 --clip 1"),
            "{last}"
        );
        // Nobody has looked at it: a run that has just begun, or that was stopped there.
        assert!(advice(&[], None, &[0]).contains("step 0"));
        let best = advice(&[(10.0, 3.0), (20.0, 1e9)], Some((10, 3.0)), &[20]);
        assert!(best.contains("of step 10") && best.contains("--which best --lr 0.001"), "{best}");
        for (validations, best, kept) in [
            (&[(20.0, 1e9)][..], Some((20, 1e9)), &[20][..]),
            (&[(30.0, 1e9)], Some((30, 1e9)), &[]),
            (&[], None, &[]),
        ] {
            let new = advice(validations, best, kept);
            assert!(new.contains("begin again") && new.ends_with("and --lr 0.001 --clip 1"), "{new}");
        }
    }

    #[test]
    fn a_rate_that_is_usual_is_taken_down_to_a_tenth() {
        let config = TrainConfig::constant(2e-3);
        assert_eq!(diverged(&config, &[], None).gentler(), " --lr 0.0002");
        // Gradient descent's is a hundred times as large.
        let sgd = |rate| TrainConfig {
            groups: minigpt_core::Groups::sgd(0.9, true, 1e-3),
            ..TrainConfig::constant(rate)
        };
        for (rate, advice) in [(0.1, " --lr 0.01"), (1e30, " --lr 0.1")] {
            assert_eq!(diverged(&sgd(rate), &[], None).gentler(), advice);
        }
    }
}
