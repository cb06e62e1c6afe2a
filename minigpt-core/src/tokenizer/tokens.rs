//! Tokens in the narrowest integers that hold them.
//!
//! A corpus outweighs a small model: a vocabulary of up to 256 tokens takes one byte a token, one of up to 65,536 two.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::ops::Range;

/// Borrowed tokens of any width. Slices, arrays and vectors of `u8`, `u16` and `u32` turn into it.
///
/// ```
/// use minigpt_core::Tokens;
/// let tokens = Tokens::from(b"abc");
/// assert_eq!((tokens.len(), tokens.get(1)), (3, Some(98)));
/// assert!(tokens.iter().eq([97, 98, 99]));
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Tokens<'a> {
    /// One byte a token.
    U8(&'a [u8]),
    /// Two bytes a token.
    U16(&'a [u16]),
    /// Four bytes a token.
    U32(&'a [u32]),
}

/// Does the same with the slice of any width.
macro_rules! each_width {
    ($tokens:expr, $slice:ident => $what:expr) => {
        match $tokens {
            Tokens::U8($slice) => $what,
            Tokens::U16($slice) => $what,
            Tokens::U32($slice) => $what,
        }
    };
}

impl<'a> Tokens<'a> {
    /// How many tokens there are.
    pub fn len(self) -> usize {
        each_width!(self, slice => slice.len())
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The token at `index`; `None` past the last.
    pub fn get(self, index: usize) -> Option<u32> {
        fn at<T: Copy + Into<u32>>(slice: &[T], index: usize) -> Option<u32> {
            slice.get(index).map(|&token| token.into())
        }
        each_width!(self, slice => at(slice, index))
    }

    /// The tokens of `range`; `None` if it reaches past the last.
    pub fn slice(self, range: Range<usize>) -> Option<Self> {
        Some(match self {
            Tokens::U8(slice) => Tokens::U8(slice.get(range)?),
            Tokens::U16(slice) => Tokens::U16(slice.get(range)?),
            Tokens::U32(slice) => Tokens::U32(slice.get(range)?),
        })
    }

    /// The first `middle` tokens, and the others. A `middle` past the end is the end.
    #[must_use]
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        let middle = middle.min(self.len());
        match self {
            Tokens::U8(slice) => {
                let (first, second) = slice.split_at(middle);
                (Tokens::U8(first), Tokens::U8(second))
            }
            Tokens::U16(slice) => {
                let (first, second) = slice.split_at(middle);
                (Tokens::U16(first), Tokens::U16(second))
            }
            Tokens::U32(slice) => {
                let (first, second) = slice.split_at(middle);
                (Tokens::U32(first), Tokens::U32(second))
            }
        }
    }

    /// Writes the tokens from `start` on to `to`, as many as both have.
    pub fn copy_to(self, start: usize, to: &mut [u32]) {
        fn copy<T: Copy + Into<u32>>(from: &[T], to: &mut [u32]) {
            for (to, &token) in to.iter_mut().zip(from) {
                *to = token.into();
            }
        }
        each_width!(self, slice => copy(slice.get(start..).unwrap_or_default(), to));
    }

    /// The tokens in order.
    pub fn iter(self) -> impl Iterator<Item = u32> + use<'a> {
        (0..self.len()).map_while(move |index| self.get(index))
    }
}

/// Equal tokens are equal, whatever their width.
impl PartialEq for Tokens<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Tokens<'_> {}

macro_rules! from_slices {
    ($($width:ident of $integer:ty),*) => {$(
        impl<'a> From<&'a [$integer]> for Tokens<'a> {
            fn from(tokens: &'a [$integer]) -> Self {
                Tokens::$width(tokens)
            }
        }

        impl<'a> From<&'a Vec<$integer>> for Tokens<'a> {
            fn from(tokens: &'a Vec<$integer>) -> Self {
                Tokens::$width(tokens)
            }
        }

        impl<'a, const N: usize> From<&'a [$integer; N]> for Tokens<'a> {
            fn from(tokens: &'a [$integer; N]) -> Self {
                Tokens::$width(tokens)
            }
        }
    )*};
}

from_slices!(U8 of u8, U16 of u16, U32 of u32);

