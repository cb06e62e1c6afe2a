//! Text and tokens turn into each other as the tokenizers' docs say.
#![no_main]

mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| memory::bounded(data, minigpt_fuzz::tokenizer_roundtrip));
