//! An entry, a heap and an end where there is no operating system.

use core::mem::MaybeUninit;
use core::ptr::addr_of_mut;

use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprintln};
use embedded_alloc::TlsfHeap;
use panic_semihosting as _;

#[global_allocator]
static HEAP: TlsfHeap = TlsfHeap::empty();

const HEAP_BYTES: usize = 2 << 20;

#[entry]
fn main() -> ! {
    static mut MEMORY: [MaybeUninit<u8>; HEAP_BYTES] = [MaybeUninit::uninit(); HEAP_BYTES];
    // SAFETY: called once, before anything is allocated, with memory that nothing else uses.
    unsafe { HEAP.init(addr_of_mut!(*MEMORY) as usize, HEAP_BYTES) };
    let passed = match crate::conformance() {
        Ok(report) => {
            hprintln!("{}", report);
            report.passed()
        }
        Err(error) => {
            hprintln!("{}", error);
            false
        }
    };
    debug::exit(if passed { debug::EXIT_SUCCESS } else { debug::EXIT_FAILURE });
    unreachable!("the machine has been switched off")
}
