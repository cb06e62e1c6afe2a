//! Training: the optimizer's settings, the learning rate's schedule, and the trainer.

pub mod schedule;
mod trainer;

pub use trainer::{Metrics, Trainer};

use crate::backend::Backend;
use crate::config::{ConfigError, GptConfig};
use crate::op::counter;
use crate::plan::{Plan, Recompute, largest};
use crate::real::Real;
use schedule::Schedule;

/// How to train. Plain data, kept in checkpoints, so that a run can be resumed from its checkpoint alone.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Sequences per micro-batch (B). More than keep the backend busy go through the model in
    /// [slices](TrainConfig::sequences_at_once), so that memory does not grow with them.
    pub batch: usize,
    /// Tokens per sequence (T), at most the model's context.
    pub time: usize,
    /// Micro-batches per step, whose gradients are summed.
    pub accumulation: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of the gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Seed of the windows and the dropout masks.
    pub seed: u64,
    /// What the backward pass computes again. The one setting that checkpoints do not hold: it changes no result.
    pub recompute: Recompute,
}

/// What a run must remember besides parameters and moments: as much as a checkpoint needs to continue bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainState {
    /// The device counters, see [`counter`].
    pub counters: [u32; counter::LEN],
    /// How many training windows have been drawn.
    pub windows_drawn: u64,
}

impl TrainConfig {
    /// One micro-batch of one sequence per step, a constant learning rate, nanoGPT's AdamW (betas 0.9 and 0.99, decay
    /// 0.1, clipping at 1), and sequences of 64 tokens: a beginning for `..` syntax.
    pub const fn constant(learning_rate: f64) -> Self {
        TrainConfig {
            batch: 1,
            time: 64,
            accumulation: 1,
            schedule: Schedule::constant(learning_rate),
            clip: 1.0,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            seed: 1337,
            recompute: Recompute::Nothing,
        }
    }

    /// How many of a batch's sequences go through the model at once on `backend`: what to plan memory for. Their
    /// gradients are summed, as those of micro-batches are, and dropout drops what it would of the whole. The slices are
    /// as even as can be, and depend on shapes and the kind of backend alone.
    pub fn sequences_at_once<B: Backend>(&self, backend: &B) -> usize {
        let slices = self.batch.div_ceil(most_at_once(backend, self.time)).max(1);
        self.batch.div_ceil(slices)
    }

    /// Where a [`Trainer`] with these settings puts everything on `backend`: room for as many sequences as
    /// [go through the model at once](TrainConfig::sequences_at_once).
    ///
    /// # Errors
    /// As [`Plan::training`].
    pub fn plan<B: Backend>(&self, model: &GptConfig, backend: &B) -> Result<Plan, ConfigError> {
        let at_once = self.sequences_at_once(backend);
        Plan::training_with(model, B::Elem::DTYPE, at_once, self.time, self.recompute)
    }

