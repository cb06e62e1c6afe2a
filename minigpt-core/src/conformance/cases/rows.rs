//! Random rows of decoding: some live and some dead, of several sequences.

use alloc::vec;
use alloc::vec::Vec;

use super::{Draw, Fill, Memory, STORED, Sizes, layernorm, linear, stored};
use crate::memory::Span;
use crate::op::*;
use crate::sample::{SampleConfig, Sampler};

/// How many of `rows` rows are live, and the word that says so: some of them, all, or more than there are.
fn live(draw: &mut Draw, rows: usize) -> (usize, u32) {
    let (some, beyond) = (1 + draw.below(rows), draw.below(4) == 0);
    match (draw.turn(&[true, false]), beyond) {
        (true, _) => (some, some as u32),
        (false, true) => (rows, (rows + 1 + some) as u32),
        (false, false) => (rows, rows as u32),
    }
}

/// Words of the live rows, and for the dead ones what no row may have.
fn words(memory: &mut dyn Memory, of_live: &[u32], rows: usize) -> Span {
    let mut words = vec![u32::MAX; rows];
    words[..of_live.len()].copy_from_slice(of_live);
    memory.span(rows, Fill::Words(words))
}

pub(super) fn embedding(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = (draw.size(Sizes(33, 100, 257, 400)), draw.size(Sizes(33, 1000, 40_000, 50_257)));
    let d_model = draw.size(Sizes(33, 130, 257, 400));
    let vocab = vocab.min(draw.work);
    let d_model = d_model.min((draw.work / 16).div_ceil(vocab)).max(1);
    let rows = rows.min(draw.work.div_ceil(d_model));
    let (with_positions, count) = (!draw.variant(), 1 + draw.below(90));
    let (live, word) = live(draw, rows);
    // Tokens that no live row has are outside of the vocabulary.
    let mut tokens = vec![u32::MAX; live + 1 + draw.below(40)];
    let mut places = Vec::new();
    for row in 0..live {
        // Now and then the token of an earlier row.
        let place = if row % 5 == 4 { places[row / 2] as usize } else { draw.below(tokens.len()) };
        let last = row == 0;
        tokens[place] = if last { vocab as u32 - 1 } else { draw.below(vocab) as u32 };
        places.push(place as u32);
    }
    let mut positions: Vec<u32> = (0..live).map(|_| draw.below(count) as u32).collect();
    positions[live - 1] = count as u32 - 1;
    let [f16, bf16, q8, q4] = STORED.map(Some);
    let dtype = draw.turn(&[None, f16, None, bf16, None, q8, None, q4]);
    EmbeddingRows {
        live: memory.span(1, Fill::Kept(vec![word])),
        tokens: memory.span(tokens.len(), Fill::Words(tokens)),
        places: words(memory, &places, rows),
        positions: words(memory, &positions, rows),
        token_embedding: match dtype {
            Some(dtype) => stored(draw, memory, dtype, vocab, d_model, 1.0),
            None => memory.span(vocab * d_model, Fill::Normal(1.0)),
        },
        position_embedding: with_positions.then(|| memory.span(count * d_model, Fill::Normal(1.0))),
        out: memory.span(rows * d_model, Fill::Poison),
        rows,
        d_model,
        vocab,
    }
    .into()
}

pub(super) fn layernorm(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let Op::LayerNormForward(norm) = layernorm::case(OpKind::LayerNormForward, draw, memory) else {
        unreachable!("the case of a norm is a norm")
    };
    let (_, word) = live(draw, norm.rows);
    LayerNormRows { live: memory.span(1, Fill::Kept(vec![word])), norm }.into()
}

