//! [`Plan`]: where everything lies and how many bytes it takes, known before anything is allocated.
//!
//! Parameters, gradients, optimizer state and activations are a few large buffers. A [`Region`] is a place in one of them;
//! [`Region::on`] turns it into a [`Span`] once the buffer exists. In the parameter buffer embeddings come first, then the
//! matrices of the blocks, the head, and the vectors, so that what one [`Group`](crate::config::Group) trains lies side by
//! side, and an optimizer like AdamW is one pass over it.

use alloc::vec::Vec;

use crate::config::{ConfigError, GptConfig, Groups, Mask, Position, Precision, Recompute, TrainConfig};
use crate::memory::{Buffer, Dtype, Span};
use crate::op::{AttentionShape, counter, scalar};

mod activations;
mod live;
mod parameters;
mod trained;

pub(crate) use live::{LiveRows, LiveWords};
pub use parameters::{Affine, BlockParameters, HeadNorms, Init, Parameters, Tensor};
pub(crate) use trained::AVERAGE;
pub use trained::{States, Stretch, Update};

pub use activations::{Activations, BackwardActivations, BlockActivations, NormActivations, NormedHeads};

/// Regions begin at multiples of this many bytes: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// A place in a buffer: `len` elements from byte `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// In bytes, a multiple of [`ALIGN`].
    pub offset: usize,
    /// In elements.
    pub len: usize,
}

impl Region {
    /// The span that this region is, on `buffer`.
    pub fn on(self, buffer: Buffer, dtype: Dtype) -> Span {
        Span { buffer, dtype, offset: self.offset, len: self.len }
    }
}

/// Room for the keys and values of one block: each (slots, K, context, D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheRegions {
    /// Keys.
    pub keys: Region,
    /// Values.
    pub values: Region,
}

/// Bytes by category. Each category but the small ones is one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    /// Weights, as the backend's number type.
    pub parameters: usize,
    /// Copies of weights in fewer bits, which a pass reads in their place.
    pub copies: usize,
    /// Fixed tables: sinusoidal positions, rotary angles.
    pub constants: usize,
    /// Gradients, of what is trained.
    pub gradients: usize,
    /// What optimizers keep of what is trained, and its moving average, if there is to be one.
    pub optimizer: usize,
    /// What forward and backward compute.
    pub activations: usize,
    /// Keys and values of earlier positions.
    pub cache: usize,
    /// Tokens, targets, given vectors and their gradient, device scalars and counters.
    pub state: usize,
}

