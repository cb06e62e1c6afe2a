//! The final norm, the head and the loss of a training step, with the head's gradient.
//!
//! The logits of a large vocabulary are the largest matrix of all. So the head goes over the rows piece by piece, as
//! many at once as the plan has room for: logits, loss, the logits' gradient in their place, and the head's gradient
//! from it, before the next piece takes the room.

use super::forward::Run;
use super::{Model, Pass, Workspace};
use crate::backend::{Backend, Span};
use crate::op::{CrossEntropy, LinearBackward};
use crate::plan::{BackwardActivations, Parameters};

/// Where gradients go.
#[derive(Clone, Copy)]
pub(crate) struct Gradients<'g> {
    /// Of the parameters; added to.
    pub(crate) parameters: &'g Parameters<Span>,
    /// Of activations.
    pub(crate) buffers: &'g BackwardActivations,
}

/// After the [forward](super::forward) pass over the blocks: adds the loss of the targets in `workspace` to `scalars`.
/// With `gradients`, also begins the backward pass: through the head, up to the final norm.
pub(crate) fn loss<B: Backend>(
    model: &mut Model<B>,
    workspace: &Workspace,
    pass: &Pass,
    scalars: Span,
    gradients: Option<Gradients<'_>>,
) -> Result<(), B::Error> {
    let mut run = Run::new(model, workspace, pass);
    let (c, vocab, rows) = (run.config.d_model, run.config.vocab_size, pass.rows());
    let activations = &workspace.plan.activations;
    run.final_norm(0, rows)?;
    let at_once = (activations.logits.len / vocab).max(1);
    for first in (0..rows).step_by(at_once) {
        let rows = at_once.min(rows - first);
        let logits = workspace.activation(activations.logits, rows * vocab);
        run.head(first, rows, logits)?;
        let op = CrossEntropy {
            logits,
            targets: workspace.targets(pass.rows()).slice(first, rows),
            d_logits: gradients.map(|_| logits),
            losses: None,
            scalars,
            rows,
            vocab,
        };
        run.backend.run(&op.into())?;
        let Some(Gradients { parameters, buffers }) = gradients else { continue };
        let d_x = if run.weights.final_norm.is_some() { buffers.d_scratch } else { buffers.d_stream };
        let op = LinearBackward {
            x: run.stream(activations.head_in).slice(first * c, rows * c),
            weight: *run.weights.head_weight(),
            d_y: logits,
            dropout: None,
            d_x: Some(run.stream(d_x).slice(first * c, rows * c)),
            accumulate: false,
            activate: None,
            d_weight: *parameters.head_weight(),
            d_bias: None,
            rows,
            d_in: c,
            d_out: vocab,
        };
        run.backend.run(&op.into())?;
    }
    Ok(())
}
