//! Faults of the cache and of attention over it.

use minigpt_core::op::{AttentionRows, CacheAppend};
use minigpt_core::reference::weights::{encode_half, weight_at};
use minigpt_core::{Dtype, Op, Span};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Heads, Kernel, faults};
use crate::rows::{Told, in_blocks};

const SLOTS: usize = 0;
const POSITIONS: usize = 1;
const LAST: usize = 1;

fn append(op: &CacheAppend) -> Told {
    let words = vec![(op.slots, op.slot_count), (op.positions, op.capacity)];
    Told { live: op.live, rows: op.rows, words }
}

fn attention(op: &AttentionRows) -> Told {
    let words = vec![(op.slots, op.slot_count), (op.last, op.capacity)];
    Told { live: op.live, rows: op.rows, words }
}

/// Slots of the live rows, and their positions or the last ones that they see.
fn places(k: &mut Kernel, told: &Told) -> Result<Vec<(u32, u32)>, CpuError> {
    let (live, slots, positions) = (told.live(k)?, k.words(told.words[0].0)?, k.words(told.words[1].0)?);
    Ok(slots.into_iter().zip(positions).take(live).collect())
}

/// Runs the op with slots and positions in each other's place.
fn run_swapped(k: &mut Kernel, op: impl Into<Op>, told: &Told) -> Done {
    if told.is_refused(k)? {
        return k.run(op);
    }
    let places = places(k, told)?;
    let [(slots, slot_count), (positions, capacity)] = told.words[..] else { return k.run(op) };
    let (mut others, mut there) = (k.words(slots)?, k.words(positions)?);
    for (row, &(slot, position)) in places.iter().enumerate() {
        others[row] = position % slot_count as u32;
        there[row] = slot % capacity as u32;
    }
    k.run_on_words(op, &[(slots, others), (positions, there)])
}

fn new_keys(op: &CacheAppend) -> Heads {
    Heads::new(op.k, op.kv_heads, op.d_head)
}

fn new_values(op: &CacheAppend) -> Heads {
    Heads::new(op.v, op.kv_heads, op.d_head)
}

/// Runs the op, and changes the keys that it stored in this type: `round` is told a number as it was and as it is stored.
fn run_rounding(k: &mut Kernel, op: CacheAppend, dtype: Dtype, round: impl Fn(f32, f32) -> f32) -> Done {
    let (new, of) = (k.get(op.k.span)?, new_keys(&op));
    k.run(op)?;
    if op.keys.dtype != dtype {
        return Ok(());
    }
    edit_stored(k, &op, op.keys, |row, head, at, stored| round(new[of.index(row, head, at)], stored))
}

/// The number of this type that is so many above another in magnitude.
fn beyond(x: f32, dtype: Dtype, steps: i16) -> f32 {
    let bits = u16::from_le_bytes(encode_half(f64::from(x), dtype)).wrapping_add_signed(steps);
    weight_at(&bits.to_le_bytes(), dtype, 0) as f32
}

/// The next number of this type towards zero.
fn below(x: f32, dtype: Dtype) -> f32 {
    beyond(x, dtype, -1)
}

/// What is stored of a number of which the two nearest are as near, if that is the larger one.
fn away(x: f32, stored: f32, dtype: Dtype) -> f32 {
    let larger = beyond(stored, dtype, 1);
    let is_tie = stored.abs() < x.abs() && larger.is_finite() && x - stored == larger - x;
    if is_tie { larger } else { stored }
}

/// Which live row is stored at this place of a cache, and where in its head the number is.
fn stored(op: &CacheAppend, places: &[(u32, u32)], i: usize) -> Option<usize> {
    let (slot, position) = (i / op.d_head / op.capacity / op.kv_heads, i / op.d_head % op.capacity);
    places.iter().position(|&place| place == (slot as u32, position as u32))
}

/// The head of a place in a cache.
fn head(op: &CacheAppend, i: usize) -> usize {
    i / op.d_head / op.capacity % op.kv_heads
}

