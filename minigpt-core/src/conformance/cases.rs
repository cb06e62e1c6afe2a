//! Every op on random shapes, on a backend and on the oracle.
//!
//! A case is run six times: on NaN, so that whatever the kernel keeps is broken, and with other rows live and in other places;
//! then the case before again, on NaN too, which has other shapes; then as it is, which is compared with the oracle; on NaN
//! again; and twice more as it is, the first time with operands that came by other routes, which must give the same bits.

mod attention;
mod compare;
mod embedding;
mod empty;
mod gate;
mod linear;
mod norm;
mod optimizer;
mod refusals;
mod rows;
mod same_bits;
mod step;
mod strided;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use half::{bf16, f16};

pub(super) use refusals::check as check_refusals;
pub(super) use same_bits::check as check_same_bits;

use super::draw::{Draw, Sizes};
use super::placed::{Fill, Memory, Placed, Recording, Sketch};
use super::{Line, Options, describe};
use crate::backend::Backend;
use crate::config::Precision;
use crate::memory::{Dtype, Span, Strided};
use crate::op::*;
use crate::rng::{Rng, Stream};

/// Rows and widths: past every tile that kernels have.
const SIZES: Sizes = Sizes(33, 130, 520, 900);

/// What builds a case. The same draws give the same case on every memory.
type Build<'b> = &'b dyn Fn(&mut Draw, &mut dyn Memory) -> Op;

/// The policies under which an op is checked.
pub(super) fn precisions(kind: OpKind) -> &'static [Precision] {
    let (mut draw, mut sketch) = (Draw::new(1, kind as u64, 0, 1), Sketch::default());
    let op = case(kind, &mut draw, &mut sketch);
    match kind {
        OpKind::Narrow => &[Precision::Bf16],
        _ if sketch.rounded(&[op]).contains(&true) => &[Precision::F32, Precision::Bf16],
        _ => &[Precision::F32],
    }
}

/// Runs `options.cases` cases of one op, and notes the worst error.
pub(super) fn check<B: Backend>(
    backend: &mut B,
    kind: OpKind,
    precision: Precision,
    options: &Options,
    line: &mut Line,
) {
    check_built(backend, (kind, 0), precision, &|draw, memory| case(kind, draw, memory), options, line);
    for number in empty::numbers(kind) {
        if options.stop_early && !line.passed() {
            break;
        }
        let draw = Draw::new(options.seed, kind as u64, 0, options.work).under(precision);
        let mut placed = None;
        line.cases += 1;
        let build = |_: &mut Draw, memory: &mut dyn Memory| empty::case(kind, number, memory);
        if let Err(what) = run(backend, &build, draw, &mut placed, line) {
            line.fail(format!("of dimensions that are 0, number {number}: {what}"));
        }
        release(backend, placed, line);
    }
}

fn release<B: Backend>(backend: &mut B, placed: Option<(Op, Placed)>, line: &mut Line) {
    if let Some((_, placed)) = placed
        && let Err(error) = placed.release(backend)
    {
        line.fail(describe(&error));
    }
}

/// The same for a linear layer's forward pass with a weight stored as `dtype`, from one row, as in decoding, to many.
pub(super) fn check_stored<B: Backend>(backend: &mut B, dtype: Dtype, options: &Options, line: &mut Line) {
    let build = |draw: &mut Draw, memory: &mut dyn Memory| {
        let (many, d_in, d_out) = linear::shape(draw);
        let rows = if draw.below(3) == 0 { many } else { 1 + draw.below(6) };
        linear::forward_with(draw, memory, (rows, d_in, d_out), Some(dtype), rows).into()
    };
    let what = (OpKind::LinearForward, 1 + dtype as u64);
    check_built(backend, what, Precision::F32, &build, options, line);
}

fn check_built<B: Backend>(
    backend: &mut B,
    (kind, what): (OpKind, u64),
    precision: Precision,
    build: Build<'_>,
    options: &Options,
    line: &mut Line,
) {
    let first = kind as u64 + 64 * what;
    let mut before: Option<(Op, Placed)> = None;
    for case in options.numbers() {
        let draw = Draw::new(options.seed, first, case, options.work).under(precision);
        line.cases += 1;
        match run(backend, build, draw, &mut before, line) {
            Ok(()) => {}
            Err(what) => line.fail(format!("case {case}: {what}")),
        }
        if options.stop_early && !line.passed() {
            break;
        }
    }
    release(backend, before, line);
}

