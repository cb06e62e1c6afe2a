//! Linear layers: equal to [`minigpt_core::reference::linear`].
//!
//! Bias, non-linearity, dropout and residual are applied to a strip of the product while it is in the cache. A few
//! rows (decoding) go another way: the weight is read once, row by row, at the speed of memory. In the forward pass the
//! weight may be stored in any format.

mod few_rows;
mod widened;

use core::ops::Range;

pub(super) use few_rows::FEW_ROWS;
use minigpt_core::Activation;
use minigpt_core::op::{LinearBackward, LinearForward};

use crate::arch::tile::{Onto, Strided};
use crate::arch::{Isa, Vector};
use crate::context::{Context, Job, Machine, whole_lines};
use crate::dropout::Mask;
use crate::error::CpuError;
use crate::gemm::{Begin, Finish, Product, Right, pack_transposed, packed_floats, product, tasks};
use crate::math;
use crate::ops::lanes::{load, store};
use crate::ops::weight::{Weight, with_format};
use crate::par::{Chain, Chunks, Either, Grid, Tile};

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
    let mut finish = Forward { bias, activation, keeps: kept.is_some(), mask, residual, d_out };

    let machine = context.team.machine();
    let scratch = context.scratch.floats(forward_scratch_floats(op, machine))?;
    let (packed, before) = scratch.split_at_mut(forward_packed_floats(op, machine.isa));
    let apart = residual_apart(op);
    if apart {
        before.copy_from_slice(y);
        finish.residual = Some(before);
    }

    let team = &mut context.team;
    if rows <= FEW_ROWS {
        let begin = if in_place && !apart { Begin::Accumulate } else { Begin::Zero };
        let shape = (rows, d_in, d_out);
        with_format!(weight, |units: W| {
            few_rows::product::<W, _>(team, x, units, y, kept, shape, begin, &finish);
        });
        return Ok(());
    }
    let packed = &mut packed[..packed_floats(d_out, d_in, machine.isa)];
    match weight {
        _ if d_in == 0 => {}
        Weight::F32(weight) => pack_transposed(team, weight, d_in, packed),
        narrow => widened::pack_transposed(team, narrow, d_in, packed),
    }
    let (a, b) = (Strided::rows(x, d_in), Right::Packed { data: packed });
    // The product begins with the bias, and with the residual if nothing stands between.
    let bias = finish.bias.take();
    let onto = match finish.residual {
        _ if in_place && !apart => Onto::Result,
        Some(residual) if activation.is_none() && finish.mask.is_none() => {
            finish.residual = None;
            Onto::Matrix(residual)
        }
        _ => Onto::Zero,
    };
    product(team, &Product { a, b, depth: d_in, bias, onto, finish }, y, kept, d_out);
    Ok(())
}

/// What follows the product in the forward pass.
struct Forward<'a> {
    bias: Option<&'a [f32]>,
    activation: Option<Activation>,
    keeps: bool,
    mask: Option<Mask>,
    residual: Option<&'a [f32]>,
    d_out: usize,
}

impl Finish for Forward<'_> {
    fn is_idle(&self) -> bool {
        self.bias.is_none()
            && !self.keeps
            && self.activation.is_none()
            && self.mask.is_none()
            && self.residual.is_none()
    }

    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        mut kept: Option<&mut [f32]>,
    ) {
        if self.is_idle() {
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
    let d_weight = op.d_weight.map(|d_weight| views.f32_mut("d_weight", d_weight)).transpose()?;
    let d_bias = op.d_bias.map(|d_bias| views.f32_mut("d_bias", d_bias)).transpose()?;

    let team = &mut context.team;
    let isa = team.simd.isa();
    let masked = context.scratch.floats(backward_scratch_floats(op))?;
    let g = match mask {
        None => d_y,
        // Three products and sums read it: dropped out once, it is not dropped out three times.
        Some(mask) => {
            let size = d_out * MASKED_ROWS;
            team.for_each(Chunks::new(masked, size), &DropOut { d_y, mask, size });
            masked
        }
    };
    let job = Backward {
        g,
        d_out,
        d_weight: Product {
            a: Strided::transposed(g, d_out),
            b: Right::Rows { data: x, cols: d_in },
            depth: rows,
            bias: None,
            onto: Onto::Result,
            finish: Slope::none(d_in),
        },
        d_x: Product {
            a: Strided::rows(g, d_out),
            b: Right::Rows { data: weight, cols: d_in },
            depth: d_out,
            bias: None,
            onto: if op.accumulate { Onto::Result } else { Onto::Zero },
            finish: Slope { activated, d_in },
        },
    };
    let parts = Chain(
        tasks(d_weight.unwrap_or_default(), d_in, isa),
        Chain(
            tasks(d_x.unwrap_or_default(), d_in, isa),
            Chunks::new(d_bias.unwrap_or_default(), SUMMED_COLUMNS),
        ),
    );
    team.for_each(parts, &job);
    Ok(())
}

/// All gradients of a linear layer that are wanted: one region, so that the team wakes once. What is not wanted has no tasks.
struct Backward<'a> {
    g: &'a [f32],
    d_out: usize,
    d_weight: Product<'a, Slope<'a>>,
    d_x: Product<'a, Slope<'a>>,
}

