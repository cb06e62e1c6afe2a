//! How a run ends, and the truth that its loss is held against.

use std::fmt;
use std::path::PathBuf;

use super::folder::Best;

use crate::ngram::Ngram;
use crate::play::Play;
use crate::{Outcome, say};

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
    /// The same of the moving average of the weights, if there is one.
    pub ema_val_loss: Option<f64>,
    /// The step of the best validation.
    pub best: Option<Best>,
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
        if let Some(loss) = self.ema_val_loss {
            write!(f, " ema_val_loss={loss:.4}")?;
        }
        if let Some(entropy) = self.entropy {
            write!(f, " entropy={entropy:.4}")?;
        }
        if let Some(best) = self.best {
            write!(f, " best_val_loss={:.4} best_step={}", best.val_loss, best.step)?;
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
    /// What stands at the beginning of a run's log.
    pub(super) fn introduce(&self, context: usize) -> Outcome<()> {
        say(format_args!(
            "true entropy {:.4} nats per character; of the validation text {:.4}; in windows of {context} no model can \
             do better than {:.4}; a smoothed 5-gram model reaches {:.4}",
            self.entropy, self.validation, self.windowed, self.five_gram
        ))
    }

    /// Of a text whose first `training` characters train.
    pub(super) fn of(text: &str, training: usize, context: usize) -> Outcome<Truth> {
        let play = Play::new()?;
        let nats = play.nats(text)?;
        let mean = |nats: &[f64]| nats.iter().sum::<f64>() / nats.len() as f64;
        // The plays are in ASCII.
        let of_validation = mean(&nats[training..]);
        let (training, validation) = text.split_at(training);
        Ok(Truth {
            entropy: play.entropy(),
            validation: of_validation,
            windowed: play.window_reader().nats(validation, context),
            five_gram: Ngram::train(training, 5).nats(validation),
        })
    }
}