pub(super) fn linear(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    // Its kernels are those of `LinearForward`, which meets the large sizes.
    draw.work = draw.work.div_ceil(8);
    let shape = linear::shape(draw);
    let [f16, bf16, q8, q4] = STORED.map(Some);
    let dtype = draw.turn(&[None, f16, None, bf16, None, q8, None, q4]);
    let Op::LinearForward(linear) = linear::forward_with(draw, memory, shape, dtype) else {
        unreachable!("the case of a layer is a layer")
    };
    let (_, word) = live(draw, linear.rows);
    LinearRows { live: memory.span(1, Fill::Kept(vec![word])), linear }.into()
}

pub(super) fn rotary(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, d_head) = (draw.size(Sizes(33, 100, 257, 330)), draw.size(Sizes(24, 128, 129, 256)));
    let (heads, d_head) = (draw.size(Sizes(2, 5, 6, 8)), 2 * d_head.div_ceil(2));
    let rows = rows.min(draw.work.div_ceil(heads * d_head));
    let count = 1 + draw.below(90);
    let (live, word) = live(draw, rows);
    let mut positions: Vec<u32> = (0..live).map(|_| draw.below(count) as u32).collect();
    positions[0] = count as u32 - 1;
    RotaryRows {
        live: memory.span(1, Fill::Kept(vec![word])),
        positions: words(memory, &positions, rows),
        qkv: memory.span(rows * 3 * heads * d_head, Fill::Normal(1.0)),
        table: memory.span(count * d_head, Fill::Normal(0.7)),
        rows,
        heads,
        d_head,
    }
    .into()
}

/// Live rows of some sequences over a cache.
struct Cached {
    rows: usize,
    live: u32,
    slots: Vec<u32>,
    positions: Vec<u32>,
    slot_count: usize,
    capacity: usize,
    heads: usize,
    d_head: usize,
}

/// Prompts, single tokens and what is between, sequences one after the other and again, each row behind the one before it in
/// its slot; but in some cases the rows stand in no order.
fn cached(draw: &mut Draw) -> Cached {
    let (rows, past) = (draw.size(Sizes(8, 40, 96, 130)), draw.size(Sizes(33, 130, 513, 600)));
    let (d_head, heads) = (draw.size(Sizes(24, 128, 129, 256)), 1 + draw.below(4));
    let slot_count = draw.turn(&[1, 3, 5]);
    let fits = |rows: usize, past: usize| rows * (past + rows) * heads * d_head <= draw.work;
    let (mut rows, mut past) = (rows, past);
    while !fits(rows, past) && (rows > 1 || past > 1) {
        (rows, past) = (rows.div_ceil(2), past.div_ceil(2));
    }
    let d_head = if fits(rows, past) { d_head } else { draw.work.min(d_head) };
    // The cache is read and written as a whole, and as it is large gives way.
    let past = past.min((draw.work / (slot_count * heads * d_head * 20)).max(3));
    let past = if draw.variant() { 0 } else { past };
    let spare = if draw.variant() { 0 } else { 1 + draw.below(9) };
    let capacity = past + rows + spare;
    let (live, word) = live(draw, rows);
    let run = draw.turn(&[1, 70, 5, 12]);
    let mut next: Vec<usize> =
        (0..slot_count).map(|_| if past == 0 { 0 } else { draw.below(past + 1) }).collect();
    next[0] = past;
    let (mut slots, mut positions) = (Vec::new(), Vec::new());
    let mut slot = draw.below(slot_count);
    while slots.len() < live {
        for _ in 0..run.min(live - slots.len()) {
            slots.push(slot as u32);
            positions.push(next[slot] as u32);
            next[slot] += 1;
        }
        slot = if run == 1 { (slot + 1) % slot_count } else { draw.below(slot_count) };
    }
    if draw.variant() {
        for row in (1..live).rev() {
            let other = draw.below(row + 1);
            slots.swap(row, other);
            positions.swap(row, other);
        }
    }
    Cached { rows, live: word, slots, positions, slot_count, capacity, heads, d_head }
}