impl<'a> From<&'a TokenBuf> for Tokens<'a> {
    fn from(tokens: &'a TokenBuf) -> Self {
        tokens.as_tokens()
    }
}

/// Tokens in a vector of the narrowest integers that have held all of them so far.
///
/// ```
/// use minigpt_core::TokenBuf;
/// let mut tokens = TokenBuf::new();
/// tokens.extend_from(&[1, 2, 255])?;
/// assert_eq!(tokens.bytes(), 3);
/// tokens.push(256)?; // from here on two bytes a token
/// assert_eq!((tokens.len(), tokens.bytes()), (4, 8));
/// assert!(tokens.as_tokens().iter().eq([1, 2, 255, 256]));
/// # Ok::<(), std::collections::TryReserveError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBuf {
    /// One byte a token.
    U8(Vec<u8>),
    /// Two bytes a token.
    U16(Vec<u16>),
    /// Four bytes a token.
    U32(Vec<u32>),
}

impl TokenBuf {
    /// No tokens yet, one byte each.
    pub const fn new() -> Self {
        TokenBuf::U8(Vec::new())
    }

    /// No tokens yet, as wide as those of a vocabulary of this size need.
    pub const fn with_vocab(vocab_size: usize) -> Self {
        match vocab_size {
            0..=0x100 => TokenBuf::U8(Vec::new()),
            0x101..=0x1_0000 => TokenBuf::U16(Vec::new()),
            _ => TokenBuf::U32(Vec::new()),
        }
    }

    /// The tokens.
    pub fn as_tokens(&self) -> Tokens<'_> {
        match self {
            TokenBuf::U8(tokens) => Tokens::U8(tokens),
            TokenBuf::U16(tokens) => Tokens::U16(tokens),
            TokenBuf::U32(tokens) => Tokens::U32(tokens),
        }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.as_tokens().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_tokens().is_empty()
    }

    /// Bytes that the tokens take.
    pub fn bytes(&self) -> usize {
        each_width!(self.as_tokens(), tokens => size_of_val(tokens))
    }

    /// Makes room for `additional` tokens of today's width.
    ///
    /// # Errors
    /// If there is none.
    pub fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError> {
        match self {
            TokenBuf::U8(tokens) => tokens.try_reserve(additional),
            TokenBuf::U16(tokens) => tokens.try_reserve(additional),
            TokenBuf::U32(tokens) => tokens.try_reserve(additional),
        }
    }

    /// Appends a token. The first one that is too wide widens all those before it: for a moment both copies stand
    /// in memory.
    ///
    /// # Errors
    /// If there is no room. The tokens are then as they were.
    pub fn push(&mut self, token: u32) -> Result<(), TryReserveError> {
        self.extend_from(&[token])
    }

    /// Appends tokens, as [`push`](TokenBuf::push) does.
    ///
    /// # Errors
    /// If there is no room. The tokens are then as they were.
    pub fn extend_from(&mut self, tokens: &[u32]) -> Result<(), TryReserveError> {
        let most = tokens.iter().copied().max().unwrap_or(0);
        self.widen_for(most, tokens.len())?;
        self.try_reserve(tokens.len())?;
        // No cast below cuts anything off: the buffer is as wide as the widest token.
        match self {
            TokenBuf::U8(buffer) => buffer.extend(tokens.iter().map(|&token| token as u8)),
            TokenBuf::U16(buffer) => buffer.extend(tokens.iter().map(|&token| token as u16)),
            TokenBuf::U32(buffer) => buffer.extend_from_slice(tokens),
        }
        Ok(())
    }

    /// Replaces each token by what `map` makes of it.
    ///
    /// # Panics
    /// Never. A result that is too wide for today's width becomes the largest that is not, and a debug build notices.
    pub fn map_in_place(&mut self, mut map: impl FnMut(u32) -> u32) {
        fn each<T: Copy + Into<u32> + TryFrom<u32>>(
            tokens: &mut [T],
            most: T,
            map: &mut impl FnMut(u32) -> u32,
        ) {
            for token in tokens {
                let mapped = T::try_from(map((*token).into()));
                debug_assert!(mapped.is_ok(), "a token wider than the buffer");
                *token = mapped.unwrap_or(most);
            }
        }
        match self {
            TokenBuf::U8(tokens) => each(tokens, u8::MAX, &mut map),
            TokenBuf::U16(tokens) => each(tokens, u16::MAX, &mut map),
            TokenBuf::U32(tokens) => each(tokens, u32::MAX, &mut map),
        }
    }

    /// Makes the buffer wide enough for `token`, with room for `additional` ones if it has to move.
    fn widen_for(&mut self, token: u32, additional: usize) -> Result<(), TryReserveError> {
        let narrow = match self {
            TokenBuf::U8(_) => token > u8::MAX.into(),
            TokenBuf::U16(_) => token > u16::MAX.into(),
            TokenBuf::U32(_) => false,
        };
        if !narrow {
            return Ok(());
        }
        let mut wide = TokenBuf::with_vocab((token as usize).saturating_add(1));
        wide.try_reserve(self.len().saturating_add(additional))?;
        match &mut wide {
            TokenBuf::U8(_) => {}
            TokenBuf::U16(tokens) => tokens.extend(self.as_tokens().iter().map(|token| token as u16)),
            TokenBuf::U32(tokens) => tokens.extend(self.as_tokens().iter()),
        }
        *self = wide;
        Ok(())
    }
}