impl Bytes {
    /// All categories together.
    pub fn total(&self) -> usize {
        self.categories().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Names and values, for tables.
    pub fn categories(&self) -> [(&'static str, usize); 8] {
        [
            ("parameters", self.parameters),
            ("copies", self.copies),
            ("constants", self.constants),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("cache", self.cache),
            ("state", self.state),
        ]
    }
}

/// What a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Forward, backward and the update.
    Training,
    /// Forward over whole sequences: the logits of every position, (B, T, V).
    Inference,
    /// Forward by [rows](crate::op::EmbeddingRows) over a cache of keys and values: logits where they are wanted, (W, V).
    Decoding,
}

/// Where everything lies. See the [module](self).
///
/// ```
/// use minigpt_core::{Dtype, GptConfig, Plan, Recompute};
/// let config = GptConfig::new(65, 64);
/// let plan = Plan::training(&config, Dtype::F32, 12, 64)?;
/// assert_eq!(plan.parameter_count, 804_096);
/// assert_eq!(plan.bytes.gradients, 4 * plan.parameter_count);
/// let frugal = Plan::training_with(&config, Dtype::F32, 12, 64, Recompute::Blocks)?;
/// assert!(frugal.bytes.activations < plan.bytes.activations / 2);
/// # Ok::<(), minigpt_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The model.
    pub config: GptConfig,
    /// The backend's number type.
    pub elem: Dtype,
    /// What is rounded.
    pub precision: Precision,
    /// How keys and values are stored in the caches.
    pub cache_dtype: Dtype,
    /// What for.
    pub purpose: Purpose,
    /// What the backward pass computes again. Training only.
    pub recompute: Recompute,
    /// B, at most: sequences that go through the model at once. 1 in decoding, which goes by rows.
    pub batch: usize,
    /// Sequences whose tokens there is room for: in training those of a whole micro-batch, which goes through the model in
    /// slices of `batch`; in decoding the slots.
    pub sequences: usize,
    /// T, at most, given vectors among them; in decoding R, how many rows go through the model at once.
    pub time: usize,
    /// Every parameter.
    pub parameters: Parameters<Tensor>,
    /// How many numbers the model has.
    pub parameter_count: usize,
    /// The span of all parameters, with the gaps that alignment leaves. Elements.
    pub parameter_span: usize,
    /// Where the copies lie that a pass reads in the place of the weights that are trained, in bf16, in a buffer of their own:
    /// those of embeddings of tokens and of linear layers. In training under [`Precision::Bf16`] only; else `None` of all.
    pub copies: Parameters<Option<Region>>,
    /// Which optimizer trains what. Training only.
    pub groups: Groups,
    /// What a moving average of the weights keeps of itself, if there is to be one. Training only.
    pub average: Option<f64>,
    /// The place of each parameter's gradient among the gradients; `None` of one that is [frozen](Plan::freezing), and of all in
    /// inference.
    pub gradients: Parameters<Option<Region>>,
    /// The span of all gradients, with the gaps that alignment leaves. Elements.
    pub gradient_span: usize,
    /// What is trained of the parameters, in stretches without gaps. Training only.
    pub stretches: Vec<Stretch>,
    /// What is kept of each parameter that is [trained](Plan::trained), in the same order, in the optimizer's buffer.
    pub states: Vec<States<Region>>,
    /// What the optimizers do, in order. Training only.
    pub updates: Vec<Update>,
    /// Room for the direction of Muon's largest matrix, in the optimizer's buffer.
    pub direction: Region,
    /// Sinusoidal (T, C) or rotary (T, D) table, among the constants.
    pub position_table: Option<Region>,
    /// What the forward pass computes, in the activation buffer.
    pub activations: Activations,
    /// What the backward pass needs, in the activation buffer. Training only.
    pub backward: Option<BackwardActivations>,
    /// One for each layer, in the cache buffer. Decoding only; else empty.
    pub caches: Vec<CacheRegions>,
    /// Input tokens (sequences, T - P), in the state buffer; in decoding the latest of each slot, (slots, twice the context).
    pub tokens: Region,
    /// The numbers of the given vectors, from 0 on, by which they are looked up: (sequences, P), in the state buffer.
    pub prefix_numbers: Region,
    /// The given vectors: (sequences, P, C), in the state buffer.
    pub prefix: Region,
    /// Their gradient, (sequences, P, C), in the state buffer. Training only; else empty.
    pub d_prefix: Region,
    /// What says which rows are live, and of which logits are wanted, in the state buffer. Decoding only; else empty.
    pub rows: Region,
    /// The tokens that a pass chose, (W), in the state buffer. Decoding only; else empty.
    pub choices: Region,
    /// Targets (sequences, T - P), in the state buffer.
    pub targets: Region,
    /// [`scalar`]s, in the state buffer.
    pub scalars: Region,
    /// [`scalar`]s of evaluation, apart from those of a step that may be half done. Training only; else empty.
    pub evaluation: Region,
    /// [`counter`]s, in the state buffer.
    pub counters: Region,
    /// How large the buffers are.
    pub bytes: Bytes,
}

/// How the numbers of a plan are stored.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    elem: Dtype,
    cache: Dtype,
    precision: Precision,
}

impl Numbers {
    /// All of the backend's number type.
    fn whole(elem: Dtype) -> Self {
        Numbers { elem, cache: elem, precision: Precision::F32 }
    }
}

/// Lays regions one behind the other.
struct Layout {
    unit: usize,
    /// Bytes of a number that is not rounded.
    exact: usize,
    end: usize,
    field: &'static str,
}

impl Layout {
    fn new(dtype: Dtype, field: &'static str) -> Self {
        let unit = dtype.unit().1;
        Layout { unit, exact: unit, end: 0, field }
    }

