//! [`Batch`]: sequences side by side.

use alloc::vec::Vec;

use super::slots::{Choice, Outcome, Slots};
use crate::backend::{Backend, from_bytes};
use crate::error::Error;
use crate::memory::{Buffer, Dtype, InvalidOp, zeros};
use crate::model::{Model, check_tokens};
use crate::plan::Plan;
use crate::real::Real;
use crate::reference::weights::weight_at;
use crate::rng::{Rng, Stream};
use crate::sample::{SampleConfig, SampleError};

/// Sequences side by side on one model, which join and leave when they like: a pass takes what waits of several of them,
/// prompts and single tokens alike. Reading the weights costs as much for many rows as for one, so together they are faster
/// than one after the other. A long prompt goes through in pieces, one in each [`step`](Batch::step), so its neighbours go
/// on meanwhile.
///
/// Whatever its neighbours do, a sequence has the numbers that it would have alone, as far as the backend gives the same for
/// few rows as for many: within rounding, and bit for bit where the same kernel serves both.
///
/// ```
/// use minigpt_core::{Batch, GptConfig, Model, Reference, SampleConfig};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let mut batch = Batch::new(&model, 2, 8)?;
///
/// let (first, second) = (batch.join().ok_or("no room")?, batch.join().ok_or("no room")?);
/// batch.feed(first, &[0, 1, 2])?;
/// batch.feed(second, &[3])?;
/// batch.generate(first, SampleConfig { seed: 7, ..SampleConfig::default() }, &[], 4)?;
/// batch.generate(second, SampleConfig::greedy(), &[], 2)?;
/// let mut texts = [vec![], vec![]];
/// while batch.is_generating() {
///     for chosen in batch.step()? {
///         texts[usize::from(chosen.sequence == second)].push(chosen.token?);
///     }
///     // Sequences that have ended make room for others.
///     batch.leave_ended();
/// }
/// assert_eq!([texts[0].len(), texts[1].len()], [4, 2]);
/// assert!(batch.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch<B: Backend> {
    slots: Slots<B>,
    members: Vec<Member>,
    /// How many sequences have joined so far.
    joined: u64,
    /// (slots, V).
    logits: Vec<B::Elem>,
    chosen: Vec<Chosen>,
}

/// The occupant of a slot.
#[derive(Debug, Default)]
struct Member {
    /// The number with which it joined; `None` if the slot is free.
    serial: Option<u64>,
    /// What it ends at, if it generates.
    stop: Vec<u32>,
    /// How many tokens it is to have yet.
    left: usize,
}

/// A sequence of a [`Batch`], until it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// The numbers of its batch.
    batch: (usize, Buffer),
    slot: usize,
    serial: u64,
}

/// A token that was chosen for a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Chosen {
    /// The sequence.
    pub sequence: Sequence,
    /// The token; or why there is none: the model's numbers are broken.
    pub token: Result<u32, SampleError>,
    /// Whether the sequence generates no further: the token is one to stop at, or the last that was asked for, or there is
    /// none.
    pub ended: bool,
}

impl<B: Backend> Batch<B> {
    /// Room for `slots` sequences. Up to `rows` tokens of theirs go through the model at once, and that is also the piece
    /// of a long prompt that goes through between two tokens of its neighbours. With more, prompts are through sooner; with
    /// fewer, neighbours wait less, and it takes less memory.
    ///
    /// # Errors
    /// If the caches and the activations do not fit in memory, or one of the two is 0.
    pub fn new(model: &Model<B>, slots: usize, rows: usize) -> Result<Self, Error<B::Error>> {
        Self::with_cache(model, slots, rows, model.precision().activations(B::Elem::DTYPE))
    }

    /// As [`new`](Batch::new), with caches that store keys and values [as `cache`](super::Decoder::with_cache).
    ///
    /// # Errors
    /// As [`new`](Batch::new), or if `cache` is neither the backend's number type nor f16 nor bf16.
    pub fn with_cache(
        model: &Model<B>,
        slots: usize,
        rows: usize,
        cache: Dtype,
    ) -> Result<Self, Error<B::Error>> {
        let vocab = model.config().vocab_size;
        let no_room = |bytes: usize| move |_| InvalidOp::HostMemory { operand: "slots", bytes };
        let (mut members, mut chosen) = (Vec::new(), Vec::new());
        members.try_reserve_exact(slots).map_err(no_room(slots.saturating_mul(size_of::<Member>())))?;
        members.resize_with(slots, Member::default);
        chosen.try_reserve_exact(slots).map_err(no_room(slots.saturating_mul(size_of::<Chosen>())))?;
        let logits = zeros("logits", slots.saturating_mul(vocab))?;
        let slots = Slots::new(model, slots, rows, cache, true)?;
        Ok(Batch { slots, members, joined: 0, logits, chosen })
    }

    /// The model that it was made for.
    pub fn model(&self) -> &Model<B> {
        self.slots.model()
    }

