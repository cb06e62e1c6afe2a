//! The ops: everything that a backend is asked to compute.
//!
//! An op is a small `Copy` descriptor: spans of device memory and dimensions. The letters are those of the crate's
//! front page: B batch, T time, C d_model, H heads, D d_head, F d_ff, V vocabulary; all matrices are row-major.
//! Weights of linear layers are `(d_out, d_in)`, as in PyTorch. [`crate::reference`] says what each op computes.
//!
//! Activations, which the docs of the ops give by their shapes, are stored as the [`Precision`] says under which an op runs:
//! all of an op alike. It rounds as [`crate::reference::rounded`] has it.
//!
//! Unless a field says otherwise, a span that an op writes overlaps no other span of that op.

mod describe;
mod descriptors;
mod optimizer;
mod program;
mod rows;
mod sizes;

use crate::config::Precision;
use crate::memory::{Dtype, InvalidOp, Span};

pub use descriptors::*;
pub use optimizer::*;
pub use program::{Name, Program, Sink, Step};
pub use rows::*;
pub use sizes::Sizes;

/// A target that counts neither in the loss nor in the gradient.
pub const IGNORE: u32 = u32::MAX;

/// Places in the span of device scalars (of the backend's number type, [`scalar::LEN`] long).
pub mod scalar {
    /// Sum of -ln p over the targets since the step began. [`CrossEntropy`](super::CrossEntropy) adds to it.
    pub const LOSS_SUM: usize = 0;
    /// How many targets were counted in `LOSS_SUM`.
    pub const TARGETS: usize = 1;
    /// Squared norm of the summed gradient, written by [`SquaredNorm`](super::SquaredNorm).
    pub const GRAD_SQUARED: usize = 2;
    /// Mean loss of the last finished step, in nats per token.
    pub const LOSS: usize = 3;
    /// Norm of the mean gradient of the last finished step, before clipping.
    pub const GRAD_NORM: usize = 4;
    /// What optimizers multiply the summed gradient by: clip factor / targets. 0 in a step that is skipped.
    pub const GRAD_SCALE: usize = 5;
    /// Learning rate, written by the host before the step that it is for ends.
    pub const LEARNING_RATE: usize = 6;
    // Places 7 and 8 are free.
    /// 1 if the last finished step's loss and gradient were finite and optimizers are to apply it, else 0.
    pub const APPLY: usize = 9;
    /// How many scalars there are.
    pub const LEN: usize = 16;
}

