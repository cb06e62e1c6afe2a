//! What can go wrong between text and tokens.

use alloc::collections::TryReserveError;
use core::fmt;

/// Why text could not be turned into tokens, or tokens into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The text has a character that the vocabulary cannot spell.
    UnknownCharacter {
        /// The character.
        character: char,
        /// How many characters stand before it.
        index: usize,
        /// How many bytes stand before it.
        byte: usize,
        /// How many tokens the vocabulary has.
        vocab_size: usize,
    },
    /// An id is not in the vocabulary.
    UnknownToken {
        /// The id.
        id: u32,
        /// How many tokens the vocabulary has.
        vocab_size: usize,
    },
    /// A vocabulary without characters.
    EmptyVocabulary,
    /// A vocabulary's characters do not ascend strictly.
    Unordered {
        /// Where in the vocabulary the first one stands that is not above the one before it.
        index: usize,
        /// The one before it.
        previous: char,
        /// That character.
        character: char,
    },
    /// The result does not fit in memory.
    OutOfMemory,
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            TokenizerError::UnknownCharacter { character, index, byte, vocab_size } => write!(
                f,
                "character {character:?} (U+{:04X}) at character {index}, byte {byte} (counted from 0), is not \
                 among the {vocab_size} that the tokenizer knows: remove or replace it, or train on text that \
                 has it, or train with the byte tokenizer, which knows every text",
                u32::from(character)
            ),
            TokenizerError::UnknownToken { id, vocab_size } => write!(
                f,
                "token {id} is not below the vocabulary's size of {vocab_size}: use the tokenizer that the \
                 model was trained with"
            ),
            TokenizerError::EmptyVocabulary => {
                f.write_str("a vocabulary needs at least one character: build it from text that is not empty")
            }
            TokenizerError::Unordered { index, previous, character } => write!(
                f,
                "character {character:?} at place {index} of the vocabulary is not above {previous:?} before \
                 it: sort the characters by code point and keep each once"
            ),
            TokenizerError::OutOfMemory => {
                f.write_str("the result does not fit in memory: use less text at once")
            }
        }
    }
}

impl core::error::Error for TokenizerError {}

impl From<TryReserveError> for TokenizerError {
    fn from(_: TryReserveError) -> Self {
        TokenizerError::OutOfMemory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn errors_name_the_cause_and_the_remedy() {
        let message = |error: TokenizerError| error.to_string();
        assert_eq!(
            message(TokenizerError::UnknownCharacter { character: '\n', index: 2, byte: 4, vocab_size: 65 }),
            "character '\\n' (U+000A) at character 2, byte 4 (counted from 0), is not among the 65 that the \
             tokenizer knows: remove or replace it, or train on text that has it, or train with the byte \
             tokenizer, which knows every text"
        );
        assert_eq!(
            message(TokenizerError::UnknownToken { id: 65, vocab_size: 65 }),
            "token 65 is not below the vocabulary's size of 65: use the tokenizer that the model was trained with"
        );
        assert_eq!(
            message(TokenizerError::EmptyVocabulary),
            "a vocabulary needs at least one character: build it from text that is not empty"
        );
        assert_eq!(
            message(TokenizerError::Unordered { index: 1, previous: 'b', character: 'a' }),
            "character 'a' at place 1 of the vocabulary is not above 'b' before it: sort the characters by code \
             point and keep each once"
        );
        assert_eq!(
            message(TokenizerError::OutOfMemory),
            "the result does not fit in memory: use less text at once"
        );
    }
}
