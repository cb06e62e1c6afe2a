//! Numbers of the host to and from a backend's memory.

use alloc::vec::Vec;

use super::Backend;
use crate::memory::{Dtype, InvalidOp, Span, zeros};
use crate::real::Real;
use crate::reference::weights::{decode_half, encode_half};

/// The bytes of `len` numbers of `size` bytes each, read from the backend.
fn read_bytes<B: Backend + ?Sized>(backend: &mut B, from: Span, size: usize) -> Result<Vec<u8>, B::Error> {
    let mut bytes =
        zeros("read", from.len.checked_mul(size).ok_or(InvalidOp::Overflow { operand: "read" })?)?;
    backend.read(from, &mut bytes)?;
    Ok(bytes)
}

/// Numbers as a device stores them, of the backend's own type or of f16 or bf16: as many as either has.
///
/// Once in a program, since it is asked for in many places.
#[inline(never)]
pub(crate) fn from_bytes<R: Real>(values: &mut [R], dtype: Dtype, bytes: &[u8]) {
    if dtype != R::DTYPE {
        for (value, &bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
            *value = R::from_f64(f64::from(decode_half(bytes, dtype)));
        }
        return;
    }
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<R>())) {
        *value = R::from_le_slice(bytes);
    }
}

/// And the way back, rounded to the nearest.
pub(crate) fn to_bytes<R: Real>(values: &[R], dtype: Dtype, bytes: &mut [u8]) {
    if dtype != R::DTYPE {
        for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *bytes = encode_half(Real::to_f64(*value), dtype);
        }
        return;
    }
    for (bytes, value) in bytes.chunks_exact_mut(size_of::<R>()).zip(values) {
        value.to_le_slice(bytes);
    }
}

/// The bytes of a number of `dtype`, which must be the backend's own type, or f16 or bf16.
fn size_in<R: Real>(operand: &'static str, dtype: Dtype) -> Result<usize, InvalidOp> {
    if dtype == R::DTYPE || matches!(dtype, Dtype::F16 | Dtype::Bf16) {
        return Ok(dtype.unit().1);
    }
    Err(InvalidOp::Dtype { operand, expected: R::DTYPE, found: dtype })
}

/// Reads a span of the backend's own number type, or of f16 or bf16.
///
/// # Errors
/// As [`Backend::read`]; also if the span's type is not one of these, or the host has no memory for the values.
pub fn read_elems<B: Backend + ?Sized>(backend: &mut B, from: Span) -> Result<Vec<B::Elem>, B::Error> {
    let bytes = read_bytes(backend, from, size_in::<B::Elem>("read", from.dtype)?)?;
    let mut values = zeros("read", from.len)?;
    from_bytes(&mut values, from.dtype, &bytes);
    Ok(values)
}

/// Writes a span of the backend's own number type, or of f16 or bf16, to which the values are rounded.
///
/// # Errors
/// As [`Backend::write`]; also if the span's type is not one of these, or the host has no memory for the bytes.
pub fn write_elems<B: Backend + ?Sized>(
    backend: &mut B,
    to: Span,
    values: &[B::Elem],
) -> Result<(), B::Error> {
    let size = size_in::<B::Elem>("write", to.dtype)?;
    let mut bytes = zeros("write", values.len().saturating_mul(size))?;
    to_bytes(values, to.dtype, &mut bytes);
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
