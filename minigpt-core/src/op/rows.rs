//! The ops of decoding, by rows.
//!
//! A decoding pass has up to R rows. Each is one token of some sequence: a word of device memory says where the token lies,
//! in which slot of the cache its sequence is, and at which position it stands there. One word more says how many rows are
//! live: those are the first ones, and the others are neither read nor written. So a prompt, single tokens of many sequences,
//! and any mixture of the two are the same list of ops with other words in these places.
//!
//! What a row gives depends on nothing but itself and its slot: not on the rows beside it, nor on its place among them. On how
//! many are live it depends only where a backend has another kernel for few rows than for many.

use super::describe::Describe;
use super::descriptors::{LayerNormForward, LinearForward};
use super::{Access, Operand};
use crate::memory::{InvalidOp, Span};

use Access::{Read, Update, Write};

/// x = token_embedding\[token\] + position_embedding\[position\], row by row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingRows {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32, of any length: the tokens that `places` point to, each of a live row below `vocab`.
    pub tokens: Span,
    /// u32 (R): where in `tokens` the row's token is.
    pub places: Span,
    /// u32 (R): the row's position.
    pub positions: Span,
    /// (V, C).
    pub token_embedding: Span,
    /// (at least as many positions as the rows have, C): trained or sinusoidal.
    pub position_embedding: Option<Span>,
    /// Written: (R, C).
    pub out: Span,
    /// R.
    pub rows: usize,
    /// C.
    pub d_model: usize,
    /// V.
    pub vocab: usize,
}

/// A [`LayerNormForward`] of the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormRows {
    /// u32 (1): how many rows are live; more than there are count as all.
    pub live: Span,
    /// All rows.
    pub norm: LayerNormForward,
}

/// A [`LinearForward`] of the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearRows {
    /// u32 (1): how many rows are live; more than there are count as all.
    pub live: Span,
    /// All rows.
    pub linear: LinearForward,
}

/// [`Rotary`](super::Rotary) positions, each row turned by its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryRows {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32 (R): the row's position.
    pub positions: Span,
    /// Changed in place: (R, 3C), queries, keys and values side by side.
    pub qkv: Span,
    /// (at least as many positions as the rows have, D): for each position, D/2 pairs (cos, sin).
    pub table: Span,
    /// R.
    pub rows: usize,
    /// H.
    pub heads: usize,
    /// D, even.
    pub d_head: usize,
}

/// Stores the keys and values of the live rows in the cache, each in its slot at its position.
///
/// No two live rows have the same slot and position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CacheAppend {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32 (R): the slot of the row's sequence.
    pub slots: Span,
    /// u32 (R): the row's position.
    pub positions: Span,
    /// (R, 3C).
    pub qkv: Span,
    /// Written at the rows' places: (S, H, capacity, D).
    pub keys: Span,
    /// Written at the rows' places: (S, H, capacity, D).
    pub values: Span,
    /// R.
    pub rows: usize,
    /// S: how many slots there are.
    pub slot_count: usize,
    /// How many positions a slot has room for.
    pub capacity: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
}

/// Attention over the cache: a row at position p sees the positions 0 to p of its slot, its own [stored](CacheAppend) among
/// them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRows {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32 (R): the slot of the row's sequence.
    pub slots: Span,
    /// u32 (R): the row's position.
    pub positions: Span,
    /// (R, 3C), of which the queries are read.
    pub qkv: Span,
    /// (S, H, capacity, D).
    pub keys: Span,
    /// (S, H, capacity, D).
    pub values: Span,
    /// Written: (R, C).
    pub out: Span,
    /// R.
    pub rows: usize,
    /// S: how many slots there are.
    pub slot_count: usize,
    /// How many positions a slot has room for.
    pub capacity: usize,
    /// H.
    pub heads: usize,
    /// D.
    pub d_head: usize,
    /// The factor on the scores.
    pub scale: f64,
}

