//! Layer norm and RMS norm, equal to [`norm_forward`](minigpt_core::reference::norm::norm_forward) and
//! [`norm_backward`](minigpt_core::reference::norm::norm_backward).
//!
//! A vector fits the first cache, so that it is read from memory once although the mean, the squares and the result
//! each take a pass. The gradients of weight and bias are sums over all vectors: every block of rows makes its own,
//! and the blocks, whose size depends on the shape alone, are added up in order.
//!
//! RMS norm is layer norm with a mean of 0. To take 0 away changes no number, so both are one kernel.

use minigpt_core::op::{NormBackward, NormForward, Normalize};

use super::lanes::{load, load_or, rows_per_task, store};
use crate::arch::Vector;
use crate::context::{Context, Job, whole_lines};
use crate::error::CpuError;
use crate::par::{Chunks, Grid, Rows, Tile};

struct Forward<'s> {
    x: Rows<'s>,
    weight: &'s [f32],
    bias: Option<&'s [f32]>,
    groups: usize,
    eps: f32,
}

/// y, mean and rstd by the block of rows. Without a mean it is RMS norm.
type Results<'s> = (Grid<'s>, Option<Chunks<'s, f32>>, Chunks<'s, f32>);

impl Job<Results<'_>> for Forward<'_> {
    #[inline(always)]
    fn run<V: Vector>(
        &self,
        t: V::Token,
        _: usize,
        (mut y, mut mean, rstd): (Tile<'_>, Option<&mut [f32]>, &mut [f32]),
    ) {
        let width = self.weight.len();
        let first = y.rows().start;
        for i in 0..y.rows().len() {
            let x = self.x.row(first + i).chunks_exact(width);
            for (group, (x, y)) in x.zip(y.row(i).chunks_exact_mut(width)).enumerate() {
                let vector = i * self.groups + group;
                let mean = mean.as_deref_mut().map(|mean| &mut mean[vector]);
                rstd[vector] = self.vector::<V>(t, x, y, mean);
            }
        }
    }
}

impl Forward<'_> {
    /// One vector; the result is its rstd.
    #[inline(always)]
    fn vector<V: Vector>(&self, t: V::Token, x: &[f32], y: &mut [f32], mean: Option<&mut f32>) -> f32 {
        let (width, zero) = (self.weight.len(), V::splat(t, 0.0));
        let mut m = 0.0;
        if let Some(mean) = mean {
            let mut sum = zero;
            for c in (0..width).step_by(V::LANES) {
                sum = sum + load(t, x, c);
            }
            m = sum.sum() / width as f32;
            *mean = m;
        }
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
        r
    }
}

pub(super) fn forward(context: &mut Context<'_, '_>, op: &NormForward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let row = op.groups * op.width;
    let rows_per_task = rows_per_task(row);
    let job = Forward {
        x: views.f32_rows("x", op.x, row)?,
        weight: views.f32("weight", op.weight)?,
        bias: op.bias.map(|bias| views.f32("bias", bias)).transpose()?,
        groups: op.groups,
        eps: op.eps as f32,
    };
    let mean = match op.kind {
        Normalize::Layer { mean } => {
            Some(Chunks::new(views.f32_mut("mean", mean)?, rows_per_task * op.groups))
        }
        Normalize::Rms => None,
    };
    let parts = (
        Grid::of_rows(views.f32_rows_mut("y", op.y, row)?, rows_per_task, row),
        mean,
        Chunks::new(views.f32_mut("rstd", op.rstd)?, rows_per_task * op.groups),
    );
    context.team.for_each(parts, &job);
    Ok(())
}

struct Backward<'s> {
    x: Rows<'s>,
    weight: &'s [f32],
    /// `None`: it is RMS norm.
    mean: Option<&'s [f32]>,
    rstd: &'s [f32],
    /// `None`: it lies in d_x.
    d_y: Option<Rows<'s>>,
    accumulate: bool,
    groups: usize,
}

/// What a block of rows adds to the gradients of weight and bias.
type Sums<'s> = Option<(&'s mut [f32], &'s mut [f32])>;

