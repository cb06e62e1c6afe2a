//! The ops that only training runs.

mod optimizer;

use alloc::vec::Vec;

use super::{Together, check_tokens, read_mask, read_optional, read_tokens, write_optional, write_rows};
use crate::backend::{Backend, read_elems, read_u32, write_elems, write_u32};
use crate::config::Precision;
use crate::memory::{InvalidOp, zeros};
use crate::op::{
    ActivationForward, AttentionBackward, CrossEntropy, EmbeddingBackward, GateBackward, IGNORE,
    LinearBackward, Narrow, NextDraw, NormBackward, Normalize, Op, SquaredNorm, scalar,
};
use crate::real::Real;
use crate::reference::Rows;
use crate::reference::activation::activate;
use crate::reference::attention::attention_backward;
use crate::reference::cross_entropy::cross_entropy;
use crate::reference::embedding::embedding_backward;
use crate::reference::gate::gate_backward;
use crate::reference::linear::linear_backward;
use crate::reference::norm::norm_backward;
use crate::reference::optimizer::{next_draw, squared_norm};
use crate::reference::rounded;

/// Runs an op that only training has; of another it is an error.
pub(super) fn run<B: Backend + ?Sized>(backend: &mut B, op: &Op) -> Result<(), B::Error> {
    match op {
        Op::EmbeddingBackward(op) => embedding(backend, op),
        Op::NormBackward(op) => normalize(backend, op),
        Op::LinearBackward(op) => linear(backend, op),
        Op::ActivationForward(op) => activation(backend, op),
        Op::GateBackward(op) => gate(backend, op),
        Op::AttentionBackward(op) => attention(backend, op),
        Op::CrossEntropy(op) => loss(backend, op),
        Op::SquaredNorm(op) => norm(backend, op),
        Op::NextDraw(op) => draw(backend, op),
        Op::FinishStep(op) => optimizer::finish(backend, op),
        Op::AdamW(op) => optimizer::adamw(backend, op),
        Op::Sgd(op) => optimizer::sgd(backend, op),
        Op::Momentum(op) => optimizer::momentum(backend, op),
        Op::NewtonSchulz(op) => optimizer::orthogonalize(backend, op),
        Op::Descend(op) => optimizer::descend(backend, op),
        Op::Average(op) => optimizer::average(backend, op),
        Op::Narrow(op) => narrow(backend, op),
        Op::Fill(op) => backend.fill(op.to, op.value),
        _ => Err(InvalidOp::NoKernel.into()),
    }
}

fn embedding<B: Backend + ?Sized>(backend: &mut B, op: &EmbeddingBackward) -> Result<(), B::Error> {
    let tokens = read_tokens(backend, op.tokens, op.vocab)?;
    let mut d_out = read_elems(backend, op.d_out)?;
    let mut mask = read_mask(backend, &op.dropout)?;
    if Precision::of(op.d_out.dtype) == Precision::Bf16 {
        rounded::drop_out(mask.take().as_ref(), &mut d_out);
    }
    let d_position_span = op.d_position_embedding.map(|span| span.first(op.time * op.d_model));
    let mut d_token_embedding = read_optional(backend, op.d_token_embedding)?;
    let mut d_position_embedding = read_optional(backend, d_position_span)?;
    embedding_backward(
        &tokens,
        &d_out,
        mask.as_ref(),
        d_token_embedding.as_deref_mut(),
        d_position_embedding.as_deref_mut(),
        op.batch,
        op.time,
        op.d_model,
    );
    write_optional(backend, op.d_token_embedding, d_token_embedding.as_deref())?;
    write_optional(backend, d_position_span, d_position_embedding.as_deref())
}

fn normalize<B: Backend + ?Sized>(backend: &mut B, op: &NormBackward) -> Result<(), B::Error> {
    let width = op.groups * op.width;
    let x = read_elems(backend, op.x.span)?;
    let weight = read_elems(backend, op.weight)?;
    let mean = match op.kind {
        Normalize::Layer { mean } => Some(read_elems(backend, mean)?),
        Normalize::Rms => None,
    };
    let rstd = read_elems(backend, op.rstd)?;
    let d_y = read_elems(backend, op.d_y.span)?;
    let mut d_x = zeros("d_x", op.rows * width)?;
    let mut before: Option<Vec<B::Elem>> = None;
    if op.accumulate {
        let found = read_elems(backend, op.d_x.span)?;
        let found = Rows { data: &found, stride: op.d_x.stride };
        for (row, d_x) in d_x.chunks_exact_mut(width.max(1)).enumerate() {
            d_x.copy_from_slice(found.part(row, 0, width));
        }
        if Precision::of(op.d_x.span.dtype) == Precision::Bf16 {
            let sum = zeros("d_x", d_x.len())?;
            before = Some(core::mem::replace(&mut d_x, sum));
        }
    }
    let mut d_weight = read_optional(backend, op.d_weight)?;
    let mut d_bias = read_optional(backend, op.d_bias)?;
    norm_backward(
        Rows { data: &x, stride: op.x.stride },
        &weight,
        mean.as_deref(),
        &rstd,
        Rows { data: &d_y, stride: op.d_y.stride },
        &mut d_x,
        op.accumulate && before.is_none(),
        d_weight.as_deref_mut(),
        d_bias.as_deref_mut(),
        op.rows,
        op.groups,
        op.width,
    );
    if let Some(before) = before {
        rounded::add(&before, &mut d_x);
    }
    write_rows(backend, op.d_x, width, Rows { data: &d_x, stride: width })?;
    write_optional(backend, op.d_weight, d_weight.as_deref())?;
    write_optional(backend, op.d_bias, d_bias.as_deref())
}

