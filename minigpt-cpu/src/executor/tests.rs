use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use std::vec::Vec;

#[test]
fn every_task_runs_once() {
    for threads in 1..5 {
        let mut executor = Executor::team(threads).unwrap();
        assert_eq!(executor.threads(), threads);
        for tasks in [0, 1, 2, 3, 7, 100] {
            let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            executor.run(tasks, &|task| {
                assert!(task.worker() < threads);
                counts[task.index()].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
        }
    }
}

#[test]
fn many_small_regions_end_also_when_helpers_sleep_between_them() {
    let mut executor = Executor::team(3).unwrap();
    let total = AtomicUsize::new(0);
    let rounds = if cfg!(miri) { 50 } else { 2000 };
    for round in 0..rounds {
        if round % (rounds / 5) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        executor.run(4, &|task| {
            total.fetch_add(task.index(), Relaxed);
        });
    }
    assert_eq!(total.load(Relaxed), rounds * 6);
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_team_lives_on() {
    for threads in 1..4 {
        let mut executor = Executor::team(threads).unwrap();
        for bad in [0, 5, 15] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                executor.run(16, &|task| assert!(task.index() != bad, "task {bad}"));
            }));
            let message = result.unwrap_err().downcast::<std::string::String>().unwrap();
            assert_eq!(*message, std::format!("task {bad}"));
            let ran = AtomicUsize::new(0);
            executor.run(16, &|_| {
                ran.fetch_add(1, Relaxed);
            });
            assert_eq!(ran.load(Relaxed), 16);
        }
    }
}
