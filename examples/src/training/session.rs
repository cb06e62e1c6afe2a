//! The loop: steps, metrics, validations with samples, checkpoints, and the result.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use minigpt_core::data::{EvalWindows, Windows};
use minigpt_core::model::Extras;
use minigpt_core::train::Metrics as Now;
use minigpt_core::{AnyTokenizer, Backend, Decoder, SampleConfig, Sampler, Tokenizer, TrainConfig, Trainer};

use super::begin::Begun;
use super::folder::{Best, Folder, Pace};
use super::summary::{End, Summary, Truth};
use crate::chart::{Curve, loss_curves};
use crate::metrics::{Measured, Metrics, Record};
use crate::{Outcome, say};

/// So many steps in a row without a finite loss end the run.
const PATIENCE: u32 = 10;

/// A run under way.
pub(super) struct Session<B: Backend> {
    trainer: Trainer<B>,
    tokenizer: AnyTokenizer,
    pace: Pace,
    best: Option<Best>,
    folder: Folder,
    /// How many of the last checkpoints stay.
    keep: usize,
    metrics: Metrics,
    started: Instant,
    /// Seconds that the run had taken before it was resumed.
    before: f64,
    /// The step of the checkpoint on disk.
    saved: u32,
    name: String,
    truth: Option<Truth>,
}

impl<B: Backend> Session<B> {
    /// `keep` is how many of the last checkpoints stay, `name` what the text is called in titles.
    pub(super) fn new(
        begun: Begun<B>,
        folder: Folder,
        keep: usize,
        name: String,
        truth: Option<Truth>,
    ) -> Self {
        let Begun { trainer, tokenizer, pace, best, metrics } = begun;
        let before = metrics.seconds();
        Session {
            trainer,
            tokenizer,
            pace,
            best,
            folder,
            keep,
            metrics,
            started: Instant::now(),
            before,
            saved: 0,
            name,
            truth,
        }
    }

