//! [`Trainer`]: the training step.

mod average;
mod observe;
mod own_loss;
mod prefix;
mod rate;
mod steps;
mod storage;
mod sums;

use alloc::vec::Vec;
use core::ops::Range;

use super::program;
use crate::backend::{Allocation, Backend, Replay, read_elems, read_u32, submit};
use crate::checkpoint::TrainState;
use crate::config::{ConfigError, Recompute, TrainConfig};
use crate::data::EvalWindows;
use crate::error::{Error, out_of_memory};
use crate::memory::{Buffer, InvalidOp, Span, zeros};
use crate::model::{Flow, Gradients, Model, Pass, Weights, Workspace, check_tokens, stage};
use crate::op::{IGNORE, Sink, counter, scalar};
use crate::plan::{BackwardActivations, Parameters, Plan, Tensor};
use crate::real::Real;
use own_loss::HostLogits;
use rate::Function;

pub use own_loss::{LossError, Piece, PieceLoss, Row};
pub use sums::Sums;

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
/// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(4, 8) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let settings = TrainConfig { batch: 4, time: 8, ..TrainConfig::constant(1e-2) };
/// let mut trainer = Trainer::new(&model, settings)?;
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
    /// Made once everything else stands, and forgotten before the memory that they speak of is given back.
    programs: Option<Programs<B>>,
    model: Model<B>,
    config: TrainConfig,
    /// In place of the config's schedule.
    schedule: Option<Function>,
    workspace: Workspace<B>,
    backward: BackwardActivations,
    grads: Allocation<B>,
    /// What optimizers keep, and the average of the weights.
    kept: Allocation<B>,
    /// If the precision has any.
    copies: Option<Copies<B>>,
    /// The averages as the weights of a model, if there are any.
    averages: Option<Weights>,
    /// Of what is trained.
    gradients: Parameters<Option<Span>>,
    /// Whether the device has given vectors, if the model has a prefix.
    has_prefix: bool,
    windows_drawn: u64,
    /// Steps finished, as the device counts them; unknown after a step that failed half-way.
    steps: Option<u32>,
    /// Micro-batches since the last finished step.
    pending: usize,
    /// How many targets the gradients are the sum over.
    counted: f64,
    /// Whether the program has written the sums of the step in the making since the last micro-batch.
    shared: bool,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    staging: Vec<u8>,
    /// Gradients or logits on their way to the host or back; empty until they are asked for.
    exchange: Vec<u8>,
    host: HostLogits<B::Elem>,
}

/// Copies of weights.
#[derive(Debug)]
struct Copies<B: Backend> {
    memory: Allocation<B>,
    weights: Copied,
    /// Of their averages, if there are any. They take the same memory.
    averages: Option<Copied>,
}

/// What a pass reads under a precision that rounds weights.
#[derive(Debug)]
struct Copied {
    /// The copies, and what is not copied.
    weights: Weights,
    /// From where to where the copies are made.
    pairs: Vec<[Span; 2]>,
}

impl Copied {
    fn new(weights: &Weights, plan: &Plan, memory: Buffer) -> Self {
        Copied { weights: weights.copied(plan, memory), pairs: weights.copies(plan, memory) }
    }
}

/// What a trainer runs again and again.
#[derive(Debug)]
struct Programs<B: Backend> {
    begin: Replay<B>,
    micro_step: Replay<B>,
    update: Replay<B>,
}

/// The plan of a training without what is frozen, and the scratch that a backend needs for its programs.
fn planned<B: Backend>(
    model: &Model<B>,
    config: &TrainConfig,
    frozen: &[bool],
) -> Result<(Plan, usize), ConfigError> {
    model.device().inspect(|backend| {
        let mut frozen = frozen.iter();
        let plan = config.plan(model.config(), backend)?;
        let plan = plan.freezing(|_| frozen.next().is_some_and(|&frozen| frozen));
        let scratch = plan.workspace_bytes(backend);
        Ok((plan, scratch))
    })
}

fn total((plan, scratch): &(Plan, usize)) -> usize {
    plan.bytes.total().saturating_add(*scratch)
}

