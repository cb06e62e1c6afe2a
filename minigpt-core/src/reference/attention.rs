//! Multi-head attention: every token takes a weighted mean of the values of the tokens that it sees.
//!
//! For each sequence b and head h, with rows q_i, k_j, v_j of width D:
//!
//! ```text
//! s_ij  = scale q_i . k_j                       for j < n_i
//! lse_i = ln sum_{j < n_i} exp(s_ij)
//! p_ij  = exp(s_ij - lse_i)                     the softmax of row i: non-negative, sums to 1
//! out_i = sum_{j < n_i} w_ij v_j                w_ij = dropout(p_ij)
//!
//! q     (B, T, H, D)        k, v  (B, T, K, D)        their rows may lie apart
//! out   (B, T, H, D)        the heads side by side
//! lse   (B, H, T)
//! ```
//!
//! n_i is how many positions the query at i sees, the first ones: i + 1 under a causal mask; all of a prefix of P tokens, and
//! so P at least, where the prefix sees itself both ways; all T without a mask.
//!
//! With fewer heads of keys and values than of queries, K < H, every H / K heads of queries in a row share one: head h
//! reads the keys and values of head h / (H / K), rounded down. The cache is so much smaller.
//!
//! The exponentials are taken of s_ij minus the row's maximum, which cancels in p but cannot overflow. Only `lse` is
//! kept: one number a row instead of T, from which the gradient recomputes p_ij.
//!
//! # Gradient
//!
//! Let f_ij be the dropout's factor, w_ij = f_ij p_ij. out is linear in w and in v:
//!
//! ```text
//! d_v_j += sum_i w_ij d_out_i
//! d_p_ij = f_ij (d_out_i . v_j)
//! ```
//!
//! The softmax has dp_ij/ds_ik = p_ij ([j = k] - p_ik), so
//!
//! ```text
//! d_s_ij = p_ij (d_p_ij - sum_k p_ik d_p_ik) = p_ij (d_p_ij - d_out_i . out_i)
//! ```
//!
//! where the sum over k collapses because sum_k p_ik f_ik (d_out_i . v_k) = d_out_i . (sum_k w_ik v_k). That is the
//! step by which flash attention needs no row of p. Finally s is bilinear in q and k:
//!
//! ```text
//! d_q_i = scale sum_j d_s_ij k_j
//! d_k_j = scale sum_i d_s_ij q_i
//! ```
//!
//! A head of keys and values that several heads of queries share has the sum of what each of them gives.
//!
//! Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Dao et al. 2022, "FlashAttention",
//! arXiv:2205.14135, appendix B.2, for the gradient from lse; Ainslie et al. 2023, "GQA", arXiv:2305.13245, section 2.2, for
//! shared heads; Liu et al. 2018, arXiv:1801.10198, and Raffel et al. 2020, "T5", arXiv:1910.10683, section 3.2.1, for the mask
//! of a prefix.

use super::dropout::{Mask, drop_out};
use super::{Rows, add_scaled, dot};
use crate::op::AttentionShape;
use crate::real::Real;

/// Turns a row of scores into its softmax and returns the logarithm of the denominator.
fn softmax<R: Real>(scores: &mut [R]) -> R {
    let mut max = R::neg_infinity();
    for &score in scores.iter() {
        if score > max {
            max = score;
        }
    }
    let mut sum = R::zero();
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores.iter_mut() {
        *score /= sum;
    }
    max + sum.ln()
}

