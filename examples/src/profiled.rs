//! [`Profiled`]: any backend, with a clock on every op; and [`Ceilings`]: what the machine could do at most.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use minigpt_core::{Backend, Buffer, Dtype, Op, OpKind, Span};
use minigpt_cpu::Cpu;

use crate::Outcome;

/// What the ops of one kind have cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// How often one ran.
    pub calls: u64,
    /// How long they took.
    pub time: Duration,
    /// Floating-point operations of their matrix products.
    pub flops: u64,
    /// Bytes of their operands: what has to be read and written at least.
    pub bytes: u64,
}

/// Which of the machine's limits an op runs into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Its multiply-adds take longer than its bytes.
    Arithmetic,
    /// Its bytes take longer to fetch and store.
    Memory,
}

/// The machine's limits, as measured beside the ops that are held against them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// GFLOP/s of multiply-adds that never leave the registers.
    pub gflops: f64,
    /// GB/s of reading `read` bytes from end to end.
    pub gb: f64,
    /// How many bytes that were.
    pub read: usize,
}

impl Ceilings {
    /// Measures them on so many threads of the CPU. Reading is measured over `bytes`, so that the same caches hold
    /// them as hold the work; no less than 1 MB and no more than 256 MB.
    ///
    /// # Errors
    /// If the threads cannot be started or there is no memory to read.
    pub fn measure(threads: usize, bytes: usize) -> Outcome<Ceilings> {
        const TIMES: usize = 40;
        let mut cpu = Cpu::builder().threads(threads).build()?;
        let read = bytes.clamp(1 << 20, 256 << 20).next_multiple_of(4);
        let span = Span { buffer: cpu.alloc(read)?, dtype: Dtype::F32, offset: 0, len: read / 4 };
        cpu.fill(span, 1.0)?;
        let (mut gflops, mut gb) = (0.0, 0.0);
        // The most of several: a limit is what shows when nothing disturbs it.
        for _ in 0..TIMES {
            let begun = Instant::now();
            let flops = cpu.multiply_adds(1_000_000);
            gflops = f64::max(gflops, flops as f64 / begun.elapsed().as_secs_f64() / 1e9);
            let begun = Instant::now();
            cpu.read_through(span)?;
            gb = f64::max(gb, read as f64 / begun.elapsed().as_secs_f64() / 1e9);
        }
        Ok(Ceilings { gflops, gb, read })
    }

    /// Seconds that the arithmetic and the bytes of an op take at least.
    fn least(&self, cost: &Cost) -> (f64, f64) {
        (cost.flops as f64 / self.gflops / 1e9, cost.bytes as f64 / self.gb / 1e9)
    }

    /// Which limit it runs into (Williams, Waterman and Patterson 2009: the roofline). Only multiply-adds of matrix
    /// products count as arithmetic, so an op without any is bound by memory whatever it computes.
    pub fn bound(&self, cost: &Cost) -> Bound {
        let (arithmetic, memory) = self.least(cost);
        if arithmetic > memory { Bound::Arithmetic } else { Bound::Memory }
    }

    /// How much of its time that limit accounts for. More than 1 if its operands lay in a cache that is faster than
    /// what was measured.
    pub fn share(&self, cost: &Cost) -> f64 {
        let (arithmetic, memory) = self.least(cost);
        arithmetic.max(memory) / cost.time.as_secs_f64()
    }
}

/// A backend that runs another's ops one at a time and keeps account of them.
///
/// It waits for each op, so a backend that queues its work is slower under it.
#[derive(Debug)]
pub struct Profiled<B> {
    inner: B,
    /// In a cell, because `Device::inspect` hands out a shared reference.
    costs: RefCell<Vec<Cost>>,
}

impl<B: Backend> Profiled<B> {
    /// `inner`, with all accounts empty.
    pub fn new(inner: B) -> Self {
        Profiled { inner, costs: RefCell::new(vec![Cost::default(); OpKind::ALL.len()]) }
    }

    /// Empties all accounts.
    pub fn reset(&self) {
        self.costs.borrow_mut().fill(Cost::default());
    }

    /// The kinds of op that ran, the costliest first.
    pub fn costs(&self) -> Vec<(OpKind, Cost)> {
        let mut costs: Vec<(OpKind, Cost)> = OpKind::ALL
            .iter()
            .copied()
            .zip(self.costs.borrow().iter().copied())
            .filter(|(_, cost)| cost.calls > 0)
            .collect();
        costs.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.time));
        costs
    }
}

