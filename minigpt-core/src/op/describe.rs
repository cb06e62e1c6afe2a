//! Which operands each op has, and how long they must be.

#[cfg(feature = "train")]
mod optimizer;

use super::descriptors::*;
#[cfg(feature = "train")]
use super::scalar;
use super::{Access, Columns, Operand, OperandKind, counter};
use crate::memory::{InvalidOp, Span, Strided};

/// Collects operands and checks their lengths.
pub(super) struct Describe<'a> {
    pub(super) visit: &'a mut dyn FnMut(Operand),
}

fn product(operand: &'static str, dims: &[usize]) -> Result<usize, InvalidOp> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(InvalidOp::Overflow { operand })
}

impl Describe<'_> {
    fn push(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        kind: OperandKind,
        fits: impl Fn(usize) -> bool,
        expected: usize,
    ) -> Result<(), InvalidOp> {
        if !fits(span.len) {
            return Err(InvalidOp::Length { operand: name, expected, found: span.len });
        }
        (self.visit)(Operand { name, span, access, kind, columns: None });
        Ok(())
    }

    /// `rows` rows of `width`, which may lie apart: activations.
    pub(super) fn strided(
        &mut self,
        name: &'static str,
        Strided { span, stride }: Strided,
        access: Access,
        rows: &[usize],
        width: &[usize],
    ) -> Result<(), InvalidOp> {
        let (rows, width) = (product(name, rows)?, product(name, width)?);
        if stride < width {
            return Err(InvalidOp::Value { operand: name });
        }
        let overflow = InvalidOp::Overflow { operand: name };
        let expected = match rows {
            0 => 0,
            _ => (rows - 1).checked_mul(stride).and_then(|n| n.checked_add(width)).ok_or(overflow)?,
        };
        if span.len != expected {
            return Err(InvalidOp::Length { operand: name, expected, found: span.len });
        }
        let columns = (stride > width).then_some(Columns { width, stride });
        (self.visit)(Operand { name, span, access, kind: OperandKind::Rounded, columns });
        Ok(())
    }

    pub(super) fn elem(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        self.whole(name, span, access, OperandKind::Elem, dims)
    }

    /// A span that is as long as its dimensions say.
    fn whole(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        kind: OperandKind,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        let expected = product(name, dims)?;
        self.push(name, span, access, kind, |len| len == expected, expected)
    }

    /// An activation, its gradient, or a weight as the gradient's ops read it: what a [`Precision`](crate::Precision) rounds.
    pub(super) fn rounded(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        self.whole(name, span, access, OperandKind::Rounded, dims)
    }

    /// The same, of a span that the op may go without.
    pub(super) fn optional_rounded(
        &mut self,
        name: &'static str,
        span: Option<Span>,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        span.map_or(Ok(()), |span| self.rounded(name, span, access, dims))
    }

    /// A span that the op may go without.
    pub(super) fn optional(
        &mut self,
        name: &'static str,
        span: Option<Span>,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        span.map_or(Ok(()), |span| self.elem(name, span, access, dims))
    }

    /// A span that may be longer than the op needs.
    pub(super) fn at_least(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        let expected = product(name, dims)?;
        self.push(name, span, access, OperandKind::Elem, |len| len >= expected, expected)
    }

    pub(super) fn weight(
        &mut self,
        name: &'static str,
        span: Span,
        rows: usize,
        cols: usize,
    ) -> Result<(), InvalidOp> {
        let stored = cols.checked_next_multiple_of(span.dtype.unit().0);
        let expected = product(name, &[rows, stored.ok_or(InvalidOp::Overflow { operand: name })?])?;
        self.push(name, span, Access::Read, OperandKind::Weight { cols }, |len| len == expected, expected)
    }

    /// Keys and values, both stored alike: as elements, or as f16 or bf16.
    pub(super) fn caches(
        &mut self,
        [keys, values]: [Span; 2],
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        if keys.dtype != values.dtype {
            let (expected, found) = (keys.dtype, values.dtype);
            return Err(InvalidOp::Dtype { operand: "values", expected, found });
        }
        for (name, span) in [("keys", keys), ("values", values)] {
            self.whole(name, span, access, OperandKind::Cache, dims)?;
        }
        Ok(())
    }

    pub(super) fn u32(
        &mut self,
        name: &'static str,
        span: Span,
        access: Access,
        dims: &[usize],
    ) -> Result<(), InvalidOp> {
        self.whole(name, span, access, OperandKind::U32, dims)
    }

    fn dropout(&mut self, dropout: &Option<Dropout>) -> Result<(), InvalidOp> {
        match dropout {
            None => Ok(()),
            Some(d) if !(0.0..1.0).contains(&d.probability) => Err(InvalidOp::Value { operand: "dropout" }),
            Some(d) => self.u32("dropout.counters", d.counters, Access::Read, &[counter::LEN]),
        }
    }

    #[cfg(feature = "train")]
    pub(super) fn scalars(&mut self, span: Span) -> Result<(), InvalidOp> {
        self.elem("scalars", span, Access::Update, &[scalar::LEN])
    }
}