/// Writes `out` (B, T, H, D) and `lse` (B, H, T). `scores` is scratch for one row: T long.
///
/// The dropout index of weight (b, h, i, j) is ((b H + h) T + i) T + j.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::op::AttentionShape;
/// use minigpt_core::reference::{Rows, attention::attention_forward};
/// // Two tokens, one head, D = 1. Equal keys: the second token sees the mean of both values.
/// let (q, k, v) = ([1.0, 1.0], [0.0, 0.0], [10.0, 20.0]);
/// let [q, k, v] = [&q, &k, &v].map(|data| Rows { data: &data[..], stride: 1 });
/// let shape =
///     AttentionShape { batch: 1, time: 2, heads: 1, kv_heads: 1, d_head: 1, scale: 1.0, prefix: 0 };
/// let (mut out, mut lse, mut scores) = ([0.0f64; 2], [0.0; 2], [0.0; 2]);
/// attention_forward(q, k, v, None, &mut out, &mut lse, &mut scores, &shape);
/// assert_eq!(out, [10.0, 15.0]);
/// assert_eq!(lse, [0.0, 2f64.ln()]);
///
/// // Without a mask so does the first one.
/// let both_ways = AttentionShape { prefix: 2, ..shape };
/// attention_forward(q, k, v, None, &mut out, &mut lse, &mut scores, &both_ways);
/// assert_eq!(out, [15.0, 15.0]);
/// ```
pub fn attention_forward<R: Real>(
    q: Rows<'_, R>,
    k: Rows<'_, R>,
    v: Rows<'_, R>,
    dropout: Option<&Mask>,
    out: &mut [R],
    lse: &mut [R],
    scores: &mut [R],
    shape: &AttentionShape,
) {
    let AttentionShape { batch, time, heads, d_head, .. } = *shape;
    let scale = R::from_f64(shape.scale);
    for b in 0..batch {
        for h in 0..heads {
            let kv = shape.kv_head(h) * d_head;
            for i in 0..time {
                let seen = shape.seen(i);
                let q = q.part(b * time + i, h * d_head, d_head);
                for j in 0..seen {
                    scores[j] = scale * dot(q, k.part(b * time + j, kv, d_head));
                }
                let line = (b * heads + h) * time + i;
                lse[line] = softmax(&mut scores[..seen]);

                let out = &mut out[((b * time + i) * heads + h) * d_head..][..d_head];
                out.fill(R::zero());
                for j in 0..seen {
                    let v = v.part(b * time + j, kv, d_head);
                    add_scaled(out, drop_out(dropout, line * time + j, scores[j]), v);
                }
            }
        }
    }
}

/// Writes `d_q` (B, T, H, D), `d_k` and `d_v` (B, T, K, D), from what the forward pass read and wrote.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn attention_backward<R: Real>(
    q: Rows<'_, R>,
    k: Rows<'_, R>,
    v: Rows<'_, R>,
    out: &[R],
    lse: &[R],
    d_out: &[R],
    dropout: Option<&Mask>,
    d_q: &mut [R],
    d_k: &mut [R],
    d_v: &mut [R],
    shape: &AttentionShape,
) {
    let AttentionShape { batch, time, heads, kv_heads, d_head, .. } = *shape;
    let scale = R::from_f64(shape.scale);
    for gradient in [&mut *d_q, &mut *d_k, &mut *d_v] {
        gradient.fill(R::zero());
    }
    for b in 0..batch {
        for h in 0..heads {
            let kv = shape.kv_head(h);
            for i in 0..time {
                let line = (b * heads + h) * time + i;
                let here = ((b * time + i) * heads + h) * d_head;
                let (out, d_out) = (&out[here..][..d_head], &d_out[here..][..d_head]);
                let mean_d_p = dot(d_out, out);

                let q = q.part(b * time + i, h * d_head, d_head);
                for j in 0..shape.seen(i) {
                    let k = k.part(b * time + j, kv * d_head, d_head);
                    let v = v.part(b * time + j, kv * d_head, d_head);
                    let there = ((b * time + j) * kv_heads + kv) * d_head;
                    let index = line * time + j;

                    let p = (scale * dot(q, k) - lse[line]).exp();
                    add_scaled(&mut d_v[there..][..d_head], drop_out(dropout, index, p), d_out);
                    let d_p = drop_out(dropout, index, dot(d_out, v));
                    let d_s = p * (d_p - mean_d_p) * scale;
                    add_scaled(&mut d_q[here..][..d_head], d_s, k);
                    add_scaled(&mut d_k[there..][..d_head], d_s, q);
                }
            }
        }
    }
}