    fn seconds(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    /// Trains to the end, or until `stop`, which is asked after each step, says so; then `flags` are what to resume
    /// with.
    pub(super) fn train(
        &mut self,
        windows: &Windows<'_>,
        all: &EvalWindows<'_>,
        stop: &dyn Fn() -> bool,
        flags: String,
    ) -> Outcome<End> {
        let TrainConfig { batch, time, accumulation, .. } = *self.trainer.config();
        let sample = all.spread(self.pace.eval_batches.saturating_mul(batch));
        let first = self.trainer.metrics()?.step;
        let Pace { iterations, eval_every, log_every, .. } = self.pace;
        // From here on there is always a checkpoint of this run.
        self.save(first)?;
        let bar = progress(iterations, first);
        let step_tokens = batch.saturating_mul(time).saturating_mul(accumulation);
        say(format_args!(
            "{} parameters, {iterations} steps of {step_tokens} tokens",
            self.trainer.model().parameter_count()
        ))?;
        let mut training_time = Duration::ZERO;
        for step in first + 1..=iterations {
            let begun = Instant::now();
            self.trainer.step(windows)?;
            let logged = step % log_every == 0 || step == iterations;
            // Reading them waits for the steps that are only queued, which is a part of training.
            let now = if logged { Some(self.refuse_what_is_lost()?) } else { None };
            training_time += begun.elapsed();
            if let Some(now) = now {
                self.log(&bar, step, now, speed(step - first, step_tokens, training_time))?;
            }
            bar.set_position(u64::from(step));
            if step % eval_every == 0 || step == iterations {
                let loss = self.validate(step, &sample)?;
                self.save(step)?;
                // Behind the save, because the terminal may be gone.
                self.report(&bar, step, loss)?;
            }
            if stop() && step < iterations {
                bar.abandon();
                self.refuse_what_is_lost()?;
                if self.saved != step {
                    self.save(step)?;
                }
                return Ok(End::Interrupted { step, flags });
            }
        }
        bar.finish_and_clear();
        self.finish(all, speed(iterations.saturating_sub(first), step_tokens, training_time))
    }

    fn log(&mut self, bar: &ProgressBar, step: u32, now: Now, tokens_per_s: f64) -> Outcome<()> {
        let measured = Measured::Training {
            loss: now.loss,
            grad_norm: now.grad_norm,
            learning_rate: now.learning_rate,
            tokens: now.tokens,
        };
        self.record(Record { step, measured, seconds: self.seconds() })?;
        bar.set_message(format!("loss {:.3}, {tokens_per_s:.0} tokens/s", now.loss));
        Ok(())
    }

    fn record(&mut self, record: Record) -> Outcome<()> {
        self.metrics.push(record).map_err(go_on_later)
    }

    /// The metrics, unless the run is beyond help.
    fn refuse_what_is_lost(&mut self) -> Outcome<Now> {
        let now = self.trainer.metrics()?;
        if now.skipped_in_a_row < PATIENCE {
            return Ok(now);
        }
        let TrainConfig { schedule, clip, .. } = self.trainer.config();
        Err(format!(
            "stopped at step {}: the loss has not been a finite number for {} steps. The checkpoint of step {} is \
             kept in {}. Try a lower --lr (it was {}), a longer --warmup (it was {}), or a smaller --clip (it was \
             {clip})",
            now.step,
            now.skipped_in_a_row,
            self.saved,
            self.folder.run.path().display(),
            schedule.peak,
            schedule.warmup
        )
        .into())
    }

    /// The validation loss. A checkpoint of the best is saved.
    fn validate(&mut self, step: u32, windows: &EvalWindows<'_>) -> Outcome<f64> {
        self.refuse_what_is_lost()?;
        let loss = self.trainer.evaluate(windows)?;
        if !loss.is_finite() {
            return Err(format!(
                "stopped at step {step}: the validation loss is {loss}. The checkpoint of step {} is kept in {}. Try a \
                 lower --lr, a longer --warmup, or a smaller --clip",
                self.saved,
                self.folder.run.path().display()
            )
            .into());
        }
        self.record(Record { step, measured: Measured::Validation(loss), seconds: self.seconds() })?;
        if self.best.is_none_or(|best| loss < best.val_loss) {
            self.best = Some(Best { step, val_loss: loss });
            self.write(&self.folder.run.best_path())?;
        }
        Ok(loss)
    }

    fn report(&mut self, bar: &ProgressBar, step: u32, loss: f64) -> Outcome<()> {
        let text = self.sample()?;
        bar.suspend(|| {
            say(format_args!("step {step}: validation loss {loss:.4}"))?;
            if text.is_empty() { Ok(()) } else { say(format_args!("    {}\n", text.replace('\n', "\n    "))) }
        })
    }

    /// What the model writes now.
    fn sample(&mut self) -> Outcome<String> {
        if self.pace.sample == 0 {
            return Ok(String::new());
        }
        // Most texts have line breaks; any token will do for one that has none.
        let prompt = self.tokenizer.encode("\n").unwrap_or_else(|_| vec![0]);
        let mut sampler =
            Sampler::new(SampleConfig { seed: 1, ..SampleConfig::default() }, self.tokenizer.vocab_size())?;
        let model = self.trainer.model_mut();
        let mut decoder = Decoder::new(model, 1)?;
        decoder.feed(model, &prompt)?;
        let tokens: Vec<u32> =
            decoder.generate(model, &mut sampler).take(self.pace.sample).collect::<Result<_, _>>()?;
        decoder.release(model)?;
        Ok(self.tokenizer.decode(&tokens)?.trim_matches('\n').into())
    }

    /// The order is that of [`minigpt_core::checkpoint::RunFolder`]: metrics, the best, this step, and only then are
    /// earlier ones removed.
    fn save(&mut self, step: u32) -> Outcome<()> {
        self.metrics.sync().map_err(go_on_later)?;
        self.write(&self.folder.run.step_path(step))?;
        self.saved = step;
        Ok(self.folder.run.keep_last(step, self.keep)?)
    }

    fn write(&mut self, path: &Path) -> Outcome<()> {
        let best = self.best.iter().flat_map(Best::metadata);
        let metadata: Vec<(&str, String)> = self.pace.metadata().into_iter().chain(best).collect();
        let metadata: Vec<(&str, &str)> =
            metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let extras = Extras { tokenizer: Some(&self.tokenizer), metadata: &metadata };
        self.trainer.save(path, &extras).map_err(go_on_later)
    }

    fn finish(&mut self, all: &EvalWindows<'_>, tokens_per_s: f64) -> Outcome<End> {
        let val_loss = self.trainer.evaluate(all)?;
        let title = format!("minigpt on {}: validation loss {val_loss:.3}", self.name);
        let curves = [
            Curve { name: "training batches", color: "#9bb8d3", points: self.metrics.training() },
            Curve { name: "validation", color: "#d1495b", points: self.metrics.validation() },
        ];
        let bound = self.truth.map(|truth| ("true entropy", truth.entropy));
        std::fs::write(self.folder.curve(), loss_curves(&title, &curves, bound))
            .map_err(|error| format!("cannot write {}: {error}", self.folder.curve().display()))?;
        if let Some(truth) = self.truth {
            say(format_args!(
                "validation loss {val_loss:.4}; no model can do better in these windows than {:.4}; a smoothed 5-gram \
                 model reaches {:.4}; true entropy {:.4}, of this text {:.4}",
                truth.windowed, truth.five_gram, truth.entropy, truth.validation
            ))?;
        }
        say(format_args!(
            "loss curve: {}; metrics: {}",
            self.folder.curve().display(),
            self.folder.metrics().display()
        ))?;
        Ok(End::Finished(Summary {
            val_loss,
            iterations: self.pace.iterations,
            seconds: self.seconds(),
            tokens_per_s,
            entropy: self.truth.map(|truth| truth.entropy),
            checkpoint: self.folder.run.step_path(self.saved),
        }))
    }
}

/// Nothing is lost that was saved.
fn go_on_later(error: impl std::fmt::Display) -> Box<dyn std::error::Error> {
    format!("{error}; then go on with --resume").into()
}

/// Tokens per second of `steps` steps of `step_tokens` tokens each.
fn speed(steps: u32, step_tokens: usize, time: Duration) -> f64 {
    f64::from(steps) * step_tokens as f64 / time.as_secs_f64().max(1e-9)
}

/// A bar for people; nothing where the output goes to a file.
fn progress(iterations: u32, first: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(iterations)).with_position(u64::from(first));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left") {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}
