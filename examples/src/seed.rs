//! The seed of what is drawn: a number, or one that nobody chose.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::str::FromStr;

/// `--seed 7`, or `--seed random`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// This one.
    Number(u64),
    /// Another one each time.
    Random,
}

impl Seed {
    /// The number; one that is drawn is said, on the error output, so that what follows can be had again.
    pub fn resolve(self) -> u64 {
        match self {
            Seed::Number(seed) => seed,
            Seed::Random => {
                // The standard library draws its hash keys from the system.
                let seed = RandomState::new().hash_one(std::process::id());
                // Who closed the error output does not want to know.
                let _ = writeln!(std::io::stderr(), "seed {seed}: --seed {seed} draws the same again");
                seed
            }
        }
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Seed::Random),
            number => number
                .parse()
                .map(Seed::Number)
                .map_err(|_| format!("a seed is a number from 0 to {}, or random", u64::MAX)),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seed::Number(seed) => seed.fmt(f),
            Seed::Random => f.write_str("random"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_number_or_drawn() {
        assert_eq!("18446744073709551615".parse(), Ok(Seed::Number(u64::MAX)));
        assert_eq!("random".parse(), Ok(Seed::Random));
        for other in ["", "-1", "1.5", "Random"] {
            assert!(other.parse::<Seed>().unwrap_err().contains("or random"), "{other}");
        }
        assert_eq!(Seed::Number(7).resolve(), 7);
        assert_ne!(Seed::Random.resolve(), Seed::Random.resolve());
    }
}
