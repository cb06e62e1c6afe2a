//! The learning rate, step by step.

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Decay {
    /// It stays at the peak.
    Constant,
    /// In a straight line to the floor.
    Linear,
    /// Along half a cosine to the floor (Loshchilov and Hutter 2017, SGDR).
    Cosine,
    /// Warm-up, stable, decay: it stays at the peak until the last `decay_steps` of the steps, in which it falls in a
    /// straight line to the floor. No step before that depends on how many there are, so that a run can be made longer from
    /// there (Hu et al. 2024, MiniCPM, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392, who find it as good as a
    /// cosine of the same length if the decay is about a fifth of the steps).
    Stable {
        /// How many steps the way down takes; at most those that the warm-up leaves.
        decay_steps: u32,
    },
}

/// Linear warm-up from near zero to `peak`, then a decay to `floor`, which it keeps.
///
/// ```
/// use minigpt_core::config::schedule::{Decay, Schedule};
/// let schedule = Schedule { peak: 1e-3, floor: 1e-4, warmup: 100, steps: 2000, decay: Decay::Cosine };
/// assert!(schedule.learning_rate(0) < 1.1e-5);
/// assert!((schedule.learning_rate(100) - 1e-3).abs() < 1e-9);
/// assert!((schedule.learning_rate(2000) - 1e-4).abs() < 1e-9);
///
/// let stable = Schedule { decay: Decay::Stable { decay_steps: 400 }, ..schedule };
/// assert_eq!(stable.learning_rate(1600), 1e-3);
/// assert!((stable.learning_rate(1800) - 5.5e-4).abs() < 1e-9);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The largest learning rate.
    pub peak: f64,
    /// The learning rate at the end.
    pub floor: f64,
    /// Steps of warm-up: step i < warmup has peak (i + 1) / (warmup + 1).
    pub warmup: u32,
    /// The step at which the floor is reached.
    pub steps: u32,
    /// The way down.
    pub decay: Decay,
}

impl Schedule {
    /// Always `rate`.
    pub const fn constant(rate: f64) -> Self {
        Schedule { peak: rate, floor: rate, warmup: 0, steps: 0, decay: Decay::Constant }
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: u32) -> f64 {
        let Schedule { peak, floor, .. } = *self;
        if step < self.warmup {
            return peak * (f64::from(step) + 1.0) / (f64::from(self.warmup) + 1.0);
        }
        if self.decay == Decay::Constant {
            return peak;
        }
        if step >= self.steps {
            return floor;
        }
        // Where the way down begins.
        let begin = match self.decay {
            Decay::Stable { decay_steps } => self.steps.saturating_sub(decay_steps).max(self.warmup),
            _ => self.warmup,
        };
        // Here begin <= steps and step < steps, so that where progress is not 0 the way has a length.
        let progress = f64::from(step.saturating_sub(begin)) / f64::from(self.steps - begin).max(1.0);
        let remaining = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear | Decay::Stable { .. } => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + libm::cos(core::f64::consts::PI * progress)),
        };
        floor + remaining * (peak - floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 1.0, floor: 0.2, warmup: 3, steps: 11, decay }
    }

    #[test]
    fn warm_up_is_a_straight_line_to_the_peak() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine, Decay::Stable { decay_steps: 4 }] {
            let rates = [0, 1, 2, 3].map(|step| schedule(decay).learning_rate(step));
            assert_eq!(rates, [0.25, 0.5, 0.75, 1.0], "{decay:?}");
        }
    }

    #[test]
    fn each_decay_has_its_line() {
        let rate = |decay, step| schedule(decay).learning_rate(step);
        let close = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} {y}");
        // A quarter, a half and all of the way from step 3 to step 11.
        close(rate(Decay::Linear, 5), 0.8);
        close(rate(Decay::Linear, 7), 0.6);
        close(rate(Decay::Linear, 11), 0.2);
        close(rate(Decay::Cosine, 5), 0.2 + 0.8 * 0.5 * (1.0 + core::f64::consts::FRAC_1_SQRT_2));
        close(rate(Decay::Cosine, 7), 0.6);
        close(rate(Decay::Cosine, 10), 0.2 + 0.4 * (1.0 - libm::cos(core::f64::consts::PI / 8.0)));
        close(rate(Decay::Cosine, 11), 0.2);
        close(rate(Decay::Constant, 7), 1.0);
        // At the peak up to step 7, then a quarter, a half and all of the way to step 11.
        let stable = Decay::Stable { decay_steps: 4 };
        assert_eq!([4, 6, 7].map(|step| rate(stable, step)), [1.0; 3]);
        close(rate(stable, 8), 0.8);
        close(rate(stable, 9), 0.6);
        close(rate(stable, 11), 0.2);
    }

    #[test]
    fn a_stable_rate_decays_at_most_from_the_warm_up_on_and_at_least_at_the_end() {
        for step in 0..13 {
            for decay_steps in [8, 9, 11, u32::MAX] {
                let stable = schedule(Decay::Stable { decay_steps });
                assert_eq!(stable.learning_rate(step), schedule(Decay::Linear).learning_rate(step));
            }
        }
        let never = schedule(Decay::Stable { decay_steps: 0 });
        assert_eq!([3, 7, 10, 11, 12].map(|step| never.learning_rate(step)), [1.0, 1.0, 1.0, 0.2, 0.2]);
        // Another length changes nothing before the decay.
        let longer = Schedule { steps: 30, ..schedule(Decay::Stable { decay_steps: 4 }) };
        let shorter = schedule(Decay::Stable { decay_steps: 4 });
        assert!((0..=7).all(|step| longer.learning_rate(step) == shorter.learning_rate(step)));
    }

    #[test]
    fn the_floor_is_kept_and_a_constant_never_falls() {
        for step in [11, 12, u32::MAX] {
            assert_eq!(schedule(Decay::Linear).learning_rate(step), 0.2);
            assert_eq!(schedule(Decay::Cosine).learning_rate(step), 0.2);
            assert_eq!(schedule(Decay::Stable { decay_steps: 2 }).learning_rate(step), 0.2);
            assert_eq!(schedule(Decay::Constant).learning_rate(step), 1.0);
        }
        assert_eq!(Schedule::constant(0.3).learning_rate(0), 0.3);
        assert_eq!(Schedule::constant(0.3).learning_rate(u32::MAX), 0.3);
    }

    #[test]
    fn a_warm_up_past_the_end_is_a_warm_up_and_then_the_floor() {
        for decay in [Decay::Cosine, Decay::Stable { decay_steps: 2 }] {
            let late = Schedule { steps: 2, ..schedule(decay) };
            assert_eq!(late.learning_rate(2), 0.75);
            assert_eq!(late.learning_rate(3), 0.2);
        }
    }
}
