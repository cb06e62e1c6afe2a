//! Rows of decoding, by blocks of those that are live. What a row's words say is looked at before anything is written.

use minigpt_core::Span;
use minigpt_core::op::{
    AttentionRows, CacheAppend, EmbeddingRows, GatherRows, RotaryRows, Sample, SampleRow,
};

use super::blocks::{Blocks, Layout, part_of, rows_of};
use super::round::Round;
use super::widen::widen;
use super::{Block, Needs, Steps};
use crate::context::Machine;
use crate::error::CpuError;
use crate::ops::embedding::check_tokens;
use crate::ops::rows::{indices, live_rows};
use crate::ops::{sample, scratch_floats};

/// How an op is cut up, of which so many matrices lie in scratch.
pub(super) struct Plan<const N: usize> {
    rows: Blocks,
    matrices: [Span; N],
    width: usize,
    pub(super) needs: Needs,
}

impl<const N: usize> Plan<N> {
    fn new(rows: usize, width: usize) -> Self {
        let rows = Blocks::of_rows(rows, width.saturating_mul(N));
        let mut layout = Layout::default();
        let matrices = [(); N].map(|()| layout.take(rows.room().saturating_mul(width)));
        Plan { rows, matrices, width, needs: Needs { block: layout.floats(), kernel: 0 } }
    }

    /// Those of a block of so many rows.
    fn first(&self, rows: usize) -> [Span; N] {
        self.matrices.map(|all| all.first(rows.saturating_mul(self.width)))
    }
}

pub(super) fn plan_embedding(op: &EmbeddingRows, rows: usize) -> Plan<1> {
    Plan::new(rows, op.d_model)
}

pub(super) fn embedding(steps: &mut Steps<'_, '_>, op: &EmbeddingRows) -> Result<(), CpuError> {
    let (views, width) = (&mut steps.views(), op.d_model);
    let live = live_rows(views, op.live, op.rows)?;
    let tokens = views.u32("tokens", op.tokens)?;
    let places = indices(views, "places", op.places, live, tokens.len())?;
    check_tokens(places.iter().map(|&place| tokens[place as usize]), op.vocab)?;
    let count = op.position_embedding.map_or(usize::MAX, |table| table.len / width);
    indices(views, "positions", op.positions, live, count)?;

    let plan = plan_embedding(op, live);
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let [out] = plan.first(rows.len());
        let [places, positions] = [op.places, op.positions].map(|words| part_of(words, rows.clone(), 1));
        block.run(EmbeddingRows { places, positions, out, rows: rows.len(), ..*op })?;
        Round::new(out, rows_of(op.out.rows(width), rows, width), width).run(block)?;
    }
    Ok(())
}

pub(super) fn plan_rotary(op: &RotaryRows, rows: usize) -> Plan<1> {
    Plan::new(rows, op.heads.saturating_mul(op.d_head))
}

pub(super) fn rotary(steps: &mut Steps<'_, '_>, op: &RotaryRows) -> Result<(), CpuError> {
    let views = &mut steps.views();
    let live = live_rows(views, op.live, op.rows)?;
    indices(views, "positions", op.positions, live, op.table.len / op.d_head)?;

    let plan = plan_rotary(op, live);
    let (block, width) = (&mut Block::new(steps, plan.needs), plan.width);
    for rows in plan.rows.iter() {
        let [x] = plan.first(rows.len());
        let place = rows_of(op.x, rows.clone(), width);
        widen(block, place, x, width)?;
        let positions = part_of(op.positions, rows.clone(), 1);
        block.run(RotaryRows { positions, x: x.rows(width), rows: rows.len(), ..*op })?;
        Round::new(x, place, width).run(block)?;
    }
    Ok(())
}

pub(super) fn plan_append(op: &CacheAppend, rows: usize) -> Plan<2> {
    Plan::new(rows, op.kv_heads.saturating_mul(op.d_head))
}

pub(super) fn append(steps: &mut Steps<'_, '_>, op: &CacheAppend) -> Result<(), CpuError> {
    let views = &mut steps.views();
    let live = live_rows(views, op.live, op.rows)?;
    indices(views, "slots", op.slots, live, op.slot_count)?;
    indices(views, "positions", op.positions, live, op.capacity)?;

    let plan = plan_append(op, live);
    let (block, width) = (&mut Block::new(steps, plan.needs), plan.width);
    for rows in plan.rows.iter() {
        let [k, v] = plan.first(rows.len());
        for (from, to) in [(op.k, k), (op.v, v)] {
            widen(block, rows_of(from, rows.clone(), width), to, width)?;
        }
        let [slots, positions] = [op.slots, op.positions].map(|words| part_of(words, rows.clone(), 1));
        let (k, v) = (k.rows(width), v.rows(width));
        block.run(CacheAppend { slots, positions, k, v, rows: rows.len(), ..*op })?;
    }
    Ok(())
}

