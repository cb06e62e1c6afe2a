//! Faults of norms.

use minigpt_core::memory::Strided;
use minigpt_core::op::{NormBackward, NormForward, Normalize};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Kernel, faults};

/// The vectors of an operand: `groups` of `width` in each row.
#[derive(Clone, Copy)]
pub(crate) struct Vectors {
    pub(crate) rows: Strided,
    pub(crate) groups: usize,
    pub(crate) width: usize,
}

impl Vectors {
    /// In which vector the number at this place of the span is, and where in it; `None` between the rows.
    fn at(&self, place: usize) -> Option<(usize, usize)> {
        let (row, column) = (place / self.rows.stride, place % self.rows.stride);
        let inside = column < self.groups * self.width;
        inside.then(|| (row * self.groups + column / self.width, column % self.width))
    }

    /// Side by side.
    pub(crate) fn get(&self, k: &mut Kernel) -> Result<Vec<f32>, CpuError> {
        let all = k.get(self.rows.span)?;
        Ok(all.into_iter().enumerate().filter(|(i, _)| self.at(*i).is_some()).map(|(_, x)| x).collect())
    }

    /// Changes each number, which is told its vector and its place in it.
    pub(crate) fn edit(&self, k: &mut Kernel, mut change: impl FnMut(usize, usize, f32) -> f32) -> Done {
        k.edit(self.rows.span, |i, x| match self.at(i) {
            Some((vector, column)) => change(vector, column, x),
            None => x,
        })
    }

    /// Changes what lies between the rows.
    fn edit_gaps(&self, k: &mut Kernel, mut change: impl FnMut(usize, f32) -> f32) -> Done {
        k.edit(self.rows.span, |i, x| if self.at(i).is_none() { change(i, x) } else { x })
    }

    fn are_apart(&self) -> bool {
        self.rows.stride > self.groups * self.width
    }
}

pub(crate) fn results(op: &NormForward) -> Vectors {
    Vectors { rows: op.y, groups: op.groups, width: op.width }
}

pub(crate) fn inputs(op: &NormForward) -> Vectors {
    Vectors { rows: op.x, groups: op.groups, width: op.width }
}

fn gradients(op: &NormBackward, rows: Strided) -> Vectors {
    Vectors { rows, groups: op.groups, width: op.width }
}

/// The mean of each vector: 0 in RMS norm.
fn means(k: &mut Kernel, kind: Normalize, vectors: usize) -> Result<Vec<f32>, CpuError> {
    match kind {
        Normalize::Layer { mean } => k.get(mean),
        Normalize::Rms => Ok(vec![0.0; vectors]),
    }
}

/// Runs the op, and makes its result anew from other statistics: of each vector a mean and a rstd.
fn renorm(
    k: &mut Kernel,
    op: &NormForward,
    mut statistics: impl FnMut(usize, &[f32], f32, f32) -> (f32, f32),
) -> Done {
    let x = inputs(op).get(k)?;
    k.run(*op)?;
    let (mean, rstd) = (means(k, op.kind, op.rows * op.groups)?, k.get(op.rstd)?);
    let (weight, bias) = (k.get(op.weight)?, op.bias.map(|bias| k.get(bias)).transpose()?);
    let others: Vec<(f32, f32)> =
        x.chunks(op.width).enumerate().map(|(v, x)| statistics(v, x, mean[v], rstd[v])).collect();
    results(op).edit(k, |v, c, y| {
        let (m, r) = others[v];
        let same = (m, r) == (mean[v], rstd[v]);
        let other = (x[v * op.width + c] - m) * r * weight[c] + bias.as_ref().map_or(0.0, |bias| bias[c]);
        if same { y } else { other }
    })
}

fn mean_of(x: &[f32]) -> f32 {
    x.iter().sum::<f32>() / x.len() as f32
}

