//! A loss of one's own: the program gets the logits and gives back their gradient.

use alloc::vec::Vec;
use core::fmt;

use super::sums::grow;
use super::{Trainer, check_length, micro_batch, read};
use crate::backend::{Backend, from_bytes, submit, to_bytes};
use crate::error::Error;
use crate::model::{Flow, Gradients, HeadPiece, Pass, check_tokens};
use crate::op::Sink;
use crate::real::Real;
use crate::train::program;

/// The logits of some rows of a batch, and room for their gradient: what a [loss of one's own](Trainer::micro_step_with) is
/// shown. A row is one position of one sequence: row number n of the batch is position `n % time` of sequence `n / time`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Piece<'a, R> {
    /// The number that its first row has in the batch: where it is in the inputs, and in targets of the same shape.
    pub first: usize,
    /// T: how many positions a sequence has.
    pub time: usize,
    /// V: the width of a row.
    pub vocab: usize,
    /// (rows, V).
    pub logits: &'a [R],
    /// (rows, V): for the gradient of the summed loss by the logits. Zero, and so it stays in rows that do not count.
    pub d_logits: &'a mut [R],
}

/// One row of a [`Piece`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Row<'a, R> {
    /// Its number in the batch.
    pub number: usize,
    /// Its sequence.
    pub sequence: usize,
    /// Its position in the sequence: its logits are those of the token at the next one.
    pub position: usize,
    /// (V).
    pub logits: &'a [R],
    /// (V).
    pub d_logits: &'a mut [R],
}

impl<R> Piece<'_, R> {
    /// Row by row.
    pub fn rows(&mut self) -> impl Iterator<Item = Row<'_, R>> {
        let Piece { first, time, vocab, .. } = *self;
        let rows = self.logits.chunks_exact(vocab).zip(self.d_logits.chunks_exact_mut(vocab));
        rows.enumerate().map(move |(i, (logits, d_logits))| {
            let number = first + i;
            Row { number, sequence: number / time, position: number % time, logits, d_logits }
        })
    }
}

/// What a [`Piece`] adds to the sums of the step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PieceLoss {
    /// The sum of its losses. Only reported; but if it is not finite, neither is that of the step, which is then skipped.
    pub loss: f64,
    /// How many targets it has, or the sum of their weights: what loss and gradient are divided by in the end.
    pub targets: f64,
}

/// Why a micro-batch with a [loss of one's own](Trainer::micro_step_with) failed: `E` is the trainer's error, `L` the loss's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LossError<E, L> {
    /// The batch does not fit, or the backend failed.
    Step(E),
    /// The loss said so.
    Loss(L),
}

impl<E: fmt::Display, L: fmt::Display> fmt::Display for LossError<E, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LossError::Step(error) => error.fmt(f),
            LossError::Loss(error) => write!(f, "the loss failed, and the step is dropped: {error}"),
        }
    }
}

impl<E, L> core::error::Error for LossError<E, L>
where
    E: core::error::Error + 'static,
    L: core::error::Error + 'static,
{
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            LossError::Step(error) => Some(error),
            LossError::Loss(error) => Some(error),
        }
    }
}

/// The logits of a piece on the host, and their gradient; empty until they are asked for.
#[derive(Debug)]
pub(super) struct HostLogits<R> {
    logits: Vec<R>,
    d_logits: Vec<R>,
}

impl<R> Default for HostLogits<R> {
    fn default() -> Self {
        HostLogits { logits: Vec::new(), d_logits: Vec::new() }
    }
}

impl<B: Backend> Trainer<B> {
    /// As [`micro_step`](Trainer::micro_step), with a loss of the program's own: `loss` is shown the logits of the batch,
    /// writes the gradient of its *summed* loss by them, and says what the sum is and how many targets it is of.
    /// [`finish_step`](Trainer::finish_step) divides by the number of targets, so that loss, gradient, norm and clipping are
    /// those of the mean, over all micro-batches of the step and whichever loss they have. With weights, give the sum of the
    /// weights instead: then it is the weighted mean. A step whose sum is not above 0 is skipped.
    ///
    /// The logits come piece by piece, each row once and in order; how many rows a piece has depends on the vocabulary and
    /// on how the batch is [cut into slices](crate::TrainConfig::sequences_at_once). Each piece waits for the device, and
    /// its logits go to the host and their gradient back: for a large vocabulary that takes its time. `loss` may use the
    /// device, to run another model on it. Room on the host is taken the first time: for a piece's logits twice, and once as
    /// bytes.
    ///
    /// Dropout acts as in any micro-step. Fractions of targets count in the mean; of each step,
    /// [`Metrics::tokens`](super::Metrics::tokens) counts whole ones.
    ///
    /// # Errors
    /// If the batch has another length or a token is not in the vocabulary, which leaves the step in the making as it was; if
    /// `loss` fails or the backend does, which drops it.
    ///
    /// ```
    /// use core::convert::Infallible;
    /// use minigpt_core::train::PieceLoss;
    /// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer};
    /// let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(5, 4) };
    /// let settings = TrainConfig { batch: 1, time: 4, ..TrainConfig::constant(0.05) };
    /// let mut trainer = Trainer::new(&Model::new(Reference::<f64>::new(), config, 1)?, settings)?;
    ///
    /// // Squared error: the logits shall be 1 at the target and 0 elsewhere.
    /// let (inputs, targets) = ([0, 1, 2, 3], [1, 2, 3, 4]);
    /// for _ in 0..200 {
    ///     trainer.micro_step_with(&inputs, |mut piece| {
    ///         let mut sums = PieceLoss::default();
    ///         for row in piece.rows() {
    ///             for (v, (&logit, d)) in row.logits.iter().zip(row.d_logits).enumerate() {
    ///                 let off = logit - f64::from(v as u32 == targets[row.number]);
    ///                 sums.loss += off * off;
    ///                 *d = 2.0 * off;
    ///             }
    ///             sums.targets += 1.0;
    ///         }
    ///         Ok::<_, Infallible>(sums)
    ///     })?;
    ///     trainer.finish_step()?;
    /// }
    /// assert!(trainer.metrics()?.loss < 0.1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn micro_step_with<L>(
        &mut self,
        inputs: &[u32],
        loss: impl FnMut(Piece<'_, B::Elem>) -> Result<PieceLoss, L>,
    ) -> Result<(), LossError<Error<B::Error>, L>> {
        let rows = self.config.batch * self.config.time;
        check_length(inputs, rows).map_err(LossError::Step)?;
        self.check_prefix().map_err(LossError::Step)?;
        check_tokens(inputs, self.model.config().vocab_size).map_err(LossError::Step)?;
        self.make_room_for_logits().map_err(LossError::Step)?;
        // Also a loss that panics has dropped the step.
        let before = core::mem::take(&mut self.pending);
        let targets = self.run_with(inputs, before > 0, loss)?;
        self.pending = before;
        self.count(targets, true);
        Ok(())
    }

