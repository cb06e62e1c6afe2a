//! [`Backend`]: what a device must do to train and run a GPT.
//!
//! Six methods are enough: allocate, write, read, copy, fill and sync. Every [`Op`] has a default that reads its
//! operands, calls [`reference`](crate::reference) and writes the results back, so a new backend is correct on its
//! first day and becomes fast one op at a time, by a match in [`Backend::run`]:
//!
//! ```
//! # use minigpt_core::{Backend, Buffer, Op, Reference, Span, op::LinearForward, reference};
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
//! #     fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), Self::Error> { self.0.write(to, bytes) }
//! #     fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), Self::Error> { self.0.read(from, bytes) }
//! #     fn copy(&mut self, from: Span, to: Span) -> Result<(), Self::Error> { self.0.copy(from, to) }
//! #     fn fill(&mut self, to: Span, value: f64) -> Result<(), Self::Error> { self.0.fill(to, value) }
//! #     fn sync(&mut self) -> Result<(), Self::Error> { self.0.sync() }
//!     // ... the six methods, and:
//!     fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
//!         match op {
//!             Op::LinearForward(op) => self.my_fast_linear(op),
//!             other => reference::run(self, other),
//!         }
//!     }
//! }
//! ```
//!
//! Ops speak of device memory only. A [`Span`] names a stretch of a buffer that the backend owns; nothing that the
//! host would have to wait for travels in a descriptor. What changes from step to step on the device (the loss, the
//! gradient's norm, the learning rate, random counters) lives in device spans, laid out in [`crate::op::scalar`]
//! and [`crate::op::counter`]. So a step only enqueues, and a backend may run far behind the host.

use alloc::vec::Vec;
use core::fmt;

use crate::op::{InvalidOp, Op, OpKind};
use crate::plan::Plan;
use crate::real::Real;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 signed bytes under one f16 scale; a row is padded to whole blocks.
    Q8_0,
    /// Blocks of 32 four-bit numbers under one f16 scale; a row is padded to whole blocks.
    Q4_0,
    /// Unsigned 32-bit integers: tokens and counters.
    U32,
}

/// Elements in a block of the quantised types.
pub const QUANT_BLOCK: usize = 32;

impl Dtype {
    /// (elements, bytes) of the smallest unit that is stored whole.
    pub const fn unit(self) -> (usize, usize) {
        match self {
            Dtype::F64 => (1, 8),
            Dtype::F32 | Dtype::U32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (QUANT_BLOCK, 2 + QUANT_BLOCK),
            Dtype::Q4_0 => (QUANT_BLOCK, 2 + QUANT_BLOCK / 2),
        }
    }

    /// The bytes of `len` elements; `None` if they do not fill whole units or cannot be counted.
    pub const fn bytes(self, len: usize) -> Option<usize> {
        let (elements, bytes) = self.unit();
        if len.is_multiple_of(elements) { (len / elements).checked_mul(bytes) } else { None }
    }

    /// The length in elements of a row of `cols`, padded to whole units.
    pub const fn padded(self, cols: usize) -> usize {
        cols.next_multiple_of(self.unit().0)
    }
}

/// A buffer that a backend has handed out. Meaningful to that backend only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub u32);

/// A stretch of a buffer: `len` elements of `dtype`, from byte `offset` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// The buffer it lies in.
    pub buffer: Buffer,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Where it begins, in bytes; a multiple of the element's size.
    pub offset: usize,
    /// How many elements it has. For quantised types, rows count with their padding.
    pub len: usize,
}

impl Span {
    /// Its size in bytes; `None` if it is not well formed.
    pub const fn bytes(&self) -> Option<usize> {
        self.dtype.bytes(self.len)
    }

    /// The first `len` elements of it (all of it, if it has fewer).
    #[must_use]
    pub fn first(self, len: usize) -> Span {
        Span { len: len.min(self.len), ..self }
    }

