//! [`fall_back`]: carries the operands of an op from a backend's memory to the reference functions and back.

mod rows;
#[cfg(feature = "train")]
mod training;

use alloc::vec::Vec;

use super::{Backend, read_elems, read_u32, write_elems};
use crate::config::Precision;
use crate::memory::{InvalidOp, Span, Strided, zeros};
use crate::op::{
    Access, AttentionForward, AttentionScores, Dropout, EmbeddingForward, GateForward, LinearForward,
    NormForward, Normalize, Op, Operands, Rotary,
};
use crate::real::Real;
use crate::reference::Rows;
use crate::reference::attention::{attention_forward, attention_scores};
use crate::reference::dropout::Mask;
use crate::reference::embedding::embedding_forward;
use crate::reference::gate::gate_forward;
use crate::reference::linear::linear_forward;
use crate::reference::norm::norm_forward;
use crate::reference::rotary::rotary;
use crate::reference::rounded;
use crate::reference::weights::decode_weight;

/// Runs an op on any backend: reads its operands, computes, writes the results back.
///
/// All operands are read before any result is written, so a span may stand in two places wherever [`Op::check`]
/// allows it, and an op that fails a check has changed nothing. Ops by rows go row by row, once the words of all are looked at.
///
/// # Errors
/// [`InvalidOp`] if the descriptor is wrong or a token is outside the vocabulary, and whatever error the backend
/// has for transfers. Never a panic, whatever the descriptor says.
pub fn fall_back<B: Backend + ?Sized>(backend: &mut B, op: &Op) -> Result<(), B::Error> {
    if begin(backend, op)? {
        return Ok(());
    }
    match op {
        Op::EmbeddingForward(op) => embedding(backend, op),
        Op::NormForward(op) => normalize(backend, op),
        Op::LinearForward(op) => linear(backend, op),
        Op::GateForward(op) => gate(backend, op),
        Op::Rotary(op) => rotate(backend, op),
        Op::AttentionForward(op) => attention(backend, op),
        Op::AttentionScores(op) => scores(backend, op),
        Op::EmbeddingRows(op) => rows::embedding(backend, op),
        Op::NormRows(op) => rows::normalize(backend, op),
        Op::LinearRows(op) => rows::linear(backend, op),
        Op::GateRows(op) => rows::gate(backend, op),
        Op::RotaryRows(op) => rows::rotate(backend, op),
        Op::CacheAppend(op) => rows::append(backend, op),
        Op::AttentionRows(op) => rows::attention(backend, op),
        Op::GatherRows(op) => rows::gather(backend, op),
        Op::Sample(op) => rows::sample(backend, op),
        #[cfg(feature = "train")]
        Op::EmbeddingBackward(_)
        | Op::NormBackward(_)
        | Op::LinearBackward(_)
        | Op::ActivationForward(_)
        | Op::GateBackward(_)
        | Op::AttentionBackward(_)
        | Op::CrossEntropy(_)
        | Op::SquaredNorm(_)
        | Op::NextDraw(_)
        | Op::FinishStep(_)
        | Op::AdamW(_)
        | Op::Sgd(_)
        | Op::Momentum(_)
        | Op::NewtonSchulz(_)
        | Op::Descend(_)
        | Op::Average(_)
        | Op::Narrow(_)
        | Op::Fill(_) => training::run(backend, op),
    }
}

/// As [`fall_back`], for a backend with kernels for every op that inference has, whatever its shape: an image that only runs
/// models then has the kernels, and no reference beside them.
///
/// # Errors
/// As [`fall_back`]; and [`InvalidOp::NoKernel`] if inference has the op and it has something to write.
pub fn fall_back_in_training<B: Backend + ?Sized>(backend: &mut B, op: &Op) -> Result<(), B::Error> {
    if begin(backend, op)? {
        return Ok(());
    }
    #[cfg(feature = "train")]
    return training::run(backend, op);
    #[cfg(not(feature = "train"))]
    Err(InvalidOp::NoKernel.into())
}

