//! [`Probe`]: looks at the tensors of a pass while it runs. Attention maps, the residual stream, gradients: what an op leaves
//! behind is overwritten soon, and what it never stores, such as attention weights, exists only for whoever asks.
//!
//! [`Model::observe`](crate::Model::observe) observes a forward pass,
//! [`Trainer::observe_step`](crate::Trainer::observe_step) and
//! [`Trainer::observe_micro_step`](crate::Trainer::observe_micro_step) training, backward pass included. A [`Recording`]
//! keeps what it is told to keep; [`when`] takes two closures; a type of your own implements [`Probe`].
//!
//! ```
//! use minigpt_core::probe::{Recording, TensorKind};
//! use minigpt_core::{GptConfig, Model, Reference};
//! let (heads, time) = (2, 5);
//! let config = GptConfig { layers: 2, heads, d_model: 8, d_ff: 16, ..GptConfig::new(5, time) };
//! let model = Model::new(Reference::<f32>::new(), config, 1)?;
//!
//! let mut recording = Recording::of(|at| at.kind == TensorKind::AttentionWeights);
//! model.observe(&[0, 1, 2, 3, 4], 1, time, &mut recording)?;
//!
//! // (B, H, T, T), of the first layer.
//! let weights = recording.value(0, TensorKind::AttentionWeights).ok_or("no such tensor")?;
//! for (head, map) in weights.chunks(time * time).enumerate() {
//!     println!("head {head}");
//!     for query in map.chunks(time) {
//!         let line: Vec<String> = query.iter().map(|weight| format!("{weight:.2}")).collect();
//!         println!("{}", line.join(" "));
//!         assert!((query.iter().sum::<f32>() - 1.0).abs() < 1e-6);
//!     }
//! }
//! # assert_eq!(weights.len(), heads * time * time);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Observation changes nothing: logits, losses, gradients and weights have the bits that they have without it. It costs time,
//! because the device waits while values are read, and memory for what is wanted. A pass that is not observed runs the same ops
//! as if there were no probes.

mod observation;
mod recording;
mod views;

use alloc::vec::Vec;
use core::fmt;

pub(crate) use observation::Observation;
pub use recording::Recording;

use crate::config::GptConfig;
use crate::memory::InvalidOp;
use crate::op::{Name, Sizes};
use crate::plan::Tensor;
use crate::real::Real;

/// What a tensor is in the model.
///
/// Shapes are those of the whole batch, whether it goes through the model at once or in slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TensorKind {
    /// The residual stream as it enters the first block, (B, T, C): tokens and positions, after dropout. In no layer.
    Embedding,
    /// The result of the attention sub-layer's norm: (B, T, C). With norms last it is also `ResidualMiddle`.
    AttentionNorm,
    /// Queries before their rotation and behind their norm, with rotary positions: (B, T, H, D).
    QueryBeforeRotary,
    /// Keys before their rotation and behind their norm, with rotary positions: (B, T, K, D).
    KeyBeforeRotary,
    /// Queries as the scores are made of them: (B, T, H, D).
    Query,
    /// Keys as the scores are made of them: (B, T, K, D).
    Key,
    /// Values: (B, T, K, D).
    Value,
    /// Attention scores, scaled, before the softmax: (B, H, T, T), queries by keys; 0 where a query does not see a
    /// key: above the diagonal under a causal mask. Has no gradient here.
    AttentionScores,
    /// Attention weights, after the softmax and before dropout: (B, H, T, T), queries by keys; each row sums to 1. Has no
    /// gradient here.
    AttentionWeights,
    /// The heads' results side by side, weights times values: (B, T, H, D).
    Attended,
    /// What the attention sub-layer adds to the residual stream, projected and after dropout: (B, T, C).
    AttentionOutput,
    /// The residual stream with `AttentionOutput` added, before the norm; with norms last only: (B, T, C).
    AttentionSum,
    /// The residual stream between the two sub-layers of a block: (B, T, C).
    ResidualMiddle,
    /// The result of the feed-forward sub-layer's norm: (B, T, C). With norms last it is also `ResidualOutput`.
    FeedForwardNorm,
    /// What the activation reads: (B, T, F). If gated, with what its result is multiplied by behind it: (B, T, 2F).
    PreActivation,
    /// What the activation gives, or the gate: (B, T, F). A ReLU unit that is 0 everywhere is dead.
    Activation,
    /// What the feed-forward sub-layer adds to the residual stream, after dropout: (B, T, C).
    FeedForwardOutput,
    /// The residual stream with `FeedForwardOutput` added, before the norm; with norms last only: (B, T, C).
    FeedForwardSum,
    /// The residual stream behind a block: (B, T, C).
    ResidualOutput,
    /// The result of the final norm, with norms first only: (B, T, C). In no layer.
    FinalNorm,
    /// The logits: (B, T, V), T without the given vectors. In no layer.
    Logits,
    /// -ln p of the target at each position, in nats, 0 where there is none: (B, T). In no layer. A model that is not in
    /// training has the tokens that follow as its targets, and the last position has none; this needs the feature `train`.
    Loss,
}

