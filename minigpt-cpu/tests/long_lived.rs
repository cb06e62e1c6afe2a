//! What stays taken in a program that runs for long: of ten thousand calls and decoders, nothing.
#![cfg(feature = "std")]

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use minigpt_core::{Decoder, GptConfig, Model};
use minigpt_cpu::Cpu;

/// The bytes that stay taken by ten thousand calls of `f`, after a first.
fn left_by(mut f: impl FnMut()) -> isize {
    f();
    let before = heap::held();
    (0..10_000).for_each(|_| f());
    heap::held() as isize - before as isize
}

#[test]
fn ten_thousand_calls_and_decoders_leave_nothing_behind() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 16, ..GptConfig::new(11, 8) };
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let model = Model::new(cpu, config, 1).unwrap();

    let mut texts = [1; 6];
    let calls = left_by(|| {
        texts[0] = (texts[0] + 1) % 11;
        assert_eq!(model.logits(&texts, 1, 6).unwrap().len(), 66);
    });
    assert_eq!(calls, 0, "bytes stay of calls of `logits`");
    let decoders = left_by(|| {
        let mut decoder = Decoder::new(&model, 8).unwrap();
        decoder.feed(&[1, 2, 3]).unwrap();
    });
    assert_eq!(decoders, 0, "bytes stay of decoders");
}
