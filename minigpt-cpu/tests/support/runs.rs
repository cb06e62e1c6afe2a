use core::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// The seeds of a test: the first ones, as many as the environment variable `MINIGPT_SEEDS` says or else `usual`. More take
/// longer and find what few may miss.
pub(crate) fn seeds(usual: u64) -> RangeInclusive<u64> {
    let count = std::env::var("MINIGPT_SEEDS")
        .map_or(usual, |seeds| seeds.parse().expect("MINIGPT_SEEDS is a number of seeds, such as 20"));
    assert!(count > 0, "MINIGPT_SEEDS=0 would test nothing");
    1..=count
}

/// What `f` makes of each, several at a time.
pub(crate) fn on_every_core<T: Sync, R: Send>(of: &[T], f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, next, f) = (sender.clone(), &next, &f);
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = of.get(place) else { break };
                    sender.send((place, f(one))).expect("the receiver lives longer");
                }
            });
        }
    });
    drop(sender);
    let mut results: Vec<(usize, R)> = receiver.iter().collect();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}