type BackwardParts<'s> = Chain<Grid<'s>, Chain<Grid<'s>, Chunks<'s, f32>>>;

impl Job<BackwardParts<'_>> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, part: Either<Tile<'_>, Either<Tile<'_>, &mut [f32]>>) {
        match part {
            Either::First(d_weight) => self.d_weight.task::<V>(t, d_weight, None),
            Either::Second(_, Either::First(d_x)) => self.d_x.task::<V>(t, d_x, None),
            Either::Second(_, Either::Second(index, d_bias)) => {
                add_column_sums::<V>(t, self.g, self.d_out, index * SUMMED_COLUMNS, d_bias);
            }
        }
    }
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
pub(super) struct Slope<'a> {
    activated: Option<(Activation, &'a [f32])>,
    d_in: usize,
}

impl Slope<'_> {
    /// None: the product stays as it is.
    pub(super) fn none(d_in: usize) -> Self {
        Slope { activated: None, d_in }
    }
}

impl Finish for Slope<'_> {
    fn is_idle(&self) -> bool {
        self.activated.is_none()
    }

    #[inline(always)]
    fn finish<V: Vector>(
        &self,
        t: V::Token,
        row: usize,
        cols: Range<usize>,
        c: &mut [f32],
        _: Option<&mut [f32]>,
    ) {
        let Some((activation, input)) = self.activated else { return };
        let input = &input[row * self.d_in + cols.start..][..c.len()];
        let mut at = 0;
        while at < c.len() {
            let slope = math::derivative(t, activation, load::<V>(t, input, at));
            store(load::<V>(t, c, at) * slope, c, at);
            at += V::LANES;
        }
    }

    fn reads(&self, row: usize, cols: Range<usize>) -> &[f32] {
        match self.activated {
            Some((_, input)) => &input[row * self.d_in..][cols],
            None => &[],
        }
    }
}

/// Columns whose sums are one task.
const SUMMED_COLUMNS: usize = 128;

/// Adds the sums of g's columns from `first` on, each from the first row to the last.
#[inline(always)]
fn add_column_sums<V: Vector>(t: V::Token, g: &[f32], d_out: usize, first: usize, sums: &mut [f32]) {
    // So many additions under way at once hide the time that one takes.
    const N: usize = 8;
    for (block, sums) in sums.chunks_mut(N * V::LANES).enumerate() {
        let first = first + block * N * V::LANES;
        let mut sum = [V::splat(t, 0.0); N];
        for row in g.chunks_exact(d_out) {
            let row = &row[first..][..sums.len()];
            for j in 0..N {
                sum[j] = sum[j] + V::load_partial(t, &row[(j * V::LANES).min(row.len())..]);
            }
        }
        for (sum, sums) in sum.into_iter().zip(sums.chunks_mut(V::LANES)) {
            (V::load_partial(t, sums) + sum).store_partial(sums);
        }
    }
}

/// With the residual in the result's place, the product can be added to it only if nothing stands between.
fn residual_apart(op: &LinearForward) -> bool {
    let between = op.dropout.is_some() || op.activate.is_some();
    op.residual == Some(op.y) && between
}

fn forward_packed_floats(op: &LinearForward, isa: Isa) -> usize {
    if op.rows > FEW_ROWS { whole_lines(packed_floats(op.d_out, op.d_in, isa)) } else { 0 }
}

/// Scratch of the forward pass: the packed weight, and the residual where the result takes its place.
pub(crate) fn forward_scratch_floats(op: &LinearForward, machine: Machine) -> usize {
    let apart = if residual_apart(op) { op.rows.saturating_mul(op.d_out) } else { 0 };
    forward_packed_floats(op, machine.isa).saturating_add(apart)
}

/// Scratch of the backward pass: the gradient after dropout.
pub(crate) fn backward_scratch_floats(op: &LinearBackward) -> usize {
    if op.dropout.is_some() { op.rows.saturating_mul(op.d_out) } else { 0 }
}

#[cfg(all(test, feature = "std"))]
mod tests;
