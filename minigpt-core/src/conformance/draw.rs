//! What a case is drawn from: random numbers, but shapes and variants by plan, so that no seed leaves one out.
//!
//! A run of [`CASES`] cases is made of blocks of nine. In a block each pair of dimensions meets at every pair of levels
//! (small, middling, large), by an orthogonal array of strength two; and of the variants the first block has none, the second
//! all, and the others half of them, in all pairs. Every fourth case is even: all its sizes are whole tiles, at every pair of
//! levels too. In the others the remainders by 16 go round all 16 for every dimension. In two cases all dimensions are large,
//! and one is tall: of more rows, or positions,
//! than 16 bits count.

use alloc::vec;
use alloc::vec::Vec;

use crate::config::Precision;
use crate::reference::rounded::round;
use crate::rng::{Rng, Stream};

/// Cases of a run that leaves nothing out: four blocks.
pub(super) const CASES: usize = 36;

/// Cases of a block.
const BLOCK: u64 = 9;

/// Sizes that a dimension may have, by level: small ones up to the first number, middling ones now up to the second and now
/// between the second and the third, and large ones from the third to the fourth.
#[derive(Clone, Copy)]
pub(super) struct Sizes(pub(super) usize, pub(super) usize, pub(super) usize, pub(super) usize);

/// The draws of one case.
#[derive(Clone)]
pub(super) struct Draw {
    pub(super) rng: Rng,
    seed: u64,
    case: u64,
    variants: u32,
    dimensions: u32,
    /// Multiply-adds that a case may take, at least one.
    pub(super) work: usize,
    /// The policy that the op runs under.
    pub(super) precision: Precision,
    /// Whether only the shapes and variants matter: then all normal numbers are 0, which is much faster, and whatever else is
    /// drawn is the same.
    pub(super) only_shapes: bool,
}

impl Draw {
    /// Of case number `case` of an op, among those of `seed`.
    pub(super) fn new(seed: u64, op: u64, case: u64, work: usize) -> Self {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(op);
        let rng = Rng::new(Draw::stream(seed, case), Stream::User);
        let (precision, only_shapes) = (Precision::F32, false);
        Draw { rng, seed, case, variants: 0, dimensions: 0, work: work.max(1), precision, only_shapes }
    }

    /// The seed of a case's numbers.
    fn stream(seed: u64, case: u64) -> u64 {
        seed ^ (case << 32) ^ 0x5eed
    }

    /// The same draws for an op that runs under this policy.
    pub(super) fn under(self, precision: Precision) -> Self {
        Draw { precision, ..self }
    }

    /// The same draws, for a memory that does not look at numbers.
    pub(super) fn shapes(&self) -> Self {
        Draw { only_shapes: true, ..self.clone() }
    }

    /// A number that is the same in all cases of a run.
    fn fixed(&self, what: u64) -> u64 {
        Rng::new(self.seed ^ (what << 40), Stream::User).below(1 << 32)
    }

