//! A pass: one run through the model, told as the list of its ops.
//!
//! Nothing is computed here and nothing allocated: each method puts its ops into a [`Sink`]. The files beside this one hold
//! the parts of a model, each with its forward and its backward pass: [`embedding`](super::embedding),
//! [`attention`](super::attention), [`feed_forward`](super::feed_forward) and [`head`](super::head).

#[cfg(feature = "train")]
use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::config::GptConfig;
#[cfg(feature = "train")]
use crate::config::{NormPlace, Recompute};
use crate::memory::{Buffer, Dtype, Span, Strided};
#[cfg(feature = "train")]
use crate::op::{ActivationForward, LinearBackward, NormBackward};
use crate::op::{
    Dropout, GateForward, GateRows, LinearForward, LinearRows, NormForward, NormRows, Normalize, Op, Sink,
};
#[cfg(feature = "train")]
use crate::plan::BackwardActivations;
use crate::plan::{
    Affine, BlockActivations, BlockParameters, LiveRows, NormActivations, Parameters, Plan, Purpose, Region,
};

/// Goes on while the sink takes more.
pub(crate) type Flow = ControlFlow<()>;

/// Where a model's numbers lie.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) parameters: Parameters<Span>,
    /// Sinusoidal (T, C) or rotary (T, D), if the config has one.
    pub(crate) position_table: Option<Span>,
}

impl Weights {
    /// Those of a plan, in memory that does not exist yet: to see what a pass takes.
    pub(crate) fn planned(plan: &Plan) -> Self {
        Weights::masters(plan).copied(plan, Buffers::COPIES)
    }

    /// The same, as they are trained.
    pub(crate) fn masters(plan: &Plan) -> Self {
        let parameters = plan.parameters.map(|tensor| tensor.region.on(Buffers::PARAMETERS, plan.elem));
        let position_table = plan.position_table.map(|region| region.on(Buffers::CONSTANTS, plan.elem));
        Weights { parameters, position_table }
    }

    /// What a plan has copies of, and where they go.
    #[cfg(feature = "train")]
    pub(crate) fn copies(&self, plan: &Plan, copies: Buffer) -> Vec<[Span; 2]> {
        let copied = self.copied(plan, copies).parameters;
        let all = self.parameters.list().into_iter().zip(copied.list());
        all.filter(|(own, copy)| own != copy).map(|(own, copy)| [*own, *copy]).collect()
    }

    /// The same, with the copies of a plan in the place of what they are of.
    pub(crate) fn copied(&self, plan: &Plan, copies: Buffer) -> Self {
        let all = plan.copies.list();
        let mut regions = all.into_iter();
        let parameters = self.parameters.map(|own| match regions.next() {
            Some(Some(region)) => region.on(copies, Dtype::Bf16),
            _ => *own,
        });
        Weights { parameters, position_table: self.position_table }
    }
}

/// The buffers in which a plan lies, besides the weights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffers {
    pub(crate) activations: Buffer,
    /// If the plan has one.
    pub(crate) cache: Option<Buffer>,
    pub(crate) state: Buffer,
}

impl Buffers {
    // These stand for memory that does not exist yet: no backend hands out such numbers.
    const PARAMETERS: Buffer = Buffer(u64::MAX);
    const CONSTANTS: Buffer = Buffer(u64::MAX - 1);
    pub(crate) const COPIES: Buffer = Buffer(u64::MAX - 7);
    /// Parameters, gradients, and what optimizers keep.
    #[cfg(feature = "train")]
    pub(crate) const TRAINED: [Buffer; 3] = [Buffers::PARAMETERS, Buffer(u64::MAX - 5), Buffer(u64::MAX - 6)];

    /// Those of a plan in memory that does not exist yet.
    pub(crate) fn planned(plan: &Plan) -> Self {
        let cache = (plan.bytes.cache > 0).then_some(Buffer(u64::MAX - 3));
        Buffers { activations: Buffer(u64::MAX - 2), cache, state: Buffer(u64::MAX - 4) }
    }
}

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

/// One run through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass<'p> {
    pub(crate) plan: &'p Plan,
    pub(crate) weights: &'p Weights,
    pub(crate) buffers: Buffers,
    /// B; at most the plan's.
    pub(crate) batch: usize,
    /// T; at most the plan's. In decoding how many rows there are, live or not.
    pub(crate) time: usize,
    /// How many of the plan's sequences come before the first of this pass: where tokens and targets begin, and dropout
    /// masks behind `first`.
    pub(crate) before: usize,
    /// The number of the plan's first sequence among those of all ranks.
    pub(crate) first: u64,
    /// Whether elements drop out.
    pub(crate) dropout: bool,
    /// Whether ops of the same sizes are told once: enough to see what the pass takes, however long it is.
    #[cfg(feature = "train")]
    pub(crate) sizes_only: bool,
}

