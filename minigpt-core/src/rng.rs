//! The one random generator: Philox 4x32-10, counter-based.
//!
//! A counter-based generator is a pure function of (key, counter): it has no state to lose. A dropout mask is
//! recomputed in the backward pass instead of stored, a resumed run draws what the uninterrupted one would have
//! drawn, and any thread or device can compute any element on its own.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// One block of Philox 4x32-10: four words from a 128-bit counter and a 64-bit key.
///
/// ```
/// use minigpt_core::rng::philox4x32;
/// // The first known-answer vector of the authors' Random123 distribution.
/// assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
/// ```
#[inline]
pub const fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    const W0: u32 = 0x9E37_79B9;
    const W1: u32 = 0xBB67_AE85;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < 10 {
        let p0 = M0 * c0 as u64;
        let p1 = M1 * c2 as u64;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// What a stream of random numbers is for. Streams of one seed never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// The initial weights.
    Init = 1,
    /// The positions of training windows.
    Data = 2,
    /// The choice of the next token.
    Sample = 3,
    /// The dropout masks.
    Dropout = 4,
    /// Anything that a program draws for itself.
    User = 5,
}

/// A sequential reader of one stream, for the host's draws (initial weights, windows, samples).
///
/// The whole state is `(seed, stream, position)`, and any position can be jumped to.
///
/// ```
/// use minigpt_core::rng::{Rng, Stream};
/// let mut a = Rng::new(42, Stream::Sample);
/// let first: Vec<u32> = (0..8).map(|_| a.next_u32()).collect();
/// let mut b = Rng::at(42, Stream::Sample, 5);
/// assert_eq!(b.next_u32(), first[5]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
    stream: u32,
    position: u64,
    block: [u32; 4],
}

impl Rng {
    /// The beginning of `stream` under `seed`.
    pub fn new(seed: u64, stream: Stream) -> Self {
        Self::at(seed, stream, 0)
    }

    /// `stream` under `seed`, as if `position` words had been drawn already.
    pub fn at(seed: u64, stream: Stream, position: u64) -> Self {
        let mut rng = Rng { key: key(seed), stream: stream as u32, position, block: [0; 4] };
        if !position.is_multiple_of(4) {
            rng.refill();
        }
        rng
    }

    /// How many words have been drawn.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn refill(&mut self) {
        let block = self.position / 4;
        self.block = philox4x32([block as u32, (block >> 32) as u32, self.stream, 0], self.key);
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.position.is_multiple_of(4) {
            self.refill();
        }
        let word = self.block[(self.position % 4) as usize];
        self.position = self.position.wrapping_add(1);
        word
    }

    /// Uniform in [0, 1) with 53 random bits; draws two words.
    pub fn uniform(&mut self) -> f64 {
        let high = u64::from(self.next_u32() >> 5);
        let low = u64::from(self.next_u32() >> 6);
        (high * (1 << 26) + low) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`, without bias (Lemire 2019, arXiv:1805.10941); 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let word = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
            let product = u128::from(word) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Standard normal by the Box-Muller transform (1958); draws four words and uses one of the pair.
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(2.0 * core::f64::consts::PI * self.uniform())
    }
}

/// The Philox key of a seed.
pub const fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// The four words that decide elements `4 * block ..` of the dropout mask at `site`, in draw number `draw`.
///
/// An element is kept if its word is at least [`dropout_threshold`].
#[inline]
pub const fn dropout_words(block: u32, site: u32, draw: [u32; 2], key: [u32; 2]) -> [u32; 4] {
    philox4x32([block, site, draw[0], draw[1]], [key[0] ^ (Stream::Dropout as u32) << 28, key[1]])
}

/// Words below this value drop their element: probability times 2^32.
#[inline]
pub fn dropout_threshold(probability: f64) -> u32 {
    (probability * 4_294_967_296.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_authors_known_answers() {
        let max = u32::MAX;
        assert_eq!(philox4x32([max; 4], [max; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        // Digits of pi.
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn any_position_can_be_jumped_to() {
        let mut whole = Rng::new(7, Stream::Data);
        let words: alloc::vec::Vec<u32> = (0..37).map(|_| whole.next_u32()).collect();
        for start in 0..37 {
            let mut jumped = Rng::at(7, Stream::Data, start as u64);
            for &word in &words[start..] {
                assert_eq!(jumped.next_u32(), word);
            }
            assert_eq!(jumped, whole);
        }
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Rng::new(seed, stream).next_u32();
        assert_ne!(first(1, Stream::Init), first(1, Stream::Data));
        assert_ne!(first(1, Stream::Init), first(2, Stream::Init));
        assert_ne!(first(1, Stream::Init), first(1 << 32, Stream::Init));
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Rng::new(3, Stream::User);
        let n = 20_000;
        let (mut mean, mut normal_mean, mut normal_square) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let u = rng.uniform();
            assert!((0.0..1.0).contains(&u));
            mean += u / f64::from(n);
            let z = rng.normal();
            normal_mean += z / f64::from(n);
            normal_square += z * z / f64::from(n);
        }
        // Five standard errors each.
        assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / f64::from(n)).sqrt(), "{mean}");
        assert!(normal_mean.abs() < 5.0 / f64::from(n).sqrt(), "{normal_mean}");
        assert!((normal_square - 1.0).abs() < 5.0 * (2.0 / f64::from(n)).sqrt(), "{normal_square}");
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut rng = Rng::new(5, Stream::User);
        let mut counts = [0u32; 7];
        for _ in 0..7000 {
            counts[rng.below(7) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 22.46, "chi-square {chi} with 6 degrees of freedom, 0.1 % level");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }
}
