//! Every op on random shapes, on a backend and on the oracle.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use half::{bf16, f16};

use super::{Line, Options, describe, error};
use crate::backend::{
    Backend, BackendError, Buffer, Dtype, ErrorKind, Span, read_elems, read_u32, write_elems, write_u32,
};
use crate::config::Activation;
use crate::op::*;
use crate::real::Real;
use crate::reference::Reference;
use crate::rng::{Rng, Stream};
use crate::train::schedule::{Decay, Schedule};

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

impl<B: Backend> On<'_, B> {
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
        let (many, d_in, d_out) = linear_shape(rng);
        let rows = if rng.below(3) == 0 { many } else { 1 + rng.below(6) as usize };
        linear_forward_with(rng, memory, (rows, d_in, d_out), Some(dtype))
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
    let mut truth = On { backend: &mut oracle, rng: rng(), failure: None, buffers: Vec::new() };
    // The shape and whatever an earlier op would have left behind are decided once; the numbers twice, alike.
    let build = |memory: &mut dyn Memory| build(&mut Rng::new(seed ^ 0x5eed, Stream::User), memory);
    let true_op = build(&mut truth);
    truth.backend.run(&true_op).map_err(|e| format!("the oracle refused {true_op:?}: {e}"))?;

    let mut on = On { backend, rng: rng(), failure: None, buffers: Vec::new() };
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

fn words(rng: &mut Rng, len: usize, below: usize) -> Fill {
    Fill::Words((0..len).map(|_| rng.below(below as u64) as u32).collect())
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
    wanted.then(|| Dropout { probability: 0.25, site, counters: memory.span(counter::LEN, counters) })
}

fn activation(rng: &mut Rng) -> Activation {
    [Activation::GeluTanh, Activation::GeluErf, Activation::Relu][rng.below(3) as usize]
}

/// Shape of an attention op: B, T, H, D and the scale.
fn attention_shape(rng: &mut Rng) -> (usize, usize, usize, usize, f64) {
    let (batch, time) = (1 + rng.below(3) as usize, pick(rng, &[1, 2, 7, 16, 33, 64, 65, 70]));
    let (heads, d_head) = (1 + rng.below(4) as usize, pick(rng, &[1, 4, 7, 12, 16, 32, 33, 64]));
    (batch, time, heads, d_head, 1.0 / libm::sqrt(d_head as f64))
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
        OpKind::EmbeddingForward | OpKind::EmbeddingBackward => embedding(kind, rng, memory),
        OpKind::LayerNormForward | OpKind::LayerNormBackward => layernorm(kind, rng, memory),
        OpKind::LinearForward => linear_forward(rng, memory),
        OpKind::LinearBackward => linear_backward(rng, memory),
        OpKind::ActivationForward => {
            let (rows, width) = (pick(rng, &ODD), pick(rng, &ODD));
            ActivationForward {
                x: memory.span(rows * width, Fill::Normal(2.0)),
                y: memory.span(rows * width, Fill::Poison),
                activation: activation(rng),
                rows,
                width,
            }
            .into()
        }
        OpKind::Rotary => {
            let (batch, time, heads, d_head, _) = attention_shape(rng);
            let (d_head, start) = (2 * d_head, rng.below(4) as usize);
            Rotary {
                qkv: memory.span(batch * time * 3 * heads * d_head, Fill::Normal(1.0)),
                table: memory.span((start + time + 1) * d_head, Fill::Normal(0.7)),
                batch,
                time,
                heads,
                d_head,
                start,
                inverse: coin(rng),
            }
            .into()
        }
        OpKind::AttentionForward => attention_forward(rng, memory),
        OpKind::AttentionBackward => attention_backward(rng, memory),
        OpKind::AttentionCached => {
            let (batch, time, heads, d_head, scale) = attention_shape(rng);
            let past = pick(rng, &[0, 1, 6, 63, 64]);
            let capacity = past + time + rng.below(9) as usize;
            let cache = batch * heads * capacity * d_head;
            AttentionCached {
                qkv: memory.span(batch * time * 3 * heads * d_head, Fill::Normal(1.0)),
                keys: memory.span(cache, Fill::Normal(1.0)),
                values: memory.span(cache, Fill::Normal(1.0)),
                out: memory.span(batch * time * heads * d_head, Fill::Poison),
                past,
                capacity,
                batch,
                time,
                heads,
                d_head,
                scale,
            }
            .into()
        }
        OpKind::AttentionScores => {
            let (batch, time, heads, d_head, scale) = attention_shape(rng);
            AttentionScores {
                qkv: memory.span(batch * time * 3 * heads * d_head, Fill::Normal(1.0)),
                scores: memory.span(batch * heads * time * time, Fill::Poison),
                softmax: coin(rng),
                batch,
                time,
                heads,
                d_head,
                scale,
            }
            .into()
        }
        OpKind::CrossEntropy => cross_entropy(rng, memory),
        OpKind::SquaredNorm => SquaredNorm {
            x: memory.span(pick(rng, &[1, 7, 64, 1000, 4097, 70_001]), Fill::Normal(0.1)),
            scalars: memory.span(scalar::LEN, Fill::Normal(1.0)),
        }
        .into(),
        OpKind::NextDraw => {
            let mut start = vec![0; counter::LEN];
            // Now and then the carry into the high word.
            start[counter::DRAW] = if coin(rng) { u32::MAX } else { rng.next_u32() };
            NextDraw { counters: memory.span(counter::LEN, Fill::Words(start)) }.into()
        }
        OpKind::FinishStep => finish_step(rng, memory),
        OpKind::AdamW => adamw(rng, memory),
    }
}

