//! The innermost loop of every matrix product: a tile of the result stays in registers while the depth runs by.
//!
//! It is unsafe code because two loads per step would need a check each that the optimiser cannot remove; here the
//! whole extent is checked once.

use core::marker::PhantomData;
use core::slice;

use super::{Kernel, Vector};
use crate::par::Tile;

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
    multiply_onto(t, [[V::splat(t, 0.0); N]; M], a, b, b_stride, rows, depth, width)
}

/// As [`multiply`], beginning with `sum` instead of 0.
#[inline(always)]
pub(crate) fn multiply_onto<V: Vector, const M: usize, const N: usize>(
    t: V::Token,
    mut sum: [[V; N]; M],
    a: Strided<'_>,
    b: &[f32],
    b_stride: usize,
    rows: usize,
    depth: usize,
    width: usize,
) -> [[V; N]; M] {
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

/// What a product is added to, besides what its finish adds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Onto<'a> {
    /// Nothing: the result is written.
    Zero,
    /// What stands in the result.
    Result,
    /// Another matrix of the result's shape: its elements, row-major.
    Matrix(&'a [f32]),
}

/// A matrix to read, in panels of some columns each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) data: &'a [f32],
    /// How far the panels are apart.
    pub(crate) stride: usize,
    /// How far the rows of a panel are apart.
    pub(crate) row_stride: usize,
}

/// c = bias + a b, or that added to `onto`: [`multiply`] past all columns of `c`, with its way to memory.
pub(crate) struct MultiplyInto<'a, 'c, const M: usize, const N: usize> {
    pub(crate) a: Strided<'a>,
    /// In panels of N * LANES columns.
    pub(crate) b: Panels<'a>,
    pub(crate) depth: usize,
    /// As many elements as `c` has columns.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) onto: Onto<'a>,
    /// The place of the product in the whole result: at most M rows.
    pub(crate) c: Tile<'c>,
    /// Called with the number of each row of `c` in turn, some before each whole panel: so what will be needed next can
    /// be asked for without a jam.
    pub(crate) meanwhile: &'a mut dyn FnMut(usize),
}

impl<const M: usize, const N: usize> Kernel for MultiplyInto<'_, '_, M, N> {
    type Output = ();

    /// # Panics
    /// As [`multiply`], or if `bias` or `onto` is too short.
    #[inline(always)]
    fn run<V: Vector>(self, t: V::Token) {
        let MultiplyInto { a, b, depth, bias, onto, mut c, meanwhile } = self;
        let (rows, cols) = (c.rows().len(), c.cols().len());
        let panel = N * V::LANES;
        let whole = cols - cols % panel;
        let rows_a_panel = M.div_ceil((whole / panel).max(1));
        for (index, col) in (0..whole).step_by(panel).enumerate() {
            let columns = &b.data[index * b.stride..];
            let mut first = [V::splat(t, 0.0); N];
            if let Some(bias) = bias {
                for j in 0..N {
                    first[j] = V::load(t, &bias[col + j * V::LANES..]);
                }
            }
            let mut place = Place::new(onto, c.part(0..rows, col..col + panel));
            place.prefetch::<V>(t);
            for row in (index * rows_a_panel..rows).take(rows_a_panel) {
                meanwhile(row);
            }
            let mut sum =
                multiply_onto::<V, M, N>(t, [first; M], a, columns, b.row_stride, rows, depth, panel);
            // Two short loops, which the compiler unrolls, so that the sums stay in their registers.
            if place.from.is_some() {
                for i in 0..M {
                    if let Some(from) = place.from(i) {
                        for j in 0..N {
                            sum[i][j] = V::load(t, &from[j * V::LANES..]) + sum[i][j];
                        }
                    }
                }
            }
            for i in 0..M {
                if i < rows {
                    let to = place.to(i);
                    for j in 0..N {
                        sum[i][j].store(&mut to[j * V::LANES..]);
                    }
                }
            }
        }
        if whole < cols {
            let width = cols - whole;
            let columns = &b.data[whole / panel * b.stride..];
            let mut first = [V::splat(t, 0.0); N];
            if let Some(bias) = bias {
                for j in 0..N {
                    first[j] = V::load_partial(t, &bias[whole..][(j * V::LANES).min(width)..width]);
                }
            }
            let mut place = Place::new(onto, c.part(0..rows, whole..cols));
            place.prefetch::<V>(t);
            let sum = multiply_onto::<V, M, N>(t, [first; M], a, columns, b.row_stride, rows, depth, width);
            for i in 0..M {
                if i < rows {
                    for j in 0..N {
                        let at = (j * V::LANES).min(width);
                        let mut value = sum[i][j];
                        if let Some(from) = place.from(i) {
                            value = V::load_partial(t, &from[at..]) + value;
                        }
                        value.store_partial(&mut place.to(i)[at..]);
                    }
                }
            }
        }
    }
}

/// Where a tile of a product goes, and what it is added to.
struct Place<'c> {
    to: *mut f32,
    from: Option<*const f32>,
    rows: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<(&'c mut [f32], &'c [f32])>,
}

impl<'c> Place<'c> {
    /// # Panics
    /// If the matrix that is added does not have the rows and columns of `c`.
    #[inline(always)]
    fn new(onto: Onto<'c>, mut c: Tile<'c>) -> Self {
        let (rows, width, stride) = (c.rows().len(), c.cols().len(), c.stride());
        let to = c.start();
        let from = match onto {
            Onto::Zero => None,
            Onto::Result => Some(to.cast_const()),
            Onto::Matrix(data) => {
                let place = &data[c.rows().start * stride + c.cols().start..];
                // No overflow: the result has as many elements.
                assert!(rows == 0 || (rows - 1) * stride + width <= place.len());
                Some(place.as_ptr())
            }
        };
        Place { to, from, rows, width, stride, owner: PhantomData }
    }

    /// The rows are far apart, so that no processor foresees that they will be read, or written.
    #[inline(always)]
    fn prefetch<V: Vector>(&mut self, t: V::Token) {
        for i in 0..self.rows {
            match self.from(i) {
                Some(from) => V::prefetch(t, from),
                None => V::prefetch(t, self.to(i)),
            }
        }
    }

    /// Row `i` of what the product is added to.
    #[inline(always)]
    fn from(&self, i: usize) -> Option<&[f32]> {
        if i >= self.rows {
            return None;
        }
        // SAFETY: the tile, and so the matrix of its shape, has this row; `new` took the borrow of either.
        self.from.map(|from| unsafe { slice::from_raw_parts(from.add(i * self.stride), self.width) })
    }

    /// Row `i` of the result.
    #[inline(always)]
    fn to(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: the tile has this row, it alone, and `new` took its borrow; `from` is borrowed no more.
        unsafe { slice::from_raw_parts_mut(self.to.add(i * self.stride), self.width) }
    }
}
