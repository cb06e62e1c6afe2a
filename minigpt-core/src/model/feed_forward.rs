//! The feed-forward sub-layer of a block:
//!
//! ```text
//! norms first:   x -> norm -> up -> activation -> down -> (+ x)
//! norms last:    x ->         up -> activation -> down -> (+ x) -> norm
//! ```

#[cfg(feature = "train")]
use super::pass::Gradients;
use super::pass::{Flow, Pass, site};
use crate::config::Norm;
use crate::op::{Activate, LinearForward, Sink};
#[cfg(feature = "train")]
use crate::op::{LayerNormBackward, LinearBackward};

impl Pass<'_> {
    pub(super) fn feed_forward_forward(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        self.feed_forward_up(sink, layer)?;
        self.feed_forward_down(sink, layer)?;
        let (w, a) = (self.block(layer), self.activations(layer));
        if let (Norm::Post, Some(norm)) = (self.config().norm, &w.norm2) {
            sink.put(
                layer,
                "feed_forward.norm",
                self.norm_forward(norm, a.feed_forward_sum, a.output, &a.norm2),
            )?;
        }
        Flow::Continue(())
    }

    /// Up to the activation's result, and with norms first the norm before it.
    pub(super) fn feed_forward_up(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (c, f) = (config.d_model, config.d_ff);
        if let (Norm::Pre, Some(norm)) = (config.norm, &w.norm2) {
            sink.put(
                layer,
                "feed_forward.norm",
                self.norm_forward(norm, a.middle, a.feed_forward_in, &a.norm2),
            )?;
        }
        let input = a.pre_activation.map(|region| self.matrix(region, f));
        let op = LinearForward {
            activate: Some(Activate { activation: config.activation, input }),
            ..self.linear_forward(self.stream(a.feed_forward_in), &w.up, self.matrix(a.hidden, f), [c, f])
        };
        sink.put(layer, "feed_forward.up", op)
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
        sink.put(layer, "feed_forward.down", op)
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
        if let (Norm::Post, Some(norm)) = (config.norm, norms) {
            sink.put(
                layer,
                "feed_forward.norm",
                self.norm_backward(norm, a.feed_forward_sum, &a.norm2, gradients),
            )?;
        }
        let input = a.pre_activation.map(|region| self.matrix(region, f));
        let op = LinearBackward {
            dropout: self.dropout_at(site::feed_forward_out(layer), &[self.time, c]),
            activate: Some(Activate { activation: config.activation, input }),
            ..self.linear_backward(self.matrix(a.hidden, f), (&w.down, &g.down), (d_stream, d_hidden), [f, c])
        };
        sink.put(layer, "feed_forward.down", op)?;
        let x = match (config.norm, norms, buffers.normed) {
            (Norm::Pre, Some((norm, _)), Some(again)) => {
                sink.put(layer, "feed_forward.norm", self.norm_forward(norm, a.middle, again, &a.norm2))?;
                again
            }
            _ => a.feed_forward_in,
        };
        let (d_x, accumulate) = self.d_sublayer_in(gradients);
        let op = self.linear_backward(self.stream(x), (&w.up, &g.up), (d_hidden, d_x), [c, f]);
        sink.put(layer, "feed_forward.up", LinearBackward { accumulate, ..op })?;
        if let (Norm::Pre, Some(norm)) = (config.norm, norms) {
            let op = self.norm_backward(norm, a.middle, &a.norm2, gradients);
            let op = LayerNormBackward { d_y: d_x, accumulate: config.residual, ..op };
            sink.put(layer, "feed_forward.norm", op)?;
        }
        Flow::Continue(())
    }
}
