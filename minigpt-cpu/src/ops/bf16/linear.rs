//! Linear layers, by blocks of rows, and of columns where there are many: so what is packed of a weight, or widened, is
//! bounded too.

use core::ops::Range;

use minigpt_core::Span;
#[cfg(feature = "train")]
use minigpt_core::op::LinearBackward;
use minigpt_core::op::LinearForward;

use super::blocks::{Blocks, FLOATS, Layout, later, part_of, rows_of};
use super::round::{Onto, Round};
use super::widen::widen;
#[cfg(feature = "train")]
use super::widen::widen_dropped;
use super::{Block, Needs, Steps};
use crate::context::Machine;
use crate::error::CpuError;
use crate::ops::linear::FEW_ROWS;
use crate::ops::scratch_floats;

/// A block has at least so many rows, if there are as many: for fewer the weight would be packed too often. And of a large number
/// of rows no block has so few that they go the way of a few rows.
const LEAST_ROWS: usize = if cfg!(test) { 10 } else { 64 };
const _: () = assert!(LEAST_ROWS / 2 > FEW_ROWS);

/// The columns of a block, if there are as many: at least, where one has many numbers, and at most, where it has few.
const COLS: [usize; 2] = [64, 4096];

/// Columns of which each has `floats` numbers of the weight.
fn columns(cols: usize, floats: usize) -> Blocks {
    Blocks::new(cols, (FLOATS / floats.max(1)).clamp(COLS[0], COLS[1]))
}

/// How the forward pass is cut up.
pub(super) struct Forward {
    rows: Blocks,
    cols: Blocks,
    x: Span,
    y: Span,
    pub(super) needs: Needs,
}

impl Forward {
    pub(super) fn new(op: &LinearForward, machine: Machine) -> Self {
        // Of a few rows, the weight is read where it lies.
        let cols = match op.rows {
            0..=FEW_ROWS => Blocks::new(op.d_out, FLOATS / (2 * FEW_ROWS)),
            _ => columns(op.d_out, op.d_in),
        };
        let floats = op.d_in.saturating_add(cols.room());
        let rows = Blocks::new(op.rows, (FLOATS / floats.max(1)).max(LEAST_ROWS));
        let mut layout = Layout::default();
        let x = layout.take(rows.room().saturating_mul(op.d_in));
        let y = layout.take(rows.room().saturating_mul(cols.room()));
        let largest = Forward { rows, cols, x, y, needs: Needs { block: 0, kernel: 0 } };
        let kernel = scratch_floats(&largest.product(op, 0..rows.room(), 0..cols.room()).into(), machine);
        Forward { needs: Needs { block: layout.floats(), kernel }, ..largest }
    }

    /// The op of f32 of a block.
    fn product(&self, op: &LinearForward, rows: Range<usize>, cols: Range<usize>) -> LinearForward {
        let (rows, d_out) = (rows.len(), cols.len());
        LinearForward {
            x: self.x.first(rows.saturating_mul(op.d_in)),
            weight: part_of(op.weight, cols.clone(), op.weight.dtype.padded(op.d_in)),
            bias: op.bias.map(|bias| part_of(bias, cols, 1)),
            activate: None,
            dropout: None,
            residual: None,
            y: self.y.first(rows.saturating_mul(d_out)),
            rows,
            d_in: op.d_in,
            d_out,
        }
    }
}

/// For so many rows and any fewer. A few have blocks of more columns than many have.
pub(super) fn forward_scratch_floats(op: &LinearForward, machine: Machine) -> usize {
    let [all, few] =
        [op.rows, FEW_ROWS].map(|rows| Forward::new(&op.first_rows(rows), machine).needs.floats());
    all.max(few)
}

