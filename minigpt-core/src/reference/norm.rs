//! Layer norm and RMS norm: a vector is brought to a common size, then given a learned scale and shift.
//!
//! ```text
//! layer norm                                        RMS norm
//! mean = 1/C sum_i x_i
//! rstd = 1 / sqrt(1/C sum_i (x_i - mean)^2 + eps)   rstd = 1 / sqrt(1/C sum_i x_i^2 + eps)
//! n_i  = (x_i - mean) rstd                          n_i  = x_i rstd
//! y_i  = n_i weight_i + bias_i                      y_i  = n_i weight_i + bias_i
//!
//! x, y           (rows, groups, C)     groups vectors side by side in a row, each normed by itself
//! weight, bias   (C)                   of all vectors
//! mean, rstd     (rows, groups)        kept for the gradient
//! ```
//!
//! The parameters' gradients are read off the last line, summed over the vectors:
//! d_weight_i += d_y_i n_i and d_bias_i += d_y_i.
//!
//! For d_x, let g_i = d_y_i weight_i, the gradient of n_i. In layer norm each x_j acts on n_i in three ways: directly,
//! through the mean, and through rstd. With d rstd/d x_j = -rstd^3 (x_j - mean) / C = -rstd^2 n_j / C:
//!
//! ```text
//! d n_i / d x_j = rstd ([i = j] - 1/C - n_i n_j / C)
//! d_x_j         = sum_i g_i (d n_i / d x_j) = rstd (g_j - mean(g) - n_j mean(g n))
//! ```
//!
//! In words: from g, take away the part along the constant vector and the part along n, the two directions in which
//! the norm cannot be moved.
//!
//! RMS norm has no mean to act through. With d rstd/d x_j = -rstd^3 x_j / C = -rstd^2 n_j / C:
//!
//! ```text
//! d n_i / d x_j = rstd ([i = j] - n_i n_j / C)
//! d_x_j         = rstd (g_j - n_j mean(g n))
//! ```
//!
//! So it is layer norm with a mean of 0 in the place of mean(x) and of mean(g), and the loops below are written once.
//!
//! Sources: Ba, Kiros and Hinton 2016, "Layer Normalization", arXiv:1607.06450; Zhang and Sennrich 2019, "Root Mean Square
//! Layer Normalization", arXiv:1910.07467, section 4.

use super::Rows;
use crate::real::Real;

/// Norms `groups` vectors of `width` in each of `rows` rows, and keeps their statistics for [`norm_backward`]: layer norm if
/// there is a place for `mean`, RMS norm if not.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::reference::{Rows, norm::norm_forward};
/// let x = Rows { data: &[1.0, 5.0], stride: 2 };
/// let (mut y, mut mean, mut rstd) = ([0.0f64; 2], [0.0], [0.0]);
/// norm_forward(x, &[1.0, 10.0], Some(&[0.0, 3.0]), &mut y, Some(&mut mean), &mut rstd, 1, 1, 2, 0.0);
/// assert_eq!((y, mean, rstd), ([-1.0, 13.0], [3.0], [0.5]));
///
/// // The mean of 1 and 49 is 25.
/// let x = Rows { data: &[1.0, 7.0], stride: 2 };
/// norm_forward(x, &[5.0, 10.0], None, &mut y, None, &mut rstd, 1, 1, 2, 0.0);
/// assert_eq!((y[0], rstd), (1.0, [0.2]));
/// assert!((y[1] - 14.0f64).abs() < 1e-13);
/// ```
pub fn norm_forward<R: Real>(
    x: Rows<'_, R>,
    weight: &[R],
    bias: Option<&[R]>,
    y: &mut [R],
    mut mean: Option<&mut [R]>,
    rstd: &mut [R],
    rows: usize,
    groups: usize,
    width: usize,
    eps: f64,
) {
    let count = R::from_f64(width as f64);
    let (weight, bias) = (&weight[..width], bias.map(|bias| &bias[..width]));
    for row in 0..rows {
        for group in 0..groups {
            let vector = row * groups + group;
            let x = x.part(row, group * width, width);
            let y = &mut y[vector * width..][..width];

            let mut m = R::zero();
            if let Some(mean) = mean.as_deref_mut() {
                for i in 0..width {
                    m += x[i];
                }
                m /= count;
                mean[vector] = m;
            }
            // The squares are summed around the mean: E[x^2] - mean^2 would lose all digits where the mean is large.
            let mut squares = R::zero();
            for i in 0..width {
                squares += (x[i] - m) * (x[i] - m);
            }
            let r = R::one() / (squares / count + R::from_f64(eps)).sqrt();
            rstd[vector] = r;

            for i in 0..width {
                y[i] = (x[i] - m) * r * weight[i];
                if let Some(bias) = bias {
                    y[i] += bias[i];
                }
            }
        }
    }
}

