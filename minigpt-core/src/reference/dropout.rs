//! Dropout: in training, every element is dropped with probability p, and what is kept grows by 1 / (1 - p).
//!
//! ```text
//! y_i = 0                  if word_i < p 2^32
//!       x_i / (1 - p)      else
//! d_x_i = d_y_i * dy_i/dx_i: the same mask, the same factor
//! ```
//!
//! The factor keeps the expected value, E\[y\] = (1 - p) x / (1 - p) = x, so that nothing is to be scaled when the
//! trained model runs without dropout ("inverted" dropout). word_i comes from the counter-based generator: it is a
//! pure function of the seed, the draw (which batch), the site (which place of the model) and i. So the
//! backward pass does not need to be told the mask; it asks the generator the same question again.
//!
//! Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15.

use crate::op::counter;
use crate::real::Real;
use crate::rng::{dropout_threshold, dropout_words};

/// The mask of one site in one forward pass of a batch, or of a slice of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    threshold: u32,
    factor: f64,
    site: u32,
    first: u64,
    draw: [u32; 2],
    key: [u32; 2],
}

impl Mask {
    /// The mask at `site` under the device counters ([`counter::SEED`] and [`counter::DRAW`]).
    ///
    /// `probability` is in 0..1. Counters that are missing count as 0.
    ///
    /// ```
    /// use minigpt_core::reference::dropout::Mask;
    /// let mask = Mask::new(0.5, 0, &[7, 0, 0, 0]);
    /// let kept: Vec<f64> = (0..6).map(|i| mask.apply(i, 1.0)).collect();
    /// assert!(kept.iter().all(|&y| y == 0.0 || y == 2.0));
    /// ```
    pub fn new(probability: f64, site: u32, counters: &[u32]) -> Self {
        let pair = |low: usize| [low, low + 1].map(|place| counters.get(place).copied().unwrap_or(0));
        Mask {
            threshold: dropout_threshold(probability),
            factor: 1.0 / (1.0 - probability),
            site,
            first: 0,
            draw: pair(counter::DRAW),
            key: pair(counter::SEED),
        }
    }

    /// The part of the mask that begins at element `first` of it: element 0 is then what that was.
    ///
    /// ```
    /// use minigpt_core::reference::dropout::Mask;
    /// let whole = Mask::new(0.5, 0, &[7, 0, 0, 0]);
    /// let part = whole.starting_at(3);
    /// assert!((0..9).all(|i| part.apply(i, 1.0) == whole.apply(3 + i, 1.0)));
    /// ```
    #[must_use]
    pub fn starting_at(self, first: u64) -> Self {
        Mask { first: self.first.wrapping_add(first), ..self }
    }

    /// Element `index` after dropout: 0, or `x` / (1 - p). Serves `d_x` from `d_y` as well.
    ///
    /// A block of four elements is numbered by 32 bits, so the mask repeats after 2^34 elements.
    pub fn apply<R: Real>(&self, index: usize, x: R) -> R {
        let index = self.first.wrapping_add(index as u64);
        let words = dropout_words((index / 4) as u32, self.site, self.draw, self.key);
        if words[(index % 4) as usize] < self.threshold { R::zero() } else { x * R::from_f64(self.factor) }
    }
}

/// Element `index` after dropout, if there is any.
pub(super) fn drop_out<R: Real>(mask: Option<&Mask>, index: usize, x: R) -> R {
    match mask {
        Some(mask) => mask.apply(index, x),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const COUNTERS: [u32; counter::LEN] = [11, 12, 13, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn the_mask_is_the_generators() {
        let mask = Mask::new(0.3, 5, &COUNTERS);
        for block in 0..3 {
            let words = dropout_words(block, 5, [13, 14], [11, 12]);
            for lane in 0..4 {
                let kept = words[lane] >= (0.3 * 4_294_967_296.0) as u32;
                let y = mask.apply(4 * block as usize + lane, 7.0f64);
                assert_eq!(y, if kept { 7.0 * (1.0 / 0.7) } else { 0.0 });
            }
        }
    }

    #[test]
    fn a_word_at_the_threshold_is_kept() {
        let word = dropout_words(0, 5, [13, 14], [11, 12])[2];
        let probability_of = |threshold: u32| f64::from(threshold) / 4_294_967_296.0;
        assert_ne!(Mask::new(probability_of(word), 5, &COUNTERS).apply(2, 1.0f64), 0.0);
        assert_eq!(Mask::new(probability_of(word + 1), 5, &COUNTERS).apply(2, 1.0f64), 0.0);
    }

    #[test]
    fn seed_draw_and_site_each_change_the_mask() {
        let pattern = |mask: Mask| -> Vec<bool> { (0..64).map(|i| mask.apply(i, 1.0f64) == 0.0).collect() };
        let base = pattern(Mask::new(0.5, 0, &COUNTERS));
        assert_eq!(base, pattern(Mask::new(0.5, 0, &COUNTERS)));
        assert_ne!(base, pattern(Mask::new(0.5, 1, &COUNTERS)));
        for place in 0..4 {
            let mut counters = COUNTERS;
            counters[place] += 1;
            assert_ne!(base, pattern(Mask::new(0.5, 0, &counters)), "counter {place}");
        }
    }

    #[test]
    fn the_fraction_dropped_is_the_probability_and_the_mean_stays() {
        let n = 40_000;
        for probability in [0.1, 0.5, 0.8] {
            let mask = Mask::new(probability, 3, &COUNTERS);
            let values: Vec<f64> = (0..n).map(|i| mask.apply(i, 1.0)).collect();
            let dropped = values.iter().filter(|&&y| y == 0.0).count() as f64;
            // Four standard errors of a binomial: a level of 6e-5, at a fixed seed.
            let four_sigma = 4.0 * (n as f64 * probability * (1.0 - probability)).sqrt();
            assert!((dropped - n as f64 * probability).abs() < four_sigma, "{probability}: {dropped}");
            let mean = values.iter().sum::<f64>() / n as f64;
            assert!((mean - 1.0).abs() < four_sigma / (n as f64 * (1.0 - probability)), "{mean}");
        }
    }

    #[test]
    fn probability_zero_keeps_everything() {
        let mask = Mask::new(0.0, 3, &COUNTERS);
        assert!((0..1000).all(|i| mask.apply(i, 1.5f64) == 1.5));
        assert_eq!(drop_out(None, 0, 1.5), 1.5);
    }

    #[test]
    fn a_dropped_element_is_zero_even_where_it_was_not_finite() {
        let mask = Mask::new(0.5, 3, &COUNTERS);
        for i in 0..32 {
            let y = mask.apply(i, f64::NAN);
            assert!(if mask.apply(i, 1.0) == 0.0 { y == 0.0 } else { y.is_nan() });
        }
    }
}