pub(super) fn append(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let Cached { rows, live, slots, positions, slot_count, capacity, heads, d_head } = cached(draw);
    let cache = slot_count * heads * capacity * d_head;
    CacheAppend {
        live: memory.span(1, Fill::Kept(vec![live])),
        slots: words(memory, &slots, rows),
        positions: words(memory, &positions, rows),
        qkv: memory.span(rows * 3 * heads * d_head, Fill::Normal(1.0)),
        keys: memory.span(cache, Fill::Normal(1.0)),
        values: memory.span(cache, Fill::Normal(1.0)),
        rows,
        slot_count,
        capacity,
        heads,
        d_head,
    }
    .into()
}

pub(super) fn attention(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let Cached { rows, live, slots, positions, slot_count, capacity, heads, d_head } = cached(draw);
    let scale = draw.pick(&[1.0, 1.0, 0.7]) / libm::sqrt(d_head as f64);
    let (large, broken) = (draw.variant() && d_head <= 40, draw.variant());
    // All keys alike in one place, and so are the queries: the scores are large, and their differences are not.
    let front = large.then(|| f64::from(libm::sqrt(95.0 / scale) as f32));
    let newest = |slot: usize| {
        let of_slot = slots.iter().zip(&positions).filter(|(s, _)| **s as usize == slot);
        of_slot.map(|(_, &position)| position as usize).max()
    };
    let newest: Vec<Option<usize>> = (0..slot_count).map(newest).collect();
    let cache = |draw: &mut Draw, front: Option<f64>| {
        let mut values = draw.normals(slot_count * heads * capacity * d_head, 1.0);
        for (place, row) in values.chunks_exact_mut(d_head).enumerate() {
            let (slot, position) = (place / capacity / heads, place % capacity);
            match newest[slot] {
                // Behind the newest, and in slots without a row, is nothing that anybody may read.
                Some(newest) if position <= newest => {
                    if let Some(front) = front {
                        row[0] = front;
                    }
                    // What is no number in the newest row concerns no row before it.
                    if broken && position == newest && position > 0 {
                        row[d_head - 1] = f64::NAN;
                    }
                }
                _ => row.fill(f64::NAN),
            }
        }
        Fill::Values(values)
    };
    let mut qkv = draw.normals(rows * 3 * heads * d_head, 1.0);
    if let Some(front) = front {
        for head in qkv.chunks_exact_mut(d_head) {
            head[0] = front;
        }
    }
    let size = slot_count * heads * capacity * d_head;
    AttentionRows {
        live: memory.span(1, Fill::Kept(vec![live])),
        slots: words(memory, &slots, rows),
        positions: words(memory, &positions, rows),
        qkv: memory.span(qkv.len(), Fill::Values(qkv)),
        keys: memory.span(size, cache(draw, front)),
        values: memory.span(size, cache(draw, None)),
        out: memory.span(rows * heads * d_head, Fill::Poison),
        rows,
        slot_count,
        capacity,
        heads,
        d_head,
        scale,
    }
    .into()
}

pub(super) fn gather(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, count) = (draw.size(Sizes(33, 100, 257, 400)), draw.size(Sizes(8, 40, 65, 90)));
    let width = draw.size(Sizes(33, 130, 1030, 1200)).min(draw.work.div_ceil(rows.max(count)));
    let (live, word) = live(draw, count);
    let wanted: Vec<u32> = (0..live).map(|_| draw.below(rows) as u32).collect();
    GatherRows {
        live: memory.span(1, Fill::Kept(vec![word])),
        wanted: words(memory, &wanted, count),
        from: memory.span(rows * width, Fill::Normal(1.0)),
        to: memory.span(count * width, Fill::Poison),
        rows,
        count,
        width,
    }
    .into()
}

