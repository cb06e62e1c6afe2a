//! Any bytes make a model that runs, or an error. Inputs are edited as checkpoints and sealed again, so that most of
//! them get past the checksums.
#![no_main]

mod memory;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::checkpoint_load));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut bytes = |bytes: &mut [u8], size| fuzzer_mutate(bytes, size, bytes.len());
    minigpt_fuzz::mutate(&mut data[..max_size], size, seed, &mut bytes)
});
