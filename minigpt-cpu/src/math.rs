//! exp, erf, and the non-linearities made of them, on whole vectors.
//!
//! Errors against the exact value, in units in the last place of the result, as `tests` measures them over all of
//! f32 on every instruction set: exp 1.0 (below 2^-126, of the subnormal numbers' place), erf 1.2. NaN comes through,
//! infinities give the limits.
//!
//! The polynomials are weighted minimax fits made for this crate in 40-digit arithmetic (Lawson's iteration), each to
//! an error well below one rounding.

use minigpt_core::Activation;

use crate::arch::Vector;

/// c\[0\] + c\[1\] x + c\[2\] x^2 + ...
#[inline(always)]
fn polynomial<V: Vector, const N: usize>(t: V::Token, x: V, c: [f32; N]) -> V {
    let mut sum = V::splat(t, c[N - 1]);
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, V::splat(t, c[i]));
    }
    sum
}

/// e^x.
///
/// With n the integer nearest to x / ln 2 and r = x - n ln 2, |r| <= ln 2 / 2: e^x = 2^n e^r.
#[inline(always)]
pub(crate) fn exp<V: Vector>(t: V::Token, x: V) -> V {
    // ln 2 in two parts, the first short enough that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // (e^r - 1 - r) / r^2 on +-ln 2 / 2.
    const Q: [f32; 5] = [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_887, 0.001_395_043];
    // Beyond these, the result is 0 or infinite. NaN is neither and stays.
    let x = V::splat(t, 89.0).min(V::splat(t, -104.0).max(x));
    let n = (x * V::splat(t, core::f32::consts::LOG2_E)).round();
    let r = n.mul_add(V::splat(t, -LN_2_LOW), n.mul_add(V::splat(t, -LN_2_HIGH), x));
    let q = polynomial(t, r, Q);
    (q.mul_add(r * r, r) + V::splat(t, 1.0)).scale(n)
}

/// The error function: a polynomial up to 1, and from there on 1 - e^p(|x|) with the sign of x, p being a fit to the
/// logarithm of 1 - erf.
#[inline(always)]
pub(crate) fn erf<V: Vector>(t: V::Token, x: V) -> V {
    // erf(x) / x - 1 in powers of x^2, for |x| up to 1.
    const NEAR: [f32; 7] = [
        0.128_379_17,
        -0.376_126_26,
        0.112_835_996,
        -0.026_854_433,
        0.005_189_513_3,
        -0.000_802_064_4,
        7.888_461e-5,
    ];
    // ln(1 - erf(1 + u)) in powers of u, for u from 0 to 3, weighted by 1 - erf.
    const FAR: [f32; 7] = [
        -1.849_605_6,
        -2.638_966_8,
        -0.843_118_3,
        -0.041_500_736,
        0.009_890_984,
        -0.001_826_236_4,
        0.000_185_594_65,
    ];
    let one = V::splat(t, 1.0);
    let a = x.abs();
    let near = polynomial(t, x * x, NEAR).mul_add(x, x);
    // From 4 on, 1 - erf is less than half of the last place of 1. NaN stays.
    let u = V::splat(t, 4.0).min(a) - one;
    let far = one - exp(t, polynomial(t, u, FAR));
    V::select(a.lt(one), near, far).copysign(x)
}

const FRAC_1_SQRT_2: f32 = core::f32::consts::FRAC_1_SQRT_2;
/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The coefficient of the cube in the tanh approximation of GELU.
const CUBIC: f32 = 0.044_715;

/// The non-linearity, equal to [`minigpt_core::reference::activation::activate`].
#[inline(always)]
pub(crate) fn activate<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    let (half, one) = (V::splat(t, 0.5), V::splat(t, 1.0));
    match activation {
        // (1 + tanh u) / 2 = 1 / (1 + e^-2u): one exponential, where tanh itself needs a second way near 0.
        Activation::GeluTanh => x / (one + exp(t, gelu_tanh_exponent(t, x))),
        Activation::GeluErf => half * x * (one + erf(t, x * V::splat(t, FRAC_1_SQRT_2))),
        // Of 0 and NaN, this takes NaN: a step that has gone wrong must be seen.
        _ => V::splat(t, 0.0).max(x),
    }
}

/// The non-linearity's derivative, equal to [`minigpt_core::reference::activation::derivative`].
#[inline(always)]
pub(crate) fn derivative<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    let (zero, half, one) = (V::splat(t, 0.0), V::splat(t, 0.5), V::splat(t, 1.0));
    match activation {
        Activation::GeluTanh => {
            // With gate = 1 / (1 + e^-2u), its derivative is gate (1 - gate) 2u', and 1 - gate = e^-2u gate without
            // cancellation. The power must be finite for that, and so must x^2: from 10 on the limits are reached.
            let far = V::splat(t, 10.0);
            let x = far.min((-far).max(x));
            let power = exp(t, gelu_tanh_exponent(t, x));
            let gate = one / (one + power);
            let slope =
                (x * x).mul_add(V::splat(t, 6.0 * CUBIC * SQRT_2_OVER_PI), V::splat(t, 2.0 * SQRT_2_OVER_PI));
            (x * gate * (power * gate)).mul_add(slope, gate)
        }
        Activation::GeluErf => {
            let distribution = half * (one + erf(t, x * V::splat(t, FRAC_1_SQRT_2)));
            let density = V::splat(t, 0.5 * SQRT_2_OVER_PI) * exp(t, -half * x * x);
            x.mul_add(density, distribution)
        }
        _ => V::select(zero.lt(x), one, zero),
    }
}

/// -2u for u = sqrt(2/pi) (x + 0.044715 x^3).
#[inline(always)]
fn gelu_tanh_exponent<V: Vector>(t: V::Token, x: V) -> V {
    const TWICE: f32 = -2.0 * SQRT_2_OVER_PI;
    x * (x * x).mul_add(V::splat(t, CUBIC * TWICE), V::splat(t, TWICE))
}

#[cfg(test)]
mod tests;
