//! Texts side by side, each in its slot of one cache, and the passes that run what they were fed.

use alloc::vec::Vec;

use super::window_length;
use crate::backend::{Backend, Replay, submit, write_elems};
use crate::config::{GptConfig, Mask};
use crate::error::Error;
use crate::memory::{Buffer, Dtype, InvalidOp, zeros};
use crate::model::{Model, Pass, Workspace, stage};
use crate::op::SampleRow;
use crate::plan::{LiveWords, Plan};
use crate::real::Real;
use crate::rng::Rng;
use crate::sample::SampleConfig;

/// A pass has one of these numbers of rows, or as many as there is room for: the least that is enough. So there are few
/// programs, however texts come and go.
const ROWS: [usize; 3] = [1, 8, 64];

/// What is known of the text in a slot.
#[derive(Debug)]
struct Text {
    /// Its latest tokens, of which the last `seen` are the window: at least a context of them, at most two.
    history: Vec<u32>,
    seen: usize,
    /// How many given vectors stand before the window.
    prefix: usize,
    /// How many positions of prefix and window are in the cache; the others wait for a pass.
    cached: usize,
    /// How many of those that wait are yet to go through in this [`run`](Slots::run).
    due: usize,
    /// Where in the slot's ring of tokens on the device the next one goes.
    end: usize,
    /// How the device chooses its next tokens, if it does.
    choice: Option<Choice>,
}

/// How tokens are chosen, and the numbers that decide.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) config: SampleConfig,
    pub(super) rng: Rng,
}

impl Text {
    fn window(&self) -> &[u32] {
        &self.history[self.history.len() - self.seen..]
    }

    /// How many positions it has.
    fn len(&self) -> usize {
        self.prefix + self.seen
    }

    /// How many rows wait.
    fn waiting(&self) -> usize {
        self.len() - self.cached
    }

    /// How many of those that are due run at once, where a pass takes at most `most`. Pieces end at multiples of that: where a
    /// window is cut depends on itself and not on its neighbours.
    fn piece(&self, most: usize) -> usize {
        self.due.min(most - self.cached % most)
    }

    fn reset(&mut self) {
        self.history.clear();
        (self.seen, self.prefix, self.cached, self.due, self.end, self.choice) = (0, 0, 0, 0, 0, None);
    }

    /// Adds `tokens`, which wait then. Where the window has to be cut, all of it waits, and so does what sees the new ones.
    fn append(&mut self, tokens: &[u32], config: &GptConfig, ring: usize) {
        let context = config.context - self.prefix;
        // A window that is not full has all its tokens in the cache or waiting, so it counts on from its own length.
        let one_by_one = window_length(self.seen + tokens.len(), context);
        let length = one_by_one.max(tokens.len().min(context));
        if config.mask == Mask::None {
            self.cached = 0;
        } else if length != self.seen + tokens.len() {
            // No prefix sees what comes behind it.
            self.cached = self.cached.min(self.prefix);
        }
        self.seen = length;
        let kept = &tokens[tokens.len().saturating_sub(ring)..];
        if self.history.len() + kept.len() > ring {
            // Half of it is dropped at once, so that a token is rarely moved.
            let rest = (ring - kept.len()).min(ring / 2);
            self.history.drain(..self.history.len() - rest);
        }
        self.history.extend_from_slice(kept);
        self.end = (self.end + kept.len()) % ring;
    }
}