impl Job<(Grid<'_>, Option<Chunks<'_, f32>>)> for Backward<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, _: usize, (mut d_x, partial): (Tile<'_>, Option<&mut [f32]>)) {
        let width = self.weight.len();
        let mut sums = partial.map(|partial| {
            partial.fill(0.0);
            partial.split_at_mut(partial.len() / 2)
        });
        let first = d_x.rows().start;
        for i in 0..d_x.rows().len() {
            let row = first + i;
            let (x, d_y) = (self.x.row(row), self.d_y.as_ref().map(|d_y| d_y.row(row)));
            for (group, d_x) in d_x.row(i).chunks_exact_mut(width).enumerate() {
                let x = &x[group * width..][..width];
                let d_y = d_y.map(|d_y| &d_y[group * width..][..width]);
                self.vector::<V>(t, row * self.groups + group, x, d_y, d_x, &mut sums);
            }
        }
    }
}

impl Backward<'_> {
    /// One vector: the one with this number among the statistics.
    #[inline(always)]
    fn vector<V: Vector>(
        &self,
        t: V::Token,
        number: usize,
        x: &[f32],
        d_y: Option<&[f32]>,
        d_x: &mut [f32],
        sums: &mut Sums<'_>,
    ) {
        let (width, zero) = (self.weight.len(), V::splat(t, 0.0));
        let mean = self.mean.map_or(0.0, |mean| mean[number]);
        let (m, r) = (V::splat(t, mean), V::splat(t, self.rstd[number]));

        let (mut sum_g, mut sum_gn) = (zero, zero);
        for c in (0..width).step_by(V::LANES) {
            // Lanes beyond the vector have d_y = 0, and x at the mean: elsewhere n could overflow, and 0 times that.
            let d: V = load(t, d_y.unwrap_or(d_x), c);
            let n = (load_or::<V>(t, x, c, mean) - m) * r;
            let g = d * load(t, self.weight, c);
            sum_g = sum_g + g;
            sum_gn = g.mul_add(n, sum_gn);
            if let Some((d_weight, d_bias)) = sums {
                store(d.mul_add(n, load(t, d_weight, c)), d_weight, c);
                store(d + load(t, d_bias, c), d_bias, c);
            }
        }
        let mean_g = self.mean.map_or(zero, |_| V::splat(t, sum_g.sum() / width as f32));
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

/// At most so many blocks of rows have partial sums of their own.
const BLOCKS: usize = 64;

fn rows_per_block(rows: usize, width: usize) -> usize {
    rows_per_task(width).max(rows.div_ceil(BLOCKS))
}

/// Scratch of the backward pass: the sums of each block, if any are wanted. Of more rows, as even blocks have them, there may be
/// fewer blocks, so there is room for as many as any fewer rows have.
pub(super) fn backward_scratch_floats(op: &NormBackward) -> usize {
    let blocks = op.rows.div_ceil(rows_per_task(op.groups.saturating_mul(op.width)));
    partial_floats(op, blocks.min(BLOCKS))
}

/// The sums of so many blocks.
fn partial_floats(op: &NormBackward, blocks: usize) -> usize {
    if op.d_weight.is_none() && op.d_bias.is_none() {
        return 0;
    }
    blocks.saturating_mul(whole_lines(op.width)).saturating_mul(2)
}

pub(super) fn backward(context: &mut Context<'_, '_>, op: &NormBackward) -> Result<(), CpuError> {
    let views = &mut context.views;
    let row = op.groups * op.width;
    let rows_per_block = rows_per_block(op.rows, row);
    let in_place = op.d_y == op.d_x;
    let mean = match op.kind {
        Normalize::Layer { mean } => Some(views.f32("mean", mean)?),
        Normalize::Rms => None,
    };
    let job = Backward {
        x: views.f32_rows("x", op.x, row)?,
        weight: views.f32("weight", op.weight)?,
        mean,
        rstd: views.f32("rstd", op.rstd)?,
        d_y: if in_place { None } else { Some(views.f32_rows("d_y", op.d_y, row)?) },
        accumulate: op.accumulate,
        groups: op.groups,
    };
    let stride = whole_lines(op.width);
    let used = partial_floats(op, op.rows.div_ceil(rows_per_block));
    let partials = &mut context.scratch.floats(backward_scratch_floats(op))?[..used];
    let parts = (
        Grid::of_rows(views.f32_rows_mut("d_x", op.d_x, row)?, rows_per_block, row),
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