use Access::{Read, Update, Write};

#[cfg(feature = "train")]
fn write_or_update(accumulate: bool) -> Access {
    if accumulate { Update } else { Write }
}

impl EmbeddingForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, c) = (self.batch, self.time, self.d_model);
        let mut d = Describe { visit };
        d.u32("tokens", self.tokens, Read, &[b, t])?;
        d.weight("token_embedding", self.token_embedding, self.vocab, c)?;
        if let Some(span) = self.position_embedding {
            d.at_least("position_embedding", span, Read, &[t, c])?;
        }
        d.dropout(&self.dropout)?;
        d.rounded("out", self.out, Write, &[b, t, c])
    }
}

#[cfg(feature = "train")]
impl EmbeddingBackward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (b, t, c) = (self.batch, self.time, self.d_model);
        let mut d = Describe { visit };
        d.u32("tokens", self.tokens, Read, &[b, t])?;
        d.rounded("d_out", self.d_out, Read, &[b, t, c])?;
        d.dropout(&self.dropout)?;
        d.optional("d_token_embedding", self.d_token_embedding, Update, &[self.vocab, c])?;
        if let Some(span) = self.d_position_embedding {
            d.at_least("d_position_embedding", span, Update, &[t, c])?;
        }
        Ok(())
    }
}

impl Normalize {
    fn describe(
        &self,
        d: &mut Describe<'_>,
        access: Access,
        rows: usize,
        groups: usize,
    ) -> Result<(), InvalidOp> {
        match *self {
            Normalize::Layer { mean } => d.elem("mean", mean, access, &[rows, groups]),
            Normalize::Rms => Ok(()),
        }
    }
}

impl NormForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (rows, width) = ([self.rows], [self.groups, self.width]);
        let mut d = Describe { visit };
        d.strided("x", self.x, Read, &rows, &width)?;
        d.elem("weight", self.weight, Read, &[self.width])?;
        d.optional("bias", self.bias, Read, &[self.width])?;
        d.strided("y", self.y, Write, &rows, &width)?;
        self.kind.describe(&mut d, Write, self.rows, self.groups)?;
        d.elem("rstd", self.rstd, Write, &[self.rows, self.groups])
    }
}

#[cfg(feature = "train")]
impl NormBackward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (rows, width) = ([self.rows], [self.groups, self.width]);
        let mut d = Describe { visit };
        d.strided("x", self.x, Read, &rows, &width)?;
        d.elem("weight", self.weight, Read, &[self.width])?;
        self.kind.describe(&mut d, Read, self.rows, self.groups)?;
        d.elem("rstd", self.rstd, Read, &[self.rows, self.groups])?;
        d.strided("d_y", self.d_y, Read, &rows, &width)?;
        d.strided("d_x", self.d_x, write_or_update(self.accumulate), &rows, &width)?;
        d.optional("d_weight", self.d_weight, Update, &[self.width])?;
        d.optional("d_bias", self.d_bias, Update, &[self.width])
    }
}

impl LinearForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("x", self.x, Read, &[self.rows, self.d_in])?;
        d.weight("weight", self.weight, self.d_out, self.d_in)?;
        d.optional("bias", self.bias, Read, &[self.d_out])?;
        if let Some(Activate { input: Some(input), .. }) = self.activate {
            d.rounded("activate.input", input, Write, &[self.rows, self.d_out])?;
        }
        d.dropout(&self.dropout)?;
        d.optional_rounded("residual", self.residual, Read, &[self.rows, self.d_out])?;
        d.rounded("y", self.y, Write, &[self.rows, self.d_out])
    }
}

#[cfg(feature = "train")]
impl LinearBackward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("x", self.x, Read, &[self.rows, self.d_in])?;
        d.rounded("weight", self.weight, Read, &[self.d_out, self.d_in])?;
        d.rounded("d_y", self.d_y, Read, &[self.rows, self.d_out])?;
        d.dropout(&self.dropout)?;
        if let Some(activate) = self.activate {
            let input = activate.input.ok_or(InvalidOp::Value { operand: "activate.input" })?;
            d.rounded("activate.input", input, Read, &[self.rows, self.d_in])?;
            if self.accumulate {
                return Err(InvalidOp::Value { operand: "accumulate" });
            }
        }
        d.optional_rounded("d_x", self.d_x, write_or_update(self.accumulate), &[self.rows, self.d_in])?;
        d.optional("d_weight", self.d_weight, Update, &[self.d_out, self.d_in])?;
        d.optional("d_bias", self.d_bias, Update, &[self.d_out])
    }
}

