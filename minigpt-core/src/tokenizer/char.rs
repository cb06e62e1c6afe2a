//! One token per character.

use alloc::vec::Vec;

use super::{Tokenizer, TokenizerError};

/// The characters of a text as tokens, in the order of their code points.
///
/// It knows these characters and no others: any other is an error that says where it stands.
///
/// ```
/// use minigpt_core::{CharTokenizer, Tokenizer};
/// let tokenizer = CharTokenizer::from_text("hello")?;
/// assert_eq!(tokenizer.chars(), ['e', 'h', 'l', 'o']);
/// assert_eq!(tokenizer.encode("hole")?, [1, 3, 2, 0]);
/// assert!(tokenizer.encode("hullo").is_err());
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CharTokenizer {
    /// Strictly ascending and not empty; a character's id is its place.
    chars: Vec<char>,
}

impl CharTokenizer {
    /// The tokenizer of the distinct characters of `text`.
    ///
    /// # Errors
    /// [`TokenizerError::EmptyVocabulary`] if the text is empty, [`TokenizerError::OutOfMemory`].
    pub fn from_text(text: &str) -> Result<Self, TokenizerError> {
        // The characters so far: the first `sorted` in order and distinct, then new ones as they came. Sorting
        // only once the new outnumber the old keeps the cost and the memory near those of the distinct ones.
        let mut chars: Vec<char> = Vec::new();
        let mut sorted = 0;
        for character in text.chars() {
            if chars[..sorted].binary_search(&character).is_ok() {
                continue;
            }
            chars.try_reserve(1)?;
            chars.push(character);
            if chars.len() > 2 * sorted + 32 {
                chars.sort_unstable();
                chars.dedup();
                sorted = chars.len();
            }
        }
        chars.sort_unstable();
        chars.dedup();
        Self::from_chars(chars)
    }

    /// The tokenizer of a vocabulary that [`chars`](CharTokenizer::chars) gave out earlier: `chars[id]` is the
    /// character of token `id`.
    ///
    /// # Errors
    /// [`TokenizerError::EmptyVocabulary`], or [`TokenizerError::Unordered`] if the code points do not ascend or
    /// one stands there twice.
    pub fn from_chars(chars: Vec<char>) -> Result<Self, TokenizerError> {
        if chars.is_empty() {
            return Err(TokenizerError::EmptyVocabulary);
        }
        if let Some(place) = chars.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(TokenizerError::Unordered {
                index: place + 1,
                previous: chars[place],
                character: chars[place + 1],
            });
        }
        Ok(CharTokenizer { chars })
    }

    /// The vocabulary: `chars()[id]` is the character of token `id`. Strictly ascending and not empty.
    pub fn chars(&self) -> &[char] {
        &self.chars
    }
}

impl Tokenizer for CharTokenizer {
    fn vocab_size(&self) -> usize {
        self.chars.len()
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let before = ids.len();
        ids.try_reserve(text.chars().count())?;
        for (index, (byte, character)) in text.char_indices().enumerate() {
            match self.chars.binary_search(&character) {
                // There are fewer code points than u32 can count.
                Ok(id) => ids.push(id as u32),
                Err(_) => {
                    ids.truncate(before);
                    let vocab_size = self.chars.len();
                    return Err(TokenizerError::UnknownCharacter { character, index, byte, vocab_size });
                }
            }
        }
        Ok(())
    }

    fn decode_into(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), TokenizerError> {
        let character = usize::try_from(id).ok().and_then(|place| self.chars.get(place));
        let character = character.ok_or(TokenizerError::UnknownToken { id, vocab_size: self.chars.len() })?;
        let mut utf8 = [0; 4];
        let utf8 = character.encode_utf8(&mut utf8).as_bytes();
        bytes.try_reserve(utf8.len())?;
        bytes.extend_from_slice(utf8);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec;

    #[test]
    fn the_vocabulary_is_the_distinct_characters_in_order() {
        let tokenizer = CharTokenizer::from_text("zaé\n🦀a z").unwrap();
        assert_eq!(tokenizer.chars(), ['\n', ' ', 'a', 'z', 'é', '🦀']);
        assert_eq!(tokenizer.vocab_size(), 6);
    }

    #[test]
    fn a_vocabulary_of_thousands_is_complete() {
        // Descending, each twice, so that new characters always sort before the old.
        let all: Vec<char> = ('\0'..='\u{2FFF}').collect();
        let text: String = all.iter().rev().flat_map(|&c| [c, c]).collect();
        let tokenizer = CharTokenizer::from_text(&text).unwrap();
        assert_eq!(tokenizer.chars(), all);
        let ids = tokenizer.encode(&text).unwrap();
        assert!(ids.iter().copied().eq((0..0x3000).rev().flat_map(|id| [id, id])));
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn text_of_known_characters_round_trips() {
        let tokenizer = CharTokenizer::from_text("to be, or not to be: ñ€🦀\n").unwrap();
        for text in ["", "t", "boot €\n", "🦀🦀", "ñ:,"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(ids.len(), text.chars().count());
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn an_unknown_character_is_named_with_its_place() {
        let tokenizer = CharTokenizer::from_text("añb").unwrap();
        let mut ids = vec![9];
        assert_eq!(
            tokenizer.encode_into("ñañ\u{7}b", &mut ids),
            Err(TokenizerError::UnknownCharacter { character: '\u{7}', index: 3, byte: 5, vocab_size: 3 })
        );
        assert_eq!(ids, [9]);
    }

    #[test]
    fn an_id_out_of_range_is_refused() {
        let tokenizer = CharTokenizer::from_text("ab").unwrap();
        assert_eq!(tokenizer.decode(&[1]).unwrap(), "b");
        for id in [2, u32::MAX] {
            assert_eq!(
                tokenizer.decode(&[0, id, 1]),
                Err(TokenizerError::UnknownToken { id, vocab_size: 2 })
            );
        }
    }

    #[test]
    fn a_vocabulary_must_ascend_and_not_be_empty() {
        assert_eq!(CharTokenizer::from_chars(vec![]), Err(TokenizerError::EmptyVocabulary));
        assert_eq!(CharTokenizer::from_text(""), Err(TokenizerError::EmptyVocabulary));
        let unordered = |index, previous, character| TokenizerError::Unordered { index, previous, character };
        assert_eq!(CharTokenizer::from_chars(vec!['a', 'b', 'b']), Err(unordered(2, 'b', 'b')));
        assert_eq!(CharTokenizer::from_chars(vec!['c', 'a', 'b']), Err(unordered(1, 'c', 'a')));
        let tokenizer = CharTokenizer::from_text("some text").unwrap();
        assert_eq!(CharTokenizer::from_chars(tokenizer.chars().to_vec()), Ok(tokenizer));
    }
}
