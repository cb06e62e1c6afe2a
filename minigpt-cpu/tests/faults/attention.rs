//! Faults of attention and of the rotation of its queries and keys.

use minigpt_core::op::{
    AttentionBackward, AttentionForward, AttentionScores, AttentionShape, Dropout, Rotary,
};
use minigpt_core::{Pairing, Span};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Heads, Kernel, faults};

fn queries(op: &AttentionForward) -> Heads {
    Heads::new(op.q, op.shape.heads, op.shape.d_head)
}

fn values(op: &AttentionForward) -> Heads {
    Heads::new(op.v, op.shape.kv_heads, op.shape.d_head)
}

fn d_queries(op: &AttentionBackward) -> Heads {
    Heads::new(op.d_q, op.shape.heads, op.shape.d_head)
}

fn d_keys(op: &AttentionBackward) -> Heads {
    Heads::new(op.d_k, op.shape.kv_heads, op.shape.d_head)
}

fn d_values(op: &AttentionBackward) -> Heads {
    Heads::new(op.d_v, op.shape.kv_heads, op.shape.d_head)
}

fn turned(op: &Rotary) -> Heads {
    Heads::new(op.x, op.heads, op.d_head)
}

/// Rows of results, which lie side by side.
fn results(span: Span, shape: &AttentionShape) -> Heads {
    Heads::new(span.rows(shape.heads * shape.d_head), shape.heads, shape.d_head)
}

/// How many heads of queries share one of keys and values.
fn group(shape: &AttentionShape) -> usize {
    shape.heads / shape.kv_heads
}

/// The head that stands where this one would have to, for head h to read the keys and values of h % K.
fn in_turns(shape: &AttentionShape, head: usize) -> usize {
    head % shape.kv_heads * group(shape) + head / shape.kv_heads
}

/// Puts each head where it reads the keys and values that it would have if the heads took turns, or back.
fn put_in_turns(k: &mut Kernel, of: Heads, shape: &AttentionShape, back: bool) -> Done {
    let before = k.get(of.at.span)?;
    let heads: Vec<usize> = (0..shape.heads).map(|head| in_turns(shape, head)).collect();
    let from = |head: usize| match back {
        true => heads[head],
        false => heads.iter().position(|&place| place == head).unwrap_or(head),
    };
    k.edit_heads(of, |row, head, at, _| before[of.index(row, from(head), at)])
}

/// The results of attention in plain loops, where query i sees the keys up to `last(i)`; `None` where it is dropped out.
fn plain(
    k: &mut Kernel,
    op: AttentionForward,
    last: impl Fn(usize) -> usize,
) -> Result<Option<Vec<f32>>, CpuError> {
    if op.dropout.is_some() {
        return Ok(None);
    }
    let [q, key, value] = [k.get(op.q.span)?, k.get(op.k.span)?, k.get(op.v.span)?];
    let AttentionShape { batch, time, heads, d_head: d, scale, .. } = op.shape;
    let mut out = vec![0.0; batch * time * heads * d];
    for b in 0..batch {
        for h in 0..heads {
            let kv = op.shape.kv_head(h) * d;
            for i in 0..time {
                let last = last(i).min(time - 1);
                let score = |j: usize| {
                    let (q, key) = (
                        &q[(b * time + i) * op.q.stride + h * d..],
                        &key[(b * time + j) * op.k.stride + kv..],
                    );
                    scale as f32 * q.iter().zip(key).take(d).map(|(x, y)| x * y).sum::<f32>()
                };
                let scores: Vec<f32> = (0..=last).map(score).collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|s| (s - most).exp()).sum();
                for c in 0..d {
                    let value = |j: usize| {
                        (scores[j] - most).exp() / sum * value[(b * time + j) * op.v.stride + kv + c]
                    };
                    out[((b * time + i) * heads + h) * d + c] = (0..=last).map(value).sum();
                }
            }
        }
    }
    Ok(Some(out))
}

/// Runs the op, and puts the results there that it has where query i sees the keys up to `last(i)`.
fn run_seeing(k: &mut Kernel, op: AttentionForward, last: impl Fn(usize) -> usize) -> Done {
    let wrong = plain(k, op, last)?;
    k.run(op)?;
    wrong.map_or(Ok(()), |out| k.put(op.out, &out))
}

