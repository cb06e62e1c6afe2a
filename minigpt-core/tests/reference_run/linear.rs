//! Linear layers, and weights in fewer bits.

use minigpt_core::op::*;
use minigpt_core::reference::embedding::embedding_forward;
use minigpt_core::reference::gate::*;
use minigpt_core::reference::linear::*;
use minigpt_core::reference::weights::decode_weight;
use minigpt_core::{Activation, Dtype, InvalidOp};

use super::memory::Memory;

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
        d_weight: Some(d_weight_span),
        d_bias: Some(d_bias_span),
        rows,
        d_in,
        d_out,
    };
    let (with_x, with_bias) = (Some(&mut d_x[..]), Some(&mut d_bias[..]));
    linear_backward(
        &x,
        &weight,
        &d_y,
        mask,
        None,
        with_x,
        true,
        Some(&mut d_weight),
        with_bias,
        rows,
        d_in,
        d_out,
    );
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
        Some(&mut d_weight),
        None,
        rows,
        d_in,
        d_out,
    );
    let activate = Some(Activate { activation, input: Some(input_span) });
    let through = LinearBackward { dropout: None, accumulate: false, activate, d_bias: None, ..op };
    memory.expect(through, &[(d_x_span, &d_x), (d_weight_span, &d_weight)]);

    linear_backward(&x, &weight, &d_y, mask, None, None, false, Some(&mut d_weight), None, rows, d_in, d_out);
    let first_layer = LinearBackward { d_x: None, accumulate: false, d_bias: None, ..op };
    memory.expect(first_layer, &[(d_weight_span, &d_weight)]);

    linear_backward(&x, &weight, &d_y, mask, None, Some(&mut d_x), true, None, None, rows, d_in, d_out);
    let frozen = LinearBackward { d_weight: None, d_bias: None, ..op };
    memory.expect(frozen, &[(d_x_span, &d_x)]);
}

#[test]
fn a_gate_goes_forward_and_back() {
    let mut memory = Memory::new();
    let (rows, width, activation) = (3, 4, Activation::Silu);
    let ((x_span, x), (d_y_span, d_y)) = (memory.random(rows * 2 * width), memory.random(rows * width));
    let y_span = memory.room(rows * width);
    let forward = GateForward { x: x_span, y: y_span, activation, rows, width };
    let mut y = vec![0.0; rows * width];
    gate_forward(&x, activation, &mut y, rows, width);
    memory.expect(forward, &[(y_span, &y)]);

    let d_x_span = memory.room(rows * 2 * width);
    let backward = GateBackward { x: x_span, d_y: d_y_span, d_x: d_x_span, activation, rows, width };
    let mut d_x = vec![0.0; rows * 2 * width];
    gate_backward(&x, &d_y, activation, &mut d_x, rows, width);
    memory.expect(backward, &[(d_x_span, &d_x)]);

    memory.refuse(GateForward { y: x_span.first(12), ..forward }, InvalidOp::Overlap { a: "x", b: "y" });
    let short = InvalidOp::Length { operand: "x", expected: 32, found: 24 };
    memory.refuse(GateForward { rows: 4, ..forward }, short);
}
