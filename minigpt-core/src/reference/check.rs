//! Finite differences, for the tests of gradients.

use alloc::vec::Vec;

use crate::rng::{Rng, Stream};

/// The relative error that a gradient may have.
const TOLERANCE: f64 = 1e-6;

/// `len` normal random numbers.
pub(super) fn random(seed: u64, len: usize) -> Vec<f64> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..len).map(|_| rng.normal()).collect()
}

/// The scalar that tests differentiate: a sum with random weights, whose gradient is `weights`.
pub(super) fn weighted_sum(values: &[f64], weights: &[f64]) -> f64 {
    assert_eq!(values.len(), weights.len());
    values.iter().zip(weights).map(|(v, w)| v * w).sum()
}

/// The gradient of `f` at `x` by central differences with steps of h and 2h, which cancel each other's error up to
/// the order of h^4.
pub(super) fn numeric_gradient(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    const H: f64 = 1e-3;
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            let mut at = |step: f64| {
                moved[i] = x[i] + step;
                f(&moved)
            };
            let slope = (8.0 * (at(H) - at(-H)) - (at(2.0 * H) - at(-2.0 * H))) / (12.0 * H);
            moved[i] = x[i];
            slope
        })
        .collect()
}

/// That `analytic` is the gradient of `f` at `x`, each element within a relative error of 1e-6 (of its own size, or
/// of a thousandth of the largest).
pub(super) fn assert_gradient(what: &str, analytic: &[f64], x: &[f64], f: impl FnMut(&[f64]) -> f64) {
    let numeric = numeric_gradient(x, f);
    assert_eq!(analytic.len(), numeric.len(), "{what}");
    let largest = numeric.iter().fold(0.0f64, |m, g| m.max(g.abs()));
    assert!(largest > 1e-3, "{what}: the test's gradient vanishes");
    for (i, (a, n)) in analytic.iter().zip(&numeric).enumerate() {
        let error = (a - n).abs() / n.abs().max(1e-3 * largest);
        assert!(error < TOLERANCE, "{what}[{i}]: {a} where finite differences give {n}");
    }
}

/// That two slices agree within `tolerance`, element by element.
pub(super) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "[{i}]: {f} is not {e}");
    }
}

#[test]
fn finite_differences_know_a_gradient_and_refuse_a_wrong_one() {
    let cubes = |x: &[f64]| x.iter().map(|x| x * x * x).sum();
    assert_gradient("cubes", &[3.0, 12.0], &[1.0, 2.0], cubes);
    for wrong in [[3.0, 12.0001], [3.0001, 12.0], [f64::NAN, 12.0]] {
        let refused = std::panic::catch_unwind(|| assert_gradient("cubes", &wrong, &[1.0, 2.0], cubes));
        assert!(refused.is_err(), "{wrong:?}");
    }
}
