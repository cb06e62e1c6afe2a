//! Instruction sets: one [`Vector`] trait, one thin file for each set that implements it, and the choice among them.
//!
//! A kernel is written once, generic over [`Vector`], and entered through [`Simd::dispatch`]. Each file has one
//! `#[target_feature]` function that the kernel is inlined into, so the kernel, its `#[inline(always)]` callees and
//! the intrinsics become one function compiled for that set.
//!
//! **Whatever runs inside a kernel's hot loop must be `#[inline(always)]`**: a callee that stays a function of its
//! own is compiled for the build's baseline and passes vectors through memory. It stays correct, but slow.

#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx2;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod avx512;
mod portable;
pub(crate) mod tile;

use core::fmt;
use core::ops::{Add, Div, Mul, Neg, Sub};

/// A register of f32 lanes. A value of it proves that its instruction set is there, because it takes a token to
/// make the first one, and only detection hands tokens out.
///
/// Results are IEEE 754 in every lane. Reductions over the lanes have one fixed order: the upper half is combined
/// with the lower half, lane by lane, until one lane is left.
pub(crate) trait Vector:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Send
    + Sync
    + 'static
{
    /// The proof that the instruction set is there.
    type Token: Copy + Send + Sync + 'static;
    /// The result of a comparison, lane by lane.
    type Mask: Copy;
    /// How many f32 it holds.
    const LANES: usize;
    /// Whether long code that many kernels have is to be one function, which each calls for every vector: that makes an image
    /// smaller.
    const SHARES_CODE: bool = false;

    /// Runs `kernel` as a function of its own, compiled for this instruction set. A loop that fills the registers
    /// fares better there than in the midst of a large function.
    fn apart<K: Kernel>(token: Self::Token, kernel: K) -> K::Output;
    /// `x` in all lanes.
    fn splat(token: Self::Token, x: f32) -> Self;
    /// The first `LANES` elements of `from`.
    ///
    /// # Panics
    /// If there are fewer.
    fn load(token: Self::Token, from: &[f32]) -> Self;
    /// The first elements of `from`, at most `LANES`; 0 in the lanes beyond.
    fn load_partial(token: Self::Token, from: &[f32]) -> Self;
    /// Writes the first `LANES` elements of `to`.
    ///
    /// # Panics
    /// If there are fewer.
    fn store(self, to: &mut [f32]);
    /// Writes the first elements of `to`, at most `LANES`.
    fn store_partial(self, to: &mut [f32]);
    /// The first `LANES` half-precision numbers of `from`, little-endian: exactly.
    ///
    /// # Panics
    /// If there are fewer.
    fn widen_f16(token: Self::Token, from: &[[u8; 2]]) -> Self;
    /// The half-precision number `x`, little-endian, in all lanes: exactly.
    fn splat_f16(token: Self::Token, x: [u8; 2]) -> Self;
    /// The first `LANES` bf16 of `from`, little-endian: exactly.
    ///
    /// # Panics
    /// If there are fewer.
    fn widen_bf16(token: Self::Token, from: &[[u8; 2]]) -> Self;
    /// The nearest bf16, ties to even, and infinite beyond the largest. What is not a number stays so.
    #[cfg(feature = "bf16")]
    fn round_bf16(self) -> Self;
    /// The same, as the first `LANES` elements of `to`, little-endian.
    ///
    /// # Panics
    /// If there are fewer.
    #[cfg(feature = "bf16")]
    fn narrow_bf16(self, to: &mut [[u8; 2]]);
    /// The first `LANES` bytes of `from`, which are signed: exactly.
    ///
    /// # Panics
    /// If there are fewer.
    fn widen_i8(token: Self::Token, from: &[u8]) -> Self;
    /// The lower four bits of the first `LANES` bytes of `from`, less 8: -8 to 7.
    ///
    /// # Panics
    /// If there are fewer.
    fn widen_low(token: Self::Token, from: &[u8]) -> Self;
    /// The upper four bits of the first `LANES` bytes of `from`, less 8: -8 to 7.
    ///
    /// # Panics
    /// If there are fewer.
    fn widen_high(token: Self::Token, from: &[u8]) -> Self;
    /// Transposes a square of `LANES` x `LANES`: `to[c * to_stride + r] = from[r * from_stride + c]`.
    ///
    /// # Panics
    /// If either slice is too short for that.
    fn transpose(token: Self::Token, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize);

    /// Asks for the cache lines of `x`, which will be read or written soon. Changes no result; does nothing where the
    /// instruction set has no such hint.
    #[inline(always)]
    fn prefetch(_: Self::Token, _x: &[f32]) {}

    /// self * a + b. With one rounding where the instruction set has it, with two in the portable set.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The smaller one; `other` if either is NaN.
    fn min(self, other: Self) -> Self;
    /// The larger one; `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// To the nearest integer, ties to even, for |self| below 2^22.
    fn round(self) -> Self;
    /// self * 2^n for integral `n` in -252 ..= 252, rounded once; |self| in 0.5 .. 2.
    fn scale(self, n: Self) -> Self;
    /// Whether self < other; no if either is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// `yes` where `mask` holds, `no` elsewhere.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// The sum of the lanes.
    fn sum(self) -> f32;
    /// The largest lane. If lanes are NaN, which ones count is unspecified.
    fn largest(self) -> f32;
}