pub(super) fn plan_attention(op: &AttentionRows, rows: usize, machine: Machine) -> Plan<2> {
    let mut plan = Plan::new(rows, op.heads.saturating_mul(op.d_head));
    plan.needs.kernel = scratch_floats(&attention_part(op, &plan, 0, plan.rows.room()).into(), machine);
    plan
}

/// The op of f32 of `rows` rows from `first` on.
fn attention_part(op: &AttentionRows, plan: &Plan<2>, first: usize, rows: usize) -> AttentionRows {
    let [q, out] = plan.first(rows);
    let [slots, last] = [op.slots, op.last].map(|words| words.slice(first, rows));
    AttentionRows { slots, last, q: q.rows(plan.width), out, rows, ..*op }
}

pub(super) fn attention(steps: &mut Steps<'_, '_>, op: &AttentionRows) -> Result<(), CpuError> {
    let views = &mut steps.views();
    let live = live_rows(views, op.live, op.rows)?;
    indices(views, "slots", op.slots, live, op.slot_count)?;
    indices(views, "last", op.last, live, op.capacity)?;

    let plan = plan_attention(op, live, steps.team.machine());
    let (block, width) = (&mut Block::new(steps, plan.needs), plan.width);
    for rows in plan.rows.iter() {
        let part = attention_part(op, &plan, rows.start, rows.len());
        widen(block, rows_of(op.q, rows.clone(), width), part.q.span, width)?;
        block.run(part)?;
        Round::new(part.out, rows_of(op.out.rows(width), rows, width), width).run(block)?;
    }
    Ok(())
}

pub(super) fn gather(steps: &mut Steps<'_, '_>, op: &GatherRows) -> Result<(), CpuError> {
    let views = &mut steps.views();
    let live = live_rows(views, op.live, op.count)?;
    let wanted = indices(views, "wanted", op.wanted, live, op.rows)?;
    let width = 2 * op.width;
    let from = views.bytes("from", op.from)?;
    let to = views.bytes_mut("to", op.to)?;
    for (to, &row) in to.chunks_exact_mut(width).zip(wanted) {
        to.copy_from_slice(&from[row as usize * width..][..width]);
    }
    Ok(())
}

pub(super) fn plan_sample(op: &Sample, rows: usize, machine: Machine) -> Plan<1> {
    let mut plan = Plan::new(rows, op.vocab);
    plan.needs.kernel = scratch_floats(&sample_part(op, &plan, 0, plan.rows.room()).into(), machine);
    plan
}

/// The op of f32 of `rows` rows from `first` on.
fn sample_part(op: &Sample, plan: &Plan<1>, first: usize, rows: usize) -> Sample {
    let [logits] = plan.first(rows);
    let settings = op.settings.slice(first * SampleRow::WORDS, rows * SampleRow::WORDS);
    Sample { logits, settings, choices: op.choices.slice(first, rows), rows, ..*op }
}

pub(super) fn sample(steps: &mut Steps<'_, '_>, op: &Sample) -> Result<(), CpuError> {
    let views = &mut steps.views();
    let live = live_rows(views, op.live, op.rows)?;
    let settings = &views.u32("settings", op.settings)?.as_chunks().0[..live];
    sample::check(settings, views.u32_mut("tokens", op.tokens)?, op.vocab)?;
    views.u32_mut("choices", op.choices)?;

    let plan = plan_sample(op, live, steps.team.machine());
    let (block, vocab) = (&mut Block::new(steps, plan.needs), op.vocab);
    for rows in plan.rows.iter() {
        let part = sample_part(op, &plan, rows.start, rows.len());
        widen(block, rows_of(op.logits.rows(vocab), rows, vocab), part.logits, vocab)?;
        let mut context = block.step()?;
        let settings = context.views.u32("settings", part.settings)?.as_chunks().0;
        let tokens = context.views.u32("tokens", part.tokens)?;
        let choices = context.views.u32_mut("choices", part.choices)?;
        sample::choose(&mut context, &part, settings, tokens, choices)?;
    }
    // Rows of a later block have looked at the tokens as they were, as those of the first.
    let views = &mut steps.views();
    let settings = views.u32("settings", op.settings)?.as_chunks().0;
    let choices = views.u32("choices", op.choices.first(live))?;
    sample::append(settings, choices, views.u32_mut("tokens", op.tokens)?);
    Ok(())
}
