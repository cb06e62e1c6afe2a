//! How an op is cut into blocks, and what lies where in scratch.

use core::ops::Range;

use minigpt_core::op::Dropout;
use minigpt_core::{Dtype, Span, Strided};

use crate::context::whole_lines;
use crate::par::BLOCK;

/// So many numbers a block has at most, unless a single row has more: 4 MB. Few enough that memory does not notice, and so many
/// that a weight is worth to be widened or packed for the rows of one. In tests a block is soon full.
pub(super) const FLOATS: usize = if cfg!(test) { 1 << 11 } else { 1 << 20 };

/// So many things in even blocks of at most `most`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    len: usize,
    most: usize,
}

impl Blocks {
    /// `most` must not be 0; it is taken as 1 then.
    pub(super) fn new(len: usize, most: usize) -> Self {
        Blocks { len, most: most.max(1) }
    }

    /// Blocks of rows of which each has `floats` numbers.
    pub(super) fn of_rows(rows: usize, floats: usize) -> Self {
        Blocks::new(rows, FLOATS / floats.max(1))
    }

    /// No block has more. With more things there is room for as many at least.
    pub(super) fn room(self) -> usize {
        self.len.min(self.most)
    }

    fn count(self) -> usize {
        self.len.div_ceil(self.most)
    }

    /// How many things the smallest and the largest of them have: no others are there.
    pub(super) fn sizes(self) -> [usize; 2] {
        let count = self.count().max(1);
        [self.len / count, self.len.div_ceil(count)]
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Range<usize>> {
        let ([least, _], count) = (self.sizes(), self.count());
        let larger = self.len - least * count;
        (0..count).map(move |i| {
            let start = i * least + i.min(larger);
            start..start + least + usize::from(i < larger)
        })
    }
}

/// Sequences in blocks, of several whole ones or of parts of one: runs of positions, or of heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sequences {
    pub(super) batch: Blocks,
    pub(super) parts: Blocks,
}

impl Sequences {
    /// Of `parts` parts a sequence, each of `floats` numbers.
    pub(super) fn new(batch: usize, parts: usize, floats: usize) -> Self {
        let fit = FLOATS / floats.max(1);
        if fit < parts {
            return Sequences { batch: Blocks::new(batch, 1), parts: Blocks::new(parts, fit) };
        }
        Sequences { batch: Blocks::new(batch, fit / parts.max(1)), parts: Blocks::new(parts, parts) }
    }

    /// No block has more numbers, where each part has `each` of the `floats` that it takes. With more sequences, and where parts
    /// are positions or have more of them, there is room for as many at least.
    pub(super) fn room(self, each: usize, floats: usize) -> usize {
        let all = self.batch.len.saturating_mul(self.parts.len).saturating_mul(each);
        let whole = floats.checked_div(each).unwrap_or(1).max(1);
        all.min((FLOATS / whole).max(each))
    }

    /// The sequences of each block, and which parts of them. Where those are not all, the sequence is one.
    pub(super) fn iter(self) -> impl Iterator<Item = [Range<usize>; 2]> {
        self.batch.iter().flat_map(move |batch| self.parts.iter().map(move |parts| [batch.clone(), parts]))
    }
}

/// What lies in a block of scratch, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Layout {
    floats: usize,
}

impl Layout {
    /// The next `len` numbers.
    pub(super) fn take(&mut self, len: usize) -> Span {
        let offset = self.floats.saturating_mul(4);
        self.floats = self.floats.saturating_add(whole_lines(len));
        Span { buffer: BLOCK, dtype: Dtype::F32, offset, len }
    }

    /// How many numbers lie there.
    pub(super) fn floats(&self) -> usize {
        self.floats
    }
}

/// Some rows of these, each `width` wide.
pub(super) fn rows_of(all: Strided, rows: Range<usize>, width: usize) -> Strided {
    let len = match rows.len() {
        0 => 0,
        count => (count - 1) * all.stride + width,
    };
    Strided { span: all.span.slice(rows.start * all.stride, len), ..all }
}

/// Elements `range`, each of which is `each` numbers.
pub(super) fn part_of(span: Span, range: Range<usize>, each: usize) -> Span {
    span.slice(range.start * each, range.len() * each)
}

/// The mask from `elements` on.
pub(super) fn later(dropout: Option<Dropout>, elements: u64) -> Option<Dropout> {
    dropout.map(|dropout| Dropout { first: dropout.first.wrapping_add(elements), ..dropout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn blocks_are_even_and_have_every_thing_once() {
        for (len, most) in (0..70).flat_map(|len| (1..70).map(move |most| (len, most))) {
            let blocks = Blocks::new(len, most);
            let [least, largest] = blocks.sizes();
            assert!(largest <= blocks.room() && largest - least <= 1);
            let mut next = 0;
            for block in blocks.iter() {
                assert_eq!(block.start, next);
                assert!(block.len() == least || block.len() == largest);
                next = block.end;
            }
            assert_eq!(next, len);
            // No block but a first is small, which the product of a few rows relies on.
            assert!(len <= most || least >= most / 2);
        }
    }

    #[test]
    fn sequences_are_whole_where_they_fit() {
        let of = |batch, parts, floats| Sequences::new(batch, parts, floats).iter().collect::<Vec<_>>();
        assert_eq!(of(3, 2, FLOATS / 4), [[0..2, 0..2], [2..3, 0..2]]);
        assert_eq!(of(2, 3, FLOATS / 2), [[0..1, 0..2], [0..1, 2..3], [1..2, 0..2], [1..2, 2..3]]);
        assert_eq!(of(1, 2, FLOATS + 1), [[0..1, 0..1], [0..1, 1..2]]);
        assert!(of(0, 2, 1).is_empty());
    }
}
