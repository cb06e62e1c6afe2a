//! Weights that are read where they lie: no memory for them, and one copy for any number of models and threads. A
//! big-endian processor copies them.
#![cfg(all(feature = "std", target_endian = "little"))]

#[path = "../../minigpt-core/tests/support/heap.rs"]
mod heap;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use minigpt_core::checkpoint::{self, Contents, TensorSpec};
use minigpt_core::{
    Checkpoint, Decoder, Device, Dtype, GptConfig, Model, Plan, SampleConfig, Sampler, SharedBytes, Tokenizer,
};
use minigpt_cpu::Cpu;

/// What is allocated is counted for the whole process, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// Seven characters, in f32.
static CHARS: &Aligned<[u8]> = &Aligned(*include_bytes!("../../minigpt-core/tests/golden/v1/chars.mgpt"));

/// Bytes that begin `skip` bytes behind a multiple of 64.
fn place(file: &[u8], skip: usize) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut bytes = vec![0; file.len() + 128];
    let begin = bytes.as_ptr().align_offset(64) + skip;
    bytes[begin..begin + file.len()].copy_from_slice(file);
    (bytes, begin..begin + file.len())
}

fn cpu<'a>() -> Cpu<'a> {
    Cpu::builder().threads(1).build().unwrap()
}

/// The first tokens that a model generates, greedily.
fn generate(model: &mut Model<Cpu<'_>>, prompt: &[u32], len: usize) -> Vec<u32> {
    let mut decoder = Decoder::new(model, 4).unwrap();
    decoder.feed(prompt).unwrap();
    let mut sampler = Sampler::new(SampleConfig::greedy(), model.config().vocab_size).unwrap();
    decoder.generate(&mut sampler).take(len).collect::<Result<_, _>>().unwrap()
}

#[test]
fn opening_100_mb_takes_less_than_64_kib_of_heap() {
    let _turn = TURN.lock().unwrap();
    let config = GptConfig { layers: 12, heads: 12, d_model: 420, d_ff: 1680, ..GptConfig::new(256, 256) };
    let plan = Plan::smallest(&config, Dtype::F32).unwrap();
    let tensors = TensorSpec::parameters(&plan);
    let contents =
        Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &tensors };
    let mut file = Vec::with_capacity(110 << 20);
    // The chunk that is to be filled is zero already.
    checkpoint::write(&mut file, &contents, |_, _, _| Ok::<(), Infallible>(())).unwrap();
    assert!(file.len() > 100_000_000, "{}", file.len());

    let cpu = cpu();
    let (taken, model) = heap::peak(|| Model::borrow(cpu, &Checkpoint::open(&file).unwrap()).unwrap());
    assert_eq!(model.copied_bytes(), 0);
    assert!(taken < 64 << 10, "{taken} bytes");
}

#[test]
fn what_is_not_aligned_is_copied_and_the_model_says_so() {
    let _turn = TURN.lock().unwrap();
    let file = &CHARS.0;
    let expected = generate(&mut Model::borrow(cpu(), &Checkpoint::open(file).unwrap()).unwrap(), &[4, 0], 9);
    for skip in 0..8 {
        let (bytes, range) = place(file, skip);
        let checkpoint = Checkpoint::open(&bytes[range]).unwrap();
        let mut model = Model::borrow(cpu(), &checkpoint).unwrap();
        let weights: usize = checkpoint.parameters().unwrap().iter().map(|tensor| tensor.bytes.len()).sum();
        let usable = skip % 4 == 0 && cfg!(target_endian = "little");
        assert_eq!(model.copied_bytes(), if usable { 0 } else { weights }, "{skip} bytes off");
        assert_eq!(generate(&mut model, &[4, 0], 9), expected, "{skip} bytes off");
        assert_eq!(Model::load(cpu(), &checkpoint).unwrap().copied_bytes(), 0);
    }
}

