//! What a run measured, as JSON lines: one object a line, readable while the run goes on.

use std::path::Path;

use minigpt_core::checkpoint::{FileError, Journal};
use serde_json::{Value, json};

/// One line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Steps finished.
    pub step: u32,
    /// What was measured.
    pub measured: Measured,
    /// Seconds since the run began, pauses between resumed parts not counted.
    pub seconds: f64,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Measured {
    /// Of a training step.
    Training {
        /// Its loss in nats per token.
        loss: f64,
        /// The norm of its gradient.
        grad_norm: f64,
        /// Its learning rate.
        learning_rate: f64,
        /// Tokens trained on so far.
        tokens: u64,
    },
    /// The mean loss over validation windows, in nats per token.
    Validation(f64),
    /// The same of the moving average of the weights.
    Average(f64),
}

impl Record {
    fn to_json(self) -> Value {
        let Record { step, seconds, .. } = self;
        let seconds = (seconds * 1000.0).round() / 1000.0;
        match self.measured {
            Measured::Training { loss, grad_norm, learning_rate, tokens } => json!({
                "step": step, "loss": loss, "grad_norm": grad_norm, "lr": learning_rate, "tokens": tokens,
                "seconds": seconds,
            }),
            Measured::Validation(loss) => json!({ "step": step, "val_loss": loss, "seconds": seconds }),
            Measured::Average(loss) => json!({ "step": step, "ema_val_loss": loss, "seconds": seconds }),
        }
    }

    fn from_json(line: &str) -> Option<Record> {
        let value: Value = serde_json::from_str(line).ok()?;
        // JSON has no NaN: it was written as null.
        let number = |name: &str| value.get(name).map(|v| v.as_f64().unwrap_or(f64::NAN));
        let step = u32::try_from(value.get("step")?.as_u64()?).ok()?;
        let measured = match (number("val_loss"), number("ema_val_loss")) {
            (Some(loss), _) => Measured::Validation(loss),
            (None, Some(loss)) => Measured::Average(loss),
            (None, None) => Measured::Training {
                loss: number("loss")?,
                grad_norm: number("grad_norm")?,
                learning_rate: number("lr")?,
                tokens: value.get("tokens")?.as_u64()?,
            },
        };
        Some(Record { step, measured, seconds: number("seconds")? })
    }
}

/// The file that records go to, and the records in it.
#[derive(Debug)]
pub struct Metrics {
    journal: Journal,
    records: Vec<Record>,
}

impl Metrics {
    /// A new file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Ok(Metrics { journal: Journal::open(path, |_| false)?, records: Vec::new() })
    }

    /// The file of a run that goes on behind `step`: what it measured later is cut off, for it will be measured again.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn resume(path: &Path, step: u32) -> Result<Self, FileError> {
        let mut records = Vec::new();
        let journal = Journal::open(path, |line| {
            let record = Record::from_json(line).filter(|record| record.step <= step);
            records.extend(record);
            record.is_some()
        })?;
        Ok(Metrics { journal, records })
    }

    /// Appends a line, at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push(&mut self, record: Record) -> Result<(), FileError> {
        self.journal.append(&record.to_json().to_string())?;
        self.records.push(record);
        Ok(())
    }

    /// Makes all lines last: a checkpoint that is saved after this finds its metrics, even if the power goes off.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.journal.sync()
    }

    /// All records of the run, those before a resumption too.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// How long the run had taken at the last record.
    pub fn seconds(&self) -> f64 {
        self.records.last().map_or(0.0, |record| record.seconds)
    }

    /// (step, loss) of training steps.
    pub fn training(&self) -> Vec<(f64, f64)> {
        self.points(|measured| match measured {
            Measured::Training { loss, .. } => Some(loss),
            Measured::Validation(_) | Measured::Average(_) => None,
        })
    }

    /// (step, loss) of validations.
    pub fn validation(&self) -> Vec<(f64, f64)> {
        self.points(|measured| match measured {
            Measured::Training { .. } | Measured::Average(_) => None,
            Measured::Validation(loss) => Some(loss),
        })
    }

    fn points(&self, loss: impl Fn(Measured) -> Option<f64>) -> Vec<(f64, f64)> {
        self.records.iter().filter_map(|r| Some((f64::from(r.step), loss(r.measured)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::Scratch;

    fn training(step: u32) -> Record {
        let measured = Measured::Training {
            loss: 2.5 / f64::from(step),
            grad_norm: 0.1,
            learning_rate: 1e-3,
            tokens: u64::from(step) * 768,
        };
        Record { step, measured, seconds: f64::from(step) }
    }

    #[test]
    fn a_resumed_file_is_cut_behind_the_step_and_goes_on() {
        let scratch = Scratch::new();
        let path = scratch.path("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        for step in [10, 20, 30] {
            metrics.push(training(step)).unwrap();
            metrics.push(Record { measured: Measured::Validation(2.0), ..training(step) }).unwrap();
            metrics.push(Record { measured: Measured::Average(1.5), ..training(step) }).unwrap();
        }
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":4").unwrap();
        let mut resumed = Metrics::resume(&path, 20).unwrap();
        assert_eq!(resumed.records(), &metrics.records()[..6]);
        assert_eq!((resumed.seconds(), resumed.training().len(), resumed.validation().len()), (20.0, 2, 2));
        resumed.push(training(25)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 7);
        assert_eq!(
            text.lines().map(|line| Record::from_json(line).unwrap()).collect::<Vec<_>>(),
            resumed.records()
        );
    }

    #[test]
    fn a_missing_file_is_begun() {
        let scratch = Scratch::new();
        assert!(Metrics::resume(&scratch.path("new.jsonl"), 7).unwrap().records().is_empty());
    }

    #[test]
    fn a_loss_that_is_not_a_number_is_still_a_line_of_json() {
        let line =
            Record { step: 1, measured: Measured::Validation(f64::NAN), seconds: 0.5 }.to_json().to_string();
        let Some(Measured::Validation(loss)) = Record::from_json(&line).map(|r| r.measured) else {
            panic!("{line}")
        };
        assert!(loss.is_nan());
    }
}
