//! Causal multi-head attention: every token takes a weighted mean of the values of the tokens up to itself.
//!
//! For each sequence b and head h, with rows q_i, k_j, v_j of width D:
//!
//! ```text
//! s_ij  = scale q_i . k_j                       for j <= i
//! lse_i = ln sum_{j <= i} exp(s_ij)
//! p_ij  = exp(s_ij - lse_i)                     the softmax of row i: non-negative, sums to 1
//! out_i = sum_{j <= i} w_ij v_j                 w_ij = dropout(p_ij)
//!
//! qkv   (B, T, 3, H, D)     queries, keys and values side by side
//! out   (B, T, H, D)        the heads side by side: (B, T, C)
//! lse   (B, H, T)
//! ```
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
//! Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; Dao et al. 2022, "FlashAttention",
//! arXiv:2205.14135, appendix B.2, for the gradient from lse.

use super::dropout::{Mask, drop_out};
use super::{add_scaled, dot};
use crate::real::Real;

const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// Where the query, key or value of `head` begins in row `row` = b T + t of qkv.
fn at(row: usize, part: usize, head: usize, heads: usize, d_head: usize) -> usize {
    ((row * 3 + part) * heads + head) * d_head
}

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

/// Writes `out` (B, T, C) and `lse` (B, H, T). `scores` is scratch for one row: T long.
///
/// The dropout index of weight (b, h, i, j) is ((b H + h) T + i) T + j.
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::reference::attention::attention_forward;
/// // Two tokens, one head, D = 1; rows are (q, k, v). Equal keys: the second token sees the mean of both values.
/// let qkv = [1.0, 0.0, 10.0, 1.0, 0.0, 20.0];
/// let (mut out, mut lse, mut scores) = ([0.0f64; 2], [0.0; 2], [0.0; 2]);
/// attention_forward(&qkv, None, &mut out, &mut lse, &mut scores, 1, 2, 1, 1, 1.0);
/// assert_eq!(out, [10.0, 15.0]);
/// assert_eq!(lse, [0.0, 2f64.ln()]);
/// ```
pub fn attention_forward<R: Real>(
    qkv: &[R],
    dropout: Option<&Mask>,
    out: &mut [R],
    lse: &mut [R],
    scores: &mut [R],
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
    scale: f64,
) {
    let scale = R::from_f64(scale);
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..time {
                let q = &qkv[at(b * time + i, QUERY, h, heads, d_head)..][..d_head];
                for j in 0..=i {
                    let k = &qkv[at(b * time + j, KEY, h, heads, d_head)..][..d_head];
                    scores[j] = scale * dot(q, k);
                }
                let line = (b * heads + h) * time + i;
                lse[line] = softmax(&mut scores[..=i]);

                let out = &mut out[((b * time + i) * heads + h) * d_head..][..d_head];
                out.fill(R::zero());
                for j in 0..=i {
                    let v = &qkv[at(b * time + j, VALUE, h, heads, d_head)..][..d_head];
                    add_scaled(out, drop_out(dropout, line * time + j, scores[j]), v);
                }
            }
        }
    }
}

/// Writes `d_qkv` (B, T, 3C), from what the forward pass read and wrote.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn attention_backward<R: Real>(
    qkv: &[R],
    out: &[R],
    lse: &[R],
    d_out: &[R],
    dropout: Option<&Mask>,
    d_qkv: &mut [R],
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
    scale: f64,
) {
    let scale = R::from_f64(scale);
    d_qkv.fill(R::zero());
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..time {
                let line = (b * heads + h) * time + i;
                let here = ((b * time + i) * heads + h) * d_head;
                let (out, d_out) = (&out[here..][..d_head], &d_out[here..][..d_head]);
                let mean_d_p = dot(d_out, out);

                let at_q = at(b * time + i, QUERY, h, heads, d_head);
                let q = &qkv[at_q..][..d_head];
                for j in 0..=i {
                    let at_k = at(b * time + j, KEY, h, heads, d_head);
                    let at_v = at(b * time + j, VALUE, h, heads, d_head);
                    let (k, v) = (&qkv[at_k..][..d_head], &qkv[at_v..][..d_head]);
                    let index = line * time + j;

                    let p = (scale * dot(q, k) - lse[line]).exp();
                    add_scaled(&mut d_qkv[at_v..][..d_head], drop_out(dropout, index, p), d_out);
                    let d_p = drop_out(dropout, index, dot(d_out, v));
                    let d_s = p * (d_p - mean_d_p) * scale;
                    add_scaled(&mut d_qkv[at_q..][..d_head], d_s, k);
                    add_scaled(&mut d_qkv[at_k..][..d_head], d_s, q);
                }
            }
        }
    }
}

