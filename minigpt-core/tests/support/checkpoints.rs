//! A small checkpoint with something in every section, and a second encoder of the format.

use std::convert::Infallible;

use minigpt_core::checkpoint::{self, Contents, TensorSpec, TrainState, Training};
use minigpt_core::config::TrainConfig;
use minigpt_core::config::schedule::{Decay, Schedule};
use minigpt_core::op::counter;
use minigpt_core::{
    Activation, AnyTokenizer, AttentionScale, CharTokenizer, Dtype, GptConfig, Groups, NormPlace, Plan,
    Position, Precision, Rank, Recompute,
};

/// One layer, all kinds of tensors.
pub(crate) fn small_config() -> GptConfig {
    GptConfig {
        layers: 1,
        heads: 1,
        d_model: 2,
        d_ff: 3,
        position: Position::Learned,
        norm_place: NormPlace::Pre,
        attention_scale: AttentionScale::Custom(0.75),
        activation: Activation::Relu,
        dropout: 0.1,
        tied_embeddings: false,
        ..GptConfig::new(5, 3)
    }
}

pub(crate) fn small_tokenizer() -> AnyTokenizer {
    CharTokenizer::from_text("añ€🦀").unwrap().into()
}

pub(crate) fn small_training() -> Training {
    let mut counters = [0; counter::LEN];
    for (i, counter) in counters.iter_mut().enumerate() {
        *counter = u32::MAX - 1000 * i as u32;
    }
    Training {
        config: TrainConfig {
            batch: 12,
            time: 3,
            accumulation: 4,
            schedule: Schedule { peak: 1e-3, floor: 1e-4, warmup: 100, steps: 2000, decay: Decay::Cosine },
            clip: f64::INFINITY,
            groups: Groups::adamw(0.9, 0.99, 0.1),
            average: None,
            seed: u64::MAX - 1,
            precision: Precision::F32,
            recompute: Recompute::Nothing,
            rank: Rank::ALONE,
        },
        state: TrainState { counters, windows_drawn: 1 << 40 },
        frozen: Vec::new(),
    }
}

pub(crate) const METADATA: [(&str, &str); 3] = [("corpus", "plays"), ("leer", ""), ("größe", "🦀")];

pub(crate) fn training_specs(config: &GptConfig) -> Vec<TensorSpec> {
    TensorSpec::training(&Plan::training(config, Dtype::F32, 1, 1).unwrap())
}

/// Bytes that differ from tensor to tensor and from place to place.
pub(crate) fn tensor_byte(tensor: usize, offset: usize) -> u8 {
    (tensor * 31 + offset * 7 + 1) as u8
}

pub(crate) fn fill(tensor: usize, offset: usize, bytes: &mut [u8]) -> Result<(), Infallible> {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = tensor_byte(tensor, offset + i);
    }
    Ok(())
}

/// Calls `f` with contents that have every section.
pub(crate) fn with_small_contents<T>(f: impl FnOnce(&Contents<'_>) -> T) -> T {
    let config = small_config();
    f(&Contents {
        config: &config,
        tokenizer: Some(&small_tokenizer()),
        training: Some(&small_training()),
        metadata: &METADATA,
        tensors: &training_specs(&config),
    })
}

pub(crate) fn small_checkpoint() -> Vec<u8> {
    let mut file = Vec::new();
    with_small_contents(|contents| checkpoint::write(&mut file, contents, fill)).unwrap();
    file
}

/// A header and its padding, made by hand from the prose of the format: tag, flags and body of each section.
pub(crate) fn header(version: u32, sections: &[(&[u8; 4], u32, Vec<u8>)]) -> Vec<u8> {
    let mut file = b"MGPT".to_vec();
    file.extend(version.to_le_bytes());
    file.extend([0; 4]);
    for (tag, flags, body) in sections {
        file.extend(*tag);
        file.extend(flags.to_le_bytes());
        file.extend((body.len() as u32).to_le_bytes());
        file.extend(body);
    }
    seal(&mut file);
    file
}

/// Appends the checksum and the padding to a header, and sets its length.
pub(crate) fn seal(header: &mut Vec<u8>) {
    let length = header.len() as u32 + 4;
    header[8..12].copy_from_slice(&length.to_le_bytes());
    header.extend(crc32fast::hash(header).to_le_bytes());
    header.resize(header.len().next_multiple_of(64), 0);
}

/// Base 128, the lowest 7 bits first.
pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [varint(text.len() as u64), text.as_bytes().to_vec()].concat()
}

/// CONF of a small model, by hand, with these numbers in place of its own.
pub(crate) fn conf(layers: u64, dropout: f64, norm_eps: f64) -> Vec<u8> {
    // Vocabulary, context, layers, heads, no kv_heads, width, no d_head, d_ff, no prefix.
    let dimensions = [5, 3, layers, 1, 0, 2, 0, 3, 0].map(varint).concat();
    // Learned positions, causal, layer norm, pre, not of queries and keys, 1/sqrt(D), residuals, GELU by erf, not gated, no
    // bias.
    let choices = vec![0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0];
    [dimensions, choices, dropout.to_le_bytes().to_vec(), vec![1], norm_eps.to_le_bytes().to_vec()].concat()
}

/// The same as version 1 has it.
pub(crate) fn conf_of_version_1(layers: u64, dropout: f64, norm_eps: f64) -> Vec<u8> {
    let dimensions = [5, 3, layers, 1, 2, 3].map(varint).concat();
    // Learned positions, pre-norm, 1/sqrt(d_k), residuals, GELU by erf, no bias.
    let choices = vec![0, 0, 0, 1, 1, 0];
    [dimensions, choices, dropout.to_le_bytes().to_vec(), vec![1], norm_eps.to_le_bytes().to_vec()].concat()
}

/// One record of TENS, by hand: f32 of role 0, with a checksum of 0.
pub(crate) fn record(name: &str, rows: u64, cols: u64, offset: u64, length: u64) -> Vec<u8> {
    [string(name), vec![0, 1], varint(rows), varint(cols), varint(offset), varint(length), vec![0]].concat()
}
