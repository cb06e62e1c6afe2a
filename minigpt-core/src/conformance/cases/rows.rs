//! Random rows of decoding: some live and some dead, of several sequences.

use alloc::vec;
use alloc::vec::Vec;

use super::attention::pairing;
use super::strided::{Between, Part, lay};
use super::{Draw, Fill, Memory, Sizes, linear, norm, result, stored, weight_dtype};
use crate::memory::{Dtype, Span};
use crate::op::*;
use crate::reference::weights::encode_half;
use crate::sample::{SampleConfig, Sampler};

/// Of how many rows a case's live ones are.
#[derive(Clone, Copy)]
enum Live {
    Part,
    All,
    One,
    Few,
    /// Some more than there are.
    Beyond,
    /// As many as a word counts.
    Most,
}

/// How many of `rows` rows are live, and the word that says so. Before, it was another number.
pub(super) fn live(draw: &mut Draw, memory: &mut dyn Memory, rows: usize) -> (usize, Span) {
    use Live::*;
    let least = if rows > 65_536 { 65_537 } else { 1 };
    let (part, few) = (least + draw.below(rows + 1 - least), 2 + draw.below(6));
    let word = match draw.turn(&[Part, All, One, Part, Few, Beyond, Part, All, Most]) {
        _ if draw.is_idle() => 0,
        Part => part as u32,
        All => rows as u32,
        One => 1,
        Few => rows.min(few) as u32,
        Beyond => (rows + few) as u32,
        Most => u32::MAX,
    };
    let live = rows.min(word as usize);
    let before = if live < rows { rows } else { 1 + draw.below(rows) };
    (live, memory.span(1, Fill::WordsAfter { now: vec![word], before: vec![before as u32] }))
}

/// Words of the live rows, and for the others what no row may have; before, each row had another one.
fn words(memory: &mut dyn Memory, of_live: &[u32], before: Vec<u32>) -> Span {
    let rows = before.len();
    let mut now = vec![u32::MAX; rows];
    now[..of_live.len()].copy_from_slice(of_live);
    memory.span(rows, Fill::WordsAfter { now, before })
}

/// For each of some rows a number below `count`: of the first row the last.
fn below(draw: &mut Draw, rows: usize, count: usize) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..rows).map(|_| draw.below(count) as u32).collect();
    if let Some(first) = numbers.first_mut() {
        *first = count as u32 - 1;
    }
    numbers
}

/// How many positions a table has whose rows are of `width`.
fn positions(draw: &mut Draw, width: usize) -> usize {
    match draw.is_tall() && draw.work / width > 70_000 {
        true => 65_537 + draw.below(4000),
        false => (1 + draw.below(draw.turn(&[40, 600, 90]))).min(draw.work / width + 1),
    }
}

pub(super) fn embedding(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = (draw.size(Sizes(33, 100, 257, 400)), draw.size(Sizes(33, 1000, 40_000, 50_257)));
    let d_model = draw.size(Sizes(33, 130, 257, 400));
    let vocab = vocab.min(draw.work);
    // Of a large table little is read, but all of it is written and compared some times.
    let d_model = d_model.min((draw.work / 64).div_ceil(vocab)).max(1);
    let d_model = if draw.is_tall() { d_model.min(9) } else { d_model };
    let rows = rows.min(draw.work.div_ceil(d_model));
    let (with_positions, count) = (!draw.variant() || draw.is_tall(), positions(draw, d_model));
    let (live, live_word) = live(draw, memory, rows);
    // Tokens that no live row has are outside of the vocabulary.
    let spare = if draw.is_tall() && draw.work > 1_000_000 { 65_536 } else { 1 + draw.below(40) };
    let mut tokens = vec![u32::MAX; rows + spare];
    let mut places = below(draw, live, tokens.len());
    for row in 0..live {
        // Now and then the token of an earlier row.
        if row % 5 == 4 {
            places[row] = places[row / 2];
        }
        tokens[places[row] as usize] = draw.below(vocab) as u32;
    }
    if let Some(&place) = places.first() {
        tokens[place as usize] = vocab as u32 - 1;
    }
    let positions = below(draw, live, count);
    let before = [tokens.len(), count].map(|count| below(draw, rows, count));
    let [places_before, positions_before] = before;
    let dtype = weight_dtype(draw);
    EmbeddingRows {
        live: live_word,
        tokens: memory.span(tokens.len(), Fill::Words(tokens)),
        places: words(memory, &places, places_before),
        positions: words(memory, &positions, positions_before),
        token_embedding: match dtype {
            Some(dtype) => stored(draw, memory, dtype, vocab, d_model, 1.0),
            None => memory.span(vocab * d_model, Fill::Normal(1.0)),
        },
        position_embedding: with_positions.then(|| memory.span(count * d_model, Fill::Normal(1.0))),
        out: result(draw, memory, (rows, d_model), live),
        rows,
        d_model,
        vocab,
    }
    .into()
}

