//! How a host tells a pass of decoding of its rows: which are live, where their tokens lie, and from which logits are wanted.

use crate::config::{GptConfig, Mask};
use crate::memory::Span;
use crate::op::SampleRow;

/// The words that tell a decoding pass of its rows, one behind the other, so that a host writes them at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveRows {
    /// (1): how many rows are live.
    pub(crate) live: Span,
    /// (1): from how many of them logits are wanted.
    pub(crate) wanted_live: Span,
    /// (1): from how many of these, the first ones, a token is chosen.
    pub(crate) choosing_live: Span,
    /// (1): how many of the live rows, the first ones, are given vectors and no tokens. Empty if the model has no prefix.
    pub(crate) given_live: Span,
    /// (R): where the token of each lies.
    pub(crate) places: Span,
    /// (R)
    pub(crate) slots: Span,
    /// (R)
    pub(crate) positions: Span,
    /// (R): the last position that each sees. Under a causal mask these are its `positions`.
    pub(crate) last: Span,
    /// (R): which of the given vectors each of the given rows is. Empty if the model has no prefix.
    pub(crate) given: Span,
    /// (W): from which rows logits are wanted.
    pub(crate) wanted: Span,
    /// (W, [`SampleRow::WORDS`]): how tokens are chosen.
    pub(crate) settings: Span,
}

/// Where each list of a [`LiveRows`] begins, in words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveWords {
    /// Behind the counts. Of this list and the next ones each has R words.
    pub(crate) places: usize,
    pub(crate) slots: usize,
    pub(crate) positions: usize,
    /// Under a causal mask this is the list of positions.
    pub(crate) last: usize,
    pub(crate) given: usize,
    pub(crate) wanted: usize,
}

impl LiveWords {
    /// Of R rows of such a model.
    pub(crate) fn new(config: &GptConfig, rows: usize) -> Self {
        let (masked, given) = (config.mask != Mask::Causal, config.prefix > 0);
        let counts = 3 + usize::from(given);
        let places = counts;
        let list = |i: usize| rows.saturating_mul(i).saturating_add(places);
        let last = 2 + usize::from(masked);
        LiveWords {
            places,
            slots: list(1),
            positions: list(2),
            last: list(last),
            given: list(last + 1),
            wanted: list(last + 1 + usize::from(given)),
        }
    }

    /// How many words there are, if logits are wanted of W rows.
    pub(crate) fn count(&self, wanted: usize) -> usize {
        self.wanted.saturating_add(wanted.saturating_mul(1 + SampleRow::WORDS))
    }
}

impl LiveRows {
    /// The first of `words`, for R rows of such a model, from W of which logits are wanted.
    pub(crate) fn new(words: Span, config: &GptConfig, rows: usize, wanted: usize) -> Self {
        let at = LiveWords::new(config, rows);
        let given = usize::from(config.prefix > 0);
        LiveRows {
            live: words.slice(0, 1),
            wanted_live: words.slice(1, 1),
            choosing_live: words.slice(2, 1),
            given_live: words.slice(3, given),
            places: words.slice(at.places, rows),
            slots: words.slice(at.slots, rows),
            positions: words.slice(at.positions, rows),
            last: words.slice(at.last, rows),
            given: words.slice(at.given, given * rows),
            wanted: words.slice(at.wanted, wanted),
            settings: words.slice(at.wanted + wanted, wanted * SampleRow::WORDS),
        }
    }
}
