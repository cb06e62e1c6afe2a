//! A probabilistic automaton that writes text and, because it is deterministic, also reads it back.
//!
//! In each state one of a few strings is written, with a probability in proportion to its weight, and the string
//! decides the next state. No string of a state is the beginning of another, so a text has exactly one derivation,
//! and the probability of its next character is a ratio of two sums of weights: exact, not estimated.

use std::fmt;

use minigpt_core::rng::{Rng, Stream};

/// One string that a state can write.
#[derive(Debug, Clone)]
struct Choice {
    text: Box<str>,
    weight: u32,
    next: u32,
}

/// The choices of a state, sorted by text, and the running sum of their weights.
#[derive(Debug, Clone, Default)]
struct State {
    choices: Vec<Choice>,
    /// `sums[i]` is the weight of all choices before `i`; one longer than `choices`.
    sums: Vec<u64>,
}

impl State {
    fn weight(&self, low: u32, high: u32) -> u64 {
        self.sums[high as usize] - self.sums[low as usize]
    }
}

/// A state's number.
pub(super) type StateId = u32;

/// Gathers states before they are checked.
#[derive(Debug, Default)]
pub(super) struct Builder {
    states: Vec<Vec<Choice>>,
}

impl Builder {
    /// A new state without choices yet.
    pub(super) fn state(&mut self) -> StateId {
        self.states.push(Vec::new());
        (self.states.len() - 1) as StateId
    }

    /// Lets `from` write `text` and go on to `next`.
    pub(super) fn choice(&mut self, from: StateId, text: impl Into<Box<str>>, weight: u32, next: StateId) {
        self.states[from as usize].push(Choice { text: text.into(), weight, next });
    }

    /// The automaton, if it is unambiguous: each state has choices, none empty, none the beginning of another.
    pub(super) fn finish(self, start: StateId) -> Result<Automaton, String> {
        let mut states = Vec::with_capacity(self.states.len());
        for (number, mut choices) in self.states.into_iter().enumerate() {
            choices.sort_by(|a, b| a.text.cmp(&b.text));
            // Sorted, a string that begins another stands right before one that it begins.
            if let Some(pair) = choices.windows(2).find(|pair| pair[1].text.starts_with(&*pair[0].text)) {
                return Err(format!(
                    "state {number}: {:?} is the beginning of {:?}",
                    pair[0].text, pair[1].text
                ));
            }
            if choices.is_empty() || choices.iter().any(|c| c.text.is_empty() || c.weight == 0) {
                return Err(format!("state {number}: no choice, or an empty one, or one of weight 0"));
            }
            let mut sums = vec![0];
            for choice in &choices {
                sums.push(sums[sums.len() - 1] + u64::from(choice.weight));
            }
            states.push(State { choices, sums });
        }
        Ok(Automaton { states, start })
    }
}

/// States, and the strings by which each leads to others.
#[derive(Debug, Clone)]
pub struct Automaton {
    states: Vec<State>,
    start: StateId,
}

/// A text that the automaton cannot have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impossible {
    /// The first byte that cannot stand where it does, counted from 0.
    pub position: usize,
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} cannot follow: the text is not from the built-in generator", self.position)
    }
}

impl std::error::Error for Impossible {}

/// A place inside a state's strings: the choices `low..high` share the `depth` bytes written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    state: StateId,
    low: u32,
    high: u32,
    depth: u32,
}

impl Automaton {
    fn enter(&self, state: StateId) -> Place {
        Place { state, low: 0, high: self.states[state as usize].choices.len() as u32, depth: 0 }
    }

    /// Where every text begins.
    pub fn start(&self) -> Place {
        self.enter(self.start)
    }

    /// How many states there are.
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// The bytes that can come next at `place`, each with its probability and the place behind it.
    pub fn next(&self, place: Place) -> Vec<(u8, f64, Place)> {
        let state = &self.states[place.state as usize];
        let total = state.weight(place.low, place.high) as f64;
        let mut out: Vec<(u8, f64, Place)> = Vec::new();
        let mut low = place.low;
        while low < place.high {
            let byte = self.byte(place, low);
            let (_, high) = self.range(Place { low, ..place }, byte);
            out.push((byte, state.weight(low, high) as f64 / total, self.behind(place, low, high)));
            low = high;
        }
        out
    }

    /// The place behind `byte` and the byte's probability; `None` if it cannot come here.
    pub fn step(&self, place: Place, byte: u8) -> Option<(f64, Place)> {
        let (low, high) = self.range(place, byte);
        if low == high {
            return None;
        }
        let state = &self.states[place.state as usize];
        let p = state.weight(low, high) as f64 / state.weight(place.low, place.high) as f64;
        Some((p, self.behind(place, low, high)))
    }

