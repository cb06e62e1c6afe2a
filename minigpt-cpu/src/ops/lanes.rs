//! Slices vector by vector, whatever their length.

use crate::arch::Vector;

/// How many elements a task of an elementwise op should have: some microseconds of work, far more than it costs to
/// hand the task to a thread.
const TASK: usize = 1 << 14;

/// How many rows of `width` make a task. A function of the shape alone.
pub(super) fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// The elements of `x` from `i` on; 0 in lanes beyond its end.
#[inline(always)]
pub(super) fn load<V: Vector>(t: V::Token, x: &[f32], i: usize) -> V {
    let x = &x[i..];
    if x.len() >= V::LANES { V::load(t, x) } else { V::load_partial(t, x) }
}

/// Writes `v` to the elements of `x` from `i` on; lanes beyond its end are dropped.
#[inline(always)]
pub(super) fn store<V: Vector>(v: V, x: &mut [f32], i: usize) {
    let x = &mut x[i..];
    if x.len() >= V::LANES { v.store(x) } else { v.store_partial(x) }
}

/// 0, 1, 2, ...
#[inline(always)]
pub(super) fn iota<V: Vector>(t: V::Token) -> V {
    const IOTA: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
    const { assert!(V::LANES <= IOTA.len()) };
    V::load(t, &IOTA)
}

/// As [`load`], with `rest` in the lanes beyond the end.
#[inline(always)]
pub(super) fn load_or<V: Vector>(t: V::Token, x: &[f32], i: usize, rest: f32) -> V {
    let there = x.len() - i;
    if there >= V::LANES {
        return V::load(t, &x[i..]);
    }
    V::select(iota::<V>(t).lt(V::splat(t, there as f32)), V::load_partial(t, &x[i..]), V::splat(t, rest))
}
