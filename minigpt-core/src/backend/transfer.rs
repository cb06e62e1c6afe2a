//! Numbers of the host to and from a backend's memory.

use alloc::vec::Vec;

use super::Backend;
use crate::memory::{Dtype, InvalidOp, Span, zeros};
use crate::real::Real;
use crate::reference::weights::{decode_weight, encode_half};

/// The bytes of `len` numbers of `size` bytes each, read from the backend.
fn read_bytes<B: Backend + ?Sized>(backend: &mut B, from: Span, size: usize) -> Result<Vec<u8>, B::Error> {
    let mut bytes =
        zeros("read", from.len.checked_mul(size).ok_or(InvalidOp::Overflow { operand: "read" })?)?;
    backend.read(from, &mut bytes)?;
    Ok(bytes)
}

/// Reads a span of the backend's own number type, or of f16 or bf16.
///
/// # Errors
/// As [`Backend::read`]; also if the span's type is not one of these, or the host has no memory for the values.
pub fn read_elems<B: Backend + ?Sized>(backend: &mut B, from: Span) -> Result<Vec<B::Elem>, B::Error> {
    let half = matches!(from.dtype, Dtype::F16 | Dtype::Bf16);
    if from.dtype != B::Elem::DTYPE && !half {
        return Err(InvalidOp::Dtype { operand: "read", expected: B::Elem::DTYPE, found: from.dtype }.into());
    }
    let size = if half { 2 } else { size_of::<B::Elem>() };
    let bytes = read_bytes(backend, from, size)?;
    let mut values = zeros("read", from.len)?;
    if half {
        decode_weight(&bytes, from.dtype, &mut values, 1, from.len);
        return Ok(values);
    }
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size)) {
        *value = B::Elem::from_le_slice(bytes);
    }
    Ok(values)
}

/// Writes a span of the backend's own number type, or of f16 or bf16, to which the values are rounded.
///
/// # Errors
/// As [`Backend::write`]; also if the host has no memory for the bytes.
pub fn write_elems<B: Backend + ?Sized>(
    backend: &mut B,
    to: Span,
    values: &[B::Elem],
) -> Result<(), B::Error> {
    if matches!(to.dtype, Dtype::F16 | Dtype::Bf16) {
        let mut bytes = zeros("write", 2 * values.len())?;
        for (out, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
            *out = encode_half(value.to_f64(), to.dtype);
        }
        return backend.write(to, &bytes);
    }
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
