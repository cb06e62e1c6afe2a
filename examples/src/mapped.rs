//! Files in memory without being read: the one place of the examples with unsafe code.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::Outcome;

/// The bytes of a file, mapped into memory: the system brings in a page when it is first read, and processes that map
/// the same file share it. For checkpoints, which minigpt replaces and never writes into.
///
/// # Errors
/// If the file cannot be opened or mapped.
pub fn mapped(path: &Path) -> Outcome<Mmap> {
    let file = File::open(path).map_err(|e| {
        format!(
            "cannot open {}: {e}; train first with the example train_shakespeare, or name a --checkpoint",
            path.display()
        )
    })?;
    // SAFETY: the bytes are only sound to read while nobody changes the file. minigpt never writes into a checkpoint:
    // it makes a new file and renames it, and a mapping keeps the old one alive. Who cuts or overwrites the file by
    // other means while this program runs breaks it; a program that cannot rule that out uses `checkpoint::load`.
    let bytes = unsafe { Mmap::map(&file) };
    bytes.map_err(|e| format!("cannot map {}: {e}; it must be a file", path.display()).into())
}