/// Where memory is too small, the error says what recomputing would need, if that is less.
fn advised<B: Backend>(
    error: Error<B::Error>,
    model: &Model<B>,
    config: &TrainConfig,
    frozen: &[bool],
) -> Error<B::Error> {
    match error {
        Error::Memory { needed, source, .. } => {
            let frugal = TrainConfig { recompute: Recompute::Blocks, ..config.clone() };
            let less = planned(model, &frugal, frozen).ok().map(|planned| total(&planned));
            Error::Memory { needed, recomputing: less.filter(|&less| less < needed), source }
        }
        other => other,
    }
}

impl<B: Backend> Trainer<B> {
    /// Allocates gradients, activations and what the optimizers keep on the model's device. The model stays yours: generate
    /// from it, or save it, between steps.
    ///
    /// # Errors
    /// If a setting has no meaning, the weights are borrowed, or memory does not suffice.
    pub fn new(model: &Model<B>, config: TrainConfig) -> Result<Self, Error<B::Error>> {
        Self::freezing(model, config, |_| false)
    }

    /// A trainer that leaves some parameters as they are: those that `frozen` says. They have no gradient, no optimizer keeps
    /// anything of them, they take [no bytes](Plan::freezing) for it, and have no part in the norm that is clipped; the
    /// backward pass ends where nothing below is trained. Weight decay leaves them alone too.
    ///
    /// With tied embeddings the head is the token embedding: freezing `wte.weight` freezes both. A checkpoint remembers
    /// what was frozen, and a run that is [resumed](Trainer::resume) leaves the same parameters as they are.
    ///
    /// ```
    /// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
    /// let config = GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(4, 8) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let settings = TrainConfig { batch: 4, time: 8, ..TrainConfig::constant(1e-2) };
    /// // Only the last block learns.
    /// let mut trainer = Trainer::freezing(&model, settings, |tensor| !tensor.name.starts_with("h.1."))?;
    /// let before = model.parameter("h.0.mlp.c_fc.weight")?;
    /// trainer.step(&Windows::new(&[0u32, 1, 2, 3, 0, 1, 2, 3, 0, 1], 8)?)?;
    /// assert_eq!(model.parameter("h.0.mlp.c_fc.weight")?, before);
    /// assert!(trainer.plan().bytes.gradients < trainer.plan().bytes.parameters / 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Trainer::new), and if nothing is left to train.
    pub fn freezing(
        model: &Model<B>,
        config: TrainConfig,
        mut frozen: impl FnMut(&Tensor) -> bool,
    ) -> Result<Self, Error<B::Error>> {
        // Asked once about each, in the order of the model.
        let frozen: Vec<bool> = model.parameters().map(|(tensor, _)| frozen(tensor)).collect();
        config.validate().map_err(|(field, must)| Error::Setting { field, must })?;
        let device = model.device();
        model.trainable().ok_or(Error::Frozen)?;
        // A prefix has a gradient, by which whoever made it learns.
        if !frozen.contains(&false) && model.config().prefix == 0 {
            return Err(Error::NothingToTrain);
        }
        let tokens = config.batch.checked_mul(config.time).ok_or(ConfigError::TooLarge { field: "batch" })?;
        let planned = planned(model, &config, &frozen)?;
        let needed = total(&planned);
        let (plan, scratch) = planned;
        let advised = |error| advised(error, model, &config, &frozen);
        let slice = plan.batch * config.time;
        let backward = plan.backward.ok_or(Error::Frozen)?;
        let take = |bytes| device.alloc(bytes).map_err(|error| advised(out_of_memory(needed, error)));
        let grads = take(plan.bytes.gradients)?;
        let kept = take(plan.bytes.optimizer)?;
        let copies = match plan.bytes.copies {
            0 => None,
            bytes => {
                let memory = take(bytes)?;
                let weights = Copied::new(model.weights(), &plan, memory.buffer());
                Some(Copies { memory, weights, averages: None })
            }
        };
        let gradients =
            plan.gradients.map(|region| region.map(|region| region.on(grads.buffer(), B::Elem::DTYPE)));
        let workspace = Workspace::new(device, plan, scratch).map_err(advised)?;
        let mut trainer = Trainer {
            model: model.clone(),
            workspace,
            programs: None,
            backward,
            grads,
            kept,
            copies,
            averages: None,
            gradients,
            has_prefix: model.config().prefix == 0,
            windows_drawn: 0,
            steps: Some(0),
            pending: 0,
            counted: 0.0,
            shared: false,
            inputs: zeros("inputs", tokens)?,
            targets: zeros("targets", tokens)?,
            staging: zeros("staging", slice * 4)?,
            exchange: Vec::new(),
            host: HostLogits::default(),
            config: config.clone(),
            schedule: None,
        };
        let mut counters = [0; counter::LEN];
        [counters[counter::SEED], counters[counter::SEED + 1]] = crate::rng::key(trainer.config.seed);
        trainer.set_state(&TrainState { counters, windows_drawn: 0 })?;
        trainer.averages = trainer.averaged_weights();
        if let (Some(copies), Some(averages)) = (&mut trainer.copies, &trainer.averages) {
            copies.averages = Some(Copied::new(averages, &trainer.workspace.plan, copies.memory.buffer()));
        }
        trainer.begin_average()?;
        let programs = trainer.prepare().map_err(|error| advised(out_of_memory(needed, error)))?;
        trainer.programs = Some(programs);
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

    /// The model, trained. Gradients, activations and what optimizers keep are given back to the device.
    pub fn into_model(self) -> Model<B> {
        self.model
    }

    /// The gradients of all that is trained, as one span.
    fn whole_gradient(&self) -> Span {
        self.grads.span(B::Elem::DTYPE, self.workspace.plan.gradient_span)
    }

    /// Adds the gradient of one batch, (B, T) inputs and (B, T) targets, to the step in the making. Targets that are
    /// [`IGNORE`] do not count.
    ///
    /// # Errors
    /// If the batch has another length or a token is not in the vocabulary, or the model has a prefix that was not
    /// [set](Trainer::set_prefix), which leaves the step in the making as it was; or if the backend fails, which drops it.
    pub fn micro_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(), Error<B::Error>> {
        self.check_batch(inputs, targets, self.config.batch)?;
        let result = self.enqueue_micro_step(inputs, targets);
        self.count(that_count(targets), result.is_ok());
        result.map_err(Error::Backend)
    }

    /// Counts a micro-batch with so many targets as part of the step in the making, or drops the step.
    fn count(&mut self, targets: f64, done: bool) {
        self.counted = if self.pending == 0 { targets } else { self.counted + targets };
        self.pending = if done { self.pending + 1 } else { 0 };
        self.shared = false;
    }

    fn check_batch(&self, inputs: &[u32], targets: &[u32], batch: usize) -> Result<(), Error<B::Error>> {
        let (expected, vocab) = (batch * self.config.time, self.model.config().vocab_size);
        for tokens in [inputs, targets] {
            check_length(tokens, expected)?;
        }
        check_tokens(inputs, vocab)?;
        self.check_prefix()?;
        match targets.iter().position(|&t| t as usize >= vocab && t != IGNORE) {
            Some(index) => Err(Error::Token { token: targets[index], index, vocab }),
            None => Ok(()),
        }
    }

    fn programs(&self) -> Result<&Programs<B>, InvalidOp> {
        // There are none only while it is made.
        self.programs.as_ref().ok_or(InvalidOp::Value { operand: "programs" })
    }

    fn prepare(&self) -> Result<Programs<B>, B::Error> {
        let device = self.model.device();
        Ok(Programs {
            begin: Replay::new(device, |sink| self.emit_begin(sink))?,
            micro_step: Replay::new(device, |sink| self.emit_slices(sink))?,
            update: Replay::new(device, |sink| self.emit_update(sink))?,
        })
    }

    fn enqueue_micro_step(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(), B::Error> {
        self.write_tokens(inputs, targets)?;
        let programs = self.programs()?;
        let mut backend = self.model.device().lock();
        if self.pending == 0 {
            programs.begin.run(&mut backend, |sink| self.emit_begin(sink))?;
        }
        programs.micro_step.run(&mut backend, |sink| self.emit_slices(sink))
    }

    /// What a micro-step runs, which is the `first` of its step or not.
    fn emit_micro_step(&self, sink: &mut Sink<'_>, first: bool) -> Flow {
        if first {
            self.emit_begin(sink)?;
        }
        self.emit_slices(sink)
    }

    fn emit_begin(&self, sink: &mut Sink<'_>) -> Flow {
        program::begin_step(sink, self.whole_gradient(), self.workspace.scalars())
    }

    /// The copies that a pass reads of the weights, or of their averages.
    fn emit_copies(&self, sink: &mut Sink<'_>, averages: bool) -> Flow {
        let Some(copies) = &self.copies else { return Flow::Continue(()) };
        let copied = copies.averages.as_ref().filter(|_| averages).unwrap_or(&copies.weights);
        program::copy_weights(sink, &copied.pairs)
    }

    /// The averages, as a pass reads them, if there are any.
    fn averages(&self) -> Option<&Weights> {
        match &self.copies {
            Some(copies) => copies.averages.as_ref().map(|copied| &copied.weights),
            None => self.averages.as_ref(),
        }
    }

    /// What a pass reads.
    fn weights(&self) -> &Weights {
        read(self.copies.as_ref(), &self.model)
    }

    /// A pass over all that there is room for.
    fn pass(&self) -> Pass<'_> {
        self.workspace.pass_with(self.weights())
    }

    fn gradients(&self) -> Gradients<'_> {
        let d_prefix = (self.model.config().prefix > 0).then(|| self.d_prefix());
        Gradients { parameters: &self.gradients, buffers: &self.backward, d_prefix }
    }

