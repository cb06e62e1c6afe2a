//! Softmax and cross-entropy: how surprised the model was by the token that came.
//!
//! ```text
//! p_v  = exp(l_v) / sum_u exp(l_u)               the softmax of a row of logits
//! loss = -ln p_target = ln sum_u exp(l_u) - l_target
//!
//! logits, d_logits   (rows, V)
//! targets            (rows)      ids below V, or IGNORE
//! losses             (rows)
//! ```
//!
//! Since d ln sum_u exp(l_u) / d l_v = p_v, the gradient is the prediction minus the truth:
//!
//! ```text
//! d_l_v = p_v - [v = target]
//! ```
//!
//! Subtracting the row's maximum m from all logits changes neither line, and keeps exp in range: the largest term of
//! the sum is then exp(0) = 1.
//!
//! A row that is ignored has loss 0 and gradient 0, whatever its logits. In every other row, a logit that is not
//! finite means that the computation has overflowed somewhere, and makes the loss NaN, so that the step is skipped.
//! That holds for minus infinity too, which the formula alone would take for a probability of 0.
//!
//! Losses and gradients are sums over rows, not means: the division by the number of targets is
//! [`finish_step`](super::optimizer::finish_step)'s.

use crate::op::{IGNORE, scalar};
use crate::real::Real;

