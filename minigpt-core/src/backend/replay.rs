//! [`Replay`]: a program that runs again and again.

use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;

use super::device::Dropped;
use super::{Backend, Device, submit};
use crate::memory::InvalidOp;
use crate::op::{Op, Sink};

/// What runs again and again on a device: a list, where its backend [keeps programs](Backend::keeps_programs), and nothing
/// where it does not.
pub(crate) struct Replay<B: Backend> {
    device: Device<B>,
    kept: Option<Kept>,
}

struct Kept {
    number: u64,
    ops: Vec<Op>,
}

impl<B: Backend> Replay<B> {
    /// Of what `emit` puts into the sink.
    pub(crate) fn new(
        device: &Device<B>,
        emit: impl Fn(&mut Sink<'_>) -> ControlFlow<()>,
    ) -> Result<Self, B::Error> {
        let mut backend = device.lock();
        if !backend.keeps_programs() {
            return Ok(Replay { device: device.clone(), kept: None });
        }
        let mut count = 0;
        let _ = emit(&mut Sink::new(&mut |_| {
            count += 1;
            ControlFlow::Continue(())
        }));
        let mut ops = Vec::new();
        let bytes = size_of::<Op>().saturating_mul(count);
        ops.try_reserve_exact(count).map_err(|_| InvalidOp::HostMemory { operand: "program", bytes })?;
        let _ = emit(&mut Sink::new(&mut |step| {
            ops.push(step.op);
            ControlFlow::Continue(())
        }));
        let number = backend.prepare(&ops)?;
        Ok(Replay { device: device.clone(), kept: Some(Kept { number, ops }) })
    }

    /// Runs it on `backend`, which is its device's: from the list, or as `emit` tells it, which is what it was made of.
    pub(crate) fn run(
        &self,
        backend: &mut B,
        emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
    ) -> Result<(), B::Error> {
        match &self.kept {
            Some(Kept { number, ops }) => backend.replay(*number, ops),
            None => submit(backend, emit),
        }
    }
}

impl<B: Backend> Drop for Replay<B> {
    fn drop(&mut self) {
        if let Some(Kept { number, .. }) = self.kept {
            self.device.drop_later(Dropped::Program(number));
        }
    }
}

impl<B: Backend> fmt::Debug for Replay<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("ops", &self.kept.as_ref().map(|kept| kept.ops.len()))
            .finish_non_exhaustive()
    }
}
