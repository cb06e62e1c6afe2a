//! Attention in the manner of FlashAttention (Dao et al. 2022, arXiv:2205.14135): tile by tile, the softmax taken
//! as the keys come, and no (T, T) matrix anywhere.
//!
//! The lanes of a vector are queries. A tile of queries is turned once, so that its scores
//!
//! ```text
//! s^T (keys, queries) = k (keys, D)  q^T (D, queries)
//! ```
//!
//! come out with the keys one below the other: the softmax of a query goes down its lane, with no sum across lanes,
//! and D, over which only products run, may have any size. With few new positions, lanes run along D instead.

mod ahead;
mod backward;
mod cached;
mod forward;
mod scores;
mod tile;

#[cfg(feature = "train")]
pub(super) use backward::backward;
pub(super) use cached::rows;
pub(super) use forward::forward;
pub(super) use scores::scores;

use minigpt_core::op::{AttentionBackward, AttentionForward, AttentionRows};

use crate::context::Machine;

/// Numbers side by side that memory hands out at full speed.
const WIDE: usize = 128;
/// Numbers in the keys of a task, and as many in the values and each gradient.
const KEPT: usize = 1 << 14;
/// With so many tasks, the last one to end does not matter on a few threads.
const TASKS: usize = 12;

const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// The dimensions of qkv: (B, T, 3, H, D).
#[derive(Debug, Clone, Copy)]
struct Shape {
    time: usize,
    heads: usize,
    d_head: usize,
}

impl Shape {
    /// C.
    fn d_model(self) -> usize {
        self.heads * self.d_head
    }

    /// The query, key or value of `head` in row `row` = b T + t of qkv.
    #[inline(always)]
    fn of(self, qkv: &[f32], row: usize, part: usize, head: usize) -> &[f32] {
        self.group(qkv, row, part, head, 1)
    }

    /// The same of `count` heads from `head` on, side by side.
    #[inline(always)]
    fn group(self, qkv: &[f32], row: usize, part: usize, head: usize, count: usize) -> &[f32] {
        &qkv[((row * 3 + part) * self.heads + head) * self.d_head..][..count * self.d_head]
    }

    /// How many neighbouring heads of a sequence make a task, where whole heads do. More of them read longer stretches
    /// of memory; but what they keep must stay in the second cache, and enough tasks must be left.
    fn heads_per_task(self, batch: usize) -> usize {
        let fits = |&heads: &usize| {
            self.heads.is_multiple_of(heads)
                && heads * self.d_head <= WIDE
                && heads * self.d_head * self.time <= KEPT
                && batch * (self.heads / heads) >= TASKS
        };
        (1..=self.heads).rev().find(fits).unwrap_or(1)
    }
}

// Scratch is for all threads. Growing with the threads, it does not change what is computed.

pub(super) fn forward_scratch_floats(op: &AttentionForward, machine: Machine) -> usize {
    let shape = Shape { time: op.time, heads: op.heads, d_head: op.d_head };
    let group = shape.heads_per_task(op.batch);
    forward::scratch_floats(op.time, group, op.d_head).saturating_mul(machine.threads)
}

pub(super) fn backward_scratch_floats(op: &AttentionBackward, machine: Machine) -> usize {
    let shape = Shape { time: op.time, heads: op.heads, d_head: op.d_head };
    let group = shape.heads_per_task(op.batch);
    backward::scratch_floats(op.time, group, op.d_head).saturating_mul(machine.threads)
}

pub(super) fn rows_scratch_floats(op: &AttentionRows, machine: Machine) -> usize {
    cached::scratch_floats(op).saturating_mul(machine.threads)
}
