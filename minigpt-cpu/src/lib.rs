//! The CPU backend of minigpt: SIMD chosen at run time, threads, and no_std.
//!
//! [`Cpu`] finds out once, when it is made, what the processor can do, and runs every op on the widest vectors
//! there are ([`Isa`]). No `target-cpu` flag is needed, and one binary is fast on every machine.
//!
//! ```
//! use minigpt_core::{Backend, Dtype, Span};
//! use minigpt_cpu::Cpu;
//!
//! let mut cpu = Cpu::new()?;
//! let buffer = cpu.alloc(16)?;
//! let span = Span { buffer, dtype: Dtype::F32, offset: 0, len: 4 };
//! cpu.fill(span, 1.5)?;
//! assert_eq!(minigpt_core::backend::read_elems(&mut cpu, span)?, [1.5; 4]);
//! # Ok::<(), minigpt_cpu::CpuError>(())
//! ```
//!
//! # Choosing the instruction set
//! From the strongest wish to the weakest: [`Builder::isa`]; the environment variable `MINIGPT_CPU_ISA`
//! (`portable`, `avx2` or `avx512`; needs std); `--cfg minigpt_cpu_isa="portable"` (or another name) in the
//! compiler's flags of the build; the fastest that is found. A wish that the machine cannot fulfil is an error.
//!
//! # Threads and reproducibility
//! With std, as many threads as the system offers, or as [`Builder::threads`] asks. How work is cut up depends on
//! shapes alone: on one instruction set, every number of threads gives the same bits.
//!
//! The threads are a small team that belongs to the backend and sleeps while it has nothing to do. So a `Cpu` may be
//! made and used anywhere, also inside a caller's own thread pool, and several may work side by side, each with its
//! team; with `threads(1)` it works on the caller's thread and starts none. Without std there is no thread code in the
//! library at all.
//!
//! A step consists of many short parallel regions that follow each other closely, so handing out work must cost little.
//! On two cores of an EPYC (Zen 4), a region with nothing in it took the team 0.8 microseconds and rayon's pool 11 to 21,
//! depending on how it is asked. Where all threads had slept for two milliseconds, the team took 59, rayon's parallel
//! iterators and its broadcast 69 and 94, and only its scope less, 25 (`cargo bench -p minigpt-benches --bench threads`).
//! A step sleeps nowhere, so there is no adapter to rayon.
//!
//! # Weights in fewer bits
//! The forward pass reads weights in f32, f16, bf16, Q8_0 and Q4_0 where they lie, in memory of the backend or borrowed
//! through [`Import`]. They are widened in registers to exactly the f32 that they stand for, so results differ from
//! those of the same weights in f32 by rounding alone. Generation is bound by reading the weights: fewer bits are
//! faster (`cargo bench -p minigpt-benches --bench decode`). On big-endian processors, where bytes lie otherwise, the
//! reference reads them.
//!
//! # Activations in bf16
//! Ops under [`Precision::Bf16`] run on the kernels of f32: block by block, what an op reads is widened into scratch, and what
//! it computes is rounded on its way out, as [`minigpt_core::reference::rounded`] has it. It is there to save memory. The
//! blocks are a few megabytes, which [`workspace_bytes`](Backend::workspace_bytes) counts. All of it is the feature `bf16`,
//! which is on by default. Without it such ops are refused, with [`CpuError::WithoutBf16`], and an image that runs models in f32
//! is the smaller for it. On big-endian processors the reference runs them.
//!
//! # On a microcontroller
//! Without std it runs on one thread, and on four lanes that a Cortex-M goes through one by one. Whether that pays beside
//! [`Reference`](minigpt_core::Reference) is a matter of room: the reference is the smaller program, and this crate needs less
//! heap and, for each token, less time. In `minigpt-core/tests/embed` is a firmware with a model of
//! one layer, 16 wide, which tells what it took; its Cargo.toml says how to run it:
//!
//! | built with `opt-level = "s"` for a Cortex-M4 that QEMU stands for | `Reference` | `Cpu` | `Cpu`, with `opt-level = 3` |
//! |---|---|---|---|
//! | program, without training | 211 kB | 296 kB | 323 kB |
//! | heap, running the model | 26 kB | 10 kB | 10 kB |
//! | instructions a token | 244 thousand | 143 thousand | 115 thousand |
//! | instructions a training step of 64 tokens | 8.1 million | 7.9 million | 4.5 million |
//!
//! The kernels need their loops unrolled, which "s" does not do. Where there is room for it, let this crate alone be fast:
//!
//! ```toml
//! [profile.release.package.minigpt-cpu]
//! opt-level = 3
//! ```
//!
//! # Performance
//! Where the time goes, op by op, and how far each op is from what the machine could do:
//!
//! ```sh
//! cargo run --release --example profile -- --shape M
//! cargo run --release --example profile -- --checkpoint my-model.mgpt
//! ```
//!
//! The program measures the machine's two ceilings as well, on the same threads: multiply-adds that never leave the
//! registers ([`Cpu::multiply_adds`]), and reading a buffer as large as what the model holds ([`Cpu::read_through`]).
//! Each op has an arithmetic intensity, its floating-point operations per byte of its operands. Where that is above the
//! ratio of the two ceilings, arithmetic is the bound, below it memory: the roofline picture.
//!
//! A training step of M (6 layers, 6 heads, width 384, context 256, batch 8, in two slices) on the same two
//! cores, by the first command:
//!
//! ```text
//! op                 calls        ms   share  GFLOP/s    GB/s     bytes  flop/B  bound by    of it
//! LinearBackward        50   453.953   58.5%    192.0     1.7  771.8 MB   112.9  arithmetic    82%
//! LinearForward         50   231.906   29.9%    188.0     2.2  504.0 MB    86.5  arithmetic    80%
//! AttentionBackward     12    48.253    6.2%    100.5     3.1  151.3 MB    32.1  arithmetic    43%
//! AttentionForward      12    22.745    2.9%    106.6     3.3   75.8 MB    32.0  arithmetic    46%
//! AdamW                  1     5.976    0.8%      0.0    50.3  300.9 MB     0.0  memory       185%
//! NormBackward          26     4.453    0.6%      0.0    36.1  160.8 MB     0.0  memory       133%
//! NormForward           26     2.291    0.3%      0.0    35.8   82.0 MB     0.0  memory       132%
//! SquaredNorm            1     1.759    0.2%      0.0    24.4   43.0 MB     0.0  memory        90%
//! EmbeddingBackward      2     0.752    0.1%      0.0     6.8    5.1 MB     0.0  memory        25%
//! EmbeddingForward       2     0.265    0.0%      0.0    15.6    4.1 MB     0.0  memory        57%
//! CrossEntropy           2     0.077    0.0%      0.0    13.9    1.1 MB     0.0  memory        51%
//! the rest                     3.032    0.4%
//! the machine: 234 GFLOP/s of multiply-adds in registers, 27.2 GB/s of reading 268.4 MB
//! ```
//!
//! What to read from it:
//!
//! - **Training is arithmetic.** A linear layer of M does some hundred operations for each byte that it touches,
//!   because every weight meets all rows of the batch: 2 R I O operations on 4 (R I + I O + R O) bytes, for R rows, I
//!   inputs and O outputs. The backward pass has two such products, so it takes twice the time of the forward pass.
//! - **Attention** has its score matrix in the caches tile by tile, never in memory, so its intensity grows with the
//!   context. It does more than the multiply-adds that are counted: an exponential for each score, twice.
//! - **Norms, embeddings and the optimizer are memory.** They do a handful of operations on each number that they fetch,
//!   so fusing them into a neighbour that has the number in registers is all that helps: the residual, the bias, GELU
//!   and dropout are part of the linear layers for that reason. A share beyond 100 % means that the operands lay in a
//!   cache, or were written, which the ceiling of reading knows nothing of.
//! - **Decoding is memory.** One token is one row: every weight is fetched for a single multiply-add, half an operation
//!   for each byte of f32. Tokens per second cannot exceed the bandwidth divided by the bytes of the weights.
//!
//! Every target, held against its measurement in turns with PyTorch: `cargo bench -p minigpt-benches --bench summary`.
//! Each kernel and each matrix product beside those of other crates: `--bench ops`.
#![cfg_attr(not(feature = "std"), no_std)]
// The kernels of training, which nothing calls then, and the linker drops.
#![cfg_attr(not(feature = "train"), allow(dead_code))]
extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

