//! Sequences side by side, each in its slot of one cache, and the passes that run what they were fed.

use alloc::vec::Vec;

use super::window_length;
use crate::backend::{Backend, submit};
use crate::error::Error;
use crate::memory::{Dtype, InvalidOp, zeros};
use crate::model::{Model, Pass, Workspace, stage};
use crate::plan::{LiveRows, Plan};
use crate::real::Real;

/// A pass has one of these numbers of rows, or as many as there is room for: the least that is enough. So there are few
/// programs, however the sequences come and go.
const ROWS: [usize; 3] = [1, 8, 64];

/// What is known of the sequence in a slot.
#[derive(Debug)]
struct Sequence {
    /// Its latest tokens, of which the last `seen` are the window: at least a context of them, at most two.
    history: Vec<u32>,
    seen: usize,
    /// How many of the window's positions are in the cache; the others wait for a pass.
    cached: usize,
    /// Where in the slot's ring of tokens on the device the next one goes.
    end: usize,
}

impl Sequence {
    fn window(&self) -> &[u32] {
        &self.history[self.history.len() - self.seen..]
    }

    /// How many rows wait.
    fn waiting(&self) -> usize {
        self.seen - self.cached
    }

    /// How many of them run at once, where a pass takes at most `most`. Pieces end at multiples of that: where a window is cut
    /// depends on itself and not on its neighbours.
    fn piece(&self, most: usize) -> usize {
        self.waiting().min(most - self.cached % most)
    }

    fn reset(&mut self) {
        self.history.clear();
        (self.seen, self.cached, self.end) = (0, 0, 0);
    }

    /// Adds to the history, and drops what is oldest: half of it at once, so that a token is rarely moved.
    fn remember(&mut self, tokens: &[u32], capacity: usize) {
        if self.history.len() + tokens.len() > capacity {
            let kept = (capacity - tokens.len()).min(capacity / 2);
            self.history.drain(..self.history.len() - kept);
        }
        self.history.extend_from_slice(tokens);
    }
}

/// Sequences in the slots of one cache.
#[derive(Debug)]
pub(super) struct Slots<B: Backend> {
    model: Model<B>,
    workspace: Workspace<B>,
    sequences: Vec<Sequence>,
    /// What a pass is told, as [`LiveRows`] has it.
    words: Vec<u32>,
    staging: Vec<u8>,
    /// The slots whose logits a pass gives, in order.
    wanted: Vec<usize>,
    logits: Vec<u8>,
}

impl<B: Backend> Slots<B> {
    /// `count` slots, of which at most `rows` tokens run at once.
    pub(super) fn new(model: &Model<B>, count: usize, rows: usize) -> Result<Self, Error<B::Error>> {
        let config = model.config();
        let plan = Plan::decoding(config, B::Elem::DTYPE, count, rows)?;
        // As many tokens as the device keeps of each: twice the context.
        let memory = plan.tokens.len / count;
        let no_room = |len: usize, size: usize| {
            let bytes = len.saturating_mul(size);
            move |_| InvalidOp::HostMemory { operand: "history", bytes }
        };
        let mut sequences = Vec::new();
        sequences.try_reserve_exact(count).map_err(no_room(count, size_of::<Sequence>()))?;
        for _ in 0..count {
            let mut history = Vec::new();
            history.try_reserve_exact(memory).map_err(no_room(memory, 4))?;
            sequences.push(Sequence { history, seen: 0, cached: 0, end: 0 });
        }
        let words = zeros("rows", plan.rows.len)?;
        let staging = zeros("rows", plan.rows.len.saturating_mul(4))?;
        let wanted = plan.wanted(plan.time);
        let logits = wanted.saturating_mul(config.vocab_size).saturating_mul(size_of::<B::Elem>());
        let logits = zeros("logits", logits)?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(wanted).map_err(no_room(wanted, size_of::<usize>()))?;
        let workspace = Workspace::inference(model, plan)?;
        let model = model.clone();
        Ok(Slots { model, workspace, sequences, words, staging, wanted: slots, logits })
    }

    pub(super) fn model(&self) -> &Model<B> {
        &self.model
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.workspace.plan
    }

    pub(super) fn window(&self, slot: usize) -> &[u32] {
        self.sequences[slot].window()
    }

    pub(super) fn recent(&self, slot: usize) -> &[u32] {
        &self.sequences[slot].history
    }

