//! The ops of decoding: of the live rows, as the device's words say.
//!
//! What a row needs is read for it alone: the row of a table, the slot of a cache.

use alloc::vec::Vec;

use super::{check_tokens, read_weight};
use crate::backend::{Backend, read_elems, read_u32, write_elems, write_u32};
use crate::memory::{InvalidOp, Span, zeros};
use crate::op::{
    AttentionRows, CacheAppend, EmbeddingRows, GateRows, GatherRows, LinearRows, NO_TOKEN, NormRows, Op,
    OpKind, RotaryRows, Sample, SampleRow,
};
use crate::reference::Rows;
use crate::reference::attention::attention_cached;
use crate::reference::embedding::embedding_forward;
use crate::reference::rotary::rotary;
use crate::sample::{SampleConfig, SampleError, Sampler};

/// How many of `rows` rows are live.
fn live_rows<B: Backend + ?Sized>(backend: &mut B, live: Span, rows: usize) -> Result<usize, B::Error> {
    let live = read_u32(backend, live)?;
    Ok(live.first().map_or(0, |&live| rows.min(live as usize)))
}

/// Runs an op of the rows that are live, of which there are `rows`: by the backend's kernel for whole ops, if it has one.
fn run_live<B: Backend + ?Sized, T: Copy + Into<Op>>(
    backend: &mut B,
    rows: usize,
    op: T,
    kind: OpKind,
    reference: impl FnOnce(&mut B, &T) -> Result<(), B::Error>,
) -> Result<(), B::Error> {
    match rows {
        0 => Ok(()),
        _ if backend.kernels().contains(&kind) => backend.run(&op.into()),
        _ => reference(backend, &op),
    }
}

/// The first `live` words, each of which must be below `count`.
fn indices<B: Backend + ?Sized>(
    backend: &mut B,
    operand: &'static str,
    words: Span,
    live: usize,
    count: usize,
) -> Result<Vec<u32>, B::Error> {
    let words = read_u32(backend, words.first(live))?;
    match words.iter().find(|&&word| word as usize >= count) {
        Some(&index) => Err(InvalidOp::Index { operand, index, count }.into()),
        None => Ok(words),
    }
}

pub(super) fn embedding<B: Backend + ?Sized>(backend: &mut B, op: &EmbeddingRows) -> Result<(), B::Error> {
    let (live, width) = (live_rows(backend, op.live, op.rows)?, op.d_model);
    let places = indices(backend, "places", op.places, live, op.tokens.len)?;
    let count = op.position_embedding.map_or(usize::MAX, |table| table.len / width.max(1));
    let positions = indices(backend, "positions", op.positions, live, count)?;
    let mut tokens = zeros("tokens", live)?;
    for (token, &place) in tokens.iter_mut().zip(&places) {
        *token = read_u32(backend, op.tokens.slice(place as usize, 1))?.first().copied().unwrap_or(0);
    }
    check_tokens(tokens.iter().copied(), op.vocab)?;
    let stored = op.token_embedding.dtype.padded(width);
    let mut out = zeros("out", width)?;
    for (row, (&token, &position)) in tokens.iter().zip(&positions).enumerate() {
        let row_of = |table: Span, row: u32, width: usize| table.slice(row as usize * width, width);
        let token = read_weight(backend, row_of(op.token_embedding, token, stored), 1, width)?;
        let position = match op.position_embedding {
            Some(table) => Some(read_elems(backend, row_of(table, position, width))?),
            None => None,
        };
        embedding_forward(&[0], &token, position.as_deref(), None, &mut out, 1, 1, width);
        write_elems(backend, op.out.slice(row * width, width), &out)?;
    }
    Ok(())
}

pub(super) fn normalize<B: Backend + ?Sized>(backend: &mut B, op: &NormRows) -> Result<(), B::Error> {
    let rows = live_rows(backend, op.live, op.norm.rows)?;
    run_live(backend, rows, op.norm.first_rows(rows), OpKind::NormForward, super::normalize)
}

pub(super) fn linear<B: Backend + ?Sized>(backend: &mut B, op: &LinearRows) -> Result<(), B::Error> {
    let rows = live_rows(backend, op.live, op.linear.rows)?;
    run_live(backend, rows, op.linear.first_rows(rows), OpKind::LinearForward, super::linear)
}

pub(super) fn gate<B: Backend + ?Sized>(backend: &mut B, op: &GateRows) -> Result<(), B::Error> {
    let rows = live_rows(backend, op.live, op.gate.rows)?;
    run_live(backend, rows, op.gate.first_rows(rows), OpKind::GateForward, super::gate)
}

pub(super) fn rotate<B: Backend + ?Sized>(backend: &mut B, op: &RotaryRows) -> Result<(), B::Error> {
    let (live, d) = (live_rows(backend, op.live, op.rows)?, op.d_head);
    let width = op.heads * d;
    let positions = indices(backend, "positions", op.positions, live, op.table.len / d.max(1))?;
    for (row, &position) in positions.iter().enumerate() {
        let row = op.x.span.slice(row * op.x.stride, width);
        let mut x = read_elems(backend, row)?;
        let turns = read_elems(backend, op.table.slice(position as usize * d, d))?;
        rotary(&mut x, width, &turns, op.pairing, false, 1, 1, op.heads, d);
        write_elems(backend, row, &x)?;
    }
    Ok(())
}