/// Copies some rows: those from which logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatherRows {
    /// u32 (1): how many rows are wanted; more than W are taken as W.
    pub live: Span,
    /// u32 (W): which.
    pub wanted: Span,
    /// (R, C).
    pub from: Span,
    /// Written: (W, C).
    pub to: Span,
    /// R.
    pub rows: usize,
    /// W.
    pub count: usize,
    /// C.
    pub width: usize,
}

impl LinearForward {
    /// The same of the first `rows` rows only; of all, if there are fewer.
    #[must_use]
    pub fn first_rows(&self, rows: usize) -> LinearForward {
        let rows = rows.min(self.rows);
        let first = |span: Span, width: usize| span.first(rows.saturating_mul(width));
        let mut op =
            LinearForward { rows, x: first(self.x, self.d_in), y: first(self.y, self.d_out), ..*self };
        op.residual = self.residual.map(|residual| first(residual, self.d_out));
        if let Some(activate) = &mut op.activate {
            activate.input = activate.input.map(|input| first(input, self.d_out));
        }
        op
    }
}

impl LayerNormForward {
    /// The same of the first `rows` rows only; of all, if there are fewer.
    #[must_use]
    pub fn first_rows(&self, rows: usize) -> LayerNormForward {
        let rows = rows.min(self.rows);
        let first = |span: Span, width: usize| span.first(rows.saturating_mul(width));
        let [x, y] = [self.x, self.y].map(|span| first(span, self.width));
        let [mean, rstd] = [self.mean, self.rstd].map(|span| first(span, 1));
        LayerNormForward { rows, x, y, mean, rstd, ..*self }
    }
}

impl EmbeddingRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (r, c) = (self.rows, self.d_model);
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("tokens", self.tokens, Read, &[self.tokens.len])?;
        d.u32("places", self.places, Read, &[r])?;
        d.u32("positions", self.positions, Read, &[r])?;
        d.weight("token_embedding", self.token_embedding, self.vocab, c)?;
        if let Some(span) = self.position_embedding {
            d.at_least("position_embedding", span, Read, &[1, c])?;
        }
        d.elem("out", self.out, Write, &[r, c])
    }
}

impl LayerNormRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.u32("live", self.live, Read, &[1])?;
        self.norm.describe(visit)
    }
}

impl LinearRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.u32("live", self.live, Read, &[1])?;
        self.linear.describe(visit)
    }
}

impl RotaryRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        if !self.d_head.is_multiple_of(2) {
            return Err(InvalidOp::Value { operand: "d_head" });
        }
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("positions", self.positions, Read, &[self.rows])?;
        d.at_least("table", self.table, Read, &[1, self.d_head])?;
        d.elem("qkv", self.qkv, Update, &[self.rows, 3, self.heads, self.d_head])
    }
}

impl CacheAppend {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let cache = [self.slot_count, self.heads, self.capacity, self.d_head];
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("slots", self.slots, Read, &[self.rows])?;
        d.u32("positions", self.positions, Read, &[self.rows])?;
        d.elem("qkv", self.qkv, Read, &[self.rows, 3, self.heads, self.d_head])?;
        d.elem("keys", self.keys, Update, &cache)?;
        d.elem("values", self.values, Update, &cache)
    }
}

impl AttentionRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let cache = [self.slot_count, self.heads, self.capacity, self.d_head];
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("slots", self.slots, Read, &[self.rows])?;
        d.u32("positions", self.positions, Read, &[self.rows])?;
        d.elem("qkv", self.qkv, Read, &[self.rows, 3, self.heads, self.d_head])?;
        d.elem("keys", self.keys, Read, &cache)?;
        d.elem("values", self.values, Read, &cache)?;
        d.elem("out", self.out, Write, &[self.rows, self.heads, self.d_head])
    }
}

impl GatherRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("wanted", self.wanted, Read, &[self.count])?;
        d.elem("from", self.from, Read, &[self.rows, self.width])?;
        d.elem("to", self.to, Write, &[self.count, self.width])
    }
}