    /// The plan of its buffers.
    pub fn plan(&self) -> &Plan {
        self.slots.plan()
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.members.iter().filter(|member| member.serial.is_some()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A new sequence, which has seen nothing yet; `None` if all slots are taken.
    pub fn join(&mut self) -> Option<Sequence> {
        let slot = self.members.iter().position(|member| member.serial.is_none())?;
        let serial = self.joined;
        self.joined += 1;
        self.members[slot] = Member { serial: Some(serial), ..Member::default() };
        self.slots.reset(slot);
        self.logits_of(slot).fill(B::Elem::default());
        Some(Sequence { batch: self.slots.number(), slot, serial })
    }

    /// Makes room for another sequence.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn leave(&mut self, sequence: Sequence) -> Result<(), Error<B::Error>> {
        let slot = self.slot(sequence)?;
        self.slots.reset(slot);
        self.members[slot] = Member::default();
        Ok(())
    }

    /// Begins a sequence with given vectors, (P, C), of a model with a [prefix](crate::GptConfig::prefix): what it had is
    /// forgotten, and it generates no more. They [wait](Batch::waiting) for the next [`step`](Batch::step).
    ///
    /// # Errors
    /// [`Error::PrefixLength`] or [`Error::NoSequence`]: then all is as it was. If the backend fails: then the sequence is
    /// as new.
    pub fn begin_with(&mut self, sequence: Sequence, vectors: &[B::Elem]) -> Result<(), Error<B::Error>> {
        let slot = self.slot(sequence)?;
        let begun = self.slots.begin_with(slot, vectors);
        if !matches!(begun, Err(Error::PrefixLength { .. })) {
            self.members[slot].left = 0;
            self.logits_of(slot).fill(B::Elem::default());
        }
        begun
    }

    /// Adds `tokens` to a sequence. They [wait](Batch::waiting) for the next [`step`](Batch::step), or for several if they are
    /// many. A window that overflows is cut as [`Decoder::feed`](super::Decoder::feed) cuts it.
    ///
    /// # Errors
    /// If `tokens` is empty or has one that is not in the vocabulary, [`Error::NoPrefix`] if the sequence was not
    /// [begun](Batch::begin_with) with the model's, or [`Error::NoSequence`]: then all is as it was. If the backend fails:
    /// then all sequences are as new.
    pub fn feed(&mut self, sequence: Sequence, tokens: &[u32]) -> Result<(), Error<B::Error>> {
        let slot = self.slot(sequence)?;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        check_tokens(tokens, self.model().config().vocab_size)?;
        self.slots.check_prefix(slot)?;
        let result = self.slots.append(slot, tokens);
        self.or_reset(result)
    }

    /// From here on each [`step`](Batch::step) that gets through what waits of the sequence chooses a token for it, by
    /// `config`, until it has had `max_tokens` of them or one that is in `stop`. If it generates already, this takes the
    /// place of what it was told before; a `max_tokens` of 0 ends it.
    ///
    /// Each call draws anew from the seed: sequences that shall differ need seeds that do, and so does one that goes on.
    /// The same seed chooses as it does for a [`Sampler`](crate::Sampler), but for rounding: a backend may choose in its own
    /// number type, and then tokens differ where the choice hangs on the last digits.
    ///
    /// # Errors
    /// If `config` has a number that is out of its range, a token of `stop` is not in the vocabulary, or there is no memory for
    /// them; [`Error::EmptyPrompt`] if the sequence was not fed, [`Error::NoPrefix`] if the model has a prefix that it was not
    /// begun with, and [`Error::NoSequence`].
    pub fn generate(
        &mut self,
        sequence: Sequence,
        config: SampleConfig,
        stop: &[u32],
        max_tokens: usize,
    ) -> Result<(), Error<B::Error>> {
        let slot = self.slot(sequence)?;
        config.validate()?;
        self.slots.check_prefix(slot)?;
        if self.slots.is_empty(slot) {
            return Err(Error::EmptyPrompt);
        }
        check_tokens(stop, self.model().config().vocab_size)?;
        let mut kept = Vec::new();
        let bytes = stop.len().saturating_mul(4);
        kept.try_reserve_exact(stop.len()).map_err(|_| InvalidOp::HostMemory { operand: "stop", bytes })?;
        kept.extend_from_slice(stop);
        let rng = Rng::new(config.seed, Stream::Sample);
        *self.slots.choice(slot) = (max_tokens > 0).then_some(Choice { config, rng });
        let member = &mut self.members[slot];
        (member.stop, member.left) = (kept, max_tokens);
        if max_tokens > 0 {
            self.slots.run_again(slot);
        }
        Ok(())
    }

    /// Whether this sequence generates.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn generates(&self, sequence: Sequence) -> Result<bool, Error<B::Error>> {
        self.slot(sequence).map(|slot| self.members[slot].left > 0)
    }

    /// Whether any sequence generates.
    pub fn is_generating(&self) -> bool {
        self.members.iter().any(|member| member.left > 0)
    }

    /// Makes room of the sequences that ended in the last [`step`](Batch::step).
    pub fn leave_ended(&mut self) {
        for Chosen { sequence, ended, .. } in self.chosen.drain(..) {
            let is_here = self.members[sequence.slot].serial == Some(sequence.serial);
            if ended && is_here {
                self.slots.reset(sequence.slot);
                self.members[sequence.slot] = Member::default();
            }
        }
    }

