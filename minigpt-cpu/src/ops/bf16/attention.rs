//! Attention, by sequences or by heads of one: heads know nothing of each other.

use core::ops::Range;

#[cfg(feature = "train")]
use minigpt_core::op::AttentionBackward;
use minigpt_core::op::{AttentionForward, AttentionScores, AttentionShape};
use minigpt_core::{Span, Strided};

use super::blocks::{Layout, Sequences, later, part_of, rows_of};
use super::round::Round;
use super::widen::widen;
use super::{Block, Needs, Steps};
use crate::context::Machine;
use crate::error::CpuError;
use crate::ops::attention as on_f32;

/// How it is cut up, with so many operands of the queries' shape and of the keys'.
pub(super) struct Plan<const Q: usize, const K: usize> {
    whole: AttentionShape,
    /// Whose parts are heads of keys.
    sequences: Sequences,
    queries: [Span; Q],
    keys: [Span; K],
    pub(super) needs: Needs,
}

/// What a block has: heads of some sequences.
struct Part {
    whole: AttentionShape,
    batch: Range<usize>,
    heads: Range<usize>,
    kv_heads: Range<usize>,
}

impl<const Q: usize, const K: usize> Plan<Q, K> {
    /// A kernel of f32 takes so many numbers of scratch for a shape, and no more for fewer sequences or positions.
    fn new(whole: &AttentionShape, kernel: impl Fn(AttentionShape) -> usize) -> Self {
        let share = share(whole);
        let head = whole.time.saturating_mul(whole.d_head);
        let floats = share.saturating_mul(Q).saturating_add(K).saturating_mul(head);
        let sequences = Sequences::new(whole.batch, whole.kv_heads, floats);
        let keys = sequences.room(head, floats);
        let mut layout = Layout::default();
        let mut plan = Plan {
            whole: *whole,
            sequences,
            queries: [(); Q].map(|()| layout.take(keys.saturating_mul(share))),
            keys: [(); K].map(|()| layout.take(keys)),
            needs: Needs { block: layout.floats(), kernel: 0 },
        };
        // Whole sequences, and where not all heads of one fit, any number of them: of fewer positions, other blocks are made.
        let least = if sequences.parts.room() < whole.kv_heads { 1 } else { whole.kv_heads };
        for kv_heads in least..=whole.kv_heads {
            let part = Part::new(whole, [0..whole.batch, 0..kv_heads]);
            plan.needs.kernel = plan.needs.kernel.max(kernel(part.shape()));
        }
        plan
    }

    fn parts(&self) -> impl Iterator<Item = Part> + use<Q, K> {
        let whole = self.whole;
        self.sequences.iter().map(move |part| Part::new(&whole, part))
    }

    /// In scratch, rows of what a part has.
    fn matrices(&self, part: &Part) -> ([Strided; Q], [Strided; K]) {
        let rows = part.batch.len() * self.whole.time;
        let of = |all: Span, heads: &Range<usize>| {
            let width = heads.len() * self.whole.d_head;
            all.first(rows * width).rows(width)
        };
        (self.queries.map(|all| of(all, &part.heads)), self.keys.map(|all| of(all, &part.kv_heads)))
    }
}

fn share(shape: &AttentionShape) -> usize {
    shape.heads.checked_div(shape.kv_heads).unwrap_or(1)
}

impl Part {
    fn new(whole: &AttentionShape, [batch, kv_heads]: [Range<usize>; 2]) -> Self {
        let share = share(whole);
        let heads = kv_heads.start.saturating_mul(share)..kv_heads.end.saturating_mul(share);
        Part { whole: *whole, batch, heads, kv_heads }
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            batch: self.batch.len(),
            heads: self.heads.len(),
            kv_heads: self.kv_heads.len(),
            ..self.whole
        }
    }

    /// Its rows and columns of a matrix of `of` heads.
    fn columns(&self, all: Strided, heads: &Range<usize>, of: usize) -> Strided {
        let AttentionShape { time, d_head, .. } = self.whole;
        let width = heads.len() * d_head;
        let columns = all.part(heads.start * d_head, width, of * d_head);
        rows_of(columns, self.batch.start * time..self.batch.end * time, width)
    }

    fn queries(&self, all: Strided) -> Strided {
        self.columns(all, &self.heads, self.whole.heads)
    }

    fn keys(&self, all: Strided) -> Strided {
        self.columns(all, &self.kv_heads, self.whole.kv_heads)
    }

    /// A matrix whose rows lie side by side.
    fn rows(&self, all: Span) -> Strided {
        self.queries(all.rows(self.whole.heads * self.whole.d_head))
    }

    /// Its queries, of all heads in a row.
    fn lines(&self) -> Range<usize> {
        let AttentionShape { heads, time, .. } = self.whole;
        let first = (self.batch.start * heads + self.heads.start) * time;
        first..first + self.batch.len() * self.heads.len() * time
    }

    /// The first of its weights, of all in a row.
    fn first_weight(&self) -> u64 {
        (self.lines().start as u64).wrapping_mul(self.whole.time as u64)
    }
}

