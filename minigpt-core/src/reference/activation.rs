//! The non-linearities of the feed-forward layer, and their derivatives.
//!
//! Without a non-linearity between them, two linear layers would be one. With Phi the standard normal distribution
//! and phi its density:
//!
//! ```text
//! GELU erf     f(x) = x Phi(x) = x/2 (1 + erf(x / sqrt 2))
//!              f'(x) = Phi(x) + x phi(x),   phi(x) = exp(-x^2/2) / sqrt(2 pi)
//!
//! GELU tanh    f(x) = x/2 (1 + tanh u),     u = sqrt(2/pi) (x + 0.044715 x^3)
//!              f'(x) = (1 + tanh u)/2 + x/2 (1 - tanh^2 u) u',   u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)
//!
//! ReLU         f(x) = max(x, 0)
//!              f'(x) = 1 for x > 0, else 0
//!
//! ReLU squared f(x) = max(x, 0)^2
//!              f'(x) = 2 max(x, 0)
//!
//! SiLU         f(x) = x s(x),               s(x) = 1 / (1 + exp(-x))
//!              f'(x) = s(x) (1 + x (1 - s(x)))
//! ```
//!
//! Both GELUs and SiLU follow from the product rule, with tanh' = 1 - tanh^2 and s' = s (1 - s). At 0, where ReLU has a
//! kink, the derivative is 0 by convention, as in PyTorch.
//!
//! Sources: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", arXiv:1606.08415, section 2, for both GELUs and SiLU;
//! So et al. 2021, "Primer", arXiv:2109.08668, section 4.1, for ReLU squared.

use core::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::config::Activation;
use crate::real::Real;

/// sqrt(2/pi).
const SQRT_2_OVER_PI: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
/// The coefficient of the cube in the tanh approximation.
const CUBIC: f64 = 0.044715;

/// f(x).
///
/// ```
/// use minigpt_core::{Activation, reference::activation::activate};
/// assert_eq!(activate(Activation::Relu, -3.0), 0.0);
/// assert!((activate(Activation::GeluErf, 1.0f64) - 0.841344746).abs() < 1e-9);
/// ```
// Always, since a call for each element is a tenth of what a token takes on a small processor.
#[inline(always)]
pub fn activate<R: Real>(activation: Activation, x: R) -> R {
    let half = R::from_f64(0.5);
    match activation {
        Activation::GeluTanh => half * x * (R::one() + gelu_tanh_inner(x).tanh()),
        Activation::GeluErf => half * x * (R::one() + (x * R::from_f64(FRAC_1_SQRT_2)).erf()),
        // Not max(): NaN must come through, so that a step that has gone wrong is seen and skipped.
        Activation::Relu => {
            if x <= R::zero() {
                R::zero()
            } else {
                x
            }
        }
        Activation::ReluSquared => {
            if x <= R::zero() {
                R::zero()
            } else {
                x * x
            }
        }
        Activation::Silu => x * sigmoid(x),
    }
}

/// f'(x).
///
/// ```
/// use minigpt_core::{Activation, reference::activation::derivative};
/// assert_eq!(derivative(Activation::Relu, 0.0), 0.0);
/// assert_eq!(derivative(Activation::GeluTanh, 0.0), 0.5);
/// ```
pub fn derivative<R: Real>(activation: Activation, x: R) -> R {
    let half = R::from_f64(0.5);
    match activation {
        Activation::GeluTanh => {
            let tanh = gelu_tanh_inner(x).tanh();
            let slope = R::from_f64(SQRT_2_OVER_PI) * (R::one() + R::from_f64(3.0 * CUBIC) * x * x);
            half * (R::one() + tanh) + half * x * (R::one() - tanh * tanh) * slope
        }
        Activation::GeluErf => {
            let distribution = half * (R::one() + (x * R::from_f64(FRAC_1_SQRT_2)).erf());
            let density = R::from_f64(0.5 * SQRT_2_OVER_PI) * (-half * x * x).exp();
            distribution + x * density
        }
        Activation::Relu => {
            if x <= R::zero() {
                R::zero()
            } else {
                R::one()
            }
        }
        Activation::ReluSquared => {
            if x <= R::zero() {
                R::zero()
            } else {
                x + x
            }
        }
        Activation::Silu => {
            let s = sigmoid(x);
            s * (R::one() + x * (R::one() - s))
        }
    }
}

/// s(x) of SiLU.
fn sigmoid<R: Real>(x: R) -> R {
    R::one() / (R::one() + (-x).exp())
}

/// u(x) of the tanh approximation.
fn gelu_tanh_inner<R: Real>(x: R) -> R {
    R::from_f64(SQRT_2_OVER_PI) * (x + R::from_f64(CUBIC) * x * x * x)
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, numeric_gradient};
    use super::*;

    const ALL: [Activation; 5] = [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
    ];

    #[test]
    fn derivatives_match_finite_differences() {
        for activation in ALL {
            for x in [-6.0, -2.3, -0.9, -0.1, 0.05, 0.7, 1.9, 5.0] {
                let numeric = numeric_gradient(&[x], |x| activate(activation, x[0]));
                assert_close(&[derivative(activation, x)], &numeric, 1e-9);
            }
        }
    }

    #[test]
    fn values_match_tables() {
        // Phi(1), Phi(-2) from tables of the normal distribution; the tanh form worked out by hand at 1:
        // u = 0.7978845608 * 1.044715 = 0.8335620, tanh u = 0.6823839.
        let erf = |x: f64| activate(Activation::GeluErf, x);
        let tanh = |x: f64| activate(Activation::GeluTanh, x);
        assert_close(&[erf(1.0), erf(-2.0), erf(0.0)], &[0.841344746, -2.0 * 0.022750132, 0.0], 1e-8);
        assert_close(&[tanh(1.0), tanh(-1.0), tanh(0.0)], &[0.841191990, -0.158808010, 0.0], 1e-8);
        let relu = |x: f64| activate(Activation::Relu, x);
        assert_eq!([relu(-1.5), relu(0.0), relu(2.5)], [0.0, 0.0, 2.5]);
        let squared = |x: f64| activate(Activation::ReluSquared, x);
        assert_eq!([squared(-1.5), squared(0.0), squared(2.5)], [0.0, 0.0, 6.25]);
        // At ln 3, the sigmoid is 3/4; where exp(-x) overflows, the result is still 0.
        let silu = |x: f64| activate(Activation::Silu, x);
        let ln3 = 3f64.ln();
        assert_close(&[silu(ln3), silu(-ln3), silu(0.0)], &[0.75 * ln3, -0.25 * ln3, 0.0], 1e-15);
        assert_eq!(silu(-1e4), 0.0);
        assert_eq!(derivative(Activation::Silu, -1e4), 0.0);
    }

    #[test]
    fn derivatives_at_zero_follow_the_convention() {
        assert_eq!(ALL.map(|activation| derivative(activation, 0.0f64)), [0.5, 0.5, 0.0, 0.0, 0.5]);
        assert_eq!(derivative(Activation::Relu, 1e-300f64), 1.0);
        assert_eq!(derivative(Activation::Relu, -1e-300f64), 0.0);
    }

    #[test]
    fn nan_comes_through() {
        for activation in ALL {
            assert!(activate(activation, f64::NAN).is_nan(), "{activation:?}");
        }
    }
}