/// How a sub-layer begins: with a linear layer, and with norms first with the norm before it.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The names of the norm and of the layer.
    pub(super) parts: [&'static str; 2],
    /// The norm's parameters and their gradients.
    pub(super) norms: Option<(&'a Affine<Span>, &'a Affine<Option<Span>>)>,
    pub(super) stats: &'a NormActivations,
    /// What the norm reads: (B, T, C).
    pub(super) input: Region,
    /// What the layer read, if it was kept: (B, T, C).
    pub(super) normed: Region,
    /// The layer's parameters and their gradients.
    pub(super) linear: (&'a Affine<Span>, &'a Affine<Option<Span>>),
    /// The gradient of the layer's result: (B, T, `d_out`).
    pub(super) d_y: Span,
    pub(super) d_out: usize,
    /// Whether anything before it is trained, and so needs the gradient of its input.
    pub(super) below: bool,
}

#[cfg(feature = "train")]
impl Entry<'_> {
    /// The norm before the layer, if norms come first, and something needs its gradient.
    fn norm(&self, place: NormPlace) -> Option<(&Affine<Span>, &Affine<Option<Span>>)> {
        self.norms.filter(|(_, g)| place == NormPlace::Pre && (self.below || is_trained(g)))
    }

    /// Whether anything needs the gradient of the layer's result.
    pub(super) fn is_wanted(&self, place: NormPlace) -> bool {
        self.below || is_trained(self.linear.1) || self.norm(place).is_some()
    }
}

/// Whether its weight or its bias is trained.
#[cfg(feature = "train")]
pub(super) fn is_trained(gradients: &Affine<Option<Span>>) -> bool {
    gradients.weight.is_some() || gradients.bias.flatten().is_some()
}

/// Where gradients go.
#[cfg(feature = "train")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gradients<'g> {
    /// Of the parameters that are trained; added to.
    pub(crate) parameters: &'g Parameters<Option<Span>>,
    /// Of activations.
    pub(crate) buffers: &'g BackwardActivations,
    /// Of the given vectors, if the model has a prefix: (sequences, P, C), added to.
    pub(crate) d_prefix: Option<Span>,
}

#[cfg(feature = "train")]
impl Gradients<'_> {
    /// Whether anything below block number `layer` is trained: then the gradient of the block's input is needed.
    pub(super) fn below(&self, layer: usize) -> bool {
        let embedded = self.d_prefix.is_some()
            || self.parameters.token_embedding.is_some()
            || self.parameters.position_embedding.flatten().is_some();
        embedded
            || self.parameters.blocks[..layer]
                .iter()
                .any(|g| self.in_attention(g) || g.norm2.iter().chain([&g.up, &g.down]).any(is_trained))
    }

    fn in_attention(&self, g: &BlockParameters<Option<Span>>) -> bool {
        let norms = g.norm1.iter().chain(g.head_norms());
        norms.chain([&g.qkv, &g.attention_out]).any(is_trained)
    }

    /// Whether anything below the feed-forward sub-layer of block number `layer` is trained.
    pub(super) fn below_feed_forward(&self, layer: usize) -> bool {
        self.below(layer) || self.in_attention(&self.parameters.blocks[layer])
    }
}

impl<'p> Pass<'p> {
    /// All that a plan has room for, without dropout.
    pub(crate) fn whole(plan: &'p Plan, weights: &'p Weights, buffers: Buffers) -> Self {
        Pass {
            plan,
            weights,
            buffers,
            batch: plan.batch,
            time: plan.time,
            before: 0,
            first: 0,
            dropout: false,
            #[cfg(feature = "train")]
            sizes_only: false,
        }
    }

    /// All that the plan has room for, up to the logits.
    pub(crate) fn infer(&self, sink: &mut Sink<'_>) -> Flow {
        self.forward(sink)?;
        self.logits(sink)
    }

    /// The blocks: all but the final norm and the head.
    pub(crate) fn forward(&self, sink: &mut Sink<'_>) -> Flow {
        self.embedding_forward(sink)?;
        for layer in 0..self.config().layers {
            self.attention_forward(sink, layer)?;
            self.feed_forward_forward(sink, layer)?;
        }
        Flow::Continue(())
    }

