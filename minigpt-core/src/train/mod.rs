//! Training: what it takes, and the trainer.

mod program;
mod trainer;

pub use trainer::{LossError, Metrics, Piece, PieceLoss, Row, Sums, Trainer};

use crate::backend::{Backend, workspace_bytes};
use crate::config::{ConfigError, GptConfig, TrainConfig};
use crate::memory::{Dtype, InvalidOp, Span};
use crate::model::{Buffers, Flow, Gradients, Pass, Weights};
use crate::op::{Program, Sink};
use crate::plan::{Plan, Tensor};
use crate::real::Real;

impl Plan {
    /// What a pass of this plan does, op by op, in memory that does not exist yet: a pass over all that it has room for, or
    /// one step of training with one micro-batch.
    ///
    /// # Errors
    /// If the host has no memory for the list.
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Plan};
    /// let config = GptConfig { layers: 1, ..GptConfig::new(65, 64) };
    /// let program = Plan::training(&config, Dtype::F32, 12, 64)?.program()?;
    /// let names: Vec<String> = program.steps().iter().map(|step| step.name.to_string()).collect();
    /// assert_eq!(names[..3], ["gradients", "sums", "sums"]);
    /// assert!(names.iter().any(|name| name == "h.0.attention.qkv"));
    /// println!("{program}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn program(&self) -> Result<Program, InvalidOp> {
        self.planned(|whole| Program::collect(|sink| self.emit(sink, whole)))
    }

    /// Bytes of scratch that it takes on `backend`, beyond the plan's own [bytes](Plan::bytes).
    pub fn workspace_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.planned(|whole| {
            workspace_bytes(backend, |sink| self.emit(sink, &Pass { sizes_only: true, ..*whole }))
        })
    }

    fn emit(&self, sink: &mut Sink<'_>, whole: &Pass<'_>) -> Flow {
        let Some(buffers) = &self.backward else { return whole.infer(sink) };
        let grads =
            Span { buffer: Buffers::TRAINED[1], dtype: self.elem, offset: 0, len: self.gradient_span };
        let parameters =
            &self.gradients.map(|region| region.map(|region| region.on(grads.buffer, self.elem)));
        let scalars = self.scalars.on(whole.buffers.state, self.elem);
        let counters = self.counters.on(whole.buffers.state, Dtype::U32);
        program::begin_step(sink, grads, scalars)?;
        let d_prefix = self.d_prefix.on(whole.buffers.state, self.elem);
        let d_prefix = (self.config.prefix > 0).then_some(d_prefix);
        let copies = Weights::masters(self).copies(self, Buffers::COPIES);
        program::copy_weights(sink, &copies)?;
        program::micro_step(sink, whole, scalars, counters, &Gradients { parameters, buffers, d_prefix })?;
        let trained = program::Trained { plan: self, buffers: Buffers::TRAINED, scalars, counters };
        program::update(sink, &trained, 1.0)
    }
}

impl TrainConfig {
    /// How many of a batch's sequences go through the model at once on `backend`: what to plan memory for. Their
    /// gradients are summed, as those of micro-batches are, and dropout drops what it would of the whole. The slices are
    /// as even as can be, and depend on shapes and the kind of backend alone.
    pub fn sequences_at_once<B: Backend>(&self, model: &GptConfig, backend: &B) -> usize {
        let slices = self.batch.div_ceil(most_at_once(backend, self.positions(model))).max(1);
        self.batch.div_ceil(slices)
    }

    /// Where a [`Trainer`] with these settings puts everything on `backend`: the tokens of a whole micro-batch, and what is
    /// computed of as many sequences as [go through the model at once](TrainConfig::sequences_at_once).
    ///
    /// # Errors
    /// As [`Plan::training`].
    pub fn plan<B: Backend>(&self, model: &GptConfig, backend: &B) -> Result<Plan, ConfigError> {
        let (at_once, positions) = (self.sequences_at_once(model, backend), self.positions(model));
        Plan::training_in_slices(model, B::Elem::DTYPE, self.batch, at_once, positions, self.recompute)?
            .in_precision(self.precision)?
            .optimizing(&self.groups, self.average)
    }

