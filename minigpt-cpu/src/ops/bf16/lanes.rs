//! Slices of bf16 vector by vector, whatever their length.

use crate::arch::Vector;
use crate::ops::weight::{Bf16, Format};

/// The elements of `x` from `i` on, widened; 0 in lanes beyond its end.
#[inline(always)]
pub(super) fn load<V: Vector>(t: V::Token, x: &[[u8; 2]], i: usize) -> V {
    if x.len() - i >= V::LANES { Bf16::load::<V>(t, x, i) } else { Bf16::load_rest::<V>(t, x, i) }
}

/// Rounds `v` into the elements of `x` from `i` on; lanes beyond its end are dropped.
#[inline(always)]
pub(super) fn store<V: Vector>(v: V, x: &mut [[u8; 2]], i: usize) {
    let x = &mut x[i..];
    if x.len() >= V::LANES {
        v.narrow_bf16(x);
    } else {
        let mut all = [[0; 2]; 16];
        const { assert!(V::LANES <= 16) };
        v.narrow_bf16(&mut all);
        x.copy_from_slice(&all[..x.len()]);
    }
}
