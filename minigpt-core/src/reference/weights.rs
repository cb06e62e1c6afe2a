//! Weights in fewer bits: half precision and blocks of quantised numbers.
//!
//! ```text
//! F16, Bf16   2 bytes each
//! Q8_0        34 bytes for 32 elements:  d: f16,  q[0..32]: i8
//!             element k = d q[k]
//! Q4_0        18 bytes for 32 elements:  d: f16,  q[0..16]: two 4-bit numbers a byte
//!             element k = d (low  4 bits of q[k] - 8)           for k < 16
//!                         d (high 4 bits of q[k - 16] - 8)      for k >= 16
//! ```
//!
//! All little-endian. A matrix is stored row by row, and each row begins a new block: its end is padded to a whole
//! block, and the padding is never read. Only weights that are not being trained are stored like this.
//!
//! Every such value is exact in f32: a scale of 11 significant bits times an integer of at most 8.
//!
//! Source: the block formats of the same names in ggml.

use half::{bf16, f16};

use crate::memory::{Dtype, QUANT_BLOCK};
use crate::real::Real;

/// Element `index` of a stored weight, counting the padding of rows.
///
/// # Panics
/// If `bytes` ends before that element.
///
/// ```
/// use minigpt_core::{Dtype, reference::weights::weight_at};
/// let mut block = [0u8; 18];
/// block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
/// block[2] = 0xf1; // element 0 is 1, element 16 is 15
/// assert_eq!(weight_at(&block, Dtype::Q4_0, 0), 0.5 * (1.0 - 8.0));
/// assert_eq!(weight_at(&block, Dtype::Q4_0, 16), 0.5 * (15.0 - 8.0));
/// ```
pub fn weight_at(bytes: &[u8], dtype: Dtype, index: usize) -> f64 {
    let (elements, size) = dtype.unit();
    let unit = &bytes[index / elements * size..][..size];
    let within = index % elements;
    let scale = || f16::from_le_bytes([unit[0], unit[1]]).to_f64();
    match dtype {
        Dtype::F64 => f64::from_le_slice(unit),
        Dtype::F32 => f32::from_le_slice(unit).to_f64(),
        Dtype::F16 => scale(),
        Dtype::Bf16 => bf16::from_le_bytes([unit[0], unit[1]]).to_f64(),
        Dtype::Q8_0 => scale() * f64::from(unit[2 + within] as i8),
        Dtype::Q4_0 => {
            let half_block = QUANT_BLOCK / 2;
            let pair = unit[2 + within % half_block];
            let nibble = if within < half_block { pair & 0x0f } else { pair >> 4 };
            scale() * (f64::from(nibble) - 8.0)
        }
        Dtype::U32 => f64::from(u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])),
    }
}

/// The two bytes of the nearest f16, or bf16 of any other type; ties to even, and infinite beyond the largest.
///
/// ```
/// use minigpt_core::{Dtype, reference::weights::{encode_half, weight_at}};
/// let near = |x, dtype| weight_at(&encode_half(x, dtype), dtype, 0);
/// assert_eq!(near(1.0 + 1.0 / 256.0, Dtype::Bf16), 1.0);
/// assert_eq!(near(70_000.0, Dtype::F16), f64::INFINITY);
/// // A little more than a tie, however little.
/// assert_eq!(near(1.0 + 1.0 / 256.0 + 1e-15, Dtype::Bf16), 1.0 + 1.0 / 128.0);
/// ```
#[inline]
pub fn encode_half(x: f64, dtype: Dtype) -> [u8; 2] {
    let x = round_to_odd(x);
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_le_bytes(),
        _ => bf16::from_f32(x).to_le_bytes(),
    }
}

/// What two bytes stand for: an f16, or a bf16 of any other type.
pub(crate) fn decode_half(bytes: [u8; 2], dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_le_bytes(bytes).to_f32(),
        _ => bf16::from_le_bytes(bytes).to_f32(),
    }
}

/// The one of the two f32 around x whose mantissa is odd, or x, if it is an f32. Rounded once more, to fewer bits, it gives
/// what x itself does: to the nearest f32, x could become a tie that it is not.
///
/// Source: Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd".
#[inline]
fn round_to_odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    // Towards zero, for which the magnitude is one less; at infinity too.
    let towards_zero = near.to_bits() - u32::from(back.abs() > x.abs());
    f32::from_bits(towards_zero | 1)
}