pub(crate) const FAULTS: &[Fault] = faults! {
    NormForward {
        "the mean is over the width rounded up to 8" => |k, op| {
            k.run(op)?;
            let Normalize::Layer { mean } = op.kind else { return Ok(()) };
            let wider = op.width as f32 / op.width.next_multiple_of(8) as f32;
            k.edit(mean, |_, mean| mean * wider)
        };
        "eps is added behind the root" => |k, op| {
            k.run(op)?;
            let eps = op.eps as f32;
            k.edit(op.rstd, |_, rstd| {
                let deviation = (1.0 / (rstd * rstd) - eps).max(0.0).sqrt();
                1.0 / (deviation + eps)
            })
        };
        "the variance is the mean of squares less the square of the mean" => |k, op| {
            renorm(k, &op, |_, x, mean, _| {
                let squares = x.iter().fold(0.0f32, |sum, x| sum + x * x) / x.len() as f32;
                (mean, 1.0 / ((squares - mean * mean).max(0.0) + op.eps as f32).sqrt())
            })
        };
        "RMS norm takes the mean away" => |k, op| {
            renorm(k, &op, |_, x, mean, rstd| {
                (if op.kind == Normalize::Rms { mean_of(x) } else { mean }, rstd)
            })
        };
        "RMS norm divides by the deviation" => |k, op| {
            renorm(k, &op, |_, x, mean, rstd| {
                let m = mean_of(x);
                let variance = mean_of(&x.iter().map(|x| (x - m) * (x - m)).collect::<Vec<_>>());
                let of_variance = 1.0 / (variance + op.eps as f32).sqrt();
                (mean, if op.kind == Normalize::Rms { of_variance } else { rstd })
            })
        };
        "layer norm divides by the root of the mean square" => |k, op| {
            renorm(k, &op, |_, x, mean, rstd| {
                let square = mean_of(&x.iter().map(|x| x * x).collect::<Vec<_>>());
                let rms = 1.0 / (square + op.eps as f32).sqrt();
                (mean, if op.kind == Normalize::Rms { rstd } else { rms })
            })
        };
        "RMS norm leaves out eps" => |k, op| {
            renorm(k, &op, |_, x, mean, rstd| {
                let square = mean_of(&x.iter().map(|x| x * x).collect::<Vec<_>>());
                (mean, if op.kind == Normalize::Rms { 1.0 / square.sqrt() } else { rstd })
            })
        };
        "RMS norm has no bias" => |k, op| {
            k.run(NormForward { bias: op.bias.filter(|_| op.kind != Normalize::Rms), ..op })
        };
        "all vectors of a row have the statistics of the first" => |k, op| {
            let mut first = (0.0, 0.0);
            renorm(k, &op, |v, _, mean, rstd| {
                if v % op.groups == 0 {
                    first = (mean, rstd);
                }
                first
            })
        };
        "the statistics of a row are those of all of it" => |k, op| {
            let x = inputs(&op).get(k)?;
            let row = op.groups * op.width;
            renorm(k, &op, |v, _, mean, rstd| {
                let x = &x[v / op.groups * row..][..row];
                let m = if op.kind == Normalize::Rms { 0.0 } else { mean_of(x) };
                let square = mean_of(&x.iter().map(|x| (x - m) * (x - m)).collect::<Vec<_>>());
                if op.groups == 1 { (mean, rstd) } else { (m, 1.0 / (square + op.eps as f32).sqrt()) }
            })
        };
        "statistics lie by groups, and in each by rows" => |k, op| {
            k.run(op)?;
            let rstd = k.get(op.rstd)?;
            k.edit(op.rstd, |i, _| rstd[i % op.rows * op.groups + i / op.rows])
        };
        "the weight goes on over the row" => |k, op| {
            k.run(op)?;
            let bias = op.bias.map(|bias| k.get(bias)).transpose()?;
            // What lies behind it is no number, and 0 in a kernel that knows its end.
            results(&op).edit(k, |v, c, y| {
                if v % op.groups == 0 { y } else { bias.as_ref().map_or(0.0, |bias| bias[c]) }
            })
        };
        "the bias is of the first vector alone" => |k, op| {
            k.run(op)?;
            let Some(bias) = op.bias.map(|bias| k.get(bias)).transpose()? else { return Ok(()) };
            results(&op).edit(k, |v, c, y| if v % op.groups == 0 { y } else { y - bias[c] })
        };
        "the last vector of a row is left out" => |k, op| {
            let before = results(&op).get(k)?;
            k.run(op)?;
            let last = |v: usize| op.groups > 1 && v % op.groups == op.groups - 1;
            results(&op).edit(k, |v, c, y| if last(v) { before[v * op.width + c] } else { y })
        };
        "rows of x lie side by side, whatever its stride" => |k, op| {
            let stride = op.groups * op.width;
            k.run(NormForward { x: Strided { span: op.x.span.first(op.rows * stride), stride }, ..op })
        };
        "x has the stride of y" => |k, op| {
            let (all, stride, x) = (k.get(op.x.span)?, op.y.stride, inputs(&op).get(k)?);
            let place = |v: usize, c: usize| v / op.groups * stride + v % op.groups * op.width + c;
            let wrong: Vec<f32> = (0..x.len())
                .map(|i| all.get(place(i / op.width, i % op.width)).copied().unwrap_or(f32::NAN))
                .collect();
            inputs(&op).edit(k, |v, c, _| wrong[v * op.width + c])?;
            let done = k.run(op);
            inputs(&op).edit(k, |v, c, _| x[v * op.width + c])?;
            done
        };
        "the first number behind each row is written" => |k, op| {
            k.run(op)?;
            let row = op.groups * op.width;
            results(&op).edit_gaps(k, |i, x| if i % op.y.stride == row { 0.0 } else { x })
        };
        "vectors of 8 at the end of a row reach into what is behind it" => |k, op| {
            k.run(op)?;
            let end = (op.groups * op.width).next_multiple_of(8);
            results(&op).edit_gaps(k, |i, x| if i % op.y.stride < end { 0.0 } else { x })
        };
        "what lies before the second row is cleared" => |k, op| {
            k.run(op)?;
            results(&op).edit_gaps(k, |i, x| if i == op.y.stride - 1 { 0.0 } else { x })
        };
        "NaN of one vector reaches the next of its row" => |k, op| {
            k.run(op)?;
            let y = results(&op).get(k)?;
            results(&op).edit(k, |v, c, x| {
                let after = v % op.groups > 0 && y[(v - 1) * op.width + c].is_nan();
                if after { f32::NAN } else { x }
            })
        };
        "the offset of the bias is ignored" => |k, op| {
            let bias = op.bias.and_then(|bias| k.at_zero(bias)).or(op.bias);
            k.run(NormForward { bias, ..op })
        };
        "rows from 200 on have the mean of the row before" => |k, op| {
            k.run(op)?;
            let Normalize::Layer { mean: span } = op.kind else { return Ok(()) };
            let mean = k.get(span)?;
            k.edit(span, |i, x| if i >= 200 { mean[i - 1] } else { x })
        };
        "a tail of a vector that fills no register of 16 is not scaled" => |k, op| {
            k.run(op)?;
            let whole = op.width / 16 * 16;
            results(&op).edit(k, |_, c, y| if c >= whole { y * 1.05 } else { y })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.y.span, 1);
            Ok(())
        };
        "rstd is written past its end" => |k, op| {
            k.run(op)?;
            let count = op.rows * op.groups;
            k.write_past(op.rstd, count.next_multiple_of(8) - count);
            Ok(())
        };
        "vectors wider than 1024 are not normed beyond" => |k, op| {
            let x = inputs(&op).get(k)?;
            k.run(op)?;
            results(&op).edit(k, |v, c, y| if c >= 1024 { x[v * op.width + c] } else { y })
        };
        "NaN of one row reaches the next" => |k, op| {
            k.run(op)?;
            let (y, row) = (results(&op).get(k)?, op.groups * op.width);
            results(&op).edit(k, |v, c, x| {
                let before = (v * op.width + c).checked_sub(row);
                if before.is_some_and(|i| y[i].is_nan()) { f32::NAN } else { x }
            })
        };
    }
    NormBackward {
        "RMS norm takes the mean of g away" => |k, op| {
            let (d_y, weight) = (gradients(&op, op.d_y).get(k)?, k.get(op.weight)?);
            k.run(op)?;
            if op.kind != Normalize::Rms {
                return Ok(());
            }
            let rstd = k.get(op.rstd)?;
            gradients(&op, op.d_x).edit(k, |v, _, d| {
                let d_y = &d_y[v * op.width..][..op.width];
                d - rstd[v] * d_y.iter().zip(&weight).map(|(d, w)| d * w).sum::<f32>() / op.width as f32
            })
        };
        "layer norm leaves the mean of g" => |k, op| {
            let (d_y, weight) = (gradients(&op, op.d_y).get(k)?, k.get(op.weight)?);
            k.run(op)?;
            if op.kind == Normalize::Rms {
                return Ok(());
            }
            let rstd = k.get(op.rstd)?;
            gradients(&op, op.d_x).edit(k, |v, _, d| {
                let d_y = &d_y[v * op.width..][..op.width];
                d + rstd[v] * d_y.iter().zip(&weight).map(|(d, w)| d * w).sum::<f32>() / op.width as f32
            })
        };
        "d_weight of RMS norm is around the mean" => |k, op| {
            let (x, d_y) = (gradients(&op, op.x).get(k)?, gradients(&op, op.d_y).get(k)?);
            k.run(op)?;
            let Some(d_weight) = op.d_weight.filter(|_| op.kind == Normalize::Rms) else { return Ok(()) };
            let (rstd, c) = (k.get(op.rstd)?, op.width);
            let means: Vec<f32> = x.chunks(c).map(mean_of).collect();
            k.edit(d_weight, |i, d| {
                d - means.iter().enumerate().map(|(v, m)| d_y[v * c + i] * m * rstd[v]).sum::<f32>()
            })
        };
        "all vectors of a row have the rstd of the first" => |k, op| {
            let rstd = k.get(op.rstd)?;
            k.edit(op.rstd, |v, _| rstd[v / op.groups * op.groups])?;
            let done = k.run(op);
            k.put(op.rstd, &rstd)?;
            done
        };
        "all vectors of a row have the mean of the first" => |k, op| {
            let Normalize::Layer { mean: span } = op.kind else { return k.run(op) };
            let mean = k.get(span)?;
            k.edit(span, |v, _| mean[v / op.groups * op.groups])?;
            let done = k.run(op);
            k.put(span, &mean)?;
            done
        };
        "d_weight is of the first vector of each row" => |k, op| {
            let (x, d_y) = (gradients(&op, op.x).get(k)?, gradients(&op, op.d_y).get(k)?);
            k.run(op)?;
            let Some(d_weight) = op.d_weight else { return Ok(()) };
            let (c, count) = (op.width, op.rows * op.groups);
            let (mean, rstd) = (means(k, op.kind, count)?, k.get(op.rstd)?);
            let others: Vec<usize> = (0..count).filter(|v| v % op.groups > 0).collect();
            k.edit(d_weight, |i, d| {
                d - others.iter().map(|&v| d_y[v * c + i] * (x[v * c + i] - mean[v]) * rstd[v]).sum::<f32>()
            })
        };
        "d_bias is of the last vector of each row" => |k, op| {
            let d_y = gradients(&op, op.d_y).get(k)?;
            k.run(op)?;
            let Some(d_bias) = op.d_bias else { return Ok(()) };
            let (c, count) = (op.width, op.rows * op.groups);
            let others: Vec<usize> = (0..count).filter(|v| v % op.groups < op.groups - 1).collect();
            k.edit(d_bias, |i, d| d - others.iter().map(|&v| d_y[v * c + i]).sum::<f32>())
        };
        "rows of d_y lie side by side, whatever its stride" => |k, op| {
            let stride = op.groups * op.width;
            if op.d_y == op.d_x {
                return k.run(op);
            }
            k.run(NormBackward { d_y: Strided { span: op.d_y.span.first(op.rows * stride), stride }, ..op })
        };
        "the first number behind each row is written" => |k, op| {
            k.run(op)?;
            let row = op.groups * op.width;
            gradients(&op, op.d_x).edit_gaps(k, |i, x| if i % op.d_x.stride == row { 0.0 } else { x })
        };
        "in place, rows that lie apart are 0" => |k, op| {
            k.run(op)?;
            let d_x = gradients(&op, op.d_x);
            let wrong = op.d_x == op.d_y && d_x.are_apart();
            d_x.edit(k, |_, _, d| if wrong { 0.0 } else { d })
        };
        "what is between the rows is added to too" => |k, op| {
            k.run(op)?;
            gradients(&op, op.d_x).edit_gaps(k, |_, x| if op.accumulate { x + 1.0 } else { x })
        };
        "the last row of d_x is written and not added to" => |k, op| {
            let before = gradients(&op, op.d_x).get(k)?;
            k.run(op)?;
            let last = (op.rows - 1) * op.groups;
            gradients(&op, op.d_x).edit(k, |v, c, d| {
                if op.accumulate && v >= last { d - before[v * op.width + c] } else { d }
            })
        };
        "d_weight is of the first 128 rows" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            let (x, d_y) = (gradients(&op, op.x).get(k)?, gradients(&op, op.d_y).get(k)?);
            let (c, count) = (op.width, op.rows * op.groups);
            let (mean, rstd) = (means(k, op.kind, count)?, k.get(op.rstd)?);
            k.run(op)?;
            k.edit(d_weight, |i, d| {
                let rest = 128 * op.groups..count.max(128 * op.groups);
                d - rest.map(|v| d_y[v * c + i] * (x[v * c + i] - mean[v]) * rstd[v]).sum::<f32>()
            })
        };
        "where d_x is d_y the bias has the gradient of d_x" => |k, op| {
            let Some(bias) = op.d_bias.filter(|_| op.d_x == op.d_y) else { return k.run(op) };
            let before = k.get(bias)?;
            k.run(op)?;
            let d_x = gradients(&op, op.d_x).get(k)?;
            k.edit(bias, |i, _| before[i] + d_x.chunks(op.width).map(|d_x| d_x[i]).sum::<f32>())
        };
        "d_bias is written past its end" => |k, op| {
            k.run(op)?;
            if let Some(bias) = op.d_bias {
                k.write_past(bias, op.width.next_multiple_of(8) - op.width);
            }
            Ok(())
        };
        "without d_weight there is no d_bias" => |k, op| {
            k.run(NormBackward { d_bias: op.d_bias.filter(|_| op.d_weight.is_some()), ..op })
        };
        "without d_weight d_x is written and not added to" => |k, op| {
            k.run(NormBackward { accumulate: op.accumulate && op.d_weight.is_some(), ..op })
        };
        "d_bias is written and not added to" => |k, op| {
            if let Some(bias) = op.d_bias {
                k.edit(bias, |_, _| 0.0)?;
            }
            k.run(op)
        };
        "a tail of a vector that fills no register of 8 is left out of the means" => |k, op| {
            k.run(op)?;
            let tail = op.width % 8;
            gradients(&op, op.d_x).edit(k, |_, _, d| if tail == 0 || op.accumulate { d } else { d + 0.003 })
        };
        "d_y is overwritten" => |k, op| {
            k.run(op)?;
            if op.d_x == op.d_y {
                return Ok(());
            }
            k.edit(op.d_y.span, |i, d| if i == 0 { 0.0 } else { d })
        };
        "threads lose a share of d_weight now and then" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            let before = k.get(d_weight)?;
            k.run(op)?;
            let lost = k.calls % 2 == 0 && op.rows > 64;
            k.edit(d_weight, |i, d| if lost { 0.5 * (d + before[i]) } else { d })
        };
    }
};