pub(super) fn norm(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let shape = norm::shape(draw);
    let (rows, live) = live(draw, memory, shape.rows);
    NormRows { live, norm: norm::forward_of(draw, memory, shape, rows) }.into()
}

pub(super) fn linear(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    // Its kernels are those of `LinearForward`, which meets the large sizes.
    draw.work = draw.work.div_ceil(8);
    let shape = linear::shape(draw);
    let dtype = weight_dtype(draw);
    let (rows, live) = live(draw, memory, shape.0);
    LinearRows { live, linear: linear::forward_with(draw, memory, shape, dtype, rows) }.into()
}

pub(super) fn rotary(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, d_head) = (draw.size(Sizes(33, 100, 257, 330)), draw.size(Sizes(24, 128, 129, 256)));
    let (heads, d_head) = (draw.size(Sizes(2, 5, 6, 8)), 2 * d_head.div_ceil(2));
    let d_head = if draw.is_tall() { d_head.min(8) } else { d_head };
    let rows = rows.min(draw.work.div_ceil(heads * d_head));
    let count = positions(draw, d_head);
    let (live, live_word) = live(draw, memory, rows);
    let positions = below(draw, live, count);
    let (before, halves) = (below(draw, rows, count), draw.variant());
    let width = heads * d_head;
    let values = draw.normals(rows * width, 1.0);
    let [x] = lay(draw, memory, rows, [Part::new(width, values)], Between::Numbers);
    RotaryRows {
        live: live_word,
        positions: words(memory, &positions, before),
        x,
        table: memory.span(count * d_head, Fill::Normal(0.7)),
        pairing: pairing(halves),
        rows,
        heads,
        d_head,
    }
    .into()
}

/// Live rows of some sequences over a cache.
struct Cached {
    live: usize,
    live_word: Span,
    slots: Vec<u32>,
    positions: Vec<u32>,
    /// Slots and positions of as many rows as there are, as they were before.
    before: [Vec<u32>; 2],
    slot_count: usize,
    capacity: usize,
    /// Heads of keys and values.
    heads: usize,
    /// How many heads of queries share one of them.
    group: usize,
    d_head: usize,
}