#[cfg(feature = "train")]
impl ActivationForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("x", self.x, Read, &[self.rows, self.width])?;
        d.rounded("y", self.y, Write, &[self.rows, self.width])
    }
}

impl GateForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("x", self.x, Read, &[self.rows, 2, self.width])?;
        d.rounded("y", self.y, Write, &[self.rows, self.width])
    }
}

#[cfg(feature = "train")]
impl GateBackward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("x", self.x, Read, &[self.rows, 2, self.width])?;
        d.rounded("d_y", self.d_y, Read, &[self.rows, self.width])?;
        d.rounded("d_x", self.d_x, Write, &[self.rows, 2, self.width])
    }
}

impl Rotary {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        if !self.d_head.is_multiple_of(2) {
            return Err(InvalidOp::Value { operand: "d_head" });
        }
        let mut d = Describe { visit };
        d.at_least("table", self.table, Read, &[self.time, self.d_head])?;
        d.strided("x", self.x, Update, &[self.batch, self.time], &[self.heads, self.d_head])
    }
}

/// That each head of keys and values serves as many heads of queries.
pub(super) fn check_groups(heads: usize, kv_heads: usize) -> Result<(), InvalidOp> {
    if heads.is_multiple_of(kv_heads) { Ok(()) } else { Err(InvalidOp::Value { operand: "kv_heads" }) }
}

impl AttentionShape {
    /// The queries, keys and, if there are any, values.
    fn describe(
        &self,
        d: &mut Describe<'_>,
        access: Access,
        parts: &[(&'static str, Strided)],
    ) -> Result<(), InvalidOp> {
        check_groups(self.heads, self.kv_heads)?;
        for (&(name, part), heads) in parts.iter().zip([self.heads, self.kv_heads, self.kv_heads]) {
            d.strided(name, part, access, &[self.batch, self.time], &[heads, self.d_head])?;
        }
        Ok(())
    }

    /// (B, T, H, D).
    fn out(&self) -> [usize; 4] {
        [self.batch, self.time, self.heads, self.d_head]
    }

    /// (B, H, T).
    fn lse(&self) -> [usize; 3] {
        [self.batch, self.heads, self.time]
    }
}

impl AttentionForward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (d, shape) = (&mut Describe { visit }, &self.shape);
        shape.describe(d, Read, &[("q", self.q), ("k", self.k), ("v", self.v)])?;
        d.dropout(&self.dropout)?;
        d.rounded("out", self.out, Write, &shape.out())?;
        d.elem("lse", self.lse, Write, &shape.lse())
    }
}

#[cfg(feature = "train")]
impl AttentionBackward {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (d, shape) = (&mut Describe { visit }, &self.shape);
        shape.describe(d, Read, &[("q", self.q), ("k", self.k), ("v", self.v)])?;
        d.rounded("out", self.out, Read, &shape.out())?;
        d.elem("lse", self.lse, Read, &shape.lse())?;
        d.rounded("d_out", self.d_out, Read, &shape.out())?;
        d.dropout(&self.dropout)?;
        shape.describe(d, Write, &[("d_q", self.d_q), ("d_k", self.d_k), ("d_v", self.d_v)])
    }
}

impl AttentionScores {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (d, shape) = (&mut Describe { visit }, &self.shape);
        shape.describe(d, Read, &[("q", self.q), ("k", self.k)])?;
        d.elem("scores", self.scores, Write, &[shape.batch, shape.heads, shape.time, shape.time])
    }
}

#[cfg(feature = "train")]
impl CrossEntropy {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.rounded("logits", self.logits, Read, &[self.rows, self.vocab])?;
        d.u32("targets", self.targets, Read, &[self.rows])?;
        d.optional_rounded("d_logits", self.d_logits, Write, &[self.rows, self.vocab])?;
        d.optional("losses", self.losses, Write, &[self.rows])?;
        d.scalars(self.scalars)
    }
}

#[cfg(feature = "train")]
impl SquaredNorm {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.elem("x", self.x, Read, &[self.x.len])?;
        d.scalars(self.scalars)
    }
}

#[cfg(feature = "train")]
impl NextDraw {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.u32("counters", self.counters, Update, &[counter::LEN])
    }
}

#[cfg(feature = "train")]
impl Fill {
    pub(super) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.rounded("to", self.to, Write, &[self.to.len])
    }
}
