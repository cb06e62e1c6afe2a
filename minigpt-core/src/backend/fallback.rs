//! [`fall_back`]: carries the operands of an op from a backend's memory to the reference functions and back.

use alloc::vec::Vec;

#[cfg(feature = "train")]
use super::write_u32;
use super::{Backend, read_elems, read_u32, write_elems};
use crate::memory::{InvalidOp, Span, zeros};
use crate::op::{Access, Dropout, Op, Operands};
#[cfg(feature = "train")]
use crate::op::{IGNORE, scalar};
use crate::real::Real;
#[cfg(feature = "train")]
use crate::reference::{
    activation::activate,
    attention::attention_backward,
    cross_entropy::cross_entropy,
    embedding::embedding_backward,
    layernorm::layernorm_backward,
    linear::linear_backward,
    optimizer::{adamw, finish_step, next_draw, squared_norm},
};
use crate::reference::{
    attention::{attention_cached, attention_forward, attention_scores},
    dropout::Mask,
    embedding::embedding_forward,
    layernorm::layernorm_forward,
    linear::linear_forward,
    rotary::rotary,
    weights::decode_weight,
};

/// Runs an op on any backend: reads its operands, computes, writes the results back.
///
/// All operands are read before any result is written, so a span may stand in two places wherever [`Op::check`]
/// allows it, and an op that fails a check has changed nothing.
///
/// # Errors
/// [`InvalidOp`] if the descriptor is wrong or a token is outside the vocabulary, and whatever error the backend
/// has for transfers. Never a panic, whatever the descriptor says.
pub fn fall_back<B: Backend + ?Sized>(backend: &mut B, op: &Op) -> Result<(), B::Error> {
    let operands = op.check(B::Elem::DTYPE)?;
    // A method that every backend has, and may do later.
    #[cfg(feature = "train")]
    if let Op::Fill(op) = op {
        return backend.fill(op.to, op.value);
    }
    backend.fell_back(op.kind());
    // Nothing to do; and dimensions that no span bounds could be astronomical.
    if operands.iter().all(|operand| operand.access == Access::Read || operand.span.len == 0) {
        return Ok(());
    }
    touch_ends(backend, &operands)?;
    match op {
        Op::EmbeddingForward(op) => {
            let tokens = read_tokens(backend, op.tokens, op.vocab)?;
            let token_embedding = read_weight(backend, op.token_embedding, op.vocab, op.d_model)?;
            let position_embedding = match op.position_embedding {
                Some(span) => {
                    Some(read_elems(backend, span.slice(op.start * op.d_model, op.time * op.d_model))?)
                }
                None => None,
            };
            let mask = read_mask(backend, &op.dropout)?;
            let mut out = zeros("out", op.out.len)?;
            embedding_forward(
                &tokens,
                &token_embedding,
                position_embedding.as_deref(),
                mask.as_ref(),
                &mut out,
                op.batch,
                op.time,
                op.d_model,
            );
            write_elems(backend, op.out, &out)
        }
        #[cfg(feature = "train")]
        Op::EmbeddingBackward(op) => {
            let tokens = read_tokens(backend, op.tokens, op.vocab)?;
            let d_out = read_elems(backend, op.d_out)?;
            let mask = read_mask(backend, &op.dropout)?;
            let d_position_span = op.d_position_embedding.map(|span| span.first(op.time * op.d_model));
            let mut d_token_embedding = read_elems(backend, op.d_token_embedding)?;
            let mut d_position_embedding = read_optional(backend, d_position_span)?;
            embedding_backward(
                &tokens,
                &d_out,
                mask.as_ref(),
                &mut d_token_embedding,
                d_position_embedding.as_deref_mut(),
                op.batch,
                op.time,
                op.d_model,
            );
            write_elems(backend, op.d_token_embedding, &d_token_embedding)?;
            write_optional(backend, d_position_span, d_position_embedding.as_deref())
        }
        Op::LayerNormForward(op) => {
            let x = read_elems(backend, op.x)?;
            let weight = read_elems(backend, op.weight)?;
            let bias = read_optional(backend, op.bias)?;
            let mut y = zeros("y", op.y.len)?;
            let mut mean = zeros("mean", op.rows)?;
            let mut rstd = zeros("rstd", op.rows)?;
            layernorm_forward(
                &x,
                &weight,
                bias.as_deref(),
                &mut y,
                &mut mean,
                &mut rstd,
                op.rows,
                op.width,
                op.eps,
            );
            write_elems(backend, op.y, &y)?;
            write_elems(backend, op.mean, &mean)?;
            write_elems(backend, op.rstd, &rstd)
        }
        #[cfg(feature = "train")]
        Op::LayerNormBackward(op) => {
            let x = read_elems(backend, op.x)?;
            let weight = read_elems(backend, op.weight)?;
            let mean = read_elems(backend, op.mean)?;
            let rstd = read_elems(backend, op.rstd)?;
            let d_y = read_elems(backend, op.d_y)?;
            let mut d_x = read_elems(backend, op.d_x)?;
            let mut d_weight = read_elems(backend, op.d_weight)?;
            let mut d_bias = read_optional(backend, op.d_bias)?;
            layernorm_backward(
                &x,
                &weight,
                &mean,
                &rstd,
                &d_y,
                &mut d_x,
                op.accumulate,
                &mut d_weight,
                d_bias.as_deref_mut(),
                op.rows,
                op.width,
            );
            write_elems(backend, op.d_x, &d_x)?;
            write_elems(backend, op.d_weight, &d_weight)?;
            write_optional(backend, op.d_bias, d_bias.as_deref())
        }
        Op::LinearForward(op) => {
            let x = read_elems(backend, op.x)?;
            let weight = read_weight(backend, op.weight, op.d_out, op.d_in)?;
            let bias = read_optional(backend, op.bias)?;
            let residual = read_optional(backend, op.residual)?;
            let mask = read_mask(backend, &op.dropout)?;
            let input_span = op.activate.and_then(|activate| activate.input);
            let mut input = match input_span {
                Some(span) => Some(zeros("activate.input", span.len)?),
                None => None,
            };
            let mut y = zeros("y", op.y.len)?;
            linear_forward(
                &x,
                &weight,
                bias.as_deref(),
                op.activate.map(|activate| activate.activation),
                input.as_deref_mut(),
                mask.as_ref(),
                residual.as_deref(),
                &mut y,
                op.rows,
                op.d_in,
                op.d_out,
            );
            write_optional(backend, input_span, input.as_deref())?;
            write_elems(backend, op.y, &y)
        }
        #[cfg(feature = "train")]
        Op::LinearBackward(op) => {
            let x = read_elems(backend, op.x)?;
            let weight = read_elems(backend, op.weight)?;
            let d_y = read_elems(backend, op.d_y)?;
            let mask = read_mask(backend, &op.dropout)?;
            let input = read_optional(backend, op.activate.and_then(|activate| activate.input))?;
            let activated = op.activate.map(|activate| activate.activation).zip(input.as_deref());
            let mut d_x = read_optional(backend, op.d_x)?;
            let mut d_weight = read_elems(backend, op.d_weight)?;
            let mut d_bias = read_optional(backend, op.d_bias)?;
            linear_backward(
                &x,
                &weight,
                &d_y,
                mask.as_ref(),
                activated,
                d_x.as_deref_mut(),
                op.accumulate,
                &mut d_weight,
                d_bias.as_deref_mut(),
                op.rows,
                op.d_in,
                op.d_out,
            );
            write_optional(backend, op.d_x, d_x.as_deref())?;
            write_elems(backend, op.d_weight, &d_weight)?;
            write_optional(backend, op.d_bias, d_bias.as_deref())
        }
        #[cfg(feature = "train")]
        Op::ActivationForward(op) => {
            let mut values = read_elems(backend, op.x)?;
            for value in &mut values {
                *value = activate(op.activation, *value);
            }
            write_elems(backend, op.y, &values)
        }
        Op::Rotary(op) => {
            let table = read_elems(backend, op.table.slice(op.start * op.d_head, op.time * op.d_head))?;
            let mut qkv = read_elems(backend, op.qkv)?;
            rotary(&mut qkv, &table, op.inverse, op.batch, op.time, op.heads, op.d_head);
            write_elems(backend, op.qkv, &qkv)
        }
        Op::AttentionForward(op) => {
            let qkv = read_elems(backend, op.qkv)?;
            let mask = read_mask(backend, &op.dropout)?;
            let mut out = zeros("out", op.out.len)?;
            let mut lse = zeros("lse", op.lse.len)?;
            let mut scores = zeros("scores", op.time)?;
            attention_forward(
                &qkv,
                mask.as_ref(),
                &mut out,
                &mut lse,
                &mut scores,
                op.batch,
                op.time,
                op.heads,
                op.d_head,
                op.scale,
            );
            write_elems(backend, op.out, &out)?;
            write_elems(backend, op.lse, &lse)
        }
        #[cfg(feature = "train")]
        Op::AttentionBackward(op) => {
            let qkv = read_elems(backend, op.qkv)?;
            let out = read_elems(backend, op.out)?;
            let lse = read_elems(backend, op.lse)?;
            let d_out = read_elems(backend, op.d_out)?;
            let mask = read_mask(backend, &op.dropout)?;
            let mut d_qkv = zeros("d_qkv", op.d_qkv.len)?;
            attention_backward(
                &qkv,
                &out,
                &lse,
                &d_out,
                mask.as_ref(),
                &mut d_qkv,
                op.batch,
                op.time,
                op.heads,
                op.d_head,
                op.scale,
            );
            write_elems(backend, op.d_qkv, &d_qkv)
        }
        Op::AttentionCached(op) => {
            let qkv = read_elems(backend, op.qkv)?;
            let mut keys = read_elems(backend, op.keys)?;
            let mut values = read_elems(backend, op.values)?;
            let mut out = zeros("out", op.out.len)?;
            let mut scores = zeros("scores", op.past + op.time)?;
            attention_cached(
                &qkv,
                &mut keys,
                &mut values,
                &mut out,
                &mut scores,
                op.past,
                op.capacity,
                op.batch,
                op.time,
                op.heads,
                op.d_head,
                op.scale,
            );
            write_elems(backend, op.keys, &keys)?;
            write_elems(backend, op.values, &values)?;
            write_elems(backend, op.out, &out)
        }
        Op::AttentionScores(op) => {
            let qkv = read_elems(backend, op.qkv)?;
            let mut scores = zeros("scores", op.scores.len)?;
            attention_scores(&qkv, &mut scores, op.softmax, op.batch, op.time, op.heads, op.d_head, op.scale);
            write_elems(backend, op.scores, &scores)
        }
        #[cfg(feature = "train")]
        Op::CrossEntropy(op) => {
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
        #[cfg(feature = "train")]
        Op::SquaredNorm(op) => {
            let x = read_elems(backend, op.x)?;
            let sum = B::Elem::from_f64(squared_norm(&x));
            write_elems(backend, op.scalars.slice(scalar::GRAD_SQUARED, 1), &[sum])
        }
        #[cfg(feature = "train")]
        Op::NextDraw(op) => {
            let mut counters = read_u32(backend, op.counters)?;
            next_draw(&mut counters);
            write_u32(backend, op.counters, &counters)
        }
        #[cfg(feature = "train")]
        Op::FinishStep(op) => {
            let mut scalars = read_elems(backend, op.scalars)?;
            let mut counters = read_u32(backend, op.counters)?;
            finish_step(&mut scalars, &mut counters, op.clip, op.beta1, op.beta2);
            write_elems(backend, op.scalars, &scalars)?;
            write_u32(backend, op.counters, &counters)
        }
        #[cfg(feature = "train")]
        Op::AdamW(op) => {
            let scalars = read_elems(backend, op.scalars)?;
            if scalars[scalar::APPLY] == B::Elem::from_f64(0.0) {
                return Ok(());
            }
            let grads = read_elems(backend, op.grads)?;
            let mut params = read_elems(backend, op.params)?;
            let mut m = read_elems(backend, op.m)?;
            let mut v = read_elems(backend, op.v)?;
            adamw(
                &mut params,
                &grads,
                &mut m,
                &mut v,
                &scalars,
                op.decayed,
                op.beta1,
                op.beta2,
                op.eps,
                op.weight_decay,
            );
            write_elems(backend, op.params, &params)?;
            write_elems(backend, op.m, &m)?;
            write_elems(backend, op.v, &v)
        }
        #[cfg(feature = "train")]
        Op::Fill(op) => backend.fill(op.to, op.value),
    }
}

/// Reads the last unit of every operand: a span that reaches past its buffer is refused here, before the host
/// allocates as much as it claims to hold.
fn touch_ends<B: Backend + ?Sized>(backend: &mut B, operands: &Operands) -> Result<(), B::Error> {
    for operand in operands.iter().filter(|operand| operand.span.len > 0) {
        let (elements, size) = operand.span.dtype.unit();
        let last = operand.span.slice(operand.span.len - elements, elements);
        // No unit is longer than Q8_0's 34 bytes.
        backend.read(last, &mut [0; 34][..size])?;
    }
    Ok(())
}

fn read_optional<B: Backend + ?Sized>(
    backend: &mut B,
    span: Option<Span>,
) -> Result<Option<Vec<B::Elem>>, B::Error> {
    span.map(|span| read_elems(backend, span)).transpose()
}

fn write_optional<B: Backend + ?Sized>(
    backend: &mut B,
    span: Option<Span>,
    values: Option<&[B::Elem]>,
) -> Result<(), B::Error> {
    match (span, values) {
        (Some(span), Some(values)) => write_elems(backend, span, values),
        _ => Ok(()),
    }
}

/// Reads a matrix (`rows`, `cols`) of any weight type.
fn read_weight<B: Backend + ?Sized>(
    backend: &mut B,
    span: Span,
    rows: usize,
    cols: usize,
) -> Result<Vec<B::Elem>, B::Error> {
    if span.dtype == B::Elem::DTYPE {
        return read_elems(backend, span);
    }
    let size = span.bytes().ok_or(InvalidOp::Overflow { operand: "weight" })?;
    let mut bytes = zeros("weight", size)?;
    backend.read(span, &mut bytes)?;
    let mut weight = zeros("weight", rows * cols)?;
    decode_weight(&bytes, span.dtype, &mut weight, rows, cols);
    Ok(weight)
}

fn read_mask<B: Backend + ?Sized>(
    backend: &mut B,
    dropout: &Option<Dropout>,
) -> Result<Option<Mask>, B::Error> {
    match dropout {
        Some(dropout) => {
            let counters = read_u32(backend, dropout.counters)?;
            let mask = Mask::new(dropout.probability, dropout.site, &counters);
            Ok(Some(mask.starting_at(dropout.first)))
        }
        None => Ok(None),
    }
}

fn read_tokens<B: Backend + ?Sized>(backend: &mut B, span: Span, vocab: usize) -> Result<Vec<u32>, B::Error> {
    let tokens = read_u32(backend, span)?;
    check_tokens(tokens.iter().copied(), vocab)?;
    Ok(tokens)
}

/// That every token is below `vocab`.
fn check_tokens(mut tokens: impl Iterator<Item = u32>, vocab: usize) -> Result<(), InvalidOp> {
    match tokens.find(|&token| token as usize >= vocab) {
        Some(token) => Err(InvalidOp::Token { token, vocab }),
        None => Ok(()),
    }
}
