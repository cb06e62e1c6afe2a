//! Embedding, equal to [`embedding_forward`](minigpt_core::reference::embedding::embedding_forward) and
//! [`embedding_backward`](minigpt_core::reference::embedding::embedding_backward).
//!
//! Many rows may go back to the same row of the table. So the backward pass is not cut up by rows but by columns:
//! every task walks over all tokens, in order, for its own few columns.

use minigpt_core::InvalidOp;
use minigpt_core::op::{EmbeddingBackward, EmbeddingForward};

use super::lanes::{load, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::ops::weight::Weight;
use crate::par::{Chunks, Grid, Tile};

/// That every token is below `vocab`.
pub(super) fn check_tokens(mut tokens: impl Iterator<Item = u32>, vocab: usize) -> Result<(), InvalidOp> {
    match tokens.find(|&token| token as usize >= vocab) {
        Some(token) => Err(InvalidOp::Token { token, vocab }),
        None => Ok(()),
    }
}

struct Forward<'s> {
    tokens: &'s [u32],
    table: Weight<'s>,
    positions: Option<&'s [f32]>,
    mask: Option<Mask>,
    rows_per_task: usize,
    time: usize,
    d_model: usize,
}

impl Job<Chunks<'_, f32>> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, out: &mut [f32]) {
        let width = self.d_model;
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let row = index * self.rows_per_task + i;
            self.table.read::<V>(t, self.tokens[row] as usize, out);
            if let Some(positions) = self.positions {
                let position = &positions[row % self.time * width..][..width];
                for c in (0..width).step_by(V::LANES) {
                    store(load::<V>(t, out, c) + load(t, position, c), out, c);
                }
            }
            if let Some(mask) = &self.mask {
                mask.apply(row * width, out);
            }
        }
    }
}

pub(super) fn forward(context: &mut Context<'_, '_>, op: &EmbeddingForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let tokens = views.u32("tokens", op.tokens)?;
    check_tokens(tokens.iter().copied(), op.vocab)?;
    let positions = op.position_embedding.map(|p| p.first(op.time * op.d_model));
    let rows_per_task = rows_per_task(op.d_model);
    let job = Forward {
        tokens,
        table: Weight::new(views, "token_embedding", op.token_embedding)?,
        positions: positions.map(|p| views.f32("position_embedding", p)).transpose()?,
        mask: Mask::new(views, op.dropout)?,
        rows_per_task,
        time: op.time,
        d_model: op.d_model,
    };
    let parts = Chunks::new(views.f32_mut("out", op.out)?, rows_per_task * op.d_model);
    context.team.for_each(parts, &job);
    Ok(())
}

/// Columns of a task of the backward pass: two cache lines, so that tasks do not write to one line.
const COLS: usize = 32;

struct Backward<'s> {
    tokens: &'s [u32],
    d_out: &'s [f32],
    mask: Option<Mask>,
    time: usize,
    d_model: usize,
}

impl Job<(Option<Grid<'_>>, Option<Grid<'_>>)> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        _: usize,
        (mut table, mut positions): (Option<Tile<'_>>, Option<Tile<'_>>),
    ) {
        let Some(cols) = table.as_ref().or(positions.as_ref()).map(Tile::cols) else { return };
        let mut dropped = [0.0; COLS];
        for (row, &token) in self.tokens.iter().enumerate() {
            let first = row * self.d_model + cols.start;
            let mut d_out = &self.d_out[first..][..cols.len()];
            if let Some(mask) = &self.mask {
                let dropped = &mut dropped[..cols.len()];
                dropped.copy_from_slice(d_out);
                mask.apply(first, dropped);
                d_out = dropped;
            }
            if let Some(table) = &mut table {
                add::<V>(t, table.row(token as usize), d_out);
            }
            if let Some(positions) = &mut positions {
                add::<V>(t, positions.row(row % self.time), d_out);
            }
        }
    }
}

#[inline(always)]
fn add<V: Vector>(t: V::Token, to: &mut [f32], x: &[f32]) {
    for c in (0..to.len()).step_by(V::LANES) {
        store(load::<V>(t, to, c) + load(t, x, c), to, c);
    }
}

pub(super) fn backward(context: &mut Context<'_, '_>, op: &EmbeddingBackward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let tokens = views.u32("tokens", op.tokens)?;
    check_tokens(tokens.iter().copied(), op.vocab)?;
    let job = Backward {
        tokens,
        d_out: views.f32("d_out", op.d_out)?,
        mask: Mask::new(views, op.dropout)?,
        time: op.time,
        d_model: op.d_model,
    };
    let d_table = op.d_token_embedding;
    let d_table = d_table.map(|span| views.f32_mut("d_token_embedding", span)).transpose()?;
    let d_positions = op.d_position_embedding.map(|span| span.first(op.time * op.d_model));
    let d_positions = d_positions.map(|span| views.f32_mut("d_position_embedding", span)).transpose()?;
    if d_table.is_none() && d_positions.is_none() {
        return Ok(());
    }
    let parts = (
        d_table.map(|d_table| Grid::new(d_table, op.d_model, op.vocab, COLS)),
        d_positions.map(|d_positions| Grid::new(d_positions, op.d_model, op.time, COLS)),
    );
    context.team.for_each(parts, &job);
    Ok(())
}
