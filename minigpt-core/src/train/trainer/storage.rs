//! A run's way to a checkpoint and back.

use alloc::string::String;
use alloc::vec::Vec;

use super::Trainer;
use crate::backend::{Backend, Device, read_u32, write_u32};
use crate::checkpoint::{
    Checkpoint, Read, SaveError, Stream, StreamError, TensorSpec, TrainState, Training, Write,
};
use crate::config::{Groups, Precision, TrainConfig};
use crate::error::Error;
use crate::memory::Span;
use crate::model::{Extras, Model, Place, Places, Saved, nowhere, read_into, write_tensor};
use crate::op::counter;
use crate::plan::{States, Tensor};
use crate::real::Real;

impl<B: Backend> Trainer<B> {
    /// Continues a run from a checkpoint that [`save`](Trainer::save) wrote, as if it had never stopped: on the same
    /// backend, bit for bit.
    ///
    /// # Errors
    /// If the checkpoint is damaged or has no training state, or memory does not suffice.
    pub fn resume(
        device: impl Into<Device<B>>,
        checkpoint: &Checkpoint<'_>,
    ) -> Result<Self, Error<B::Error>> {
        let training = checkpoint.training().ok_or(Error::NoTraining)?;
        Self::resume_with(device, checkpoint, training.config.clone())
    }

    /// As [`resume`](Trainer::resume), with other settings from here on: a learning rate that goes on for longer, or
    /// what a smaller machine recomputes. Weights and counters are the checkpoint's, and so is what the optimizers keep, as far
    /// as theirs keep the same of a parameter: another one begins with zeros, and an average with the weights. AdamW's correction
    /// of its first updates goes by the number of the run's updates, so that an AdamW that begins late is not corrected: with a
    /// beta2 above 0.99 let the learning rate warm up again.
    ///
    /// ```
    /// # use minigpt_core::{Checkpoint, GptConfig, Model, Reference, model::Extras};
    /// use minigpt_core::{Recompute, TrainConfig, Trainer};
    /// # let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
    /// # let settings = TrainConfig { time: 2, ..TrainConfig::constant(0.1) };
    /// # let first = Trainer::new(&Model::new(Reference::<f32>::new(), config, 1)?, settings)?;
    /// # let mut bytes = Vec::new();
    /// # first.write(&mut bytes, &Extras::default())?;
    /// let checkpoint = Checkpoint::open(&bytes)?;
    /// let kept = checkpoint.training().ok_or("this is a model without its training")?.config.clone();
    /// let settings = TrainConfig { recompute: Recompute::Blocks, ..kept };
    /// let trainer = Trainer::resume_with(Reference::<f32>::new(), &checkpoint, settings)?;
    /// # assert_eq!(trainer.plan().recompute, Recompute::Blocks);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`resume`](Trainer::resume), and if a setting has no meaning.
    pub fn resume_with(
        device: impl Into<Device<B>>,
        checkpoint: &Checkpoint<'_>,
        config: TrainConfig,
    ) -> Result<Self, Error<B::Error>> {
        let training = checkpoint.training().ok_or(Error::NoTraining)?;
        let states = checkpoint.states()?;
        let model = Model::load(device, checkpoint)?;
        let state = state_under(training, &config);
        let mut answers = states.iter();
        let mut trainer = Trainer::freezing(&model, config, |_| answers.next().is_none_or(Option::is_none))?;
        for (view, to) in trainer.restored(&states, &training.config.groups) {
            write_tensor(trainer.model.device(), view, to)?;
        }
        trainer.set_state(&state)?;
        Ok(trainer)
    }

    /// [`resume`](Trainer::resume) from a checkpoint that comes in tensor by tensor, and never lies in memory as a
    /// whole.
    ///
    /// # Errors
    /// If the stream ends early, is damaged or has no training state, or memory does not suffice.
    pub fn resume_from<R: Read>(
        device: impl Into<Device<B>>,
        stream: Stream<'_, R>,
    ) -> Result<Self, StreamError<R::Error, Error<B::Error>>> {
        let training = stream.training().ok_or(StreamError::Load(Error::NoTraining))?;
        let config = training.config.clone();
        Self::resume_from_with(device, stream, config)
    }

    /// As [`resume_from`](Trainer::resume_from), with other settings from here on, as
    /// [`resume_with`](Trainer::resume_with) has them. Those that were kept are
    /// [`Stream::training`](Stream::training)'s.
    ///
    /// # Errors
    /// As [`resume_from`](Trainer::resume_from), and if a setting has no meaning.
    pub fn resume_from_with<R: Read>(
        device: impl Into<Device<B>>,
        stream: Stream<'_, R>,
        config: TrainConfig,
    ) -> Result<Self, StreamError<R::Error, Error<B::Error>>> {
        let averaged = stream.training().is_some_and(|training| training.config.average.is_some());
        let (trainer, places) = Self::awaiting(&device.into(), &stream, config).map_err(StreamError::Load)?;
        read_into(stream, trainer.model.device(), &places)?;
        if !averaged {
            trainer.begin_average().map_err(StreamError::Load)?;
        }
        Ok(trainer)
    }

