//! The attention sub-layer of a block:
//!
//! ```text
//! norms first:   x -> norm -> q,k,v -> (norm of q, k) -> (rotary) -> attention -> projection -> (+ x)
//! norms last:    x ->         q,k,v -> (norm of q, k) -> (rotary) -> attention -> projection -> (+ x) -> norm
//! ```

#[cfg(feature = "train")]
use super::pass::{Entry, Gradients, is_trained};
use super::pass::{Flow, Pass, site};
use crate::config::{NormPlace, Position};
use crate::memory::{Span, Strided};
#[cfg(feature = "train")]
use crate::op::{AttentionBackward, LinearBackward};
use crate::op::{
    AttentionForward, AttentionRows, AttentionShape, CacheAppend, LinearForward, Rotary, RotaryRows, Sink,
};
use crate::plan::LiveRows;

impl Pass<'_> {
    pub(super) fn attention_forward(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let c = config.d_model;
        if let (NormPlace::Pre, Some(norm)) = (config.norm_place, &w.norm1) {
            let op = self.norm_forward(norm, a.input, a.attention_in, &a.norm1);
            sink.put(layer, "attention.norm", self.each_row_norm(op))?;
        }
        let (qkv, out) = (self.matrix(a.qkv, config.d_qkv()), self.matrix(a.attended, config.d_attention()));
        let op = self.linear_forward(self.stream(a.attention_in), &w.qkv, qkv, [c, config.d_qkv()]);
        sink.put(layer, "attention.qkv", self.each_row(op))?;
        self.norm_queries_and_keys(sink, layer)?;
        self.rotate(sink, layer, self.attended_heads(layer), false)?;
        self.attend(sink, layer, qkv, out)?;
        let op = LinearForward {
            dropout: self.dropout_at(site::attention_out(layer), &[self.time, c]),
            residual: self.residual(a.input),
            ..self.linear_forward(
                out,
                &w.attention_out,
                self.stream(a.attention_sum),
                [config.d_attention(), c],
            )
        };
        sink.put(layer, "attention.out", self.each_row(op))?;
        if let (NormPlace::Post, Some(norm)) = (config.norm_place, &w.norm1) {
            let op = self.norm_forward(norm, a.attention_sum, a.middle, &a.norm1);
            sink.put(layer, "attention.norm", self.each_row_norm(op))?;
        }
        Flow::Continue(())
    }

    /// Queries and keys side by side, as a layer gives them or their gradients come back to it: the first columns of `qkv`.
    fn queries_and_keys(&self, qkv: Span) -> Strided {
        let config = self.config();
        qkv.columns(0, (config.heads + config.kv_heads()) * config.d_head(), config.d_qkv())
    }

    /// Queries and keys side by side, as attention reads them: behind their norms, if they have some.
    fn attended_heads(&self, layer: usize) -> Strided {
        let (config, a) = (self.config(), self.activations(layer));
        match &a.normed_qk {
            Some(normed) => {
                let width = (config.heads + config.kv_heads()) * config.d_head();
                self.matrix(normed.heads, width).rows(width)
            }
            None => self.queries_and_keys(self.matrix(a.qkv, config.d_qkv())),
        }
    }

    /// The queries, and the keys, of what has them side by side.
    fn apart(&self, both: Strided) -> [Strided; 2] {
        let (q, k) = (self.config().d_attention(), self.config().kv_heads() * self.config().d_head());
        [both.part(0, q, q + k), both.part(q, k, q + k)]
    }

    /// The values, which lie behind queries and keys in `qkv`.
    fn values(&self, qkv: Span) -> Strided {
        let (q, kv) = (self.config().d_attention(), self.config().kv_heads() * self.config().d_head());
        qkv.columns(q + kv, kv, q + 2 * kv)
    }

    /// Each head's queries and keys through their norms, from where the layer left them to a place of their own, since the
    /// gradient needs both; nothing if the config has no such norms.
    fn norm_queries_and_keys(&self, sink: &mut Sink<'_>, layer: usize) -> Flow {
        let (config, w, a) = (self.config(), self.block(layer), self.activations(layer));
        let (Some(normed), Some(norms)) = (&a.normed_qk, &w.head_norms) else {
            return Flow::Continue(());
        };
        let (d_head, heads, kv_heads) = (config.d_head(), config.heads, config.kv_heads());
        let [q, k] = self.apart(self.queries_and_keys(self.matrix(a.qkv, config.d_qkv())));
        let [normed_q, normed_k] = self.apart(self.attended_heads(layer));
        let op = self.norm_of(&norms.queries, q, normed_q, &normed.queries, [heads, d_head]);
        sink.put(layer, "attention.q_norm", self.each_row_norm(op))?;
        let op = self.norm_of(&norms.keys, k, normed_k, &normed.keys, [kv_heads, d_head]);
        sink.put(layer, "attention.k_norm", self.each_row_norm(op))
    }

    /// Attention over the pass's own positions; in decoding over the cache, in which the rows are stored first.
    fn attend(&self, sink: &mut Sink<'_>, layer: usize, qkv: Span, out: Span) -> Flow {
        let (plan, [q, k], v) = (self.plan, self.apart(self.attended_heads(layer)), self.values(qkv));
        let shape = AttentionShape::new(self.config(), self.batch, self.time);
        let AttentionShape { time, heads, kv_heads, d_head, scale, .. } = shape;
        let cache = self.buffers.cache.zip(plan.caches.get(layer));
        let Some((rows, (buffer, cache))) = self.live_rows().zip(cache) else {
            let lse = self.statistics(self.activations(layer).lse, heads);
            let dropout = self.dropout_at(site::attention(layer), &[heads, time, time]);
            let op = AttentionForward { q, k, v, out, lse, shape, dropout };
            return sink.put(layer, "attention", op);
        };
        let LiveRows { live, slots, positions, last, .. } = rows;
        let [keys, values] = [cache.keys, cache.values].map(|region| region.on(buffer, plan.cache_dtype));
        let (rows, slot_count, capacity) = (time, plan.sequences, self.config().context);
        let append = CacheAppend {
            live,
            slots,
            positions,
            k,
            v,
            keys,
            values,
            rows,
            slot_count,
            capacity,
            kv_heads,
            d_head,
        };
        sink.put(layer, "attention.cache", append)?;
        let op = AttentionRows {
            live,
            slots,
            last,
            q,
            keys,
            values,
            out,
            rows,
            slot_count,
            capacity,
            heads,
            kv_heads,
            d_head,
            scale,
        };
        sink.put(layer, "attention", op)
    }

    /// Rotates queries and keys by their positions if positions are rotary; `inverse`: rotates their gradients back.
    fn rotate(&self, sink: &mut Sink<'_>, layer: usize, x: Strided, inverse: bool) -> Flow {
        let config = self.config();
        let (Position::Rotary { pairing, .. }, Some(table)) = (config.position, self.weights.position_table)
        else {
            return Flow::Continue(());
        };
        // Side by side, they are turned as if they were heads of one.
        let (heads, d_head) = (config.heads + config.kv_heads(), config.d_head());
        let (batch, time) = (self.batch, self.time);
        let part = "attention.rotary";
        match self.live_rows() {
            Some(LiveRows { live, positions, .. }) => {
                let rows = time;
                sink.put(layer, part, RotaryRows { live, positions, x, table, pairing, rows, heads, d_head })
            }
            None => sink.put(layer, part, Rotary { x, table, pairing, batch, time, heads, d_head, inverse }),
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
        let d_attention = config.d_attention();
        let (d_stream, d_out) = (self.stream(buffers.d_stream), self.matrix(buffers.d_scratch, d_attention));
        let [qkv, d_qkv] = [a.qkv, buffers.d_qkv].map(|region| self.matrix(region, config.d_qkv()));
        let entry = Entry {
            parts: ["attention.norm", "attention.qkv"],
            norms,
            stats: &a.norm1,
            input: a.input,
            normed: a.attention_in,
            linear: (&w.qkv, &g.qkv),
            d_y: d_qkv,
            d_out: config.d_qkv(),
            below: gradients.below(layer),
        };
        let heads_normed = g.head_norms().any(is_trained);
        let wanted = (heads_normed || entry.is_wanted(config.norm_place)).then_some(d_out);
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
                self.matrix(a.attended, d_attention),
                (&w.attention_out, &g.attention_out),
                (d_stream, wanted),
                [d_attention, c],
            )
        };
        self.put_linear_backward(sink, layer, "attention.out", op)?;
        if wanted.is_none() {
            return Flow::Continue(());
        }
        let [q, k] = self.apart(self.attended_heads(layer));
        let [d_q, d_k] = self.apart(self.queries_and_keys(d_qkv));
        let (v, d_v) = (self.values(qkv), self.values(d_qkv));
        let op = AttentionBackward {
            q,
            k,
            v,
            out: self.matrix(a.attended, d_attention),
            lse: self.statistics(a.lse, config.heads),
            d_out,
            d_q,
            d_k,
            d_v,
            shape: AttentionShape::new(config, self.batch, self.time),
            dropout: self.dropout_at(site::attention(layer), &[config.heads, self.time, self.time]),
        };
        sink.put(layer, "attention", op)?;
        self.rotate(sink, layer, self.queries_and_keys(d_qkv), true)?;
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
        let (Some(normed), Some(w), Some(g)) = (&a.normed_qk, &w.head_norms, &g.head_norms) else {
            return Flow::Continue(());
        };
        let d_head = config.d_head();
        let [[q, k], [d_q, d_k]] = [a.qkv, gradients.buffers.d_qkv]
            .map(|qkv| self.apart(self.queries_and_keys(self.matrix(qkv, config.d_qkv()))));
        let op =
            self.norm_of_backward((&w.queries, &g.queries), q, d_q, &normed.queries, [config.heads, d_head]);
        sink.put(layer, "attention.q_norm", op)?;
        let op = self.norm_of_backward((&w.keys, &g.keys), k, d_k, &normed.keys, [config.kv_heads(), d_head]);
        sink.put(layer, "attention.k_norm", op)
    }
}
