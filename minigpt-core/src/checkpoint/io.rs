//! [`Write`]: where a checkpoint streams to.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// A sink of bytes: a file, a flash driver, a socket, a `Vec`.
///
/// With the feature `std`, [`IoWriter`] makes one of any [`std::io::Write`].
pub trait Write {
    /// Why it could not be written.
    type Error;

    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// If the sink cannot take them all; then nothing is known of how many it took.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

impl<W: Write + ?Sized> Write for &mut W {
    type Error = W::Error;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        (**self).write_all(bytes)
    }
}

impl Write for Vec<u8> {
    type Error = TryReserveError;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), TryReserveError> {
        self.try_reserve(bytes.len())?;
        self.extend_from_slice(bytes);
        Ok(())
    }
}

/// Makes a [`Write`] of a [`std::io::Write`].
///
/// ```
/// use minigpt_core::checkpoint::{IoWriter, Write};
/// let mut sink = IoWriter(std::io::Cursor::new([0u8; 2]));
/// assert!(sink.write_all(b"ab").is_ok());
/// assert!(sink.write_all(b"c").is_err());
/// ```
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct IoWriter<W>(pub W);

#[cfg(feature = "std")]
impl<W: std::io::Write> Write for IoWriter<W> {
    type Error = std::io::Error;

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }
}
