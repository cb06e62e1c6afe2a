//! Faults of what closes a step: the loss, the norm, the counters.

use minigpt_core::op::{Fill, FinishStep, IGNORE, Narrow, counter, scalar};
use minigpt_cpu::CpuError;

use crate::kernel::{Fault, Kernel, faults};

/// Runs the op on other numbers, of each of which `f` changes the bits.
fn run_on_bits(kernel: &mut Kernel, op: Narrow, f: impl Fn(u32) -> u32) -> Result<(), CpuError> {
    let values = kernel.get(op.from)?;
    let others: Vec<f32> = values.iter().map(|x| f32::from_bits(f(x.to_bits()))).collect();
    kernel.put(op.from, &others)?;
    kernel.run(op)?;
    kernel.put(op.from, &values)
}

pub(crate) const FAULTS: &[Fault] = faults! {
    CrossEntropy {
        "rows that are ignored are counted" => |k, op| {
            let ignored = k.words(op.targets)?.iter().filter(|&&target| target == IGNORE).count();
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::TARGETS { x + ignored as f32 } else { x })
        };
        "the largest logit is that of the first 1024" => |k, op| {
            let logits = k.get(op.logits)?;
            k.run(op)?;
            let v = op.vocab;
            let over = (0..op.rows).any(|row| {
                let most = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let row = &logits[row * v..][..v];
                v > 1024 && most(row) > most(&row[..1024]) + 88.0
            });
            k.edit(op.scalars, |i, x| if over && i == scalar::LOSS_SUM { f32::INFINITY } else { x })
        };
        "a row that is ignored keeps what was there" => |k, op| {
            let Some(d_logits) = op.d_logits else { return k.run(op) };
            let (before, targets) = (k.get(d_logits)?, k.words(op.targets)?);
            k.run(op)?;
            k.edit(d_logits, |i, d| if targets[i / op.vocab] == IGNORE { before[i] } else { d })
        };
        "where the gradient takes the place of the logits the losses are of the gradient" => |k, op| {
            k.run(op)?;
            let Some(losses) = op.losses.filter(|_| op.d_logits == Some(op.logits)) else { return Ok(()) };
            k.edit(losses, |_, loss| loss * 1.1 + 0.01)
        };
        "the loss is written and not added to" => |k, op| {
            let before = k.get(op.scalars)?[scalar::LOSS_SUM];
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::LOSS_SUM { x - before } else { x })
        };
        "the sum over more than 4096 logits is kept in bf16" => |k, op| {
            k.run(op)?;
            let Some(d_logits) = op.d_logits.filter(|_| op.vocab > 4096) else { return Ok(()) };
            k.edit(d_logits, |_, d| f32::from_bits(d.to_bits() & 0xffff_0000))
        };
        "minus infinity among the logits goes unnoticed" => |k, op| {
            let mut logits = k.get(op.logits)?;
            if !logits.contains(&f32::NEG_INFINITY) || op.d_logits == Some(op.logits) {
                return k.run(op);
            }
            let before = logits.clone();
            logits.iter_mut().for_each(|x| *x = x.max(-1e4));
            k.put(op.logits, &logits)?;
            let done = k.run(op);
            k.put(op.logits, &before)?;
            done
        };
        "a target is read in 16 bits, with a sign" => |k, op| k.run_on_narrow(op, op.targets);
        "the gradient is written past its end" => |k, op| {
            k.run(op)?;
            if let Some(d_logits) = op.d_logits {
                k.write_past(d_logits, op.vocab.next_multiple_of(16) - op.vocab);
            }
            Ok(())
        };
        "rows beyond 256 have no loss" => |k, op| {
            k.run(op)?;
            let Some(losses) = op.losses else { return Ok(()) };
            k.edit(losses, |i, loss| if i >= 256 { 0.0 } else { loss })
        };
        "a tail of the vocabulary that fills no vector of 8 has no gradient" => |k, op| {
            k.run(op)?;
            let whole = op.vocab / 8 * 8;
            let Some(d_logits) = op.d_logits.filter(|_| whole > 0) else { return Ok(()) };
            k.edit(d_logits, |i, d| if i % op.vocab >= whole { 0.0 } else { d })
        };
    }
    SquaredNorm {
        "what is beyond 65,536 numbers is left out" => |k, op| {
            k.run(minigpt_core::op::SquaredNorm { x: op.x.first(65_536), ..op })
        };
        "it is added to the last one" => |k, op| {
            let before = k.get(op.scalars)?[scalar::GRAD_SQUARED];
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::GRAD_SQUARED { x + before } else { x })
        };
        "a tail that fills no vector of 16 is left out" => |k, op| {
            let whole = op.x.len / 16 * 16;
            if whole == 0 { k.run(op) } else { k.run(minigpt_core::op::SquaredNorm { x: op.x.first(whole), ..op }) }
        };
        "another scalar is touched" => |k, op| {
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::LOSS { 0.0 } else { x })
        };
        "large numbers overflow in the square of their sum" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            let large = x.iter().any(|x| x.abs() > 1e3);
            k.edit(op.scalars, |i, s| if large && i == scalar::GRAD_SQUARED { f32::INFINITY } else { s })
        };
        "NaN is passed over" => |k, op| {
            let x = k.get(op.x)?;
            if !x.iter().any(|x| x.is_nan()) {
                return k.run(op);
            }
            k.edit(op.x, |_, x| if x.is_nan() { 0.0 } else { x })?;
            let done = k.run(op);
            k.put(op.x, &x)?;
            done
        };
        "partial sums race" => |k, op| {
            k.run(op)?;
            let lost = k.calls % 2 == 0 && op.x.len > 4096;
            k.edit(op.scalars, |i, x| if lost && i == scalar::GRAD_SQUARED { x * 0.99 } else { x })
        };
    }
    NextDraw {
        "nothing is carried into the high word" => |k, op| {
            let before = k.words(op.counters)?;
            k.run(op)?;
            let mut after = k.words(op.counters)?;
            after[counter::DRAW + 1] = before[counter::DRAW + 1];
            k.put_words(op.counters, &after)
        };
        "the step is counted too" => |k, op| {
            k.run(op)?;
            let mut after = k.words(op.counters)?;
            after[counter::STEP] += 1;
            k.put_words(op.counters, &after)
        };
        "it draws twice" => |k, op| {
            k.run(op)?;
            k.run(op)
        };
        "the offset of the counters is ignored" => |k, op| {
            let counters = k.at_zero(op.counters).unwrap_or(op.counters);
            k.run(minigpt_core::op::NextDraw { counters })
        };
    }
    FinishStep {
        "the gradient is clipped only where it is not finite" => |k, op| k.run(FinishStep { clip: f64::INFINITY, ..op });
        "the host's learning rate is set back" => |k, op| {
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::LEARNING_RATE { 0.0 } else { x })
        };
        "the sum of the loss is not set back" => |k, op| {
            let before = k.get(op.scalars)?[scalar::LOSS_SUM];
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::LOSS_SUM { before } else { x })
        };
        "the skips in a row are not set back" => |k, op| {
            let before = k.words(op.counters)?;
            k.run(op)?;
            let mut after = k.words(op.counters)?;
            after[counter::SKIPPED_IN_A_ROW] = after[counter::SKIPPED_IN_A_ROW].max(before[counter::SKIPPED_IN_A_ROW]);
            k.put_words(op.counters, &after)
        };
        "a loss that is not finite is applied" => |k, op| {
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::APPLY { 1.0 } else { x })
        };
        "tokens are counted in 32 bits" => |k, op| {
            let before = k.words(op.counters)?;
            k.run(op)?;
            let mut after = k.words(op.counters)?;
            after[counter::TOKENS + 1] = before[counter::TOKENS + 1];
            k.put_words(op.counters, &after)
        };
        "the norm is of the sum and not of the mean" => |k, op| {
            let squared = k.get(op.scalars)?[scalar::GRAD_SQUARED];
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::GRAD_NORM { squared.sqrt() } else { x })
        };
    }
    Fill {
        "the value is 0 whatever it is" => |k, op| k.run(Fill { value: 0.0, ..op });
        "the last element is left as it was" => |k, op| k.run(Fill { to: op.to.first(op.to.len - 1), ..op });
        "a tail that fills no vector of 8 is left as it was" => |k, op| {
            k.run(Fill { to: op.to.first(op.to.len / 8 * 8), ..op })
        };
        "whole vectors are stored past the end" => |k, op| {
            k.run(op)?;
            k.write_past(op.to, op.to.len.next_multiple_of(8) - op.to.len);
            Ok(())
        };
        "the offset is ignored" => |k, op| {
            let to = k.at_zero(op.to).unwrap_or(op.to);
            k.run(Fill { to, ..op })
        };
        "beyond 65,536 elements nothing is filled" => |k, op| k.run(Fill { to: op.to.first(65_536), ..op });
        "the sign is lost" => |k, op| k.run(Fill { value: op.value.abs(), ..op });
    }
    Narrow {
        "numbers are cut off instead of rounded" => |k, op| run_on_bits(k, op, |bits| bits & 0xffff_0000);
        "ties are rounded away from zero" => |k, op| run_on_bits(k, op, |bits| {
            let tie = bits & 0xffff == 0x8000;
            if tie { bits | 0xffff } else { bits }
        });
        "the sign is lost" => |k, op| run_on_bits(k, op, |bits| bits & 0x7fff_ffff);
        "the last element is left as it was" => |k, op| {
            let [from, to] = [op.from, op.to].map(|span| span.first(span.len - 1));
            k.run(Narrow { from, to })
        };
        "a tail that fills no vector of 16 is left as it was" => |k, op| {
            let [from, to] = [op.from, op.to].map(|span| span.first(span.len / 16 * 16));
            k.run(Narrow { from, to })
        };
        "the offset is ignored" => |k, op| {
            let from = k.at_zero(op.from).unwrap_or(op.from);
            k.run(Narrow { from, ..op })
        };
        "whole vectors are stored past the end" => |k, op| {
            k.run(op)?;
            k.write_past(op.to, op.to.len.next_multiple_of(16) - op.to.len);
            Ok(())
        };
    }
};
