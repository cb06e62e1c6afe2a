//! The machine's two ceilings as these kernels can reach them: arithmetic that waits for no memory, and memory that
//! waits for no arithmetic.
//!
//! Held against a measured op, they tell which of the two bounds it (Williams, Waterman and Patterson 2009,
//! "Roofline: an insightful visual performance model"). The caller has the clock, so this works without std.

use core::hint::black_box;

use minigpt_core::Span;

use crate::Cpu;
use crate::arch::{Kernel, Vector};
use crate::context::{Job, Team};
use crate::error::CpuError;
use crate::par::{Chunks, Views};

/// Independent sums in registers: more than two units of four cycles' latency need, and together with the two
/// constants no more than the sixteen registers of AVX2.
const CHAINS: usize = 12;

/// Tasks for each thread, so that a thread that begins late does less.
const SHARE: u64 = 16;

/// Floats that a task reads: some microseconds of work.
const TASK: usize = 1 << 16;

/// Multiply-adds on registers alone. Gives the number of floating-point operations.
struct MultiplyAdds {
    rounds: u64,
}

impl Kernel for MultiplyAdds {
    type Output = u64;
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) -> u64 {
        // From 2 towards 1, so that the numbers stay ordinary ones.
        let (factor, term) = (V::splat(t, black_box(0.5)), V::splat(t, black_box(0.5)));
        let mut sums = [V::splat(t, black_box(2.0)); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = sum.mul_add(factor, term);
            }
        }
        // By reference: an array that is moved away as a whole stays in memory instead of registers.
        black_box(sums.iter().fold(V::splat(t, 0.0), |a, &b| a + b).sum());
        self.rounds.saturating_mul((2 * CHAINS * V::LANES) as u64)
    }
}

/// The sums of `TASK` numbers each, which take all of them from memory and little else.
struct Sums<'s>(&'s [f32]);

impl Job<Chunks<'_, f32>> for Sums<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, sum: &mut [f32]) {
        let start = index * TASK;
        let x = &self.0[start..(start + TASK).min(self.0.len())];
        let mut sums = [V::splat(t, 0.0); 8];
        let mut groups = x.chunks_exact(8 * V::LANES);
        for group in &mut groups {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = *sum + V::load(t, &group[i * V::LANES..]);
            }
        }
        for rest in groups.remainder().chunks(V::LANES) {
            sums[0] = sums[0] + V::load_partial(t, rest);
        }
        sum[0] = sums.iter().fold(V::splat(t, 0.0), |a, &b| a + b).sum();
    }
}

impl Cpu<'_> {
    /// Multiplies and adds in registers, on every thread at once and `rounds` times over, and tells how many
    /// floating-point operations that were. Divided by the time that it took, they are the arithmetic peak of this
    /// instruction set on these threads. A million rounds take some milliseconds.
    ///
    /// ```
    /// let mut cpu = minigpt_cpu::Cpu::new()?;
    /// let begun = std::time::Instant::now();
    /// let flops = cpu.multiply_adds(1_000_000);
    /// println!("{:.0} GFLOP/s", flops as f64 / begun.elapsed().as_secs_f64() / 1e9);
    /// // At least a multiplication and an addition in every round.
    /// assert!(flops >= 2_000_000);
    /// # Ok::<(), minigpt_cpu::CpuError>(())
    /// ```
    pub fn multiply_adds(&mut self, rounds: u64) -> u64 {
        let simd = self.simd;
        let tasks = self.executor.threads() as u64 * SHARE;
        let rounds = rounds.div_ceil(SHARE);
        self.executor.run(tasks as usize, &|_| {
            simd.dispatch(MultiplyAdds { rounds });
        });
        simd.dispatch(MultiplyAdds { rounds: 1 }).saturating_mul(rounds).saturating_mul(tasks)
    }

    /// Reads all of `from`, a span of f32, on all threads together, and gives the sum. The span's bytes divided by the
    /// time that it took are the bandwidth of whatever holds that many bytes, a cache or memory.
    ///
    /// # Errors
    /// If the span is not of f32 or not inside its buffer, or there is no memory for the partial sums.
    ///
    /// ```
    /// use minigpt_core::{Backend, Dtype, Span};
    /// let mut cpu = minigpt_cpu::Cpu::new()?;
    /// let span = Span { buffer: cpu.alloc(4 << 20)?, dtype: Dtype::F32, offset: 0, len: 1 << 20 };
    /// cpu.fill(span, 0.5)?;
    /// let begun = std::time::Instant::now();
    /// assert_eq!(cpu.read_through(span)?, 524_288.0);
    /// println!("{:.1} GB/s", f64::from(4 << 20) / begun.elapsed().as_secs_f64() / 1e9);
    /// # Ok::<(), minigpt_cpu::CpuError>(())
    /// ```
    pub fn read_through(&mut self, from: Span) -> Result<f32, CpuError> {
        let x = Views::new(&mut self.memory).f32("from", from)?;
        let sums = self.scratch.floats(x.len().div_ceil(TASK))?;
        let mut team = Team { executor: &mut self.executor, simd: self.simd };
        team.for_each(Chunks::new(sums, 1), &Sums(x));
        Ok(sums.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use minigpt_core::backend::write_elems;
    use minigpt_core::{Backend, Dtype, InvalidOp};
    use std::vec::Vec;

    use super::*;
    use crate::Isa;

    #[test]
    fn every_number_is_read_once_on_every_instruction_set() {
        for isa in Isa::available() {
            let mut cpu = Cpu::builder().isa(isa).build().unwrap();
            // Under Miri, TASK numbers take minutes.
            let lens = [0, 1, 7, 65, TASK - 1, TASK + 3];
            for len in lens.into_iter().filter(|&len| !cfg!(miri) || len < 100) {
                let span = Span { buffer: cpu.alloc(len * 4).unwrap(), dtype: Dtype::F32, offset: 0, len };
                let values: Vec<f32> = (0..len).map(|i| (i % 8) as f32).collect();
                write_elems(&mut cpu, span, &values).unwrap();
                // Small whole numbers: exact in any order.
                assert_eq!(cpu.read_through(span).unwrap(), values.iter().sum::<f32>(), "{isa}, {len}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let mut cpu = Cpu::new().unwrap();
        let span = Span { buffer: cpu.alloc(64).unwrap(), dtype: Dtype::F32, offset: 0, len: 17 };
        let past = InvalidOp::OutOfBounds { operand: "from", end: 68, size: 64 };
        assert!(matches!(cpu.read_through(span), Err(CpuError::Invalid(error)) if error == past));
    }

    #[test]
    fn operations_are_counted_for_every_thread_and_lane() {
        for isa in Isa::available() {
            let lanes = match isa {
                Isa::Portable => 4,
                Isa::Avx2 => 8,
                Isa::Avx512 => 16,
            };
            let mut cpu = Cpu::builder().isa(isa).build().unwrap();
            let each = cpu.multiply_adds(SHARE) / (SHARE * cpu.threads() as u64);
            assert_eq!(each, 2 * CHAINS as u64 * lanes, "{isa}");
            assert_eq!(cpu.multiply_adds(0), 0);
        }
    }
}
