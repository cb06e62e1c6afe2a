//! The model, written once over any [`Backend`]: [`forward`](self), backward and decoding.
//!
//! ```text
//! tokens -> embedding -> block 0 -> ... -> block L-1 -> norm -> head -> logits
//!
//! block (norms first):   x -> norm -> q,k,v -> attention -> projection -> (+ x) = y
//!                        y -> norm -> up -> activation   -> down       -> (+ y)
//! ```
//!
//! The forward pass is a list of ops over the spans of a [`Plan`]; the backward pass is the same list in reverse.

mod backward;
mod decode;
mod forward;
mod loss;
mod place;
mod storage;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::backend::{Backend, BackendError, Buffer, Dtype, ErrorKind, Span, read_elems, write_elems, zeros};
use crate::config::{GptConfig, Position};
use crate::error::Error;
use crate::op::Dropout;
use crate::plan::{Init, Logits, Parameters, Plan, Region, Tensor};
use crate::real::Real;
use crate::reference;
use crate::rng::{Rng, Stream};

pub(crate) use backward::backward;
pub use decode::{Decoder, Generate, window_length};
pub(crate) use forward::forward;
pub(crate) use loss::{Gradients, loss};
pub(crate) use place::{Place, Places, nowhere, read_into, write_tensor};
pub use storage::Extras;
pub(crate) use storage::Saved;

/// A GPT on a backend: its shape, and where its weights lie.
///
/// ```
/// use minigpt_core::{GptConfig, Model, Reference};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let mut model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let logits = model.logits(&[0, 1, 2, 3], 1, 4)?;
/// assert_eq!(logits.len(), 4 * 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Model<B: Backend> {
    backend: B,
    config: GptConfig,
    /// What each parameter is.
    tensors: Parameters<Tensor>,
    /// Where each parameter lies.
    spans: Parameters<Span>,
    /// All parameters in one, laid out as the plan has them; only then can they be trained.
    trainable: Option<Span>,
    position_table: Option<Span>,
    /// Bytes of weights that were to be borrowed and had to be copied.
    copied: usize,
    identity: Box<u8>,
}

/// The buffers of one plan.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) plan: Plan,
    activations: Buffer,
    cache: Option<Buffer>,
    state: Buffer,
}

/// One run through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    /// B; at most the plan's.
    pub(crate) batch: usize,
    /// T; at most the plan's.
    pub(crate) time: usize,
    /// The position of the first token: how many the cache holds already.
    pub(crate) start: usize,
    /// In training with dropout. Each op fills in the site and its first element.
    pub(crate) dropout: Option<Dropout>,
    /// How many sequences of the batch went before, in other passes: where the dropout masks go on.
    pub(crate) before: usize,
    /// Which logits are wanted, if any.
    pub(crate) logits: Option<Logits>,
}

impl Workspace {
    /// Allocates what `plan` needs besides parameters.
    pub(crate) fn new<B: Backend>(backend: &mut B, plan: Plan) -> Result<Self, Error<B::Error>> {
        let needed = plan.bytes.total().saturating_add(backend.workspace_bytes(&plan));
        let mut taken = Vec::new();
        let result = backend.reserve(&plan).and_then(|()| {
            let mut take = |bytes| backend.alloc(bytes).inspect(|&buffer| taken.push(buffer));
            let activations = take(plan.bytes.activations)?;
            let cache = if plan.bytes.cache > 0 { Some(take(plan.bytes.cache)?) } else { None };
            Ok((activations, cache, take(plan.bytes.state)?))
        });
        match result {
            Ok((activations, cache, state)) => Ok(Workspace { plan, activations, cache, state }),
            Err(error) => {
                // What did fit goes back, so that a smaller plan can be tried.
                for buffer in taken {
                    backend.release(buffer).map_err(Error::Backend)?;
                }
                Err(out_of_memory(needed, error))
            }
        }
    }

    pub(crate) fn release<B: Backend>(self, backend: &mut B) -> Result<(), B::Error> {
        backend.release(self.activations)?;
        if let Some(cache) = self.cache {
            backend.release(cache)?;
        }
        backend.release(self.state)
    }

    /// A region of the activation buffer, of which a pass uses the first `len` elements.
    pub(crate) fn activation(&self, region: Region, len: usize) -> Span {
        region.on(self.activations, self.plan.elem).first(len)
    }

    pub(crate) fn tokens(&self, len: usize) -> Span {
        self.plan.tokens.on(self.state, Dtype::U32).first(len)
    }

    pub(crate) fn targets(&self, len: usize) -> Span {
        self.plan.targets.on(self.state, Dtype::U32).first(len)
    }

