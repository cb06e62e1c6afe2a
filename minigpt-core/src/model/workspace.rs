//! The buffers of one plan.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::{Buffers, Model, Pass, Weights};
use crate::backend::{Allocation, Backend, Device, workspace_bytes};
use crate::error::{Error, out_of_memory};
#[cfg(not(feature = "train"))]
use crate::memory::InvalidOp;
use crate::memory::{Buffer, Dtype, Span};
#[cfg(not(feature = "train"))]
use crate::op::Program;
use crate::op::Sink;
use crate::plan::{Plan, Purpose};

/// What a plan needs on a device besides parameters, gradients and moments.
#[derive(Debug)]
pub(crate) struct Workspace<B: Backend> {
    pub(crate) plan: Plan,
    pub(crate) buffers: Buffers,
    _owned: Vec<Allocation<B>>,
}

impl<B: Backend> Workspace<B> {
    /// Allocates what `plan` needs, with `scratch` bytes of the backend's own.
    pub(crate) fn new(device: &Device<B>, plan: Plan, scratch: usize) -> Result<Self, Error<B::Error>> {
        let needed = plan.bytes.total().saturating_add(scratch);
        let mut owned = vec![];
        let mut take = |bytes| -> Result<Buffer, B::Error> {
            let allocation = device.alloc(bytes)?;
            let buffer = allocation.buffer();
            owned.push(allocation);
            Ok(buffer)
        };
        let mut attempt = || -> Result<Buffers, B::Error> {
            let activations = take(plan.bytes.activations)?;
            let cache = if plan.bytes.cache > 0 { Some(take(plan.bytes.cache)?) } else { None };
            let state = take(plan.bytes.state)?;
            // Last, because the backend keeps it.
            device.lock().reserve(scratch)?;
            Ok(Buffers { activations, cache, state })
        };
        // What did fit goes back with `owned`, so that a smaller plan can be tried.
        let buffers = attempt().map_err(|error| out_of_memory(needed, error))?;
        number(device, plan.prefix_numbers.on(buffers.state, Dtype::U32)).map_err(Error::Backend)?;
        Ok(Workspace { plan, buffers, _owned: owned })
    }

    /// That of a plan for inference with this model.
    pub(crate) fn inference(model: &Model<B>, plan: Plan) -> Result<Self, Error<B::Error>> {
        let largest = Pass::whole(&plan, model.weights(), Buffers::planned(&plan));
        let scratch = model.device().inspect(|backend| workspace_bytes(backend, |sink| largest.infer(sink)));
        Workspace::new(model.device(), plan, scratch)
    }

    /// That of a plan for decoding with this model, tokens being chosen on the device if it `chooses`.
    pub(crate) fn decoding(model: &Model<B>, plan: Plan, chooses: bool) -> Result<Self, Error<B::Error>> {
        let largest = Pass::whole(&plan, model.weights(), Buffers::planned(&plan));
        let emit = |sink: &mut Sink<'_>| {
            largest.infer(sink)?;
            if chooses { largest.choose(sink) } else { ControlFlow::Continue(()) }
        };
        let scratch = model.device().inspect(|backend| workspace_bytes(backend, emit));
        Workspace::new(model.device(), plan, scratch)
    }

    /// Where the given vectors of all sequences go, which `vectors` must be as many numbers as.
    pub(crate) fn prefix(&self, vectors: &[B::Elem]) -> Result<Span, Error<B::Error>> {
        let span = self.plan.prefix.on(self.buffers.state, self.plan.elem);
        match (vectors.len(), span.len) {
            (found, expected) if found == expected => Ok(span),
            (found, expected) => Err(Error::PrefixLength { found, expected }),
        }
    }

    /// A pass over all that the plan has room for.
    pub(crate) fn pass<'p>(&'p self, model: &'p Model<B>) -> Pass<'p> {
        self.pass_with(model.weights())
    }

    /// The same with these weights.
    pub(crate) fn pass_with<'p>(&'p self, weights: &'p Weights) -> Pass<'p> {
        Pass::whole(&self.plan, weights, self.buffers)
    }

    /// All the logits that there is room for.
    pub(crate) fn logits(&self) -> Span {
        self.plan.activations.logits.on(self.buffers.activations, self.plan.activation_dtype())
    }
}

#[cfg(feature = "train")]
impl<B: Backend> Workspace<B> {
    pub(crate) fn scalars(&self) -> Span {
        self.plan.scalars.on(self.buffers.state, self.plan.elem)
    }

    pub(crate) fn evaluation(&self) -> Span {
        self.plan.evaluation.on(self.buffers.state, self.plan.elem)
    }

    pub(crate) fn counters(&self) -> Span {
        self.plan.counters.on(self.buffers.state, Dtype::U32)
    }
}

/// Counts from 0 on: each word of `to` is its own place.
fn number<B: Backend>(device: &Device<B>, to: Span) -> Result<(), B::Error> {
    const PIECE: usize = 256;
    let mut bytes = [0; 4 * PIECE];
    for begin in (0..to.len).step_by(PIECE) {
        let piece = to.slice(begin, PIECE.min(to.len - begin));
        for (i, word) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
            *word = ((begin + i) as u32).to_le_bytes();
        }
        device.lock().write(piece, &bytes[..4 * piece.len])?;
    }
    Ok(())
}

impl Plan {
    /// Hands `f` the largest pass, in memory that does not exist yet.
    pub(crate) fn planned<T>(&self, f: impl FnOnce(&Pass<'_>) -> T) -> T {
        let weights = Weights::planned(self);
        let whole = Pass::whole(self, &weights, Buffers::planned(self));
        let training = self.purpose == Purpose::Training;
        // A batch in training goes through the model in slices.
        let batch = if training { self.sequences } else { self.batch };
        f(&Pass { batch, dropout: training, ..whole })
    }
}

// With training, its room knows the programs of both kinds of plans.
#[cfg(not(feature = "train"))]
impl Plan {
    /// What a pass over all that this plan has room for does, op by op, in memory that does not exist yet.
    ///
    /// # Errors
    /// If the host has no memory for the list.
    pub fn program(&self) -> Result<Program, InvalidOp> {
        self.planned(|whole| Program::collect(|sink| whole.infer(sink)))
    }

    /// Bytes of scratch that it takes on `backend`, beyond the plan's own [bytes](Plan::bytes).
    pub fn workspace_bytes<B: Backend>(&self, backend: &B) -> usize {
        self.planned(|whole| workspace_bytes(backend, |sink| whole.infer(sink)))
    }
}
