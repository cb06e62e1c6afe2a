//! [`Sums`]: what a step has summed up before its update, for programs that add to it: ranks that train as one.

use alloc::vec::Vec;

use super::Trainer;
use crate::backend::{Backend, from_bytes, read_elems, to_bytes};
use crate::error::Error;
use crate::memory::{InvalidOp, Span, zeros};
use crate::op::scalar;
use crate::real::Real;

/// The sums of a step in the making: loss, number of targets, gradients. The update divides by the number of targets, so the
/// sums of ranks that had a part of the batch each add up to those of the whole.
///
/// # Ranks that train as one
///
/// Each of N ranks makes the same model from the same seed, or loads the same checkpoint, and trains it with the same settings
/// but for its own [`TrainConfig::rank`](crate::TrainConfig::rank). `batch` is what one rank takes at once. In each step, every
/// rank
///
/// 1. [accumulates](Trainer::accumulate) the gradients of its own windows,
/// 2. [reads its sums](Trainer::read_sums) and gets those of all others, in whatever way the ranks reach each other: threads, a
///    network, a library of collectives,
/// 3. [adds](Sums::add) them all up in the same order as the other ranks, and [writes](Trainer::write_sums) the total,
/// 4. and [finishes the step](Trainer::finish_step): the same update on each, so that no rank ever has to send its parameters.
///
/// Dropout masks and checkpoints are those of one trainer if every rank runs as many micro-batches as the others.
/// A step whose loss or gradient is not finite on one rank has sums that are not finite, and so is skipped by all. Metrics are
/// those of all ranks, evaluation is each one's own, and the checkpoint of any rank is that of all. If a rank fails, let the
/// others go on from the last checkpoint, as fewer ranks with larger batches.
///
/// `examples/two_ranks.rs` is a whole program, and this is a step without it, on batches of the program's own:
///
/// ```
/// use minigpt_core::train::Sums;
/// use minigpt_core::{GptConfig, Model, Rank, Reference, TrainConfig, Trainer};
/// let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 8, ..GptConfig::new(5, 4) };
/// let trainer = |batch, rank| {
///     let settings = TrainConfig { batch, time: 4, rank, ..TrainConfig::constant(0.1) };
///     Trainer::new(&Model::new(Reference::<f64>::new(), config.clone(), 1)?, settings)
/// };
/// let tokens: Vec<u32> = (0..17).map(|i| i * i % 5).collect();
///
/// let mut whole = trainer(4, Rank::ALONE)?;
/// whole.micro_step(&tokens[..16], &tokens[1..])?;
/// whole.finish_step()?;
///
/// // The same step by two ranks, with half of the batch each.
/// let mut ranks = [trainer(2, Rank { index: 0, count: 2 })?, trainer(2, Rank { index: 1, count: 2 })?];
/// let (mut total, mut sums) = (Sums::default(), Sums::default());
/// ranks[0].micro_step(&tokens[..8], &tokens[1..9])?;
/// ranks[0].read_sums(&mut total)?;
/// ranks[1].micro_step(&tokens[8..16], &tokens[9..])?;
/// ranks[1].read_sums(&mut sums)?;
/// total.add(&sums)?;
/// for rank in &mut ranks {
///     rank.write_sums(&total)?;
///     rank.finish_step()?;
///     assert!((rank.metrics()?.loss - whole.metrics()?.loss).abs() < 1e-12);
///     let [a, b] = [&*rank, &whole].map(|trainer| trainer.model().parameter("wte.weight"));
///     assert!(a?.iter().flatten().zip(b?.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-12));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sums<R> {
    /// The sum of the losses, in nats.
    pub loss: f64,
    /// How many targets it is of.
    pub targets: f64,
    /// The summed gradients of all that is trained, where the trainer's plan has [them](crate::Plan::gradients): tensor by
    /// tensor, with zeros between.
    pub gradients: Vec<R>,
}

