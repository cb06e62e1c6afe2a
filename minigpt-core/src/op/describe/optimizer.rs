//! The operands of what makes an update of a gradient.

use super::Describe;
use crate::memory::{Dtype, InvalidOp, Span};
use crate::op::Access::{Read, Update, Write};
use crate::op::{
    AdamW, Average, Descend, FinishStep, Momentum, Narrow, NewtonSchulz, Operand, Sgd, counter, scalar,
};

impl FinishStep {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let mut d = Describe { visit };
        d.scalars(self.scalars)?;
        d.u32("counters", self.counters, Update, &[counter::LEN])
    }
}

/// The scalars, which optimizers only read.
fn read_scalars(d: &mut Describe<'_>, scalars: Span) -> Result<(), InvalidOp> {
    d.elem("scalars", scalars, Read, &[scalar::LEN])
}

impl AdamW {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (n, mut d) = (self.params.len, Describe { visit });
        d.elem("grads", self.grads, Read, &[n])?;
        read_scalars(&mut d, self.scalars)?;
        d.u32("counters", self.counters, Read, &[counter::LEN])?;
        d.elem("params", self.params, Update, &[n])?;
        d.elem("m", self.m, Update, &[n])?;
        d.elem("v", self.v, Update, &[n])
    }
}

impl Sgd {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        if self.velocity.is_none() && self.momentum != 0.0 {
            return Err(InvalidOp::Value { operand: "momentum" });
        }
        let (n, mut d) = (self.params.len, Describe { visit });
        d.elem("grads", self.grads, Read, &[n])?;
        read_scalars(&mut d, self.scalars)?;
        d.elem("params", self.params, Update, &[n])?;
        d.optional("velocity", self.velocity, Update, &[n])
    }
}

impl Momentum {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (n, mut d) = (self.velocity.len, Describe { visit });
        d.elem("grads", self.grads, Read, &[n])?;
        read_scalars(&mut d, self.scalars)?;
        d.elem("velocity", self.velocity, Update, &[n])?;
        d.elem("direction", self.direction, Write, &[n])
    }
}

impl NewtonSchulz {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        Describe { visit }.elem("x", self.x, Update, &[self.rows, self.cols])
    }
}

impl Descend {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (n, mut d) = (self.params.len, Describe { visit });
        d.elem("direction", self.direction, Read, &[n])?;
        read_scalars(&mut d, self.scalars)?;
        d.elem("params", self.params, Update, &[n])
    }
}

impl Average {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        let (n, mut d) = (self.params.len, Describe { visit });
        d.elem("params", self.params, Read, &[n])?;
        read_scalars(&mut d, self.scalars)?;
        d.u32("counters", self.counters, Read, &[counter::LEN])?;
        d.elem("average", self.average, Update, &[n])
    }
}

impl Narrow {
    pub(in crate::op) fn describe(&self, visit: &mut dyn FnMut(Operand)) -> Result<(), InvalidOp> {
        if self.to.dtype != Dtype::Bf16 {
            let (expected, found) = (Dtype::Bf16, self.to.dtype);
            return Err(InvalidOp::Dtype { operand: "to", expected, found });
        }
        let mut d = Describe { visit };
        d.elem("from", self.from, Read, &[self.to.len])?;
        d.rounded("to", self.to, Write, &[self.to.len])
    }
}
