//! [`Backend`]: what a device must do to train and run a GPT.
//!
//! Seven methods are enough: alloc, release, write, read, copy, fill and sync. Every [`Op`] has a default that reads its
//! operands, calls [`reference`](mod@crate::reference) and writes the results back, so a new backend is correct on its
//! first day and becomes fast one op at a time, by a match in [`Backend::run`]:
//!
//! ```
//! # use minigpt_core::{Backend, Buffer, Op, OpKind, Reference, Span, backend::fall_back, op::LinearForward};
//! # struct MyBackend(Reference<f32>);
//! # impl MyBackend {
//! #     fn my_fast_linear(&mut self, op: &LinearForward) -> Result<(), <Self as Backend>::Error> {
//! #         self.0.run(&(*op).into())
//! #     }
//! # }
//! impl Backend for MyBackend {
//! #     type Elem = f32;
//! #     type Error = <Reference<f32> as Backend>::Error;
//! #     fn alloc(&mut self, bytes: usize) -> Result<Buffer, Self::Error> { self.0.alloc(bytes) }
//! #     fn release(&mut self, buffer: Buffer) -> Result<(), Self::Error> { self.0.release(buffer) }
//! #     fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), Self::Error> { self.0.write(to, bytes) }
//! #     fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), Self::Error> { self.0.read(from, bytes) }
//! #     fn copy(&mut self, from: Span, to: Span) -> Result<(), Self::Error> { self.0.copy(from, to) }
//! #     fn fill(&mut self, to: Span, value: f64) -> Result<(), Self::Error> { self.0.fill(to, value) }
//! #     fn sync(&mut self) -> Result<(), Self::Error> { self.0.sync() }
//!     // ... the seven methods, and:
//!     fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
//!         match op {
//!             Op::LinearForward(op) => self.my_fast_linear(op),
//!             other => fall_back(self, other),
//!         }
//!     }
//!     // What has a kernel; that of `LinearForward` then also runs the live rows of a `LinearRows`.
//!     fn kernels(&self) -> &'static [OpKind] {
//!         &[OpKind::LinearForward]
//!     }
//! }
//! ```
//!
//! Ops speak of device memory only. A [`Span`] names a stretch of a buffer that the backend owns; nothing that the
//! host would have to wait for travels in a descriptor. What changes from step to step on the device (the loss, the
//! gradient's norm, the learning rate, random counters) lives in device spans, laid out in [`crate::op::scalar`]
//! and [`crate::op::counter`]. So a step only enqueues, and a backend may run far behind the host.

mod device;
mod fallback;
mod reference;
mod replay;
mod submit;
mod transfer;

use core::fmt;

#[cfg(target_has_atomic = "ptr")]
use crate::memory::SharedBytes;
use crate::memory::{Buffer, Dtype, InvalidOp, Span};
use crate::op::{Op, OpKind};
use crate::real::Real;

pub use device::Device;
pub(crate) use device::{Allocation, Shared};
pub use fallback::{fall_back, fall_back_in_training};
pub use reference::{Reference, ReferenceError};
pub(crate) use replay::Replay;
pub(crate) use submit::{submit, workspace_bytes};
pub(crate) use transfer::from_bytes;
#[cfg(feature = "train")]
pub(crate) use transfer::to_bytes;
pub use transfer::{read_elems, read_u32, write_elems, write_u32};

/// What kind of thing went wrong, whatever the backend calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is not enough memory on the device.
    OutOfMemory,
    /// An op or a transfer was described wrongly: a bug in the caller.
    Invalid,
    /// The backend cannot do this, for example write to weights that it borrows.
    Unsupported,
    /// There is no such device or driver here.
    Unavailable,
    /// The device or its driver failed.
    Device,
}

/// What every backend's error type can say of itself.
pub trait BackendError: core::error::Error + From<InvalidOp> + Send + Sync + 'static {
    /// Its kind.
    fn kind(&self) -> ErrorKind;
}