fn run<B: Backend>(
    backend: &mut B,
    build: Build<'_>,
    draw: Draw,
    before: &mut Option<(Op, Placed)>,
    line: &mut Line,
) -> Result<(), String> {
    let ops = |memory: &mut dyn Memory| vec![build(&mut draw.shapes(), memory)];
    let mut truth = Recording::under(draw.precision, draw.rng.clone(), ops);
    let true_op = build(&mut draw.clone(), &mut truth);
    truth.oracle.run(&true_op).map_err(|error| format!("the oracle refused {true_op:?}: {error}"))?;

    let mut places = Rng::new(draw.rng.clone().next_u32().into(), Stream::User);
    let aligned = draw.is_even() || places.below(4) == 0;
    let placed = Placed::new(backend, &truth.asked, aligned, &mut places);
    let mut placed = placed.map_err(|error| describe(&error))?;
    let op = build(&mut draw.shapes(), &mut placed);
    let told = |error: B::Error| format!("{} in {op:?}", describe(&error));

    placed.fill(backend, true).map_err(told)?;
    // What it gives for NaN does not matter.
    backend.run(&op).map_err(told)?;
    if let Some((other, _)) = before {
        backend.run(other).map_err(told)?;
    }
    // That one may have fallen back where this does not.
    backend.sync().map_err(told)?;
    let counted = backend.fallback_count(op.kind());
    placed.fill(backend, false).map_err(told)?;
    backend.run(&op).map_err(told)?;
    let result = placed.read(backend).map_err(told)?;
    placed.break_numbers(backend).map_err(told)?;
    backend.run(&op).map_err(told)?;
    placed.fill_in_parts(backend, &mut places).map_err(told)?;
    backend.run(&op).map_err(told)?;
    let by_other_routes = placed.read(backend).map_err(told)?;
    placed.fill(backend, false).map_err(told)?;
    backend.run(&op).map_err(told)?;
    let again = placed.read(backend).map_err(told)?;
    let fell_back = backend.fallback_count(op.kind()).zip(counted).map(|(now, before)| now > before);
    line.ran(&op, fell_back);

    let operands = op.operands().map_err(|error| format!("{error} in {op:?}"))?;
    compare::check::<B::Elem>(&placed, &result, (&op, &operands), (&true_op, &mut truth), line)?;
    if let Some(touched) = placed.touched(&result, &operands) {
        return Err(format!("{touched}: {op:?}"));
    }
    if result != by_other_routes || result != again {
        return Err(format!("the same op, again, gives other bits: {op:?}"));
    }
    placed.fill(backend, true).map_err(told)?;
    if let Some((_, placed)) = before.replace((op, placed)) {
        placed.release(backend).map_err(|error| describe(&error))?;
    }
    Ok(())
}

/// A result (rows, width), of which the first `live` rows are to be written and the others left as they are.
fn result(draw: &mut Draw, memory: &mut dyn Memory, (rows, width): (usize, usize), live: usize) -> Span {
    if live == rows {
        return memory.span(rows * width, Fill::Poison);
    }
    memory.span(rows * width, Fill::Values(result_values(draw, (rows, width), live)))
}

/// What such a result holds before the op.
fn result_values(draw: &mut Draw, (rows, width): (usize, usize), live: usize) -> Vec<f64> {
    let mut values = vec![f64::NAN; live * width];
    values.extend(draw.normals((rows - live) * width, 1.0));
    values
}

/// Operands whose rows of `width` are columns of one matrix, which has `gap` more that are no operand's. If the op writes
/// to one of the operands these hold numbers, which must stay as they are; if it only reads them, NaN, which shows if it is
/// read.
fn side_by_side<const N: usize>(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    operands: [Vec<f64>; N],
    width: usize,
    gap: usize,
    written: bool,
) -> [Strided; N] {
    let (stride, before) = (N * width + gap, gap / 2);
    let rows = operands[0].len() / width;
    let mut matrix = if written { draw.normals(rows * stride, 1.0) } else { vec![f64::NAN; rows * stride] };
    for (row, matrix) in matrix.chunks_exact_mut(stride).enumerate() {
        for (place, operand) in operands.iter().enumerate() {
            matrix[before + place * width..][..width].copy_from_slice(&operand[row * width..][..width]);
        }
    }
    let matrix = memory.span(rows * stride, Fill::Values(matrix));
    core::array::from_fn(|place| matrix.columns(before + place * width, width, stride))
}

/// The types that hold a weight in fewer bits.
pub(super) const STORED: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// How a case stores a weight: in half of the cases in fewer bits. Under bf16 it is in half of them the copy that a pass reads.
fn weight_dtype(draw: &Draw) -> Option<Dtype> {
    let [f16, bf16, q8, q4] = STORED.map(Some);
    match draw.precision {
        Precision::F32 => draw.turn(&[None, f16, None, bf16, None, q8, None, q4]),
        Precision::Bf16 => draw.turn(&[bf16, f16, bf16, None, bf16, q8, bf16, q4]),
    }
}

/// A weight (rows, cols) in fewer bits.
fn stored(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    deviation: f64,
) -> Span {
    let (len, (elements, size)) = (rows * dtype.padded(cols), dtype.unit());
    let mut bytes = Vec::new();
    for _ in 0..len / elements {
        let x = deviation * draw.rng.normal();
        let head = match dtype {
            Dtype::Bf16 => bf16::from_f64(x).to_le_bytes(),
            Dtype::Q8_0 => f16::from_f64(x / 64.0).to_le_bytes(),
            Dtype::Q4_0 => f16::from_f64(x / 4.0).to_le_bytes(),
            _ => f16::from_f64(x).to_le_bytes(),
        };
        bytes.extend(head);
        bytes.extend((2..size).map(|_| draw.rng.next_u32() as u8));
    }
    memory.span(len, Fill::Stored(dtype, bytes))
}

