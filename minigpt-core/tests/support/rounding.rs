//! Ops under bf16 in f32 arithmetic, step by step, with a fault in how they round.

use minigpt_core::backend::{read_elems, read_u32, write_elems};
use minigpt_core::op::*;
use minigpt_core::reference::activation::{activate, derivative};
use minigpt_core::reference::dropout::Mask;
use minigpt_core::reference::embedding::{embedding_backward, embedding_forward};
use minigpt_core::reference::linear::{linear_backward, linear_forward};
use minigpt_core::reference::norm::norm_backward;
use minigpt_core::reference::rotary::rotary;
use minigpt_core::reference::rounded::round;
use minigpt_core::reference::weights::decode_weight;
use minigpt_core::{Backend, Op, Precision, Reference, ReferenceError, Span, Strided, reference};

/// How a backend rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rounds {
    /// As it is to.
    AsItShould,
    /// As it may: the weights of attention and the gradients of its scores too.
    InsideAttention,
    /// It cuts off what is behind the last bit.
    ByTruncation,
    /// Ties away from 0.
    TiesUp,
    /// Not what an activation is taken of.
    NotBeforeActivation,
    /// Not what is to drop out: h of a linear layer with an activation, s of an embedding.
    NotBeforeDropout,
    /// Not what dropped out, before the residual is added.
    NotBeforeResidual,
    /// Not g, before it is a factor of the gradients or a term of them. It is a product whose f32 is the same everywhere, so no
    /// backend that rounds it is off; one that does not round it is.
    NotBeforeGradients,
    /// Not the gradient of a layer's input, before it is multiplied by the slope of the activation.
    NotBeforeSlope,
    /// Not the gradient of a layer's or a norm's input, before it is added to another.
    NotBeforeSum,
    /// Not h, the activation of a gate, before it is multiplied.
    NotInsideGate,
    /// Not u, the gradient of a gate's activation, before it is multiplied by the slope. Its product is exact in f32, as is
    /// that of g: what is left open is only whether it is rounded.
    NotBeforeGateSlope,
    /// The gradients of weights too.
    GradientsOfWeights,
    /// Every partial sum of a layer.
    PartialSums,
}

impl Rounds {
    /// To bf16, as all that has a name is to be.
    fn round(self, x: f32) -> f32 {
        let most = 0xffff_0000;
        match self {
            Rounds::ByTruncation => f32::from_bits(x.to_bits() & most),
            Rounds::TiesUp if x.is_finite() => f32::from_bits((x.to_bits() + 0x8000) & most),
            _ => round(x),
        }
    }

    /// The same, unless this is the step that it leaves out.
    fn round_unless(self, left_out: Rounds, x: f32) -> f32 {
        if self == left_out { x } else { self.round(x) }
    }

