//! The loop: steps, metrics, validations with samples, checkpoints, and the result.

use std::path::Path;
use std::time::{Duration, Instant};

use minigpt_core::data::{EvalWindows, Windows};
use minigpt_core::model::Extras;
use minigpt_core::train::Metrics as Now;
use minigpt_core::{AnyTokenizer, Backend, Decoder, SampleConfig, Sampler, Tokenizer, TrainConfig, Trainer};

use super::begin::Begun;
use super::folder::{Best, Folder, Pace};
use super::rescue::Diverged;
use super::summary::{End, Summary, Truth};
use crate::chart::{Curve, loss_curves};
use crate::metrics::{Measured, Metrics, Record};
use crate::progress::{Progress, Unit};
use crate::prompt::START;
use crate::stop::Signals;
use crate::{Outcome, say};

/// So many steps in a row without a finite gradient end the run.
const SKIPS: u32 = 10;

/// The run is looked at at least once in so many steps: each look waits for the steps that are only queued.
const LOOK_EVERY: u32 = 10;

/// About so many tokens are evaluated between two looks at the clock and at the signals.
const PART: usize = 1 << 14;

/// A run under way.
pub(super) struct Session<'a, B: Backend> {
    trainer: Trainer<B>,
    pace: Pace,
    best: Option<Best>,
    metrics: Metrics,
    run: Run<'a>,
    started: Instant,
    /// Seconds that the run had taken before it was resumed.
    before: f64,
    /// The step of the checkpoint on disk.
    saved: u32,
}

/// What a run does not change.
pub(super) struct Run<'a> {
    pub(super) folder: Folder,
    pub(super) tokenizer: AnyTokenizer,
    /// The SHA-256 of the text.
    pub(super) sha256: String,
    /// How many tokens of it train.
    pub(super) training_tokens: usize,
    /// What samples begin behind.
    pub(super) start: u32,
    /// What the text is called in titles.
    pub(super) name: String,
    /// How many of the last checkpoints stay.
    pub(super) keep: usize,
    /// The flags to resume with.
    pub(super) flags: String,
    pub(super) truth: Option<Truth>,
    /// Say whether to end; asked after each step.
    pub(super) signals: &'a dyn Signals,
}

/// What the last step did.
#[derive(Clone, Copy)]
struct Speed {
    step_tokens: usize,
    time: Duration,
    steps: u32,
}

