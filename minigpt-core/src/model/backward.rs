//! The backward pass: the forward pass's ops in reverse.
//!
//! One buffer, `d_stream`, carries the gradient of the residual stream from the last block to the first. A residual
//! connection passes it on unchanged, so each sub-layer only adds its own part to it; without residual connections
//! the sub-layer's part takes its place.

use super::forward::site;
use super::{Model, Pass, Workspace};
use crate::backend::{Backend, Span};
use crate::config::Norm;
use crate::op::{Activate, AttentionBackward, EmbeddingBackward, LayerNormBackward, LinearBackward, Rotary};
use crate::plan::{Affine, BackwardActivations, NormActivations, Parameters, Region};

/// Adds the gradient of the summed loss to `grads`. The forward pass has run, and `logits` holds its gradient.
pub(crate) fn backward<B: Backend>(
    model: &mut Model<B>,
    grads: &Parameters<Span>,
    workspace: &Workspace,
    buffers: &BackwardActivations,
    pass: &Pass,
) -> Result<(), B::Error> {
    let Model { backend, config, spans: weights, position_table, .. } = model;
    let (c, f, v) = (config.d_model, config.d_ff, config.vocab_size);
    let (heads, d_head, scale) = (config.heads, config.d_head(), config.score_scale());
    let (batch, time, rows) = (pass.batch, pass.time, pass.rows());
    let activations = &workspace.plan.activations;
    let rotary_table = position_table.filter(|_| config.position == crate::Position::Rotary);
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

    let last = activations.blocks.last().map_or(activations.head_in, |block| block.output);
    let (head_weight, d_head_weight) = (*weights.head_weight(), *grads.head_weight());
    backend.run(
        &LinearBackward {
            x: stream(activations.head_in),
            weight: head_weight,
            d_y: workspace.activation(activations.logits, rows * v),
            dropout: None,
            d_x: Some(if weights.final_norm.is_some() { d_scratch } else { d_stream }),
            accumulate: false,
            activate: None,
            d_weight: d_head_weight,
            d_bias: None,
            rows,
            d_in: c,
            d_out: v,
        }
        .into(),
    )?;
    if let (Some(w), Some(g)) = (&weights.final_norm, &grads.final_norm) {
        let op = LayerNormBackward { d_y: d_scratch, ..norm(w, g, last, &activations.final_norm) };
        backend.run(&op.into())?;
    }

    let blocks = weights.blocks.iter().zip(&grads.blocks).zip(&activations.blocks).enumerate().rev();
    for (layer, ((w, g), a)) in blocks {
        if let (Norm::Post, Some(w), Some(g)) = (config.norm, &w.norm2, &g.norm2) {
            backend.run(&norm(w, g, a.feed_forward_sum, &a.norm2).into())?;
        }
        let input = a.pre_activation.map(|region| workspace.activation(region, rows * f));
        backend.run(
            &LinearBackward {
                x: workspace.activation(a.hidden, rows * f),
                weight: w.down.weight,
                d_y: d_stream,
                dropout: pass.dropout_at(site::feed_forward_out(layer)),
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
        backend.run(
            &LinearBackward {
                x: stream(a.feed_forward_in),
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
                backend.run(&op.into())?;
            }
            (Norm::Post, (Some(w), Some(g)), _) => {
                backend.run(&norm(w, g, a.attention_sum, &a.norm1).into())?;
            }
            _ => {}
        }
        backend.run(
            &LinearBackward {
                x: stream(a.attended),
                weight: w.attention_out.weight,
                d_y: d_stream,
                dropout: pass.dropout_at(site::attention_out(layer)),
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
        backend.run(
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
                dropout: pass.dropout_at(site::attention(layer)),
            }
            .into(),
        )?;
        if let Some(table) = rotary_table {
            let turn_back = Rotary { qkv: d_qkv, table, batch, time, heads, d_head, start: 0, inverse: true };
            backend.run(&turn_back.into())?;
        }
        backend.run(
            &LinearBackward {
                x: stream(a.attention_in),
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
            backend.run(&op.into())?;
        }
    }

    backend.run(
        &EmbeddingBackward {
            tokens: workspace.tokens(rows),
            d_out: d_stream,
            d_token_embedding: grads.token_embedding,
            d_position_embedding: grads.position_embedding,
            batch,
            time,
            d_model: c,
            vocab: v,
            dropout: pass.dropout_at(site::EMBEDDING),
        }
        .into(),
    )
}