/// Prompts, single tokens and what is between, sequences one after the other and again, each row behind the one before it in
/// its slot; but in some cases the rows stand in no order.
fn cached(draw: &mut Draw, memory: &mut dyn Memory) -> Cached {
    let (rows, past) = (draw.size(Sizes(8, 40, 96, 130)), draw.size(Sizes(33, 130, 513, 600)));
    let (d_head, heads) = (draw.size(Sizes(24, 128, 129, 256)), 1 + draw.below(4));
    let slot_count = draw.turn(&[1, 3, 5]);
    let (group, work) = (draw.turn(&[1, 4, 2, 1, 3, 1, 2, 1]), draw.work);
    let fits = |rows: usize, past: usize| rows * (past + rows) * heads * group * d_head <= work;
    let (mut rows, mut past) = (rows, past);
    while !fits(rows, past) && (rows > 1 || past > 1) {
        (rows, past) = (rows.div_ceil(2), past.div_ceil(2));
    }
    let d_head = if fits(rows, past) { d_head } else { draw.work.min(d_head) };
    // The cache is read and written as a whole, and as it is large gives way.
    let past = past.min((draw.work / (slot_count * heads * d_head * 20)).max(3));
    let past = if draw.variant() { 0 } else { past };
    let (mut shape, mut past) = ((rows, slot_count, heads, d_head), past);
    if draw.is_tall() && draw.work > 10_000_000 {
        (shape, past) = ((rows.min(9), 2, 1, d_head % 4 + 2), 65_536 + draw.below(1000));
    }
    if draw.is_crowded() && draw.work > 10_000_000 {
        (shape, past) = ((rows, 257 + draw.below(30), 1, d_head % 8 + 2), past.min(40));
    }
    let (rows, slot_count, mut heads, mut d_head) = shape;
    let spare = if draw.variant() { 0 } else { 1 + draw.below(9) };
    let capacity = past + rows + spare;
    while slot_count * heads * capacity * d_head > 4 * draw.work.max(100) && heads * d_head > 1 {
        (heads, d_head) = if heads > 1 { (heads - 1, d_head) } else { (1, d_head.div_ceil(2)) };
    }
    let (live, live_word) = live(draw, memory, rows);
    let run = draw.turn(&[1, 70, 5, 12]);
    // One sequence is long, and the last one has hardly begun.
    let mut next: Vec<usize> = (0..slot_count).map(|_| draw.below(past + 1)).collect();
    next[slot_count - 1] = draw.below(past.min(4) + 1);
    next[0] = past;
    let mut places = Vec::new();
    let mut slot = if draw.is_tall() { 0 } else { slot_count - 1 };
    while places.len() < rows {
        for _ in 0..run.min(rows - places.len()) {
            places.push((slot as u32, next[slot] as u32));
            next[slot] += 1;
        }
        slot = if run == 1 { (slot + 1) % slot_count } else { draw.below(slot_count) };
    }
    let before = places.iter().rev().copied().unzip();
    places.truncate(live);
    if draw.variant() {
        for row in (1..live).rev() {
            places.swap(row, draw.below(row + 1));
        }
    }
    let (slots, positions) = places.into_iter().unzip();
    let before = before.into();
    Cached { live, live_word, slots, positions, before, slot_count, capacity, heads, group, d_head }
}

/// How a cache is stored: in the backend's own numbers, or in fewer bits.
fn cache_dtype(draw: &Draw) -> Option<Dtype> {
    draw.turn(&[
        None,
        Some(Dtype::F16),
        None,
        Some(Dtype::Bf16),
        None,
        None,
        Some(Dtype::Bf16),
        Some(Dtype::F16),
    ])
}

/// These numbers as such a cache holds them.
fn cache(memory: &mut dyn Memory, dtype: Option<Dtype>, numbers: Vec<f64>) -> Span {
    let len = numbers.len();
    memory.span(
        len,
        match dtype {
            None => Fill::Values(numbers),
            Some(dtype) => {
                Fill::Stored(dtype, numbers.into_iter().flat_map(|x| encode_half(x, dtype)).collect())
            }
        },
    )
}

