//! How to train.

use super::optimizer::Groups;
use super::precision::Precision;
use super::rank::Rank;
use super::schedule::Schedule;

/// What the backward pass computes again instead of finding it where the forward pass left it.
///
/// It trades time for bytes and changes no bit of a loss, a gradient or a weight: an op that runs again has the same
/// operands, and dropout masks are functions of counters. So it belongs to the machine and not to the run, like the
/// number of threads: a checkpoint does not hold it, and a run may go on with another.
///
/// What it costs and saves in a model of 6 layers, 6 heads, width 384, context 256 and batch 8, in f32 on two cores of
/// an AMD EPYC (Zen 4, AVX-512), by `profile --shape M --mode step --threads 2 --recompute ...` of the examples.
/// Parameters, gradients and moments take 172 MB of each; time is the median of five runs' ratios to `Nothing`, and
/// varies by 5 % from run to run:
///
/// | | activations | time of a step |
/// |---|---|---|
/// | `Nothing` | 163 MB | 1 |
/// | `Cheap` | 111 MB | 1.04 |
/// | `Blocks` | 40 MB | 1.23 |
///
/// On small models, where an op's time is the hand-over to threads, `Cheap` costs more: an estimated 1.05 at
/// `--shape S`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Recompute {
    /// Nothing: everything is kept.
    #[default]
    Nothing,
    /// What one pass over memory computes: the results of activations, and of norms that come first. Only what came
    /// out of a matrix product or of attention is kept. Norms that come last make the residual stream itself, which is
    /// kept: then it is the activations alone.
    Cheap,
    /// Each block keeps nothing but its input. The backward pass runs the block forward again (Chen et al. 2016,
    /// "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174), but for the last block, which has just
    /// run, and the last linear layer of each, whose result nothing needs.
    Blocks,
}

/// How to train. Plain data, kept in checkpoints, so that a run can be resumed from its checkpoint alone.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Sequences per micro-batch (B), of one [rank](TrainConfig::rank) if there are several. More than keep the backend
    /// busy go through the model in [slices](TrainConfig::sequences_at_once), so that only the memory of their tokens grows
    /// with them.
    pub batch: usize,
    /// Tokens per sequence (T), at most what the model's prefix leaves of its context.
    pub time: usize,
    /// Micro-batches per step, whose gradients are summed.
    pub accumulation: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of the gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
    /// Which optimizer trains what.
    pub groups: Groups,
    /// If there is to be a moving average of the weights, what it keeps of itself from update to update, such as 0.999: at least
    /// 0 and below 1. It is evaluated and saved beside them, and changes nothing of the training.
    pub average: Option<f64>,
    /// Seed of the windows and the dropout masks.
    pub seed: u64,
    /// What is rounded in steps and in the trainer's evaluations, which is [`Precision`]'s table. The weights that are trained and
    /// saved are not, and the trainer's model runs without it: see [`Model::in_precision`](crate::Model::in_precision). A
    /// checkpoint holds it, and a run that is resumed goes on with it.
    pub precision: Precision,
    /// What the backward pass computes again. Checkpoints do not hold it: it changes no result.
    pub recompute: Recompute,
    /// Which of the trainers that train as one this is. Checkpoints do not hold it either: they are the same on each.
    pub rank: Rank,
}

impl TrainConfig {
    /// One micro-batch of one sequence per step, a constant learning rate, nanoGPT's AdamW (betas 0.9 and 0.99, decay
    /// 0.1, clipping at 1), and sequences of 64 tokens: a beginning for `..` syntax.
    pub const fn constant(learning_rate: f64) -> Self {
        TrainConfig {
            batch: 1,
            time: 64,
            accumulation: 1,
            schedule: Schedule::constant(learning_rate),
            clip: 1.0,
            groups: Groups::adamw(0.9, 0.99, 0.1),
            average: None,
            seed: 1337,
            precision: Precision::F32,
            recompute: Recompute::Nothing,
            rank: Rank::ALONE,
        }
    }

    /// The first setting that has no meaning, and what it must be.
    #[cfg(feature = "train")]
    pub(crate) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let Schedule { peak, floor, .. } = self.schedule;
        let rate = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let rules = [
            (self.batch > 0, "batch", "at least 1"),
            (self.time > 0, "time", "at least 1"),
            (self.accumulation > 0, "accumulation", "at least 1"),
            (rate(peak), "schedule.peak", "a finite number, 0 or above"),
            (rate(floor), "schedule.floor", "a finite number, 0 or above"),
            (self.clip > 0.0, "clip", "above 0 (infinite: never clip)"),
            (self.average.is_none_or(unit), "average", "at least 0 and below 1, such as 0.999"),
            (self.rank.is_valid(), "rank", "an index below a count of at least 1"),
        ];
        match rules.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, field, must)) => Err((field, must)),
            None => self.groups.validate(),
        }
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    #[test]
    fn each_setting_without_meaning_is_named() {
        let good = || TrainConfig { batch: 2, ..TrainConfig::constant(1e-3) };
        assert_eq!(good().validate(), Ok(()));
        let refused = |config: TrainConfig| config.validate().err().map(|(field, _)| field);
        let rate = |peak, floor| Schedule { peak, floor, ..Schedule::constant(0.0) };
        for (config, field) in [
            (TrainConfig { batch: 0, ..good() }, "batch"),
            (TrainConfig { time: 0, ..good() }, "time"),
            (TrainConfig { accumulation: 0, ..good() }, "accumulation"),
            (TrainConfig { schedule: rate(-1.0, 0.0), ..good() }, "schedule.peak"),
            (TrainConfig { schedule: rate(f64::INFINITY, 0.0), ..good() }, "schedule.peak"),
            (TrainConfig { schedule: rate(1.0, f64::NAN), ..good() }, "schedule.floor"),
            (TrainConfig { clip: 0.0, ..good() }, "clip"),
            (TrainConfig { clip: f64::NAN, ..good() }, "clip"),
            (TrainConfig { groups: Groups::adamw(1.0, 0.9, 0.0), ..good() }, "groups.embeddings.beta1"),
            (TrainConfig { average: Some(1.0), ..good() }, "average"),
            (TrainConfig { average: Some(f64::NAN), ..good() }, "average"),
            (TrainConfig { rank: Rank { index: 0, count: 0 }, ..good() }, "rank"),
            (TrainConfig { rank: Rank { index: 2, count: 2 }, ..good() }, "rank"),
        ] {
            assert_eq!(refused(config), Some(field));
        }
        for config in [
            TrainConfig { batch: 1, time: 1, accumulation: 1, ..good() },
            TrainConfig { schedule: rate(0.0, 0.0), ..good() },
            TrainConfig { clip: f64::INFINITY, ..good() },
            TrainConfig { groups: Groups::adamw(0.0, 0.0, 0.0), average: Some(0.0), ..good() },
            TrainConfig { rank: Rank { index: 1, count: 2 }, ..good() },
        ] {
            assert_eq!(config.validate(), Ok(()));
        }
    }

    #[test]
    fn a_constant_rate_comes_with_the_usual_settings() {
        let config = TrainConfig::constant(1e-3);
        assert_eq!((config.batch, config.time, config.accumulation), (1, 64, 1));
        assert_eq!(config.schedule, Schedule::constant(1e-3));
        assert_eq!((config.groups, config.average), (Groups::adamw(0.9, 0.99, 0.1), None));
        assert_eq!((config.clip, config.rank), (1.0, Rank::ALONE));
    }
}
