//! The ops of decoding, by rows.
//!
//! A decoding pass has up to R rows. Each is one token of some sequence: a word of device memory says where the token lies,
//! in which slot of the cache its sequence is, and at which position it stands there. One word more says how many rows are
//! live: those are the first ones, and the others are neither read nor written. So a prompt, single tokens of many sequences,
//! and any mixture of the two are the same list of ops with other words in these places.
//!
//! What a row gives depends on nothing but itself and its slot: not on the rows of other sequences, nor on its place among
//! them. On how many rows are live, or follow each other in a sequence, it depends only where a backend has another kernel for
//! few of them than for many.

use super::describe::{Describe, check_groups};
use super::descriptors::{GateForward, LinearForward, NormForward, Normalize};
use super::{Access, Operand};
use crate::config::Pairing;
use crate::memory::{InvalidOp, Span, Strided};
use crate::sample::SampleConfig;

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

/// A [`NormForward`] of the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormRows {
    /// u32 (1): how many rows are live; more than there are count as all.
    pub live: Span,
    /// All rows.
    pub norm: NormForward,
}

/// A [`LinearForward`] of the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearRows {
    /// u32 (1): how many rows are live; more than there are count as all.
    pub live: Span,
    /// All rows.
    pub linear: LinearForward,
}

/// A [`GateForward`] of the live rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateRows {
    /// u32 (1): how many rows are live; more than there are count as all.
    pub live: Span,
    /// All rows.
    pub gate: GateForward,
}

/// [`Rotary`](super::Rotary) positions, each row turned by its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryRows {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32 (R): the row's position.
    pub positions: Span,
    /// Changed in place: (R, H, D), whose rows may lie apart.
    pub x: Strided,
    /// (at least as many positions as the rows have, D): for each position, D/2 pairs (cos, sin).
    pub table: Span,
    /// Which elements are a pair.
    pub pairing: Pairing,
    /// R.
    pub rows: usize,
    /// How many heads: those of queries and keys, if they lie side by side.
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
    /// (R, K, D), whose rows may lie apart.
    pub k: Strided,
    /// (R, K, D), whose rows may lie apart.
    pub v: Strided,
    /// Written at the rows' places: (S, K, capacity, D), of the backend's number type, or rounded to the nearest f16 or bf16,
    /// ties to even.
    pub keys: Span,
    /// Written at the rows' places: (S, K, capacity, D), stored as the keys are.
    pub values: Span,
    /// R.
    pub rows: usize,
    /// S: how many slots there are.
    pub slot_count: usize,
    /// How many positions a slot has room for.
    pub capacity: usize,
    /// K.
    pub kv_heads: usize,
    /// D.
    pub d_head: usize,
}

/// Attention over the cache: a row sees the positions from 0 to a `last` one of its slot, its own [stored](CacheAppend)
/// among them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionRows {
    /// u32 (1): how many rows are live; more than R are taken as R.
    pub live: Span,
    /// u32 (R): the slot of the row's sequence.
    pub slots: Span,
    /// u32 (R): the last position that the row sees. Under a causal mask, that is its own.
    pub last: Span,
    /// (R, H, D), whose rows may lie apart.
    pub q: Strided,
    /// (S, K, capacity, D), of the backend's number type, f16 or bf16.
    pub keys: Span,
    /// (S, K, capacity, D), stored as the keys are.
    pub values: Span,
    /// Written: (R, H, D).
    pub out: Span,
    /// R.
    pub rows: usize,
    /// S: how many slots there are.
    pub slot_count: usize,
    /// How many positions a slot has room for.
    pub capacity: usize,
    /// H: heads of queries.
    pub heads: usize,
    /// K: heads of keys and values, of which each serves H / K heads of queries in a row.
    pub kv_heads: usize,
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

/// Chooses the next token of each live row, and puts it with the other tokens, where the row's next pass reads it: so a device
/// goes from token to token without its host. For the host it also puts the choices side by side, to be read at once.
///
/// What a row is chosen by is in `settings`, as [`SampleRow`] has it, and what that means in [`sample`](mod@crate::sample).
/// Where no token can be chosen, since a logit is not a number or none is finite, the choice is [`NO_TOKEN`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// u32 (1): how many rows are live; more than W are taken as W.
    pub live: Span,
    /// (W, V).
    pub logits: Span,
    /// u32 (W, [`SampleRow::WORDS`]).
    pub settings: Span,
    /// u32, of any length: the tokens, of which the repetition penalty reads the latest, and to which each choice is written.
    pub tokens: Span,
    /// Written: u32 (W), the choices.
    pub choices: Span,
    /// W.
    pub rows: usize,
    /// V.
    pub vocab: usize,
}

