//! Faults of the ops by rows, of which the device's words say what to do: which rows are live, of which token, where it
//! stands, and which are wanted.

use minigpt_core::op::{EmbeddingRows, GatherRows, LayerNormRows, LinearRows, RotaryRows};
use minigpt_core::{Dtype, Op, Pairing, Span};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Heads, Kernel, faults};

/// What the words of an op say: how many of its rows are live, and for each row some numbers below a count.
pub(crate) struct Told {
    pub(crate) live: Span,
    pub(crate) rows: usize,
    pub(crate) words: Vec<(Span, usize)>,
}

impl Told {
    /// How many rows are live.
    pub(crate) fn live(&self, k: &mut Kernel) -> Result<usize, CpuError> {
        Ok(self.rows.min(k.words(self.live)?[0] as usize))
    }

    /// Whether the words are such that no kernel may run on them.
    pub(crate) fn is_refused(&self, k: &mut Kernel) -> Result<bool, CpuError> {
        let live = self.live(k)?;
        for &(span, count) in &self.words {
            if k.words(span)?[..live].iter().any(|&word| word as usize >= count) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs the op as if so many rows were live: those that are not have the words of the last one that is.
    pub(crate) fn run_as(&self, k: &mut Kernel, op: impl Into<Op>, count: usize) -> Done {
        if self.is_refused(k)? {
            return k.run(op);
        }
        let live = self.live(k)?;
        let mut others = vec![(self.live, vec![count as u32])];
        for &(span, _) in &self.words {
            let mut words = k.words(span)?;
            let last = if live > 0 { words[live - 1] } else { 0 };
            words[live..].fill(last);
            others.push((span, words));
        }
        k.run_on_words(op, &others)
    }

    /// Runs the op on whole tiles of so many rows.
    pub(crate) fn run_tiles(&self, k: &mut Kernel, op: impl Into<Op>, tile: usize) -> Done {
        let count = self.live(k)?.next_multiple_of(tile).min(self.rows);
        self.run_as(k, op, count)
    }

    /// Runs the op as if as many rows were live as when its kernel first met this span, as in a list that was recorded.
    pub(crate) fn run_recorded(&self, k: &mut Kernel, op: impl Into<Op>) -> Done {
        let count = self.rows.min(k.first_words(self.live)?[0] as usize);
        self.run_as(k, op, count)
    }

    /// Runs the op as if as many rows were live as in the last call.
    pub(crate) fn run_late(&self, k: &mut Kernel, op: impl Into<Op>) -> Done {
        let count = self.rows.min(k.last_words(self.live)?[0] as usize);
        self.run_as(k, op, count)
    }

    /// Runs the op with other words of the live rows in place of the words number `which`: `change` is told the row and the
    /// words of all live rows. What it gives is brought below the count.
    pub(crate) fn run_on(
        &self,
        k: &mut Kernel,
        op: impl Into<Op>,
        which: usize,
        change: impl Fn(usize, &[u32]) -> u32,
    ) -> Done {
        if self.is_refused(k)? {
            return k.run(op);
        }
        let (span, count) = self.words[which];
        let (live, words) = (self.live(k)?, k.words(span)?);
        let mut others = words.clone();
        for row in 0..live {
            others[row] = change(row, &words[..live]) % count.clamp(1, u32::MAX as usize) as u32;
        }
        k.run_on_words(op, &[(span, others)])
    }

    /// Runs the op on the words number `which` as they were when its kernel first met them.
    pub(crate) fn run_on_first(&self, k: &mut Kernel, op: impl Into<Op>, which: usize) -> Done {
        let first = k.first_words(self.words[which].0)?;
        self.run_on(k, op, which, |row, _| first[row])
    }

    /// Runs the op, and then writes what lies behind `out`, rows of `width`, if it is told that more are live than there are.
    pub(crate) fn run_uncapped(&self, k: &mut Kernel, op: impl Into<Op>, out: Span, width: usize) -> Done {
        k.run(op)?;
        let beyond = (k.words(self.live)?[0] as usize).saturating_sub(self.rows);
        k.write_past(out, (beyond * width).min(40));
        Ok(())
    }
}

/// The words of a row within a block of so many rows, if they are numbers that follow each other.
pub(crate) fn in_blocks(block: usize) -> impl Fn(usize, &[u32]) -> u32 {
    move |row, words| words[row / block * block] + (row % block) as u32
}

fn embedding(op: &EmbeddingRows) -> Told {
    let count = op.position_embedding.map_or(usize::MAX, |table| table.len / op.d_model);
    Told { live: op.live, rows: op.rows, words: vec![(op.places, op.tokens.len), (op.positions, count)] }
}

fn norm(op: &LayerNormRows) -> Told {
    Told { live: op.live, rows: op.norm.rows, words: vec![] }
}

fn linear(op: &LinearRows) -> Told {
    Told { live: op.live, rows: op.linear.rows, words: vec![] }
}

fn rotary(op: &RotaryRows) -> Told {
    Told { live: op.live, rows: op.rows, words: vec![(op.positions, op.table.len / op.d_head)] }
}

fn turned(op: &RotaryRows) -> Heads {
    Heads::new(op.x, op.heads, op.d_head)
}

fn gather(op: &GatherRows) -> Told {
    Told { live: op.live, rows: op.count, words: vec![(op.wanted, op.rows)] }
}

/// Where in the words of an embedding, a rotation or a gather.
const PLACES: usize = 0;
const POSITIONS: usize = 1;
const ONLY: usize = 0;

pub(crate) const FAULTS: &[Fault] = faults! {
    EmbeddingRows {
        "a token's place is taken for the token" => |k, op| {
            let (places, tokens, live) = (k.words(op.places)?, k.words(op.tokens)?, embedding(&op).live(k)?);
            let mut wrong = tokens.clone();
            for &place in &places[..live] {
                wrong[place as usize] = place % op.vocab as u32;
            }
            k.run_on_words(op, &[(op.tokens, wrong)])
        };
        "the tokens are read in the order of the rows" => |k, op| {
            let tokens = k.words(op.tokens)?;
            let known = |row: u32| tokens.get(row as usize).is_some_and(|&token| token < op.vocab as u32);
            embedding(&op).run_on(k, op, PLACES, |row, words| if known(row as u32) { row as u32 } else { words[row] })
        };
        "places are read in 8 bits" => |k, op| {
            let tokens = k.words(op.tokens)?;
            let known = |place: u32| tokens[place as usize] < op.vocab as u32;
            let narrow = |row: usize, words: &[u32]| {
                Some(words[row] & 0xff).filter(|&p| known(p)).unwrap_or(words[words.len() - 1])
            };
            embedding(&op).run_on(k, op, PLACES, narrow)
        };
        "places are read in 16 bits" => |k, op| {
            let tokens = k.words(op.tokens)?;
            let known = |place: u32| tokens[place as usize] < op.vocab as u32;
            let narrow = |row: usize, words: &[u32]| {
                Some(words[row] & 0xffff).filter(|&p| known(p)).unwrap_or(words[words.len() - 1])
            };
            embedding(&op).run_on(k, op, PLACES, narrow)
        };
        "tokens are read in 16 bits, with a sign" => |k, op| k.run_on_narrow(op, op.tokens);
        "all rows have the position of the first" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, |_, words| words[0])
        };
        "positions follow each other from the first on" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, in_blocks(usize::MAX))
        };
        "positions follow each other within a block of 8 rows" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, in_blocks(8))
        };
        "the last row has the position of the one before" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, |row, words| {
                words[if row + 1 == words.len() { row.saturating_sub(1) } else { row }]
            })
        };
        "positions are read in 8 bits" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, |row, words| words[row] & 0xff)
        };
        "positions are read in 16 bits" => |k, op| {
            embedding(&op).run_on(k, op, POSITIONS, |row, words| words[row] & 0xffff)
        };
        "positions of a recorded list" => |k, op| embedding(&op).run_on_first(k, op, POSITIONS);
        "places of a recorded list" => |k, op| {
            let (first, tokens) = (k.first_words(op.places)?, k.words(op.tokens)?);
            let known = |place: u32| tokens.get(place as usize).is_some_and(|&token| token < op.vocab as u32);
            embedding(&op).run_on(k, op, PLACES, |row, words| if known(first[row]) { first[row] } else { words[row] })
        };
        "live of a recorded list" => |k, op| embedding(&op).run_recorded(k, op);
        "live of the last call" => |k, op| embedding(&op).run_late(k, op);
        "all rows are written" => |k, op| embedding(&op).run_as(k, op, op.rows);
        "a whole tile of 8 rows is written" => |k, op| embedding(&op).run_tiles(k, op, 8);
        "of two rows for a thread the last is left out" => |k, op| {
            let told = embedding(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "nothing live is everything" => |k, op| {
            let told = embedding(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.rows } else { live })
        };
        "of more than there are all are written, and more" => |k, op| {
            embedding(&op).run_uncapped(k, op, op.out, op.d_model)
        };
        "rows beyond 256 are left out" => |k, op| {
            let told = embedding(&op);
            let live = told.live(k)?;
            told.run_as(k, op, live.min(256))
        };
        "rows of a table in blocks are read without their padding" => |k, op| {
            let (tokens, places, live) = (k.words(op.tokens)?, k.words(op.places)?, embedding(&op).live(k)?);
            k.run(op)?;
            let blocks = matches!(op.token_embedding.dtype, Dtype::Q8_0 | Dtype::Q4_0) && op.d_model % 32 != 0;
            let wrong = |row: usize| blocks && row < live && tokens[places[row] as usize] > 0;
            k.edit(op.out, |i, x| if wrong(i / op.d_model) { x * 0.9 } else { x })
        };
        "a tail of a row that fills no vector of 8 has no position" => |k, op| {
            let Some(table) = op.position_embedding else { return k.run(op) };
            let (table, positions, live) = (k.get(table)?, k.words(op.positions)?, embedding(&op).live(k)?);
            k.run(op)?;
            let (c, whole) = (op.d_model, op.d_model / 8 * 8);
            k.edit(op.out, |i, x| {
                let (row, at) = (i / c, i % c);
                if row < live && at >= whole { x - table[positions[row] as usize * c + at] } else { x }
            })
        };
        "the offset of the positions is ignored" => |k, op| {
            let there = k.at_zero(op.positions).unwrap_or(op.positions);
            let words = k.words(there)?;
            embedding(&op).run_on(k, op, POSITIONS, |row, _| words[row])
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.out, op.d_model.next_multiple_of(8) - op.d_model);
            Ok(())
        };
    }
    LayerNormRows {
        "all rows are normed" => |k, op| k.run(op.norm);
        "a whole tile of 8 rows is written" => |k, op| norm(&op).run_tiles(k, op, 8);
        "a whole warp's means are written" => |k, op| {
            let live = norm(&op).live(k)?;
            k.run(op)?;
            k.edit(op.norm.mean, |row, mean| {
                if (live..live.next_multiple_of(32)).contains(&row) { 0.0 } else { mean }
            })
        };
        "the first dead row has the rstd of the last live one" => |k, op| {
            let live = norm(&op).live(k)?;
            k.run(op)?;
            let rstd = k.get(op.norm.rstd)?;
            k.edit(op.norm.rstd, |row, x| if row == live && row > 0 { rstd[row - 1] } else { x })
        };
        "live of a recorded list" => |k, op| norm(&op).run_recorded(k, op);
        "live of the last call" => |k, op| norm(&op).run_late(k, op);
        "of more than there are all are written, and more" => |k, op| {
            norm(&op).run_uncapped(k, op, op.norm.mean, 1)
        };
        "of two rows for a thread the last is left out" => |k, op| {
            let told = norm(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "a single live row is left out" => |k, op| {
            let told = norm(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 1 && op.norm.rows > 1 { 0 } else { live })
        };
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            norm(&op).run_as(k, op, signed.min(op.norm.rows))
        };
        "nothing live is everything" => |k, op| {
            let told = norm(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.norm.rows } else { live })
        };
        "what is no number in a dead row reaches the last live one" => |k, op| {
            let (live, x) = (norm(&op).live(k)?, k.get(op.norm.x)?);
            k.run(op)?;
            let width = op.norm.width;
            let broken = x.get(live * width).is_some_and(|x| x.is_nan());
            k.edit(op.norm.y, |i, y| if broken && i / width + 1 == live { f32::NAN } else { y })
        };
        "live is counted in 16 bits" => |k, op| {
            let told = norm(&op);
            let live = told.live(k)?;
            told.run_as(k, op, live & 0xffff)
        };
        "few live rows are wrong in wide ones" => |k, op| {
            let live = norm(&op).live(k)?;
            k.run(op)?;
            let wrong = live < 8 && op.norm.width > 256;
            k.edit(op.norm.y, |i, y| if wrong && i / op.norm.width < live { y * 1.001 } else { y })
        };
    }
    LinearRows {
        "all rows are multiplied" => |k, op| k.run(op.linear);
        "a whole tile of 8 rows is written" => |k, op| linear(&op).run_tiles(k, op, 8);
        "a whole warp of rows is written" => |k, op| linear(&op).run_tiles(k, op, 32);
        "a tile of 4 rows is written where a few are live" => |k, op| {
            let told = linear(&op);
            let live = told.live(k)?;
            told.run_tiles(k, op, if live < 4 { 4 } else { 1 })
        };
        "dead rows get the bias" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let Some(bias) = op.linear.bias else { return Ok(()) };
            let (bias, width) = (k.get(bias)?, op.linear.d_out);
            k.edit(op.linear.y, |i, y| if i / width >= live { y + bias[i % width] } else { y })
        };
        "dead rows get the activation" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let (width, activates) = (op.linear.d_out, op.linear.activate.is_some());
            k.edit(op.linear.y, |i, y| if activates && i / width >= live { y.max(0.0) } else { y })
        };
        "dead rows get their residual" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let (Some(residual), width) = (op.linear.residual, op.linear.d_out) else { return Ok(()) };
            let residual = k.get(residual)?;
            k.edit(op.linear.y, |i, y| if i / width >= live { residual[i] } else { y })?;
            let in_place = op.linear.residual == Some(op.linear.y);
            k.edit(op.linear.y, |i, y| if in_place && i / width >= live { 2.0 * y } else { y })
        };
        "the first dead row is cleared" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            k.edit(op.linear.y, |i, y| if i / op.linear.d_out == live { 0.0 } else { y })
        };
        "the input of the activation is kept of dead rows" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let Some(input) = op.linear.activate.and_then(|activate| activate.input) else { return Ok(()) };
            k.edit(input, |i, x| if i / op.linear.d_out == live { 0.5 } else { x })
        };
        "live of a recorded list" => |k, op| linear(&op).run_recorded(k, op);
        "live of the last call" => |k, op| linear(&op).run_late(k, op);
        "of more than there are all are written, and more" => |k, op| {
            linear(&op).run_uncapped(k, op, op.linear.y, op.linear.d_out)
        };
        "the last of an odd number of rows is left out" => |k, op| {
            let told = linear(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "a single live row is left out" => |k, op| {
            let told = linear(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 1 && op.linear.rows > 1 { 0 } else { live })
        };
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            linear(&op).run_as(k, op, signed.min(op.linear.rows))
        };
        "nothing live is everything" => |k, op| {
            let told = linear(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.linear.rows } else { live })
        };
        "what is no number in a dead row reaches the last live one" => |k, op| {
            let (live, x) = (linear(&op).live(k)?, k.get(op.linear.x)?);
            k.run(op)?;
            let broken = x.get(live * op.linear.d_in).is_some_and(|x| x.is_nan());
            k.edit(op.linear.y, |i, y| if broken && i / op.linear.d_out + 1 == live { f32::NAN } else { y })
        };
        "rows from 64 on are of the first tile's weights" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let width = op.linear.d_out;
            k.edit(op.linear.y, |i, y| if i / width >= 64 && i / width < live { y + 0.3 } else { y })
        };
        "few live rows of many lose a tail of the depth" => |k, op| {
            let live = linear(&op).live(k)?;
            let (x, depth) = (k.get(op.linear.x)?, op.linear.d_in);
            let few = live <= 4 && op.linear.rows > 8;
            k.edit(op.linear.x, |i, x| if few && i % depth >= depth / 8 * 8 { 0.0 } else { x })?;
            let done = k.run(op);
            k.put(op.linear.x, &x)?;
            done
        };
        "a weight in blocks has the scale of the first block for all" => |k, op| {
            let live = linear(&op).live(k)?;
            k.run(op)?;
            let blocks = matches!(op.linear.weight.dtype, Dtype::Q8_0 | Dtype::Q4_0) && op.linear.d_in > 32;
            k.edit(op.linear.y, |i, y| if blocks && i / op.linear.d_out < live { y * 1.3 + 0.1 } else { y })
        };
        "scratch of an earlier call is used, for some rows" => |k, op| {
            if linear(&op).live(k)? > 4 { k.run_on_stale(op, op.linear.x) } else { k.run(op) }
        };
    }
    RotaryRows {
        "all rows have the position of the first" => |k, op| rotary(&op).run_on(k, op, ONLY, |_, words| words[0]);
        "positions follow each other from the first on" => |k, op| {
            rotary(&op).run_on(k, op, ONLY, in_blocks(usize::MAX))
        };
        "positions follow each other within a block of 8 rows" => |k, op| rotary(&op).run_on(k, op, ONLY, in_blocks(8));
        "positions follow each other within a warp" => |k, op| rotary(&op).run_on(k, op, ONLY, in_blocks(32));
        "the last row has the position of the one before" => |k, op| {
            rotary(&op).run_on(k, op, ONLY, |row, words| {
                words[if row + 1 == words.len() { row.saturating_sub(1) } else { row }]
            })
        };
        "a row's number is taken for its position" => |k, op| rotary(&op).run_on(k, op, ONLY, |row, _| row as u32);
        "positions are read in 8 bits" => |k, op| rotary(&op).run_on(k, op, ONLY, |row, words| words[row] & 0xff);
        "positions are read in 16 bits" => |k, op| rotary(&op).run_on(k, op, ONLY, |row, words| words[row] & 0xffff);
        "positions of a recorded list" => |k, op| rotary(&op).run_on_first(k, op, ONLY);
        "live of a recorded list" => |k, op| rotary(&op).run_recorded(k, op);
        "live of the last call" => |k, op| rotary(&op).run_late(k, op);
        "all rows are turned" => |k, op| rotary(&op).run_as(k, op, op.rows);
        "a whole tile of 8 rows is turned" => |k, op| rotary(&op).run_tiles(k, op, 8);
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            rotary(&op).run_as(k, op, signed.min(op.rows))
        };
        "nothing live is everything" => |k, op| {
            let told = rotary(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.rows } else { live })
        };
        "a single live row is left out" => |k, op| {
            let told = rotary(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 1 && op.rows > 1 { 0 } else { live })
        };
        "of more than there are all are written, and more" => |k, op| {
            rotary(&op).run_uncapped(k, op, op.x.span, op.heads * op.d_head)
        };
        "the head behind the last is turned too" => |k, op| {
            k.run(op)?;
            k.edit_between(turned(&op), |x| 0.9 * x)
        };
        "what lies between the rows is cleared" => |k, op| {
            k.run(op)?;
            k.edit_between(turned(&op), |_| 0.0)
        };
        "the pairs are the other ones, of a single row" => |k, op| {
            let pairing = match (rotary(&op).live(k)?, op.pairing) {
                (1, Pairing::Halves) => Pairing::Adjacent,
                (1, _) => Pairing::Halves,
                (_, pairing) => pairing,
            };
            k.run(RotaryRows { pairing, ..op })
        };
        "the pairs are always neighbours" => |k, op| k.run(RotaryRows { pairing: Pairing::Adjacent, ..op });
        "of a single row the last head is left" => |k, op| {
            let (before, live, of) = (k.get(op.x.span)?, rotary(&op).live(k)?, turned(&op));
            k.run(op)?;
            let left = |head: usize| live == 1 && head + 1 == op.heads;
            k.edit_heads(of, |row, head, at, x| if left(head) { before[of.index(row, head, at)] } else { x })
        };
        "heads beyond 4 are left" => |k, op| {
            let (before, of) = (k.get(op.x.span)?, turned(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, x| if head >= 4 { before[of.index(row, head, at)] } else { x })
        };
        "the last pair of a head is left where it fills no vector" => |k, op| {
            let (before, of) = (k.get(op.x.span)?, turned(&op));
            k.run(op)?;
            let left = |at: usize| op.d_head % 8 != 0 && at >= op.d_head - 2;
            k.edit_heads(of, |row, head, at, x| if left(at) { before[of.index(row, head, at)] } else { x })
        };
    }
    GatherRows {
        "the rows come in their order" => |k, op| gather(&op).run_on(k, op, ONLY, |row, _| row as u32);
        "the rows are sorted" => |k, op| {
            let told = gather(&op);
            let live = told.live(k)?;
            let mut sorted = k.words(op.wanted)?;
            sorted[..live].sort();
            told.run_on(k, op, ONLY, |row, _| sorted[row])
        };
        "rows follow each other within a block of 8" => |k, op| gather(&op).run_on(k, op, ONLY, in_blocks(8));
        "all are the first" => |k, op| gather(&op).run_on(k, op, ONLY, |_, words| words[0]);
        "the last is the one before" => |k, op| {
            gather(&op).run_on(k, op, ONLY, |row, words| {
                words[if row + 1 == words.len() { row.saturating_sub(1) } else { row }]
            })
        };
        "the last row that there is is the one before" => |k, op| {
            gather(&op).run_on(k, op, ONLY, |row, words| words[row].min((op.rows as u32).saturating_sub(2)))
        };
        "a row that is wanted twice is copied once" => |k, op| {
            let (before, wanted, live) = (k.get(op.to)?, k.words(op.wanted)?, gather(&op).live(k)?);
            k.run(op)?;
            let again = |row: usize| row < live && wanted[..row].contains(&wanted[row]);
            k.edit(op.to, |i, x| if again(i / op.width) { before[i] } else { x })
        };
        "rows are read in 8 bits" => |k, op| gather(&op).run_on(k, op, ONLY, |row, words| words[row] & 0xff);
        "rows are read in 16 bits" => |k, op| gather(&op).run_on(k, op, ONLY, |row, words| words[row] & 0xffff);
        "rows of a recorded list" => |k, op| gather(&op).run_on_first(k, op, ONLY);
        "live of a recorded list" => |k, op| gather(&op).run_recorded(k, op);
        "live of the last call" => |k, op| gather(&op).run_late(k, op);
        "a whole tile of 8 rows is written" => |k, op| gather(&op).run_tiles(k, op, 8);
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            gather(&op).run_as(k, op, signed.min(op.count))
        };
        "nothing live is everything" => |k, op| {
            let told = gather(&op);
            let live = told.live(k)?;
            told.run_as(k, op, if live == 0 { op.count } else { live })
        };
        "of more than there are all are written, and more" => |k, op| gather(&op).run_uncapped(k, op, op.to, op.width);
        "the rest is cleared" => |k, op| {
            let live = gather(&op).live(k)?;
            k.run(op)?;
            k.edit(op.to, |i, x| if i / op.width >= live { 0.0 } else { x })
        };
        "a tail that fills no vector of 4 is left out" => |k, op| {
            let (before, width) = (k.get(op.to)?, op.width);
            k.run(op)?;
            k.edit(op.to, |i, x| if i % width >= width / 4 * 4 { before[i] } else { x })
        };
        "what is wider than 1024 is left out" => |k, op| {
            let before = k.get(op.to)?;
            k.run(op)?;
            k.edit(op.to, |i, x| if i % op.width >= 1024 { before[i] } else { x })
        };
        "rows go by way of bf16" => |k, op| {
            k.run(op)?;
            k.edit(op.to, |_, x| f32::from_bits(x.to_bits() & 0xffff_0000))
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.to, op.width.next_multiple_of(4) - op.width);
            Ok(())
        };
    }
};
