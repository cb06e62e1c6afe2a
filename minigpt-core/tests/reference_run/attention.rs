//! Attention, and the rotation of its queries and keys.

use minigpt_core::op::*;
use minigpt_core::reference::Rows;
use minigpt_core::reference::attention::*;
use minigpt_core::reference::rotary::*;
use minigpt_core::{InvalidOp, Pairing, Strided};

use super::memory::Memory;

#[test]
fn rotary_turns_by_as_many_rows_of_its_table_as_it_has_positions() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head) = (2, 3, 2, 4);
    let mut table = vec![0.0; 8 * d_head];
    rotary_table(&mut table, d_head, 100.0);
    let table_span = memory.put(&table);
    // As wide as the heads are, and with three numbers in between.
    for stride in [heads * d_head, heads * d_head + 3] {
        let (span, mut x) = memory.random(batch * time * stride);
        let columns = span.columns(0, heads * d_head, stride);
        for (inverse, pairing) in [
            (false, Pairing::Adjacent),
            (true, Pairing::Adjacent),
            (false, Pairing::Halves),
            (true, Pairing::Halves),
        ] {
            rotary(&mut x, stride, &table, pairing, inverse, batch, time, heads, d_head);
            let op = Rotary { x: columns, table: table_span, pairing, batch, time, heads, d_head, inverse };
            memory.expect(op, &[(span, &x)]);
        }
    }
}

/// A matrix with one number in each row that belongs to nobody, and its columns of queries, keys and values.
struct Parts {
    stride: usize,
    firsts: [usize; 3],
    widths: [usize; 3],
}

impl Parts {
    fn new(shape: &AttentionShape) -> Self {
        let widths = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.d_head);
        let [q, k, v] = widths;
        Parts { stride: q + k + v + 1, firsts: [0, q, q + k + 1], widths }
    }

    fn columns(&self, matrix: minigpt_core::Span) -> [Strided; 3] {
        core::array::from_fn(|part| matrix.columns(self.firsts[part], self.widths[part], self.stride))
    }

    fn rows<'a>(&self, matrix: &'a [f64]) -> [Rows<'a, f64>; 3] {
        self.firsts.map(|first| Rows { data: &matrix[first..], stride: self.stride })
    }

    /// Puts what lies row behind row in its place.
    fn put(&self, part: usize, numbers: &[f64], matrix: &mut [f64]) {
        for (row, numbers) in numbers.chunks(self.widths[part]).enumerate() {
            matrix[row * self.stride + self.firsts[part]..][..numbers.len()].copy_from_slice(numbers);
        }
    }
}

const SHAPE: AttentionShape =
    AttentionShape { batch: 2, time: 3, heads: 4, kv_heads: 2, d_head: 3, scale: 0.7, prefix: 0 };

#[test]
fn attention_forward_backward_and_scores_match_the_slices() {
    for prefix in [0, 2, 3, 7] {
        let (mut memory, shape) = (Memory::new(), AttentionShape { prefix, ..SHAPE });
        let AttentionShape { batch, time, heads, d_head, .. } = shape;
        let (parts, rows) = (Parts::new(&shape), batch * time);
        let (wide, lines) = (rows * heads * d_head, batch * heads * time);
        let (qkv_span, qkv) = memory.random(rows * parts.stride);
        let (d_qkv_span, mut d_qkv) = memory.random(rows * parts.stride);
        let (d_out_span, d_out) = memory.random(wide);
        let [out_span, lse_span] = [wide, lines].map(|len| memory.room(len));
        let scores_span = memory.room(lines * time);
        let (with_dropout, mask) = memory.dropout(0.4, 3);
        let ([q, k, v], [q_rows, k_rows, v_rows]) = (parts.columns(qkv_span), parts.rows(&qkv));
        for (dropout, mask) in [(with_dropout, Some(&mask)), (None, None)] {
            let (mut out, mut lse, mut row) = (vec![0.0; wide], vec![0.0; lines], vec![0.0; time]);
            attention_forward(q_rows, k_rows, v_rows, mask, &mut out, &mut lse, &mut row, &shape);
            let forward = AttentionForward { q, k, v, out: out_span, lse: lse_span, shape, dropout };
            memory.expect(forward, &[(out_span, &out), (lse_span, &lse)]);

            let [mut a, mut b, mut c] = parts.widths.map(|width| vec![0.0; rows * width]);
            let read = (&out[..], &lse[..], &d_out[..]);
            attention_backward(
                q_rows, k_rows, v_rows, read.0, read.1, read.2, mask, &mut a, &mut b, &mut c, &shape,
            );
            for (part, gradient) in [a, b, c].iter().enumerate() {
                parts.put(part, gradient, &mut d_qkv);
            }
            let [d_q, d_k, d_v] = parts.columns(d_qkv_span);
            let backward = AttentionBackward {
                q,
                k,
                v,
                out: out_span,
                lse: lse_span,
                d_out: d_out_span,
                d_q,
                d_k,
                d_v,
                shape,
                dropout,
            };
            // With what lies between them, which stays as it was.
            memory.expect(backward, &[(d_qkv_span, &d_qkv)]);
        }
        for softmax in [true, false] {
            let mut scores = vec![0.0; lines * time];
            attention_scores(q_rows, k_rows, &mut scores, softmax, &shape);
            memory.expect(
                AttentionScores { q, k, scores: scores_span, softmax, shape },
                &[(scores_span, &scores)],
            );
        }
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let (mut memory, parts) = (Memory::new(), Parts::new(&SHAPE));
    let AttentionShape { batch, time, heads, d_head, .. } = SHAPE;
    let (rows, lines) = (batch * time, batch * heads * time);
    let (qkv, _) = memory.random(rows * parts.stride);
    let [q, k, v] = parts.columns(qkv);
    let (out, lse) = (memory.room(lines * d_head), memory.room(lines));
    let good = AttentionForward { q, k, v, out, lse, shape: SHAPE, dropout: None };
    memory.run(good);
    let narrow = Strided { stride: heads * d_head - 1, ..q };
    memory.refuse(AttentionForward { q: narrow, ..good }, InvalidOp::Value { operand: "q" });
    let (expected, found) = (k.span.len, k.span.len - 1);
    let short = Strided { span: k.span.first(found), ..k };
    memory.refuse(AttentionForward { k: short, ..good }, InvalidOp::Length { operand: "k", expected, found });
    let uneven = AttentionShape { kv_heads: 3, ..SHAPE };
    memory.refuse(AttentionForward { shape: uneven, ..good }, InvalidOp::Value { operand: "kv_heads" });
    let none = AttentionShape { kv_heads: 0, ..SHAPE };
    memory.refuse(AttentionForward { shape: none, ..good }, InvalidOp::Value { operand: "kv_heads" });
    // Rows that would end beyond what can be counted.
    let far = Strided { stride: usize::MAX / 2, ..q };
    memory.refuse(AttentionForward { q: far, ..good }, InvalidOp::Overflow { operand: "q" });
}