/// Puts numbers in between that are hard to store in fewer bits: halfway between two of f16, or of bf16, of which the even one
/// is now the smaller and now the larger; below the smallest that has all its digits, and beyond the largest; and none.
pub(super) fn harden(draw: &mut Draw, numbers: &mut [f64]) {
    const F16: f64 = 1.0 / 2048.0;
    const BF16: f64 = 1.0 / 256.0;
    const SMALL: f64 = 1.0 / 16_777_216.0;
    const HARD: [[f64; 8]; 4] = [
        [1.0 + F16, 1.0 + 3.0 * F16, 2.0 - F16, -1.0 - F16, 65_504.0, 65_519.0, 65_520.0, 1e6],
        [1.0 + BF16, 1.0 + 3.0 * BF16, 2.0 - BF16, -1.0 - 3.0 * BF16, 1e38, -1e38, 3.4e38, 1e-30],
        [SMALL, 0.5 * SMALL, 1.5 * SMALL, 2.5 * SMALL, -0.75 * SMALL, 1000.5 * SMALL, 0.49 * SMALL, 0.0],
        [f64::NAN, f64::INFINITY, -f64::INFINITY, 1.0 + 1.01 * F16, 1.0 + 0.99 * BF16, 3e38, -65_520.0, 0.1],
    ];
    let step = 1 + draw.below(9);
    let first = draw.below(step);
    for (place, number) in numbers.iter_mut().skip(first).step_by(step).enumerate() {
        *number = f64::from(HARD[place % 4][place / 4 % 8] as f32);
    }
}

pub(super) fn append(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let cached = cached(draw, memory);
    let Cached { live, slot_count, capacity, heads, d_head, .. } = cached;
    let [slots_before, positions_before] = cached.before;
    let (rows, size) = (slots_before.len(), slot_count * heads * capacity * d_head);
    let (width, dtype) = (heads * d_head, cache_dtype(draw));
    let hard = dtype.is_some() && draw.below(3) > 0;
    let parts = [(); 2].map(|()| {
        let mut numbers = draw.normals(rows * width, 1.0);
        if hard {
            harden(draw, &mut numbers);
        }
        numbers[live * width..].fill(f64::NAN);
        Part::new(width, numbers)
    });
    let [k, v] = lay(draw, memory, rows, parts, Between::Nothing);
    let [keys, values] = [(); 2].map(|()| draw.normals(size, 1.0));
    CacheAppend {
        live: cached.live_word,
        slots: words(memory, &cached.slots, slots_before),
        positions: words(memory, &cached.positions, positions_before),
        k,
        v,
        keys: cache(memory, dtype, keys),
        values: cache(memory, dtype, values),
        rows,
        slot_count,
        capacity,
        kv_heads: heads,
        d_head,
    }
    .into()
}

/// The last position that each live row sees: mostly its own. With a prefix, the rows of it see all of it, as far as the
/// sequence goes.
fn last(draw: &mut Draw, cached: &Cached) -> Vec<u32> {
    let with_prefix = draw.variant();
    let mut newest = vec![0; cached.slot_count];
    for (&slot, &position) in cached.slots.iter().zip(&cached.positions) {
        newest[slot as usize] = position.max(newest[slot as usize]);
    }
    let prefixes: Vec<u32> =
        newest.into_iter().map(|newest| draw.below(newest as usize + 1) as u32).collect();
    let places = cached.slots.iter().zip(&cached.positions);
    places.map(|(&slot, &own)| if with_prefix { own.max(prefixes[slot as usize]) } else { own }).collect()
}