/// The choice of [`Sample`] where there is none.
pub const NO_TOKEN: u32 = u32::MAX;

/// How [`Sample`] chooses a token. The tokens of a sequence are a ring: behind its last place comes its first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// Where the choice goes: a place in the ring. No other live row has the same ring.
    pub next: u32,
    /// The first place of the ring.
    pub ring: u32,
    /// How many places it has.
    pub ring_len: u32,
    /// How many tokens before `next` the repetition penalty looks at: as many as the ring has places at most, and then the
    /// oldest is the one that the choice replaces.
    pub recent: u32,
    /// The number in [0, 1) that decides.
    pub uniform: f64,
    /// The rest. Its window and its seed do not count here.
    pub config: SampleConfig,
}

impl SampleRow {
    /// How many words it takes.
    pub const WORDS: usize = 16;

    /// As [`Sample::settings`] has it.
    pub fn words(&self) -> [u32; SampleRow::WORDS] {
        let SampleConfig { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.config;
        // 0 stands for what is not given: none of them may be 0, but for min-p, which then keeps all.
        let top_k = top_k.map_or(0, |top_k| u32::try_from(top_k).unwrap_or(u32::MAX));
        let mut words = [0; SampleRow::WORDS];
        words[..5].copy_from_slice(&[self.next, self.ring, self.ring_len, self.recent, top_k]);
        let optional = [top_p, min_p, repetition_penalty].map(Option::unwrap_or_default);
        let numbers = [self.uniform, temperature].into_iter().chain(optional);
        for (pair, number) in words[6..].chunks_exact_mut(2).zip(numbers) {
            let bits = number.to_bits();
            (pair[0], pair[1]) = (bits as u32, (bits >> 32) as u32);
        }
        words
    }

    /// The inverse of [`words`](SampleRow::words).
    pub fn from_words(words: &[u32; SampleRow::WORDS]) -> Self {
        let number = |at: usize| f64::from_bits(u64::from(words[at]) | u64::from(words[at + 1]) << 32);
        let optional = |at: usize| Some(number(at)).filter(|number| *number != 0.0);
        SampleRow {
            next: words[0],
            ring: words[1],
            ring_len: words[2],
            recent: words[3],
            uniform: number(6),
            config: SampleConfig {
                temperature: number(8),
                top_k: Some(words[4] as usize).filter(|top_k| *top_k != 0),
                top_p: optional(10),
                min_p: optional(12),
                repetition_penalty: optional(14),
                ..SampleConfig::default()
            },
        }
    }

    /// Whether it may choose among `count` tokens.
    ///
    /// # Errors
    /// If a setting has no meaning, or a place is not among them.
    pub fn check(&self, count: usize) -> Result<(), InvalidOp> {
        if self.config.validate().is_err() || !(0.0..1.0).contains(&self.uniform) {
            return Err(InvalidOp::Value { operand: "settings" });
        }
        let end = (self.ring as usize).saturating_add(self.ring_len as usize);
        if end > count {
            return Err(InvalidOp::Index {
                operand: "settings",
                index: self.ring.saturating_add(self.ring_len),
                count,
            });
        }
        if !(self.ring as usize..end).contains(&(self.next as usize)) || self.recent > self.ring_len {
            return Err(InvalidOp::Value { operand: "settings" });
        }
        Ok(())
    }

    /// Where the tokens lie that the penalty looks at, the latest first.
    pub fn recent_places(&self) -> impl Iterator<Item = usize> + use<> {
        let SampleRow { next, ring, ring_len, recent, .. } = *self;
        let at = next.wrapping_sub(ring);
        (1..=recent).map(move |back| {
            let place = if at >= back { at - back } else { ring_len.wrapping_sub(back - at) };
            ring as usize + place as usize
        })
    }
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

impl NormForward {
    /// The same of the first `rows` rows only; of all, if there are fewer.
    #[must_use]
    pub fn first_rows(&self, rows: usize) -> NormForward {
        let rows = rows.min(self.rows);
        let width = self.groups.saturating_mul(self.width);
        let first = |span: Span| span.first(rows.saturating_mul(self.groups));
        let [x, y] = [self.x, self.y].map(|all| all.first_rows(rows, width));
        let kind = match self.kind {
            Normalize::Layer { mean } => Normalize::Layer { mean: first(mean) },
            Normalize::Rms => Normalize::Rms,
        };
        NormForward { kind, rows, x, y, rstd: first(self.rstd), ..*self }
    }
}

impl GateForward {
    /// The same of the first `rows` rows only; of all, if there are fewer.
    #[must_use]
    pub fn first_rows(&self, rows: usize) -> GateForward {
        let rows = rows.min(self.rows);
        let len = rows.saturating_mul(self.width);
        GateForward { rows, x: self.x.first(len.saturating_mul(2)), y: self.y.first(len), ..*self }
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
        d.rounded("out", self.out, Write, &[r, c])
    }
}

impl NormRows {
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

impl GateRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.u32("live", self.live, Read, &[1])?;
        self.gate.describe(visit)
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
        d.strided("x", self.x, Update, &[self.rows], &[self.heads, self.d_head])
    }
}

impl CacheAppend {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let width = [self.kv_heads, self.d_head];
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("slots", self.slots, Read, &[self.rows])?;
        d.u32("positions", self.positions, Read, &[self.rows])?;
        d.strided("k", self.k, Read, &[self.rows], &width)?;
        d.strided("v", self.v, Read, &[self.rows], &width)?;
        d.caches(
            [self.keys, self.values],
            Update,
            &[self.slot_count, self.kv_heads, self.capacity, self.d_head],
        )
    }
}

