//! [`Write`] and [`Read`]: where a checkpoint streams to, and where it streams from.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::convert::Infallible;

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

/// A source of bytes: a file, a memory card, a socket, a slice.
///
/// With the feature `std`, [`IoReader`] makes one of any [`std::io::Read`].
pub trait Read {
    /// Why it could not be read.
    type Error;

    /// Fills the beginning of `bytes`, which is not empty, and says how many it filled: at least one, unless there
    /// are no more.
    ///
    /// # Errors
    /// If the source fails; then it is not asked again.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Self::Error>;
}

impl<R: Read + ?Sized> Read for &mut R {
    type Error = R::Error;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Self::Error> {
        (**self).read(bytes)
    }
}

impl Read for &[u8] {
    type Error = Infallible;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        let (taken, rest) = self.split_at(bytes.len().min(self.len()));
        bytes[..taken.len()].copy_from_slice(taken);
        *self = rest;
        Ok(taken.len())
    }
}

/// Makes a [`Read`] of a [`std::io::Read`].
///
/// ```
/// use minigpt_core::checkpoint::{IoReader, Read};
/// let mut source = IoReader(std::io::Cursor::new(b"abc"));
/// let mut bytes = [0; 4];
/// assert_eq!(source.read(&mut bytes)?, 3);
/// assert_eq!(source.read(&mut bytes)?, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[cfg(feature = "std")]
#[derive(Debug)]
pub struct IoReader<R>(pub R);

#[cfg(feature = "std")]
impl<R: std::io::Read> Read for IoReader<R> {
    type Error = std::io::Error;

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(bytes) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}