/// A file that tells when it is let go.
struct Owner {
    bytes: Vec<u8>,
    range: std::ops::Range<usize>,
    gone: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_model_keeps_the_file_that_it_was_given_and_lets_it_go() {
    let _turn = TURN.lock().unwrap();
    let borrowed = &mut Model::borrow(cpu(), &Checkpoint::open(&CHARS.0).unwrap()).unwrap();
    let expected = generate(borrowed, &[1, 2], 9);
    for (skip, is_copied) in [(0, false), (2, true)] {
        let gone = Arc::new(AtomicBool::new(false));
        let (bytes, range) = place(&CHARS.0, skip);
        let file = SharedBytes::new(Owner { bytes, range, gone: Arc::clone(&gone) });
        let device = Device::new(cpu());
        let mut model = Model::share(&device, &file).unwrap();
        drop(file);
        assert_eq!(model.copied_bytes() > 0, is_copied);
        assert_eq!(gone.load(Ordering::Relaxed), is_copied);
        assert_eq!(generate(&mut model, &[1, 2], 9), expected);
        let handle = model.clone();
        drop(model);
        assert_eq!(gone.load(Ordering::Relaxed), is_copied);
        let name = handle.parameters().next().unwrap().0.name.clone();
        let values = handle.parameter(&name).unwrap().unwrap();
        assert!(handle.set_parameter(&name, &values).is_err());
        drop(handle);
        assert!(gone.load(Ordering::Relaxed));
    }
}

#[test]
fn a_file_that_changes_beneath_its_model_is_an_error() {
    let _turn = TURN.lock().unwrap();
    struct Cut(Vec<u8>, std::ops::Range<usize>, Arc<AtomicBool>);
    impl AsRef<[u8]> for Cut {
        fn as_ref(&self) -> &[u8] {
            let whole = &self.0[self.1.clone()];
            if self.2.load(Ordering::Relaxed) { &whole[..100] } else { whole }
        }
    }
    let is_cut = Arc::new(AtomicBool::new(false));
    let (bytes, range) = place(&CHARS.0, 0);
    let model = Model::share(cpu(), &SharedBytes::new(Cut(bytes, range, Arc::clone(&is_cut)))).unwrap();
    let mut decoder = Decoder::new(&model, 4).unwrap();
    decoder.feed(&[1]).unwrap();
    is_cut.store(true, Ordering::Relaxed);
    assert!(decoder.feed(&[1]).is_err());
    is_cut.store(false, Ordering::Relaxed);
    decoder.feed(&[1]).unwrap();
}

#[test]
fn several_texts_take_turns_on_one_model() {
    let _turn = TURN.lock().unwrap();
    let checkpoint = Checkpoint::open_verified(&CHARS.0).unwrap();
    let mut model = Model::borrow(cpu(), &checkpoint).unwrap();
    let prompts: [&[u32]; 3] = [&[0], &[1, 2, 3], &[6, 5]];
    let alone = prompts.map(|prompt| generate(&mut model, prompt, 20));

    let vocab = model.config().vocab_size;
    let mut texts = prompts.map(|prompt| {
        let mut decoder = Decoder::new(&model, 4).unwrap();
        decoder.feed(prompt).unwrap();
        (decoder, Sampler::new(SampleConfig::greedy(), vocab).unwrap(), Vec::new())
    });
    for _ in 0..20 {
        for (decoder, sampler, text) in &mut texts {
            text.push(decoder.generate(sampler).next().unwrap().unwrap());
        }
    }
    assert_eq!(texts.map(|(_, _, text)| text), alone);
}

#[test]
fn models_on_several_threads_share_the_bytes_of_one_file() {
    let _turn = TURN.lock().unwrap();
    let checkpoint = Checkpoint::open_verified(&CHARS.0).unwrap();
    let prompt = checkpoint.tokenizer().unwrap().encode("hello").unwrap();
    let expected = generate(&mut Model::load(cpu(), &checkpoint).unwrap(), &prompt, 30);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut model = Model::borrow(cpu(), &checkpoint).unwrap();
                    (model.copied_bytes(), generate(&mut model, &prompt, 30))
                })
            })
            .collect();
        for thread in threads {
            let (copied, text) = thread.join().unwrap();
            assert_eq!(text, expected);
            assert!(copied == 0 || cfg!(target_endian = "big"));
        }
    });
}
