//! The forward pass.

use super::{Model, Pass, Workspace};
use crate::backend::{Backend, Span};
use crate::config::{GptConfig, Norm, Position};
use crate::op::{
    Activate, AttentionCached, AttentionForward, Dropout, EmbeddingForward, LayerNormForward, LinearForward,
    Rotary,
};
use crate::plan::{Affine, BlockActivations, BlockParameters, Logits, NormActivations, Parameters, Region};

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
    /// The dropout of an op whose result has `sequence` elements for each sequence; given as dimensions.
    pub(super) fn dropout_at(&self, site: u32, sequence: &[usize]) -> Option<Dropout> {
        // Wrapping: the masks repeat long before.
        let first = sequence.iter().fold(self.before as u64, |first, &dim| first.wrapping_mul(dim as u64));
        self.dropout.map(|dropout| Dropout { site, first, ..dropout })
    }

    /// How many rows the residual stream has.
    pub(super) fn rows(&self) -> usize {
        self.batch * self.time
    }
}

/// A pass under way: what its ops are made from.
pub(super) struct Run<'r, B> {
    pub(super) backend: &'r mut B,
    pub(super) config: &'r GptConfig,
    pub(super) weights: &'r Parameters<Span>,
    pub(super) workspace: &'r Workspace,
    pub(super) pass: &'r Pass,
    position_table: Option<Span>,
}

impl<'r, B: Backend> Run<'r, B> {
    pub(super) fn new(model: &'r mut Model<B>, workspace: &'r Workspace, pass: &'r Pass) -> Self {
        let Model { backend, config, spans: weights, position_table, .. } = model;
        Run { backend, config, weights, workspace, pass, position_table: *position_table }
    }

    pub(super) fn rotary_table(&self) -> Option<Span> {
        self.position_table.filter(|_| self.config.position == Position::Rotary)
    }

    /// As many rows of `region`, each `width` wide, as the pass has.
    pub(super) fn matrix(&self, region: Region, width: usize) -> Span {
        self.workspace.activation(region, self.pass.rows() * width)
    }

    /// (B, T, C).
    pub(super) fn stream(&self, region: Region) -> Span {
        self.matrix(region, self.config.d_model)
    }

    fn residual(&self, region: Region) -> Option<Span> {
        self.config.residual.then(|| self.stream(region))
    }

    /// The parameters and the places of block number `layer`, if there are that many.
    pub(super) fn block(&self, layer: usize) -> Option<(&'r BlockParameters<Span>, &'r BlockActivations)> {
        self.weights.blocks.get(layer).zip(self.workspace.plan.activations.blocks.get(layer))
    }

    /// Where the last block leaves its result, or the embedding if there is no block.
    pub(super) fn last(&self) -> Region {
        let activations = &self.workspace.plan.activations;
        activations.blocks.last().map_or(activations.head_in, |block| block.output)
    }

    pub(super) fn norm_op(
        &self,
        affine: &Affine<Span>,
        x: Region,
        y: Region,
        stats: &NormActivations,
    ) -> LayerNormForward {
        LayerNormForward {
            x: self.stream(x),
            weight: affine.weight,
            bias: affine.bias,
            y: self.stream(y),
            mean: self.matrix(stats.mean, 1),
            rstd: self.matrix(stats.rstd, 1),
            rows: self.pass.rows(),
            width: self.config.d_model,
            eps: self.config.norm_eps,
        }
    }

    fn embed(&mut self) -> Result<(), B::Error> {
        let activations = &self.workspace.plan.activations;
        let first = activations.blocks.first().map_or(activations.head_in, |block| block.input);
        let fixed = self.position_table.filter(|_| self.rotary_table().is_none());
        let op = EmbeddingForward {
            tokens: self.workspace.tokens(self.pass.rows()),
            token_embedding: self.weights.token_embedding,
            position_embedding: self.weights.position_embedding.or(fixed),
            out: self.stream(first),
            batch: self.pass.batch,
            time: self.pass.time,
            d_model: self.config.d_model,
            vocab: self.config.vocab_size,
            start: self.pass.start,
            dropout: self.pass.dropout_at(site::EMBEDDING, &[self.pass.time, self.config.d_model]),
        };
        self.backend.run(&op.into())
    }

