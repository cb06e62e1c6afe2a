//! Softmax and cross-entropy, equal to [`cross_entropy`](minigpt_core::reference::cross_entropy::cross_entropy).
//!
//! A row is read from memory once: the passes for the maximum, the exponentials and the gradient find it in the
//! cache. The rows' losses are added up in order, in f64.

use minigpt_core::op::{CrossEntropy, IGNORE, scalar};

use super::embedding::check_tokens;
use super::lanes::{load, load_or, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job};
use crate::error::CpuError;
use crate::math::exp;
use crate::par::Chunks;

/// Vectors whose exponentials are added up before they are added to those of the others.
const PART: usize = 64;

struct Rows<'s> {
    /// `None`: they lie in d_logits.
    logits: Option<&'s [f32]>,
    targets: &'s [u32],
    rows_per_task: usize,
    vocab: usize,
}

impl Job<(Chunks<'_, f32>, Option<Chunks<'_, f32>>)> for Rows<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (losses, mut d_logits): (&mut [f32], Option<&mut [f32]>),
    ) {
        for (i, loss) in losses.iter_mut().enumerate() {
            let row = index * self.rows_per_task + i;
            let logits = self.logits.map(|logits| &logits[row * self.vocab..][..self.vocab]);
            let d_logits = d_logits.as_deref_mut().map(|d| &mut d[i * self.vocab..][..self.vocab]);
            *loss = self.row::<V>(t, self.targets[row], logits, d_logits);
        }
    }
}

impl Rows<'_> {
    /// Writes the gradient of one row, and returns its loss.
    #[inline(always)]
    fn row<V: Vector>(
        &self,
        t: V::Token,
        target: u32,
        logits: Option<&[f32]>,
        mut d_logits: Option<&mut [f32]>,
    ) -> f32 {
        if target == IGNORE {
            if let Some(d_logits) = d_logits {
                d_logits.fill(0.0);
            }
            return 0.0;
        }
        let target = target as usize;
        let logits_now = logits.or(d_logits.as_deref()).unwrap_or(&[]);
        let at_target = logits_now[target];
        let mut largest = V::splat(t, f32::NEG_INFINITY);
        // 0 for numbers, and NaN once one is not finite.
        let zero = V::splat(t, 0.0);
        let mut nothing = zero;
        for v in (0..self.vocab).step_by(V::LANES) {
            let x: V = load_or(t, logits_now, v, at_target);
            largest = x.max(largest);
            nothing = x.mul_add(zero, nothing);
        }
        let max = largest.largest();
        let finite = nothing.sum() == 0.0;

        let shift = V::splat(t, max);
        // In parts: beside a large one the many small ones of a large vocabulary would be lost.
        let (mut sum, part) = (zero, PART * V::LANES);
        for from in (0..self.vocab).step_by(part) {
            let mut of_part = zero;
            for v in (from..self.vocab.min(from + part)).step_by(V::LANES) {
                let now = logits.or(d_logits.as_deref()).unwrap_or(&[]);
                let e = exp(t, load_or::<V>(t, now, v, f32::NEG_INFINITY) - shift);
                of_part = of_part + e;
                if let Some(d_logits) = d_logits.as_deref_mut() {
                    store(e, d_logits, v);
                }
            }
            sum = sum + of_part;
        }
        let sum = sum.sum();
        if let Some(d_logits) = d_logits {
            let factor = V::splat(t, 1.0 / sum);
            for v in (0..self.vocab).step_by(V::LANES) {
                store(load::<V>(t, d_logits, v) * factor, d_logits, v);
            }
            d_logits[target] -= 1.0;
        }
        if finite { libm::logf(sum) - (at_target - max) } else { f32::NAN }
    }
}

/// Scratch for the loss of each row, if it has no other place.
pub(super) fn scratch_floats(op: &CrossEntropy) -> usize {
    if op.losses.is_some() { 0 } else { op.rows }
}

pub(super) fn cross_entropy(context: &mut Context<'_, '_>, op: &CrossEntropy) -> Result<(), CpuError> {
    let views = &mut context.views;
    let targets = views.u32("targets", op.targets)?;
    check_tokens(targets.iter().copied().filter(|&target| target != IGNORE), op.vocab)?;
    let rows_per_task = rows_per_task(op.vocab);
    let job = Rows {
        logits: if op.d_logits == Some(op.logits) { None } else { Some(views.f32("logits", op.logits)?) },
        targets,
        rows_per_task,
        vocab: op.vocab,
    };
    let d_logits = op.d_logits.map(|d_logits| views.f32_mut("d_logits", d_logits)).transpose()?;
    let losses = match op.losses {
        Some(losses) => views.f32_mut("losses", losses)?,
        None => context.scratch.floats(scratch_floats(op))?,
    };
    let scalars = views.f32_mut("scalars", op.scalars)?;
    let parts = (
        Chunks::new(losses, rows_per_task),
        d_logits.map(|d_logits| Chunks::new(d_logits, rows_per_task * op.vocab)),
    );
    context.team.for_each(parts, &job);

    let sum: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
    let counted = targets.iter().filter(|&&target| target != IGNORE).count();
    scalars[scalar::LOSS_SUM] += sum as f32;
    scalars[scalar::TARGETS] += counted as f32;
    Ok(())
}