impl<R: Real> Sums<R> {
    /// Adds those of another rank; to sums without gradients, which are new, any. The order in which ranks are added decides
    /// the last bits of the result: all ranks must write the same one.
    ///
    /// # Errors
    /// If there are more or fewer gradients in `other`, which leaves these as they are: ranks train the same parameters.
    pub fn add(&mut self, other: &Self) -> Result<(), InvalidOp> {
        if self.gradients.is_empty() {
            let bytes = size_of_val(&other.gradients[..]);
            let no_room = |_| InvalidOp::HostMemory { operand: "gradients", bytes };
            self.gradients.try_reserve_exact(other.gradients.len()).map_err(no_room)?;
            self.gradients.resize(other.gradients.len(), R::zero());
        }
        check_length(other, self.gradients.len())?;
        self.loss += other.loss;
        self.targets += other.targets;
        for (sum, &other) in self.gradients.iter_mut().zip(&other.gradients) {
            *sum += other;
        }
        Ok(())
    }
}

fn check_length<R>(sums: &Sums<R>, expected: usize) -> Result<(), InvalidOp> {
    match sums.gradients.len() {
        found if found == expected => Ok(()),
        found => Err(InvalidOp::Length { operand: "gradients", expected, found }),
    }
}

/// At most so many bytes of gradients go to the host or come back at once.
const PIECE: usize = 1 << 20;

/// The pieces of `span` that go to the host or come back at once, each with its place in the span.
fn pieces(span: Span, size: usize) -> impl Iterator<Item = (usize, Span)> {
    let most = PIECE / size;
    (0..span.len).step_by(most).map(move |at| (at, span.slice(at, most.min(span.len - at))))
}

impl<B: Backend> Trainer<B> {
    /// Reads the sums of the step in the making: all zero, if no micro-batch was added to it. Waits.
    ///
    /// Room on the host is taken the first time, in `sums` for the gradients and in the trainer for a piece of them.
    ///
    /// # Errors
    /// If the backend fails or the host has no memory; the step in the making is as it was.
    pub fn read_sums(&mut self, sums: &mut Sums<B::Elem>) -> Result<(), Error<B::Error>> {
        let span = self.whole_gradient();
        if sums.gradients.len() != span.len {
            sums.gradients = zeros("gradients", span.len)?;
        }
        if self.pending == 0 {
            (sums.loss, sums.targets) = (0.0, 0.0);
            sums.gradients.fill(B::Elem::default());
            return Ok(());
        }
        [sums.loss, sums.targets] = self.loss_and_targets().map_err(Error::Backend)?.map(Real::to_f64);
        let size = size_of::<B::Elem>();
        self.make_room(span)?;
        let mut backend = self.model.device().lock();
        for (at, piece) in pieces(span, size) {
            let bytes = &mut self.exchange[..piece.len * size];
            backend.read(piece, bytes).map_err(Error::Backend)?;
            from_bytes(&mut sums.gradients[at..], B::Elem::DTYPE, bytes);
        }
        Ok(())
    }

    /// Puts `sums` in the place of those of the step in the making, or begins a step with them:
    /// [`finish_step`](Trainer::finish_step) then updates by their means. So a rank that had nothing to add takes part too.
    ///
    /// # Errors
    /// If there are more or fewer gradients than the trainer has, which leaves the step in the making as it was; or if the
    /// backend fails, which drops it.
    pub fn write_sums(&mut self, sums: &Sums<B::Elem>) -> Result<(), Error<B::Error>> {
        let span = self.whole_gradient();
        check_length(sums, span.len)?;
        self.make_room(span)?;
        let before = core::mem::take(&mut self.pending);
        self.enqueue_sums(sums, span).map_err(Error::Backend)?;
        self.counted = sums.targets;
        self.pending = before.max(1);
        self.shared = true;
        Ok(())
    }

