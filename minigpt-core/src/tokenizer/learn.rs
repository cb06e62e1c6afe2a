//! A vocabulary of characters that is learned while the text goes by.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::TokenBuf;
use super::{CharTokenizer, TokenizerError};

/// Learns the characters of a text and encodes it, in one pass: the text comes in pieces and is never held as a whole.
///
/// What it gives is what [`CharTokenizer::from_text`] and then
/// [`encode`](super::Tokenizer::encode) would give of all the pieces together.
///
/// ```
/// use minigpt_core::{CharTokenizer, TokenBuf, Tokenizer, tokenizer::CharLearner};
/// let (mut learner, mut tokens) = (CharLearner::new()?, TokenBuf::new());
/// for piece in ["to be, ", "or not ", "to be"] {
///     learner.push(piece, &mut tokens)?;
/// }
/// let tokenizer = learner.finish(&mut tokens)?;
/// assert_eq!(tokenizer, CharTokenizer::from_text("to be, or not to be")?);
/// assert!(tokens.as_tokens().iter().eq(tokenizer.encode("to be, or not to be")?));
/// assert_eq!(tokens.bytes(), 19); // one byte a token
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
#[derive(Debug, Clone)]
pub struct CharLearner {
    /// The characters in the order in which they came; a character's place is its id until all are known.
    chars: Vec<char>,
    /// The id of each ASCII character, or [`UNKNOWN`].
    ascii: Vec<u32>,
    /// Those of the others.
    others: BTreeMap<char, u32>,
    /// Tokens on their way.
    ids: Vec<u32>,
}

const UNKNOWN: u32 = u32::MAX;

/// Tokens that are handed on at once.
const AT_ONCE: usize = 4096;

impl CharLearner {
    /// A learner that has seen nothing yet.
    ///
    /// # Errors
    /// [`TokenizerError::OutOfMemory`].
    pub fn new() -> Result<Self, TokenizerError> {
        let mut ids = Vec::new();
        ids.try_reserve_exact(AT_ONCE)?;
        Ok(CharLearner { chars: Vec::new(), ascii: vec![UNKNOWN; 128], others: BTreeMap::new(), ids })
    }

    /// How many characters it has seen.
    pub fn vocab_size(&self) -> usize {
        self.chars.len()
    }

    /// How many characters of `text` it has not seen yet: with more than 256 or 65,536 in all, tokens need more bytes,
    /// and a caller may want to make room first.
    pub fn unknown(&self, text: &str) -> usize {
        let known = |&character: &char| match self.ascii.get(character as usize) {
            Some(&id) => id != UNKNOWN,
            None => self.others.contains_key(&character),
        };
        text.chars().filter(|character| !known(character)).collect::<BTreeSet<char>>().len()
    }

    /// Takes the next piece of the text, and appends its tokens, as they are numbered for now.
    ///
    /// # Errors
    /// [`TokenizerError::OutOfMemory`].
    pub fn push(&mut self, text: &str, tokens: &mut TokenBuf) -> Result<(), TokenizerError> {
        for character in text.chars() {
            let known = match self.ascii.get(character as usize) {
                Some(&id) => Some(id).filter(|&id| id != UNKNOWN),
                None => self.others.get(&character).copied(),
            };
            let id = match known {
                Some(id) => id,
                None => self.learn(character)?,
            };
            self.ids.push(id);
            if self.ids.len() == AT_ONCE {
                self.hand_on(tokens)?;
            }
        }
        self.hand_on(tokens)
    }

    /// None of them a second time, also after an error.
    fn hand_on(&mut self, tokens: &mut TokenBuf) -> Result<(), TokenizerError> {
        let added = tokens.extend_from(&self.ids);
        self.ids.clear();
        Ok(added?)
    }

    fn learn(&mut self, character: char) -> Result<u32, TokenizerError> {
        // There are fewer code points than u32 can count.
        let id = self.chars.len() as u32;
        self.chars.try_reserve(1)?;
        self.chars.push(character);
        match self.ascii.get_mut(character as usize) {
            Some(place) => *place = id,
            None => {
                self.others.insert(character, id);
            }
        }
        Ok(id)
    }

    /// The tokenizer of all characters that came. `tokens`, all that [`push`](CharLearner::push) gave, are renumbered to
    /// its ids.
    ///
    /// # Errors
    /// [`TokenizerError::EmptyVocabulary`] if no character came, [`TokenizerError::OutOfMemory`].
    pub fn finish(self, tokens: &mut TokenBuf) -> Result<CharTokenizer, TokenizerError> {
        let mut sorted = self.chars.clone();
        sorted.sort_unstable();
        let rank = |character| sorted.binary_search(character).unwrap_or_default() as u32;
        let ranks: Vec<u32> = self.chars.iter().map(rank).collect();
        tokens.map_in_place(|id| ranks.get(id as usize).copied().unwrap_or_default());
        CharTokenizer::from_chars(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use alloc::string::String;

    fn assert_learned(text: &str, pieces: &[&str]) {
        let (mut learner, mut tokens) = (CharLearner::new().unwrap(), TokenBuf::new());
        for piece in pieces {
            learner.push(piece, &mut tokens).unwrap();
        }
        assert_eq!((learner.unknown(text), learner.unknown("~~ù")), (0, 2));
        let tokenizer = learner.finish(&mut tokens).unwrap();
        assert_eq!(tokenizer, CharTokenizer::from_text(text).unwrap());
        assert!(tokens.as_tokens().iter().eq(tokenizer.encode(text).unwrap()));
        assert_eq!(tokens, {
            let mut narrow = TokenBuf::with_vocab(tokenizer.vocab_size());
            narrow.extend_from(&tokenizer.encode(text).unwrap()).unwrap();
            narrow
        });
    }

    #[test]
    fn a_text_in_pieces_gives_what_it_gives_as_a_whole() {
        let text = "zaé\n🦀a z, to be or not to be: ñ€🦀";
        assert_learned(text, &[text]);
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        for &end in &ends {
            assert_learned(text, &[&text[..end], &text[end..]]);
        }
    }

    #[test]
    fn thousands_of_characters_widen_the_tokens() {
        // Descending, each twice, so that new characters always sort before the old.
        let text: String = ('\u{100}'..='\u{2FFF}').rev().flat_map(|c| [c, c]).collect();
        assert_learned(&text, &[&text]);
    }

    #[test]
    fn no_text_has_no_vocabulary() {
        let mut tokens = TokenBuf::new();
        let finished = CharLearner::new().unwrap().finish(&mut tokens);
        assert_eq!(finished, Err(TokenizerError::EmptyVocabulary));
    }
}
