//! What a backend sees of `backend::fall_back`, and the reference as a backend.

use minigpt_core::backend::{Reference, ReferenceError, read_elems, read_u32, write_elems};
use minigpt_core::op::*;
use minigpt_core::{
    Backend, BackendError, Buffer, Dtype, ErrorKind, Import, Imported, InvalidOp, OpKind, Span,
};

/// Claims to hold any span, and counts what falls back to the reference.
#[derive(Default)]
struct Hollow {
    fallbacks: Vec<OpKind>,
}

impl Backend for Hollow {
    type Elem = f32;
    type Error = ReferenceError;
    fn alloc(&mut self, _: usize) -> Result<Buffer, ReferenceError> {
        Ok(Buffer(0))
    }
    fn release(&mut self, _: Buffer) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn write(&mut self, _: Span, _: &[u8]) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn read(&mut self, _: Span, _: &mut [u8]) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn copy(&mut self, _: Span, _: Span) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn fill(&mut self, _: Span, _: f64) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn sync(&mut self) -> Result<(), ReferenceError> {
        Ok(())
    }
    fn fell_back(&mut self, op: OpKind) {
        self.fallbacks.push(op);
    }
}

#[test]
fn every_run_tells_the_backend_that_it_fell_back() {
    let mut backend = Hollow::default();
    let counters = Span { buffer: Buffer(0), dtype: Dtype::U32, offset: 0, len: counter::LEN };
    backend.run(&NextDraw { counters }.into()).unwrap();
    let x = Span { dtype: Dtype::F32, ..counters };
    backend.run(&SquaredNorm { x, scalars: Span { offset: 64, ..x } }.into()).unwrap();
    assert_eq!(backend.fallbacks, [OpKind::NextDraw, OpKind::SquaredNorm]);
}

#[test]
fn what_the_host_cannot_hold_is_out_of_memory_and_not_an_abort() {
    let mut backend = Hollow::default();
    let len = 1_usize << (usize::BITS - 3);
    let x = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len };
    let scalars = Span { offset: 4 * len, len: scalar::LEN, ..x };
    let error = backend.run(&SquaredNorm { x, scalars }.into()).unwrap_err();
    assert_eq!(error, ReferenceError::Op(InvalidOp::HostMemory { operand: "read", bytes: 4 * len }));
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let tokens = Span { dtype: Dtype::U32, ..x };
    assert_eq!(read_u32(&mut backend, tokens).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn an_imported_buffer_holds_its_bytes() {
    let mut backend = Reference::<f32>::new();
    let bytes: Vec<u8> = (0..11).collect();
    let Imported::Copied(buffer) = backend.import(&bytes).unwrap() else {
        panic!("the reference has memory of its own")
    };
    let mut read = [9; 12];
    backend.read(Span { buffer, dtype: Dtype::U32, offset: 0, len: 3 }, &mut read).unwrap();
    assert_eq!(read, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
}

#[test]
fn single_precision_runs_the_same_ops() {
    let mut backend = Reference::<f32>::new();
    let buffer = backend.alloc(256).unwrap();
    let x = Span { buffer, dtype: Dtype::F32, offset: 0, len: 2 };
    let scalars = Span { offset: 64, len: scalar::LEN, ..x };
    write_elems(&mut backend, x, &[3.0, 4.0]).unwrap();
    backend.run(&SquaredNorm { x, scalars }.into()).unwrap();
    let read = read_elems(&mut backend, scalars).unwrap();
    assert_eq!(read[scalar::GRAD_SQUARED], 25.0);
    assert_eq!(read.iter().filter(|&&s| s != 0.0).count(), 1);
}