    /// The pieces, at most `most` long, that `count` is cut into: where each begins and how long it is.
    #[cfg(feature = "train")]
    pub(crate) fn pieces(&self, count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let most = most.max(1);
        let last = count.saturating_sub(1) / most * most;
        let step = if self.sizes_only && last > 0 { last } else { most };
        (0..count).step_by(step).map(move |first| (first, most.min(count - first)))
    }

    pub(super) fn config(&self) -> &'p GptConfig {
        &self.plan.config
    }

    /// How many rows the residual stream has.
    pub(super) fn rows(&self) -> usize {
        self.batch * self.time
    }

    /// The parameters of block number `layer`, which is one of the model's.
    pub(super) fn block(&self, layer: usize) -> &'p BlockParameters<Span> {
        &self.weights.parameters.blocks[layer]
    }

    /// The places of what block number `layer` computes.
    pub(super) fn activations(&self, layer: usize) -> &'p BlockActivations {
        &self.plan.activations.blocks[layer]
    }

    /// What the pass computes, as the plan's precision rounds it.
    pub(super) fn activation(&self, region: Region) -> Span {
        region.on(self.buffers.activations, self.plan.activation_dtype())
    }

    /// As many rows of `region`, each `width` wide, as the pass has.
    pub(super) fn matrix(&self, region: Region, width: usize) -> Span {
        self.activation(region).first(self.rows() * width)
    }

    /// The same of what is not rounded: `width` numbers of each row.
    pub(super) fn statistics(&self, region: Region, width: usize) -> Span {
        region.on(self.buffers.activations, self.plan.elem).first(self.rows() * width)
    }

    /// (B, T, C).
    pub(super) fn stream(&self, region: Region) -> Span {
        self.matrix(region, self.config().d_model)
    }

    /// What is added to a sub-layer's result: its input, if the config has residual connections.
    pub(super) fn residual(&self, region: Region) -> Option<Span> {
        self.config().residual.then(|| self.stream(region))
    }

    /// How many positions of a sequence are a token's.
    pub(super) fn text(&self) -> usize {
        self.time - self.config().prefix
    }

    /// The pass's own rows of a plan's tokens or targets.
    fn words(&self, region: Region) -> Span {
        let text = self.text();
        region.on(self.buffers.state, Dtype::U32).slice(self.before * text, self.batch * text)
    }

    /// The rows of tokens, as runs that lie side by side: where each begins among the rows, where among the tokens, and how
    /// long it is. One, unless given vectors lie between them.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let (prefix, time, text) = (self.config().prefix, self.time, self.text());
        let (count, len) = if prefix == 0 { (1, self.rows()) } else { (self.one_by_one(), text) };
        (0..count).map(move |run| (run * time + prefix, run * text, len))
    }

    /// How many sequences go one by one, where each has given vectors. They are alike, and one has the sizes of all.
    pub(super) fn one_by_one(&self) -> usize {
        #[cfg(feature = "train")]
        if self.sizes_only {
            return self.batch.min(1);
        }
        self.batch
    }

    pub(crate) fn tokens(&self) -> Span {
        self.words(self.plan.tokens)
    }

    /// How many rows are live, if this is a pass of decoding.
    fn live(&self) -> Option<Span> {
        let words = self.plan.rows.on(self.buffers.state, Dtype::U32);
        (self.plan.purpose == Purpose::Decoding).then(|| words.slice(0, 1))
    }

    /// Which rows are live, if this is a pass of decoding.
    pub(super) fn live_rows(&self) -> Option<LiveRows> {
        let words = self.plan.rows.on(self.buffers.state, Dtype::U32);
        let decoding = self.plan.purpose == Purpose::Decoding;
        decoding.then(|| LiveRows::new(words, self.config(), self.time, self.plan.wanted(self.time)))
    }

    /// The layer over all rows of the pass, or in decoding over those that are live.
    pub(super) fn each_row(&self, linear: LinearForward) -> Op {
        match self.live() {
            Some(live) => LinearRows { live, linear }.into(),
            None => linear.into(),
        }
    }

    /// The norm over all rows of the pass, or in decoding over those that are live.
    pub(super) fn each_row_norm(&self, norm: NormForward) -> Op {
        match self.live() {
            Some(live) => NormRows { live, norm }.into(),
            None => norm.into(),
        }
    }

    /// The gate over all rows of the pass, or in decoding over those that are live.
    pub(super) fn each_row_gate(&self, gate: GateForward) -> Op {
        match self.live() {
            Some(live) => GateRows { live, gate }.into(),
            None => gate.into(),
        }
    }

    /// The dropout of an op whose result has `sequence` elements for each sequence; given as dimensions.
    pub(super) fn dropout_at(&self, site: u32, sequence: &[usize]) -> Option<Dropout> {
        let probability = self.config().dropout;
        // Wrapping: the masks repeat long before.
        let first = self.first.wrapping_add(self.before as u64);
        let first = sequence.iter().fold(first, |first, &dim| first.wrapping_mul(dim as u64));
        let counters = self.plan.counters.on(self.buffers.state, Dtype::U32);
        (self.dropout && probability > 0.0).then_some(Dropout { probability, site, first, counters })
    }

    /// y = x weight^T + bias. The caller adds what a layer has besides: activation, dropout, residual.
    pub(super) fn linear_forward(
        &self,
        x: Span,
        w: &Affine<Span>,
        y: Span,
        [d_in, d_out]: [usize; 2],
    ) -> LinearForward {
        let (weight, bias, rows) = (w.weight, w.bias, self.rows());
        LinearForward { x, weight, bias, activate: None, dropout: None, residual: None, y, rows, d_in, d_out }
    }

    /// A norm of the residual stream.
    pub(super) fn norm_forward(
        &self,
        w: &Affine<Span>,
        x: Region,
        y: Region,
        stats: &NormActivations,
    ) -> NormForward {
        let c = self.config().d_model;
        self.norm_of(w, self.stream(x).rows(c), self.stream(y).rows(c), stats, [1, c])
    }

    /// A norm of `groups` vectors of `width` in each row.
    pub(super) fn norm_of(
        &self,
        w: &Affine<Span>,
        x: Strided,
        y: Strided,
        stats: &NormActivations,
        [groups, width]: [usize; 2],
    ) -> NormForward {
        NormForward {
            kind: self.normalize(stats, groups),
            x,
            weight: w.weight,
            bias: w.bias,
            y,
            rstd: self.statistics(stats.rstd, groups),
            rows: self.rows(),
            groups,
            width,
            eps: self.config().norm_eps,
        }
    }

    /// The kind of the config's norms, with the means of this one.
    pub(super) fn normalize(&self, stats: &NormActivations, groups: usize) -> Normalize {
        match stats.mean {
            Some(mean) => Normalize::Layer { mean: self.statistics(mean, groups) },
            None => Normalize::Rms,
        }
    }
}