    fn round_all(self, values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = self.round(*x));
    }

    /// Runs an op, one under bf16 with this fault.
    pub(crate) fn run(self, inner: &mut Reference<f32>, op: &Op) -> Result<(), ReferenceError> {
        op.check(minigpt_core::Dtype::F32)?;
        match op {
            _ if op.precision() == Precision::F32 => inner.run(op),
            // Of dimensions that are 0 there is nothing to round.
            _ if op.sizes().iter().any(|(_, size)| size == 0) => inner.run(op),
            Op::LinearForward(op) => self.linear_forward(inner, op),
            Op::LinearBackward(op) => self.linear_backward(inner, op),
            Op::ActivationForward(op) => {
                let mut y = read_elems(inner, op.x)?;
                y.iter_mut().for_each(|x| *x = self.round(activate(op.activation, *x)));
                write_elems(inner, op.y, &y)
            }
            Op::GateForward(op) => {
                let x = read_elems(inner, op.x)?;
                let of = |row: &[f32], j: usize| {
                    let h = self.round_unless(Rounds::NotInsideGate, activate(op.activation, row[j]));
                    self.round(h * row[op.width + j])
                };
                let rows = x.chunks_exact(2 * op.width);
                let y: Vec<f32> = rows.flat_map(|row| (0..op.width).map(move |j| of(row, j))).collect();
                write_elems(inner, op.y, &y)
            }
            Op::GateBackward(op) => {
                let (x, d_y) = (read_elems(inner, op.x)?, read_elems(inner, op.d_y)?);
                let mut d_x = vec![0.0; x.len()];
                let width = op.width;
                for (i, &d) in d_y.iter().enumerate() {
                    let (gate, up) =
                        (i / width * 2 * width + i % width, i / width * 2 * width + i % width + width);
                    let u = self.round_unless(Rounds::NotBeforeGateSlope, d * x[up]);
                    let h = self.round_unless(Rounds::NotInsideGate, activate(op.activation, x[gate]));
                    d_x[gate] = self.round(u * derivative(op.activation, x[gate]));
                    d_x[up] = self.round(d * h);
                }
                write_elems(inner, op.d_x, &d_x)
            }
            Op::EmbeddingForward(op) => self.embedding_forward(inner, op),
            Op::EmbeddingBackward(op) => self.embedding_backward(inner, op),
            Op::NormBackward(op) => self.norm_backward(inner, op),
            // The rows that are live are a layer of their own.
            Op::LinearRows(op) => match read_u32(inner, op.live)?[0] as usize {
                0 => Ok(()),
                live => self.linear_forward(inner, &op.linear.first_rows(live)),
            },
            Op::RotaryRows(op) => {
                let live = (read_u32(inner, op.live)?[0] as usize).min(op.rows);
                let (width, d_head) = (op.heads * op.d_head, op.d_head);
                for (row, position) in read_u32(inner, op.positions.first(live))?.into_iter().enumerate() {
                    let row = op.x.span.slice(row * op.x.stride, width);
                    let turns = read_elems(inner, op.table.slice(position as usize * d_head, d_head))?;
                    let mut x = read_elems(inner, row)?;
                    rotary(&mut x, width, &turns, op.pairing, false, 1, 1, op.heads, d_head);
                    self.round_all(&mut x);
                    write_elems(inner, row, &x)?;
                }
                Ok(())
            }
            Op::Narrow(op) => {
                let mut to = read_elems(inner, op.from)?;
                self.round_all(&mut to);
                write_elems(inner, op.to, &to)
            }
            Op::AttentionForward(op) => self.attention_forward(inner, op),
            Op::AttentionBackward(op) => self.attention_backward(inner, op),
            op => inner.run(op),
        }
    }

    fn embedding_forward(
        self,
        inner: &mut Reference<f32>,
        op: &EmbeddingForward,
    ) -> Result<(), ReferenceError> {
        let (batch, time, width) = (op.batch, op.time, op.d_model);
        let tokens = read_u32(inner, op.tokens)?;
        let token_embedding = weight(inner, op.token_embedding, op.vocab, width)?;
        let of_positions = op.position_embedding.map(|table| table.first(time * width));
        let positions = of_positions.map(|table| read_elems(inner, table)).transpose()?;
        let mut out = vec![0.0; op.out.len];
        embedding_forward(
            &tokens,
            &token_embedding,
            positions.as_deref(),
            None,
            &mut out,
            batch,
            time,
            width,
        );
        let mask = mask(inner, &op.dropout)?;
        for (i, out) in out.iter_mut().enumerate() {
            *out = match &mask {
                None => self.round(*out),
                Some(mask) => self.round(mask.apply(i, self.round_unless(Rounds::NotBeforeDropout, *out))),
            };
        }
        write_elems(inner, op.out, &out)
    }

    fn embedding_backward(
        self,
        inner: &mut Reference<f32>,
        op: &EmbeddingBackward,
    ) -> Result<(), ReferenceError> {
        let (batch, time, width) = (op.batch, op.time, op.d_model);
        let (tokens, mut g) = (read_u32(inner, op.tokens)?, read_elems(inner, op.d_out)?);
        if let Some(mask) = mask(inner, &op.dropout)? {
            for (i, g) in g.iter_mut().enumerate() {
                *g = self.round_unless(Rounds::NotBeforeGradients, mask.apply(i, *g));
            }
        }
        let spans = [op.d_token_embedding, op.d_position_embedding.map(|table| table.first(time * width))];
        let [mut d_token, mut d_position] = spans.map(|span| span.map(|span| read_elems(inner, span)));
        let mut tables = [&mut d_token, &mut d_position].map(|table| match table {
            Some(Ok(table)) => Some(&mut table[..]),
            _ => None,
        });
        let [d_token_table, d_position_table] = &mut tables;
        embedding_backward(
            &tokens,
            &g,
            None,
            d_token_table.as_deref_mut(),
            d_position_table.as_deref_mut(),
            batch,
            time,
            width,
        );
        for (span, table) in spans.into_iter().zip([d_token, d_position]) {
            if let (Some(span), Some(table)) = (span, table) {
                write_elems(inner, span, &table?)?;
            }
        }
        Ok(())
    }

    fn norm_backward(self, inner: &mut Reference<f32>, op: &NormBackward) -> Result<(), ReferenceError> {
        let width = op.groups * op.width;
        let [x, d_y] = [read_elems(inner, op.x.span)?, read_elems(inner, op.d_y.span)?];
        let mean = match op.kind {
            Normalize::Layer { mean } => Some(read_elems(inner, mean)?),
            Normalize::Rms => None,
        };
        let (weight, rstd) = (read_elems(inner, op.weight)?, read_elems(inner, op.rstd)?);
        let mut d_weight = op.d_weight.map(|span| read_elems(inner, span)).transpose()?;
        let mut d_bias = op.d_bias.map(|span| read_elems(inner, span)).transpose()?;
        let mut d_x = vec![0.0; op.rows * width];
        norm_backward(
            reference::Rows { data: &x, stride: op.x.stride },
            &weight,
            mean.as_deref(),
            &rstd,
            reference::Rows { data: &d_y, stride: op.d_y.stride },
            &mut d_x,
            false,
            d_weight.as_deref_mut(),
            d_bias.as_deref_mut(),
            op.rows,
            op.groups,
            op.width,
        );
        let before = Rows::read(inner, op.d_x)?;
        for (row, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            for (d, before) in d_x.iter_mut().zip(before.part(row, 0, width)) {
                *d = match op.accumulate {
                    true => self.round(before + self.round_unless(Rounds::NotBeforeSum, *d)),
                    false => self.round(*d),
                };
            }
            write_elems(inner, op.d_x.span.slice(row * op.d_x.stride, width), d_x)?;
        }
        for (span, values) in [(op.d_weight, d_weight), (op.d_bias, d_bias)] {
            if let (Some(span), Some(values)) = (span, values) {
                write_elems(inner, span, &values)?;
            }
        }
        Ok(())
    }

    fn linear_forward(self, inner: &mut Reference<f32>, op: &LinearForward) -> Result<(), ReferenceError> {
        let (rows, d_in, d_out) = (op.rows, op.d_in, op.d_out);
        let x = read_elems(inner, op.x)?;
        let weight = weight(inner, op.weight, d_out, d_in)?;
        let bias = op.bias.map(|bias| read_elems(inner, bias)).transpose()?;
        let residual = op.residual.map(|residual| read_elems(inner, residual)).transpose()?;
        let mask = mask(inner, &op.dropout)?;
        let mut y = vec![0.0f32; rows * d_out];
        linear_forward(&x, &weight, bias.as_deref(), None, None, None, None, &mut y, rows, d_in, d_out);
        if self == Rounds::PartialSums {
            for (i, y) in y.iter_mut().enumerate() {
                let (x, weight) = (&x[i / d_out * d_in..][..d_in], &weight[i % d_out * d_in..][..d_in]);
                let sum = x.iter().zip(weight).fold(0.0, |sum, (x, w)| round(sum + x * w));
                *y = sum + bias.as_ref().map_or(0.0, |bias| bias[i % d_out]);
            }
        }
        if let Some(input) = op.activate.and_then(|activate| activate.input) {
            let mut z = y.clone();
            self.round_all(&mut z);
            write_elems(inner, input, &z)?;
        }
        for (i, y) in y.iter_mut().enumerate() {
            *y = match op.activate {
                None => self.round(*y),
                Some(Activate { activation, .. }) => {
                    let z = self.round_unless(Rounds::NotBeforeActivation, *y);
                    let h = activate(activation, z);
                    if mask.is_some() {
                        self.round_unless(Rounds::NotBeforeDropout, h)
                    } else {
                        self.round(h)
                    }
                }
            };
            if let Some(mask) = &mask {
                *y = mask.apply(i, *y);
                if residual.is_none() || self != Rounds::NotBeforeResidual {
                    *y = self.round(*y);
                }
            }
            if let Some(residual) = &residual {
                *y = self.round(residual[i] + *y);
            }
        }
        write_elems(inner, op.y, &y)
    }

    fn linear_backward(self, inner: &mut Reference<f32>, op: &LinearBackward) -> Result<(), ReferenceError> {
        let optional = |inner: &mut _, span: Option<Span>| span.map(|at| read_elems(inner, at)).transpose();
        let (x, weight) = (read_elems(inner, op.x)?, read_elems(inner, op.weight)?);
        let mut g = read_elems(inner, op.d_y)?;
        if let Some(mask) = mask(inner, &op.dropout)? {
            for (i, g) in g.iter_mut().enumerate() {
                *g = self.round_unless(Rounds::NotBeforeGradients, mask.apply(i, *g));
            }
        }
        let input = optional(inner, op.activate.and_then(|activate| activate.input))?;
        let before = optional(inner, op.d_x)?;
        let mut d_x = before.clone();
        let (mut d_weight, mut d_bias) = (optional(inner, op.d_weight)?, optional(inner, op.d_bias)?);
        linear_backward(
            &x,
            &weight,
            &g,
            None,
            None,
            d_x.as_deref_mut(),
            false,
            d_weight.as_deref_mut(),
            d_bias.as_deref_mut(),
            op.rows,
            op.d_in,
            op.d_out,
        );
        for (i, p) in d_x.iter_mut().flatten().enumerate() {
            *p = match (op.activate, &input, &before) {
                (Some(Activate { activation, .. }), Some(input), _) => {
                    self.round_unless(Rounds::NotBeforeSlope, *p) * derivative(activation, input[i])
                }
                (_, _, Some(before)) if op.accumulate => {
                    before[i] + self.round_unless(Rounds::NotBeforeSum, *p)
                }
                _ => *p,
            };
            *p = self.round(*p);
        }
        if self == Rounds::GradientsOfWeights {
            self.round_all(d_weight.as_deref_mut().unwrap_or_default());
        }
        for (span, values) in [(op.d_x, d_x), (op.d_weight, d_weight), (op.d_bias, d_bias)] {
            if let (Some(span), Some(values)) = (span, values) {
                write_elems(inner, span, &values)?;
            }
        }
        Ok(())
    }

    /// A weight of attention, or the gradient of a score.
    fn inside_attention(self, x: f32) -> f32 {
        if self == Rounds::InsideAttention { round(x) } else { x }
    }

    fn attention_forward(
        self,
        inner: &mut Reference<f32>,
        op: &AttentionForward,
    ) -> Result<(), ReferenceError> {
        let AttentionShape { time, heads, d_head, .. } = op.shape;
        let [q, k, v] = [op.q, op.k, op.v];
        let [q, k, v] = [Rows::read(inner, q)?, Rows::read(inner, k)?, Rows::read(inner, v)?];
        let mask = mask(inner, &op.dropout)?;
        let (mut out, mut lse) = (vec![0.0; op.out.len], vec![0.0; op.lse.len]);
        for (line, lse) in lse.iter_mut().enumerate() {
            let (b, h, i) = (line / time / heads, line / time % heads, line % time);
            let (first, kv) = (b * time, op.shape.kv_head(h));
            let q = q.part(first + i, h, d_head);
            let seen = 0..op.shape.seen(i);
            let scores: Vec<f32> =
                seen.map(|j| op.shape.scale as f32 * dot(q, k.part(first + j, kv, d_head))).collect();
            let most = scores.iter().fold(f32::NEG_INFINITY, |most, &score| most.max(score));
            let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
            let out = &mut out[((first + i) * heads + h) * d_head..][..d_head];
            for (j, score) in scores.iter().enumerate() {
                let p = self.inside_attention((score - most).exp());
                let p = mask.as_ref().map_or(p, |mask| mask.apply(line * time + j, p));
                out.iter_mut().zip(v.part(first + j, kv, d_head)).for_each(|(out, v)| *out += p * v);
            }
            out.iter_mut().for_each(|out| *out = self.round(*out / sum));
            *lse = most + sum.ln();
        }
        write_elems(inner, op.out, &out)?;
        write_elems(inner, op.lse, &lse)
    }

    fn attention_backward(
        self,
        inner: &mut Reference<f32>,
        op: &AttentionBackward,
    ) -> Result<(), ReferenceError> {
        let AttentionShape { time, heads, d_head, scale, .. } = op.shape;
        let [q, k, v] = [op.q, op.k, op.v];
        let [q, k, v] = [Rows::read(inner, q)?, Rows::read(inner, k)?, Rows::read(inner, v)?];
        let (out, lse) = (read_elems(inner, op.out)?, read_elems(inner, op.lse)?);
        let (d_out, mask) = (read_elems(inner, op.d_out)?, mask(inner, &op.dropout)?);
        let mut gradients =
            [Rows::read(inner, op.d_q)?, Rows::read(inner, op.d_k)?, Rows::read(inner, op.d_v)?];
        let widths = [heads, op.shape.kv_heads, op.shape.kv_heads].map(|heads| heads * d_head);
        let rows = op.shape.batch * time;
        for (gradient, width) in gradients.iter_mut().zip(widths) {
            (0..rows).for_each(|row| gradient.part_mut(row, 0, width).fill(0.0));
        }
        let [d_q, d_k, d_v] = &mut gradients;
        for (line, lse) in lse.iter().enumerate() {
            let (b, h, i) = (line / time / heads, line / time % heads, line % time);
            let (first, kv) = (b * time, op.shape.kv_head(h));
            let here = ((first + i) * heads + h) * d_head;
            let (out, d_out) = (&out[here..][..d_head], &d_out[here..][..d_head]);
            let (q, mean) = (q.part(first + i, h, d_head), dot(out, d_out));
            for j in 0..op.shape.seen(i) {
                let (k, v) = (k.part(first + j, kv, d_head), v.part(first + j, kv, d_head));
                let dropped = |x| mask.as_ref().map_or(x, |mask| mask.apply(line * time + j, x));
                let p = (scale as f32 * dot(q, k) - lse).exp();
                let d_s = self.inside_attention(p * (dropped(dot(d_out, v)) - mean)) * scale as f32;
                let w = self.inside_attention(dropped(p));
                let sums =
                    [(&mut *d_q, i, h, d_s, k), (&mut *d_k, j, kv, d_s, q), (&mut *d_v, j, kv, w, d_out)];
                for (to, row, head, factor, from) in sums {
                    let to = to.part_mut(first + row, head, d_head);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
                }
            }
        }
        for ((gradient, width), to) in gradients.iter_mut().zip(widths).zip([op.d_q, op.d_k, op.d_v]) {
            for row in 0..rows {
                self.round_all(gradient.part_mut(row, 0, width));
                write_elems(inner, to.span.slice(row * to.stride, width), gradient.part(row, 0, width))?;
            }
        }
        Ok(())
    }
}

