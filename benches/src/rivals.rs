//! The matrix products of two other crates, as a user would call them.
//!
//! Their interfaces take pointers, so this is the one file of the benchmarks with unsafe code.

/// A row-major matrix, or one read as its transpose.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'s> {
    data: &'s [f32],
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'s> Matrix<'s> {
    /// `data` as `rows` x `cols`.
    ///
    /// # Panics
    /// If it has another length.
    pub fn new(data: &'s [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Matrix { data, rows, cols, transposed: false }
    }

    /// Its transpose; nothing moves.
    #[must_use]
    pub fn t(self) -> Self {
        Matrix { transposed: !self.transposed, ..self }
    }

    /// (rows, columns), as it is read.
    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// How far apart rows and columns lie, as it is read.
    fn strides(&self) -> (isize, isize) {
        let cols = self.cols as isize;
        if self.transposed { (1, cols) } else { (cols, 1) }
    }
}

/// Who multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    /// The `gemm` crate on so many threads of rayon's.
    Gemm(usize),
    /// The `matrixmultiply` crate, on as many threads as it chooses.
    MatrixMultiply,
}

impl Rival {
    /// The crate's name.
    pub fn name(self) -> &'static str {
        match self {
            Rival::Gemm(_) => "gemm",
            Rival::MatrixMultiply => "matrixmultiply",
        }
    }

    /// `out = a b`, or `out += a b`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn multiply(self, a: Matrix<'_>, b: Matrix<'_>, accumulate: bool, out: &mut [f32]) {
        let ((m, k), (inner, n)) = (a.shape(), b.shape());
        assert_eq!((k, out.len()), (inner, m * n));
        let ((a_rows, a_cols), (b_rows, b_cols)) = (a.strides(), b.strides());
        let (a, b, out_rows) = (a.data.as_ptr(), b.data.as_ptr(), n as isize);
        match self {
            Rival::Gemm(threads) => {
                let parallelism = match threads {
                    0 | 1 => gemm::Parallelism::None,
                    threads => gemm::Parallelism::Rayon(threads),
                };
                // SAFETY: `Matrix::new` and the assertion above found each operand as large as its shape says, the
                // strides are that shape's, and `out` is borrowed mutably, so it overlaps neither.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        out.as_mut_ptr(),
                        1,
                        out_rows,
                        accumulate,
                        a,
                        a_cols,
                        a_rows,
                        b,
                        b_cols,
                        b_rows,
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        parallelism,
                    );
                }
            }
            Rival::MatrixMultiply => {
                let beta = if accumulate { 1.0 } else { 0.0 };
                // SAFETY: as above.
                unsafe {
                    matrixmultiply::sgemm(
                        m,
                        k,
                        n,
                        1.0,
                        a,
                        a_rows,
                        a_cols,
                        b,
                        b_rows,
                        b_cols,
                        beta,
                        out.as_mut_ptr(),
                        out_rows,
                        1,
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_multiply_as_plain_loops_do() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 5) as f32).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i % 7) as f32).collect();
        let plain: Vec<f32> =
            (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[i % n * k + j]).sum()).collect();
        for rival in [Rival::Gemm(1), Rival::Gemm(2), Rival::MatrixMultiply] {
            let mut out = vec![f32::NAN; m * n];
            rival.multiply(Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), false, &mut out);
            assert_eq!(out, plain, "{rival:?}");
            rival.multiply(Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), true, &mut out);
            assert!(out.iter().zip(&plain).all(|(twice, once)| *twice == 2.0 * once), "{rival:?}");
        }
    }
}
