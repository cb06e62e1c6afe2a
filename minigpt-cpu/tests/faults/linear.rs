//! Faults of linear layers and their activations.

use minigpt_core::op::{ActivationForward, LinearBackward, LinearForward};
use minigpt_core::{Activation, Dtype, Op};

use crate::kernel::{Done, Fault, Kernel, faults};

/// The product of `x` and the weight over a part of the depth only, as the layer itself, without what comes after it.
fn without(
    kernel: &mut Kernel,
    op: LinearForward,
    rows: impl Fn(usize) -> bool,
    depth: impl Fn(usize) -> bool,
) -> Done {
    let x = kernel.get(op.x)?;
    kernel.edit(op.x, |i, x| if rows(i / op.d_in) && depth(i % op.d_in) { 0.0 } else { x })?;
    let done = kernel.run(op);
    kernel.put(op.x, &x)?;
    done
}

pub(crate) const FAULTS: &[Fault] = faults! {
    LinearForward {
        "one float written past y" => |k, op| {
            k.run(op)?;
            k.write_past(op.y, 1);
            Ok(())
        };
        "whole vector stores past y" => |k, op| {
            k.run(op)?;
            k.write_past(op.y, op.d_out.next_multiple_of(16) - op.d_out);
            Ok(())
        };
        "rows from 300 on are wrong" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if i / op.d_out >= 300 { y + 0.3 } else { y })
        };
        "rows from 512 on are wrong" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if i / op.d_out >= 512 { y + 0.3 } else { y })
        };
        "inputs wider than 512 lose what is beyond" => |k, op| without(k, op, |_| true, |i| i >= 512);
        "outputs wider than 384 are wrong beyond" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if i % op.d_out >= 384 { y * 1.01 + 0.01 } else { y })
        };
        "the last column is wrong where the width leaves 15 of 16" => |k, op| {
            k.run(op)?;
            let last = op.d_out - 1;
            k.edit(op.y, |i, y| if op.d_out % 16 == 15 && i % op.d_out == last { y + 0.3 } else { y })
        };
        "scratch of an earlier call is used, for large outputs" => |k, op| {
            if op.rows * op.d_out < 40_000 { k.run(op) } else { k.run_on_stale(op, op.x) }
        };
        "the halves of the depth race, at large shapes" => |k, op| {
            if op.d_in < 512 || op.rows * op.d_out < 40_000 || k.calls % 2 == 0 {
                return k.run(op);
            }
            let half = op.d_in / 2;
            without(k, op, |row| row % 64 == 63, |i| i >= half)
        };
        "a tail of the depth that fills no vector of 8 is dropped" => |k, op| {
            let whole = op.d_in / 8 * 8;
            without(k, op, |_| true, |i| i >= whole)
        };
        "the offset of the bias is ignored" => |k, op| {
            let bias = op.bias.and_then(|bias| k.at_zero(bias)).or(op.bias);
            k.run(LinearForward { bias, ..op })
        };
        "the offset of the weight is ignored" => |k, op| {
            let weight = k.at_zero(op.weight).unwrap_or(op.weight);
            k.run(LinearForward { weight, ..op }).or_else(|_| k.run(op))
        };
        "the offset of the result is ignored" => |k, op| {
            k.run(op)?;
            let Some(there) = k.at_zero(op.y) else { return Ok(()) };
            let y = k.get(op.y)?;
            k.put(there, &y)?;
            k.edit(op.y, |_, _| f32::NAN)
        };
        "the residual is forgotten where there is a bias" => |k, op| match (op.bias, op.residual) {
            (Some(_), Some(residual)) if residual != op.y => k.run(LinearForward { residual: None, ..op }),
            _ => k.run(op),
        };
        "the input of the activation is not kept in the last row" => |k, op| {
            k.run(op)?;
            let Some(input) = op.activate.and_then(|activate| activate.input) else { return Ok(()) };
            let last = (op.rows - 1) * op.d_out;
            k.edit(input, |i, x| if i >= last { 0.0 } else { x })
        };
        "the first index of a mask is cut to 32 bits" => |k, op| {
            let dropout = op.dropout.map(|d| minigpt_core::op::Dropout { first: u64::from(d.first as u32), ..d });
            k.run(LinearForward { dropout, ..op })
        };
        "a mask begins anew in each row" => |k, op| {
            let Some(_) = op.dropout else { return k.run(op) };
            if op.residual == Some(op.y) {
                return k.run(op);
            }
            for row in 0..op.rows {
                let part = |span: minigpt_core::Span, width: usize| span.slice(row * width, width);
                k.run(LinearForward {
                    x: part(op.x, op.d_in),
                    residual: op.residual.map(|span| part(span, op.d_out)),
                    y: part(op.y, op.d_out),
                    activate: op.activate.map(|a| minigpt_core::op::Activate {
                        input: a.input.map(|span| part(span, op.d_out)),
                        ..a
                    }),
                    rows: 1,
                    ..op
                })?;
            }
            Ok(())
        };
        "sums of long products are kept in bf16" => |k, op| {
            k.run(op)?;
            if op.d_in <= 256 {
                return Ok(());
            }
            k.edit(op.y, |_, y| f32::from_bits(y.to_bits() & 0xffff_0000))
        };
        "a weight in blocks has the scale of the first block for all" => |k, op| {
            k.run(op)?;
            if !matches!(op.weight.dtype, Dtype::Q8_0 | Dtype::Q4_0) || op.d_in <= 32 {
                return Ok(());
            }
            k.edit(op.y, |_, y| y * 1.3 + 0.1)
        };
        "the residual is added twice where it is the result" => |k, op| {
            if op.residual != Some(op.y) || op.d_out <= 64 {
                return k.run(op);
            }
            let before = k.get(op.y)?;
            k.run(op)?;
            k.edit(op.y, |i, y| y + before[i])
        };
        "bias and activation change places" => |k, op| match (op.bias, op.activate) {
            (Some(bias), Some(_)) if op.dropout.is_none() => {
                k.run(LinearForward { bias: None, ..op })?;
                let bias = k.get(bias)?;
                k.edit(op.y, |i, y| y + bias[i % op.d_out])
            }
            _ => k.run(op),
        };
        "NaN of one row reaches the next" => |k, op| {
            k.run(op)?;
            let y = k.get(op.y)?;
            k.edit(op.y, |i, x| if i >= op.d_out && y[i - op.d_out].is_nan() { f32::NAN } else { x })
        };
        "an operand that is only read is changed" => |k, op| {
            k.run(op)?;
            k.edit(op.x, |i, x| if i + 1 == op.rows * op.d_in { x + 1.0 } else { x })
        };
        "a single row with many columns is left unfinished" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if op.rows == 1 && i >= 256 { 0.0 * y } else { y })
        };
    }
    LinearBackward {
        "d_x is written and not added to, where it is wide" => |k, op| {
            k.run(LinearBackward { accumulate: op.accumulate && op.d_in <= 64, ..op })
        };
        "d_weight is written and not added to, for many rows" => |k, op| {
            if let Some(d_weight) = op.d_weight.filter(|_| op.rows > 128) {
                k.edit(d_weight, |_, _| 0.0)?;
            }
            k.run(op)
        };
        "d_bias misses the rows beyond 256" => |k, op| {
            let bias = op.d_bias.filter(|_| op.rows > 256 && op.dropout.is_none());
            k.run(op)?;
            let Some(bias) = bias else { return Ok(()) };
            let d_y = k.get(op.d_y)?;
            k.edit(bias, |i, b| b - (256..op.rows).map(|r| d_y[r * op.d_out + i]).sum::<f32>())
        };
        "the last column of d_weight is dropped where one is left over" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            let before = k.get(d_weight)?;
            k.run(op)?;
            k.edit(d_weight, |i, w| if op.d_in % 16 == 1 && i % op.d_in == op.d_in - 1 { before[i] } else { w })
        };
        "the mask is forgotten in d_bias" => |k, op| {
            let (Some(_), Some(bias)) = (op.dropout, op.d_bias) else { return k.run(op) };
            let before = k.get(bias)?;
            k.run(op)?;
            let d_y = k.get(op.d_y)?;
            k.edit(bias, |i, _| before[i] + (0..op.rows).map(|r| d_y[r * op.d_out + i]).sum::<f32>())
        };
        "the derivative of one GELU is used for the other" => |k, op| {
            let activate = op.activate.map(|a| minigpt_core::op::Activate {
                activation: match a.activation {
                    Activation::GeluErf => Activation::GeluTanh,
                    other => other,
                },
                ..a
            });
            k.run(LinearBackward { activate, ..op })
        };
        "d_x is written past its end" => |k, op| {
            k.run(op)?;
            if let Some(d_x) = op.d_x {
                k.write_past(d_x, op.d_in.next_multiple_of(8) - op.d_in);
            }
            Ok(())
        };
        "d_weight is written past its end" => |k, op| {
            k.run(op)?;
            if let Some(d_weight) = op.d_weight {
                k.write_past(d_weight, 1);
            }
            Ok(())
        };
        "without d_weight there is no d_bias" => |k, op| {
            k.run(LinearBackward { d_bias: op.d_bias.filter(|_| op.d_weight.is_some()), ..op })
        };
        "without d_weight the mask is forgotten" => |k, op| {
            k.run(LinearBackward { dropout: op.dropout.filter(|_| op.d_weight.is_some()), ..op })
        };
        "the mask is applied to d_y where it lies" => |k, op| {
            k.run(op)?;
            if op.dropout.is_some() {
                k.edit(op.d_y, |i, d| if i % 7 == 0 { 0.0 } else { d })?;
            }
            Ok(())
        };
        "blocks of d_weight race, at large shapes" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            let before = k.get(d_weight)?;
            k.run(op)?;
            let large = op.d_in * op.d_out >= 100_000 && k.calls % 2 == 1;
            k.edit(d_weight, |i, w| if large && i % 4096 == 4095 { before[i] } else { w })
        };
        "scratch of an earlier call is used, for many rows" => |k, op| {
            if op.rows < 200 { k.run(op) } else { k.run_on_stale(op, op.d_y) }
        };
        "columns of the gradient beyond 512 are left out of d_x" => |k, op| {
            let Some(d_x) = op.d_x.filter(|_| op.d_out > 512 && op.dropout.is_none() && op.activate.is_none()) else {
                return k.run(op);
            };
            let (d_y, weight) = (k.get(op.d_y)?, k.get(op.weight)?);
            k.run(op)?;
            k.edit(d_x, |i, d| {
                let (row, column) = (i / op.d_in, i % op.d_in);
                d - (512..op.d_out).map(|o| d_y[row * op.d_out + o] * weight[o * op.d_in + column]).sum::<f32>()
            })
        };
    }
    ActivationForward {
        "its bits are not those of the linear layer" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |_, y| if y == 0.0 { y } else { f32::from_bits(y.to_bits() ^ 1) })
        };
        "a tail that fills no vector of 8 is left out" => |k, op| {
            let before = k.get(op.y)?;
            k.run(op)?;
            let whole = op.rows * op.width / 8 * 8;
            k.edit(op.y, |i, y| if i >= whole { before[i] } else { y })
        };
        "one GELU is taken for the other" => |k, op| {
            let activation = match op.activation {
                Activation::GeluTanh => Activation::GeluErf,
                other => other,
            };
            k.run(ActivationForward { activation, ..op })
        };
        "the result is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.y, 3);
            Ok(())
        };
        "large inputs overflow" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if x[i].abs() > 12.0 { f32::NAN } else { y })
        };
        "more than 65,536 numbers are not all done" => |k, op| {
            let before = k.get(op.y)?;
            k.run(Op::from(op))?;
            k.edit(op.y, |i, y| if i >= 65_536 { before[i] } else { y })
        };
    }
};
