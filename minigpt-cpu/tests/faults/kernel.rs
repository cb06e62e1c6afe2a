//! A backend whose kernels are right, but for one that has a fault.

use minigpt_core::backend::{read_elems, read_u32, write_elems};
use minigpt_core::op::IGNORE;
use minigpt_core::reference::weights::{encode_half, weight_at};
use minigpt_core::{Backend, Buffer, Dtype, Op, OpKind, Span, Strided};
use minigpt_cpu::{Cpu, CpuError};

pub(crate) type Done = Result<(), CpuError>;

/// A fault, and the op whose kernel has it.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) op: OpKind,
    /// Runs an op of that kind as a kernel with the fault would.
    pub(crate) plant: fn(&mut Kernel, &Op) -> Done,
}

/// Heads side by side, in rows that may lie apart.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) at: Strided,
    pub(crate) heads: usize,
    pub(crate) d_head: usize,
}

impl Heads {
    pub(crate) fn new(at: Strided, heads: usize, d_head: usize) -> Self {
        Heads { at, heads, d_head }
    }

    pub(crate) fn width(&self) -> usize {
        self.heads * self.d_head
    }

    /// Where in the operand's span a number stands.
    pub(crate) fn index(&self, row: usize, head: usize, at: usize) -> usize {
        row * self.at.stride + head * self.d_head + at
    }
}

/// What a faulty kernel can reach: the memory, the right kernels, and what it kept from earlier calls.
pub(crate) struct Kernel {
    cpu: Cpu<'static>,
    /// How often it ran.
    pub(crate) calls: u64,
    /// What the last call made of an operand: which one, and its numbers.
    kept: Option<(Span, Vec<f32>)>,
    /// Words as they were when the kernel first met their spans.
    met: Vec<(Span, Vec<u32>)>,
    /// Words of the last call.
    last: Option<Vec<u32>>,
}

impl Kernel {
    /// As it should be.
    pub(crate) fn run(&mut self, op: impl Into<Op>) -> Done {
        self.cpu.run(&op.into())
    }

    /// The numbers of a span; what is stored in fewer bits is widened.
    pub(crate) fn get(&mut self, span: Span) -> Result<Vec<f32>, CpuError> {
        if !matches!(span.dtype, Dtype::F16 | Dtype::Bf16) {
            return read_elems(&mut self.cpu, span);
        }
        let mut bytes = vec![0; 2 * span.len];
        self.cpu.read(span, &mut bytes)?;
        Ok((0..span.len).map(|i| weight_at(&bytes, span.dtype, i) as f32).collect())
    }

    pub(crate) fn words(&mut self, span: Span) -> Result<Vec<u32>, CpuError> {
        read_u32(&mut self.cpu, span)
    }

    pub(crate) fn put(&mut self, span: Span, values: &[f32]) -> Done {
        if !matches!(span.dtype, Dtype::F16 | Dtype::Bf16) {
            return write_elems(&mut self.cpu, span, values);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|&x| encode_half(f64::from(x), span.dtype)).collect();
        self.cpu.write(span, &bytes)
    }

    pub(crate) fn put_words(&mut self, span: Span, words: &[u32]) -> Done {
        minigpt_core::backend::write_u32(&mut self.cpu, span, words)
    }

    /// Changes each element, which is told its place.
    pub(crate) fn edit(&mut self, span: Span, mut change: impl FnMut(usize, f32) -> f32) -> Done {
        let mut values = self.get(span)?;
        for (place, value) in values.iter_mut().enumerate() {
            *value = change(place, *value);
        }
        self.put(span, &values)
    }

    /// Changes each number of an operand whose rows may lie apart, and none between them: `change` is told its row, its
    /// head and its place in the head.
    pub(crate) fn edit_heads(
        &mut self,
        of: Heads,
        mut change: impl FnMut(usize, usize, usize, f32) -> f32,
    ) -> Done {
        let Heads { at, heads, d_head } = of;
        self.edit(at.span, |i, x| {
            let (row, column) = (i / at.stride, i % at.stride);
            if column < heads * d_head { change(row, column / d_head, column % d_head, x) } else { x }
        })
    }

    /// Changes what lies between the rows of an operand.
    pub(crate) fn edit_between(&mut self, of: Heads, mut change: impl FnMut(f32) -> f32) -> Done {
        let Heads { at, heads, d_head } = of;
        self.edit(at.span, |i, x| if i % at.stride < heads * d_head { x } else { change(x) })
    }

    /// Runs the op on an operand in which some numbers are others, and gives it back as it was.
    pub(crate) fn run_on_heads(
        &mut self,
        op: impl Into<Op>,
        of: Heads,
        change: impl FnMut(usize, usize, usize, f32) -> f32,
    ) -> Done {
        let before = self.get(of.at.span)?;
        self.edit_heads(of, change)?;
        let done = self.run(op);
        self.put(of.at.span, &before)?;
        done
    }

    /// Runs the op on an operand whose rows are read as if they lay so far apart.
    pub(crate) fn run_on_stride(&mut self, op: impl Into<Op>, of: Heads, stride: usize) -> Done {
        let before = self.get(of.at.span)?;
        self.run_on_heads(op, of, |row, head, at, _| {
            before.get(row * stride + head * of.d_head + at).copied().unwrap_or(0.5)
        })
    }