    fn block(&self) -> u64 {
        self.case / BLOCK
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.rng.below(bound as u64) as usize
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Whether all sizes are whole tiles, as models have them, and all operands aligned.
    pub(super) fn is_even(&self) -> bool {
        self.case % 4 == 3
    }

    /// Whether there are more rows, or positions, than 16 bits count: in one case of a run.
    pub(super) fn is_tall(&self) -> bool {
        self.case == 22
    }

    /// Whether no row is live: in one case of a run.
    pub(super) fn is_idle(&self) -> bool {
        self.case == 29
    }

    /// Whether there are more sequences than 8 bits count: in one case of a run.
    pub(super) fn is_crowded(&self) -> bool {
        self.case == 26
    }

    /// Whether all dimensions are large, and each as small as large ones are: then no other has to give way for the work.
    pub(super) fn is_large(&self) -> bool {
        self.case == 34
    }

    /// Whether a gradient is wanted that a frozen parameter has not: in three of four cases, and in those that a run has but
    /// once.
    pub(super) fn keeps(&mut self) -> bool {
        self.is_tall() || self.is_large() || self.below(4) > 0
    }

    /// The number of rows of a matrix with this width, and the width: a tall one is narrow, of at least `narrowest`.
    pub(super) fn rows(&mut self, sizes: Sizes, widths: Sizes, narrowest: usize) -> (usize, usize) {
        let (rows, width) = (self.size(sizes), self.size(widths).max(narrowest));
        let tall = 65_536 + 1 + self.below(4000);
        if self.is_tall() { (tall, narrowest + width % 5) } else { (rows, width) }
    }

    /// Each of these in turn, from case to case, and with every level of the first three dimensions: one of two, three, four
    /// or eight. Of nine, each comes once in a block.
    pub(super) fn turn<T: Copy>(&self, of: &[T]) -> T {
        let (row, count) = (self.case % BLOCK, of.len() as u64);
        // The levels go round by threes; this is the column of the array that they leave.
        let place = if count == 3 { row / 3 + 2 * (row % 3) } else { self.case };
        of[((place + self.block()) % count) as usize]
    }

    /// Whether the case has this variant; each call asks for the next one.
    pub(super) fn variant(&mut self) -> bool {
        self.variants += 1;
        match self.block() {
            0 => false,
            1 => true,
            // Parities of different sets of bits: any two of them take all four values equally often.
            _ => {
                let bits = self.case ^ (self.case >> 4);
                let parity = (bits & u64::from(self.variants % 15 + 1)).count_ones() % 2;
                (u64::from(parity) ^ self.fixed(u64::from(self.variants))) % 2 == 1
            }
        }
    }

    /// The number of the next dimension; its level: 0, 1 or 2; and a number that goes round by threes among the cases of a
    /// block that have this level.
    fn level(&mut self) -> (u64, u64, u64) {
        let dimension = u64::from(self.dimensions);
        self.dimensions += 1;
        // Another labelling of the levels for each seed, and in each block another one of what meets where two are large; the
        // even cases are one array among themselves.
        let block = if self.is_even() { 0 } else { self.block() };
        let (row, shift) = (self.case % BLOCK, self.fixed(100 + dimension) + block);
        let (a, b) = (row / 3, row % 3);
        let (level, turn) = match dimension % 4 {
            0 => (a, b),
            1 => (b, a),
            2 => (a + b, a),
            _ => (a + 2 * b, a),
        };
        let all_large = self.case == 17 || self.is_large();
        (
            dimension,
            if all_large { 2 } else { (level + shift) % 3 },
            turn + block + self.fixed(400 + dimension),
        )
    }

    /// The size of the next dimension.
    pub(super) fn size(&mut self, Sizes(small, middling, from, to): Sizes) -> usize {
        let (dimension, level, turn) = self.level();
        let (low, high) = match level {
            0 => (1, small),
            1 if self.is_even() => (small + 1, from - 1),
            1 if turn % 2 == 0 || middling + 1 == from => (small + 1, middling),
            1 => (middling + 1, from - 1),
            _ if self.is_large() => (from, from + (to - from) / 8),
            _ => (from, to),
        };
        // The sizes in the range that are whole tiles, or leave this remainder; if there are none, any.
        let (first, unit) = if self.is_even() {
            let mut tiles = [64, 16, 8, 4, 2].into_iter();
            let unit = tiles.find(|&unit| low.next_multiple_of(unit) <= high).unwrap_or(1);
            (low.next_multiple_of(unit), unit)
        } else {
            let step = 2 * self.fixed(200 + dimension) + 1;
            let remainder = ((self.case - self.case / 4) * step + self.fixed(300 + dimension)) % 16;
            (low + (remainder as usize + 16 - low % 16) % 16, 16)
        };
        let size = match (high + unit).checked_sub(first).map(|room| room / unit) {
            None | Some(0) => low + self.below(high + 1 - low),
            // Of two or three tiles, each has its turn.
            Some(tiles @ 1..4) if self.is_even() => first + unit * (turn as usize % tiles),
            Some(count) => first + unit * self.below(count),
        };
        // Where there is to be little work, nothing is long.
        size.min((8 * self.work.isqrt()).max(2))
    }

    /// Normal numbers of this deviation, as f32 has them.
    pub(super) fn normals(&mut self, len: usize, deviation: f64) -> Vec<f64> {
        if self.only_shapes {
            // Each would take four words.
            let position = self.rng.position() + 4 * len as u64;
            self.rng = Rng::at(Draw::stream(self.seed, self.case), Stream::User, position);
            return vec![0.0; len];
        }
        (0..len).map(|_| f64::from((deviation * self.rng.normal()) as f32)).collect()
    }

    /// These numbers as activations hold them, for a case that computes with them what an op is to read beside them.
    pub(super) fn as_stored(&self, mut activations: Vec<f64>) -> Vec<f64> {
        if self.precision == Precision::Bf16 && !self.only_shapes {
            activations.iter_mut().for_each(|x| *x = round(*x));
        }
        activations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes(33, 130, 520, 1100);

    fn case(seed: u64, case: usize) -> Draw {
        Draw::new(seed, 3, case as u64, usize::MAX)
    }

    #[test]
    fn a_run_has_every_pair_of_levels_and_every_remainder() {
        let level = |size: usize| match size {
            0..=33 => 0,
            34..520 => 1,
            _ => 2,
        };
        for seed in 0..20 {
            // Of all cases, and of the even ones.
            let (mut pairs, mut remainders) = ([[[false; 9]; 3]; 2], [[false; 16]; 3]);
            let mut all_large = false;
            for number in 0..CASES {
                let mut draw = case(seed, number);
                let sizes: [usize; 3] = core::array::from_fn(|_| draw.size(SIZES));
                for (pair, (i, j)) in [(0, 1), (0, 2), (1, 2)].into_iter().enumerate() {
                    let met = 3 * level(sizes[i]) + level(sizes[j]);
                    pairs[0][pair][met] = true;
                    pairs[1][pair][met] |= draw.is_even();
                }
                if draw.is_even() {
                    assert!(sizes.iter().all(|size| size % 16 == 0), "seed {seed}, case {number}: {sizes:?}");
                } else {
                    sizes.iter().zip(&mut remainders).for_each(|(size, seen)| seen[size % 16] = true);
                }
                all_large |= sizes.iter().all(|&size| level(size) == 2);
            }
            assert!(pairs.iter().flatten().flatten().all(|&met| met), "seed {seed}: {pairs:?}");
            assert!(all_large, "seed {seed}: never are all three large");
            assert!(remainders.iter().flatten().all(|&met| met), "seed {seed}: {remainders:?}");
        }
    }

    #[test]
    fn who_looks_at_shapes_alone_draws_the_same_ones() {
        for len in 0..9 {
            let mut draw = case(1, 5);
            draw.below(7);
            let mut shapes = draw.shapes();
            assert_eq!(draw.normals(len, 1.0).len(), shapes.normals(len, 1.0).len());
            assert_eq!(draw.rng.position(), shapes.rng.position());
            assert_eq!([(); 5].map(|()| draw.below(1000)), [(); 5].map(|()| shapes.below(1000)));
        }
    }

    #[test]
    fn a_run_has_middling_sizes_of_both_kinds_and_each_of_few_tiles() {
        for seed in 0..20 {
            let (mut between, mut tiles) = ([false; 3], [[false; 2]; 3]);
            for number in 0..CASES {
                let (mut draw, mut heads) = (case(seed, number), case(seed, number));
                for dimension in 0..3 {
                    between[dimension] |= (131..520).contains(&draw.size(SIZES)) && !draw.is_even();
                    match heads.size(Sizes(24, 128, 129, 256)) {
                        64 => tiles[dimension][0] = true,
                        128 => tiles[dimension][1] = true,
                        _ => {}
                    }
                }
            }
            assert!(between.iter().all(|&met| met), "seed {seed}: {between:?}");
            assert!(tiles.iter().flatten().all(|&met| met), "seed {seed}: {tiles:?}");
        }
    }

    #[test]
    fn a_run_has_every_variant_both_ways_and_with_every_other() {
        for seed in 0..20 {
            let mut met = [[[false; 4]; 8]; 8];
            for number in 0..CASES {
                let mut draw = case(seed, number);
                let variants: [bool; 8] = core::array::from_fn(|_| draw.variant());
                for i in 0..8 {
                    for j in 0..i {
                        met[i][j][2 * usize::from(variants[i]) + usize::from(variants[j])] = true;
                    }
                }
            }
            for i in 0..8 {
                assert!(met[i][..i].iter().flatten().all(|&met| met), "seed {seed}, variant {i}");
            }
        }
    }
}