pub(super) fn attention(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let mut cached = cached(draw, memory);
    let last = last(draw, &cached);
    let Cached { live, slot_count, capacity, heads, group, d_head, .. } = cached;
    let [slots_before, last_before] = core::mem::take(&mut cached.before);
    let (rows, width) = (slots_before.len(), heads * group * d_head);
    let scale = draw.pick(&[1.0, 1.0, 0.7]) / libm::sqrt(d_head as f64);
    let (large, broken) = (draw.variant() && d_head <= 40, draw.variant());
    // All keys alike in one place, and so are the queries: the scores are large, and their differences are not.
    let front = large.then(|| f64::from(libm::sqrt(95.0 / scale) as f32));
    // The mean of very many is far from 0 only if theirs is.
    let mean = if capacity > 65_536 { 1.0 } else { 0.0 };
    let keys = Held { front, mean: 0.0, broken }.numbers(draw, &cached, &last);
    let values = Held { front: None, mean, broken }.numbers(draw, &cached, &last);
    // Of the queries of live rows only.
    let mut queries = draw.normals(live * width, 1.0);
    if let Some(front) = front {
        queries.iter_mut().step_by(d_head).for_each(|x| *x = front);
    }
    queries.resize(rows * width, f64::NAN);
    let [q] = lay(draw, memory, rows, [Part::new(width, queries)], Between::Nothing);
    let dtype = cache_dtype(draw);
    AttentionRows {
        live: cached.live_word,
        slots: words(memory, &cached.slots, slots_before),
        last: words(memory, &last, last_before),
        q,
        keys: cache(memory, dtype, keys),
        values: cache(memory, dtype, values),
        out: result(draw, memory, (rows, width), live),
        rows,
        slot_count,
        capacity,
        heads: heads * group,
        kv_heads: heads,
        d_head,
        scale,
    }
    .into()
}

/// What a cache holds that rows read.
struct Held {
    /// The first number of each head.
    front: Option<f64>,
    mean: f64,
    /// Whether the newest position has what is no number.
    broken: bool,
}

impl Held {
    fn numbers(&self, draw: &mut Draw, cached: &Cached, last: &[u32]) -> Vec<f64> {
        let Cached { slot_count, capacity, heads, d_head, .. } = *cached;
        // Of each slot the last position that any row sees, and the last that all see.
        let mut seen = vec![None; slot_count];
        for (&slot, &last) in cached.slots.iter().zip(last) {
            let (most, least) = seen[slot as usize].get_or_insert((last, last));
            (*most, *least) = (last.max(*most), last.min(*least));
        }
        let mut numbers = draw.normals(slot_count * heads * capacity * d_head, 1.0);
        for (place, row) in numbers.chunks_exact_mut(d_head).enumerate() {
            let (slot, position) = (place / capacity / heads, (place % capacity) as u32);
            let Some((most, least)) = seen[slot].filter(|(most, _)| position <= *most) else {
                // Behind the newest, and in slots without a row, is nothing that anybody may read.
                row.fill(f64::NAN);
                continue;
            };
            row.iter_mut().for_each(|x| *x = f64::from((*x + self.mean) as f32));
            if let Some(front) = self.front {
                row[0] = front;
            }
            // What is no number in the newest row concerns no row before it.
            if self.broken && least < most && position == most {
                row[d_head - 1] = f64::NAN;
            }
        }
        numbers
    }
}

pub(super) fn gather(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, count) = (draw.size(Sizes(33, 100, 257, 400)), draw.size(Sizes(8, 40, 65, 90)));
    let width = draw.size(Sizes(33, 130, 1030, 1200)).min(draw.work.div_ceil(rows.max(count)));
    let (rows, width) = match draw.is_tall() && draw.work > 1_000_000 {
        true => (65_536 + rows, width % 5 + 1),
        false => (rows, width),
    };
    let (live, live_word) = live(draw, memory, count);
    let mut wanted = below(draw, live, rows);
    // Now and then one that was wanted before.
    for place in (4..live).step_by(5) {
        wanted[place] = wanted[place / 2];
    }
    let mut from = vec![f64::NAN; rows * width];
    for &row in &wanted {
        from[row as usize * width..][..width].copy_from_slice(&draw.normals(width, 1.0));
    }
    let before = below(draw, count, rows);
    GatherRows {
        live: live_word,
        wanted: words(memory, &wanted, before),
        from: memory.span(from.len(), Fill::Values(from)),
        to: result(draw, memory, (count, width), live),
        rows,
        count,
        width,
    }
    .into()
}

