//! The learning rate that the flags stand for.

use minigpt_core::config::schedule::{Decay, Schedule};

use super::names::DecayName;
use super::options::{Settings, typed};
use crate::Outcome;

/// A learning rate after which one of a tenth is a careful end, and warm-up of a tenth of the steps a careful beginning.
const TENTH: u32 = 10;

/// The warm-up of runs of a thousand steps or more.
const WARMUP: u32 = 100;

/// The largest learning rate of AdamW where none is given, and so of what is trained as fast.
pub(super) const USUAL_RATE: f64 = 1e-3;

/// The schedule of a new run of which none is given but its length.
pub(super) fn of_length(iterations: u32) -> Schedule {
    let warmup = WARMUP.min(iterations / TENTH);
    Schedule { peak: USUAL_RATE, floor: 1e-4, warmup, steps: iterations, decay: Decay::Cosine }
}

impl Settings {
    /// The schedule of these settings for so many steps, and for those that are not given the one of `kept`; `usual` is the
    /// learning rate of an optimizer that is new and needs another one.
    ///
    /// # Errors
    /// If the learning rate could never get where these settings want it.
    pub(super) fn schedule_over(
        &self,
        kept: Schedule,
        iterations: u32,
        usual: Option<f64>,
    ) -> Outcome<Schedule> {
        let lr = self.lr.or(usual);
        let peak = lr.unwrap_or(kept.peak);
        // A rate that is given takes its last one along.
        let kept_floor = if lr.is_some() { peak / f64::from(TENTH) } else { kept.floor };
        let floor = self.min_lr.unwrap_or(kept_floor);
        let warmup = self.warmup.unwrap_or(kept.warmup);
        // What a run has always had is not refused when it goes on.
        let chosen = self.warmup.is_some() || self.iterations.is_some();
        if chosen && warmup > 0 && warmup >= iterations {
            return Err(format!(
                "--warmup {warmup} takes all of the {iterations} steps, so that the learning rate never gets to --lr \
                 {peak:?}: warm up for fewer, such as --warmup {}, or train for more with --iterations",
                iterations / TENTH
            )
            .into());
        }
        // Of a rate below 0 the library says what is wrong with it.
        if (self.lr.is_some() || self.min_lr.is_some()) && floor > peak.max(0.0) {
            return Err(format!(
                "--min-lr {floor:?} is above --lr {peak:?}, from which the learning rate falls to it: make it {peak:?} \
                 or less, such as --min-lr {}",
                typed(peak / f64::from(TENTH))
            )
            .into());
        }
        let decay = self.decay_over(kept.decay, warmup, iterations)?;
        if decay == Decay::Constant && self.min_lr.is_some() {
            return Err("--min-lr is where the learning rate falls to, and with a constant schedule it does not fall: \
                 leave one of them out, or take --schedule cosine"
                .into());
        }
        Ok(Schedule { peak, floor, warmup, steps: iterations, decay })
    }

    fn decay_over(&self, kept: Decay, warmup: u32, iterations: u32) -> Outcome<Decay> {
        let name = self.schedule.unwrap_or(DecayName::of(kept));
        let left = iterations.saturating_sub(warmup);
        match self.decay_steps {
            Some(steps) if name != DecayName::Wsd => Err(format!(
                "--decay-steps says for how many steps the learning rate falls after a stable part, which only the schedule \
                 wsd has: add --schedule wsd, or leave --decay-steps {steps} out"
            )
            .into()),
            Some(steps) if steps > left => Err(format!(
                "--decay-steps {steps} is more than the {left} steps that --iterations {iterations} has after --warmup \
                 {warmup}: take --decay-steps {left} or less"
            )
            .into()),
            given => {
                let kept = match kept {
                    Decay::Stable { decay_steps } => Some(decay_steps),
                    _ => None,
                };
                Ok(name.decay(given.or(kept).unwrap_or(DecayName::usual_steps(iterations).min(left))))
            }
        }
    }
}
