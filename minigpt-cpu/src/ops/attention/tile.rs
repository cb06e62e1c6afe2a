//! What the forward and the backward pass do alike with a tile of queries and keys.

use crate::arch::Vector;
use crate::arch::tile::{Strided, multiply};
use crate::context::whole_lines;
use crate::dropout::Mask;
use crate::gemm::Begin;
use crate::math::exp;
use crate::ops::lanes::{iota, load, load_or, store};

/// Vectors across a tile of queries.
pub(super) const ACROSS: usize = 2;

/// Queries in a tile.
#[inline(always)]
pub(super) fn queries<V: Vector>() -> usize {
    ACROSS * V::LANES
}

/// The widest vector.
pub(super) const MAX_LANES: usize = 16;

/// Queries in a tile of the widest vectors.
pub(super) const MAX_QUERIES: usize = ACROSS * MAX_LANES;

/// D in whole vectors.
#[inline(always)]
pub(super) fn padded<V: Vector>(d_head: usize) -> usize {
    d_head.next_multiple_of(V::LANES)
}

/// to = factor from.
#[inline(always)]
pub(super) fn copy_scaled<V: Vector>(t: V::Token, from: &[f32], factor: f32, to: &mut [f32]) {
    for i in (0..from.len()).step_by(V::LANES) {
        store(load::<V>(t, from, i) * V::splat(t, factor), to, i);
    }
}

/// Keys in a tile.
pub(super) const KEYS: usize = 64;

/// Splits `len` numbers off scratch; the next begin on a cache line of their own.
#[inline(always)]
pub(super) fn take<'s>(scratch: &mut &'s mut [f32], len: usize) -> &'s mut [f32] {
    let (taken, rest) = core::mem::take(scratch).split_at_mut(whole_lines(len));
    *scratch = rest;
    &mut taken[..len]
}

/// c = a b, or c += a b, for a (rows, depth), b (depth, cols), c (rows, cols); `cols` is in whole vectors.
#[inline(always)]
pub(super) fn product<V: Vector>(
    t: V::Token,
    a: Strided<'_>,
    b: &[f32],
    c: &mut [f32],
    shape: (usize, usize, usize),
    begin: Begin,
) {
    // Heads and key tiles are whole multiples of these heights, where the compiler can see them.
    match V::LANES {
        16 => product_of::<V, 8>(t, a, b, c, shape, begin),
        _ => product_of::<V, 4>(t, a, b, c, shape, begin),
    }
}

#[inline(always)]
fn product_of<V: Vector, const M: usize>(
    t: V::Token,
    a: Strided<'_>,
    b: &[f32],
    c: &mut [f32],
    (rows, depth, cols): (usize, usize, usize),
    begin: Begin,
) {
    let mut col = 0;
    while col < cols {
        let b = &b[col..];
        if cols - col >= ACROSS * V::LANES {
            columns::<V, M, ACROSS>(t, a, b, &mut c[col..], (rows, depth, cols), begin);
            col += ACROSS * V::LANES;
        } else {
            columns::<V, M, 1>(t, a, b, &mut c[col..], (rows, depth, cols), begin);
            col += V::LANES;
        }
    }
}

/// The first N vectors of the columns of a product.
#[inline(always)]
fn columns<V: Vector, const M: usize, const N: usize>(
    t: V::Token,
    a: Strided<'_>,
    b: &[f32],
    c: &mut [f32],
    (rows, depth, cols): (usize, usize, usize),
    begin: Begin,
) {
    for strip in (0..rows).step_by(M) {
        let strip_rows = M.min(rows - strip);
        let sum = multiply::<V, M, N>(t, a.from(strip, 0), b, cols, strip_rows, depth, N * V::LANES);
        for i in 0..M {
            if i < strip_rows {
                let c = &mut c[(strip + i) * cols..][..N * V::LANES];
                for j in 0..N {
                    let c = &mut c[j * V::LANES..];
                    let sum = if begin == Begin::Zero { sum[i][j] } else { V::load(t, c) + sum[i][j] };
                    sum.store(c);
                }
            }
        }
    }
}

/// The sum of `a[i] b[i]`.
#[inline(always)]
pub(super) fn dot<V: Vector>(t: V::Token, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::splat(t, 0.0);
    for i in (0..a.len()).step_by(V::LANES) {
        sum = load::<V>(t, a, i).mul_add(load(t, b, i), sum);
    }
    sum.sum()
}

/// Turns x (rows, cols) into (cols, rows); both are in whole vectors.
#[inline(always)]
pub(super) fn turn<V: Vector>(t: V::Token, x: &[f32], (rows, cols): (usize, usize), turned: &mut [f32]) {
    for row in (0..rows).step_by(V::LANES) {
        for col in (0..cols).step_by(V::LANES) {
            V::transpose(t, &x[row * cols + col..], cols, &mut turned[col * rows + row..], rows);
        }
    }
}