/// Places in the span of device counters (u32, [`counter::LEN`] long). Pairs are (low, high) words.
pub mod counter {
    /// Low word of the seed, the key of the dropout masks.
    pub const SEED: usize = 0;
    /// Low word of the draw number: which batch the dropout masks belong to.
    pub const DRAW: usize = 2;
    /// Low word of the number of targets trained on.
    pub const TOKENS: usize = 4;
    /// Steps finished, skipped ones included.
    pub const STEP: usize = 6;
    /// Updates applied: t, from the first update on, in AdamW's bias corrections and in the average of weights.
    pub const UPDATES: usize = 7;
    /// Steps skipped because the loss or the gradient was not finite.
    pub const SKIPPED: usize = 8;
    /// Steps skipped since the last update.
    pub const SKIPPED_IN_A_ROW: usize = 9;
    /// How many counters there are.
    pub const LEN: usize = 16;
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident $(if $feature:tt)?),* $(,)?) => {
        /// Any op, with its operands.
        #[derive(Debug, Clone, Copy, PartialEq)]
        #[non_exhaustive]
        pub enum Op {
            $($(#[$doc])* $(#[cfg(feature = $feature)])? $name($name),)*
        }

        /// Any op, without its operands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum OpKind {
            $($(#[$doc])* $(#[cfg(feature = $feature)])? $name,)*
        }

        impl OpKind {
            /// All kinds, in order.
            pub const ALL: &'static [OpKind] = &[$($(#[cfg(feature = $feature)])? OpKind::$name),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(#[cfg(feature = $feature)])? OpKind::$name => stringify!($name),)*
                }
            }
        }

        impl Op {
            /// Its kind.
            pub const fn kind(&self) -> OpKind {
                match self {
                    $($(#[cfg(feature = $feature)])? Op::$name(_) => OpKind::$name,)*
                }
            }

            fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
                match self {
                    $($(#[cfg(feature = $feature)])? Op::$name(op) => op.describe(visit),)*
                }
            }
        }

        $($(#[cfg(feature = $feature)])?
        impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*
    };
}

ops! {
    /// See [`struct@EmbeddingForward`].
    EmbeddingForward,
    /// See [`struct@EmbeddingBackward`].
    EmbeddingBackward if "train",
    /// See [`struct@NormForward`].
    NormForward,
    /// See [`struct@NormBackward`].
    NormBackward if "train",
    /// See [`struct@LinearForward`].
    LinearForward,
    /// See [`struct@LinearBackward`].
    LinearBackward if "train",
    /// See [`struct@ActivationForward`].
    ActivationForward if "train",
    /// See [`struct@GateForward`].
    GateForward,
    /// See [`struct@GateBackward`].
    GateBackward if "train",
    /// See [`struct@Rotary`].
    Rotary,
    /// See [`struct@AttentionForward`].
    AttentionForward,
    /// See [`struct@AttentionBackward`].
    AttentionBackward if "train",
    /// See [`struct@AttentionScores`].
    AttentionScores,
    /// See [`struct@EmbeddingRows`].
    EmbeddingRows,
    /// See [`struct@NormRows`].
    NormRows,
    /// See [`struct@LinearRows`].
    LinearRows,
    /// See [`struct@GateRows`].
    GateRows,
    /// See [`struct@RotaryRows`].
    RotaryRows,
    /// See [`struct@CacheAppend`].
    CacheAppend,
    /// See [`struct@AttentionRows`].
    AttentionRows,
    /// See [`struct@GatherRows`].
    GatherRows,
    /// See [`struct@Sample`].
    Sample,
    /// See [`struct@CrossEntropy`].
    CrossEntropy if "train",
    /// See [`struct@SquaredNorm`].
    SquaredNorm if "train",
    /// See [`struct@NextDraw`].
    NextDraw if "train",
    /// See [`struct@FinishStep`].
    FinishStep if "train",
    /// See [`struct@AdamW`].
    AdamW if "train",
    /// See [`struct@Sgd`].
    Sgd if "train",
    /// See [`struct@Momentum`].
    Momentum if "train",
    /// See [`struct@NewtonSchulz`].
    NewtonSchulz if "train",
    /// See [`struct@Descend`].
    Descend if "train",
    /// See [`struct@Average`].
    Average if "train",
    /// See [`struct@Narrow`].
    Narrow if "train",
    /// See [`struct@Fill`].
    Fill if "train",
}

/// What an op does with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads it.
    Read,
    /// It writes all of it, whatever it held.
    Write,
    /// It reads it and changes it.
    Update,
}

/// One operand of an op, as [`Op::operands`] lists them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operand {
    /// The descriptor's field.
    pub name: &'static str,
    /// The span.
    pub span: Span,
    /// What the op does with it.
    pub access: Access,
    /// What its elements must be.
    pub kind: OperandKind,
    /// If its rows lie apart: only they are the operand, and what lies between them is neither read nor written.
    pub columns: Option<Columns>,
}

/// How the rows of an operand lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// How many elements a row has.
    pub width: usize,
    /// How many elements lie between the beginnings of two rows.
    pub stride: usize,
}

impl Columns {
    /// Whether these columns leave room for others of the same matrix that begin so many elements behind them.
    pub fn leaves(self, others: Columns, behind: usize) -> bool {
        let behind = behind % self.stride.max(1);
        self.stride == others.stride && self.width <= behind && behind + others.width <= self.stride
    }
}

impl Operand {
    /// That its type is right, and its offset aligned. The result is where it ends, in bytes.
    fn check(&self, elem: Dtype) -> Result<usize, InvalidOp> {
        let Operand { name, span, kind, .. } = *self;
        let fits = match kind {
            OperandKind::Elem => span.dtype == elem,
            OperandKind::Rounded => span.dtype == elem || span.dtype == Dtype::Bf16,
            OperandKind::U32 => span.dtype == Dtype::U32,
            OperandKind::Cache => span.dtype == elem || matches!(span.dtype, Dtype::F16 | Dtype::Bf16),
            OperandKind::Weight { .. } => {
                span.dtype == elem
                    || matches!(span.dtype, Dtype::F16 | Dtype::Bf16 | Dtype::Q8_0 | Dtype::Q4_0)
            }
        };
        if !fits {
            let expected = if kind == OperandKind::U32 { Dtype::U32 } else { elem };
            return Err(InvalidOp::Dtype { operand: name, expected, found: span.dtype });
        }
        let end = span.bytes().and_then(|bytes| span.offset.checked_add(bytes));
        let end = end.ok_or(InvalidOp::Overflow { operand: name })?;
        let (elements, unit) = span.dtype.unit();
        let align = if elements == 1 { unit } else { 2 };
        if !span.offset.is_multiple_of(align) {
            return Err(InvalidOp::Misaligned { operand: name, offset: span.offset });
        }
        Ok(end)
    }
}

impl Operand {
    /// Whether the two, in one buffer, are columns of one matrix that have no element in common.
    fn is_beside(&self, other: &Operand) -> bool {
        let (a, b) = (&self.span, &other.span);
        let (Some(x), Some(y)) = (self.columns, other.columns) else { return false };
        let unit = a.dtype.unit().1;
        let between = a.offset.abs_diff(b.offset);
        a.dtype == b.dtype
            && between.is_multiple_of(unit)
            && if a.offset <= b.offset { x.leaves(y, between / unit) } else { y.leaves(x, between / unit) }
    }

    /// Whether the two have no element in common, as [`Op::check`] finds.
    #[cfg(test)]
    fn is_apart(&self, other: &Operand) -> bool {
        let end = |operand: &Operand| operand.span.offset + operand.span.bytes().unwrap_or(0);
        let (a, b) = (&self.span, &other.span);
        a.buffer != b.buffer || end(self) <= b.offset || end(other) <= a.offset || self.is_beside(other)
    }

    /// How many elements it has.
    fn elements(&self) -> usize {
        match self.columns {
            Some(Columns { width, stride }) if self.span.len > 0 => {
                ((self.span.len - width) / stride + 1) * width
            }
            _ => self.span.len,
        }
    }
}

/// What the elements of an operand must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperandKind {
    /// The backend's own number type.
    Elem,
    /// What a [`Precision`] rounds: the backend's own number type, or bf16. All such operands of an op are alike.
    Rounded,
    /// A weight, which may also be f16, bf16 or quantised along rows of this length.
    Weight {
        /// Length of a row, without padding.
        cols: usize,
    },
    /// Keys or values of earlier positions, which may also be f16 or bf16.
    Cache,
    /// [`Dtype::U32`].
    U32,
}

/// At most this many operands has any op.
pub const MAX_OPERANDS: usize = 10;

/// The operands of one op, without a heap.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    list: [Option<Operand>; MAX_OPERANDS],
    len: usize,
}

