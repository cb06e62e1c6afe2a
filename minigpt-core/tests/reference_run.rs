//! `reference::run` carries memory: every op through the `Reference` backend changes exactly the bytes that the
//! slice function's results belong in, and a wrong descriptor changes none.

use minigpt_core::backend::{read_elems, read_u32, write_elems, write_u32};
use minigpt_core::op::*;
use minigpt_core::reference::attention::*;
use minigpt_core::reference::cross_entropy::cross_entropy;
use minigpt_core::reference::dropout::Mask;
use minigpt_core::reference::embedding::*;
use minigpt_core::reference::layernorm::*;
use minigpt_core::reference::linear::*;
use minigpt_core::reference::optimizer::*;
use minigpt_core::reference::rotary::*;
use minigpt_core::reference::weights::decode_weight;
use minigpt_core::reference::{Reference, ReferenceError};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::train::schedule::Schedule;
use minigpt_core::{
    Activation, Backend, BackendError, Buffer, Dtype, ErrorKind, Import, Imported, InvalidOp, OpKind, Span,
};

const SIZE: usize = 16 << 10;

/// One buffer of random bytes, in which operands lie with gaps between them.
struct Memory {
    backend: Reference<f64>,
    buffer: Buffer,
    end: usize,
    rng: Rng,
}

impl Memory {
    fn new() -> Self {
        let mut backend = Reference::new();
        let buffer = backend.alloc(SIZE).unwrap();
        let mut rng = Rng::new(1, Stream::User);
        let noise: Vec<u32> = (0..SIZE / 4).map(|_| rng.next_u32()).collect();
        let all = Span { buffer, dtype: Dtype::U32, offset: 0, len: SIZE / 4 };
        write_u32(&mut backend, all, &noise).unwrap();
        Memory { backend, buffer, end: 24, rng }
    }

    fn place(&mut self, dtype: Dtype, len: usize) -> Span {
        let span = Span { buffer: self.buffer, dtype, offset: self.end, len };
        self.end += span.bytes().unwrap().next_multiple_of(8) + 24;
        assert!(self.end < SIZE);
        span
    }

    fn put(&mut self, values: &[f64]) -> Span {
        let span = self.place(Dtype::F64, values.len());
        write_elems(&mut self.backend, span, values).unwrap();
        span
    }

    fn put_u32(&mut self, values: &[u32]) -> Span {
        let span = self.place(Dtype::U32, values.len());
        write_u32(&mut self.backend, span, values).unwrap();
        span
    }

    fn put_bytes(&mut self, dtype: Dtype, len: usize, bytes: &[u8]) -> Span {
        let span = self.place(dtype, len);
        self.backend.write(span, bytes).unwrap();
        span
    }

    /// `len` normal numbers, and where they are.
    fn random(&mut self, len: usize) -> (Span, Vec<f64>) {
        let values: Vec<f64> = (0..len).map(|_| self.rng.normal()).collect();
        (self.put(&values), values)
    }

    /// Room for `len` numbers, full of noise.
    fn room(&mut self, len: usize) -> Span {
        self.place(Dtype::F64, len)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        let all = Span { buffer: self.buffer, dtype: Dtype::U32, offset: 0, len: SIZE / 4 };
        self.backend.read(all, &mut bytes).unwrap();
        bytes
    }

