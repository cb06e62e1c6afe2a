//! [`Trainer`]: the training step.

use alloc::vec::Vec;

use super::{TrainConfig, TrainState};
use crate::backend::{Backend, Buffer, Span, read_elems, read_u32, write_u32, zeros};
use crate::checkpoint::{Checkpoint, Read, SaveError, Stream, StreamError, TensorSpec, Training, Write};
use crate::config::ConfigError;
use crate::data::{EvalWindows, Windows};
use crate::error::Error;
use crate::model::{
    Extras, Gradients, Model, Pass, Place, Places, Saved, Workspace, backward, check_tokens, forward, loss,
    nowhere, out_of_memory, read_into, stage, write_tensor,
};
use crate::op::{AdamW, Dropout, FinishStep, NextDraw, SquaredNorm, counter, scalar};
use crate::plan::{BackwardActivations, Parameters, Plan, Recompute, Region};
use crate::real::Real;

/// What the last finished step was like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// Steps finished, skipped ones included.
    pub step: u32,
    /// Mean loss of the step, in nats per token, before its update.
    pub loss: f64,
    /// Norm of the mean gradient, before clipping.
    pub grad_norm: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
    /// Targets trained on so far.
    pub tokens: u64,
    /// Steps that were skipped so far because their loss or gradient was not finite.
    pub skipped: u32,
    /// Steps skipped since the last update: a run in which this grows is lost.
    pub skipped_in_a_row: u32,
}

/// Trains a model.
///
/// A step only enqueues work: [`step`](Trainer::step) returns as soon as the backend has taken it, and
/// [`metrics`](Trainer::metrics) waits. A step whose loss or gradient is not finite changes nothing but the counters.
///
/// ```
/// use minigpt_core::{GptConfig, Model, Reference, data::Windows, train::{TrainConfig, Trainer}};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(4, 8) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let settings = TrainConfig { batch: 4, time: 8, ..TrainConfig::constant(1e-2) };
/// let mut trainer = Trainer::new(model, settings)?;
///
/// let text: Vec<u32> = (0..100).map(|i| i % 4).collect();
/// let windows = Windows::new(&text, 8)?;
/// trainer.step(&windows)?;
/// let first = trainer.metrics()?.loss;
/// for _ in 0..30 {
///     trainer.step(&windows)?;
/// }
/// assert!(trainer.metrics()?.loss < 0.5 * first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Trainer<B: Backend> {
    model: Model<B>,
    config: TrainConfig,
    workspace: Workspace,
    backward: BackwardActivations,
    params: Span,
    grads: Span,
    m: Span,
    v: Span,
    gradients: Parameters<Span>,
    windows_drawn: u64,
    /// Micro-batches since the last finished step.
    pending: usize,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    staging: Vec<u8>,
}

impl<B: Backend> Trainer<B> {
    /// Allocates gradients, moments and activations.
    ///
    /// # Errors
    /// If a setting has no meaning, the weights are borrowed, or memory does not suffice.
    pub fn new(mut model: Model<B>, config: TrainConfig) -> Result<Self, Error<B::Error>> {
        config.validate().map_err(|(field, must)| Error::Setting { field, must })?;
        let params = model.trainable().ok_or(Error::Frozen)?;
        let tokens = config.batch.checked_mul(config.time).ok_or(ConfigError::TooLarge { field: "batch" })?;
        let frugal = TrainConfig { recompute: Recompute::Blocks, ..config.clone() };
        let [plan, frugal] = [&config, &frugal].map(|config| config.plan(model.config(), model.backend()));
        let (plan, frugal) = (plan?, frugal?);
        let slice = plan.batch * plan.time;
        let backward = plan.backward.ok_or(Error::Frozen)?;
        let backend = model.backend_mut();
        let needs = |plan: &Plan| plan.bytes.total().saturating_add(backend.workspace_bytes(plan));
        let (needed, less) = (needs(&plan), needs(&frugal));
        let advised = |error| match error {
            Error::Memory { needed, source, .. } => {
                Error::Memory { needed, recomputing: Some(less).filter(|&less| less < needed), source }
            }
            other => other,
        };
        let all = |buffer: Buffer| Span { buffer, ..params };
        let mut attempt = || -> Result<_, B::Error> {
            let grads = backend.alloc(plan.bytes.gradients)?;
            // One buffer for each moment keeps every span aligned to its start.
            let m = backend.alloc(plan.bytes.optimizer / 2)?;
            let v = backend.alloc(plan.bytes.optimizer / 2)?;
            Ok((all(grads), all(m), all(v)))
        };
        let (grads, m, v) = attempt().map_err(|error| advised(out_of_memory(needed, error)))?;
        let gradients = plan.parameters.map(|tensor| tensor.region.on(grads.buffer, B::Elem::DTYPE));
        let workspace = Workspace::new(backend, plan).map_err(advised)?;
        let mut trainer = Trainer {
            model,
            workspace,
            backward,
            params,
            grads,
            m,
            v,
            gradients,
            windows_drawn: 0,
            pending: 0,
            inputs: zeros("inputs", tokens)?,
            targets: zeros("targets", tokens)?,
            staging: zeros("staging", slice * 4)?,
            config,
        };
        let mut counters = [0; counter::LEN];
        [counters[counter::SEED], counters[counter::SEED + 1]] = crate::rng::key(trainer.config.seed);
        trainer.set_state(&TrainState { counters, windows_drawn: 0 })?;
        Ok(trainer)
    }

