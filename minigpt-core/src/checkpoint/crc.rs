//! The CRC-32 of zip and Ethernet (IEEE 802.3): of large files fast, and on a small machine small.

/// A checksum in the making.
#[cfg(feature = "std")]
pub(super) struct Crc(crc32fast::Hasher);

/// A checksum in the making. With a table of 1 kB: the fast one's has 16, more than a small model in flash.
#[cfg(not(feature = "std"))]
pub(super) struct Crc(crc::Digest<'static, u32, crc::Table<1>>);

#[cfg(not(feature = "std"))]
static SMALL: crc::Crc<u32, crc::Table<1>> = crc::Crc::<u32, crc::Table<1>>::new(&crc::CRC_32_ISO_HDLC);

impl Crc {
    /// That of nothing yet.
    pub(super) fn new() -> Self {
        #[cfg(feature = "std")]
        let begun = crc32fast::Hasher::new();
        #[cfg(not(feature = "std"))]
        let begun = SMALL.digest();
        Crc(begun)
    }

    /// Takes in what comes next.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// That of all that came.
    pub(super) fn finalize(self) -> u32 {
        self.0.finalize()
    }
}

/// That of these bytes.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value that the catalogue of CRCs gives for it (CRC-32/ISO-HDLC).
    #[test]
    fn the_checksum_of_nine_digits_is_the_catalogues() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_checksum_in_pieces_is_that_of_the_whole() {
        let bytes: [u8; 201] = core::array::from_fn(|i| (i * i) as u8);
        for cut in [0, 1, 16, 63, 200, 201] {
            let mut crc = Crc::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc.finalize(), crc32(&bytes));
        }
    }
}
