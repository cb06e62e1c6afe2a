//! The choice of the next token from the model's scores.
//!
//! # The order of operations
//!
//! From the logits l(0..V) of one position, in f64 whatever the model computes in:
//!
//! 1. **Repetition penalty** θ ≥ 1: each distinct token among the last `repetition_window` has its logit divided
//!    by θ if it is positive, else multiplied (Keskar et al. 2019, CTRL, section 4.1; the sign matters because a
//!    division would raise a negative logit).
//! 2. **Temperature** τ: weights w(i) = exp((l(i) - max l) / τ). The largest is 1, so nothing overflows. τ = 0
//!    means greedy: the token with the largest logit, and the rest does not apply.
//! 3. **Top-k**: the k tokens of largest logit stay (Fan et al. 2018).
//! 4. **Top-p**: of those, in falling order, the fewest whose weights reach p of their sum stay; at least one
//!    (nucleus sampling, Holtzman et al. 2019).
//! 5. **Min-p**: of those, the ones with w(i) ≥ `min_p` stay, that is, whose probability is at least `min_p` times
//!    the largest (Nguyen et al. 2024). The first always does.
//! 6. The weights that stay are divided by their sum, and one token is drawn by the inverse of the cumulative
//!    distribution, in order of ids, with one [`Rng::uniform`] of [`Stream::Sample`].
//!
//! Wherever logits tie, the lowest id goes first. A logit of minus infinity is never chosen.
//!
//! Every sum runs in a fixed order and every function comes from `libm`, so the same logits and seed give the same
//! tokens on every target. Neither top-k nor top-p sorts the vocabulary: both look for the logit at which to cut.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;

use crate::real::Real;
use crate::rng::{Rng, Stream};

/// How the next token is chosen. Plain data; see the [module](self) for what each number does, and in which order.
///
/// ```
/// use minigpt_core::SampleConfig;
/// let config = SampleConfig { temperature: 0.8, top_k: Some(40), ..SampleConfig::default() };
/// assert!(config.validate().is_ok());
/// let hot = SampleConfig { temperature: -1.0, ..config };
/// assert_eq!(hot.validate().unwrap_err().to_string(),
///     "temperature -1 is not a finite number of at least 0: 0 is greedy, 1 samples what the model says");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleConfig {
    /// Divides the logits: below 1 the likely becomes likelier. 0 is greedy.
    pub temperature: f64,
    /// How many tokens stay, those of largest logit. From the vocabulary's size on: all.
    pub top_k: Option<usize>,
    /// The share of the probability that stays, in (0, 1], from the likeliest token down.
    pub top_p: Option<f64>,
    /// The least probability that stays, as a multiple in 0..=1 of the largest.
    pub min_p: Option<f64>,
    /// Makes tokens that occurred lately less likely: at least 1, which changes nothing; CTRL used 1.2.
    pub repetition_penalty: Option<f64>,
    /// How many of the latest tokens the repetition penalty looks at; at least 1. A decoder remembers those of one to two
    /// contexts.
    pub repetition_window: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SampleConfig {
    /// The model's own distribution: temperature 1, nothing cut off, seed 0; a repetition window of 64.
    fn default() -> Self {
        SampleConfig {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            repetition_window: 64,
            seed: 0,
        }
    }
}

impl SampleConfig {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        SampleConfig { temperature: 0.0, ..Self::default() }
    }

    /// Whether every number is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), SampleError> {
        if !(0.0..=f64::MAX).contains(&self.temperature) {
            return Err(SampleError::Temperature { temperature: self.temperature });
        }
        if self.top_k == Some(0) {
            return Err(SampleError::TopK);
        }
        if let Some(top_p) = self.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return Err(SampleError::TopP { top_p });
        }
        if let Some(min_p) = self.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return Err(SampleError::MinP { min_p });
        }
        if let Some(penalty) = self.repetition_penalty
            && !(1.0..=f64::MAX).contains(&penalty)
        {
            return Err(SampleError::RepetitionPenalty { penalty });
        }
        if self.repetition_window == 0 {
            return Err(SampleError::RepetitionWindow);
        }
        Ok(())
    }
}

/// Chooses tokens by a [`SampleConfig`]. All its memory is allocated when it is made.
///
/// ```
/// use minigpt_core::{SampleConfig, Sampler};
/// let mut sampler = Sampler::new(SampleConfig { top_k: Some(2), ..SampleConfig::default() }, 3)?;
/// // Weights 1 : 4 : 5, of which the least is cut off.
/// let logits = [0.0f32, 4.0f32.ln(), 5.0f32.ln()];
/// let distribution = sampler.distribution(&logits, &[])?;
/// assert!((distribution[1] - 4.0 / 9.0).abs() < 1e-6);
/// let token = sampler.sample(&logits, &[])?;
/// assert!(token == 1 || token == 2);
/// # Ok::<(), minigpt_core::SampleError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SampleConfig,
    rng: Rng,
    /// The logits after the repetition penalty (V).
    logits: Vec<f64>,
    /// Weights, then probabilities (V).
    probabilities: Vec<f64>,
    /// The tokens that stay, in order of ids (V at most).
    candidates: Vec<u32>,
}