pub(super) fn append<B: Backend + ?Sized>(backend: &mut B, op: &CacheAppend) -> Result<(), B::Error> {
    let live = live_rows(backend, op.live, op.rows)?;
    let slots = indices(backend, "slots", op.slots, live, op.slot_count)?;
    let positions = indices(backend, "positions", op.positions, live, op.capacity)?;
    let (heads, d) = (op.kv_heads, op.d_head);
    let width = heads * d;
    for (row, (&slot, &position)) in slots.iter().zip(&positions).enumerate() {
        // As `cache_append` does, head by head.
        for (from, cache) in [(op.k, op.keys), (op.v, op.values)] {
            let numbers = read_elems(backend, from.span.slice(row * from.stride, width))?;
            for (head, numbers) in numbers.chunks_exact(d).enumerate() {
                let place = (slot as usize * heads + head) * op.capacity + position as usize;
                write_elems(backend, cache.slice(place * d, d), numbers)?;
            }
        }
    }
    Ok(())
}

pub(super) fn attention<B: Backend + ?Sized>(backend: &mut B, op: &AttentionRows) -> Result<(), B::Error> {
    let live = live_rows(backend, op.live, op.rows)?;
    let slots = indices(backend, "slots", op.slots, live, op.slot_count)?;
    let last = indices(backend, "last", op.last, live, op.capacity)?;
    if slots.is_empty() {
        return Ok(());
    }
    let (d, width) = (op.d_head, op.heads * op.d_head);
    let mut scores = zeros("scores", op.capacity)?;
    let mut first = 0;
    for rows in slots.chunk_by(|a, b| a == b) {
        let slot = rows.first().map_or(0, |&slot| slot as usize);
        let lines = op.kv_heads * op.capacity;
        let of_slot = |cache: Span| cache.slice(slot * lines * d, lines * d);
        let keys = read_weight(backend, of_slot(op.keys), lines, d)?;
        let values = read_weight(backend, of_slot(op.values), lines, d)?;
        let of_rows = op.q.span.slice(first * op.q.stride, (rows.len() - 1) * op.q.stride + width);
        let q = read_elems(backend, of_rows)?;
        let mut out = zeros("out", rows.len() * width)?;
        attention_cached(
            Rows { data: &q, stride: op.q.stride },
            &keys,
            &values,
            &last[first..][..rows.len()],
            &mut out,
            &mut scores,
            op.capacity,
            op.heads,
            op.kv_heads,
            d,
            op.scale,
        );
        write_elems(backend, op.out.slice(first * width, out.len()), &out)?;
        first += rows.len();
    }
    Ok(())
}

pub(super) fn gather<B: Backend + ?Sized>(backend: &mut B, op: &GatherRows) -> Result<(), B::Error> {
    let live = live_rows(backend, op.live, op.count)?;
    let wanted = indices(backend, "wanted", op.wanted, live, op.rows)?;
    for (place, &row) in wanted.iter().enumerate() {
        let of = |rows: Span, row: usize| rows.slice(row * op.width, op.width);
        backend.copy(of(op.from, row as usize), of(op.to, place))?;
    }
    Ok(())
}

pub(super) fn sample<B: Backend + ?Sized>(backend: &mut B, op: &Sample) -> Result<(), B::Error> {
    let live = live_rows(backend, op.live, op.rows)?;
    let words = read_u32(backend, op.settings.first(live * SampleRow::WORDS))?;
    let mut choices = zeros("tokens", live)?;
    for (row, (choice, words)) in choices.iter_mut().zip(words.as_chunks().0).enumerate() {
        let row_of = SampleRow::from_words(words);
        row_of.check(op.tokens.len)?;
        let first = row_of.ring as usize;
        let ring = read_u32(backend, op.tokens.slice(first, row_of.ring_len as usize))?;
        let mut recent = zeros("tokens", row_of.recent as usize)?;
        for (to, place) in recent.iter_mut().zip(row_of.recent_places()) {
            *to = ring[place - first];
        }
        check_tokens(recent.iter().copied(), op.vocab)?;
        let logits = read_elems(backend, op.logits.slice(row * op.vocab, op.vocab))?;
        let config = SampleConfig { repetition_window: recent.len().max(1), ..row_of.config };
        let sampler = Sampler::new(config, op.vocab);
        let chosen = sampler.and_then(|mut sampler| sampler.sample_with(&logits, &recent, row_of.uniform));
        *choice = match chosen {
            Ok(token) => token,
            Err(SampleError::OutOfMemory) => {
                let bytes = op.vocab.saturating_mul(20);
                return Err(InvalidOp::HostMemory { operand: "logits", bytes }.into());
            }
            Err(_) => NO_TOKEN,
        };
    }
    for (&choice, words) in choices.iter().zip(words.as_chunks().0) {
        write_u32(backend, op.tokens.slice(SampleRow::from_words(words).next as usize, 1), &[choice])?;
    }
    write_u32(backend, op.choices.first(live), &choices)
}