fn linear<B: Backend + ?Sized>(backend: &mut B, op: &LinearBackward) -> Result<(), B::Error> {
    let x = read_elems(backend, op.x)?;
    let weight = read_elems(backend, op.weight)?;
    let mut d_y = read_elems(backend, op.d_y)?;
    let mask = read_mask(backend, &op.dropout)?;
    let input = read_optional(backend, op.activate.and_then(|activate| activate.input))?;
    let activated = op.activate.map(|activate| activate.activation).zip(input.as_deref());
    let mut d_x = read_optional(backend, op.d_x)?;
    let mut d_weight = read_optional(backend, op.d_weight)?;
    let mut d_bias = read_optional(backend, op.d_bias)?;
    let (rows, d_in, d_out) = (op.rows, op.d_in, op.d_out);
    match Precision::of(op.d_y.dtype) {
        Precision::F32 => linear_backward(
            &x,
            &weight,
            &d_y,
            mask.as_ref(),
            activated,
            d_x.as_deref_mut(),
            op.accumulate,
            d_weight.as_deref_mut(),
            d_bias.as_deref_mut(),
            rows,
            d_in,
            d_out,
        ),
        Precision::Bf16 => {
            let before = if op.accumulate { read_optional(backend, op.d_x)? } else { None };
            rounded::linear_gradient(
                &x,
                &weight,
                &mut d_y,
                mask.as_ref(),
                activated,
                d_x.as_deref_mut(),
                before.as_deref(),
                d_weight.as_deref_mut(),
                d_bias.as_deref_mut(),
                rows,
                d_in,
                d_out,
            );
        }
    }
    write_optional(backend, op.d_x, d_x.as_deref())?;
    write_optional(backend, op.d_weight, d_weight.as_deref())?;
    write_optional(backend, op.d_bias, d_bias.as_deref())
}

fn activation<B: Backend + ?Sized>(backend: &mut B, op: &ActivationForward) -> Result<(), B::Error> {
    let mut values = read_elems(backend, op.x)?;
    for value in &mut values {
        *value = activate(op.activation, *value);
    }
    write_elems(backend, op.y, &values)
}

fn gate<B: Backend + ?Sized>(backend: &mut B, op: &GateBackward) -> Result<(), B::Error> {
    let x = read_elems(backend, op.x)?;
    let d_y = read_elems(backend, op.d_y)?;
    let mut d_x = zeros("d_x", op.d_x.len)?;
    let gradient = match Precision::of(op.d_x.dtype) {
        Precision::F32 => gate_backward,
        Precision::Bf16 => rounded::gate_gradient,
    };
    gradient(&x, &d_y, op.activation, &mut d_x, op.rows, op.width);
    write_elems(backend, op.d_x, &d_x)
}

fn attention<B: Backend + ?Sized>(backend: &mut B, op: &AttentionBackward) -> Result<(), B::Error> {
    let heads = Together::read(backend, [op.q, op.k, op.v])?;
    let [q, k, v] = heads.rows();
    let out = read_elems(backend, op.out)?;
    let lse = read_elems(backend, op.lse)?;
    let d_out = read_elems(backend, op.d_out)?;
    let mask = read_mask(backend, &op.dropout)?;
    let shape = &op.shape;
    let [wide, narrow] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.d_head);
    let rows = shape.batch * shape.time;
    let mut d_q = zeros("d_q", rows * wide)?;
    let mut d_k = zeros("d_k", rows * narrow)?;
    let mut d_v = zeros("d_v", rows * narrow)?;
    attention_backward(q, k, v, &out, &lse, &d_out, mask.as_ref(), &mut d_q, &mut d_k, &mut d_v, shape);
    write_rows(backend, op.d_q, wide, Rows { data: &d_q, stride: wide })?;
    write_rows(backend, op.d_k, narrow, Rows { data: &d_k, stride: narrow })?;
    write_rows(backend, op.d_v, narrow, Rows { data: &d_v, stride: narrow })
}

fn loss<B: Backend + ?Sized>(backend: &mut B, op: &CrossEntropy) -> Result<(), B::Error> {
    let targets = read_u32(backend, op.targets)?;
    check_tokens(targets.iter().copied().filter(|&target| target != IGNORE), op.vocab)?;
    let logits = read_elems(backend, op.logits)?;
    let mut scalars = read_elems(backend, op.scalars)?;
    let mut d_logits = match op.d_logits {
        Some(span) => Some(zeros("d_logits", span.len)?),
        None => None,
    };
    let mut losses = match op.losses {
        Some(span) => Some(zeros("losses", span.len)?),
        None => None,
    };
    cross_entropy(
        &logits,
        &targets,
        d_logits.as_deref_mut(),
        losses.as_deref_mut(),
        &mut scalars,
        op.rows,
        op.vocab,
    );
    write_optional(backend, op.d_logits, d_logits.as_deref())?;
    write_optional(backend, op.losses, losses.as_deref())?;
    write_elems(backend, op.scalars, &scalars)
}

fn norm<B: Backend + ?Sized>(backend: &mut B, op: &SquaredNorm) -> Result<(), B::Error> {
    let x = read_elems(backend, op.x)?;
    let sum = B::Elem::from_f64(squared_norm(&x));
    write_elems(backend, op.scalars.slice(scalar::GRAD_SQUARED, 1), &[sum])
}

fn narrow<B: Backend + ?Sized>(backend: &mut B, op: &Narrow) -> Result<(), B::Error> {
    let values = read_elems(backend, op.from)?;
    write_elems(backend, op.to, &values)
}

fn draw<B: Backend + ?Sized>(backend: &mut B, op: &NextDraw) -> Result<(), B::Error> {
    let mut counters = read_u32(backend, op.counters)?;
    next_draw(&mut counters);
    write_u32(backend, op.counters, &counters)
}
