//! The feed-forward sub-layer of a block:
//!
//! ```text
//! norms first:   x -> norm -> up -> activation -> down -> (+ x)
//! norms last:    x ->         up -> activation -> down -> (+ x) -> norm
//! ```
//!
//! If the config is gated, `up` gives twice the width, and a gate stands in the activation's place.

#[cfg(feature = "train")]
use super::pass::{Entry, Gradients};
use super::pass::{Flow, Pass, site};
use crate::config::NormPlace;
use crate::op::{Activate, GateForward, LinearForward, Sink};
#[cfg(feature = "train")]
use crate::op::{GateBackward, LinearBackward};

impl Pass<'_> {
    pub(super) fn feed_forward_forward(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        self.feed_forward_up(sink, layer)?;
        self.feed_forward_down(sink, layer)?;
        let (w, a) = (self.block(layer), self.activations(layer));
        if let (NormPlace::Post, Some(norm)) = (self.config().norm_place, &w.norm2) {
            let op = self.norm_forward(norm, a.feed_forward_sum, a.output, &a.norm2);
            sink.put(layer, "feed_forward.norm", self.each_row_norm(op))?;
        }
        Flow::Continue(())
    }

    /// The gate of block number `layer`, if the config has gates.
    pub(super) fn gate(&self, layer: usize) -> Option<GateForward> {
        let (config, a) = (self.config(), self.activations(layer));
        let width = config.d_ff;
        let x = self.matrix(a.pre_activation.filter(|_| config.gated)?, config.d_up());
        let (y, activation) = (self.matrix(a.hidden, width), config.activation);
        Some(GateForward { x, y, activation, rows: self.rows(), width })
    }

    /// Up to the result of the activation or the gate, and with norms first the norm before it.
    pub(super) fn feed_forward_up(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (c, f) = (config.d_model, config.d_ff);
        if let (NormPlace::Pre, Some(norm)) = (config.norm_place, &w.norm2) {
            let op = self.norm_forward(norm, a.middle, a.feed_forward_in, &a.norm2);
            sink.put(layer, "feed_forward.norm", self.each_row_norm(op))?;
        }
        let gate = self.gate(layer);
        let y = gate.map_or_else(|| self.matrix(a.hidden, f), |gate| gate.x);
        let input = a.pre_activation.map(|region| self.matrix(region, f));
        let activate = Activate { activation: config.activation, input };
        let op = LinearForward {
            activate: gate.is_none().then_some(activate),
            ..self.linear_forward(self.stream(a.feed_forward_in), &w.up, y, [c, config.d_up()])
        };
        sink.put(layer, "feed_forward.up", self.each_row(op))?;
        match gate {
            Some(gate) => sink.put(layer, "feed_forward.gate", self.each_row_gate(gate)),
            None => Flow::Continue(()),
        }
    }

    /// From there to the sum.
    pub(super) fn feed_forward_down(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (c, f) = (config.d_model, config.d_ff);
        let op = LinearForward {
            dropout: self.dropout_at(site::feed_forward_out(layer), &[self.time, c]),
            residual: self.residual(a.middle),
            ..self.linear_forward(self.matrix(a.hidden, f), &w.down, self.stream(a.feed_forward_sum), [f, c])
        };
        sink.put(layer, "feed_forward.down", self.each_row(op))
    }
}

#[cfg(feature = "train")]
impl Pass<'_> {
    pub(super) fn feed_forward_backward(
        &self,
        sink: &mut Sink<'_>,
        layer: usize,
        gradients: &Gradients<'_>,
    ) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (c, f) = (config.d_model, config.d_ff);
        let (g, buffers) = (&gradients.parameters.blocks[layer], gradients.buffers);
        let norms = w.norm2.as_ref().zip(g.norm2.as_ref());
        let (d_stream, d_hidden) = (self.stream(buffers.d_stream), self.matrix(buffers.d_hidden, f));
        let gate = self.gate(layer).zip(buffers.d_gate).map(
            |(GateForward { x, activation, rows, width, .. }, d_x)| GateBackward {
                x,
                d_y: d_hidden,
                d_x: self.matrix(d_x, config.d_up()),
                activation,
                rows,
                width,
            },
        );
        let entry = Entry {
            parts: ["feed_forward.norm", "feed_forward.up"],
            norms,
            stats: &a.norm2,
            input: a.middle,
            normed: a.feed_forward_in,
            linear: (&w.up, &g.up),
            d_y: gate.map_or(d_hidden, |gate| gate.d_x),
            d_out: config.d_up(),
            below: gradients.below_feed_forward(layer),
        };
        let wanted = entry.is_wanted(config.norm_place).then_some(d_hidden);
        if let (NormPlace::Post, Some(norm)) = (config.norm_place, norms) {
            sink.put(
                layer,
                "feed_forward.norm",
                self.norm_backward(norm, a.feed_forward_sum, &a.norm2, gradients),
            )?;
        }
        let input = a.pre_activation.map(|region| self.matrix(region, f));
        let activate = Activate { activation: config.activation, input };
        let op = LinearBackward {
            dropout: self.dropout_at(site::feed_forward_out(layer), &[self.time, c]),
            activate: gate.is_none().then_some(activate),
            ..self.linear_backward(self.matrix(a.hidden, f), (&w.down, &g.down), (d_stream, wanted), [f, c])
        };
        self.put_linear_backward(sink, layer, "feed_forward.down", op)?;
        if wanted.is_none() {
            return Flow::Continue(());
        }
        if let Some(gate) = gate {
            sink.put(layer, "feed_forward.gate", gate)?;
        }
        self.entry_backward(sink, layer, &entry, gradients)
    }
}
