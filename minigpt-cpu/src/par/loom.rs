//! The team in all orders that its threads may take with up to two or three preemptions. `.ci/run` says how to run it.

use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::vec::Vec;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use loom::thread;

use super::Loan;
use crate::executor::Executor;

fn in_every_order(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(run);
}

/// A number that Loom watches over: that no write is under way when it is used, and that each that was is seen.
struct Watched(UnsafeCell<u32>);

// SAFETY: Loom fails the test where two threads use it at a time.
unsafe impl Sync for Watched {}

impl Watched {
    fn get(&self) -> u32 {
        // SAFETY: as for `Sync`.
        self.0.with(|x| unsafe { *x })
    }

    fn add_one(&self) {
        // SAFETY: as for `Sync`.
        self.0.with_mut(|x| unsafe { *x += 1 });
    }
}

#[test]
fn nobody_uses_a_closure_whose_loan_is_over_and_nobody_borrows_it_twice() {
    in_every_order(3, || {
        let loan = Arc::new(Loan::new());
        let borrowers: [_; 2] = core::array::from_fn(|i| {
            let loan = Arc::clone(&loan);
            thread::spawn(move || {
                let mut seen = 0;
                // Early, in time or late.
                (0..2).filter(|_| loan.borrow(&mut seen, i)).count()
            })
        });
        let mut borrowed = 0;
        for _ in 0..2 {
            let (local, count) = (Watched(UnsafeCell::new(0)), AtomicUsize::new(0));
            let read = |borrower: usize| {
                assert_eq!(local.get(), 0);
                let before = count.fetch_add(1 << (8 * borrower), Relaxed);
                assert_eq!(before >> (8 * borrower) & 0xff, 0, "one borrower came twice");
            };
            loan.lend(&read, || {});
            // Nobody reads it any more.
            local.add_one();
            borrowed += count.load(Relaxed).to_le_bytes().iter().map(|&n| usize::from(n)).sum::<usize>();
        }
        let said: usize = borrowers.into_iter().map(|borrower| borrower.join().unwrap()).sum();
        assert_eq!(borrowed, said);
    });
}

#[test]
fn who_falls_asleep_is_seen_or_sees_the_loan() {
    in_every_order(3, || {
        let (loan, asleep) = (Arc::new(Loan::new()), Arc::new(AtomicBool::new(false)));
        let sleeper = thread::spawn({
            let (loan, asleep) = (Arc::clone(&loan), Arc::clone(&asleep));
            move || {
                asleep.store(true, Release);
                loan.is_open(0)
            }
        });
        loan.lend(&|_| {}, || {
            let seen = asleep.load(Acquire);
            // While the loan is open.
            let sees = sleeper.join().unwrap();
            assert!(seen || sees);
        });
    });
}

/// Each task of each region runs once, its work is there when the region ends, and the team ends: it neither sleeps through
/// a region nor through its own end.
fn regions(preemptions: usize, threads: usize, regions: &'static [usize]) {
    in_every_order(preemptions, move || {
        let mut executor = Executor::team(threads).unwrap();
        for &tasks in regions {
            let done: Vec<Watched> = (0..tasks).map(|_| Watched(UnsafeCell::new(0))).collect();
            executor.run(tasks, &|task| done[task.index()].add_one());
            assert!(done.iter().all(|n| n.get() == 1));
        }
    });
}

#[test]
fn two_threads_do_each_task_of_each_region_once() {
    regions(3, 2, &[2, 3]);
}

#[test]
fn three_threads_do_each_task_once() {
    regions(2, 3, &[3]);
}