impl Operands {
    const fn none() -> Self {
        Operands { list: [None; MAX_OPERANDS], len: 0 }
    }

    /// In the order of [`Op::operands`].
    pub fn iter(&self) -> impl Iterator<Item = &Operand> {
        self.list[..self.len].iter().flatten()
    }

    /// The operand called `name`.
    pub fn get(&self, name: &str) -> Option<&Operand> {
        self.iter().find(|operand| operand.name == name)
    }
}

impl Op {
    /// What it reads and writes: reads first, then what it changes.
    ///
    /// # Errors
    /// If a span's length does not fit the dimensions.
    pub fn operands(&self) -> Result<Operands, InvalidOp> {
        let mut operands = Operands::none();
        self.list(&mut operands)?;
        Ok(operands)
    }

    fn list(&self, operands: &mut Operands) -> Result<(), InvalidOp> {
        self.describe(&mut |operand| {
            operands.list[operands.len] = Some(operand);
            operands.len += 1;
        })
    }

    /// Whether a backend whose numbers are `elem` may run this op: lengths fit the dimensions, types are right,
    /// offsets are aligned, and nothing that is written overlaps another operand except where the op allows it.
    ///
    /// What remains to the backend is whether each span lies inside its buffer.
    ///
    /// # Errors
    /// The first operand that is wrong.
    pub fn check(&self, elem: Dtype) -> Result<Operands, InvalidOp> {
        let mut operands = Operands::none();
        self.check_listed(elem, &mut operands)?;
        Ok(operands)
    }

