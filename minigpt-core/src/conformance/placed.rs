//! Where the operands of a case lie: on the backend side by side in a few buffers, in any order and at any place that is
//! allowed, between guards. Around what is read a guard is NaN, which shows in the result; and no byte of any may change.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::backend::{Backend, Reference, read_elems, read_u32, write_elems, write_u32};
use crate::config::Precision;
use crate::memory::{Buffer, Dtype, Span};
use crate::op::{Access, Columns, Op, Operand, OperandKind, Operands};
use crate::real::Real;
use crate::reference::weights::{decode_weight, encode_half};
use crate::rng::Rng;

/// What a span holds before the op runs.
pub(super) enum Fill {
    /// Normal numbers of this standard deviation.
    Normal(f64),
    /// These numbers.
    Values(Vec<f64>),
    /// NaN: the op must write every element.
    Poison,
    /// u32.
    Words(Vec<u32>),
    /// u32: the words of the case, and other valid ones for the runs in which all else is broken.
    WordsAfter { now: Vec<u32>, before: Vec<u32> },
    /// Bytes of numbers in fewer bits.
    Stored(Dtype, Vec<u8>),
}

/// Where a case's spans come from.
pub(super) trait Memory {
    fn span(&mut self, len: usize, fill: Fill) -> Span;
}

/// An operand as a case asks for it: the same numbers for the oracle and for the backend.
pub(super) struct Asked {
    len: usize,
    contents: Contents,
}

enum Contents {
    Numbers(Vec<f64>),
    Words(Vec<u32>),
    WordsAfter { now: Vec<u32>, before: Vec<u32> },
    Stored(Dtype, Vec<u8>),
}

/// A memory that holds nothing: it is to show which spans of a case a precision rounds.
#[derive(Default)]
pub(super) struct Sketch {
    asked: u64,
}

impl Sketch {
    /// Whether each span, in the order in which they were asked for, is one that these ops round.
    pub(super) fn rounded(&self, ops: &[Op]) -> Vec<bool> {
        let mut rounded = vec![false; self.asked as usize];
        // Of an op that is described wrongly nothing is rounded, and then the oracle refuses it.
        for operands in ops.iter().filter_map(|op| op.operands().ok()) {
            for operand in operands.iter().filter(|operand| operand.kind == OperandKind::Rounded) {
                rounded[operand.span.buffer.0 as usize] = true;
            }
        }
        rounded
    }
}

impl Memory for Sketch {
    fn span(&mut self, len: usize, fill: Fill) -> Span {
        let buffer = Buffer(self.asked);
        self.asked += 1;
        let dtype = match fill {
            Fill::Normal(_) | Fill::Values(_) | Fill::Poison => Dtype::F64,
            Fill::Words(_) | Fill::WordsAfter { .. } => Dtype::U32,
            Fill::Stored(dtype, _) => dtype,
        };
        Span { buffer, dtype, offset: 0, len }
    }
}

/// The memory of an oracle, which remembers what was asked for.
pub(super) struct Recording {
    pub(super) oracle: Reference<f64>,
    rng: Rng,
    pub(super) asked: Vec<Asked>,
    /// Which spans hold bf16, in the order in which they are asked for; those beyond do not.
    rounded: Vec<bool>,
}

impl Recording {
    pub(super) fn new(rng: Rng) -> Self {
        Recording { oracle: Reference::new(), rng, asked: Vec::new(), rounded: Vec::new() }
    }

    /// One for what `build` asks for, whose numbers are bf16 where this policy has the ops that it builds round.
    pub(super) fn under(
        precision: Precision,
        rng: Rng,
        build: impl FnOnce(&mut dyn Memory) -> Vec<Op>,
    ) -> Self {
        let mut recording = Recording::new(rng);
        if precision == Precision::Bf16 {
            let mut sketch = Sketch::default();
            let ops = build(&mut sketch);
            recording.rounded = sketch.rounded(&ops);
        }
        recording
    }

    pub(super) fn read(&mut self, span: Span) -> Vec<f64> {
        // The oracle has these spans; an error would show as an operand that is empty, and nothing is equal to that.
        match span.dtype {
            Dtype::U32 => words(&mut self.oracle, span),
            Dtype::F64 => read_elems(&mut self.oracle, span).unwrap_or_default(),
            dtype => {
                let mut bytes = vec![0; span.bytes().unwrap_or(0)];
                self.oracle.read(span, &mut bytes).map_or(Vec::new(), |()| widened(&bytes, dtype))
            }
        }
    }
}

/// Numbers that are stored in fewer bits, element by element.
fn widened(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let mut numbers = vec![f64::NAN; bytes.len() / dtype.unit().1];
    let len = numbers.len();
    decode_weight(bytes, dtype, &mut numbers, 1, len);
    numbers
}

