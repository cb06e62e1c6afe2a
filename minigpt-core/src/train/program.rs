//! The programs of training: what a step gives to the backend, op by op.

use crate::config::TrainConfig;
use crate::memory::Span;
use crate::model::{Flow, Gradients, Pass};
use crate::op::{AdamW, Fill, FinishStep, NextDraw, Sink, SquaredNorm, scalar};
use crate::plan::{Region, Stretch};

/// Before the first micro-batch of a step: sums begin at zero. The loss and the targets are zero after a finished step, but
/// not after one that was dropped.
pub(super) fn begin_step(sink: &mut Sink<'_>, grads: Span, scalars: Span) -> Flow {
    sink.put(None, "gradients", Fill { to: grads, value: 0.0 })?;
    for sum in [scalar::LOSS_SUM, scalar::TARGETS] {
        sink.put(None, "sums", Fill { to: scalars.slice(sum, 1), value: 0.0 })?;
    }
    Flow::Continue(())
}

/// Adds the loss and the gradient of the batch `whole` to the sums: slice by slice, as many sequences at once as the plan has
/// room for.
pub(super) fn micro_step(
    sink: &mut Sink<'_>,
    whole: &Pass<'_>,
    scalars: Span,
    counters: Span,
    gradients: &Gradients<'_>,
) -> Flow {
    next_draw(sink, counters)?;
    clear_prefix(sink, gradients)?;
    for (before, batch) in whole.pieces(whole.batch, whole.plan.batch) {
        let slice = Pass { batch, before, ..*whole };
        slice.forward(sink)?;
        slice.loss(sink, scalars, Some(gradients))?;
        slice.backward(sink, gradients)?;
    }
    Flow::Continue(())
}

/// Before each micro-batch: the gradient of its given vectors is its own.
pub(super) fn clear_prefix(sink: &mut Sink<'_>, gradients: &Gradients<'_>) -> Flow {
    match gradients.d_prefix {
        Some(to) => sink.put(None, "prefix", Fill { to, value: 0.0 }),
        None => Flow::Continue(()),
    }
}

/// Before each micro-batch: its dropout masks are its own.
pub(super) fn next_draw(sink: &mut Sink<'_>, counters: Span) -> Flow {
    sink.put(None, "dropout", NextDraw { counters })
}

/// What an update reads and changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update<'p> {
    pub(super) params: Span,
    pub(super) grads: Span,
    pub(super) m: Span,
    pub(super) v: Span,
    /// What of them is trained.
    pub(super) stretches: &'p [Stretch],
    pub(super) scalars: Span,
    pub(super) counters: Span,
}

/// Closes a step: the gradient's norm, clipping, and AdamW. The learning rate lies among the scalars already.
pub(super) fn update(sink: &mut Sink<'_>, on: &Update<'_>, config: &TrainConfig) -> Flow {
    let Update { grads, scalars, counters, .. } = *on;
    let TrainConfig { clip, beta1, beta2, eps, weight_decay, .. } = *config;
    sink.put(None, "norm", SquaredNorm { x: grads, scalars })?;
    sink.put(None, "finish", FinishStep { scalars, counters, clip, beta1, beta2 })?;
    for &Stretch { parameters, gradients, decayed } in on.stretches {
        let part = |region: Region, of: Span| region.on(of.buffer, of.dtype);
        let [grads, m, v] = [on.grads, on.m, on.v].map(|of| part(gradients, of));
        let params = part(parameters, on.params);
        let op = AdamW { params, grads, m, v, scalars, decayed, beta1, beta2, eps, weight_decay };
        sink.put(None, "update", op)?;
    }
    Flow::Continue(())
}

/// The mean loss of the batch `whole`, without dropout: its sum and the number of its targets, in scalars apart from a step's.
pub(super) fn evaluation(sink: &mut Sink<'_>, whole: &Pass<'_>, scalars: Span) -> Flow {
    sink.put(None, "sums", Fill { to: scalars, value: 0.0 })?;
    for (before, batch) in whole.pieces(whole.batch, whole.plan.batch) {
        let slice = Pass { batch, before, ..*whole };
        slice.forward(sink)?;
        slice.loss(sink, scalars, None)?;
    }
    Flow::Continue(())
}
