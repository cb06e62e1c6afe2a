//! The whole model: gradients, a short training and cached decoding.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Line, error};
use crate::backend::{Backend, BackendError, Reference};
use crate::config::{
    Activation, AttentionScale, Bias, GptConfig, Norm, NormPlace, Pairing, Position, TrainConfig,
};
use crate::error::Error;
use crate::memory::Dtype;
use crate::model::{Decoder, Model};
use crate::real::Real;
use crate::rng::{Rng, Stream};
use crate::train::Trainer;

const STEPS: usize = 8;

/// Small models that between them have every variant that changes the list of ops.
fn configs() -> [(&'static str, GptConfig); 7] {
    let base = GptConfig { layers: 2, heads: 3, d_model: 24, d_ff: 40, ..GptConfig::new(17, 9) };
    [
        ("gpt-2", GptConfig { bias: Bias::ALL, activation: Activation::GeluTanh, ..base.clone() }),
        (
            "post-norm, sinusoidal, dropout",
            GptConfig {
                norm_place: NormPlace::Post,
                position: Position::Sinusoidal,
                dropout: 0.1,
                ..base.clone()
            },
        ),
        (
            "rotary, shared heads, untied, relu",
            GptConfig {
                position: Position::Rotary { base: 500.0, pairing: Pairing::Halves },
                kv_heads: Some(1),
                d_head: Some(6),
                tied_embeddings: false,
                activation: Activation::Relu,
                ..base.clone()
            },
        ),
        ("gated", GptConfig { gated: true, activation: Activation::Silu, bias: Bias::ALL, ..base.clone() }),
        ("RMS norm", GptConfig { norm: Norm::Rms, ..base.clone() }),
        (
            "RMS post-norm",
            GptConfig { norm: Norm::Rms, norm_place: NormPlace::Post, bias: Bias::ALL, ..base.clone() },
        ),
        (
            "no norm, no residual",
            GptConfig {
                norm_place: NormPlace::None,
                residual: false,
                position: Position::None,
                attention_scale: AttentionScale::Custom(0.7),
                ..base
            },
        ),
    ]
}

/// Four lines: gradients, losses, reproducibility, decoding.
pub(super) fn check<B: Backend>(make: &mut impl FnMut() -> B) -> Vec<Line> {
    let double = B::Elem::DTYPE == Dtype::F64;
    let mut lines = [
        Line::new("model: gradients of one step", if double { 1e-10 } else { 1e-4 }),
        Line::new("model: losses of a training", if double { 1e-10 } else { 1e-4 }),
        Line::new("model: the same run twice", 0.0),
        Line::new("model: cached decoding", if double { 1e-10 } else { 1e-4 }),
    ];
    for (name, config) in configs() {
        for line in &mut lines {
            line.cases += 1;
        }
        let [gradients, losses, twice, decoding] = &mut lines;
        if let Err(what) = trains(make, &config, name, gradients, losses, twice) {
            losses.fail(format!("{name}: {what}"));
        }
        if let Err(what) = decodes(make(), config, name, decoding) {
            decoding.fail(format!("{name}: {what}"));
        }
    }
    lines.into()
}

fn told<E: BackendError>(error: Error<E>) -> String {
    format!("{error}")
}

fn settings(time: usize) -> TrainConfig {
    TrainConfig { batch: 3, time, accumulation: 2, ..TrainConfig::constant(1e-2) }
}

fn random_tokens(seed: u64, len: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..len).map(|_| rng.below(vocab as u64) as u32).collect()
}

/// A trainer whose weights are spread widely enough that every part of the model matters.
fn trainer<B: Backend>(backend: B, config: &GptConfig) -> Result<Trainer<B>, Error<B::Error>> {
    let model = Model::new(backend, config.clone(), 7)?;
    let mut rng = Rng::new(8, Stream::User);
    let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    for name in names {
        let begun = model.parameter(&name)?.unwrap_or_default();
        let spread: Vec<B::Elem> = begun
            .iter()
            .map(|x| B::Elem::from_f64(f64::from((x.to_f64() + 0.2 * rng.normal()) as f32)))
            .collect();
        model.set_parameter(&name, &spread)?;
    }
    Trainer::new(&model, settings(config.context))
}

type Run = (Vec<(String, Vec<f64>)>, Vec<f64>);