impl TensorKind {
    /// Its name, dotted as the parts of a [`Program`](crate::op::Program) are.
    pub const fn name(self) -> &'static str {
        match self {
            TensorKind::Embedding => "embedding",
            TensorKind::AttentionNorm => "attention.norm",
            TensorKind::QueryBeforeRotary => "attention.query_before_rotary",
            TensorKind::KeyBeforeRotary => "attention.key_before_rotary",
            TensorKind::Query => "attention.query",
            TensorKind::Key => "attention.key",
            TensorKind::Value => "attention.value",
            TensorKind::AttentionScores => "attention.scores",
            TensorKind::AttentionWeights => "attention.weights",
            TensorKind::Attended => "attention.attended",
            TensorKind::AttentionOutput => "attention.output",
            TensorKind::AttentionSum => "attention.sum",
            TensorKind::ResidualMiddle => "residual.middle",
            TensorKind::FeedForwardNorm => "feed_forward.norm",
            TensorKind::PreActivation => "feed_forward.pre_activation",
            TensorKind::Activation => "feed_forward.activation",
            TensorKind::FeedForwardOutput => "feed_forward.output",
            TensorKind::FeedForwardSum => "feed_forward.sum",
            TensorKind::ResidualOutput => "residual.output",
            TensorKind::FinalNorm => "final_norm",
            TensorKind::Logits => "logits",
            TensorKind::Loss => "loss",
        }
    }

    /// Whether it is the residual stream: at the entry of the model, between two sub-layers or behind a block.
    pub const fn is_residual_stream(self) -> bool {
        matches!(self, TensorKind::Embedding | TensorKind::ResidualMiddle | TensorKind::ResidualOutput)
    }

    /// Its dimensions in a pass over `batch` sequences of `time` positions.
    fn shape(self, config: &GptConfig, batch: usize, time: usize) -> Sizes {
        let (b, t) = (("B", batch), ("T", time));
        // Given vectors have none.
        let tokens = ("T", time.saturating_sub(config.prefix));
        match self {
            TensorKind::KeyBeforeRotary | TensorKind::Key | TensorKind::Value => {
                Sizes::of([b, t, ("K", config.kv_heads()), ("D", config.d_head())])
            }
            TensorKind::QueryBeforeRotary | TensorKind::Query | TensorKind::Attended => {
                Sizes::of([b, t, ("H", config.heads), ("D", config.d_head())])
            }
            TensorKind::AttentionScores | TensorKind::AttentionWeights => {
                Sizes::of([b, ("H", config.heads), t, t])
            }
            TensorKind::PreActivation if config.gated => Sizes::of([b, t, ("2F", config.d_up())]),
            TensorKind::PreActivation | TensorKind::Activation => Sizes::of([b, t, ("F", config.d_ff)]),
            TensorKind::Logits => Sizes::of([b, tokens, ("V", config.vocab_size)]),
            TensorKind::Loss => Sizes::of([b, tokens]),
            _ => Sizes::of([b, t, ("C", config.d_model)]),
        }
    }
}