/// Which keys a tile of queries sees: those up to its own position.
#[derive(Clone, Copy)]
pub(super) struct Sight<V> {
    positions: [V; ACROSS],
    first: usize,
}

impl<V: Vector> Sight<V> {
    /// Of queries at `first` and on.
    #[inline(always)]
    pub(super) fn new(t: V::Token, first: usize) -> Self {
        let mut positions = [V::splat(t, 0.0); ACROSS];
        for (i, position) in positions.iter_mut().enumerate() {
            *position = iota::<V>(t) + V::splat(t, (first + i * V::LANES) as f32);
        }
        Sight { positions, first }
    }

    /// Whether some query does not see all keys before `end`.
    #[inline(always)]
    pub(super) fn is_cut(&self, end: usize) -> bool {
        end > self.first + 1
    }

    /// `x` where the query sees `key`, else `hidden`.
    #[inline(always)]
    pub(super) fn select(&self, t: V::Token, vector: usize, key: usize, x: V, hidden: f32) -> V {
        let before = self.positions[vector].lt(V::splat(t, key as f32));
        V::select(before, V::splat(t, hidden), x)
    }
}

/// Dropout of the attention weights of one head, for queries of which the first has row `line` of all (B, H, T).
#[derive(Debug, Clone, Copy)]
pub(super) struct Drop {
    pub(super) mask: Mask,
    pub(super) line: usize,
    pub(super) time: usize,
}

impl Drop {
    /// Writes what the weights of `count` queries on `keys` keys, from key `first` on, are multiplied with:
    /// (keys, queries). `rows` is scratch for (queries, keys).
    #[inline(always)]
    pub(super) fn factors<V: Vector>(
        &self,
        t: V::Token,
        first: usize,
        keys: usize,
        count: usize,
        rows: &mut [f32],
        factors: &mut [f32],
    ) {
        for (i, row) in rows.chunks_exact_mut(KEYS).take(count).enumerate() {
            let row = &mut row[..keys];
            row.fill(1.0);
            self.mask.apply((self.line + i) * self.time + first, row);
        }
        turn::<V>(t, rows, (queries::<V>(), KEYS), factors);
    }
}

/// x times the dropout's factor; 0 where that is 0, even if x is not finite.
#[inline(always)]
pub(super) fn dropped<V: Vector>(t: V::Token, x: V, factor: V) -> V {
    let zero = V::splat(t, 0.0);
    V::select(zero.lt(factor), x * factor, zero)
}

/// One head's keys and values, (positions, D) each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'s> {
    pub(super) keys: &'s [f32],
    pub(super) values: &'s [f32],
    pub(super) d_head: usize,
}

/// Scratch for a tile of queries in the forward pass. P is D, padded to whole vectors.
pub(super) struct Work<'s> {
    /// (queries, P): the queries times the scale; later the result.
    pub(super) rows: &'s mut [f32],
    /// (P, queries): the queries, turned.
    q: &'s mut [f32],
    /// (P, queries): the result, turned.
    out: &'s mut [f32],
    /// (keys, queries).
    scores: &'s mut [f32],
    /// (keys, queries).
    factors: &'s mut [f32],
    /// (queries, keys).
    factor_rows: &'s mut [f32],
}

impl<'s> Work<'s> {
    #[inline(always)]
    pub(super) fn new<V: Vector>(scratch: &mut &'s mut [f32], d_head: usize) -> Self {
        let (head, keys) = (padded::<V>(d_head) * queries::<V>(), KEYS * queries::<V>());
        Work {
            rows: take(scratch, head),
            q: take(scratch, head),
            out: take(scratch, head),
            scores: take(scratch, keys),
            factors: take(scratch, keys),
            factor_rows: take(scratch, keys),
        }
    }

    /// What it takes of scratch.
    pub(super) fn floats(d_head: usize) -> usize {
        d_head.next_multiple_of(MAX_LANES).saturating_add(KEYS).saturating_mul(3 * MAX_QUERIES)
    }

