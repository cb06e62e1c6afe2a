//! What a model makes of a text: its loss, and how often its first guess is right, in all and by position.

use std::fmt::Write;

use minigpt_core::{AnyTokenizer, Backend, EvalWindows, Model, Real, Tokenizer};
use serde_json::{Value, json};

use crate::Outcome;

/// Sums over targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// How many there are.
    pub targets: u64,
    /// Their losses, in nats.
    pub nats: f64,
    /// How many were the likeliest token.
    pub right: u64,
}

impl Sums {
    /// Nats per token.
    pub fn loss(&self) -> f64 {
        self.nats / self.targets as f64
    }

    /// The share of targets that were the likeliest token.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.targets as f64
    }

    fn add(&mut self, other: &Sums) {
        self.targets += other.targets;
        self.nats += other.nats;
        self.right += other.right;
    }
}

/// What a model makes of the windows of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// By position in the window: what was predicted from one token, from two, and so on.
    pub positions: Vec<Sums>,
    /// Characters of the targets.
    pub characters: u64,
    /// Bytes of the targets.
    pub bytes: u64,
    /// Windows that were evaluated, of those that there are.
    pub windows: (usize, usize),
}

impl Evaluation {
    /// Evaluates all windows, so many at once. `tell` is told how many are done after each round, and says whether to go
    /// on: if not, it is the evaluation of those.
    ///
    /// # Errors
    /// If a token is not in the vocabulary, or memory does not suffice.
    pub fn of<B: Backend>(
        model: &Model<B>,
        tokenizer: &AnyTokenizer,
        windows: &EvalWindows<'_>,
        at_once: usize,
        tell: &dyn Fn(usize) -> bool,
    ) -> Outcome<Evaluation> {
        let (time, vocab) = (windows.time(), model.config().vocab_size);
        let mut evaluation = Evaluation {
            positions: vec![Sums::default(); time],
            characters: 0,
            bytes: 0,
            windows: (0, windows.len()),
        };
        let lengths = lengths(tokenizer)?;
        let (mut inputs, mut targets) = (vec![0; at_once * time], vec![0; at_once * time]);
        while evaluation.windows.0 < windows.len() {
            let first = evaluation.windows.0;
            let batch = at_once.min(windows.len() - first);
            let (inputs, targets) = (&mut inputs[..batch * time], &mut targets[..batch * time]);
            windows.fill(first, batch, inputs, targets)?;
            let logits = model.logits(inputs, batch, time)?;
            for (place, (row, &target)) in logits.chunks_exact(vocab).zip(targets.iter()).enumerate() {
                evaluation.positions[place % time].add(&of_row(row, target as usize));
                let (characters, bytes) = lengths.get(target as usize).copied().unwrap_or_default();
                evaluation.characters += characters;
                evaluation.bytes += bytes;
            }
            evaluation.windows.0 += batch;
            if !tell(evaluation.windows.0) {
                break;
            }
        }
        Ok(evaluation)
    }

    /// Over all positions.
    pub fn total(&self) -> Sums {
        self.positions.iter().fold(Sums::default(), |mut total, sums| {
            total.add(sums);
            total
        })
    }

    fn bits_per(&self, count: u64) -> f64 {
        self.total().nats / std::f64::consts::LN_2 / count as f64
    }

    /// The positions in groups, each twice as long as the one before: the first, the last, and their sums.
    fn groups(&self) -> Vec<(usize, usize, Sums)> {
        let mut groups = Vec::new();
        let (mut first, mut length) = (0, 1);
        while first < self.positions.len() {
            let end = self.positions.len().min(first + length);
            let mut sums = Sums::default();
            self.positions[first..end].iter().for_each(|position| sums.add(position));
            groups.push((first, end - 1, sums));
            first = end;
            length = if groups.len() == 1 { 1 } else { 2 * length };
        }
        groups
    }

    /// As a table for people.
    pub fn table(&self) -> String {
        let total = self.total();
        let mut table = String::new();
        let (done, all) = self.windows;
        // Writing to a String does not fail.
        if done < all {
            let _ = writeln!(table, "stopped: this is of {done} of {all} windows");
        }
        let _ =
            writeln!(table, "loss        {:.4} nats per token, of {} tokens", total.loss(), total.targets);
        let _ = writeln!(
            table,
            "            {:.4} bits per character, {:.4} bits per byte",
            self.bits_per(self.characters),
            self.bits_per(self.bytes)
        );
        let _ = writeln!(table, "perplexity  {:.3} per token", total.loss().exp());
        let _ = writeln!(table, "accuracy    {:.2} % of next tokens", 100.0 * total.accuracy());
        let _ = writeln!(table, "\n{:<14}{:>10}{:>10}{:>11}", "tokens before", "targets", "loss", "accuracy");
        for (first, last, sums) in self.groups() {
            // The first target is predicted from one token.
            let (first, last) = (first + 1, last + 1);
            let range = if first == last { first.to_string() } else { format!("{first} to {last}") };
            let _ = writeln!(
                table,
                "{range:<14}{:>10}{:>10.4}{:>9.2} %",
                sums.targets,
                sums.loss(),
                100.0 * sums.accuracy()
            );
        }
        table
    }