/// Stores the keys and values of some rows of one sequence in its caches, (K, capacity, D) each, at the rows' `positions`.
///
/// # Panics
/// If a slice does not fit its shape, or a position is beyond `capacity`.
pub fn cache_append<R: Real>(
    k: Rows<'_, R>,
    v: Rows<'_, R>,
    positions: &[u32],
    keys: &mut [R],
    values: &mut [R],
    capacity: usize,
    kv_heads: usize,
    d_head: usize,
) {
    for (row, &position) in positions.iter().enumerate() {
        for h in 0..kv_heads {
            let to = (h * capacity + position as usize) * d_head;
            keys[to..][..d_head].copy_from_slice(k.part(row, h * d_head, d_head));
            values[to..][..d_head].copy_from_slice(v.part(row, h * d_head, d_head));
        }
    }
}

/// Attention of some rows of one sequence over its caches, (K, capacity, D) each: the query of a row sees the positions from
/// 0 to the row's `last`. Writes `out`, (H, D) for each row. `scores` is scratch: `capacity` long.
///
/// # Panics
/// If a slice does not fit its shape, or a `last` position is beyond `capacity`.
///
/// ```
/// use minigpt_core::reference::{Rows, attention::{attention_cached, cache_append}};
/// let (mut keys, mut values) = ([0.0f64; 4], [0.0; 4]);
/// let (mut out, mut scores) = ([0.0], [0.0; 4]);
/// for (position, value) in [(0, 10.0), (1, 20.0)] {
///     let data = [1.0, 0.0, value];
///     let [q, k, v] = [0, 1, 2].map(|i| Rows { data: &data[i..=i], stride: 1 });
///     cache_append(k, v, &[position], &mut keys, &mut values, 4, 1, 1);
///     attention_cached(q, &keys, &values, &[position], &mut out, &mut scores, 4, 1, 1, 1, 1.0);
/// }
/// assert_eq!(out, [15.0]);
/// ```
pub fn attention_cached<R: Real>(
    q: Rows<'_, R>,
    keys: &[R],
    values: &[R],
    last: &[u32],
    out: &mut [R],
    scores: &mut [R],
    capacity: usize,
    heads: usize,
    kv_heads: usize,
    d_head: usize,
    scale: f64,
) {
    let scale = R::from_f64(scale);
    let group = heads.checked_div(kv_heads).unwrap_or(1);
    for (row, &last) in last.iter().enumerate() {
        let scores = &mut scores[..=last as usize];
        for h in 0..heads {
            // Where position j of this head's keys and values lies.
            let place = |j: usize| (h / group * capacity + j) * d_head;
            let q = q.part(row, h * d_head, d_head);
            for (j, score) in scores.iter_mut().enumerate() {
                *score = scale * dot(q, &keys[place(j)..][..d_head]);
            }
            softmax(scores);
            let out = &mut out[(row * heads + h) * d_head..][..d_head];
            out.fill(R::zero());
            for (j, &weight) in scores.iter().enumerate() {
                add_scaled(out, weight, &values[place(j)..][..d_head]);
            }
        }
    }
}

