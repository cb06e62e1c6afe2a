//! Weights into fewer bits: the inverse of [`decode_weight`](crate::reference::weights::decode_weight), as near as the
//! format comes.
//!
//! ```text
//! F16, Bf16   the nearest number, ties to even
//! Q8_0        d = the nearest f16 to max|x| / 127, or the next one up if that is too small for the largest
//!             q = the nearest integer to x / d;                              |error| <= d / 2
//! Q4_0        d = m / -8, m / -7.5 or m / -7, for m the element of the largest magnitude: whichever gives the least
//!             squared error; q = the nearest integer to x / d in -8 ..= 7;   |error| <= max|x| / 8 and d's rounding
//! ```
//!
//! The scale is rounded to f16 first, and the integers are chosen for the rounded one.

use half::{bf16, f16};

use crate::memory::{Dtype, QUANT_BLOCK};

/// Stores a row of a weight as `dtype`. `bytes` is as long as `dtype` makes the row, padded to whole blocks; the padding
/// is zeros.
///
/// # Errors
/// The first element that `dtype` cannot hold: beyond its largest number, or, unless it is F32 or F64, not finite.
///
/// # Panics
/// If `bytes` is too short.
///
/// ```
/// use minigpt_core::checkpoint::encode_row;
/// use minigpt_core::{Dtype, reference::weights::weight_at};
/// let mut block = [0; 34];
/// encode_row(&[1.0, -127.0, 2.4], Dtype::Q8_0, &mut block).unwrap();
/// let read = [0, 1, 2, 3].map(|k| weight_at(&block, Dtype::Q8_0, k));
/// assert_eq!(read, [1.0, -127.0, 2.0, 0.0]);
/// assert_eq!(encode_row(&[0.0, f64::NAN], Dtype::Bf16, &mut block), Err(1));
/// ```
pub fn encode_row(row: &[f64], dtype: Dtype, bytes: &mut [u8]) -> Result<(), usize> {
    let (elements, size) = dtype.unit();
    let bytes = &mut bytes[..row.len().div_ceil(elements) * size];
    let units = row.chunks(elements).zip(bytes.chunks_exact_mut(size));
    for (number, (x, unit)) in units.enumerate() {
        let unfit = |i: usize| number * elements + i;
        match dtype {
            Dtype::F64 => unit.copy_from_slice(&x[0].to_le_bytes()),
            Dtype::F32 => {
                let near = Some(x[0] as f32).filter(|near| near.is_finite() == x[0].is_finite());
                unit.copy_from_slice(&near.ok_or(unfit(0))?.to_le_bytes());
            }
            Dtype::U32 => unit.copy_from_slice(&(x[0] as u32).to_le_bytes()),
            Dtype::F16 => {
                let near = Some(f16::from_f64(x[0])).filter(|near| near.is_finite());
                unit.copy_from_slice(&near.ok_or(unfit(0))?.to_le_bytes());
            }
            Dtype::Bf16 => {
                let near = Some(bf16::from_f64(x[0])).filter(|near| near.is_finite());
                unit.copy_from_slice(&near.ok_or(unfit(0))?.to_le_bytes());
            }
            Dtype::Q8_0 => {
                let d =
                    scale_of_bytes(largest(x).map_err(unfit)?).map_err(|()| unfit(place_of_largest(x)))?;
                unit[..2].copy_from_slice(&d.to_le_bytes());
                unit[2..].fill(0);
                for (q, &x) in unit[2..].iter_mut().zip(x) {
                    *q = integer(x, d, 127.0) as i8 as u8;
                }
            }
            Dtype::Q4_0 => {
                let d = scale_of_nibbles(x, largest(x).map_err(unfit)?);
                let d = d.ok_or_else(|| unfit(place_of_largest(x)))?;
                unit[..2].copy_from_slice(&d.to_le_bytes());
                let nibble = |k: usize| x.get(k).map_or(8, |&x| (integer(x, d, 7.0) + 8.0) as u8);
                for (k, pair) in unit[2..].iter_mut().enumerate() {
                    *pair = nibble(k) | nibble(k + QUANT_BLOCK / 2) << 4;
                }
            }
        }
    }
    Ok(())
}

/// The element of the largest magnitude; the place of the first that is not finite, if there is one.
fn largest(x: &[f64]) -> Result<f64, usize> {
    match x.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(i),
        None => Ok(x[place_of_largest(x)]),
    }
}

fn place_of_largest(x: &[f64]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i].abs() > x[best].abs() { i } else { best })
}

/// The integer nearest to x / d, from -(most + 1) to `most`; only of nibbles does the lower end count.
fn integer(x: f64, d: f16, most: f64) -> f64 {
    match d.to_f64() {
        0.0 => 0.0,
        d => libm::rint(x / d).clamp(-most - 1.0, most),
    }
}

/// The scale of a block of bytes; none if it is beyond f16.
fn scale_of_bytes(largest: f64) -> Result<f16, ()> {
    let mut d = f16::from_f64(largest.abs() / 127.0);
    // Rounded down, as the smallest scales are by up to a half, it could leave the largest element out of reach.
    if largest.abs() > 127.5 * d.to_f64() {
        d = f16::from_bits(d.to_bits() + 1);
    }
    if d.is_finite() { Ok(d) } else { Err(()) }
}