impl Sampler {
    /// A sampler for `vocab_size` tokens (V). It takes 20 V bytes.
    ///
    /// # Errors
    /// As [`SampleConfig::validate`]; [`SampleError::VocabSize`] if there are no tokens or more than u32 can
    /// count; [`SampleError::OutOfMemory`].
    pub fn new(config: SampleConfig, vocab_size: usize) -> Result<Self, SampleError> {
        config.validate()?;
        if vocab_size == 0 || u32::try_from(vocab_size).is_err() {
            return Err(SampleError::VocabSize { vocab_size });
        }
        let zeros = || -> Result<Vec<f64>, TryReserveError> {
            let mut zeros = Vec::new();
            zeros.try_reserve_exact(vocab_size)?;
            zeros.resize(vocab_size, 0.0);
            Ok(zeros)
        };
        let mut candidates = Vec::new();
        candidates.try_reserve_exact(vocab_size)?;
        Ok(Sampler {
            config,
            rng: Rng::new(config.seed, Stream::Sample),
            logits: zeros()?,
            probabilities: zeros()?,
            candidates,
        })
    }

    /// What it was made with.
    pub fn config(&self) -> &SampleConfig {
        &self.config
    }

    /// The next token, by the distribution of [`distribution`](Sampler::distribution).
    ///
    /// Each call takes one uniform number, greedy or not: after n calls the sampler stands where any other of the
    /// same seed does after n calls. A call that fails takes none.
    ///
    /// # Errors
    /// As [`distribution`](Sampler::distribution).
    pub fn sample<R: Real>(&mut self, logits: &[R], recent: &[u32]) -> Result<u32, SampleError> {
        self.distribution(logits, recent)?;
        Ok(pick(&self.probabilities, self.rng.uniform()))
    }

    /// As [`sample`](Sampler::sample), with this number in [0, 1) instead of the next one.
    pub(crate) fn sample_with<R: Real>(
        &mut self,
        logits: &[R],
        recent: &[u32],
        uniform: f64,
    ) -> Result<u32, SampleError> {
        self.distribution(logits, recent)?;
        Ok(pick(&self.probabilities, uniform))
    }

    /// The probability of each token (V) to be the next: what [`sample`](Sampler::sample) draws from.
    ///
    /// `logits` (V) are the model's scores. `recent` are the tokens so far, the latest last, as many as there are
    /// at hand; the repetition penalty looks at the last [`repetition_window`](SampleConfig::repetition_window),
    /// and nothing else looks at them.
    ///
    /// # Errors
    /// [`SampleError::LogitCount`], [`SampleError::Logit`] for NaN or infinity, [`SampleError::NoCandidate`] if every logit is
    /// minus infinity after the penalty, [`SampleError::Token`] if a recent token within the window is not below V.
    pub fn distribution<R: Real>(&mut self, logits: &[R], recent: &[u32]) -> Result<&[f64], SampleError> {
        self.load(logits)?;
        self.penalise_repetition(logits, recent)?;
        let best = argmax(&self.logits);
        let max = self.logits[best];
        if max == f64::NEG_INFINITY {
            return Err(SampleError::NoCandidate);
        }
        self.probabilities.fill(0.0);
        let temperature = self.config.temperature;
        if temperature == 0.0 {
            self.probabilities[best] = 1.0;
            return Ok(&self.probabilities);
        }

        // The order of the logits is that of the weights, so top-k can go first and save their exponentials.
        self.keep_top_k();
        for &token in &self.candidates {
            let token = token as usize;
            self.probabilities[token] = libm::exp((self.logits[token] - max) / temperature);
        }
        self.keep_top_p();
        let least = self.config.min_p.unwrap_or(0.0);
        for weight in &mut self.probabilities {
            if *weight < least {
                *weight = 0.0;
            }
        }

        let sum: f64 = self.probabilities.iter().sum();
        for weight in &mut self.probabilities {
            *weight /= sum;
        }
        Ok(&self.probabilities)
    }