#[cfg(feature = "train")]
impl Pass<'_> {
    /// Adds the gradient of the summed loss to that of the parameters: the forward pass in reverse. That pass and the
    /// [loss](Pass::loss) come before it.
    ///
    /// One buffer, `d_stream`, carries the gradient of the residual stream from the last block to the first. A residual
    /// connection passes it on unchanged, so each sub-layer only adds its own part to it; without residual connections
    /// the sub-layer's part takes its place.
    ///
    /// What nothing needs is not computed: the pass ends where nothing below is trained.
    pub(crate) fn backward(&self, sink: &mut Sink<'_>, gradients: &Gradients<'_>) -> Flow {
        self.final_norm_backward(sink, gradients)?;
        for layer in (0..self.config().layers).rev() {
            if !gradients.below(layer + 1) {
                return Flow::Continue(());
            }
            self.recompute(sink, layer, gradients)?;
            self.feed_forward_backward(sink, layer, gradients)?;
            if gradients.below_feed_forward(layer) {
                self.attention_backward(sink, layer, gradients)?;
            }
        }
        self.embedding_backward(sink, gradients)
    }

    /// Makes what the backward pass of a block reads and the forward pass did not keep.
    fn recompute(&self, sink: &mut Sink<'_>, layer: usize, gradients: &Gradients<'_>) -> Flow {
        let (config, a) = (self.config(), self.activations(layer));
        match self.plan.recompute {
            Recompute::Nothing => Flow::Continue(()),
            // The last block has just run: only what is cheap was not kept.
            Recompute::Blocks if layer + 1 < config.layers => {
                self.attention_forward(sink, layer)?;
                self.feed_forward_up(sink, layer)?;
                // The norm behind the sum reads the sum.
                if config.norm_place == NormPlace::Post {
                    self.feed_forward_down(sink, layer)
                } else {
                    Flow::Continue(())
                }
            }
            // Only the gradient of a weight reads it.
            Recompute::Cheap | Recompute::Blocks
                if gradients.parameters.blocks[layer].down.weight.is_none() =>
            {
                Flow::Continue(())
            }
            Recompute::Cheap | Recompute::Blocks => {
                if let Some(gate) = self.gate(layer) {
                    return sink.put(layer, "feed_forward.gate", gate);
                }
                let Some(x) = a.pre_activation else { return Flow::Continue(()) };
                let (rows, width) = (self.rows(), config.d_ff);
                let (x, y) = (self.matrix(x, width), self.matrix(a.hidden, width));
                let op = ActivationForward { x, y, activation: config.activation, rows, width };
                sink.put(layer, "feed_forward.activation", op)
            }
        }
    }

    pub(crate) fn targets(&self) -> Span {
        self.words(self.plan.targets)
    }

    /// The gradient of a [linear layer](Pass::linear_forward): `d_x` is written if it is given, unless told otherwise.
    pub(super) fn linear_backward(
        &self,
        x: Span,
        (w, g): (&Affine<Span>, &Affine<Option<Span>>),
        (d_y, d_x): (Span, Option<Span>),
        [d_in, d_out]: [usize; 2],
    ) -> LinearBackward {
        LinearBackward {
            x,
            weight: w.weight,
            d_y,
            dropout: None,
            d_x,
            accumulate: false,
            activate: None,
            d_weight: g.weight,
            d_bias: g.bias.flatten(),
            rows: self.rows(),
            d_in,
            d_out,
        }
    }

    /// The op, if it has anything to compute.
    pub(super) fn put_linear_backward(
        &self,
        sink: &mut Sink<'_>,
        layer: impl Into<Option<usize>>,
        part: &'static str,
        op: LinearBackward,
    ) -> Flow {
        match (op.d_x, op.d_weight, op.d_bias) {
            (None, None, None) => Flow::Continue(()),
            _ => sink.put(layer, part, op),
        }
    }

    /// The gradient of a [norm](Pass::norm_forward), on the gradient of the residual stream where it lies.
    pub(super) fn norm_backward(
        &self,
        (w, g): (&Affine<Span>, &Affine<Option<Span>>),
        x: Region,
        stats: &NormActivations,
        gradients: &Gradients<'_>,
    ) -> NormBackward {
        let c = self.config().d_model;
        let d_stream = self.stream(gradients.buffers.d_stream).rows(c);
        self.norm_of_backward((w, g), self.stream(x).rows(c), d_stream, stats, [1, c])
    }

    /// The gradient of a [norm of vectors](Pass::norm_of), in the place of the gradient of its result.
    pub(super) fn norm_of_backward(
        &self,
        (w, g): (&Affine<Span>, &Affine<Option<Span>>),
        x: Strided,
        d_y: Strided,
        stats: &NormActivations,
        [groups, width]: [usize; 2],
    ) -> NormBackward {
        NormBackward {
            kind: self.normalize(stats, groups),
            x,
            weight: w.weight,
            rstd: self.statistics(stats.rstd, groups),
            d_y,
            d_x: d_y,
            accumulate: false,
            d_weight: g.weight,
            d_bias: g.bias.flatten(),
            rows: self.rows(),
            groups,
            width,
        }
    }

    /// The backward pass of a sub-layer's entry. The gradient of its input is added to the gradient of the residual stream,
    /// or takes its place without residual connections.
    pub(super) fn entry_backward(
        &self,
        sink: &mut Sink<'_>,
        layer: usize,
        entry: &Entry<'_>,
        gradients: &Gradients<'_>,
    ) -> Flow {
        let (config, buffers) = (self.config(), gradients.buffers);
        let Entry { parts: [norm_part, part], stats, input, mut normed, linear, d_y, d_out, below, .. } =
            *entry;
        // Only the gradient of the layer's weight reads it.
        if let (NormPlace::Pre, Some((norm, _)), Some(again), Some(_)) =
            (config.norm_place, entry.norms, buffers.normed, linear.1.weight)
        {
            sink.put(layer, norm_part, self.norm_forward(norm, input, again, stats))?;
            normed = again;
        }
        let norms = entry.norm(config.norm_place);
        // Into the norm's backward pass, or straight to the stream.
        let (d_x, accumulate) = match config.norm_place {
            NormPlace::Pre => (self.stream(buffers.d_scratch), false),
            NormPlace::Post | NormPlace::None => (self.stream(buffers.d_stream), config.residual),
        };
        let wanted = (below || norms.is_some()).then_some(d_x);
        let op = self.linear_backward(self.stream(normed), linear, (d_y, wanted), [config.d_model, d_out]);
        let op = LinearBackward { accumulate: accumulate && wanted.is_some(), ..op };
        self.put_linear_backward(sink, layer, part, op)?;
        let Some(norm) = norms else { return Flow::Continue(()) };
        let op = self.norm_backward(norm, input, stats, gradients);
        sink.put(
            layer,
            norm_part,
            NormBackward { d_y: d_x.rows(config.d_model), accumulate: config.residual, ..op },
        )
    }
}
