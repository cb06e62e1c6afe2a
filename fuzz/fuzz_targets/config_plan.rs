//! What a config's validation and its plans say of it is true.
#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::config_plan));