/// The scale of a block of nibbles with the least squared error among a few; none if all are beyond f16.
fn scale_of_nibbles(x: &[f64], largest: f64) -> Option<f16> {
    let error = |d: f16| -> f64 {
        x.iter().map(|&x| x - integer(x, d, 7.0) * d.to_f64()).map(|error| error * error).sum()
    };
    let scales = [-8.0, -7.5, -7.0].map(|reach| f16::from_f64(largest / reach));
    let usable = scales.into_iter().filter(|d| d.is_finite());
    usable.min_by(|&a, &b| error(a).total_cmp(&error(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::weights::decode_weight;
    use crate::rng::{Rng, Stream};
    use alloc::vec;
    use alloc::vec::Vec;

    const NARROW: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

    fn there_and_back(row: &[f64], dtype: Dtype) -> Result<Vec<f64>, usize> {
        let mut bytes = vec![0xaa; dtype.bytes(dtype.padded(row.len())).unwrap()];
        encode_row(row, dtype, &mut bytes)?;
        let mut back = vec![f64::NAN; row.len()];
        decode_weight(&bytes, dtype, &mut back, 1, row.len());
        Ok(back)
    }

    fn normal(seed: u64, len: usize, deviation: f64) -> Vec<f64> {
        let mut rng = Rng::new(seed, Stream::User);
        (0..len).map(|_| f64::from((deviation * rng.normal()) as f32)).collect()
    }

    #[test]
    fn errors_keep_the_bounds_of_each_format_at_every_length_and_size() {
        for len in [1, 7, 31, 32, 33, 64, 97] {
            for deviation in [1e-3, 0.02, 1.0, 300.0] {
                let row = normal(len as u64, len, deviation);
                for dtype in NARROW {
                    let back = there_and_back(&row, dtype).unwrap();
                    for (block, (x, y)) in row.chunks(32).zip(back.chunks(32)).enumerate() {
                        let most = x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                        for (x, y) in x.iter().zip(y) {
                            let bound = match dtype {
                                // Half of the last place, or of the smallest subnormal number's.
                                Dtype::F16 => x.abs() / 2048.0 + 3e-8,
                                Dtype::Bf16 => x.abs() / 256.0,
                                Dtype::Q8_0 => most / 254.0 * 1.002 + 3e-8,
                                _ => most / 8.0 * 1.01 + 1e-7,
                            };
                            assert!((x - y).abs() <= bound, "{dtype:?} of {len}, block {block}: {x} {y}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_a_format_holds_comes_back_as_it_is() {
        for dtype in NARROW {
            let row = normal(1, 70, 0.02);
            let once = there_and_back(&row, dtype).unwrap();
            assert_ne!(once, row);
            if dtype != Dtype::Q4_0 {
                assert_eq!(there_and_back(&once, dtype).unwrap(), once, "{dtype:?}");
            }
            assert_eq!(there_and_back(&[0.0; 33], dtype).unwrap(), [0.0; 33], "{dtype:?}");
        }
        let nibbles: Vec<f64> = (0..32).map(|k| 0.5 * (f64::from(k % 16) - 8.0)).collect();
        assert_eq!(there_and_back(&nibbles, Dtype::Q4_0).unwrap(), nibbles);
        for dtype in [Dtype::F32, Dtype::F64] {
            assert_eq!(there_and_back(&[1.5, f64::INFINITY], dtype).unwrap(), [1.5, f64::INFINITY]);
        }
        assert_eq!(there_and_back(&[7.0, 9.0], Dtype::U32).unwrap(), [7.0, 9.0]);
    }

    #[test]
    fn ties_go_to_the_even_neighbour() {
        // Between 1 and the next f16, and between 1 and the next bf16.
        let (f16_tie, bf16_tie) = (1.0 + 1.0 / 2048.0, 1.0 + 1.0 / 256.0);
        assert_eq!(there_and_back(&[f16_tie], Dtype::F16).unwrap(), [1.0]);
        assert_eq!(there_and_back(&[bf16_tie], Dtype::Bf16).unwrap(), [1.0]);
        let bytes = [127.0, 2.5, 3.5, -2.5];
        assert_eq!(there_and_back(&bytes, Dtype::Q8_0).unwrap(), [127.0, 2.0, 4.0, -2.0]);
    }

    #[test]
    fn nibbles_take_the_scale_with_the_least_error() {
        // As far down as up: m / -8 would leave 7.5 half a step short, m / -7.5 does not reach either end.
        let x = [7.0, -7.0, 6.0, 1.0];
        assert_eq!(there_and_back(&x, Dtype::Q4_0).unwrap(), x);
        // One far end alone: there the eighth step counts.
        let x = [-8.0, 7.0, 6.0, 1.0];
        assert_eq!(there_and_back(&x, Dtype::Q4_0).unwrap(), x);
    }

    #[test]
    fn scales_that_f16_can_hardly_hold_still_reach_the_largest_element() {
        let step = 2f64.powi(-24);
        for largest in [0.4, 0.6, 1.4, 1.49, 2.4].map(|steps| steps * 127.0 * step) {
            let back = there_and_back(&[largest, -largest / 3.0], Dtype::Q8_0).unwrap();
            assert!((back[0] - largest).abs() <= 1.5 * step, "{largest}: {}", back[0]);
        }
    }

    #[test]
    fn what_a_format_cannot_hold_is_named() {
        let far = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e40, -1e40];
        for dtype in NARROW {
            for x in far {
                let mut row = normal(2, 70, 0.02);
                row[40] = x;
                assert_eq!(there_and_back(&row, dtype), Err(40), "{x} as {dtype:?}");
            }
            let most = match dtype {
                Dtype::F16 => 65504.0,
                Dtype::Bf16 => 3.38e38,
                Dtype::Q8_0 => 127.0 * 65504.0,
                _ => 8.0 * 65504.0,
            };
            assert!(there_and_back(&[most], dtype).is_ok(), "{dtype:?}");
        }
        assert_eq!(there_and_back(&[1.0, 1e39], Dtype::F32), Err(1));
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn a_row_is_not_cut_short_in_silence() {
        let _ = encode_row(&[1.0; 33], Dtype::Q8_0, &mut [0; 34]);
    }
}
