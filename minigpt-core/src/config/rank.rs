//! [`Rank`]: which of the trainers that train as one.

/// Which of the trainers that train as one this is. A micro-batch of all ranks has [`batch`](crate::TrainConfig::batch)
/// sequences of each, rank by rank: so N ranks compute what one trainer does with N times the batch, windows and dropout
/// masks included, and differ from it only as the order of a sum does.
///
/// The trainers have nothing to do with how they reach each other: the program adds up their
/// [`Sums`](crate::train::Sums), whose documentation has the recipe.
///
/// It belongs to the run on this machine and not to what is saved. All ranks write the same checkpoint, and a run may go on
/// with more or fewer of them.
///
/// ```
/// use minigpt_core::config::Rank;
/// // Twelve sequences of each of four ranks: this one has those from number 24 on of 48.
/// let rank = Rank { index: 2, count: 4 };
/// assert_eq!((rank.first(12), rank.sequences(12)), (24, 48));
/// assert_eq!((Rank::ALONE.first(12), Rank::ALONE.sequences(12)), (0, 12));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rank {
    /// Which one, from 0 on.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Rank {
    /// The only one.
    pub const ALONE: Rank = Rank { index: 0, count: 1 };

    /// The number that its first sequence has among those of all ranks, each of which has `batch` in a micro-batch. Window
    /// numbers and dropout masks wrap around at 2^64, and so does this.
    pub const fn first(self, batch: usize) -> u64 {
        (self.index as u64).wrapping_mul(batch as u64)
    }

    /// How many sequences all ranks have together; wraps around too.
    pub const fn sequences(self, batch: usize) -> u64 {
        (self.count as u64).wrapping_mul(batch as u64)
    }

    /// Whether it is one of so many.
    #[cfg(feature = "train")]
    pub(crate) const fn is_valid(self) -> bool {
        self.index < self.count
    }
}