    /// `len` elements from element `start` on, of a type that is stored element by element.
    ///
    /// Past the end, the result is empty: the op that it goes to then refuses it.
    #[must_use]
    pub fn slice(self, start: usize, len: usize) -> Span {
        let offset = self.dtype.bytes(start).and_then(|skip| self.offset.checked_add(skip));
        match offset {
            Some(offset) if start.checked_add(len).is_some_and(|end| end <= self.len) => {
                Span { offset, len, ..self }
            }
            _ => Span { len: 0, ..self },
        }
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        let end = |s: &Span| s.offset.saturating_add(s.bytes().unwrap_or(usize::MAX));
        self.buffer == other.buffer
            && self.len > 0
            && other.len > 0
            && self.offset < end(other)
            && other.offset < end(self)
    }

    /// What every [`Backend::copy`] to `to` asks for, whatever buffers there are.
    ///
    /// # Errors
    /// If the two are of different types or lengths, or share a byte.
    ///
    /// ```
    /// use minigpt_core::{Buffer, Dtype, InvalidOp, Span};
    /// let from = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len: 4 };
    /// let to = Span { offset: 8, ..from };
    /// assert_eq!(from.check_copy(&to), Err(InvalidOp::Overlap { a: "from", b: "to" }));
    /// assert_eq!(from.first(2).check_copy(&to.first(2)), Ok(()));
    /// ```
    pub fn check_copy(&self, to: &Span) -> Result<(), InvalidOp> {
        if self.dtype != to.dtype {
            return Err(InvalidOp::Dtype { operand: "to", expected: self.dtype, found: to.dtype });
        }
        if self.len != to.len {
            return Err(InvalidOp::Length { operand: "to", expected: self.len, found: to.len });
        }
        if self.overlaps(to) {
            return Err(InvalidOp::Overlap { a: "from", b: "to" });
        }
        Ok(())
    }
}

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

    /// Sets every element of a [`Dtype::F32`], [`Dtype::F64`] or [`Dtype::U32`] span to `value`.
    ///
    /// # Errors
    /// If the span is outside its buffer, read-only or of another type.
    fn fill(&mut self, to: Span, value: f64) -> Result<(), Self::Error>;

    /// Waits for all work that was given so far.
    ///
    /// # Errors
    /// If any of it failed.
    fn sync(&mut self) -> Result<(), Self::Error>;

    /// Gives a buffer back. The default keeps it until the backend is dropped.
    ///
    /// # Errors
    /// If the buffer is not this backend's.
    fn release(&mut self, buffer: Buffer) -> Result<(), Self::Error> {
        let _ = buffer;
        Ok(())
    }

    /// Runs one op. The default is the reference, by way of [`read`](Backend::read) and [`write`](Backend::write).
    ///
    /// A kernel comes after three checks: [`Op::check`], which finds descriptors that do not fit together; that each span lies
    /// in its buffer; and that tokens and targets are in the vocabulary. What there is no kernel for is passed on to
    /// [`reference::run`](crate::reference::run()), which does the same.
    ///
    /// # Errors
    /// If the descriptor is invalid ([`Op::check`]) or the device fails.
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        crate::reference::run(self, op)
    }

    /// Told by [`reference::run`](crate::reference::run()) that an op falls back to it, to be counted.
    fn fell_back(&mut self, op: OpKind) {
        let _ = op;
    }

    /// How often an op of this kind has [fallen back](Backend::fell_back), if the backend counts.
    fn fallback_count(&self, op: OpKind) -> Option<u64> {
        let _ = op;
        None
    }

    /// The kinds of ops of which the backend has a kernel of its own, if only for some descriptors. One that never runs, or
    /// runs and is not among them, is a failure of the suite behind the feature `conformance`.
    fn kernels(&self) -> &'static [OpKind] {
        &[]
    }

    /// With how many rows (sequences times tokens) an op is as fast as with more. A trainer passes a larger batch
    /// through the model in slices of whole sequences, so that its activations need room for one slice only. The
    /// default: all rows at once.
    fn rows_at_once(&self) -> usize {
        usize::MAX
    }

    /// Bytes of scratch that ops of this plan need beyond the plan's own buffers.
    fn workspace_bytes(&self, plan: &Plan) -> usize {
        let _ = plan;
        0
    }

    /// Allocates that scratch, so that no op allocates later.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] if it does not fit.
    fn reserve(&mut self, plan: &Plan) -> Result<(), Self::Error> {
        let _ = plan;
        Ok(())
    }
}

