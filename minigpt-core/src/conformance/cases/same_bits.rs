//! What is promised bit for bit: that a linear layer and the activation alone give the same.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::{Draw, Fill, Memory, Options, Placed, Recording};
use crate::backend::Backend;
use crate::config::Precision;
use crate::conformance::{Line, describe};
use crate::op::*;
use crate::rng::{Rng, Stream};

/// [`ActivationForward`] of the input that a [`LinearForward`] kept gives the bits of its result.
pub(in crate::conformance) fn check<B: Backend>(
    backend: &mut B,
    precision: Precision,
    options: &Options,
    line: &mut Line,
) {
    for case in options.numbers() {
        if options.stop_early && line.failure.is_some() {
            break;
        }
        line.cases += 1;
        let draw = Draw::new(options.seed, 1000, case, options.work).under(precision);
        if let Err(what) = run(backend, draw) {
            line.fail(format!("case {case}: {what}"));
        }
    }
}

fn run<B: Backend>(backend: &mut B, mut draw: Draw) -> Result<(), String> {
    let (rows, d_in, d_out) = super::linear::shape(&mut draw);
    let d_in = d_in.min(40);
    let activation = super::linear::activation(&draw);
    let n = rows * d_out;
    let build = |memory: &mut dyn Memory| {
        let input = memory.span(n, Fill::Poison);
        let layer = LinearForward {
            x: memory.span(rows * d_in, Fill::Normal(1.0)),
            weight: memory.span(d_out * d_in, Fill::Normal(0.5)),
            bias: None,
            activate: Some(Activate { activation, input: Some(input) }),
            dropout: None,
            residual: None,
            y: memory.span(n, Fill::Poison),
            rows,
            d_in,
            d_out,
        };
        let alone =
            ActivationForward { x: input, y: memory.span(n, Fill::Poison), activation, rows, width: d_out };
        (layer, alone)
    };
    let told = |error: B::Error| describe(&error);
    let ops = |memory: &mut dyn Memory| {
        let (layer, alone) = build(memory);
        vec![layer.into(), alone.into()]
    };
    let mut recording = Recording::under(draw.precision, draw.rng.clone(), ops);
    build(&mut recording);
    let mut places = Rng::new(draw.rng.next_u32().into(), Stream::User);
    let mut placed = Placed::new(backend, &recording.asked, draw.is_even(), &mut places).map_err(told)?;
    let (layer, alone) = build(&mut placed);
    placed.fill(backend, false).map_err(told)?;
    backend.run(&layer.into()).map_err(told)?;
    backend.run(&alone.into()).map_err(told)?;
    let held = placed.read(backend).map_err(told)?;
    let (of_layer, of_alone) = (placed.bytes(&held, layer.y), placed.bytes(&held, alone.y));
    let same = of_layer == of_alone;
    let verdict = if same {
        Ok(())
    } else {
        Err(format!(
            "{activation:?} alone gives other bits than in a linear layer, of {rows} x {d_out}: both kernels must \
             compute it in the same way"
        ))
    };
    placed.release(backend).map_err(told)?;
    verdict
}
