//! The norms.

use minigpt_core::memory::Strided;
use minigpt_core::op::*;
use minigpt_core::reference::Rows;
use minigpt_core::reference::norm::*;
use minigpt_core::{InvalidOp, Span};

use super::memory::Memory;

/// Rows of `width` among those of a matrix that is `gap` wider, and what is in them, side by side.
fn apart(memory: &mut Memory, rows: usize, width: usize, gap: usize) -> (Span, Vec<f64>, Strided, Vec<f64>) {
    let (span, all) = memory.random(rows * (width + gap));
    let first = gap / 2;
    let packed = all.chunks(width + gap).flat_map(|row| &row[first..][..width]).copied().collect();
    (span, all, span.columns(first, width, width + gap), packed)
}

/// The whole matrix with other rows in it.
fn with_rows(all: &[f64], rows: &[f64], width: usize, gap: usize) -> Vec<f64> {
    let mut all = all.to_vec();
    for (all, row) in all.chunks_mut(width + gap).zip(rows.chunks(width)) {
        all[gap / 2..][..width].copy_from_slice(row);
    }
    all
}

#[test]
fn norm_writes_its_statistics() {
    let mut memory = Memory::new();
    let (rows, width, eps) = (3, 5, 1e-3);
    for (groups, gap) in [(1, 0), (1, 3), (4, 0), (2, 7)] {
        let (row, vectors) = (groups * width, rows * groups);
        let (_, _, x_rows, x) = apart(&mut memory, rows, row, gap);
        let (weight_span, weight) = memory.random(width);
        let (bias_span, bias) = memory.random(width);
        for (layer, bias) in [true, false]
            .into_iter()
            .flat_map(|layer| [Some((bias_span, &bias[..])), None].map(|b| (layer, b)))
        {
            let (y_span, y_before, y_rows, _) = apart(&mut memory, rows, row, gap);
            let [mean_span, rstd_span] = [vectors; 2].map(|len| memory.room(len));
            let (mut y, mut mean, mut rstd) = (vec![0.0; rows * row], vec![0.0; vectors], vec![0.0; vectors]);
            let values = bias.map(|(_, values)| values);
            let kept = layer.then_some(&mut mean[..]);
            let x = Rows { data: &x, stride: row };
            norm_forward(x, &weight, values, &mut y, kept, &mut rstd, rows, groups, width, eps);
            let op = NormForward {
                kind: if layer { Normalize::Layer { mean: mean_span } } else { Normalize::Rms },
                x: x_rows,
                weight: weight_span,
                bias: bias.map(|(span, _)| span),
                y: y_rows,
                rstd: rstd_span,
                rows,
                groups,
                width,
                eps,
            };
            let y = with_rows(&y_before, &y, row, gap);
            let mut expected = vec![(y_span, &y[..]), (rstd_span, &rstd[..])];
            expected.extend(layer.then_some((mean_span, &mean[..])));
            memory.expect(op, &expected);
        }
    }
}

#[test]
fn norm_backward_accumulates_or_overwrites_even_in_place() {
    let mut memory = Memory::new();
    let (rows, width) = (3, 5);
    for (groups, gap, layer) in [(1, 0, true), (1, 3, false), (4, 0, false), (2, 7, true)] {
        let (row, vectors) = (groups * width, rows * groups);
        let (_, _, x_rows, x) = apart(&mut memory, rows, row, gap);
        let (weight_span, weight) = memory.random(width);
        let (mean_span, mean) = memory.random(vectors);
        let (rstd_span, rstd) = memory.random(vectors);
        let (d_y_span, d_y_all, d_y_rows, d_y) = apart(&mut memory, rows, row, gap);
        let (d_x_span, d_x_all, d_x_rows, mut d_x) = apart(&mut memory, rows, row, gap);
        let (d_weight_span, mut d_weight) = memory.random(width);
        let (d_bias_span, mut d_bias) = memory.random(width);
        let op = NormBackward {
            kind: if layer { Normalize::Layer { mean: mean_span } } else { Normalize::Rms },
            x: x_rows,
            weight: weight_span,
            rstd: rstd_span,
            d_y: d_y_rows,
            d_x: d_x_rows,
            accumulate: true,
            d_weight: Some(d_weight_span),
            d_bias: Some(d_bias_span),
            rows,
            groups,
            width,
        };
        let backward = |d_y: &[f64],
                        d_x: &mut [f64],
                        accumulate: bool,
                        d_weight: Option<&mut [f64]>,
                        d_bias: Option<&mut [f64]>| {
            let [x, d_y] = [&x, d_y].map(|data| Rows { data, stride: row });
            let mean = layer.then_some(&mean[..]);
            norm_backward(
                x, &weight, mean, &rstd, d_y, d_x, accumulate, d_weight, d_bias, rows, groups, width,
            );
        };
        backward(&d_y, &mut d_x, true, Some(&mut d_weight[..]), Some(&mut d_bias[..]));
        let d_x_whole = with_rows(&d_x_all, &d_x, row, gap);
        let parameters = [(d_weight_span, &d_weight[..]), (d_bias_span, &d_bias[..])];
        memory.expect(op, &[(d_x_span, &d_x_whole), parameters[0], parameters[1]]);

        let mut first = d_x.clone();
        backward(&d_y, &mut d_x, false, Some(&mut d_weight[..]), None);
        let in_place = NormBackward { d_x: d_y_rows, accumulate: false, d_bias: None, ..op };
        let d_y_whole = with_rows(&d_y_all, &d_x, row, gap);
        memory.expect(in_place, &[(d_y_span, &d_y_whole), (d_weight_span, &d_weight)]);
        let adding = NormBackward { accumulate: true, ..in_place };
        memory.refuse(adding, InvalidOp::Overlap { a: "d_y", b: "d_x" });

        backward(&d_x, &mut first, true, None, None);
        let frozen = NormBackward { d_weight: None, d_bias: None, ..op };
        memory.expect(frozen, &[(d_x_span, &with_rows(&d_x_all, &first, row, gap))]);
    }
}

#[test]
fn a_norm_from_some_columns_of_a_matrix_to_others() {
    let mut memory = Memory::new();
    let (rows, groups, width) = (3, 2, 4);
    let (row, stride) = (groups * width, 2 * groups * width + 3);
    let (span, all) = memory.random(rows * stride);
    let (weight_span, weight) = memory.random(width);
    let op = NormForward {
        kind: Normalize::Rms,
        x: span.columns(row + 2, row, stride),
        weight: weight_span,
        bias: None,
        y: span.columns(1, row, stride),
        rstd: memory.room(rows * groups),
        rows,
        groups,
        width,
        eps: 1e-3,
    };
    let (mut y, mut rstd) = (vec![0.0; rows * row], vec![0.0; rows * groups]);
    let x = Rows { data: &all[row + 2..], stride };
    norm_forward(x, &weight, None, &mut y, None, &mut rstd, rows, groups, width, 1e-3);
    let mut expected = all.clone();
    for (all, y) in expected.chunks_mut(stride).zip(y.chunks(row)) {
        all[1..][..row].copy_from_slice(y);
    }
    memory.expect(op, &[(span, &expected), (op.rstd, &rstd)]);

    let over = NormForward { y: span.columns(3, row, stride), ..op };
    memory.refuse(over, InvalidOp::Overlap { a: "x", b: "y" });
    let narrow = NormForward { x: Strided { stride: row - 1, ..op.x }, ..op };
    memory.refuse(narrow, InvalidOp::Value { operand: "x" });
}
