//! What one execution allocates: all of it is given back, and it is never more than the input justifies.
//!
//! A counting allocator says so exactly and costs little. The sanitizers, whose other use is unsafe code, would take
//! most of the time.

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

/// Bytes that any execution may hold at once, and how many more for each byte of its input: 36 MiB for a mebibyte.
const FIXED: usize = 4 << 20;
const PER_BYTE: usize = 32;

/// Runs a target, and checks what it allocates.
pub(crate) fn bounded(data: &[u8], target: minigpt_fuzz::Target) {
    let before = heap::held();
    let (peak, ()) = heap::peak(|| target(data));
    assert_eq!(heap::held(), before, "not all memory was given back");
    let most = FIXED + PER_BYTE * data.len();
    assert!(peak <= most, "{peak} bytes at once for an input of {}", data.len());
}
