//! Programs that are given to a backend step by step and never stored.

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

/// The scratch, in bytes, that a backend needs for what `emit` puts into the sink.
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