    /// Room for numbers that no precision rounds.
    fn push_exact(&mut self, dims: &[usize]) -> Result<Region, ConfigError> {
        let unit = core::mem::replace(&mut self.unit, self.exact);
        let region = self.push(dims);
        self.unit = unit;
        region
    }

    /// Room for sets of which only one is in use at a time: each begins where the first does.
    fn overlay<const SETS: usize, const N: usize>(
        &mut self,
        sets: [[&[usize]; N]; SETS],
    ) -> Result<[[Region; N]; SETS], ConfigError> {
        let (begin, mut end) = (self.end, self.end);
        let mut regions = [[Region { offset: begin, len: 0 }; N]; SETS];
        for (set, places) in sets.iter().zip(&mut regions) {
            self.end = begin;
            for (dims, place) in set.iter().zip(places) {
                *place = self.push(dims)?;
            }
            end = end.max(self.end);
        }
        self.end = end;
        Ok(regions)
    }

    fn push(&mut self, dims: &[usize]) -> Result<Region, ConfigError> {
        let overflow = ConfigError::TooLarge { field: self.field };
        let len = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(overflow)?;
        let end = len.checked_mul(self.unit).and_then(|bytes| self.end.checked_add(bytes));
        let end = end.and_then(|end| end.checked_next_multiple_of(ALIGN)).ok_or(overflow)?;
        // A Rust allocation is at most isize::MAX bytes.
        if isize::try_from(end).is_err() {
            return Err(overflow);
        }
        let region = Region { offset: self.end, len };
        self.end = end;
        Ok(region)
    }
}

impl Plan {
    /// A plan to train with batches of `batch` sequences of `time` positions, given vectors among them, recomputing nothing.
    ///
    /// # Errors
    /// If the config is invalid, `batch` or `time` is 0, `time` is beyond the context, or a size overflows.
    pub fn training(config: &GptConfig, elem: Dtype, batch: usize, time: usize) -> Result<Plan, ConfigError> {
        Plan::training_with(config, elem, batch, time, Recompute::default())
    }

    /// As [`training`](Plan::training), recomputing what `recompute` says.
    ///
    /// # Errors
    /// As [`training`](Plan::training).
    pub fn training_with(
        config: &GptConfig,
        elem: Dtype,
        batch: usize,
        time: usize,
        recompute: Recompute,
    ) -> Result<Plan, ConfigError> {
        Plan::training_in_slices(config, elem, batch, batch, time, recompute)
    }

    /// As [`training_with`](Plan::training_with), for batches of `sequences` of which `batch` go through the model at once, or
    /// all if that is more.
    ///
    /// # Errors
    /// As [`training`](Plan::training).
    pub fn training_in_slices(
        config: &GptConfig,
        elem: Dtype,
        sequences: usize,
        batch: usize,
        time: usize,
        recompute: Recompute,
    ) -> Result<Plan, ConfigError> {
        let batch = batch.min(sequences);
        let mut plan =
            Plan::new(config, Numbers::whole(elem), Purpose::Training, recompute, sequences, batch, time)?;
        // Here, so that a program that only runs models does not have it.
        let all = alloc::vec![true; plan.parameters.list().len()];
        plan.lay_out_training(&all)?;
        Ok(plan)
    }

    /// A plan to run the model over at most `batch` sequences of `time` positions at once, given vectors among them.
    ///
    /// # Errors
    /// As [`training`](Plan::training).
    pub fn inference(
        config: &GptConfig,
        elem: Dtype,
        batch: usize,
        time: usize,
    ) -> Result<Plan, ConfigError> {
        Plan::inference_in(config, elem, batch, time, Precision::F32)
    }

    /// The same under a precision. As [`decoding_in`](Plan::decoding_in) it spares the programs that run models
    /// [`in_precision`](Plan::in_precision), which knows how training is laid out.
    pub(crate) fn inference_in(
        config: &GptConfig,
        elem: Dtype,
        batch: usize,
        time: usize,
        precision: Precision,
    ) -> Result<Plan, ConfigError> {
        let numbers = Numbers { precision, ..Numbers::whole(elem) };
        Plan::new(config, numbers, Purpose::Inference, Recompute::default(), batch, batch, time)
    }