fn embedding(kind: OpKind, rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, d_model) = (1 + rng.below(3) as usize, pick(rng, &ODD), pick(rng, &ODD));
    let (vocab, start) = (pick(rng, &[2, 65, 97]), rng.below(3) as usize);
    let (rows, with_positions) = (batch * time, coin(rng));
    let tokens = memory.span(rows, words(rng, rows, vocab));
    if kind == OpKind::EmbeddingForward {
        return EmbeddingForward {
            tokens,
            token_embedding: weight(rng, memory, vocab, d_model, 1.0),
            position_embedding: with_positions
                .then(|| memory.span((start + time + 2) * d_model, Fill::Normal(1.0))),
            out: memory.span(rows * d_model, Fill::Poison),
            batch,
            time,
            d_model,
            vocab,
            start,
            dropout: dropout(rng, memory),
        }
        .into();
    }
    EmbeddingBackward {
        tokens,
        d_out: memory.span(rows * d_model, Fill::Normal(1.0)),
        d_token_embedding: memory.span(vocab * d_model, Fill::Normal(1.0)),
        d_position_embedding: with_positions.then(|| memory.span((time + 2) * d_model, Fill::Normal(1.0))),
        batch,
        time,
        d_model,
        vocab,
        dropout: dropout(rng, memory),
    }
    .into()
}

fn layernorm(kind: OpKind, rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    // At a width of 2 or 3 the gradient is a small difference of large numbers, in any arithmetic.
    let (rows, width) = (pick(rng, &ODD), pick(rng, &[5, 7, 16, 33, 63, 65, 128, 384]));
    // The larger one is seen in the result.
    let eps = if coin(rng) { 1e-5 } else { 0.5 };
    let (with_bias, accumulate, in_place) = (coin(rng), coin(rng), coin(rng));
    let n = rows * width;
    if kind == OpKind::LayerNormForward {
        return LayerNormForward {
            x: memory.span(n, Fill::Normal(2.0)),
            weight: memory.span(width, Fill::Normal(1.0)),
            bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
            y: memory.span(n, Fill::Poison),
            mean: memory.span(rows, Fill::Poison),
            rstd: memory.span(rows, Fill::Poison),
            rows,
            width,
            eps,
        }
        .into();
    }
    let x = normals(rng, n, 2.0);
    let mut oracle = Reference::<f64>::new();
    let mut at = On { backend: &mut oracle, rng: rng.clone(), failure: None, buffers: Vec::new() };
    let forward = LayerNormForward {
        x: at.span(n, Fill::Values(x.clone())),
        weight: at.span(width, Fill::Normal(1.0)),
        bias: None,
        y: at.span(n, Fill::Poison),
        mean: at.span(rows, Fill::Poison),
        rstd: at.span(rows, Fill::Poison),
        rows,
        width,
        eps,
    };
    let mut left = left_behind(forward.into(), &mut oracle, &[forward.mean, forward.rstd]);
    let (rstd, mean) = (left.pop().unwrap_or_default(), left.pop().unwrap_or_default());
    let d_y = memory.span(n, Fill::Normal(1.0));
    LayerNormBackward {
        x: memory.span(n, Fill::Values(x)),
        weight: memory.span(width, Fill::Normal(1.0)),
        mean: memory.span(rows, Fill::Values(mean)),
        rstd: memory.span(rows, Fill::Values(rstd)),
        d_y,
        d_x: match (accumulate, in_place) {
            (true, _) => memory.span(n, Fill::Normal(1.0)),
            (false, true) => d_y,
            (false, false) => memory.span(n, Fill::Poison),
        },
        accumulate,
        d_weight: memory.span(width, Fill::Normal(1.0)),
        d_bias: with_bias.then(|| memory.span(width, Fill::Normal(1.0))),
        rows,
        width,
    }
    .into()
}

