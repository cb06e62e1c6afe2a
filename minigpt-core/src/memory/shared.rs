//! [`SharedBytes`]: bytes with their owner.

use alloc::sync::Arc;
use core::fmt;
use core::ops::{Deref, Range};

/// Bytes that keep their owner, a mapped file or a `Vec`, for as long as anybody has them. Clones share it.
///
/// ```
/// use minigpt_core::SharedBytes;
/// let bytes = SharedBytes::new(vec![1, 2, 3, 4]);
/// let middle = bytes.slice(1..3);
/// drop(bytes);
/// assert_eq!(*middle, [2, 3]);
/// ```
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// All bytes of `owner`.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        let range = 0..owner.as_ref().len();
        SharedBytes { owner: Arc::new(owner), range }
    }

    /// Those of them that stand in `range`, which are none where there are not so many.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        let inside = range.start <= range.end && range.end <= self.range.len();
        let start = self.range.start;
        let range = if inside { start + range.start..start + range.end } else { start..start };
        SharedBytes { owner: Arc::clone(&self.owner), range }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // An owner may have fewer than it had.
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or(&[])
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("len", &self.range.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_slice_beyond_its_bytes_is_empty() {
        let bytes = SharedBytes::new(vec![1, 2, 3, 4]).slice(1..4);
        assert_eq!(*bytes.slice(1..3), [3, 4]);
        let reversed = Range { start: 2, end: 1 };
        for beyond in [2..4, 4..4, reversed, 0..usize::MAX, usize::MAX..usize::MAX] {
            assert_eq!(*bytes.slice(beyond.clone()), [], "{beyond:?}");
        }
    }

    #[test]
    fn an_owner_that_shrinks_has_no_bytes() {
        struct Shrinking(AtomicUsize);
        impl AsRef<[u8]> for Shrinking {
            fn as_ref(&self) -> &[u8] {
                &[7; 9][..self.0.fetch_sub(4, Ordering::Relaxed)]
            }
        }
        let bytes = SharedBytes::new(Shrinking(AtomicUsize::new(8)));
        assert_eq!(*bytes, []);
    }
}