    /// That running `op` puts the expected values in their spans and changes no other byte.
    fn expect(&mut self, op: impl Into<Op>, expected: &[(Span, &[f64])]) {
        let mut after = self.bytes();
        for (span, values) in expected {
            assert_eq!(span.len, values.len());
            for (i, value) in values.iter().enumerate() {
                after[span.offset + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let op = op.into();
        self.backend.run(&op).unwrap();
        for (span, values) in expected {
            assert_eq!(&read_elems(&mut self.backend, *span).unwrap(), values, "{op:?}");
        }
        assert!(self.bytes() == after, "{op:?} wrote outside its results");
    }

    /// That `op` is refused with `error` and changes nothing.
    fn refuse(&mut self, op: impl Into<Op>, error: InvalidOp) {
        let before = self.bytes();
        assert_eq!(self.backend.run(&op.into()), Err(ReferenceError::Op(error)));
        assert!(self.bytes() == before);
    }

    fn dropout(&mut self, probability: f64, site: u32) -> (Option<Dropout>, Mask) {
        let counters: Vec<u32> = (0..counter::LEN).map(|_| self.rng.next_u32()).collect();
        let span = self.put_u32(&counters);
        (Some(Dropout { probability, site, counters: span }), Mask::new(probability, site, &counters))
    }
}

#[test]
fn embedding_reads_its_rows_of_the_positions() {
    let mut memory = Memory::new();
    let (batch, time, d_model, vocab, start) = (2, 3, 4, 5, 2);
    let ids = [4, 0, 1, 1, 2, 4];
    let tokens = memory.put_u32(&ids);
    let (table_span, table) = memory.random(vocab * d_model);
    let (position_span, positions) = memory.random(7 * d_model);
    let (dropout, mask) = memory.dropout(0.3, 5);
    let mut out = vec![0.0; batch * time * d_model];
    let out_span = memory.room(out.len());

    let here = &positions[start * d_model..];
    embedding_forward(&ids, &table, Some(here), Some(&mask), &mut out, batch, time, d_model);
    let op = EmbeddingForward {
        tokens,
        token_embedding: table_span,
        position_embedding: Some(position_span),
        out: out_span,
        batch,
        time,
        d_model,
        vocab,
        start,
        dropout,
    };
    memory.expect(op, &[(out_span, &out)]);

    embedding_forward(&ids, &table, None, None, &mut out, batch, time, d_model);
    let plain = EmbeddingForward { position_embedding: None, dropout: None, ..op };
    memory.expect(plain, &[(out_span, &out)]);
}

#[test]
fn embedding_backward_adds_to_the_rows_it_read() {
    let mut memory = Memory::new();
    let (batch, time, d_model, vocab) = (2, 3, 4, 5);
    let ids = [4, 0, 1, 1, 2, 4];
    let tokens = memory.put_u32(&ids);
    let (d_out_span, d_out) = memory.random(batch * time * d_model);
    let (d_table_span, mut d_table) = memory.random(vocab * d_model);
    let (d_position_span, mut d_positions) = memory.random(5 * d_model);
    let (dropout, mask) = memory.dropout(0.3, 5);

    let d_position = Some(&mut d_positions[..time * d_model]);
    embedding_backward(&ids, &d_out, Some(&mask), &mut d_table, d_position, batch, time, d_model);
    let op = EmbeddingBackward {
        tokens,
        d_out: d_out_span,
        d_token_embedding: d_table_span,
        d_position_embedding: Some(d_position_span),
        batch,
        time,
        d_model,
        vocab,
        dropout,
    };
    memory.expect(op, &[(d_table_span, &d_table), (d_position_span, &d_positions)]);

    embedding_backward(&ids, &d_out, None, &mut d_table, None, batch, time, d_model);
    memory.expect(
        EmbeddingBackward { d_position_embedding: None, dropout: None, ..op },
        &[(d_table_span, &d_table)],
    );
}

#[test]
fn layernorm_writes_its_statistics() {
    let mut memory = Memory::new();
    let (rows, width, eps) = (3, 5, 1e-3);
    let (x_span, x) = memory.random(rows * width);
    let (weight_span, weight) = memory.random(width);
    let (bias_span, bias) = memory.random(width);
    let [y_span, mean_span, rstd_span] = [rows * width, rows, rows].map(|len| memory.room(len));
    for bias in [Some((bias_span, &bias[..])), None] {
        let (mut y, mut mean, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
        let values = bias.map(|(_, values)| values);
        layernorm_forward(&x, &weight, values, &mut y, &mut mean, &mut rstd, rows, width, eps);
        let op = LayerNormForward {
            x: x_span,
            weight: weight_span,
            bias: bias.map(|(span, _)| span),
            y: y_span,
            mean: mean_span,
            rstd: rstd_span,
            rows,
            width,
            eps,
        };
        memory.expect(op, &[(y_span, &y), (mean_span, &mean), (rstd_span, &rstd)]);
    }
}

#[test]
fn layernorm_backward_accumulates_or_overwrites_even_in_place() {
    let mut memory = Memory::new();
    let (rows, width) = (3, 5);
    let (x_span, x) = memory.random(rows * width);
    let (weight_span, weight) = memory.random(width);
    let (mean_span, mean) = memory.random(rows);
    let (rstd_span, rstd) = memory.random(rows);
    let (d_y_span, d_y) = memory.random(rows * width);
    let (d_x_span, mut d_x) = memory.random(rows * width);
    let (d_weight_span, mut d_weight) = memory.random(width);
    let (d_bias_span, mut d_bias) = memory.random(width);
    let op = LayerNormBackward {
        x: x_span,
        weight: weight_span,
        mean: mean_span,
        rstd: rstd_span,
        d_y: d_y_span,
        d_x: d_x_span,
        accumulate: true,
        d_weight: d_weight_span,
        d_bias: Some(d_bias_span),
        rows,
        width,
    };
    let with = Some(&mut d_bias[..]);
    layernorm_backward(&x, &weight, &mean, &rstd, &d_y, &mut d_x, true, &mut d_weight, with, rows, width);
    memory.expect(op, &[(d_x_span, &d_x), (d_weight_span, &d_weight), (d_bias_span, &d_bias)]);

    layernorm_backward(&x, &weight, &mean, &rstd, &d_y, &mut d_x, false, &mut d_weight, None, rows, width);
    let in_place = LayerNormBackward { d_x: d_y_span, accumulate: false, d_bias: None, ..op };
    memory.expect(in_place, &[(d_y_span, &d_x), (d_weight_span, &d_weight)]);
}

#[test]
fn linear_keeps_the_activations_input_and_may_write_over_its_residual() {
    let mut memory = Memory::new();
    let (rows, d_in, d_out) = (3, 4, 5);
    let (x_span, x) = memory.random(rows * d_in);
    let (weight_span, weight) = memory.random(d_out * d_in);
    let (bias_span, bias) = memory.random(d_out);
    let (y_span, residual) = memory.random(rows * d_out);
    let input_span = memory.room(rows * d_out);
    let (dropout, mask) = memory.dropout(0.4, 3);
    let activation = Activation::GeluErf;

    let (mut input, mut y) = (vec![0.0; rows * d_out], vec![0.0; rows * d_out]);
    linear_forward(
        &x,
        &weight,
        Some(&bias),
        Some(activation),
        Some(&mut input),
        Some(&mask),
        Some(&residual),
        &mut y,
        rows,
        d_in,
        d_out,
    );
    let op = LinearForward {
        x: x_span,
        weight: weight_span,
        bias: Some(bias_span),
        activate: Some(Activate { activation, input: Some(input_span) }),
        dropout,
        residual: Some(y_span),
        y: y_span,
        rows,
        d_in,
        d_out,
    };
    memory.expect(op, &[(input_span, &input), (y_span, &y)]);

    linear_forward(&x, &weight, None, Some(activation), None, None, None, &mut y, rows, d_in, d_out);
    let activate = Some(Activate { activation, input: None });
    let bare = LinearForward { bias: None, activate, dropout: None, residual: None, ..op };
    memory.expect(bare, &[(y_span, &y)]);
}

#[test]
fn weights_may_be_half_precision_or_quantised() {
    for (dtype, stored) in [(Dtype::F16, 37), (Dtype::Bf16, 37), (Dtype::Q8_0, 64), (Dtype::Q4_0, 64)] {
        let mut memory = Memory::new();
        let (rows, d_in, d_out) = (2, 37, 3);
        let (x_span, x) = memory.random(rows * d_in);
        // Bytes below 0x40 are finite in every format.
        let size = dtype.bytes(d_out * stored).unwrap();
        let bytes: Vec<u8> = (0..size).map(|_| memory.rng.below(0x40) as u8).collect();
        let weight_span = memory.put_bytes(dtype, d_out * stored, &bytes);
        let y_span = memory.room(rows * d_out);

        let mut weight = vec![0.0f64; d_out * d_in];
        decode_weight(&bytes, dtype, &mut weight, d_out, d_in);
        assert!(weight.iter().all(|w| w.is_finite()) && weight.iter().any(|&w| w != 0.0));
        let mut y = vec![0.0; rows * d_out];
        linear_forward(&x, &weight, None, None, None, None, None, &mut y, rows, d_in, d_out);
        let op = LinearForward {
            x: x_span,
            weight: weight_span,
            bias: None,
            activate: None,
            dropout: None,
            residual: None,
            y: y_span,
            rows,
            d_in,
            d_out,
        };
        memory.expect(op, &[(y_span, &y)]);

        let ids = [2, 0];
        let tokens = memory.put_u32(&ids);
        let out_span = memory.room(2 * d_in);
        let mut out = vec![0.0; 2 * d_in];
        embedding_forward(&ids, &weight, None, None, &mut out, 1, 2, d_in);
        let op = EmbeddingForward {
            tokens,
            token_embedding: weight_span,
            position_embedding: None,
            out: out_span,
            batch: 1,
            time: 2,
            d_model: d_in,
            vocab: d_out,
            start: 0,
            dropout: None,
        };
        memory.expect(op, &[(out_span, &out)]);
    }
}

#[test]
fn linear_backward_writes_what_it_is_asked_for() {
    let mut memory = Memory::new();
    let (rows, d_in, d_out) = (3, 4, 5);
    let (x_span, x) = memory.random(rows * d_in);
    let (weight_span, weight) = memory.random(d_out * d_in);
    let (d_y_span, d_y) = memory.random(rows * d_out);
    let (input_span, input) = memory.random(rows * d_in);
    let (d_x_span, mut d_x) = memory.random(rows * d_in);
    let (d_weight_span, mut d_weight) = memory.random(d_out * d_in);
    let (d_bias_span, mut d_bias) = memory.random(d_out);
    let (dropout, mask) = memory.dropout(0.4, 3);
    let mask = Some(&mask);
    let op = LinearBackward {
        x: x_span,
        weight: weight_span,
        d_y: d_y_span,
        dropout,
        d_x: Some(d_x_span),
        accumulate: true,
        activate: None,
        d_weight: d_weight_span,
        d_bias: Some(d_bias_span),
        rows,
        d_in,
        d_out,
    };
    let (with_x, with_bias) = (Some(&mut d_x[..]), Some(&mut d_bias[..]));
    linear_backward(&x, &weight, &d_y, mask, None, with_x, true, &mut d_weight, with_bias, rows, d_in, d_out);
    memory.expect(op, &[(d_x_span, &d_x), (d_weight_span, &d_weight), (d_bias_span, &d_bias)]);

    let activation = Activation::GeluTanh;
    let activated = Some((activation, &input[..]));
    let with_x = Some(&mut d_x[..]);
    linear_backward(
        &x,
        &weight,
        &d_y,
        None,
        activated,
        with_x,
        false,
        &mut d_weight,
        None,
        rows,
        d_in,
        d_out,
    );
    let activate = Some(Activate { activation, input: Some(input_span) });
    let through = LinearBackward { dropout: None, accumulate: false, activate, d_bias: None, ..op };
    memory.expect(through, &[(d_x_span, &d_x), (d_weight_span, &d_weight)]);

    linear_backward(&x, &weight, &d_y, mask, None, None, false, &mut d_weight, None, rows, d_in, d_out);
    let first_layer = LinearBackward { d_x: None, accumulate: false, d_bias: None, ..op };
    memory.expect(first_layer, &[(d_weight_span, &d_weight)]);
}

#[test]
fn rotary_turns_by_the_rows_of_its_positions() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head, start) = (2, 3, 2, 4, 3);
    let (qkv_span, mut qkv) = memory.random(batch * time * 3 * heads * d_head);
    let mut table = vec![0.0; 8 * d_head];
    rotary_table(&mut table, d_head);
    let table_span = memory.put(&table);
    for inverse in [false, true] {
        rotary(&mut qkv, &table[start * d_head..], inverse, batch, time, heads, d_head);
        let op = Rotary { qkv: qkv_span, table: table_span, batch, time, heads, d_head, start, inverse };
        memory.expect(op, &[(qkv_span, &qkv)]);
    }
}

#[test]
fn attention_forward_backward_and_scores_match_the_slices() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head, scale) = (2, 3, 2, 4, 0.7);
    let wide = batch * time * heads * d_head;
    let (qkv_span, qkv) = memory.random(3 * wide);
    let (d_out_span, d_out) = memory.random(wide);
    let [out_span, lse_span] = [wide, batch * heads * time].map(|len| memory.room(len));
    let d_qkv_span = memory.room(3 * wide);
    let scores_span = memory.room(batch * heads * time * time);
    let (with_dropout, mask) = memory.dropout(0.4, 3);
    for (dropout, mask) in [(with_dropout, Some(&mask)), (None, None)] {
        let (mut out, mut lse) = (vec![0.0; wide], vec![0.0; batch * heads * time]);
        let mut row = vec![0.0; time];
        attention_forward(&qkv, mask, &mut out, &mut lse, &mut row, batch, time, heads, d_head, scale);
        let forward = AttentionForward {
            qkv: qkv_span,
            out: out_span,
            lse: lse_span,
            batch,
            time,
            heads,
            d_head,
            scale,
            dropout,
        };
        memory.expect(forward, &[(out_span, &out), (lse_span, &lse)]);

        let mut d_qkv = vec![0.0; 3 * wide];
        attention_backward(&qkv, &out, &lse, &d_out, mask, &mut d_qkv, batch, time, heads, d_head, scale);
        let backward = AttentionBackward {
            qkv: qkv_span,
            out: out_span,
            lse: lse_span,
            d_out: d_out_span,
            d_qkv: d_qkv_span,
            batch,
            time,
            heads,
            d_head,
            scale,
            dropout,
        };
        memory.expect(backward, &[(d_qkv_span, &d_qkv)]);
    }
    for softmax in [true, false] {
        let mut scores = vec![0.0; batch * heads * time * time];
        attention_scores(&qkv, &mut scores, softmax, batch, time, heads, d_head, scale);
        let op = AttentionScores {
            qkv: qkv_span,
            scores: scores_span,
            softmax,
            batch,
            time,
            heads,
            d_head,
            scale,
        };
        memory.expect(op, &[(scores_span, &scores)]);
    }
}