    /// The attention sub-layer of a block, and with norms last its norm.
    pub(super) fn attention(&mut self, layer: usize) -> Result<(), B::Error> {
        let Some((w, a)) = self.block(layer) else { return Ok(()) };
        let (c, rows) = (self.config.d_model, self.pass.rows());
        let (heads, d_head, scale) = (self.config.heads, self.config.d_head(), self.config.score_scale());
        let Pass { batch, time, start, .. } = *self.pass;
        if let (Norm::Pre, Some(affine)) = (self.config.norm, &w.norm1) {
            let op = self.norm_op(affine, a.input, a.attention_in, &a.norm1);
            self.backend.run(&op.into())?;
        }
        let qkv = self.matrix(a.qkv, 3 * c);
        let op = LinearForward {
            x: self.stream(a.attention_in),
            weight: w.qkv.weight,
            bias: w.qkv.bias,
            activate: None,
            dropout: None,
            residual: None,
            y: qkv,
            rows,
            d_in: c,
            d_out: 3 * c,
        };
        self.backend.run(&op.into())?;
        if let Some(table) = self.rotary_table() {
            let op = Rotary { qkv, table, batch, time, heads, d_head, start, inverse: false };
            self.backend.run(&op.into())?;
        }
        let out = self.stream(a.attended);
        let plan = &self.workspace.plan;
        let op = match (self.workspace.cache, plan.caches.get(layer)) {
            (Some(buffer), Some(cache)) => {
                let capacity = cache.keys.len / (plan.batch * c);
                let used = batch * capacity * c;
                let keys = cache.keys.on(buffer, plan.elem).first(used);
                let values = cache.values.on(buffer, plan.elem).first(used);
                let past = start;
                AttentionCached { qkv, keys, values, out, past, capacity, batch, time, heads, d_head, scale }
                    .into()
            }
            _ => {
                let lse = self.matrix(a.lse, heads);
                let dropout = self.pass.dropout_at(site::attention(layer), &[heads, time, time]);
                AttentionForward { qkv, out, lse, batch, time, heads, d_head, scale, dropout }.into()
            }
        };
        self.backend.run(&op)?;
        let op = LinearForward {
            x: out,
            weight: w.attention_out.weight,
            bias: w.attention_out.bias,
            activate: None,
            dropout: self.pass.dropout_at(site::attention_out(layer), &[time, c]),
            residual: self.residual(a.input),
            y: self.stream(a.attention_sum),
            rows,
            d_in: c,
            d_out: c,
        };
        self.backend.run(&op.into())?;
        if let (Norm::Post, Some(affine)) = (self.config.norm, &w.norm1) {
            let op = self.norm_op(affine, a.attention_sum, a.middle, &a.norm1);
            self.backend.run(&op.into())?;
        }
        Ok(())
    }

    /// The feed-forward sub-layer of a block up to the activation's result, and with norms first its norm.
    pub(super) fn feed_forward_up(&mut self, layer: usize) -> Result<(), B::Error> {
        let Some((w, a)) = self.block(layer) else { return Ok(()) };
        let (c, f) = (self.config.d_model, self.config.d_ff);
        if let (Norm::Pre, Some(affine)) = (self.config.norm, &w.norm2) {
            let op = self.norm_op(affine, a.middle, a.feed_forward_in, &a.norm2);
            self.backend.run(&op.into())?;
        }
        let input = a.pre_activation.map(|region| self.matrix(region, f));
        let op = LinearForward {
            x: self.stream(a.feed_forward_in),
            weight: w.up.weight,
            bias: w.up.bias,
            activate: Some(Activate { activation: self.config.activation, input }),
            dropout: None,
            residual: None,
            y: self.matrix(a.hidden, f),
            rows: self.pass.rows(),
            d_in: c,
            d_out: f,
        };
        self.backend.run(&op.into())
    }