fn words<B: Backend>(backend: &mut B, span: Span) -> Vec<f64> {
    read_u32(backend, span).map_or(Vec::new(), |words| words.into_iter().map(f64::from).collect())
}

impl Memory for Recording {
    fn span(&mut self, len: usize, fill: Fill) -> Span {
        // Rounded to f32, so that the backend and the oracle start from the same numbers.
        let rounded = |x: f64| f64::from(x as f32);
        let contents = match fill {
            Fill::Normal(deviation) => {
                Contents::Numbers((0..len).map(|_| rounded(deviation * self.rng.normal())).collect())
            }
            Fill::Values(values) => Contents::Numbers(values.into_iter().map(rounded).collect()),
            Fill::Poison => Contents::Numbers(vec![f64::NAN; len]),
            Fill::Words(words) => Contents::Words(words),
            Fill::WordsAfter { now, before } => Contents::WordsAfter { now, before },
            Fill::Stored(dtype, bytes) => Contents::Stored(dtype, bytes),
        };
        let contents = match contents {
            Contents::Numbers(values) if self.rounded.get(self.asked.len()) == Some(&true) => {
                let bytes = values.into_iter().flat_map(|x| encode_half(x, Dtype::Bf16));
                Contents::Stored(Dtype::Bf16, bytes.collect())
            }
            contents => contents,
        };
        let dtype = match &contents {
            Contents::Numbers(_) => Dtype::F64,
            Contents::Words(_) | Contents::WordsAfter { .. } => Dtype::U32,
            Contents::Stored(dtype, _) => *dtype,
        };
        let bytes = dtype.bytes(len).unwrap_or(0).max(1);
        let Ok(buffer) = self.oracle.alloc(bytes) else {
            return Span { buffer: Buffer(u64::MAX), dtype, offset: 0, len };
        };
        let span = Span { buffer, dtype, offset: 0, len };
        // The oracle refuses none of it.
        let _ = match &contents {
            Contents::Numbers(values) => write_elems(&mut self.oracle, span, values),
            Contents::Words(words) | Contents::WordsAfter { now: words, .. } => {
                write_u32(&mut self.oracle, span, words)
            }
            Contents::Stored(_, bytes) => self.oracle.write(span, bytes),
        };
        self.asked.push(Asked { len, contents });
        span
    }
}

/// At least so many bytes lie between two operands, and around them all: more than any vector.
const GUARD: usize = 256;

/// The buffers of a case.
pub(super) struct Placed {
    buffers: Vec<Buffer>,
    /// What each buffer is to hold before the op.
    images: Vec<Vec<u8>>,
    /// The same with NaN for every number, and with other words.
    broken: Vec<Vec<u8>>,
    /// The words that were others before, as they are now.
    now: Vec<(Span, Vec<u8>)>,
    /// As large as the largest, for what comes by way of another buffer.
    staging: Buffer,
    spans: Vec<Span>,
    next: usize,
}

