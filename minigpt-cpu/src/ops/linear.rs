//! Linear layers: equal to [`minigpt_core::reference::linear`].
//!
//! Bias, non-linearity, dropout and residual are applied to a strip of the product while it is in the cache. A few
//! rows (decoding) go another way: the weight is read once, row by row, at the speed of memory. In the forward pass the
//! weight may be stored in any format.

mod few_rows;
mod widened;

use core::ops::Range;

use few_rows::FEW_ROWS;
use minigpt_core::op::{LinearBackward, LinearForward};
use minigpt_core::{Activation, Plan};

use crate::arch::tile::Strided;
use crate::arch::{Isa, Vector};
use crate::context::{Context, Job, Machine, whole_lines};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::gemm::{AsIs, Begin, DEPTH, Finish, Right, pack_rows, pack_transposed, packed_floats, product};
use crate::math;
use crate::ops::lanes::{load, store};
use crate::ops::weight::{Weight, with_format};
use crate::par::Chunks;

/// Equal to [`minigpt_core::reference::linear::linear_forward`].
pub(crate) fn linear_forward(context: &mut Context<'_, '_>, op: &LinearForward) -> Result<(), CpuError> {
    let (rows, d_in, d_out) = (op.rows, op.d_in, op.d_out);
    let views = &mut context.views;
    let x = views.f32("x", op.x)?;
    let weight = Weight::new(views, "weight", op.weight)?;
    let bias = op.bias.map(|bias| views.f32("bias", bias)).transpose()?;
    let mask = Mask::new(views, op.dropout)?;
    let kept = match op.activate.and_then(|activate| activate.input) {
        Some(input) => Some(views.f32_mut("activate.input", input)?),
        None => None,
    };
    let in_place = op.residual == Some(op.y);
    let residual = match op.residual {
        Some(residual) if !in_place => Some(views.f32("residual", residual)?),
        _ => None,
    };
    let y = views.f32_mut("y", op.y)?;
    let activation = op.activate.map(|activate| activate.activation);
    let mut finish = Forward { bias, activation, mask, residual, d_out };

    // With the residual in the result's place, the product can be added to it only if nothing stands between.
    let apart = in_place && (activation.is_some() || mask.is_some() || kept.is_some());
    let packed_len = if rows > FEW_ROWS { packed_floats(d_out, d_in, context.team.simd.isa()) } else { 0 };
    let apart_len = if apart { rows * d_out } else { 0 };
    let scratch = context.scratch.floats(whole_lines(packed_len).saturating_add(apart_len))?;
    let (packed, before) = scratch.split_at_mut(whole_lines(packed_len));
    let begin = if in_place && !apart { Begin::Accumulate } else { Begin::Zero };
    if apart {
        before.copy_from_slice(y);
        finish.residual = Some(before);
    }

    let team = &mut context.team;
    if rows > FEW_ROWS {
        let packed = &mut packed[..packed_len];
        match weight {
            Weight::F32(weight) => pack_transposed(team, weight, d_in, packed),
            narrow => widened::pack_transposed(team, narrow, d_in, packed),
        }
        let shape = (rows, d_in, d_out);
        product(team, Strided::rows(x, d_in), Right::Packed { data: packed }, y, kept, shape, begin, &finish);
    } else {
        let shape = (rows, d_in, d_out);
        with_format!(weight, |units: W| {
            few_rows::product::<W, _>(team, x, units, y, kept, shape, begin, &finish);
        });
    }
    Ok(())
}

/// What follows the product in the forward pass.
struct Forward<'a> {
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    mask: Option<Mask>,
    residual: Option<&'a [f32]>,
    d_out: usize,
}

