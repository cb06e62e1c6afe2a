//! What bytes that are no UTF-8 may be, as iconv calls it.

use std::io::Read;

/// UTF-16, if a text that begins with these bytes is: by its mark, or by zeros in nearly every other place.
pub(super) fn utf16(beginning: &[u8]) -> Option<&'static str> {
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

/// The encoding of one byte a character that knows all bytes of the text: the one of Windows, where only that one has
/// letters and marks for them, and else that of Unix.
pub(super) fn single_byte(mut text: impl Read) -> &'static str {
    let (mut windows, mut buffer) = (false, vec![0; 1 << 16]);
    loop {
        match text.read(&mut buffer) {
            Ok(0) => return if windows { "WINDOWS-1252" } else { LATIN },
            Ok(read) => {
                // Windows-1252 gives these five no meaning, and iconv stops at them.
                if buffer[..read].iter().any(|byte| [0x81, 0x8D, 0x8F, 0x90, 0x9D].contains(byte)) {
                    return LATIN;
                }
                windows |= buffer[..read].iter().any(|byte| (0x80..0xA0).contains(byte));
            }
            Err(_) => return LATIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf16_is_known_by_its_mark_and_by_its_zeros() {
        let pairs = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "a text, ünd".encode_utf16().flat_map(order).collect()
        };
        let (little, big) = (pairs(u16::to_le_bytes), pairs(u16::to_be_bytes));
        assert_eq!((utf16(&little), utf16(&big)), (Some("UTF-16LE"), Some("UTF-16BE")));
        assert_eq!(utf16(&[&[0xFF, 0xFE][..], &little].concat()), Some("UTF-16"));
        assert_eq!(utf16(&[&[0xFE, 0xFF][..], &big].concat()), Some("UTF-16"));
        for other in [&b""[..], b"\0", b"plain text", b"a\0text with a zero", &[0; 100], "ünïcödé".as_bytes()]
        {
            assert_eq!(utf16(other), None, "{other:?}");
        }
    }
}