    /// The rest of the feed-forward sub-layer, its sum.
    pub(super) fn feed_forward_down(&mut self, layer: usize) -> Result<(), B::Error> {
        let Some((w, a)) = self.block(layer) else { return Ok(()) };
        let (c, f) = (self.config.d_model, self.config.d_ff);
        let op = LinearForward {
            x: self.matrix(a.hidden, f),
            weight: w.down.weight,
            bias: w.down.bias,
            activate: None,
            dropout: self.pass.dropout_at(site::feed_forward_out(layer), &[self.pass.time, c]),
            residual: self.residual(a.middle),
            y: self.stream(a.feed_forward_sum),
            rows: self.pass.rows(),
            d_in: f,
            d_out: c,
        };
        self.backend.run(&op.into())
    }

    /// All but the final norm and the head.
    fn blocks(&mut self) -> Result<(), B::Error> {
        self.embed()?;
        for (layer, w) in self.weights.blocks.iter().enumerate() {
            self.attention(layer)?;
            self.feed_forward_up(layer)?;
            self.feed_forward_down(layer)?;
            if let (Norm::Post, Some(affine), Some((_, a))) = (self.config.norm, &w.norm2, self.block(layer))
            {
                let op = self.norm_op(affine, a.feed_forward_sum, a.output, &a.norm2);
                self.backend.run(&op.into())?;
            }
        }
        Ok(())
    }

    /// The final norm, if there is one, of `rows` rows from row `first` on.
    pub(super) fn final_norm(&mut self, first: usize, rows: usize) -> Result<(), B::Error> {
        let Some(affine) = &self.weights.final_norm else { return Ok(()) };
        let activations = &self.workspace.plan.activations;
        let whole = self.norm_op(affine, self.last(), activations.head_in, &activations.final_norm);
        let part = |span: Span, width: usize| span.slice(first * width, rows * width);
        let op = LayerNormForward {
            x: part(whole.x, whole.width),
            y: part(whole.y, whole.width),
            mean: part(whole.mean, 1),
            rstd: part(whole.rstd, 1),
            rows,
            ..whole
        };
        self.backend.run(&op.into())
    }

    /// The logits, written to `logits`, of `rows` rows from row `first` on.
    pub(super) fn head(&mut self, first: usize, rows: usize, logits: Span) -> Result<(), B::Error> {
        let (c, v) = (self.config.d_model, self.config.vocab_size);
        let op = LinearForward {
            x: self.stream(self.workspace.plan.activations.head_in).slice(first * c, rows * c),
            weight: *self.weights.head_weight(),
            bias: None,
            activate: None,
            dropout: None,
            residual: None,
            y: logits,
            rows,
            d_in: c,
            d_out: v,
        };
        self.backend.run(&op.into())
    }
}

/// Runs the tokens in `workspace` through the model.
pub(crate) fn forward<B: Backend>(
    model: &mut Model<B>,
    workspace: &Workspace,
    pass: &Pass,
) -> Result<(), B::Error> {
    let mut run = Run::new(model, workspace, pass);
    run.blocks()?;
    let Some(wanted) = pass.logits else { return Ok(()) };
    // Only the rows whose logits are wanted go through the final norm and the head.
    let (pieces, rows, skip) = match wanted {
        Logits::All => (1, pass.rows(), 0),
        Logits::Last => (pass.batch, 1, pass.time - 1),
    };
    let v = run.config.vocab_size;
    let logits = workspace.activation(workspace.plan.activations.logits, pieces * rows * v);
    for piece in 0..pieces {
        let first = piece * pass.time + skip;
        run.final_norm(first, rows)?;
        run.head(first, rows, logits.slice(piece * rows * v, rows * v))?;
    }
    Ok(())
}
