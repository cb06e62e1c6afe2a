//! Steps on windows of a text, of one trainer or of several ranks.

use super::Trainer;
use crate::backend::Backend;
use crate::config::{Rank, TrainConfig};
use crate::data::Windows;
use crate::error::Error;

impl<B: Backend> Trainer<B> {
    /// One step on random windows of a text: `accumulation` micro-batches, then the update.
    ///
    /// # Errors
    /// If the windows are not `time` long, the trainer is one of several [ranks](TrainConfig::rank), which
    /// [accumulate](Trainer::accumulate), or the [learning rate](Trainer::set_schedule) is negative or not finite, which
    /// leaves everything as it was; if a window holds a token that is not in the vocabulary or the backend fails, which drops
    /// the micro-batches of the step.
    pub fn step(&mut self, windows: &Windows<'_>) -> Result<(), Error<B::Error>> {
        self.step_by(windows, Self::micro_step)
    }

    /// A step whose micro-batches go to `micro_step`.
    pub(super) fn step_by(
        &mut self,
        windows: &Windows<'_>,
        micro_step: impl FnMut(&mut Self, &[u32], &[u32]) -> Result<(), Error<B::Error>>,
    ) -> Result<(), Error<B::Error>> {
        self.check_alone()?;
        self.accumulate_by(windows, micro_step)?;
        self.finish_step()
    }

    /// The micro-batches of a [`step`](Trainer::step) without its update: `accumulation` of them, on random windows of a text.
    /// Of each, the trainer has its [rank](crate::TrainConfig::rank)'s part. Every rank counts the windows of all, and so no
    /// two of them draw the same.
    ///
    /// Between this and [`finish_step`](Trainer::finish_step), ranks add up their [sums](crate::train::Sums):
    ///
    /// ```
    /// use minigpt_core::train::Sums;
    /// use minigpt_core::{Backend, Error, Trainer, Windows};
    ///
    /// /// `all_reduce` adds up what the ranks have, in the same order on each.
    /// fn step<B: Backend>(
    ///     trainer: &mut Trainer<B>,
    ///     windows: &Windows<'_>,
    ///     sums: &mut Sums<B::Elem>,
    ///     all_reduce: impl FnOnce(&mut Sums<B::Elem>),
    /// ) -> Result<(), Error<B::Error>> {
    ///     trainer.accumulate(windows)?;
    ///     trainer.read_sums(sums)?;
    ///     all_reduce(sums);
    ///     trainer.write_sums(sums)?;
    ///     trainer.finish_step()
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`step`](Trainer::step), but for the ranks.
    pub fn accumulate(&mut self, windows: &Windows<'_>) -> Result<(), Error<B::Error>> {
        self.accumulate_by(windows, Self::micro_step)
    }

    /// Gives the micro-batches of a step to `micro_step`.
    fn accumulate_by(
        &mut self,
        windows: &Windows<'_>,
        mut micro_step: impl FnMut(&mut Self, &[u32], &[u32]) -> Result<(), Error<B::Error>>,
    ) -> Result<(), Error<B::Error>> {
        let TrainConfig { batch, time, accumulation, seed, rank, .. } = self.config;
        if windows.time() != time {
            return Err(Error::BatchLength { found: batch * windows.time(), expected: batch * time });
        }
        // Sooner than after all the work.
        self.learning_rate(self.steps()?)?;
        for _ in 0..accumulation {
            let (mut inputs, mut targets) =
                (core::mem::take(&mut self.inputs), core::mem::take(&mut self.targets));
            // Wrapping, as the windows' numbers do: the count may come from a stranger's checkpoint.
            let first = self.windows_drawn.wrapping_add(rank.first(batch));
            let result = windows
                .fill(seed, first, batch, &mut inputs, &mut targets)
                .map_err(Error::Data)
                .and_then(|()| micro_step(self, &inputs, &targets));
            (self.inputs, self.targets) = (inputs, targets);
            if result.is_err() {
                self.pending = 0;
                return result;
            }
            self.windows_drawn = self.windows_drawn.wrapping_add(rank.sequences(batch));
        }
        Ok(())
    }

    /// Refuses to be one of several ranks: their updates would differ, and so would their models from then on.
    pub(super) fn check_alone(&self) -> Result<(), Error<B::Error>> {
        match self.config.rank {
            Rank { count: 1, .. } => Ok(()),
            rank => Err(Error::SumsNotShared { rank }),
        }
    }
}
