//! Windows over tokens: what a model is trained and evaluated on.
//!
//! A window is T + 1 tokens in a row: the first T are the inputs, the last T the targets, so that each position
//! is taught the token that follows it (teacher forcing). [`split`] sets text aside for evaluation, [`Windows`]
//! draws training windows at random, and [`EvalWindows`] walks over the rest. All of them take [`Tokens`] of any width.

use core::fmt;
use core::ops::Range;

use crate::rng::{self, Stream, philox4x32};
use crate::tokenizer::Tokens;

/// Splits a corpus by position: the first `(fraction * n) as usize` of its n tokens train, the rest evaluate.
///
/// ```
/// let tokens: Vec<u32> = (0..15).collect();
/// let (training, validation) = minigpt_core::data::split(&tokens, 0.9)?;
/// assert_eq!((training.len(), validation.len()), (13, 2));
/// # Ok::<(), minigpt_core::DataError>(())
/// ```
///
/// # Errors
/// [`DataError::Empty`], and [`DataError::Fraction`] if `fraction` is not in 0..=1.
pub fn split<'a>(
    tokens: impl Into<Tokens<'a>>,
    fraction: f64,
) -> Result<(Tokens<'a>, Tokens<'a>), DataError> {
    let tokens = tokens.into();
    if tokens.is_empty() {
        return Err(DataError::Empty);
    }
    if !(0.0..=1.0).contains(&fraction) {
        return Err(DataError::Fraction { fraction });
    }
    // The product can round up past the end only where f64 cannot count the tokens; then the end is the middle.
    Ok(tokens.split_at((fraction * tokens.len() as f64) as usize))
}

/// Random training windows over a corpus, with replacement.
///
/// Window number w is a pure function of (seed, w): none before it has to be drawn, any two batches can be made
/// on any two threads, and a resumed run needs to remember only how many windows it has drawn.
///
/// ```
/// use minigpt_core::Windows;
/// let tokens: Vec<u32> = (0..100).collect();
/// let windows = Windows::new(&tokens, 8)?;
/// let (mut inputs, mut targets) = ([0; 16], [0; 16]);
/// windows.fill(42, 0, 2, &mut inputs, &mut targets)?;
/// assert_eq!(inputs[1], targets[0]);
/// assert_eq!(inputs[..8], tokens[windows.start(42, 0)..][..8]);
/// # Ok::<(), minigpt_core::DataError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    tokens: Tokens<'a>,
    time: usize,
}

impl<'a> Windows<'a> {
    /// Windows of `time` inputs (T) over `tokens`.
    ///
    /// # Errors
    /// [`DataError::Empty`], [`DataError::ZeroTime`], and [`DataError::TooShort`] if there are fewer than T + 1
    /// tokens.
    pub fn new(tokens: impl Into<Tokens<'a>>, time: usize) -> Result<Self, DataError> {
        let tokens = tokens.into();
        check(tokens, time)?;
        Ok(Windows { tokens, time })
    }

    /// How many inputs a window has (T).
    pub fn time(&self) -> usize {
        self.time
    }

    /// How many different windows there are: n - T for n tokens.
    pub fn starts(&self) -> usize {
        self.tokens.len() - self.time
    }

    /// Where window number `window` of `seed` begins.
    ///
    /// It is floor(r s / 2^64), where s is [`starts`](Windows::starts) and r the first 64 bits of Philox block
    /// `window` of [`Stream::Data`]. Each start's probability is within 2^-64 of 1/s, since the number of r that
    /// lead to it is 2^64 / s, rounded up or down.
    pub fn start(&self, seed: u64, window: u64) -> usize {
        let counter = [window as u32, (window >> 32) as u32, Stream::Data as u32, 0];
        let [high, low, ..] = philox4x32(counter, rng::key(seed));
        let random = u64::from(high) << 32 | u64::from(low);
        ((u128::from(random) * self.starts() as u128) >> 64) as usize
    }