/// Changes each number that was stored in `cache`, which is told its row, its head, and its place in the head.
fn edit_stored(
    k: &mut Kernel,
    op: &CacheAppend,
    cache: Span,
    change: impl Fn(usize, usize, usize, f32) -> f32,
) -> Done {
    let places = places(k, &append(op))?;
    k.edit(cache, |i, x| stored(op, &places, i).map_or(x, |row| change(row, head(op, i), i % op.d_head, x)))
}

/// Changes each number of the live rows of `out`, which is told its row, its head and its place in the head.
fn edit_out(k: &mut Kernel, op: &AttentionRows, change: impl Fn(usize, usize, usize, f32) -> f32) -> Done {
    let live = attention(op).live(k)?;
    let (heads, d) = (op.heads, op.d_head);
    k.edit(op.out, |i, x| {
        let row = i / (heads * d);
        if row < live { change(row, i / d % heads, i % d, x) } else { x }
    })
}

fn queries(op: &AttentionRows) -> Heads {
    Heads::new(op.q, op.heads, op.d_head)
}

/// How many heads of queries share one of keys and values.
fn group(op: &AttentionRows) -> usize {
    op.heads / op.kv_heads
}

/// Runs the op on a cache whose numbers are others: `change` is told the place in the cache, and the number.
fn run_on_cache(k: &mut Kernel, op: AttentionRows, cache: Span, change: impl Fn(usize, f32) -> f32) -> Done {
    let before = k.get(cache)?;
    k.edit(cache, change)?;
    let done = k.run(op);
    k.put(cache, &before)?;
    done
}