    fn emit_slices(&self, sink: &mut Sink<'_>) -> Flow {
        let (scalars, counters) = (self.workspace.scalars(), self.workspace.counters());
        let gradients = self.gradients();
        let whole = micro_batch(self.pass(), &self.config);
        self.emit_copies(sink, false)?;
        program::micro_step(sink, &whole, scalars, counters, &gradients)
    }

    fn emit_update(&self, sink: &mut Sink<'_>) -> Flow {
        let Some(params) = self.model.trainable() else { return Flow::Continue(()) };
        let (scalars, counters) = (self.workspace.scalars(), self.workspace.counters());
        let buffers = [params.buffer, self.grads.buffer(), self.kept.buffer()];
        let trained = program::Trained { plan: &self.workspace.plan, buffers, scalars, counters };
        program::update(sink, &trained, self.config.clip)
    }

    /// Brings a batch, or the first sequences of one, to the device.
    fn write_tokens(&mut self, inputs: &[u32], targets: &[u32]) -> Result<(), B::Error> {
        let pass = Pass { batch: inputs.len() / self.config.time, ..self.pass() };
        let mut backend = self.model.device().lock();
        for (tokens, to) in [(inputs, pass.tokens()), (targets, pass.targets())] {
            let piece = self.staging.len() / 4;
            for (i, tokens) in tokens.chunks(piece).enumerate() {
                backend.write(to.slice(i * piece, tokens.len()), stage(tokens, &mut self.staging))?;
            }
        }
        Ok(())
    }

