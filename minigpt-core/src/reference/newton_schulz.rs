//! A matrix made nearly orthogonal, without its singular value decomposition.
//!
//! Let X = U S V^T be the decomposition of a matrix (m, n) of at most as many rows as columns; of a taller one, the same is
//! done to its transpose. Then X X^T = U S^2 U^T, and an odd polynomial of X acts on the singular values alone:
//!
//! ```text
//! a X + b (X X^T) X + c (X X^T)^2 X = U (a S + b S^3 + c S^5) V^T
//! ```
//!
//! So iterating it iterates f(s) = a s + b s^3 + c s^5 on each singular value. The iteration of Newton and Schulz has
//! coefficients with which 1 is a fixed point that values between 0 and 1 converge to. Keller Jordan's a = 3.4445, b = -4.7750
//! and c = 2.0315 give that up for speed: the slope at 0 is large, so that small values grow 3.4 times in each iteration, and
//! what has come near 1 stays between 0.68 and 1.14 or so. For an optimizer this is as good as 1.
//!
//! f may be iterated only from values up to 1 or a little above. So the matrix is divided by its Frobenius norm first, which is
//! at least the largest singular value:
//!
//! ```text
//! X <- X / (|X| + 1e-7)                        |X|^2 is the sum of the squares of all numbers
//! as often as `steps` says:
//!     A = X X^T                                (m, m)
//!     B = b A + c A A                          (m, m)
//!     X <- a X + B X
//! ```
//!
//! Sources: Jordan et al. 2024, "Muon", <https://kellerjordan.github.io/posts/muon/>; Schulz 1933, "Iterative Berechnung der
//! reziproken Matrix"; Bernstein and Newhouse 2024, "Old Optimizer, New Norm", arXiv:2409.20325.

use crate::real::Real;

/// a, b and c.
pub const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Added to the norm before the matrix is divided by it: of zeros come zeros.
const NORM_EPS: f64 = 1e-7;

/// How many numbers of room [`newton_schulz`] needs beside the matrix: itself, A and B. Saturating.
pub const fn room(rows: usize, cols: usize) -> usize {
    let least = if rows < cols { rows } else { cols };
    rows.saturating_mul(cols).saturating_add(least.saturating_mul(least).saturating_mul(2))
}

/// What `x` is divided by first: its Frobenius norm and a little, in f64.
pub fn divisor<R: Real>(x: &[R]) -> f64 {
    libm::sqrt(super::optimizer::squared_norm(x)) + NORM_EPS
}

/// A number of a matrix that is divided by `divisor`: in f64, because of what f32 has no room for.
pub fn divided<R: Real>(x: R, divisor: f64) -> R {
    R::from_f64(x.to_f64() / divisor)
}