/// Stores the keys and values of some rows of one sequence in its caches, (H, capacity, D) each, at the rows' `positions`.
///
/// # Panics
/// If a slice does not fit its shape, or a position is beyond `capacity`.
pub fn cache_append<R: Real>(
    qkv: &[R],
    positions: &[u32],
    keys: &mut [R],
    values: &mut [R],
    capacity: usize,
    heads: usize,
    d_head: usize,
) {
    for (row, &position) in positions.iter().enumerate() {
        for h in 0..heads {
            let to = (h * capacity + position as usize) * d_head;
            let (k, v) = (at(row, KEY, h, heads, d_head), at(row, VALUE, h, heads, d_head));
            keys[to..][..d_head].copy_from_slice(&qkv[k..][..d_head]);
            values[to..][..d_head].copy_from_slice(&qkv[v..][..d_head]);
        }
    }
}

/// Attention of some rows of one sequence over its caches, (H, capacity, D) each: the query of a row sees the positions from
/// 0 to its own. Writes `out`, a row of C for each. `scores` is scratch: `capacity` long.
///
/// # Panics
/// If a slice does not fit its shape, or a position is beyond `capacity`.
///
/// ```
/// use minigpt_core::reference::attention::{attention_cached, cache_append};
/// let (mut keys, mut values) = ([0.0f64; 4], [0.0; 4]);
/// let (mut out, mut scores) = ([0.0], [0.0; 4]);
/// for (position, value) in [(0, 10.0), (1, 20.0)] {
///     let qkv = [1.0, 0.0, value];
///     cache_append(&qkv, &[position], &mut keys, &mut values, 4, 1, 1);
///     attention_cached(&qkv, &keys, &values, &[position], &mut out, &mut scores, 4, 1, 1, 1.0);
/// }
/// assert_eq!(out, [15.0]);
/// ```
pub fn attention_cached<R: Real>(
    qkv: &[R],
    keys: &[R],
    values: &[R],
    positions: &[u32],
    out: &mut [R],
    scores: &mut [R],
    capacity: usize,
    heads: usize,
    d_head: usize,
    scale: f64,
) {
    let scale = R::from_f64(scale);
    for (row, &position) in positions.iter().enumerate() {
        let scores = &mut scores[..=position as usize];
        for h in 0..heads {
            // Where position j of this head lies.
            let place = |j: usize| (h * capacity + j) * d_head;
            let q = &qkv[at(row, QUERY, h, heads, d_head)..][..d_head];
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
/// scores s_ij. Above the diagonal both are 0.
///
/// # Panics
/// If a slice does not fit its shape.
pub fn attention_scores<R: Real>(
    qkv: &[R],
    scores: &mut [R],
    weights: bool,
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
    scale: f64,
) {
    let scale = R::from_f64(scale);
    scores.fill(R::zero());
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..time {
                let q = &qkv[at(b * time + i, QUERY, h, heads, d_head)..][..d_head];
                let row = &mut scores[((b * heads + h) * time + i) * time..][..time];
                for j in 0..=i {
                    let k = &qkv[at(b * time + j, KEY, h, heads, d_head)..][..d_head];
                    row[j] = scale * dot(q, k);
                }
                if weights {
                    softmax(&mut row[..=i]);
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

    /// (batch, time, heads, d_head)
    const SHAPES: [(usize, usize, usize, usize); 4] =
        [(1, 2, 1, 3), (2, 3, 2, 2), (1, 5, 3, 1), (2, 4, 1, 5)];

    fn forward(
        qkv: &[f64],
        dropout: Option<&Mask>,
        (batch, time, heads, d_head): (usize, usize, usize, usize),
        scale: f64,
    ) -> (Vec<f64>, Vec<f64>) {
        let mut out = vec![f64::NAN; batch * time * heads * d_head];
        let mut lse = vec![f64::NAN; batch * heads * time];
        let mut scores = vec![f64::NAN; time];
        attention_forward(qkv, dropout, &mut out, &mut lse, &mut scores, batch, time, heads, d_head, scale);
        (out, lse)
    }

    fn matrices(
        qkv: &[f64],
        weights: bool,
        (batch, time, heads, d_head): (usize, usize, usize, usize),
        scale: f64,
    ) -> Vec<f64> {
        let mut scores = vec![f64::NAN; batch * heads * time * time];
        attention_scores(qkv, &mut scores, weights, batch, time, heads, d_head, scale);
        scores
    }

    fn qkv_len((batch, time, heads, d_head): (usize, usize, usize, usize)) -> usize {
        batch * time * 3 * heads * d_head
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let mask = Mask::new(0.3, 9, &[5, 0, 1, 0]);
        for shape in SHAPES {
            let (batch, time, heads, d_head) = shape;
            for (dropout, scale) in [(None, 0.6), (Some(&mask), 1.3)] {
                let qkv = random(1, qkv_len(shape));
                let weights = random(2, batch * time * heads * d_head);
                let (out, lse) = forward(&qkv, dropout, shape, scale);
                let mut d_qkv = vec![f64::NAN; qkv.len()];
                attention_backward(
                    &qkv, &out, &lse, &weights, dropout, &mut d_qkv, batch, time, heads, d_head, scale,
                );
                assert_gradient("qkv", &d_qkv, &qkv, |qkv| {
                    weighted_sum(&forward(qkv, dropout, shape, scale).0, &weights)
                });
            }
        }
    }

    /// The definition, written with the layout's indices in full: [b][t][part][h][d].
    #[test]
    fn forward_is_the_definition() {
        let mask = Mask::new(0.4, 9, &[5, 0, 1, 0]);
        for shape in SHAPES {
            let (batch, time, heads, d_head) = shape;
            let qkv = random(1, qkv_len(shape));
            let get = |b: usize, t: usize, part: usize, h: usize, d: usize| {
                qkv[(((b * time + t) * 3 + part) * heads + h) * d_head + d]
            };
            let (out, lse) = forward(&qkv, Some(&mask), shape, 0.7);
            let scores = matrices(&qkv, false, shape, 0.7);
            let weights = matrices(&qkv, true, shape, 0.7);
            for b in 0..batch {
                for h in 0..heads {
                    for i in 0..time {
                        let score = |j: usize| -> f64 {
                            0.7 * (0..d_head).map(|d| get(b, i, 0, h, d) * get(b, j, 1, h, d)).sum::<f64>()
                        };
                        let denominator: f64 = (0..=i).map(|j| score(j).exp()).sum();
                        let line = (b * heads + h) * time + i;
                        assert_close(&[lse[line]], &[denominator.ln()], 1e-13);
                        for j in 0..time {
                            let seen = j <= i;
                            let s = if seen { score(j) } else { 0.0 };
                            let p = if seen { score(j).exp() / denominator } else { 0.0 };
                            assert_close(&[scores[line * time + j]], &[s], 1e-13);
                            assert_close(&[weights[line * time + j]], &[p], 1e-13);
                        }
                        for d in 0..d_head {
                            let mean: f64 = (0..=i)
                                .map(|j| {
                                    mask.apply(line * time + j, score(j).exp() / denominator)
                                        * get(b, j, 2, h, d)
                                })
                                .sum();
                            assert_close(&[out[((b * time + i) * heads + h) * d_head + d]], &[mean], 1e-13);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_later_token_changes_no_earlier_result() {
        for shape in SHAPES {
            let (batch, time, heads, d_head) = shape;
            let qkv = random(1, qkv_len(shape));
            let (out, lse) = forward(&qkv, None, shape, 1.0);
            for changed in 0..time {
                let mut other = qkv.clone();
                let row = 3 * heads * d_head;
                for b in 0..batch {
                    other[(b * time + changed) * row..][..row].fill(1e3);
                }
                let (other_out, other_lse) = forward(&other, None, shape, 1.0);
                for b in 0..batch {
                    for t in 0..time {
                        let at = (b * time + t) * heads * d_head..(b * time + t + 1) * heads * d_head;
                        assert_eq!(out[at.clone()] == other_out[at], t < changed, "{t} after {changed}");
                        for h in 0..heads {
                            let line = (b * heads + h) * time + t;
                            assert_eq!(lse[line] == other_lse[line], t < changed);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn weights_are_the_exponentials_of_score_minus_lse_and_rows_sum_to_one() {
        for shape in SHAPES {
            let (_, time, ..) = shape;
            let qkv = random(1, qkv_len(shape));
            let (_, lse) = forward(&qkv, None, shape, 0.5);
            let scores = matrices(&qkv, false, shape, 0.5);
            let weights = matrices(&qkv, true, shape, 0.5);
            for line in 0..lse.len() {
                let row = line * time..(line + 1) * time;
                assert_close(&[weights[row.clone()].iter().sum::<f64>()], &[1.0], 1e-14);
                for (p, s) in weights[row.clone()].iter().zip(&scores[row]).take(line % time + 1) {
                    assert_close(&[*p], &[(s - lse[line]).exp()], 1e-14);
                }
            }
        }
    }

    #[test]
    fn cached_attention_equals_full_attention_for_any_split() {
        for shape in SHAPES {
            let (_, time, heads, d_head) = shape;
            let qkv = random(1, qkv_len(shape));
            let (full, _) = forward(&qkv, None, shape, 0.8);
            let (row, wide) = (3 * heads * d_head, heads * d_head);
            let sequences = qkv.chunks_exact(time * row).zip(full.chunks_exact(time * wide));
            for ((qkv, full), first) in sequences.flat_map(|sequence| (1..=time).map(move |i| (sequence, i)))
            {
                let capacity = time + 1;
                let untouched = 7.0;
                let mut keys = vec![untouched; heads * capacity * d_head];
                let mut values = keys.clone();
                let mut past = 0;
                // A prompt of `first` tokens, then one by one.
                while past < time {
                    let new = if past == 0 { first } else { 1 };
                    let part = &qkv[past * row..][..new * row];
                    let positions: Vec<u32> = (past..past + new).map(|position| position as u32).collect();
                    let mut out = vec![f64::NAN; new * wide];
                    let mut scores = vec![f64::NAN; capacity];
                    cache_append(part, &positions, &mut keys, &mut values, capacity, heads, d_head);
                    attention_cached(
                        part,
                        &keys,
                        &values,
                        &positions,
                        &mut out,
                        &mut scores,
                        capacity,
                        heads,
                        d_head,
                        0.8,
                    );
                    assert_close(&out, &full[past * wide..][..new * wide], 1e-14);
                    past += new;
                }
                // (H, capacity, D): what was stored, and nothing beyond.
                for (part, cache) in [(1, &keys), (2, &values)] {
                    for (index, &number) in cache.iter().enumerate() {
                        let (d, p, h) =
                            (index % d_head, index / d_head % capacity, index / d_head / capacity);
                        let stored = qkv.get(((p * 3 + part) * heads + h) * d_head + d);
                        assert_eq!(number, *stored.filter(|_| p < time).unwrap_or(&untouched));
                    }
                }
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        // Scores 0 and 1000: the second token sees only itself.
        let qkv = [1.0f32, 0.0, 3.0, 1.0, 1000.0, 5.0];
        let (mut out, mut lse, mut scores) = ([0.0; 2], [0.0; 2], [0.0; 2]);
        attention_forward(&qkv, None, &mut out, &mut lse, &mut scores, 1, 2, 1, 1, 1.0);
        assert_eq!((out, lse), ([3.0, 5.0], [0.0, 1000.0]));
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        let mut qkv = random(1, 3 * 3);
        qkv[4] = f64::NAN;
        let (out, _) = forward(&qkv, None, (1, 3, 1, 1), 1.0);
        assert!(out[0].is_finite() && out[1].is_nan() && out[2].is_nan());
    }
}
