//! What a program brings along where there is no operating system: an entry, a heap and an end. It also says what the model
//! took: the heap at its fullest, and instructions, of which a timer of 25 MHz counts every fortieth if QEMU runs a thousand
//! million in a second (`-icount shift=0`).

use core::alloc::{GlobalAlloc, Layout};
use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use cortex_m::peripheral::SYST;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprintln};
use embedded_alloc::TlsfHeap;
use panic_semihosting as _;

const HEAP_BYTES: usize = 256 << 10;
const INSTRUCTIONS_PER_TICK: u32 = 40;

/// A heap that knows how full it was.
struct Metered {
    heap: TlsfHeap,
    used: AtomicUsize,
    peak: AtomicUsize,
}

// SAFETY: both methods are the inner heap's.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = self.used.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        self.peak.fetch_max(used, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { self.heap.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.used.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { self.heap.dealloc(block, layout) }
    }
}

#[global_allocator]
static HEAP: Metered =
    Metered { heap: TlsfHeap::empty(), used: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// The timer counts down, in 24 bits.
fn instructions(work: impl FnOnce()) -> u32 {
    let start = SYST::get_current();
    work();
    (start.wrapping_sub(SYST::get_current()) & 0x00ff_ffff) * INSTRUCTIONS_PER_TICK
}

fn speak() -> bool {
    let mut text = None;
    let long = instructions(|| text = crate::speak(crate::PROMPT, 40).ok());
    let short = instructions(|| drop(crate::speak(crate::PROMPT, 20)));
    let text = text.unwrap_or_default();
    hprintln!("{}{}", crate::PROMPT, text);
    hprintln!("heap: {} bytes at most", HEAP.peak.load(Ordering::Relaxed));
    hprintln!("a token: {} instructions", long.saturating_sub(short) / 20);
    text == crate::KNOWN
}

#[cfg(feature = "train")]
fn learn() -> bool {
    HEAP.peak.store(0, Ordering::Relaxed);
    let mut losses = [f64::NAN; 2];
    let [short, long] = [2, 6].map(|steps| {
        instructions(|| losses[usize::from(steps > 2)] = crate::learn(steps).unwrap_or(f64::NAN))
    });
    hprintln!("loss {:.3} after 2 steps, {:.3} after 6", losses[0], losses[1]);
    hprintln!("heap: {} bytes at most", HEAP.peak.load(Ordering::Relaxed));
    hprintln!("a training step: {} instructions", long.saturating_sub(short) / 4);
    losses[1] < losses[0]
}

#[cfg(not(feature = "train"))]
fn learn() -> bool {
    true
}

#[entry]
fn main() -> ! {
    static mut MEMORY: [MaybeUninit<u8>; HEAP_BYTES] = [MaybeUninit::uninit(); HEAP_BYTES];
    // SAFETY: called once, before anything is allocated, with memory that nothing else uses.
    unsafe { HEAP.heap.init(addr_of_mut!(*MEMORY) as usize, HEAP_BYTES) };
    if let Some(mut board) = cortex_m::Peripherals::take() {
        board.SYST.set_clock_source(SystClkSource::Core);
        board.SYST.set_reload(0x00ff_ffff);
        board.SYST.clear_current();
        board.SYST.enable_counter();
    }
    let passed = speak() && learn();
    debug::exit(if passed { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    unreachable!("the machine has been switched off")
}