impl Placed {
    /// Places what was asked for, at multiples of the guard if it is to be aligned; fails as the backend does.
    pub(super) fn new<B: Backend>(
        backend: &mut B,
        asked: &[Asked],
        aligned: bool,
        rng: &mut Rng,
    ) -> Result<Self, B::Error> {
        let count = 1 + rng.below(3) as usize;
        let mut images: Vec<Vec<u8>> = vec![Vec::new(); count];
        let mut order: Vec<usize> = (0..asked.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let unplaced = Span { buffer: Buffer(0), dtype: Dtype::U32, offset: 0, len: 0 };
        let mut spans = vec![unplaced; asked.len()];
        let mut homes = vec![0; asked.len()];
        let mut now = Vec::new();
        let mut breaks: Vec<(usize, usize, Vec<u8>)> = Vec::new();
        for place in order {
            let (home, asked) = (rng.below(count as u64) as usize, &asked[place]);
            let image = &mut images[home];
            let (dtype, bytes) = asked.bytes::<B::Elem>();
            // Anywhere that the type allows: often not where a vector would like it.
            let (elements, size) = dtype.unit();
            let align = match elements {
                _ if aligned => GUARD,
                1 => size,
                _ => 2,
            };
            let offset = (image.len() + GUARD + rng.below(128) as usize).next_multiple_of(align);
            guard::<B::Elem>(image, offset);
            image.extend_from_slice(&bytes);
            breaks.push((home, offset, asked.broken::<B::Elem>(bytes.len())));
            spans[place] = Span { buffer: Buffer(0), dtype, offset, len: asked.len };
            homes[place] = home;
        }
        let mut buffers = Vec::new();
        for image in &mut images {
            let end = (image.len() + GUARD).next_multiple_of(64);
            guard::<B::Elem>(image, end);
            buffers.push(backend.alloc(image.len())?);
        }
        let mut broken = images.clone();
        for (home, offset, bytes) in breaks {
            broken[home][offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        for (span, home) in spans.iter_mut().zip(homes) {
            span.buffer = buffers[home];
        }
        for (&span, asked) in spans.iter().zip(asked) {
            if let Contents::WordsAfter { now: words, .. } = &asked.contents {
                now.push((span, little_endian(words)));
            }
        }
        let largest = images.iter().map(Vec::len).max().unwrap_or(0);
        let staging = backend.alloc(largest)?;
        Ok(Placed { buffers, images, broken, now, staging, spans, next: 0 })
    }

    /// The same as [`fill`](Placed::fill) for what is not broken, by other routes: the first part of each buffer, up to any
    /// word, is written, and the rest copied from another buffer.
    pub(super) fn fill_in_parts<B: Backend>(&self, backend: &mut B, rng: &mut Rng) -> Result<(), B::Error> {
        for (&buffer, image) in self.buffers.iter().zip(&self.images) {
            let cut = 4 * rng.below(image.len() as u64 / 4 + 1) as usize;
            let part = |buffer, from: usize, to: usize| Span {
                buffer,
                dtype: Dtype::U32,
                offset: from,
                len: (to - from) / 4,
            };
            backend.write(part(self.staging, 0, image.len()), image)?;
            backend.write(part(buffer, 0, cut), &image[..cut])?;
            backend.copy(part(self.staging, cut, image.len()), part(buffer, cut, image.len()))?;
        }
        Ok(())
    }

    /// Breaks all numbers, while what rows are told is as it is to be.
    pub(super) fn break_numbers<B: Backend>(&self, backend: &mut B) -> Result<(), B::Error> {
        self.fill(backend, true)?;
        self.now.iter().try_for_each(|(span, words)| backend.write(*span, words))
    }

    /// Writes what the buffers are to hold before the op, with NaN for all numbers and other words if `broken`.
    pub(super) fn fill<B: Backend>(&self, backend: &mut B, broken: bool) -> Result<(), B::Error> {
        let images = if broken { &self.broken } else { &self.images };
        for (&buffer, image) in self.buffers.iter().zip(images) {
            backend.write(whole(buffer, image.len()), image)?;
        }
        Ok(())
    }

    /// The numbers of a span before the op.
    pub(super) fn before<R: Real>(&self, span: Span) -> Vec<f64> {
        self.numbers::<R>(&self.images, span)
    }

    /// What the buffers hold now.
    pub(super) fn read<B: Backend>(&self, backend: &mut B) -> Result<Vec<Vec<u8>>, B::Error> {
        let read = |(&buffer, image): (&Buffer, &Vec<u8>)| {
            let mut bytes = vec![0; image.len()];
            backend.read(whole(buffer, image.len()), &mut bytes).map(|()| bytes)
        };
        self.buffers.iter().zip(&self.images).map(read).collect()
    }

    pub(super) fn release<B: Backend>(self, backend: &mut B) -> Result<(), B::Error> {
        backend.release(self.staging)?;
        self.buffers.into_iter().try_for_each(|buffer| backend.release(buffer))
    }

    /// The bytes of a span among what the buffers hold.
    pub(super) fn bytes<'h>(&self, held: &'h [Vec<u8>], span: Span) -> &'h [u8] {
        let home = self.buffers.iter().position(|&buffer| buffer == span.buffer).unwrap_or(0);
        &held[home][span.offset..span.offset + span.bytes().unwrap_or(0)]
    }

    /// The numbers of a span among what the buffers hold.
    pub(super) fn numbers<R: Real>(&self, held: &[Vec<u8>], span: Span) -> Vec<f64> {
        let bytes = self.bytes(held, span);
        match span.dtype {
            Dtype::U32 => {
                bytes.as_chunks().0.iter().map(|&word| f64::from(u32::from_le_bytes(word))).collect()
            }
            Dtype::F16 | Dtype::Bf16 => widened(bytes, span.dtype),
            _ => bytes.chunks_exact(size_of::<R>()).map(|bytes| R::from_le_slice(bytes).to_f64()).collect(),
        }
    }

    /// What was changed although the op may not change it, in words.
    pub(super) fn touched(&self, held: &[Vec<u8>], operands: &Operands) -> Option<String> {
        for ((&buffer, image), held) in self.buffers.iter().zip(&self.images).zip(held) {
            let mut here: Vec<&Operand> =
                operands.iter().filter(|operand| operand.span.buffer == buffer).collect();
            // As it is to be: what the op writes as it is now, the rest as it was.
            let mut due = image.clone();
            for operand in here.iter().filter(|operand| operand.access != Access::Read) {
                for row in rows(operand) {
                    due[row.clone()].copy_from_slice(&held[row]);
                }
            }
            if due == *held {
                continue;
            }
            let byte = due.iter().zip(held).position(|(due, now)| due != now).unwrap_or(0);
            if let Some(operand) = here.iter().find(|o| rows(o).any(|row| row.contains(&byte))) {
                return Some(format!("it changes {}, which it is to read", operand.name));
            }
            if let Some(operand) = here.iter().find(|operand| range(&operand.span).contains(&byte)) {
                return Some(format!("it writes between the rows of {}", operand.name));
            }
            here.retain(|operand| operand.span.offset < byte);
            return Some(match here.iter().max_by_key(|operand| operand.span.offset) {
                Some(operand) => format!(
                    "it writes outside of its operands, {} bytes behind the end of {}",
                    byte - range(&operand.span).end,
                    operand.name
                ),
                None => "it writes outside of its operands, before the first".into(),
            });
        }
        None
    }
}

/// The bytes of a buffer that a span is.
fn range(span: &Span) -> Range<usize> {
    span.offset..span.offset + span.bytes().unwrap_or(0)
}

/// The bytes of each row of an operand whose rows lie apart; of another, those of all.
fn rows(operand: &Operand) -> impl Iterator<Item = Range<usize>> {
    let Span { offset, len, .. } = operand.span;
    let unit = operand.span.dtype.unit().1;
    let (width, stride) = match operand.columns {
        Some(Columns { width, stride }) => (unit * width, unit * stride),
        None => (range(&operand.span).len(), usize::MAX),
    };
    let count = if len == 0 { 0 } else { (range(&operand.span).len() - width) / stride + 1 };
    (0..count).map(move |row| offset + row * stride..offset + row * stride + width)
}

impl Memory for Placed {
    /// The next span, in the order in which they were asked for.
    fn span(&mut self, len: usize, _: Fill) -> Span {
        let span = self.spans.get(self.next).copied();
        self.next += 1;
        span.unwrap_or(Span { buffer: Buffer(u64::MAX), dtype: Dtype::U32, offset: 0, len })
    }
}

impl Asked {
    /// So many bytes of what makes a result wrong if anything keeps it.
    fn broken<R: Real>(&self, bytes: usize) -> Vec<u8> {
        match &self.contents {
            Contents::Numbers(_) => nan::<R>().repeat(bytes / size_of::<R>()),
            // The first of a vocabulary, and counters that have not counted.
            Contents::Words(_) => vec![0; bytes],
            Contents::WordsAfter { before, .. } => little_endian(before),
            // NaN, or a block with a scale that is NaN.
            Contents::Stored(..) => vec![0xff; bytes],
        }
    }