/// The last key that the query at `i` sees.
fn last(shape: &AttentionShape, i: usize) -> usize {
    shape.seen(i) - 1
}

/// The same with another prefix.
fn with_prefix(shape: AttentionShape, prefix: usize) -> AttentionShape {
    AttentionShape { prefix, ..shape }
}

/// Runs the op so that of each group of heads only these give keys and values their gradients.
fn run_of_group(k: &mut Kernel, op: AttentionBackward, gives: impl Fn(usize) -> bool) -> Done {
    k.run(op)?;
    let (d_q, d_out) = (k.get(op.d_q.span)?, k.get(op.d_out)?);
    let group = group(&op.shape);
    k.edit_heads(results(op.d_out, &op.shape), |_, head, _, d| if gives(head % group) { d } else { 0.0 })?;
    let done = k.run(op);
    k.put(op.d_out, &d_out)?;
    let heads = d_queries(&op);
    k.edit_heads(heads, |row, head, at, _| d_q[heads.index(row, head, at)])?;
    done
}

/// Which sequences have a number that is none.
fn broken(k: &mut Kernel, op: &AttentionForward) -> Result<Vec<bool>, CpuError> {
    let numbers = k.get(op.v.span)?;
    let (heads, time) = (values(op), op.shape.time);
    let is_broken =
        |row: usize| numbers[heads.index(row, 0, 0)..][..heads.width()].iter().any(|x| x.is_nan());
    Ok((0..op.shape.batch).map(|b| (b * time..(b + 1) * time).any(is_broken)).collect())
}

/// A mask that begins at the first index of a slice without its high word.
fn cut(dropout: Option<Dropout>) -> Option<Dropout> {
    dropout.map(|d| Dropout { first: u64::from(d.first as u32), ..d })
}

fn other(pairing: Pairing) -> Pairing {
    match pairing {
        Pairing::Adjacent => Pairing::Halves,
        _ => Pairing::Adjacent,
    }
}