/// Shape of a linear op: rows, d_in, d_out. Mostly odd, sometimes large enough for every level of blocking.
fn linear_shape(rng: &mut Rng) -> (usize, usize, usize) {
    if rng.below(4) == 0 {
        (pick(rng, &[129, 257, 300]), pick(rng, &[192, 385, 512]), pick(rng, &[65, 129, 384]))
    } else {
        (pick(rng, &ODD), pick(rng, &ODD), pick(rng, &ODD))
    }
}

fn linear_forward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let shape = linear_shape(rng);
    linear_forward_with(rng, memory, shape, None)
}

/// Of this shape, and with a weight of this type, if there is one.
fn linear_forward_with(
    rng: &mut Rng,
    memory: &mut dyn Memory,
    (rows, d_in, d_out): (usize, usize, usize),
    dtype: Option<Dtype>,
) -> Op {
    let (with_bias, with_activation, keep, residual) = (coin(rng), coin(rng), coin(rng), rng.below(3));
    let n = rows * d_out;
    let y = memory.span(n, if residual == 1 { Fill::Normal(1.0) } else { Fill::Poison });
    LinearForward {
        x: memory.span(rows * d_in, Fill::Normal(1.0)),
        weight: match dtype {
            Some(dtype) => stored(rng, memory, dtype, d_out, d_in, 0.5),
            None => weight(rng, memory, d_out, d_in, 0.5),
        },
        bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        activate: with_activation.then(|| Activate {
            activation: activation(rng),
            input: keep.then(|| memory.span(n, Fill::Poison)),
        }),
        dropout: dropout(rng, memory),
        residual: match residual {
            0 => None,
            1 => Some(y),
            _ => Some(memory.span(n, Fill::Normal(1.0))),
        },
        y,
        rows,
        d_in,
        d_out,
    }
    .into()
}

fn linear_backward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (rows, d_in, d_out) = linear_shape(rng);
    let (with_bias, with_d_x, with_activation) = (coin(rng), rng.below(4) > 0, coin(rng));
    let accumulate = coin(rng) && !with_activation;
    LinearBackward {
        x: memory.span(rows * d_in, Fill::Normal(1.0)),
        weight: memory.span(d_out * d_in, Fill::Normal(0.5)),
        d_y: memory.span(rows * d_out, Fill::Normal(1.0)),
        dropout: dropout(rng, memory),
        d_x: with_d_x
            .then(|| memory.span(rows * d_in, if accumulate { Fill::Normal(1.0) } else { Fill::Poison })),
        accumulate,
        activate: with_activation.then(|| Activate {
            activation: activation(rng),
            input: Some(memory.span(rows * d_in, Fill::Normal(1.5))),
        }),
        d_weight: memory.span(d_out * d_in, Fill::Normal(1.0)),
        d_bias: with_bias.then(|| memory.span(d_out, Fill::Normal(1.0))),
        rows,
        d_in,
        d_out,
    }
    .into()
}