    /// As the backend stores it.
    fn bytes<R: Real>(&self) -> (Dtype, Vec<u8>) {
        match &self.contents {
            Contents::Stored(dtype, bytes) => (*dtype, bytes.clone()),
            Contents::Words(words) | Contents::WordsAfter { now: words, .. } => {
                (Dtype::U32, little_endian(words))
            }
            Contents::Numbers(values) => {
                let size = size_of::<R>();
                let mut bytes = vec![0; values.len() * size];
                for (bytes, &value) in bytes.chunks_exact_mut(size).zip(values) {
                    R::from_f64(value).to_le_slice(bytes);
                }
                (R::DTYPE, bytes)
            }
        }
    }
}

fn little_endian(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn whole(buffer: Buffer, bytes: usize) -> Span {
    Span { buffer, dtype: Dtype::U32, offset: 0, len: bytes / 4 }
}

/// A NaN that no computation gives, of which each half is one in bf16 and f16 too.
fn nan<R: Real>() -> Vec<u8> {
    match R::DTYPE {
        Dtype::F64 => 0x7ffd_7ffd_7ffd_7ffd_u64.to_le_bytes().to_vec(),
        _ => 0x7fc5_7fc5_u32.to_le_bytes().to_vec(),
    }
}

/// Makes the image as long as `end` by guards.
fn guard<R: Real>(image: &mut Vec<u8>, end: usize) {
    let pattern = nan::<R>();
    // Begins at a whole NaN, and is cut at both ends.
    let start = image.len() / pattern.len() * pattern.len();
    let whole = pattern.repeat((end - start).div_ceil(pattern.len()));
    image.extend_from_slice(&whole[image.len() - start..end - start]);
}
