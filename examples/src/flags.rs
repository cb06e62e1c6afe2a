//! What the library says of its fields, in the words of the command line.

use std::fmt::Display;

use minigpt_core::{ConfigError, Error, SampleError};

/// What a config lacks, with the flags that set it.
pub fn config_error(error: &ConfigError) -> String {
    let message = error.to_string();
    let fields: &[&str] = match error {
        ConfigError::Zero { field } | ConfigError::TooLarge { field } => &[field],
        ConfigError::KvHeadsDoNotDivide { .. } => &["kv_heads", "heads"],
        ConfigError::RotaryBase { .. } => &["rotary base"],
        ConfigError::HeadsDoNotDivide { .. } => &["d_model", "heads"],
        ConfigError::OddRotaryHead { .. } => &["d_head", "d_model", "heads"],
        ConfigError::Dropout { .. } => &["dropout"],
        ConfigError::NormEps { .. } => &["norm_eps"],
        _ => &[],
    };
    fields.iter().fold(message, |message, field| with_flag(&message, field))
}

/// What a setting of the sampler lacks, with the flag that sets it.
pub fn sample_error(error: &SampleError) -> String {
    let message = error.to_string();
    let (named, flag) = match error {
        SampleError::Temperature { .. } => ("temperature", "--temperature"),
        SampleError::TopK => ("top-k", "--top-k"),
        SampleError::TopP { .. } => ("top-p", "--top-p"),
        SampleError::MinP { .. } => ("min-p", "--min-p"),
        SampleError::RepetitionPenalty { .. } => ("repetition penalty", "--repetition-penalty"),
        SampleError::RepetitionWindow => ("a repetition window", "--repetition-window"),
        _ => return message,
    };
    message.replacen(named, flag, 1)
}

/// What went wrong, with the flags that set what is named in it.
pub fn error<E: Display>(error: &Error<E>) -> String {
    match error {
        Error::Config(error) => config_error(error),
        Error::Sample(error) => sample_error(error),
        Error::Setting { field, must } => format!("{} must be {must}", flag(field)),
        other => other.to_string(),
    }
}

/// The flag that sets a field.
fn flag(field: &str) -> String {
    match field {
        "time" => "--context".into(),
        "average" => "--ema".into(),
        "vocab_size" => "--vocab".into(),
        "schedule.peak" => "--lr".into(),
        "schedule.floor" => "--min-lr".into(),
        // `groups.matrices.beta1` is `--beta1`: the flag is for all groups.
        field => format!("--{}", field.rsplit('.').next().unwrap_or(field).replace(['_', ' '], "-")),
    }
}

/// The message with the flag in place of the field, wherever the field is a word of it.
fn with_flag(message: &str, field: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let mut named = String::new();
    let mut rest = message;
    while let Some(at) = rest.find(field) {
        let (before, after) = (&rest[..at], &rest[at + field.len()..]);
        named += before;
        let alone = !named.ends_with(is_word) && !after.starts_with(is_word);
        named += &if alone { flag(field) } else { field.into() };
        rest = after;
    }
    named + rest
}

#[cfg(test)]
mod tests {
    use minigpt_core::{GptConfig, Pairing, Position, SampleConfig, Sampler};

    use super::*;

    fn of_config(change: impl FnOnce(&mut GptConfig)) -> String {
        let mut config = GptConfig::new(5, 8);
        change(&mut config);
        config_error(&config.validate().unwrap_err())
    }

    #[test]
    fn errors_of_a_config_name_the_flags() {
        assert!(of_config(|c| c.layers = 0).starts_with("--layers is 0"));
        assert!(of_config(|c| c.context = 0).starts_with("--context is 0"));
        assert!(of_config(|c| c.d_ff = 0).starts_with("--d-ff is 0"));
        assert!(of_config(|c| c.dropout = 2.0).starts_with("--dropout 2 is not"));
        assert!(of_config(|c| c.norm_eps = -1.0).starts_with("--norm-eps -1 is not"));
        let (d_model, heads) = (8, 3);
        let message = of_config(|c| (c.d_model, c.heads) = (d_model, heads));
        assert!(message.starts_with("--d-model 8 is not a multiple of --heads 3: every head"), "{message}");
        assert!(message.ends_with("try --heads 2 or --d-model 9"), "{message}");
        let message = of_config(|c| (c.d_model, c.heads, c.position) = (9, 3, Position::ROTARY));
        assert!(
            message.ends_with("make --d-head even, or where it is not given --d-model / --heads"),
            "{message}"
        );
        let base = Position::Rotary { base: 0.5, pairing: Pairing::Halves };
        assert!(
            of_config(|c| (c.d_model, c.heads, c.position) = (8, 2, base)).starts_with("--rotary-base 0.5")
        );
    }

    #[test]
    fn errors_of_the_sampler_name_the_flags() {
        let of = |change: fn(&mut SampleConfig)| {
            let mut config = SampleConfig::default();
            change(&mut config);
            sample_error(&Sampler::new(config, 5).unwrap_err())
        };
        assert!(of(|c| c.temperature = -1.0).starts_with("--temperature -1 is not"));
        assert!(of(|c| c.top_k = Some(0)).starts_with("--top-k of 0"));
        assert!(of(|c| c.top_p = Some(2.0)).starts_with("--top-p 2 is not"));
        assert!(of(|c| c.min_p = Some(2.0)).starts_with("--min-p 2 is not"));
        assert!(of(|c| c.repetition_penalty = Some(0.5)).starts_with("--repetition-penalty 0.5 is not"));
        let window = of(|c| (c.repetition_penalty, c.repetition_window) = (Some(1.2), 0));
        assert!(window.starts_with("--repetition-window of 0"), "{window}");
    }

    #[test]
    fn errors_of_settings_name_the_flags() {
        let of = |field| error::<String>(&Error::Setting { field, must: "above 0" });
        assert_eq!(of("schedule.peak"), "--lr must be above 0");
        assert_eq!(of("schedule.floor"), "--min-lr must be above 0");
        assert_eq!(of("weight_decay"), "--weight-decay must be above 0");
        assert_eq!(of("time"), "--context must be above 0");
    }
}
