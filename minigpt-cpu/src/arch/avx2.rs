//! x86-64 with AVX2, FMA and F16C: eight lanes. Every processor with the first has had the other two.

use core::arch::x86_64::*;

use super::{Kernel, Vector, detected, operators};

/// The proof that this machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (detected!(avx2_fma: "avx2", "fma") && has_f16c()).then_some(Avx2(()))
    }

    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run::<F32x8>(token)
        }
        // SAFETY: `detect` made the token, so the machine has these features.
        unsafe { enter(self, kernel) }
    }
}

/// F16C, on a processor with AVX2: so the system is known to save the registers.
fn has_f16c() -> bool {
    #[cfg(feature = "std")]
    return std::arch::is_x86_feature_detected!("f16c");
    // What asks for the other features without std does not know this one.
    #[cfg(not(feature = "std"))]
    {
        // SAFETY: every x86-64 processor has the instruction, and this leaf of it.
        #[allow(unused_unsafe, reason = "safe to call since Rust 1.94")]
        let leaf = unsafe { __cpuid(1) };
        leaf.ecx >> 29 & 1 == 1
    }
}

const LANES: usize = 8;
/// f32 in a cache line.
const LINE: usize = 16;

/// Eight f32.
#[derive(Clone, Copy)]
pub(crate) struct F32x8(__m256);

/// Calls intrinsics of AVX, AVX2, FMA or F16C on registers.
macro_rules! simd {
    ($call:expr) => {
        // SAFETY: whoever holds a vector or a token holds the proof that the machine has AVX2, FMA and F16C, and
        // registers are all that the instruction touches.
        unsafe { $call }
    };
}

operators!(
    F32x8,
    |a: Self, b: Self| F32x8(simd!(_mm256_add_ps(a.0, b.0))),
    |a: Self, b: Self| F32x8(simd!(_mm256_sub_ps(a.0, b.0))),
    |a: Self, b: Self| F32x8(simd!(_mm256_mul_ps(a.0, b.0))),
    |a: Self, b: Self| F32x8(simd!(_mm256_div_ps(a.0, b.0)))
);

impl core::ops::Neg for F32x8 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        F32x8(simd!(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0))))
    }
}

/// All ones in the first `len` lanes.
#[inline(always)]
fn first(_: Avx2, len: usize) -> __m256i {
    let len = len.min(LANES) as i32;
    simd!(_mm256_cmpgt_epi32(_mm256_set1_epi32(len), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)))
}

/// Eight pairs of bytes.
#[inline(always)]
fn pairs(from: &[[u8; 2]]) -> __m128i {
    let from = &from[..LANES];
    // SAFETY: called with a token at hand, so AVX2 is there, and `from` has 16 bytes; no alignment is asked.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

/// Eight bytes, in the lower half.
#[inline(always)]
fn bytes(from: &[u8]) -> __m128i {
    let from = &from[..LANES];
    // SAFETY: called with a token at hand, so AVX2 is there, and `from` has 8 bytes; no alignment is asked.
    unsafe { _mm_loadl_epi64(from.as_ptr().cast()) }
}

/// Integers as f32, each less 8.
#[inline(always)]
fn less_8(x: __m256i) -> F32x8 {
    F32x8(simd!(_mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(8)))))
}

/// The nearest bf16, in the upper half of each lane; the lower half is of no meaning.
#[cfg(feature = "bf16")]
#[inline(always)]
fn nearest_bf16(x: F32x8) -> __m256i {
    simd!({
        let bits = _mm256_castps_si256(x.0);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        // From the largest on, the carry makes infinity.
        let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x.0, x.0));
        _mm256_blendv_epi8(nearest, quiet, is_nan)
    })
}

impl Vector for F32x8 {
    type Token = Avx2;
    type Mask = __m256;
    const LANES: usize = LANES;

