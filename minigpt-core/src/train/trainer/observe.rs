//! Steps that are observed.

use alloc::vec::Vec;

use super::{Trainer, that_count};
use crate::backend::Backend;
use crate::data::Windows;
use crate::error::Error;
use crate::memory::zeros;
use crate::probe::{Observation, Probe};

impl<B: Backend> Trainer<B> {
    /// A [`step`](Trainer::step), bit for bit, while `probe` sees what it [wants](Probe::wants) of each of its micro-batches.
    ///
    /// ```
    /// use minigpt_core::probe::{Recording, TensorKind};
    /// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
    /// let config = GptConfig { layers: 3, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let mut trainer = Trainer::new(&model, TrainConfig { time: 4, ..TrainConfig::constant(0.1) })?;
    /// let text = [0u32, 1, 2, 3, 4, 0, 1];
    ///
    /// let mut recording = Recording::of(|at| at.kind == TensorKind::ResidualOutput && at.gradient);
    /// trainer.observe_step(&Windows::new(&text, 4)?, &mut recording)?;
    /// for (at, gradient) in recording.iter() {
    ///     let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
    ///     println!("{at}: norm {norm:.4}");
    ///     assert!(norm > 0.0);
    /// }
    /// assert_eq!(recording.iter().count(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`step`](Trainer::step), and as [`observe_micro_step`](Trainer::observe_micro_step).
    pub fn observe_step(
        &mut self,
        windows: &Windows<'_>,
        probe: &mut dyn Probe<B::Elem>,
    ) -> Result<(), Error<B::Error>> {
        self.step_by(windows, |trainer, inputs, targets| trainer.observe_micro_step(inputs, targets, probe))
    }

    /// A [`micro_step`](Trainer::micro_step), bit for bit, while `probe` sees what it [wants](Probe::wants) of it: forward,
    /// loss and backward, and at the end the gradients of the parameters. Waits.
    ///
    /// Gradients of parameters are those of the mean loss so far, as [`gradient`](Trainer::gradient) gives them. Those of other
    /// tensors are of the sum: divided by the number of targets they are those of the mean.
    ///
    /// # Errors
    /// As [`micro_step`](Trainer::micro_step). If the device has no memory for what is wanted, which leaves the step in the
    /// making as it was; if the host has none for what is seen, or `probe` has an error, which drops it.
    pub fn observe_micro_step(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        probe: &mut dyn Probe<B::Elem>,
    ) -> Result<(), Error<B::Error>> {
        self.check_batch(inputs, targets, self.config.batch)?;
        let wanted = self.wanted_gradients(probe)?;
        let model = self.model.clone();
        let batch = [self.config.batch, self.workspace.plan.time];
        let before = self.pending;
        let mut observation = Observation::new(model.device(), model.config(), batch, &mut *probe, |sink| {
            self.emit_micro_step(sink, before == 0)
        })?;
        // Also a probe that panics has dropped the step.
        self.pending = 0;
        self.write_tokens(inputs, targets).map_err(Error::Backend)?;
        observation.run(|sink| self.emit_micro_step(sink, before == 0))?;
        drop(observation);
        self.pending = before;
        self.count(that_count(targets), true);
        let done = core::mem::take(&mut self.pending);
        self.show_gradients(&wanted, probe)?;
        self.pending = done;
        Ok(())
    }

    /// Of which parameters `probe` wants to see the gradient.
    fn wanted_gradients(&self, probe: &mut dyn Probe<B::Elem>) -> Result<Vec<bool>, Error<B::Error>> {
        let parameters = self.workspace.plan.parameters.list();
        let mut wanted = zeros("wanted", parameters.len())?;
        for (wanted, parameter) in wanted.iter_mut().zip(parameters) {
            *wanted = probe.wants_gradient(parameter);
        }
        Ok(wanted)
    }

    fn show_gradients(&self, wanted: &[bool], probe: &mut dyn Probe<B::Elem>) -> Result<(), Error<B::Error>> {
        let parameters = self.workspace.plan.parameters.list();
        for ((parameter, span), _) in
            parameters.into_iter().zip(self.gradients.list()).zip(wanted).filter(|(_, wanted)| **wanted)
        {
            // What is frozen has none.
            let Some(span) = *span else { continue };
            probe.see_gradient(parameter, self.mean(span)?)?;
        }
        Ok(())
    }
}