/// Writes the matrices that the other functions never store, (B, H, T, T): the weights p_ij if `weights`, else the
/// scores s_ij. Where a query does not see a key, both are 0.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn attention_scores<R: Real>(
    q: Rows<'_, R>,
    k: Rows<'_, R>,
    scores: &mut [R],
    weights: bool,
    shape: &AttentionShape,
) {
    let AttentionShape { batch, time, heads, d_head, .. } = *shape;
    let scale = R::from_f64(shape.scale);
    scores.fill(R::zero());
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..time {
                let q = q.part(b * time + i, h * d_head, d_head);
                let row = &mut scores[((b * heads + h) * time + i) * time..][..time];
                for j in 0..shape.seen(i) {
                    let k = k.part(b * time + j, shape.kv_head(h) * d_head, d_head);
                    row[j] = scale * dot(q, k);
                }
                if weights {
                    softmax(&mut row[..shape.seen(i)]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Causal, with a prefix, without a mask; heads of their own and shared ones.
    const SHAPES: [AttentionShape; 7] = [
        shape(1, 2, [1, 1], 3, 0),
        shape(2, 3, [2, 2], 2, 0),
        shape(1, 5, [3, 3], 1, 2),
        shape(2, 4, [1, 1], 5, 4),
        shape(1, 4, [4, 2], 3, 0),
        shape(2, 3, [6, 2], 2, 9),
        shape(1, 6, [2, 1], 2, 3),
    ];

    const fn shape(
        batch: usize,
        time: usize,
        [heads, kv_heads]: [usize; 2],
        d_head: usize,
        prefix: usize,
    ) -> AttentionShape {
        AttentionShape { batch, time, heads, kv_heads, d_head, scale: 0.6, prefix }
    }

    /// How wide a row of queries, keys and values side by side is, with one number that belongs to none of them.
    fn width(shape: &AttentionShape) -> usize {
        (shape.heads + 2 * shape.kv_heads) * shape.d_head + 1
    }

    fn qkv_len(shape: &AttentionShape) -> usize {
        shape.batch * shape.time * width(shape)
    }

    fn parts<'a>(qkv: &'a [f64], shape: &AttentionShape) -> [Rows<'a, f64>; 3] {
        let (q, kv) = (shape.heads * shape.d_head, shape.kv_heads * shape.d_head);
        [0, q, q + kv].map(|first| Rows { data: &qkv[first..], stride: width(shape) })
    }

    fn forward(qkv: &[f64], dropout: Option<&Mask>, shape: &AttentionShape) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v] = parts(qkv, shape);
        let lines = shape.batch * shape.heads * shape.time;
        let (mut out, mut lse) = (vec![f64::NAN; lines * shape.d_head], vec![f64::NAN; lines]);
        let mut scores = vec![f64::NAN; shape.time];
        attention_forward(q, k, v, dropout, &mut out, &mut lse, &mut scores, shape);
        (out, lse)
    }

    fn matrices(qkv: &[f64], weights: bool, shape: &AttentionShape) -> Vec<f64> {
        let [q, k, _] = parts(qkv, shape);
        let mut scores = vec![f64::NAN; shape.batch * shape.heads * shape.time * shape.time];
        attention_scores(q, k, &mut scores, weights, shape);
        scores
    }

    /// The gradients as columns of one matrix; 0 where the number belongs to none of them.
    fn backward(
        qkv: &[f64],
        dropout: Option<&Mask>,
        (out, lse, d_out): (&[f64], &[f64], &[f64]),
        shape: &AttentionShape,
    ) -> Vec<f64> {
        let [q, k, v] = parts(qkv, shape);
        let rows = shape.batch * shape.time;
        let widths = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| heads * shape.d_head);
        let [mut d_q, mut d_k, mut d_v] = widths.map(|width| vec![f64::NAN; rows * width]);
        attention_backward(q, k, v, out, lse, d_out, dropout, &mut d_q, &mut d_k, &mut d_v, shape);
        let mut all = Vec::new();
        for row in 0..rows {
            for (part, width) in [&d_q, &d_k, &d_v].into_iter().zip(widths) {
                all.extend(&part[row * width..][..width]);
            }
            all.push(0.0);
        }
        all
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let mask = Mask::new(0.3, 9, &[5, 0, 1, 0]);
        for shape in SHAPES {
            for (dropout, scale) in [(None, 0.6), (Some(&mask), 1.3)] {
                let shape = AttentionShape { scale, ..shape };
                let qkv = random(1, qkv_len(&shape));
                let (out, lse) = forward(&qkv, dropout, &shape);
                let weights = random(2, out.len());
                let d_qkv = backward(&qkv, dropout, (&out, &lse, &weights), &shape);
                assert_gradient("qkv", &d_qkv, &qkv, |qkv| {
                    weighted_sum(&forward(qkv, dropout, &shape).0, &weights)
                });
            }
        }
    }

    /// The definition, with the mask as a matrix, and each head of keys and values copied for the heads of queries that
    /// share it.
    #[test]
    fn forward_is_the_definition() {
        let mask = Mask::new(0.4, 9, &[5, 0, 1, 0]);
        for shape in SHAPES {
            let AttentionShape { batch, time, heads, kv_heads, d_head, scale, prefix } = shape;
            let qkv = random(1, qkv_len(&shape));
            let get = |b: usize, t: usize, head: usize, d: usize| {
                qkv[(b * time + t) * width(&shape) + head * d_head + d]
            };
            let (out, lse) = forward(&qkv, Some(&mask), &shape);
            let (scores, weights) = (matrices(&qkv, false, &shape), matrices(&qkv, true, &shape));
            for (b, h, i) in
                (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..time).map(move |i| (b, h, i))))
            {
                let shared = (0..kv_heads).flat_map(|kv| vec![kv; heads / kv_heads]).nth(h).unwrap();
                let (key, value) = (heads + shared, heads + kv_heads + shared);
                let sees = |j: usize| j <= i || j < prefix;
                let score = |j: usize| -> f64 {
                    scale * (0..d_head).map(|d| get(b, i, h, d) * get(b, j, key, d)).sum::<f64>()
                };
                let denominator: f64 = (0..time).filter(|&j| sees(j)).map(|j| score(j).exp()).sum();
                let weight = |j: usize| if sees(j) { score(j).exp() / denominator } else { 0.0 };
                let line = (b * heads + h) * time + i;
                assert_close(&[lse[line]], &[denominator.ln()], 1e-13);
                for j in 0..time {
                    let seen = if sees(j) { score(j) } else { 0.0 };
                    assert_close(&[scores[line * time + j]], &[seen], 1e-13);
                    assert_close(&[weights[line * time + j]], &[weight(j)], 1e-13);
                }
                for d in 0..d_head {
                    let mean: f64 =
                        (0..time).map(|j| mask.apply(line * time + j, weight(j)) * get(b, j, value, d)).sum();
                    assert_close(&[out[((b * time + i) * heads + h) * d_head + d]], &[mean], 1e-13);
                }
            }
        }
    }

    #[test]
    fn a_token_that_is_not_seen_changes_no_result() {
        for shape in SHAPES {
            let AttentionShape { batch, time, heads, d_head, .. } = shape;
            let qkv = random(1, qkv_len(&shape));
            let (out, lse) = forward(&qkv, None, &shape);
            for changed in 0..time {
                let mut other = qkv.clone();
                for b in 0..batch {
                    other[(b * time + changed) * width(&shape)..][..width(&shape)].fill(1e3);
                }
                let (other_out, other_lse) = forward(&other, None, &shape);
                for (b, t) in (0..batch).flat_map(|b| (0..time).map(move |t| (b, t))) {
                    let unseen = changed >= shape.seen(t);
                    let at = (b * time + t) * heads * d_head..(b * time + t + 1) * heads * d_head;
                    assert_eq!(out[at.clone()] == other_out[at], unseen, "{t} after {changed}");
                    for h in 0..heads {
                        let line = (b * heads + h) * time + t;
                        assert_eq!(lse[line] == other_lse[line], unseen);
                    }
                }
            }
        }
    }

    #[test]
    fn weights_are_the_exponentials_of_score_minus_lse_and_rows_sum_to_one() {
        for shape in SHAPES {
            let time = shape.time;
            let qkv = random(1, qkv_len(&shape));
            let (_, lse) = forward(&qkv, None, &shape);
            let (scores, weights) = (matrices(&qkv, false, &shape), matrices(&qkv, true, &shape));
            for line in 0..lse.len() {
                let row = line * time..(line + 1) * time;
                assert_close(&[weights[row.clone()].iter().sum::<f64>()], &[1.0], 1e-14);
                let seen = shape.seen(line % time);
                for (p, s) in weights[row.clone()].iter().zip(&scores[row]).take(seen) {
                    assert_close(&[*p], &[(s - lse[line]).exp()], 1e-14);
                }
            }
        }
    }

    #[test]
    fn cached_attention_equals_full_attention_for_any_split() {
        for shape in SHAPES {
            let AttentionShape { batch, time, heads, kv_heads, d_head, scale, .. } = shape;
            let qkv = random(1, qkv_len(&shape));
            let (full, _) = forward(&qkv, None, &shape);
            let (row, wide) = (width(&shape), heads * d_head);
            // What sees itself both ways is one piece at least.
            let pieces = (shape.seen(0)..=time).flat_map(|first| (0..batch).map(move |b| (first, b)));
            for (first, b) in pieces {
                let (qkv, full) = (&qkv[b * time * row..], &full[b * time * wide..]);
                let capacity = time + 1;
                let untouched = 7.0;
                let mut keys = vec![untouched; kv_heads * capacity * d_head];
                let mut values = keys.clone();
                let mut past = 0;
                // A prompt of `first` tokens, then one by one.
                while past < time {
                    let new = if past == 0 { first } else { 1 };
                    let [q, k, v] = parts(&qkv[past * row..], &shape);
                    let positions: Vec<u32> = (past..past + new).map(|position| position as u32).collect();
                    let last: Vec<u32> =
                        (past..past + new).map(|position| shape.seen(position) as u32 - 1).collect();
                    let (mut out, mut scores) = (vec![f64::NAN; new * wide], vec![f64::NAN; capacity]);
                    cache_append(k, v, &positions, &mut keys, &mut values, capacity, kv_heads, d_head);
                    attention_cached(
                        q,
                        &keys,
                        &values,
                        &last,
                        &mut out,
                        &mut scores,
                        capacity,
                        heads,
                        kv_heads,
                        d_head,
                        scale,
                    );
                    assert_close(&out, &full[past * wide..][..new * wide], 1e-14);
                    past += new;
                }
                // (K, capacity, D): what was stored, and nothing beyond.
                let [_, k, v] = parts(qkv, &shape);
                for (part, cache) in [(k, &keys), (v, &values)] {
                    for (index, &number) in cache.iter().enumerate() {
                        let (d, p, h) =
                            (index % d_head, index / d_head % capacity, index / d_head / capacity);
                        let stored = if p < time { part.part(p, h * d_head + d, 1)[0] } else { untouched };
                        assert_eq!(number, stored);
                    }
                }
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        // Scores 0 and 1000: the second token sees only itself.
        let (q, k, v) = ([1.0f32, 1.0], [0.0, 1000.0], [3.0, 5.0]);
        let [q, k, v] = [&q, &k, &v].map(|data| Rows { data: &data[..], stride: 1 });
        let (mut out, mut lse, mut scores) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        let shape = AttentionShape { scale: 1.0, ..shape(1, 2, [1, 1], 1, 0) };
        attention_forward(q, k, v, None, &mut out, &mut lse, &mut scores, &shape);
        assert_eq!((out, lse), ([3.0, 5.0], [0.0, 1000.0]));
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        let shape = shape(1, 3, [1, 1], 1, 0);
        let mut qkv = random(1, qkv_len(&shape));
        qkv[width(&shape) + 1] = f64::NAN;
        let (out, _) = forward(&qkv, None, &shape);
        assert!(out[0].is_finite() && out[1].is_nan() && out[2].is_nan());
    }
}
