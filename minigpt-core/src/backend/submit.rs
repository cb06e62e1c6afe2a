//! A program that is told step by step, given to a backend as it comes.

use core::ops::ControlFlow;

use super::Backend;
use crate::op::Sink;

/// Runs what `emit` puts into the sink, up to the first op that fails.
pub(crate) fn submit<B: Backend>(
    backend: &mut B,
    emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
) -> Result<(), B::Error> {
    let mut result = Ok(());
    let _ = emit(&mut Sink::new(&mut |step| {
        result = backend.run(&step.op);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }));
    result
}

/// Bytes of scratch that it takes, where nothing of it is stored.
pub(crate) fn workspace_bytes<B: Backend>(
    backend: &B,
    emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>,
) -> usize {
    let mut most = 0;
    let _ = emit(&mut Sink::new(&mut |step| {
        most = most.max(backend.workspace_bytes(core::slice::from_ref(&step.op)));
        ControlFlow::Continue(())
    }));
    most
}
