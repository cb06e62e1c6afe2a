//! What the forward and the backward pass do alike with a tile of queries and keys.

use super::ahead::Ahead;
use crate::arch::Vector;
use crate::arch::tile::{Strided, multiply};
use crate::context::whole_lines;
use crate::dropout::Mask;
use crate::gemm::Begin;
use crate::math::exp;
use crate::ops::cache::Stored;
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

/// Neighbouring heads, each packed by itself: row `at` of head g is `at * P` behind the start of the head, and those
/// starts are `stride` apart. P is D, padded to whole vectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) heads: usize,
    pub(super) d_head: usize,
    pub(super) stride: usize,
}

impl Packed {
    /// Takes row `at` of all heads apart: multiplied with `factor`, and 0 behind it.
    #[inline(always)]
    pub(super) fn take_apart<V: Vector>(
        self,
        t: V::Token,
        row: &[f32],
        factor: f32,
        at: usize,
        packed: &mut [f32],
    ) {
        let padded = padded::<V>(self.d_head);
        for g in 0..self.heads {
            let row = &row[g * self.d_head..][..self.d_head];
            let packed = &mut packed[g * self.stride + at * padded..][..padded];
            for i in (0..self.d_head).step_by(V::LANES) {
                (load::<V>(t, row, i) * V::splat(t, factor)).store(&mut packed[i..]);
            }
        }
    }