/// An operand whose rows may lie apart.
struct Rows {
    data: Vec<f32>,
    stride: usize,
}

impl Rows {
    fn read(inner: &mut Reference<f32>, from: Strided) -> Result<Self, ReferenceError> {
        Ok(Rows { data: read_elems(inner, from.span)?, stride: from.stride })
    }

    fn part(&self, row: usize, part: usize, width: usize) -> &[f32] {
        &self.data[row * self.stride + part * width..][..width]
    }

    fn part_mut(&mut self, row: usize, part: usize, width: usize) -> &mut [f32] {
        &mut self.data[row * self.stride + part * width..][..width]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A matrix (`rows`, `cols`) of any type that weights have.
fn weight(
    inner: &mut Reference<f32>,
    from: Span,
    rows: usize,
    cols: usize,
) -> Result<Vec<f32>, ReferenceError> {
    let mut bytes = vec![0; from.bytes().unwrap_or(0)];
    inner.read(from, &mut bytes)?;
    let mut weight = vec![0.0; rows * cols];
    decode_weight(&bytes, from.dtype, &mut weight, rows, cols);
    Ok(weight)
}

fn mask(inner: &mut Reference<f32>, dropout: &Option<Dropout>) -> Result<Option<Mask>, ReferenceError> {
    let Some(dropout) = dropout else { return Ok(None) };
    let counters = read_u32(inner, dropout.counters)?;
    Ok(Some(Mask::new(dropout.probability, dropout.site, &counters).starting_at(dropout.first)))
}