    /// Bytes that a [`Trainer`] takes for tokens, in the program's memory beside the [plan](TrainConfig::plan): those of
    /// a micro-batch with their targets, and one or the other of a slice on their way to the backend.
    pub fn token_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.countable_token_bytes(backend).unwrap_or(usize::MAX)
    }

    fn countable_token_bytes<B: Backend>(&self, backend: &B) -> Option<usize> {
        let sequences = self.batch.checked_mul(2)?.checked_add(self.sequences_at_once(backend))?;
        sequences.checked_mul(self.time)?.checked_mul(size_of::<u32>())
    }

    /// The largest batch for which a trainer's [plan](TrainConfig::plan), the backend's scratch and the
    /// [tokens](TrainConfig::token_bytes) take at most `budget` bytes, the other settings being these. `None` if not
    /// even one sequence fits or the model is invalid.
    ///
    /// ```
    /// use minigpt_core::{GptConfig, Recompute, Reference, TrainConfig};
    /// let (model, backend) = (GptConfig::new(65, 64), Reference::<f32>::new());
    /// let fits = |recompute| {
    ///     let settings = TrainConfig { recompute, ..TrainConfig::constant(1e-3) };
    ///     settings.largest_batch(&model, &backend, 64 << 20)
    /// };
    /// let (batch, larger) = (fits(Recompute::Nothing).unwrap(), fits(Recompute::Blocks).unwrap());
    /// assert!(larger > 2 * batch);
    /// ```
    pub fn largest_batch<B: Backend>(&self, model: &GptConfig, backend: &B, budget: usize) -> Option<usize> {
        let fits = |batch: usize| {
            let settings = TrainConfig { batch, ..self.clone() };
            let tokens = settings.countable_token_bytes(backend)?;
            let plan = settings.plan(model, backend).ok()?;
            let workspace = backend.workspace_bytes(&plan);
            let needed = plan.bytes.total().saturating_add(workspace).saturating_add(tokens);
            Some(batch).filter(|_| needed <= budget)
        };
        // A larger batch may go in more and smaller slices, and so need less. But among batches of as many slices the
        // larger needs more, and so it is among the smallest batches of so many slices.
        let most = most_at_once(backend, self.time);
        let before = |slices: usize| (slices - 1).checked_mul(most);
        let slices =
            largest(|slices| before(slices).and_then(|before| fits(before.checked_add(1)?)).is_some())?;
        let before = before(slices)?;
        let last = largest(|last| last <= most && before.checked_add(last).and_then(fits).is_some())?;
        Some(before + last)
    }

    /// The first setting that has no meaning, and what it must be.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let Schedule { peak, floor, .. } = self.schedule;
        let rate = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let rules = [
            (self.batch > 0, "batch", "at least 1"),
            (self.time > 0, "time", "at least 1"),
            (self.accumulation > 0, "accumulation", "at least 1"),
            (rate(peak), "schedule.peak", "a finite number, 0 or above"),
            (rate(floor), "schedule.floor", "a finite number, 0 or above"),
            (self.clip > 0.0, "clip", "above 0 (infinite: never clip)"),
            (unit(self.beta1), "beta1", "at least 0 and below 1"),
            (unit(self.beta2), "beta2", "at least 0 and below 1"),
            (self.eps.is_finite() && self.eps > 0.0, "eps", "above 0, such as 1e-8"),
            (rate(self.weight_decay), "weight_decay", "a finite number, 0 or above"),
        ];
        match rules.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, field, must)) => Err((field, must)),
            None => Ok(()),
        }
    }
}

