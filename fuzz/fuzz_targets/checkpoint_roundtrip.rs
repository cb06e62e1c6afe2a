//! What is written can be opened, is equal, and is written again as the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minigpt_fuzz::checkpoint_roundtrip(data));