    fn load<R: Real>(&mut self, logits: &[R]) -> Result<(), SampleError> {
        if logits.len() != self.logits.len() {
            return Err(SampleError::LogitCount { expected: self.logits.len(), found: logits.len() });
        }
        for (token, (to, from)) in self.logits.iter_mut().zip(logits).enumerate() {
            let logit = Real::to_f64(*from);
            if logit.is_nan() || logit == f64::INFINITY {
                return Err(SampleError::Logit { token: token as u32, logit });
            }
            *to = logit;
        }
        Ok(())
    }

    fn penalise_repetition<R: Real>(&mut self, logits: &[R], recent: &[u32]) -> Result<(), SampleError> {
        let Some(penalty) = self.config.repetition_penalty else { return Ok(()) };
        let window = recent.len().saturating_sub(self.config.repetition_window);
        for &token in &recent[window..] {
            let place = token as usize;
            // From the model's logit and not from the scratch: a token counts once however often it occurred.
            let logit = match logits.get(place) {
                Some(&logit) => Real::to_f64(logit),
                None => return Err(SampleError::Token { token, vocab_size: logits.len() }),
            };
            self.logits[place] = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        Ok(())
    }

    fn keep_top_k(&mut self) {
        let Sampler { candidates, logits, .. } = self;
        candidates.clear();
        candidates.extend(0..logits.len() as u32);
        if let Some(top_k) = self.config.top_k.filter(|top_k| *top_k < logits.len()) {
            let mut cut = Cut::new(|| logits.iter().map(|&logit| (Cut::key(logit), 1.0)), top_k as f64);
            candidates.retain(|&token| cut.takes(Cut::key(logits[token as usize]), 1.0));
        }
    }

    fn keep_top_p(&mut self) {
        // A top-p of 1 keeps all, also what is too small to change the sum.
        let Some(top_p) = self.config.top_p.filter(|top_p| *top_p < 1.0) else { return };
        let Sampler { candidates, logits, probabilities: weights, .. } = self;
        let total: f64 = candidates.iter().map(|&token| weights[token as usize]).sum();
        let told = |token: &u32| (Cut::key(logits[*token as usize]), weights[*token as usize]);
        let mut cut = Cut::new(|| candidates.iter().map(told), top_p * total);
        for &token in candidates.iter() {
            let weight = &mut weights[token as usize];
            if !cut.takes(Cut::key(logits[token as usize]), *weight) {
                *weight = 0.0;
            }
        }
    }
}

/// Where to cut: the fewest tokens, from the largest logit down and of equal ones from the lowest id up, whose masses together
/// reach a limit. With masses of 1 that is top-k, with weights top-p.
///
/// For backends that choose tokens themselves; [`Sampler`] is made of it.
///
/// ```
/// use minigpt_core::sample::Cut;
/// let logits = [1.0f64, 3.0, -2.0, 3.0];
/// let tokens = || logits.iter().map(|&logit| (Cut::key(logit), 1.0));
/// let mut cut = Cut::new(tokens, 2.0);
/// let stays: Vec<bool> = tokens().map(|(key, mass)| cut.takes(key, mass)).collect();
/// assert_eq!(stays, [false, true, false, true]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The key of the last logit of which tokens stay.
    key: u64,
    /// The mass of what stays before the next token of that logit.
    above: f64,
    limit: f64,
}

impl Cut {
    /// Finds it. `tokens` gives the [key](Cut::key) and the mass of each, in order of ids.
    ///
    /// Digit by digit of the keys, the highest first: how much mass has each value of the digit, and at which one is the limit
    /// reached? The tokens are gone through once for each digit, eight times at most, and never sorted.
    #[inline(always)]
    pub fn new<I: Iterator<Item = (u64, f64)>>(tokens: impl Fn() -> I, limit: f64) -> Self {
        let mut cut = Cut { key: 0, above: 0.0, limit };
        for shift in (0..u64::BITS).step_by(8).rev() {
            let (mut masses, mut counts) = ([0.0; 256], [0_usize; 256]);
            // All bits of lower digits; without any, the key is known.
            let mut lower = 0;
            // Shifted twice, since the first digit has nothing before it.
            for (key, mass) in tokens().filter(|(key, _)| key >> shift >> 8 == cut.key >> shift >> 8) {
                let digit = (key >> shift) as usize % 256;
                masses[digit] += mass;
                counts[digit] += 1;
                lower |= key & ((1 << shift) - 1);
            }
            let mut there = (0..256).rev().filter(|&digit| counts[digit] > 0).peekable();
            while let Some(digit) = there.next() {
                // If rounding leaves the sum of all below the limit, the lowest.
                if cut.above + masses[digit] >= limit || there.peek().is_none() {
                    cut.key |= (digit as u64) << shift;
                    break;
                }
                cut.above += masses[digit];
            }
            if lower == 0 {
                break;
            }
        }
        cut
    }

