//! What a later task will read is fetched while an earlier one computes.
//!
//! A task's rows come from memory at the speed of its latency, since they are spread over many pages, and are needed
//! all at once before anything can be computed. Asked for a task ahead, a few rows at a time, they are in the second
//! cache by then.

use super::Shape;
use crate::arch::Vector;

/// The rows of some neighbouring heads of a sequence, to be fetched in portions.
pub(super) struct Ahead<'s> {
    shape: Shape,
    qkv: &'s [f32],
    /// As `qkv`, but one number where it has three.
    others: [&'s [f32]; 2],
    batch: usize,
    head: usize,
    heads: usize,
    portions: usize,
    done: usize,
}

impl<'s> Ahead<'s> {
    /// Of task number `index`, where a task is `heads` heads: nothing, if there is no such task.
    pub(super) fn new(
        shape: Shape,
        (qkv, others): (&'s [f32], [&'s [f32]; 2]),
        index: usize,
        heads: usize,
        portions: usize,
    ) -> Self {
        let across = shape.heads / heads;
        let (batch, head) = (index / across, index % across * heads);
        let there = (batch + 1) * shape.time * 3 * shape.d_model() <= qkv.len();
        let done = if there { 0 } else { portions };
        Ahead { shape, qkv, others, batch, head, heads, portions, done }
    }

    /// Asks for the next portion.
    #[inline(always)]
    pub(super) fn fetch<V: Vector>(&mut self, t: V::Token) {
        if self.done >= self.portions {
            return;
        }
        let Shape { time, heads, d_head } = self.shape;
        let rows = time * self.done / self.portions..time * (self.done + 1) / self.portions;
        self.done += 1;
        for row in rows {
            let row = self.batch * time + row;
            for part in 0..3 {
                V::prefetch(t, self.shape.group(self.qkv, row, part, self.head, self.heads));
            }
            for other in self.others {
                let here = (row * heads + self.head) * d_head;
                V::prefetch(t, other.get(here..here + self.heads * d_head).unwrap_or(&[]));
            }
        }
    }
}
