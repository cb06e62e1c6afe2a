//! Operands whose rows lie apart: columns of one matrix, as models have them, or of matrices of their own.

use alloc::vec;
use alloc::vec::Vec;

use super::{Draw, Fill, Memory};
use crate::memory::Strided;

/// What an operand holds, row behind row.
pub(super) struct Part {
    pub(super) width: usize,
    pub(super) values: Vec<f64>,
}

impl Part {
    pub(super) fn new(width: usize, values: Vec<f64>) -> Self {
        Part { width, values }
    }

    /// What the op is to write, every number of it.
    pub(super) fn unwritten(rows: usize, width: usize) -> Self {
        Part { width, values: vec![f64::NAN; rows * width] }
    }
}

/// What lies between the rows.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Between {
    /// Of what is read, nothing that anybody may use.
    Nothing,
    /// Of what is written, numbers that are to stay as they are.
    Numbers,
}

/// Lays operands of `rows` rows out: mostly all as columns of one matrix, now and then the last one apart from the others, or
/// each in a matrix of its own.
pub(super) fn lay<const N: usize>(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    rows: usize,
    parts: [Part; N],
    between: Between,
) -> [Strided; N] {
    // How many operands each matrix has.
    let matrices = match draw.below(4) {
        0 => vec![1; N],
        1 if N > 1 => vec![N - 1, 1],
        _ => vec![N],
    };
    let mut laid = Vec::new();
    for count in matrices {
        laid.extend(matrix(draw, memory, rows, &parts[laid.len()..][..count], between));
    }
    core::array::from_fn(|part| laid[part])
}

/// Lays operands out as columns of one matrix, which ends with the last of them.
fn matrix(
    draw: &mut Draw,
    memory: &mut dyn Memory,
    rows: usize,
    parts: &[Part],
    between: Between,
) -> Vec<Strided> {
    let loose = draw.below(2) == 0;
    let (mut firsts, mut end) = (Vec::new(), 0);
    for part in parts {
        firsts.push(end + gap(draw, part.width, loose));
        end = firsts[firsts.len() - 1] + part.width;
    }
    let stride = end + gap(draw, parts[0].width, loose);
    let len = (rows - 1) * stride + end;
    let mut numbers = match between {
        Between::Nothing => vec![f64::NAN; len],
        Between::Numbers => draw.normals(len, 1.0),
    };
    for (part, &first) in parts.iter().zip(&firsts) {
        for (row, values) in part.values.chunks_exact(part.width).enumerate() {
            numbers[row * stride + first..][..part.width].copy_from_slice(values);
        }
    }
    let span = memory.span(len, Fill::Values(numbers));
    let columns = |(part, &first): (&Part, &usize)| Strided {
        span: span.slice(first, (rows - 1) * stride + part.width),
        stride,
    };
    parts.iter().zip(&firsts).map(columns).collect()
}

/// How many columns that belong to no operand stand in front of one: none, some, or as many as it has itself.
fn gap(draw: &mut Draw, width: usize, loose: bool) -> usize {
    let unit = if draw.is_even() { 16 } else { 1 };
    match draw.below(4) {
        0 if loose => unit * (1 + draw.below(5)),
        1 if loose => width,
        _ => 0,
    }
}
