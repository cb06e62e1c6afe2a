//! The built-in corpus: plays in verse, written by a seeded generator whose entropy per character is known exactly.
//!
//! So a model's validation loss can be held against the true bound, not only against another model:
//!
//! ```
//! use minigpt_examples::play::Play;
//! let play = Play::new()?;
//! let text = play.generate(1, 2000);
//! assert!(text.starts_with("THE "));
//! let nats = play.nats(&text)?;
//! let mean = nats.iter().sum::<f64>() / nats.len() as f64;
//! assert!((mean - play.entropy()).abs() < 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod automaton;
mod stage;
mod words;

pub use automaton::{Automaton, Impossible, Place};

/// The generator, with all that can be known of it.
#[derive(Debug, Clone)]
pub struct Play {
    automaton: Automaton,
}

impl Play {
    /// The number of characters of the corpus when no other is wanted, near tiny Shakespeare's.
    pub const LENGTH: usize = 1_115_394;
    /// The seed of that corpus.
    pub const SEED: u64 = 1616;

    /// Builds the grammar.
    ///
    /// # Errors
    /// If its words make it ambiguous, which a test excludes.
    pub fn new() -> Result<Self, String> {
        Ok(Play { automaton: stage::automaton()? })
    }
}

impl std::ops::Deref for Play {
    type Target = Automaton;
    fn deref(&self) -> &Automaton {
        &self.automaton
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::ngram::Ngram;

    /// The longest memory that the text asks for.
    const MEMORY: usize = 64;

    fn distribution(play: &Play, place: Place) -> BTreeMap<u8, f64> {
        play.next(place).into_iter().map(|(byte, p, _)| (byte, p)).collect()
    }

    #[test]
    fn the_corpus_is_plain_and_as_large_as_the_real_one() {
        let text = Play::new().unwrap().generate(Play::SEED, Play::LENGTH);
        assert!((Play::LENGTH..Play::LENGTH + 200).contains(&text.len()));
        assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
        let alphabet: BTreeSet<u8> = text.bytes().collect();
        assert!((58..=66).contains(&alphabet.len()), "{} different characters", alphabet.len());
    }

    #[test]
    fn the_seed_decides_the_text() {
        let play = Play::new().unwrap();
        assert_eq!(play.generate(7, 5000), play.generate(7, 5000));
        assert_ne!(play.generate(7, 5000), play.generate(8, 5000));
        assert!(play.generate(7, 9000).starts_with(&play.generate(7, 5000)));
    }

    #[test]
    fn probabilities_sum_to_one_everywhere() {
        let play = Play::new().unwrap();
        let mut place = play.start();
        for byte in play.generate(2, 100_000).bytes() {
            let next = play.next(place);
            let sum: f64 = next.iter().map(|(_, p, _)| p).sum();
            assert!((sum - 1.0).abs() < 1e-12);
            let (p, behind) = play.step(place, byte).unwrap();
            assert!(next.contains(&(byte, p, behind)));
            place = behind;
        }
    }

    #[test]
    fn the_entropy_is_that_of_the_text() {
        let play = Play::new().unwrap();
        let entropy = play.entropy();
        assert!((0.8..1.6).contains(&entropy), "{entropy} nats per character");
        let nats = play.nats(&play.generate(Play::SEED, Play::LENGTH)).unwrap();
        // Means of long blocks are nearly independent, so their spread gives the standard error.
        let blocks: Vec<f64> =
            nats.chunks_exact(2000).map(|block| block.iter().sum::<f64>() / 2000.0).collect();
        let n = blocks.len() as f64;
        let mean = blocks.iter().sum::<f64>() / n;
        let variance = blocks.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let standard_error = (variance / n).sqrt();
        assert!(standard_error < 0.004, "{standard_error}");
        assert!((mean - entropy).abs() < 4.0 * standard_error, "{mean} {entropy} {standard_error}");
    }

    #[test]
    fn the_last_64_characters_decide_the_next() {
        let play = Play::new().unwrap();
        let text = play.generate(3, 400_000);
        let reader = play.window_reader();
        // Many places all over, and those where the memory has to reach the furthest: the rhymes of long lines.
        let mut positions: Vec<usize> = (MEMORY..text.len()).step_by(1499).collect();
        let mut rhymes = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            if let Some(space) = line.rfind(' ') {
                // The second line of a couplet, whose rhyme is decided by the first.
                let second =
                    ["And ", "Yet ", "But ", "Or ", "Nor "].iter().any(|word| line.starts_with(word));
                rhymes.push((second, space, start + space + 1));
            }
            start += line.len();
        }
        rhymes.sort();
        positions.extend(rhymes.iter().rev().take(300).map(|&(_, _, position)| position));
        let mut place = play.start();
        let mut places = vec![place];
        for byte in text.bytes() {
            place = play.step(place, byte).unwrap().1;
            places.push(place);
        }
        for position in positions.into_iter().filter(|&position| position >= MEMORY) {
            let truth = distribution(&play, places[position]);
            let window = &text[position - MEMORY..position];
            for (possible, _) in reader.places(window.as_bytes()) {
                assert_eq!(distribution(&play, possible), truth, "behind {window:?}");
            }
        }
    }

    #[test]
    fn a_window_hides_little() {
        let play = Play::new().unwrap();
        let text = play.generate(4, 40_000);
        let whole = play.nats(&text).unwrap().iter().sum::<f64>() / text.len() as f64;
        let windowed = play.window_reader().nats(&text, MEMORY);
        assert!(windowed > whole && windowed < whole + 0.15, "{windowed} {whole}");
    }

    #[test]
    fn five_letters_are_not_enough() {
        let play = Play::new().unwrap();
        let text = play.generate(Play::SEED, Play::LENGTH);
        let (train, validation) = text.split_at(text.len() / 10 * 9);
        let loss = Ngram::train(train, 5).nats(validation);
        assert!(loss > play.entropy() + 0.4, "{loss}");
        assert!(loss < play.entropy() + 0.6, "{loss}: worse than a 5-gram model should be");
    }
}