impl Default for TokenBuf {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn a_buffer_is_as_narrow_as_its_widest_token() {
        let mut tokens = TokenBuf::new();
        for (token, bytes) in [(0, 1), (255, 2), (256, 6), (1, 8), (0xFFFF, 10), (0x1_0000, 24), (3, 28)] {
            tokens.push(token).unwrap();
            assert_eq!(tokens.bytes(), bytes, "with {token}");
        }
        assert!(tokens.as_tokens().iter().eq([0, 255, 256, 1, 0xFFFF, 0x1_0000, 3]));
        // From one byte to four at once.
        let mut tokens = TokenBuf::U8(vec![7]);
        tokens.extend_from(&[1 << 20, 2]).unwrap();
        assert_eq!(tokens, TokenBuf::U32(vec![7, 1 << 20, 2]));
    }

    #[test]
    fn a_vocabulary_gets_the_width_of_its_last_token() {
        let width = |vocab| {
            let mut tokens = TokenBuf::with_vocab(vocab);
            tokens.push(0).unwrap();
            tokens.bytes()
        };
        assert_eq!([0, 1, 256, 257, 65_536, 65_537].map(width), [1, 1, 1, 2, 2, 4]);
    }

    #[test]
    fn all_widths_are_read_alike() {
        let (narrow, middle, wide) = ([1u8, 2, 3, 4], [1u16, 2, 3, 4], [1u32, 2, 3, 4]);
        let all = [Tokens::from(&narrow), Tokens::from(&middle), Tokens::from(&wide)];
        for tokens in all {
            assert_eq!(tokens, all[0]);
            assert_eq!((tokens.get(3), tokens.get(4)), (Some(4), None));
            assert_eq!(tokens.slice(1..3), Some(Tokens::from(&[2u32, 3])));
            assert_eq!(tokens.slice(3..5), None);
            let (first, second) = tokens.split_at(3);
            assert_eq!((first, second), (Tokens::from(&[1u32, 2, 3]), Tokens::from(&[4u32])));
            assert_eq!(tokens.split_at(9).1.len(), 0);
            let mut to = [9; 3];
            tokens.copy_to(2, &mut to);
            assert_eq!(to, [3, 4, 9]);
            tokens.copy_to(7, &mut to);
            assert_eq!(to, [3, 4, 9]);
        }
        assert_ne!(all[0], Tokens::from(&[1u32, 2, 3, 5]));
        assert_ne!(all[0], Tokens::from(&[1u32, 2, 3]));
    }

    #[test]
    fn tokens_are_renumbered_where_they_lie() {
        for vocab in [3, 1000, 100_000] {
            let mut tokens = TokenBuf::with_vocab(vocab);
            tokens.extend_from(&[0, 1, 2, 1]).unwrap();
            tokens.map_in_place(|token| [2, 0, 1][token as usize]);
            assert!(tokens.as_tokens().iter().eq([2, 0, 1, 0]));
        }
    }
}
