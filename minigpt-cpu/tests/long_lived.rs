//! What stays taken in a program that runs for long: of ten thousand calls, of decoders that are released, and of decoders
//! that are only dropped.
#![cfg(feature = "std")]

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use minigpt_core::{Decoder, GptConfig, Model};
use minigpt_cpu::Cpu;

const TIMES: usize = 10_000;

/// The bytes that stay taken by `f`, each of the times that it is called.
fn left_by(model: &mut Model<Cpu<'static>>, mut f: impl FnMut(&mut Model<Cpu<'static>>)) -> f64 {
    f(model);
    let before = heap::held();
    (0..TIMES).for_each(|_| f(model));
    (heap::held() as f64 - before as f64) / TIMES as f64
}

#[test]
fn what_ten_thousand_calls_and_decoders_leave_behind_is_bounded() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 16, ..GptConfig::new(11, 8) };
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let mut model = Model::new(cpu, config, 1).unwrap();

    // The number of a buffer that was released is not used again: the entries of three stay in a table, which doubles
    // when it is full.
    let entries = 3.0 * 32.0 * 2.0;
    let mut texts = [1; 6];
    let calls = left_by(&mut model, |model| {
        texts[0] = (texts[0] + 1) % 11;
        assert_eq!(model.logits(&texts, 1, 6).unwrap().len(), 66);
    });
    let released = left_by(&mut model, |model| {
        let mut decoder = Decoder::new(model, 8).unwrap();
        decoder.feed(model, &[1, 2, 3]).unwrap();
        decoder.release(model).unwrap();
    });
    // A decoder that is dropped cannot reach its model, and what it took there stays taken.
    let mut plan = None;
    let dropped = left_by(&mut model, |model| {
        let decoder = Decoder::new(model, 8).unwrap();
        plan.get_or_insert_with(|| decoder.plan().clone());
    });
    println!("bytes left: {calls:.1} by a call, {released:.1} by a release, {dropped:.1} by a drop");
    assert!(calls <= entries, "{calls} bytes stay of each call of `logits`");
    assert!(released <= entries, "{released} bytes stay of each decoder that is released");
    let bytes = plan.unwrap().bytes;
    // Each buffer in whole lines.
    let taken = (bytes.activations + bytes.cache + bytes.state + 3 * 64) as f64;
    assert!(dropped <= taken + entries, "{dropped} bytes stay of each decoder that is dropped");
}