/// Widens matrices into scratch.
fn widen_all<const N: usize>(
    block: &mut Block<'_, '_, '_>,
    matrices: [(Strided, Strided); N],
) -> Result<(), CpuError> {
    matrices.into_iter().try_for_each(|(from, to)| widen(block, from, to.span, to.stride))
}

/// Rounds matrices in scratch into where they belong.
fn round_all<const N: usize>(
    block: &mut Block<'_, '_, '_>,
    matrices: [(Strided, Strided); N],
) -> Result<(), CpuError> {
    matrices.into_iter().try_for_each(|(from, to)| Round::new(from.span, to, from.stride).run(block))
}

/// Of q and out, and of k and v.
pub(super) fn plan_forward(op: &AttentionForward, machine: Machine) -> Plan<2, 2> {
    Plan::new(&op.shape, |shape| on_f32::forward_scratch_floats(&AttentionForward { shape, ..*op }, machine))
}

pub(super) fn forward(steps: &mut Steps<'_, '_>, op: &AttentionForward) -> Result<(), CpuError> {
    let plan = plan_forward(op, steps.team.machine());
    let block = &mut Block::new(steps, plan.needs);
    for part in plan.parts() {
        let ([q, out], [k, v]) = plan.matrices(&part);
        widen_all(block, [(part.queries(op.q), q), (part.keys(op.k), k), (part.keys(op.v), v)])?;
        block.run(AttentionForward {
            q,
            k,
            v,
            out: out.span,
            lse: part_of(op.lse, part.lines(), 1),
            shape: part.shape(),
            dropout: later(op.dropout, part.first_weight()),
        })?;
        round_all(block, [(out, part.rows(op.out))])?;
    }
    Ok(())
}

/// Of q, out and their gradients, and of k and v and theirs.
#[cfg(feature = "train")]
pub(super) fn plan_backward(op: &AttentionBackward, machine: Machine) -> Plan<4, 4> {
    Plan::new(&op.shape, |shape| {
        on_f32::backward_scratch_floats(&AttentionBackward { shape, ..*op }, machine)
    })
}

#[cfg(feature = "train")]
pub(super) fn backward(steps: &mut Steps<'_, '_>, op: &AttentionBackward) -> Result<(), CpuError> {
    let plan = plan_backward(op, steps.team.machine());
    let block = &mut Block::new(steps, plan.needs);
    for part in plan.parts() {
        let ([q, out, d_q, d_out], [k, v, d_k, d_v]) = plan.matrices(&part);
        widen_all(block, [(part.queries(op.q), q), (part.keys(op.k), k), (part.keys(op.v), v)])?;
        widen_all(block, [(part.rows(op.out), out), (part.rows(op.d_out), d_out)])?;
        block.run(AttentionBackward {
            q,
            k,
            v,
            out: out.span,
            lse: part_of(op.lse, part.lines(), 1),
            d_out: d_out.span,
            d_q,
            d_k,
            d_v,
            shape: part.shape(),
            dropout: later(op.dropout, part.first_weight()),
        })?;
        round_all(block, [(d_q, part.queries(op.d_q)), (d_k, part.keys(op.d_k)), (d_v, part.keys(op.d_v))])?;
    }
    Ok(())
}

/// Of q, and of k.
pub(super) fn plan_scores(op: &AttentionScores) -> Plan<1, 1> {
    Plan::new(&op.shape, |_| 0)
}

pub(super) fn scores(steps: &mut Steps<'_, '_>, op: &AttentionScores) -> Result<(), CpuError> {
    let plan = plan_scores(op);
    let block = &mut Block::new(steps, plan.needs);
    for part in plan.parts() {
        let ([q], [k]) = plan.matrices(&part);
        widen_all(block, [(part.queries(op.q), q), (part.keys(op.k), k)])?;
        let scores = part_of(op.scores, part.lines(), op.shape.time);
        block.run(AttentionScores { q, k, scores, shape: part.shape(), ..*op })?;
    }
    Ok(())
}
