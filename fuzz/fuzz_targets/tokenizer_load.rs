//! Any bytes make a tokenizer that keeps its laws, or an error.
#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::tokenizer_load));
