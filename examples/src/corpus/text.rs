//! Clean text of bytes as they come: without a byte-order mark, with one kind of line break, in whole characters.

/// The byte-order mark in UTF-8, which some programs put before a text.
const MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

/// What is done to the bytes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cleaning {
    /// Whether CR LF and CR become LF.
    pub(super) unix: bool,
    /// Whether it must be UTF-8; then a byte-order mark at the beginning is dropped.
    pub(super) utf8: bool,
}

/// What was met in the texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Met {
    /// Byte-order marks that were dropped.
    pub(super) marks: u64,
    /// Line breaks that became LF.
    pub(super) breaks: u64,
    /// Zero bytes.
    pub(super) zeros: u64,
}

/// Cleans one text that comes in pieces.
#[derive(Debug)]
pub(super) struct Cleaner {
    cleaning: Cleaning,
    /// Clean bytes, of which the first are already taken.
    clean: Vec<u8>,
    /// Whether the last byte was a CR that became a LF: then a LF behind it is the same line break.
    after_return: bool,
    /// Bytes before the piece at hand.
    before: u64,
    met: Met,
}

impl Cleaner {
    pub(super) fn new(cleaning: Cleaning) -> Self {
        Cleaner { cleaning, clean: Vec::new(), after_return: false, before: 0, met: Met::default() }
    }

    /// What was met so far.
    pub(super) fn met(&self) -> Met {
        self.met
    }

    /// Takes the next bytes, and hands on those that are whole characters; `last` says that none follow.
    ///
    /// # Errors
    /// The place of the first byte that is not UTF-8, if it must be.
    pub(super) fn push(&mut self, bytes: &[u8], last: bool) -> Result<&mut Vec<u8>, u64> {
        let mut bytes = bytes;
        // A file that is read in pieces of more than three bytes has its mark in the first one.
        if self.before == 0 && self.cleaning.utf8 && bytes.starts_with(MARK) {
            bytes = &bytes[MARK.len()..];
            self.before = MARK.len() as u64;
            self.met.marks += 1;
        }
        let (held, after_return) = (self.clean.len(), self.after_return);
        self.met.zeros += bytes.iter().filter(|&&byte| byte == 0).count() as u64;
        if self.cleaning.unix {
            self.push_unix(bytes)
        } else {
            self.clean.extend_from_slice(bytes)
        }
        let before = self.before;
        self.before += bytes.len() as u64;
        if !self.cleaning.utf8 {
            return Ok(&mut self.clean);
        }
        match std::str::from_utf8(&self.clean) {
            Ok(_) => Ok(&mut self.clean),
            Err(error) if error.error_len().is_none() && !last => Ok(&mut self.clean),
            Err(error) => Err(match error.valid_up_to().checked_sub(held) {
                // In what was held back of the pieces before, which are no line breaks.
                None => before - (held - error.valid_up_to()) as u64,
                Some(clean) => before + self.raw(bytes, after_return, clean) as u64,
            }),
        }
    }

    /// Where in `bytes` the clean byte of that place comes from.
    fn raw(&self, bytes: &[u8], mut after_return: bool, clean: usize) -> usize {
        let mut left = clean;
        for (place, &byte) in bytes.iter().enumerate() {
            let after = std::mem::replace(&mut after_return, byte == b'\r');
            let dropped = self.cleaning.unix && after && byte == b'\n';
            if !dropped && left == 0 {
                return place;
            }
            left -= usize::from(!dropped);
        }
        bytes.len()
    }

    fn push_unix(&mut self, bytes: &[u8]) {
        self.clean.reserve(bytes.len());
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\r' => {
                    self.clean.push(b'\n');
                    self.met.breaks += 1;
                }
                b'\n' if after_return => {}
                other => self.clean.push(other),
            }
        }
    }
}

/// The whole characters at the beginning of `clean`.
pub(super) fn whole(clean: &[u8]) -> &str {
    match std::str::from_utf8(clean) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&clean[..error.valid_up_to()]).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that comes of pieces of so many bytes, and what was met.
    fn cleaned(bytes: &[u8], at_once: usize, unix: bool) -> Result<(String, Met), u64> {
        let mut cleaner = Cleaner::new(Cleaning { unix, utf8: true });
        let mut text = String::new();
        let pieces: Vec<&[u8]> = bytes.chunks(at_once).collect();
        for (i, piece) in pieces.iter().enumerate() {
            let clean = cleaner.push(piece, i + 1 == pieces.len())?;
            let part = whole(clean).to_string();
            clean.drain(..part.len());
            text += &part;
        }
        Ok((text, cleaner.met()))
    }

    #[test]
    fn a_text_is_clean_however_its_bytes_come() {
        let bytes = "\u{FEFF}naïve\r\n\r\ncafé\rend\n\r🦀\u{FEFF}\0".as_bytes();
        for at_once in [3, 4, 5, 7, 100] {
            let (text, met) = cleaned(bytes, at_once, true).unwrap();
            assert_eq!(text, "naïve\n\ncafé\nend\n\n🦀\u{FEFF}\0");
            assert_eq!(met, Met { marks: 1, breaks: 4, zeros: 1 });
            let (text, met) = cleaned(bytes, at_once, false).unwrap();
            assert_eq!(text, "naïve\r\n\r\ncafé\rend\n\r🦀\u{FEFF}\0");
            assert_eq!(met, Met { marks: 1, breaks: 0, zeros: 1 });
        }
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named() {
        let text = [b"plain text and then ".as_slice(), &[0xE9], b" more"].concat();
        for at_once in [3, 5, 8, 100] {
            assert_eq!(cleaned(&text, at_once, false), Err(20));
        }
        // Line breaks that were shortened before it count as they were.
        let text = [b"a\r\nb\r\n\r\n\rc".as_slice(), &[0xE9, b'\r', b'\n']].concat();
        for at_once in [3, 4, 5, 7, 100] {
            assert_eq!(cleaned(&text, at_once, true), Err(10), "{at_once}");
        }
        // A character that is broken off at the end.
        assert_eq!(cleaned(&[b'a', b'b', 0xC3], 100, false), Err(2));
    }
}
