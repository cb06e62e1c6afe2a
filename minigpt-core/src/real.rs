//! [`Real`]: the numbers that the maths is written over.
//!
//! `reference` must give the same bits on every target. The basic operations and the square root are exact
//! by IEEE 754, but `exp`, `tanh` and their kin are not, and a platform's own library rounds them in its own
//! way. So every transcendental function here goes to `libm`, which is plain Rust. The bound is
//! [`num_traits::float::FloatCore`] and not `Float`, because a build with num-traits' `std` feature anywhere
//! in the dependency tree would switch `Float::exp` to the platform's.

use core::fmt::{Debug, Display};
use core::iter::Sum;
use num_traits::NumAssign;
use num_traits::float::FloatCore;

use crate::memory::Dtype;

/// A real number of the reference maths: `f32` or `f64`.
///
/// ```
/// use minigpt_core::Real;
/// fn sigmoid<R: Real>(x: R) -> R {
///     R::one() / (R::one() + (-x).exp())
/// }
/// assert_eq!(sigmoid(0.0f32), 0.5);
/// assert_eq!(sigmoid(0.0f64), 0.5);
/// ```
pub trait Real: FloatCore + NumAssign + Sum + Debug + Display + Default + Send + Sync + 'static {
    /// How this number is stored in a backend's memory.
    const DTYPE: Dtype;
    /// The nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// This value as `f64`; exact for both types.
    fn to_f64(self) -> f64;
    /// Reads one value from the first `DTYPE` bytes of `bytes`, little-endian.
    ///
    /// # Panics
    /// If `bytes` is shorter than one value.
    fn from_le_slice(bytes: &[u8]) -> Self;
    /// Writes the value to the first `DTYPE` bytes of `out`, little-endian.
    ///
    /// # Panics
    /// If `out` is shorter than one value.
    fn to_le_slice(self, out: &mut [u8]);
    /// e to the power of `self`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root; exact.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function, 2/sqrt(pi) times the integral of exp(-t^2) from 0 to `self`.
    fn erf(self) -> Self;
    /// Sine of an angle in radians.
    fn sin(self) -> Self;
    /// Cosine of an angle in radians.
    fn cos(self) -> Self;
    /// `self` to the power of `exponent`.
    fn pow(self, exponent: Self) -> Self;
}

macro_rules! real {
    ($t:ident, $dtype:ident, $exp:ident, $ln:ident, $sqrt:ident, $tanh:ident, $erf:ident, $sin:ident, $cos:ident, $pow:ident) => {
        impl Real for $t {
            const DTYPE: Dtype = Dtype::$dtype;
            #[inline]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline]
            fn from_le_slice(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(&bytes[..size_of::<$t>()]);
                $t::from_le_bytes(raw)
            }
            #[inline]
            fn to_le_slice(self, out: &mut [u8]) {
                out[..size_of::<$t>()].copy_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn exp(self) -> Self {
                libm::$exp(self)
            }
            #[inline]
            fn ln(self) -> Self {
                libm::$ln(self)
            }
            #[inline]
            fn sqrt(self) -> Self {
                libm::$sqrt(self)
            }
            #[inline]
            fn tanh(self) -> Self {
                libm::$tanh(self)
            }
            #[inline]
            fn erf(self) -> Self {
                libm::$erf(self)
            }
            #[inline]
            fn sin(self) -> Self {
                libm::$sin(self)
            }
            #[inline]
            fn cos(self) -> Self {
                libm::$cos(self)
            }
            #[inline]
            fn pow(self, exponent: Self) -> Self {
                libm::$pow(self, exponent)
            }
        }
    };
}

real!(f32, F32, expf, logf, sqrtf, tanhf, erff, sinf, cosf, powf);
real!(f64, F64, exp, log, sqrt, tanh, erf, sin, cos, pow);
