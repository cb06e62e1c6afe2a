//! The matrix products of a model's linear layers, in turns with the same products by other crates.

use std::cell::RefCell;

use minigpt_core::{Backend, Op};
use minigpt_cpu::{Cpu, CpuError};

use crate::Shape;
use crate::operands::linear;
use crate::rivals::{Matrix, Rival};
use crate::rounds::{interleave, repeats, seconds_each};

/// One product, or two that one op makes: the seconds that it took in each round.
#[derive(Debug, Clone)]
pub struct Product {
    /// Of which layer, and which.
    pub name: String,
    /// Floating-point operations.
    pub flops: f64,
    /// This library's.
    pub ours: Vec<f64>,
    /// The `gemm` crate's.
    pub gemm: Vec<f64>,
    /// The `matrixmultiply` crate's.
    pub matrixmultiply: Vec<f64>,
}

/// y = x W^T, += d_y^T x, and the latter together with d_x = d_y W, for each kind of linear layer.
///
/// # Errors
/// If the threads or the memory are not to be had.
pub fn compare(
    shape: &Shape,
    threads: usize,
    rounds: usize,
    measure: bool,
) -> Result<Vec<Product>, CpuError> {
    let mut cpu = Cpu::builder().threads(threads).build()?;
    // As many as go through the model at once.
    let rows = shape.rows().min(cpu.rows_at_once());
    let mut products = Vec::new();
    for (layer, d_in, d_out) in shape.linear_layers() {
        let ops = linear(&mut cpu, rows, d_in, d_out)?;
        let values = |len: usize| -> Vec<f32> { (0..len).map(|i| (i % 31) as f32 / 31.0).collect() };
        let (x, weight, d_y) = (values(rows * d_in), values(d_out * d_in), values(rows * d_out));
        let (x, weight) = (Matrix::new(&x, rows, d_in), Matrix::new(&weight, d_out, d_in));
        let d_y = Matrix::new(&d_y, rows, d_out);
        let (mut y, mut d_x, mut d_weight) =
            (values(rows * d_out), values(rows * d_in), values(d_out * d_in));
        let theirs = RefCell::new(|rival: Rival, product: &str| match product {
            "forward" => rival.multiply(x, weight.t(), false, &mut y),
            "d_weight" => rival.multiply(d_y.t(), x, true, &mut d_weight),
            _ => {
                rival.multiply(d_y, weight, false, &mut d_x);
                rival.multiply(d_y.t(), x, true, &mut d_weight);
            }
        });
        for (product, op) in
            [("forward", ops.forward), ("d_weight", ops.d_weight), ("d_x and d_weight", ops.backward)]
        {
            let mut run = |op: &Op| cpu.run(op).expect("the op is valid");
            let calls = repeats(measure, || run(&op));
            let time = |rival| seconds_each(calls, || theirs.borrow_mut()(rival, product));
            let [ours, gemm, matrixmultiply] = interleave(
                rounds,
                [&mut || seconds_each(calls, || run(&op)), &mut || time(Rival::Gemm(threads)), &mut || {
                    time(Rival::MatrixMultiply)
                }],
            );
            let (name, flops) = (format!("{layer} {product}"), op.flops() as f64);
            products.push(Product { name, flops, ours, gemm, matrixmultiply });
        }
    }
    Ok(products)
}