#[test]
fn cached_attention_stores_the_new_keys_and_values() {
    let mut memory = Memory::new();
    let (batch, time, heads, d_head, scale) = (2, 2, 2, 3, 0.7);
    let (past, capacity) = (1, 4);
    let wide = batch * time * heads * d_head;
    let (qkv_span, qkv) = memory.random(3 * wide);
    let (key_span, mut keys) = memory.random(batch * heads * capacity * d_head);
    let (value_span, mut values) = memory.random(batch * heads * capacity * d_head);
    let out_span = memory.room(wide);
    let (mut out, mut row) = (vec![0.0; wide], vec![0.0; past + time]);
    attention_cached(
        &qkv,
        &mut keys,
        &mut values,
        &mut out,
        &mut row,
        past,
        capacity,
        batch,
        time,
        heads,
        d_head,
        scale,
    );
    let op = AttentionCached {
        qkv: qkv_span,
        keys: key_span,
        values: value_span,
        out: out_span,
        past,
        capacity,
        batch,
        time,
        heads,
        d_head,
        scale,
    };
    memory.expect(op, &[(key_span, &keys), (value_span, &values), (out_span, &out)]);
}

#[test]
fn cross_entropy_may_write_over_its_logits() {
    let mut memory = Memory::new();
    let (rows, vocab) = (3, 4);
    let (logits_span, logits) = memory.random(rows * vocab);
    let ids = [3, IGNORE, 0];
    let targets = memory.put_u32(&ids);
    let losses_span = memory.room(rows);
    let (scalars_span, mut scalars) = memory.random(scalar::LEN);

    cross_entropy(&logits, &ids, None, None, &mut scalars, rows, vocab);
    let op = CrossEntropy {
        logits: logits_span,
        targets,
        d_logits: None,
        losses: None,
        scalars: scalars_span,
        rows,
        vocab,
    };
    memory.expect(op, &[(scalars_span, &scalars)]);

    let (mut d_logits, mut losses) = (vec![0.0; rows * vocab], vec![0.0; rows]);
    cross_entropy(&logits, &ids, Some(&mut d_logits), Some(&mut losses), &mut scalars, rows, vocab);
    let in_place = CrossEntropy { d_logits: Some(logits_span), losses: Some(losses_span), ..op };
    memory.expect(in_place, &[(logits_span, &d_logits), (losses_span, &losses), (scalars_span, &scalars)]);
}

