//! Dropout masks by the group of blocks: equal to [`minigpt_core::reference::dropout`].

use minigpt_core::op::{Dropout, counter};
use minigpt_core::rng::{dropout_threshold, dropout_words};

use crate::error::CpuError;
use crate::par::Views;

/// The mask of one site in one forward pass of a batch, or of a slice of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    threshold: u32,
    factor: f32,
    site: u32,
    first: u64,
    draw: [u32; 2],
    key: [u32; 2],
}

/// Elements in a group of blocks.
const GROUP: usize = 64;

impl Mask {
    /// The mask of `dropout`, if there is one, under its device counters.
    pub(crate) fn new(views: &mut Views<'_, '_>, dropout: Option<Dropout>) -> Result<Option<Mask>, CpuError> {
        let Some(Dropout { probability, site, first, counters }) = dropout else { return Ok(None) };
        let counters = views.u32("dropout.counters", counters)?;
        Ok(Some(Mask {
            threshold: dropout_threshold(probability),
            factor: (1.0 / (1.0 - probability)) as f32,
            site,
            first,
            draw: [counters[counter::DRAW], counters[counter::DRAW + 1]],
            key: [counters[counter::SEED], counters[counter::SEED + 1]],
        }))
    }

    /// Drops and scales `x`, the elements from `first` on, in place.
    #[inline(always)]
    pub(crate) fn apply(&self, first: usize, x: &mut [f32]) {
        let mut at = 0;
        while at < x.len() {
            let index = self.first.wrapping_add((first + at) as u64);
            let skip = (index % 4) as usize;
            let count = (GROUP - skip).min(x.len() - at);
            let words = self.words((index / 4) as u32, (skip + count).div_ceil(4));
            for (x, &word) in x[at..at + count].iter_mut().zip(&words.as_flattened()[skip..]) {
                // Not a product with 0: what is dropped is 0 even where it was not finite.
                *x = if word < self.threshold { 0.0 } else { *x * self.factor };
            }
            at += count;
        }
    }

    /// The words of `count` blocks, at most a group's, from `block` on.
    #[inline(always)]
    fn words(&self, block: u32, count: usize) -> [[u32; 4]; GROUP / 4] {
        let mut words = [[0; 4]; GROUP / 4];
        for (i, words) in words[..count].iter_mut().enumerate() {
            *words = dropout_words(block.wrapping_add(i as u32), self.site, self.draw, self.key);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use minigpt_core::reference::dropout;
    use minigpt_core::{Dtype, Span};
    use std::vec::Vec;

    #[test]
    fn the_mask_is_the_references() {
        let mut memory = Memory::default();
        let buffer = memory.alloc(64).unwrap();
        let counters = Span { buffer, dtype: Dtype::U32, offset: 0, len: counter::LEN };
        let words: Vec<u32> = (0..counter::LEN as u32).map(|i| i * 77 + 5).collect();
        Views::new(&mut memory).u32_mut("counters", counters).unwrap().copy_from_slice(&words);
        // From the mask's beginning, within a block, and across where the blocks begin anew.
        for begin in [0, 7, (1 << 34) - 30, u64::MAX - 5] {
            let dropout = Dropout { probability: 0.3, site: 9, first: begin, counters };
            let mask = Mask::new(&mut Views::new(&mut memory), Some(dropout)).unwrap().unwrap();
            let reference = dropout::Mask::new(0.3, 9, &words).starting_at(begin);
            for (first, len) in [(0, 200), (1, 3), (2, 64), (63, 65), (130, 1), (7, 0), (64, 61)] {
                let mut x: Vec<f32> = (0..len).map(|i| i as f32 - 20.5).collect();
                let expected: Vec<f32> =
                    x.iter().enumerate().map(|(i, &x)| reference.apply(first + i, x)).collect();
                mask.apply(first, &mut x);
                assert_eq!(x, expected, "{begin} {first} {len}");
            }
        }
        assert!(Mask::new(&mut Views::new(&mut memory), None).unwrap().is_none());
    }
}