    pub(crate) fn scalars(&self) -> Span {
        self.plan.scalars.on(self.state, self.plan.elem)
    }

    pub(crate) fn evaluation(&self) -> Span {
        self.plan.evaluation.on(self.state, self.plan.elem)
    }

    pub(crate) fn counters(&self) -> Span {
        self.plan.counters.on(self.state, Dtype::U32)
    }
}

/// Turns the backend's "out of memory" into one that says how much was needed.
pub(crate) fn out_of_memory<E: BackendError>(needed: usize, source: E) -> Error<E> {
    match source.kind() {
        ErrorKind::OutOfMemory => Error::Memory { needed, recomputing: None, source },
        _ => Error::Backend(source),
    }
}

/// Refuses token ids that are not below `vocab`.
pub(crate) fn check_tokens<E>(tokens: &[u32], vocab: usize) -> Result<(), Error<E>> {
    match tokens.iter().position(|&token| token as usize >= vocab) {
        Some(index) => Err(Error::Token { token: tokens[index], index, vocab }),
        None => Ok(()),
    }
}

/// The `tokens` as the bytes that a backend takes, in `staging`, which is long enough.
pub(crate) fn stage<'a>(tokens: &[u32], staging: &'a mut [u8]) -> &'a [u8] {
    for (bytes, token) in staging.chunks_exact_mut(4).zip(tokens) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    &staging[..tokens.len() * 4]
}

impl<B: Backend> Model<B> {
    /// A model with fresh weights drawn from `seed`: normal with a standard deviation of 0.02, in projections to the
    /// residual stream 0.02 / sqrt(2 layers); norms one, biases zero.
    ///
    /// # Errors
    /// If the config is invalid or the weights do not fit.
    pub fn new(backend: B, config: GptConfig, seed: u64) -> Result<Self, Error<B::Error>> {
        let mut model = Self::empty(backend, config)?;
        let mut rng = Rng::new(seed, Stream::Init);
        let residual = 0.02 / libm::sqrt(2.0 * model.config.layers as f64);
        let tensors: Vec<Tensor> = model.tensors.list().into_iter().cloned().collect();
        let spans: Vec<Span> = model.spans.list().into_iter().copied().collect();
        for (tensor, span) in tensors.iter().zip(spans) {
            let mut draw = || match tensor.init {
                Init::Normal => 0.02 * rng.normal(),
                Init::Residual => residual * rng.normal(),
                Init::Ones => 1.0,
                Init::Zeros => 0.0,
            };
            model.fill_span(span, |_| B::Elem::from_f64(draw()))?;
        }
        Ok(model)
    }

    /// A model whose weights are all zero, to be written.
    pub(crate) fn empty(mut backend: B, config: GptConfig) -> Result<Self, Error<B::Error>> {
        let plan = Plan::inference(&config, B::Elem::DTYPE, 1, 1, Logits::Last, 0)?;
        let needed = plan.bytes.parameters;
        let buffer = backend.alloc(needed).map_err(|error| out_of_memory(needed, error))?;
        let spans = plan.parameters.map(|tensor| tensor.region.on(buffer, B::Elem::DTYPE));
        let all = Span { buffer, dtype: B::Elem::DTYPE, offset: 0, len: plan.parameter_span };
        Self::with_spans(backend, plan, spans, Some(all))
    }

    /// A model over weights that lie on the backend already.
    pub(crate) fn with_spans(
        backend: B,
        plan: Plan,
        spans: Parameters<Span>,
        trainable: Option<Span>,
    ) -> Result<Self, Error<B::Error>> {
        let mut model = Model {
            backend,
            config: plan.config,
            tensors: plan.parameters,
            spans,
            trainable,
            position_table: None,
            copied: 0,
            identity: Box::new(0),
        };
        if let Some(region) = plan.position_table {
            let needed = plan.bytes.constants;
            let buffer = model.backend.alloc(needed).map_err(|error| out_of_memory(needed, error))?;
            let table = region.on(buffer, B::Elem::DTYPE);
            let mut values = zeros("position_table", table.len)?;
            match model.config.position {
                Position::Rotary => reference::rotary::rotary_table(&mut values, model.config.d_head()),
                _ => reference::position::sinusoidal_table(&mut values, model.config.d_model),
            }
            write_elems(&mut model.backend, table, &values).map_err(Error::Backend)?;
            model.position_table = Some(table);
        }
        Ok(model)
    }

