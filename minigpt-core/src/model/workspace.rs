//! The buffers of one plan.

use alloc::vec;
use alloc::vec::Vec;

use super::{Buffers, Model, Pass, out_of_memory};
use crate::backend::{Allocation, Backend, Device, workspace_bytes};
use crate::error::Error;
use crate::memory::{Buffer, Dtype, Span};
use crate::plan::Plan;

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
            device.lock().reserve(scratch)?;
            let activations = take(plan.bytes.activations)?;
            let cache = if plan.bytes.cache > 0 { Some(take(plan.bytes.cache)?) } else { None };
            Ok(Buffers { activations, cache, state: take(plan.bytes.state)? })
        };
        // What did fit goes back with `owned`, so that a smaller plan can be tried.
        let buffers = attempt().map_err(|error| out_of_memory(needed, error))?;
        Ok(Workspace { plan, buffers, _owned: owned })
    }

    /// That of a plan for inference with this model.
    pub(crate) fn inference(model: &Model<B>, plan: Plan) -> Result<Self, Error<B::Error>> {
        let largest = Pass::whole(&plan, model.weights(), Buffers::planned(&plan));
        let scratch = model.device().inspect(|backend| workspace_bytes(backend, |sink| largest.infer(sink)));
        Workspace::new(model.device(), plan, scratch)
    }

    /// A pass over `batch` sequences of `time` tokens.
    pub(crate) fn pass<'p>(&'p self, model: &'p Model<B>, batch: usize, time: usize) -> Pass<'p> {
        Pass { batch, time, ..Pass::whole(&self.plan, model.weights(), self.buffers) }
    }

    /// All the logits that there is room for.
    pub(crate) fn logits(&self) -> Span {
        self.plan.activations.logits.on(self.buffers.activations, self.plan.elem)
    }

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
