//! Text from tokens that come one at a time.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Tokenizer, TokenizerError};

/// Turns tokens into text as they come, and gives out whole characters only.
///
/// What [`push`](StreamDecoder::push) and [`finish`](StreamDecoder::finish) return, put together, is what
/// [`Tokenizer::decode`] makes of all the ids at once.
///
/// ```
/// use minigpt_core::{ByteTokenizer, StreamDecoder};
/// let mut stream = StreamDecoder::new();
/// // The two bytes of "é" come as two tokens.
/// assert_eq!(stream.push(&ByteTokenizer, 0xC3)?, "");
/// assert_eq!(stream.push(&ByteTokenizer, 0xA9)?, "é");
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), minigpt_core::TokenizerError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    bytes: Vec<u8>,
    text: String,
}

impl StreamDecoder {
    /// A decoder that holds nothing back.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one more token, and returns the text that is complete with it: often one character, at times none.
    ///
    /// # Errors
    /// As [`Tokenizer::decode_into`]. A token that is refused leaves the decoder as it was.
    pub fn push<T: Tokenizer + ?Sized>(&mut self, tokenizer: &T, id: u32) -> Result<&str, TokenizerError> {
        self.text.clear();
        tokenizer.decode_into(id, &mut self.bytes)?;
        take_text(&mut self.bytes, &mut self.text)?;
        Ok(&self.text)
    }

    /// Says that no token follows, and returns what was held back: an unfinished character, as one U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::OutOfMemory`].
    pub fn finish(&mut self) -> Result<&str, TokenizerError> {
        self.text.clear();
        take_rest(&mut self.bytes, &mut self.text)?;
        Ok(&self.text)
    }
}

/// Moves what is decided of `bytes` to `text`: whole characters as they are, sequences that no further byte can
/// complete as U+FFFD. At most three bytes, the beginning of a character, stay.
pub(super) fn take_text(bytes: &mut Vec<u8>, text: &mut String) -> Result<(), TokenizerError> {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        let most = chunk.valid().len() + char::REPLACEMENT_CHARACTER.len_utf8();
        text.try_reserve(most)?;
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() || is_unfinished(invalid) && taken + invalid.len() == bytes.len() {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    bytes.drain(..taken);
    Ok(())
}

/// Whether more bytes could make `bytes` a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    core::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Moves an unfinished character to `text`, as U+FFFD.
pub(super) fn take_rest(bytes: &mut Vec<u8>, text: &mut String) -> Result<(), TokenizerError> {
    if !bytes.is_empty() {
        text.try_reserve(char::REPLACEMENT_CHARACTER.len_utf8())?;
        text.push(char::REPLACEMENT_CHARACTER);
        bytes.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};
    use crate::tokenizer::ByteTokenizer;
    use alloc::string::ToString;

    /// What the stream gives out for each token, and at its end.
    fn streamed(tokenizer: &dyn Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
        let mut stream = StreamDecoder::new();
        let pieces = ids.iter().map(|&id| stream.push(tokenizer, id).unwrap().to_string()).collect();
        (pieces, stream.finish().unwrap().to_string())
    }

    fn byte_ids(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|&byte| u32::from(byte)).collect()
    }

    #[test]
    fn a_character_split_over_tokens_is_given_out_when_whole() {
        let (pieces, rest) = streamed(&ByteTokenizer, &ByteTokenizer.encode("aé€🦀!").unwrap());
        assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "🦀", "!"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn bytes_that_nothing_can_complete_become_replacements_at_once() {
        // A lone continuation, a lead that a letter interrupts, and bytes that UTF-8 never uses.
        let (pieces, rest) = streamed(&ByteTokenizer, &byte_ids(b"\x80a\xE2\x82b\xFF\xC0c"));
        assert_eq!(pieces, ["\u{FFFD}", "a", "", "", "\u{FFFD}b", "\u{FFFD}", "\u{FFFD}", "c"]);
        assert_eq!(rest, "");
        // An encoded surrogate: no character begins with ED A0, so each byte stands alone.
        let (pieces, rest) = streamed(&ByteTokenizer, &byte_ids(b"\xED\xA0\x80"));
        assert_eq!(pieces, ["", "\u{FFFD}\u{FFFD}", "\u{FFFD}"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn finish_gives_one_replacement_for_an_unfinished_character_and_starts_afresh() {
        let mut stream = StreamDecoder::new();
        for id in [0xF0, 0x9F, 0xA6] {
            assert_eq!(stream.push(&ByteTokenizer, id).unwrap(), "");
        }
        assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
        assert_eq!(stream.finish().unwrap(), "");
        assert_eq!(stream.push(&ByteTokenizer, 0x78).unwrap(), "x");
    }

    #[test]
    fn any_bytes_decode_as_from_utf8_lossy_says_streamed_or_whole() {
        let mut rng = Rng::new(11, Stream::User);
        // Leads, continuations and edges of UTF-8, so that many sequences are nearly right.
        let edges =
            [0x00, 0x41, 0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xC2, 0xDF, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF4, 0xFF];
        for _ in 0..3000 {
            let bytes: Vec<u8> =
                (0..rng.below(12)).map(|_| edges[rng.below(edges.len() as u64) as usize]).collect();
            let expected = String::from_utf8_lossy(&bytes);
            let ids = byte_ids(&bytes);
            assert_eq!(ByteTokenizer.decode(&ids).unwrap(), expected, "{bytes:x?}");
            let (pieces, rest) = streamed(&ByteTokenizer, &ids);
            assert_eq!(pieces.concat() + &rest, expected, "{bytes:x?}");
        }
    }

    #[test]
    fn a_token_of_several_characters_and_a_part_gives_out_the_whole_ones() {
        /// Two tokens, as a byte-pair vocabulary may have them.
        struct Pair;
        impl Tokenizer for Pair {
            fn vocab_size(&self) -> usize {
                2
            }
            fn encode_into(&self, _: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
                ids.extend([0, 1]);
                Ok(())
            }
            fn decode_into(&self, id: u32, bytes: &mut Vec<u8>) -> Result<(), TokenizerError> {
                bytes.extend_from_slice([&b"no\xC3"[..], &b"\xABl"[..]][id as usize]);
                Ok(())
            }
        }
        let (pieces, rest) = streamed(&Pair, &Pair.encode("noël").unwrap());
        assert_eq!(pieces, ["no", "ël"]);
        assert_eq!(rest, "");
        assert_eq!(Pair.decode(&[0, 1, 0]).unwrap(), "noëlno\u{FFFD}");
    }

    #[test]
    fn a_refused_token_leaves_the_stream_usable() {
        let mut stream = StreamDecoder::new();
        assert_eq!(stream.push(&ByteTokenizer, 0xC3).unwrap(), "");
        assert_eq!(
            stream.push(&ByteTokenizer, 256).unwrap_err(),
            TokenizerError::UnknownToken { id: 256, vocab_size: 256 }
        );
        assert_eq!(stream.push(&ByteTokenizer, 0xA9).unwrap(), "é");
    }
}