/// How many sequences may go through the model at once, whatever the batch.
fn most_at_once<B: Backend>(backend: &B, time: usize) -> usize {
    (backend.rows_at_once() / time.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_without_meaning_is_named() {
        let good = || TrainConfig { batch: 2, ..TrainConfig::constant(1e-3) };
        assert_eq!(good().validate(), Ok(()));
        let refused = |config: TrainConfig| config.validate().err().map(|(field, _)| field);
        let rate = |peak, floor| Schedule { peak, floor, ..Schedule::constant(0.0) };
        for (config, field) in [
            (TrainConfig { batch: 0, ..good() }, "batch"),
            (TrainConfig { time: 0, ..good() }, "time"),
            (TrainConfig { accumulation: 0, ..good() }, "accumulation"),
            (TrainConfig { schedule: rate(-1.0, 0.0), ..good() }, "schedule.peak"),
            (TrainConfig { schedule: rate(f64::INFINITY, 0.0), ..good() }, "schedule.peak"),
            (TrainConfig { schedule: rate(1.0, f64::NAN), ..good() }, "schedule.floor"),
            (TrainConfig { clip: 0.0, ..good() }, "clip"),
            (TrainConfig { clip: f64::NAN, ..good() }, "clip"),
            (TrainConfig { beta1: 1.0, ..good() }, "beta1"),
            (TrainConfig { beta2: -0.1, ..good() }, "beta2"),
            (TrainConfig { eps: 0.0, ..good() }, "eps"),
            (TrainConfig { eps: f64::INFINITY, ..good() }, "eps"),
            (TrainConfig { weight_decay: -0.1, ..good() }, "weight_decay"),
            (TrainConfig { weight_decay: f64::INFINITY, ..good() }, "weight_decay"),
        ] {
            assert_eq!(refused(config), Some(field));
        }
        for config in [
            TrainConfig { batch: 1, time: 1, accumulation: 1, ..good() },
            TrainConfig { schedule: rate(0.0, 0.0), ..good() },
            TrainConfig { clip: f64::INFINITY, ..good() },
            TrainConfig { beta1: 0.0, beta2: 0.0, weight_decay: 0.0, ..good() },
        ] {
            assert_eq!(config.validate(), Ok(()));
        }
    }

    /// A backend that takes so many rows at once.
    #[derive(Debug)]
    struct Rows(usize);

    impl Backend for Rows {
        type Elem = f32;
        type Error = crate::ReferenceError;
        fn alloc(&mut self, bytes: usize) -> Result<crate::Buffer, Self::Error> {
            Err(crate::ReferenceError::OutOfMemory { bytes })
        }
        fn write(&mut self, _: crate::Span, _: &[u8]) -> Result<(), Self::Error> {
            Ok(())
        }
        fn read(&mut self, _: crate::Span, _: &mut [u8]) -> Result<(), Self::Error> {
            Ok(())
        }
        fn copy(&mut self, _: crate::Span, _: crate::Span) -> Result<(), Self::Error> {
            Ok(())
        }
        fn fill(&mut self, _: crate::Span, _: f64) -> Result<(), Self::Error> {
            Ok(())
        }
        fn sync(&mut self) -> Result<(), Self::Error> {
            Ok(())
        }
        fn rows_at_once(&self) -> usize {
            self.0
        }
        fn workspace_bytes(&self, plan: &Plan) -> usize {
            100 * plan.batch
        }
    }

    #[test]
    fn the_largest_batch_is_the_last_that_a_trainer_has_room_for() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 8) };
        let settings = |batch| TrainConfig { batch, time: 8, ..TrainConfig::constant(1e-3) };
        for rows in [0, 8, 31, 32, 40, 72, usize::MAX] {
            let backend = Rows(rows);
            let needs = |batch| {
                let settings = settings(batch);
                let plan = settings.plan(&config, &backend).unwrap();
                assert_eq!(plan.batch, settings.sequences_at_once(&backend));
                // Of 8 tokens: the batch's, its targets, and what is on its way to the backend.
                let tokens = (batch + batch + plan.batch) * 8 * 4;
                plan.bytes.total() + backend.workspace_bytes(&plan) + tokens
            };
            let least = needs(1);
            let largest = |budget| settings(7).largest_batch(&config, &backend, budget);
            assert_eq!(largest(least - 1), None);
            for budget in (least..least + 12_000).step_by(97) {
                let found = largest(budget).unwrap();
                // Tokens and targets alone would be beyond the budget after that.
                let expected = (1..=budget / (2 * 8 * 4)).rfind(|&batch| needs(batch) <= budget);
                assert_eq!(Some(found), expected, "{rows} rows, {budget} bytes");
            }
        }
        let invalid = GptConfig { heads: 3, ..config.clone() };
        assert_eq!(settings(1).largest_batch(&invalid, &Rows(8), usize::MAX), None);
        assert!(settings(1).largest_batch(&config, &Rows(8), usize::MAX).is_some());
    }

    #[test]
    fn a_batch_is_cut_into_slices_as_even_as_can_be() {
        let at_once = |batch, time, rows| {
            TrainConfig { batch, time, ..TrainConfig::constant(1e-3) }.sequences_at_once(&Rows(rows))
        };
        assert_eq!(at_once(8, 256, 1024), 4);
        assert_eq!(at_once(12, 64, 1024), 12);
        assert_eq!(at_once(17, 64, 1024), 9);
        assert_eq!(at_once(5, 256, 1024), 3);
        assert_eq!(at_once(3, 2048, 1024), 1);
        assert_eq!(at_once(3, 7, 0), 1);
        assert_eq!(at_once(usize::MAX, 1, usize::MAX), usize::MAX);
        assert_eq!(at_once(0, 0, 1024), 0);
    }

    #[test]
    fn a_constant_rate_comes_with_the_usual_settings() {
        let config = TrainConfig::constant(1e-3);
        assert_eq!((config.batch, config.time, config.accumulation), (1, 64, 1));
        assert_eq!(config.schedule, Schedule::constant(1e-3));
        assert_eq!((config.beta1, config.beta2, config.eps), (0.9, 0.99, 1e-8));
        assert_eq!((config.weight_decay, config.clip), (0.1, 1.0));
    }
}