mod arch;
mod context;
mod dropout;
mod error;
mod executor;
mod gemm;
mod math;
mod memory;
mod ops;
mod par;
mod roofline;
#[cfg(feature = "std")]
mod sync;

use alloc::string::String;

#[cfg(target_has_atomic = "ptr")]
use minigpt_core::SharedBytes;
use minigpt_core::backend::{Import, Imported, fall_back, fall_back_in_training, import_by_copy};
use minigpt_core::reference::weights::encode_half;
use minigpt_core::{Backend, Buffer, Dtype, InvalidOp, Op, OpKind, Precision, Span};

use arch::Simd;
use context::{Context, Machine, Room, Scratch, Team};
use executor::Executor;
use memory::Memory;
#[cfg(feature = "bf16")]
use ops::bf16::Steps;
use par::Views;

pub use arch::{Isa, UnknownIsa};
pub use error::CpuError;

/// The CPU as a [`Backend`] of f32. See the [crate](self).
///
/// `'a` is how long the memory lives that it may borrow through [`Import`].
#[derive(Debug)]
pub struct Cpu<'a> {
    memory: Memory<'a>,
    scratch: Scratch,
    executor: Executor,
    simd: Simd,
    fallbacks: [u64; OpKind::ALL.len()],
}

/// How a [`Cpu`] is to be made.
///
/// ```
/// use minigpt_cpu::{Cpu, Isa};
/// let cpu = Cpu::builder().isa(Isa::Portable).build()?;
/// assert_eq!(cpu.isa(), Isa::Portable);
/// # Ok::<(), minigpt_cpu::CpuError>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Builder {
    isa: Option<Isa>,
    #[cfg(feature = "std")]
    threads: Option<usize>,
}