    /// Writes `value(i)` to element i of `span`, piece by piece.
    fn fill_span(
        &mut self,
        span: Span,
        mut value: impl FnMut(usize) -> B::Elem,
    ) -> Result<(), Error<B::Error>> {
        const PIECE: usize = 1024;
        let size = size_of::<B::Elem>();
        let mut bytes = vec![0; PIECE * size];
        for start in (0..span.len).step_by(PIECE) {
            let len = PIECE.min(span.len - start);
            for (i, out) in bytes.chunks_exact_mut(size).take(len).enumerate() {
                value(start + i).to_le_slice(out);
            }
            self.backend.write(span.slice(start, len), &bytes[..len * size]).map_err(Error::Backend)?;
        }
        Ok(())
    }

    /// Its shape.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// The backend that it lives on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend that it lives on, to read spans or count fallbacks.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// How many numbers it has.
    pub fn parameter_count(&self) -> usize {
        self.tensors.list().iter().map(|tensor| tensor.region.len).sum()
    }

    /// How many bytes of weights the backend had to copy when they were [borrowed](Model::borrow): 0 if it reads all of
    /// them where they lie, and for a model that was not borrowed.
    ///
    /// A CPU backend copies what is not aligned to four bytes (put `#[repr(align(64))]` on a constant; a mapped file
    /// is aligned), and copies all on a big-endian processor. A device with memory of its own always copies.
    pub fn copied_bytes(&self) -> usize {
        self.copied
    }

    /// Its parameters in the order of the model: what each is, and where it lies.
    pub fn parameters(&self) -> impl Iterator<Item = (&Tensor, Span)> {
        self.tensors.list().into_iter().zip(self.spans.list().into_iter().copied())
    }

    /// A number that no other living model has: the address of a byte that it owns. Buffers are numbers too, so a
    /// decoder on another model's backend would write over what it does not know.
    pub(crate) fn identity(&self) -> usize {
        core::ptr::from_ref(&*self.identity).addr()
    }

    /// All parameters as one span, if they can be trained.
    pub(crate) fn trainable(&self) -> Option<Span> {
        self.trainable
    }

    /// The values of the parameter called `name`, row by row.
    ///
    /// # Errors
    /// If the backend fails, or the weights are not stored in its number type. `Ok(None)` if there is none such.
    pub fn parameter(&mut self, name: &str) -> Result<Option<Vec<B::Elem>>, Error<B::Error>> {
        let Some(span) = self.parameters().find(|(t, _)| t.name == name).map(|(_, span)| span) else {
            return Ok(None);
        };
        read_elems(&mut self.backend, span).map(Some).map_err(Error::Backend)
    }

    /// Replaces the parameter called `name`; `Ok(false)` if there is none such.
    ///
    /// # Errors
    /// If `values` has not as many numbers as the parameter, or the weights are borrowed.
    pub fn set_parameter(&mut self, name: &str, values: &[B::Elem]) -> Result<bool, Error<B::Error>> {
        let Some(span) = self.parameters().find(|(t, _)| t.name == name).map(|(_, span)| span) else {
            return Ok(false);
        };
        if self.trainable.is_none() {
            return Err(Error::Frozen);
        }
        if span.len != values.len() {
            return Err(Error::BatchLength { found: values.len(), expected: span.len });
        }
        self.fill_span(span, |i| values[i])?;
        Ok(true)
    }

    /// The logits of every position: (B, T, V), from `tokens` (B, T). Allocates; for text, see [`Decoder`].
    ///
    /// # Errors
    /// If a token is not in the vocabulary, `time` is beyond the context, or memory does not suffice.
    pub fn logits(
        &mut self,
        tokens: &[u32],
        batch: usize,
        time: usize,
    ) -> Result<Vec<B::Elem>, Error<B::Error>> {
        let plan = Plan::inference(&self.config, B::Elem::DTYPE, batch, time, Logits::All, 0)?;
        if tokens.len() != batch * time {
            return Err(Error::BatchLength { found: tokens.len(), expected: batch * time });
        }
        check_tokens(tokens, self.config.vocab_size)?;
        let mut staging = zeros("staging", tokens.len() * 4)?;
        let workspace = Workspace::new(&mut self.backend, plan)?;
        let logits = workspace.activation(workspace.plan.activations.logits, usize::MAX);
        let pass = Pass { batch, time, start: 0, dropout: None, before: 0, logits: Some(Logits::All) };
        let mut attempt = || {
            self.backend.write(workspace.tokens(tokens.len()), stage(tokens, &mut staging))?;
            forward(self, &workspace, &pass)?;
            read_elems(&mut self.backend, logits)
        };
        let result = attempt();
        workspace.release(&mut self.backend).map_err(Error::Backend)?;
        result.map_err(Error::Backend)
    }

    /// Gives the backend back. Its buffers stay until it is dropped.
    pub fn into_backend(self) -> B {
        self.backend
    }
}