    /// Attention of the queries in `rows`, `count` of them at positions from `first` on, over the keys that they see.
    /// Leaves the result in `rows`; returns the logarithm of each query's denominator.
    #[inline(always)]
    pub(super) fn attend<V: Vector>(
        &mut self,
        t: V::Token,
        head: Head<'_>,
        first: usize,
        count: usize,
        drop: Option<Drop>,
    ) -> [f32; MAX_QUERIES] {
        let (width, d_head) = (queries::<V>(), head.d_head);
        let padded = padded::<V>(d_head);
        turn::<V>(t, self.rows, (width, padded), self.q);
        let sight = Sight::<V>::new(t, first);
        let end = first + count;
        let mut max = [V::splat(t, f32::NEG_INFINITY); ACROSS];
        let mut sum = [V::splat(t, 0.0); ACROSS];
        for from in (0..end).step_by(KEYS) {
            let keys = KEYS.min(end - from);
            let k = Strided::rows(&head.keys[from * d_head..], d_head);
            product::<V>(t, k, self.q, self.scores, (keys, d_head, width), Begin::Zero);

            let mut new_max = max;
            for (j, scores) in self.scores.chunks_exact_mut(width).take(keys).enumerate() {
                for i in 0..ACROSS {
                    let mut s = V::load(t, &scores[i * V::LANES..]);
                    if sight.is_cut(from + keys) {
                        s = sight.select(t, i, from + j, s, f32::NEG_INFINITY);
                        s.store(&mut scores[i * V::LANES..]);
                    }
                    // The score first: where it is NaN the maximum stays, and the exponential tells.
                    new_max[i] = s.max(new_max[i]);
                }
            }
            // What was summed relative to the old maximum shrinks.
            let mut shrink = [V::splat(t, 0.0); ACROSS];
            for i in 0..ACROSS {
                shrink[i] = exp(t, max[i] - new_max[i]);
                sum[i] = sum[i] * shrink[i];
                max[i] = new_max[i];
            }
            for scores in self.scores.chunks_exact_mut(width).take(keys) {
                for i in 0..ACROSS {
                    let scores = &mut scores[i * V::LANES..];
                    let p = exp(t, V::load(t, scores) - max[i]);
                    sum[i] = sum[i] + p;
                    p.store(scores);
                }
            }
            if let Some(drop) = &drop {
                drop.factors::<V>(t, from, keys, count, self.factor_rows, self.factors);
                for at in (0..keys * width).step_by(V::LANES) {
                    let p = dropped(t, V::load(t, &self.scores[at..]), V::load(t, &self.factors[at..]));
                    p.store(&mut self.scores[at..]);
                }
            }
            let begin = if from == 0 { Begin::Zero } else { Begin::Accumulate };
            if begin == Begin::Accumulate {
                scale(t, self.out, shrink);
            }
            let v = Strided::transposed(&head.values[from * d_head..], d_head);
            product::<V>(t, v, self.scores, self.out, (d_head, keys, width), begin);
        }
        let mut lse = [0.0; MAX_QUERIES];
        let mut part = [V::splat(t, 0.0); ACROSS];
        for i in 0..ACROSS {
            part[i] = V::splat(t, 1.0) / sum[i];
            sum[i].store(&mut lse[i * V::LANES..]);
        }
        scale(t, self.out, part);
        turn::<V>(t, self.out, (padded, width), self.rows);
        let mut largest = [0.0; MAX_QUERIES];
        for i in 0..ACROSS {
            max[i].store(&mut largest[i * V::LANES..]);
        }
        for (lse, largest) in lse[..count].iter_mut().zip(largest) {
            *lse = largest + libm::logf(*lse);
        }
        lse
    }
}

/// Multiplies every row of x (rows, queries) with `factors`.
#[inline(always)]
fn scale<V: Vector>(t: V::Token, x: &mut [f32], factors: [V; ACROSS]) {
    for x in x.chunks_exact_mut(queries::<V>()) {
        for i in 0..ACROSS {
            let x = &mut x[i * V::LANES..];
            (V::load(t, x) * factors[i]).store(x);
        }
    }
}

/// Scores of one query on the keys whose rows are `stride` apart: `scores[j]` = scale q . k_j.
#[inline(always)]
pub(super) fn score_row<V: Vector>(
    t: V::Token,
    q: &[f32],
    keys: &[f32],
    stride: usize,
    scale: f32,
    scores: &mut [f32],
) {
    for (j, score) in scores.iter_mut().enumerate() {
        *score = scale * dot::<V>(t, q, &keys[j * stride..][..q.len()]);
    }
}

/// Turns scores into their exponentials relative to the largest, and returns the sum of those.
#[inline(always)]
pub(super) fn softmax_row<V: Vector>(t: V::Token, scores: &mut [f32]) -> f32 {
    const REST: f32 = f32::NEG_INFINITY;
    let mut max = V::splat(t, REST);
    for i in (0..scores.len()).step_by(V::LANES) {
        max = load_or::<V>(t, scores, i, REST).max(max);
    }
    let max = V::splat(t, max.largest());
    let mut sum = V::splat(t, 0.0);
    for i in (0..scores.len()).step_by(V::LANES) {
        let p = exp(t, load_or::<V>(t, scores, i, REST) - max);
        sum = sum + p;
        store(p, scores, i);
    }
    sum.sum()
}
