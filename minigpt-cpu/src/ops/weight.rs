//! Weights as they are stored, widened in registers to exactly the numbers that
//! [`weight_at`](minigpt_core::reference::weights::weight_at) reads.

use minigpt_core::memory::QUANT_BLOCK;
use minigpt_core::{Dtype, InvalidOp, Span};

use crate::arch::Vector;
use crate::error::CpuError;
use crate::par::Views;

/// How a row of a weight is stored.
pub(super) trait Format: Send + Sync + 'static {
    /// What is stored whole.
    type Unit: Copy + Send + Sync + 'static;
    /// The elements of a unit.
    const ELEMENTS: usize;

    /// Elements `k .. k + LANES` of a row.
    ///
    /// # Panics
    /// If the row has no such elements, its padding counted.
    fn load<V: Vector>(t: V::Token, row: &[Self::Unit], k: usize) -> V;

    /// The elements from `k` on that the row still has, fewer than `LANES`; beyond them, 0 or the row's padding.
    fn load_rest<V: Vector>(t: V::Token, row: &[Self::Unit], k: usize) -> V;
}

/// IEEE 754 single precision.
pub(super) struct F32;
/// IEEE 754 half precision.
pub(super) struct F16;
/// The upper half of an f32.
pub(super) struct Bf16;
/// Blocks of 32 signed bytes under one f16 scale.
pub(super) struct Q8_0;
/// Blocks of 32 four-bit numbers under one f16 scale.
pub(super) struct Q4_0;

impl Format for F32 {
    type Unit = f32;
    const ELEMENTS: usize = 1;
    #[inline(always)]
    fn load<V: Vector>(t: V::Token, row: &[f32], k: usize) -> V {
        V::load(t, &row[k..])
    }
    #[inline(always)]
    fn load_rest<V: Vector>(t: V::Token, row: &[f32], k: usize) -> V {
        V::load_partial(t, &row[k..])
    }
}

/// The rest of a row, and zeros.
#[inline(always)]
fn filled_up(row: &[[u8; 2]], k: usize) -> [[u8; 2]; 16] {
    let mut units = [[0; 2]; 16];
    units.iter_mut().zip(&row[k..]).for_each(|(to, &unit)| *to = unit);
    units
}

impl Format for F16 {
    type Unit = [u8; 2];
    const ELEMENTS: usize = 1;
    #[inline(always)]
    fn load<V: Vector>(t: V::Token, row: &[[u8; 2]], k: usize) -> V {
        V::widen_f16(t, &row[k..])
    }
    #[inline(always)]
    fn load_rest<V: Vector>(t: V::Token, row: &[[u8; 2]], k: usize) -> V {
        V::widen_f16(t, &filled_up(row, k))
    }
}

impl Format for Bf16 {
    type Unit = [u8; 2];
    const ELEMENTS: usize = 1;
    #[inline(always)]
    fn load<V: Vector>(t: V::Token, row: &[[u8; 2]], k: usize) -> V {
        V::widen_bf16(t, &row[k..])
    }
    #[inline(always)]
    fn load_rest<V: Vector>(t: V::Token, row: &[[u8; 2]], k: usize) -> V {
        V::widen_bf16(t, &filled_up(row, k))
    }
}

impl Format for Q8_0 {
    type Unit = [u8; 34];
    const ELEMENTS: usize = QUANT_BLOCK;
    #[inline(always)]
    fn load<V: Vector>(t: V::Token, row: &[[u8; 34]], k: usize) -> V {
        let block = &row[k / QUANT_BLOCK];
        // A product of 11 significant bits with 8: exact.
        V::splat_f16(t, [block[0], block[1]]) * V::widen_i8(t, &block[2 + k % QUANT_BLOCK..])
    }
    #[inline(always)]
    fn load_rest<V: Vector>(t: V::Token, row: &[[u8; 34]], k: usize) -> V {
        Self::load(t, row, k)
    }
}

