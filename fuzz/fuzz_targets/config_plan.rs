//! What a config's validation and its plans say of it is true.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minigpt_fuzz::config_plan(data));