    #[inline(always)]
    fn apart<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn enter<K: Kernel>(token: Avx2, kernel: K) -> K::Output {
            kernel.run::<F32x8>(token)
        }
        // SAFETY: the token proves that the machine has the features.
        unsafe { enter(token, kernel) }
    }

    #[inline(always)]
    fn splat(_: Avx2, x: f32) -> Self {
        F32x8(simd!(_mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(_: Avx2, from: &[f32]) -> Self {
        let from = &from[..LANES];
        // SAFETY: the token proves AVX, and `from` has eight elements; no alignment is asked.
        F32x8(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn load_partial(token: Avx2, from: &[f32]) -> Self {
        // SAFETY: the token proves AVX, and the mask lets through only lanes that `from` has.
        F32x8(unsafe { _mm256_maskload_ps(from.as_ptr(), first(token, from.len())) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..LANES];
        // SAFETY: the vector proves AVX, and `to` has eight elements; no alignment is asked.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_partial(self, to: &mut [f32]) {
        // SAFETY: the vector proves AVX, and the mask lets through only lanes that `to` has.
        unsafe { _mm256_maskstore_ps(to.as_mut_ptr(), first(Avx2(()), to.len()), self.0) }
    }

    #[inline(always)]
    fn widen_f16(_: Avx2, from: &[[u8; 2]]) -> Self {
        F32x8(simd!(_mm256_cvtph_ps(pairs(from))))
    }

    #[inline(always)]
    fn splat_f16(_: Avx2, x: [u8; 2]) -> Self {
        F32x8(simd!(_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(x)))))
    }

    #[inline(always)]
    fn widen_bf16(_: Avx2, from: &[[u8; 2]]) -> Self {
        F32x8(simd!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(pairs(from))))))
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn round_bf16(self) -> Self {
        let upper = simd!(_mm256_set1_epi32(-0x1_0000));
        F32x8(simd!(_mm256_castsi256_ps(_mm256_and_si256(nearest_bf16(self), upper))))
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn narrow_bf16(self, to: &mut [[u8; 2]]) {
        let to = &mut to[..LANES];
        let halves = simd!({
            let halves = _mm256_srli_epi32::<16>(nearest_bf16(self));
            // Each 128 bits have their four twice: the first of each, side by side.
            _mm256_permute4x64_epi64::<0b10_00>(_mm256_packus_epi32(halves, halves))
        });
        // SAFETY: the vector proves AVX2, and `to` has 16 bytes; no alignment is asked.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(halves)) }
    }

    #[inline(always)]
    fn widen_i8(_: Avx2, from: &[u8]) -> Self {
        F32x8(simd!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(from)))))
    }

    #[inline(always)]
    fn widen_low(_: Avx2, from: &[u8]) -> Self {
        less_8(simd!(_mm256_and_si256(_mm256_cvtepu8_epi32(bytes(from)), _mm256_set1_epi32(0x0f))))
    }

    #[inline(always)]
    fn widen_high(_: Avx2, from: &[u8]) -> Self {
        less_8(simd!(_mm256_srli_epi32::<4>(_mm256_cvtepu8_epi32(bytes(from)))))
    }

    #[inline(always)]
    fn transpose(t: Avx2, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        let zero = Self::splat(t, 0.0).0;
        let (mut pairs, mut fours) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES / 2 {
            let a = Self::load(t, &from[2 * i * from_stride..]).0;
            let b = Self::load(t, &from[(2 * i + 1) * from_stride..]).0;
            (pairs[2 * i], pairs[2 * i + 1]) = simd!((_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
        }
        // In fours[4 * i + j], 128-bit lane l: column 4 * l + j of rows 4 * i ..= 4 * i + 3.
        for i in 0..LANES / 4 {
            for half in 0..2 {
                let a = simd!(_mm256_castps_pd(pairs[4 * i + half]));
                let b = simd!(_mm256_castps_pd(pairs[4 * i + half + 2]));
                fours[4 * i + 2 * half] = simd!(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)));
                fours[4 * i + 2 * half + 1] = simd!(_mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
            }
        }
        for j in 0..4 {
            let (a, b) = (fours[j], fours[4 + j]);
            F32x8(simd!(_mm256_permute2f128_ps::<0x20>(a, b))).store(&mut to[j * to_stride..]);
            F32x8(simd!(_mm256_permute2f128_ps::<0x31>(a, b))).store(&mut to[(4 + j) * to_stride..]);
        }
    }

    #[inline(always)]
    fn prefetch(_: Avx2, x: &[f32]) {
        for line in x.chunks(LINE) {
            // SAFETY: the token proves more than the SSE that this takes; it is a hint, and reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        F32x8(simd!(_mm256_fmadd_ps(self.0, a.0, b.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        F32x8(simd!(_mm256_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        F32x8(simd!(_mm256_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        F32x8(simd!(_mm256_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        F32x8(simd!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        // In two steps: 2^n itself may be beyond the range of f32 where the product is not.
        F32x8(simd!({
            let n = _mm256_cvtps_epi32(n.0);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            let bias = _mm256_set1_epi32(127);
            let power_half = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let power_rest = _mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias));
            let once = _mm256_mul_ps(self.0, _mm256_castsi256_ps(power_half));
            _mm256_mul_ps(once, _mm256_castsi256_ps(power_rest))
        }))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __m256 {
        simd!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn select(mask: __m256, yes: Self, no: Self) -> Self {
        F32x8(simd!(_mm256_blendv_ps(no.0, yes.0, mask)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        simd!({
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        simd!({
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
}
