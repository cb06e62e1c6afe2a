//! The forward pass.

use super::{Model, Pass, Workspace};
use crate::backend::{Backend, Span};
use crate::config::Norm;
use crate::op::{
    Activate, AttentionCached, AttentionForward, Dropout, EmbeddingForward, LayerNormForward, LinearForward,
    Rotary,
};
use crate::plan::{Affine, Logits, NormActivations, Region};

/// Where dropout acts: once on the embeddings, then three times in each block.
pub(super) mod site {
    pub(crate) const EMBEDDING: u32 = 0;
    pub(crate) const fn attention(layer: usize) -> u32 {
        3 * layer as u32 + 1
    }
    pub(crate) const fn attention_out(layer: usize) -> u32 {
        3 * layer as u32 + 2
    }
    pub(crate) const fn feed_forward_out(layer: usize) -> u32 {
        3 * layer as u32 + 3
    }
}

impl Pass {
    pub(super) fn dropout_at(&self, site: u32) -> Option<Dropout> {
        self.dropout.map(|dropout| Dropout { site, ..dropout })
    }

    /// How many rows the residual stream has.
    pub(super) fn rows(&self) -> usize {
        self.batch * self.time
    }
}

/// Runs the tokens in `workspace` through the model.
pub(crate) fn forward<B: Backend>(
    model: &mut Model<B>,
    workspace: &Workspace,
    pass: &Pass,
) -> Result<(), B::Error> {
    let Model { backend, config, spans: weights, position_table, .. } = model;
    let (c, f, v) = (config.d_model, config.d_ff, config.vocab_size);
    let (heads, d_head, scale) = (config.heads, config.d_head(), config.score_scale());
    let (batch, time, rows) = (pass.batch, pass.time, pass.rows());
    let plan = &workspace.plan;
    let rotary_table = position_table.filter(|_| config.position == crate::Position::Rotary);
    let stream = |region: Region| workspace.activation(region, rows * c);
    let residual = |region: Region| config.residual.then(|| stream(region));
    let norm = |affine: &Affine<Span>, x: Region, y: Region, stats: &NormActivations| LayerNormForward {
        x: stream(x),
        weight: affine.weight,
        bias: affine.bias,
        y: stream(y),
        mean: workspace.activation(stats.mean, rows),
        rstd: workspace.activation(stats.rstd, rows),
        rows,
        width: c,
        eps: config.norm_eps,
    };

    let first = plan.activations.blocks.first().map_or(plan.activations.head_in, |block| block.input);
    backend.run(
        &EmbeddingForward {
            tokens: workspace.tokens(rows),
            token_embedding: weights.token_embedding,
            position_embedding: weights
                .position_embedding
                .or(position_table.filter(|_| rotary_table.is_none())),
            out: stream(first),
            batch,
            time,
            d_model: c,
            vocab: v,
            start: pass.start,
            dropout: pass.dropout_at(site::EMBEDDING),
        }
        .into(),
    )?;

    for (layer, (w, a)) in weights.blocks.iter().zip(&plan.activations.blocks).enumerate() {
        if let (Norm::Pre, Some(affine)) = (config.norm, &w.norm1) {
            backend.run(&norm(affine, a.input, a.attention_in, &a.norm1).into())?;
        }
        let qkv = workspace.activation(a.qkv, rows * 3 * c);
        backend.run(
            &LinearForward {
                x: stream(a.attention_in),
                weight: w.qkv.weight,
                bias: w.qkv.bias,
                activate: None,
                dropout: None,
                residual: None,
                y: qkv,
                rows,
                d_in: c,
                d_out: 3 * c,
            }
            .into(),
        )?;
        if let Some(table) = rotary_table {
            let start = pass.start;
            backend.run(&Rotary { qkv, table, batch, time, heads, d_head, start, inverse: false }.into())?;
        }
        let out = stream(a.attended);
        match (workspace.cache, plan.caches.get(layer)) {
            (Some(buffer), Some(cache)) => {
                let capacity = cache.keys.len / (plan.batch * c);
                let used = batch * capacity * c;
                backend.run(
                    &AttentionCached {
                        qkv,
                        keys: cache.keys.on(buffer, plan.elem).first(used),
                        values: cache.values.on(buffer, plan.elem).first(used),
                        out,
                        past: pass.start,
                        capacity,
                        batch,
                        time,
                        heads,
                        d_head,
                        scale,
                    }
                    .into(),
                )?;
            }
            _ => {
                let lse = workspace.activation(a.lse, rows * heads);
                let dropout = pass.dropout_at(site::attention(layer));
                backend.run(
                    &AttentionForward { qkv, out, lse, batch, time, heads, d_head, scale, dropout }.into(),
                )?;
            }
        }
        backend.run(
            &LinearForward {
                x: out,
                weight: w.attention_out.weight,
                bias: w.attention_out.bias,
                activate: None,
                dropout: pass.dropout_at(site::attention_out(layer)),
                residual: residual(a.input),
                y: stream(a.attention_sum),
                rows,
                d_in: c,
                d_out: c,
            }
            .into(),
        )?;
        match (config.norm, &w.norm1, &w.norm2) {
            (Norm::Pre, _, Some(affine)) => {
                backend.run(&norm(affine, a.middle, a.feed_forward_in, &a.norm2).into())?;
            }
            (Norm::Post, Some(affine), _) => {
                backend.run(&norm(affine, a.attention_sum, a.middle, &a.norm1).into())?;
            }
            _ => {}
        }
        let hidden = workspace.activation(a.hidden, rows * f);
        let input = a.pre_activation.map(|region| workspace.activation(region, rows * f));
        backend.run(
            &LinearForward {
                x: stream(a.feed_forward_in),
                weight: w.up.weight,
                bias: w.up.bias,
                activate: Some(Activate { activation: config.activation, input }),
                dropout: None,
                residual: None,
                y: hidden,
                rows,
                d_in: c,
                d_out: f,
            }
            .into(),
        )?;
        backend.run(
            &LinearForward {
                x: hidden,
                weight: w.down.weight,
                bias: w.down.bias,
                activate: None,
                dropout: pass.dropout_at(site::feed_forward_out(layer)),
                residual: residual(a.middle),
                y: stream(a.feed_forward_sum),
                rows,
                d_in: f,
                d_out: c,
            }
            .into(),
        )?;
        if let (Norm::Post, Some(affine)) = (config.norm, &w.norm2) {
            backend.run(&norm(affine, a.feed_forward_sum, a.output, &a.norm2).into())?;
        }
    }

    let Some(wanted) = pass.logits else { return Ok(()) };
    // Only the rows whose logits are wanted go through the final norm and the head.
    let (pieces, rows_each, skip) = match wanted {
        Logits::All => (1, rows, 0),
        Logits::Last => (batch, 1, time - 1),
    };
    let last = plan.activations.blocks.last().map_or(first, |block| block.output);
    let logits = workspace.activation(plan.activations.logits, pieces * rows_each * v);
    for piece in 0..pieces {
        let row = piece * time + skip;
        let part = |span: Span, width: usize| span.slice(row * width, rows_each * width);
        if let Some(affine) = &weights.final_norm {
            let whole = norm(affine, last, plan.activations.head_in, &plan.activations.final_norm);
            backend.run(
                &LayerNormForward {
                    x: part(whole.x, c),
                    y: part(whole.y, c),
                    mean: part(whole.mean, 1),
                    rstd: part(whole.rstd, 1),
                    rows: rows_each,
                    ..whole
                }
                .into(),
            )?;
        }
        backend.run(
            &LinearForward {
                x: part(stream(plan.activations.head_in), c),
                weight: *weights.head_weight(),
                bias: None,
                activate: None,
                dropout: None,
                residual: None,
                y: logits.slice(piece * rows_each * v, rows_each * v),
                rows: rows_each,
                d_in: c,
                d_out: v,
            }
            .into(),
        )?;
    }
    Ok(())
}