    /// How it trains.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Where everything lies.
    pub fn plan(&self) -> &Plan {
        &self.workspace.plan
    }

    /// The model in training.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// The model in training, to generate from.
    pub fn model_mut(&mut self) -> &mut Model<B> {
        &mut self.model
    }

    /// The model, trained. Gradients, moments and activations are given back to the backend.
    pub fn into_model(self) -> Model<B> {
        let Trainer { mut model, workspace, grads, m, v, .. } = self;
        let backend = model.backend_mut();
        // A backend that will not take a buffer back keeps it until it is dropped: no reason to lose the model.
        let _ = workspace.release(backend);
        for span in [grads, m, v] {
            let _ = backend.release(span.buffer);
        }
        model
    }

    /// One step on random windows of a text: `accumulation` micro-batches, then the update.
    ///
    /// # Errors
    /// If the windows are not `time` long or hold a token that is not in the vocabulary, or the backend fails. The
    /// micro-batches of a step that fails are dropped.
    pub fn step(&mut self, windows: &Windows<'_>) -> Result<(), Error<B::Error>> {
        let TrainConfig { batch, time, accumulation, seed, .. } = self.config;
        if windows.time() != time {
            return Err(Error::BatchLength { found: batch * windows.time(), expected: batch * time });
        }
        for _ in 0..accumulation {
            let (mut inputs, mut targets) =
                (core::mem::take(&mut self.inputs), core::mem::take(&mut self.targets));
            let result = windows
                .fill(seed, self.windows_drawn, batch, &mut inputs, &mut targets)
                .map_err(Error::Data)
                .and_then(|()| self.micro_step(&inputs, &targets));
            (self.inputs, self.targets) = (inputs, targets);
            if result.is_err() {
                self.pending = 0;
                return result;
            }
            // Wrapping, as the windows' numbers do: the count may come from a stranger's checkpoint.
            self.windows_drawn = self.windows_drawn.wrapping_add(batch as u64);
        }
        self.finish_step()
    }

    /// Adds the gradient of one batch, (B, T) inputs and (B, T) targets, to the step in the making. Targets that are
    /// [`IGNORE`](crate::op::IGNORE) do not count.
    ///
    /// # Errors
    /// If the batch has another length or a token is not in the vocabulary, which leaves the step in the making as it
    /// was; or if the backend fails, which drops it.
    pub fn micro_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(), Error<B::Error>> {
        self.check_batch(inputs, targets, self.config.batch)?;
        let result = self.enqueue_micro_step(inputs, targets);
        self.pending = if result.is_ok() { self.pending + 1 } else { 0 };
        result.map_err(Error::Backend)
    }

    fn check_batch(&self, inputs: &[u32], targets: &[u32], batch: usize) -> Result<(), Error<B::Error>> {
        let expected = batch * self.config.time;
        for tokens in [inputs, targets] {
            if tokens.len() != expected {
                return Err(Error::BatchLength { found: tokens.len(), expected });
            }
        }
        let vocab = self.model.config().vocab_size;
        check_tokens(inputs, vocab)?;
        match targets.iter().position(|&t| t as usize >= vocab && t != crate::op::IGNORE) {
            Some(index) => Err(Error::Token { token: targets[index], index, vocab }),
            None => Ok(()),
        }
    }