/// Makes `x`, (rows, cols), nearly orthogonal.
///
/// # Panics
/// If `x` is not as long as that, or `work` is shorter than [`room`] says.
///
/// ```
/// use minigpt_core::reference::newton_schulz::{newton_schulz, room};
/// // Two rows at a right angle, one a hundred times as long as the other: both come near length 1.
/// let (mut x, mut work) = ([300.0, 400.0, 0.0, 0.0, 0.0, -5.0], [0.0; room(2, 3)]);
/// newton_schulz(&mut x, &mut work, 2, 3, 5);
/// let length = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
/// assert!((length(&x[..3]) - 1.0).abs() < 0.35 && (length(&x[3..]) - 1.0).abs() < 0.35);
/// assert!((x[0] / x[1] - 0.75).abs() < 1e-12);
/// ```
pub fn newton_schulz<R: Real>(x: &mut [R], work: &mut [R], rows: usize, cols: usize, steps: u32) {
    let [a, b, c] = COEFFICIENTS.map(R::from_f64);
    let (m, n, tall) = (rows.min(cols), rows.max(cols), rows > cols);
    let (wide, work) = work.split_at_mut(m * n);
    let (gram, work) = work.split_at_mut(m * m);
    let polynomial = &mut work[..m * m];

    let divisor = divisor(x);
    for i in 0..m {
        for k in 0..n {
            wide[i * n + k] = divided(x[if tall { k * m + i } else { i * n + k }], divisor);
        }
    }
    for _ in 0..steps {
        for i in 0..m {
            for j in 0..m {
                gram[i * m + j] = super::dot(&wide[i * n..][..n], &wide[j * n..][..n]);
            }
        }
        for i in 0..m {
            for j in 0..m {
                // A is its own transpose.
                let square = super::dot(&gram[i * m..][..m], &gram[j * m..][..m]);
                polynomial[i * m + j] = b * gram[i * m + j] + c * square;
            }
        }
        for i in 0..m {
            let row = &mut x[i * n..][..n];
            row.fill(R::zero());
            for k in 0..m {
                super::add_scaled(row, polynomial[i * m + k], &wide[k * n..][..n]);
            }
            super::add_scaled(row, a, &wide[i * n..][..n]);
        }
        wide.copy_from_slice(x);
    }
    for i in 0..m {
        for k in 0..n {
            x[if tall { k * m + i } else { i * n + k }] = wide[i * n + k];
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::super::check::{assert_close, random};
    use super::*;

    fn orthogonalized(x: &[f64], rows: usize, cols: usize, steps: u32) -> Vec<f64> {
        let (mut x, mut work) = (x.to_vec(), vec![f64::NAN; room(rows, cols)]);
        newton_schulz(&mut x, &mut work, rows, cols, steps);
        x
    }

    fn transposed(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }

    /// What becomes of one singular value.
    fn f(s: f64, steps: u32) -> f64 {
        (0..steps).fold(s, |s, _| 3.4445 * s - 4.7750 * s.powi(3) + 2.0315 * s.powi(5))
    }

    /// A matrix of given singular values: of a rotation, a diagonal, and another rotation.
    fn of_singular_values(values: &[f64], rows: usize, cols: usize, seed: u64) -> Vec<f64> {
        let mut x = vec![0.0; rows * cols];
        for (i, value) in values.iter().enumerate() {
            x[i * cols + i] = *value;
        }
        let mut angles = random(seed, 400).into_iter().cycle();
        for turn in 0..60 {
            let (sin, cos) = angles.next().unwrap().sin_cos();
            if rows > 1 {
                let (i, j) = (turn % rows, (turn + 1 + turn / rows) % rows);
                for k in (0..cols).filter(|_| i != j) {
                    let (a, b) = (x[i * cols + k], x[j * cols + k]);
                    (x[i * cols + k], x[j * cols + k]) = (cos * a - sin * b, sin * a + cos * b);
                }
            }
            if cols > 1 {
                let (i, j) = (turn % cols, (turn + 1 + turn / cols) % cols);
                for k in (0..rows).filter(|_| i != j) {
                    let (a, b) = (x[k * cols + i], x[k * cols + j]);
                    (x[k * cols + i], x[k * cols + j]) = (cos * a - sin * b, sin * a + cos * b);
                }
            }
        }
        x
    }

    #[test]
    fn one_number_is_iterated_as_by_hand() {
        // 3 / (3 + 1e-7) is nearly 1, and f(1) = 3.4445 - 4.7750 + 2.0315 = 0.701.
        assert_close(&orthogonalized(&[3.0], 1, 1, 1), &[0.701], 1e-7);
        assert_close(&orthogonalized(&[-3.0], 1, 1, 1), &[-0.701], 1e-7);
        assert_close(&orthogonalized(&[3.0, 4.0], 1, 2, 0), &[0.6, 0.8], 1e-7);
    }

    #[test]
    fn a_diagonal_stays_one_and_each_number_goes_its_way() {
        let norm = 14.0f64.sqrt() + 1e-7;
        let x = [3.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 1.0];
        let expected = [f(3.0 / norm, 5), 0.0, 0.0, 0.0, -f(2.0 / norm, 5), 0.0, 0.0, 0.0, f(1.0 / norm, 5)];
        assert_close(&orthogonalized(&x, 3, 3, 5), &expected, 1e-12);
    }

    #[test]
    fn singular_vectors_stay_and_singular_values_come_near_one() {
        for (rows, cols) in [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (6, 6), (3, 20), (20, 3)] {
            let least = rows.min(cols);
            let values: Vec<f64> = (0..least).map(|i| 1.0 / (1.0 + i as f64 * i as f64)).collect();
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            let after: Vec<f64> = values.iter().map(|v| f(v / (norm + 1e-7), 5)).collect();
            assert!(after.iter().all(|s| (0.65..1.25).contains(s)), "{rows} x {cols}: {after:?}");
            let x = of_singular_values(&values, rows, cols, 7);
            let expected = of_singular_values(&after, rows, cols, 7);
            assert_close(&orthogonalized(&x, rows, cols, 5), &expected, 1e-12);
        }
    }

    #[test]
    fn the_size_of_a_matrix_does_not_matter_nor_which_way_it_lies() {
        let (rows, cols) = (4, 6);
        let x = random(3, rows * cols);
        let found = orthogonalized(&x, rows, cols, 5);
        // But for what is added to the norm.
        let larger: Vec<f64> = x.iter().map(|x| 1e30 * x).collect();
        assert_close(&orthogonalized(&larger, rows, cols, 5), &found, 1e-6);
        let turned = orthogonalized(&transposed(&x, rows, cols), cols, rows, 5);
        // The squares are summed in another order.
        assert_close(&turned, &transposed(&found, rows, cols), 1e-12);
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_shows() {
        assert_eq!(orthogonalized(&[0.0; 12], 3, 4, 5), [0.0; 12]);
        let mut x = random(5, 12);
        x[7] = f64::NAN;
        assert!(orthogonalized(&x, 3, 4, 5).iter().all(|x| x.is_nan()));
        // The squares of these are beyond f32.
        let mut x = [3e30f32, 4e30];
        newton_schulz(&mut x, &mut [0.0; room(1, 2)], 1, 2, 0);
        assert!((x[0] - 0.6).abs() < 1e-6 && (x[1] - 0.8).abs() < 1e-6, "{x:?}");
    }

    #[test]
    fn a_matrix_without_numbers_is_none() {
        newton_schulz::<f64>(&mut [], &mut [0.0; room(0, 3)], 0, 3, 5);
        assert_eq!(room(usize::MAX, 2), usize::MAX);
    }
}
