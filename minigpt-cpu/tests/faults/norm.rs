//! Faults of layer norms.

use minigpt_core::op::{NormBackward, NormForward};

use crate::kernel::{Fault, faults};

pub(crate) const FAULTS: &[Fault] = faults! {
    NormForward {
        "the mean is over the width rounded up to 8" => |k, op| {
            k.run(op)?;
            let wider = op.width as f32 / op.width.next_multiple_of(8) as f32;
            k.edit(op.mean, |_, mean| mean * wider)
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
            let x = k.get(op.x)?;
            k.run(op)?;
            let (mean, rstd, c) = (k.get(op.mean)?, k.get(op.rstd)?, op.width);
            let (weight, bias) = (k.get(op.weight)?, op.bias.map(|bias| k.get(bias)).transpose()?);
            let cancelled: Vec<f32> = (0..op.rows)
                .map(|row| {
                    let values = &x[row * c..][..c];
                    let squares = values.iter().fold(0.0f32, |sum, x| sum + x * x) / c as f32;
                    1.0 / ((squares - mean[row] * mean[row]).max(0.0) + op.eps as f32).sqrt()
                })
                .collect();
            let _ = rstd;
            k.put(op.rstd, &cancelled)?;
            k.edit(op.y, |i, _| {
                let row = i / c;
                let normal = (x[i] - mean[row]) * cancelled[row] * weight[i % c];
                normal + bias.as_ref().map_or(0.0, |bias| bias[i % c])
            })
        };
        "the offset of the bias is ignored" => |k, op| {
            let bias = op.bias.and_then(|bias| k.at_zero(bias)).or(op.bias);
            k.run(NormForward { bias, ..op })
        };
        "rows from 200 on have the mean of the row before" => |k, op| {
            k.run(op)?;
            let mean = k.get(op.mean)?;
            k.edit(op.mean, |i, x| if i >= 200 { mean[i - 1] } else { x })
        };
        "a tail of a row that fills no vector of 16 is not scaled" => |k, op| {
            k.run(op)?;
            let whole = op.width / 16 * 16;
            k.edit(op.y, |i, y| if i % op.width >= whole { y * 1.05 } else { y })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.y, 1);
            Ok(())
        };
        "rstd is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.rstd, op.rows.next_multiple_of(8) - op.rows);
            Ok(())
        };
        "rows wider than 1024 are not normed beyond" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if i % op.width >= 1024 { x[i] } else { y })
        };
        "NaN of one row reaches the next" => |k, op| {
            k.run(op)?;
            let y = k.get(op.y)?;
            k.edit(op.y, |i, x| if i >= op.width && y[i - op.width].is_nan() { f32::NAN } else { x })
        };
    }
    NormBackward {
        "the last row of d_x is written and not added to" => |k, op| {
            let before = k.get(op.d_x)?;
            k.run(op)?;
            let last = (op.rows - 1) * op.width;
            k.edit(op.d_x, |i, d| if op.accumulate && i >= last { d - before[i] } else { d })
        };
        "d_weight is of the first 128 rows" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            let (x, d_y, mean, rstd) = (k.get(op.x)?, k.get(op.d_y)?, k.get(op.mean)?, k.get(op.rstd)?);
            k.run(op)?;
            let c = op.width;
            k.edit(d_weight, |i, d| {
                d - (128..op.rows).map(|r| d_y[r * c + i] * (x[r * c + i] - mean[r]) * rstd[r]).sum::<f32>()
            })
        };
        "where d_x is d_y the bias has the gradient of d_x" => |k, op| {
            let Some(bias) = op.d_bias.filter(|_| op.d_x == op.d_y) else { return k.run(op) };
            let before = k.get(bias)?;
            k.run(op)?;
            let (d_x, c) = (k.get(op.d_x)?, op.width);
            k.edit(bias, |i, _| before[i] + (0..op.rows).map(|r| d_x[r * c + i]).sum::<f32>())
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
        "a tail of a row that fills no vector of 8 is left out of the means" => |k, op| {
            k.run(op)?;
            let tail = op.width % 8;
            k.edit(op.d_x, |_, d| if tail == 0 || op.accumulate { d } else { d + 0.003 })
        };
        "d_y is overwritten" => |k, op| {
            k.run(op)?;
            if op.d_x == op.d_y { Ok(()) } else { k.edit(op.d_y, |i, d| if i == 0 { 0.0 } else { d }) }
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