/// Checks an op that falls back, and counts it. Whether it is done already.
fn begin<B: Backend + ?Sized>(backend: &mut B, op: &Op) -> Result<bool, B::Error> {
    let operands = op.check(B::Elem::DTYPE)?;
    // Every backend has a `fill`, which need not wait for earlier work as a fallback does.
    #[cfg(feature = "train")]
    if let Op::Fill(op) = op {
        return backend.fill(op.to, op.value).map(|()| true);
    }
    backend.fell_back(op.kind());
    // Nothing to do; and dimensions that no span bounds could be astronomical.
    if operands.iter().all(|operand| operand.access == Access::Read || operand.span.len == 0) {
        return Ok(true);
    }
    touch_ends(backend, &operands)?;
    Ok(false)
}

fn embedding<B: Backend + ?Sized>(backend: &mut B, op: &EmbeddingForward) -> Result<(), B::Error> {
    let tokens = read_tokens(backend, op.tokens, op.vocab)?;
    let token_embedding = read_weight(backend, op.token_embedding, op.vocab, op.d_model)?;
    let position_embedding = match op.position_embedding {
        Some(span) => Some(read_elems(backend, span.first(op.time * op.d_model))?),
        None => None,
    };
    let mask = read_mask(backend, &op.dropout)?;
    let mut out = zeros("out", op.out.len)?;
    let embed = match Precision::of(op.out.dtype) {
        Precision::F32 => embedding_forward,
        Precision::Bf16 => rounded::embedding,
    };
    embed(
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

fn normalize<B: Backend + ?Sized>(backend: &mut B, op: &NormForward) -> Result<(), B::Error> {
    let (vectors, width) = (op.rows * op.groups, op.groups * op.width);
    let x = read_elems(backend, op.x.span)?;
    let weight = read_elems(backend, op.weight)?;
    let bias = read_optional(backend, op.bias)?;
    let mut y = zeros("y", op.rows * width)?;
    let mut mean = match op.kind {
        Normalize::Layer { .. } => Some(zeros("mean", vectors)?),
        Normalize::Rms => None,
    };
    let mut rstd = zeros("rstd", vectors)?;
    norm_forward(
        Rows { data: &x, stride: op.x.stride },
        &weight,
        bias.as_deref(),
        &mut y,
        mean.as_deref_mut(),
        &mut rstd,
        op.rows,
        op.groups,
        op.width,
        op.eps,
    );
    write_rows(backend, op.y, width, Rows { data: &y, stride: width })?;
    if let Normalize::Layer { mean: span } = op.kind {
        write_optional(backend, Some(span), mean.as_deref())?;
    }
    write_elems(backend, op.rstd, &rstd)
}

fn linear<B: Backend + ?Sized>(backend: &mut B, op: &LinearForward) -> Result<(), B::Error> {
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
    let linear = match Precision::of(op.y.dtype) {
        Precision::F32 => linear_forward,
        Precision::Bf16 => rounded::linear,
    };
    linear(
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

fn gate<B: Backend + ?Sized>(backend: &mut B, op: &GateForward) -> Result<(), B::Error> {
    let x = read_elems(backend, op.x)?;
    let mut y = zeros("y", op.y.len)?;
    let gate = match Precision::of(op.y.dtype) {
        Precision::F32 => gate_forward,
        Precision::Bf16 => rounded::gate,
    };
    gate(&x, op.activation, &mut y, op.rows, op.width);
    write_elems(backend, op.y, &y)
}

fn rotate<B: Backend + ?Sized>(backend: &mut B, op: &Rotary) -> Result<(), B::Error> {
    let table = read_elems(backend, op.table.first(op.time * op.d_head))?;
    let mut x = read_elems(backend, op.x.span)?;
    rotary(&mut x, op.x.stride, &table, op.pairing, op.inverse, op.batch, op.time, op.heads, op.d_head);
    write_rows(backend, op.x, op.heads * op.d_head, rows_of(&x, op.x))
}

fn attention<B: Backend + ?Sized>(backend: &mut B, op: &AttentionForward) -> Result<(), B::Error> {
    let heads = Together::read(backend, [op.q, op.k, op.v])?;
    let [q, k, v] = heads.rows();
    let mask = read_mask(backend, &op.dropout)?;
    let mut out = zeros("out", op.out.len)?;
    let mut lse = zeros("lse", op.lse.len)?;
    let mut scores = zeros("scores", op.shape.time)?;
    attention_forward(q, k, v, mask.as_ref(), &mut out, &mut lse, &mut scores, &op.shape);
    write_elems(backend, op.out, &out)?;
    write_elems(backend, op.lse, &lse)
}

fn scores<B: Backend + ?Sized>(backend: &mut B, op: &AttentionScores) -> Result<(), B::Error> {
    let heads = Together::read(backend, [op.q, op.k])?;
    let [q, k] = heads.rows();
    let mut scores = zeros("scores", op.scores.len)?;
    attention_scores(q, k, &mut scores, op.softmax, &op.shape);
    write_elems(backend, op.scores, &scores)
}

/// Operands whose rows may lie apart, read at once where they are columns of one matrix: each for itself would read most of it.
struct Together<R, const N: usize> {
    data: Vec<R>,
    operands: [Strided; N],
    /// Where each begins in `data`.
    begins: [usize; N],
}

impl<R: Real, const N: usize> Together<R, N> {
    fn read<B: Backend<Elem = R> + ?Sized>(
        backend: &mut B,
        operands: [Strided; N],
    ) -> Result<Self, B::Error> {
        let spans = operands.map(|operand| operand.span);
        let mut whole = spans[0];
        for span in spans {
            whole.offset = whole.offset.min(span.offset);
        }
        let places = spans.map(|span| (span.offset - whole.offset) / whole.dtype.unit().1);
        whole.len = spans.iter().zip(places).map(|(span, place)| place + span.len).max().unwrap_or(0);
        let sum: usize = spans.iter().map(|span| span.len).sum();
        if spans.iter().all(|span| span.buffer == whole.buffer) && whole.len <= sum {
            let data = read_elems(backend, whole)?;
            return Ok(Together { data, operands, begins: places });
        }
        let (mut data, mut begins) = (Vec::new(), [0; N]);
        let bytes = sum.saturating_mul(size_of::<R>());
        data.try_reserve_exact(sum).map_err(|_| InvalidOp::HostMemory { operand: "read", bytes })?;
        for (span, begin) in spans.into_iter().zip(&mut begins) {
            *begin = data.len();
            data.extend(read_elems(backend, span)?);
        }
        Ok(Together { data, operands, begins })
    }

    fn rows(&self) -> [Rows<'_, R>; N] {
        core::array::from_fn(|i| rows_of(&self.data[self.begins[i]..], self.operands[i]))
    }
}

/// What was read of an operand whose rows may lie apart.
fn rows_of<R>(data: &[R], operand: Strided) -> Rows<'_, R> {
    Rows { data, stride: operand.stride }
}

/// Writes the rows of an operand, each `width` wide, and nothing between them.
fn write_rows<B: Backend + ?Sized>(
    backend: &mut B,
    to: Strided,
    width: usize,
    rows: Rows<'_, B::Elem>,
) -> Result<(), B::Error> {
    if to.stride == width && rows.stride == width {
        return write_elems(backend, to.span, rows.data);
    }
    let count = if to.span.len == 0 { 0 } else { (to.span.len - width) / to.stride.max(1) + 1 };
    for row in 0..count {
        write_elems(backend, to.span.slice(row * to.stride, width), rows.part(row, 0, width))?;
    }
    Ok(())
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
    if span.dtype.unit().0 == 1 {
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
