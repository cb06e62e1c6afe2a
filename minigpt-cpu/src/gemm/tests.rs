use super::*;
use crate::arch::Simd;
use crate::executor::Executor;
use std::vec;
use std::vec::Vec;

struct AsIs;
impl Finish for AsIs {
    fn is_idle(&self) -> bool {
        true
    }
    fn finish<V: Vector>(
        &self,
        _: V::Token,
        _: usize,
        _: Range<usize>,
        _: &mut [f32],
        _: Option<&mut [f32]>,
    ) {
    }
}

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = minigpt_core::rng::Rng::new(seed, minigpt_core::rng::Stream::User);
    (0..len).map(|_| rng.uniform() as f32 - 0.5).collect()
}

/// Shapes around every edge: of the vectors, the register tile, the blocks of depth and the tasks.
const SHAPES: [(usize, usize, usize); 13] = [
    (1, 1, 1),
    (7, 9, 33),
    (7, 63, 65),
    (65, 7, 63),
    (129, 65, 7),
    (12, 16, 32),
    (13, 17, 33),
    (5, 129, 129),
    (63, 1, 127),
    (24, 520, 40),
    (3, 1100, 17),
    (97, 30, 530),
    (1, 5, 1030),
];

#[test]
fn products_equal_plain_loops_on_every_instruction_set_however_the_operands_lie() {
    for simd in Isa::available().filter_map(Simd::detect) {
        let mut executor = Executor::team(2).unwrap();
        for (rows, depth, cols) in SHAPES {
            if cfg!(miri) && rows * depth * cols > 2_500 {
                continue;
            }
            let (a, b) = (numbers(1, rows * depth), numbers(2, depth * cols));
            let (bias, other) = (numbers(3, cols), numbers(4, rows * cols));
            let transpose = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (a_t, b_t) = (transpose(&a, rows, depth), transpose(&b, depth, cols));
            let mut exact = vec![0.0f64; rows * cols];
            for i in 0..rows {
                for k in 0..depth {
                    for j in 0..cols {
                        exact[i * cols + j] += f64::from(a[i * depth + k]) * f64::from(b[k * cols + j]);
                    }
                }
            }
            let mut packed = vec![f32::NAN; packed_floats(cols, depth, simd.isa())];
            let mut team = Team { executor: &mut executor, simd };
            pack_transposed(&mut team, &b_t, depth, &mut packed);
            for left in [Strided::rows(&a, depth), Strided::transposed(&a_t, rows)] {
                for right in [Right::Rows { data: &b, cols }, Right::Packed { data: &packed }] {
                    let zero = vec![0.0; cols];
                    for (onto, bias, first) in [
                        (Onto::Zero, None, f32::NAN),
                        (Onto::Zero, Some(&bias[..]), f32::NAN),
                        (Onto::Result, None, 1.5),
                        (Onto::Result, Some(&bias[..]), 1.5),
                        (Onto::Matrix(&other), Some(&bias[..]), f32::NAN),
                    ] {
                        let mut c = vec![first; rows * cols];
                        let job = Product { a: left, b: right, depth, bias, onto, finish: AsIs };
                        product(&mut team, &job, &mut c, None, cols);
                        for (i, (&c, &exact)) in c.iter().zip(&exact).enumerate() {
                            let added = bias.unwrap_or(&zero)[i % cols]
                                + match onto {
                                    Onto::Zero => 0.0,
                                    Onto::Result => first,
                                    Onto::Matrix(other) => other[i],
                                };
                            let error = (f64::from(c) - f64::from(added) - exact).abs();
                            assert!(error < 1e-5, "{} {rows} {depth} {cols} at {i}: {c} {exact}", simd.isa());
                        }
                    }
                }
            }
        }
    }
}