/// The instruction set that the build was told to use.
const BUILT_FOR: Option<Isa> = if cfg!(minigpt_cpu_isa = "portable") {
    Some(Isa::Portable)
} else if cfg!(minigpt_cpu_isa = "avx2") {
    Some(Isa::Avx2)
} else if cfg!(minigpt_cpu_isa = "avx512") {
    Some(Isa::Avx512)
} else {
    None
};

/// What the environment asks for.
fn environment() -> Result<Option<Isa>, CpuError> {
    #[cfg(feature = "std")]
    if let Some(name) = std::env::var_os("MINIGPT_CPU_ISA") {
        let name = name.to_string_lossy();
        return name.parse().map(Some).map_err(|UnknownIsa| CpuError::Isa { asked: name.into_owned() });
    }
    Ok(None)
}

impl Builder {
    /// Use this instruction set.
    #[must_use]
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Use so many threads, the caller's included; 0 is taken as 1.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Builder { threads: Some(threads), ..self }
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`CpuError::Isa`] if the machine lacks the instruction set that was asked for, [`CpuError::Thread`] if a
    /// thread cannot be started.
    pub fn build<'a>(self) -> Result<Cpu<'a>, CpuError> {
        let wish = match self.isa {
            Some(isa) => Some(isa),
            None => environment()?.or(BUILT_FOR),
        };
        let simd = match wish {
            Some(isa) => {
                Simd::detect(isa).ok_or_else(|| CpuError::Isa { asked: String::from(isa.name()) })?
            }
            None => Simd::best(),
        };
        #[cfg(feature = "std")]
        let executor =
            match self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            {
                0 | 1 => Executor::single(),
                threads => Executor::team(threads)?,
            };
        #[cfg(not(feature = "std"))]
        let executor = Executor::single();
        Ok(Cpu {
            memory: Memory::default(),
            scratch: Scratch::default(),
            executor,
            simd,
            fallbacks: [0; OpKind::ALL.len()],
        })
    }
}