/// Gradients of the first step by parameter, and the loss of each step.
fn run<B: Backend>(backend: B, config: &GptConfig) -> Result<Run, Error<B::Error>> {
    let mut trainer = trainer(backend, config)?;
    let names: Vec<String> = trainer.plan().parameters.list().iter().map(|t| t.name.clone()).collect();
    let tokens_per_batch = 3 * config.context;
    let (mut gradients, mut losses) = (Vec::new(), Vec::new());
    for step in 0..STEPS as u64 {
        for half in 0..2 {
            let inputs = random_tokens(step % 2 + 10 * half, tokens_per_batch, config.vocab_size);
            let targets = random_tokens(step % 2 + 10 * half + 100, tokens_per_batch, config.vocab_size);
            trainer.micro_step(&inputs, &targets)?;
        }
        trainer.finish_step()?;
        if step == 0 {
            for name in &names {
                let gradient = trainer.gradient(name)?.unwrap_or_default();
                gradients.push((name.clone(), gradient.into_iter().map(Real::to_f64).collect()));
            }
        }
        losses.push(trainer.metrics()?.loss);
    }
    Ok((gradients, losses))
}

fn trains<B: Backend>(
    make: &mut impl FnMut() -> B,
    config: &GptConfig,
    name: &str,
    gradients: &mut Line,
    losses: &mut Line,
    twice: &mut Line,
) -> Result<(), String> {
    let (true_gradients, true_losses) = run(Reference::<f64>::new(), config).map_err(told)?;
    let (found_gradients, found_losses) = run(make(), config).map_err(told)?;
    for ((parameter, found), (_, oracle)) in found_gradients.iter().zip(&true_gradients) {
        let (e, i) = error(found, oracle);
        gradients.note(e, || format!("{name}: {parameter}[{i}] {:.6e}, oracle {:.6e}", found[i], oracle[i]));
    }
    let (e, i) = error(&found_losses, &true_losses);
    losses.note(e, || format!("{name}: step {i}, {} oracle {}", found_losses[i], true_losses[i]));
    if found_losses[STEPS - 1] >= found_losses[0] {
        losses.fail(format!("{name}: the loss does not fall: {found_losses:?}"));
    }
    let again = run(make(), config).map_err(told)?;
    if again != (found_gradients, found_losses) {
        twice.fail(format!("{name}: the same seed gives other numbers"));
    }
    Ok(())
}

/// Tokens fed in pieces of every length, past the context more than once and at once, against a full pass over the same
/// window.
fn decodes<B: Backend>(backend: B, config: GptConfig, name: &str, line: &mut Line) -> Result<(), String> {
    let vocab = config.vocab_size;
    let context = config.context;
    let text = random_tokens(3, 6 * context + 2, vocab);
    let model = trainer(backend, &config).map_err(told)?.into_model();
    let mut decoder = Decoder::new(&model, 4).map_err(told)?;
    let pieces =
        [1, 1, 1, 3, 1, 2, 1, 1, 1, 1, 5, 1, 4, 1, 1, 1, 1, 1, context + 1, 1, context, context - 1, 1];
    let (mut fed, mut seen) = (0, 0);
    for piece in pieces {
        let end = text.len().min(fed + piece);
        decoder.feed(&text[fed..end]).map_err(told)?;
        seen = crate::model::window_length(seen + end - fed, context).max(context.min(end - fed));
        fed = end;
        let window = decoder.window().to_vec();
        if window != text[fed - seen..fed] {
            return Err(format!("after {fed} tokens the window is {window:?}"));
        }
        let recent = decoder.recent();
        if !text[..fed].ends_with(recent) || recent.len() < fed.min(context) {
            return Err(format!("after {fed} tokens the recent ones are {recent:?}"));
        }
        let full = model.logits(&window, 1, window.len()).map_err(told)?;
        let oracle: Vec<f64> = full[(window.len() - 1) * vocab..].iter().map(|x| x.to_f64()).collect();
        let found: Vec<f64> = decoder.logits().iter().map(|x| x.to_f64()).collect();
        let (e, i) = error(&found, &oracle);
        line.note(e, || {
            format!("{name}: token {i} after {fed}, {:.6e} full pass {:.6e}", found[i], oracle[i])
        });
        if fed == text.len() {
            break;
        }
    }
    let mut unknown = vec![0; 2];
    unknown[1] = vocab as u32;
    match decoder.feed(&unknown) {
        Err(Error::Token { index: 1, .. }) => {}
        other => return Err(format!("an unknown token gives {other:?}")),
    }
    Ok(())
}
