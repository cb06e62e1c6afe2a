//! Decoding: one token after the other, over a cache of keys and values.

mod batch;
mod slots;

use alloc::vec::Vec;

use super::{Model, check_tokens};
use crate::backend::{Backend, from_bytes};
use crate::config::ConfigError;
use crate::error::Error;
use crate::memory::{Dtype, zeros};
use crate::plan::Plan;
use crate::real::Real;
use crate::sample::Sampler;

use slots::{Outcome, Slots};

pub use batch::{Batch, Chosen, Sequence};

/// How many tokens a decoder sees after it was fed `fed` tokens one by one.
///
/// Up to the context it sees them all. When a token arrives and the cache is full, the decoder starts again with the
/// last half of the context, the new token among them: half of what it saw is forgotten at once, and the cost of
/// filling the cache again is spread over the next half context of tokens.
///
/// Before the tokens of a model with a [prefix](crate::GptConfig::prefix) its given vectors stand, and stay: of the context
/// the tokens have what these leave.
///
/// A prompt that is [fed](Decoder::feed) at once costs one filling of the cache, however much of it is kept: of such a
/// prompt the decoder sees as much as the context holds.
///
/// ```
/// use minigpt_core::model::window_length;
/// let lengths: Vec<_> = (0..13).map(|fed| window_length(fed, 6)).collect();
/// assert_eq!(lengths, [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]);
/// ```
pub fn window_length(fed: usize, context: usize) -> usize {
    if fed <= context {
        return fed;
    }
    let kept = (context / 2).max(1);
    kept + (fed - context - 1) % (context - kept + 1)
}

/// The state of one text in the making: which tokens the model has seen, and the cache of their keys and values.
///
/// A decoder holds a handle on the model that it was made for: any number of them can take turns on one model, each with its
/// own text. If the model learns meanwhile, [`reset`](Decoder::reset) it: its cache is of the old weights.
///
/// ```
/// use minigpt_core::{Decoder, GptConfig, Model, Reference};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let mut decoder = Decoder::new(&model, 4)?;
/// decoder.feed(&[0, 1, 2, 3, 4, 0])?;
/// assert_eq!(decoder.window(), &[2, 3, 4, 0]); // of a long prompt, what the context holds
/// decoder.feed(&[1])?;
/// assert_eq!(decoder.window(), &[0, 1]); // past the context: the last half, and what comes from here on
/// assert_eq!(decoder.logits().len(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    /// One.
    slots: Slots<B>,
    /// Generated, but not fed yet.
    pending: Option<u32>,
    logits: Vec<B::Elem>,
}

impl<B: Backend> Decoder<B> {
    /// A decoder that has seen nothing yet. Prompts run through the model in pieces of at most `prefill` tokens: more
    /// are faster, fewer take less memory; more than the context are taken as the context. What sees itself both ways goes
    /// through at once, whatever `prefill` is: a prefix, or without a mask the whole window, and that anew with every
    /// token.
    ///
    /// # Errors
    /// If the cache and the activations do not fit in memory, or `prefill` is 0.
    pub fn new(model: &Model<B>, prefill: usize) -> Result<Self, Error<B::Error>> {
        Self::with_cache(model, prefill, model.precision().activations(B::Elem::DTYPE))
    }

    /// As [`new`](Decoder::new), with a cache that stores keys and values as `cache`: the backend's number type, f16, or
    /// bf16. In 16 bits it is half as large, and so is what each token reads of it; keys and values are rounded to the
    /// nearest, and what is beyond f16's 65504 becomes infinite there.
    ///
    /// ```
    /// use minigpt_core::{Decoder, Dtype, GptConfig, Model, Reference};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 64) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let (mut exact, mut small) = (Decoder::new(&model, 4)?, Decoder::with_cache(&model, 4, Dtype::Bf16)?);
    /// assert_eq!(small.plan().bytes.cache * 2, exact.plan().bytes.cache);
    /// exact.feed(&[0, 1, 2])?;
    /// small.feed(&[0, 1, 2])?;
    /// assert!(exact.logits().iter().zip(small.logits()).all(|(a, b)| (a - b).abs() < 1e-3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Decoder::new), or if `cache` is none of those.
    pub fn with_cache(model: &Model<B>, prefill: usize, cache: Dtype) -> Result<Self, Error<B::Error>> {
        if prefill == 0 {
            return Err(ConfigError::Zero { field: "prefill" }.into());
        }
        let logits = zeros("logits", model.config().vocab_size)?;
        Ok(Decoder { slots: Slots::new(model, 1, prefill, cache, false)?, pending: None, logits })
    }

    /// Begins a text with given vectors in the place of tokens, (P, C), of a model with a
    /// [prefix](crate::GptConfig::prefix): what was seen before is forgotten. The logits of the first token are there then. The
    /// prefix stays where it is when the window is cut.
    ///
    /// ```
    /// use minigpt_core::{Decoder, GptConfig, Model, Reference, SampleConfig, Sampler};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, prefix: 2, ..GptConfig::new(5, 6) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let mut decoder = Decoder::new(&model, 4)?;
    /// decoder.begin_with(&[0.1; 2 * 8])?;
    /// let mut sampler = Sampler::new(SampleConfig::greedy(), 5)?;
    /// let tokens: Vec<u32> = decoder.generate(&mut sampler).take(9).collect::<Result<_, _>>()?;
    /// // The last one was not fed yet. The window is a part of the other eight, since the context has room for four.
    /// assert!(tokens[..8].ends_with(decoder.window()) && decoder.window().len() <= 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::PrefixLength`], which leaves all as it was. If the backend fails: then it is as if [`reset`](Decoder::reset).
    pub fn begin_with(&mut self, vectors: &[B::Elem]) -> Result<(), Error<B::Error>> {
        let begun = self.slots.begin_with(0, vectors);
        if !matches!(begun, Err(Error::PrefixLength { .. })) {
            self.pending = None;
            self.logits.fill(B::Elem::default());
        }
        begun?;
        let result = self.run();
        self.or_reset(result)
    }

