//! The attention sub-layer of a block:
//!
//! ```text
//! norms first:   x -> norm -> q,k,v -> (rotary) -> attention -> projection -> (+ x)
//! norms last:    x ->         q,k,v -> (rotary) -> attention -> projection -> (+ x) -> norm
//! ```

#[cfg(feature = "train")]
use super::pass::{Entry, Gradients, is_trained};
use super::pass::{Flow, Pass, site};
use crate::config::NormPlace;
use crate::memory::{Span, Strided};
#[cfg(feature = "train")]
use crate::op::{AttentionBackward, LinearBackward};
use crate::op::{AttentionForward, AttentionRows, CacheAppend, LinearForward, Rotary, RotaryRows, Sink};
use crate::plan::LiveRows;

impl Pass<'_> {
    pub(super) fn attention_forward(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let c = config.d_model;
        if let (NormPlace::Pre, Some(norm)) = (config.norm_place, &w.norm1) {
            let op = self.norm_forward(norm, a.input, a.attention_in, &a.norm1);
            sink.put(layer, "attention.norm", self.each_row_norm(op))?;
        }
        let (qkv, out) = (self.matrix(a.qkv, 3 * c), self.stream(a.attended));
        let op = self.linear_forward(self.stream(a.attention_in), &w.qkv, qkv, [c, 3 * c]);
        sink.put(layer, "attention.qkv", self.each_row(op))?;
        self.norm_queries_and_keys(sink, layer)?;
        self.rotate(sink, layer, qkv, false)?;
        self.attend(sink, layer, qkv, out)?;
        let op = LinearForward {
            dropout: self.dropout_at(site::attention_out(layer), &[self.time, c]),
            residual: self.residual(a.input),
            ..self.linear_forward(out, &w.attention_out, self.stream(a.attention_sum), [c, c])
        };
        sink.put(layer, "attention.out", self.each_row(op))?;
        if let (NormPlace::Post, Some(norm)) = (config.norm_place, &w.norm1) {
            let op = self.norm_forward(norm, a.attention_sum, a.middle, &a.norm1);
            sink.put(layer, "attention.norm", self.each_row_norm(op))?;
        }
        Flow::Continue(())
    }

    /// Each head's queries and keys through their norms, from where the layer left them to a place of their own, since the
    /// gradient needs both; nothing if the config has no such norms.
    fn norm_queries_and_keys(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (Some(normed), Some(q_norm), Some(k_norm)) = (&a.normed_qk, &w.q_norm, &w.k_norm) else {
            return Flow::Continue(());
        };
        let (d_head, heads, kv_heads) = (config.d_head(), config.heads, config.kv_heads());
        let [q, k] = self.query_and_key_columns(self.matrix(a.qkv, config.d_qkv()), config.d_qkv());
        let width = (heads + kv_heads) * d_head;
        let [normed_q, normed_k] = self.query_and_key_columns(self.matrix(normed.heads, width), width);
        let op = self.norm_of(q_norm, q, normed_q, &normed.queries, [heads, d_head]);
        sink.put(layer, "attention.q_norm", self.each_row_norm(op))?;
        let op = self.norm_of(k_norm, k, normed_k, &normed.keys, [kv_heads, d_head]);
        sink.put(layer, "attention.k_norm", self.each_row_norm(op))
    }

    /// The queries, and the keys, of a matrix whose rows are `width` wide and begin with them.
    fn query_and_key_columns(&self, matrix: Span, width: usize) -> [Strided; 2] {
        let queries = self.config().d_attention();
        let keys = self.config().kv_heads() * self.config().d_head();
        [matrix.columns(0, queries, width), matrix.columns(queries, keys, width)]
    }

    /// Attention over the pass's own positions; in decoding over the cache, in which the rows are stored first.
    fn attend(&self, sink: &mut Sink<'_>, layer: usize, qkv: Span, out: Span) -> Flow {
        let (config, plan) = (self.config(), self.plan);
        let (batch, time, heads, d_head) = (self.batch, self.time, config.heads, config.d_head());
        let scale = config.score_scale();
        let cache = self.buffers.cache.zip(plan.caches.get(layer));
        let Some((rows, (buffer, cache))) = self.live_rows().zip(cache) else {
            let lse = self.matrix(self.activations(layer).lse, heads);
            let dropout = self.dropout_at(site::attention(layer), &[heads, time, time]);
            let op = AttentionForward { qkv, out, lse, batch, time, heads, d_head, scale, dropout };
            return sink.put(layer, "attention", op);
        };
        let LiveRows { live, slots, positions, .. } = rows;
        let [keys, values] = [cache.keys, cache.values].map(|region| region.on(buffer, plan.elem));
        let (rows, slot_count, capacity) = (time, plan.sequences, config.context);
        let append = CacheAppend {
            live,
            slots,
            positions,
            qkv,
            keys,
            values,
            rows,
            slot_count,
            capacity,
            heads,
            d_head,
        };
        sink.put(layer, "attention.cache", append)?;
        let op = AttentionRows {
            live,
            slots,
            positions,
            qkv,
            keys,
            values,
            out,
            rows,
            slot_count,
            capacity,
            heads,
            d_head,
            scale,
        };
        sink.put(layer, "attention", op)
    }

    /// Rotates queries and keys by their positions if positions are rotary; `inverse`: rotates their gradients back.
    fn rotate(&self, sink: &mut Sink<'_>, layer: usize, qkv: Span, inverse: bool) -> Flow {
        let Some(table) = self.rotary_table() else { return Flow::Continue(()) };
        let (heads, d_head) = (self.config().heads, self.config().d_head());
        let (batch, time) = (self.batch, self.time);
        let part = "attention.rotary";
        match self.live_rows() {
            Some(LiveRows { live, positions, .. }) => {
                sink.put(layer, part, RotaryRows { live, positions, qkv, table, rows: time, heads, d_head })
            }
            None => sink.put(layer, part, Rotary { qkv, table, batch, time, heads, d_head, inverse }),
        }
    }
}

