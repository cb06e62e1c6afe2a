//! The programs of training: what a step gives to the backend, op by op.

use crate::config::{Group, Optimizer};
use crate::memory::{Buffer, Span};
use crate::model::{Flow, Gradients, Pass};
use crate::op::{
    AdamW, Average, Descend, Fill, FinishStep, Momentum, Narrow, NewtonSchulz, NextDraw, Sgd, Sink,
    SquaredNorm, scalar,
};
use crate::plan::{Plan, Region, Update};

/// Before a pass: what it reads in place of weights, from where to where. So whoever has changed the weights since the last one,
/// it reads no others.
pub(super) fn copy_weights(sink: &mut Sink<'_>, copies: &[[Span; 2]]) -> Flow {
    for &[from, to] in copies {
        sink.put(None, "copies", Narrow { from, to })?;
    }
    Flow::Continue(())
}

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

/// What an update reads and changes: the buffers of a plan, and what closes a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trained<'p> {
    pub(super) plan: &'p Plan,
    /// Parameters, gradients, and what optimizers keep.
    pub(super) buffers: [Buffer; 3],
    pub(super) scalars: Span,
    pub(super) counters: Span,
}

impl Trained<'_> {
    fn parameters(&self, region: Region) -> Span {
        region.on(self.buffers[0], self.plan.elem)
    }

    fn gradients(&self, region: Region) -> Span {
        region.on(self.buffers[1], self.plan.elem)
    }

    fn kept(&self, region: Region) -> Span {
        region.on(self.buffers[2], self.plan.elem)
    }
}

/// Closes a step: the gradient's norm, clipping, the optimizers, and the average. The learning rate lies among the scalars
/// already.
pub(super) fn update(sink: &mut Sink<'_>, on: &Trained<'_>, clip: f64) -> Flow {
    let Trained { plan, scalars, counters, .. } = *on;
    let x = on.gradients(Region { offset: 0, len: plan.gradient_span });
    sink.put(None, "norm", SquaredNorm { x, scalars })?;
    sink.put(None, "finish", FinishStep { scalars, counters, clip })?;
    for update in &plan.updates {
        optimize(sink, on, update)?;
    }
    for stretch in &plan.stretches {
        let (Some(decay), Some(average)) = (plan.average, stretch.average) else { continue };
        let (params, average) = (on.parameters(stretch.parameters), on.kept(average));
        sink.put(None, "average", Average { params, average, scalars, counters, decay })?;
    }
    Flow::Continue(())
}

fn optimize(sink: &mut Sink<'_>, on: &Trained<'_>, update: &Update) -> Flow {
    let Trained { scalars, counters, .. } = *on;
    let Group { optimizer, weight_decay, rate } = update.group;
    let (params, grads) = (on.parameters(update.parameters), on.gradients(update.gradients));
    let [first, second] = update.states.map(|state| state.map(|region| on.kept(region)));
    match (optimizer, first, second) {
        (Optimizer::AdamW { beta1, beta2, eps }, Some(m), Some(v)) => {
            let op = AdamW { params, grads, m, v, scalars, counters, beta1, beta2, eps, weight_decay, rate };
            sink.put(None, "update", op)
        }
        (Optimizer::Sgd { momentum, nesterov }, velocity, _) => {
            let op = Sgd { params, grads, velocity, scalars, momentum, nesterov, weight_decay, rate };
            sink.put(None, "update", op)
        }
        (Optimizer::Muon { momentum, nesterov, steps }, Some(velocity), _) => {
            let [rows, cols] = update.matrix.unwrap_or([1, params.len]);
            let direction = on.kept(on.plan.direction).first(params.len);
            let op = Momentum { grads, velocity, direction, scalars, momentum, nesterov };
            sink.put(None, "momentum", op)?;
            sink.put(None, "orthogonal", NewtonSchulz { x: direction, rows, cols, steps })?;
            let scale = libm::sqrt((rows as f64 / cols as f64).max(1.0));
            sink.put(None, "update", Descend { params, direction, scalars, weight_decay, rate, scale })
        }
        // A plan has what its groups need.
        (Optimizer::AdamW { .. } | Optimizer::Muon { .. }, ..) => Flow::Continue(()),
    }
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
