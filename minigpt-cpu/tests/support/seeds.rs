/// The seeds of a test: the first ones, as many as the environment variable `MINIGPT_SEEDS` says or else `usual`. More take
/// longer and find what few may miss.
pub(crate) fn seeds(usual: u64) -> core::ops::RangeInclusive<u64> {
    let count = std::env::var("MINIGPT_SEEDS")
        .map_or(usual, |seeds| seeds.parse().expect("MINIGPT_SEEDS is a number of seeds, such as 20"));
    assert!(count > 0, "MINIGPT_SEEDS=0 would test nothing");
    1..=count
}