    fn enqueue_micro_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(), B::Error> {
        if self.pending == 0 {
            let (grads, scalars) = (self.grads, self.workspace.scalars());
            let backend = self.model.backend_mut();
            backend.fill(grads, 0.0)?;
            // Zero after a finished step, but not after one that was dropped.
            for sum in [scalar::LOSS_SUM, scalar::TARGETS] {
                backend.fill(scalars.slice(sum, 1), 0.0)?;
            }
        }
        let counters = self.workspace.counters();
        self.model.backend_mut().run(&NextDraw { counters }.into())?;
        let at_once = self.workspace.plan.batch;
        let rows = at_once * self.config.time;
        for (i, (inputs, targets)) in inputs.chunks(rows).zip(targets.chunks(rows)).enumerate() {
            self.enqueue_slice(inputs, targets, i * at_once)?;
        }
        Ok(())
    }

    /// As many sequences as the plan has room for, or fewer, `before` sequences behind the batch's first.
    fn enqueue_slice(&mut self, inputs: &[u32], targets: &[u32], before: usize) -> Result<(), B::Error> {
        let (rows, time) = (inputs.len(), self.config.time);
        let batch = rows / time;
        let probability = self.model.config().dropout;
        let (scalars, counters) = (self.workspace.scalars(), self.workspace.counters());
        let dropout = (probability > 0.0).then_some(Dropout { probability, site: 0, first: 0, counters });
        let pass = Pass { batch, time, start: 0, dropout, before, logits: None };
        let backend = self.model.backend_mut();
        backend.write(self.workspace.tokens(rows), stage(inputs, &mut self.staging))?;
        backend.write(self.workspace.targets(rows), stage(targets, &mut self.staging))?;
        forward(&mut self.model, &self.workspace, &pass)?;
        let gradients = Gradients { parameters: &self.gradients, buffers: &self.backward };
        loss(&mut self.model, &self.workspace, &pass, scalars, Some(gradients))?;
        backward(&mut self.model, &self.workspace, &pass, gradients)
    }