impl<'a> Cpu<'a> {
    /// With the fastest instruction set and all threads, unless the environment or the build says otherwise.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self, CpuError> {
        Builder::default().build()
    }

    /// Choices to be made before it exists.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The instruction set that its kernels run on.
    pub fn isa(&self) -> Isa {
        self.simd.isa()
    }

    /// How many threads it uses, the caller's included.
    pub fn threads(&self) -> usize {
        self.executor.threads()
    }

    /// How many ops ran on the reference because there is no kernel for them yet.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.iter().sum()
    }

    /// How many ops of this kind ran on the reference.
    pub fn fallbacks_of(&self, kind: OpKind) -> u64 {
        self.fallbacks.get(kind as usize).copied().unwrap_or(0)
    }

    /// Runs an op that has passed [`Op::check`].
    fn run_checked(&mut self, op: &Op) -> Result<(), CpuError> {
        let team = Team { executor: &mut self.executor, simd: self.simd };
        let done = match op.precision() {
            Precision::F32 => {
                let (views, scratch) = (Views::new(&mut self.memory), Room::All(&mut self.scratch));
                ops::run(&mut Context { views, scratch, team }, op)?
            }
            #[cfg(feature = "bf16")]
            Precision::Bf16 => {
                let (memory, scratch) = (&mut self.memory, &mut self.scratch);
                ops::bf16::run(&mut Steps { memory, scratch, team }, op)?
            }
            // What is complete has no use for the reference, which a small image leaves out.
            #[cfg(not(feature = "bf16"))]
            Precision::Bf16 if ops::COMPLETE => return Err(CpuError::WithoutBf16),
            #[cfg(not(feature = "bf16"))]
            Precision::Bf16 => false,
        };
        match done {
            true => Ok(()),
            false if ops::COMPLETE => fall_back_in_training(self, op),
            false => fall_back(self, op),
        }
    }

    fn machine(&self) -> Machine {
        Machine { threads: self.executor.threads(), isa: self.simd.isa() }
    }
}

/// The words that `span`'s bytes are in, and where in the first word they begin.
fn words(span: Span) -> (Span, usize) {
    let skip = span.offset % 4;
    let len = (span.bytes().unwrap_or(0) + skip).div_ceil(4);
    (Span { dtype: Dtype::U32, offset: span.offset - skip, len, ..span }, skip)
}

/// Where byte `i` of the words lies. See [`memory`].
const fn place(i: usize) -> usize {
    if cfg!(target_endian = "big") { i ^ 3 } else { i }
}

fn same_length(operand: &'static str, span: Span, found: usize) -> Result<(), InvalidOp> {
    let expected = span.bytes().ok_or(InvalidOp::Overflow { operand })?;
    if expected == found { Ok(()) } else { Err(InvalidOp::Length { operand, expected, found }) }
}

