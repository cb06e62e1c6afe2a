//! The norm.

use minigpt_core::op::*;
use minigpt_core::reference::norm::*;

use super::memory::Memory;

#[test]
fn norm_writes_its_statistics() {
    let mut memory = Memory::new();
    let (rows, width, eps) = (3, 5, 1e-3);
    let (x_span, x) = memory.random(rows * width);
    let (weight_span, weight) = memory.random(width);
    let (bias_span, bias) = memory.random(width);
    let [y_span, mean_span, rstd_span] = [rows * width, rows, rows].map(|len| memory.room(len));
    for bias in [Some((bias_span, &bias[..])), None] {
        let (mut y, mut mean, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
        let values = bias.map(|(_, values)| values);
        norm_forward(&x, &weight, values, &mut y, &mut mean, &mut rstd, rows, width, eps);
        let op = NormForward {
            x: x_span,
            weight: weight_span,
            bias: bias.map(|(span, _)| span),
            y: y_span,
            mean: mean_span,
            rstd: rstd_span,
            rows,
            width,
            eps,
        };
        memory.expect(op, &[(y_span, &y), (mean_span, &mean), (rstd_span, &rstd)]);
    }
}

#[test]
fn norm_backward_accumulates_or_overwrites_even_in_place() {
    let mut memory = Memory::new();
    let (rows, width) = (3, 5);
    let (x_span, x) = memory.random(rows * width);
    let (weight_span, weight) = memory.random(width);
    let (mean_span, mean) = memory.random(rows);
    let (rstd_span, rstd) = memory.random(rows);
    let (d_y_span, d_y) = memory.random(rows * width);
    let (d_x_span, mut d_x) = memory.random(rows * width);
    let (d_weight_span, mut d_weight) = memory.random(width);
    let (d_bias_span, mut d_bias) = memory.random(width);
    let op = NormBackward {
        x: x_span,
        weight: weight_span,
        mean: mean_span,
        rstd: rstd_span,
        d_y: d_y_span,
        d_x: d_x_span,
        accumulate: true,
        d_weight: Some(d_weight_span),
        d_bias: Some(d_bias_span),
        rows,
        width,
    };
    let with = Some(&mut d_bias[..]);
    norm_backward(&x, &weight, &mean, &rstd, &d_y, &mut d_x, true, Some(&mut d_weight), with, rows, width);
    memory.expect(op, &[(d_x_span, &d_x), (d_weight_span, &d_weight), (d_bias_span, &d_bias)]);

    let mut first = d_x.clone();
    norm_backward(&x, &weight, &mean, &rstd, &d_y, &mut d_x, false, Some(&mut d_weight), None, rows, width);
    let in_place = NormBackward { d_x: d_y_span, accumulate: false, d_bias: None, ..op };
    memory.expect(in_place, &[(d_y_span, &d_x), (d_weight_span, &d_weight)]);

    norm_backward(&x, &weight, &mean, &rstd, &d_x, &mut first, true, None, None, rows, width);
    let frozen = NormBackward { d_weight: None, d_bias: None, ..op };
    memory.expect(frozen, &[(d_x_span, &first)]);
}
