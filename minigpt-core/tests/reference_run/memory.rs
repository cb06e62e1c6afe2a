//! Operands among noise, and what an op must leave as it was.

use minigpt_core::backend::{Reference, ReferenceError, read_elems, read_u32, write_elems, write_u32};
use minigpt_core::op::*;
use minigpt_core::reference::dropout::Mask;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, Buffer, Dtype, InvalidOp, Span};

/// Bytes of the buffer.
pub(super) const SIZE: usize = 16 << 10;

/// One buffer of random bytes, in which operands lie with gaps between them.
pub(super) struct Memory {
    pub(super) backend: Reference<f64>,
    pub(super) buffer: Buffer,
    end: usize,
    pub(super) rng: Rng,
}

impl Memory {
    pub(super) fn new() -> Self {
        let mut backend = Reference::new();
        let buffer = backend.alloc(SIZE).unwrap();
        let mut rng = Rng::new(1, Stream::User);
        let noise: Vec<u32> = (0..SIZE / 4).map(|_| rng.next_u32()).collect();
        let all = Span { buffer, dtype: Dtype::U32, offset: 0, len: SIZE / 4 };
        write_u32(&mut backend, all, &noise).unwrap();
        Memory { backend, buffer, end: 24, rng }
    }

    fn place(&mut self, dtype: Dtype, len: usize) -> Span {
        let span = Span { buffer: self.buffer, dtype, offset: self.end, len };
        self.end += span.bytes().unwrap().next_multiple_of(8) + 24;
        assert!(self.end < SIZE);
        span
    }

    pub(super) fn put(&mut self, values: &[f64]) -> Span {
        let span = self.place(Dtype::F64, values.len());
        write_elems(&mut self.backend, span, values).unwrap();
        span
    }

    pub(super) fn put_u32(&mut self, values: &[u32]) -> Span {
        let span = self.place(Dtype::U32, values.len());
        write_u32(&mut self.backend, span, values).unwrap();
        span
    }

    pub(super) fn put_bytes(&mut self, dtype: Dtype, len: usize, bytes: &[u8]) -> Span {
        let span = self.place(dtype, len);
        self.backend.write(span, bytes).unwrap();
        span
    }

    /// `len` normal numbers, and where they are.
    pub(super) fn random(&mut self, len: usize) -> (Span, Vec<f64>) {
        let values: Vec<f64> = (0..len).map(|_| self.rng.normal()).collect();
        (self.put(&values), values)
    }

    /// Room for `len` numbers, full of noise.
    pub(super) fn room(&mut self, len: usize) -> Span {
        self.place(Dtype::F64, len)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        let all = Span { buffer: self.buffer, dtype: Dtype::U32, offset: 0, len: SIZE / 4 };
        self.backend.read(all, &mut bytes).unwrap();
        bytes
    }

    /// That running `op` puts the expected values in their spans and changes no other byte.
    pub(super) fn expect(&mut self, op: impl Into<Op>, expected: &[(Span, &[f64])]) {
        let mut after = self.bytes();
        for (span, values) in expected {
            assert_eq!(span.len, values.len());
            for (i, value) in values.iter().enumerate() {
                after[span.offset + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        let op = op.into();
        self.backend.run(&op).unwrap();
        for (span, values) in expected {
            assert_eq!(&read_elems(&mut self.backend, *span).unwrap(), values, "{op:?}");
        }
        assert!(self.bytes() == after, "{op:?} wrote outside its results");
    }

    pub(super) fn run(&mut self, op: impl Into<Op>) {
        self.backend.run(&op.into()).unwrap();
    }

    pub(super) fn words(&mut self, span: Span) -> Vec<u32> {
        read_u32(&mut self.backend, span).unwrap()
    }

    /// That `op` is refused with `error` and changes nothing.
    pub(super) fn refuse(&mut self, op: impl Into<Op>, error: InvalidOp) {
        let before = self.bytes();
        assert_eq!(self.backend.run(&op.into()), Err(ReferenceError::Op(error)));
        assert!(self.bytes() == before);
    }

    pub(super) fn dropout(&mut self, probability: f64, site: u32) -> (Option<Dropout>, Mask) {
        let counters: Vec<u32> = (0..counter::LEN).map(|_| self.rng.next_u32()).collect();
        let span = self.put_u32(&counters);
        let mask = Mask::new(probability, site, &counters).starting_at(9);
        (Some(Dropout { probability, site, first: 9, counters: span }), mask)
    }
}