/// A device that holds memory and runs [`Op`]s on it, in the order in which they were given.
///
/// Work may be queued: only [`read`](Backend::read) and [`sync`](Backend::sync) must have waited for all that was
/// given before. An error of queued work may surface at any later call.
pub trait Backend {
    /// The number type of parameters, gradients and activations.
    type Elem: Real;
    /// Its own error type.
    type Error: BackendError;

    /// A new buffer of `bytes` bytes, all zero, aligned as the backend's own kernels want it: those of this project to 64
    /// bytes.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] if it does not fit; never an abort.
    fn alloc(&mut self, bytes: usize) -> Result<Buffer, Self::Error>;

    /// Gives a buffer back, once all work that was given before is done with it. Its number is not handed out again:
    /// [`BufferTable`](crate::memory::BufferTable) keeps such numbers.
    ///
    /// # Errors
    /// If the buffer is not this backend's, or was given back before.
    fn release(&mut self, buffer: Buffer) -> Result<(), Self::Error>;

    /// Copies little-endian host bytes to `to`. The host's slice may be reused at once.
    ///
    /// # Errors
    /// If `bytes` is not exactly as long as the span, or the span is outside its buffer or read-only.
    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Waits for all work, then copies `from` to the host, little-endian.
    ///
    /// # Errors
    /// If `bytes` is not exactly as long as the span, or earlier work failed.
    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// Copies `from` to `to`, which have the same type and length and do not overlap.
    ///
    /// # Errors
    /// If the spans do not match.
    fn copy(&mut self, from: Span, to: Span) -> Result<(), Self::Error>;

    /// Sets every element of a [`Dtype::F32`], [`Dtype::F64`], [`Dtype::Bf16`] or [`Dtype::U32`] span to `value`.
    ///
    /// # Errors
    /// If the span is outside its buffer, read-only or of another type.
    fn fill(&mut self, to: Span, value: f64) -> Result<(), Self::Error>;

    /// Waits for all work that was given so far.
    ///
    /// # Errors
    /// If any of it failed.
    fn sync(&mut self) -> Result<(), Self::Error>;

    /// Runs one op. The default is the reference, by way of [`read`](Backend::read) and [`write`](Backend::write).
    ///
    /// A kernel comes after three checks: [`Op::check`], which finds descriptors that do not fit together; that each span lies
    /// in its buffer; and that tokens and targets are in the vocabulary. What there is no kernel for is passed on to
    /// [`fall_back`], which does the same: also an op whose [`Op::precision`] the kernel does not know.
    ///
    /// # Errors
    /// If the descriptor is invalid ([`Op::check`]) or the device fails.
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        fall_back(self, op)
    }

    /// Told by [`fall_back`] that an op falls back to it, to be counted.
    fn fell_back(&mut self, op: OpKind) {
        let _ = op;
    }

    /// How often an op of this kind has [fallen back](Backend::fell_back), if the backend counts.
    fn fallback_count(&self, op: OpKind) -> Option<u64> {
        let _ = op;
        None
    }

    /// The kinds of ops of which the backend has a kernel of its own, if only for some descriptors. One that never runs, or
    /// runs and is not among them, is a failure of the suite behind the feature `conformance`. An op of rows that falls back,
    /// such as [`LinearRows`](crate::op::LinearRows), goes to the kernel of the same op of whole spans, if it is among them.
    fn kernels(&self) -> &'static [OpKind] {
        &[]
    }

    /// With how many rows (sequences times tokens) an op is as fast as with more. A trainer passes a larger batch
    /// through the model in slices of whole sequences, so that its activations need room for one slice only. The
    /// default: all rows at once.
    fn rows_at_once(&self) -> usize {
        usize::MAX
    }

    /// Bytes of scratch that these ops need beyond their operands, given one after the other. Their buffers need not exist
    /// yet: only types and dimensions count. What is enough for an op is enough for the same op with fewer rows, sequences
    /// or positions. What [`AttentionRows`](crate::op::AttentionRows) needs depends on its capacity, and not on where its
    /// rows stand.
    fn workspace_bytes(&self, ops: &[Op]) -> usize {
        let _ = ops;
        0
    }

    /// Whether a program that is to run again and again is kept as a list and [prepared](Backend::prepare). If not, as by
    /// default, its ops are told one by one each time, and no memory is taken for them: some hundred bytes each.
    fn keeps_programs(&self) -> bool {
        false
    }

    /// Has a look at ops that are to be [replayed](Backend::replay) together, in this order. A backend may check them here once
    /// and for all, or capture them. The result is the number by which it knows them.
    ///
    /// # Errors
    /// As those of the ops, but for what their operands hold.
    fn prepare(&mut self, ops: &[Op]) -> Result<u64, Self::Error> {
        for op in ops {
            op.check(<Self::Elem as Real>::DTYPE)?;
        }
        Ok(0)
    }

    /// Runs ops that were [prepared](Backend::prepare), which gave `number`; the default: one by one. Their buffers are still
    /// there.
    ///
    /// # Errors
    /// As [`run`](Backend::run).
    fn replay(&mut self, number: u64, ops: &[Op]) -> Result<(), Self::Error> {
        let _ = number;
        ops.iter().try_for_each(|op| self.run(op))
    }

    /// Told that what was prepared under this number is not replayed any more, before its buffers are given back.
    fn forget(&mut self, number: u64) {
        let _ = number;
    }

    /// Brings in bytes that come with their owner. The default copies; a backend whose memory is the host's may use them
    /// where they lie, read-only, and keep them until the buffer is released.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] if a copy is needed and does not fit.
    #[cfg(target_has_atomic = "ptr")]
    fn import_shared(&mut self, bytes: SharedBytes) -> Result<Imported, Self::Error> {
        import_by_copy(self, &bytes).map(Imported::Copied)
    }

    /// Makes sure of at least so many bytes of scratch, so that no op allocates later.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] if it does not fit.
    fn reserve(&mut self, bytes: usize) -> Result<(), Self::Error> {
        let _ = bytes;
        Ok(())
    }
}