    /// Writes `count` numbers behind the span, as far as its buffer goes.
    pub(crate) fn write_past(&mut self, span: Span, count: usize) {
        let size = span.bytes().unwrap_or(0) / span.len.max(1);
        for place in 0..count {
            let offset = span.offset + (span.len + place) * size;
            // Behind the end of the buffer it would be an error, or worse.
            let _ = self.put(Span { offset, len: 1, ..span }, &[0.5]);
        }
    }

    /// Runs the op on tokens that are read in 16 bits, with a sign.
    pub(crate) fn run_on_narrow(&mut self, op: impl Into<Op>, tokens: Span) -> Done {
        let words = self.words(tokens)?;
        let narrow = |&word: &u32| if word == IGNORE { word } else { word & 0x7fff };
        self.put_words(tokens, &words.iter().map(narrow).collect::<Vec<_>>())?;
        let done = self.run(op);
        self.put_words(tokens, &words)?;
        done
    }

    /// Runs the op with other words in some spans, which hold their own again afterwards.
    pub(crate) fn run_on_words(&mut self, op: impl Into<Op>, others: &[(Span, Vec<u32>)]) -> Done {
        let mut before = Vec::new();
        for (span, words) in others {
            before.push((*span, self.words(*span)?));
            self.put_words(*span, words)?;
        }
        let done = self.run(op);
        for (span, words) in before {
            self.put_words(span, &words)?;
        }
        done
    }

    /// The words that the span held when this was first asked: what a recorded list of ops would go on using.
    pub(crate) fn first_words(&mut self, span: Span) -> Result<Vec<u32>, CpuError> {
        if let Some((_, words)) = self.met.iter().find(|(met, _)| *met == span) {
            return Ok(words.clone());
        }
        let words = self.words(span)?;
        self.met.push((span, words.clone()));
        Ok(words)
    }

    /// The words that were asked for in the last call, of whatever span; in the first call its own.
    pub(crate) fn last_words(&mut self, span: Span) -> Result<Vec<u32>, CpuError> {
        let words = self.words(span)?;
        Ok(self.last.replace(words.clone()).unwrap_or(words))
    }

    /// Runs the op on what an operand held in the last call, if that was the same span: as a kernel does that keeps a packed
    /// copy for too long.
    pub(crate) fn run_on_stale(&mut self, op: impl Into<Op>, operand: Span) -> Done {
        let now = self.get(operand)?;
        match self.kept.replace((operand, now.clone())) {
            Some((span, stale)) if span == operand => {
                self.put(operand, &stale)?;
                let done = self.run(op);
                self.put(operand, &now)?;
                done
            }
            _ => self.run(op),
        }
    }

    /// The same span at the beginning of its buffer: what a kernel reaches that forgets the offset. `None` if that is where
    /// it is.
    pub(crate) fn at_zero(&self, span: Span) -> Option<Span> {
        (span.offset != 0).then_some(Span { offset: 0, ..span })
    }
}

/// All ops as they should be, but for those with the fault.
pub(crate) struct Planted {
    kernel: Kernel,
    fault: Fault,
}

impl Planted {
    pub(crate) fn new(fault: Fault) -> Self {
        let cpu = Cpu::builder();
        #[cfg(feature = "std")]
        let cpu = cpu.threads(1);
        let cpu = cpu.build().expect("one thread");
        Planted { kernel: Kernel { cpu, calls: 0, kept: None, met: Vec::new(), last: None }, fault }
    }
}

impl Backend for Planted {
    type Elem = f32;
    type Error = CpuError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, CpuError> {
        self.kernel.cpu.alloc(bytes)
    }

    fn write(&mut self, to: Span, bytes: &[u8]) -> Done {
        self.kernel.cpu.write(to, bytes)
    }

    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Done {
        self.kernel.cpu.read(from, bytes)
    }

    fn copy(&mut self, from: Span, to: Span) -> Done {
        self.kernel.cpu.copy(from, to)
    }

    fn fill(&mut self, to: Span, value: f64) -> Done {
        self.kernel.cpu.fill(to, value)
    }

    fn sync(&mut self) -> Done {
        self.kernel.cpu.sync()
    }

    fn release(&mut self, buffer: Buffer) -> Done {
        self.kernel.cpu.release(buffer)
    }

    fn run(&mut self, op: &Op) -> Done {
        if op.kind() != self.fault.op {
            return self.kernel.run(*op);
        }
        // A kernel with a fault refuses what is described wrongly, as the others do.
        op.check(Dtype::F32)?;
        self.kernel.calls += 1;
        (self.fault.plant)(&mut self.kernel, op)
    }
}

/// Faults of one kind of op: each is told the op, and runs it.
macro_rules! faults {
    ($($kind:ident { $($name:literal => |$kernel:ident, $op:ident| $body:expr;)* })*) => {
        &[$($($crate::kernel::Fault {
            name: $name,
            op: minigpt_core::OpKind::$kind,
            plant: |$kernel, op| {
                let minigpt_core::Op::$kind($op) = *op else { return $kernel.run(*op) };
                $body
            },
        },)*)*]
    };
}
pub(crate) use faults;