/// Writes `d_x`, or adds to it if `accumulate`; adds to `d_weight` and `d_bias`, if they are given. Without a `mean` it is the
/// gradient of RMS norm.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn norm_backward<R: Real>(
    x: Rows<'_, R>,
    weight: &[R],
    mean: Option<&[R]>,
    rstd: &[R],
    d_y: Rows<'_, R>,
    d_x: &mut [R],
    accumulate: bool,
    mut d_weight: Option<&mut [R]>,
    mut d_bias: Option<&mut [R]>,
    rows: usize,
    groups: usize,
    width: usize,
) {
    let (count, weight) = (R::from_f64(width as f64), &weight[..width]);
    for row in 0..rows {
        for group in 0..groups {
            let vector = row * groups + group;
            let x = x.part(row, group * width, width);
            let d_y = d_y.part(row, group * width, width);
            let d_x = &mut d_x[vector * width..][..width];
            let (m, r) = (mean.map_or(R::zero(), |mean| mean[vector]), rstd[vector]);

            let mut mean_g = R::zero();
            let mut mean_gn = R::zero();
            for i in 0..width {
                let n = (x[i] - m) * r;
                let g = d_y[i] * weight[i];
                mean_g += g;
                mean_gn += g * n;
                if let Some(d_weight) = d_weight.as_deref_mut() {
                    d_weight[i] += d_y[i] * n;
                }
                if let Some(d_bias) = d_bias.as_deref_mut() {
                    d_bias[i] += d_y[i];
                }
            }
            // Without a mean there is nothing to go back through it.
            mean_g = if mean.is_some() { mean_g / count } else { R::zero() };
            mean_gn /= count;

            for i in 0..width {
                let n = (x[i] - m) * r;
                let g = d_y[i] * weight[i];
                let d = r * (g - mean_g - n * mean_gn);
                d_x[i] = if accumulate { d_x[i] + d } else { d };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// `rows` rows of `width` in a matrix that is `apart` wider, with NaN between them.
    fn apart(values: &[f64], width: usize, apart: usize) -> Vec<f64> {
        let mut all = Vec::new();
        for row in values.chunks(width) {
            all.extend_from_slice(row);
            all.extend(vec![f64::NAN; apart]);
        }
        all.truncate(all.len() - apart);
        all
    }

    fn check_gradient([rows, groups, width]: [usize; 3], gap: usize, layer: bool, with_bias: bool) {
        let (n, vectors, stride) = (rows * groups * width, rows * groups, groups * width + gap);
        let (x, weight) = (random(1, n), random(2, width));
        let (bias, weights) = (random(3, width), random(4, n));
        let forward = |x: &[f64], weight: &[f64], bias: &[f64]| {
            let mut y = vec![f64::NAN; n];
            let (mut mean, mut rstd) = (vec![f64::NAN; vectors], vec![f64::NAN; vectors]);
            let (x, bias) = (apart(x, groups * width, gap), with_bias.then_some(bias));
            let (x, kept) = (Rows { data: &x, stride }, layer.then_some(&mut mean[..]));
            norm_forward(x, weight, bias, &mut y, kept, &mut rstd, rows, groups, width, 1e-2);
            (weighted_sum(&y, &weights), mean, rstd)
        };
        let (_, mean, rstd) = forward(&x, &weight, &bias);
        for accumulate in [false, true] {
            // What is added to begins at 1, what is written begins as NaN.
            let before = if accumulate { 1.0 } else { f64::NAN };
            let mut d_x = vec![before; n];
            let (mut d_weight, mut d_bias) = (vec![1.0; width], vec![1.0; width]);
            let [x_apart, d_y] = [&x, &weights].map(|values| apart(values, groups * width, gap));
            norm_backward(
                Rows { data: &x_apart, stride },
                &weight,
                layer.then_some(&mean[..]),
                &rstd,
                Rows { data: &d_y, stride },
                &mut d_x,
                accumulate,
                Some(&mut d_weight),
                with_bias.then_some(&mut d_bias[..]),
                rows,
                groups,
                width,
            );
            let less_one = |d: Vec<f64>| -> Vec<f64> { d.into_iter().map(|d| d - 1.0).collect() };
            let d_x = if accumulate { less_one(d_x) } else { d_x };
            assert_gradient("x", &d_x, &x, |x| forward(x, &weight, &bias).0);
            assert_gradient("weight", &less_one(d_weight), &weight, |w| forward(&x, w, &bias).0);
            if with_bias {
                assert_gradient("bias", &less_one(d_bias), &bias, |b| forward(&x, &weight, b).0);
            }
        }
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for (shape, gap) in [([1, 1, 3], 0), ([3, 1, 5], 4), ([2, 1, 16], 0), ([2, 3, 4], 0), ([3, 2, 7], 5)]
        {
            for (layer, with_bias) in [(true, true), (true, false), (false, true), (false, false)] {
                check_gradient(shape, gap, layer, with_bias);
            }
        }
    }

    #[test]
    fn the_kept_statistics_are_mean_and_inverse_deviation() {
        let x = [1.0, 2.0, 3.0, 6.0, -1.0, -1.0, -1.0, -1.0];
        let (mut y, mut mean, mut rstd) = ([0.0f64; 8], [0.0; 2], [0.0; 2]);
        // Two rows of one vector, or one row of two.
        for (rows, groups) in [(2, 1), (1, 2)] {
            let (x, weight) = (Rows { data: &x, stride: 4 * groups }, [1.0, 1.0, 2.0, 1.0]);
            norm_forward(x, &weight, None, &mut y, Some(&mut mean), &mut rstd, rows, groups, 4, 0.25);
            // Squares around 3: 4 + 1 + 0 + 9 = 14, a variance of 3.5; with eps 3.75. The second vector is constant.
            assert_eq!(mean, [3.0, -1.0]);
            let r = 1.0 / 3.75f64.sqrt();
            assert_close(&rstd, &[r, 2.0], 1e-15);
            assert_close(&y, &[-2.0 * r, -r, 0.0, 3.0 * r, 0.0, 0.0, 0.0, 0.0], 1e-15);
            // The mean square of the first is 50/4, with eps 12.75; of the second 1, with eps 1.25.
            norm_forward(x, &weight, None, &mut y, None, &mut rstd, rows, groups, 4, 0.25);
            let [r, s] = [1.0 / 12.75f64.sqrt(), 1.0 / 1.25f64.sqrt()];
            assert_close(&rstd, &[r, s], 1e-15);
            assert_close(&y, &[r, 2.0 * r, 6.0 * r, 6.0 * r, -s, -s, -2.0 * s, -s], 1e-15);
        }
    }

    #[test]
    fn a_large_mean_costs_no_digits() {
        let (mut y, mut mean, mut rstd) = ([0.0f32; 2], [0.0], [0.0]);
        let x = Rows { data: &[99_999.0f32, 100_001.0], stride: 2 };
        norm_forward(x, &[1.0; 2], None, &mut y, Some(&mut mean), &mut rstd, 1, 1, 2, 0.0);
        assert_eq!((y, rstd), ([-1.0, 1.0], [1.0]));

        // A mean that f32 cannot hold: the deviations are -4/3, -1/3 and 5/3, the variance is 14/9. Sums of x^2 - m^2
        // would be off by thousands.
        let x = Rows { data: &[999_999.0f32, 1_000_000.0, 1_000_002.0], stride: 3 };
        let (mut y, mut mean, mut rstd) = ([0.0f32; 3], [0.0], [0.0]);
        norm_forward(x, &[1.0; 3], None, &mut y, Some(&mut mean), &mut rstd, 1, 1, 3, 0.0);
        assert_close(&[f64::from(rstd[0])], &[(9.0f64 / 14.0).sqrt()], 1e-3);
    }
}