    /// Closes the step: clips the gradient and updates the parameters.
    ///
    /// # Errors
    /// If no micro-batch was added to it; if the trainer is one of several [ranks](TrainConfig::rank) and has not got
    /// [their sums](Trainer::write_sums), or the [learning rate](Trainer::set_schedule) is negative or not finite, which leaves
    /// the step in the making as it was; or if the backend fails, which drops it.
    pub fn finish_step(&mut self) -> Result<(), Error<B::Error>> {
        if self.pending == 0 {
            return Err(Error::EmptyStep);
        }
        if !self.shared {
            self.check_alone()?;
        }
        let steps = self.steps().inspect_err(|_| self.pending = 0)?;
        let rate = self.learning_rate(steps)?;
        // Whatever comes of it: a gradient that was applied, or may have been, is not applied again.
        (self.pending, self.steps) = (0, None);
        self.enqueue_update(rate).map_err(Error::Backend)?;
        // The device's counter stops there too.
        self.steps = Some(steps.saturating_add(1));
        Ok(())
    }

    /// What closes a step, at this learning rate.
    fn enqueue_update(&mut self, rate: B::Elem) -> Result<(), B::Error> {
        let mut bytes = [0; size_of::<u64>()];
        rate.to_le_slice(&mut bytes);
        let bytes = &bytes[..size_of::<B::Elem>()];
        let programs = self.programs()?;
        let mut backend = self.model.device().lock();
        backend.write(self.workspace.scalars().slice(scalar::LEARNING_RATE, 1), bytes)?;
        programs.update.run(&mut backend, |sink| self.emit_update(sink))
    }

