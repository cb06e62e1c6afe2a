//! Every op on random shapes, on a backend and on the oracle.

mod attention;
mod embedding;
mod layernorm;
mod linear;
mod refusals;
mod step;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use half::{bf16, f16};

pub(super) use refusals::check as check_refusals;

use super::{Line, Options, describe, error};
use crate::backend::{Backend, Buffer, Dtype, Span, read_elems, read_u32, write_elems, write_u32};
use crate::op::*;
use crate::real::Real;
use crate::reference::Reference;
use crate::rng::{Rng, Stream};

/// Widths that vector code gets wrong first, and some that it likes.
const ODD: [usize; 12] = [1, 2, 3, 5, 7, 8, 16, 31, 33, 63, 64, 65];

/// What a span holds before the op runs.
enum Fill {
    /// Normal numbers of this standard deviation.
    Normal(f64),
    /// These numbers.
    Values(Vec<f64>),
    /// NaN: the op must write every element.
    Poison,
    /// u32.
    Words(Vec<u32>),
    /// Bytes of a weight in fewer bits.
    Stored(Dtype, Vec<u8>),
}

/// Where a case's spans come from: a real backend, or the oracle.
trait Memory {
    fn span(&mut self, len: usize, fill: Fill) -> Span;
}

struct On<'b, B: Backend> {
    backend: &'b mut B,
    rng: Rng,
    failure: Option<B::Error>,
    buffers: Vec<Buffer>,
}

impl<'b, B: Backend> On<'b, B> {
    fn new(backend: &'b mut B, rng: Rng) -> Self {
        On { backend, rng, failure: None, buffers: Vec::new() }
    }

    fn try_span(&mut self, len: usize, fill: Fill) -> Result<Span, B::Error> {
        let dtype = match fill {
            Fill::Words(_) => Dtype::U32,
            Fill::Stored(dtype, _) => dtype,
            _ => B::Elem::DTYPE,
        };
        let bytes = dtype.bytes(len).unwrap_or(0).next_multiple_of(64).max(64);
        let buffer = self.backend.alloc(bytes)?;
        self.buffers.push(buffer);
        let span = Span { buffer, dtype, offset: 0, len };
        let rng = &mut self.rng;
        // Rounded to f32, so that the backend and the oracle start from the same numbers.
        let rounded = |x: f64| B::Elem::from_f64(f64::from(x as f32));
        let values: Vec<B::Elem> = match fill {
            Fill::Words(words) => {
                write_u32(self.backend, span, &words)?;
                return Ok(span);
            }
            Fill::Stored(_, bytes) => {
                self.backend.write(span, &bytes)?;
                return Ok(span);
            }
            Fill::Normal(deviation) => (0..len).map(|_| rounded(deviation * rng.normal())).collect(),
            Fill::Values(values) => values.into_iter().map(rounded).collect(),
            Fill::Poison => vec![B::Elem::from_f64(f64::NAN); len],
        };
        write_elems(self.backend, span, &values)?;
        Ok(span)
    }

    fn read(&mut self, span: Span) -> Result<Vec<f64>, B::Error> {
        Ok(match span.dtype {
            Dtype::U32 => read_u32(self.backend, span)?.into_iter().map(f64::from).collect(),
            Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0 => {
                let mut bytes = vec![0; span.bytes().unwrap_or(0)];
                self.backend.read(span, &mut bytes)?;
                bytes.into_iter().map(f64::from).collect()
            }
            _ => read_elems(self.backend, span)?.into_iter().map(Real::to_f64).collect(),
        })
    }
}

impl<B: Backend> Memory for On<'_, B> {
    fn span(&mut self, len: usize, fill: Fill) -> Span {
        match self.try_span(len, fill) {
            Ok(span) => span,
            Err(error) => {
                self.failure.get_or_insert(error);
                Span { buffer: Buffer(u32::MAX), dtype: B::Elem::DTYPE, offset: 0, len }
            }
        }
    }
}

/// What builds a random case. The same `rng` gives the same case on every memory.
type Build<'b> = &'b dyn Fn(&mut Rng, &mut dyn Memory) -> Op;

