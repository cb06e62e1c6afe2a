//! Why an op is refused.

use core::fmt;

use super::Dtype;

/// What is wrong with an op or a transfer: a bug of the caller, told instead of a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidOp {
    /// A span's length does not fit the op's dimensions.
    Length {
        /// The operand.
        operand: &'static str,
        /// Elements that the dimensions ask for.
        expected: usize,
        /// Elements that the span has.
        found: usize,
    },
    /// A span's elements are of the wrong type.
    Dtype {
        /// The operand.
        operand: &'static str,
        /// What is needed.
        expected: Dtype,
        /// What it is.
        found: Dtype,
    },
    /// A span reaches past the end of its buffer, or its buffer does not exist.
    OutOfBounds {
        /// The operand.
        operand: &'static str,
        /// Where the span ends, in bytes.
        end: usize,
        /// The size of the buffer, in bytes; 0 if there is none.
        size: usize,
    },
    /// A span's offset is not a multiple of its element's size.
    Misaligned {
        /// The operand.
        operand: &'static str,
        /// The offset in bytes.
        offset: usize,
    },
    /// A span that is written shares bytes with another.
    Overlap {
        /// One operand.
        a: &'static str,
        /// The other.
        b: &'static str,
    },
    /// A size cannot be counted in `usize`.
    Overflow {
        /// The operand.
        operand: &'static str,
    },
    /// A number or a combination of fields has no meaning.
    Value {
        /// The field.
        operand: &'static str,
    },
    /// A token id or a target is not below the vocabulary's size.
    Token {
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// A word that names a row, a slot or a position is not below how many there are.
    Index {
        /// The operand.
        operand: &'static str,
        /// The word.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// The host has no memory to carry a span through the reference; of the kind
    /// [`OutOfMemory`](crate::backend::ErrorKind::OutOfMemory).
    HostMemory {
        /// The operand.
        operand: &'static str,
        /// The bytes that it needs.
        bytes: usize,
    },
    /// The backend has no kernel for the op, or none for these operands, and left out the reference.
    NoKernel,
    /// A span that is to be written is read-only.
    ReadOnly {
        /// The operand.
        operand: &'static str,
    },
}

impl fmt::Display for InvalidOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            InvalidOp::Length { operand, expected, found } => {
                write!(f, "`{operand}` has {found} elements where its dimensions ask for {expected}")
            }
            InvalidOp::Dtype { operand, expected, found } => {
                write!(f, "`{operand}` holds {found:?} where {expected:?} is needed")
            }
            InvalidOp::OutOfBounds { operand, end, size } => {
                write!(f, "`{operand}` ends at byte {end} of a buffer of {size}")
            }
            InvalidOp::Misaligned { operand, offset } => {
                write!(f, "`{operand}` begins at byte {offset}, which its element type does not allow")
            }
            InvalidOp::Overlap { a, b } => write!(f, "`{a}` and `{b}` overlap, and one of them is written"),
            InvalidOp::Overflow { operand } => write!(f, "the size of `{operand}` cannot be counted"),
            InvalidOp::Value { operand } => write!(f, "`{operand}` has a value that the op cannot take"),
            InvalidOp::Token { token, vocab } => {
                write!(
                    f,
                    "token {token} is not below the vocabulary's size {vocab}: use the model's own tokenizer"
                )
            }
            InvalidOp::Index { operand, index, count } => {
                write!(f, "`{operand}` names number {index}, counted from 0, and there are {count}")
            }
            InvalidOp::HostMemory { operand, bytes } => {
                write!(
                    f,
                    "`{operand}` needs {bytes} bytes on the host, which has no room: use a smaller batch"
                )
            }
            InvalidOp::NoKernel => f.write_str(
                "the backend has no kernel for this op: it should pass it on to `backend::fall_back`",
            ),
            InvalidOp::ReadOnly { operand } => write!(f, "`{operand}` is read-only: it is borrowed"),
        }
    }
}

impl core::error::Error for InvalidOp {}
