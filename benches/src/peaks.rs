//! What the machine can do: the ceilings that results are given as a share of.

use minigpt_core::{Backend, Dtype, Span};
use minigpt_cpu::{Cpu, CpuError};

use crate::rivals::{Matrix, Rival};
use crate::rounds::{median, seconds};

/// The machine's ceilings on some number of threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// How many threads.
    pub threads: usize,
    /// GFLOP/s of multiply-adds in registers.
    pub fma: f64,
    /// GFLOP/s of the best library's product of two 1024 x 1024 matrices.
    pub sgemm: f64,
    /// Which library that is.
    pub best: &'static str,
    /// GB/s of reading as many bytes as the weights of M, which a large cache may hold.
    pub read: f64,
}

/// The bytes that M's weights take: what decoding a token has to read.
pub const READ_BYTES: usize = 43_000_000;

/// Sides of the matrices that the peak of matrix products is measured on.
pub const SGEMM_SIDE: usize = 1024;

impl Peaks {
    /// Measures them, on a machine that has nothing else to do, in about two seconds.
    ///
    /// # Errors
    /// If the threads or the memory for it are not to be had.
    pub fn measure(threads: usize, times: usize) -> Result<Peaks, CpuError> {
        let mut cpu = Cpu::builder().threads(threads).build()?;
        let fma = best(times, || {
            let mut flops = 0;
            let time = seconds(|| flops = cpu.multiply_adds(1_000_000));
            flops as f64 / time
        });
        let read = read_bandwidth(&mut cpu, READ_BYTES, times)?;
        let mut rivals = vec![Rival::Gemm(threads)];
        // It has one number of threads for the whole program.
        if threads == crate::machine::threads() {
            rivals.push(Rival::MatrixMultiply);
        }
        let sgemm = rivals.into_iter().map(|rival| (sgemm(rival, SGEMM_SIDE, times), rival.name()));
        let (sgemm, best) = sgemm.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::NAN, "no library"));
        Ok(Peaks { threads, fma: fma / 1e9, sgemm, best, read })
    }

    /// The same, if another library's product of matrices was faster.
    #[must_use]
    pub fn or_sgemm(self, sgemm: f64, best: &'static str) -> Peaks {
        if sgemm > self.sgemm { Peaks { sgemm, best, ..self } } else { self }
    }
}

impl std::fmt::Display for Peaks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Peaks { threads, fma, sgemm, best, read } = self;
        write!(
            f,
            "{threads} thread{}: multiply-adds {fma:.0} GFLOP/s, SGEMM at {SGEMM_SIDE} {sgemm:.0} GFLOP/s ({best}), \
             reading {:.0} MB {read:.1} GB/s",
            if *threads == 1 { "" } else { "s" },
            READ_BYTES as f64 / 1e6
        )
    }
}

/// The largest of `times` results: the machine's limit is what it shows when nothing disturbs it.
fn best(times: usize, mut measure: impl FnMut() -> f64) -> f64 {
    measure();
    (0..times.max(1)).map(|_| measure()).fold(0.0, f64::max)
}

/// GB/s of reading `bytes` again and again: the median, as it is held against a rate that is sustained.
///
/// # Errors
/// If there is no memory for them.
pub fn read_bandwidth(cpu: &mut Cpu<'_>, bytes: usize, times: usize) -> Result<f64, CpuError> {
    let buffer = cpu.alloc(bytes.next_multiple_of(4))?;
    let span = Span { buffer, dtype: Dtype::F32, offset: 0, len: bytes / 4 };
    cpu.fill(span, 1.0)?;
    for _ in 0..3 {
        cpu.read_through(span)?;
    }
    let rates: Vec<f64> = (0..times.max(1))
        .map(|_| {
            let time = seconds(|| {
                // The same span as before.
                let _ = cpu.read_through(span);
            });
            bytes as f64 / time / 1e9
        })
        .collect();
    cpu.release(buffer)?;
    Ok(median(&rates))
}

/// GFLOP/s of the product of two square matrices.
pub fn sgemm(rival: Rival, side: usize, times: usize) -> f64 {
    let values = |seed: usize| -> Vec<f32> {
        (0..side * side).map(|i| ((i * 31 + seed) % 17) as f32 / 17.0).collect()
    };
    let (a, b, mut out) = (values(1), values(2), values(3));
    best(times, || {
        let (a, b) = (Matrix::new(&a, side, side), Matrix::new(&b, side, side));
        let time = seconds(|| rival.multiply(a, b, false, &mut out));
        2.0 * (side as f64).powi(3) / time / 1e9
    })
}
