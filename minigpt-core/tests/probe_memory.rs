//! A host without memory for what a probe wants: an error wherever it runs out, never an abort. One test, because the allocator
//! is the whole program's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use minigpt_core::probe::Recording;
use minigpt_core::{
    BackendError, Error, ErrorKind, GptConfig, InvalidOp, Model, Reference, ReferenceError, TrainConfig,
    Trainer,
};

/// Has no room for one of the large allocations.
struct Failing;

/// How many large allocations there are room for before the one that fails.
static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Smaller ones are names and lists, in which nothing grows with a batch.
const LARGE: usize = 4096;

// SAFETY: every call that does not fail, as an allocation may, goes to the system's allocator with the caller's own arguments,
// whose contract is the same.
#[allow(unsafe_code, reason = "an allocator is unsafe to write")]
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE && LEFT.fetch_sub(1, SeqCst) == 0 {
            LEFT.store(usize::MAX, SeqCst);
            return std::ptr::null_mut();
        }
        // SAFETY: the caller promises that the layout has a size, as `System` needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that `alloc` gave this pointer for this layout, and that came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Lets large allocation after large allocation of `f` fail until none does, and returns how many did.
fn each_failing(mut f: impl FnMut() -> Result<(), Error<ReferenceError>>) -> usize {
    for nth in 0.. {
        LEFT.store(nth, SeqCst);
        let result = f();
        let all_held = LEFT.swap(usize::MAX, SeqCst) < usize::MAX / 2;
        match result {
            Ok(()) => {
                assert!(all_held, "large allocation {nth} failed and nobody noticed");
                return nth;
            }
            Err(Error::Backend(ReferenceError::Op(InvalidOp::HostMemory { .. }))) => {}
            Err(Error::Backend(error) | Error::Memory { source: error, .. }) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            }
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("some day all allocations hold")
}

#[test]
fn wherever_the_host_runs_out_of_memory_there_is_an_error() {
    let (batch, time) = (2, 48);
    let config = GptConfig { layers: 1, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(24, time) };
    let tokens: Vec<u32> = (0..96).map(|i| i * i % 24).collect();
    let model = Model::new(Reference::<f32>::new(), config.clone(), 1).unwrap();
    let logits = model.logits(&tokens, batch, time).unwrap();
    let failed = each_failing(|| {
        let mut all = Recording::of(|_| true);
        model.observe(&tokens, batch, time, &mut all).map(|observed| assert_eq!(observed, logits))
    });
    assert!(failed > 50, "{failed}");

    let trainer = || {
        let settings = TrainConfig { batch, time, ..TrainConfig::constant(0.1) };
        Trainer::new(&Model::new(Reference::<f32>::new(), config.clone(), 1).unwrap(), settings).unwrap()
    };
    let (mut observed, mut plain) = (trainer(), trainer());
    let failed = each_failing(|| {
        let mut all = Recording::of(|_| true).with_gradients_of(|_| true);
        observed.observe_micro_step(&tokens, &tokens, &mut all)
    });
    assert!(failed > 100, "{failed}");
    plain.micro_step(&tokens, &tokens).unwrap();
    for trainer in [&mut observed, &mut plain] {
        trainer.finish_step().unwrap();
    }
    for (parameter, _) in plain.model().parameters() {
        let of = |trainer: &Trainer<_>| trainer.model().parameter(&parameter.name).unwrap();
        assert!(of(&observed) == of(&plain), "{}", parameter.name);
    }
    let losses = [observed, plain].map(|mut trainer| trainer.metrics().unwrap().loss);
    assert_eq!(losses[0], losses[1]);
}