    /// How many positions a sequence has, given vectors among them.
    fn positions(&self, model: &GptConfig) -> usize {
        self.time.saturating_add(model.prefix)
    }

    /// Bytes that a [`Trainer`] takes for tokens in the program's own memory, beside the [plan](TrainConfig::plan): those of
    /// a micro-batch with their targets, and one or the other of a slice on their way to the device.
    pub fn token_bytes<B: Backend>(&self, model: &GptConfig, backend: &B) -> usize {
        self.countable_token_bytes(model, backend).unwrap_or(usize::MAX)
    }

    fn countable_token_bytes<B: Backend>(&self, model: &GptConfig, backend: &B) -> Option<usize> {
        let sequences = self.batch.checked_mul(2)?.checked_add(self.sequences_at_once(model, backend))?;
        sequences.checked_mul(self.time)?.checked_mul(size_of::<u32>())
    }

    /// The largest batch for which a trainer's [plan](TrainConfig::plan), the backend's scratch and the
    /// [tokens](TrainConfig::token_bytes) take at most `budget` bytes, the other settings being these. `None` if not
    /// even one sequence fits or the model is invalid.
    ///
    /// ```
    /// use minigpt_core::{GptConfig, Recompute, Reference, TrainConfig};
    /// let (model, backend) = (GptConfig::new(65, 64), Reference::<f32>::new());
    /// let fits = |recompute| {
    ///     let settings = TrainConfig { recompute, ..TrainConfig::constant(1e-3) };
    ///     settings.largest_batch(&model, &backend, 64 << 20)
    /// };
    /// let (batch, larger) = (fits(Recompute::Nothing).unwrap(), fits(Recompute::Blocks).unwrap());
    /// assert!(larger > 2 * batch);
    /// ```
    pub fn largest_batch<B: Backend>(&self, model: &GptConfig, backend: &B, budget: usize) -> Option<usize> {
        self.largest_batch_freezing(model, backend, budget, |_| false)
    }

    /// The same of a training that [leaves some parameters as they are](Trainer::freezing): those that `frozen` says.
    pub fn largest_batch_freezing<B: Backend>(
        &self,
        model: &GptConfig,
        backend: &B,
        budget: usize,
        frozen: impl Fn(&Tensor) -> bool,
    ) -> Option<usize> {
        let fits = |batch: usize| {
            let settings = TrainConfig { batch, ..self.clone() };
            let tokens = settings.countable_token_bytes(model, backend)?;
            let plan = settings.plan(model, backend).ok()?.freezing(&frozen);
            let needed =
                plan.bytes.total().saturating_add(plan.workspace_bytes(backend)).saturating_add(tokens);
            // Sums that cannot be counted are the largest number, and fit nowhere.
            Some(batch).filter(|_| needed <= budget && needed < usize::MAX)
        };
        // A larger batch may go in more and smaller slices, and so need less. But among batches of as many slices the
        // larger needs more, and so it is among the smallest batches of so many slices.
        let most = most_at_once(backend, self.positions(model));
        let before = |slices: usize| (slices - 1).checked_mul(most);
        let slices =
            largest(|slices| before(slices).and_then(|before| fits(before.checked_add(1)?)).is_some())?;
        let before = before(slices)?;
        let last = largest(|last| last <= most && before.checked_add(last).and_then(fits).is_some())?;
        Some(before + last)
    }
}

/// How many sequences may go through the model at once, whatever the batch.
fn most_at_once<B: Backend>(backend: &B, time: usize) -> usize {
    (backend.rows_at_once() / time.max(1)).max(1)
}