    /// As JSON for programs, with every position.
    pub fn to_json(&self) -> Value {
        let total = self.total();
        json!({
            "loss": total.loss(),
            "bits_per_character": self.bits_per(self.characters),
            "bits_per_byte": self.bits_per(self.bytes),
            "perplexity": total.loss().exp(),
            "accuracy": total.accuracy(),
            "tokens": total.targets,
            "windows": self.windows.0,
            "of_windows": self.windows.1,
            "loss_by_position": self.positions.iter().map(Sums::loss).collect::<Vec<f64>>(),
            "accuracy_by_position": self.positions.iter().map(Sums::accuracy).collect::<Vec<f64>>(),
        })
    }
}

/// One target: -ln of its softmax, and whether it is the first of the largest.
fn of_row<R: Real>(logits: &[R], target: usize) -> Sums {
    let logit = |i: usize| logits[i].to_f64();
    let best = (1..logits.len()).fold(0, |best, i| if logit(i) > logit(best) { i } else { best });
    let sum: f64 = (0..logits.len()).map(|i| (logit(i) - logit(best)).exp()).sum();
    Sums { targets: 1, nats: logit(best) - logit(target) + sum.ln(), right: u64::from(best == target) }
}

/// Of each token: how many characters begin in it, and its bytes.
fn lengths(tokenizer: &AnyTokenizer) -> Outcome<Vec<(u64, u64)>> {
    let mut bytes = Vec::new();
    let length = |id: usize| -> Outcome<(u64, u64)> {
        bytes.clear();
        tokenizer.decode_into(id as u32, &mut bytes)?;
        // In UTF-8 a character goes on with bytes of the form 10xxxxxx.
        let begins = bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count();
        Ok((begins as u64, bytes.len() as u64))
    };
    (0..tokenizer.vocab_size()).map(length).collect()
}

#[cfg(test)]
mod tests {
    use minigpt_core::{ByteTokenizer, CharTokenizer, GptConfig, Reference, TrainConfig, Trainer};

    use super::*;

    const TEXT: &str = "the café is open; ";

    fn evaluated(tokenizer: &AnyTokenizer, at_once: usize) -> (Evaluation, f64) {
        let tokens = tokenizer.encode(&TEXT.repeat(10)).unwrap();
        let config = GptConfig {
            layers: 1,
            heads: 2,
            d_model: 8,
            d_ff: 16,
            ..GptConfig::new(tokenizer.vocab_size(), 6)
        };
        let model = Model::new(Reference::<f32>::new(), config, 3).unwrap();
        let windows = EvalWindows::new(&tokens, 6).unwrap();
        let evaluation = Evaluation::of(&model, tokenizer, &windows, at_once, &|_| true).unwrap();
        let settings = TrainConfig { batch: 4, time: 6, ..TrainConfig::constant(0.0) };
        (evaluation, Trainer::new(&model, settings).unwrap().evaluate(&windows).unwrap())
    }

    #[test]
    fn the_loss_is_that_of_the_trainer_and_the_mean_of_the_positions() {
        for tokenizer in [CharTokenizer::from_text(TEXT).unwrap().into(), ByteTokenizer.into()] {
            for at_once in [1, 4, 100] {
                let (evaluation, by_trainer) = evaluated(&tokenizer, at_once);
                let loss = evaluation.total().loss();
                assert!((loss - by_trainer).abs() < 1e-5, "{loss} {by_trainer}");
                let mean: f64 = evaluation.positions.iter().map(Sums::loss).sum::<f64>() / 6.0;
                assert!((loss - mean).abs() < 1e-9);
                let targets: u64 = evaluation.groups().iter().map(|(_, _, sums)| sums.targets).sum();
                assert_eq!(targets, evaluation.total().targets);
            }
        }
    }

    #[test]
    fn bits_count_characters_and_bytes_whatever_the_tokens_are() {
        // Of a whole number of repetitions but for the first character and what fills no window.
        let letters = AnyTokenizer::from(CharTokenizer::from_text(TEXT).unwrap());
        let (evaluation, _) = evaluated(&letters, 8);
        assert_eq!(evaluation.characters, evaluation.total().targets);
        let bits = evaluation.total().loss() / std::f64::consts::LN_2;
        assert!((evaluation.bits_per(evaluation.characters) - bits).abs() < 1e-12);
        assert!(evaluation.bytes > evaluation.characters);
        let (evaluation, _) = evaluated(&ByteTokenizer.into(), 8);
        assert_eq!(evaluation.bytes, evaluation.total().targets);
        assert!(evaluation.bytes > evaluation.characters);
    }

    #[test]
    fn a_target_is_right_where_its_logit_is_the_largest() {
        let row = [0.5f64, 2.0, -1.0];
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        for (target, right) in [(0, 0), (1, 1), (2, 0)] {
            let sums = of_row(&row, target);
            assert_eq!((sums.targets, sums.right), (1, right));
            assert!((sums.nats - (sum.ln() - row[target])).abs() < 1e-12);
        }
    }

    #[test]
    fn positions_stand_in_groups_that_double() {
        let evaluation = |time| Evaluation {
            positions: vec![Sums { targets: 1, nats: 1.0, right: 0 }; time],
            characters: 1,
            bytes: 1,
            windows: (1, 2),
        };
        let groups = |time| evaluation(time).groups().iter().map(|(a, b, _)| (*a, *b)).collect::<Vec<_>>();
        assert_eq!(groups(1), [(0, 0)]);
        assert_eq!(groups(9), [(0, 0), (1, 1), (2, 3), (4, 7), (8, 8)]);
        let table = evaluation(9).table();
        assert!(
            table.starts_with("stopped: this is of 1 of 2 windows\n") && table.contains("\n5 to 8 "),
            "{table}"
        );
    }
}
