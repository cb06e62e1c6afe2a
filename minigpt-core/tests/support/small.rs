//! A backend that is smaller than the machine.

use std::collections::BTreeMap;

use minigpt_core::{Backend, Buffer, Import, Op, Real, Reference, ReferenceError, Span};

/// A reference with room for so many bytes, which takes so many rows at once.
#[derive(Debug)]
pub(crate) struct Small<R: Real> {
    inner: Reference<R>,
    room: usize,
    rows: usize,
    taken: BTreeMap<Buffer, usize>,
}

impl<R: Real> Small<R> {
    /// With room for `room` bytes, taking `rows` rows at once.
    pub(crate) fn new(room: usize, rows: usize) -> Self {
        Small { inner: Reference::new(), room, rows, taken: BTreeMap::new() }
    }

    /// The bytes of its buffers.
    pub(crate) fn used(&self) -> usize {
        self.taken.values().sum()
    }
}

impl<R: Real> Backend for Small<R> {
    type Elem = R;
    type Error = ReferenceError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, ReferenceError> {
        if bytes > self.room - self.used() {
            return Err(ReferenceError::OutOfMemory { bytes });
        }
        let buffer = self.inner.alloc(bytes)?;
        self.taken.insert(buffer, bytes);
        Ok(buffer)
    }
    fn release(&mut self, buffer: Buffer) -> Result<(), ReferenceError> {
        self.taken.remove(&buffer);
        self.inner.release(buffer)
    }
    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), ReferenceError> {
        self.inner.write(to, bytes)
    }
    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), ReferenceError> {
        self.inner.read(from, bytes)
    }
    fn copy(&mut self, from: Span, to: Span) -> Result<(), ReferenceError> {
        self.inner.copy(from, to)
    }
    fn fill(&mut self, to: Span, value: f64) -> Result<(), ReferenceError> {
        self.inner.fill(to, value)
    }
    fn sync(&mut self) -> Result<(), ReferenceError> {
        self.inner.sync()
    }
    fn run(&mut self, op: &Op) -> Result<(), ReferenceError> {
        self.inner.run(op)
    }
    fn rows_at_once(&self) -> usize {
        self.rows
    }
}

impl<R: Real> Import<'_> for Small<R> {}