    /// A trainer without weights and what optimizers keep, and the places that those of `stream` have in it.
    fn awaiting<R: Read>(
        device: &Device<B>,
        stream: &Stream<'_, R>,
        config: TrainConfig,
    ) -> Result<(Self, Places), Error<B::Error>> {
        let training = stream.training().ok_or(Error::NoTraining)?;
        let (parameters, states) = (stream.parameters()?, stream.states()?);
        let mut places = nowhere(stream.tensors())?;
        let model = Model::empty(device, stream.config().clone())?;
        let state = state_under(training, &config);
        let mut answers = states.iter();
        let mut trainer = Trainer::freezing(&model, config, |_| answers.next().is_none_or(Option::is_none))?;
        trainer.set_state(&state)?;
        let parameters = parameters.iter().zip(trainer.parameter_spans());
        for (coming, to) in parameters.chain(trainer.restored(&states, &training.config.groups)) {
            places[coming.tensor] = Some(Place { to, dtype: coming.dtype, cols: coming.cols });
        }
        Ok((trainer, places))
    }

    /// Where the parameters lie, in the order of the model.
    fn parameter_spans(&self) -> impl Iterator<Item = Span> {
        let on = |buffer| move |tensor: &Tensor| tensor.region.on(buffer, B::Elem::DTYPE);
        let list = || self.workspace.plan.parameters.list().into_iter();
        self.model.trainable().into_iter().flat_map(move |params| list().map(on(params.buffer)))
    }

    /// What of a checkpoint's `states` goes where: all that the optimizers here keep by the same name as the `groups` there.
    fn restored<'s, T>(
        &'s self,
        states: &'s [Option<States<T>>],
        groups: &'s Groups,
    ) -> impl Iterator<Item = (&'s T, Span)> {
        let plan = &self.workspace.plan;
        let trained = states.iter().flatten().zip(plan.trained()).zip(&plan.states);
        trained.flat_map(move |((saved, tensor), regions)| {
            let (there, here) = (groups.of(tensor.kind), plan.groups.of(tensor.kind));
            regions.named(here).filter_map(move |(name, region)| {
                Some((saved.get(there, name)?, region.on(self.kept.buffer(), B::Elem::DTYPE)))
            })
        })
    }

    /// Where everything lies that a checkpoint holds: parameters, then what optimizers keep.
    fn saved_spans(&self) -> Vec<Span> {
        let on = self.kept.buffer();
        let kept = self.workspace.plan.kept().map(|(_, _, region)| region.on(on, B::Elem::DTYPE));
        self.parameter_spans().chain(kept).collect()
    }

    /// Writes a checkpoint from which the run can be resumed: parameters, what the optimizers keep, settings and counters. Only
    /// between steps, because the gradient of a step in the making is not kept.
    ///
    /// # Errors
    /// If a step is in the making, the backend or `out` fails, or the extras do not fit the model.
    pub fn write<W: Write>(
        &self,
        out: W,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, W::Error>> {
        self.saved()?.write(self.model.device(), out, extras)
    }

    /// [`write`](Trainer::write) to a file, atomically: see [`checkpoint::save`](crate::checkpoint::save).
    ///
    /// # Errors
    /// If the backend or the disk fails; what was at `path` is still there then.
    #[cfg(feature = "std")]
    pub fn save(
        &self,
        path: impl AsRef<std::path::Path>,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, crate::checkpoint::FileError>> {
        self.saved()?.save(self.model.device(), path.as_ref(), extras)
    }

    fn saved<W>(&self) -> Result<Saved, SaveError<Error<B::Error>, W>> {
        if self.pending > 0 {
            return Err(SaveError::Read { tensor: "the gradient".into(), error: Error::UnfinishedStep });
        }
        let state =
            self.state().map_err(|error| SaveError::Read { tensor: "the device counters".into(), error })?;
        let plan = &self.workspace.plan;
        Ok(Saved {
            config: plan.config.clone(),
            training: Some(Training { config: self.config.clone(), state, frozen: self.frozen() }),
            tensors: TensorSpec::training(plan),
            spans: self.saved_spans(),
        })
    }

    /// The names of what is frozen, if the settings alone do not show it by what is kept.
    fn frozen(&self) -> Vec<String> {
        let plan = &self.workspace.plan;
        let TrainConfig { groups, average, precision, .. } = &self.config;
        if groups.as_adamw().is_some() && average.is_none() && *precision == Precision::F32 {
            return Vec::new();
        }
        let all = plan.parameters.list().into_iter().zip(plan.gradients.list());
        all.filter(|(_, gradient)| gradient.is_none()).map(|(tensor, _)| tensor.name.clone()).collect()
    }

    /// What must be remembered besides parameters and what the optimizers keep to continue this run bit for bit. Waits.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn state(&self) -> Result<TrainState, Error<B::Error>> {
        let span = self.workspace.counters();
        let values = read_u32(&mut *self.model.device().lock(), span).map_err(Error::Backend)?;
        let mut counters = [0; counter::LEN];
        counters.copy_from_slice(&values);
        Ok(TrainState { counters, windows_drawn: self.windows_drawn })
    }

    pub(crate) fn set_state(&mut self, state: &TrainState) -> Result<(), Error<B::Error>> {
        let span = self.workspace.counters();
        write_u32(&mut *self.model.device().lock(), span, &state.counters).map_err(Error::Backend)?;
        self.windows_drawn = state.windows_drawn;
        self.steps = Some(state.counters[counter::STEP]);
        self.pending = 0;
        Ok(())
    }
}

/// Where a run goes on with these settings: its dropout masks follow the seed.
fn state_under(training: &Training, config: &TrainConfig) -> TrainState {
    let mut state = training.state;
    if config.seed != training.config.seed {
        [state.counters[counter::SEED], state.counters[counter::SEED + 1]] = crate::rng::key(config.seed);
    }
    state
}
