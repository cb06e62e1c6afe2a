//! Rows of decoding: which are live, and what is done with each alone. Norms, linear layers and attention have their own rooms.

use minigpt_core::op::{CacheAppend, EmbeddingRows, GatherRows, RotaryRows};
use minigpt_core::{InvalidOp, Pairing, Span};

use super::cache::StoredMut;
use super::embedding::check_tokens;
use super::lanes::{load, rows_per_task, store};
use super::rotary::turn_row;
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::ops::weight::Weight;
use crate::par::{Chunks, Grid, Tile, Views};

/// How many of `rows` rows are live.
pub(super) fn live_rows(views: &mut Views<'_, '_>, live: Span, rows: usize) -> Result<usize, CpuError> {
    let live = views.u32("live", live)?;
    Ok(live.first().map_or(0, |&live| rows.min(live as usize)))
}

/// The first `live` words, each of which must be below `count`.
pub(super) fn indices<'m>(
    views: &mut Views<'m, '_>,
    operand: &'static str,
    words: Span,
    live: usize,
    count: usize,
) -> Result<&'m [u32], CpuError> {
    let words = views.u32(operand, words.first(live))?;
    match words.iter().find(|&&word| word as usize >= count) {
        Some(&index) => Err(InvalidOp::Index { operand, index, count }.into()),
        None => Ok(words),
    }
}

struct Embedding<'s> {
    tokens: &'s [u32],
    places: &'s [u32],
    positions: &'s [u32],
    table: Weight<'s>,
    position_table: Option<&'s [f32]>,
    rows_per_task: usize,
    width: usize,
}

impl Job<Chunks<'_, f32>> for Embedding<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, out: &mut [f32]) {
        let width = self.width;
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let row = index * self.rows_per_task + i;
            self.table.read::<V>(t, self.tokens[self.places[row] as usize] as usize, out);
            if let Some(table) = self.position_table {
                let position = &table[self.positions[row] as usize * width..][..width];
                for c in (0..width).step_by(V::LANES) {
                    store(load::<V>(t, out, c) + load(t, position, c), out, c);
                }
            }
        }
    }
}

pub(super) fn embedding(context: &mut Context<'_, '_>, op: &EmbeddingRows) -> Result<(), CpuError> {
    let views = &mut context.views;
    let (live, width) = (live_rows(views, op.live, op.rows)?, op.d_model);
    let tokens = views.u32("tokens", op.tokens)?;
    let places = indices(views, "places", op.places, live, tokens.len())?;
    check_tokens(places.iter().map(|&place| tokens[place as usize]), op.vocab)?;
    let count = op.position_embedding.map_or(usize::MAX, |table| table.len / width);
    let rows_per_task = rows_per_task(width);
    let job = Embedding {
        tokens,
        places,
        positions: indices(views, "positions", op.positions, live, count)?,
        table: Weight::new(views, "token_embedding", op.token_embedding)?,
        position_table: op.position_embedding.map(|p| views.f32("position_embedding", p)).transpose()?,
        rows_per_task,
        width,
    };
    let out = views.f32_mut("out", op.out.first(live * width))?;
    context.team.for_each(Chunks::new(out, rows_per_task * width), &job);
    Ok(())
}

struct Rotation<'s> {
    table: &'s [f32],
    positions: &'s [u32],
    pairing: Pairing,
    d_head: usize,
}

impl Job<Grid<'_>> for Rotation<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, _: usize, mut x: Tile<'_>) {
        for (i, row) in x.rows().enumerate() {
            let turns = &self.table[self.positions[row] as usize * self.d_head..][..self.d_head];
            turn_row(x.row(i), turns, self.pairing, 1.0);
        }
    }
}

pub(super) fn rotary(context: &mut Context<'_, '_>, op: &RotaryRows) -> Result<(), CpuError> {
    let views = &mut context.views;
    let (live, width) = (live_rows(views, op.live, op.rows)?, op.heads * op.d_head);
    let job = Rotation {
        table: views.f32("table", op.table)?,
        positions: indices(views, "positions", op.positions, live, op.table.len / op.d_head)?,
        pairing: op.pairing,
        d_head: op.d_head,
    };
    let x = views.f32_rows_mut("x", op.x.first_rows(live, width), width)?;
    context.team.for_each(Grid::of_rows(x, rows_per_task(width), width), &job);
    Ok(())
}

pub(super) fn append(context: &mut Context<'_, '_>, op: &CacheAppend) -> Result<(), CpuError> {
    let views = &mut context.views;
    let live = live_rows(views, op.live, op.rows)?;
    let slots = indices(views, "slots", op.slots, live, op.slot_count)?;
    let positions = indices(views, "positions", op.positions, live, op.capacity)?;
    let (heads, d) = (op.kv_heads, op.d_head);
    let width = heads * d;
    let k = views.f32("k", op.k.first_rows(live, width).span)?;
    let v = views.f32("v", op.v.first_rows(live, width).span)?;
    let mut keys = StoredMut::new(views, "keys", op.keys)?;
    let mut values = StoredMut::new(views, "values", op.values)?;
    for (row, (&slot, &position)) in slots.iter().zip(positions).enumerate() {
        let [k, v] =
            [(k, op.k.stride), (v, op.v.stride)].map(|(rows, stride)| &rows[row * stride..][..width]);
        for (cache, row) in [(&mut keys, k), (&mut values, v)] {
            for (head, numbers) in row.chunks_exact(d).enumerate() {
                let place = (slot as usize * heads + head) * op.capacity + position as usize;
                cache.write(place * d, numbers);
            }
        }
    }
    Ok(())
}

pub(super) fn gather(context: &mut Context<'_, '_>, op: &GatherRows) -> Result<(), CpuError> {
    let views = &mut context.views;
    let live = live_rows(views, op.live, op.count)?;
    let wanted = indices(views, "wanted", op.wanted, live, op.rows)?;
    let from = views.f32("from", op.from)?;
    let to = views.f32_mut("to", op.to)?;
    for (to, &row) in to.chunks_exact_mut(op.width).zip(wanted) {
        to.copy_from_slice(&from[row as usize * op.width..][..op.width]);
    }
    Ok(())
}