/// Settings of every kind. Of rows whose choice hangs on the last digits there are none: no two backends would agree on them.
pub(super) fn sample(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = (draw.size(Sizes(3, 8, 20, 40)), draw.size(Sizes(33, 1000, 20_000, 50_257)));
    let vocab = vocab.min((draw.work / 40).max(2));
    let rows = rows.min((draw.work / 20).div_ceil(vocab));
    let (live, word) = live(draw, rows);
    let (greedy, broken) = (draw.variant(), draw.variant());
    let with = [(); 4].map(|()| draw.variant());
    let ring_len = 2 + draw.below(70);
    let mut tokens: Vec<u32> = (0..live * ring_len).map(|_| draw.below(vocab) as u32).collect();
    let (mut logits, mut settings) = (Vec::new(), Vec::new());
    for row in 0..live {
        let (place, spread) = (draw.below(ring_len), draw.pick(&[0.5, 2.0, 6.0]));
        let mut choice = SampleRow {
            next: (row * ring_len + place) as u32,
            ring: (row * ring_len) as u32,
            ring_len: ring_len as u32,
            recent: if with[3] { draw.below(ring_len + 1) as u32 } else { 0 },
            uniform: 0.0,
            config: SampleConfig {
                temperature: if greedy { 0.0 } else { draw.pick(&[1.0, 0.6, 1.7]) },
                top_k: with[0].then(|| 1 + draw.below(vocab + vocab / 4)),
                top_p: with[1].then(|| draw.pick(&[0.9, 0.4, 0.99])),
                min_p: with[2].then(|| draw.pick(&[0.05, 0.3])),
                repetition_penalty: with[3].then_some(1.3),
                ..SampleConfig::default()
            },
        };
        let recent: Vec<u32> = choice.recent_places().map(|place| tokens[place]).collect();
        let mut of_row = Vec::new();
        for attempt in 0..30 {
            of_row = draw.normals(vocab, spread);
            // Some that are alike, and some that are never chosen.
            for place in (3..vocab).step_by(7) {
                of_row[place] = if place % 2 == 0 { of_row[place - 3] } else { f64::NEG_INFINITY };
            }
            choice.uniform = draw.rng.uniform();
            if holds(&choice, &of_row, &recent) {
                break;
            }
            if attempt == 28 {
                choice.config.top_k = Some(1);
            }
        }
        if broken && row % 3 == 1 {
            of_row[draw.below(vocab)] = f64::NAN;
        }
        logits.extend(of_row);
        settings.extend(choice.words());
        // What was there before is not the choice.
        tokens[choice.next as usize] = draw.below(vocab) as u32;
    }
    logits.resize(rows * vocab, 0.5);
    settings.resize(rows * SampleRow::WORDS, u32::MAX);
    Sample {
        live: memory.span(1, Fill::Kept(vec![word])),
        logits: memory.span(logits.len(), Fill::Values(logits)),
        settings: memory.span(settings.len(), Fill::Kept(settings)),
        tokens: memory.span(tokens.len(), Fill::Words(tokens)),
        rows,
        vocab,
    }
    .into()
}

/// Whether the choice is the same if every number is a little other.
fn holds(choice: &SampleRow, logits: &[f64], recent: &[u32]) -> bool {
    let chosen = |scale: f64, aside: f64| {
        let SampleConfig { top_p, min_p, .. } = choice.config;
        let config = SampleConfig {
            top_p: top_p.map(|p| (p * (1.0 + aside)).min(1.0)),
            min_p: min_p.map(|p| p * (1.0 + aside)),
            repetition_window: recent.len().max(1),
            ..choice.config
        };
        let mut sampler = Sampler::new(config, logits.len()).ok()?;
        let logits: Vec<f64> = logits.iter().map(|logit| logit * scale).collect();
        sampler.sample_with(&logits, recent, (choice.uniform + aside).clamp(0.0, 0.999_999)).ok()
    };
    let token = chosen(1.0, 0.0);
    let others = [(1.0, 1e-4), (1.0, -1e-4), (1.0 + 1e-5, 0.0), (1.0 - 1e-5, 0.0)];
    token.is_some() && others.iter().all(|&(scale, aside)| chosen(scale, aside) == token)
}