/// What a backend made of bytes that it was to [import](Import::import), with their owner or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It uses them where they lie.
    Borrowed(Buffer),
    /// It could not, and has a copy.
    Copied(Buffer),
}

impl Imported {
    /// The buffer that holds them.
    pub fn buffer(self) -> Buffer {
        let (Imported::Borrowed(buffer) | Imported::Copied(buffer)) = self;
        buffer
    }
}

/// Brings in weights that live in the program's own memory for `'a`: in flash, in a mapped file, in a constant.
///
/// The default copies. A backend whose memory is the host's may borrow instead, read-only: then a model in flash
/// costs no memory at all. Implementing it takes one line: `impl<'a> Import<'a> for MyBackend {}`.
pub trait Import<'a>: Backend {
    /// A buffer with the contents of `bytes`, and whether that took a copy.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] if a copy is needed and does not fit.
    fn import(&mut self, bytes: &'a [u8]) -> Result<Imported, Self::Error> {
        import_by_copy(self, bytes).map(Imported::Copied)
    }
}

/// A new buffer with the contents of `bytes`, filled up to whole words with zeros.
///
/// # Errors
/// [`ErrorKind::OutOfMemory`] if it does not fit.
pub fn import_by_copy<B: Backend + ?Sized>(backend: &mut B, bytes: &[u8]) -> Result<Buffer, B::Error> {
    let buffer = backend.alloc(bytes.len().next_multiple_of(4))?;
    match fill_with(backend, buffer, bytes) {
        Ok(()) => Ok(buffer),
        Err(error) => {
            // The first error is the one to tell.
            let _ = backend.release(buffer);
            Err(error)
        }
    }
}

/// Writes `bytes` to a buffer that has room for them in whole words.
fn fill_with<B: Backend + ?Sized>(backend: &mut B, buffer: Buffer, bytes: &[u8]) -> Result<(), B::Error> {
    let (whole, rest) = bytes.as_chunks::<4>();
    let words = Span { buffer, dtype: Dtype::U32, offset: 0, len: whole.len() };
    backend.write(words, whole.as_flattened())?;
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        backend.write(Span { offset: whole.len() * 4, len: 1, ..words }, &last)?;
    }
    Ok(())
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ErrorKind::OutOfMemory => "out of memory",
            ErrorKind::Invalid => "invalid op",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Device => "device failure",
        })
    }
}
