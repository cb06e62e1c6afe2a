//! Equal to [`minigpt_core::sample`], in f32: which token is chosen differs where the choice hangs on the last digits.
//!
//! A row is one task. Its logits are gone through a few times, from end to end, and never sorted.

use minigpt_core::InvalidOp;
use minigpt_core::op::{NO_TOKEN, Sample, SampleRow};
use minigpt_core::sample::Cut;

use super::embedding::check_tokens;
use super::lanes::{load, store};
use super::rows::live_rows;
use crate::arch::Vector;
use crate::context::{Context, Job, Machine, whole_lines};
use crate::error::CpuError;
use crate::math::exp;
use crate::par::{Chunks, PerWorker};

struct Choose<'s> {
    logits: &'s [f32],
    settings: &'s [[u32; SampleRow::WORDS]],
    tokens: &'s [u32],
    vocab: usize,
}

impl Job<(Chunks<'_, u32>, PerWorker<'_, f32>)> for Choose<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, (choice, scratch): (&mut [u32], &mut [f32])) {
        let row = SampleRow::from_words(&self.settings[index]);
        let logits = &self.logits[index * self.vocab..][..self.vocab];
        let (penalised, weights) = scratch.split_at_mut(whole_lines(self.vocab));
        let (penalised, weights) = (&mut penalised[..self.vocab], &mut weights[..self.vocab]);
        choice.fill(self.choose::<V>(t, &row, logits, penalised, weights).unwrap_or(NO_TOKEN));
    }
}

impl Choose<'_> {
    #[inline(always)]
    fn choose<V: Vector>(
        &self,
        t: V::Token,
        row: &SampleRow,
        from: &[f32],
        logits: &mut [f32],
        weights: &mut [f32],
    ) -> Option<u32> {
        logits.copy_from_slice(from);
        if let Some(penalty) = row.config.repetition_penalty {
            for place in row.recent_places() {
                // From the model's logit: a token counts once however often it occurred.
                let token = self.tokens[place] as usize;
                logits[token] = penalised(from[token], penalty);
            }
        }
        let mut max = f32::NEG_INFINITY;
        for &logit in logits.iter() {
            if logit.is_nan() || logit == f32::INFINITY {
                return None;
            }
            max = if logit > max { logit } else { max };
        }
        if max == f32::NEG_INFINITY {
            return None;
        }
        if row.config.temperature == 0.0 {
            return logits.iter().position(|&logit| logit == max).map(|token| token as u32);
        }
        // Divided by infinity, minus infinity would not be a number; and what rounds to 0 is not greedy.
        let temperature = (row.config.temperature as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
        for at in (0..logits.len()).step_by(V::LANES) {
            let scaled = (load::<V>(t, logits, at) - V::splat(t, max)) / V::splat(t, temperature);
            store(exp(t, scaled), weights, at);
        }
        if let Some(top_k) = row.config.top_k.filter(|top_k| *top_k < logits.len()) {
            let mut cut = Cut::new(|| logits.iter().map(|&logit| (key(logit), 1.0)), top_k as f64);
            for (&logit, weight) in logits.iter().zip(weights.iter_mut()) {
                if !cut.takes(key(logit), 1.0) {
                    *weight = 0.0;
                }
            }
        }
        if let Some(top_p) = row.config.top_p.filter(|top_p| *top_p < 1.0) {
            let told = |(&logit, &weight): (&f32, &f32)| (key(logit), f64::from(weight));
            let mut cut = Cut::new(|| logits.iter().zip(&*weights).map(told), top_p * sum(weights));
            for (&logit, weight) in logits.iter().zip(weights.iter_mut()) {
                if !cut.takes(key(logit), f64::from(*weight)) {
                    *weight = 0.0;
                }
            }
        }
        if let Some(min_p) = row.config.min_p {
            for weight in weights.iter_mut() {
                *weight = if f64::from(*weight) < min_p { 0.0 } else { *weight };
            }
        }
        pick(weights, row.uniform * sum(weights))
    }
}

/// The logit of a token that occurred lately. Where f32 ends it stays finite: it may be the best that there is.
#[inline(always)]
fn penalised(logit: f32, penalty: f64) -> f32 {
    let wide = f64::from(logit);
    let penalised = if logit > 0.0 { wide / penalty } else { wide * penalty };
    if penalised.is_finite() { penalised.max(f32::MIN.into()) as f32 } else { penalised as f32 }
}

#[inline(always)]
fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum()
}

/// The first token at which the sum exceeds `limit`; if rounding leaves it below, the last that has a weight.
#[inline(always)]
fn pick(weights: &[f32], limit: f64) -> Option<u32> {
    let (mut picked, mut sum) = (None, 0.0);
    for (token, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            picked = Some(token as u32);
            sum += f64::from(weight);
            if sum > limit {
                break;
            }
        }
    }
    picked
}

/// An f32's [key](Cut::key), with fewer digits to go through: the lower half is 0.
#[inline(always)]
fn key(x: f32) -> u64 {
    let bits = (x + 0.0).to_bits();
    let key = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(key) << 32
}

/// Scratch of a thread.
fn each(op: &Sample) -> usize {
    whole_lines(op.vocab).saturating_mul(2)
}

/// For all threads.
pub(super) fn scratch_floats(op: &Sample, machine: Machine) -> usize {
    each(op).saturating_mul(machine.threads)
}

/// That rows may choose by these settings.
pub(super) fn check(
    settings: &[[u32; SampleRow::WORDS]],
    tokens: &[u32],
    vocab: usize,
) -> Result<(), InvalidOp> {
    for words in settings {
        let row = SampleRow::from_words(words);
        row.check(tokens.len())?;
        check_tokens(row.recent_places().map(|place| tokens[place]), vocab)?;
    }
    Ok(())
}

pub(super) fn sample(context: &mut Context<'_, '_>, op: &Sample) -> Result<(), CpuError> {
    let views = &mut context.views;
    let live = live_rows(views, op.live, op.rows)?;
    let settings = &views.u32("settings", op.settings)?.as_chunks().0[..live];
    let tokens = views.u32_mut("tokens", op.tokens)?;
    check(settings, tokens, op.vocab)?;
    let choices = &mut views.u32_mut("choices", op.choices)?[..live];
    // However large the vocabulary.
    if op.rows == 0 {
        return Ok(());
    }
    choose(context, op, settings, tokens, choices)?;
    append(settings, choices, tokens);
    Ok(())
}

/// Chooses for rows whose settings were checked. The tokens are as they were.
pub(super) fn choose(
    context: &mut Context<'_, '_>,
    op: &Sample,
    settings: &[[u32; SampleRow::WORDS]],
    tokens: &[u32],
    choices: &mut [u32],
) -> Result<(), CpuError> {
    let logits = context.views.f32("logits", op.logits)?;
    let scratch = context.scratch.floats(scratch_floats(op, context.team.machine()))?;
    let job = Choose { logits, settings, tokens, vocab: op.vocab };
    context.team.for_each((Chunks::new(choices, 1), PerWorker::new(scratch, each(op))), &job);
    Ok(())
}

/// Puts what was chosen among the tokens, once no row looks at them any more.
pub(super) fn append(settings: &[[u32; SampleRow::WORDS]], choices: &[u32], tokens: &mut [u32]) {
    for (words, &choice) in settings.iter().zip(choices) {
        tokens[SampleRow::from_words(words).next as usize] = choice;
    }
}