impl<B: Backend> Backend for Profiled<B> {
    type Elem = B::Elem;
    type Error = B::Error;

    fn run(&mut self, op: &Op) -> Result<(), B::Error> {
        let begun = Instant::now();
        self.inner.run(op)?;
        self.inner.sync()?;
        let time = begun.elapsed();
        if let Some(cost) = self.costs.get_mut().get_mut(op.kind() as usize) {
            cost.calls += 1;
            cost.time += time;
            cost.flops += op.flops();
            cost.bytes += op.bytes();
        }
        Ok(())
    }

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, B::Error> {
        self.inner.alloc(bytes)
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), B::Error> {
        self.inner.write(to, bytes)
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), B::Error> {
        self.inner.read(from, bytes)
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), B::Error> {
        self.inner.copy(from, to)
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), B::Error> {
        self.inner.fill(to, value)
    }

    fn sync(&mut self) -> Result<(), B::Error> {
        self.inner.sync()
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), B::Error> {
        self.inner.release(buffer)
    }

    fn fell_back(&mut self, op: OpKind) {
        self.inner.fell_back(op);
    }

    fn rows_at_once(&self) -> usize {
        self.inner.rows_at_once()
    }

    fn workspace_bytes(&self, ops: &[Op]) -> usize {
        self.inner.workspace_bytes(ops)
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), B::Error> {
        self.inner.reserve(bytes)
    }
}

#[cfg(test)]
mod tests {
    use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};

    use super::*;

    #[test]
    fn the_nearer_ceiling_bounds() {
        let ceilings = Ceilings { gflops: 100.0, gb: 10.0, read: 1 << 20 };
        let time = Duration::from_secs(2);
        let product = Cost { calls: 1, time, flops: 100_000_000_000, bytes: 5_000_000_000 };
        assert_eq!((ceilings.bound(&product), ceilings.share(&product)), (Bound::Arithmetic, 0.5));
        let copy = Cost { calls: 1, time, flops: 0, bytes: 15_000_000_000 };
        assert_eq!((ceilings.bound(&copy), ceilings.share(&copy)), (Bound::Memory, 0.75));
    }

    #[test]
    fn the_machine_has_ceilings() {
        let ceilings = Ceilings::measure(1, 0).unwrap();
        assert_eq!(ceilings.read, 1 << 20);
        assert!(ceilings.gflops > 0.01 && ceilings.gb > 0.01, "{ceilings:?}");
    }

    #[test]
    fn a_profiled_run_computes_the_same_and_accounts_for_every_op() {
        let tokens: Vec<u32> = (0..200).map(|i| i % 7).collect();
        let windows = Windows::new(&tokens, 8).unwrap();
        let config = GptConfig { layers: 2, heads: 2, d_model: 16, d_ff: 32, ..GptConfig::new(7, 8) };
        let settings = TrainConfig { batch: 2, time: 8, ..TrainConfig::constant(1e-2) };
        let model = Model::new(Reference::<f32>::new(), config.clone(), 1).unwrap();
        let mut plain = Trainer::new(&model, settings.clone()).unwrap();
        let model = Model::new(Profiled::new(Reference::<f32>::new()), config, 1).unwrap();
        let mut profiled = Trainer::new(&model, settings).unwrap();
        for _ in 0..3 {
            plain.step(&windows).unwrap();
            profiled.step(&windows).unwrap();
        }
        assert_eq!(plain.metrics().unwrap(), profiled.metrics().unwrap());
        let costs = model.device().inspect(Profiled::costs);
        let calls = |kind| costs.iter().find(|(k, _)| *k == kind).map_or(0, |(_, cost)| cost.calls);
        // Four linear layers in each of two blocks, and the head.
        assert_eq!((calls(OpKind::LinearForward), calls(OpKind::LinearBackward)), (27, 27));
        // In each step one for what decays and one for what does not.
        assert_eq!((calls(OpKind::AdamW), calls(OpKind::AttentionForward)), (6, 6));
        // A step begins with gradients, the loss and the number of targets at zero.
        assert_eq!(calls(OpKind::Fill), 9);
        assert!(costs.windows(2).all(|pair| pair[0].1.time >= pair[1].1.time));
        model.device().inspect(Profiled::reset);
        assert!(model.device().inspect(Profiled::costs).is_empty());
    }
}
