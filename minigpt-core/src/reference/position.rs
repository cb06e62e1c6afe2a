//! Sinusoidal positions: a fixed vector for each position, added to the token's embedding.
//!
//! ```text
//! table[p, 2i]     = sin(p / 10000^(2i/C))
//! table[p, 2i + 1] = cos(p / 10000^(2i/C))
//!
//! table   (positions, C)
//! ```
//!
//! Each pair is the hand of a clock; the first turns once in 2 pi positions, the last once in nearly 2 pi 10000.
//! Moving k positions on turns every hand by a fixed angle, a linear map, so that "k positions back" is something
//! that a linear layer can learn. Nothing here is trained: there is no gradient.
//!
//! Computed in f64 and rounded once, so that the table is the same on every backend.
//!
//! Source: Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762, section 3.5.

use crate::real::Real;

/// The radians by which pair `pair` of a vector of `width` turns from one position to the next:
/// base^(-2 pair/width).
pub(super) fn frequency(base: f64, pair: usize, width: usize) -> f64 {
    libm::pow(base, -2.0 * pair as f64 / width as f64)
}

/// Fills `table`, (positions, `width`); rows that are not whole are left as they are.
///
/// ```
/// let mut table = [0.0f64; 4];
/// minigpt_core::reference::position::sinusoidal_table(&mut table, 2);
/// assert_eq!(table, [0.0, 1.0, 1f64.sin(), 1f64.cos()]);
/// ```
pub fn sinusoidal_table<R: Real>(table: &mut [R], width: usize) {
    for p in 0..table.len().checked_div(width).unwrap_or(0) {
        for i in 0..width {
            let angle = p as f64 * frequency(10_000.0, i / 2, width);
            let value = if i % 2 == 0 { libm::sin(angle) } else { libm::cos(angle) };
            table[p * width + i] = R::from_f64(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::assert_close;
    use super::*;

    #[test]
    fn the_table_is_the_papers() {
        for width in [4usize, 6, 5] {
            let mut table = alloc::vec![f64::NAN; 7 * width];
            sinusoidal_table(&mut table, width);
            for p in 0..7 {
                for i in 0..width {
                    let angle = p as f64 / 10_000f64.powf((i - i % 2) as f64 / width as f64);
                    let value = if i % 2 == 0 { angle.sin() } else { angle.cos() };
                    assert_close(&[table[p * width + i]], &[value], 1e-15);
                }
            }
        }
    }

    #[test]
    fn frequencies_fall_from_one_to_nearly_a_ten_thousandth() {
        assert_eq!(frequency(1e4, 0, 8), 1.0);
        assert_close(&[frequency(1e4, 1, 4), frequency(1e4, 2, 4)], &[1e-2, 1e-4], 1e-18);
    }

    #[test]
    fn rows_that_are_not_whole_are_left_alone() {
        let mut table = [9.0; 5];
        sinusoidal_table(&mut table, 2);
        assert_eq!(table[4], 9.0);
        sinusoidal_table(&mut table, 0);
        sinusoidal_table::<f64>(&mut [], 3);
    }

    #[test]
    fn f32_is_the_rounded_f64() {
        let (mut wide, mut narrow) = ([0.0f64; 60], [0.0f32; 60]);
        sinusoidal_table(&mut wide, 6);
        sinusoidal_table(&mut narrow, 6);
        assert_eq!(wide.map(|x| x as f32), narrow);
    }
}