    /// Writes windows number `first_window` to `first_window + batch - 1` of `seed` to `inputs` and `targets`, one after
    /// the other: each (B, T). Past 2^64 windows the numbers begin again at 0.
    ///
    /// # Errors
    /// [`DataError::BatchLength`] if a slice is not exactly B T long.
    pub fn fill(
        &self,
        seed: u64,
        first_window: u64,
        batch: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<(), DataError> {
        let start = |row| self.start(seed, first_window.wrapping_add(row as u64));
        fill(self.tokens, self.time, batch, start, inputs, targets)
    }
}

/// Writes the windows that begin where `start` says to `inputs` and `targets`, one after the other.
fn fill(
    tokens: Tokens<'_>,
    time: usize,
    batch: usize,
    start: impl Fn(usize) -> usize,
    inputs: &mut [u32],
    targets: &mut [u32],
) -> Result<(), DataError> {
    for found in [inputs.len(), targets.len()] {
        if batch.checked_mul(time) != Some(found) {
            return Err(DataError::BatchLength { batch, time, found });
        }
    }
    let rows = inputs.chunks_exact_mut(time).zip(targets.chunks_exact_mut(time));
    for (row, (inputs, targets)) in rows.enumerate() {
        let start = start(row);
        tokens.copy_to(start, inputs);
        tokens.copy_to(start + 1, targets);
    }
    Ok(())
}

/// Evaluation windows over a corpus: in order, side by side, each target once.
///
/// Window i has the inputs `tokens[i T .. i T + T]`, and the targets one further, for every i whose targets all
/// exist. Only full windows count: up to T - 1 targets at the very end are left out.
///
/// ```
/// use minigpt_core::EvalWindows;
/// let tokens: Vec<u32> = (0..10).collect();
/// let windows = EvalWindows::new(&tokens, 4)?;
/// assert_eq!(windows.len(), 2);
/// let (mut inputs, mut targets) = ([0; 4], [0; 4]);
/// windows.fill(1, 1, &mut inputs, &mut targets)?;
/// assert_eq!((inputs, targets), ([4, 5, 6, 7], [5, 6, 7, 8]));
/// # Ok::<(), minigpt_core::DataError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct EvalWindows<'a> {
    tokens: Tokens<'a>,
    time: usize,
    /// How many windows are spread over the corpus.
    spread: usize,
    /// Which of them these are.
    first: usize,
    len: usize,
}

impl<'a> EvalWindows<'a> {
    /// All full windows of `time` inputs (T) over `tokens`.
    ///
    /// # Errors
    /// As [`Windows::new`].
    pub fn new(tokens: impl Into<Tokens<'a>>, time: usize) -> Result<Self, DataError> {
        let tokens = tokens.into();
        check(tokens, time)?;
        let len = full_windows(tokens, time);
        Ok(EvalWindows { tokens, time, spread: len, first: 0, len })
    }

    /// At most `count` of all windows, evenly spread over the corpus, and at least one: a fixed sample for a quick
    /// look. Of m windows in all, the j-th of k is window floor(j m / k).
    ///
    /// ```
    /// # use minigpt_core::EvalWindows;
    /// # let tokens = [0u32; 101];
    /// let all = EvalWindows::new(&tokens, 10)?;
    /// assert_eq!((all.len(), all.spread(4).len(), all.spread(99).len()), (10, 4, 10));
    /// # Ok::<(), minigpt_core::DataError>(())
    /// ```
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let len = count.clamp(1, full_windows(self.tokens, self.time));
        EvalWindows { spread: len, first: 0, len, ..*self }
    }

    /// The windows at the places of `range`; `None` if it is empty or reaches past the last. A long evaluation can go
    /// piece by piece, and be watched and stopped between two.
    ///
    /// ```
    /// # use minigpt_core::EvalWindows;
    /// # let tokens = [0u32; 101];
    /// let all = EvalWindows::new(&tokens, 10)?;
    /// assert_eq!(all.part(4..10).map(|part| part.len()), Some(6));
    /// assert!(all.part(4..11).is_none() && all.part(4..4).is_none());
    /// # Ok::<(), minigpt_core::DataError>(())
    /// ```
    pub fn part(&self, range: Range<usize>) -> Option<Self> {
        let inside = range.start < range.end && range.end <= self.len;
        inside.then(|| EvalWindows { first: self.first + range.start, len: range.end - range.start, ..*self })
    }

    /// How many inputs a window has (T).
    pub fn time(&self) -> usize {
        self.time
    }

    /// How many windows there are; never 0.
    #[expect(clippy::len_without_is_empty, reason = "there is always a window")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes the `batch` windows from place `first` on to `inputs` and `targets`, one after the other: each (B, T).
    ///
    /// # Errors
    /// [`DataError::PastTheLast`] if there are not so many, and [`DataError::BatchLength`] if a slice is not exactly
    /// B T long.
    pub fn fill(
        &self,
        first: usize,
        batch: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<(), DataError> {
        if first.checked_add(batch).is_none_or(|end| end > self.len) {
            return Err(DataError::PastTheLast { first, batch, windows: self.len });
        }
        let all = full_windows(self.tokens, self.time);
        // Below `all`, since the place is below `spread`.
        let window = |place: usize| (place as u128 * all as u128 / self.spread as u128) as usize;
        let start = |row| window(self.first + first + row) * self.time;
        fill(self.tokens, self.time, batch, start, inputs, targets)
    }
}