    /// As [`check`](Op::check), for a backend that only wants to know: on a small processor it takes time to hand out the list.
    ///
    /// # Errors
    /// As [`check`](Op::check).
    pub fn verify(&self, elem: Dtype) -> Result<(), InvalidOp> {
        self.check_listed(elem, &mut Operands::none())
    }

    fn check_listed(&self, elem: Dtype, operands: &mut Operands) -> Result<(), InvalidOp> {
        self.list(operands)?;
        let mut ends = [0; MAX_OPERANDS];
        let mut rounded = None;
        for (operand, end) in operands.iter().zip(&mut ends) {
            *end = operand.check(elem)?;
            let found = operand.span.dtype;
            if operand.kind == OperandKind::Rounded && *rounded.get_or_insert(found) != found {
                let expected = rounded.unwrap_or(elem);
                return Err(InvalidOp::Dtype { operand: operand.name, expected, found });
            }
        }
        let list = || operands.iter().zip(&ends).enumerate();
        for (i, (a, a_end)) in list().filter(|(_, (a, _))| a.access != Access::Read) {
            // A pair of which both are written comes once.
            for (j, (b, b_end)) in list().filter(|(j, (b, _))| i < *j || b.access == Access::Read) {
                let apart = a.span.buffer != b.span.buffer
                    || *a_end <= b.span.offset
                    || *b_end <= a.span.offset
                    || a.span.len.min(b.span.len) == 0
                    || a.is_beside(b);
                let (a, b) = if i < j { (a, b) } else { (b, a) };
                if !apart && !self.may_alias(a, b) {
                    return Err(InvalidOp::Overlap { a: a.name, b: b.name });
                }
            }
        }
        Ok(())
    }

    /// The pairs that may be one and the same span, or the same rows.
    fn may_alias(&self, a: &Operand, b: &Operand) -> bool {
        (a.span, a.columns) == (b.span, b.columns)
            && match self {
                #[cfg(feature = "train")]
                Op::NormBackward(op) => (a.name, b.name) == ("d_y", "d_x") && !op.accumulate,
                Op::LinearForward(_) | Op::LinearRows(_) => (a.name, b.name) == ("residual", "y"),
                #[cfg(feature = "train")]
                Op::CrossEntropy(_) => (a.name, b.name) == ("logits", "d_logits"),
                _ => false,
            }
    }

    /// The policy that it runs under: how its activations are stored.
    pub fn precision(&self) -> Precision {
        let span = match self {
            Op::EmbeddingForward(op) => op.out,
            #[cfg(feature = "train")]
            Op::EmbeddingBackward(op) => op.d_out,
            Op::NormForward(op) => op.y.span,
            #[cfg(feature = "train")]
            Op::NormBackward(op) => op.d_x.span,
            Op::LinearForward(op) => op.y,
            #[cfg(feature = "train")]
            Op::LinearBackward(op) => op.d_y,
            #[cfg(feature = "train")]
            Op::ActivationForward(op) => op.y,
            Op::GateForward(op) => op.y,
            #[cfg(feature = "train")]
            Op::GateBackward(op) => op.d_x,
            Op::Rotary(op) => op.x.span,
            Op::AttentionForward(op) => op.out,
            #[cfg(feature = "train")]
            Op::AttentionBackward(op) => op.d_out,
            Op::AttentionScores(op) => op.q.span,
            Op::EmbeddingRows(op) => op.out,
            Op::NormRows(op) => op.norm.y.span,
            Op::LinearRows(op) => op.linear.y,
            Op::GateRows(op) => op.gate.y,
            Op::RotaryRows(op) => op.x.span,
            Op::CacheAppend(op) => op.k.span,
            Op::AttentionRows(op) => op.out,
            Op::GatherRows(op) => op.to,
            Op::Sample(op) => op.logits,
            #[cfg(feature = "train")]
            Op::CrossEntropy(op) => op.logits,
            #[cfg(feature = "train")]
            Op::Narrow(op) => op.to,
            #[cfg(feature = "train")]
            Op::Fill(op) => op.to,
            #[cfg(feature = "train")]
            Op::SquaredNorm(_)
            | Op::NextDraw(_)
            | Op::FinishStep(_)
            | Op::AdamW(_)
            | Op::Sgd(_)
            | Op::Momentum(_)
            | Op::NewtonSchulz(_)
            | Op::Descend(_)
            | Op::Average(_) => return Precision::F32,
        };
        Precision::of(span.dtype)
    }

