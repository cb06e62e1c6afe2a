//! Keys and values as a cache stores them: f32, or rounded to f16 or bf16 on their way in, to exactly the bytes of
//! [`encode_half`](minigpt_core::reference::weights::encode_half), and widened on their way out.
//!
//! Where several queries read them they are widened some positions at a time, into a piece of scratch that stays in the first
//! cache. So a kernel is there once, for f32, and the queries share the work.

use minigpt_core::{Dtype, Span};

use super::weight::{Bf16, F16, widen};
use crate::arch::{Kernel, Vector};
use crate::error::CpuError;
use crate::par::Views;

/// To read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored<'s> {
    F32(&'s [f32]),
    F16(&'s [[u8; 2]]),
    Bf16(&'s [[u8; 2]]),
}

impl<'s> Stored<'s> {
    /// Those in `span`.
    pub(super) fn new(
        views: &mut Views<'s, '_>,
        operand: &'static str,
        span: Span,
    ) -> Result<Self, CpuError> {
        Ok(match span.dtype {
            Dtype::F16 => Stored::F16(views.bytes(operand, span)?.as_chunks().0),
            Dtype::Bf16 => Stored::Bf16(views.bytes(operand, span)?.as_chunks().0),
            _ => Stored::F32(views.f32(operand, span)?),
        })
    }

    /// `len` numbers from number `at` on.
    #[inline(always)]
    pub(super) fn slice(self, at: usize, len: usize) -> Self {
        match self {
            Stored::F32(numbers) => Stored::F32(&numbers[at..][..len]),
            Stored::F16(numbers) => Stored::F16(&numbers[at..][..len]),
            Stored::Bf16(numbers) => Stored::Bf16(&numbers[at..][..len]),
        }
    }

    /// The same, where they lie if they are f32, else widened in `scratch`, which must then be as long.
    #[inline(always)]
    pub(super) fn read<'t, V: Vector>(
        self,
        t: V::Token,
        at: usize,
        len: usize,
        scratch: &'t mut [f32],
    ) -> &'t [f32]
    where
        's: 't,
    {
        match self.slice(at, len) {
            Stored::F32(numbers) => numbers,
            stored => {
                let scratch = &mut scratch[..len];
                V::apart(t, Widen { stored, to: &mut *scratch });
                scratch
            }
        }
    }
}

struct Widen<'s, 't> {
    stored: Stored<'s>,
    to: &'t mut [f32],
}

impl Kernel for Widen<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        match self.stored {
            Stored::F32(numbers) => self.to.copy_from_slice(numbers),
            Stored::F16(numbers) => widen::<V, F16>(t, numbers, self.to),
            Stored::Bf16(numbers) => widen::<V, Bf16>(t, numbers, self.to),
        }
    }
}

/// To write.
pub(super) enum StoredMut<'s> {
    F32(&'s mut [f32]),
    F16(&'s mut [[u8; 2]]),
    Bf16(&'s mut [[u8; 2]]),
}

impl<'s> StoredMut<'s> {
    /// Those in `span`.
    pub(super) fn new(
        views: &mut Views<'s, '_>,
        operand: &'static str,
        span: Span,
    ) -> Result<Self, CpuError> {
        Ok(match span.dtype {
            Dtype::F16 => StoredMut::F16(views.bytes_mut(operand, span)?.as_chunks_mut().0),
            Dtype::Bf16 => StoredMut::Bf16(views.bytes_mut(operand, span)?.as_chunks_mut().0),
            _ => StoredMut::F32(views.f32_mut(operand, span)?),
        })
    }

    /// Stores `numbers` from number `at` on.
    pub(super) fn write(&mut self, at: usize, numbers: &[f32]) {
        let len = numbers.len();
        match self {
            StoredMut::F32(to) => to[at..][..len].copy_from_slice(numbers),
            StoredMut::F16(to) => narrow(numbers, &mut to[at..][..len], f16_bits),
            StoredMut::Bf16(to) => narrow(numbers, &mut to[at..][..len], bf16_bits),
        }
    }
}

fn narrow(numbers: &[f32], to: &mut [[u8; 2]], bits: impl Fn(f32) -> u16) {
    for (to, &number) in to.iter_mut().zip(numbers) {
        *to = bits(number).to_le_bytes();
    }
}

/// The nearest bf16, ties to even. What is not a number stays so, with as much of its payload as there is room for.
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    // From the largest on, the carry makes infinity.
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The nearest f16, ties to even; infinite beyond the largest. What is not a number stays so, with as much of its payload as
/// there is room for.
fn f16_bits(x: f32) -> u16 {
    /// 2^16: from here on there is only infinity. The carry takes care of what rounds to it.
    const BEYOND: u32 = (127 + 16) << 23;
    /// 2^-14: below, f16 is subnormal.
    const NORMAL: u32 = (127 - 14) << 23;
    let (sign, rest) = (x.to_bits() >> 16 & 0x8000, x.to_bits() & 0x7fff_ffff);
    let magnitude = if x.is_nan() {
        0x7e00 | rest >> 13 & 0x3ff
    } else if rest >= BEYOND {
        0x7c00
    } else if rest < NORMAL {
        // In 0.5 .. 1 the gap between neighbours is 2^-24, which is the gap of subnormal f16.
        (f32::from_bits(rest) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (rest - (NORMAL - (1 << 23)) + 0xfff + (rest >> 13 & 1)) >> 13
    };
    (sign | magnitude) as u16
}

#[cfg(test)]
mod tests {
    use minigpt_core::reference::weights::encode_half;
    use minigpt_core::rng::{Rng, Stream};

    use super::*;

    #[test]
    fn numbers_are_rounded_as_the_references_are() {
        let mut rng = Rng::new(5, Stream::User);
        // Around each number of either type and each middle between two: all upper halves, with lower ones near ties.
        let near = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff];
        let near = (0..=u16::MAX).flat_map(|upper| near.map(|lower| u32::from(upper) << 16 | lower));
        let any = (0..1 << 20).map(|_| rng.next_u32());
        for x in near.chain(any).map(f32::from_bits) {
            let expected = [Dtype::F16, Dtype::Bf16].map(|dtype| encode_half(f64::from(x), dtype));
            let found = [f16_bits(x), bf16_bits(x)].map(u16::to_le_bytes);
            assert_eq!(found, expected, "{x:e}, {:08x}", x.to_bits());
        }
    }
}
