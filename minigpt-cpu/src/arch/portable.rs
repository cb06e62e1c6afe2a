//! Plain Rust: four lanes in an array, which a compiler may put in a register where the target has one.

use super::{Kernel, Vector, operators};

/// Needs no proof: every target has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run::<F32x4>(self)
    }
}

const LANES: usize = 4;

/// Four f32.
#[derive(Debug, Clone, Copy)]
#[repr(align(16))]
pub(crate) struct F32x4([f32; LANES]);

#[inline(always)]
fn map(a: F32x4, f: impl Fn(f32) -> f32) -> F32x4 {
    F32x4([f(a.0[0]), f(a.0[1]), f(a.0[2]), f(a.0[3])])
}

#[inline(always)]
fn zip(a: F32x4, b: F32x4, f: impl Fn(f32, f32) -> f32) -> F32x4 {
    F32x4([f(a.0[0], b.0[0]), f(a.0[1], b.0[1]), f(a.0[2], b.0[2]), f(a.0[3], b.0[3])])
}

operators!(
    F32x4,
    |a, b| zip(a, b, |a, b| a + b),
    |a, b| zip(a, b, |a, b| a - b),
    |a, b| zip(a, b, |a, b| a * b),
    |a, b| zip(a, b, |a, b| a / b)
);

impl core::ops::Neg for F32x4 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        map(self, |x| -x)
    }
}

/// The square root is exact everywhere, so the processor's own gives the same bits as libm's loop; but only std knows
/// how to ask for it.
#[inline(always)]
fn root(x: f32) -> f32 {
    #[cfg(feature = "std")]
    return x.sqrt();
    #[cfg(not(feature = "std"))]
    return libm::sqrtf(x);
}

/// A half-precision number: its exponent and mantissa moved to their places, the exponent's bias made good by a
/// product, which is exact and normalises what was subnormal. What is not finite has an exponent of its own.
#[inline(always)]
fn half(x: [u8; 2]) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let x = u32::from(u16::from_le_bytes(x));
    let (sign, rest) = ((x & 0x8000) << 16, x & 0x7fff);
    let finite = f32::from_bits(rest << 13) * BIAS;
    let magnitude = if rest < 0x7c00 { finite.to_bits() } else { 0x7f80_0000 | (rest & 0x3ff) << 13 };
    f32::from_bits(magnitude | sign)
}

/// The nearest bf16, in the upper half of the word; the lower half is of no meaning.
#[cfg(feature = "bf16")]
#[inline(always)]
fn nearest_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    // From the largest on, the carry makes infinity.
    if x.is_nan() { bits | 0x0040_0000 } else { bits + 0x7fff + (bits >> 16 & 1) }
}

impl Vector for F32x4 {
    type Token = Portable;
    type Mask = [bool; LANES];
    const LANES: usize = LANES;
    // Without std, on a microcontroller, what counts is the size.
    const SHARES_CODE: bool = cfg!(not(feature = "std"));

    #[inline(never)]
    fn apart<K: Kernel>(token: Portable, kernel: K) -> K::Output {
        kernel.run::<Self>(token)
    }

    #[inline(always)]
    fn splat(_: Portable, x: f32) -> Self {
        F32x4([x, x, x, x])
    }

    #[inline(always)]
    fn load(_: Portable, from: &[f32]) -> Self {
        let from = &from[..LANES];
        F32x4([from[0], from[1], from[2], from[3]])
    }

    #[inline(always)]
    fn load_partial(_: Portable, from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        for (lane, &x) in lanes.iter_mut().zip(from) {
            *lane = x;
        }
        F32x4(lanes)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..LANES].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn store_partial(self, to: &mut [f32]) {
        for (x, lane) in to.iter_mut().zip(self.0) {
            *x = lane;
        }
    }

    #[inline(always)]
    fn widen_f16(_: Portable, from: &[[u8; 2]]) -> Self {
        let from = &from[..LANES];
        F32x4([half(from[0]), half(from[1]), half(from[2]), half(from[3])])
    }

    #[inline(always)]
    fn splat_f16(t: Portable, x: [u8; 2]) -> Self {
        Self::splat(t, half(x))
    }

    #[inline(always)]
    fn widen_bf16(_: Portable, from: &[[u8; 2]]) -> Self {
        let from = &from[..LANES];
        let widen = |x: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16);
        F32x4([widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])])
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn round_bf16(self) -> Self {
        map(self, |x| f32::from_bits(nearest_bf16(x) & 0xffff_0000))
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn narrow_bf16(self, to: &mut [[u8; 2]]) {
        let to = &mut to[..LANES];
        let narrow = |x: f32| ((nearest_bf16(x) >> 16) as u16).to_le_bytes();
        to.copy_from_slice(&[narrow(self.0[0]), narrow(self.0[1]), narrow(self.0[2]), narrow(self.0[3])]);
    }

    #[inline(always)]
    fn widen_i8(_: Portable, from: &[u8]) -> Self {
        let from = &from[..LANES];
        let widen = |x: u8| f32::from(x as i8);
        F32x4([widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])])
    }

    #[inline(always)]
    fn widen_low(_: Portable, from: &[u8]) -> Self {
        let from = &from[..LANES];
        let widen = |x: u8| f32::from((x & 0x0f) as i8 - 8);
        F32x4([widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])])
    }

    #[inline(always)]
    fn widen_high(_: Portable, from: &[u8]) -> Self {
        let from = &from[..LANES];
        let widen = |x: u8| f32::from((x >> 4) as i8 - 8);
        F32x4([widen(from[0]), widen(from[1]), widen(from[2]), widen(from[3])])
    }

    #[inline(always)]
    fn transpose(_: Portable, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        for row in 0..LANES {
            for col in 0..LANES {
                to[col * to_stride + row] = from[row * from_stride + col];
            }
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        // Without the instruction, one rounding takes a function call: two roundings are the better bargain.
        self * a + b
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        map(self, root)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        zip(self, other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        zip(self, other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn round(self) -> Self {
        // At this size the gap between neighbours is 1, so the addition rounds.
        const SHIFT: f32 = 12_582_912.0;
        map(self, |x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        zip(self, n, |x, n| {
            // In two steps: 2^n itself may be beyond the range of f32 where the product is not.
            let n = n as i32;
            let half = n >> 1;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            x * power(half) * power(n - half)
        })
    }

    #[inline(always)]
    fn lt(self, other: Self) -> [bool; LANES] {
        [self.0[0] < other.0[0], self.0[1] < other.0[1], self.0[2] < other.0[2], self.0[3] < other.0[3]]
    }

    #[inline(always)]
    fn select(mask: [bool; LANES], yes: Self, no: Self) -> Self {
        let pick = |i: usize| if mask[i] { yes.0[i] } else { no.0[i] };
        F32x4([pick(0), pick(1), pick(2), pick(3)])
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        (a + c) + (b + d)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let max = |a: f32, b: f32| if a > b { a } else { b };
        let [a, b, c, d] = self.0;
        max(max(a, c), max(b, d))
    }
}