#[test]
fn a_step_is_closed_and_applied() {
    let mut memory = Memory::new();
    let (schedule, clip, beta1, beta2) = (Schedule::constant(0.1), 1.0, 0.9, 0.99);
    let (grads_span, grads) = memory.random(9);
    let (params_span, mut params) = memory.random(9);
    let (m_span, mut m) = memory.random(9);
    let mut v: Vec<f64> = m.iter().map(|m| m * m).collect();
    let v_span = memory.put(&v);
    let mut scalars = vec![0.0; scalar::LEN];
    (scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]) = (8.0, 4.0);
    let scalars_span = memory.put(&scalars);
    let mut counters = vec![3; counter::LEN];
    let counters_span = memory.put_u32(&counters);

    scalars[scalar::GRAD_SQUARED] = squared_norm(&grads);
    assert!(scalars[scalar::GRAD_SQUARED] > 0.0);
    let norm = SquaredNorm { x: grads_span, scalars: scalars_span };
    memory.expect(norm, &[(scalars_span, &scalars)]);

    // Counters are not of the type that `expect` compares: read them for themselves.
    next_draw(&mut counters);
    memory.backend.run(&NextDraw { counters: counters_span }.into()).unwrap();
    assert_eq!(read_u32(&mut memory.backend, counters_span).unwrap(), counters);

    finish_step(&mut scalars, &mut counters, &schedule, clip, beta1, beta2);
    let finish = FinishStep { scalars: scalars_span, counters: counters_span, schedule, clip, beta1, beta2 };
    memory.backend.run(&finish.into()).unwrap();
    assert_eq!(read_elems(&mut memory.backend, scalars_span).unwrap(), scalars);
    assert_eq!(read_u32(&mut memory.backend, counters_span).unwrap(), counters);

    let (decayed, eps, weight_decay) = (5, 1e-8, 0.1);
    adamw(&mut params, &grads, &mut m, &mut v, &scalars, decayed, beta1, beta2, eps, weight_decay);
    let update = AdamW {
        params: params_span,
        grads: grads_span,
        m: m_span,
        v: v_span,
        scalars: scalars_span,
        decayed,
        beta1,
        beta2,
        eps,
        weight_decay,
    };
    memory.expect(update, &[(params_span, &params), (m_span, &m), (v_span, &v)]);

    write_elems(&mut memory.backend, scalars_span.slice(scalar::APPLY, 1), &[0.0]).unwrap();
    memory.expect(update, &[]);
}

