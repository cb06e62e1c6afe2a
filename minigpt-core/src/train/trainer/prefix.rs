//! Given vectors before the tokens of a batch, and the gradient back to them.

use alloc::vec::Vec;

use super::Trainer;
use crate::backend::{Backend, write_elems};
use crate::config::GptConfig;
use crate::error::Error;
use crate::memory::Span;

impl<B: Backend> Trainer<B> {
    /// The vectors that stand before the tokens of each sequence from here on, (B, P, C): those of an image, say, for a
    /// model with a [prefix](crate::GptConfig::prefix). They stay until others take their place. Evaluation too reads them:
    /// window number i has those of sequence i modulo the batch.
    ///
    /// [`step`](Trainer::step) draws its windows at random, whatever the vectors are: where a text belongs to its vectors, as a
    /// caption to an image, give both to [`micro_step`](Trainer::micro_step). A checkpoint does not hold the vectors: set them
    /// again after resuming.
    ///
    /// # Errors
    /// If they are not as many numbers, or the backend fails.
    ///
    /// ```
    /// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer};
    /// let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 8, prefix: 2, ..GptConfig::new(5, 5) };
    /// let settings = TrainConfig { batch: 1, time: 3, ..TrainConfig::constant(0.1) };
    /// let mut trainer = Trainer::new(&Model::new(Reference::<f64>::new(), config, 1)?, settings)?;
    /// // What an encoder made of a picture: two vectors, which it learns to make better.
    /// let mut picture = vec![0.1, -0.2, 0.3, 0.0, 0.2, 0.1, -0.1, 0.4];
    /// for _ in 0..20 {
    ///     trainer.set_prefix(&picture)?;
    ///     trainer.micro_step(&[0, 1, 2], &[1, 2, 3])?;
    ///     let gradient = trainer.prefix_gradient()?;
    ///     picture.iter_mut().zip(gradient).for_each(|(x, d)| *x -= 0.1 * d);
    ///     trainer.finish_step()?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_prefix(&mut self, vectors: &[B::Elem]) -> Result<(), Error<B::Error>> {
        let GptConfig { prefix, d_model, .. } = *self.model.config();
        let (found, expected) = (vectors.len(), self.config.batch * prefix * d_model);
        if found != expected {
            return Err(Error::PrefixLength { found, expected });
        }
        self.has_prefix = prefix == 0;
        write_elems(&mut *self.model.device().lock(), self.prefix(), vectors).map_err(Error::Backend)?;
        self.has_prefix = true;
        Ok(())
    }

    /// The gradient by the given vectors, (B, P, C), that the last micro-batch has of the mean loss: the sum over its targets,
    /// divided by the number of all targets of the step in the making, or of the last one; zero if there were none. Waits.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn prefix_gradient(&mut self) -> Result<Vec<B::Elem>, Error<B::Error>> {
        self.mean(self.d_prefix())
    }

    fn prefix(&self) -> Span {
        self.workspace.plan.prefix.on(self.workspace.buffers.state, self.workspace.plan.elem)
    }

    pub(super) fn d_prefix(&self) -> Span {
        self.workspace.plan.d_prefix.on(self.workspace.buffers.state, self.workspace.plan.elem)
    }

    pub(super) fn check_prefix(&self) -> Result<(), Error<B::Error>> {
        if self.has_prefix { Ok(()) } else { Err(Error::NoPrefix { prefix: self.model.config().prefix }) }
    }
}
