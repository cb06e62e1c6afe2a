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
}

/// Linear warm-up from near zero to `peak`, then a decay to `floor`, which it keeps.
///
/// ```
/// use minigpt_core::config::schedule::{Decay, Schedule};
/// let schedule = Schedule { peak: 1e-3, floor: 1e-4, warmup: 100, steps: 2000, decay: Decay::Cosine };
/// assert!(schedule.learning_rate(0) < 1.1e-5);
/// assert!((schedule.learning_rate(100) - 1e-3).abs() < 1e-9);
/// assert!((schedule.learning_rate(2000) - 1e-4).abs() < 1e-9);
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
        // Here warmup <= step < steps, so the way down has a length.
        let progress = f64::from(step - self.warmup) / f64::from(self.steps - self.warmup);
        let remaining = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
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
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
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
    }

    #[test]
    fn the_floor_is_kept_and_a_constant_never_falls() {
        for step in [11, 12, u32::MAX] {
            assert_eq!(schedule(Decay::Linear).learning_rate(step), 0.2);
            assert_eq!(schedule(Decay::Cosine).learning_rate(step), 0.2);
            assert_eq!(schedule(Decay::Constant).learning_rate(step), 1.0);
        }
        assert_eq!(Schedule::constant(0.3).learning_rate(0), 0.3);
        assert_eq!(Schedule::constant(0.3).learning_rate(u32::MAX), 0.3);
    }

    #[test]
    fn a_warm_up_past_the_end_is_a_warm_up_and_then_the_floor() {
        let late = Schedule { steps: 2, ..schedule(Decay::Cosine) };
        assert_eq!(late.learning_rate(2), 0.75);
        assert_eq!(late.learning_rate(3), 0.2);
    }
}
