//! Goes when [`ConfigError::NotYet`] does: until then a test of the wider config runs what there is.

use minigpt_core::{Activation, ConfigError, GptConfig, Mask, Norm, Position};

/// The field whose value no pass is written for, if there is one.
fn refused(config: &GptConfig) -> Option<&'static str> {
    match config.validate() {
        Err(ConfigError::NotYet { field }) => Some(field),
        Err(other) => panic!("{other}: {config:?}"),
        Ok(()) => None,
    }
}

/// Whether a model of this config is for later.
#[allow(dead_code, reason = "for the golden models")]
pub(crate) fn not_there_yet(config: &GptConfig) -> bool {
    refused(config).is_some()
}

/// The config with its plain value for each field whose value is for later: every piece that comes widens what is tested.
#[allow(dead_code, reason = "for the covering array")]
pub(crate) fn as_far_as_there(mut config: GptConfig) -> GptConfig {
    while let Some(field) = refused(&config) {
        match field {
            "kv_heads" => config.kv_heads = None,
            "d_head" => config.d_head = None,
            "position" => config.position = Position::ROTARY,
            "mask" => config.mask = Mask::Causal,
            "prefix" => {
                config.prefix = 0;
                if config.mask == Mask::Prefix {
                    config.mask = Mask::Causal;
                }
            }
            "norm" => config.norm = Norm::Layer,
            "qk_norm" => config.qk_norm = false,
            "gated" => config.gated = false,
            "activation" => config.activation = Activation::Relu,
            other => panic!("no plain value for {other}"),
        }
    }
    config
}