fn attention_forward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, scale) = attention_shape(rng);
    let rows = batch * time * heads;
    AttentionForward {
        qkv: memory.span(rows * 3 * d_head, Fill::Normal(1.5)),
        out: memory.span(rows * d_head, Fill::Poison),
        lse: memory.span(rows, Fill::Poison),
        batch,
        time,
        heads,
        d_head,
        scale,
        dropout: dropout(rng, memory),
    }
    .into()
}

fn attention_backward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let mut oracle = Reference::<f64>::new();
    let mut at = On { backend: &mut oracle, rng: rng.clone(), failure: None, buffers: Vec::new() };
    let Op::AttentionForward(forward) = attention_forward(rng, &mut at) else {
        unreachable!("attention_forward makes an AttentionForward")
    };
    let spans = [forward.qkv, forward.out, forward.lse];
    let mut left = left_behind(forward.into(), &mut oracle, &spans).into_iter();
    let mut next = || Fill::Values(left.next().unwrap_or_default());
    let AttentionForward { batch, time, heads, d_head, scale, .. } = forward;
    let n = forward.out.len;
    let counters = forward.dropout.map(|d| read_u32(&mut oracle, d.counters).unwrap_or_default());
    AttentionBackward {
        qkv: memory.span(3 * n, next()),
        out: memory.span(n, next()),
        lse: memory.span(forward.lse.len, next()),
        d_out: memory.span(n, Fill::Normal(1.0)),
        d_qkv: memory.span(3 * n, Fill::Poison),
        batch,
        time,
        heads,
        d_head,
        scale,
        dropout: forward.dropout.map(|dropout| Dropout {
            counters: memory.span(counter::LEN, Fill::Words(counters.unwrap_or_default())),
            ..dropout
        }),
    }
    .into()
}

fn cross_entropy(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = (pick(rng, &ODD), pick(rng, &[2, 7, 65, 97, 256, 1000]));
    // Large logits overflow a softmax that does not subtract the largest first.
    let deviation = if rng.below(3) == 0 { 60.0 } else { 2.0 };
    let (with_gradient, in_place, with_losses) = (coin(rng), coin(rng), coin(rng));
    let targets =
        (0..rows).map(|_| if rng.below(8) == 0 { IGNORE } else { rng.below(vocab as u64) as u32 }).collect();
    let broken = rng.below(4) == 0;
    let mut values = normals(rng, rows * vocab, deviation);
    if broken {
        let place = rng.below(values.len() as u64) as usize;
        values[place] = [f64::NEG_INFINITY, f64::INFINITY, f64::NAN][rng.below(3) as usize];
    }
    let logits = memory.span(rows * vocab, Fill::Values(values));
    // The loss must show what is broken; what the gradient then is does not matter.
    let with_gradient = with_gradient && !broken;
    let mut scalars = vec![0.0; scalar::LEN];
    (scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]) = (3.5, 2.0);
    CrossEntropy {
        logits,
        targets: memory.span(rows, Fill::Words(targets)),
        d_logits: with_gradient
            .then(|| if in_place { logits } else { memory.span(rows * vocab, Fill::Poison) }),
        losses: with_losses.then(|| memory.span(rows, Fill::Poison)),
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        rows,
        vocab,
    }
    .into()
}

fn finish_step(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let broken = rng.below(4);
    let mut scalars = normals(rng, scalar::LEN, 1.0);
    scalars[scalar::LOSS_SUM] = if broken == 0 { f64::NAN } else { 1234.5 };
    scalars[scalar::TARGETS] = 500.0;
    scalars[scalar::GRAD_SQUARED] = if broken == 1 { f64::INFINITY } else { 9e5 * rng.uniform() };
    let decay = [Decay::Constant, Decay::Linear, Decay::Cosine][rng.below(3) as usize];
    FinishStep {
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        counters: memory.span(counter::LEN, counters(rng)),
        schedule: Schedule { peak: 1e-3, floor: 1e-4, warmup: 10, steps: 40, decay },
        clip: if coin(rng) { 1.0 } else { f64::INFINITY },
        beta1: 0.9,
        beta2: 0.99,
    }
    .into()
}

