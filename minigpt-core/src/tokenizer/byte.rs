//! One token per byte of UTF-8.

use alloc::vec::Vec;

use super::{Tokenizer, TokenizerError};

/// The 256 bytes as tokens: knows every text and needs no data, at the price of longer sequences wherever a
/// character takes several bytes.
///
/// ```
/// use minigpt_core::{ByteTokenizer, Tokenizer};
/// assert_eq!(ByteTokenizer.encode("Aé")?, [0x41, 0xC3, 0xA9]);
/// assert_eq!(ByteTokenizer.decode(&[0x41, 0xC3, 0xA9])?, "Aé");
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteTokenizer;

impl ByteTokenizer {
    /// The size of its vocabulary.
    pub const VOCAB_SIZE: usize = 256;
}

impl Tokenizer for ByteTokenizer {
    fn vocab_size(&self) -> usize {
        Self::VOCAB_SIZE
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        ids.try_reserve(text.len())?;
        ids.extend(text.bytes().map(u32::from));
        Ok(())
    }

    fn decode_into(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), TokenizerError> {
        let byte = u8::try_from(id)
            .map_err(|_| TokenizerError::UnknownToken { id, vocab_size: Self::VOCAB_SIZE })?;
        bytes.try_reserve(1)?;
        bytes.push(byte);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_round_trips() {
        for text in ["", "plain", "naïve café", "日本語 🦀\r\n\0", "\u{10FFFF}\u{7F}\u{80}\u{7FF}\u{800}"]
        {
            let ids = ByteTokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), text.len());
            assert_eq!(ByteTokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn ids_are_the_bytes() {
        let mut bytes = Vec::new();
        for id in 0..256 {
            ByteTokenizer.decode_into(id, &mut bytes).unwrap();
        }
        assert!(bytes.iter().copied().eq(0..=255));
        assert_eq!(ByteTokenizer.encode("\0\n~").unwrap(), [0, 10, 126]);
    }

    #[test]
    fn an_id_above_a_byte_is_refused() {
        for id in [256, u32::MAX] {
            let mut bytes = Vec::from(*b"x");
            let error = TokenizerError::UnknownToken { id, vocab_size: 256 };
            assert_eq!(ByteTokenizer.decode_into(id, &mut bytes), Err(error));
            assert_eq!(bytes, b"x");
            assert_eq!(ByteTokenizer.decode(&[65, id]), Err(error));
        }
    }
}
