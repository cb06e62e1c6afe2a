//! Layer norm, equal to [`norm_forward`](minigpt_core::reference::norm::norm_forward) and
//! [`norm_backward`](minigpt_core::reference::norm::norm_backward).
//!
//! A row fits the first cache, so that it is read from memory once although the mean, the variance and the result
//! each take a pass. The gradients of weight and bias are sums over all rows: every block of rows makes its own,
//! and the blocks, whose size depends on the shape alone, are added up in order.

use minigpt_core::op::{NormBackward, NormForward};

use super::lanes::{load, load_or, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job, whole_lines};
use crate::error::CpuError;
use crate::par::Chunks;

struct Forward<'s> {
    x: &'s [f32],
    weight: &'s [f32],
    bias: Option<&'s [f32]>,
    rows_per_task: usize,
    eps: f32,
}

/// y, mean and rstd by the block of rows.
type Results<'s> = (Chunks<'s, f32>, Chunks<'s, f32>, Chunks<'s, f32>);

impl Job<Results<'_>> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        index: usize,
        (y, mean, rstd): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let width = self.weight.len();
        let zero = V::splat(t, 0.0);
        let first = index * self.rows_per_task;
        for (i, y) in y.chunks_exact_mut(width).enumerate() {
            let x = &self.x[(first + i) * width..][..width];
            let mut sum = zero;
            for c in (0..width).step_by(V::LANES) {
                sum = sum + load(t, x, c);
            }
            let m = sum.sum() / width as f32;
            let center = V::splat(t, m);
            let mut squares = zero;
            let whole = width / V::LANES * V::LANES;
            for c in (0..whole).step_by(V::LANES) {
                let d = load::<V>(t, x, c) - center;
                squares = d.mul_add(d, squares);
            }
            let mut squares = squares.sum();
            for x in &x[whole..] {
                squares += (x - m) * (x - m);
            }
            let r = 1.0 / libm::sqrtf(squares / width as f32 + self.eps);
            let scale = V::splat(t, r);
            for c in (0..width).step_by(V::LANES) {
                let n = (load::<V>(t, x, c) - center) * scale;
                let bias = self.bias.map_or(zero, |bias| load(t, bias, c));
                store(n.mul_add(load(t, self.weight, c), bias), y, c);
            }
            mean[i] = m;
            rstd[i] = r;
        }
    }
}

pub(super) fn forward(context: &mut Context<'_, '_>, op: &NormForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let rows_per_task = rows_per_task(op.width);
    let job = Forward {
        x: views.f32("x", op.x)?,
        weight: views.f32("weight", op.weight)?,
        bias: op.bias.map(|bias| views.f32("bias", bias)).transpose()?,
        rows_per_task,
        eps: op.eps as f32,
    };
    let parts = (
        Chunks::new(views.f32_mut("y", op.y)?, rows_per_task * op.width),
        Chunks::new(views.f32_mut("mean", op.mean)?, rows_per_task),
        Chunks::new(views.f32_mut("rstd", op.rstd)?, rows_per_task),
    );
    context.team.for_each(parts, &job);
    Ok(())
}

struct Backward<'s> {
    x: &'s [f32],
    weight: &'s [f32],
    mean: &'s [f32],
    rstd: &'s [f32],
    /// `None`: it lies in d_x.
    d_y: Option<&'s [f32]>,
    accumulate: bool,
    rows_per_block: usize,
}