fn adamw(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let n = pick(rng, &[1, 7, 63, 65, 1000, 4099]);
    let apply = rng.below(4) > 0;
    let mut scalars = vec![0.0; scalar::LEN];
    scalars[scalar::GRAD_SCALE] = if apply { 0.01 } else { 0.0 };
    scalars[scalar::LEARNING_RATE] = 1e-2;
    scalars[scalar::CORRECTION1] = 0.1;
    scalars[scalar::CORRECTION2] = 0.0199;
    scalars[scalar::APPLY] = if apply { 1.0 } else { 0.0 };
    let mut grads = normals(rng, n, 3.0);
    if !apply {
        // A skipped step must not let a broken gradient through.
        grads[n / 2] = f64::NAN;
    }
    let (mut m, v) = (normals(rng, n, 0.1), normals(rng, n, 0.1));
    let mut v: Vec<f64> = v.into_iter().map(f64::abs).collect();
    // A parameter that has never had a gradient: only eps keeps 0 / 0 away.
    (grads[0], m[0], v[0]) = (if apply { 0.0 } else { grads[0] }, 0.0, 0.0);
    AdamW {
        params: memory.span(n, Fill::Normal(1.0)),
        grads: memory.span(n, Fill::Values(grads)),
        m: memory.span(n, Fill::Values(m)),
        v: memory.span(n, Fill::Values(v)),
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        decayed: rng.below(n as u64 + 1) as usize,
        beta1: 0.9,
        beta2: 0.99,
        // The larger one is seen in the result.
        eps: if coin(rng) { 1e-8 } else { 0.3 },
        weight_decay: 0.1,
    }
    .into()
}

/// Ops that are described wrongly, or that name a token outside the vocabulary, are refused and not run.
pub(super) fn check_refusals<B: Backend>(backend: &mut B) -> Line {
    let mut line = Line::new("invalid ops are refused", 0.0);
    let mut on = On { backend, rng: Rng::new(1, Stream::User), failure: None, buffers: Vec::new() };
    let x = on.span(12, Fill::Normal(1.0));
    let weight = on.span(12, Fill::Normal(1.0));
    let y = on.span(9, Fill::Normal(1.0));
    let good = LinearForward {
        x,
        weight,
        bias: None,
        activate: None,
        dropout: None,
        residual: None,
        y,
        rows: 3,
        d_in: 4,
        d_out: 3,
    };
    let tokens = on.span(2, Fill::Words(vec![1, 4]));
    let embedding = EmbeddingForward {
        tokens,
        token_embedding: weight,
        position_embedding: None,
        out: y.first(6),
        batch: 1,
        time: 2,
        d_model: 3,
        vocab: 4,
        start: 0,
        dropout: None,
    };
    let scalars = on.span(scalar::LEN, Fill::Normal(0.0));
    let targets =
        CrossEntropy { logits: x, targets: tokens, d_logits: None, losses: None, scalars, rows: 2, vocab: 6 };
    let nowhere = Span { buffer: Buffer(u32::MAX), ..x };
    let beyond = Span { offset: 64 * 1024, ..x };
    let wrong: [(&str, Op); 8] = [
        ("a span too short for the dimensions", LinearForward { rows: 4, ..good }.into()),
        ("dimensions that overflow", LinearForward { rows: usize::MAX / 2, ..good }.into()),
        ("a result over an operand", LinearForward { y: x.first(9), ..good }.into()),
        ("numbers of the wrong type", LinearForward { x: Span { dtype: Dtype::U32, ..x }, ..good }.into()),
        ("a span of no buffer", LinearForward { x: nowhere, ..good }.into()),
        ("a span past the end of its buffer", LinearForward { x: beyond, ..good }.into()),
        ("a token outside the vocabulary", embedding.into()),
        ("a target outside the vocabulary", CrossEntropy { logits: x.first(8), vocab: 4, ..targets }.into()),
    ];
    for (what, op) in wrong {
        line.cases += 1;
        let result = on.backend.run(&op).and_then(|()| on.backend.sync());
        if !result.is_err_and(|error| error.kind() == ErrorKind::Invalid) {
            line.fail(format!("{what} is not refused as Invalid"));
        }
    }
    line.cases += 1;
    if on.backend.run(&good.into()).and_then(|()| on.backend.sync()).is_err() || on.failure.is_some() {
        line.fail("the backend does not go on after it refused an op");
    }
    line
}
