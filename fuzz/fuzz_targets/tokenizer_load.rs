//! Any bytes make a tokenizer that keeps its laws, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minigpt_fuzz::tokenizer_load(data));