/// Decodes a matrix (`rows`, `cols`), whose stored rows are padded to whole blocks, into `out` without the padding.
///
/// # Panics
/// If `bytes` or `out` is too short.
pub fn decode_weight<R: Real>(bytes: &[u8], dtype: Dtype, out: &mut [R], rows: usize, cols: usize) {
    // Numbers that are stored one by one have no padding: a row ends where the next begins.
    if let Dtype::Bf16 = dtype {
        let halves = bytes[..2 * rows * cols].as_chunks().0;
        for (out, &half) in out[..rows * cols].iter_mut().zip(halves) {
            *out = R::from_f64(f64::from(bf16::from_le_bytes(half).to_f32()));
        }
        return;
    }
    let stored = dtype.padded(cols);
    for row in 0..rows {
        for col in 0..cols {
            out[row * cols + col] = R::from_f64(weight_at(bytes, dtype, row * stored + col));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn scale(d: f32) -> [u8; 2] {
        f16::from_f32(d).to_le_bytes()
    }

    #[test]
    fn numbers_of_each_width_are_read_little_endian() {
        let two = |bytes: [&[u8]; 2]| bytes.concat();
        let f64s = two([&1.5f64.to_le_bytes(), &(-2.25f64).to_le_bytes()]);
        let f32s = two([&1.5f32.to_le_bytes(), &(-2.25f32).to_le_bytes()]);
        // By hand: f16 has 5 bits of exponent and 10 of mantissa, bf16 has 8 and 7.
        let f16s = two([&0x3e00u16.to_le_bytes(), &0xc080u16.to_le_bytes()]);
        let bf16s = two([&0x3fc0u16.to_le_bytes(), &0xc010u16.to_le_bytes()]);
        for (bytes, dtype) in
            [(f64s, Dtype::F64), (f32s, Dtype::F32), (f16s, Dtype::F16), (bf16s, Dtype::Bf16)]
        {
            let read = [0, 1].map(|i| weight_at(&bytes, dtype, i));
            assert_eq!(read, [1.5, -2.25], "{dtype:?}");
        }
        let u32s = two([&7u32.to_le_bytes(), &0x0102_0304u32.to_le_bytes()]);
        assert_eq!([0, 1].map(|i| weight_at(&u32s, Dtype::U32, i)), [7.0, 16_909_060.0]);
    }

    #[test]
    fn q8_0_is_scale_times_signed_byte_in_blocks_of_32() {
        let mut bytes = Vec::new();
        for d in [0.5, -2.0] {
            bytes.extend(scale(d));
            bytes.extend((0..32).map(|k: i8| (k - 16) as u8));
        }
        for k in 0..32 {
            assert_eq!(weight_at(&bytes, Dtype::Q8_0, k), 0.5 * (k as f64 - 16.0));
            assert_eq!(weight_at(&bytes, Dtype::Q8_0, 32 + k), -2.0 * (k as f64 - 16.0));
        }
    }

    #[test]
    fn q4_0_has_the_first_half_in_low_nibbles_and_the_second_in_high_ones() {
        let mut bytes = Vec::new();
        for d in [0.25, 3.0] {
            bytes.extend(scale(d));
            // Element k is k mod 16, element 16 + k is 15 - k.
            bytes.extend((0..16).map(|k: u8| k | (15 - k) << 4));
        }
        for k in 0..16 {
            for (block, d) in [(0, 0.25), (32, 3.0)] {
                assert_eq!(weight_at(&bytes, Dtype::Q4_0, block + k), d * (k as f64 - 8.0));
                assert_eq!(weight_at(&bytes, Dtype::Q4_0, block + 16 + k), d * (7.0 - k as f64));
            }
        }
    }

    #[test]
    fn the_padding_of_rows_is_skipped() {
        let (rows, cols) = (3, 33);
        let mut bytes = Vec::new();
        for block in 0..rows * 2 {
            bytes.extend(scale(1.0));
            bytes.extend([block as u8; 32]);
        }
        let mut out = alloc::vec![f32::NAN; rows * cols];
        decode_weight(&bytes, Dtype::Q8_0, &mut out, rows, cols);
        for row in 0..rows {
            for col in 0..cols {
                let block = 2 * row + usize::from(col == 32);
                assert_eq!(out[row * cols + col], block as f32);
            }
        }
    }
}
