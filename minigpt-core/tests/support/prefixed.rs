//! The passes of a model that may begin with given vectors: `prefix` is (B, P, C), and empty with P = 0.
//!
//! NOT THERE YET: what stands under these words below is for whoever makes the passes over a prefix.
#![allow(dead_code, reason = "each test needs some of it")]

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, Decoder, GptConfig, Model, Real, Trainer};

/// Vectors for so many sequences.
pub(crate) fn draw<R: Real>(config: &GptConfig, batch: usize, seed: u64) -> Vec<R> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..batch * config.prefix * config.d_model).map(|_| R::from_f64(0.5 * rng.normal())).collect()
}

/// The logits of every position (B, T, V), from `tokens` (B, T - P).
pub(crate) fn logits<B: Backend>(
    model: &Model<B>,
    prefix: &[B::Elem],
    tokens: &[u32],
    batch: usize,
) -> Vec<B::Elem> {
    let time = model.config().prefix + tokens.len() / batch;
    match model.config().prefix {
        0 => model.logits(tokens, batch, time).unwrap(),
        _ => prefix_logits(model, prefix, tokens, batch, time),
    }
}

/// Takes in a batch: tokens and targets are (B, T - P), since a prefix has no targets.
pub(crate) fn micro_step<B: Backend>(
    trainer: &mut Trainer<B>,
    prefix: &[B::Elem],
    tokens: &[u32],
    targets: &[u32],
) {
    match trainer.model().config().prefix {
        0 => trainer.micro_step(tokens, targets).unwrap(),
        _ => prefix_training(trainer, prefix, tokens, targets),
    }
}

/// The gradient of the mean loss with respect to the prefix (B, P, C) of the last micro-step, in the units of
/// [`Trainer::gradient`].
pub(crate) fn gradient<B: Backend>(trainer: &mut Trainer<B>) -> Vec<B::Elem> {
    match trainer.model().config().prefix {
        0 => Vec::new(),
        _ => prefix_gradient(trainer),
    }
}

/// Gives a new decoder the prefix (P, C) of its text.
pub(crate) fn begin<B: Backend>(decoder: &mut Decoder<B>, prefix: &[B::Elem]) {
    match decoder.model().config().prefix {
        0 => {}
        _ => prefix_decoding(decoder, prefix),
    }
}

fn prefix_logits<B: Backend>(
    model: &Model<B>,
    prefix: &[B::Elem],
    tokens: &[u32],
    batch: usize,
    time: usize,
) -> Vec<B::Elem> {
    // NOT THERE YET: model.logits_with_prefix(prefix, tokens, batch, time).unwrap()
    let _ = (model, prefix, tokens, batch, time);
    panic!("a pass over a prefix")
}

fn prefix_training<B: Backend>(
    trainer: &mut Trainer<B>,
    prefix: &[B::Elem],
    tokens: &[u32],
    targets: &[u32],
) {
    // NOT THERE YET: a micro-step with a prefix.
    let _ = (trainer, prefix, tokens, targets);
    panic!("a micro-step with a prefix")
}

fn prefix_gradient<B: Backend>(trainer: &mut Trainer<B>) -> Vec<B::Elem> {
    // NOT THERE YET: the gradient back to the given vectors.
    let _ = trainer;
    panic!("the gradient of a prefix")
}

fn prefix_decoding<B: Backend>(decoder: &mut Decoder<B>, prefix: &[B::Elem]) {
    // NOT THERE YET: a text that begins with a prefix.
    let _ = (decoder, prefix);
    panic!("decoding after a prefix")
}
