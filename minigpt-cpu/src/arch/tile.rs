//! The innermost loop of every matrix product: a tile of the result stays in registers while the depth runs by.
//!
//! It is unsafe code because two loads per step would need a check each that the optimiser cannot remove; here the
//! whole extent is checked once.

use core::slice;

use super::Vector;

/// A matrix to read: element (row, col) is `data[row * row_stride + col * col_stride]`, so that it can be read
/// transposed without being moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> Strided<'a> {
    /// A row-major matrix of `cols` columns.
    pub(crate) fn rows(data: &'a [f32], cols: usize) -> Self {
        Strided { data, row_stride: cols, col_stride: 1 }
    }

    /// The transpose of a row-major matrix of `cols` columns.
    pub(crate) fn transposed(data: &'a [f32], cols: usize) -> Self {
        Strided { data, row_stride: 1, col_stride: cols }
    }

    /// The same without what is above `row` and left of `col`.
    #[inline(always)]
    pub(crate) fn from(self, row: usize, col: usize) -> Self {
        Strided { data: &self.data[row * self.row_stride + col * self.col_stride..], ..self }
    }
}

/// The product of `rows` x `depth` of `a` with `depth` rows of `width` elements of `b`, whose rows are `b_stride`
/// apart, added up in the order of the depth.
///
/// Rows of the result from `rows` on repeat the last one; columns from `width` on are 0.
///
/// # Panics
/// If `rows` is not in 1 ..= M, `width` not in 1 ..= N * LANES, or the matrices do not have so many elements.
#[inline(always)]
pub(crate) fn multiply<V: Vector, const M: usize, const N: usize>(
    t: V::Token,
    a: Strided<'_>,
    b: &[f32],
    b_stride: usize,
    rows: usize,
    depth: usize,
    width: usize,
) -> [[V; N]; M] {
    let mut sum = [[V::splat(t, 0.0); N]; M];
    if depth == 0 {
        return sum;
    }
    assert!((1..=M).contains(&rows) && (1..=N * V::LANES).contains(&width));
    // Checked, because the reads below rest on these sums.
    let product = |count: usize, stride: usize| count.checked_mul(stride);
    let last = product(rows - 1, a.row_stride)
        .zip(product(depth - 1, a.col_stride))
        .and_then(|(row, col)| row.checked_add(col));
    assert!(last.is_some_and(|last| last < a.data.len()));
    let end = product(depth - 1, b_stride).and_then(|start| start.checked_add(width));
    assert!(end.is_some_and(|end| end <= b.len()));
    let row: [usize; M] = core::array::from_fn(|i| i.min(rows - 1) * a.row_stride);
    let whole = width == N * V::LANES;
    let (a_start, b_start) = (a.data.as_ptr(), b.as_ptr());
    if whole {
        for k in 0..depth {
            // SAFETY: row k of b has its `width` elements inside the slice, as asserted for the last row.
            let b = unsafe { slice::from_raw_parts(b_start.add(k * b_stride), N * V::LANES) };
            let mut lanes = [V::splat(t, 0.0); N];
            for j in 0..N {
                lanes[j] = V::load(t, &b[j * V::LANES..]);
            }
            for i in 0..M {
                // SAFETY: the farthest element, of the last row at the last depth, was asserted to be inside.
                let a = V::splat(t, unsafe { *a_start.add(row[i] + k * a.col_stride) });
                for j in 0..N {
                    sum[i][j] = a.mul_add(lanes[j], sum[i][j]);
                }
            }
        }
    } else {
        for k in 0..depth {
            // SAFETY: as above.
            let b = unsafe { slice::from_raw_parts(b_start.add(k * b_stride), width) };
            let mut lanes = [V::splat(t, 0.0); N];
            for j in 0..N {
                lanes[j] = V::load_partial(t, &b[(j * V::LANES).min(width)..]);
            }
            for i in 0..M {
                // SAFETY: as above.
                let a = V::splat(t, unsafe { *a_start.add(row[i] + k * a.col_stride) });
                for j in 0..N {
                    sum[i][j] = a.mul_add(lanes[j], sum[i][j]);
                }
            }
        }
    }
    sum
}