    /// Whether a token stays; asked of each, in order of ids.
    #[inline(always)]
    pub fn takes(&mut self, key: u64, mass: f64) -> bool {
        if key != self.key {
            return key > self.key;
        }
        let stays = self.above < self.limit;
        self.above += mass;
        stays
    }

    /// A number that is the larger the larger `logit` is. The two zeros are one.
    #[inline(always)]
    pub fn key(logit: f64) -> u64 {
        let bits = (logit + 0.0).to_bits();
        if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
    }
}

/// The place of the largest value, the first of equal ones.
fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

/// The first token at which the cumulative probability exceeds `uniform`, which is in [0, 1).
///
/// Rounding can leave the whole sum at or below `uniform`: then the last token that has a probability.
fn pick(probabilities: &[f64], uniform: f64) -> u32 {
    let mut picked = 0;
    let mut cumulative = 0.0;
    for (token, &probability) in probabilities.iter().enumerate() {
        if probability > 0.0 {
            picked = token as u32;
            cumulative += probability;
            if cumulative > uniform {
                break;
            }
        }
    }
    picked
}

/// Why no token could be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum SampleError {
    /// The temperature is negative or not finite.
    Temperature {
        /// The value given.
        temperature: f64,
    },
    /// Top-k would keep no token.
    TopK,
    /// Top-p is not in (0, 1].
    TopP {
        /// The value given.
        top_p: f64,
    },
    /// Min-p is not in 0..=1.
    MinP {
        /// The value given.
        min_p: f64,
    },
    /// The repetition penalty is below 1 or not finite.
    RepetitionPenalty {
        /// The value given.
        penalty: f64,
    },
    /// The repetition penalty would look at no token.
    RepetitionWindow,
    /// A vocabulary of no tokens, or of more than u32 can count.
    VocabSize {
        /// The size given.
        vocab_size: usize,
    },
    /// There is not one logit for each token.
    LogitCount {
        /// The vocabulary's size.
        expected: usize,
        /// How many logits there are.
        found: usize,
    },
    /// A logit is NaN or infinity.
    Logit {
        /// Its token.
        token: u32,
        /// Its value.
        logit: f64,
    },
    /// Every logit is minus infinity.
    NoCandidate,
    /// A recent token is not in the vocabulary.
    Token {
        /// The token.
        token: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// The scratch does not fit in memory.
    OutOfMemory,
}

impl fmt::Display for SampleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            SampleError::Temperature { temperature } => write!(
                f,
                "temperature {temperature} is not a finite number of at least 0: 0 is greedy, 1 samples what the \
                 model says"
            ),
            SampleError::TopK => f.write_str("top-k of 0 keeps no token: use 1 or more, or none to keep all"),
            SampleError::TopP { top_p } => {
                write!(f, "top-p {top_p} is not above 0 and at most 1: 1 keeps all, 0.9 is common")
            }
            SampleError::MinP { min_p } => {
                write!(f, "min-p {min_p} is not between 0 and 1: 0 keeps all, 0.05 is common")
            }
            SampleError::RepetitionPenalty { penalty } => write!(
                f,
                "repetition penalty {penalty} is not a finite number of at least 1: 1 changes nothing, 1.2 is \
                 common"
            ),
            SampleError::RepetitionWindow => f.write_str(
                "a repetition window of 0 looks at no token: use 1 or more, and no penalty to turn it off",
            ),
            SampleError::VocabSize { vocab_size } => {
                write!(f, "a vocabulary of {vocab_size} tokens cannot be sampled from: use 1 to 4294967295")
            }
            SampleError::LogitCount { expected, found } => write!(
                f,
                "{found} logits for a vocabulary of {expected}: give those of one position, from the model that \
                 the sampler was made for"
            ),
            SampleError::Logit { token, logit } => write!(
                f,
                "the logit of token {token} is {logit}: the model's numbers are broken; go back to an earlier \
                 checkpoint, and if training made it so, use a lower learning rate"
            ),
            SampleError::NoCandidate => {
                f.write_str("every logit is minus infinity: leave at least one token that may be chosen")
            }
            SampleError::Token { token, vocab_size } => write!(
                f,
                "recent token {token} is not below the vocabulary's size of {vocab_size}: use the tokenizer that \
                 the model was trained with"
            ),
            SampleError::OutOfMemory => f.write_str(
                "the sampler's scratch, 20 bytes a token of the vocabulary, does not fit in memory",
            ),
        }
    }
}

impl core::error::Error for SampleError {}

impl From<TryReserveError> for SampleError {
    fn from(_: TryReserveError) -> Self {
        SampleError::OutOfMemory
    }
}

#[cfg(test)]
mod tests;
