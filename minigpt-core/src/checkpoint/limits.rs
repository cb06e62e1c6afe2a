//! [`Limits`]: what a stranger's checkpoint may ask for.

use super::Fault;
use crate::config::{GptConfig, Mask, Position, TrainConfig};

/// The largest checkpoint that is opened. A small machine sets them lower, and a program that trusts its files higher.
///
/// Nothing that is opened takes more memory than a small multiple of its bytes, whatever the limits. They are for what
/// a checkpoint makes a program do later: a few bytes can ask for a context of billions, whose cache no decoder has
/// room for.
///
/// ```
/// use minigpt_core::{Checkpoint, GptConfig, Model, Reference, checkpoint::Limits, model::Extras};
/// let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(5, 1000) };
/// let mut file = Vec::new();
/// Model::new(Reference::<f32>::new(), config, 1)?.write(&mut file, &Extras::default())?;
///
/// let small = Limits { context: 512, ..Limits::DEFAULT };
/// let error = Checkpoint::open_within(&file, &small).unwrap_err();
/// assert!(error.to_string().contains("its context would be 1000, and 512 is allowed"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the header. 16 MiB.
    pub header: u64,
    /// Tensors. 65,536.
    pub tensors: u64,
    /// Entries of the metadata. 65,536.
    pub metadata: u64,
    /// Bytes of all tensors of a [`Stream`](super::Stream), which may claim more than it brings and is believed as far
    /// as this. 4 GiB. A file that lies in memory has what it claims.
    pub payload: u64,
    /// Tokens that the model can tell apart. 16,777,216.
    pub vocab_size: u64,
    /// Tokens that the model sees at once. 1,048,576.
    pub context: u64,
    /// Bytes that a decoder needs for the context, in f32: keys and values, the table of positions, what goes through the
    /// model at once of a prefix or without a mask, the tokens, the vectors that are given before them. `None`: 64 MiB, or
    /// 16 times the bytes of the tensors, if that is more. Looked at when the tensors are, not when the file is opened.
    pub cache: Option<u64>,
    /// Tokens of one micro-batch (batch times time). 65,536. Looked at when the moments are, that is, if training is to
    /// go on.
    pub batch: u64,
}

impl Limits {
    /// Larger than the models that this library is for, and small enough for files of strangers.
    pub const DEFAULT: Limits = Limits {
        header: 16 << 20,
        tensors: 1 << 16,
        metadata: 1 << 16,
        payload: 4 << 30,
        vocab_size: 1 << 24,
        context: 1 << 20,
        cache: None,
        batch: 1 << 16,
    };

    /// No limits but those of the format: for files that the program wrote itself.
    pub const NONE: Limits = Limits {
        header: u64::MAX,
        tensors: u64::MAX,
        metadata: u64::MAX,
        payload: u64::MAX,
        vocab_size: u64::MAX,
        context: u64::MAX,
        cache: Some(u64::MAX),
        batch: u64::MAX,
    };

    /// The default for a stream that is known to have `bytes` bytes, as a file has.
    #[must_use]
    pub const fn of_length(bytes: u64) -> Limits {
        Limits { payload: bytes, ..Limits::DEFAULT }
    }

    pub(super) fn check_header(&self, bytes: u64) -> Result<(), Fault> {
        within("header", bytes, self.header)
    }

    pub(super) fn check_tensors(&self, count: u64) -> Result<(), Fault> {
        within("tensors", count, self.tensors)
    }

    pub(super) fn check_metadata(&self, entries: u64) -> Result<(), Fault> {
        within("metadata", entries, self.metadata)
    }

    pub(super) fn check_payload(&self, bytes: u64) -> Result<(), Fault> {
        within("payload", bytes, self.payload)
    }

    pub(super) fn check_config(&self, config: &GptConfig) -> Result<(), Fault> {
        within("vocab_size", config.vocab_size as u64, self.vocab_size)?;
        within("context", config.context as u64, self.context)
    }

    pub(super) fn check_training(&self, model: &GptConfig, config: &TrainConfig) -> Result<(), Fault> {
        let positions = (config.time as u64).saturating_add(model.prefix as u64);
        within("batch", (config.batch as u64).saturating_mul(positions), self.batch)
    }

    /// Of a model whose tensors have `payload` bytes.
    pub(super) fn check_cache(&self, config: &GptConfig, payload: u64) -> Result<(), Fault> {
        let limit = self.cache.unwrap_or_else(|| payload.saturating_mul(16).max(64 << 20));
        within("cache", cache_bytes(config), limit)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits::DEFAULT
    }
}