/// What a backend made of bytes that it was to [import](Import::import).
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
    let (whole, rest) = bytes.as_chunks::<4>();
    let words = Span { buffer, dtype: Dtype::U32, offset: 0, len: whole.len() };
    backend.write(words, whole.as_flattened())?;
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        backend.write(Span { offset: whole.len() * 4, len: 1, ..words }, &last)?;
    }
    Ok(buffer)
}

/// `len` zeros on the host's heap, or an error that names the operand they are for.
pub(crate) fn zeros<T: Clone + Default>(operand: &'static str, len: usize) -> Result<Vec<T>, InvalidOp> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| InvalidOp::HostMemory { operand, bytes: len.saturating_mul(size_of::<T>()) })?;
    values.resize(len, T::default());
    Ok(values)
}

/// The bytes of `len` numbers of `size` bytes each, read from the backend.
fn read_bytes<B: Backend + ?Sized>(backend: &mut B, from: Span, size: usize) -> Result<Vec<u8>, B::Error> {
    let mut bytes =
        zeros("read", from.len.checked_mul(size).ok_or(InvalidOp::Overflow { operand: "read" })?)?;
    backend.read(from, &mut bytes)?;
    Ok(bytes)
}

/// Reads a span of the backend's own number type.
///
/// # Errors
/// As [`Backend::read`]; also if the span's type is not `B::Elem`'s, or the host has no memory for the values.
pub fn read_elems<B: Backend + ?Sized>(backend: &mut B, from: Span) -> Result<Vec<B::Elem>, B::Error> {
    if from.dtype != B::Elem::DTYPE {
        return Err(InvalidOp::Dtype { operand: "read", expected: B::Elem::DTYPE, found: from.dtype }.into());
    }
    let size = size_of::<B::Elem>();
    let bytes = read_bytes(backend, from, size)?;
    let mut values = zeros("read", from.len)?;
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size)) {
        *value = B::Elem::from_le_slice(bytes);
    }
    Ok(values)
}

/// Writes a span of the backend's own number type.
///
/// # Errors
/// As [`Backend::write`]; also if the host has no memory for the bytes.
pub fn write_elems<B: Backend + ?Sized>(
    backend: &mut B,
    to: Span,
    values: &[B::Elem],
) -> Result<(), B::Error> {
    let size = size_of::<B::Elem>();
    let mut bytes = zeros("write", size_of_val(values))?;
    for (out, value) in bytes.chunks_exact_mut(size).zip(values) {
        value.to_le_slice(out);
    }
    backend.write(to, &bytes)
}

/// Reads a span of tokens or counters.
///
/// # Errors
/// As [`Backend::read`]; also if the host has no memory for the values.
pub fn read_u32<B: Backend + ?Sized>(backend: &mut B, from: Span) -> Result<Vec<u32>, B::Error> {
    let bytes = read_bytes(backend, from, 4)?;
    let mut values = zeros("read", from.len)?;
    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    }
    Ok(values)
}

/// Writes a span of tokens or counters.
///
/// # Errors
/// As [`Backend::write`]; also if the host has no memory for the bytes.
pub fn write_u32<B: Backend + ?Sized>(backend: &mut B, to: Span, values: &[u32]) -> Result<(), B::Error> {
    let mut bytes = zeros("write", size_of_val(values))?;
    for (out, value) in bytes.chunks_exact_mut(4).zip(values) {
        out.copy_from_slice(&value.to_le_bytes());
    }
    backend.write(to, &bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_inside_its_span_or_empty() {
        let span = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 64, len: 10 };
        assert_eq!(span.slice(3, 7), Span { offset: 76, len: 7, ..span });
        assert_eq!(span.slice(3, 8).len, 0);
        assert_eq!(span.slice(usize::MAX, 2).len, 0);
        // Where the offset itself cannot be counted.
        assert_eq!(Span { offset: usize::MAX - 3, ..span }.slice(1, 1).len, 0);
    }
}