    /// Waits for all steps and tells of the last one.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn metrics(&mut self) -> Result<Metrics, Error<B::Error>> {
        let mut backend = self.model.device().lock();
        let scalars = read_elems(&mut *backend, self.workspace.scalars()).map_err(Error::Backend)?;
        let counters = read_u32(&mut *backend, self.workspace.counters()).map_err(Error::Backend)?;
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
        self.evaluate_with(windows, false)
    }

    /// As [`evaluate`](Trainer::evaluate), of the weights or, if there are any, of their averages.
    fn evaluate_with(&mut self, windows: &EvalWindows<'_>, averages: bool) -> Result<f64, Error<B::Error>> {
        let batch = self.config.batch;
        let (mut sum, mut targets_seen) = (0.0, 0.0);
        for first in (0..windows.len()).step_by(batch) {
            let batch = batch.min(windows.len() - first);
            let (mut inputs, mut targets) =
                (core::mem::take(&mut self.inputs), core::mem::take(&mut self.targets));
            let range = first..first + batch;
            let result = self.evaluate_batch(windows, range, &mut inputs, &mut targets, averages);
            (self.inputs, self.targets) = (inputs, targets);
            result?;
            // Summed on the host in f64: an f32 sum over a whole split would lose digits.
            let scalars = self.workspace.evaluation();
            let values = read_elems(&mut *self.model.device().lock(), scalars).map_err(Error::Backend)?;
            sum += values[scalar::LOSS_SUM].to_f64();
            targets_seen += values[scalar::TARGETS].to_f64();
        }
        Ok(sum / targets_seen)
    }

    fn evaluate_batch(
        &mut self,
        windows: &EvalWindows<'_>,
        range: Range<usize>,
        inputs: &mut [u32],
        targets: &mut [u32],
        averages: bool,
    ) -> Result<(), Error<B::Error>> {
        let (time, batch) = (self.config.time, range.len());
        let rows = batch * time;
        let (inputs, targets) = (&mut inputs[..rows], &mut targets[..rows]);
        if windows.time() != time {
            return Err(Error::BatchLength { found: windows.time(), expected: time });
        }
        windows.fill(range.start, batch, inputs, targets).map_err(Error::Data)?;
        self.check_batch(inputs, targets, batch)?;
        self.enqueue_evaluation(inputs, targets, averages).map_err(Error::Backend)
    }

    fn enqueue_evaluation(
        &mut self,
        inputs: &[u32],
        targets: &[u32],
        averages: bool,
    ) -> Result<(), B::Error> {
        self.write_tokens(inputs, targets)?;
        let weights = self.averages().filter(|_| averages).unwrap_or(self.weights());
        let pass = Pass { batch: inputs.len() / self.config.time, weights, ..self.pass() };
        submit(&mut *self.model.device().lock(), |sink| {
            self.emit_copies(sink, averages)?;
            program::evaluation(sink, &pass, self.workspace.evaluation())
        })
    }
}

/// What a pass reads.
fn read<'w, B: Backend>(copies: Option<&'w Copies<B>>, model: &'w Model<B>) -> &'w Weights {
    copies.map_or(model.weights(), |copies| &copies.weights.weights)
}

/// A pass over a micro-batch, whose dropout masks are those of its rank's sequences.
fn micro_batch<'p>(pass: Pass<'p>, config: &TrainConfig) -> Pass<'p> {
    let TrainConfig { batch, rank, .. } = *config;
    Pass { dropout: true, batch, first: rank.first(batch), ..pass }
}

fn check_length<E>(tokens: &[u32], expected: usize) -> Result<(), Error<E>> {
    match tokens.len() {
        found if found == expected => Ok(()),
        found => Err(Error::BatchLength { found, expected }),
    }
}

/// How many targets are not to be ignored.
fn that_count(targets: &[u32]) -> f64 {
    targets.iter().filter(|&&target| target != IGNORE).count() as f64
}

#[cfg(test)]
mod tests;
