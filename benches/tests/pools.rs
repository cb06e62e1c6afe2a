//! A CPU backend inside a caller's own threads: many at once, in a pool of rayon's as well as in plain threads.

use minigpt_benches::Shape;
use minigpt_benches::shape::Training;
use minigpt_cpu::Cpu;

/// The losses of some steps on a backend of `threads` threads.
fn losses(threads: usize) -> Vec<f64> {
    let cpu = Cpu::builder().threads(threads).build().expect("threads can be started");
    let mut training = Training::new(&Shape::tiny(), cpu).expect("tiny fits into memory");
    (0..6).map(|_| training.step()).collect()
}

#[test]
fn backends_side_by_side_in_a_pool_of_rayons_give_the_bits_of_one_alone() {
    let alone = losses(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let mut all = vec![Vec::new(); 8];
    // More backends than the pool has threads, each with a team of its own.
    pool.scope(|scope| {
        for (i, found) in all.iter_mut().enumerate() {
            scope.spawn(move |_| *found = losses(1 + i % 3));
        }
    });
    assert!(all.iter().all(|found| *found == alone), "{alone:?}\n{all:?}");
}

#[test]
fn one_backend_may_be_handed_from_thread_to_thread_of_a_pool() {
    let alone = losses(2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let cpu = Cpu::builder().threads(2).build().unwrap();
    let mut training = Training::new(&Shape::tiny(), cpu).unwrap();
    // `install` runs each step on whichever thread of the pool is free.
    let found: Vec<f64> = (0..6).map(|_| pool.install(|| training.step())).collect();
    assert_eq!(found, alone);
}
