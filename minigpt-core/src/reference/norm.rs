//! Layer norm: every row is shifted to mean 0, scaled to variance 1, then given a learned scale and shift.
//!
//! ```text
//! mean = 1/C sum_i x_i
//! rstd = 1 / sqrt(1/C sum_i (x_i - mean)^2 + eps)
//! n_i  = (x_i - mean) rstd
//! y_i  = n_i weight_i + bias_i
//!
//! x, y           (rows, C)
//! weight, bias   (C)
//! mean, rstd     (rows)      kept for the gradient
//! ```
//!
//! The parameters' gradients are read off the last line, summed over the rows:
//! d_weight_i += d_y_i n_i and d_bias_i += d_y_i.
//!
//! For d_x, let g_i = d_y_i weight_i, the gradient of n_i. Each x_j acts on n_i in three ways: directly, through the
//! mean, and through rstd. With d rstd/d x_j = -rstd^3 (x_j - mean) / C = -rstd^2 n_j / C:
//!
//! ```text
//! d n_i / d x_j = rstd ([i = j] - 1/C - n_i n_j / C)
//! d_x_j         = sum_i g_i (d n_i / d x_j) = rstd (g_j - mean(g) - n_j mean(g n))
//! ```
//!
//! In words: from g, take away the part along the constant vector and the part along n, the two directions in which
//! the norm cannot be moved.
//!
//! Source: Ba, Kiros and Hinton 2016, "Layer Normalization", arXiv:1607.06450.

use crate::real::Real;

/// Normalises `rows` rows of `width`; keeps `mean` and `rstd` of each for [`norm_backward`].
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::reference::norm::norm_forward;
/// let (mut y, mut mean, mut rstd) = ([0.0f64; 2], [0.0], [0.0]);
/// norm_forward(&[1.0, 5.0], &[1.0, 10.0], Some(&[0.0, 3.0]), &mut y, &mut mean, &mut rstd, 1, 2, 0.0);
/// assert_eq!((y, mean, rstd), ([-1.0, 13.0], [3.0], [0.5]));
/// ```
pub fn norm_forward<R: Real>(
    x: &[R],
    weight: &[R],
    bias: Option<&[R]>,
    y: &mut [R],
    mean: &mut [R],
    rstd: &mut [R],
    rows: usize,
    width: usize,
    eps: f64,
) {
    let count = R::from_f64(width as f64);
    for row in 0..rows {
        let x = &x[row * width..][..width];
        let y = &mut y[row * width..][..width];

        let mut sum = R::zero();
        for i in 0..width {
            sum += x[i];
        }
        let m = sum / count;
        // The squares are summed around the mean: E[x^2] - mean^2 would lose all digits where the mean is large.
        let mut squares = R::zero();
        for i in 0..width {
            squares += (x[i] - m) * (x[i] - m);
        }
        let r = R::one() / (squares / count + R::from_f64(eps)).sqrt();

        for i in 0..width {
            y[i] = (x[i] - m) * r * weight[i];
            if let Some(bias) = bias {
                y[i] += bias[i];
            }
        }
        mean[row] = m;
        rstd[row] = r;
    }
}

/// Writes `d_x`, or adds to it if `accumulate`; adds to `d_weight` and `d_bias`, if they are given.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn norm_backward<R: Real>(
    x: &[R],
    weight: &[R],
    mean: &[R],
    rstd: &[R],
    d_y: &[R],
    d_x: &mut [R],
    accumulate: bool,
    mut d_weight: Option<&mut [R]>,
    mut d_bias: Option<&mut [R]>,
    rows: usize,
    width: usize,
) {
    let count = R::from_f64(width as f64);
    for row in 0..rows {
        let x = &x[row * width..][..width];
        let d_y = &d_y[row * width..][..width];
        let d_x = &mut d_x[row * width..][..width];
        let (m, r) = (mean[row], rstd[row]);

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
        mean_g /= count;
        mean_gn /= count;

        for i in 0..width {
            let n = (x[i] - m) * r;
            let g = d_y[i] * weight[i];
            let d = r * (g - mean_g - n * mean_gn);
            d_x[i] = if accumulate { d_x[i] + d } else { d };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn gradient_matches_finite_differences() {
        for (rows, width) in [(1, 3), (3, 5), (2, 16), (4, 7)] {
            for with_bias in [true, false] {
                let (x, weight) = (random(1, rows * width), random(2, width));
                let (bias, weights) = (random(3, width), random(4, rows * width));
                let forward = |x: &[f64], weight: &[f64], bias: &[f64]| {
                    let mut y = vec![f64::NAN; rows * width];
                    let (mut mean, mut rstd) = (vec![f64::NAN; rows], vec![f64::NAN; rows]);
                    let bias = with_bias.then_some(bias);
                    norm_forward(x, weight, bias, &mut y, &mut mean, &mut rstd, rows, width, 1e-2);
                    (weighted_sum(&y, &weights), mean, rstd)
                };
                let (_, mean, rstd) = forward(&x, &weight, &bias);
                for accumulate in [false, true] {
                    // What is added to begins at 1, what is written begins as NaN.
                    let before = if accumulate { 1.0 } else { f64::NAN };
                    let mut d_x = vec![before; rows * width];
                    let (mut d_weight, mut d_bias) = (vec![1.0; width], vec![1.0; width]);
                    norm_backward(
                        &x,
                        &weight,
                        &mean,
                        &rstd,
                        &weights,
                        &mut d_x,
                        accumulate,
                        Some(&mut d_weight),
                        with_bias.then_some(&mut d_bias[..]),
                        rows,
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
        }
    }

    #[test]
    fn the_kept_statistics_are_mean_and_inverse_deviation() {
        let x = [1.0, 2.0, 3.0, 6.0, -1.0, -1.0, -1.0, -1.0];
        let (mut y, mut mean, mut rstd) = ([0.0f64; 8], [0.0; 2], [0.0; 2]);
        norm_forward(&x, &[1.0, 1.0, 2.0, 1.0], None, &mut y, &mut mean, &mut rstd, 2, 4, 0.25);
        // Squares around 3: 4 + 1 + 0 + 9 = 14, a variance of 3.5; with eps 3.75. The second row is constant.
        assert_eq!(mean, [3.0, -1.0]);
        let r = 1.0 / 3.75f64.sqrt();
        assert_close(&rstd, &[r, 2.0], 1e-15);
        assert_close(&y, &[-2.0 * r, -r, 0.0, 3.0 * r, 0.0, 0.0, 0.0, 0.0], 1e-15);
    }

    #[test]
    fn a_large_mean_costs_no_digits() {
        let (mut y, mut mean, mut rstd) = ([0.0f32; 2], [0.0], [0.0]);
        norm_forward(&[99_999.0f32, 100_001.0], &[1.0; 2], None, &mut y, &mut mean, &mut rstd, 1, 2, 0.0);
        assert_eq!((y, rstd), ([-1.0, 1.0], [1.0]));

        // A mean that f32 cannot hold: the deviations are -4/3, -1/3 and 5/3, the variance is 14/9. Sums of x^2 - m^2
        // would be off by thousands.
        let x = [999_999.0f32, 1_000_000.0, 1_000_002.0];
        let (mut y, mut mean, mut rstd) = ([0.0f32; 3], [0.0], [0.0]);
        norm_forward(&x, &[1.0; 3], None, &mut y, &mut mean, &mut rstd, 1, 3, 0.0);
        assert_close(&[f64::from(rstd[0])], &[(9.0f64 / 14.0).sqrt()], 1e-3);
    }
}