/// Code that is written once over the vector.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The code. Must be `#[inline(always)]`, and so must all that it calls in a hot loop.
    fn run<V: Vector>(self, token: V::Token) -> Self::Output;
}

/// An instruction set that kernels are compiled for.
///
/// ```
/// use minigpt_cpu::Isa;
/// assert!(Isa::available().any(|isa| isa == Isa::Portable));
/// assert_eq!("avx2".parse(), Ok(Isa::Avx2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust, four lanes: every target, also without a floating-point unit.
    Portable,
    /// x86-64 with AVX2, FMA and F16C, eight lanes.
    Avx2,
    /// x86-64 with AVX-512F, sixteen lanes.
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: &'static [Isa] = &[Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// Those that this machine has, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.iter().copied().filter(|&isa| Simd::detect(isa).is_some())
    }

    /// Its name, as in the environment variable `MINIGPT_CPU_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::str::FromStr for Isa {
    type Err = UnknownIsa;
    fn from_str(name: &str) -> Result<Isa, UnknownIsa> {
        Self::ALL.iter().copied().find(|isa| isa.name() == name).ok_or(UnknownIsa)
    }
}

/// Not the name of an [`Isa`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownIsa;

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an instruction set: the names are portable, avx2 and avx512")
    }
}

impl core::error::Error for UnknownIsa {}

/// An instruction set that is there: it holds the token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Simd {
    Portable(portable::Portable),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    Avx2(avx2::Avx2),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    Avx512(avx512::Avx512),
}

impl Simd {
    /// `isa`, if this machine has it.
    pub(crate) fn detect(isa: Isa) -> Option<Simd> {
        match isa {
            Isa::Portable => Some(Simd::Portable(portable::Portable)),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Isa::Avx2 => avx2::Avx2::detect().map(Simd::Avx2),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Isa::Avx512 => avx512::Avx512::detect().map(Simd::Avx512),
            #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2")))]
            _ => None,
        }
    }

    /// The fastest that this machine has.
    pub(crate) fn best() -> Simd {
        let best = Isa::ALL.iter().rev().find_map(|&isa| Simd::detect(isa));
        best.unwrap_or(Simd::Portable(portable::Portable))
    }

    /// Its name.
    pub(crate) fn isa(self) -> Isa {
        match self {
            Simd::Portable(_) => Isa::Portable,
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Simd::Avx2(_) => Isa::Avx2,
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Simd::Avx512(_) => Isa::Avx512,
        }
    }

    /// Runs `kernel`, compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Simd::Portable(token) => token.dispatch(kernel),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Simd::Avx2(token) => token.dispatch(kernel),
            #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
            Simd::Avx512(token) => token.dispatch(kernel),
        }
    }
}

/// The operators of a vector type by its methods of the same meaning.
macro_rules! operators {
    ($vector:ty, $add:expr, $sub:expr, $mul:expr, $div:expr) => {
        impl core::ops::Add for $vector {
            type Output = Self;
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                $add(self, other)
            }
        }
        impl core::ops::Sub for $vector {
            type Output = Self;
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                $sub(self, other)
            }
        }
        impl core::ops::Mul for $vector {
            type Output = Self;
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                $mul(self, other)
            }
        }
        impl core::ops::Div for $vector {
            type Output = Self;
            #[inline(always)]
            fn div(self, other: Self) -> Self {
                $div(self, other)
            }
        }
    };
}
use operators;

/// Whether this processor, and the system under it, can run the features.
///
/// std asks the processor once and remembers; so does the stand-in without std.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
macro_rules! detected {
    ($module:ident: $($feature:tt),+) => {{
        #[cfg(feature = "std")]
        {
            $(std::arch::is_x86_feature_detected!($feature))&&+
        }
        #[cfg(not(feature = "std"))]
        {
            cpufeatures::new!($module, $($feature),+);
            $module::get()
        }
    }};
}
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
use detected;

#[cfg(test)]
mod tests;
