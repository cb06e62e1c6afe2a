//! Random attention, and the rotation of its queries and keys.

use alloc::vec::Vec;

use super::strided::{Between, Part, lay};
use super::{Draw, Fill, Memory, Recording, Sizes, dropout_if, left_behind};
use crate::config::Pairing;
use crate::memory::Strided;
use crate::op::*;

/// Shape of an attention op: every head with keys and values of its own, or shared ones; causal, or with a prefix.
fn shape(draw: &mut Draw) -> AttentionShape {
    let (time, d_head) = (draw.size(Sizes(33, 100, 257, 330)), draw.size(Sizes(24, 128, 129, 256)));
    let heads = draw.size(Sizes(2, 5, 6, 8));
    let (batch, time, heads, d_head) = within(draw.work, (1 + draw.below(3), time, heads, d_head));
    let (heads, kv_heads) = shared(draw, heads);
    let prefix = prefix(draw, time);
    AttentionShape { batch, time, heads, kv_heads, d_head, scale: scale(draw, d_head), prefix }
}

/// B, T, H and D for which attention takes no more than this work: several sequences, and many heads, give way first.
fn within(
    work: usize,
    (mut batch, mut time, mut heads, mut d_head): (usize, usize, usize, usize),
) -> (usize, usize, usize, usize) {
    while batch * heads * time * time * d_head > work {
        match (batch, heads) {
            (2.., _) => batch -= 1,
            (_, 2..) => heads -= 1,
            _ if time > 1 => time = time.div_ceil(2),
            _ => d_head = work,
        }
    }
    (batch, time, heads, d_head)
}

/// H and K: as many of either, one for all, or, if there is such a number, between.
fn shared(draw: &mut Draw, heads: usize) -> (usize, usize) {
    // Of a prime number there is none between.
    let composite = if matches!(heads, 5 | 7) { heads - 1 } else { heads };
    match draw.turn(&[0, 1, 2, 0, 1, 2, 2, 0]) {
        0 => (heads, heads),
        1 => (heads, 1),
        _ => {
            let between: Vec<usize> = (2..composite).filter(|&kv| composite.is_multiple_of(kv)).collect();
            (composite, if between.is_empty() { 1 } else { draw.pick(&between) })
        }
    }
}

/// Mostly none; or some of the positions, up to any; all of them; or more than there are.
fn prefix(draw: &mut Draw, time: usize) -> usize {
    let (wanted, kind) = (draw.variant(), draw.below(6));
    let some = 1 + draw.below(time);
    match kind {
        _ if !wanted => 0,
        0..3 => some,
        3 => time,
        4 => time + some,
        _ => 0,
    }
}

/// 1 / sqrt(D), or another.
fn scale(draw: &mut Draw, d_head: usize) -> f64 {
    draw.pick(&[1.0, 1.0, 0.7]) / libm::sqrt(d_head as f64)
}

/// The queries, keys and values, each in a row of its own.
type Parts = [Vec<f64>; 3];

fn rows(shape: &AttentionShape) -> usize {
    shape.batch * shape.time
}

/// How wide a row of queries, keys and values is.
fn widths(shape: &AttentionShape) -> [usize; 3] {
    [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.d_head)
}

fn normals(draw: &mut Draw, shape: &AttentionShape, deviation: f64) -> Parts {
    widths(shape).map(|width| draw.normals(rows(shape) * width, deviation))
}

/// Normal numbers; in some cases with scores whose exponentials overflow, and in some with what is no number at the last
/// position, which concerns no query before it, as long as those do not see it.
fn parts(draw: &mut Draw, shape: &AttentionShape) -> Parts {
    let (large, broken) = (draw.variant(), draw.variant());
    let mut parts = normals(draw, shape, 1.0);
    // Wide heads add up so many numbers beside a large one that nothing in f32 keeps the differences.
    if large && shape.d_head <= 40 {
        // All keys alike in one place, and so are the queries: the scores are large, and their differences are not.
        let most = f64::from(libm::sqrt(95.0 / shape.scale) as f32);
        for part in &mut parts[..2] {
            part.iter_mut().step_by(shape.d_head).for_each(|x| *x = most);
        }
    }
    if broken && shape.seen(0) < shape.time {
        for (part, width) in parts.iter_mut().zip(widths(shape)) {
            part[shape.time * width - 1] = f64::NAN;
        }
    }
    parts
}