    /// Floating-point operations, counting a multiply-add as two and only what the mathematics needs: the matrix
    /// products, and the pairs of attention that see each other. Elementwise work counts as nothing. Rows of decoding count
    /// as if all were live, and each at the last position.
    pub fn flops(&self) -> u64 {
        let mul = |dims: &[usize]| dims.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
        let linear = |products, rows, d_in, d_out| mul(&[products, rows, d_in, d_out]);
        let attention = |products: usize, shape: &AttentionShape| {
            mul(&[2 * products, shape.batch, shape.heads, shape.d_head]).saturating_mul(shape.pairs())
        };
        match self {
            Op::LinearForward(op) => linear(2, op.rows, op.d_in, op.d_out),
            #[cfg(feature = "train")]
            Op::LinearBackward(op) => {
                let products = usize::from(op.d_x.is_some()) + usize::from(op.d_weight.is_some());
                linear(2 * products, op.rows, op.d_in, op.d_out)
            }
            Op::AttentionForward(op) => attention(2, &op.shape),
            #[cfg(feature = "train")]
            Op::AttentionBackward(op) => attention(4, &op.shape),
            Op::AttentionScores(op) => attention(1, &op.shape),
            Op::LinearRows(LinearRows { linear: op, .. }) => linear(2, op.rows, op.d_in, op.d_out),
            Op::AttentionRows(op) => mul(&[4, op.rows, op.heads, op.d_head, op.capacity]),
            #[cfg(feature = "train")]
            Op::NewtonSchulz(op) => {
                // Three products in each iteration: of m by n, m by m, and m by n.
                let (m, n) = (op.rows.min(op.cols), op.rows.max(op.cols));
                let both = n.saturating_mul(2).saturating_add(m);
                mul(&[2, op.steps as usize, m, m]).saturating_mul(both as u64)
            }
            _ => 0,
        }
    }