impl Job<(Chunks<'_, f32>, Option<Chunks<'_, f32>>)> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, (d_x, partial): (&mut [f32], Option<&mut [f32]>)) {
        let width = self.weight.len();
        let zero = V::splat(t, 0.0);
        let mut sums = partial.map(|partial| {
            partial.fill(0.0);
            partial.split_at_mut(partial.len() / 2)
        });
        let first = index * self.rows_per_block;
        for (i, d_x) in d_x.chunks_exact_mut(width).enumerate() {
            let row = first + i;
            let x = &self.x[row * width..][..width];
            let d_y = self.d_y.map(|d_y| &d_y[row * width..][..width]);
            let (m, r) = (V::splat(t, self.mean[row]), V::splat(t, self.rstd[row]));

            let (mut sum_g, mut sum_gn) = (zero, zero);
            for c in (0..width).step_by(V::LANES) {
                // Lanes beyond the row have d_y = 0, and x at the mean: elsewhere n could overflow, and 0 times that.
                let d: V = load(t, d_y.unwrap_or(d_x), c);
                let n = (load_or::<V>(t, x, c, self.mean[row]) - m) * r;
                let g = d * load(t, self.weight, c);
                sum_g = sum_g + g;
                sum_gn = g.mul_add(n, sum_gn);
                if let Some((d_weight, d_bias)) = &mut sums {
                    store(d.mul_add(n, load(t, d_weight, c)), d_weight, c);
                    store(d + load(t, d_bias, c), d_bias, c);
                }
            }
            let mean_g = V::splat(t, sum_g.sum() / width as f32);
            let mean_gn = V::splat(t, sum_gn.sum() / width as f32);

            for c in (0..width).step_by(V::LANES) {
                let n = (load::<V>(t, x, c) - m) * r;
                let g = load::<V>(t, d_y.unwrap_or(d_x), c) * load(t, self.weight, c);
                let d = r * (g - mean_g - n * mean_gn);
                let before = if self.accumulate { load(t, d_x, c) } else { zero };
                store(before + d, d_x, c);
            }
        }
    }
}

/// At most so many blocks of rows have partial sums of their own.
const BLOCKS: usize = 64;

fn rows_per_block(rows: usize, width: usize) -> usize {
    rows_per_task(width).max(rows.div_ceil(BLOCKS))
}

/// Scratch of the backward pass: the sums of each block, if any are wanted.
pub(super) fn backward_scratch_floats(op: &NormBackward) -> usize {
    if op.d_weight.is_none() && op.d_bias.is_none() {
        return 0;
    }
    let blocks = op.rows.div_ceil(rows_per_block(op.rows, op.width));
    blocks.saturating_mul(whole_lines(op.width)).saturating_mul(2)
}

pub(super) fn backward(context: &mut Context<'_, '_>, op: &NormBackward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let rows_per_block = rows_per_block(op.rows, op.width);
    let in_place = op.d_y == op.d_x;
    let job = Backward {
        x: views.f32("x", op.x)?,
        weight: views.f32("weight", op.weight)?,
        mean: views.f32("mean", op.mean)?,
        rstd: views.f32("rstd", op.rstd)?,
        d_y: if in_place { None } else { Some(views.f32("d_y", op.d_y)?) },
        accumulate: op.accumulate,
        rows_per_block,
    };
    let stride = whole_lines(op.width);
    let partials = context.scratch.floats(backward_scratch_floats(op))?;
    let parts = (
        Chunks::new(views.f32_mut("d_x", op.d_x)?, rows_per_block * op.width),
        (!partials.is_empty()).then(|| Chunks::new(partials, 2 * stride)),
    );
    context.team.for_each(parts, &job);

    let mut d_weight = op.d_weight.map(|d_weight| views.f32_mut("d_weight", d_weight)).transpose()?;
    let mut d_bias = op.d_bias.map(|d_bias| views.f32_mut("d_bias", d_bias)).transpose()?;
    for partial in partials.chunks_exact(2 * stride) {
        let (weight, bias) = partial.split_at(stride);
        if let Some(d_weight) = d_weight.as_deref_mut() {
            add(d_weight, weight);
        }
        if let Some(d_bias) = d_bias.as_deref_mut() {
            add(d_bias, bias);
        }
    }
    Ok(())
}

fn add(to: &mut [f32], x: &[f32]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += x;
    }
}
