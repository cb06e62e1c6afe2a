//! How a run ends, and the truth that its loss is held against.

use std::fmt;
use std::path::PathBuf;

use super::TRAINING_SHARE;
use crate::Outcome;
use crate::ngram::Ngram;
use crate::play::Play;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// All steps are done.
    Finished(Summary),
    /// It was asked to stop and can be resumed.
    Interrupted {
        /// Steps finished.
        step: u32,
        /// The flags to go on with.
        flags: String,
    },
}

/// The numbers of a finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Mean loss over the whole validation split, in nats per token.
    pub val_loss: f64,
    /// Steps.
    pub iterations: u32,
    /// How long it took, pauses not counted.
    pub seconds: f64,
    /// Training tokens per second of training, validations not counted, since the last resumption.
    pub tokens_per_s: f64,
    /// The entropy per character of the built-in corpus.
    pub entropy: Option<f64>,
    /// Where the model is.
    pub checkpoint: PathBuf,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "result val_loss={:.4} iterations={} seconds={:.1} tokens_per_s={:.0}",
            self.val_loss, self.iterations, self.seconds, self.tokens_per_s
        )?;
        if let Some(entropy) = self.entropy {
            write!(f, " entropy={entropy:.4}")?;
        }
        write!(f, " checkpoint={}", self.checkpoint.display())
    }
}

/// What is known of a built-in corpus, in nats per character.
#[derive(Debug, Clone, Copy)]
pub(super) struct Truth {
    /// Of the generator.
    pub(super) entropy: f64,
    /// Of this very validation text.
    pub(super) validation: f64,
    /// Of the validation text for a perfect reader who sees the model's windows only.
    pub(super) windowed: f64,
    /// What a smoothed 5-gram model reaches.
    pub(super) five_gram: f64,
}

impl Truth {
    pub(super) fn of(text: &str, context: usize) -> Outcome<Truth> {
        let play = Play::new()?;
        let nats = play.nats(text)?;
        let middle = (TRAINING_SHARE * text.len() as f64) as usize;
        let (training, validation) = text.split_at(middle);
        let mean = |nats: &[f64]| nats.iter().sum::<f64>() / nats.len() as f64;
        Ok(Truth {
            entropy: play.entropy(),
            validation: mean(&nats[middle..]),
            windowed: play.window_reader().nats(validation, context),
            five_gram: Ngram::train(training, 5).nats(validation),
        })
    }
}