/// Runs `options.cases` random cases of one op, and notes the worst error.
pub(super) fn check<B: Backend>(backend: &mut B, kind: OpKind, options: &Options, line: &mut Line) {
    check_built(backend, kind as u64, &|rng, memory| case(kind, rng, memory), options, line);
}

/// The same for a linear layer's forward pass with a weight stored as `dtype`, from one row, as in decoding, to many.
pub(super) fn check_stored<B: Backend>(backend: &mut B, dtype: Dtype, options: &Options, line: &mut Line) {
    let build = |rng: &mut Rng, memory: &mut dyn Memory| {
        let (many, d_in, d_out) = linear::shape(rng);
        let rows = if rng.below(3) == 0 { many } else { 1 + rng.below(6) as usize };
        linear::forward_with(rng, memory, (rows, d_in, d_out), Some(dtype))
    };
    check_built(backend, OpKind::LinearForward as u64, &build, options, line);
}

fn check_built<B: Backend>(
    backend: &mut B,
    first: u64,
    build: Build<'_>,
    options: &Options,
    line: &mut Line,
) {
    for case in 0..options.cases as u64 {
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(case * 64 + first);
        line.cases += 1;
        match run(backend, build, seed) {
            Ok(results) => {
                for Compared { name, exact, found, oracle } in results {
                    let (e, i) = error(&found, &oracle);
                    let e = if exact && e > 0.0 { f64::INFINITY } else { e };
                    line.note(e, || {
                        format!("{name}[{i}] of case {case}: {:.7e}, oracle {:.7e}", found[i], oracle[i])
                    });
                }
            }
            Err(what) => line.fail(format!("case {case}: {what}")),
        }
    }
}

/// One operand that the op changes.
struct Compared {
    name: &'static str,
    /// Counters are right or wrong, not near.
    exact: bool,
    found: Vec<f64>,
    oracle: Vec<f64>,
}

fn run<B: Backend>(backend: &mut B, build: Build<'_>, seed: u64) -> Result<Vec<Compared>, String> {
    let mut oracle = Reference::<f64>::new();
    let rng = || Rng::new(seed, Stream::User);
    let mut truth = On::new(&mut oracle, rng());
    // The shape and whatever an earlier op would have left behind are decided once; the numbers twice, alike.
    let build = |memory: &mut dyn Memory| build(&mut Rng::new(seed ^ 0x5eed, Stream::User), memory);
    let true_op = build(&mut truth);
    truth.backend.run(&true_op).map_err(|e| format!("the oracle refused {true_op:?}: {e}"))?;

    let mut on = On::new(backend, rng());
    let op = build(&mut on);
    if let Some(error) = on.failure.take() {
        return Err(describe(&error));
    }
    let mut attempt = || -> Result<Vec<Compared>, B::Error> {
        on.backend.run(&op)?;
        let mut compared = Vec::new();
        for (mine, theirs) in op.operands()?.iter().zip(true_op.operands()?.iter()) {
            let (name, read) = (mine.name, mine.access == Access::Read);
            // What is only read must stay as it is. An operand that is also a result is compared as that.
            if read && op.operands()?.iter().any(|o| o.access != Access::Read && o.span == mine.span) {
                continue;
            }
            let exact = read || mine.span.dtype == Dtype::U32;
            // A tenth of the loss is not made good by a large gradient: scalars are compared one by one.
            let each = if name == "scalars" { 1 } else { mine.span.len };
            let (found, oracle) = (on.read(mine.span)?, truth.read(theirs.span).unwrap_or_default());
            for (found, oracle) in found.chunks(each.max(1)).zip(oracle.chunks(each.max(1))) {
                compared.push(Compared { name, exact, found: found.to_vec(), oracle: oracle.to_vec() });
            }
        }
        Ok(compared)
    };
    let compared = attempt().map_err(|error| format!("{} in {op:?}", describe(&error)))?;
    for buffer in on.buffers {
        on.backend.release(buffer).map_err(|error| describe(&error))?;
    }
    Ok(compared)
}

fn pick(rng: &mut Rng, from: &[usize]) -> usize {
    from[rng.below(from.len() as u64) as usize]
}

fn coin(rng: &mut Rng) -> bool {
    rng.below(2) == 0
}

