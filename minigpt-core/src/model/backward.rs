//! The backward pass: the forward pass's ops in reverse.
//!
//! One buffer, `d_stream`, carries the gradient of the residual stream from the last block to the first. A residual
//! connection passes it on unchanged, so each sub-layer only adds its own part to it; without residual connections
//! the sub-layer's part takes its place.

use super::forward::{Run, site};
use super::loss::Gradients;
use super::{Model, Pass, Workspace};
use crate::backend::{Backend, Span};
use crate::config::Norm;
use crate::op::{
    Activate, ActivationForward, AttentionBackward, EmbeddingBackward, LayerNormBackward, LinearBackward,
    Rotary,
};
use crate::plan::{Affine, NormActivations, Recompute, Region};

impl<B: Backend> Run<'_, B> {
    /// The result of a norm, which was kept at `kept` or is computed again.
    fn normed(
        &mut self,
        affine: &Affine<Span>,
        x: Region,
        kept: Region,
        stats: &NormActivations,
        again: Option<Region>,
    ) -> Result<Span, B::Error> {
        if let Some(again) = again {
            let op = self.norm_op(affine, x, again, stats);
            self.backend.run(&op.into())?;
        }
        Ok(self.stream(again.unwrap_or(kept)))
    }

    /// Makes what the backward pass of a block reads and the forward pass did not keep.
    fn recompute(&mut self, layer: usize) -> Result<(), B::Error> {
        let plan = &self.workspace.plan;
        let Some((_, a)) = self.block(layer) else { return Ok(()) };
        match plan.recompute {
            Recompute::Nothing => Ok(()),
            // What the last block did lies where it left it, but for what is cheap.
            Recompute::Blocks if layer + 1 < plan.config.layers => {
                self.attention(layer)?;
                self.feed_forward_up(layer)?;
                // The norm behind the sum reads the sum.
                if self.config.norm == Norm::Post { self.feed_forward_down(layer) } else { Ok(()) }
            }
            Recompute::Cheap | Recompute::Blocks => {
                let width = self.config.d_ff;
                let Some(x) = a.pre_activation.map(|region| self.matrix(region, width)) else {
                    return Ok(());
                };
                let (y, activation, rows) =
                    (self.matrix(a.hidden, width), self.config.activation, self.pass.rows());
                self.backend.run(&ActivationForward { x, y, activation, rows, width }.into())
            }
        }
    }
}