pub(crate) const FAULTS: &[Fault] = faults! {
    Rotary {
        "the head behind the last is turned too" => |k, op| {
            k.run(op)?;
            k.edit_between(turned(&op), |x| 0.9 * x)
        };
        "what lies between the rows is cleared" => |k, op| {
            k.run(op)?;
            k.edit_between(turned(&op), |_| 0.0)
        };
        "rows are taken to lie side by side" => |k, op| {
            let before = k.get(op.x.span)?;
            k.run(op)?;
            let of = turned(&op);
            k.edit_heads(of, |row, head, at, x| if row > 0 && of.at.stride > of.width() { before[of.index(row, head, at)] } else { x })
        };
        "the pairs are the other ones" => |k, op| k.run(Rotary { pairing: other(op.pairing), ..op });
        "halves are turned back the wrong way" => |k, op| {
            k.run(Rotary { inverse: op.inverse && op.pairing == Pairing::Adjacent, ..op })
        };
        "of halves the second is left, beyond 16 pairs" => |k, op| {
            let (before, of) = (k.get(op.x.span)?, turned(&op));
            k.run(op)?;
            let left = |at: usize| op.pairing == Pairing::Halves && at >= op.d_head / 2 + 16;
            k.edit_heads(of, |row, head, at, x| if left(at) { before[of.index(row, head, at)] } else { x })
        };
        "wide heads are turned the wrong way back" => |k, op| {
            k.run(Rotary { inverse: op.inverse && op.d_head <= 64, ..op })
        };
        "the table is read at half its width" => |k, op| {
            if op.d_head % 4 == 0 { k.run(op) } else { k.run(Rotary { inverse: !op.inverse, ..op }) }
        };
        "the last pair of a head is left where it fills no vector" => |k, op| {
            let (before, of) = (k.get(op.x.span)?, turned(&op));
            k.run(op)?;
            let left = |at: usize| op.d_head % 8 != 0 && at >= op.d_head - 2;
            k.edit_heads(of, |row, head, at, x| if left(at) { before[of.index(row, head, at)] } else { x })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.x.span, 2);
            Ok(())
        };
        "positions beyond 256 are turned as the one before" => |k, op| {
            let (before, of) = (k.get(op.x.span)?, turned(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, x| if row % op.time >= 256 { before[of.index(row, head, at)] } else { x })
        };
    }
    AttentionForward {
        "from position 128 on a query sees the key behind it" => |k, op| {
            run_seeing(k, op, |i| last(&op.shape, i) + usize::from(i >= 128))
        };
        "a query does not see its own key, at the end of a block of 64" => |k, op| {
            run_seeing(k, op, |i| last(&op.shape, i) - usize::from(i % 64 == 63))
        };
        "the prefix ends one early" => |k, op| {
            k.run(AttentionForward { shape: with_prefix(op.shape, op.shape.prefix.saturating_sub(1)), ..op })
        };
        "the prefix ends one late" => |k, op| {
            let prefix = op.shape.prefix + usize::from(op.shape.prefix > 0);
            k.run(AttentionForward { shape: with_prefix(op.shape, prefix), ..op })
        };
        "the prefix is not seen" => |k, op| k.run(AttentionForward { shape: with_prefix(op.shape, 0), ..op });
        "the prefix is not seen beyond the first block of 16 queries" => |k, op| {
            run_seeing(k, op, |i| if i < 16 { last(&op.shape, i) } else { i })
        };
        "behind the prefix a query sees the key behind it" => |k, op| {
            let prefix = op.shape.prefix;
            run_seeing(k, op, |i| last(&op.shape, i) + usize::from(prefix > 0 && i >= prefix))
        };
        "with a prefix, all is seen" => |k, op| {
            let prefix = if op.shape.prefix > 0 { op.shape.time } else { 0 };
            k.run(AttentionForward { shape: with_prefix(op.shape, prefix), ..op })
        };
        "the heads of queries take turns" => |k, op| {
            let before = k.get(op.q.span)?;
            put_in_turns(k, queries(&op), &op.shape, false)?;
            let done = k.run(op);
            k.put(op.q.span, &before)?;
            put_in_turns(k, results(op.out, &op.shape), &op.shape, true)?;
            done
        };
        "all heads read the first one's keys and values, where they share" => |k, op| {
            let (v, of) = (k.get(op.v.span)?, values(&op));
            let shares = op.shape.kv_heads < op.shape.heads;
            k.run_on_heads(op, of, |row, _, at, x| if shares { v[of.index(row, 0, at)] } else { x })
        };
        "values are read with the stride of the queries" => |k, op| k.run_on_stride(op, values(&op), op.q.stride);
        "queries are read side by side" => |k, op| k.run_on_stride(op, queries(&op), queries(&op).width());
        "from the fifth head on the values are those of the first" => |k, op| {
            let (v, of) = (k.get(op.v.span)?, values(&op));
            k.run_on_heads(op, of, |row, head, at, x| if head >= 4 { v[of.index(row, 0, at)] } else { x })
        };
        "a tail of a head that fills no vector of 8 is left out of the scores" => |k, op| {
            let whole = op.shape.d_head / 8 * 8;
            k.run_on_heads(op, queries(&op), |_, _, at, x| if at >= whole { 0.0 } else { x })
        };
        "NaN behind a query reaches it" => |k, op| {
            k.run(op)?;
            let (broken, rows) = (broken(k, &op)?, op.shape.time * op.shape.heads * op.shape.d_head);
            k.edit(op.out, |i, x| if broken[i / rows] { f32::NAN } else { x })
        };
        "the largest score is not taken off" => |k, op| {
            k.run(op)?;
            let lse = k.get(op.lse)?;
            let AttentionShape { time, heads, d_head: d, .. } = op.shape;
            k.edit(op.out, |i, x| {
                let (row, h) = (i / (heads * d), i / d % heads);
                if lse[(row / time * heads + h) * time + row % time] > 80.0 { f32::INFINITY } else { x }
            })
        };
        "the mask's rows are as long as a multiple of 64" => |k, op| {
            if op.shape.time % 64 == 0 {
                return k.run(op);
            }
            k.run(AttentionForward { dropout: op.dropout.map(|d| Dropout { site: d.site + 1, ..d }), ..op })
        };
        "the first index of a mask is cut to 32 bits" => |k, op| {
            k.run(AttentionForward { dropout: cut(op.dropout), ..op })
        };
        "lse is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.lse, op.shape.time.next_multiple_of(8) - op.shape.time);
            Ok(())
        };
        "beyond 256 keys the sums are not brought to the new largest score" => |k, op| {
            k.run(op)?;
            let row = op.shape.heads * op.shape.d_head;
            k.edit(op.out, |i, x| if i / row % op.shape.time >= 256 { x * 1.02 + 0.01 } else { x })
        };
        "lse leaves out the scale of the largest score, in the last head" => |k, op| {
            k.run(op)?;
            let AttentionShape { time, heads, .. } = op.shape;
            k.edit(op.lse, |i, x| if i / time % heads == heads - 1 { x + 0.01 } else { x })
        };
        "heads wider than 128 are wrong beyond" => |k, op| {
            k.run(op)?;
            k.edit(op.out, |i, x| if i % op.shape.d_head >= 128 { x * 1.01 + 0.01 } else { x })
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
            k.run(AttentionBackward { dropout: None, ..op })?;
            let (wrong, of) = (k.get(op.d_v.span)?, d_values(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, _| wrong[of.index(row, head, at)])
        };
        "the scale is forgotten for the queries of one head" => |k, op| {
            k.run(op)?;
            let scale = op.shape.scale as f32;
            k.edit_heads(d_queries(&op), |_, head, _, x| if head == 0 && scale != 1.0 { x / scale } else { x })
        };
        "of several sequences the first has the gradient of the last" => |k, op| {
            k.run(op)?;
            let AttentionShape { batch, time, .. } = op.shape;
            for of in [d_queries(&op), d_keys(&op), d_values(&op)] {
                let d = k.get(of.at.span)?;
                k.edit_heads(of, |row, head, at, x| {
                    if row < time { d[of.index((batch - 1) * time + row, head, at)] } else { x }
                })?;
            }
            Ok(())
        };
        "keys beyond 128 get nothing of the last block" => |k, op| {
            k.run(op)?;
            k.edit_heads(d_keys(&op), |row, _, _, x| if row % op.shape.time >= 128 { 0.9 * x } else { x })
        };
        "the gradient is added to what was there" => |k, op| {
            let (before, of) = (k.get(op.d_k.span)?, d_keys(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, x| x + before[of.index(row, head, at)])
        };
        "the gradients of keys and values change places" => |k, op| {
            k.run(AttentionBackward { d_k: op.d_v, d_v: op.d_k, ..op })
        };
        "what lies between the rows is cleared" => |k, op| {
            for of in [d_queries(&op), d_keys(&op), d_values(&op)] {
                k.edit_between(of, |_| 0.0)?;
            }
            k.run(op)
        };
        "the gradient of values is written with the stride of the queries'" => |k, op| {
            let (before, of) = (k.get(op.d_v.span)?, d_values(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, x| {
                if row > 0 && op.d_v.stride != op.d_q.stride { before[of.index(row, head, at)] } else { x }
            })
        };
        "values are read with the stride of the queries" => |k, op| {
            let of = Heads::new(op.v, op.shape.kv_heads, op.shape.d_head);
            k.run_on_stride(op, of, op.q.stride)
        };
        "only the first head of a group gives keys and values a gradient" => |k, op| {
            run_of_group(k, op, |place| place == 0)
        };
        "the last head of a group overwrites what the others gave" => |k, op| {
            let group = group(&op.shape);
            run_of_group(k, op, |place| place + 1 == group)
        };
        "of a group of four heads or more the fourth gives no gradient" => |k, op| {
            run_of_group(k, op, |place| place != 3)
        };
        "the heads of queries take turns" => |k, op| {
            let shape = &op.shape;
            let read = [Heads::new(op.q, shape.heads, shape.d_head), results(op.out, shape), results(op.d_out, shape)];
            let lse = Heads::new(op.lse.rows(shape.heads * shape.time), shape.heads, shape.time);
            let all = [read[0], read[1], read[2], lse];
            let mut before = Vec::new();
            for of in all {
                before.push(k.get(of.at.span)?);
                put_in_turns(k, of, shape, false)?;
            }
            let done = k.run(op);
            for (of, before) in all.iter().zip(before) {
                k.put(of.at.span, &before)?;
            }
            put_in_turns(k, d_queries(&op), shape, true)?;
            done
        };
        "the prefix is not seen" => |k, op| k.run(AttentionBackward { shape: with_prefix(op.shape, 0), ..op });
        "the prefix ends one early" => |k, op| {
            k.run(AttentionBackward { shape: with_prefix(op.shape, op.shape.prefix.saturating_sub(1)), ..op })
        };
        "the prefix ends one late" => |k, op| {
            let prefix = op.shape.prefix + usize::from(op.shape.prefix > 0);
            k.run(AttentionBackward { shape: with_prefix(op.shape, prefix), ..op })
        };
        "keys of the prefix get nothing of the queries before them" => |k, op| {
            k.run(AttentionBackward { shape: with_prefix(op.shape, 0), ..op })?;
            let (wrong, of) = (k.get(op.d_k.span)?, d_keys(&op));
            k.run(op)?;
            k.edit_heads(of, |row, head, at, _| wrong[of.index(row, head, at)])
        };
        "the first index of a mask is cut to 32 bits" => |k, op| {
            k.run(AttentionBackward { dropout: cut(op.dropout), ..op })
        };
        "threads lose a head's share now and then" => |k, op| {
            k.run(op)?;
            let lost = k.calls % 2 == 0 && op.shape.heads > 2;
            k.edit_heads(d_queries(&op), |_, head, _, x| if lost && head + 1 == op.shape.heads { 0.0 } else { x })
        };
        "it writes past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.d_v.span, 4);
            Ok(())
        };
        "d_out is overwritten" => |k, op| {
            k.run(op)?;
            k.edit(op.d_out, |i, d| if i == 0 { 0.0 } else { d })
        };
        "scratch of an earlier call is used, for long sequences" => |k, op| {
            if op.shape.time < 128 { k.run(op) } else { k.run_on_stale(op, op.d_out) }
        };
    }
    AttentionScores {
        "beyond 64 positions it is always the softmax" => |k, op| {
            k.run(AttentionScores { softmax: op.softmax || op.shape.time > 64, ..op })
        };
        "above the diagonal it leaves what was there, beyond 64" => |k, op| {
            let before = k.get(op.scores)?;
            k.run(op)?;
            let time = op.shape.time;
            k.edit(op.scores, |i, x| {
                let (row, column) = (i / time % time, i % time);
                if column >= op.shape.seen(row) && column >= 64 { before[i] } else { x }
            })
        };
        "a tail of a head that fills no vector of 8 is left out" => |k, op| {
            let whole = op.shape.d_head / 8 * 8;
            let keys = Heads::new(op.k, op.shape.kv_heads, op.shape.d_head);
            k.run_on_heads(op, keys, |_, _, at, x| if at >= whole { 0.0 } else { x })
        };
        "keys are read with the stride of the queries" => |k, op| {
            let keys = Heads::new(op.k, op.shape.kv_heads, op.shape.d_head);
            k.run_on_stride(op, keys, op.q.stride)
        };
        "the heads of queries take turns" => |k, op| {
            let (before, shape) = (k.get(op.q.span)?, &op.shape);
            put_in_turns(k, Heads::new(op.q, shape.heads, shape.d_head), shape, false)?;
            let done = k.run(op);
            k.put(op.q.span, &before)?;
            let matrix = shape.time * shape.time;
            put_in_turns(k, Heads::new(op.scores.rows(shape.heads * matrix), shape.heads, matrix), shape, true)?;
            done
        };
        "the prefix is not seen" => |k, op| k.run(AttentionScores { shape: with_prefix(op.shape, 0), ..op });
        "the prefix ends one late" => |k, op| {
            let prefix = op.shape.prefix + usize::from(op.shape.prefix > 0);
            k.run(AttentionScores { shape: with_prefix(op.shape, prefix), ..op })
        };
        "the scale is forgotten before the softmax" => |k, op| {
            let scale = if op.softmax { op.shape.scale } else { 1.0 };
            k.run(AttentionScores { shape: AttentionShape { scale, ..op.shape }, ..op })
        };
        "NaN behind a query reaches it" => |k, op| {
            k.run(op)?;
            let time = op.shape.time;
            let scores = k.get(op.scores)?;
            let broken: Vec<bool> = scores.chunks(time * time).map(|matrix| matrix.iter().any(|x| x.is_nan())).collect();
            k.edit(op.scores, |i, x| if broken[i / (time * time)] { f32::NAN } else { x })
        };
    }
};
