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
/// use minigpt_core::train::schedule::{Decay, Schedule};
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