impl Format for Q4_0 {
    type Unit = [u8; 18];
    const ELEMENTS: usize = QUANT_BLOCK;
    #[inline(always)]
    fn load<V: Vector>(t: V::Token, row: &[[u8; 18]], k: usize) -> V {
        const HALF: usize = QUANT_BLOCK / 2;
        const { assert!(V::LANES <= HALF) };
        let block = &row[k / QUANT_BLOCK];
        let pairs = &block[2 + k % HALF..];
        let four_bits = if k % QUANT_BLOCK < HALF { V::widen_low(t, pairs) } else { V::widen_high(t, pairs) };
        V::splat_f16(t, [block[0], block[1]]) * four_bits
    }
    #[inline(always)]
    fn load_rest<V: Vector>(t: V::Token, row: &[[u8; 18]], k: usize) -> V {
        Self::load(t, row, k)
    }
}

/// A weight (rows, cols), whose rows are padded to whole units.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weight<'s> {
    F32(&'s [f32]),
    F16(&'s [[u8; 2]]),
    Bf16(&'s [[u8; 2]]),
    Q8_0(&'s [[u8; 34]]),
    Q4_0(&'s [[u8; 18]]),
}

/// Runs `$body` with the units of `$weight` as `$units` and their format as the type `$format`.
macro_rules! with_format {
    ($weight:expr, |$units:ident: $format:ident| $body:expr) => {
        match $weight {
            $crate::ops::weight::Weight::F32($units) => {
                type $format = $crate::ops::weight::F32;
                $body
            }
            $crate::ops::weight::Weight::F16($units) => {
                type $format = $crate::ops::weight::F16;
                $body
            }
            $crate::ops::weight::Weight::Bf16($units) => {
                type $format = $crate::ops::weight::Bf16;
                $body
            }
            $crate::ops::weight::Weight::Q8_0($units) => {
                type $format = $crate::ops::weight::Q8_0;
                $body
            }
            $crate::ops::weight::Weight::Q4_0($units) => {
                type $format = $crate::ops::weight::Q4_0;
                $body
            }
        }
    };
}
pub(super) use with_format;

impl<'s> Weight<'s> {
    /// Whether weights of all types can be read where they lie. Where bytes are reached by way of their words (see
    /// [`crate::memory`]), only whole words can.
    pub(super) const READS_ALL: bool = cfg!(target_endian = "little");

    /// Whether a weight of this type can be read where it lies.
    pub(super) const fn reads(dtype: Dtype) -> bool {
        Self::READS_ALL || matches!(dtype, Dtype::F32)
    }

    /// The weight in `span`.
    pub(super) fn new(
        views: &mut Views<'s, '_>,
        operand: &'static str,
        span: Span,
    ) -> Result<Self, CpuError> {
        if span.dtype == Dtype::F32 || !Self::reads(span.dtype) {
            return Ok(Weight::F32(views.f32(operand, span)?));
        }
        let bytes = views.bytes(operand, span)?;
        Ok(match span.dtype {
            Dtype::F16 => Weight::F16(bytes.as_chunks().0),
            Dtype::Bf16 => Weight::Bf16(bytes.as_chunks().0),
            Dtype::Q8_0 => Weight::Q8_0(bytes.as_chunks().0),
            Dtype::Q4_0 => Weight::Q4_0(bytes.as_chunks().0),
            found => return Err(InvalidOp::Dtype { operand, expected: Dtype::F32, found }.into()),
        })
    }

    /// Row `row`, widened.
    #[inline(always)]
    pub(super) fn read<V: Vector>(&self, t: V::Token, row: usize, out: &mut [f32]) {
        with_format!(*self, |units: W| widen::<V, W>(t, row_of::<W>(units, row, out.len()), out));
    }
}

/// Row `row` of a weight of `cols` columns.
#[inline(always)]
pub(super) fn row_of<W: Format>(units: &[W::Unit], row: usize, cols: usize) -> &[W::Unit] {
    let each = cols.div_ceil(W::ELEMENTS);
    &units[row * each..][..each]
}

/// The elements of a row.
#[inline(always)]
pub(super) fn widen<V: Vector, W: Format>(t: V::Token, row: &[W::Unit], out: &mut [f32]) {
    let whole = out.len() - out.len() % V::LANES;
    for k in (0..whole).step_by(V::LANES) {
        W::load::<V>(t, row, k).store(&mut out[k..]);
    }
    if whole < out.len() {
        W::load_rest::<V>(t, row, whole).store_partial(&mut out[whole..]);
    }
}
