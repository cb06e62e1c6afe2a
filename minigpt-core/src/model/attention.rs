//! The attention sub-layer of a block:
//!
//! ```text
//! norms first:   x -> norm -> q,k,v -> (rotary) -> attention -> projection -> (+ x)
//! norms last:    x ->         q,k,v -> (rotary) -> attention -> projection -> (+ x) -> norm
//! ```

#[cfg(feature = "train")]
use super::pass::{Entry, Gradients};
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
        self.rotate(sink, layer, qkv, false)?;
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

    /// Queries, keys and values, or their gradients, where they lie side by side.
    fn parts(&self, qkv: Span) -> [Strided; 3] {
        let (q, kv) = (self.config().d_attention(), self.config().kv_heads() * self.config().d_head());
        [(0, q), (q, kv), (q + kv, kv)].map(|(first, width)| qkv.columns(first, width, q + 2 * kv))
    }

    /// Attention over the pass's own positions; in decoding over the cache, in which the rows are stored first.
    fn attend(&self, sink: &mut Sink<'_>, layer: usize, qkv: Span, out: Span) -> Flow {
        let (plan, [q, k, v]) = (self.plan, self.parts(qkv));
        let shape = AttentionShape::new(self.config(), self.batch, self.time);
        let AttentionShape { time, heads, kv_heads, d_head, scale, .. } = shape;
        let cache = self.buffers.cache.zip(plan.caches.get(layer));
        let Some((rows, (buffer, cache))) = self.live_rows().zip(cache) else {
            let lse = self.matrix(self.activations(layer).lse, heads);
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
    fn rotate(&self, sink: &mut Sink<'_>, layer: usize, qkv: Span, inverse: bool) -> Flow {
        let config = self.config();
        let (Position::Rotary { pairing, .. }, Some(table)) = (config.position, self.weights.position_table)
        else {
            return Flow::Continue(());
        };
        // Side by side, they are turned as if they were heads of one.
        let (heads, d_head) = (config.heads + config.kv_heads(), config.d_head());
        let (batch, time) = (self.batch, self.time);
        let x = qkv.columns(0, heads * d_head, config.d_qkv());
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
        let wanted = entry.is_wanted(config.norm_place).then_some(d_out);
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
        let ([q, k, v], [d_q, d_k, d_v]) = (self.parts(qkv), self.parts(d_qkv));
        let op = AttentionBackward {
            q,
            k,
            v,
            out: self.matrix(a.attended, d_attention),
            lse: self.matrix(a.lse, config.heads),
            d_out,
            d_q,
            d_k,
            d_v,
            shape: AttentionShape::new(config, self.batch, self.time),
            dropout: self.dropout_at(site::attention(layer), &[config.heads, self.time, self.time]),
        };
        sink.put(layer, "attention", op)?;
        self.rotate(sink, layer, d_qkv, true)?;
        self.entry_backward(sink, layer, &entry, gradients)
    }
}