impl Backend for Cpu<'_> {
    type Elem = f32;
    type Error = CpuError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, CpuError> {
        self.memory.alloc(bytes)
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), CpuError> {
        same_length("bytes", to, bytes.len())?;
        let mut views = Views::new(&mut self.memory);
        if cfg!(target_endian = "little") {
            views.bytes_mut("write", to)?.copy_from_slice(bytes);
        } else {
            let (words, skip) = words(to);
            let memory = views.bytes_mut("write", words)?;
            for (i, &byte) in bytes.iter().enumerate() {
                memory[place(skip + i)] = byte;
            }
        }
        Ok(())
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), CpuError> {
        same_length("bytes", from, bytes.len())?;
        let mut views = Views::new(&mut self.memory);
        if cfg!(target_endian = "little") {
            bytes.copy_from_slice(views.bytes("read", from)?);
        } else {
            let (words, skip) = words(from);
            let memory = views.bytes("read", words)?;
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = memory[place(skip + i)];
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), CpuError> {
        from.check_copy(&to)?;
        let mut views = Views::new(&mut self.memory);
        if cfg!(target_endian = "little") {
            let to = views.bytes_mut("to", to)?;
            to.copy_from_slice(views.bytes("from", from)?);
        } else {
            let ((to_words, to_skip), (from_words, from_skip)) = (words(to), words(from));
            let to = views.bytes_mut("to", to_words)?;
            let memory = views.bytes("from", from_words)?;
            for i in 0..from.bytes().unwrap_or(0) {
                to[place(to_skip + i)] = memory[place(from_skip + i)];
            }
        }
        Ok(())
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), CpuError> {
        let mut views = Views::new(&mut self.memory);
        match to.dtype {
            Dtype::F32 => views.f32_mut("fill", to)?.fill(value as f32),
            Dtype::U32 => views.u32_mut("fill", to)?.fill(value as u32),
            Dtype::F64 => {
                for element in views.bytes_mut("fill", to)?.chunks_exact_mut(8) {
                    for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
                        element[place(i)] = byte;
                    }
                }
            }
            Dtype::Bf16 => {
                let value = encode_half(value, Dtype::Bf16);
                if cfg!(target_endian = "little") {
                    views.bytes_mut("fill", to)?.as_chunks_mut().0.fill(value);
                } else {
                    let (words, skip) = words(to);
                    let memory = views.bytes_mut("fill", words)?;
                    for i in 0..2 * to.len {
                        memory[place(skip + i)] = value[i % 2];
                    }
                }
            }
            found => return Err(InvalidOp::Dtype { operand: "fill", expected: Dtype::F32, found }.into()),
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), CpuError> {
        Ok(())
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), CpuError> {
        self.memory.release(buffer)
    }

    fn run(&mut self, op: &Op) -> Result<(), CpuError> {
        op.verify(Dtype::F32)?;
        self.run_checked(op)
    }

    fn keeps_programs(&self) -> bool {
        cfg!(feature = "std")
    }

    /// What would be refused at every step is refused here.
    #[cfg(not(feature = "bf16"))]
    fn prepare(&mut self, ops: &[Op]) -> Result<u64, CpuError> {
        for op in ops {
            op.check(Dtype::F32)?;
            if ops::COMPLETE && op.precision() == Precision::Bf16 {
                return Err(CpuError::WithoutBf16);
            }
        }
        Ok(0)
    }

    /// Its ops were checked when they were prepared; whether their spans lie in their buffers is looked at each time.
    fn replay(&mut self, _: u64, ops: &[Op]) -> Result<(), CpuError> {
        ops.iter().try_for_each(|op| self.run_checked(op))
    }

    fn fell_back(&mut self, op: OpKind) {
        if let Some(count) = self.fallbacks.get_mut(op as usize) {
            *count += 1;
        }
    }

    fn fallback_count(&self, op: OpKind) -> Option<u64> {
        Some(self.fallbacks_of(op))
    }

    fn kernels(&self) -> &'static [OpKind] {
        ops::KERNELS
    }

    /// Matrix products of a thousand rows are as fast as larger ones, and the activations of fewer rows stay in the
    /// caches.
    fn rows_at_once(&self) -> usize {
        1024
    }

    fn workspace_bytes(&self, ops: &[Op]) -> usize {
        // They use it in turn, so the largest need counts. What is not well formed never runs.
        let sound = ops.iter().filter(|op| op.check(Dtype::F32).is_ok());
        let most = sound.map(|op| ops::scratch_floats(op, self.machine())).max().unwrap_or(0);
        context::whole_lines(most).saturating_mul(4)
    }

    /// Uses them where they lie if this processor can, as [`import`](Import::import) does.
    #[cfg(target_has_atomic = "ptr")]
    fn import_shared(&mut self, bytes: SharedBytes) -> Result<Imported, CpuError> {
        match self.memory.share(&bytes) {
            Some(shared) => shared.map(Imported::Borrowed),
            None => import_by_copy(self, &bytes).map(Imported::Copied),
        }
    }

    fn reserve(&mut self, bytes: usize) -> Result<(), CpuError> {
        self.scratch.floats(bytes.div_ceil(4)).map(|_| ())
    }
}

impl<'a> Import<'a> for Cpu<'a> {
    /// Borrows `bytes` where this processor can use them as they lie (little-endian, and `bytes` aligned to four
    /// bytes), so that weights in flash or in a mapped file cost no memory; else copies them.
    fn import(&mut self, bytes: &'a [u8]) -> Result<Imported, CpuError> {
        match self.memory.borrow(bytes) {
            Some(borrowed) => borrowed.map(Imported::Borrowed),
            None => import_by_copy(self, bytes).map(Imported::Copied),
        }
    }
}

#[cfg(test)]
mod tests;
