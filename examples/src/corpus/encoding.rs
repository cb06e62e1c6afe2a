//! What bytes that are no UTF-8 may be, as iconv calls it.

use std::io::Read;

/// UTF-16 or UTF-32, if a text that begins with these bytes is: by its mark, or by zeros in nearly every other place, or in
/// three of four.
pub(super) fn wide(beginning: &[u8]) -> Option<&'static str> {
    if beginning.starts_with(&[0xFF, 0xFE, 0, 0]) || beginning.starts_with(&[0, 0, 0xFE, 0xFF]) {
        return Some("UTF-32");
    }
    let (quads, _) = beginning.as_chunks::<4>();
    if quads.len() > 1 && quads.iter().all(|quad| quad[2..] == [0, 0] && quad[0] != 0) {
        return Some("UTF-32LE");
    }
    if quads.len() > 1 && quads.iter().all(|quad| quad[..2] == [0, 0] && quad[3] != 0) {
        return Some("UTF-32BE");
    }
    if beginning.starts_with(&[0xFF, 0xFE]) || beginning.starts_with(&[0xFE, 0xFF]) {
        return Some("UTF-16");
    }
    let zeros = |first: usize| beginning.iter().skip(first).step_by(2).filter(|&&byte| byte == 0).count();
    let (even, odd, pairs) = (zeros(0), zeros(1), beginning.len() / 2);
    let (most, few) = (pairs * 3 / 4, pairs / 20);
    match pairs {
        0 | 1 => None,
        _ if odd > most && even <= few => Some("UTF-16LE"),
        _ if even > most && odd <= few => Some("UTF-16BE"),
        _ => None,
    }
}

/// One byte a character, each of which has a meaning.
pub(super) const LATIN: &str = "ISO-8859-1";

/// The encoding of one byte a character that knows all bytes of a text, of which some are at hand and some to come: the one
/// of Windows, where only that one has letters and marks for them, and else that of Unix.
pub(super) fn single_byte(at_hand: &[u8], mut to_come: impl Read) -> &'static str {
    let (mut windows, mut piece) = (false, at_hand.to_vec());
    loop {
        // Windows-1252 gives these five no meaning, and iconv stops at them.
        if piece.iter().any(|byte| [0x81, 0x8D, 0x8F, 0x90, 0x9D].contains(byte)) {
            return LATIN;
        }
        windows |= piece.iter().any(|byte| (0x80..0xA0).contains(byte));
        piece.resize(1 << 16, 0);
        match to_come.read(&mut piece) {
            Ok(0) | Err(_) => return if windows { "WINDOWS-1252" } else { LATIN },
            Ok(read) => piece.truncate(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_are_known_by_their_mark_and_by_their_zeros() {
        let pairs = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "a text, ünd".encode_utf16().flat_map(order).collect()
        };
        let (little, big) = (pairs(u16::to_le_bytes), pairs(u16::to_be_bytes));
        assert_eq!((wide(&little), wide(&big)), (Some("UTF-16LE"), Some("UTF-16BE")));
        assert_eq!(wide(&[&[0xFF, 0xFE][..], &little].concat()), Some("UTF-16"));
        assert_eq!(wide(&[&[0xFE, 0xFF][..], &big].concat()), Some("UTF-16"));
        let quads = |order: fn(u32) -> [u8; 4]| -> Vec<u8> {
            "a text".chars().map(u32::from).flat_map(order).collect()
        };
        let (little, big) = (quads(u32::to_le_bytes), quads(u32::to_be_bytes));
        assert_eq!((wide(&little), wide(&big)), (Some("UTF-32LE"), Some("UTF-32BE")));
        assert_eq!(wide(&[&[0xFF, 0xFE, 0, 0][..], &little].concat()), Some("UTF-32"));
        assert_eq!(wide(&[&[0, 0, 0xFE, 0xFF][..], &big].concat()), Some("UTF-32"));
        for other in [&b""[..], b"\0", b"plain text", b"a\0text with a zero", &[0; 100], "ünïcödé".as_bytes()]
        {
            assert_eq!(wide(other), None, "{other:?}");
        }
    }
}