/// What a pass has left of a text, whose slot comes first.
#[derive(Debug)]
pub(super) enum Outcome<'a> {
    /// The logits, as bytes.
    Logits(usize, &'a [u8]),
    /// The token that the device chose.
    Chosen(usize, u32),
    /// The logits by which it could choose none.
    Broken(usize, &'a [u8]),
}

/// Texts in the slots of one cache.
#[derive(Debug)]
pub(super) struct Slots<B: Backend> {
    /// One for each of the [`ROWS`] that there is room for, and one for all rows, if the backend keeps programs: forgotten
    /// before the memory that they speak of is given back.
    programs: Vec<Replay<B>>,
    model: Model<B>,
    workspace: Workspace<B>,
    texts: Vec<Text>,
    /// What a pass is told, as [`LiveRows`](crate::plan::LiveRows) has it.
    words: Vec<u32>,
    staging: Vec<u8>,
    /// The slots whose logits a pass gives: first those for which the device chooses a token.
    wanted: Vec<usize>,
    choosing: usize,
    logits: Vec<u8>,
}

impl<B: Backend> Slots<B> {
    /// `count` slots, of which at most `rows` tokens run at once, and whose caches store numbers as `cache`; the device may
    /// be asked to choose tokens if it `chooses`.
    pub(super) fn new(
        model: &Model<B>,
        count: usize,
        rows: usize,
        cache: Dtype,
        chooses: bool,
    ) -> Result<Self, Error<B::Error>> {
        let (config, elem) = (model.config(), B::Elem::DTYPE);
        if cache != elem && !matches!(cache, Dtype::F16 | Dtype::Bf16) {
            return Err(Error::Cache { cache, elem });
        }
        let plan = Plan::decoding_in(config, elem, count, rows, cache, model.precision())?;
        // As many tokens as the device keeps of each: twice the context.
        let ring = plan.tokens.len / count;
        let no_room = |len: usize, size: usize| {
            let bytes = len.saturating_mul(size);
            move |_| InvalidOp::HostMemory { operand: "history", bytes }
        };
        let mut texts = Vec::new();
        texts.try_reserve_exact(count).map_err(no_room(count, size_of::<Text>()))?;
        for _ in 0..count {
            let mut history = Vec::new();
            history.try_reserve_exact(ring).map_err(no_room(ring, 4))?;
            texts.push(Text { history, seen: 0, prefix: 0, cached: 0, due: 0, end: 0, choice: None });
        }
        let words = zeros("rows", plan.rows.len)?;
        let staging = zeros("rows", plan.rows.len.saturating_mul(4))?;
        let most = plan.wanted(plan.time);
        let logits = most.saturating_mul(config.vocab_size).saturating_mul(plan.activation_dtype().unit().1);
        let logits = zeros("logits", logits)?;
        let mut wanted = Vec::new();
        wanted.try_reserve_exact(most).map_err(no_room(most, size_of::<usize>()))?;
        let workspace = Workspace::decoding(model, plan, chooses)?;
        let model = model.clone();
        let mut programs = Vec::new();
        let most = workspace.plan.time;
        let keeps = model.device().lock().keeps_programs();
        let numbers = ROWS.into_iter().filter(|&rows| rows < most).chain([most]).filter(|_| keeps);
        let count = numbers.clone().count();
        programs.try_reserve_exact(count).map_err(no_room(count, size_of::<Replay<B>>()))?;
        for rows in numbers {
            let pass = Pass { time: rows, ..workspace.pass(&model) };
            programs.push(Replay::new(model.device(), |sink| pass.infer(sink)).map_err(Error::Backend)?);
        }
        Ok(Slots { model, workspace, programs, texts, words, staging, wanted, choosing: 0, logits })
    }

    pub(super) fn model(&self) -> &Model<B> {
        &self.model
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.workspace.plan
    }

    /// Two numbers that no other slots have: the device's, and that of a buffer on it.
    pub(super) fn number(&self) -> (usize, Buffer) {
        (self.model.device().number(), self.workspace.buffers.state)
    }

    pub(super) fn window(&self, slot: usize) -> &[u32] {
        self.texts[slot].window()
    }

    pub(super) fn recent(&self, slot: usize) -> &[u32] {
        &self.texts[slot].history
    }

    /// How many tokens of the text in `slot` have not run yet.
    pub(super) fn waiting(&self, slot: usize) -> usize {
        self.texts[slot].waiting()
    }

    /// How the device chooses its tokens from here on, or that it does not.
    pub(super) fn choice(&mut self, slot: usize) -> &mut Option<Choice> {
        &mut self.texts[slot].choice
    }

    /// Whether the text in `slot` has nothing to go on from.
    pub(super) fn is_empty(&self, slot: usize) -> bool {
        self.texts[slot].len() == 0
    }

    /// That the text in `slot` begins with given vectors, if the model's do.
    pub(super) fn check_prefix(&self, slot: usize) -> Result<(), Error<B::Error>> {
        let prefix = self.model.config().prefix;
        if self.texts[slot].prefix == prefix { Ok(()) } else { Err(Error::NoPrefix { prefix }) }
    }

    /// The slot's text begins anew, with these `vectors`, which wait.
    pub(super) fn begin_with(&mut self, slot: usize, vectors: &[B::Elem]) -> Result<(), Error<B::Error>> {
        let GptConfig { prefix, d_model, .. } = *self.model.config();
        let (found, expected) = (vectors.len(), prefix * d_model);
        if found != expected {
            return Err(Error::PrefixLength { found, expected });
        }
        self.reset(slot);
        let (ring, buffers) = (self.ring(), self.workspace.buffers);
        let all = self.workspace.plan.prefix.on(buffers.state, B::Elem::DTYPE);
        // Looked up in the place of the given ones, until there is a token.
        let stand_in = self.workspace.plan.tokens.on(buffers.state, Dtype::U32).slice(slot * ring, 1);
        let mut backend = self.model.device().lock();
        write_elems(&mut *backend, all.slice(slot * expected, expected), vectors).map_err(Error::Backend)?;
        backend.write(stand_in, &[0; 4]).map_err(Error::Backend)?;
        self.texts[slot].prefix = prefix;
        Ok(())
    }

    /// How many tokens the device keeps of each text, one behind the other in a ring.
    fn ring(&self) -> usize {
        self.workspace.plan.tokens.len / self.texts.len()
    }

    /// The slot is empty from here on. What its cache holds is never read.
    pub(super) fn reset(&mut self, slot: usize) {
        self.texts[slot].reset();
    }

    /// Adds `tokens` to the text in `slot`, where they wait for [`run`](Slots::run).
    pub(super) fn append(&mut self, slot: usize, tokens: &[u32]) -> Result<(), B::Error> {
        let rings = self.workspace.plan.tokens.on(self.workspace.buffers.state, Dtype::U32);
        let ring = self.ring();
        let mut rest = &tokens[tokens.len().saturating_sub(ring)..];
        let mut place = self.texts[slot].end;
        let mut backend = self.model.device().lock();
        while !rest.is_empty() {
            let most = (ring - place).min(self.staging.len() / 4);
            let (piece, behind) = rest.split_at(most.min(rest.len()));
            backend.write(rings.slice(slot * ring + place, piece.len()), stage(piece, &mut self.staging))?;
            place = (place + piece.len()) % ring;
            rest = behind;
        }
        self.texts[slot].append(tokens, self.model.config(), ring);
        Ok(())
    }

    /// Has the last position run once more, if nothing waits: its logits are wanted again.
    pub(super) fn run_again(&mut self, slot: usize) {
        let text = &mut self.texts[slot];
        text.cached = text.cached.min(text.len().saturating_sub(1));
    }

    /// Adds the token that the device chose, and has already.
    pub(super) fn adopt(&mut self, slot: usize, token: u32) {
        let ring = self.ring();
        self.texts[slot].append(&[token], self.model.config(), ring);
    }

    /// Runs one piece of each text that has something waiting, pass by pass, and tells `take` what came of each text that is
    /// through.
    pub(super) fn run(&mut self, mut take: impl FnMut(Outcome<'_>)) -> Result<(), B::Error> {
        let most = self.workspace.plan.time;
        self.texts.iter_mut().for_each(|text| text.due = text.waiting().min(most));
        while let Some(rows) = self.next_rows() {
            self.run_pass(rows)?;
            self.tell_choices(&mut take)?;
            self.tell_logits(&mut take)?;
        }
        Ok(())
    }

    /// Runs the listed rows, and has the device choose tokens where it is to.
    fn run_pass(&mut self, rows: usize) -> Result<(), B::Error> {
        let (plan, state) = (&self.workspace.plan, self.workspace.buffers.state);
        let told = LiveWords::new(&plan.config, rows).count(plan.wanted(rows));
        let words = plan.rows.on(state, Dtype::U32).first(told);
        let pass = Pass { time: rows, ..self.workspace.pass(&self.model) };
        let mut backend = self.model.device().lock();
        backend.write(words, stage(&self.words[..told], &mut self.staging))?;
        let program = ROWS.into_iter().take_while(|&fewer| fewer < rows).count();
        match self.programs.get(program) {
            Some(program) => program.run(&mut backend, |sink| pass.infer(sink))?,
            None => submit(&mut *backend, |sink| pass.infer(sink))?,
        }
        if self.choosing > 0 {
            submit(&mut *backend, |sink| pass.choose(sink))?;
        }
        Ok(())
    }

    /// Tells the tokens that the pass chose. They are read at once: each reading waits for the device.
    fn tell_choices(&mut self, take: &mut impl FnMut(Outcome<'_>)) -> Result<(), B::Error> {
        if self.choosing == 0 {
            return Ok(());
        }
        let (vocab, ring) = (self.model.config().vocab_size, self.ring());
        let [tokens, choices] = [self.workspace.plan.tokens, self.workspace.plan.choices]
            .map(|region| region.on(self.workspace.buffers.state, Dtype::U32));
        let mut backend = self.model.device().lock();
        let words = &mut self.staging[..4 * self.choosing];
        backend.read(choices.first(self.choosing), words)?;
        for (i, (&slot, &word)) in self.wanted.iter().zip(words.as_chunks().0).enumerate() {
            let token = u32::from_le_bytes(word);
            // [`NO_TOKEN`](crate::op::NO_TOKEN) is not below it, and a backend may be wrong.
            if (token as usize) < vocab {
                take(Outcome::Chosen(slot, token));
                continue;
            }
            let text = &self.texts[slot];
            // The oldest token stood where the choice went, and the repetition penalty looks at it when a token is chosen
            // again. Where there was none, any token will do, for given vectors to be looked up in its place.
            let oldest = text.history.first().filter(|_| text.history.len() == ring);
            let word = oldest.copied().unwrap_or_default().to_le_bytes();
            backend.write(tokens.slice(slot * ring + text.end, 1), &word)?;
            let logits = &mut self.logits[..vocab * self.workspace.plan.activation_dtype().unit().1];
            backend.read(self.workspace.logits().slice(i * vocab, vocab), logits)?;
            take(Outcome::Broken(slot, logits));
        }
        Ok(())
    }

    /// Tells the logits of the texts for which the pass chose no token.
    fn tell_logits(&mut self, take: &mut impl FnMut(Outcome<'_>)) -> Result<(), B::Error> {
        let (vocab, others) = (self.model.config().vocab_size, &self.wanted[self.choosing..]);
        if others.is_empty() {
            return Ok(());
        }
        let size = vocab * self.workspace.plan.activation_dtype().unit().1;
        let bytes = &mut self.logits[..others.len() * size];
        let logits = self.workspace.logits().slice(self.choosing * vocab, others.len() * vocab);
        self.model.device().lock().read(logits, bytes)?;
        for (&slot, logits) in others.iter().zip(bytes.chunks_exact(size)) {
            take(Outcome::Logits(slot, logits));
        }
        Ok(())
    }

    /// Lists the rows of the next pass in `words`, and in `wanted` the slots that are through with it; `None` if nothing is
    /// due. The result is how many rows the pass has, dead ones included.
    fn next_rows(&mut self) -> Option<usize> {
        let most = self.workspace.plan.time;
        let mut due = 0;
        pieces(&self.texts, most, |_, count| due += count);
        let rows = ROWS.into_iter().find(|&rows| rows >= due).unwrap_or(most).min(most);
        let at = LiveWords::new(self.model.config(), rows);
        // The rows of all prefixes come first.
        let given = self.list_given(&at);
        let live = self.list_tokens(&at, given);
        self.list_last(&at, live);
        self.words[..3].copy_from_slice(&[live as u32, self.wanted.len() as u32, self.choosing as u32]);
        for &slot in &self.words[at.slots..][..live] {
            let text = &mut self.texts[slot as usize];
            (text.cached, text.due) = (text.cached + 1, text.due - 1);
        }
        self.list_settings(at.wanted + self.workspace.plan.wanted(rows));
        (live > 0).then_some(rows)
    }

    /// Lists the given vectors that are due, and tells how many they are.
    fn list_given(&mut self, at: &LiveWords) -> usize {
        let (most, ring, prefix) = (self.workspace.plan.time, self.ring(), self.model.config().prefix);
        if prefix == 0 {
            return 0;
        }
        let (words, mut live) = (&mut self.words, 0);
        pieces(&self.texts, most, |slot, count| {
            let text = &self.texts[slot];
            for position in text.cached..(text.cached + count).min(text.prefix) {
                words[at.places + live] = (slot * ring) as u32;
                words[at.given + live] = (slot * prefix + position) as u32;
                words[at.slots + live] = slot as u32;
                words[at.positions + live] = position as u32;
                live += 1;
            }
        });
        words[3] = live as u32;
        live
    }

    /// Lists the tokens that are due behind `live` rows, and the slots that are through then. Tells how many rows there are.
    fn list_tokens(&mut self, at: &LiveWords, mut live: usize) -> usize {
        let (most, ring) = (self.workspace.plan.time, self.ring());
        let Slots { texts, words, wanted, choosing, .. } = self;
        *choosing = 0;
        wanted.clear();
        pieces(texts, most, |slot, count| {
            let text = &texts[slot];
            for position in text.cached.max(text.prefix)..text.cached + count {
                let place = (text.end + ring - (text.len() - position)) % ring;
                words[at.places + live] = (slot * ring + place) as u32;
                words[at.slots + live] = slot as u32;
                words[at.positions + live] = position as u32;
                live += 1;
            }
            if count == text.waiting() {
                // The last of the live rows so far, unless those of the piece are all of its prefix.
                let of_slot = |&row: &usize| words[at.slots + row] == slot as u32;
                let row = (0..live).rev().find(of_slot).unwrap_or(0);
                words[at.wanted + wanted.len()] = row as u32;
                wanted.push(slot);
                *choosing += usize::from(text.choice.is_some());
            }
        });
        live
    }

    /// Lists the last position that each of the live rows sees, if that is not its own.
    fn list_last(&mut self, at: &LiveWords, live: usize) {
        let mask = self.model.config().mask;
        if mask == Mask::Causal {
            return;
        }
        for row in 0..live {
            let text = &self.texts[self.words[at.slots + row] as usize];
            let both_ways = if mask == Mask::None { text.len() } else { text.prefix };
            self.words[at.last + row] =
                self.words[at.positions + row].max((both_ways as u32).saturating_sub(1));
        }
    }

    /// Lists how tokens are chosen, from word number `begin` on.
    fn list_settings(&mut self, begin: usize) {
        let ring = self.ring();
        let settings = self.words[begin..].chunks_exact_mut(SampleRow::WORDS);
        for (&slot, words) in self.wanted[..self.choosing].iter().zip(settings) {
            let text = &mut self.texts[slot];
            let Some(choice) = &mut text.choice else { continue };
            let recent = match choice.config.repetition_penalty {
                Some(_) => choice.config.repetition_window.min(text.history.len()),
                None => 0,
            };
            let row = SampleRow {
                next: (slot * ring + text.end) as u32,
                ring: (slot * ring) as u32,
                ring_len: ring as u32,
                recent: recent as u32,
                uniform: choice.rng.uniform(),
                config: choice.config,
            };
            words.copy_from_slice(&row.words());
        }
    }
}

/// What runs next of the pieces that are due, as many rows as there is room for: tells the slot and how many rows it has. Texts
/// for which the device chooses come first, and a piece goes with others only if it fits beside them as it is.
fn pieces(texts: &[Text], most: usize, mut tell: impl FnMut(usize, usize)) {
    let mut room = most;
    for choosing in [true, false] {
        for (slot, text) in texts.iter().enumerate().filter(|(_, text)| text.choice.is_some() == choosing) {
            let count = text.piece(most);
            if (1..=room).contains(&count) {
                room -= count;
                tell(slot, count);
            }
        }
    }
}