/// How many windows stand side by side: i with i T + T + 1 <= n.
fn full_windows(tokens: Tokens<'_>, time: usize) -> usize {
    (tokens.len() - 1) / time
}

fn check(tokens: Tokens<'_>, time: usize) -> Result<(), DataError> {
    if tokens.is_empty() {
        return Err(DataError::Empty);
    }
    if time == 0 {
        return Err(DataError::ZeroTime);
    }
    if tokens.len() <= time {
        return Err(DataError::TooShort { tokens: tokens.len(), time });
    }
    Ok(())
}

/// Why there are no windows over a corpus.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum DataError {
    /// There are no tokens.
    Empty,
    /// There are too few tokens for one window.
    TooShort {
        /// How many tokens there are.
        tokens: usize,
        /// Inputs per window (T); a window takes one token more.
        time: usize,
    },
    /// A window without inputs.
    ZeroTime,
    /// The share that trains is not in 0..=1.
    Fraction {
        /// The share given.
        fraction: f64,
    },
    /// Windows past the last one.
    PastTheLast {
        /// The place of the first one asked for.
        first: usize,
        /// How many were asked for.
        batch: usize,
        /// How many there are.
        windows: usize,
    },
    /// A slice does not have the length of the batch.
    BatchLength {
        /// Windows in the batch (B).
        batch: usize,
        /// Inputs per window (T).
        time: usize,
        /// The length of the slice.
        found: usize,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DataError::Empty => f.write_str("the corpus is empty: give it some text"),
            DataError::TooShort { tokens, time } => {
                write!(
                    f,
                    "there are {tokens} tokens, but a window of {time} inputs needs {}, the last target \
                     included: use more text",
                    time.saturating_add(1)
                )?;
                match tokens.saturating_sub(1) {
                    0 => Ok(()),
                    most => write!(f, " or windows of at most {most}"),
                }
            }
            DataError::ZeroTime => {
                f.write_str("a window needs at least 1 input: set its length to 1 or more")
            }
            DataError::Fraction { fraction } => {
                write!(f, "the training fraction {fraction} is not between 0 and 1: 0.9 is common")
            }
            DataError::PastTheLast { first, batch, windows } => write!(
                f,
                "{batch} windows from place {first} on reach past the last of {windows}: ask for fewer, or begin \
                 earlier"
            ),
            DataError::BatchLength { batch, time, found } => write!(
                f,
                "{batch} windows of {time} tokens do not fill {found} places: make inputs and targets batch x \
                 time long"
            ),
        }
    }
}

