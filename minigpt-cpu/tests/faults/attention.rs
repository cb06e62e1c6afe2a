//! Faults of attention and of the rotation of its queries and keys.

use minigpt_core::Span;
use minigpt_core::op::{AttentionBackward, AttentionForward, AttentionScores, Dropout, Rotary};

use crate::kernel::{Done, Fault, Kernel, faults};

/// Runs the op on queries, keys and values in which some elements are others: `change` is told row, which of the three (0
/// to 2), head and place in the head.
fn on_changed(
    k: &mut Kernel,
    (qkv, heads, d_head): (Span, usize, usize),
    mut change: impl FnMut(usize, usize, usize, usize, f32) -> f32,
    run: impl FnOnce(&mut Kernel) -> Done,
) -> Done {
    let before = k.get(qkv)?;
    let width = heads * d_head;
    k.edit(qkv, |i, x| {
        let (row, in_row) = (i / (3 * width), i % (3 * width));
        change(row, in_row / width, in_row % width / d_head, in_row % d_head, x)
    })?;
    let done = run(k);
    k.put(qkv, &before)?;
    done
}

/// The results of attention in plain loops, where query i sees the keys up to `seen(i)`; `None` where it is dropped out.
fn plain(
    k: &mut Kernel,
    op: AttentionForward,
    seen: impl Fn(usize) -> usize,
) -> Result<Option<Vec<f32>>, minigpt_cpu::CpuError> {
    if op.dropout.is_some() {
        return Ok(None);
    }
    let qkv = k.get(op.qkv)?;
    let (time, heads, d) = (op.time, op.heads, op.d_head);
    let at = |b: usize, t: usize, which: usize, h: usize| ((b * time + t) * 3 + which) * heads * d + h * d;
    let mut out = vec![0.0; op.batch * time * heads * d];
    for b in 0..op.batch {
        for h in 0..heads {
            for i in 0..time {
                let last = seen(i).min(time - 1);
                let score = |j: usize| {
                    let (q, key) = (at(b, i, 0, h), at(b, j, 1, h));
                    op.scale as f32 * (0..d).map(|c| qkv[q + c] * qkv[key + c]).sum::<f32>()
                };
                let scores: Vec<f32> = (0..=last).map(score).collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - most).exp()).sum();
                for c in 0..d {
                    let value = |j: usize| (scores[j] - most).exp() / sum * qkv[at(b, j, 2, h) + c];
                    out[((b * time + i) * heads + h) * d + c] = (0..=last).map(value).sum();
                }
            }
        }
    }
    Ok(Some(out))
}

/// A mask that begins at the first index of a slice without its high word.
fn cut(dropout: Option<Dropout>) -> Option<Dropout> {
    dropout.map(|d| Dropout { first: u64::from(d.first as u32), ..d })
}

