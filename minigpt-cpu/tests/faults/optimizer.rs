//! Faults of the optimizers.

use minigpt_core::Span;
use minigpt_core::op::{AdamW, Descend, Momentum, NewtonSchulz, Sgd, counter, scalar};

use crate::kernel::{Done, Fault, Kernel, faults};

/// Whether the step is applied.
fn applies(kernel: &mut Kernel, scalars: Span) -> Result<bool, minigpt_cpu::CpuError> {
    Ok(kernel.get(scalars)?[scalar::APPLY] != 0.0)
}

/// Runs the op with another number of updates.
fn run_later(kernel: &mut Kernel, op: impl Into<minigpt_core::Op>, counters: Span, by: u32) -> Done {
    let mut words = kernel.words(counters)?;
    words[counter::UPDATES] = words[counter::UPDATES].wrapping_add(by);
    kernel.run_on_words(op, &[(counters, words)])
}

/// The transpose of a matrix of so many rows.
fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    let cols = x.len() / rows;
    (0..x.len()).map(|i| x[i % rows * cols + i / rows]).collect()
}

pub(crate) const FAULTS: &[Fault] = faults! {
    AdamW {
        "there is no decay" => |k, op| k.run(AdamW { weight_decay: 0.0, ..op });
        "all parameters decay" => |k, op| k.run(AdamW { weight_decay: op.weight_decay.max(0.1), ..op });
        "the decay does not know the factor on the rate" => |k, op| {
            k.run(AdamW { weight_decay: op.weight_decay / op.rate, ..op })
        };
        "the factor on the rate is ignored" => |k, op| k.run(AdamW { rate: 1.0, ..op });
        "the corrections are those of the update before" => |k, op| run_later(k, op, op.counters, u32::MAX);
        "eps stands under the root" => |k, op| {
            let (before, scalars) = (k.get(op.params)?, k.get(op.scalars)?);
            let updates = k.words(op.counters)?[counter::UPDATES];
            k.run(op)?;
            let (m, v) = (k.get(op.m)?, k.get(op.v)?);
            if scalars[scalar::APPLY] == 0.0 {
                return Ok(());
            }
            let correction = |beta: f64| (1.0 - beta.powi(updates as i32)) as f32;
            let (first, second) = (correction(op.beta1), correction(op.beta2));
            k.edit(op.params, |i, _| {
                let (m, v) = (m[i] / first, v[i] / second);
                let rate = scalars[scalar::LEARNING_RATE] * op.rate as f32;
                before[i] - rate * (m / (v + op.eps as f32).sqrt() + op.weight_decay as f32 * before[i])
            })
        };
        "a tail that fills no vector of 16 is not updated" => |k, op| {
            let before = k.get(op.params)?;
            k.run(op)?;
            let whole = op.params.len / 16 * 16;
            k.edit(op.params, |i, x| if i >= whole { before[i] } else { x })
        };
        "a step that is skipped still decays" => |k, op| {
            let apply = applies(k, op.scalars)?;
            k.run(op)?;
            k.edit(op.params, |_, x| if apply { x } else { x * 0.999 })
        };
        "a gradient that is not finite gets through a step that is skipped" => |k, op| {
            let apply = applies(k, op.scalars)?;
            k.run(op)?;
            let grads = k.get(op.grads)?;
            k.edit(op.m, |i, x| if apply { x } else { x + 0.0 * grads[i] })
        };
        "the moments take the gradient without its scale" => |k, op| {
            let (before, apply) = (k.get(op.m)?, applies(k, op.scalars)?);
            k.run(op)?;
            let (grads, beta1) = (k.get(op.grads)?, op.beta1 as f32);
            k.edit(op.m, |i, x| if apply { beta1 * before[i] + (1.0 - beta1) * grads[i] } else { x })
        };
        "more than 65,536 parameters are not all updated" => |k, op| {
            let before = k.get(op.params)?;
            k.run(op)?;
            k.edit(op.params, |i, x| if i >= 65_536 { before[i] } else { x })
        };
        "the gradient is cleared" => |k, op| {
            k.run(op)?;
            k.edit(op.grads, |i, g| if i == 0 { 0.0 } else { g })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.v, op.params.len.next_multiple_of(8) - op.params.len);
            Ok(())
        };
    }
    Sgd {
        "it never looks ahead" => |k, op| k.run(Sgd { nesterov: false, ..op });
        "it always looks ahead" => |k, op| k.run(Sgd { nesterov: true, ..op });
        "the velocity stays as it is" => |k, op| {
            let Some(velocity) = op.velocity else { return k.run(op) };
            let before = k.get(velocity)?;
            k.run(op)?;
            k.put(velocity, &before)
        };
        "the velocity takes but a share of the gradient" => |k, op| {
            let (Some(velocity), apply) = (op.velocity, applies(k, op.scalars)?) else { return k.run(op) };
            let (before, momentum) = (k.get(velocity)?, op.momentum as f32);
            k.run(op)?;
            k.edit(velocity, |i, v| {
                if apply { momentum * before[i] + (1.0 - momentum) * (v - momentum * before[i]) } else { v }
            })
        };
        "there is no decay" => |k, op| k.run(Sgd { weight_decay: 0.0, ..op });
        "the factor on the rate is ignored" => |k, op| k.run(Sgd { rate: 1.0, ..op });
        "a step that is skipped moves on along the velocity" => |k, op| {
            let apply = applies(k, op.scalars)?;
            k.run(op)?;
            k.edit(op.params, |_, x| if apply { x } else { x - 1e-3 })
        };
        "a tail that fills no vector of 8 is not updated" => |k, op| {
            let before = k.get(op.params)?;
            k.run(op)?;
            let whole = op.params.len / 8 * 8;
            k.edit(op.params, |i, x| if i >= whole { before[i] } else { x })
        };
        "without a velocity the gradient has no scale" => |k, op| {
            let (before, scalars) = (k.get(op.params)?, k.get(op.scalars)?);
            k.run(op)?;
            let wrong = op.velocity.is_none() && scalars[scalar::APPLY] != 0.0;
            let grads = k.get(op.grads)?;
            let rate = scalars[scalar::LEARNING_RATE] * op.rate as f32;
            k.edit(op.params, |i, x| if wrong { before[i] - rate * grads[i] } else { x })
        };
        "more than 65,536 parameters are not all updated" => |k, op| {
            let before = k.get(op.params)?;
            k.run(op)?;
            k.edit(op.params, |i, x| if i >= 65_536 { before[i] } else { x })
        };
    }
    Momentum {
        "it never looks ahead" => |k, op| k.run(Momentum { nesterov: false, ..op });
        "it always looks ahead" => |k, op| k.run(Momentum { nesterov: true, ..op });
        "the direction of a step that is skipped is left from the last one" => |k, op| {
            let (before, apply) = (k.get(op.direction)?, applies(k, op.scalars)?);
            k.run(op)?;
            k.edit(op.direction, |i, d| if apply { d } else { before[i] })
        };
        "the velocity of a step that is skipped fades" => |k, op| {
            let apply = applies(k, op.scalars)?;
            k.run(op)?;
            k.edit(op.velocity, |_, v| if apply { v } else { v * op.momentum as f32 })
        };
        "the gradient has no scale" => |k, op| {
            let (before, apply) = (k.get(op.velocity)?, applies(k, op.scalars)?);
            k.run(op)?;
            let (grads, momentum) = (k.get(op.grads)?, op.momentum as f32);
            k.edit(op.velocity, |i, v| if apply { momentum * before[i] + grads[i] } else { v })
        };
        "a tail that fills no vector of 16 has no direction" => |k, op| {
            k.run(op)?;
            let whole = op.direction.len / 16 * 16;
            k.edit(op.direction, |i, d| if i >= whole { 0.0 } else { d })
        };
        "the direction is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.direction, op.direction.len.next_multiple_of(8) - op.direction.len);
            Ok(())
        };
    }
    NewtonSchulz {
        "one iteration is left out" => |k, op| k.run(NewtonSchulz { steps: op.steps.saturating_sub(1), ..op });
        "one iteration is too many" => |k, op| k.run(NewtonSchulz { steps: op.steps + 1, ..op });
        "after an odd number of iterations the result lies elsewhere" => |k, op| {
            let even = op.steps - op.steps % 2;
            k.run(NewtonSchulz { steps: even, ..op })
        };
        "a tall matrix is read as if it were wide" => |k, op| {
            if op.rows <= op.cols {
                return k.run(op);
            }
            k.run(NewtonSchulz { rows: op.cols, cols: op.rows, ..op })
        };
        "a tall matrix is left transposed" => |k, op| {
            k.run(op)?;
            if op.rows <= op.cols {
                return Ok(());
            }
            let x = transposed(&k.get(op.x)?, op.rows);
            k.put(op.x, &x)
        };
        "squares overflow in the norm" => |k, op| {
            let large = k.get(op.x)?.iter().any(|x| x.abs() > 1e19);
            k.run(op)?;
            k.edit(op.x, |_, x| if large { 0.0 } else { x })
        };
        "nothing is added to the norm" => |k, op| {
            let x = k.get(op.x)?;
            let norm = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
            if norm < 1e-4 && norm > 0.0 {
                k.edit(op.x, |_, x| (f64::from(x) / norm) as f32)?;
            }
            k.run(op)
        };
        "of zeros comes NaN" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            let zero_row = |i: usize| x[i / op.cols * op.cols..][..op.cols].iter().all(|x| *x == 0.0);
            let wrong: Vec<bool> = (0..x.len()).map(zero_row).collect();
            k.edit(op.x, |i, x| if wrong[i] { f32::NAN } else { x })
        };
        "the last row of an odd number is left as it was divided" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            let last = op.rows % 2 == 1 && op.rows > 1;
            let begin = (op.rows - 1) * op.cols;
            k.edit(op.x, |i, y| if last && i >= begin { x[i] } else { y })
        };
        "a tail of columns that fills no vector of 16 is 0" => |k, op| {
            k.run(op)?;
            let whole = op.cols / 16 * 16;
            k.edit(op.x, |i, x| if whole > 0 && i % op.cols >= whole { 0.0 } else { x })
        };
        "rows from 128 on are left out" => |k, op| {
            k.run(op)?;
            k.edit(op.x, |i, x| if i / op.cols >= 128 { 0.0 } else { x })
        };
        "depths beyond 384 are not all summed" => |k, op| {
            k.run(op)?;
            k.edit(op.x, |_, x| if op.rows.max(op.cols) > 384 && op.steps > 0 { x * 1.01 } else { x })
        };
        "NaN is passed over" => |k, op| {
            k.edit(op.x, |_, x| if x.is_nan() { 0.0 } else { x })?;
            k.run(op)
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.x, op.x.len.next_multiple_of(8) - op.x.len);
            Ok(())
        };
    }
    Descend {
        "the direction has no scale" => |k, op| k.run(Descend { scale: 1.0, ..op });
        "the decay has the scale too" => |k, op| k.run(Descend { weight_decay: op.weight_decay * op.scale, ..op });
        "there is no decay" => |k, op| k.run(Descend { weight_decay: 0.0, ..op });
        "the factor on the rate is ignored" => |k, op| k.run(Descend { rate: 1.0, ..op });
        "it goes up" => |k, op| k.run(Descend { scale: -op.scale, ..op });
        "the direction takes the gradient's scale" => |k, op| {
            let scale = k.get(op.scalars)?[scalar::GRAD_SCALE];
            k.run(Descend { scale: op.scale * f64::from(scale), ..op })
        };
        "a step that is skipped still decays" => |k, op| {
            let apply = applies(k, op.scalars)?;
            k.run(op)?;
            k.edit(op.params, |_, x| if apply { x } else { x * 0.999 })
        };
        "a tail that fills no vector of 16 is not updated" => |k, op| {
            let before = k.get(op.params)?;
            k.run(op)?;
            let whole = op.params.len / 16 * 16;
            k.edit(op.params, |i, x| if i >= whole { before[i] } else { x })
        };
    }
    Average {
        "the first updates keep as much as the others" => |k, op| {
            run_later(k, op, op.counters, 1 << 24)
        };
        "the number of the update is one too small" => |k, op| run_later(k, op, op.counters, u32::MAX);
        "a step that is skipped counts too" => |k, op| {
            let (apply, params) = (applies(k, op.scalars)?, k.get(op.params)?);
            k.run(op)?;
            k.edit(op.average, |i, a| if apply { a } else { 0.5 * (a + params[i]) })
        };
        "what stays and what comes are exchanged" => |k, op| {
            let (before, apply, params) = (k.get(op.average)?, applies(k, op.scalars)?, k.get(op.params)?);
            k.run(op)?;
            k.edit(op.average, |i, a| if apply { before[i] + params[i] - a } else { a })
        };
        "a tail that fills no vector of 8 stays" => |k, op| {
            let before = k.get(op.average)?;
            k.run(op)?;
            let whole = op.average.len / 8 * 8;
            k.edit(op.average, |i, a| if i >= whole { before[i] } else { a })
        };
        "the weights become the average" => |k, op| {
            k.run(op)?;
            let average = k.get(op.average)?;
            k.put(op.params, &average)
        };
    }
};
