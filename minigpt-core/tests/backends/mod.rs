//! Two backends that prove what the trait asks for: one has the seven required methods and nothing else, the other
//! behaves like a device, which does its work later.

use std::fmt;

use minigpt_core::backend::fall_back;
use minigpt_core::memory::BufferTable;
use minigpt_core::reference::weights::encode_half;
use minigpt_core::{Backend, BackendError, Buffer, Dtype, ErrorKind, InvalidOp, Op, Span};

/// What can go wrong on either.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum TestError {
    Full { bytes: usize },
    Invalid(InvalidOp),
}

impl fmt::Display for TestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TestError::Full { bytes } => write!(f, "no room for {bytes} bytes"),
            TestError::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TestError {}

impl From<InvalidOp> for TestError {
    fn from(error: InvalidOp) -> Self {
        TestError::Invalid(error)
    }
}

impl BackendError for TestError {
    fn kind(&self) -> ErrorKind {
        match self {
            TestError::Full { .. } => ErrorKind::OutOfMemory,
            TestError::Invalid(_) => ErrorKind::Invalid,
        }
    }
}

/// The seven methods over plain vectors: every op falls back to the reference.
#[derive(Debug, Default)]
pub(crate) struct SevenMethods {
    buffers: BufferTable<Vec<u8>>,
    pub(crate) fallbacks: usize,
}

impl SevenMethods {
    fn place(&mut self, span: Span, operand: &'static str) -> Result<&mut [u8], TestError> {
        let bytes = span.bytes().ok_or(InvalidOp::Overflow { operand })?;
        let end = span.offset.checked_add(bytes).ok_or(InvalidOp::Overflow { operand })?;
        let buffer = self.buffers.get_mut(span.buffer);
        let size = buffer.as_ref().map_or(0, |buffer| buffer.len());
        let place = buffer.and_then(|buffer| buffer.get_mut(span.offset..end));
        place.ok_or(TestError::Invalid(InvalidOp::OutOfBounds { operand, end, size }))
    }
}

fn same_length(operand: &'static str, expected: usize, found: usize) -> Result<(), TestError> {
    if expected == found { Ok(()) } else { Err(InvalidOp::Length { operand, expected, found }.into()) }
}

impl Backend for SevenMethods {
    type Elem = f32;
    type Error = TestError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, TestError> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(bytes).map_err(|_| TestError::Full { bytes })?;
        buffer.resize(bytes, 0);
        self.buffers.insert(buffer).map_err(|_| TestError::Full { bytes })
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), TestError> {
        let none = InvalidOp::OutOfBounds { operand: "buffer", end: 0, size: 0 };
        self.buffers.remove(buffer).map(drop).ok_or(TestError::Invalid(none))
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), TestError> {
        let place = self.place(to, "to")?;
        same_length("to", place.len(), bytes.len())?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), TestError> {
        let place = self.place(from, "from")?;
        same_length("from", place.len(), bytes.len())?;
        bytes.copy_from_slice(place);
        Ok(())
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), TestError> {
        same_length("to", from.len, to.len)?;
        if from.overlaps(&to) {
            return Err(InvalidOp::Overlap { a: "from", b: "to" }.into());
        }
        let bytes = self.place(from, "from")?.to_vec();
        self.write(to, &bytes)
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), TestError> {
        let bytes = match to.dtype {
            Dtype::F32 => (value as f32).to_le_bytes().to_vec(),
            Dtype::U32 => (value as u32).to_le_bytes().to_vec(),
            Dtype::Bf16 => encode_half(value, Dtype::Bf16).to_vec(),
            found => return Err(InvalidOp::Dtype { operand: "to", expected: Dtype::F32, found }.into()),
        };
        self.place(to, "to")?.chunks_exact_mut(bytes.len()).for_each(|place| place.copy_from_slice(&bytes));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), TestError> {
        Ok(())
    }

    fn fell_back(&mut self, _: minigpt_core::OpKind) {
        self.fallbacks += 1;
    }
}

enum Work {
    Write(Span, Vec<u8>),
    Copy(Span, Span),
    Fill(Span, f64),
    Run(Box<Op>),
}

/// Takes every piece of work at once and does none of it before `sync` or `read`.
#[derive(Default)]
pub(crate) struct Deferred {
    device: SevenMethods,
    queue: Vec<Work>,
    /// The longest that the queue has been.
    pub(crate) longest_queue: usize,
}

impl Deferred {
    fn enqueue(&mut self, work: Work) -> Result<(), TestError> {
        self.queue.push(work);
        self.longest_queue = self.longest_queue.max(self.queue.len());
        Ok(())
    }
}

impl Backend for Deferred {
    type Elem = f32;
    type Error = TestError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, TestError> {
        self.device.alloc(bytes)
    }

    fn release(&mut self, buffer: Buffer) -> Result<(), TestError> {
        // What is queued may use it.
        self.sync()?;
        self.device.release(buffer)
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), TestError> {
        same_length("to", self.device.place(to, "to")?.len(), bytes.len())?;
        self.enqueue(Work::Write(to, bytes.to_vec()))
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), TestError> {
        self.sync()?;
        self.device.read(from, bytes)
    }

    fn copy(&mut self, from: Span, to: Span) -> Result<(), TestError> {
        self.enqueue(Work::Copy(from, to))
    }

    fn fill(&mut self, to: Span, value: f64) -> Result<(), TestError> {
        self.enqueue(Work::Fill(to, value))
    }

    fn sync(&mut self) -> Result<(), TestError> {
        for work in std::mem::take(&mut self.queue) {
            match work {
                Work::Write(to, bytes) => self.device.write(to, &bytes),
                Work::Copy(from, to) => self.device.copy(from, to),
                Work::Fill(to, value) => self.device.fill(to, value),
                Work::Run(op) => fall_back(&mut self.device, &op),
            }?;
        }
        Ok(())
    }

    fn run(&mut self, op: &Op) -> Result<(), TestError> {
        self.enqueue(Work::Run(Box::new(*op)))
    }
}