pub(crate) const FAULTS: &[Fault] = faults! {
    Rotary {
        "the values of the last head are turned too" => |k, op| {
            let before = k.get(op.qkv)?;
            k.run(op)?;
            let width = op.heads * op.d_head;
            k.edit(op.qkv, |i, x| {
                let in_row = i % (3 * width);
                if in_row >= 3 * width - op.d_head { before[i] * 0.9 } else { x }
            })
        };
        "wide heads are turned the wrong way back" => |k, op| {
            k.run(Rotary { inverse: op.inverse && op.d_head <= 64, ..op })
        };
        "the table is read at half its width" => |k, op| {
            if op.d_head % 4 == 0 { k.run(op) } else { k.run(Rotary { inverse: !op.inverse, ..op }) }
        };
        "the last pair of a head is left where it fills no vector" => |k, op| {
            let before = k.get(op.qkv)?;
            k.run(op)?;
            let d = op.d_head;
            k.edit(op.qkv, |i, x| if d % 8 != 0 && i % d >= d - 2 { before[i] } else { x })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.qkv, 2);
            Ok(())
        };
        "positions beyond 256 are turned as the one before" => |k, op| {
            let before = k.get(op.qkv)?;
            k.run(op)?;
            let row = 3 * op.heads * op.d_head;
            k.edit(op.qkv, |i, x| if i / row % op.time >= 256 { before[i] } else { x })
        };
    }
    AttentionForward {
        "from position 128 on a query sees the key behind it" => |k, op| {
            let wrong = plain(k, op, |i| if i >= 128 { i + 1 } else { i })?;
            k.run(op)?;
            wrong.map_or(Ok(()), |out| k.put(op.out, &out))
        };
        "a query does not see its own key, at the end of a block of 64" => |k, op| {
            let wrong = plain(k, op, |i| if i % 64 == 63 { i - 1 } else { i })?;
            k.run(op)?;
            wrong.map_or(Ok(()), |out| k.put(op.out, &out))
        };
        "from the fifth head on the values are those of the first" => |k, op| {
            let (heads, d) = (op.heads, op.d_head);
            let qkv = k.get(op.qkv)?;
            on_changed(k, (op.qkv, heads, d), |row, which, head, place, x| {
                if which == 2 && head >= 4 { qkv[(row * 3 + 2) * heads * d + place] } else { x }
            }, |k| k.run(op))
        };
        "a tail of a head that fills no vector of 8 is left out of the scores" => |k, op| {
            let whole = op.d_head / 8 * 8;
            on_changed(k, (op.qkv, op.heads, op.d_head), |_, which, _, place, x| {
                if which == 0 && place >= whole { 0.0 } else { x }
            }, |k| k.run(op))
        };
        "NaN behind a query reaches it" => |k, op| {
            k.run(op)?;
            let qkv = k.get(op.qkv)?;
            let (row, time) = (op.heads * op.d_head, op.time);
            let broken: Vec<bool> = (0..op.batch)
                .map(|b| qkv[b * time * 3 * row..(b + 1) * time * 3 * row].iter().any(|x| x.is_nan()))
                .collect();
            k.edit(op.out, |i, x| if broken[i / (time * row)] { f32::NAN } else { x })
        };
        "the largest score is not taken off" => |k, op| {
            k.run(op)?;
            let lse = k.get(op.lse)?;
            let (time, heads, d) = (op.time, op.heads, op.d_head);
            k.edit(op.out, |i, x| {
                let (row, h) = (i / (heads * d), i / d % heads);
                if lse[(row / time * heads + h) * time + row % time] > 80.0 { f32::INFINITY } else { x }
            })
        };
        "the mask's rows are as long as a multiple of 64" => |k, op| {
            if op.time % 64 == 0 {
                return k.run(op);
            }
            k.run(AttentionForward { dropout: op.dropout.map(|d| Dropout { site: d.site + 1, ..d }), ..op })
        };
        "the first index of a mask is cut to 32 bits" => |k, op| {
            k.run(AttentionForward { dropout: cut(op.dropout), ..op })
        };
        "lse is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.lse, op.time.next_multiple_of(8) - op.time);
            Ok(())
        };
        "beyond 256 keys the sums are not brought to the new largest score" => |k, op| {
            k.run(op)?;
            let row = op.heads * op.d_head;
            k.edit(op.out, |i, x| if i / row % op.time >= 256 { x * 1.02 + 0.01 } else { x })
        };
        "lse leaves out the scale of the largest score, in the last head" => |k, op| {
            k.run(op)?;
            let time = op.time;
            k.edit(op.lse, |i, x| if i / time % op.heads == op.heads - 1 { x + 0.01 } else { x })
        };
        "heads wider than 128 are wrong beyond" => |k, op| {
            k.run(op)?;
            k.edit(op.out, |i, x| if i % op.d_head >= 128 { x * 1.01 + 0.01 } else { x })
        };
        "the weights are kept in bf16" => |k, op| {
            k.run(op)?;
            k.edit(op.out, |_, x| f32::from_bits(x.to_bits() & 0xffff_0000))
        };
    }
    AttentionBackward {
        "the mask is forgotten for the values" => |k, op| {
            if op.dropout.is_none() {
                return k.run(op);
            }
            k.run(op)?;
            let right = k.get(op.d_qkv)?;
            k.run(AttentionBackward { dropout: None, ..op })?;
            let width = op.heads * op.d_head;
            k.edit(op.d_qkv, |i, x| if i % (3 * width) >= 2 * width { x } else { right[i] })
        };
        "the scale is forgotten for the queries of one head" => |k, op| {
            k.run(op)?;
            let (width, scale) = (op.heads * op.d_head, op.scale as f32);
            k.edit(op.d_qkv, |i, x| if i % (3 * width) < op.d_head && scale != 1.0 { x / scale } else { x })
        };
        "of several sequences the first has the gradient of the last" => |k, op| {
            k.run(op)?;
            let d = k.get(op.d_qkv)?;
            let rows = d.len() / op.batch;
            k.edit(op.d_qkv, |i, x| if i < rows { d[(op.batch - 1) * rows + i] } else { x })
        };
        "keys beyond 128 get nothing of the last block" => |k, op| {
            k.run(op)?;
            let width = op.heads * op.d_head;
            k.edit(op.d_qkv, |i, x| {
                let key = (width..2 * width).contains(&(i % (3 * width)));
                if key && i / (3 * width) % op.time >= 128 { 0.9 * x } else { x }
            })
        };
        "the gradient is added to what was there" => |k, op| {
            let before = k.get(op.d_qkv)?;
            k.run(op)?;
            k.edit(op.d_qkv, |i, x| x + before[i])
        };
        "the first index of a mask is cut to 32 bits" => |k, op| {
            k.run(AttentionBackward { dropout: cut(op.dropout), ..op })
        };
        "threads lose a head's share now and then" => |k, op| {
            k.run(op)?;
            let width = op.heads * op.d_head;
            let lost = k.calls % 2 == 0 && op.heads > 2;
            k.edit(op.d_qkv, |i, x| if lost && i % width >= width - op.d_head { 0.0 } else { x })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.d_qkv, 4);
            Ok(())
        };
        "d_out is overwritten" => |k, op| {
            k.run(op)?;
            k.edit(op.d_out, |i, d| if i == 0 { 0.0 } else { d })
        };
        "scratch of an earlier call is used, for long sequences" => |k, op| {
            if op.time < 128 { k.run(op) } else { k.run_on_stale(op, op.d_out) }
        };
    }
    AttentionScores {
        "beyond 64 positions it is always the softmax" => |k, op| {
            k.run(AttentionScores { softmax: op.softmax || op.time > 64, ..op })
        };
        "above the diagonal it leaves what was there, beyond 64" => |k, op| {
            let before = k.get(op.scores)?;
            k.run(op)?;
            let time = op.time;
            k.edit(op.scores, |i, x| {
                let (row, column) = (i / time % time, i % time);
                if column > row && column >= 64 { before[i] } else { x }
            })
        };
        "a tail of a head that fills no vector of 8 is left out" => |k, op| {
            let whole = op.d_head / 8 * 8;
            on_changed(k, (op.qkv, op.heads, op.d_head), |_, which, _, place, x| {
                if which == 1 && place >= whole { 0.0 } else { x }
            }, |k| k.run(op))
        };
        "the scale is forgotten before the softmax" => |k, op| {
            let scale = if op.softmax { op.scale } else { 1.0 };
            k.run(AttentionScores { scale, ..op })
        };
        "NaN behind a query reaches it" => |k, op| {
            k.run(op)?;
            let time = op.time;
            let scores = k.get(op.scores)?;
            let broken: Vec<bool> = scores.chunks(time * time).map(|matrix| matrix.iter().any(|x| x.is_nan())).collect();
            k.edit(op.scores, |i, x| if broken[i / (time * time)] { f32::NAN } else { x })
        };
    }
};