    fn make_room_for_logits(&mut self) -> Result<(), Error<B::Error>> {
        let len = self.workspace.plan.activations.logits.len;
        grow("logits", &mut self.host.logits, len)?;
        grow("d_logits", &mut self.host.d_logits, len)?;
        Ok(grow("exchange", &mut self.exchange, len.saturating_mul(size_of::<B::Elem>()))?)
    }

    /// Runs a micro-step with this loss and tells the number of its targets; `goes_on` if the step in the making has others.
    fn run_with<L>(
        &mut self,
        inputs: &[u32],
        goes_on: bool,
        mut loss: impl FnMut(Piece<'_, B::Elem>) -> Result<PieceLoss, L>,
    ) -> Result<f64, LossError<Error<B::Error>, L>> {
        let failed = |error| LossError::Step(Error::Backend(error));
        self.write_tokens(inputs, &[]).map_err(failed)?;
        let mut sums = [B::Elem::default(); 2];
        if goes_on {
            sums = self.loss_and_targets().map_err(failed)?;
        }
        let d_prefix = (self.model.config().prefix > 0).then(|| self.d_prefix());
        let gradients = Gradients { parameters: &self.gradients, buffers: &self.backward, d_prefix };
        // Apart from what the loss goes through.
        let weights = read(self.copies.as_ref(), &self.model);
        let whole = micro_batch(self.workspace.pass_with(weights), &self.config);
        // The device is free while the loss runs, which may use it.
        let run = |emit: &dyn Fn(&mut Sink<'_>) -> Flow| {
            submit(&mut *self.model.device().lock(), emit).map_err(failed)
        };
        run(&|sink| {
            if !goes_on {
                self.emit_begin(sink)?;
            }
            self.emit_copies(sink, false)?;
            program::next_draw(sink, self.workspace.counters())?;
            program::clear_prefix(sink, &gradients)
        })?;
        let (vocab, time, mut targets) = (self.model.config().vocab_size, self.config.time, 0.0);
        for (before, batch) in whole.pieces(whole.batch, whole.plan.batch) {
            let slice = Pass { batch, before, ..whole };
            run(&|sink| {
                slice.forward(sink)?;
                slice.before_head(sink)
            })?;
            for HeadPiece { row, token, rows } in slice.head_pieces() {
                let (span, numbers) = (slice.piece_logits(rows), rows * vocab);
                run(&|sink| slice.head_forward(sink, row, rows, span))?;
                let bytes = &mut self.exchange[..span.bytes().unwrap_or(0)];
                let (logits, d_logits) =
                    (&mut self.host.logits[..numbers], &mut self.host.d_logits[..numbers]);
                self.model.device().lock().read(span, bytes).map_err(failed)?;
                from_bytes(logits, span.dtype, bytes);
                d_logits.fill(B::Elem::default());

                let first = before * time + token;
                let piece = Piece { first, time, vocab, logits, d_logits: &mut *d_logits };
                let found = loss(piece).map_err(LossError::Loss)?;
                sums[0] += B::Elem::from_f64(found.loss);
                sums[1] += B::Elem::from_f64(found.targets);
                targets += found.targets;

                to_bytes(d_logits, span.dtype, bytes);
                self.model.device().lock().write(span, bytes).map_err(failed)?;
                run(&|sink| slice.head_backward(sink, row, rows, span, &gradients))?;
            }
            run(&|sink| slice.backward(sink, &gradients))?;
        }
        self.set_loss_and_targets(sums).map_err(failed)?;
        Ok(targets)
    }
}