    /// The smallest plan, of one token: to see what parameters a model has.
    ///
    /// # Errors
    /// If the config is invalid, or a size overflows.
    pub fn smallest(config: &GptConfig, elem: Dtype) -> Result<Plan, ConfigError> {
        Plan::inference(config, elem, 1, config.prefix.saturating_add(1))
    }

    /// A plan to decode up to `slots` sequences side by side, each over a cache of the context, with at most `rows` tokens
    /// going through the model at once; or as many as see one another, if that is more: a whole prefix, or without a mask a
    /// whole context.
    ///
    /// # Errors
    /// If the config is invalid, `slots` or `rows` is 0, a size overflows, or the slots have more than 2^31 positions together.
    pub fn decoding(config: &GptConfig, elem: Dtype, slots: usize, rows: usize) -> Result<Plan, ConfigError> {
        Plan::decoding_with(config, elem, slots, rows, elem)
    }

    /// As [`decoding`](Plan::decoding), over a cache that stores keys and values as `cache`: the backend's number type, f16 or
    /// bf16.
    ///
    /// # Errors
    /// As [`decoding`](Plan::decoding).
    pub fn decoding_with(
        config: &GptConfig,
        elem: Dtype,
        slots: usize,
        rows: usize,
        cache: Dtype,
    ) -> Result<Plan, ConfigError> {
        Plan::decoding_in(config, elem, slots, rows, cache, Precision::F32)
    }

    /// The same under a precision.
    pub(crate) fn decoding_in(
        config: &GptConfig,
        elem: Dtype,
        slots: usize,
        rows: usize,
        cache: Dtype,
        precision: Precision,
    ) -> Result<Plan, ConfigError> {
        if slots == 0 {
            return Err(ConfigError::Zero { field: "slots" });
        }
        if rows == 0 {
            return Err(ConfigError::Zero { field: "rows" });
        }
        // More rows than the slots have positions are never live.
        let rows = rows.min(slots.saturating_mul(config.context.max(1)));
        // A prefix runs at once, and so does what sees itself both ways.
        let rows = rows.max(if config.mask == Mask::None { config.context } else { config.prefix });
        let numbers = Numbers { elem, cache, precision };
        Plan::new(config, numbers, Purpose::Decoding, Recompute::default(), slots, 1, rows)
    }

