//! The model, written once over any [`Backend`]: [forward](self), backward and decoding.
//!
//! ```text
//! tokens -> embedding -> block 0 -> ... -> block L-1 -> norm -> head -> logits
//!
//! block (norms first):   x -> norm -> q,k,v -> attention -> projection -> (+ x) = y
//!                        y -> norm -> up -> activation   -> down       -> (+ y)
//! ```
//!
//! A pass is a list of ops over the spans of a [`Plan`]; the backward pass is the same list in reverse. Read `pass.rs`
//! first; then `embedding.rs`, `attention.rs`, `feed_forward.rs` and `head.rs` each hold a part of the model, its backward
//! pass beside its forward pass.

mod attention;
mod decode;
mod embedding;
mod feed_forward;
mod head;
mod observe;
mod pass;
mod place;
mod storage;
mod workspace;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::backend::{Allocation, Backend, Device, Shared, read_elems, submit, write_elems};
use crate::config::{GptConfig, Position, Precision};
use crate::error::{Error, out_of_memory};
use crate::memory::{Dtype, Span, zeros};
use crate::plan::{Init, Parameters, Plan, Tensor};
use crate::real::Real;
use crate::reference;
use crate::rng::{Rng, Stream};

pub use decode::{Batch, Chosen, Decoder, Generate, Sequence, window_length};
#[cfg(feature = "train")]
pub(crate) use head::HeadPiece;
pub(crate) use pass::{Buffers, Pass, Weights};
#[cfg(feature = "train")]
pub(crate) use pass::{Flow, Gradients};
#[cfg(feature = "train")]
pub(crate) use place::{Place, Places, nowhere, read_into, write_tensor};
pub use storage::Extras;
#[cfg(feature = "train")]
pub(crate) use storage::Saved;
pub(crate) use workspace::Workspace;

/// A GPT on a device: its shape, and where its weights lie. A clone is another handle on the same weights.
///
/// ```
/// use minigpt_core::{GptConfig, Model, Reference};
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let logits = model.logits(&[0, 1, 2, 3], 1, 4)?;
/// assert_eq!(logits.len(), 4 * 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Model<B: Backend>(Shared<Inner<B>>);

/// What the handles of a model share.
struct Inner<B: Backend> {
    device: Device<B>,
    config: GptConfig,
    /// What each parameter is.
    tensors: Parameters<Tensor>,
    weights: Weights,
    /// All parameters in one, laid out as the plan has them; only then can they be trained.
    trainable: Option<Span>,
    /// Bytes of weights that were to be borrowed and had to be copied.
    copied: usize,
    /// What its passes round.
    precision: Precision,
    /// What the spans lie in.
    _owned: Vec<Allocation<B>>,
    /// The model that the others are of, whose passes round something else.
    base: Option<Model<B>>,
}

impl<B: Backend> Clone for Model<B> {
    fn clone(&self) -> Self {
        Model(Shared::clone(&self.0))
    }
}

impl<B: Backend> fmt::Debug for Model<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("config", &self.0.config).finish_non_exhaustive()
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

/// Parameters, and the buffers that they lie in.
pub(super) struct Laid<B: Backend> {
    pub(super) plan: Plan,
    pub(super) spans: Parameters<Span>,
    pub(super) owned: Vec<Allocation<B>>,
    /// All parameters in one, if they can be trained.
    pub(super) trainable: Option<Span>,
    /// Bytes that were to be borrowed and were copied.
    pub(super) copied: usize,
}

