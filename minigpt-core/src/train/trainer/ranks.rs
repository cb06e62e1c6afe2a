//! The steps of a trainer that is one of several ranks.

use super::Trainer;
use crate::backend::Backend;
use crate::config::Rank;
use crate::data::Windows;
use crate::error::Error;

impl<B: Backend> Trainer<B> {
    /// The micro-batches of a [`step`](Trainer::step) without its update: `accumulation` of them, on random windows of a text.
    /// Of each, the trainer has its [rank](crate::TrainConfig::rank)'s part. All ranks count the windows of all, and so draw none
    /// twice.
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
    /// As [`step`](Trainer::step).
    pub fn accumulate(&mut self, windows: &Windows<'_>) -> Result<(), Error<B::Error>> {
        self.accumulate_by(windows, Self::micro_step)
    }

    /// Refuses to be one of several ranks: their updates would differ, and so would their models from then on.
    pub(super) fn check_alone(&self) -> Result<(), Error<B::Error>> {
        match self.config.rank {
            Rank { count: 1, .. } => Ok(()),
            rank => Err(Error::SumsNotShared { rank }),
        }
    }
}