impl AttentionRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        check_groups(self.heads, self.kv_heads)?;
        d.u32("live", self.live, Read, &[1])?;
        d.u32("slots", self.slots, Read, &[self.rows])?;
        d.u32("last", self.last, Read, &[self.rows])?;
        d.strided("q", self.q, Read, &[self.rows], &[self.heads, self.d_head])?;
        d.caches(
            [self.keys, self.values],
            Read,
            &[self.slot_count, self.kv_heads, self.capacity, self.d_head],
        )?;
        d.rounded("out", self.out, Write, &[self.rows, self.heads, self.d_head])
    }
}

impl GatherRows {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.u32("wanted", self.wanted, Read, &[self.count])?;
        d.rounded("from", self.from, Read, &[self.rows, self.width])?;
        d.rounded("to", self.to, Write, &[self.count, self.width])
    }
}

impl Sample {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.u32("live", self.live, Read, &[1])?;
        d.rounded("logits", self.logits, Read, &[self.rows, self.vocab])?;
        d.u32("settings", self.settings, Read, &[self.rows, SampleRow::WORDS])?;
        d.u32("tokens", self.tokens, Update, &[self.tokens.len])?;
        d.u32("choices", self.choices, Write, &[self.rows])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were() {
        let config = SampleConfig {
            temperature: 0.7,
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.05),
            repetition_penalty: Some(1.2),
            ..SampleConfig::default()
        };
        let row = SampleRow { next: 7, ring: 4, ring_len: 5, recent: 4, uniform: 0.123, config };
        assert_eq!(SampleRow::from_words(&row.words()), row);
        assert_eq!(row.check(9), Ok(()));
        // Around the end of the ring.
        assert_eq!(row.recent_places().collect::<alloc::vec::Vec<_>>(), [6, 5, 4, 8]);

        let plain = SampleRow { config: SampleConfig::default(), ..row };
        assert_eq!(SampleRow::from_words(&plain.words()), plain);
    }

    #[test]
    fn settings_that_lead_astray_are_refused() {
        let config = SampleConfig::greedy();
        let good = SampleRow { next: 7, ring: 4, ring_len: 5, recent: 4, uniform: 0.5, config };
        let value = Err(InvalidOp::Value { operand: "settings" });
        for bad in [
            SampleRow { uniform: 1.0, ..good },
            SampleRow { next: 9, ..good },
            SampleRow { next: 3, ..good },
            SampleRow { recent: 6, ..good },
            SampleRow { config: SampleConfig { temperature: f64::NAN, ..config }, ..good },
        ] {
            assert_eq!(bad.check(9), value, "{bad:?}");
        }
        let beyond = InvalidOp::Index { operand: "settings", index: 9, count: 8 };
        assert_eq!(good.check(8), Err(beyond));
        assert!(SampleRow { ring: u32::MAX, ring_len: u32::MAX, ..good }.check(8).is_err());
    }
}
