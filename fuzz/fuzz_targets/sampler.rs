//! Any logits and settings give a token that may be chosen, or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minigpt_fuzz::sampler(data));
