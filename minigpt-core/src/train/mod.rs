//! Training: the optimizer's settings, the learning rate's schedule, and the trainer.

pub mod schedule;

use crate::op::counter;
use schedule::Schedule;

/// How to train. Plain data, kept in checkpoints, so that a run can be resumed from its checkpoint alone.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Sequences per micro-batch (B).
    pub batch: usize,
    /// Tokens per sequence (T), at most the model's context.
    pub time: usize,
    /// Micro-batches per step, whose gradients are summed.
    pub accumulation: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// The largest norm of the gradient; a larger one is scaled down to it. Infinite: never.
    pub clip: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Seed of the windows and the dropout masks.
    pub seed: u64,
}

/// What a run must remember besides parameters and moments: as much as a checkpoint needs to continue bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainState {
    /// The device counters, see [`counter`].
    pub counters: [u32; counter::LEN],
    /// How many training windows have been drawn.
    pub windows_drawn: u64,
}
