//! [`Program`]: a pass through a model is a list of ops, each with a name.

use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;

use super::Op;
use crate::memory::InvalidOp;

/// What an op is for: its part in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    /// The number of the block that it is in, if it is in one.
    pub layer: Option<usize>,
    /// The part, such as `attention.qkv`.
    pub part: &'static str,
}

impl fmt::Display for Name {
    /// As checkpoints name parameters: `h.3.attention.qkv`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "h.{layer}.{}", self.part),
            None => f.write_str(self.part),
        }
    }
}

/// An op of a program, with its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What it is for.
    pub name: Name,
    /// The op.
    pub op: Op,
}

/// Where the steps of a program go, one after the other: into a list, to a backend, or just to be looked at. So nothing
/// needs to be stored where memory is small.
///
/// [`ControlFlow::Break`] says that it takes no more.
pub struct Sink<'s> {
    take: &'s mut dyn FnMut(&Step) -> ControlFlow<()>,
}

impl fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl<'s> Sink<'s> {
    /// Gives each step to `take`.
    pub fn new(take: &'s mut dyn FnMut(&Step) -> ControlFlow<()>) -> Self {
        Sink { take }
    }

    /// The next step: `op`, which is the model's part `part`, of block number `layer` if it is in one.
    /// Returns [`ControlFlow::Break`] once the sink takes no more.
    pub fn put(
        &mut self,
        layer: impl Into<Option<usize>>,
        part: &'static str,
        op: impl Into<Op>,
    ) -> ControlFlow<()> {
        (self.take)(&Step { name: Name { layer: layer.into(), part }, op: op.into() })
    }
}

/// A list of steps: what a pass does, in order.
///
/// Its ops may speak of memory that does not exist yet, as those of [`Plan::program`](crate::Plan::program) do: bytes and
/// operations are known without it. It prints as a table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    steps: Vec<Step>,
}

impl Program {
    /// The list of what `emit` puts into the sink.
    ///
    /// # Errors
    /// If the host has no memory for it.
    pub fn collect(emit: impl FnOnce(&mut Sink<'_>) -> ControlFlow<()>) -> Result<Self, InvalidOp> {
        let mut steps = Vec::new();
        let mut full = None;
        let _ = emit(&mut Sink::new(&mut |step| {
            if steps.try_reserve(1).is_err() {
                let bytes = (steps.len() + 1).saturating_mul(size_of::<Step>());
                full = Some(InvalidOp::HostMemory { operand: "program", bytes });
                return ControlFlow::Break(());
            }
            steps.push(*step);
            ControlFlow::Continue(())
        }));
        full.map_or(Ok(Program { steps }), Err)
    }

    /// Its steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Floating-point operations of all ops together, see [`Op::flops`].
    pub fn flops(&self) -> u64 {
        self.steps.iter().map(|step| step.op.flops()).fold(0, u64::saturating_add)
    }

    /// Bytes that all ops together read and write, see [`Op::bytes`].
    pub fn bytes(&self) -> u64 {
        self.steps.iter().map(|step| step.op.bytes()).fold(0, u64::saturating_add)
    }
}

/// A count in a width of ten, with the prefix that leaves three digits before the point at most.
struct Count(u64, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut prefixes) = (self.0 as f64, ["", "k", "M", "G", "T", "P", "E"].into_iter());
        let mut prefix = prefixes.next().unwrap_or_default();
        while value >= 999.95
            && let Some(larger) = prefixes.next()
        {
            (value, prefix) = (value / 1000.0, larger);
        }
        let decimals = usize::from(!prefix.is_empty());
        write!(f, "{value:>7.decimals$} {prefix:>1}{}", self.1)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<5}{:<26}{:<19}{:<36}{:>10} {:>12}", "", "part", "op", "sizes", "bytes", "FLOPs")?;
        for (i, Step { name, op }) in self.steps.iter().enumerate() {
            // In strings first, since widths go by what `pad` sees.
            let (name, sizes) = (alloc::format!("{name}"), alloc::format!("{}", op.sizes()));
            let (bytes, flops) = (Count(op.bytes(), "B"), Count(op.flops(), "FLOP"));
            writeln!(f, "{i:>4} {name:<26}{:<19}{sizes:<36}{bytes} {flops}", op.kind().name())?;
        }
        let (bytes, flops) = (Count(self.bytes(), "B"), Count(self.flops(), "FLOP"));
        write!(f, "{:>4} {:<81}{bytes} {flops}", self.steps.len(), "steps in all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn counts_have_at_most_three_digits_before_the_point() {
        for (count, text) in [
            (0, "      0  B"),
            (999, "    999  B"),
            (1000, "    1.0 kB"),
            (999_949, "  999.9 kB"),
            (999_950, "    1.0 MB"),
            (u64::MAX, "   18.4 EB"),
        ] {
            assert_eq!(Count(count, "B").to_string(), text);
        }
    }
}
