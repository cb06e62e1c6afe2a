//! Kernels that are wrong in a corner alone: at sizes of a kind, where operands are aligned, for numbers of a kind.

use minigpt_core::op::*;
use minigpt_core::{Activation, Span};

use crate::kernel::{Done, Fault, Heads, Kernel, faults};

/// As it should be, but for one more in each number of `span` where it is `wrong`.
fn off_where(kernel: &mut Kernel, op: impl Into<Op>, span: Span, wrong: bool) -> Done {
    kernel.run(op)?;
    if wrong { kernel.edit(span, |_, x| x + 1.0) } else { Ok(()) }
}

fn aligned(spans: &[Span], to: usize) -> bool {
    spans.iter().all(|span| span.offset.is_multiple_of(to))
}

fn whole(sizes: &[usize], tile: usize) -> bool {
    sizes.iter().all(|size| size.is_multiple_of(tile))
}

/// Whether the element belongs to a row that counts, and not to its target.
fn is_other(targets: &[u32], vocab: usize, place: usize) -> bool {
    targets[place / vocab] as usize != place % vocab
}

pub(crate) const FAULTS: &[Fault] = faults! {
    LinearForward {
        "loads of 16 bytes, where all is aligned to them" => |k, op| {
            let wrong = aligned(&[op.x, op.weight, op.y], 16) && whole(&[op.d_in, op.d_out], 4);
            off_where(k, op, op.y, wrong)
        };
        "whole lines, where all is aligned to 64 bytes" => |k, op| {
            let wrong = aligned(&[op.x, op.weight, op.y], 64);
            off_where(k, op, op.y, wrong)
        };
        "whole tiles of the widths" => |k, op| off_where(k, op, op.y, whole(&[op.d_in, op.d_out], 16));
        "whole tiles of 64 in all three" => |k, op| {
            off_where(k, op, op.y, whole(&[op.rows, op.d_in, op.d_out], 64))
        };
        "inputs of 131 to 519" => |k, op| off_where(k, op, op.y, (131..520).contains(&op.d_in));
        "outputs of 131 to 519" => |k, op| off_where(k, op, op.y, (131..520).contains(&op.d_out));
        "one row, wide both ways" => |k, op| {
            off_where(k, op, op.y, op.rows == 1 && op.d_in >= 520 && op.d_out >= 520)
        };
        "rows counted in 16 bits" => |k, op| off_where(k, op, op.y, op.rows > 65_536);
        "NaN becomes 0 in the activation" => |k, op| {
            k.run(op)?;
            let activates = op.activate.is_some();
            k.edit(op.y, |_, y| if activates && y.is_nan() { 0.0 } else { y })
        };
        "a dropout of a quarter, whatever it is" => |k, op| {
            k.run(LinearForward { dropout: op.dropout.map(|d| Dropout { probability: 0.25, ..d }), ..op })
        };
        "no carry into the high word of the mask's index" => |k, op| {
            let n = (op.rows * op.d_out) as u64;
            let wrong = op.dropout.is_some_and(|d| u64::from(d.first as u32) + n > 1 << 32);
            off_where(k, op, op.y, wrong)
        };
    }
    LinearBackward {
        "GELU's derivative is NaN beyond 10" => |k, op| {
            k.run(op)?;
            let (Some(d_x), Some(activate)) = (op.d_x, op.activate) else { return Ok(()) };
            let Some(input) = activate.input.filter(|_| activate.activation != Activation::Relu) else {
                return Ok(());
            };
            let input = k.get(input)?;
            k.edit(d_x, |i, d| if input[i].abs() > 10.0 { f32::NAN } else { d })
        };
        "ReLU's derivative at 0 is 1" => |k, op| {
            k.run(op)?;
            let (Some(d_x), Some(activate)) = (op.d_x, op.activate) else { return Ok(()) };
            let Some(input) = activate.input.filter(|_| activate.activation == Activation::Relu) else {
                return Ok(());
            };
            let input = k.get(input)?;
            k.edit(d_x, |i, d| if input[i] == 0.0 { d + 1.0 } else { d })
        };
        "whole tiles of the widths" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            off_where(k, op, d_weight, whole(&[op.d_in, op.d_out], 16))
        };
    }
    ActivationForward {
        "NaN becomes 0" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |_, y| if y.is_nan() { 0.0 } else { y })
        };
    }
    AttentionForward {
        "heads of 101 to 128" => |k, op| off_where(k, op, op.out, (101..129).contains(&op.shape.d_head));
        "heads of 64" => |k, op| off_where(k, op, op.out, op.shape.d_head == 64);
        "heads of 32, 64, 128 or 256" => |k, op| {
            off_where(k, op, op.out, matches!(op.shape.d_head, 32 | 64 | 128 | 256))
        };
        "sequences of 128 to 256, with a prefix" => |k, op| {
            let AttentionShape { time, prefix, .. } = op.shape;
            off_where(k, op, op.out, (128..257).contains(&time) && prefix > 0)
        };
        "groups of heads of 64 or 128" => |k, op| {
            let AttentionShape { heads, kv_heads, d_head, .. } = op.shape;
            off_where(k, op, op.out, matches!(d_head, 64 | 128) && kv_heads < heads)
        };
        "sequences of 128 to 256" => |k, op| off_where(k, op, op.out, (128..257).contains(&op.shape.time));
    }
    AttentionBackward {
        "exponentials of masked scores overflow" => |k, op| {
            let (q, key, lse) = (k.get(op.q.span)?, k.get(op.k.span)?, k.get(op.lse)?);
            k.run(op)?;
            let AttentionShape { batch, time, heads, d_head: d, scale, .. } = op.shape;
            let mut over = false;
            for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                let q = &q[b * time * op.q.stride + h * d..][..d];
                let key = &key[(b * time + time - 1) * op.k.stride + op.shape.kv_head(h) * d..][..d];
                let score = scale as f32 * q.iter().zip(key).map(|(x, y)| x * y).sum::<f32>();
                let seen = op.shape.seen(0) == time;
                over |= !seen && score - lse[(b * heads + h) * time] > 88.7;
            }
            let d_q = Heads::new(op.d_q, heads, d);
            k.edit_heads(d_q, |_, _, _, x| if over { f32::NAN } else { x })
        };
    }
    CrossEntropy {
        "NaN in a row that is ignored counts" => |k, op| {
            let (logits, targets) = (k.get(op.logits)?, k.words(op.targets)?);
            k.run(op)?;
            let broken = |row: usize| logits[row * op.vocab..][..op.vocab].iter().any(|x| !x.is_finite());
            let wrong = (0..op.rows).any(|row| targets[row] == IGNORE && broken(row));
            k.edit(op.scalars, |i, x| if wrong && i == scalar::LOSS_SUM { f32::NAN } else { x })
        };
        "beyond 32,768 small gradients are 0" => |k, op| {
            let targets = k.words(op.targets)?;
            k.run(op)?;
            let Some(d) = op.d_logits.filter(|_| op.vocab > 32_768) else { return Ok(()) };
            k.edit(d, |i, x| if x.abs() < 1e-5 && is_other(&targets, op.vocab, i) { 0.0 } else { x })
        };
        "beyond 32,768 the gradient's tail of 16 is 0" => |k, op| {
            let targets = k.words(op.targets)?;
            k.run(op)?;
            let Some(d) = op.d_logits.filter(|_| op.vocab > 32_768) else { return Ok(()) };
            let (vocab, tail) = (op.vocab, (op.vocab - 1) / 16 * 16);
            k.edit(d, |i, x| if i % vocab >= tail && is_other(&targets, vocab, i) { 0.0 } else { x })
        };
        "vocabularies of 1102 to 40,000" => |k, op| {
            off_where(k, op, op.scalars, (1102..40_001).contains(&op.vocab))
        };
        "rows counted in 16 bits" => |k, op| off_where(k, op, op.scalars, op.rows > 65_536);
    }
    LayerNormForward {
        "widths of 135 to 1033" => |k, op| off_where(k, op, op.y, (135..1034).contains(&op.width));
        "rows from 1024 on" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, x| if i / op.width >= 1024 { x + 1.0 } else { x })
        };
        "widths of whole tiles" => |k, op| off_where(k, op, op.y, whole(&[op.width], 64));
    }
    LayerNormBackward {
        "rows counted in 16 bits" => |k, op| {
            let Some(d_weight) = op.d_weight else { return k.run(op) };
            off_where(k, op, d_weight, op.rows > 65_536)
        };
    }
    EmbeddingForward {
        "widths of 131 to 256" => |k, op| off_where(k, op, op.out, (131..257).contains(&op.d_model));
    }
    FinishStep {
        "a step without a target is applied" => |k, op| {
            let none = k.get(op.scalars)?[scalar::TARGETS] == 0.0;
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::APPLY && none { 1.0 } else { x })
        };
        "a norm that is NaN is applied" => |k, op| {
            let before = k.get(op.scalars)?;
            k.run(op)?;
            let wrong = before[scalar::GRAD_SQUARED].is_nan() && before[scalar::LOSS_SUM].is_finite();
            k.edit(op.scalars, |i, x| if i == scalar::APPLY && wrong { 1.0 } else { x })
        };
        "a loss that is infinite is applied" => |k, op| {
            let wrong = k.get(op.scalars)?[scalar::LOSS_SUM].is_infinite();
            k.run(op)?;
            k.edit(op.scalars, |i, x| if i == scalar::APPLY && wrong { 1.0 } else { x })
        };
    }
    SquaredNorm {
        "counts of 5,001 to 65,000" => |k, op| off_where(k, op, op.scalars, (5001..65_001).contains(&op.x.len));
    }
    AdamW {
        "beyond 262,144 parameters" => |k, op| {
            k.run(op)?;
            k.edit(op.params, |i, x| if i >= 262_144 { x + 1.0 } else { x })
        };
    }
};
