//! Random attention, and the rotation of its queries and keys.

use alloc::vec::Vec;

use super::{Draw, Fill, Memory, Recording, Sizes, dropout_if, left_behind};
use crate::op::*;

/// B, T, H, D, and the scale.
type Shape = (usize, usize, usize, usize, f64);

/// Shape of an attention op.
fn shape(draw: &mut Draw) -> Shape {
    let (time, d_head) = (draw.size(Sizes(33, 100, 257, 330)), draw.size(Sizes(24, 128, 129, 256)));
    let heads = draw.size(Sizes(2, 5, 6, 8));
    let (batch, time, heads, d_head) = within(draw.work, (1 + draw.below(3), time, heads, d_head));
    (batch, time, heads, d_head, scale(draw, d_head))
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

/// 1 / sqrt(D), or another.
fn scale(draw: &mut Draw, d_head: usize) -> f64 {
    draw.pick(&[1.0, 1.0, 0.7]) / libm::sqrt(d_head as f64)
}

/// Queries, keys and values, and what stands in front of each query and key if the scores are large.
type Qkv = (Vec<f64>, Option<f64>);

/// Normal numbers; in some cases with scores whose exponentials overflow, and in some with what is no number at the last
/// position, which concerns no query before it.
fn qkv(draw: &mut Draw, (batch, time, heads, d_head, scale): Shape) -> Qkv {
    let (large, broken) = (draw.variant(), draw.variant());
    let width = heads * d_head;
    let mut values = draw.normals(batch * time * 3 * width, 1.0);
    // Wide heads add up so many numbers beside a large one that nothing in f32 keeps the differences.
    let large = (large && d_head <= 40).then(|| f64::from(libm::sqrt(95.0 / scale) as f32));
    if let Some(most) = large {
        // All keys alike in one place, and so are the queries: the scores are large, and their differences are not.
        for row in values.chunks_exact_mut(3 * width) {
            for head in 0..2 * heads {
                row[head * d_head] = most;
            }
        }
    }
    if broken && time > 1 {
        let row = (time - 1) * 3 * width;
        for which in 0..3 {
            values[row + which * width + width - 1] = f64::NAN;
        }
    }
    (values, large)
}

pub(super) fn rotary(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, _) = shape(draw);
    let (d_head, spare) = (2 * d_head.div_ceil(2), if draw.variant() { 0 } else { 1 + draw.below(4) });
    Rotary {
        qkv: memory.span(batch * time * 3 * heads * d_head, Fill::Normal(1.0)),
        table: memory.span((time + spare) * d_head, Fill::Normal(0.7)),
        batch,
        time,
        heads,
        d_head,
        inverse: draw.variant(),
    }
    .into()
}

pub(super) fn forward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = shape(draw);
    // Whether nothing times what is no number is nothing, where a weight is dropped, nobody has said.
    let ((mut values, _), dropped) = (qkv(draw, shape), draw.variant());
    if dropped {
        values.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.5);
    }
    forward_of(draw, memory, shape, (values, dropped))
}

fn forward_of(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    shape: Shape,
    (values, dropped): (Vec<f64>, bool),
) -> Op {
    let (batch, time, heads, d_head, scale) = shape;
    let rows = batch * time * heads;
    AttentionForward {
        qkv: memory.span(values.len(), Fill::Values(values)),
        out: memory.span(rows * d_head, Fill::Poison),
        lse: memory.span(rows, Fill::Poison),
        batch,
        time,
        heads,
        d_head,
        scale,
        dropout: dropout_if(dropped, draw, memory),
    }
    .into()
}

pub(super) fn backward(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let mut at = Recording::new(draw.rng.clone());
    let shape = shape(draw);
    let (batch, time, heads, d_head, scale) = shape;
    let (mut values, width) = (draw.normals(batch * time * 3 * heads * d_head, 1.2), heads * d_head);
    let (dropped, rising) = (draw.variant(), draw.variant());
    if rising && d_head <= 40 {
        // A key has the larger scores the later it is: those that a query does not see are beyond all that it does.
        let most = libm::sqrt(120.0 / scale);
        for (place, row) in values.chunks_exact_mut(3 * width).enumerate() {
            let part = (place % time + 1) as f64 / time as f64;
            for head in 0..heads {
                (row[head * d_head], row[width + head * d_head]) = (most, most * part);
            }
        }
    }
    let Op::AttentionForward(forward) = forward_of(draw, &mut at, shape, (values, dropped)) else {
        unreachable!("forward makes an AttentionForward")
    };
    let spans = [forward.qkv, forward.out, forward.lse];
    let mut left = left_behind(forward.into(), &mut at, &spans).into_iter();
    let mut next = || Fill::Values(left.next().unwrap_or_default());
    let n = forward.out.len;
    let counters = forward.dropout.map(|dropout| at.read(dropout.counters));
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
    let (batch, time, heads, d_head, scale) = shape;
    let (values, _) = qkv(draw, shape);
    AttentionScores {
        qkv: memory.span(values.len(), Fill::Values(values)),
        scores: memory.span(batch * heads * time * time, Fill::Poison),
        softmax: draw.variant(),
        batch,
        time,
        heads,
        d_head,
        scale,
    }
    .into()
}