/// One tensor of a pass, or the gradient with respect to it. It prints as `h.0.attention.weights (B 1, H 2, T 5, T 5)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The number of the block that it is in, if it is in one.
    pub layer: Option<usize>,
    /// What it is.
    pub kind: TensorKind,
    /// Whether this is the gradient of the summed loss with respect to the tensor, from the backward pass, and not the tensor.
    pub gradient: bool,
    /// Its dimensions by their letters: values come row-major, the last dimension contiguous.
    pub shape: Sizes,
}

impl Point {
    /// How many values it has.
    pub fn count(&self) -> usize {
        self.shape.iter().fold(1, |count, (_, size)| count.saturating_mul(size))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Name { layer: self.layer, part: self.kind.name() };
        write!(f, "{}{name} ({})", if self.gradient { "gradient of " } else { "" }, self.shape)
    }
}

/// Is asked which tensors of a pass it wants to see, and is shown them as soon as they are there.
///
/// Each comes once and whole, (B, T, ..), in the order of the program: forward, then backward from the last layer to the
/// first. What the backward pass computes again is not shown again. The slices of a batch that does not go through the model
/// at once are joined: what is wanted of the earlier ones waits in the program's memory for the last.
///
/// Between two ops of an observed pass the device is free, so a probe may use the model and its device. If that changes the
/// weights, the rest of the pass has the new ones.
pub trait Probe<R: Real> {
    /// Whether to see this tensor. Asked once for each in a pass, before anything runs.
    fn wants(&mut self, at: &Point) -> bool;

    /// The values of a tensor that was wanted.
    ///
    /// # Errors
    /// Whatever keeps the probe from going on, such as [`InvalidOp::HostMemory`]. It ends the pass, and the caller has it.
    fn see(&mut self, at: &Point, values: Vec<R>) -> Result<(), InvalidOp>;

    /// Whether to see the gradient of this parameter once a micro-step has added to it. Asked in training only, before anything
    /// runs. The default: no.
    fn wants_gradient(&mut self, of: &Tensor) -> bool {
        let _ = of;
        false
    }

    /// The gradient of a parameter, (rows, cols): of the mean loss over the targets of the step so far, as
    /// [`Trainer::gradient`](crate::Trainer::gradient) gives it.
    ///
    /// # Errors
    /// As [`see`](Probe::see).
    fn see_gradient(&mut self, of: &Tensor, values: Vec<R>) -> Result<(), InvalidOp> {
        let _ = (of, values);
        Ok(())
    }
}

/// A probe of two closures: which tensors to see, and what to do with each.
///
/// ```
/// use minigpt_core::probe::when;
/// use minigpt_core::{GptConfig, Model, Reference};
/// let config = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let mut norms = Vec::new();
/// let mut probe = when(
///     |at| at.kind.is_residual_stream(),
///     |at, values: &[f32]| {
///         println!("{at}");
///         norms.push(values.iter().map(|x| x * x).sum::<f32>().sqrt());
///     },
/// );
/// model.observe(&[0, 1, 2, 3], 1, 4, &mut probe)?;
/// # drop(probe);
/// assert_eq!(norms.len(), 1 + 2 * 2); // the embedding, and two in each block
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn when<R: Real>(wants: impl FnMut(&Point) -> bool, see: impl FnMut(&Point, &[R])) -> impl Probe<R> {
    When { wants, see }
}

struct When<W, S> {
    wants: W,
    see: S,
}

impl<R: Real, W: FnMut(&Point) -> bool, S: FnMut(&Point, &[R])> Probe<R> for When<W, S> {
    fn wants(&mut self, at: &Point) -> bool {
        (self.wants)(at)
    }

    fn see(&mut self, at: &Point, values: Vec<R>) -> Result<(), InvalidOp> {
        (self.see)(at, &values);
        Ok(())
    }
}
