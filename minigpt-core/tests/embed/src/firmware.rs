//! What a program brings along where there is no operating system: an entry, a heap and an end.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::hint::{black_box, spin_loop};
use core::panic::PanicInfo;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

const HEAP: usize = 192 << 10;

/// Hands out one stretch after another and takes none back.
struct Bump {
    heap: UnsafeCell<[u8; HEAP]>,
    used: AtomicUsize,
}

// SAFETY: the heap is only reached through pointers from `alloc`, and the atomic counter gives each byte of it to
// one caller.
unsafe impl Sync for Bump {}

// SAFETY: each block is aligned, inside the heap, and overlaps no other, because `used` only grows; when the heap
// is spent the answer is null, as the trait asks.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.heap.get().cast::<u8>();
        let place = |used: usize| {
            let start = (base as usize + used).checked_next_multiple_of(layout.align())? - base as usize;
            let end = start.checked_add(layout.size()).filter(|&end| end <= HEAP)?;
            Some((start, end))
        };
        let Ok(used) =
            self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(place(used)?.1))
        else {
            return null_mut();
        };
        // SAFETY: `start` is at most `HEAP`, so the pointer stays inside the heap or one past it.
        place(used).map_or(null_mut(), |(start, _)| unsafe { base.add(start) })
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump { heap: UnsafeCell::new([0; HEAP]), used: AtomicUsize::new(0) };

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        spin_loop();
    }
}

// SAFETY: the linker's default entry; no other symbol of this program has the name.
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    // Looked at, so that no part of it is optimised away.
    black_box(crate::speak("a small model", 40).is_ok());
    loop {
        spin_loop();
    }
}