    /// The same plan under another precision. The caches of a plan for decoding stay as they are.
    ///
    /// # Errors
    /// If a size overflows.
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Plan, Precision};
    /// let whole = Plan::training(&GptConfig::new(65, 64), Dtype::F32, 12, 64)?;
    /// let rounded = whole.clone().in_precision(Precision::Bf16)?;
    /// assert!(rounded.bytes.activations < whole.bytes.activations * 6 / 10);
    /// assert!(rounded.bytes.copies < whole.bytes.parameters * 6 / 10);
    /// assert_eq!(rounded.bytes.optimizer, whole.bytes.optimizer);
    /// # Ok::<(), minigpt_core::ConfigError>(())
    /// ```
    pub fn in_precision(self, precision: Precision) -> Result<Plan, ConfigError> {
        if precision == self.precision {
            return Ok(self);
        }
        let numbers = Numbers { elem: self.elem, cache: self.cache_dtype, precision };
        let Plan { purpose, recompute, sequences, batch, time, .. } = self;
        let mut plan = Plan::new(&self.config, numbers, purpose, recompute, sequences, batch, time)?;
        if purpose == Purpose::Training {
            let trained: Vec<bool> = self.gradients.list().into_iter().map(Option::is_some).collect();
            (plan.groups, plan.average) = (self.groups, self.average);
            plan.lay_out_training(&trained)?;
        }
        Ok(plan)
    }

    /// How activations are stored.
    pub fn activation_dtype(&self) -> Dtype {
        self.precision.activations(self.elem)
    }

    /// W: from how many rows at most logits are wanted at once, where `rows` go through the model.
    pub(crate) fn wanted(&self, rows: usize) -> usize {
        self.sequences.min(rows)
    }

    fn new(
        config: &GptConfig,
        Numbers { elem, cache: cache_dtype, precision }: Numbers,
        purpose: Purpose,
        recompute: Recompute,
        sequences: usize,
        batch: usize,
        time: usize,
    ) -> Result<Plan, ConfigError> {
        config.validate()?;
        if batch == 0 {
            return Err(ConfigError::Zero { field: "batch" });
        }
        if time == 0 {
            return Err(ConfigError::Zero { field: "time" });
        }
        if time > config.context && purpose != Purpose::Decoding {
            let GptConfig { prefix, context, .. } = *config;
            return Err(ConfigError::BeyondContext { time: time.saturating_sub(prefix), prefix, context });
        }
        // How many of the positions are a token's.
        let text = match purpose {
            Purpose::Decoding => 0,
            Purpose::Training | Purpose::Inference => time.saturating_sub(config.prefix),
        };
        if text == 0 && purpose != Purpose::Decoding {
            return Err(ConfigError::PrefixFillsContext { prefix: config.prefix, context: time });
        }
        let training = purpose == Purpose::Training;
        let slots = if purpose == Purpose::Decoding { sequences } else { 0 };
        let (parameters, parameter_count, parameter_bytes) = parameters::lay_out(config, elem)?;
        let unit = elem.unit().1;

        let mut constants = Layout::new(elem, "constants");
        let position_table = match config.position {
            Position::Sinusoidal => Some(constants.push(&[config.context, config.d_model])?),
            Position::Rotary { .. } => Some(constants.push(&[config.context, config.d_head()])?),
            Position::Learned | Position::None => None,
        };

        let mut copied = Layout::new(Dtype::Bf16, "copies");
        let copies = match (purpose, precision) {
            (Purpose::Training, Precision::Bf16) => parameters.copies(&mut copied)?,
            _ => parameters.map(|_| None),
        };

        let mut layout = Layout::new(precision.activations(elem), "activations");
        layout.exact = unit;
        let (activations, backward) = match purpose {
            Purpose::Training => {
                let (forward, backward) = activations::training(config, recompute, batch, time, &mut layout)?;
                (forward, Some(backward))
            }
            Purpose::Inference => (activations::inference(config, batch, time, &mut layout)?, None),
            Purpose::Decoding => (activations::decoding(config, time, slots.min(time), &mut layout)?, None),
        };

        let mut cache = Layout::new(cache_dtype, "cache");
        let mut caches = Vec::new();
        if slots > 0 {
            let dims = [slots, config.kv_heads(), config.context, config.d_head()];
            caches.try_reserve_exact(config.layers).map_err(|_| ConfigError::TooLarge { field: "layers" })?;
            for _ in 0..config.layers {
                caches.push(CacheRegions { keys: cache.push(&dims)?, values: cache.push(&dims)? });
            }
        }

        let mut state = Layout::new(Dtype::U32, "tokens");
        let tokens = match purpose {
            Purpose::Decoding => {
                let tokens = state.push(&[slots, 2, config.context])?;
                // Words of u32 say where a token is.
                u32::try_from(tokens.len).map_err(|_| ConfigError::TooLarge { field: "slots" })?;
                tokens
            }
            Purpose::Training | Purpose::Inference => state.push(&[sequences, text])?,
        };
        let prefix_numbers = state.push(&[sequences, config.prefix])?;
        let (rows, wanted) = match purpose {
            Purpose::Decoding => (LiveWords::new(config, time).count(slots.min(time)), slots.min(time)),
            Purpose::Training | Purpose::Inference => (0, 0),
        };
        let (rows, choices) = (state.push(&[rows])?, state.push(&[wanted])?);
        let targets = state.push(&[sequences, if training { text } else { 0 }])?;
        let counters = state.push(&[counter::LEN])?;
        state.unit = unit;
        let scalars = state.push(&[scalar::LEN])?;
        let evaluation = state.push(&[if training { scalar::LEN } else { 0 }])?;
        let prefix = state.push(&[sequences, config.prefix, config.d_model])?;
        let d_prefix = state.push(&[if training { sequences } else { 0 }, config.prefix, config.d_model])?;

        let bytes = Bytes {
            parameters: parameter_bytes,
            copies: copied.end,
            constants: constants.end,
            gradients: 0,
            optimizer: 0,
            activations: layout.end,
            cache: cache.end,
            state: state.end,
        };
        let gradients = parameters.map(|_| None);
        let plan = Plan {
            config: config.clone(),
            elem,
            precision,
            cache_dtype,
            purpose,
            recompute,
            batch,
            sequences,
            time,
            parameters,
            parameter_count,
            parameter_span: parameter_bytes / unit,
            copies,
            groups: TrainConfig::constant(0.0).groups,
            average: None,
            gradients,
            gradient_span: 0,
            stretches: Vec::new(),
            states: Vec::new(),
            updates: Vec::new(),
            direction: Region { offset: 0, len: 0 },
            position_table,
            activations,
            backward,
            caches,
            tokens,
            prefix_numbers,
            prefix,
            d_prefix,
            rows,
            choices,
            targets,
            scalars,
            evaluation,
            counters,
            bytes,
        };
        Ok(plan)
    }

    /// Floating-point operations of one training step over `sequences` sequences of `time` tokens: the model's
    /// matrix products, forward and backward, and the pairs of attention that see each other. Recomputation does not count, and
    /// frozen parameters count as if they were trained: what is really computed is [`program`](Plan::program)`.flops()`.
    pub fn training_flops(&self, sequences: usize) -> u64 {
        let config = &self.config;
        let GptConfig { layers, d_model, d_ff, vocab_size, .. } = *config;
        let (d_qkv, d_attention) = (config.d_qkv(), config.d_attention());
        let mul = |dims: &[usize]| dims.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
        let attention = mul(&[layers, d_model, d_qkv.saturating_add(d_attention)]);
        let matrices = if config.gated { 3 } else { 2 };
        let block = attention.saturating_add(mul(&[matrices, layers, d_model, d_ff]));
        // Each pair has 4 operations forward and 8 backward.
        let pairs = AttentionShape::new(config, 1, self.time).pairs();
        let head = mul(&[6, self.time.saturating_sub(config.prefix), vocab_size, d_model]);
        block
            .saturating_mul(mul(&[6, self.time]))
            .saturating_add(head)
            .saturating_add(mul(&[12, layers, d_attention]).saturating_mul(pairs))
            .saturating_mul(sequences as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_tokens_are_kept_than_a_word_can_tell_apart() {
        let config = GptConfig { layers: 1, heads: 1, d_model: 1, d_ff: 1, ..GptConfig::new(2, 1 << 11) };
        let plan = |slots| Plan::decoding(&config, Dtype::F32, slots, 1);
        // Where pointers have 32 bits, the cache alone is too large.
        let field = if cfg!(target_pointer_width = "64") { "slots" } else { "cache" };
        assert_eq!(plan(1 << 20), Err(ConfigError::TooLarge { field }));
        #[cfg(target_pointer_width = "64")]
        assert_eq!(plan((1 << 20) - 1).unwrap().tokens.len, (1 << 32) - (1 << 12));
    }

    #[test]
    fn training_operations_are_counted_and_saturate() {
        let config = GptConfig { layers: 2, heads: 1, d_model: 3, d_ff: 5, ..GptConfig::new(7, 4) };
        let plan = Plan::training(&config, Dtype::F32, 1, 4).unwrap();
        let weights = 2 * (4 * 3 * 3 + 2 * 3 * 5) + 7 * 3;
        let attention = 3 * 2 * 4 * 3 * (1 + 2 + 3 + 4);
        let step = 6 * weights * 4 + attention;
        assert_eq!(plan.training_flops(10), 10 * step);
        assert_eq!(plan.training_flops(usize::MAX), step.saturating_mul(usize::MAX as u64));
        let gated = Plan::training(&GptConfig { gated: true, ..config }, Dtype::F32, 1, 4).unwrap();
        assert_eq!(gated.training_flops(10), 10 * (step + 6 * 4 * 2 * 3 * 5));
    }
}
