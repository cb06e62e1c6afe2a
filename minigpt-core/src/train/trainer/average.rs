//! The moving average of the weights.

use super::Trainer;
use crate::backend::Backend;
use crate::data::EvalWindows;
use crate::error::Error;
use crate::model::{Model, Weights};
use crate::real::Real;

impl<B: Backend> Trainer<B> {
    /// As [`evaluate`](Trainer::evaluate), with the [average](crate::TrainConfig::average) of the weights in their place; of
    /// what is frozen with the weights themselves. `Ok(None)` if there is no average.
    ///
    /// ```
    /// use minigpt_core::{EvalWindows, GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(4, 8) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let settings = TrainConfig { time: 8, average: Some(0.9), ..TrainConfig::constant(1e-2) };
    /// let mut trainer = Trainer::new(&model, settings)?;
    /// let text: Vec<u32> = (0..100).map(|i| i % 4).collect();
    /// let windows = Windows::new(&text, 8)?;
    /// for _ in 0..30 {
    ///     trainer.step(&windows)?;
    /// }
    /// let all = EvalWindows::new(&text, 8)?;
    /// let (now, mean) = (trainer.evaluate(&all)?, trainer.evaluate_average(&all)?.ok_or("none")?);
    /// assert!(mean > now, "a model that still learns is ahead of its average");
    /// let averaged = trainer.averaged()?.ok_or("none")?;
    /// assert_ne!(averaged.parameter("wte.weight")?, model.parameter("wte.weight")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`evaluate`](Trainer::evaluate).
    pub fn evaluate_average(&mut self, windows: &EvalWindows<'_>) -> Result<Option<f64>, Error<B::Error>> {
        match self.averages {
            Some(_) => self.evaluate_with(windows, true).map(Some),
            None => Ok(None),
        }
    }

    /// A model of its own with the [average](crate::TrainConfig::average) of the weights: to generate from, or to
    /// [write](Model::write). What is frozen is as it is. `Ok(None)` if there is no average.
    ///
    /// # Errors
    /// If memory does not suffice, or the backend fails.
    pub fn averaged(&self) -> Result<Option<Model<B>>, Error<B::Error>> {
        let Some(averages) = &self.averages else { return Ok(None) };
        let model = Model::empty(self.model.device(), self.model.config().clone())?;
        let mut backend = self.model.device().lock();
        for (from, to) in averages.parameters.list().into_iter().zip(model.weights().parameters.list()) {
            backend.copy(*from, *to).map_err(Error::Backend)?;
        }
        drop(backend);
        Ok(Some(model))
    }

    /// The averages as the weights of a model, with the model's own where something is frozen; `None` if there are none.
    pub(super) fn averaged_weights(&self) -> Option<Weights> {
        let plan = &self.workspace.plan;
        plan.average?;
        let weights = self.model.weights();
        let gradients = plan.gradients.list();
        let (mut gradients, mut states) = (gradients.into_iter(), plan.states.iter());
        let parameters = weights.parameters.map(|own| {
            let is_trained = gradients.next().is_some_and(Option::is_some);
            let average =
                states.by_ref().take(usize::from(is_trained)).next().and_then(|states| states.average);
            average.map_or(*own, |region| region.on(self.kept.buffer(), B::Elem::DTYPE))
        });
        Some(Weights { parameters, position_table: weights.position_table })
    }

    /// Before the first update the average is the weights.
    pub(super) fn begin_average(&self) -> Result<(), Error<B::Error>> {
        let Some(averages) = &self.averages else { return Ok(()) };
        let weights = self.model.weights();
        let mut backend = self.model.device().lock();
        for (from, to) in weights.parameters.list().into_iter().zip(averages.parameters.list()) {
            if from != to {
                backend.copy(*from, *to).map_err(Error::Backend)?;
            }
        }
        Ok(())
    }
}