fn within(field: &'static str, found: u64, limit: u64) -> Result<(), Fault> {
    if found > limit { Err(Fault::Limit { field, found, limit }) } else { Ok(()) }
}

/// What a decoder of one sequence keeps for each position, times the positions.
fn cache_bytes(config: &GptConfig) -> u64 {
    let d_head = config.d_head() as u64;
    let keys = d_head.saturating_mul(config.kv_heads() as u64);
    let keys_and_values = keys.saturating_mul(2).saturating_mul(config.layers as u64);
    let table = match config.position {
        Position::Sinusoidal => config.d_model as u64,
        Position::Rotary { .. } => d_head,
        Position::Learned | Position::None => 0,
    };
    // The latest tokens of two contexts, on the host and on the device.
    let numbers = keys_and_values.saturating_add(table).saturating_add(4);
    let positions = numbers.saturating_mul(config.context as u64);
    let given = (config.prefix as u64).saturating_mul(config.d_model as u64);
    let kept = positions.saturating_add(given).saturating_add(both_ways(config));
    kept.saturating_mul(size_of::<f32>() as u64)
}

/// What a decoder computes of the positions that go through the model at once, whatever it is told: of a prefix, or of all
/// without a mask.
fn both_ways(config: &GptConfig) -> u64 {
    let rows = if config.mask == Mask::None { config.context } else { config.prefix } as u64;
    let widths = [
        3usize.saturating_mul(config.d_model),
        config.d_qkv(),
        config.d_attention(),
        if config.qk_norm { config.d_qkv() } else { 0 },
        if config.gated { config.d_up() } else { 0 },
        config.d_ff,
    ];
    widths.iter().fold(0, |sum: u64, &width| sum.saturating_add(rows.saturating_mul(width as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::plan::Plan;

    #[test]
    fn the_cache_is_what_a_decoder_allocates_for_the_context() {
        for position in [Position::Learned, Position::Sinusoidal, Position::ROTARY, Position::None] {
            let config = GptConfig { position, ..GptConfig::new(65, 64) };
            let plan = Plan::decoding(&config, Dtype::F32, 1, 1).unwrap();
            let tokens = 2 * plan.tokens.len * size_of::<u32>();
            let allocated = plan.bytes.cache + plan.bytes.constants + tokens;
            assert_eq!(cache_bytes(&config), allocated as u64);
        }
    }

    #[test]
    fn fewer_heads_of_keys_need_a_smaller_cache() {
        let config = GptConfig { position: Position::None, ..GptConfig::new(65, 64) };
        let per_position = 4 * (2 * 4 * 128 + 4);
        assert_eq!(cache_bytes(&config), 64 * per_position);
        let fewer = GptConfig { kv_heads: Some(1), d_head: Some(20), ..config.clone() };
        assert_eq!(cache_bytes(&fewer), 64 * 4 * (2 * 4 * 20 + 4));
    }

    #[test]
    fn what_goes_through_at_once_counts_though_a_program_asks_for_less() {
        let base = GptConfig { prefix: 40, ..GptConfig::new(65, 64) };
        for mask in [Mask::Causal, Mask::Prefix, Mask::None] {
            let gated = GptConfig { gated: true, qk_norm: true, ..base.clone() };
            for config in [base.clone(), gated] {
                let config = GptConfig { mask, ..config };
                let plan = Plan::decoding(&config, Dtype::F32, 1, 1).unwrap();
                let allocated = plan.bytes.cache + plan.bytes.constants + plan.bytes.activations;
                let share = cache_bytes(&config) as f64 / allocated as f64;
                assert!((0.9..1.2).contains(&share), "{share} of {config:?}");
            }
        }
    }

    #[test]
    fn no_product_overflows() {
        let most = u32::MAX as usize;
        let config = GptConfig {
            context: most,
            layers: most,
            d_model: most,
            prefix: most - 1,
            position: Position::Sinusoidal,
            ..GptConfig::new(most, 1)
        };
        assert_eq!(cache_bytes(&config), u64::MAX);
        assert_eq!(Limits::NONE.check_cache(&config, u64::MAX), Ok(()));
        assert!(Limits::DEFAULT.check_cache(&config, u64::MAX / 2).is_ok());
        assert!(Limits::DEFAULT.check_cache(&config, 1 << 40).is_err());
    }
}
