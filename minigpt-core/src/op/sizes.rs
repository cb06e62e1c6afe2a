//! The dimensions of an op, by the letters of the crate's front page.

use core::fmt;

use super::{AttentionShape, Op};

/// The dimensions of an op, in the order in which people name them: `rows 64, in 128, out 384`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    list: [(&'static str, usize); Sizes::MOST],
    len: usize,
}

impl Sizes {
    const MOST: usize = 5;

    pub(crate) fn of<const N: usize>(names: [(&'static str, usize); N]) -> Self {
        let mut list = [("", 0); Sizes::MOST];
        list[..N].copy_from_slice(&names);
        Sizes { list, len: N }
    }

    /// Name and size of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.list.iter().take(self.len).copied()
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, size)) in self.iter().enumerate() {
            write!(f, "{}{name} {size}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl Op {
    /// Its dimensions; none of an op that works on a few scalars.
    pub fn sizes(&self) -> Sizes {
        let rows = |rows, name, width| Sizes::of([("rows", rows), (name, width)]);
        let linear = |rows, d_in, d_out| Sizes::of([("rows", rows), ("in", d_in), ("out", d_out)]);
        let norms = |rows, groups, width| match groups {
            1 => Sizes::of([("rows", rows), ("C", width)]),
            _ => Sizes::of([("rows", rows), ("H", groups), ("D", width)]),
        };
        let heads =
            |batch, time, heads, d_head| Sizes::of([("B", batch), ("T", time), ("H", heads), ("D", d_head)]);
        let attention = |op: &AttentionShape| heads(op.batch, op.time, op.heads, op.d_head);
        let slots = |rows, slots, heads, capacity, d_head| {
            Sizes::of([("rows", rows), ("S", slots), ("H", heads), ("T", capacity), ("D", d_head)])
        };
        let embedding = |batch, time, d_model, vocab| {
            Sizes::of([("B", batch), ("T", time), ("C", d_model), ("V", vocab)])
        };
        match self {
            Op::EmbeddingForward(op) => embedding(op.batch, op.time, op.d_model, op.vocab),
            #[cfg(feature = "train")]
            Op::EmbeddingBackward(op) => embedding(op.batch, op.time, op.d_model, op.vocab),
            Op::NormForward(op) => norms(op.rows, op.groups, op.width),
            #[cfg(feature = "train")]
            Op::NormBackward(op) => norms(op.rows, op.groups, op.width),
            Op::LinearForward(op) => linear(op.rows, op.d_in, op.d_out),
            #[cfg(feature = "train")]
            Op::LinearBackward(op) => linear(op.rows, op.d_in, op.d_out),
            #[cfg(feature = "train")]
            Op::ActivationForward(op) => rows(op.rows, "width", op.width),
            Op::GateForward(op) => rows(op.rows, "F", op.width),
            #[cfg(feature = "train")]
            Op::GateBackward(op) => rows(op.rows, "F", op.width),
            Op::Rotary(op) => heads(op.batch, op.time, op.heads, op.d_head),
            Op::AttentionForward(op) => attention(&op.shape),
            #[cfg(feature = "train")]
            Op::AttentionBackward(op) => attention(&op.shape),
            Op::AttentionScores(op) => attention(&op.shape),
            Op::EmbeddingRows(op) => Sizes::of([("rows", op.rows), ("C", op.d_model), ("V", op.vocab)]),
            Op::NormRows(op) => norms(op.norm.rows, op.norm.groups, op.norm.width),
            Op::LinearRows(op) => linear(op.linear.rows, op.linear.d_in, op.linear.d_out),
            Op::GateRows(op) => rows(op.gate.rows, "F", op.gate.width),
            Op::RotaryRows(op) => Sizes::of([("rows", op.rows), ("H", op.heads), ("D", op.d_head)]),
            Op::CacheAppend(op) => slots(op.rows, op.slot_count, op.kv_heads, op.capacity, op.d_head),
            Op::AttentionRows(op) => slots(op.rows, op.slot_count, op.heads, op.capacity, op.d_head),
            Op::Sample(op) => rows(op.rows, "V", op.vocab),
            Op::GatherRows(op) => Sizes::of([("rows", op.rows), ("wanted", op.count), ("C", op.width)]),
            #[cfg(feature = "train")]
            Op::CrossEntropy(op) => rows(op.rows, "V", op.vocab),
            #[cfg(feature = "train")]
            Op::SquaredNorm(op) => Sizes::of([("n", op.x.len)]),
            #[cfg(feature = "train")]
            Op::AdamW(op) => Sizes::of([("n", op.params.len)]),
            #[cfg(feature = "train")]
            Op::Sgd(op) => Sizes::of([("n", op.params.len)]),
            #[cfg(feature = "train")]
            Op::Momentum(op) => Sizes::of([("n", op.velocity.len)]),
            #[cfg(feature = "train")]
            Op::NewtonSchulz(op) => {
                Sizes::of([("rows", op.rows), ("cols", op.cols), ("steps", op.steps as usize)])
            }
            #[cfg(feature = "train")]
            Op::Descend(op) => Sizes::of([("n", op.params.len)]),
            #[cfg(feature = "train")]
            Op::Average(op) => Sizes::of([("n", op.params.len)]),
            #[cfg(feature = "train")]
            Op::Narrow(op) => Sizes::of([("n", op.to.len)]),
            #[cfg(feature = "train")]
            Op::Fill(op) => Sizes::of([("n", op.to.len)]),
            #[cfg(feature = "train")]
            Op::NextDraw(_) | Op::FinishStep(_) => Sizes::of([]),
        }
    }
}