/// Lays the first parts out, to be read.
fn read<const N: usize>(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    shape: &AttentionShape,
    parts: Parts,
) -> [Strided; N] {
    let mut parts = widths(shape).into_iter().zip(parts).map(|(width, values)| Part::new(width, values));
    let first = core::array::from_fn(|_| parts.next().unwrap_or_else(|| Part::unwritten(0, 1)));
    lay(draw, memory, rows(shape), first, Between::Nothing)
}

pub(super) fn rotary(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let AttentionShape { batch, time, heads, d_head, .. } = shape(draw);
    let (d_head, spare) = (2 * d_head.div_ceil(2), if draw.variant() { 0 } else { 1 + draw.below(4) });
    let (inverse, halves) = (draw.variant(), draw.variant());
    let width = heads * d_head;
    let values = draw.normals(batch * time * width, 1.0);
    let [x] = lay(draw, memory, batch * time, [Part::new(width, values)], Between::Numbers);
    Rotary {
        x,
        table: memory.span((time + spare) * d_head, Fill::Normal(0.7)),
        pairing: pairing(halves),
        batch,
        time,
        heads,
        d_head,
        inverse,
    }
    .into()
}

pub(super) fn pairing(halves: bool) -> Pairing {
    if halves { Pairing::Halves } else { Pairing::Adjacent }
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    // Whether nothing times what is no number is nothing, where a weight is dropped, nobody has said.
    let (mut parts, dropped) = (parts(draw, &shape), draw.variant());
    if dropped {
        parts.iter_mut().flatten().filter(|x| x.is_nan()).for_each(|x| *x = 0.5);
    }
    forward_of(draw, memory, shape, (parts, dropped)).into()
}

fn forward_of(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    shape: AttentionShape,
    (parts, dropped): (Parts, bool),
) -> AttentionForward {
    let lines = rows(&shape) * shape.heads;
    let [q, k, v] = read(draw, memory, &shape, parts);
    AttentionForward {
        q,
        k,
        v,
        out: memory.span(lines * shape.d_head, Fill::Poison),
        lse: memory.span(lines, Fill::Poison),
        shape,
        dropout: dropout_if(dropped, draw, memory),
    }
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let mut at = Recording::new(draw.rng.clone());
    let shape = shape(draw);
    let mut parts = normals(draw, &shape, 1.2);
    let (dropped, rising) = (draw.variant(), draw.variant());
    if rising && shape.d_head <= 40 {
        // A key has the larger scores the later it is: those that a query does not see are beyond all that it does.
        let most = libm::sqrt(120.0 / shape.scale);
        let [q_width, k_width, _] = widths(&shape);
        for place in 0..rows(&shape) {
            let part = (place % shape.time + 1) as f64 / shape.time as f64;
            let heads =
                |part: &mut [f64], x: f64| part.iter_mut().step_by(shape.d_head).for_each(|to| *to = x);
            heads(&mut parts[0][place * q_width..][..q_width], most);
            heads(&mut parts[1][place * k_width..][..k_width], most * part);
        }
    }
    let parts = parts.map(|part| draw.as_stored(part));
    let forward = forward_of(draw, &mut at, shape, (parts.clone(), dropped));
    let spans = [forward.out, forward.lse];
    let mut left = left_behind(draw, forward.into(), &mut at, &spans).into_iter();
    let mut next = || Fill::Values(left.next().unwrap_or_default());
    let n = forward.out.len;
    let counters = forward.dropout.map(|dropout| at.read(dropout.counters));
    let [q, k, v] = read(draw, memory, &shape, parts);
    let (out, lse) = (memory.span(n, next()), memory.span(forward.lse.len, next()));
    let gradients = widths(&shape).map(|width| Part::unwritten(rows(&shape), width));
    let [d_q, d_k, d_v] = lay(draw, memory, rows(&shape), gradients, Between::Numbers);
    AttentionBackward {
        q,
        k,
        v,
        out,
        lse,
        d_out: memory.span(n, Fill::Normal(1.0)),
        d_q,
        d_k,
        d_v,
        shape,
        dropout: forward.dropout.map(|dropout| Dropout {
            counters: memory.span(
                counter::LEN,
                Fill::Words(counters.iter().flatten().map(|&word| word as u32).collect()),
            ),
            ..dropout
        }),
    }
    .into()
}

pub(super) fn scores(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    let parts = parts(draw, &shape);
    let [q, k] = read(draw, memory, &shape, parts);
    AttentionScores {
        q,
        k,
        scores: memory.span(rows(&shape) * shape.heads * shape.time, Fill::Poison),
        softmax: draw.variant(),
        shape,
    }
    .into()
}