/// Counters of a training that is under way; now and then with a carry into a high word to come.
fn counters(draw: &mut Draw) -> Fill {
    let mut counters = vec![0; counter::LEN];
    for place in [counter::SEED, counter::SEED + 1, counter::DRAW, counter::DRAW + 1, counter::TOKENS + 1] {
        counters[place] = draw.rng.next_u32();
    }
    counters[counter::TOKENS] =
        if draw.variant() { u32::MAX - draw.below(400) as u32 } else { draw.rng.next_u32() >> 1 };
    counters[counter::STEP] = draw.below(50) as u32;
    for place in [counter::UPDATES, counter::SKIPPED, counter::SKIPPED_IN_A_ROW] {
        counters[place] = 1 + draw.below(50) as u32;
    }
    Fill::Words(counters)
}

fn dropout(draw: &mut Draw, memory: &mut dyn Memory) -> Option<Dropout> {
    let wanted = draw.variant();
    dropout_if(wanted, draw, memory)
}

fn dropout_if(wanted: bool, draw: &mut Draw, memory: &mut dyn Memory) -> Option<Dropout> {
    if !wanted {
        return None;
    }
    let site = draw.below(20) as u32;
    let counters = counters(draw);
    // Where a slice of a batch begins: beyond 32 bits, and across the ends of them and of those of a word of draws.
    let first = draw.turn(&[u64::from(site + 1) * 0x1_2345_6789, (1 << 32) - 3, 0, (1 << 34) - 3]);
    let probability = draw.turn(&[0.25, 0.1, 0.6]);
    Some(Dropout { probability, site, first, counters: memory.span(counter::LEN, counters) })
}

/// The results that the forward op leaves for its gradient.
fn left_behind(draw: &Draw, op: Op, memory: &mut Recording, spans: &[Span]) -> Vec<Vec<f64>> {
    if draw.only_shapes {
        return spans.iter().map(|span| vec![0.0; span.len]).collect();
    }
    // The oracle takes every well-formed op; an error would show as empty operands, which no op accepts.
    if memory.oracle.run(&op).is_err() {
        return vec![Vec::new(); spans.len()];
    }
    spans.iter().map(|&span| memory.read(span)).collect()
}

/// A case of an op. The same draws give the same case on every memory.
fn case(kind: OpKind, draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    match kind {
        OpKind::EmbeddingForward | OpKind::EmbeddingBackward => embedding::case(kind, draw, memory),
        OpKind::NormForward => norm::forward(draw, memory),
        OpKind::NormBackward => norm::backward(draw, memory),
        OpKind::LinearForward => linear::forward(draw, memory),
        OpKind::LinearBackward => linear::backward(draw, memory),
        OpKind::ActivationForward => linear::activation_forward(draw, memory),
        OpKind::GateForward => gate::forward(draw, memory),
        OpKind::GateBackward => gate::backward(draw, memory),
        OpKind::Rotary => attention::rotary(draw, memory),
        OpKind::AttentionForward => attention::forward(draw, memory),
        OpKind::AttentionBackward => attention::backward(draw, memory),
        OpKind::AttentionScores => attention::scores(draw, memory),
        OpKind::EmbeddingRows => rows::embedding(draw, memory),
        OpKind::NormRows => rows::norm(draw, memory),
        OpKind::LinearRows => rows::linear(draw, memory),
        OpKind::GateRows => gate::rows(draw, memory),
        OpKind::RotaryRows => rows::rotary(draw, memory),
        OpKind::CacheAppend => rows::append(draw, memory),
        OpKind::AttentionRows => rows::attention(draw, memory),
        OpKind::GatherRows => rows::gather(draw, memory),
        OpKind::Sample => rows::sample(draw, memory),
        OpKind::CrossEntropy => step::cross_entropy(draw, memory),
        OpKind::SquaredNorm => step::squared_norm(draw, memory),
        OpKind::NextDraw => step::next_draw(draw, memory),
        OpKind::FinishStep => step::finish_step(draw, memory),
        OpKind::AdamW => optimizer::adamw(draw, memory),
        OpKind::Sgd => optimizer::sgd(draw, memory),
        OpKind::Momentum => optimizer::momentum(draw, memory),
        OpKind::NewtonSchulz => optimizer::newton_schulz(draw, memory),
        OpKind::Descend => optimizer::descend(draw, memory),
        OpKind::Average => optimizer::average(draw, memory),
        OpKind::Narrow => step::narrow(draw, memory),
        OpKind::Fill => step::fill(draw, memory),
    }
}
