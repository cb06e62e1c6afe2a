//! Any logits and settings give a token that may be chosen, or an error.
#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::sampler));
