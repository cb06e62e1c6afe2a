//! Random attention, and the rotation of its queries and keys.

use super::{Fill, Memory, On, coin, dropout, left_behind, pick};
use crate::backend::read_u32;
use crate::op::*;
use crate::reference::Reference;
use crate::rng::Rng;

/// Shape of an attention op: B, T, H, D and the scale.
fn shape(rng: &mut Rng) -> (usize, usize, usize, usize, f64) {
    let (batch, time) = (1 + rng.below(3) as usize, pick(rng, &[1, 2, 7, 16, 33, 64, 65, 70]));
    let (heads, d_head) = (1 + rng.below(4) as usize, pick(rng, &[1, 4, 7, 12, 16, 32, 33, 64]));
    (batch, time, heads, d_head, 1.0 / libm::sqrt(d_head as f64))
}

pub(super) fn rotary(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, _) = shape(rng);
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

pub(super) fn forward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, scale) = shape(rng);
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

pub(super) fn backward(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let mut oracle = Reference::<f64>::new();
    let mut at = On::new(&mut oracle, rng.clone());
    let Op::AttentionForward(forward) = forward(rng, &mut at) else {
        unreachable!("forward makes an AttentionForward")
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

pub(super) fn cached(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, scale) = shape(rng);
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

pub(super) fn scores(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (batch, time, heads, d_head, scale) = shape(rng);
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