impl Finish for Forward<'_> {
    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        mut kept: Option<&mut [f32]>,
    ) {
        if self.bias.is_none()
            && kept.is_none()
            && self.activation.is_none()
            && self.mask.is_none()
            && self.residual.is_none()
        {
            return;
        }
        let first = row * self.d_out + cols.start;
        let bias = self.bias.map(|bias| &bias[cols]);
        let residual = self.residual.map(|residual| &residual[first..][..c.len()]);
        let mut at = 0;
        while at < c.len() {
            let mut value = load::<V>(t, c, at);
            if let Some(bias) = bias {
                value = value + load::<V>(t, bias, at);
            }
            if let Some(kept) = kept.as_deref_mut() {
                store(value, kept, at);
            }
            if let Some(activation) = self.activation {
                value = math::activate(t, activation, value);
            }
            if let (None, Some(residual)) = (&self.mask, residual) {
                value = load::<V>(t, residual, at) + value;
            }
            store(value, c, at);
            at += V::LANES;
        }
        let Some(mask) = &self.mask else { return };
        mask.apply(first, c);
        if let Some(residual) = residual {
            for (c, &residual) in c.iter_mut().zip(residual) {
                *c += residual;
            }
        }
    }
}

/// Equal to [`minigpt_core::reference::linear::linear_backward`].
pub(crate) fn linear_backward(context: &mut Context<'_, '_>, op: &LinearBackward) -> Result<(), CpuError> {
    let (rows, d_in, d_out) = (op.rows, op.d_in, op.d_out);
    let views = &mut context.views;
    let x = views.f32("x", op.x)?;
    let weight = views.f32("weight", op.weight)?;
    let d_y = views.f32("d_y", op.d_y)?;
    let mask = Mask::new(views, op.dropout)?;
    let activated = match op.activate {
        Some(activate) => match activate.input {
            Some(input) => Some((activate.activation, views.f32("activate.input", input)?)),
            None => None,
        },
        None => None,
    };
    let d_x = op.d_x.map(|d_x| views.f32_mut("d_x", d_x)).transpose()?;
    let d_weight = views.f32_mut("d_weight", op.d_weight)?;
    let d_bias = op.d_bias.map(|d_bias| views.f32_mut("d_bias", d_bias)).transpose()?;

    let team = &mut context.team;
    let masked_len = if mask.is_some() { rows * d_out } else { 0 };
    let packed_len = packed_backward(rows, d_in, d_out, team.simd.isa());
    let scratch = context.scratch.floats(whole_lines(masked_len).saturating_add(packed_len))?;
    let (masked, packed) = scratch.split_at_mut(whole_lines(masked_len));
    let g = match mask {
        None => d_y,
        // Three products and sums read it: dropped out once, it is not dropped out three times.
        Some(mask) => {
            let masked = &mut masked[..masked_len];
            let size = d_out * MASKED_ROWS;
            team.for_each(Chunks::new(masked, size), &DropOut { d_y, mask, size });
            masked
        }
    };
    if let Some(d_x) = d_x {
        let begin = if op.accumulate { Begin::Accumulate } else { Begin::Zero };
        let b = if packed_len > 0 {
            let packed = &mut packed[..packed_floats(d_in, d_out, team.simd.isa())];
            pack_rows(team, weight, d_in, packed);
            Right::Packed { data: packed }
        } else {
            Right::Rows { data: weight, cols: d_in }
        };
        let (a, shape) = (Strided::rows(g, d_out), (rows, d_out, d_in));
        match activated {
            Some((activation, input)) => {
                product(team, a, b, d_x, None, shape, begin, &Backward { activation, input, d_in });
            }
            None => product(team, a, b, d_x, None, shape, begin, &AsIs),
        }
    }
    // Both operands are read across their rows.
    let a = Strided::transposed(g, d_out);
    if packed_len > 0 {
        for (block, x) in x.chunks(DEPTH * d_in).enumerate() {
            let depth = x.len() / d_in;
            let packed = &mut packed[..packed_floats(d_in, depth, team.simd.isa())];
            pack_rows(team, x, d_in, packed);
            let (a, b) = (a.from(0, block * DEPTH), Right::Packed { data: packed });
            product(team, a, b, d_weight, None, (d_out, depth, d_in), Begin::Accumulate, &AsIs);
        }
    } else {
        let b = Right::Rows { data: x, cols: d_in };
        product(team, a, b, d_weight, None, (d_out, rows, d_in), Begin::Accumulate, &AsIs);
    }
    if let Some(d_bias) = d_bias {
        team.for_each(Chunks::new(d_bias, SUMMED_COLUMNS), &ColumnSums { g, d_out });
    }
    Ok(())
}

