//! Text and tokens turn into each other as the tokenizers' docs say.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minigpt_fuzz::tokenizer_roundtrip(data));
