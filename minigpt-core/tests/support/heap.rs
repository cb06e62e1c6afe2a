//! An allocator that counts, for tests, fuzz targets and benchmarks that hold code to what it may allocate. It counts
//! for all threads, so such tests take turns or stand alone in their program.
#![allow(dead_code, reason = "each program that counts asks for some of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the caller's own arguments, whose contract is the same; the
// counters are atomics and allocate nothing.
#[allow(unsafe_code, reason = "an allocator is unsafe to write")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        PEAK.fetch_max(HELD.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the caller promises that the layout has a size, as `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller promises that `alloc` gave this pointer for this layout, and that came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes in use.
pub(crate) fn held() -> usize {
    HELD.load(SeqCst)
}

/// The most bytes in use at once during `f`, beyond those before.
pub(crate) fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = held();
    PEAK.store(before, SeqCst);
    let result = f();
    (PEAK.load(SeqCst).saturating_sub(before), result)
}

/// How many allocations `f` makes.
pub(crate) fn allocations(f: impl FnOnce()) -> usize {
    let before = CALLS.load(SeqCst);
    f();
    CALLS.load(SeqCst) - before
}