impl core::error::Error for DataError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use alloc::string::ToString;
    use alloc::vec;
    use alloc::vec::Vec;

    fn counting(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn split_cuts_by_position_and_rounds_down() {
        let tokens = counting(19);
        // 0.9 x 19 = 17.1
        let parts = |middle| Ok(Tokens::from(&tokens).split_at(middle));
        assert_eq!(split(&tokens, 0.9), parts(17));
        assert_eq!(split(&tokens, 0.0), parts(0));
        assert_eq!(split(&tokens, 1.0), parts(19));
        assert_eq!(split(&tokens[..1], 0.9), Ok((Tokens::from(&[0u32; 0]), Tokens::from(&[0u32]))));
        let large = vec![0u8; 1_115_394];
        assert_eq!(split(&large, 0.9).unwrap().0.len(), 1_003_854);
    }

    #[test]
    fn split_refuses_what_is_no_share() {
        assert_eq!(split(&[0u32; 0], 0.9), Err(DataError::Empty));
        for fraction in [-0.1, 1.1, f64::INFINITY] {
            assert_eq!(split(&[1u32, 2], fraction), Err(DataError::Fraction { fraction }));
        }
        assert!(matches!(split(&[1u32, 2], f64::NAN), Err(DataError::Fraction { .. })));
    }

    #[test]
    fn targets_are_the_inputs_shifted_by_one() {
        let tokens = counting(50);
        let windows = Windows::new(&tokens, 5).unwrap();
        let (mut inputs, mut targets) = (vec![0; 200], vec![0; 200]);
        windows.fill(3, 7, 40, &mut inputs, &mut targets).unwrap();
        for (row, (inputs, targets)) in inputs.chunks(5).zip(targets.chunks(5)).enumerate() {
            let start = windows.start(3, 7 + row as u64);
            assert_eq!(inputs, &tokens[start..start + 5]);
            assert_eq!(targets, &tokens[start + 1..start + 6]);
        }
    }

    #[test]
    fn a_window_depends_on_seed_and_number_alone() {
        let tokens = counting(1000);
        let windows = Windows::new(&tokens, 4).unwrap();
        let whole: Vec<usize> = (0..24).map(|w| windows.start(9, w)).collect();
        let (mut inputs, mut targets) = ([0; 4], [0; 4]);
        for window in (0..24).rev() {
            windows.fill(9, window, 1, &mut inputs, &mut targets).unwrap();
            assert_eq!(inputs[0] as usize, whole[window as usize]);
        }
        assert_ne!(whole, (0..24).map(|w| windows.start(10, w)).collect::<Vec<_>>());
        // Both words of the number count.
        assert_ne!(windows.start(9, 1), windows.start(9, 1 << 32));
    }

    #[test]
    fn starts_are_the_data_streams_words_scaled() {
        let tokens = counting(1000);
        let windows = Windows::new(&tokens, 10).unwrap();
        for window in [0, 1, 5, (1 << 32) + 3] {
            let mut rng = Rng::at(77, Stream::Data, 4 * window);
            let random = f64::from(rng.next_u32()) * 4_294_967_296.0 + f64::from(rng.next_u32());
            assert_eq!(windows.start(77, window), (random / 18_446_744_073_709_551_616.0 * 990.0) as usize);
        }
    }

    #[test]
    fn window_numbers_wrap_around() {
        let tokens = counting(100);
        let windows = Windows::new(&tokens, 1).unwrap();
        let (mut inputs, mut targets) = ([0; 2], [0; 2]);
        windows.fill(0, u64::MAX, 2, &mut inputs, &mut targets).unwrap();
        assert_eq!(inputs, [windows.start(0, u64::MAX) as u32, windows.start(0, 0) as u32]);
    }

    #[test]
    fn starts_are_uniform_over_all_valid_ones() {
        let tokens = counting(27);
        let windows = Windows::new(&tokens, 7).unwrap();
        assert_eq!(windows.starts(), 20);
        let mut counts = [0u32; 20];
        for window in 0..20_000 {
            counts[windows.start(5, window)] += 1;
        }
        let chi: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 43.82, "chi-square {chi} with 19 degrees of freedom, 0.1 % level");
    }

    #[test]
    fn a_corpus_of_one_window_always_gives_that_one() {
        let tokens = counting(5);
        let windows = Windows::new(&tokens, 4).unwrap();
        let (mut inputs, mut targets) = ([9; 8], [9; 8]);
        windows.fill(1, 100, 2, &mut inputs, &mut targets).unwrap();
        assert_eq!(inputs, [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(targets, [1, 2, 3, 4, 1, 2, 3, 4]);
        assert_eq!(EvalWindows::new(&tokens, 4).unwrap().len(), 1);
    }

    #[test]
    fn evaluation_takes_every_full_window_once() {
        // (tokens, T, windows): the last window needs one token past its inputs.
        for (n, time, count) in
            [(13, 4, 3), (12, 4, 2), (14, 4, 3), (16, 4, 3), (17, 4, 4), (2, 1, 1), (5, 1, 4)]
        {
            let tokens = counting(n);
            let windows = EvalWindows::new(&tokens, time).unwrap();
            assert_eq!(windows.len(), count, "{n} tokens, T {time}");
            let (mut inputs, mut targets) = (vec![0; count * time], vec![0; count * time]);
            windows.fill(0, count, &mut inputs, &mut targets).unwrap();
            assert_eq!(inputs, &tokens[..count * time]);
            assert_eq!(targets, &tokens[1..count * time + 1]);
            for (first, batch) in [(count, 1), (0, count + 1), (usize::MAX, 1)] {
                let past = Err(DataError::PastTheLast { first, batch, windows: count });
                assert_eq!(windows.fill(first, batch, &mut inputs, &mut targets), past);
            }
        }
    }

    /// The first input of each window.
    fn firsts(windows: &EvalWindows<'_>) -> Vec<u32> {
        let first = |place| {
            let (mut inputs, mut targets) = (vec![0; windows.time()], vec![0; windows.time()]);
            windows.fill(place, 1, &mut inputs, &mut targets).unwrap();
            inputs[0]
        };
        (0..windows.len()).map(first).collect()
    }

    #[test]
    fn the_parts_of_a_spread_are_the_spread() {
        let tokens: Vec<u8> = (0..101).collect();
        for windows in [1, 3, 4, 10].map(|count| EvalWindows::new(&tokens, 10).unwrap().spread(count)) {
            let whole = firsts(&windows);
            for middle in 1..windows.len() {
                let [first, second] =
                    [0..middle, middle..windows.len()].map(|range| windows.part(range).unwrap());
                assert_eq!([firsts(&first), firsts(&second)].concat(), whole);
                assert_eq!(second.part(0..1).map(|part| firsts(&part)), Some(vec![whole[middle]]));
                assert!(second.part(0..second.len() + 1).is_none());
            }
        }
    }

    #[test]
    fn a_spread_is_even_and_starts_at_the_beginning() {
        let tokens = counting(101);
        let all = EvalWindows::new(&tokens, 10).unwrap();
        let firsts = |count| firsts(&all.spread(count));
        assert_eq!(firsts(4), [0, 20, 50, 70]);
        assert_eq!(firsts(3), [0, 30, 60]);
        assert_eq!(firsts(1), [0]);
        assert_eq!(firsts(0), [0]);
        assert_eq!(firsts(10), (0..100).step_by(10).collect::<Vec<u32>>());
        assert_eq!(firsts(usize::MAX), firsts(10));
        // Of a spread, a wider one can be taken again.
        assert_eq!(all.spread(1).spread(2).len(), 2);
    }

    #[test]
    fn too_little_text_is_refused_with_what_is_needed() {
        assert_eq!(Windows::new(&[0u32; 0], 4).unwrap_err(), DataError::Empty);
        assert_eq!(Windows::new(&[1u32], 0).unwrap_err(), DataError::ZeroTime);
        assert_eq!(Windows::new(&[1u32; 64], 64).unwrap_err(), DataError::TooShort { tokens: 64, time: 64 });
        assert!(Windows::new(&[1u32; 65], 64).is_ok());
        assert_eq!(EvalWindows::new(&[0u32; 0], 4).unwrap_err(), DataError::Empty);
        assert_eq!(EvalWindows::new(&[1u32], 0).unwrap_err(), DataError::ZeroTime);
        assert_eq!(EvalWindows::new(&[1u32; 4], 4).unwrap_err(), DataError::TooShort { tokens: 4, time: 4 });
        let endless = DataError::TooShort { tokens: 4, time: usize::MAX };
        assert_eq!(EvalWindows::new(&[1u32; 4], usize::MAX).unwrap_err(), endless);
    }

    #[test]
    fn a_batch_that_does_not_fit_its_slices_is_refused() {
        let windows = Windows::new(&[0u32; 9], 4).unwrap();
        let (mut right, mut wrong) = ([7; 8], [7; 9]);
        let error = Err(DataError::BatchLength { batch: 2, time: 4, found: 9 });
        assert_eq!(windows.fill(0, 0, 2, &mut wrong, &mut right), error);
        assert_eq!(windows.fill(0, 0, 2, &mut right, &mut wrong), error);
        assert_eq!(right, [7; 8]);
        let overflow = Err(DataError::BatchLength { batch: usize::MAX, time: 4, found: 8 });
        assert_eq!(windows.fill(0, 0, usize::MAX, &mut right, &mut wrong), overflow);
        assert_eq!(windows.fill(0, 0, 0, &mut [], &mut []), Ok(()));
    }

    #[test]
    fn errors_say_what_to_do() {
        assert_eq!(DataError::Empty.to_string(), "the corpus is empty: give it some text");
        assert_eq!(
            DataError::TooShort { tokens: 40, time: 64 }.to_string(),
            "there are 40 tokens, but a window of 64 inputs needs 65, the last target included: use more text or \
             windows of at most 39"
        );
        assert_eq!(
            DataError::TooShort { tokens: 1, time: 1 }.to_string(),
            "there are 1 tokens, but a window of 1 inputs needs 2, the last target included: use more text"
        );
        assert_eq!(
            DataError::ZeroTime.to_string(),
            "a window needs at least 1 input: set its length to 1 or more"
        );
        assert_eq!(
            DataError::Fraction { fraction: 1.5 }.to_string(),
            "the training fraction 1.5 is not between 0 and 1: 0.9 is common"
        );
        assert_eq!(
            DataError::BatchLength { batch: 2, time: 4, found: 9 }.to_string(),
            "2 windows of 4 tokens do not fill 9 places: make inputs and targets batch x time long"
        );
        assert_eq!(
            DataError::PastTheLast { first: 3, batch: 2, windows: 4 }.to_string(),
            "2 windows from place 3 on reach past the last of 4: ask for fewer, or begin earlier"
        );
    }
}
