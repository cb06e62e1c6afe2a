//! What is written can be opened, is equal, and is written again as the same bytes.
#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::checkpoint_roundtrip));
