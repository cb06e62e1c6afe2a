//! A closure lent to threads that outlive it.

use crate::sync::{AtomicBool, AtomicU64, Ordering::*, UnsafeCell, spin_loop, yield_now};

/// Lends one closure at a time to the threads of a team.
///
/// The gate is one word: the number of the loan, whether it is open, and how many threads are inside. A thread may
/// only enter while it is open; the lender closes it and waits until nobody is inside. A thread that wakes late
/// finds the gate closed and is not waited for.
pub(crate) struct Loan {
    gate: AtomicU64,
    lent: AtomicBool,
    closure: UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
}

// SAFETY: the closure's cell is written only by the lender, while `lent` keeps other lenders out and the gate keeps
// borrowers out; the closure itself is Sync.
unsafe impl Sync for Loan {}
// SAFETY: a reference to a Sync closure may be sent.
unsafe impl Send for Loan {}

impl Loan {
    const OPEN: u64 = 1 << 16;
    const INSIDE: u64 = Self::OPEN - 1;
    const NUMBER: u64 = !(Self::OPEN | Self::INSIDE);

    pub(crate) fn new() -> Self {
        Loan { gate: AtomicU64::new(0), lent: AtomicBool::new(false), closure: UnsafeCell::new(None) }
    }

    /// Opens the gate to `closure`, runs `own`, closes the gate and waits for those inside, also if `own` panics.
    pub(crate) fn lend(&self, closure: &(dyn Fn(usize) + Sync), own: impl FnOnce()) {
        struct Close<'l>(&'l Loan);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.gate.fetch_and(!Loan::OPEN, AcqRel);
                let mut spins = 0u32;
                while self.0.gate.load(Acquire) & Loan::INSIDE != 0 {
                    // A thread inside may have lost its processor: then let it have this one.
                    if !cfg!(any(miri, loom)) && spins < 1 << 12 {
                        spin_loop();
                        spins += 1;
                    } else {
                        yield_now();
                    }
                }
                // SAFETY: the gate is closed and nobody is inside.
                self.0.closure.with_mut(|closure| unsafe { *closure = None });
                self.0.lent.store(false, Release);
            }
        }

        assert!(!self.lent.swap(true, Acquire), "a team runs one region at a time");
        // SAFETY: only the lifetime changes. `Close` ends the loan before this function returns or unwinds, and
        // nobody uses the closure after that.
        let closure: &'static (dyn Fn(usize) + Sync) = unsafe { core::mem::transmute(closure) };
        // SAFETY: `lent` keeps other lenders out, and the gate has been closed and empty since the last loan.
        self.closure.with_mut(|place| unsafe { *place = Some(closure) });
        let number = (self.gate.load(Relaxed) & Self::NUMBER).wrapping_add(Self::OPEN << 1);
        let close = Close(self);
        // A swap and no store, for `is_open`.
        self.gate.swap(number | Self::OPEN, AcqRel);
        own();
        drop(close);
    }

    /// Whether a loan other than `seen` is open. If it is not, the next lender sees from inside `own` whatever this thread
    /// wrote before it asked: both change the gate, if only in name, so one of the two comes first.
    pub(crate) fn is_open(&self, seen: u64) -> bool {
        // A load has no place in that order, so it would not do.
        let gate = self.gate.fetch_or(0, AcqRel);
        gate & Self::OPEN != 0 && gate & Self::NUMBER != seen
    }

    /// If a loan other than `seen` is open: notes it as seen, goes inside and calls the closure with `argument`,
    /// which must not unwind. Returns whether it did.
    pub(crate) fn borrow(&self, seen: &mut u64, argument: usize) -> bool {
        let mut gate = self.gate.load(Relaxed);
        loop {
            if gate & Self::OPEN == 0 || gate & Self::NUMBER == *seen {
                return false;
            }
            match self.gate.compare_exchange_weak(gate, gate + 1, Acquire, Relaxed) {
                Ok(_) => break,
                Err(now) => gate = now,
            }
        }
        *seen = gate & Self::NUMBER;
        struct Leave<'l>(&'l Loan);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.gate.fetch_sub(1, Release);
            }
        }
        let _leave = Leave(self);
        // SAFETY: inside the gate the cell is not written, and the closure is alive until this thread leaves.
        if let Some(closure) = self.closure.with(|closure| unsafe { *closure }) {
            closure(argument);
        }
        true
    }
}