    /// Closes the step: clips the gradient and updates the parameters.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn finish_step(&mut self) -> Result<(), Error<B::Error>> {
        let TrainConfig { schedule, clip, beta1, beta2, eps, weight_decay, .. } = self.config;
        let (scalars, counters) = (self.workspace.scalars(), self.workspace.counters());
        let ops = [
            SquaredNorm { x: self.grads, scalars }.into(),
            FinishStep { scalars, counters, schedule, clip, beta1, beta2 }.into(),
            AdamW {
                params: self.params,
                grads: self.grads,
                m: self.m,
                v: self.v,
                scalars,
                decayed: self.workspace.plan.decayed,
                beta1,
                beta2,
                eps,
                weight_decay,
            }
            .into(),
        ];
        for op in &ops {
            self.model.backend_mut().run(op).map_err(Error::Backend)?;
        }
        self.pending = 0;
        Ok(())
    }

    /// Waits for all steps and tells of the last one.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn metrics(&mut self) -> Result<Metrics, Error<B::Error>> {
        let (scalars, counters) = (self.workspace.scalars(), self.workspace.counters());
        let backend = self.model.backend_mut();
        let scalars = read_elems(backend, scalars).map_err(Error::Backend)?;
        let counters = read_u32(backend, counters).map_err(Error::Backend)?;
        Ok(Metrics {
            step: counters[counter::STEP],
            loss: scalars[scalar::LOSS].to_f64(),
            grad_norm: scalars[scalar::GRAD_NORM].to_f64(),
            learning_rate: scalars[scalar::LEARNING_RATE].to_f64(),
            tokens: u64::from(counters[counter::TOKENS]) + (u64::from(counters[counter::TOKENS + 1]) << 32),
            skipped: counters[counter::SKIPPED],
            skipped_in_a_row: counters[counter::SKIPPED_IN_A_ROW],
        })
    }

    /// Mean loss in nats per token over `windows`, without dropout. The step in the making is left alone.
    ///
    /// # Errors
    /// If the windows are not `time` long, a token is not in the vocabulary, or the backend fails.
    pub fn evaluate(&mut self, windows: &EvalWindows<'_>) -> Result<f64, Error<B::Error>> {
        let batch = self.workspace.plan.batch;
        let (mut sum, mut targets_seen) = (0.0, 0.0);
        for first in (0..windows.len()).step_by(batch) {
            let batch = batch.min(windows.len() - first);
            let (mut inputs, mut targets) =
                (core::mem::take(&mut self.inputs), core::mem::take(&mut self.targets));
            let result = self.evaluate_batch(windows, first, batch, &mut inputs, &mut targets);
            (self.inputs, self.targets) = (inputs, targets);
            result?;
            // Summed on the host in f64: an f32 sum over a whole split would lose digits.
            let scalars = self.workspace.evaluation();
            let values = read_elems(self.model.backend_mut(), scalars).map_err(Error::Backend)?;
            sum += values[scalar::LOSS_SUM].to_f64();
            targets_seen += values[scalar::TARGETS].to_f64();
        }
        Ok(sum / targets_seen)
    }

    fn evaluate_batch(
        &mut self,
        windows: &EvalWindows<'_>,
        first: usize,
        batch: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<(), Error<B::Error>> {
        let time = self.config.time;
        let rows = batch * time;
        let (inputs, targets) = (&mut inputs[..rows], &mut targets[..rows]);
        let places = inputs.chunks_exact_mut(time).zip(targets.chunks_exact_mut(time));
        for (i, (input, target)) in places.enumerate() {
            let (x, y) = windows
                .get(first + i)
                .filter(|(x, _)| x.len() == time)
                .ok_or(Error::BatchLength { found: windows.time(), expected: time })?;
            input.copy_from_slice(x);
            target.copy_from_slice(y);
        }
        self.check_batch(inputs, targets, batch)?;
        self.enqueue_evaluation(inputs, targets, batch).map_err(Error::Backend)
    }

    fn enqueue_evaluation(&mut self, inputs: &[u32], targets: &[u32], batch: usize) -> Result<(), B::Error> {
        let (rows, scalars) = (inputs.len(), self.workspace.evaluation());
        let backend = self.model.backend_mut();
        backend.fill(scalars, 0.0)?;
        backend.write(self.workspace.tokens(rows), stage(inputs, &mut self.staging))?;
        backend.write(self.workspace.targets(rows), stage(targets, &mut self.staging))?;
        let pass = Pass { batch, time: self.config.time, start: 0, dropout: None, before: 0, logits: None };
        forward(&mut self.model, &self.workspace, &pass)?;
        loss(&mut self.model, &self.workspace, &pass, scalars, None)
    }

    /// The gradient that the step in the making, or the last one, has for the parameter called `name`: the sum over
    /// its targets, not the mean. `Ok(None)` if there is no such parameter.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn gradient(&mut self, name: &str) -> Result<Option<Vec<B::Elem>>, Error<B::Error>> {
        let tensors = self.workspace.plan.parameters.list();
        let place = tensors.iter().position(|tensor| tensor.name == name);
        let Some(span) = place.map(|i| *self.gradients.list()[i]) else { return Ok(None) };
        read_elems(self.model.backend_mut(), span).map(Some).map_err(Error::Backend)
    }

    /// Continues a run from a checkpoint that [`save`](Trainer::save) wrote, as if it had never stopped: on the same
    /// backend, bit for bit.
    ///
    /// # Errors
    /// If the checkpoint is damaged or has no training state, or memory does not suffice.
    pub fn resume(backend: B, checkpoint: &Checkpoint<'_>) -> Result<Self, Error<B::Error>> {
        let training = checkpoint.training().ok_or(Error::NoTraining)?;
        Self::resume_with(backend, checkpoint, training.config.clone())
    }

    /// As [`resume`](Trainer::resume), with other settings from here on: a learning rate that goes on for longer, or
    /// what a smaller machine recomputes. Weights, moments and counters are the checkpoint's.
    ///
    /// ```
    /// # use minigpt_core::{GptConfig, Model, Reference, checkpoint::Checkpoint, model::Extras};
    /// use minigpt_core::{Recompute, train::{TrainConfig, Trainer}};
    /// # let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
    /// # let settings = TrainConfig { time: 2, ..TrainConfig::constant(0.1) };
    /// # let mut first = Trainer::new(Model::new(Reference::<f32>::new(), config, 1)?, settings)?;
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
        backend: B,
        checkpoint: &Checkpoint<'_>,
        config: TrainConfig,
    ) -> Result<Self, Error<B::Error>> {
        let training = checkpoint.training().ok_or(Error::NoTraining)?;
        let moments = checkpoint.moments()?;
        let model = Model::load(backend, checkpoint)?;
        let state = state_under(training, &config);
        let mut trainer = Trainer::new(model, config)?;
        for (views, whole) in moments.iter().zip([trainer.m, trainer.v]) {
            let regions: Vec<Region> = trainer.plan().parameters.list().iter().map(|t| t.region).collect();
            for (view, region) in views.iter().zip(regions) {
                write_tensor(trainer.model.backend_mut(), view, region.on(whole.buffer, whole.dtype))?;
            }
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
        backend: B,
        stream: Stream<'_, R>,
    ) -> Result<Self, StreamError<R::Error, Error<B::Error>>> {
        let training = stream.training().ok_or(StreamError::Load(Error::NoTraining))?;
        let config = training.config.clone();
        Self::resume_from_with(backend, stream, config)
    }

    /// As [`resume_from`](Trainer::resume_from), with other settings from here on, as
    /// [`resume_with`](Trainer::resume_with) has them. Those that were kept are
    /// [`Stream::training`](Stream::training)'s.
    ///
    /// # Errors
    /// As [`resume_from`](Trainer::resume_from), and if a setting has no meaning.
    pub fn resume_from_with<R: Read>(
        backend: B,
        stream: Stream<'_, R>,
        config: TrainConfig,
    ) -> Result<Self, StreamError<R::Error, Error<B::Error>>> {
        let (mut trainer, places) = Self::awaiting(backend, &stream, config).map_err(StreamError::Load)?;
        read_into(stream, trainer.model.backend_mut(), &places)?;
        Ok(trainer)
    }

    /// A trainer without weights and moments, and the places that those of `stream` have in it.
    fn awaiting<R: Read>(
        backend: B,
        stream: &Stream<'_, R>,
        config: TrainConfig,
    ) -> Result<(Self, Places), Error<B::Error>> {
        let training = stream.training().ok_or(Error::NoTraining)?;
        let (parameters, [first, second]) = (stream.parameters()?, stream.moments()?);
        let mut places = nowhere(stream.tensors())?;
        let model = Model::empty(backend, stream.config().clone())?;
        let state = state_under(training, &config);
        let mut trainer = Trainer::new(model, config)?;
        trainer.set_state(&state)?;
        let regions: Vec<Region> = trainer.plan().parameters.list().iter().map(|t| t.region).collect();
        for (whole, tensors) in [(trainer.params, parameters), (trainer.m, first), (trainer.v, second)] {
            for (coming, region) in tensors.iter().zip(&regions) {
                let to = region.on(whole.buffer, whole.dtype);
                places[coming.tensor] = Some(Place { to, dtype: coming.dtype, cols: coming.cols });
            }
        }
        Ok((trainer, places))
    }

    /// Writes a checkpoint from which the run can be resumed: parameters, moments, settings and counters. Only
    /// between steps, because the gradient of a step in the making is not kept.
    ///
    /// # Errors
    /// If a step is in the making, the backend or `out` fails, or the extras do not fit the model.
    pub fn write<W: Write>(
        &mut self,
        out: W,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, W::Error>> {
        self.saved()?.write(self.model.backend_mut(), out, extras)
    }

    /// [`write`](Trainer::write) to a file, atomically: see [`checkpoint::save`](crate::checkpoint::save).
    ///
    /// # Errors
    /// If the backend or the disk fails; what was at `path` is still there then.
    #[cfg(feature = "std")]
    pub fn save(
        &mut self,
        path: impl AsRef<std::path::Path>,
        extras: &Extras<'_>,
    ) -> Result<(), SaveError<Error<B::Error>, crate::checkpoint::FileError>> {
        self.saved()?.save(self.model.backend_mut(), path.as_ref(), extras)
    }

    fn saved<W>(&mut self) -> Result<Saved, SaveError<Error<B::Error>, W>> {
        if self.pending > 0 {
            return Err(SaveError::Read { tensor: "the gradient".into(), error: Error::UnfinishedStep });
        }
        let state =
            self.state().map_err(|error| SaveError::Read { tensor: "the device counters".into(), error })?;
        let plan = &self.workspace.plan;
        let list = plan.parameters.list();
        let spans = [self.params, self.m, self.v]
            .iter()
            .flat_map(|whole| list.iter().map(|t| t.region.on(whole.buffer, whole.dtype)))
            .collect();
        Ok(Saved {
            config: plan.config.clone(),
            training: Some(Training { config: self.config.clone(), state }),
            tensors: TensorSpec::training(plan),
            spans,
        })
    }

    /// What must be remembered besides parameters and moments to continue this run bit for bit. Waits.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn state(&mut self) -> Result<TrainState, Error<B::Error>> {
        let span = self.workspace.counters();
        let values = read_u32(self.model.backend_mut(), span).map_err(Error::Backend)?;
        let mut counters = [0; counter::LEN];
        counters.copy_from_slice(&values);
        Ok(TrainState { counters, windows_drawn: self.windows_drawn })
    }

    pub(crate) fn set_state(&mut self, state: &TrainState) -> Result<(), Error<B::Error>> {
        let span = self.workspace.counters();
        write_u32(self.model.backend_mut(), span, &state.counters).map_err(Error::Backend)?;
        self.windows_drawn = state.windows_drawn;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Limits;
    use crate::{GptConfig, Reference};

    fn trainer() -> Trainer<Reference<f32>> {
        let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
        let settings =
            TrainConfig { batch: 2, time: 2, seed: 0x1234_5678_9abc, ..TrainConfig::constant(0.1) };
        Trainer::new(Model::new(Reference::new(), config, 1).unwrap(), settings).unwrap()
    }

    #[test]
    fn the_bytes_of_tokens_are_those_that_a_trainer_holds() {
        let Trainer { config, model, inputs, targets, staging, .. } = trainer();
        let held = 4 * (inputs.capacity() + targets.capacity()) + staging.capacity();
        assert_eq!(config.token_bytes(model.backend()), held);
    }

    #[test]
    fn a_state_that_is_set_is_the_state_that_is_told() {
        let mut trainer = trainer();
        let state = trainer.state().unwrap();
        assert_eq!(state.counters[counter::SEED..counter::SEED + 2], [0x5678_9abc, 0x1234]);
        assert_eq!(state.windows_drawn, 0);
        let mut counters = [0; counter::LEN];
        counters[counter::TOKENS..counter::TOKENS + 2].copy_from_slice(&[7, 3]);
        counters[counter::STEP] = 9;
        let later = TrainState { counters, windows_drawn: 5 };
        trainer.set_state(&later).unwrap();
        assert_eq!(trainer.state().unwrap(), later);
        let metrics = trainer.metrics().unwrap();
        assert_eq!((metrics.tokens, metrics.step), (7 + (3 << 32), 9));
    }

    #[test]
    fn a_resumed_run_has_the_settings_that_it_was_given() {
        let mut first = trainer();
        let text = [0, 1, 2, 0, 1, 2];
        first.step(&Windows::new(&text, 2).unwrap()).unwrap();
        let mut bytes = Vec::new();
        first.write(&mut bytes, &Extras::default()).unwrap();
        let changed = |seed| TrainConfig { batch: 1, time: 2, seed, ..TrainConfig::constant(0.25) };
        type Resumed = Result<Trainer<Reference<f32>>, Error<crate::ReferenceError>>;
        let whole = |config| -> Resumed {
            Trainer::resume_with(Reference::new(), &Checkpoint::open(&bytes).unwrap(), config)
        };
        let streamed = |config| -> Resumed {
            let mut header = Vec::new();
            let stream = Stream::open(&bytes[..], &mut header, &Limits::DEFAULT).unwrap();
            Trainer::resume_from_with(Reference::new(), stream, config).map_err(|error| match error {
                StreamError::Load(error) => error,
                other => panic!("{other}"),
            })
        };
        let mut weights = Vec::new();
        for resumed in [&whole as &dyn Fn(TrainConfig) -> Resumed, &streamed] {
            let mut second = resumed(changed(7)).unwrap();
            assert_eq!(second.config(), &changed(7));
            // The dropout masks follow the seed; how far the run has come is kept.
            let (before, after) = (first.state().unwrap(), second.state().unwrap());
            assert_eq!(after.counters[counter::SEED..counter::SEED + 2], [7, 0]);
            assert_eq!(after.counters[counter::DRAW..], before.counters[counter::DRAW..]);
            assert_eq!(after.windows_drawn, before.windows_drawn);
            second.step(&Windows::new(&text, 2).unwrap()).unwrap();
            let metrics = second.metrics().unwrap();
            assert_eq!((metrics.step, metrics.tokens, metrics.learning_rate), (2, 6, 0.25));
            let mut file = Vec::new();
            second.write(&mut file, &Extras::default()).unwrap();
            weights.push(file);
            let same = resumed(changed(first.config().seed)).unwrap().state().unwrap();
            assert_eq!(same.counters, before.counters);
            let without = TrainConfig { batch: 0, ..changed(7) };
            assert!(matches!(resumed(without).unwrap_err(), Error::Setting { field: "batch", .. }));
        }
        assert_eq!(weights[0], weights[1]);
    }

    #[test]
    fn windows_are_counted_one_by_one() {
        let mut trainer = trainer();
        let text = [0, 1, 2, 0, 1, 2];
        trainer.step(&Windows::new(&text, 2).unwrap()).unwrap();
        trainer.step(&Windows::new(&text, 2).unwrap()).unwrap();
        assert_eq!(trainer.state().unwrap().windows_drawn, 4);
        let metrics = trainer.metrics().unwrap();
        assert_eq!((metrics.tokens, metrics.learning_rate), (8, f64::from(0.1f32)));
        // The gradient's norm is that of the mean over the targets.
        let names: Vec<_> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
        let mut squared = 0.0;
        for name in names {
            let gradient = trainer.gradient(&name).unwrap().unwrap();
            squared += gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        }
        assert!((metrics.grad_norm - libm::sqrt(squared) / 4.0).abs() < 1e-6);
        assert!(trainer.gradient("no such parameter").unwrap().is_none());
    }

    #[test]
    fn a_step_in_the_making_is_added_to_and_a_finished_one_is_not() {
        let mut trainer = trainer();
        let gradient = |trainer: &mut Trainer<_>| trainer.gradient("h.0.mlp.c_fc.weight").unwrap().unwrap();
        trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
        let once = gradient(&mut trainer);
        trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
        let twice = gradient(&mut trainer);
        for (once, twice) in once.iter().zip(&twice) {
            assert!((2.0 * once - twice).abs() <= 1e-6 * once.abs());
        }
        trainer.set_state(&TrainState { counters: [0; counter::LEN], windows_drawn: 0 }).unwrap();
        trainer.micro_step(&[0, 1, 2, 0], &[1, 2, 0, 1]).unwrap();
        assert_eq!(gradient(&mut trainer), once);
        trainer.finish_step().unwrap();
        assert_eq!(trainer.config().batch, 2);
        assert_eq!(trainer.model().config().vocab_size, 3);
    }

    #[test]
    fn a_step_that_failed_half_way_leaves_nothing_for_the_next() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 2) };
        let settings = TrainConfig { batch: 1, time: 2, accumulation: 2, ..TrainConfig::constant(0.1) };
        let mut trainer =
            Trainer::new(Model::new(Reference::<f32>::new(), config, 1).unwrap(), settings).unwrap();
        // The first window is good, the second has a token that the model does not know.
        let seed = trainer.config().seed;
        let numbers: Vec<u32> = (0..40).collect();
        let places = Windows::new(&numbers, 2).unwrap();
        let (first, second) = (places.start(seed, 0), places.start(seed, 1));
        assert!(first.abs_diff(second) > 2);
        let mut text = [1; 40];
        text[second] = 9;
        assert!(matches!(trainer.step(&Windows::new(&text, 2).unwrap()), Err(Error::Token { token: 9, .. })));
        trainer.step(&Windows::new(&[1; 40], 2).unwrap()).unwrap();
        assert_eq!(trainer.metrics().unwrap().tokens, 4);
        assert_eq!(trainer.metrics().unwrap().step, 1);
    }

    #[test]
    fn the_number_of_windows_wraps_around() {
        let mut trainer = trainer();
        let state = TrainState { windows_drawn: u64::MAX, ..trainer.state().unwrap() };
        trainer.set_state(&state).unwrap();
        trainer.step(&Windows::new(&[0, 1, 2, 0, 1, 2], 2).unwrap()).unwrap();
        assert_eq!(trainer.state().unwrap().windows_drawn, 1);
    }
}