/// The largest number from 1 on that fits; what is larger than one that does not, does not either, and nothing above
/// half of `usize::MAX` does.
fn largest(fits: impl Fn(usize) -> bool) -> Option<usize> {
    if !fits(1) {
        return None;
    }
    let mut fitting = 1;
    while fits(fitting * 2) {
        fitting *= 2;
    }
    let mut step = fitting;
    while step > 0 {
        if fits(fitting + step) {
            fitting += step;
        }
        step /= 2;
    }
    Some(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend that takes so many rows at once.
    #[derive(Debug)]
    struct Rows(usize);

    impl Backend for Rows {
        type Elem = f32;
        type Error = crate::ReferenceError;
        fn alloc(&mut self, bytes: usize) -> Result<crate::Buffer, Self::Error> {
            Err(crate::ReferenceError::OutOfMemory { bytes })
        }
        fn release(&mut self, _: crate::Buffer) -> Result<(), Self::Error> {
            Ok(())
        }
        fn write(&mut self, _: crate::Span, _: &[u8]) -> Result<(), Self::Error> {
            Ok(())
        }
        fn read(&mut self, _: crate::Span, _: &mut [u8]) -> Result<(), Self::Error> {
            Ok(())
        }
        fn copy(&mut self, _: crate::Span, _: crate::Span) -> Result<(), Self::Error> {
            Ok(())
        }
        fn fill(&mut self, _: crate::Span, _: f64) -> Result<(), Self::Error> {
            Ok(())
        }
        fn sync(&mut self) -> Result<(), Self::Error> {
            Ok(())
        }
        fn rows_at_once(&self) -> usize {
            self.0
        }
        fn workspace_bytes(&self, ops: &[crate::Op]) -> usize {
            let of =
                |op: &crate::Op| if let crate::Op::LinearForward(op) = op { 100 * (op.rows / 8) } else { 0 };
            ops.iter().map(of).max().unwrap_or(0)
        }
    }

    #[test]
    fn the_largest_batch_is_the_last_that_a_trainer_has_room_for() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 8) };
        let settings = |batch| TrainConfig { batch, time: 8, ..TrainConfig::constant(1e-3) };
        for rows in [0, 8, 31, 32, 40, 72, usize::MAX] {
            let backend = Rows(rows);
            let needs = |batch| {
                let settings = settings(batch);
                let plan = settings.plan(&config, &backend).unwrap();
                assert_eq!(plan.batch, settings.sequences_at_once(&config, &backend));
                // Of 8 tokens: the batch's, its targets, and what is on its way to the backend.
                let tokens = (batch + batch + plan.batch) * 8 * 4;
                assert_eq!(plan.workspace_bytes(&backend), 100 * plan.batch);
                plan.bytes.total() + 100 * plan.batch + tokens
            };
            let least = needs(1);
            let largest = |budget| settings(7).largest_batch(&config, &backend, budget);
            assert_eq!(largest(least - 1), None);
            for budget in (least..least + 12_000).step_by(97) {
                let found = largest(budget).unwrap();
                // Tokens and targets alone would be beyond the budget after that.
                let expected = (1..=budget / (2 * 8 * 4)).rfind(|&batch| needs(batch) <= budget);
                assert_eq!(Some(found), expected, "{rows} rows, {budget} bytes");
            }
        }
        let invalid = GptConfig { heads: 3, ..config.clone() };
        assert_eq!(settings(1).largest_batch(&invalid, &Rows(8), usize::MAX), None);
        assert!(settings(1).largest_batch(&config, &Rows(8), usize::MAX).is_some());
    }

    #[test]
    fn a_batch_is_cut_into_slices_as_even_as_can_be() {
        let at_once = |batch, time, rows| {
            let settings = TrainConfig { batch, time, ..TrainConfig::constant(1e-3) };
            settings.sequences_at_once(&GptConfig::new(65, 64), &Rows(rows))
        };
        assert_eq!(at_once(8, 256, 1024), 4);
        assert_eq!(at_once(12, 64, 1024), 12);
        assert_eq!(at_once(17, 64, 1024), 9);
        assert_eq!(at_once(5, 256, 1024), 3);
        assert_eq!(at_once(3, 2048, 1024), 1);
        assert_eq!(at_once(3, 7, 0), 1);
        assert_eq!(at_once(usize::MAX, 1, usize::MAX), usize::MAX);
        assert_eq!(at_once(0, 0, 1024), 0);
    }
}
