//! Timing in turns. A machine that others share runs now faster and now slower; candidates that take turns meet the
//! same weather, so the ratio within a round says more than either time.

use std::time::Instant;

use minigpt_core::rng::{Rng, Stream};

use crate::machine::Watch;

/// Seconds that `work` takes.
pub fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let begun = Instant::now();
    std::hint::black_box(work());
    begun.elapsed().as_secs_f64()
}

/// Seconds that one of `times` calls of `work` takes.
pub fn seconds_each<T>(times: usize, mut work: impl FnMut() -> T) -> f64 {
    let all = || {
        for _ in 0..times {
            std::hint::black_box(work());
        }
    };
    seconds(all) / times as f64
}

/// How many calls of `work` take some milliseconds, so that the clock's own cost and grain vanish; 1 if nothing is to
/// be measured.
pub fn repeats<T>(measure: bool, mut work: impl FnMut() -> T) -> usize {
    const ENOUGH: f64 = 4e-3;
    if !measure {
        return 1;
    }
    work();
    let mut calls = 1;
    loop {
        let each = seconds_each(calls, &mut work);
        if each * calls as f64 > 0.25 * ENOUGH {
            return ((ENOUGH / each) as usize).max(1);
        }
        calls *= 4;
    }
}

/// Calls each of `candidates` once a round, A B C A B C, for `rounds` rounds, and gives what each returned, by
/// candidate. Each is called once before that, unheeded.
pub fn interleave<const N: usize>(
    rounds: usize,
    mut candidates: [&mut dyn FnMut() -> f64; N],
) -> [Vec<f64>; N] {
    let mut all = std::array::from_fn(|_| Vec::with_capacity(rounds));
    for candidate in &mut candidates {
        candidate();
    }
    for _ in 0..rounds {
        for (candidate, values) in candidates.iter_mut().zip(&mut all) {
            values.push(candidate());
        }
    }
    all
}

/// Two candidates in turns, ours and theirs.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// What ours returned, round by round.
    pub ours: Vec<f64>,
    /// What theirs returned.
    pub theirs: Vec<f64>,
    /// In how many of these rounds others kept the machine busy.
    pub disturbed: usize,
}

impl Pairs {
    /// Takes rounds until others left the machine alone in `count` of them, or there were twice as many; then those
    /// that were disturbed fill the rest. `helpers` are processes that work for this one.
    ///
    /// # Errors
    /// Those of a candidate.
    pub fn take<E>(
        count: usize,
        helpers: &[u32],
        mut ours: impl FnMut() -> Result<f64, E>,
        mut theirs: impl FnMut() -> Result<f64, E>,
    ) -> Result<Pairs, E> {
        /// Of a processor, taken by others: what a quiet system does in the background.
        const QUIET: f64 = 0.05;
        let (mut quiet, mut loud) = (Vec::new(), Vec::new());
        while quiet.len() < count && quiet.len() + loud.len() < 2 * count {
            let watch = Watch::start(helpers);
            let pair = (ours()?, theirs()?);
            if watch.foreign() <= QUIET { &mut quiet } else { &mut loud }.push(pair);
        }
        let disturbed = count - quiet.len();
        quiet.extend(loud.into_iter().take(disturbed));
        let (ours, theirs) = quiet.into_iter().unzip();
        Ok(Pairs { ours, theirs, disturbed })
    }

    /// How many times as fast ours was.
    pub fn ratio(&self) -> Ratio {
        Ratio::of(&self.theirs, &self.ours)
    }
}

/// The middle value; of two middle ones their mean. NaN of nothing.
///
/// ```
/// assert_eq!(minigpt_benches::rounds::median(&[3.0, 1.0, 10.0, 2.0]), 2.5);
/// ```
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which a share `q` of the others lies, between neighbours by proportion. NaN of nothing.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = q * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// How many times as fast one candidate was as another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The median over the rounds.
    pub median: f64,
    /// The lower end of the median's 95 % bootstrap interval: rounds drawn again with replacement, their medians'
    /// 2.5 % quantile (Efron and Tibshirani 1993, the percentile interval).
    pub lower: f64,
    /// How many rounds.
    pub rounds: usize,
}

impl Ratio {
    /// Of `theirs` over `ours`, times of the same rounds: above 1 we are faster.
    ///
    /// ```
    /// use minigpt_benches::rounds::Ratio;
    /// let ratio = Ratio::of(&[2.0, 6.0, 3.0], &[1.0, 2.0, 1.5]);
    /// assert_eq!((ratio.median, ratio.lower), (2.0, 2.0));
    /// ```
    pub fn of(theirs: &[f64], ours: &[f64]) -> Ratio {
        const DRAWS: usize = 2000;
        let ratios: Vec<f64> = theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect();
        let rounds = ratios.len();
        // One seed: the same measurements give the same bound.
        let mut rng = Rng::new(1, Stream::User);
        let mut again = vec![0.0; rounds];
        let medians: Vec<f64> = (0..DRAWS)
            .map(|_| {
                again.fill_with(|| ratios[rng.below(rounds as u64) as usize]);
                median(&again)
            })
            .collect();
        Ratio { median: median(&ratios), lower: quantile(&medians, 0.025), rounds }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:5.2} (>= {:.2})", self.median, self.lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_take_turns_after_one_call_that_does_not_count() {
        let calls = std::cell::RefCell::new(String::new());
        let candidate = |name| {
            calls.borrow_mut().push(name);
            calls.borrow().len() as f64
        };
        let [a, b] = interleave(2, [&mut || candidate('a'), &mut || candidate('b')]);
        assert_eq!(*calls.borrow(), "ababab");
        assert_eq!((a, b), (vec![3.0, 5.0], vec![4.0, 6.0]));
    }

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(quantile(&[4.0, 0.0, 1.0], 0.25), 0.5);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_bound_is_below_the_median_and_among_the_rounds() {
        let theirs: Vec<f64> = (0..20).map(|i| 2.0 + 0.1 * f64::from(i % 7)).collect();
        let ratio = Ratio::of(&theirs, &[1.0; 20]);
        assert!((2.0..ratio.median).contains(&ratio.lower), "{ratio:?}");
        // One round in twenty that went wild moves neither.
        let mut wild = theirs.clone();
        wild[3] = 1e9;
        assert!(Ratio::of(&wild, &[1.0; 20]).median < 2.5);
    }
}