    /// Bytes read and written, each operand once (updates twice).
    pub fn bytes(&self) -> u64 {
        self.operands().map_or(0, |operands| {
            operands
                .iter()
                .map(|o| {
                    let bytes = Span { len: o.elements(), ..o.span }.bytes().unwrap_or(0) as u64;
                    if o.access == Access::Update { bytes.saturating_mul(2) } else { bytes }
                })
                .fold(0, u64::saturating_add)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Buffer, Strided};
    use alloc::vec::Vec;

    fn attention(batch: usize, time: usize, prefix: usize) -> Op {
        let span = Span { buffer: Buffer(0), dtype: Dtype::F64, offset: 0, len: usize::MAX / 8 };
        let rows = Strided { span, stride: 1 };
        let shape = AttentionShape { batch, time, heads: 3, kv_heads: 1, d_head: 5, scale: 1.0, prefix };
        AttentionForward { q: rows, k: rows, v: rows, out: span, lse: span, shape, dropout: None }.into()
    }

    #[test]
    fn attention_counts_the_pairs_that_see_each_other() {
        for (time, prefix) in [(1, 0), (7, 0), (7, 1), (7, 3), (7, 7), (7, 9)] {
            let sees = |i: usize, j: usize| j <= i || j < prefix;
            let pairs = (0..time).map(|i| (0..time).filter(|&j| sees(i, j)).count() as u64).sum::<u64>();
            assert_eq!(attention(2, time, prefix).flops(), 4 * 2 * 3 * 5 * pairs);
        }
    }

    /// Rows of `width` numbers that lie `stride` apart, from number `first` on.
    fn columns(first: usize, [width, stride, rows]: [usize; 3]) -> Operand {
        let len = (rows - 1) * stride + width;
        let span = Span { buffer: Buffer(3), dtype: Dtype::F32, offset: 4 * first, len };
        let columns = (stride > width).then_some(Columns { width, stride });
        Operand { name: "x", span, access: Access::Write, kind: OperandKind::Elem, columns }
    }

    fn are_apart(a: Operand, b: Operand) -> bool {
        let apart = a.is_apart(&b);
        assert_eq!(apart, b.is_apart(&a));
        apart
    }

    #[test]
    fn rows_that_lie_apart_share_a_number_or_do_not() {
        // All that fit into 12 columns, against what each number says; columns of other matrices count as if they did.
        let numbers = |operand: &Operand| -> Vec<usize> {
            let (first, len) = (operand.span.offset / 4, operand.span.len);
            let Columns { width, stride } = operand.columns.unwrap_or(Columns { width: len, stride: len });
            (0..len).filter(|i| i % stride < width).map(|i| first + i).collect()
        };
        for first in 0..12 {
            for (width, other) in (1..6).flat_map(|width| (1..6).map(move |other| (width, other))) {
                for rows in [1, 2, 4] {
                    let (a, b) = (columns(20, [width, 6, rows]), columns(20 + first, [other, 6, rows]));
                    let shared = numbers(&a).iter().any(|number| numbers(&b).contains(number));
                    let apart = are_apart(a, b);
                    assert!(!(apart && shared), "{first} {width} {other} {rows}");
                    // What lies in another row's end and beginning is refused, although one row may have room for it.
                    let wraps = first % 6 + other > 6;
                    assert!(apart || shared || wraps, "{first} {width} {other} {rows}");
                }
            }
        }
    }

    #[test]
    fn rows_are_apart_only_in_one_matrix_or_where_none_begins_before_the_other_ends() {
        let a = columns(0, [2, 6, 3]);
        assert!(are_apart(a, columns(2, [4, 6, 3])));
        // One with other rows, or without any, or of another type, is taken to have what lies between.
        assert!(!are_apart(a, columns(2, [2, 7, 2])));
        assert!(!are_apart(a, columns(2, [2, 2, 1])));
        let halves = Operand { kind: OperandKind::Cache, ..columns(4, [2, 6, 3]) };
        let halves = Operand { span: Span { dtype: Dtype::F16, ..halves.span }, ..halves };
        assert!(!are_apart(a, halves));
        let askew =
            Operand { span: Span { offset: 9, ..columns(2, [2, 6, 3]).span }, ..columns(2, [2, 6, 3]) };
        assert!(!a.is_apart(&askew));
        // Behind its end, and in another buffer.
        assert!(are_apart(a, columns(14, [2, 2, 1])));
        let elsewhere = columns(0, [2, 6, 3]);
        assert!(are_apart(a, Operand { span: Span { buffer: Buffer(4), ..elsewhere.span }, ..elsewhere }));
        assert!(!are_apart(a, a));
    }

    #[test]
    fn counts_saturate_whatever_the_dimensions() {
        assert_eq!(attention(1, usize::MAX, 0).flops(), u64::MAX);
        assert_eq!(attention(usize::MAX, 1, 0).flops(), 60_u64.saturating_mul(usize::MAX as u64));
        let x = Span { buffer: Buffer(0), dtype: Dtype::F32, offset: 0, len: usize::MAX / 4 };
        let scalars = Span { len: scalar::LEN, ..x };
        let n = AdamW {
            params: x,
            grads: x,
            m: x,
            v: x,
            scalars,
            counters: Span { dtype: Dtype::U32, len: counter::LEN, ..x },
            beta1: 0.0,
            beta2: 0.0,
            eps: 1.0,
            weight_decay: 0.0,
            rate: 1.0,
        };
        let few = 4 * (scalar::LEN + counter::LEN) as u64;
        assert_eq!(Op::from(n).bytes(), 7_u64.saturating_mul(4 * x.len as u64).saturating_add(few));
        let matrix = NewtonSchulz { x, rows: usize::MAX, cols: usize::MAX, steps: u32::MAX };
        assert_eq!(Op::from(matrix).flops(), u64::MAX);
        let (rows, cols, steps) = (5, 3, 2);
        let x = Span { len: rows * cols, ..x };
        let products = 2 * (3 * 3 * 5 + 3 * 3 * 3 + 3 * 3 * 5);
        assert_eq!(Op::from(NewtonSchulz { x, rows, cols, steps }).flops(), 2 * products);
    }
}