    /// Takes each sequence further by as many of its [waiting](Batch::waiting) tokens as go through the model at once, and no
    /// more. So neighbours need not wait for the whole of a long prompt, and every sequence moves on in every step.
    ///
    /// Of a sequence that is through then, with nothing left that waits, the [logits](Batch::logits) are there; or if it
    /// [generates](Batch::generate), its next token, which waits in turn. A sequence that generates has no token in a step that
    /// leaves some of its prompt waiting, or of its window, which runs anew after it was cut. Who feeds as many tokens as go
    /// through at once before each step gets no logits while others wait from before: step again until none do.
    ///
    /// # Errors
    /// If the backend fails: then all sequences are as new.
    pub fn step(&mut self) -> Result<&[Chosen], Error<B::Error>> {
        self.chosen.clear();
        let (batch, vocab) = (self.slots.number(), self.model().config().vocab_size);
        let Batch { slots, members, logits, chosen, .. } = self;
        let dtype = slots.plan().activation_dtype();
        let mut keep =
            |slot: usize, bytes: &[u8]| from_bytes(&mut logits[slot * vocab..][..vocab], dtype, bytes);
        let result = slots.run(|outcome| match outcome {
            Outcome::Logits(slot, bytes) => keep(slot, bytes),
            Outcome::Chosen(slot, token) => {
                let member = &mut members[slot];
                let Some(serial) = member.serial else { return };
                let ended = member.left <= 1 || member.stop.contains(&token);
                member.left = if ended { 0 } else { member.left - 1 };
                chosen.push(Chosen { sequence: Sequence { batch, slot, serial }, token: Ok(token), ended });
            }
            Outcome::Broken(slot, bytes) => {
                let Some(serial) = members[slot].serial else { return };
                keep(slot, bytes);
                members[slot].left = 0;
                let token = Err(what_is_broken(bytes, dtype));
                chosen.push(Chosen { sequence: Sequence { batch, slot, serial }, token, ended: true });
            }
        });
        self.or_reset(result)?;
        for chosen in &self.chosen {
            if let Ok(token) = chosen.token {
                self.slots.adopt(chosen.sequence.slot, token);
            }
            if chosen.ended {
                *self.slots.choice(chosen.sequence.slot) = None;
            }
        }
        Ok(&self.chosen)
    }

    /// How many tokens of a sequence have not run yet: none once its [logits](Batch::logits) are there. The token that was
    /// chosen last is among them, and all of a window that was cut.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn waiting(&self, sequence: Sequence) -> Result<usize, Error<B::Error>> {
        self.slot(sequence).map(|slot| self.slots.waiting(slot))
    }

    /// The logits of the next token of a sequence that does not generate: (V). They are there once nothing of it
    /// [waits](Batch::waiting); until then they are those of before, and at first all zero.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn logits(&self, sequence: Sequence) -> Result<&[B::Elem], Error<B::Error>> {
        let vocab = self.model().config().vocab_size;
        self.slot(sequence).map(|slot| &self.logits[slot * vocab..][..vocab])
    }

    /// The tokens that the next prediction of a sequence rests on.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn window(&self, sequence: Sequence) -> Result<&[u32], Error<B::Error>> {
        self.slot(sequence).map(|slot| self.slots.window(slot))
    }

    /// The latest tokens of a sequence, the last one last: at least a context of them, if it has had so many.
    ///
    /// # Errors
    /// [`Error::NoSequence`].
    pub fn recent(&self, sequence: Sequence) -> Result<&[u32], Error<B::Error>> {
        self.slot(sequence).map(|slot| self.slots.recent(slot))
    }

    fn slot(&self, sequence: Sequence) -> Result<usize, Error<B::Error>> {
        let member = self.members.get(sequence.slot);
        let is_here = sequence.batch == self.slots.number()
            && member.is_some_and(|member| member.serial == Some(sequence.serial));
        if is_here { Ok(sequence.slot) } else { Err(Error::NoSequence) }
    }

    fn logits_of(&mut self, slot: usize) -> &mut [B::Elem] {
        let vocab = self.model().config().vocab_size;
        &mut self.logits[slot * vocab..][..vocab]
    }

    /// After a failure the contents of the caches are unknown.
    fn or_reset<T>(&mut self, result: Result<T, B::Error>) -> Result<T, Error<B::Error>> {
        if result.is_err() {
            self.chosen.clear();
            self.logits.fill(B::Elem::default());
            for (slot, member) in self.members.iter_mut().enumerate() {
                self.slots.reset(slot);
                member.left = 0;
            }
        }
        result.map_err(Error::Backend)
    }
}

/// Why no token can be chosen by these logits.
fn what_is_broken(bytes: &[u8], dtype: Dtype) -> SampleError {
    let mut logits = (0..bytes.len() / dtype.unit().1).map(|i| weight_at(bytes, dtype, i));
    match logits.by_ref().enumerate().find(|(_, logit)| logit.is_nan() || *logit == f64::INFINITY) {
        Some((token, logit)) => SampleError::Logit { token: token as u32, logit },
        None => SampleError::NoCandidate,
    }
}