    fn byte(&self, place: Place, choice: u32) -> u8 {
        self.states[place.state as usize].choices[choice as usize].text.as_bytes()[place.depth as usize]
    }

    /// The choices of `place` whose next byte is `byte`.
    fn range(&self, place: Place, byte: u8) -> (u32, u32) {
        let choices = &self.states[place.state as usize].choices[place.low as usize..place.high as usize];
        let at = |c: &Choice| c.text.as_bytes()[place.depth as usize];
        let low = choices.partition_point(|c| at(c) < byte);
        let high = low + choices[low..].partition_point(|c| at(c) == byte);
        (place.low + low as u32, place.low + high as u32)
    }

    fn behind(&self, place: Place, low: u32, high: u32) -> Place {
        let first = &self.states[place.state as usize].choices[low as usize];
        if first.text.len() == place.depth as usize + 1 {
            self.enter(first.next)
        } else {
            Place { low, high, depth: place.depth + 1, ..place }
        }
    }

    /// At least `length` bytes of text, up to the end of a line; the same for the same seed.
    pub fn generate(&self, seed: u64, length: usize) -> String {
        let mut rng = Rng::new(seed, Stream::User);
        let mut text = String::with_capacity(length + 128);
        let mut at = self.start;
        while text.len() < length || !text.ends_with('\n') {
            let state = &self.states[at as usize];
            let draw = rng.below(state.sums[state.choices.len()]);
            let choice = &state.choices[state.sums.partition_point(|&sum| sum <= draw) - 1];
            text.push_str(&choice.text);
            at = choice.next;
        }
        text
    }

    /// -ln p of each byte of `text`, given all bytes before it, in nats.
    ///
    /// # Errors
    /// If the automaton cannot have written `text` from its start.
    pub fn nats(&self, text: &str) -> Result<Vec<f64>, Impossible> {
        let mut place = self.start();
        text.bytes()
            .enumerate()
            .map(|(position, byte)| {
                let (p, next) = self.step(place, byte).ok_or(Impossible { position })?;
                place = next;
                Ok(0.0 - p.ln())
            })
            .collect()
    }

    /// How often each state is entered in the long run; sums to one.
    ///
    /// Gauss-Seidel sweeps over pi = pi P. A sweep carries probability through a whole line of verse at once, since
    /// states are numbered roughly in the order in which they follow each other.
    fn stationary(&self) -> Vec<f64> {
        let mut sources: Vec<Vec<(u32, f64)>> = vec![Vec::new(); self.states.len()];
        for (from, state) in self.states.iter().enumerate() {
            let total = state.sums[state.choices.len()] as f64;
            let to = state.choices.iter().map(|c| (c.next, f64::from(c.weight) / total));
            for (next, p) in summed(to.collect()) {
                sources[next as usize].push((from as u32, p));
            }
        }
        let mut pi = vec![1.0 / self.states.len() as f64; self.states.len()];
        for _ in 0..10_000 {
            let mut change = 0.0;
            for (to, from) in sources.iter().enumerate() {
                let stay: f64 = from.iter().filter(|(f, _)| *f as usize == to).map(|(_, p)| p).sum();
                let come: f64 =
                    from.iter().filter(|(f, _)| *f as usize != to).map(|(f, p)| pi[*f as usize] * p).sum();
                let new = come / (1.0 - stay);
                change += (new - pi[to]).abs();
                pi[to] = new;
            }
            let sum: f64 = pi.iter().sum();
            pi.iter_mut().for_each(|p| *p /= sum);
            if change < 1e-15 {
                break;
            }
        }
        pi
    }

    /// The entropy rate in nats per byte: expected nats over expected bytes of a choice, states weighted by how
    /// often they are entered. (Cover and Thomas, Elements of Information Theory, section 4.2.)
    pub fn entropy(&self) -> f64 {
        let (mut nats, mut bytes) = (0.0, 0.0);
        for (pi, state) in self.stationary().iter().zip(&self.states) {
            let total = state.sums[state.choices.len()] as f64;
            for choice in &state.choices {
                let p = f64::from(choice.weight) / total;
                nats -= pi * p * p.ln();
                bytes += pi * p * choice.text.len() as f64;
            }
        }
        nats / bytes
    }