pub(crate) const FAULTS: &[Fault] = faults! {
    CacheAppend {
        "rows are stored one place late" => |k, op| {
            append(&op).run_on(k, op, POSITIONS, |row, words| words[row] + 1)
        };
        "rows are stored one place early, beyond the first of them" => |k, op| {
            append(&op).run_on(k, op, POSITIONS, |row, words| words[row].saturating_sub(u32::from(row > 0)))
        };
        "values are written for the keys of the last head" => |k, op| {
            k.run(op)?;
            let values = k.get(op.values)?;
            let places = places(k, &append(&op))?;
            k.edit(op.keys, |i, x| {
                if head(&op, i) + 1 == op.kv_heads && stored(&op, &places, i).is_some() { values[i] } else { x }
            })
        };
        "values are written for keys, of a single row" => |k, op| {
            let (v, live, of) = (k.get(op.v.span)?, append(&op).live(k)?, new_values(&op));
            k.run(op)?;
            edit_stored(k, &op, op.keys, |row, head, at, x| if live == 1 { v[of.index(row, head, at)] } else { x })
        };
        "values are read with the stride of the keys" => |k, op| k.run_on_stride(op, new_values(&op), op.k.stride);
        "keys are read side by side" => |k, op| k.run_on_stride(op, new_keys(&op), new_keys(&op).width());
        "keys in f16 are cut off" => |k, op| {
            run_rounding(k, op, Dtype::F16, |x, stored| if stored.abs() > x.abs() { below(stored, Dtype::F16) } else { stored })
        };
        "keys in bf16 are cut off" => |k, op| {
            run_rounding(k, op, Dtype::Bf16, |x, stored| if stored.abs() > x.abs() { below(stored, Dtype::Bf16) } else { stored })
        };
        "ties of bf16 go away from zero" => |k, op| run_rounding(k, op, Dtype::Bf16, |x, stored| away(x, stored, Dtype::Bf16));
        "ties of f16 go away from zero" => |k, op| run_rounding(k, op, Dtype::F16, |x, stored| away(x, stored, Dtype::F16));
        "what is below the normal numbers of f16 is 0" => |k, op| {
            run_rounding(k, op, Dtype::F16, |_, stored| if stored.abs() < 6.1e-5 { 0.0 } else { stored })
        };
        "what f16 does not reach is its largest" => |k, op| {
            run_rounding(k, op, Dtype::F16, |x, stored| if stored.is_infinite() && x.is_finite() { 65_504f32.copysign(x) } else { stored })
        };
        "the largest numbers of bf16 are infinite" => |k, op| {
            run_rounding(k, op, Dtype::Bf16, |_, stored| if stored.abs() > 65_504.0 { f32::INFINITY.copysign(stored) } else { stored })
        };
        "NaN is stored as 0" => |k, op| {
            run_rounding(k, op, Dtype::Bf16, |x, stored| if x.is_nan() { 0.0 } else { stored })
        };
        "values in fewer bits are those of the keys" => |k, op| {
            let narrow = op.values.dtype != Dtype::F32;
            k.run(op)?;
            let keys = k.get(op.keys)?;
            let places = places(k, &append(&op))?;
            k.edit(op.values, |i, x| if narrow && stored(&op, &places, i).is_some() { keys[i] } else { x })
        };
        "slot and position change places" => |k, op| run_swapped(k, op, &append(&op));
        "all rows have the slot of the first" => |k, op| append(&op).run_on(k, op, SLOTS, |_, words| words[0]);
        "a block of 8 rows has the slot of its first" => |k, op| {
            append(&op).run_on(k, op, SLOTS, |row, words| words[row / 8 * 8])
        };
        "slots follow each other" => |k, op| append(&op).run_on(k, op, SLOTS, in_blocks(usize::MAX));
        "a row's number is taken for its slot" => |k, op| append(&op).run_on(k, op, SLOTS, |row, _| row as u32);
        "the last row has the slot of the one before" => |k, op| {
            append(&op).run_on(k, op, SLOTS, |row, words| {
                words[if row + 1 == words.len() { row.saturating_sub(1) } else { row }]
            })
        };
        "positions follow each other from the first on" => |k, op| {
            append(&op).run_on(k, op, POSITIONS, in_blocks(usize::MAX))
        };
        "positions follow each other within a block of 8 rows" => |k, op| {
            append(&op).run_on(k, op, POSITIONS, in_blocks(8))
        };
        "positions follow each other within a warp" => |k, op| append(&op).run_on(k, op, POSITIONS, in_blocks(32));
        "slots are read in 8 bits" => |k, op| append(&op).run_on(k, op, SLOTS, |row, words| words[row] & 0xff);
        "positions are read in 8 bits" => |k, op| append(&op).run_on(k, op, POSITIONS, |row, words| words[row] & 0xff);
        "positions are read in 16 bits" => |k, op| {
            append(&op).run_on(k, op, POSITIONS, |row, words| words[row] & 0xffff)
        };
        "slots of a recorded list" => |k, op| append(&op).run_on_first(k, op, SLOTS);
        "positions of a recorded list" => |k, op| append(&op).run_on_first(k, op, POSITIONS);
        "live of a recorded list" => |k, op| append(&op).run_recorded(k, op);
        "live of the last call" => |k, op| append(&op).run_late(k, op);
        "a whole tile of 8 rows is stored" => |k, op| append(&op).run_tiles(k, op, 8);
        "of a warp's dead rows the first is stored behind the last live one" => |k, op| {
            let places = places(k, &append(&op))?;
            k.run(op)?;
            let Some(&(slot, position)) = places.last() else { return Ok(()) };
            if places.len().is_multiple_of(32) || places.len() == op.rows || position as usize + 1 == op.capacity {
                return Ok(());
            }
            let next = (slot, position + 1);
            let free = !places.contains(&next);
            k.edit(op.keys, |i, x| if free && stored(&op, &[next], i).is_some() { 0.5 } else { x })
        };
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            append(&op).run_as(k, op, signed.min(op.rows))
        };
        "nothing live is everything" => |k, op| {
            let told = append(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.rows } else { live })
        };
        "of an odd number of rows the last is left out" => |k, op| {
            let told = append(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "of more than there are all are stored, and more" => |k, op| {
            append(&op).run_uncapped(k, op, op.values, op.d_head)
        };
        "rows from 64 on are left out" => |k, op| {
            let told = append(&op);
            let live = told.live(k)?;
            told.run_as(k, op, live.min(64))
        };
        "the first and the last head change places" => |k, op| {
            let (v, of) = (k.get(op.v.span)?, new_values(&op));
            k.run(op)?;
            edit_stored(k, &op, op.values, |row, head, at, x| {
                let other = op.kv_heads - 1 - head;
                if head == 0 || other == 0 { v[of.index(row, other, at)] } else { x }
            })
        };
        "a tail of a head that fills no vector of 8 is left out" => |k, op| {
            let before = k.get(op.keys)?;
            k.run(op)?;
            k.edit(op.keys, |i, x| if i % op.d_head >= op.d_head / 8 * 8 { before[i] } else { x })
        };
        "a vector store reaches the place behind" => |k, op| {
            let places = places(k, &append(&op))?;
            k.run(op)?;
            let d = op.d_head;
            k.edit(op.values, |i, x| {
                let behind = d % 8 != 0 && i % d == 0 && i >= d;
                if behind && stored(&op, &places, i - d).is_some() && stored(&op, &places, i).is_none() { 0.5 } else { x }
            })
        };
        "an earlier key is written again" => |k, op| {
            let places = places(k, &append(&op))?;
            k.run(op)?;
            let earlier: Vec<_> = places.iter().filter(|p| p.1 > 0).map(|&(slot, p)| (slot, p - 1)).collect();
            k.edit(op.keys, |i, x| {
                let again = stored(&op, &earlier, i).is_some() && stored(&op, &places, i).is_none();
                if again { x * 1.001 } else { x }
            })
        };
        "what is behind the newest is cleared" => |k, op| {
            let places = places(k, &append(&op))?;
            k.run(op)?;
            let newest = |slot: usize| places.iter().filter(|p| p.0 as usize == slot).map(|p| p.1).max();
            let newest: Vec<_> = (0..op.slot_count).map(newest).collect();
            k.edit(op.values, |i, x| {
                let (slot, position) = (i / op.d_head / op.capacity / op.kv_heads, i / op.d_head % op.capacity);
                if newest[slot].is_some_and(|newest| position as u32 > newest) { 0.0 } else { x }
            })
        };
        "heads lie side by side at each position" => |k, op| {
            let (keys, new, places) = (k.get(op.keys)?, k.get(op.k.span)?, places(k, &append(&op))?);
            k.run(op)?;
            let (mut wrong, width) = (keys, op.kv_heads * op.d_head);
            for (row, &(slot, position)) in places.iter().enumerate() {
                let place = (slot as usize * op.capacity + position as usize) * width;
                wrong[place..][..width].copy_from_slice(&new[row * op.k.stride..][..width]);
            }
            k.put(op.keys, &wrong)
        };
        "threads lose a row now and then" => |k, op| {
            let (before, calls) = (k.get(op.values)?, k.calls);
            k.run(op)?;
            let places = places(k, &append(&op))?;
            let lost = calls % 2 == 0 && places.len() > 16;
            k.edit(op.values, |i, x| if lost && stored(&op, &places, i) == Some(16) { before[i] } else { x })
        };
        "the cache is kept in bf16" => |k, op| {
            k.run(op)?;
            let own = op.keys.dtype == Dtype::F32;
            edit_stored(k, &op, op.keys, |_, _, _, x| if own { f32::from_bits(x.to_bits() & 0xffff_0000) } else { x })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.keys, op.d_head.next_multiple_of(8) - op.d_head);
            Ok(())
        };
    }
    AttentionRows {
        "a query does not see its own key" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row].saturating_sub(1))
        };
        "a query does not see its own key, at the end of a block of 64" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row] - u32::from(words[row] % 64 == 63))
        };
        "a query sees the key behind its own" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| (words[row] + 1).min(op.capacity as u32 - 1))
        };
        "a query sees the key behind its own, in the middle of a prompt" => |k, op| {
            let places = places(k, &attention(&op))?;
            let prompt = |row: usize| {
                row >= 8 && places.get(row + 1) == Some(&(places[row].0, places[row].1 + 1))
                    && places[row - 8].0 == places[row].0
            };
            attention(&op).run_on(k, op, LAST, |row, words| words[row] + u32::from(prompt(row)))
        };
        "a query sees what the others of its tile see" => |k, op| {
            let places = places(k, &attention(&op))?;
            let most = |row: usize| {
                let tile = &places[row / 8 * 8..places.len().min(row / 8 * 8 + 8)];
                tile.iter().filter(|place| place.0 == places[row].0).map(|place| place.1).max()
            };
            attention(&op).run_on(k, op, LAST, |row, words| most(row).unwrap_or(words[row]))
        };
        "a tile of 8 rows has the slot of its first" => |k, op| {
            attention(&op).run_on(k, op, SLOTS, |row, words| words[row / 8 * 8])
        };
        "a tile of 8 rows has the slot of its first, if its last has it too" => |k, op| {
            attention(&op).run_on(k, op, SLOTS, |row, words| {
                let (first, last) = (row / 8 * 8, (row / 8 * 8 + 7).min(words.len() - 1));
                if words[first] == words[last] { words[first] } else { words[row] }
            })
        };
        "all rows have the slot of the first" => |k, op| attention(&op).run_on(k, op, SLOTS, |_, words| words[0]);
        "slots follow each other" => |k, op| attention(&op).run_on(k, op, SLOTS, in_blocks(usize::MAX));
        "a row's number is taken for its slot" => |k, op| attention(&op).run_on(k, op, SLOTS, |row, _| row as u32);
        "the last row has the slot of the one before" => |k, op| {
            attention(&op).run_on(k, op, SLOTS, |row, words| {
                words[if row + 1 == words.len() { row.saturating_sub(1) } else { row }]
            })
        };
        "a new sequence's first row has the slot of the one before" => |k, op| {
            attention(&op).run_on(k, op, SLOTS, |row, words| words[row.saturating_sub(1)])
        };
        "all rows have the last position of the first" => |k, op| {
            attention(&op).run_on(k, op, LAST, |_, words| words[0])
        };
        "last positions follow each other from the first on" => |k, op| {
            attention(&op).run_on(k, op, LAST, in_blocks(usize::MAX))
        };
        "last positions follow each other within a block of 8 rows" => |k, op| {
            attention(&op).run_on(k, op, LAST, in_blocks(8))
        };
        "last positions follow each other where a tile is of one sequence" => |k, op| {
            let slots = k.words(op.slots)?;
            attention(&op).run_on(k, op, LAST, |row, words| {
                let first = row / 8 * 8;
                let whole = first + 8 <= words.len() && slots[first..first + 8].iter().all(|&s| s == slots[first]);
                if whole { words[first] + (row - first) as u32 } else { words[row] }
            })
        };
        "slot and last position change places" => |k, op| run_swapped(k, op, &attention(&op));
        "slots are read in 8 bits" => |k, op| attention(&op).run_on(k, op, SLOTS, |row, words| words[row] & 0xff);
        "last positions are read in 8 bits" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row] & 0xff)
        };
        "last positions are read in 16 bits" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row] & 0xffff)
        };
        "slots of a recorded list" => |k, op| attention(&op).run_on_first(k, op, SLOTS);
        "last positions of a recorded list" => |k, op| attention(&op).run_on_first(k, op, LAST);
        "live of a recorded list" => |k, op| attention(&op).run_recorded(k, op);
        "live of the last call" => |k, op| attention(&op).run_late(k, op);
        "a whole tile of 8 rows is written" => |k, op| attention(&op).run_tiles(k, op, 8);
        "the first dead row is cleared" => |k, op| {
            let (live, width) = (attention(&op).live(k)?, op.heads * op.d_head);
            k.run(op)?;
            k.edit(op.out, |i, x| if i / width == live { 0.0 } else { x })
        };
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            attention(&op).run_as(k, op, signed.min(op.rows))
        };
        "nothing live is everything" => |k, op| {
            let told = attention(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.rows } else { live })
        };
        "a single live row is left out" => |k, op| {
            let told = attention(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 1 && op.rows > 1 { 0 } else { live })
        };
        "of an odd number of rows the last is left out" => |k, op| {
            let told = attention(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "of more than there are all are written, and more" => |k, op| {
            attention(&op).run_uncapped(k, op, op.out, op.heads * op.d_head)
        };
        "only the first 64 keys are seen" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row].min(63))
        };
        "only the first 128 keys are seen, of several rows" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row].min(if words.len() > 8 { 127 } else { u32::MAX }))
        };
        "only the first 512 keys are seen" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| words[row].min(511))
        };
        "a last block of one key is left out" => |k, op| {
            attention(&op).run_on(k, op, LAST, |row, words| {
                words[row] - u32::from(words[row] > 0 && words[row] % 64 == 0)
            })
        };
        "beyond 512 keys the sums are not brought to the new largest score" => |k, op| {
            let places = places(k, &attention(&op))?;
            k.run(op)?;
            edit_out(k, &op, |row, _, _, x| if places[row].1 >= 512 { x * 1.02 + 0.01 } else { x })
        };
        "a row sees the scores of a longer one before it" => |k, op| {
            let slots = k.words(op.slots)?;
            attention(&op).run_on(k, op, LAST, |row, words| {
                let same = row > 0 && slots[row - 1] == slots[row];
                if same { words[row].max(words[row - 1]) } else { words[row] }
            })
        };
        "a prompt that begins within a block of 32 is seen from its start" => |k, op| {
            let places = places(k, &attention(&op))?;
            k.run(op)?;
            edit_out(k, &op, |row, _, _, x| {
                let begins = row == 0 || places[row - 1].0 != places[row].0;
                if begins && places[row].1 % 32 != 0 && places[row].1 > 32 { x * 1.01 + 0.01 } else { x }
            })
        };
        "the cache is as long as what it holds" => |k, op| {
            let places = places(k, &attention(&op))?;
            let held = places.iter().map(|place| place.1 as usize + 1).max().unwrap_or(op.capacity).min(op.capacity);
            let read = |from: &[f32], i: usize| {
                let (slot, head) = (i / op.d_head / op.capacity / op.kv_heads, i / op.d_head / op.capacity % op.kv_heads);
                let in_head = i % (op.d_head * op.capacity);
                from[(slot * op.kv_heads + head) * held * op.d_head + in_head.min(held * op.d_head - 1)]
            };
            let keys = k.get(op.keys)?;
            run_on_cache(k, op, op.keys, |i, _| read(&keys, i))
        };
        "the largest score is not taken off" => |k, op| {
            let (q, keys, places) = (k.get(op.q.span)?, k.get(op.keys)?, places(k, &attention(&op))?);
            k.run(op)?;
            let (heads, d, of) = (op.heads, op.d_head, queries(&op));
            let over = |row: usize, head: usize| {
                let q = &q[of.index(row, head, 0)..][..d];
                let first = (places[row].0 as usize * op.kv_heads + head / group(&op)) * op.capacity * d;
                let score = |key: &[f32]| q.iter().zip(key).map(|(x, y)| x * y).sum::<f32>();
                keys[first..].chunks_exact(d).take(places[row].1 as usize + 1).any(|key| op.scale as f32 * score(key) > 88.7)
            };
            let over: Vec<bool> = (0..places.len() * heads).map(|i| over(i / heads, i % heads)).collect();
            edit_out(k, &op, |row, head, _, x| if over[row * heads + head] { f32::INFINITY } else { x })
        };
        "NaN of a later position reaches an earlier query" => |k, op| {
            let (values, places) = (k.get(op.values)?, places(k, &attention(&op))?);
            k.run(op)?;
            let (heads, d) = (op.heads, op.d_head);
            // The last number of the next position's value, of a row that is live too.
            let next = |row: usize, head: usize| {
                let (slot, position) = (places[row].0, places[row].1 + 1);
                let at = ((slot as usize * op.kv_heads + head / group(&op)) * op.capacity + position as usize) * d + d - 1;
                if places.contains(&(slot, position)) { values[at] } else { 0.0 }
            };
            let next: Vec<f32> = (0..places.len() * heads).map(|i| next(i / heads, i % heads)).collect();
            edit_out(k, &op, |row, head, _, x| x + 0.0 * next[row * heads + head])
        };
        "what the cache holds behind the newest is read" => |k, op| {
            let (values, places) = (k.get(op.values)?, places(k, &attention(&op))?);
            k.run(op)?;
            let newest = |slot: usize| places.iter().filter(|p| p.0 as usize == slot).map(|p| p.1).max();
            let newest: Vec<_> = (0..op.slot_count).map(newest).collect();
            edit_out(k, &op, |row, head, _, x| {
                let slot = places[row].0 as usize;
                let position = newest[slot].map_or(0, |newest| newest as usize + 1);
                let at = ((slot * op.kv_heads + head / group(&op)) * op.capacity + position) * op.d_head;
                if position < op.capacity { x + 0.0 * values[at] } else { x }
            })
        };
        "the last key of another sequence is read" => |k, op| {
            let (keys, places) = (k.get(op.keys)?, places(k, &attention(&op))?);
            k.run(op)?;
            let size = op.kv_heads * op.capacity * op.d_head;
            edit_out(k, &op, |row, head, _, x| {
                let slot = places[row].0 as usize;
                if head == 0 && slot > 0 { x + 0.0 * keys[slot * size - 1] } else { x }
            })
        };
        "the last value is left out" => |k, op| {
            let places = places(k, &attention(&op))?;
            let last = |i: usize| {
                let (slot, position) = (i / op.d_head / op.capacity / op.kv_heads, i / op.d_head % op.capacity);
                places.contains(&(slot as u32, position as u32))
            };
            run_on_cache(k, op, op.values, |i, x| if last(i) { 0.0 } else { x })
        };
        "the heads of queries take turns" => |k, op| {
            let (before, of) = (k.get(op.q.span)?, queries(&op));
            let turns = |head: usize| head % op.kv_heads * group(&op) + head / op.kv_heads;
            let heads: Vec<usize> = (0..op.heads).map(turns).collect();
            let from = |place: usize| heads.iter().position(|&head| head == place).unwrap_or(place);
            k.run_on_heads(op, of, |row, head, at, _| before[of.index(row, from(head), at)])?;
            let out = k.get(op.out)?;
            edit_out(k, &op, |row, head, at, _| out[(row * op.heads + heads[head]) * op.d_head + at])
        };
        "a slot has as many heads of keys as of queries" => |k, op| {
            let (keys, size) = (k.get(op.keys)?, op.capacity * op.d_head);
            run_on_cache(k, op, op.keys, |i, _| {
                let (slot, head) = (i / size / op.kv_heads, i / size % op.kv_heads);
                keys[(slot * op.heads + head) % (op.slot_count * op.kv_heads) * size + i % size]
            })
        };
        "queries are read side by side" => |k, op| k.run_on_stride(op, queries(&op), queries(&op).width());
        "a cache in f16 is read as one in bf16" => |k, op| {
            let [keys, values] = [op.keys, op.values].map(|cache| match cache.dtype {
                Dtype::F16 => Span { dtype: Dtype::Bf16, ..cache },
                _ => cache,
            });
            k.run(AttentionRows { keys, values, ..op })
        };
        "a cache in bf16 is read as one in f16" => |k, op| {
            let [keys, values] = [op.keys, op.values].map(|cache| match cache.dtype {
                Dtype::Bf16 => Span { dtype: Dtype::F16, ..cache },
                _ => cache,
            });
            k.run(AttentionRows { keys, values, ..op })
        };
        "values in fewer bits lose their tail that fills no vector of 8" => |k, op| {
            let tail = |i: usize| op.values.dtype != Dtype::F32 && i % op.d_head >= op.d_head / 8 * 8;
            run_on_cache(k, op, op.values, |i, x| if tail(i) { 0.0 } else { x })
        };
        "of a group of heads only the first has its weights" => |k, op| {
            k.run(op)?;
            let out = k.get(op.out)?;
            edit_out(k, &op, |row, head, at, _| {
                out[(row * op.heads + head / group(&op) * group(&op)) * op.d_head + at]
            })
        };
        "rows of a prefix see themselves and what is before" => |k, op| {
            let places = places(k, &attention(&op))?;
            // Where a row sees as much as the one before it, it is of a prefix.
            attention(&op).run_on(k, op, LAST, |row, words| {
                let same = places.iter().skip(row + 1).take_while(|next| **next == places[row]).count();
                words[row].saturating_sub(same as u32)
            })
        };
        "keys and values change places in the last head" => |k, op| {
            let (keys, values) = (k.get(op.keys)?, k.get(op.values)?);
            let last = |i: usize| i / op.d_head / op.capacity % op.kv_heads + 1 == op.kv_heads;
            k.edit(op.keys, |i, x| if last(i) { values[i] } else { x })?;
            let done = run_on_cache(k, op, op.values, |i, x| if last(i) { keys[i] } else { x });
            k.put(op.keys, &keys)?;
            done
        };
        "from the fourth head on the values are those of the first" => |k, op| {
            let (values, size) = (k.get(op.values)?, op.capacity * op.d_head);
            run_on_cache(k, op, op.values, |i, x| {
                let head = i / size % op.kv_heads;
                if head >= 3 { values[i - head * size] } else { x }
            })
        };
        "all heads have the query of the first" => |k, op| {
            let (before, of) = (k.get(op.q.span)?, queries(&op));
            k.run_on_heads(op, of, |row, _, at, _| before[of.index(row, 0, at)])
        };
        "a tail of a head that fills no vector of 8 is left out of the scores" => |k, op| {
            run_on_cache(k, op, op.keys, |i, x| if i % op.d_head >= op.d_head / 8 * 8 { 0.0 } else { x })
        };
        "heads wider than 128 are wrong beyond" => |k, op| {
            k.run(op)?;
            edit_out(k, &op, |_, _, at, x| if at >= 128 { x * 1.01 + 0.01 } else { x })
        };
        "heads of 128" => |k, op| {
            k.run(op)?;
            edit_out(k, &op, |_, _, _, x| if op.d_head == 128 { x + 1.0 } else { x })
        };
        "the scale is that of a head of 64" => |k, op| k.run(AttentionRows { scale: 0.125, ..op });
        "the weights are kept in bf16" => |k, op| {
            k.run(op)?;
            edit_out(k, &op, |_, _, _, x| f32::from_bits(x.to_bits() & 0xffff_0000))
        };
        "rows from 64 on are wrong" => |k, op| {
            k.run(op)?;
            edit_out(k, &op, |row, _, _, x| if row >= 64 { x + 0.1 } else { x })
        };
        "short sequences beside a long one are left out" => |k, op| {
            let (before, places) = (k.get(op.out)?, places(k, &attention(&op))?);
            k.run(op)?;
            let most = places.iter().map(|place| place.1).max().unwrap_or(0);
            let width = op.heads * op.d_head;
            edit_out(k, &op, |row, head, at, x| {
                if most > 256 && places[row].1 < 64 { before[row * width + head * op.d_head + at] } else { x }
            })
        };
        "scratch of an earlier call is used, for long sequences" => |k, op| {
            if op.capacity < 128 { k.run(op) } else { k.run_on_stale(op, op.q.span) }
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.out, op.d_head.next_multiple_of(8) - op.d_head);
            Ok(())
        };
    }
};
