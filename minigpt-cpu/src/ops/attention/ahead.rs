//! What a later task will read is fetched while an earlier one computes.
//!
//! A task's rows come from memory at the speed of its latency, since they are spread over many pages, and are needed
//! all at once before anything can be computed. Asked for a task ahead, a few rows at a time, they are in the second
//! cache by then.

use core::ops::Range;

use crate::arch::Vector;
use crate::par::Rows;

/// Some columns of N operands, to be fetched in portions of their rows.
pub(super) struct Ahead<'s, const N: usize> {
    wanted: [(&'s Rows<'s>, Range<usize>); N],
    /// Of each operand.
    rows: Range<usize>,
    portions: usize,
    done: usize,
}

impl<'s, const N: usize> Ahead<'s, N> {
    pub(super) fn new(
        wanted: [(&'s Rows<'s>, Range<usize>); N],
        rows: Range<usize>,
        portions: usize,
    ) -> Self {
        Ahead { wanted, rows, portions, done: 0 }
    }

    /// Asks for the next portion.
    #[inline(always)]
    pub(super) fn fetch<V: Vector>(&mut self, t: V::Token) {
        if self.done >= self.portions {
            return;
        }
        let count = self.rows.len();
        let rows = count * self.done / self.portions..count * (self.done + 1) / self.portions;
        self.done += 1;
        for row in rows {
            for (operand, cols) in &self.wanted {
                V::prefetch(t, &operand.row(self.rows.start + row)[cols.clone()]);
            }
        }
    }
}