    /// The model that it was made for.
    pub fn model(&self) -> &Model<B> {
        self.slots.model()
    }

    /// The tokens that the next prediction rests on.
    pub fn window(&self) -> &[u32] {
        self.slots.window(0)
    }

    /// The tokens that were fed lately, the latest last: what a repetition penalty looks at. It reaches back at least a
    /// context, also where the window has just been cut to half of one.
    pub fn recent(&self) -> &[u32] {
        self.slots.recent(0)
    }

    /// The plan of its buffers.
    pub fn plan(&self) -> &Plan {
        self.slots.plan()
    }

    /// Forgets all tokens, and given vectors.
    pub fn reset(&mut self) {
        self.slots.reset(0);
        self.pending = None;
        self.logits.fill(B::Elem::default());
    }

    /// Shows the model `tokens` and computes the logits of what comes next.
    ///
    /// While all of them fit beside what was seen, feeding many tokens at once gives what feeding them one by one would
    /// give, in fewer passes. Beyond that the window is cut as [`window_length`] says, but never so short that the model
    /// sees less of `tokens` than the context holds. A token that was [generated](Decoder::generate) and not yet fed
    /// goes before them.
    ///
    /// # Errors
    /// If `tokens` is empty or has one that is not in the vocabulary, or the model has a prefix and the text was not
    /// [begun](Decoder::begin_with) with it: then it is as it was. If the backend fails: then it is as if
    /// [`reset`](Decoder::reset).
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), Error<B::Error>> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        check_tokens(tokens, self.model().config().vocab_size)?;
        self.slots.check_prefix(0)?;
        if let Some(generated) = self.pending.take() {
            self.append(&[generated])?;
        }
        self.append(tokens)
    }

    fn append(&mut self, tokens: &[u32]) -> Result<(), Error<B::Error>> {
        let result = self.slots.append(0, tokens).and_then(|()| self.run());
        self.or_reset(result)
    }

    fn or_reset(&mut self, result: Result<(), B::Error>) -> Result<(), Error<B::Error>> {
        if result.is_err() {
            self.reset();
        }
        result.map_err(Error::Backend)
    }

    /// Runs all that waits.
    fn run(&mut self) -> Result<(), B::Error> {
        let Decoder { slots, logits, .. } = self;
        let dtype = slots.plan().activation_dtype();
        while slots.waiting(0) > 0 {
            slots.run(|outcome| {
                let Outcome::Logits(_, bytes) = outcome else { return };
                from_bytes(logits, dtype, bytes);
            })?;
        }
        Ok(())
    }

    /// The logits of the next token: (V). All zero before anything was fed.
    pub fn logits(&self) -> &[B::Elem] {
        &self.logits
    }

    /// What comes next, token by token, without end; `sampler` chooses, and its repetition penalty looks at the
    /// decoder's [recent](Decoder::recent) tokens.
    ///
    /// The prompt must have been [fed](Decoder::feed), or a text [begun](Decoder::begin_with) with given vectors. A token
    /// is fed when the one after it is asked for, so the last one costs no pass; whoever generates or feeds more later goes
    /// on from it.
    ///
    /// ```
    /// use minigpt_core::{Decoder, GptConfig, Model, Reference, SampleConfig, Sampler};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let mut sampler = Sampler::new(SampleConfig { seed: 7, ..SampleConfig::default() }, 5)?;
    /// let mut decoder = Decoder::new(&model, 4)?;
    /// decoder.feed(&[0])?;
    /// let text: Vec<u32> = decoder.generate(&mut sampler).take(20).collect::<Result<_, _>>()?;
    /// assert_eq!(text.len(), 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generate<'a>(&'a mut self, sampler: &'a mut Sampler) -> Generate<'a, B> {
        Generate { decoder: self, sampler, failed: false }
    }
}

/// The iterator of [`Decoder::generate`]. Ends only after an error.
#[derive(Debug)]
pub struct Generate<'a, B: Backend> {
    decoder: &'a mut Decoder<B>,
    sampler: &'a mut Sampler,
    failed: bool,
}

impl<B: Backend> Iterator for Generate<'_, B> {
    type Item = Result<u32, Error<B::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let result = self.step();
        self.failed = result.is_err();
        Some(result)
    }
}

impl<B: Backend> Generate<'_, B> {
    fn step(&mut self) -> Result<u32, Error<B::Error>> {
        if let Some(last) = self.decoder.pending.take() {
            self.decoder.append(&[last])?;
        }
        self.decoder.slots.check_prefix(0)?;
        if self.decoder.slots.is_empty(0) {
            return Err(Error::EmptyPrompt);
        }
        let token =
            self.sampler.sample(&self.decoder.logits, self.decoder.recent()).map_err(Error::Sample)?;
        self.decoder.pending = Some(token);
        Ok(token)
    }
}
