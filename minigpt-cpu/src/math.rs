//! exp, and the non-linearities made of them, on whole vectors.
//!
//! Errors against the exact value, in units in the last place of the result, as `tests` measures them over all of
//! f32 on every instruction set: exp 1.0 (below 2^-126, of the subnormal numbers' place). NaN comes through, infinities
//! give the limits.
//!
//! The polynomials are weighted minimax fits made for this crate in 30 digits or more (Lawson's iteration): that of exp
//! to an error well below one rounding, the others to one that is told beside them.

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

/// A function that goes from 0 to 1 and is 1/2 + s G(2 s^2 - 1) with s = x / reach, where |x| < reach; its limits from
/// there on.
///
/// G's coefficients `c`, added up in this order, are exactly 1/2, so the limits come out exactly, and neither an
/// exponential nor a choice is needed. NaN stays.
#[inline(always)]
fn from_zero_to_one<V: Vector, const N: usize>(t: V::Token, x: V, reach: f32, c: [f32; N]) -> V {
    let (half, one) = (V::splat(t, 0.5), V::splat(t, 1.0));
    let s = one.min((-one).max(x * V::splat(t, 1.0 / reach)));
    let u = (s + s).mul_add(s, -one);
    polynomial(t, u, c).mul_add(s, half)
}

/// The normal distribution function, (1 + erf(x / sqrt 2)) / 2, within 1.6e-7, of which the fit is 6e-8.
#[inline(always)]
fn normal_distribution<V: Vector>(t: V::Token, x: V) -> V {
    // Beyond it, the function is within 6e-8 of its limits.
    const REACH: f32 = 5.3;
    const G: [f32; 15] = [
        0.706_980_6,
        -0.352_548_24,
        0.261_100_92,
        -0.209_815_52,
        0.170_004_3,
        -0.134_135_14,
        0.100_430_615,
        -0.069_670_53,
        0.046_374_56,
        -0.031_402_28,
        0.017_316_125,
        -0.005_451_844,
        0.003_301_124_3,
        -0.004_173_45,
        0.001_688_772_2,
    ];
    from_zero_to_one(t, x, REACH, G)
}

/// The derivative of x times the normal distribution function, within 4e-7, of which the fit is 2e-7.
#[inline(always)]
fn gelu_derivative<V: Vector>(t: V::Token, x: V) -> V {
    // Beyond it, the function is within 2.1e-7 of its limits.
    const REACH: f32 = 5.7;
    const G: [f32; 17] = [
        0.707_742_15,
        -0.358_675_87,
        0.285_798_2,
        -0.276_279_57,
        0.303_591_22,
        -0.348_242_67,
        0.392_352_8,
        -0.416_672_02,
        0.381_404_94,
        -0.297_466_9,
        0.267_807_07,
        -0.258_925_65,
        0.130_265_31,
        -0.005_274_287_4,
        0.030_913_98,
        -0.062_432_233,
        0.024_093_557,
    ];
    from_zero_to_one(t, x, REACH, G)
}

/// sqrt(2 / pi).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The coefficient of the cube in the tanh approximation of GELU.
const CUBIC: f32 = 0.044_715;

/// The non-linearity, equal to [`minigpt_core::reference::activation::activate`].
#[inline(always)]
pub(crate) fn activate<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    #[inline(never)]
    fn shared<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
        activate_here(t, activation, x)
    }
    if V::SHARES_CODE { shared(t, activation, x) } else { activate_here(t, activation, x) }
}

#[inline(always)]
fn activate_here<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    let one = V::splat(t, 1.0);
    match activation {
        // (1 + tanh u) / 2 = 1 / (1 + e^-2u): one exponential, where tanh itself needs a second way near 0. SiLU is the same
        // of another exponent, and shares the code: where the power overflows, the quotient is 0.
        Activation::GeluTanh | Activation::Silu => x / (one + exp(t, exponent(t, activation, x))),
        Activation::GeluErf => x * normal_distribution(t, x),
        _ => {
            // Of 0 and NaN, this takes NaN: a step that has gone wrong must be seen.
            let y = V::splat(t, 0.0).max(x);
            if activation == Activation::ReluSquared { y * y } else { y }
        }
    }
}

/// The non-linearity's derivative, equal to [`minigpt_core::reference::activation::derivative`].
#[inline(always)]
pub(crate) fn derivative<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    let (zero, one) = (V::splat(t, 0.0), V::splat(t, 1.0));
    match activation {
        Activation::GeluTanh | Activation::Silu => {
            // With gate = 1 / (1 + e^-2u), its derivative is gate (1 - gate) 2u', and 1 - gate = e^-2u gate without
            // cancellation. The power must be finite for that, and so must x^2: from 10 on, or from 80 on of SiLU, whose
            // 2u is x, the limits are reached.
            let is_silu = activation == Activation::Silu;
            let far = V::splat(t, if is_silu { 80.0 } else { 10.0 });
            let x = far.min((-far).max(x));
            let power = exp(t, exponent(t, activation, x));
            let gate = one / (one + power);
            let slope = if is_silu {
                one
            } else {
                (x * x).mul_add(V::splat(t, 6.0 * CUBIC * SQRT_2_OVER_PI), V::splat(t, 2.0 * SQRT_2_OVER_PI))
            };
            (x * gate * (power * gate)).mul_add(slope, gate)
        }
        Activation::GeluErf => gelu_derivative(t, x),
        Activation::ReluSquared => zero.max(x + x),
        _ => V::select(zero.lt(x), one, zero),
    }
}

/// -2u for u = sqrt(2/pi) (x + 0.044715 x^3), or of SiLU -x.
#[inline(always)]
fn exponent<V: Vector>(t: V::Token, activation: Activation, x: V) -> V {
    const TWICE: f32 = -2.0 * SQRT_2_OVER_PI;
    if activation == Activation::Silu {
        return -x;
    }
    x * (x * x).mul_add(V::splat(t, CUBIC * TWICE), V::splat(t, TWICE))
}

#[cfg(test)]
mod tests;