/// Adds the gradient of the summed loss to that of the parameters. The forward pass and [`loss`](super::loss) have run.
pub(crate) fn backward<B: Backend>(
    model: &mut Model<B>,
    workspace: &Workspace,
    pass: &Pass,
    gradients: Gradients<'_>,
) -> Result<(), B::Error> {
    let mut run = Run::new(model, workspace, pass);
    let Gradients { parameters: grads, buffers } = gradients;
    let (config, weights, rows) = (run.config, run.weights, pass.rows());
    let (c, f) = (config.d_model, config.d_ff);
    let (heads, d_head, scale) = (config.heads, config.d_head(), config.score_scale());
    let (batch, time) = (pass.batch, pass.time);
    let activations = &workspace.plan.activations;
    let stream = |region: Region| workspace.activation(region, rows * c);
    let (d_stream, d_scratch) = (stream(buffers.d_stream), stream(buffers.d_scratch));
    let d_qkv = workspace.activation(buffers.d_qkv, rows * 3 * c);
    let d_hidden = workspace.activation(buffers.d_hidden, rows * f);
    let norm = |w: &Affine<Span>, g: &Affine<Span>, x: Region, stats: &NormActivations| LayerNormBackward {
        x: stream(x),
        weight: w.weight,
        mean: workspace.activation(stats.mean, rows),
        rstd: workspace.activation(stats.rstd, rows),
        d_y: d_stream,
        d_x: d_stream,
        accumulate: false,
        d_weight: g.weight,
        d_bias: g.bias,
        rows,
        width: c,
    };
    // The gradient of a sub-layer's input: into the norm's backward pass, or straight to the stream.
    let norms_first = config.norm == Norm::Pre;
    let (d_sublayer_in, accumulate) =
        if norms_first { (d_scratch, false) } else { (d_stream, config.residual) };

    if let (Some(w), Some(g)) = (&weights.final_norm, &grads.final_norm) {
        let op = LayerNormBackward { d_y: d_scratch, ..norm(w, g, run.last(), &activations.final_norm) };
        run.backend.run(&op.into())?;
    }

    let blocks = weights.blocks.iter().zip(&grads.blocks).zip(&activations.blocks).enumerate().rev();
    for (layer, ((w, g), a)) in blocks {
        run.recompute(layer)?;
        if let (Norm::Post, Some(w), Some(g)) = (config.norm, &w.norm2, &g.norm2) {
            run.backend.run(&norm(w, g, a.feed_forward_sum, &a.norm2).into())?;
        }
        let input = a.pre_activation.map(|region| workspace.activation(region, rows * f));
        run.backend.run(
            &LinearBackward {
                x: workspace.activation(a.hidden, rows * f),
                weight: w.down.weight,
                d_y: d_stream,
                dropout: pass.dropout_at(site::feed_forward_out(layer), &[pass.time, c]),
                d_x: Some(d_hidden),
                accumulate: false,
                activate: Some(Activate { activation: config.activation, input }),
                d_weight: g.down.weight,
                d_bias: g.down.bias,
                rows,
                d_in: f,
                d_out: c,
            }
            .into(),
        )?;
        let x = match (config.norm, &w.norm2) {
            (Norm::Pre, Some(w)) => run.normed(w, a.middle, a.feed_forward_in, &a.norm2, buffers.normed)?,
            _ => stream(a.feed_forward_in),
        };
        run.backend.run(
            &LinearBackward {
                x,
                weight: w.up.weight,
                d_y: d_hidden,
                dropout: None,
                d_x: Some(d_sublayer_in),
                accumulate,
                activate: None,
                d_weight: g.up.weight,
                d_bias: g.up.bias,
                rows,
                d_in: c,
                d_out: f,
            }
            .into(),
        )?;
        match (config.norm, (&w.norm1, &g.norm1), (&w.norm2, &g.norm2)) {
            (Norm::Pre, _, (Some(w), Some(g))) => {
                let op = norm(w, g, a.middle, &a.norm2);
                let op = LayerNormBackward { d_y: d_scratch, accumulate: config.residual, ..op };
                run.backend.run(&op.into())?;
            }
            (Norm::Post, (Some(w), Some(g)), _) => {
                run.backend.run(&norm(w, g, a.attention_sum, &a.norm1).into())?;
            }
            _ => {}
        }
        run.backend.run(
            &LinearBackward {
                x: stream(a.attended),
                weight: w.attention_out.weight,
                d_y: d_stream,
                dropout: pass.dropout_at(site::attention_out(layer), &[pass.time, c]),
                d_x: Some(d_scratch),
                accumulate: false,
                activate: None,
                d_weight: g.attention_out.weight,
                d_bias: g.attention_out.bias,
                rows,
                d_in: c,
                d_out: c,
            }
            .into(),
        )?;
        run.backend.run(
            &AttentionBackward {
                qkv: workspace.activation(a.qkv, rows * 3 * c),
                out: stream(a.attended),
                lse: workspace.activation(a.lse, rows * heads),
                d_out: d_scratch,
                d_qkv,
                batch,
                time,
                heads,
                d_head,
                scale,
                dropout: pass.dropout_at(site::attention(layer), &[heads, time, time]),
            }
            .into(),
        )?;
        if let Some(table) = run.rotary_table() {
            let turn_back = Rotary { qkv: d_qkv, table, batch, time, heads, d_head, start: 0, inverse: true };
            run.backend.run(&turn_back.into())?;
        }
        let x = match (config.norm, &w.norm1) {
            (Norm::Pre, Some(w)) => run.normed(w, a.input, a.attention_in, &a.norm1, buffers.normed)?,
            _ => stream(a.attention_in),
        };
        run.backend.run(
            &LinearBackward {
                x,
                weight: w.qkv.weight,
                d_y: d_qkv,
                dropout: None,
                d_x: Some(d_sublayer_in),
                accumulate,
                activate: None,
                d_weight: g.qkv.weight,
                d_bias: g.qkv.bias,
                rows,
                d_in: c,
                d_out: 3 * c,
            }
            .into(),
        )?;
        if let (Norm::Pre, Some(w), Some(g)) = (config.norm, &w.norm1, &g.norm1) {
            let op = norm(w, g, a.input, &a.norm1);
            let op = LayerNormBackward { d_y: d_scratch, accumulate: config.residual, ..op };
            run.backend.run(&op.into())?;
        }
    }

    run.backend.run(
        &EmbeddingBackward {
            tokens: workspace.tokens(rows),
            d_out: d_stream,
            d_token_embedding: grads.token_embedding,
            d_position_embedding: grads.position_embedding,
            batch,
            time,
            d_model: c,
            vocab: config.vocab_size,
            dropout: pass.dropout_at(site::EMBEDDING, &[time, c]),
        }
        .into(),
    )
}