    /// The way back.
    #[inline(always)]
    pub(super) fn put_together<V: Vector>(
        self,
        t: V::Token,
        packed: &[f32],
        factor: f32,
        at: usize,
        row: &mut [f32],
    ) {
        let padded = padded::<V>(self.d_head);
        for g in 0..self.heads {
            let row = &mut row[g * self.d_head..][..self.d_head];
            let packed = &packed[g * self.stride + at * padded..][..padded];
            for i in (0..self.d_head).step_by(V::LANES) {
                store(V::load(t, &packed[i..]) * V::splat(t, factor), row, i);
            }
        }
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
    (rows, depth, cols): (usize, usize, usize),
    begin: Begin,
) {
    let mut col = 0;
    while col < cols {
        let b = &b[col..];
        if cols - col >= ACROSS * V::LANES {
            columns::<V, ACROSS>(t, a, b, &mut c[col..], (rows, depth, cols), begin);
            col += ACROSS * V::LANES;
        } else {
            columns::<V, 1>(t, a, b, &mut c[col..], (rows, depth, cols), begin);
            col += V::LANES;
        }
    }
}

/// The first N vectors of the columns of a product.
#[inline(always)]
fn columns<V: Vector, const N: usize>(
    t: V::Token,
    a: Strided<'_>,
    b: &[f32],
    c: &mut [f32],
    shape: (usize, usize, usize),
    begin: Begin,
) {
    // The heights of strips, where the compiler can see them.
    match V::LANES {
        16 => strips::<V, 8, N>(t, a, b, c, shape, begin),
        _ => strips::<V, 4, N>(t, a, b, c, shape, begin),
    }
}

#[inline(always)]
fn strips<V: Vector, const M: usize, const N: usize>(
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

/// The sum of `a[i] b[i]`, for slices of one length.
#[inline(always)]
pub(super) fn dot<V: Vector>(t: V::Token, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = V::splat(t, 0.0);
    for (a, b) in a.chunks_exact(V::LANES).zip(b.chunks_exact(V::LANES)) {
        sum = V::load(t, a).mul_add(V::load(t, b), sum);
    }
    let whole = a.len() - a.len() % V::LANES;
    if whole < a.len() {
        sum = V::load_partial(t, &a[whole..]).mul_add(V::load_partial(t, &b[whole..]), sum);
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

/// Which keys a tile of queries sees: each query those up to its own position, and those of the prefix. What no query of a
/// vector sees is not computed for that vector.
#[derive(Clone, Copy)]
pub(super) struct Sight<V> {
    /// The last key that each query sees.
    last: [V; ACROSS],
    first: usize,
    prefix: usize,
    /// How many keys, the first ones, some query sees.
    pub(super) end: usize,
    /// Vectors that have queries.
    pub(super) across: usize,
}

impl<V: Vector> Sight<V> {
    /// Of `count` queries at `first` and on, which all see the first `prefix` keys.
    #[inline(always)]
    pub(super) fn new(t: V::Token, first: usize, count: usize, prefix: usize) -> Self {
        let mut last = [V::splat(t, prefix as f32 - 1.0); ACROSS];
        for (i, last) in last.iter_mut().enumerate() {
            let positions = iota::<V>(t) + V::splat(t, (first + i * V::LANES) as f32);
            *last = positions.max(*last);
        }
        Sight { last, first, prefix, end: prefix.max(first + count), across: count.div_ceil(V::LANES) }
    }

    /// How many of `keys` keys, from key `from` on, all queries of a vector see.
    #[inline(always)]
    pub(super) fn clear(&self, vector: usize, from: usize, keys: usize) -> usize {
        self.prefix.max(self.first + vector * V::LANES + 1).saturating_sub(from).min(keys)
    }

    /// How many of `keys` keys, from key `from` on, some query of a vector sees.
    #[inline(always)]
    pub(super) fn seen(&self, vector: usize, from: usize, keys: usize) -> usize {
        self.prefix.max(self.first + (vector + 1) * V::LANES).saturating_sub(from).min(keys)
    }

    /// `x` where the query sees `key`, else `hidden`.
    #[inline(always)]
    pub(super) fn select(&self, t: V::Token, vector: usize, key: usize, x: V, hidden: f32) -> V {
        let before = self.last[vector].lt(V::splat(t, key as f32));
        V::select(before, V::splat(t, hidden), x)
    }

    /// c = a b for a (keys, depth), b (depth, queries), c (keys, queries), where queries see keys.
    #[inline(always)]
    pub(super) fn scores(
        &self,
        t: V::Token,
        a: Strided<'_>,
        b: &[f32],
        c: &mut [f32],
        (from, keys, depth): (usize, usize, usize),
    ) {
        let width = queries::<V>();
        let mut both = 0;
        if self.across > 1 {
            both = self.seen(0, from, keys);
            columns::<V, ACROSS>(t, a, b, c, (both, depth, width), Begin::Zero);
        }
        if both < keys {
            // The last vector alone.
            let skip = (self.across - 1) * V::LANES;
            let c = &mut c[both * width + skip..];
            columns::<V, 1>(t, a.from(both, 0), &b[skip..], c, (keys - both, depth, width), Begin::Zero);
        }
    }

    /// c = a b, or c += a b, for a (rows, keys), b (keys, queries), c (rows, queries), where queries see keys.
    #[inline(always)]
    pub(super) fn mix(
        &self,
        t: V::Token,
        a: Strided<'_>,
        b: &[f32],
        c: &mut [f32],
        (from, keys, rows): (usize, usize, usize),
        mut begin: Begin,
    ) {
        let width = queries::<V>();
        let mut both = 0;
        if self.across > 1 {
            both = self.seen(0, from, keys);
            if both > 0 {
                columns::<V, ACROSS>(t, a, b, c, (rows, both, width), begin);
                begin = Begin::Accumulate;
            }
        }
        if both < keys {
            let skip = (self.across - 1) * V::LANES;
            let b = &b[both * width + skip..];
            columns::<V, 1>(t, a.from(0, both), b, &mut c[skip..], (rows, keys - both, width), begin);
        }
    }

    /// c += a^T b for a (keys, queries), b (queries, cols), c (keys, cols), where queries see keys.
    #[inline(always)]
    pub(super) fn back(
        &self,
        t: V::Token,
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        (from, keys, count, cols): (usize, usize, usize, usize),
    ) {
        let width = queries::<V>();
        let mut both = 0;
        if self.across > 1 {
            both = self.seen(0, from, keys);
            product::<V>(t, Strided::rows(a, width), b, c, (both, count, cols), Begin::Accumulate);
        }
        if both < keys {
            let skip = (self.across - 1) * V::LANES;
            let (a, b) = (Strided::rows(&a[both * width + skip..], width), &b[skip * cols..]);
            let c = &mut c[both * cols..];
            product::<V>(t, a, b, c, (keys - both, count - skip, cols), Begin::Accumulate);
        }
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

/// One head's keys and values, (positions, D) each, whose rows are `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'s> {
    pub(super) keys: Stored<'s>,
    pub(super) values: Stored<'s>,
    pub(super) stride: usize,
    pub(super) d_head: usize,
}

/// Scratch for a tile of queries in the forward pass. P is D, padded to whole vectors.
pub(super) struct Work<'s> {
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
    /// (keys, D), of keys or values that are stored in fewer bits.
    widened: &'s mut [f32],
}

impl<'s> Work<'s> {
    /// `widened`: so many numbers are widened at a time.
    #[inline(always)]
    pub(super) fn new<V: Vector>(scratch: &mut &'s mut [f32], d_head: usize, widened: usize) -> Self {
        let (head, keys) = (padded::<V>(d_head) * queries::<V>(), KEYS * queries::<V>());
        Work {
            q: take(scratch, head),
            out: take(scratch, head),
            scores: take(scratch, keys),
            factors: take(scratch, keys),
            factor_rows: take(scratch, keys),
            widened: take(scratch, widened),
        }
    }

    /// Whether the values of `count` positions, at most a tile, from `first` on are all finite. If one is not, each query
    /// must be a tile of its own: a tile gives the weight 0 to a value that a query does not see, and 0 times a value is 0
    /// only if the value is finite.
    #[inline(always)]
    pub(super) fn is_finite<V: Vector>(
        &mut self,
        t: V::Token,
        head: Head<'_>,
        first: usize,
        count: usize,
    ) -> bool {
        let stride = head.stride;
        is_finite::<V>(t, head.values.read::<V>(t, first * stride, count * stride, self.widened))
    }

    /// What it takes of scratch, where nothing is widened.
    pub(super) fn floats(d_head: usize) -> usize {
        let head = d_head.next_multiple_of(MAX_LANES).saturating_mul(2);
        head.saturating_add(3 * KEYS).saturating_mul(MAX_QUERIES)
    }

    /// Attention of the queries in `rows` (queries, P), of which the first is at `first`, over the keys that they see, the
    /// first `prefix` among them. Leaves the result in `rows`, and the logarithms of the denominators in `lse`, which has a
    /// place for each query.
    #[inline(always)]
    pub(super) fn attend<V: Vector>(
        &mut self,
        t: V::Token,
        rows: &mut [f32],
        head: Head<'_>,
        (first, prefix): (usize, usize),
        lse: &mut [f32],
        drop: Option<Drop>,
        mut ahead: Option<&mut Ahead<'_, 3>>,
    ) {
        let count = lse.len();
        let (width, d_head) = (queries::<V>(), head.d_head);
        let padded = padded::<V>(d_head);
        turn::<V>(t, rows, (width, padded), self.q);
        let sight = Sight::<V>::new(t, first, count, prefix);
        let end = sight.end;
        let mut max = [V::splat(t, f32::NEG_INFINITY); ACROSS];
        let mut sum = [V::splat(t, 0.0); ACROSS];
        for from in (0..end).step_by(KEYS) {
            let keys = KEYS.min(end - from);
            let (at, len) = (from * head.stride, keys * head.stride);
            let k = Strided::rows(head.keys.read::<V>(t, at, len, self.widened), head.stride);
            if let Some(ahead) = &mut ahead {
                ahead.fetch::<V>(t);
            }
            sight.scores(t, k, self.q, self.scores, (from, keys, d_head));

            // What was summed relative to the old maximum shrinks.
            let mut shrink = [V::splat(t, 0.0); ACROSS];
            for i in 0..sight.across {
                let (clear, seen) = (sight.clear(i, from, keys), sight.seen(i, from, keys));
                // The score first: where it is NaN the maximum stays, and the exponential tells.
                let mut new_max = max[i];
                for (j, scores) in self.scores.chunks_exact_mut(width).enumerate().take(seen) {
                    let score = &mut scores[i * V::LANES..];
                    let mut s = V::load(t, score);
                    if j >= clear {
                        s = sight.select(t, i, from + j, s, f32::NEG_INFINITY);
                        s.store(score);
                    }
                    new_max = s.max(new_max);
                }
                shrink[i] = exp(t, max[i] - new_max);
                sum[i] = sum[i] * shrink[i];
                max[i] = new_max;
                for scores in self.scores.chunks_exact_mut(width).take(seen) {
                    let score = &mut scores[i * V::LANES..];
                    let p = exp(t, V::load(t, score) - new_max);
                    sum[i] = sum[i] + p;
                    p.store(score);
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
            if let Some(ahead) = &mut ahead {
                ahead.fetch::<V>(t);
            }
            let v = Strided::transposed(head.values.read::<V>(t, at, len, self.widened), head.stride);
            sight.mix(t, v, self.scores, self.out, (from, keys, d_head), begin);
        }
        let mut part = [V::splat(t, 0.0); ACROSS];
        let (mut denominators, mut largest) = ([0.0; MAX_QUERIES], [0.0; MAX_QUERIES]);
        for i in 0..ACROSS {
            part[i] = V::splat(t, 1.0) / sum[i];
            sum[i].store(&mut denominators[i * V::LANES..]);
            max[i].store(&mut largest[i * V::LANES..]);
        }
        scale(t, self.out, part);
        turn::<V>(t, self.out, (padded, width), rows);
        for i in 0..count {
            lse[i] = largest[i] + libm::logf(denominators[i]);
        }
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

/// Scores of one query: `scores[j]` = scale q . `key(j)`.
#[inline(always)]
pub(super) fn score_row<'k, V: Vector>(
    t: V::Token,
    q: &[f32],
    key: impl Fn(usize) -> &'k [f32],
    scale: f32,
    scores: &mut [f32],
) {
    for (j, score) in scores.iter_mut().enumerate() {
        *score = scale * dot::<V>(t, q, key(j));
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

/// Whether all of these values are finite.
#[inline(always)]
pub(super) fn is_finite<V: Vector>(t: V::Token, values: &[f32]) -> bool {
    let zero = V::splat(t, 0.0);
    let mut nothing = zero;
    for at in (0..values.len()).step_by(V::LANES) {
        // 0 for numbers, and NaN once one is not finite.
        nothing = load::<V>(t, values, at).mul_add(zero, nothing);
    }
    nothing.sum() == 0.0
}