    /// How many tokens the device keeps of each sequence, one behind the other in a ring.
    fn ring(&self) -> usize {
        self.workspace.plan.tokens.len / self.sequences.len()
    }

    /// The slot is empty from here on. What its cache holds is never read.
    pub(super) fn reset(&mut self, slot: usize) {
        self.sequences[slot].reset();
    }

    /// Adds `tokens` to the sequence in `slot`, to run with the next [`run`](Slots::run). Where the window was cut, all of it
    /// is to run.
    pub(super) fn append(&mut self, slot: usize, tokens: &[u32]) -> Result<(), B::Error> {
        let context = self.model.config().context;
        let rings = self.workspace.plan.tokens.on(self.workspace.buffers.state, Dtype::U32);
        let capacity = self.ring();
        let sequence = &mut self.sequences[slot];
        // A window that is not full has all its tokens in the cache or waiting, so it counts on from its own length.
        let one_by_one = window_length(sequence.seen + tokens.len(), context);
        let length = one_by_one.max(tokens.len().min(context));
        if length != sequence.seen + tokens.len() {
            sequence.cached = 0;
        }
        let mut kept = &tokens[tokens.len().saturating_sub(capacity)..];
        sequence.remember(kept, capacity);
        sequence.seen = length;
        let mut backend = self.model.device().lock();
        while !kept.is_empty() {
            let most = (capacity - sequence.end).min(self.staging.len() / 4);
            let (piece, rest) = kept.split_at(most.min(kept.len()));
            let to = rings.slice(slot * capacity + sequence.end, piece.len());
            backend.write(to, stage(piece, &mut self.staging))?;
            sequence.end = (sequence.end + piece.len()) % capacity;
            kept = rest;
        }
        Ok(())
    }

    /// Runs all that was appended, and gives `take` the slot and the logits, as bytes, of each sequence that had something to
    /// run.
    pub(super) fn run(&mut self, mut take: impl FnMut(usize, &[u8])) -> Result<(), B::Error> {
        let size = self.model.config().vocab_size * size_of::<B::Elem>();
        let logits = self.workspace.logits();
        while let Some(rows) = self.next_rows() {
            let live = LiveRows::words(rows, self.workspace.plan.wanted(rows));
            let words = self.workspace.plan.rows.on(self.workspace.buffers.state, Dtype::U32).first(live);
            let pass = Pass { time: rows, ..self.workspace.pass(&self.model) };
            let mut backend = self.model.device().lock();
            backend.write(words, stage(&self.words[..live], &mut self.staging))?;
            submit(&mut *backend, |sink| pass.infer(sink))?;
            if !self.wanted.is_empty() {
                let bytes = &mut self.logits[..self.wanted.len() * size];
                backend.read(logits.first(self.wanted.len() * self.model.config().vocab_size), bytes)?;
                drop(backend);
                for (&slot, logits) in self.wanted.iter().zip(bytes.chunks_exact(size)) {
                    take(slot, logits);
                }
            }
        }
        Ok(())
    }

    /// Lists the rows of the next pass in `words`, in the order of the slots, and in `wanted` the slots of which they are the
    /// last; `None` if nothing waits. The result is how many rows the pass has, dead ones included.
    fn next_rows(&mut self) -> Option<usize> {
        let (most, capacity) = (self.workspace.plan.time, self.ring());
        // A piece goes with others only if it fits beside them as it is.
        let pieces = self.sequences.iter().map(|sequence| sequence.piece(most));
        let live = pieces.fold(0, |live, piece| if live + piece <= most { live + piece } else { live });
        let rows = ROWS.into_iter().find(|&rows| rows >= live).unwrap_or(most).min(most);
        self.wanted.clear();
        let mut row = 0;
        for (slot, sequence) in self.sequences.iter_mut().enumerate() {
            let count = sequence.piece(most);
            if count == 0 || row + count > most {
                continue;
            }
            for _ in 0..count {
                let position = sequence.cached;
                let place = (sequence.end + capacity - (sequence.seen - position)) % capacity;
                for (list, word) in [slot * capacity + place, slot, position].into_iter().enumerate() {
                    self.words[2 + list * rows + row] = word as u32;
                }
                sequence.cached += 1;
                row += 1;
            }
            if sequence.waiting() == 0 {
                self.words[2 + 3 * rows + self.wanted.len()] = row as u32 - 1;
                self.wanted.push(slot);
            }
        }
        self.words[0] = live as u32;
        self.words[1] = self.wanted.len() as u32;
        (live > 0).then_some(rows)
    }
}