    /// Prepares to read windows of text without knowing what came before them.
    pub fn window_reader(&self) -> WindowReader<'_> {
        let mut behind = vec![Vec::new(); 256];
        for (number, pi) in self.stationary().iter().enumerate() {
            let mut open = vec![(self.enter(number as StateId), *pi)];
            while let Some((place, mass)) = open.pop() {
                for (byte, p, next) in self.next(place) {
                    behind[usize::from(byte)].push((next, mass * p));
                    if next.depth > 0 {
                        open.push((next, mass * p));
                    }
                }
            }
        }
        WindowReader { automaton: self, behind }
    }
}

/// One entry for each key, in their order, with the sum of its probabilities.
fn summed<K: Ord + Copy>(mut entries: Vec<(K, f64)>) -> Vec<(K, f64)> {
    entries.sort_by_key(|&(key, _)| key);
    entries.dedup_by(|b, a| {
        let same = a.0 == b.0;
        if same {
            a.1 += b.1;
        }
        same
    });
    entries
}

/// A perfect reader who, like a model with a limited context, does not know what came before its window.
#[derive(Debug, Clone)]
pub struct WindowReader<'a> {
    automaton: &'a Automaton,
    /// For each byte: the places behind it, with their probability in the long run, up to a common factor.
    behind: Vec<Vec<(Place, f64)>>,
}

impl WindowReader<'_> {
    /// Every place that the automaton can be in behind `window`, and how probable each is, up to a common factor.
    pub fn places(&self, window: &[u8]) -> Vec<(Place, f64)> {
        let Some((&first, rest)) = window.split_first() else { return Vec::new() };
        let mut places = self.behind[usize::from(first)].clone();
        for &byte in rest {
            places = self.follow(&places, byte);
        }
        places
    }

    fn follow(&self, places: &[(Place, f64)], byte: u8) -> Vec<(Place, f64)> {
        let next = places
            .iter()
            .filter_map(|&(place, mass)| self.automaton.step(place, byte).map(|(p, next)| (next, mass * p)));
        summed(next.collect())
    }

    /// The mean -ln p per byte over the windows of `window` bytes side by side, each byte but the first of a window
    /// (and the one behind it) predicted from those before it in its window alone, as a model is evaluated. No model
    /// can expect to do better. NaN if there is no whole window with a byte behind it.
    pub fn nats(&self, text: &str, window: usize) -> f64 {
        let mass = |places: &[(Place, f64)]| places.iter().map(|(_, mass)| mass).sum::<f64>();
        let bytes = text.as_bytes();
        let (mut nats, mut count) = (0.0, 0u64);
        for window in bytes.windows(window + 1).step_by(window.max(1)) {
            let mut places = self.behind[usize::from(window[0])].clone();
            for &byte in &window[1..] {
                let next = self.follow(&places, byte);
                nats -= (mass(&next) / mass(&places)).ln();
                count += 1;
                places = next;
            }
        }
        nats / count as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two states whose entropy is known by hand: heads or tails, and after tails always "x".
    fn coin() -> Automaton {
        let mut builder = Builder::default();
        let (toss, after) = (builder.state(), builder.state());
        builder.choice(toss, "h\n", 1, toss);
        builder.choice(toss, "t", 3, after);
        builder.choice(after, "x\n", 1, toss);
        builder.finish(toss).unwrap()
    }

    #[test]
    fn entropy_of_a_coin_is_what_the_formula_says() {
        let nats = -(0.25f64 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
        let bytes = 0.25 * 2.0 + 0.75 * 3.0;
        assert!((coin().entropy() - nats / bytes).abs() < 1e-12);
        for (nats, p) in coin().nats("h\ntx\n").unwrap().into_iter().zip([0.25f64, 1.0, 0.75, 1.0, 1.0]) {
            assert!((nats + p.ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn a_text_that_cannot_be_is_refused_at_its_first_wrong_byte() {
        assert_eq!(coin().nats("h\nty\n"), Err(Impossible { position: 3 }));
    }

    #[test]
    fn an_ambiguous_grammar_is_refused() {
        let mut builder = Builder::default();
        let state = builder.state();
        builder.choice(state, "the", 1, state);
        builder.choice(state, "then", 1, state);
        assert!(builder.finish(state).unwrap_err().contains("is the beginning of"));
    }

    #[test]
    fn a_window_knows_less_than_the_whole_text() {
        // In "tx\n" alone: x follows t always, the newline follows x always.
        assert_eq!(coin().window_reader().nats("tx\n", 2), 0.0);
        // Behind a newline, a toss.
        assert!((coin().window_reader().nats("\nh", 1) - 4f64.ln()).abs() < 1e-12);
    }
}