impl Speed {
    fn tokens_per_s(self) -> f64 {
        f64::from(self.steps) * self.step_tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl<'a, B: Backend> Session<'a, B> {
    pub(super) fn new(begun: Begun<B>, run: Run<'a>) -> Self {
        let Begun { trainer, pace, best, metrics } = begun;
        let before = metrics.seconds();
        Session { trainer, pace, best, metrics, run, started: Instant::now(), before, saved: 0 }
    }

    /// The model, trained.
    pub(super) fn into_model(self) -> minigpt_core::Model<B> {
        self.trainer.into_model()
    }

    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Trains to the end, until validations get no better, or until it is asked to stop.
    pub(super) fn train(&mut self, windows: &Windows<'_>, all: &EvalWindows<'_>) -> Outcome<End> {
        let TrainConfig { batch, time, accumulation, .. } = *self.trainer.config();
        let sample = match self.pace.eval_windows {
            0 => *all,
            windows => all.spread(windows),
        };
        let first = self.trainer.metrics()?.step;
        // From here on there is always a checkpoint of this run.
        self.save(first)?;
        let mut speed = Speed {
            step_tokens: batch.saturating_mul(time).saturating_mul(accumulation),
            time: Duration::ZERO,
            steps: 0,
        };
        self.introduce(speed.step_tokens)?;
        let progress = Progress::new("training", u64::from(self.pace.iterations), Unit::Steps);
        // A run that was stopped in the middle of a validation has it still to come.
        if self.is_due(first)
            && !self.is_validated(first)
            && !self.validated(&progress, first, &sample, all)?
        {
            return Ok(self.interrupted(first));
        }
        let mut step = first;
        while step < self.pace.iterations && !self.is_out_of_patience() {
            step += 1;
            let begun = Instant::now();
            self.trainer.step(windows)?;
            let looked = self.look(step)?;
            speed = Speed { time: speed.time + begun.elapsed(), steps: step - first, ..speed };
            if let Some(now) = looked {
                self.log(&progress, now, speed)?;
            }
            if self.is_due(step) && !self.validated(&progress, step, &sample, all)? {
                return Ok(self.interrupted(step));
            }
            if self.run.signals.asked() && step < self.pace.iterations {
                progress.done();
                if self.saved != step {
                    self.save_sound(step)?;
                }
                return Ok(self.interrupted(self.saved));
            }
        }
        progress.done();
        self.finish(all, step, speed.tokens_per_s())
    }

    /// What stands at the beginning of a run's log.
    fn introduce(&self, step_tokens: usize) -> Outcome<()> {
        say(format_args!(
            "{} parameters, {} steps of {step_tokens} tokens",
            self.trainer.model().parameter_count(),
            self.pace.iterations
        ))?;
        say(format_args!(
            "checkpoints: {}; metrics: {}",
            self.run.folder.run.path().display(),
            self.run.folder.metrics().display()
        ))
    }

    fn interrupted(&self, step: u32) -> End {
        End::Interrupted { step, flags: self.run.flags.clone() }
    }

    /// Whether a validation belongs behind this step.
    fn is_due(&self, step: u32) -> bool {
        let every = self.pace.eval_every;
        step > 0 && (every > 0 && step.is_multiple_of(every) || step == self.pace.iterations)
    }

    fn is_validated(&self, step: u32) -> bool {
        self.metrics.validation().iter().any(|(at, _)| *at == f64::from(step))
    }

    /// Whether so many validations in a row were no better than the best that the run is to end.
    fn is_out_of_patience(&self) -> bool {
        let Some(best) = self.best.filter(|_| self.pace.patience > 0) else { return false };
        let worse = self.metrics.validation().iter().filter(|(at, _)| *at > f64::from(best.step)).count();
        worse >= self.pace.patience as usize
    }

    /// The metrics, where it is time to look at them, unless the run is beyond help.
    fn look(&mut self, step: u32) -> Outcome<Option<Now>> {
        let due = |every: u32| every > 0 && step.is_multiple_of(every);
        if !due(LOOK_EVERY) && !due(self.pace.log_every) && !self.is_due(step) {
            return Ok(None);
        }
        let now = self.trainer.metrics()?;
        // A run that ends so has not learned what it was to, however few they are.
        if now.skipped_in_a_row >= SKIPS || now.skipped_in_a_row > 0 && step == self.pace.iterations {
            return Err(self.diverged(&now)?.into());
        }
        Ok(Some(now))
    }

    fn log(&mut self, progress: &Progress, now: Now, speed: Speed) -> Outcome<()> {
        let every = self.pace.log_every;
        if every > 0 && (now.step.is_multiple_of(every) || now.step == self.pace.iterations) {
            let measured = Measured::Training {
                loss: now.loss,
                grad_norm: now.grad_norm,
                learning_rate: now.learning_rate,
                tokens: now.tokens,
            };
            self.record(Record { step: now.step, measured, seconds: self.seconds() })?;
        }
        let message = format_args!("loss {:.3}, {:.0} tokens/s", now.loss, speed.tokens_per_s());
        progress.at(u64::from(now.step), message);
        Ok(())
    }

    fn record(&mut self, record: Record) -> Outcome<()> {
        let pushed = self.metrics.push(record);
        pushed.map_err(|error| self.go_on_later(error))
    }

    /// What to say of a run whose last steps were all skipped.
    fn diverged(&mut self, now: &Now) -> Outcome<String> {
        let what = if now.loss.is_finite() { "the norm of the gradient" } else { "the loss" };
        let skipped = now.skipped_in_a_row;
        let seen = format!(
            "{what} has not been a finite number for {skipped} steps, up to step {}, so that nothing was learned from \
             them",
            now.step
        );
        self.give_up(now.step.saturating_sub(skipped), seen)
    }

    /// What to say of a run whose weights are broken since `broken_at`.
    fn give_up(&mut self, broken_at: u32, seen: String) -> Outcome<String> {
        let diverged = Diverged {
            broken_at,
            seen,
            config: self.trainer.config(),
            pace: &self.pace,
            best: self.best,
            validations: self.metrics.validation(),
            guessing: (self.trainer.model().config().vocab_size as f64).ln(),
            flags: &self.run.flags,
        };
        diverged.give_up(&self.run.folder)
    }

    /// Validates, saves and reports; `false` if it was asked to stop meanwhile: then the validation is still to come,
    /// and the checkpoint is saved.
    fn validated(
        &mut self,
        progress: &Progress,
        step: u32,
        windows: &EvalWindows<'_>,
        all: &EvalWindows<'_>,
    ) -> Outcome<bool> {
        let total = windows.len();
        let tell = |done| progress.at(u64::from(step), format_args!("validation: {done} of {total} windows"));
        let Some((loss, average)) = self.evaluate_both(windows, &tell)? else {
            self.save_sound(step)?;
            return Ok(false);
        };
        if !loss.is_finite() {
            let seen = format!("the validation loss of step {step} is {loss}");
            return Err(self.give_up(step, seen)?.into());
        }
        self.record(Record { step, measured: Measured::Validation(loss), seconds: self.seconds() })?;
        if let Some(average) = average {
            self.record(Record { step, measured: Measured::Average(average), seconds: self.seconds() })?;
        }
        let sound = self.trainer.metrics()?.skipped_in_a_row == 0;
        if sound && self.best.is_none_or(|best| loss < best.val_loss) {
            self.best = Some(Best { step, val_loss: loss });
            self.write(&self.run.folder.run.best_path())?;
        }
        self.save_sound(step)?;
        // Behind the save, because the terminal may be gone.
        let text = self.sample()?;
        let part = match all.len() {
            all if all == total => String::new(),
            all => format!(" (of {total} of {all} windows)"),
        };
        progress.suspend(|| {
            say(format_args!("step {step}: validation loss {loss:.4}{}{part}", of_average(average)))?;
            if text.is_empty() { Ok(()) } else { say(format_args!("    {}\n", text.replace('\n', "\n    "))) }
        })?;
        Ok(true)
    }

    /// The losses of the weights and, if there is one, of their average; `None` if it was asked to stop meanwhile.
    fn evaluate_both(
        &mut self,
        windows: &EvalWindows<'_>,
        tell: &dyn Fn(usize),
    ) -> Outcome<Option<(f64, Option<f64>)>> {
        let Some(loss) = self.evaluate(windows, tell)? else { return Ok(None) };
        let average = self.evaluate_average(windows, tell)?;
        Ok(average.map(|average| (loss, average)))
    }

    /// The mean loss over `windows`, in nats per token; `tell` is told how many are done. `None` if it was asked to stop
    /// meanwhile.
    fn evaluate(&mut self, windows: &EvalWindows<'_>, tell: &dyn Fn(usize)) -> Outcome<Option<f64>> {
        self.in_parts(windows, tell, |trainer, part| Ok(trainer.evaluate(part)?))
    }

    /// The same of the average of the weights; `Some(None)` if there is none.
    fn evaluate_average(
        &mut self,
        windows: &EvalWindows<'_>,
        tell: &dyn Fn(usize),
    ) -> Outcome<Option<Option<f64>>> {
        if self.trainer.config().average.is_none() {
            return Ok(Some(None));
        }
        let loss = |trainer: &mut Trainer<B>, part: &EvalWindows<'_>| {
            Ok(trainer.evaluate_average(part)?.unwrap_or(f64::NAN))
        };
        Ok(self.in_parts(windows, tell, loss)?.map(Some))
    }

    fn in_parts(
        &mut self,
        windows: &EvalWindows<'_>,
        tell: &dyn Fn(usize),
        loss: impl Fn(&mut Trainer<B>, &EvalWindows<'_>) -> Outcome<f64>,
    ) -> Outcome<Option<f64>> {
        let at_once = (PART / windows.time()).max(1);
        let (mut sum, mut done) = (0.0, 0);
        while let Some(part) = windows.part(done..windows.len().min(done + at_once)) {
            if done > 0 && self.run.signals.asked() {
                return Ok(None);
            }
            sum += loss(&mut self.trainer, &part)? * part.len() as f64;
            done += part.len();
            tell(done);
        }
        Ok(Some(sum / windows.len() as f64))
    }

    /// What the model writes now.
    fn sample(&self) -> Outcome<String> {
        if self.pace.sample == 0 {
            return Ok(String::new());
        }
        let tokenizer = &self.run.tokenizer;
        let mut sampler =
            Sampler::new(SampleConfig { seed: 1, ..SampleConfig::default() }, tokenizer.vocab_size())?;
        let mut decoder = Decoder::new(self.trainer.model(), 1)?;
        decoder.feed(&[self.run.start])?;
        let tokens: Vec<u32> =
            decoder.generate(&mut sampler).take(self.pace.sample).collect::<Result<_, _>>()?;
        Ok(tokenizer.decode(&tokens)?.trim_matches('\n').into())
    }

    /// Saves, unless the last step was skipped: then the weights may be broken, and the checkpoint before is the better
    /// one to go on from.
    fn save_sound(&mut self, step: u32) -> Outcome<()> {
        match self.trainer.metrics()?.skipped_in_a_row {
            0 => self.save(step),
            skipped => say(format_args!(
                "step {step} is not saved: the gradient has not been finite for {skipped} steps in a row; the checkpoint \
                 of step {} stays",
                self.saved
            )),
        }
    }

    /// The order is that of [`minigpt_core::checkpoint::RunFolder`]: metrics, the best, this step, and only then are
    /// earlier ones removed.
    fn save(&mut self, step: u32) -> Outcome<()> {
        let synced = self.metrics.sync();
        synced.map_err(|error| self.go_on_later(error))?;
        self.write(&self.run.folder.run.step_path(step))?;
        self.saved = step;
        Ok(self.run.folder.run.keep_last(step, self.run.keep)?)
    }

    fn write(&self, path: &Path) -> Outcome<()> {
        self.with_extras(|extras| self.trainer.save(path, extras).map_err(|error| self.go_on_later(error)))
    }

    /// Hands over what a checkpoint has beside the model.
    fn with_extras<T>(&self, save: impl FnOnce(&Extras<'_>) -> T) -> T {
        let best = self.best.iter().flat_map(Best::metadata);
        let text = [
            ("corpus_sha256", self.run.sha256.clone()),
            ("training_tokens", self.run.training_tokens.to_string()),
            (START, self.run.start.to_string()),
        ];
        let metadata: Vec<(&str, String)> =
            self.pace.metadata().into_iter().chain(text).chain(best).collect();
        let metadata: Vec<(&str, &str)> =
            metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let extras = Extras { tokenizer: Some(&self.run.tokenizer), metadata: &metadata };
        save(&extras)
    }

    /// Writes the average of the weights of a finished run as a model of its own. If there is none, then one of before is set
    /// aside: it is not that of these weights.
    pub(super) fn save_average(&self) -> Outcome<()> {
        let Some(model) = self.trainer.averaged().map_err(|error| self.go_on_later(error))? else {
            return match self.run.folder.set_average_aside()? {
                Some(aside) => {
                    say(format_args!("the average of earlier weights is now in {}", aside.display()))
                }
                None => Ok(()),
            };
        };
        let path = self.run.folder.average();
        self.with_extras(|extras| model.save(&path, extras).map_err(|error| self.go_on_later(error)))?;
        say(format_args!(
            "the average of the weights is a model too: generate, evaluate and others take it with --checkpoint {}",
            crate::corpus::word(&path)
        ))
    }

    /// Nothing is lost that was saved, if anything was.
    fn go_on_later(&self, error: impl std::fmt::Display) -> Box<dyn std::error::Error> {
        let saved = self.run.folder.run.steps().is_ok_and(|steps| !steps.is_empty());
        let later = if saved { "go on with --resume" } else { "begin again, for nothing was saved yet" };
        format!("{error}; then {later}").into()
    }

    fn finish(&mut self, all: &EvalWindows<'_>, step: u32, tokens_per_s: f64) -> Outcome<End> {
        if step < self.pace.iterations {
            say(format_args!(
                "ended at step {step}: {} validations in a row were no better than the best; to train on all the same: \
                 cargo run --release --example train_shakespeare -- {} --patience 0",
                self.pace.patience, self.run.flags
            ))?;
        }
        let progress = Progress::new("last validation", all.len() as u64, Unit::Windows);
        let tell = |done| progress.at(done as u64, "");
        let losses = self.evaluate_both(all, &tell)?;
        progress.done();
        let Some((val_loss, ema_val_loss)) = losses else { return Ok(self.interrupted(step)) };
        self.draw(val_loss)?;
        let of_average = of_average(ema_val_loss);
        say(format_args!("validation loss {val_loss:.4}{of_average}, of all {} windows", all.len()))?;
        if let Some(truth) = self.run.truth {
            say(format_args!(
                "no model can do better in these windows than {:.4}; a smoothed 5-gram model reaches {:.4}; true entropy \
                 {:.4}, of this text {:.4}",
                truth.windowed, truth.five_gram, truth.entropy, truth.validation
            ))?;
        }
        say(format_args!("loss curve: {}", self.run.folder.curve().display()))?;
        if let Some(best) = self.best.filter(|best| best.step != step) {
            say(format_args!(
                "the best validation was at step {} ({:.4}); generate, evaluate and others take that model with \
                 --checkpoint {} --which best",
                best.step,
                best.val_loss,
                crate::corpus::word(self.run.folder.run.path())
            ))?;
        }
        Ok(End::Finished(Summary {
            val_loss,
            ema_val_loss,
            best: self.best,
            iterations: step,
            seconds: self.seconds(),
            tokens_per_s,
            entropy: self.run.truth.map(|truth| truth.entropy),
            checkpoint: self.run.folder.run.step_path(self.saved),
        }))
    }

    /// The loss curve.
    fn draw(&self, val_loss: f64) -> Outcome<()> {
        let title = format!("minigpt on {}: validation loss {val_loss:.3}", self.run.name);
        let curves = [
            Curve { name: "training batches", color: "#9bb8d3", points: self.metrics.training() },
            Curve { name: "validation", color: "#d1495b", points: self.metrics.validation() },
        ];
        let bound = self.run.truth.map(|truth| ("true entropy", truth.entropy));
        let path = self.run.folder.curve();
        std::fs::write(&path, loss_curves(&title, &curves, bound))
            .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
    }
}

/// What is said of the average beside the weights.
fn of_average(loss: Option<f64>) -> String {
    loss.map_or(String::new(), |loss| format!(", of the average of the weights {loss:.4}"))
}