/// Rows that a task drops out.
const MASKED_ROWS: usize = 16;

struct DropOut<'a> {
    d_y: &'a [f32],
    mask: Mask,
    size: usize,
}

impl Job<Chunks<'_, f32>> for DropOut<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, _: V::Token, index: usize, g: &mut [f32]) {
        let first = index * self.size;
        g.copy_from_slice(&self.d_y[first..][..g.len()]);
        self.mask.apply(first, g);
    }
}

/// What follows the product in the backward pass: the derivative of the activation that made the input.
struct Backward<'a> {
    activation: Activation,
    input: &'a [f32],
    d_in: usize,
}

impl Finish for Backward<'_> {
    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        _: Option<&mut [f32]>,
    ) {
        let input = &self.input[row * self.d_in + cols.start..][..c.len()];
        let mut at = 0;
        while at < c.len() {
            let slope = math::derivative(t, self.activation, load::<V>(t, input, at));
            store(load::<V>(t, c, at) * slope, c, at);
            at += V::LANES;
        }
    }
}

/// Columns whose sums are one task.
const SUMMED_COLUMNS: usize = 64;

/// Adds the sums of g's columns, from the first row to the last.
struct ColumnSums<'a> {
    g: &'a [f32],
    d_out: usize,
}

impl Job<Chunks<'_, f32>> for ColumnSums<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, sums: &mut [f32]) {
        let first = index * SUMMED_COLUMNS;
        for (block, sums) in sums.chunks_mut(V::LANES).enumerate() {
            let first = first + block * V::LANES;
            let mut sum = V::splat(t, 0.0);
            for row in self.g.chunks_exact(self.d_out) {
                sum = sum + V::load_partial(t, &row[first..][..sums.len()]);
            }
            (V::load_partial(t, sums) + sum).store_partial(sums);
        }
    }
}

/// Scratch for the linear layers of `plan`: packed operands, and gradients after dropout.
pub(crate) fn scratch_floats(plan: &Plan, machine: Machine) -> usize {
    let config = &plan.config;
    let (c, f, v) = (config.d_model, config.d_ff, config.vocab_size);
    let rows = plan.batch.saturating_mul(plan.time);
    let training = plan.backward.is_some();
    let mut most = 0;
    for (d_out, d_in, dropped) in
        [(c.saturating_mul(3), c, false), (c, c, true), (f, c, false), (c, f, true), (v, c, false)]
    {
        if rows > FEW_ROWS {
            most = most.max(whole_lines(packed_floats(d_out, d_in, machine.isa)));
        }
        if training {
            let masked = if dropped && config.dropout > 0.0 { rows.saturating_mul(d_out) } else { 0 };
            let packed = packed_backward(rows, d_in, d_out, machine.isa);
            most = most.max(whole_lines(masked).saturating_add(packed));
        }
    }
    most
}

/// Rows of a right operand that are longer than this are so far apart that walking down a column of them misses the
/// cache of page addresses at every step: then it is packed.
const FAR_APART: usize = 256;

/// How many f32 the packed right operands of the backward pass take: the weight, or a block of the input's depth.
fn packed_backward(rows: usize, d_in: usize, d_out: usize, isa: Isa) -> usize {
    let deepest = d_out.max(rows.min(DEPTH));
    if d_in > FAR_APART && rows > FEW_ROWS { packed_floats(d_in, deepest, isa) } else { 0 }
}

#[cfg(all(test, feature = "std"))]
mod tests;