/// Adds the sum of the losses and the number of targets to `scalars` ([`scalar::LOSS_SUM`] and
/// [`scalar::TARGETS`]), and writes `d_logits` and `losses` where given. The sum of one call is taken in f64.
///
/// # Panics
/// If a slice does not fit its shape or a target is neither below `vocab` nor [`IGNORE`].
///
/// ```
/// use minigpt_core::op::{IGNORE, scalar};
/// use minigpt_core::reference::cross_entropy::cross_entropy;
/// let mut scalars = [0.0f64; scalar::LEN];
/// let mut d_logits = [9.0; 4];
/// cross_entropy(&[0.0, 0.0, 5.0, 7.0], &[1, IGNORE], Some(&mut d_logits), None, &mut scalars, 2, 2);
/// assert_eq!(scalars[scalar::LOSS_SUM], 2f64.ln());
/// assert_eq!(scalars[scalar::TARGETS], 1.0);
/// assert_eq!(d_logits, [0.5, -0.5, 0.0, 0.0]);
/// ```
pub fn cross_entropy<R: Real>(
    logits: &[R],
    targets: &[u32],
    mut d_logits: Option<&mut [R]>,
    mut losses: Option<&mut [R]>,
    scalars: &mut [R],
    rows: usize,
    vocab: usize,
) {
    let mut loss_sum = 0.0;
    let mut counted = 0.0;
    for row in 0..rows {
        let logits = &logits[row * vocab..][..vocab];
        let target = targets[row];
        if target == IGNORE {
            if let Some(d_logits) = d_logits.as_deref_mut() {
                d_logits[row * vocab..][..vocab].fill(R::zero());
            }
            if let Some(losses) = losses.as_deref_mut() {
                losses[row] = R::zero();
            }
            continue;
        }
        let target = target as usize;

        let mut max = logits[0];
        let mut finite = true;
        for v in 0..vocab {
            finite &= logits[v].is_finite();
            if logits[v] > max {
                max = logits[v];
            }
        }
        // In f64: beside a large one the many small ones of a large vocabulary would be lost.
        let mut sum = 0.0;
        for v in 0..vocab {
            sum += (logits[v] - max).exp().to_f64();
        }
        let sum = R::from_f64(sum);
        let loss = if finite { sum.ln() - (logits[target] - max) } else { R::nan() };
        loss_sum += loss.to_f64();
        counted += 1.0;

        if let Some(d_logits) = d_logits.as_deref_mut() {
            let d_logits = &mut d_logits[row * vocab..][..vocab];
            for v in 0..vocab {
                d_logits[v] = (logits[v] - max).exp() / sum;
            }
            d_logits[target] -= R::one();
        }
        if let Some(losses) = losses.as_deref_mut() {
            losses[row] = loss;
        }
    }
    scalars[scalar::LOSS_SUM] += R::from_f64(loss_sum);
    scalars[scalar::TARGETS] += R::from_f64(counted);
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// (scalars, d_logits, losses)
    fn all(logits: &[f64], targets: &[u32], vocab: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let rows = targets.len();
        let mut scalars = vec![0.0; scalar::LEN];
        let (mut d_logits, mut losses) = (vec![f64::NAN; logits.len()], vec![f64::NAN; rows]);
        let d = Some(&mut d_logits[..]);
        cross_entropy(logits, targets, d, Some(&mut losses), &mut scalars, rows, vocab);
        (scalars, d_logits, losses)
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for (targets, vocab) in [(&[1u32][..], 2), (&[4, IGNORE, 0][..], 5), (&[2, 2, 6, IGNORE, 3][..], 7)] {
            let logits = random(1, targets.len() * vocab);
            let (_, d_logits, _) = all(&logits, targets, vocab);
            assert_gradient("logits", &d_logits, &logits, |l| all(l, targets, vocab).0[scalar::LOSS_SUM]);
        }
    }

    #[test]
    fn loss_and_gradient_match_a_worked_example() {
        // exp: 1, 2, 5 of 8 and 1, 1, 1 of 3.
        let logits = [0.0, 2f64.ln(), 5f64.ln(), 7.0, 7.0, 7.0, 1.0, 2.0, 3.0];
        let (scalars, d_logits, losses) = all(&logits, &[1, 0, IGNORE], 3);
        assert_close(&losses, &[4f64.ln(), 3f64.ln(), 0.0], 1e-14);
        let third = 1.0 / 3.0;
        let expected = [0.125, 0.25 - 1.0, 0.625, third - 1.0, third, third, 0.0, 0.0, 0.0];
        assert_close(&d_logits, &expected, 1e-14);
        assert_close(&scalars[..2], &[12f64.ln(), 2.0], 1e-14);
        assert!(scalars[2..].iter().all(|&s| s == 0.0));
    }

    #[test]
    fn sums_are_added_to_what_is_there() {
        let mut scalars = [0.5f64; scalar::LEN];
        cross_entropy(&[0.0, 0.0], &[0], None, None, &mut scalars, 1, 2);
        assert_eq!(scalars[scalar::LOSS_SUM], 0.5 + 2f64.ln());
        assert_eq!(scalars[scalar::TARGETS], 1.5);
    }

    #[test]
    fn large_logits_neither_overflow_nor_vanish() {
        let mut scalars = [0.0f32; scalar::LEN];
        let mut d_logits = [0.0; 4];
        let logits = [30_000.0, 29_999.0, -30_000.0, 30_000.0];
        cross_entropy(&logits, &[0, 0], Some(&mut d_logits), None, &mut scalars, 2, 2);
        let expected = (1.0 + (-1.0f64).exp()).ln() + 60_000.0;
        assert_close(&[f64::from(scalars[0])], &[expected], 0.01);
        let p = 1.0 / (1.0 + (-1.0f64).exp());
        let d_logits = d_logits.map(f64::from);
        assert_close(&d_logits, &[p - 1.0, 1.0 - p, -1.0, 1.0], 1e-6);
    }

    #[test]
    fn a_logit_that_is_not_finite_makes_the_loss_not_finite() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in 0..3 {
                for target in 0..3 {
                    let mut logits = [1.0, 2.0, 3.0];
                    logits[place] = bad;
                    let (scalars, _, losses) = all(&logits, &[target], 3);
                    assert!(!scalars[scalar::LOSS_SUM].is_finite(), "{bad} at {place}, target {target}");
                    assert!(!losses[0].is_finite());
                    assert_eq!(scalars[scalar::TARGETS], 1.0);
                }
                let mut logits = [1.0, 2.0, 3.0];
                logits[place] = bad;
                let (scalars, d_logits, losses) = all(&logits, &[IGNORE], 3);
                assert_eq!((scalars[0], scalars[1], losses[0]), (0.0, 0.0, 0.0));
                assert_eq!(d_logits, [0.0; 3]);
            }
        }
    }

    #[test]
    fn the_sum_of_many_rows_keeps_its_digits_in_f32() {
        let rows = 100_000;
        let mut scalars = [0.0f32; scalar::LEN];
        cross_entropy(&vec![0.0f32; 3 * rows], &vec![1; rows], None, None, &mut scalars, rows, 3);
        let expected = f64::from((3f32).ln()) * rows as f64;
        assert!((f64::from(scalars[0]) / expected - 1.0).abs() < 1e-7);
    }
}
