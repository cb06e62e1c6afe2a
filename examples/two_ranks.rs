//! Two ranks train as one, on the built-in plays: `cargo run --release --example two_ranks`.
//!
//! Each rank has a device, a model and a trainer of its own, and half of the batch. Here a rank is a thread and reaches the
//! other through a channel. Between machines it is a process, and [`Link`] a network or a library of collectives: nothing
//! else changes.

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use minigpt_core::model::Extras;
use minigpt_core::train::Sums;
use minigpt_core::{CharTokenizer, GptConfig, Model, Rank, Tokenizer, TrainConfig, Trainer, Windows};
use minigpt_cpu::Cpu;
use minigpt_examples::play::Play;
use minigpt_examples::{Outcome, finish, say};

/// Tokens in a window.
const TIME: usize = 32;

/// Sequences that each rank takes at once.
const BATCH: usize = 6;

/// The way to the other rank and back.
struct Link {
    to: Sender<Sums<f32>>,
    from: Receiver<Sums<f32>>,
}

impl Link {
    /// What both ranks have, added up in the same order on each: so both have the same bits.
    fn all_reduce(&self, rank: Rank, mine: Sums<f32>) -> Outcome<Sums<f32>> {
        self.to.send(mine.clone()).map_err(|_| "the other rank has stopped")?;
        let theirs = self.from.recv().map_err(|_| "the other rank has stopped")?;
        let (mut total, second) = if rank.index == 0 { (mine, theirs) } else { (theirs, mine) };
        total.add(&second)?;
        Ok(total)
    }
}

/// Trains as one of the ranks, and gives the checkpoint that it ends with.
fn train(rank: Rank, link: &Link, text: &str, steps: u32) -> Outcome<Vec<u8>> {
    // The same on every rank: the text, the model by its seed, and the settings but for the rank.
    let tokenizer = CharTokenizer::from_text(text)?;
    let tokens = tokenizer.encode(text)?;
    let windows = Windows::new(&tokens, TIME)?;
    let base = GptConfig::new(tokenizer.vocab_size(), TIME);
    let shape = GptConfig { layers: 2, heads: 2, d_model: 64, d_ff: 256, dropout: 0.1, ..base };
    let model = Model::new(Cpu::builder().threads(1).build()?, shape, 1)?;
    let settings = TrainConfig { batch: BATCH, time: TIME, rank, ..TrainConfig::constant(3e-3) };
    let mut trainer = Trainer::new(&model, settings)?;

    let mut sums = Sums::default();
    for step in 1..=steps {
        trainer.accumulate(&windows)?;
        trainer.read_sums(&mut sums)?;
        sums = link.all_reduce(rank, sums)?;
        trainer.write_sums(&sums)?;
        trainer.finish_step()?;
        // The metrics are those of both, and any rank can tell them.
        if rank.index == 0 && (step == 1 || step % 20 == 0) {
            say(format_args!("step {step}: loss {:.4}", trainer.metrics()?.loss))?;
        }
    }
    // So is the checkpoint: in a real run, one rank saves it.
    let mut checkpoint = Vec::new();
    trainer.write(&mut checkpoint, &Extras::default())?;
    Ok(checkpoint)
}

/// The checkpoints that two ranks end with.
fn two_ranks(text: &str, steps: u32) -> Outcome<[Vec<u8>; 2]> {
    let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
    let first = Link { to: to_second, from: from_second };
    let second = Link { to: to_first, from: from_first };
    // A rank that ends drops its link, so that the other does not wait for it.
    let rank = |index, link: Link| {
        train(Rank { index, count: 2 }, &link, text, steps).map_err(|error| error.to_string())
    };
    thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| rank(0, first)), scope.spawn(|| rank(1, second)));
        let panicked = |_| "a rank has panicked";
        Ok([first.join().map_err(panicked)??, second.join().map_err(panicked)??])
    })
}

fn run() -> Outcome<()> {
    let text = Play::new()?.generate(Play::SEED, 100_000);
    let [first, second] = two_ranks(&text, 100)?;
    if first != second {
        return Err("the ranks have drifted apart".into());
    }
    say(format_args!(
        "both ranks end with the same parameters and moments, bit for bit ({} bytes)",
        first.len()
    ))
}

fn main() -> ExitCode {
    finish(|| run().map(|()| 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ranks_end_with_the_same_checkpoint() {
        let text = "the quick brown fox jumps over the lazy dog; ".repeat(20);
        let [first, second] = two_ranks(&text, 3).unwrap();
        assert!(first == second && first.len() > 100_000);
    }

    #[test]
    fn a_rank_that_fails_ends_the_other() {
        let error = two_ranks("too short", 3).unwrap_err().to_string();
        assert!(error.starts_with("there are 9 tokens"), "{error}");
        // Whoever waits for one that is no more is told.
        let (link, other) = (channel(), channel());
        drop((link.1, other.0));
        let link = Link { to: link.0, from: other.1 };
        let rank = Rank { index: 0, count: 2 };
        let text = "the quick brown fox jumps over the lazy dog; ";
        assert_eq!(train(rank, &link, text, 3).unwrap_err().to_string(), "the other rank has stopped");
    }
}
