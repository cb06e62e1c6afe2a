//! What a plan promises is what a training takes.
#![cfg(feature = "std")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use minigpt_core::train::{TrainConfig, Trainer};
use minigpt_core::{Backend, GptConfig, Model, Recompute, Windows};
use minigpt_cpu::Cpu;

/// Counts the bytes that all threads hold, and the most that they ever held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every method passes its arguments on to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(held, SeqCst);
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), SeqCst);
        // SAFETY: passed on to the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_plan_and_the_workspace_are_the_memory_that_training_takes() {
    let (vocab, time) = (65, 64);
    let text: Vec<u32> = (0..500).map(|i| i * i % vocab as u32).collect();
    let windows = Windows::new(&text, time).unwrap();
    use Recompute::{Blocks, Cheap, Nothing};
    // 2560 rows go through in slices.
    for (recompute, batch) in [(Nothing, 8), (Cheap, 8), (Cheap, 40), (Blocks, 8), (Blocks, 40)] {
        let config = GptConfig::new(vocab, time);
        let cpu = Cpu::builder().threads(2).build().unwrap();
        let before = HELD.load(SeqCst);
        PEAK.store(before, SeqCst);
        let settings = TrainConfig { batch, time, recompute, ..TrainConfig::constant(1e-3) };
        let mut trainer = Trainer::new(Model::new(cpu, config, 1).unwrap(), settings).unwrap();
        for _ in 0..2 {
            trainer.step(&windows).unwrap();
        }
        let taken = (PEAK.load(SeqCst) - before) as f64;
        let plan = trainer.plan();
        let promised = (plan.bytes.total() + trainer.model().backend().workspace_bytes(plan)) as f64;
        assert!(
            (taken / promised - 1.0).abs() < 0.02,
            "{recompute:?}, {batch}: {promised} bytes were promised, {taken} were taken"
        );
    }
}
