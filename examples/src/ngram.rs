//! The classic that a neural model has to beat: an n-gram model of characters, smoothed by interpolated Kneser-Ney.
//!
//! Source: Kneser and Ney 1995; Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language
//! Modeling", section 2.7. One discount per order, D = n1 / (n1 + 2 n2); lower orders count in how many different
//! contexts a character follows, not how often.

use std::collections::{HashMap, HashSet};

/// How often each character followed a context, and the sums that smoothing needs.
#[derive(Debug, Clone, Default)]
struct Followers {
    counts: HashMap<u8, u32>,
    total: u32,
}

/// An n-gram model over bytes.
#[derive(Debug, Clone)]
pub struct Ngram {
    /// `orders[k]`: contexts of k bytes, packed into a number.
    orders: Vec<HashMap<u64, Followers>>,
    discounts: Vec<f64>,
    alphabet: usize,
}

/// The last `length` bytes of `bytes` as a number.
fn pack(bytes: &[u8], length: usize) -> u64 {
    bytes[bytes.len() - length..].iter().fold(0, |all, &byte| all << 8 | u64::from(byte))
}

impl Ngram {
    /// Counts `text` for a model of order `n`: a character is predicted from the `n - 1` before it. `n` is 1 to 8.
    pub fn train(text: &str, n: usize) -> Self {
        let n = n.clamp(1, 8);
        let bytes = text.as_bytes();
        let alphabet = bytes.iter().collect::<HashSet<_>>().len();
        let mut orders: Vec<HashMap<u64, Followers>> = vec![HashMap::new(); n];
        for end in n - 1..bytes.len() {
            let followers = orders[n - 1].entry(pack(&bytes[..end], n - 1)).or_default();
            *followers.counts.entry(bytes[end]).or_default() += 1;
        }
        for order in (1..n).rev() {
            let (lower, higher) = orders.split_at_mut(order);
            let mask = (1u64 << (8 * (order - 1))) - 1;
            for (context, followers) in &higher[0] {
                let shorter = lower[order - 1].entry(context & mask).or_default();
                for &byte in followers.counts.keys() {
                    *shorter.counts.entry(byte).or_default() += 1;
                }
            }
        }
        let mut discounts = Vec::new();
        for order in &mut orders {
            let (mut ones, mut twos) = (0u32, 0u32);
            for followers in order.values_mut() {
                followers.total = followers.counts.values().sum();
                ones += followers.counts.values().filter(|&&count| count == 1).count() as u32;
                twos += followers.counts.values().filter(|&&count| count == 2).count() as u32;
            }
            let all = f64::from(ones) + 2.0 * f64::from(twos);
            discounts.push(if all > 0.0 { f64::from(ones) / all } else { 0.0 });
        }
        Ngram { orders, discounts, alphabet }
    }

    /// The probability of `byte` behind `context`.
    pub fn probability(&self, context: &[u8], byte: u8) -> f64 {
        // One more than the alphabet, so that an unseen byte is unlikely but not impossible.
        let mut p = 1.0 / (self.alphabet + 1) as f64;
        for (order, contexts) in self.orders.iter().enumerate().take(context.len() + 1) {
            let Some(followers) = contexts.get(&pack(context, order)) else { break };
            // Without a discount an unseen byte would have no probability at all.
            let discount = self.discounts[order].max(1e-3);
            let total = f64::from(followers.total);
            let count = f64::from(followers.counts.get(&byte).copied().unwrap_or(0));
            let saved = discount * followers.counts.len() as f64 / total;
            p = (count - discount).max(0.0) / total + saved * p;
        }
        p
    }

    /// The mean -ln p of the bytes of `text`, in nats; NaN if it is empty.
    pub fn nats(&self, text: &str) -> f64 {
        let bytes = text.as_bytes();
        let most = self.orders.len() - 1;
        let sum: f64 = (0..bytes.len())
            .map(|end| -self.probability(&bytes[end.saturating_sub(most)..end], bytes[end]).ln())
            .sum();
        sum / bytes.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_over_the_alphabet_and_one_unseen_byte() {
        let text = "the cat sat on the mat and the rat ran at the cat";
        let model = Ngram::train(text, 4);
        let alphabet: HashSet<u8> = text.bytes().chain([b'!']).collect();
        for context in ["", "t", "th", "the", "zzz", "e m", " ca", "cat"] {
            let sum: f64 = alphabet.iter().map(|&b| model.probability(context.as_bytes(), b)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{context:?}: {sum}");
        }
    }

    #[test]
    fn a_longer_context_helps_where_the_text_repeats() {
        let text = "one two three four five six seven eight nine ten ".repeat(40);
        assert!(Ngram::train(&text, 5).nats(&text) < 0.5 * Ngram::train(&text, 2).nats(&text));
    }
}
