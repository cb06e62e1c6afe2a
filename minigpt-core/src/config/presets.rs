//! Models by the names that their users know them by.

use super::{Activation, Bias, ConfigError, GptConfig, Norm, Pairing, Position};

/// A published model: its name, and what makes its config.
pub type Preset = (&'static str, fn() -> GptConfig);

/// Published models by their names, for [`GptConfig::preset`].
pub const PRESETS: [Preset; 5] = [
    ("gpt2", GptConfig::gpt2),
    ("gpt2-medium", GptConfig::gpt2_medium),
    ("gpt2-large", GptConfig::gpt2_large),
    ("gpt2-xl", GptConfig::gpt2_xl),
    ("smollm2-135m", GptConfig::smollm2_135m),
];

impl GptConfig {
    /// One of the [`PRESETS`], in capitals or not.
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`], whose message lists them.
    ///
    /// ```
    /// use minigpt_core::GptConfig;
    /// assert_eq!(GptConfig::preset("SmolLM2-135M")?, GptConfig::smollm2_135m());
    /// let error = GptConfig::preset("gpt5").unwrap_err();
    /// assert!(error.to_string().starts_with("there is no preset of that name; there are gpt2, gpt2-medium,"));
    /// # Ok::<(), minigpt_core::ConfigError>(())
    /// ```
    pub fn preset(name: &str) -> Result<GptConfig, ConfigError> {
        let preset = PRESETS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        preset.map(|(_, config)| config()).ok_or(ConfigError::UnknownPreset)
    }

    /// nanoGPT's model of Shakespeare by characters, for a vocabulary, which has 65 there: 6 layers, 6 heads, 384 wide, a
    /// context of 256, a dropout of 0.2, no bias (`config/train_shakespeare_char.py` of github.com/karpathy/nanoGPT). Its
    /// small variant for a CPU is [`new`](GptConfig::new).
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Plan};
    /// let plan = Plan::inference(&GptConfig::nanogpt(65), Dtype::F32, 1, 1)?;
    /// // nanoGPT itself tells 10.65M, because it leaves out the positions.
    /// assert_eq!(plan.parameter_count - 256 * 384, 10_646_784);
    /// # Ok::<(), minigpt_core::ConfigError>(())
    /// ```
    pub fn nanogpt(vocab_size: usize) -> Self {
        GptConfig {
            layers: 6,
            heads: 6,
            d_model: 384,
            d_ff: 4 * 384,
            dropout: 0.2,
            ..GptConfig::new(vocab_size, 256)
        }
    }

    /// GPT-2, the smallest of four (Radford et al. 2019, table 2; sizes as in the `config.json` of openai-community/gpt2):
    /// 124,439,808 parameters. It was trained with a dropout of 0.1; here it is 0, as a model has it that is only run.
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Plan};
    /// let plan = Plan::inference(&GptConfig::gpt2(), Dtype::F32, 1, 1)?;
    /// assert_eq!(plan.parameter_count, 124_439_808);
    /// # Ok::<(), minigpt_core::ConfigError>(())
    /// ```
    pub fn gpt2() -> Self {
        GptConfig::gpt2_of(12, 12, 768)
    }

    /// GPT-2 medium: as [`gpt2`](GptConfig::gpt2), with 354,823,168 parameters.
    pub fn gpt2_medium() -> Self {
        GptConfig::gpt2_of(24, 16, 1024)
    }

    /// GPT-2 large: as [`gpt2`](GptConfig::gpt2), with 774,030,080 parameters.
    pub fn gpt2_large() -> Self {
        GptConfig::gpt2_of(36, 20, 1280)
    }

    /// GPT-2 XL: as [`gpt2`](GptConfig::gpt2), with 1,557,611,200 parameters.
    pub fn gpt2_xl() -> Self {
        GptConfig::gpt2_of(48, 25, 1600)
    }

    fn gpt2_of(layers: usize, heads: usize, d_model: usize) -> Self {
        GptConfig {
            layers,
            heads,
            d_model,
            d_ff: 4 * d_model,
            activation: Activation::GeluTanh,
            bias: Bias::ALL,
            ..GptConfig::new(50_257, 1024)
        }
    }

    /// A small model of Llama's shape (Touvron et al. 2023, arXiv:2302.13971, section 2.2), for a vocabulary and a context:
    /// 4 layers, 4 heads, 128 wide, as [`new`](GptConfig::new) is; RMS norm, rotary positions, a gated SiLU, no bias, a head
    /// of its own. The feed-forward layer is 8/3 of that width, rounded up to a multiple of 32: another `d_model` needs a
    /// `d_ff` of its own.
    ///
    /// ```
    /// use minigpt_core::GptConfig;
    /// assert_eq!(GptConfig::llama(65, 64).d_ff, 352);
    /// ```
    pub fn llama(vocab_size: usize, context: usize) -> Self {
        GptConfig {
            d_ff: (8 * 128usize).div_ceil(3).next_multiple_of(32),
            position: Position::Rotary { base: 10_000.0, pairing: Pairing::Halves },
            norm: Norm::Rms,
            activation: Activation::Silu,
            gated: true,
            tied_embeddings: false,
            ..GptConfig::new(vocab_size, context)
        }
    }

    /// SmolLM2 135M (Ben Allal et al. 2025, arXiv:2502.02737; sizes as in the `config.json` of HuggingFaceTB/SmolLM2-135M):
    /// of Llama's shape, with 3 heads of keys and values for 9 of queries. 134,515,008 parameters.
    ///
    /// ```
    /// use minigpt_core::GptConfig;
    /// let config = GptConfig::smollm2_135m();
    /// assert_eq!((config.d_head(), config.d_qkv()), (64, 576 + 2 * 192));
    /// ```
    pub fn smollm2_135m() -> Self {
        GptConfig {
            layers: 30,
            heads: 9,
            kv_heads: Some(3),
            d_model: 576,
            d_ff: 1536,
            position: Position::Rotary { base: 100_000.0, pairing: Pairing::Halves },
            tied_embeddings: true,
            ..GptConfig::llama(49_152, 8192)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NormPlace;
    use crate::memory::Dtype;
    use crate::plan::Plan;

    /// By the formula, for models with norms before and without norms of queries and keys.
    fn parameters(config: &GptConfig) -> usize {
        let GptConfig { vocab_size: v, context: t, layers, d_model: c, d_ff: f, .. } = *config;
        assert_eq!((config.norm_place, config.qk_norm), (NormPlace::Pre, false));
        let norm = c + if config.bias.norm { c } else { 0 };
        let linear = |rows: usize, cols: usize, bias| rows * cols + if bias { rows } else { 0 };
        let attention =
            linear(config.d_qkv(), c, config.bias.qkv) + linear(c, config.d_attention(), config.bias.linear);
        let up = if config.gated { 2 * f } else { f };
        let feed_forward = linear(up, c, config.bias.linear) + linear(c, f, config.bias.linear);
        let positions = if config.position == Position::Learned { t * c } else { 0 };
        let embeddings = if config.tied_embeddings { v * c } else { 2 * v * c };
        embeddings + positions + layers * (attention + feed_forward + 2 * norm) + norm
    }

    #[test]
    fn presets_have_as_many_parameters_as_the_published_models() {
        let published = [124_439_808, 354_823_168, 774_030_080, 1_557_611_200, 134_515_008];
        let presets = PRESETS.map(|(_, config)| config());
        let ours = [GptConfig::new(65, 64), GptConfig::nanogpt(65), GptConfig::llama(65, 64)];
        let counts = [804_096, 10_745_088, 820_608];
        let all = presets.iter().zip(published).chain(ours.iter().zip(counts));
        for (config, count) in all {
            assert_eq!(parameters(config), count, "{config:?}");
            let planned = Plan::smallest(config, Dtype::F32).map(|plan| plan.parameter_count);
            // Where pointers have 32 bits, the largest have too many bytes.
            let counted = match isize::try_from(4 * count as u64) {
                Ok(_) => Ok(count),
                Err(_) => Err(ConfigError::TooLarge { field: "parameters" }),
            };
            assert_eq!(planned, counted, "{config:?}");
        }
    }

    #[test]
    fn presets_are_found_by_their_names() {
        for (name, config) in PRESETS {
            assert_eq!(GptConfig::preset(name), Ok(config()));
            assert_eq!(GptConfig::preset(&name.to_uppercase()), Ok(config()));
        }
        let error = GptConfig::preset("gpt").unwrap_err();
        assert_eq!(error, ConfigError::UnknownPreset);
        let named: std::vec::Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        let expected = std::format!("there is no preset of that name; there are {}", named.join(", "));
        assert_eq!(std::format!("{error}"), expected);
    }
}
