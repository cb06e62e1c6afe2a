//! x86-64 with AVX-512F: sixteen lanes.

use core::arch::x86_64::*;

use super::{Kernel, Vector, detected, operators};

/// The proof that this machine has AVX-512F.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        detected!(avx512: "avx512f").then_some(Avx512(()))
    }

    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f")]
        fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run::<F32x16>(token)
        }
        // SAFETY: `detect` made the token, so the machine has this feature.
        unsafe { enter(self, kernel) }
    }
}

const LANES: usize = 16;
/// f32 in a cache line.
const LINE: usize = 16;

/// Sixteen f32.
#[derive(Clone, Copy)]
pub(crate) struct F32x16(__m512);

/// Calls intrinsics of AVX-512F, or of AVX2, which it includes, on registers.
macro_rules! simd {
    ($call:expr) => {
        // SAFETY: whoever holds a vector or a token holds the proof that the machine has AVX-512F, and registers
        // are all that the instruction touches.
        unsafe { $call }
    };
}

operators!(
    F32x16,
    |a: Self, b: Self| F32x16(simd!(_mm512_add_ps(a.0, b.0))),
    |a: Self, b: Self| F32x16(simd!(_mm512_sub_ps(a.0, b.0))),
    |a: Self, b: Self| F32x16(simd!(_mm512_mul_ps(a.0, b.0))),
    |a: Self, b: Self| F32x16(simd!(_mm512_div_ps(a.0, b.0)))
);

impl core::ops::Neg for F32x16 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        F32x16(simd!(_mm512_castsi512_ps(_mm512_xor_si512(
            _mm512_castps_si512(self.0),
            _mm512_set1_epi32(i32::MIN)
        ))))
    }
}

/// One in the first `len` lanes.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    ((1u32 << len.min(LANES)) - 1) as __mmask16
}

/// The lower and the upper half.
#[inline(always)]
fn halves(x: F32x16) -> (__m256, __m256) {
    simd!((_mm512_castps512_ps256(x.0), _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x.0)))))
}