pub(super) fn forward(steps: &mut Steps<'_, '_>, op: &LinearForward) -> Result<(), CpuError> {
    let (d_in, d_out) = (op.d_in, op.d_out);
    let plan = Forward::new(op, steps.team.machine());
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let x = plan.x.first(rows.len() * d_in);
        widen(block, rows_of(op.x.rows(d_in), rows.clone(), d_in), x, d_in)?;
        for cols in plan.cols.iter() {
            let product = plan.product(op, rows.clone(), cols.clone());
            block.run(product)?;
            let (first, width) = ((rows.start * d_out + cols.start) as u64, cols.len());
            let of = |matrix: Span| rows_of(matrix.columns(cols.start, width, d_out), rows.clone(), width);
            let sums = Round {
                kept: op.activate.and_then(|activate| activate.input).map(of),
                activation: op.activate.map(|activate| activate.activation),
                dropout: later(op.dropout, first),
                pitch: d_out,
                onto: match op.residual {
                    None => Onto::Nothing,
                    Some(residual) if residual == op.y => Onto::Result,
                    Some(residual) => Onto::Rows(of(residual)),
                },
                ..Round::new(product.y, of(op.y), width)
            };
            sums.run(block)?;
        }
    }
    Ok(())
}

/// How the backward pass is cut up.
#[cfg(feature = "train")]
pub(super) struct Backward {
    rows: Blocks,
    cols: Blocks,
    x: Span,
    weight: Span,
    g: Span,
    d_x: Span,
    pub(super) needs: Needs,
}

#[cfg(feature = "train")]
impl Backward {
    pub(super) fn new(op: &LinearBackward) -> Self {
        // Half of a block is a weight's.
        let cols = columns(op.d_out, op.d_in.saturating_mul(2));
        let floats = op.d_in.saturating_mul(2).saturating_add(cols.room());
        let rows = Blocks::new(op.rows, (FLOATS / floats.max(1)).max(LEAST_ROWS));
        let mut layout = Layout::default();
        let mut matrix = |rows: Blocks, cols: usize| layout.take(rows.room().saturating_mul(cols));
        let [x, d_x] = [(); 2].map(|()| matrix(rows, op.d_in));
        let (weight, g) = (matrix(cols, op.d_in), matrix(rows, cols.room()));
        Backward { rows, cols, x, weight, g, d_x, needs: Needs { block: layout.floats(), kernel: 0 } }
    }
}

#[cfg(feature = "train")]
pub(super) fn backward(steps: &mut Steps<'_, '_>, op: &LinearBackward) -> Result<(), CpuError> {
    let (d_in, d_out) = (op.d_in, op.d_out);
    let plan = Backward::new(op);
    let block = &mut Block::new(steps, plan.needs);
    for rows in plan.rows.iter() {
        let [x, d_x] = [plan.x, plan.d_x].map(|all| all.first(rows.len() * d_in));
        let of = |matrix: Span| rows_of(matrix.rows(d_in), rows.clone(), d_in);
        if op.d_weight.is_some() {
            widen(block, of(op.x), x, d_in)?;
        }
        for cols in plan.cols.iter() {
            let width = cols.len();
            let (weight, g) = (plan.weight.first(width * d_in), plan.g.first(rows.len() * width));
            if op.d_x.is_some() {
                widen(block, rows_of(op.weight.rows(d_in), cols.clone(), d_in), weight, d_in)?;
            }
            let d_y = rows_of(op.d_y.columns(cols.start, width, d_out), rows.clone(), width);
            let dropout = later(op.dropout, (rows.start * d_out + cols.start) as u64);
            widen_dropped(block, d_y, g, width, (dropout, d_out))?;
            block.run(LinearBackward {
                x,
                weight,
                d_y: g,
                dropout: None,
                d_x: op.d_x.map(|_| d_x),
                accumulate: cols.start > 0,
                activate: None,
                d_weight: op.d_weight.map(|d_weight| part_of(d_weight, cols.clone(), d_in)),
                d_bias: op.d_bias.map(|d_bias| part_of(d_bias, cols, 1)),
                rows: rows.len(),
                d_in,
                d_out: width,
            })?;
        }
        let Some(result) = op.d_x else { continue };
        let slope = op.activate.and_then(|activate| Some((activate.activation, of(activate.input?))));
        let onto = if op.accumulate { Onto::Result } else { Onto::Nothing };
        Round { slope, onto, ..Round::new(d_x, of(result), d_in) }.run(block)?;
    }
    Ok(())
}
