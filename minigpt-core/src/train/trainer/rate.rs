//! The learning rate of a step: the config's schedule, or any function.

use alloc::boxed::Box;
use core::fmt;

use super::Trainer;
use crate::backend::Backend;
use crate::error::Error;
use crate::op::counter;
use crate::real::Real;

/// What tells the learning rate of a step in place of the config's schedule.
pub(super) struct Function(Box<dyn Fn(u32) -> f64 + Send + Sync>);

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Function")
    }
}

impl<B: Backend> Trainer<B> {
    /// From here on `rate` tells the learning rate of each step by the step's number, counted from 0, in place of the config's
    /// [`schedule`](crate::TrainConfig::schedule). It may be asked more than once about a step.
    ///
    /// No checkpoint holds it: set it again after [resuming](Trainer::resume), or the run goes on by the config's schedule.
    ///
    /// A rate that is negative, or not finite in the backend's numbers, is an [error](Error::LearningRate) of the step that it
    /// is for. Nothing is enqueued then and nothing lost: what the step in the making has is still there, and once there is
    /// another function [`finish_step`](Trainer::finish_step) finishes it.
    ///
    /// ```
    /// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
    /// let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 8, ..GptConfig::new(5, 4) };
    /// let settings = TrainConfig { time: 4, ..TrainConfig::constant(1e-2) };
    /// let mut trainer = Trainer::new(&Model::new(Reference::<f64>::new(), config, 1)?, settings)?;
    /// // The inverse square root of Vaswani et al. 2017, with 10 steps of warm-up.
    /// trainer.set_schedule(|step| {
    ///     let step = f64::from(step) + 1.0;
    ///     0.1 * step.powf(-0.5).min(step * 10f64.powf(-1.5))
    /// });
    /// trainer.step(&Windows::new(&[0u32, 1, 2, 3, 4, 0, 1], 4)?)?;
    /// assert!((trainer.metrics()?.learning_rate - 0.1 * 10f64.powf(-1.5)).abs() < 1e-12);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_schedule(&mut self, rate: impl Fn(u32) -> f64 + Send + Sync + 'static) {
        self.schedule = Some(Function(Box::new(rate)));
    }

    /// The learning rate of step number `step`.
    pub(super) fn learning_rate(&self, step: u32) -> Result<B::Elem, Error<B::Error>> {
        let rate = match &self.schedule {
            Some(Function(rate)) => rate(step),
            None => self.config.schedule.learning_rate(step),
        };
        // With the factors of the groups too, or an update would break the weights without a sign of it.
        let largest = B::Elem::from_f64(rate * self.config.groups.largest_factor());
        if largest.to_f64().is_finite() && rate >= 0.0 {
            Ok(B::Elem::from_f64(rate))
        } else {
            Err(Error::LearningRate { step, rate })
        }
    }

    /// How many steps are finished: the number of the one in the making. Waits if the last one failed half-way.
    pub(super) fn steps(&self) -> Result<u32, Error<B::Error>> {
        match self.steps {
            Some(steps) => Ok(steps),
            None => Ok(self.state()?.counters[counter::STEP]),
        }
    }
}
