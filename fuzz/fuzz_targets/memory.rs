//! What one execution allocates: all of it is given back, and it is never more than the input justifies.
//!
//! A counting allocator says so exactly and costs little. The sanitizers, whose other use is unsafe code, would take
//! most of the time.
#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that any execution may hold at once, and how many more for each byte of its input: 36 MiB for a mebibyte.
const FIXED: usize = 4 << 20;
const PER_BYTE: usize = 32;

/// Counts the bytes in use and their peak.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the caller's own arguments, whose contract is the
// same; the counters are atomics and allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(USED.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller promises that the layout has a size, as `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller promises that `alloc` gave this pointer for this layout, and that came from
        // `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a target, and checks what it allocates.
pub(crate) fn bounded(data: &[u8], target: minigpt_fuzz::Target) {
    let before = USED.load(Relaxed);
    PEAK.store(before, Relaxed);
    target(data);
    assert_eq!(USED.load(Relaxed), before, "not all memory was given back");
    let (peak, most) = (PEAK.load(Relaxed) - before, FIXED + PER_BYTE * data.len());
    assert!(peak <= most, "{peak} bytes at once for an input of {}", data.len());
}