/// A weight (rows, cols): in half of the cases in the backend's numbers, else in fewer bits, where the padding of rows
/// is as random as the rest.
fn weight(rng: &mut Rng, memory: &mut dyn Memory, rows: usize, cols: usize, deviation: f64) -> Span {
    match STORED.get(rng.below(8) as usize) {
        Some(&dtype) => stored(rng, memory, dtype, rows, cols, deviation),
        None => memory.span(rows * cols, Fill::Normal(deviation)),
    }
}

/// The types that hold a weight in fewer bits.
pub(super) const STORED: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// A weight (rows, cols) in fewer bits.
fn stored(
    rng: &mut Rng,
    memory: &mut dyn Memory,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    deviation: f64,
) -> Span {
    let (len, (elements, size)) = (rows * dtype.padded(cols), dtype.unit());
    let mut bytes = Vec::new();
    for _ in 0..len / elements {
        let x = deviation * rng.normal();
        let head = match dtype {
            Dtype::Bf16 => bf16::from_f64(x).to_le_bytes(),
            Dtype::Q8_0 => f16::from_f64(x / 64.0).to_le_bytes(),
            Dtype::Q4_0 => f16::from_f64(x / 4.0).to_le_bytes(),
            _ => f16::from_f64(x).to_le_bytes(),
        };
        bytes.extend(head);
        bytes.extend((2..size).map(|_| rng.next_u32() as u8));
    }
    memory.span(len, Fill::Stored(dtype, bytes))
}

fn counters(rng: &mut Rng) -> Fill {
    let mut counters = vec![0; counter::LEN];
    for place in [counter::SEED, counter::SEED + 1, counter::DRAW, counter::DRAW + 1] {
        counters[place] = rng.next_u32();
    }
    counters[counter::STEP] = rng.below(50) as u32;
    counters[counter::UPDATES] = rng.below(50) as u32;
    Fill::Words(counters)
}

fn dropout(rng: &mut Rng, memory: &mut dyn Memory) -> Option<Dropout> {
    let (wanted, site) = (coin(rng), rng.below(20) as u32);
    let counters = counters(rng);
    // Also where a slice of a batch begins, and beyond 32 bits.
    let first = u64::from(site) * 0x1_2345_6789;
    wanted.then(|| Dropout { probability: 0.25, site, first, counters: memory.span(counter::LEN, counters) })
}

/// The results that the forward op leaves for its gradient, from an oracle of its own.
fn left_behind(op: Op, oracle: &mut Reference<f64>, spans: &[Span]) -> Vec<Vec<f64>> {
    // The oracle takes every well-formed op; an error would show as empty operands, which no op accepts.
    if oracle.run(&op).is_err() {
        return vec![Vec::new(); spans.len()];
    }
    spans.iter().map(|&span| read_elems(oracle, span).unwrap_or_default()).collect()
}

fn normals(rng: &mut Rng, len: usize, deviation: f64) -> Vec<f64> {
    (0..len).map(|_| f64::from((deviation * rng.normal()) as f32)).collect()
}

/// A random case of an op. The same `rng` gives the same case on every memory.
fn case(kind: OpKind, rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    match kind {
        OpKind::EmbeddingForward | OpKind::EmbeddingBackward => embedding::case(kind, rng, memory),
        OpKind::LayerNormForward | OpKind::LayerNormBackward => layernorm::case(kind, rng, memory),
        OpKind::LinearForward => linear::forward(rng, memory),
        OpKind::LinearBackward => linear::backward(rng, memory),
        OpKind::ActivationForward => linear::activation_forward(rng, memory),
        OpKind::Rotary => attention::rotary(rng, memory),
        OpKind::AttentionForward => attention::forward(rng, memory),
        OpKind::AttentionBackward => attention::backward(rng, memory),
        OpKind::AttentionCached => attention::cached(rng, memory),
        OpKind::AttentionScores => attention::scores(rng, memory),
        OpKind::CrossEntropy => step::cross_entropy(rng, memory),
        OpKind::SquaredNorm => step::squared_norm(rng, memory),
        OpKind::NextDraw => step::next_draw(rng, memory),
        OpKind::FinishStep => step::finish_step(rng, memory),
        OpKind::AdamW => step::adamw(rng, memory),
    }
}
