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

mod backward;
mod cached;
mod forward;
mod scores;
mod tile;

pub(super) use backward::backward;
pub(super) use cached::cached;
pub(super) use forward::forward;
pub(super) use scores::scores;

use minigpt_core::Plan;
use minigpt_core::plan::Purpose;

use crate::context::Machine;

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
        &qkv[((row * 3 + part) * self.heads + head) * self.d_head..][..self.d_head]
    }
}

/// Scratch for all threads. Growing with the threads, it does not change what is computed.
pub(super) fn scratch_floats(plan: &Plan, machine: Machine) -> usize {
    let d_head = plan.config.d_head();
    let each = match plan.purpose {
        Purpose::Training => backward::scratch_floats(plan.time, d_head),
        Purpose::Inference { cache: 0, .. } => forward::scratch_floats(plan.time, d_head),
        Purpose::Inference { cache, .. } => cached::scratch_floats(cache, d_head),
    };
    each.saturating_mul(machine.threads)
}
