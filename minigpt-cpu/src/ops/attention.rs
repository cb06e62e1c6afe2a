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

use core::ops::Range;

use minigpt_core::op::{AttentionBackward, AttentionForward, AttentionRows, AttentionShape};

use crate::context::Machine;

/// Numbers side by side that memory hands out at full speed.
const WIDE: usize = 128;
/// Numbers in the keys of a task, and as many in the values and each gradient.
const KEPT: usize = 1 << 14;
/// With so many tasks, the last one to end does not matter on a few threads.
const TASKS: usize = 12;

/// The dimensions of a batch, and what its queries see.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
    /// How many heads of queries in a row share a head of keys and values.
    share: usize,
    /// So many keys, the first ones, every query sees.
    prefix: usize,
}

impl Shape {
    fn new(shape: &AttentionShape) -> Self {
        let AttentionShape { batch, time, heads, kv_heads, d_head, prefix, .. } = *shape;
        let share = heads.checked_div(kv_heads).unwrap_or(1).max(1);
        Shape { batch, time, heads, d_head, share, prefix: prefix.min(time) }
    }

    /// C, or what there is in its place: H D.
    fn width(self) -> usize {
        self.heads * self.d_head
    }

    /// K D.
    fn kv_width(self) -> usize {
        self.heads / self.share * self.d_head
    }

    /// How many heads of keys and values so many heads of queries have that are a task.
    fn kv_heads_of(self, heads: usize) -> usize {
        (heads / self.share).max(1)
    }

    /// The columns of some neighbouring heads in rows of queries, and in rows of keys or values.
    #[inline(always)]
    fn cols(self, head: usize, heads: usize) -> [Range<usize>; 2] {
        let first = head / self.share;
        [head..head + heads, first..first + self.kv_heads_of(heads)]
            .map(|heads| heads.start * self.d_head..heads.end * self.d_head)
    }

    /// The rows and columns of task number `index`, where a task is so many heads of a sequence; none, if there is no such
    /// task.
    #[inline(always)]
    fn task(self, index: usize, heads: usize) -> (Range<usize>, [Range<usize>; 2]) {
        let across = self.heads / heads;
        let (batch, head) = (index / across, index % across * heads);
        let first = batch * self.time;
        let rows = if batch < self.batch { first..first + self.time } else { 0..0 };
        (rows, self.cols(head, heads))
    }

    /// How many neighbouring heads of a sequence make a task, where whole heads do. More of them read longer stretches
    /// of memory; but what they keep must stay in the second cache, and enough tasks must be left.
    ///
    /// They have whole heads of keys and values, or parts of one if they may.
    fn heads_per_task(self, parts: bool) -> usize {
        let fits = |&heads: &usize| self.may_be_task(heads, parts) && self.kept(heads) >= self.time;
        (1..=self.heads).rev().find(fits).unwrap_or(self.least_task(parts))
    }

    /// What makes a task where nothing better does.
    fn least_task(self, parts: bool) -> usize {
        if parts { 1 } else { self.share }
    }

    /// Whether so many heads may be a task, if they have few enough positions.
    fn may_be_task(self, heads: usize, parts: bool) -> bool {
        self.heads.is_multiple_of(heads)
            && (heads.is_multiple_of(self.share) || parts && self.share.is_multiple_of(heads))
            && heads.saturating_mul(self.d_head) <= WIDE
            && self.batch.saturating_mul(self.heads / heads) >= TASKS
    }

    /// At how many positions what so many heads keep still stays in the second cache.
    fn kept(self, heads: usize) -> usize {
        KEPT / (self.kv_heads_of(heads) * self.d_head).max(1)
    }

    /// The largest of what tasks of so many heads and positions need, whichever are made of these sequences or fewer, and of
    /// these positions or fewer.
    fn largest_task(self, parts: bool, floats: impl Fn(usize, usize) -> usize) -> usize {
        let tasks = (1..=self.heads).filter(|&heads| self.may_be_task(heads, parts));
        tasks.fold(floats(self.least_task(parts), self.time), |most, heads| {
            most.max(floats(heads, self.kept(heads).min(self.time)))
        })
    }
}

// Scratch is for all threads. Growing with the threads, it does not change what is computed.

pub(super) fn forward_scratch_floats(op: &AttentionForward, machine: Machine) -> usize {
    forward::scratch_floats(Shape::new(&op.shape)).saturating_mul(machine.threads)
}

pub(super) fn backward_scratch_floats(op: &AttentionBackward, machine: Machine) -> usize {
    backward::scratch_floats(Shape::new(&op.shape)).saturating_mul(machine.threads)
}

pub(super) fn rows_scratch_floats(op: &AttentionRows, machine: Machine) -> usize {
    cached::scratch_floats(op).saturating_mul(machine.threads)
}