impl<B: Backend> Model<B> {
    /// A model with fresh weights drawn from `seed`: normal with a standard deviation of 0.02, in projections to the
    /// residual stream 0.02 / sqrt(2 layers); norms one, biases zero.
    ///
    /// `device` is a backend, which then is the model's alone, or a reference to a [`Device`] that others share.
    ///
    /// # Errors
    /// If the config is invalid or the weights do not fit.
    pub fn new(device: impl Into<Device<B>>, config: GptConfig, seed: u64) -> Result<Self, Error<B::Error>> {
        let model = Self::empty(&device.into(), config)?;
        let mut rng = Rng::new(seed, Stream::Init);
        let residual = 0.02 / libm::sqrt(2.0 * model.config().layers as f64);
        for (tensor, span) in model.spans() {
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
    pub(crate) fn empty(device: &Device<B>, config: GptConfig) -> Result<Self, Error<B::Error>> {
        let plan = Plan::smallest(&config, B::Elem::DTYPE)?;
        let needed = plan.bytes.parameters;
        let weights = device.alloc(needed).map_err(|error| out_of_memory(needed, error))?;
        let spans = plan.parameters.map(|tensor| tensor.region.on(weights.buffer(), B::Elem::DTYPE));
        let trainable = Some(weights.span(B::Elem::DTYPE, plan.parameter_span));
        Self::over(device, Laid { plan, spans, owned: vec![weights], trainable, copied: 0 })
    }

    /// A model over weights that lie on the device already.
    fn over(device: &Device<B>, laid: Laid<B>) -> Result<Self, Error<B::Error>> {
        let Laid { plan, spans, mut owned, trainable, copied } = laid;
        let mut position_table = None;
        if let Some(region) = plan.position_table {
            let needed = plan.bytes.constants;
            let constants = device.alloc(needed).map_err(|error| out_of_memory(needed, error))?;
            let table = region.on(constants.buffer(), B::Elem::DTYPE);
            let mut values = zeros("position_table", table.len)?;
            match plan.config.position {
                Position::Rotary { base, .. } => {
                    reference::rotary::rotary_table(&mut values, plan.config.d_head(), base);
                }
                _ => reference::position::sinusoidal_table(&mut values, plan.config.d_model),
            }
            write_elems(&mut *device.lock(), table, &values).map_err(Error::Backend)?;
            owned.push(constants);
            position_table = Some(table);
        }
        Ok(Model(Shared::new(Inner {
            device: device.clone(),
            config: plan.config,
            tensors: plan.parameters,
            weights: Weights { parameters: spans, position_table },
            trainable,
            copied,
            precision: Precision::F32,
            _owned: owned,
            base: None,
        })))
    }

    /// Writes `value(i)` to element i of `span`, piece by piece.
    fn fill_span(&self, span: Span, mut value: impl FnMut(usize) -> B::Elem) -> Result<(), Error<B::Error>> {
        const PIECE: usize = 1024;
        let size = size_of::<B::Elem>();
        let mut bytes = vec![0; PIECE * size];
        for start in (0..span.len).step_by(PIECE) {
            let len = PIECE.min(span.len - start);
            for (i, out) in bytes.chunks_exact_mut(size).take(len).enumerate() {
                value(start + i).to_le_slice(out);
            }
            let piece = span.slice(start, len);
            self.device().lock().write(piece, &bytes[..len * size]).map_err(Error::Backend)?;
        }
        Ok(())
    }

    /// The same model, whose passes run under another [`Precision`]: its logits, and what is decoded from it. Under
    /// [`Bf16`](Precision::Bf16) matrices are read as copies in bf16, unless they are stored in 16 bits or fewer already; the rest
    /// is shared. The copies take half as much memory as the matrices, beside them; of a model whose matrices are
    /// [stored](Model::quantized) in bf16 there are none. It is there to be run; for a training, the precision is one of its
    /// [settings](crate::TrainConfig::precision).
    ///
    /// If the model learns meanwhile, make it anew: the copies are of the old weights, and the rest is not. What is
    /// [written](Model::write) of it are the weights themselves.
    ///
    /// ```
    /// use minigpt_core::{Decoder, GptConfig, Model, Precision, Reference};
    /// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
    /// let model = Model::new(Reference::<f32>::new(), config, 1)?;
    /// let rounded = model.in_precision(Precision::Bf16)?;
    /// let (exact, near) = (model.logits(&[0, 1, 2], 1, 3)?, rounded.logits(&[0, 1, 2], 1, 3)?);
    /// assert!(exact.iter().zip(&near).all(|(a, b)| (a - b).abs() < 0.01));
    /// let (whole, half) = (Decoder::new(&model, 4)?, Decoder::new(&rounded, 4)?);
    /// assert!(half.plan().bytes.cache * 2 == whole.plan().bytes.cache);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the copies do not fit, a weight is not finite or beyond the largest bf16, or the backend fails.
    pub fn in_precision(&self, precision: Precision) -> Result<Self, Error<B::Error>> {
        if let Some(same) =
            [Some(self), self.0.base.as_ref()].into_iter().flatten().find(|m| m.precision() == precision)
        {
            return Ok(same.clone());
        }
        let mut owned = Vec::new();
        let weights = self.weights_in(precision, &mut owned)?;
        Ok(Model(Shared::new(Inner {
            device: self.device().clone(),
            config: self.config().clone(),
            tensors: self.0.tensors.clone(),
            weights,
            trainable: None,
            copied: self.0.copied,
            precision,
            _owned: owned,
            base: Some(self.clone()),
        })))
    }

    /// What its passes round.
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// Its shape.
    pub fn config(&self) -> &GptConfig {
        &self.0.config
    }

    /// The device that it lives on.
    pub fn device(&self) -> &Device<B> {
        &self.0.device
    }

    /// How many numbers it has.
    pub fn parameter_count(&self) -> usize {
        self.0.tensors.list().iter().map(|tensor| tensor.region.len).sum()
    }

    /// How many bytes of weights the backend had to copy when they were [borrowed](Model::borrow): 0 if it reads all of
    /// them where they lie, and for a model that was not borrowed.
    ///
    /// A CPU backend copies what is not aligned to four bytes (put `#[repr(align(64))]` on a constant; a mapped file
    /// is aligned), and copies all on a big-endian processor. A device with memory of its own always copies.
    pub fn copied_bytes(&self) -> usize {
        self.0.copied
    }

    /// Its parameters in the order of the model: what each is, and how it is stored.
    pub fn parameters(&self) -> impl Iterator<Item = (&Tensor, Dtype)> {
        self.spans().map(|(tensor, span)| (tensor, span.dtype))
    }

    /// Its parameters, and where they lie.
    fn spans(&self) -> impl Iterator<Item = (&Tensor, Span)> {
        self.0.tensors.list().into_iter().zip(self.0.weights.parameters.list().into_iter().copied())
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.0.weights
    }

    /// All parameters as one span, if they can be trained.
    pub(crate) fn trainable(&self) -> Option<Span> {
        self.0.trainable
    }

    fn span(&self, name: &str) -> Option<Span> {
        self.spans().find(|(tensor, _)| tensor.name == name).map(|(_, span)| span)
    }

    /// The values of the parameter called `name`, row by row.
    ///
    /// # Errors
    /// If the backend fails, or the weights are quantised. `Ok(None)` if there is none such.
    pub fn parameter(&self, name: &str) -> Result<Option<Vec<B::Elem>>, Error<B::Error>> {
        let Some(span) = self.span(name) else { return Ok(None) };
        read_elems(&mut *self.device().lock(), span).map(Some).map_err(Error::Backend)
    }

    /// Replaces the parameter called `name`, for all handles on this model; `Ok(false)` if there is none such. Who runs the
    /// model on another thread meanwhile may see half of it.
    ///
    /// # Errors
    /// If `values` has not as many numbers as the parameter, or the weights are borrowed.
    pub fn set_parameter(&self, name: &str, values: &[B::Elem]) -> Result<bool, Error<B::Error>> {
        let Some(span) = self.span(name) else { return Ok(false) };
        if self.trainable().is_none() {
            return Err(Error::Frozen);
        }
        if span.len != values.len() {
            return Err(Error::BatchLength { found: values.len(), expected: span.len });
        }
        self.fill_span(span, |i| values[i])?;
        Ok(true)
    }

    /// The logits of every token: (B, T, V), from `tokens` (B, T). Allocates; for text, see [`Decoder`].
    ///
    /// # Errors
    /// If a token is not in the vocabulary, `time` is beyond the context, or memory does not suffice; if the model has a
    /// [prefix](GptConfig::prefix), see [`logits_with`](Model::logits_with).
    pub fn logits(&self, tokens: &[u32], batch: usize, time: usize) -> Result<Vec<B::Elem>, Error<B::Error>> {
        if self.config().prefix > 0 {
            return Err(Error::NoPrefix { prefix: self.config().prefix });
        }
        self.logits_with(&[], tokens, batch, time)
    }

    /// As [`logits`](Model::logits), with given vectors before the tokens of each sequence: `prefix` (B, P, C).
    ///
    /// # Errors
    /// As [`logits`](Model::logits), and if `prefix` has another length.
    pub fn logits_with(
        &self,
        prefix: &[B::Elem],
        tokens: &[u32],
        batch: usize,
        time: usize,
    ) -> Result<Vec<B::Elem>, Error<B::Error>> {
        let workspace = self.workspace_for(tokens, batch, time)?;
        let mut staging = zeros("staging", tokens.len() * 4)?;
        let pass = workspace.pass(self);
        let logits = workspace.logits();
        let given = workspace.prefix(prefix)?;
        let mut backend = self.device().lock();
        let mut attempt = || {
            write_elems(&mut *backend, given, prefix)?;
            backend.write(pass.tokens(), stage(tokens, &mut staging))?;
            submit(&mut *backend, |sink| pass.infer(sink))?;
            read_elems(&mut *backend, logits)
        };
        let result = attempt();
        // Before the workspace goes, which needs the device for itself.
        drop(backend);
        result.map_err(Error::Backend)
    }

    /// What a pass over `tokens` (B, T) to all their logits takes, once they are known to be in order.
    fn workspace_for(
        &self,
        tokens: &[u32],
        batch: usize,
        time: usize,
    ) -> Result<Workspace<B>, Error<B::Error>> {
        let positions = time.saturating_add(self.config().prefix);
        let plan = Plan::inference_in(self.config(), B::Elem::DTYPE, batch, positions, self.precision())?;
        if tokens.len() != batch * time {
            return Err(Error::BatchLength { found: tokens.len(), expected: batch * time });
        }
        check_tokens(tokens, self.config().vocab_size)?;
        Workspace::inference(self, plan)
    }
}