/// Settings of every kind. Of rows whose choice hangs on the last digits there are none: no two backends would agree on them.
pub(super) fn sample(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    // How often logits are drawn depends on what they are.
    draw.only_shapes = false;
    let (rows, vocab) = (draw.size(Sizes(3, 8, 20, 40)), draw.size(Sizes(33, 1000, 20_000, 50_257)));
    let vocab = vocab.min((draw.work / 40).max(2));
    let rows = rows.min((draw.work / 100).div_ceil(vocab).max(1));
    let (live, live_word) = live(draw, memory, rows);
    let (greedy, broken) = (draw.variant(), draw.variant());
    let with = [(); 4].map(|()| draw.variant());
    let ring_len = 2 + draw.below(70);
    let mut tokens: Vec<u32> = (0..live.max(1) * ring_len).map(|_| draw.below(vocab) as u32).collect();
    let (mut logits, mut settings) = (Vec::new(), Vec::new());
    // Before, all rows choose the likeliest for the first ring.
    let config = SampleConfig::greedy();
    let likeliest =
        SampleRow { next: 0, ring: 0, ring_len: ring_len as u32, recent: 0, uniform: 0.0, config };
    let before = (0..rows).flat_map(|_| likeliest.words()).collect();
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
        if (choice.recent as usize) < ring_len {
            // What is nobody's choice.
            tokens[choice.next as usize] = u32::MAX - 1;
        }
        let decisive =
            (with[3] && row % 3 < 2).then(|| penalised(draw, &mut choice, &mut tokens, vocab)).flatten();
        let recent: Vec<u32> = choice.recent_places().map(|place| tokens[place]).collect();
        let mut of_row = decisive.unwrap_or_default();
        for attempt in 0..if of_row.is_empty() { 30 } else { 0 } {
            let numbers = draw.normals(vocab, spread);
            of_row = draw.as_stored(numbers);
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
        if broken && row % 3 == 2 {
            of_row[draw.below(vocab)] = f64::NAN;
        }
        logits.extend(of_row);
        settings.extend(choice.words());
    }
    logits.resize(rows * vocab, f64::NAN);
    settings.resize(rows * SampleRow::WORDS, u32::MAX);
    // What no row chooses: those of live rows go, and the others stay.
    let choices = (0..rows).map(|_| draw.rng.next_u32() | 1 << 30).collect();
    Sample {
        live: live_word,
        logits: memory.span(logits.len(), Fill::Values(logits)),
        settings: memory.span(settings.len(), Fill::WordsAfter { now: settings, before }),
        tokens: memory.span(tokens.len(), Fill::Words(tokens)),
        choices: memory.span(rows, Fill::Words(choices)),
        rows,
        vocab,
    }
    .into()
}

/// Logits by which the likeliest token is one only without its penalty, or if that raises what is below 0: it is the oldest
/// of a full ring, and in no other place of it. `None` if there are too few tokens.
fn penalised(draw: &mut Draw, choice: &mut SampleRow, tokens: &mut [u32], vocab: usize) -> Option<Vec<f64>> {
    let ring = &mut tokens[choice.ring as usize..][..choice.ring_len as usize];
    if vocab < ring.len() + 2 {
        return None;
    }
    let oldest = draw.below(vocab) as u32;
    let other = (0..vocab as u32).find(|token| *token != oldest && !ring.contains(token))?;
    for token in ring.iter_mut().filter(|token| **token == oldest || **token as usize >= vocab) {
        *token = if oldest == 0 { 1 } else { 0 };
    }
    if ring.contains(&other) {
        return None;
    }
    ring[(choice.next - choice.ring) as usize] = oldest;
    (choice.recent, choice.config.top_k, choice.uniform) = (choice.ring_len, Some(1), draw.rng.uniform());
    let (most, above, limit) = if draw.below(2) == 0 { (3.5, 3.0, 2.0) } else { (-0.5, -0.6, -3.0) };
    let mut logits: Vec<f64> = draw.normals(vocab, 1.0).into_iter().map(|x| x.min(0.0) + limit).collect();
    (logits[oldest as usize], logits[other as usize]) = (most, above);
    Some(logits)
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