/// Five tokens into a table of three rows.
fn small_embedding(memory: &mut Memory, ids: &[u32]) -> EmbeddingForward {
    EmbeddingForward {
        tokens: memory.put_u32(ids),
        token_embedding: memory.random(3 * 2).0,
        position_embedding: None,
        out: memory.room(ids.len() * 2),
        batch: 1,
        time: ids.len(),
        d_model: 2,
        vocab: 3,
        start: 0,
        dropout: None,
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_before_anything_is_written() {
    for bad in [3, 4, IGNORE] {
        let mut memory = Memory::new();
        let op = small_embedding(&mut memory, &[0, 2, bad, 1]);
        let error = InvalidOp::Token { token: bad, vocab: 3 };
        memory.refuse(op, error);
        let backward = EmbeddingBackward {
            tokens: op.tokens,
            d_out: op.out,
            d_token_embedding: op.token_embedding,
            d_position_embedding: None,
            batch: 1,
            time: 4,
            d_model: 2,
            vocab: 3,
            dropout: None,
        };
        memory.refuse(backward, error);
        if bad != IGNORE {
            let logits = memory.random(4 * 3).0;
            let scalars = memory.random(scalar::LEN).0;
            memory.refuse(
                CrossEntropy {
                    logits,
                    targets: op.tokens,
                    d_logits: Some(logits),
                    losses: None,
                    scalars,
                    rows: 4,
                    vocab: 3,
                },
                error,
            );
        }
    }
}

#[test]
fn a_span_past_its_buffer_is_refused_before_anything_is_written() {
    let mut memory = Memory::new();
    let op = small_embedding(&mut memory, &[0, 2, 1]);
    let end = |span: Span| span.offset + span.bytes().unwrap();
    let moved = |span: Span| Span { offset: SIZE - 8, ..span };
    for (op, span) in [
        (EmbeddingForward { tokens: moved(op.tokens), ..op }, moved(op.tokens)),
        (EmbeddingForward { token_embedding: moved(op.token_embedding), ..op }, moved(op.token_embedding)),
        (EmbeddingForward { out: moved(op.out), ..op }, moved(op.out)),
    ] {
        memory.refuse(op, InvalidOp::OutOfBounds { operand: "read", end: end(span), size: SIZE });
    }
}

#[test]
fn a_descriptor_of_astronomical_size_is_an_error_and_not_an_abort() {
    let mut memory = Memory::new();
    let buffer = memory.buffer;
    let span = |len| Span { buffer, dtype: Dtype::F64, offset: 0, len };
    let (x, scalars) = (span(1 << 58), Span { offset: 1 << 62, ..span(scalar::LEN) });
    let op = SquaredNorm { x, scalars };
    memory.refuse(op, InvalidOp::OutOfBounds { operand: "read", end: 1 << 61, size: SIZE });

    // All spans are empty, and the loops over the rows would never end.
    let nothing = span(0);
    let linear = LinearForward {
        x: nothing,
        weight: nothing,
        bias: None,
        activate: None,
        dropout: None,
        residual: None,
        y: nothing,
        rows: usize::MAX,
        d_in: 0,
        d_out: 0,
    };
    memory.expect(linear, &[]);

    // A row of this many elements cannot even be padded to whole blocks.
    let weight = Span { dtype: Dtype::Q8_0, ..nothing };
    let endless = LinearForward { weight, rows: 0, d_in: usize::MAX, ..linear };
    memory.refuse(endless, InvalidOp::Overflow { operand: "weight" });
}

#[test]
fn an_op_that_fails_its_check_is_refused() {
    let mut memory = Memory::new();
    let op = small_embedding(&mut memory, &[0, 2, 1]);
    let longer = EmbeddingForward { batch: 2, ..op };
    memory.refuse(longer, InvalidOp::Length { operand: "tokens", expected: 6, found: 3 });
    let over = EmbeddingForward { out: op.token_embedding, ..op };
    memory.refuse(over, InvalidOp::Overlap { a: "token_embedding", b: "out" });
}

#[test]
fn an_operand_may_be_empty() {
    let mut memory = Memory::new();
    let (scalars_span, mut scalars) = memory.random(scalar::LEN);
    scalars[scalar::GRAD_SQUARED] = 0.0;
    let nothing = Span { len: 0, ..scalars_span };
    memory.expect(SquaredNorm { x: nothing, scalars: scalars_span }, &[(scalars_span, &scalars)]);
}

/// Claims to hold any span, and counts what falls back to the reference.
#[derive(Default)]
struct Hollow {
    fallbacks: Vec<OpKind>,
}

impl Backend for Hollow {
    type Elem = f32;
    type Error = ReferenceError;
    fn alloc(&mut self, _: usize) -> Result<Buffer, ReferenceError> {
        Ok(Buffer(0))
    }
    fn write(&mut self, _: Span, _: &[u8]) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn read(&mut self, _: Span, _: &mut [u8]) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn copy(&mut self, _: Span, _: Span) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn fill(&mut self, _: Span, _: f64) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn sync(&mut self) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn fell_back(&mut self, op: OpKind) {
        self.fallbacks.push(op);
    }
}

#[test]
fn every_run_tells_the_backend_that_it_fell_back() {
    let mut backend = Hollow::default();
    let counters = Span { buffer: Buffer(0), dtype: Dtype::U32, offset: 0, len: counter::LEN };
    backend.run(&NextDraw { counters }.into()).unwrap();
    let x = Span { dtype: Dtype::F32, ..counters };
    backend.run(&SquaredNorm { x, scalars: Span { offset: 64, ..x } }.into()).unwrap();
    assert_eq!(backend.fallbacks, [OpKind::NextDraw, OpKind::SquaredNorm]);
}

#[test]
fn what_the_host_cannot_hold_is_out_of_memory_and_not_an_abort() {
    let mut backend = Hollow::default();
    let x = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len: 1 << 60 };
    let scalars = Span { offset: 1 << 62, len: scalar::LEN, ..x };
    let error = backend.run(&SquaredNorm { x, scalars }.into()).unwrap_err();
    assert_eq!(error, ReferenceError::Op(InvalidOp::HostMemory { operand: "read", bytes: 1 << 62 }));
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let tokens = Span { dtype: Dtype::U32, ..x };
    assert_eq!(read_u32(&mut backend, tokens).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn an_imported_buffer_holds_its_bytes() {
    let mut backend = Reference::<f32>::new();
    let bytes: Vec<u8> = (0..11).collect();
    let Imported::Copied(buffer) = backend.import(&bytes).unwrap() else {
        panic!("the reference has memory of its own")
    };
    let mut read = [9; 12];
    backend.read(Span { buffer, dtype: Dtype::U32, offset: 0, len: 3 }, &mut read).unwrap();
    assert_eq!(read, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
}

#[test]
fn single_precision_runs_the_same_ops() {
    let mut backend = Reference::<f32>::new();
    let buffer = backend.alloc(256).unwrap();
    let x = Span { buffer, dtype: Dtype::F32, offset: 0, len: 2 };
    let scalars = Span { offset: 64, len: scalar::LEN, ..x };
    write_elems(&mut backend, x, &[3.0, 4.0]).unwrap();
    backend.run(&SquaredNorm { x, scalars }.into()).unwrap();
    let read = read_elems(&mut backend, scalars).unwrap();
    assert_eq!(read[scalar::GRAD_SQUARED], 25.0);
    assert_eq!(read.iter().filter(|&&s| s != 0.0).count(), 1);
}