    fn enqueue_sums(&mut self, sums: &Sums<B::Elem>, span: Span) -> Result<(), B::Error> {
        let size = size_of::<B::Elem>();
        self.set_loss_and_targets([sums.loss, sums.targets].map(B::Elem::from_f64))?;
        let mut backend = self.model.device().lock();
        for (at, piece) in pieces(span, size) {
            let bytes = &mut self.exchange[..piece.len * size];
            to_bytes(&sums.gradients[at..], B::Elem::DTYPE, bytes);
            backend.write(piece, bytes)?;
        }
        Ok(())
    }

    /// Mean loss of the step in the making, in nats per token, before its update; `None` if it has no target yet. Waits.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn loss(&mut self) -> Result<Option<f64>, Error<B::Error>> {
        if self.pending == 0 {
            return Ok(None);
        }
        let [loss, targets] = self.loss_and_targets().map_err(Error::Backend)?.map(Real::to_f64);
        Ok((targets > 0.0).then(|| loss / targets))
    }

    /// The gradient of the mean loss that the step in the making, or the last one, has for the parameter called `name`: the
    /// sum over its targets, divided by their number; zero if there were none. `Ok(None)` if there is no such parameter, or
    /// it is frozen. Waits.
    ///
    /// The sums themselves are [`read_sums`](Trainer::read_sums)'s.
    ///
    /// # Errors
    /// If the backend failed.
    pub fn gradient(&mut self, name: &str) -> Result<Option<Vec<B::Elem>>, Error<B::Error>> {
        let tensors = self.workspace.plan.parameters.list();
        let place = tensors.iter().position(|tensor| tensor.name == name);
        let Some(span) = place.and_then(|i| *self.gradients.list()[i]) else { return Ok(None) };
        self.mean(span).map(Some)
    }

    /// A gradient of the summed loss, as that of the mean.
    pub(super) fn mean(&self, span: Span) -> Result<Vec<B::Elem>, Error<B::Error>> {
        let mut values = read_elems(&mut *self.model.device().lock(), span).map_err(Error::Backend)?;
        if self.counted > 0.0 {
            let targets = B::Elem::from_f64(self.counted);
            values.iter_mut().for_each(|value| *value /= targets);
        }
        Ok(values)
    }

    /// The sum of the losses and the number of targets, as the device has them.
    pub(super) fn loss_and_targets(&self) -> Result<[B::Elem; 2], B::Error> {
        let (size, scalars) = (size_of::<B::Elem>(), self.workspace.scalars());
        let mut backend = self.model.device().lock();
        let mut read = |place| {
            let mut bytes = [0; size_of::<u64>()];
            backend.read(scalars.slice(place, 1), &mut bytes[..size])?;
            Ok::<_, B::Error>(B::Elem::from_le_slice(&bytes))
        };
        Ok([read(scalar::LOSS_SUM)?, read(scalar::TARGETS)?])
    }

    pub(super) fn set_loss_and_targets(&self, [loss, targets]: [B::Elem; 2]) -> Result<(), B::Error> {
        let (size, scalars) = (size_of::<B::Elem>(), self.workspace.scalars());
        let mut backend = self.model.device().lock();
        for (place, value) in [(scalar::LOSS_SUM, loss), (scalar::TARGETS, targets)] {
            let mut bytes = [0; size_of::<u64>()];
            value.to_le_slice(&mut bytes);
            backend.write(scalars.slice(place, 1), &bytes[..size])?;
        }
        Ok(())
    }

    /// Makes sure of room for a piece of `span` on the host.
    fn make_room(&mut self, span: Span) -> Result<(), Error<B::Error>> {
        let size = size_of::<B::Elem>();
        Ok(grow("exchange", &mut self.exchange, span.len.min(PIECE / size) * size)?)
    }
}

/// Makes sure of at least `len` elements.
pub(super) fn grow<T: Clone + Default>(
    operand: &'static str,
    values: &mut Vec<T>,
    len: usize,
) -> Result<(), InvalidOp> {
    if values.len() < len {
        *values = zeros(operand, len)?;
    }
    Ok(())
}