#[cfg(feature = "train")]
impl Pass<'_> {
    pub(super) fn attention_backward(
        &self,
        sink: &mut Sink<'_>,
        layer: usize,
        gradients: &Gradients<'_>,
    ) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (c, g, buffers) = (config.d_model, &gradients.parameters.blocks[layer], gradients.buffers);
        let norms = w.norm1.as_ref().zip(g.norm1.as_ref());
        let (d_stream, d_scratch) = (self.stream(buffers.d_stream), self.stream(buffers.d_scratch));
        let d_qkv = self.matrix(buffers.d_qkv, 3 * c);
        let entry = Entry {
            parts: ["attention.norm", "attention.qkv"],
            norms,
            stats: &a.norm1,
            input: a.input,
            normed: a.attention_in,
            linear: (&w.qkv, &g.qkv),
            d_y: d_qkv,
            d_out: 3 * c,
            below: gradients.below(layer),
        };
        let heads_normed = g.q_norm.iter().chain(&g.k_norm).any(is_trained);
        let wanted = (heads_normed || entry.is_wanted(config.norm_place)).then_some(d_scratch);
        if let (NormPlace::Post, Some(norm)) = (config.norm_place, norms) {
            sink.put(
                layer,
                "attention.norm",
                self.norm_backward(norm, a.attention_sum, &a.norm1, gradients),
            )?;
        }
        let op = LinearBackward {
            dropout: self.dropout_at(site::attention_out(layer), &[self.time, c]),
            ..self.linear_backward(
                self.stream(a.attended),
                (&w.attention_out, &g.attention_out),
                (d_stream, wanted),
                [c, c],
            )
        };
        self.put_linear_backward(sink, layer, "attention.out", op)?;
        if wanted.is_none() {
            return Flow::Continue(());
        }
        let op = AttentionBackward {
            qkv: self.matrix(a.qkv, 3 * c),
            out: self.stream(a.attended),
            lse: self.matrix(a.lse, config.heads),
            d_out: d_scratch,
            d_qkv,
            batch: self.batch,
            time: self.time,
            heads: config.heads,
            d_head: config.d_head(),
            scale: config.score_scale(),
            dropout: self.dropout_at(site::attention(layer), &[config.heads, self.time, self.time]),
        };
        sink.put(layer, "attention", op)?;
        self.rotate(sink, layer, d_qkv, true)?;
        self.norm_queries_and_keys_backward(sink, layer, gradients)?;
        self.entry_backward(sink, layer, &entry, gradients)
    }

    /// From the gradients of the normed queries and keys to those of the layer's, in their place.
    fn norm_queries_and_keys_backward(
        &self,
        sink: &mut Sink<'_>,
        layer: usize,
        gradients: &Gradients<'_>,
    ) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let g = &gradients.parameters.blocks[layer];
        let norms = (w.q_norm.as_ref().zip(g.q_norm.as_ref()), w.k_norm.as_ref().zip(g.k_norm.as_ref()));
        let (Some(normed), (Some(q_norm), Some(k_norm))) = (&a.normed_qk, norms) else {
            return Flow::Continue(());
        };
        let (d_head, width) = (config.d_head(), config.d_qkv());
        let [q, k] = self.query_and_key_columns(self.matrix(a.qkv, width), width);
        let d_qkv = self.matrix(gradients.buffers.d_qkv, width);
        let [d_q, d_k] = self.query_and_key_columns(d_qkv, width);
        let op = self.norm_of_backward(q_norm, q, d_q, &normed.queries, [config.heads, d_head]);
        sink.put(layer, "attention.q_norm", op)?;
        let op = self.norm_of_backward(k_norm, k, d_k, &normed.keys, [config.kv_heads(), d_head]);
        sink.put(layer, "attention.k_norm", op)
    }
}