/// Sixteen pairs of bytes.
#[inline(always)]
fn pairs(from: &[[u8; 2]]) -> __m256i {
    let from = &from[..LANES];
    // SAFETY: called with a token at hand, so AVX-512F is there, and `from` has 32 bytes; no alignment is asked.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Sixteen bytes.
#[inline(always)]
fn bytes(from: &[u8]) -> __m128i {
    let from = &from[..LANES];
    // SAFETY: called with a token at hand, so AVX-512F is there, and `from` has 16 bytes; no alignment is asked.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

/// The lower four bits of each lane, less 8: looked up, because the instruction looks at no other bits.
#[inline(always)]
fn nibbles(t: Avx512, x: __m512i) -> F32x16 {
    const TABLE: [f32; LANES] = [-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];
    F32x16(simd!(_mm512_permutexvar_ps(x, F32x16::load(t, &TABLE).0)))
}

/// The nearest bf16, in the upper half of each lane; the lower half is of no meaning. By integers: the instructions that
/// round to bf16 take subnormal numbers for 0.
#[cfg(feature = "bf16")]
#[inline(always)]
fn nearest_bf16(x: F32x16) -> __m512i {
    simd!({
        let bits = _mm512_castps_si512(x.0);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        // From the largest on, the carry makes infinity.
        let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x.0, x.0);
        _mm512_mask_or_epi32(nearest, is_nan, bits, _mm512_set1_epi32(0x0040_0000))
    })
}

impl Vector for F32x16 {
    type Token = Avx512;
    type Mask = __mmask16;
    const LANES: usize = LANES;

    #[inline(always)]
    fn apart<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f")]
        fn enter<K: Kernel>(token: Avx512, kernel: K) -> K::Output {
            kernel.run::<F32x16>(token)
        }
        // SAFETY: the token proves that the machine has the features.
        unsafe { enter(token, kernel) }
    }

    #[inline(always)]
    fn splat(_: Avx512, x: f32) -> Self {
        F32x16(simd!(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn load(_: Avx512, from: &[f32]) -> Self {
        let from = &from[..LANES];
        // SAFETY: the token proves AVX-512F, and `from` has sixteen elements; no alignment is asked.
        F32x16(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn load_partial(_: Avx512, from: &[f32]) -> Self {
        // SAFETY: the token proves AVX-512F, and the mask lets through only lanes that `from` has.
        F32x16(unsafe { _mm512_maskz_loadu_ps(first(from.len()), from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        let to = &mut to[..LANES];
        // SAFETY: the vector proves AVX-512F, and `to` has sixteen elements; no alignment is asked.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_partial(self, to: &mut [f32]) {
        // SAFETY: the vector proves AVX-512F, and the mask lets through only lanes that `to` has.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), self.0) }
    }

    #[inline(always)]
    fn widen_f16(_: Avx512, from: &[[u8; 2]]) -> Self {
        F32x16(simd!(_mm512_cvtph_ps(pairs(from))))
    }

    #[inline(always)]
    fn splat_f16(_: Avx512, x: [u8; 2]) -> Self {
        F32x16(simd!(_mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(x)))))
    }

    #[inline(always)]
    fn widen_bf16(_: Avx512, from: &[[u8; 2]]) -> Self {
        F32x16(simd!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(pairs(from))))))
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn round_bf16(self) -> Self {
        let upper = simd!(_mm512_set1_epi32(-0x1_0000));
        F32x16(simd!(_mm512_castsi512_ps(_mm512_and_si512(nearest_bf16(self), upper))))
    }

    #[cfg(feature = "bf16")]
    #[inline(always)]
    fn narrow_bf16(self, to: &mut [[u8; 2]]) {
        let to = &mut to[..LANES];
        let halves = simd!(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(nearest_bf16(self))));
        // SAFETY: the vector proves AVX-512F, and `to` has 32 bytes; no alignment is asked.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), halves) }
    }

    #[inline(always)]
    fn widen_i8(_: Avx512, from: &[u8]) -> Self {
        F32x16(simd!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(from)))))
    }

    #[inline(always)]
    fn widen_low(t: Avx512, from: &[u8]) -> Self {
        nibbles(t, simd!(_mm512_cvtepu8_epi32(bytes(from))))
    }

    #[inline(always)]
    fn widen_high(t: Avx512, from: &[u8]) -> Self {
        nibbles(t, simd!(_mm512_srli_epi32::<4>(_mm512_cvtepu8_epi32(bytes(from)))))
    }

    #[inline(always)]
    fn transpose(t: Avx512, from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
        // Picks lanes 0 and 2, or 1 and 3, of each operand.
        const EVEN: i32 = 0b10_00_10_00;
        const ODD: i32 = 0b11_01_11_01;
        let zero = Self::splat(t, 0.0).0;
        let (mut pairs, mut fours) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES / 2 {
            let a = Self::load(t, &from[2 * i * from_stride..]).0;
            let b = Self::load(t, &from[(2 * i + 1) * from_stride..]).0;
            (pairs[2 * i], pairs[2 * i + 1]) = simd!((_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        }
        // In fours[4 * i + j], 128-bit lane l: column 4 * l + j of rows 4 * i ..= 4 * i + 3.
        for i in 0..LANES / 4 {
            for half in 0..2 {
                let a = simd!(_mm512_castps_pd(pairs[4 * i + half]));
                let b = simd!(_mm512_castps_pd(pairs[4 * i + half + 2]));
                fours[4 * i + 2 * half] = simd!(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
                fours[4 * i + 2 * half + 1] = simd!(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            }
        }
        for j in 0..4 {
            let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
            let (ab, cd) = simd!((_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<EVEN>(c, d)));
            F32x16(simd!(_mm512_shuffle_f32x4::<EVEN>(ab, cd))).store(&mut to[j * to_stride..]);
            F32x16(simd!(_mm512_shuffle_f32x4::<ODD>(ab, cd))).store(&mut to[(8 + j) * to_stride..]);
            let (ab, cd) = simd!((_mm512_shuffle_f32x4::<ODD>(a, b), _mm512_shuffle_f32x4::<ODD>(c, d)));
            F32x16(simd!(_mm512_shuffle_f32x4::<EVEN>(ab, cd))).store(&mut to[(4 + j) * to_stride..]);
            F32x16(simd!(_mm512_shuffle_f32x4::<ODD>(ab, cd))).store(&mut to[(12 + j) * to_stride..]);
        }
    }

    #[inline(always)]
    fn prefetch(_: Avx512, x: &[f32]) {
        for line in x.chunks(LINE) {
            // SAFETY: the token proves more than the SSE that this takes; it is a hint, and reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
        }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        F32x16(simd!(_mm512_fmadd_ps(self.0, a.0, b.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        F32x16(simd!(_mm512_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        F32x16(simd!(_mm512_min_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        F32x16(simd!(_mm512_max_ps(self.0, other.0)))
    }

    #[inline(always)]
    fn round(self) -> Self {
        F32x16(simd!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        F32x16(simd!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn lt(self, other: Self) -> __mmask16 {
        simd!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        F32x16(simd!(_mm512_mask_blend_ps(mask, no.0, yes.0)))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let (lower, upper) = halves(self);
        simd!({
            let eight = _mm256_add_ps(lower, upper);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        let (lower, upper) = halves(self);
        simd!({
            let eight = _mm256_max_ps(lower, upper);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
}
