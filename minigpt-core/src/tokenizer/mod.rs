//! Text to tokens and back.
//!
//! Every [`Tokenizer`] here sees a token as a string of bytes. A byte-level token may hold a part of a UTF-8
//! character only, so text that arrives token by token goes through a [`StreamDecoder`], which holds such a part
//! back until the rest has come.

mod byte;
mod char;
mod error;
mod learn;
mod stream;
mod tokens;

pub use byte::ByteTokenizer;
pub use char::CharTokenizer;
pub use error::TokenizerError;
pub use learn::CharLearner;
pub use stream::StreamDecoder;
pub use tokens::{TokenBuf, Tokens};

use alloc::string::String;
use alloc::vec::Vec;

/// A two-way map between text and token ids `0..vocab_size`.
///
/// The trait is object-safe. An implementation gives three methods; what a user calls most, [`encode`] and
/// [`decode`], is made of them.
///
/// [`encode`]: Tokenizer::encode
/// [`decode`]: Tokenizer::decode
///
/// ```
/// use minigpt_core::{ByteTokenizer, CharTokenizer, Tokenizer};
/// let tokenizers: [Box<dyn Tokenizer>; 2] =
///     [Box::new(CharTokenizer::from_text("to be")?), Box::new(ByteTokenizer)];
/// for tokenizer in &tokenizers {
///     let ids = tokenizer.encode("bet")?;
///     assert_eq!(tokenizer.decode(&ids)?, "bet");
/// }
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
pub trait Tokenizer {
    /// How many tokens there are (V). Every id is below it.
    fn vocab_size(&self) -> usize;

    /// Appends the ids of `text` to `ids`.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownCharacter`] if the vocabulary cannot spell the text, and
    /// [`TokenizerError::OutOfMemory`]. `ids` is then as it was before.
    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError>;

    /// Appends the bytes of token `id` to `bytes`. Taken alone they need not be UTF-8.
    ///
    /// # Errors
    /// [`TokenizerError::UnknownToken`] if `id` is not below the vocabulary's size, and
    /// [`TokenizerError::OutOfMemory`]. `bytes` is then as it was before.
    fn decode_into(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), TokenizerError>;

    /// The ids of `text`.
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// The text of `ids`. Each sequence of bytes that is not UTF-8 becomes one U+FFFD, as in
    /// [`String::from_utf8_lossy`]: a model is free to write nonsense.
    ///
    /// # Errors
    /// As [`decode_into`](Tokenizer::decode_into), for the first id that fails.
    fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            self.decode_into(id, &mut bytes)?;
        }
        let mut text = String::new();
        stream::take_text(&mut bytes, &mut text)?;
        stream::take_rest(&mut bytes, &mut text)?;
        Ok(text)
    }
}

/// Any tokenizer of this crate: what a checkpoint carries.
///
/// Each variant is made of plain data and can be remade from it: [`CharTokenizer`] from its
/// [`chars`](CharTokenizer::chars), [`ByteTokenizer`] from nothing.
///
/// ```
/// use minigpt_core::{AnyTokenizer, CharTokenizer, Tokenizer};
/// let tokenizer = AnyTokenizer::from(CharTokenizer::from_text("abba")?);
/// assert_eq!(tokenizer.encode("ab")?, [0, 1]);
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnyTokenizer {
    /// One token per character.
    Char(CharTokenizer),
    /// One token per byte.
    Byte(ByteTokenizer),
}

impl AnyTokenizer {
    fn inner(&self) -> &dyn Tokenizer {
        match self {
            AnyTokenizer::Char(tokenizer) => tokenizer,
            AnyTokenizer::Byte(tokenizer) => tokenizer,
        }
    }
}

impl Tokenizer for AnyTokenizer {
    fn vocab_size(&self) -> usize {
        self.inner().vocab_size()
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        self.inner().encode_into(text, ids)
    }

    fn decode_into(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), TokenizerError> {
        self.inner().decode_into(id, bytes)
    }
}

impl From<CharTokenizer> for AnyTokenizer {
    fn from(tokenizer: CharTokenizer) -> Self {
        AnyTokenizer::Char(tokenizer)
    }
}

impl From<ByteTokenizer> for AnyTokenizer {
    fn from(tokenizer: ByteTokenizer) -> Self {
        AnyTokenizer::Byte(tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn any_tokenizer_is_the_one_inside() {
        let letters = CharTokenizer::from_text("hello").unwrap();
        let any = AnyTokenizer::from(letters.clone());
        assert_eq!(any, AnyTokenizer::Char(letters.clone()));
        assert_eq!(any.vocab_size(), 4);
        assert_eq!(any.encode("hole"), letters.encode("hole"));
        assert_eq!(any.decode(&[1, 0, 2, 3]).unwrap(), "helo");
        let any = AnyTokenizer::from(ByteTokenizer);
        assert_eq!(any, AnyTokenizer::Byte(ByteTokenizer));
        assert_eq!(any.vocab_size(), 256);
        assert_eq!(any.encode("é").unwrap(), [0xC3, 0xA9]);
        assert_eq!(any.decode(&[0xC3, 0xA9]).unwrap(), "é");
    }

    #[test]
    fn encode_into_appends() {
        let mut ids = vec![7];
        ByteTokenizer.encode_into("ab", &mut ids).unwrap();
        CharTokenizer::from_text("ab").unwrap().encode_into("ba", &mut ids).unwrap();
        assert_eq!(ids, [7, 97, 98, 1, 0]);
    }
}
