//! Faults of gates, and of the activations in them and in linear layers.

use minigpt_core::op::{Activate, GateBackward, GateForward, GateRows, LinearBackward, LinearForward};
use minigpt_core::{Activation, Span};
use minigpt_cpu::CpuError;

use crate::kernel::{Done, Fault, Kernel, faults};
use crate::rows::Told;

/// Runs the op on another input, which is as it was afterwards.
fn run_on(kernel: &mut Kernel, op: impl Into<minigpt_core::Op>, x: Span, other: &[f32]) -> Done {
    let x_before = kernel.get(x)?;
    kernel.put(x, other)?;
    let done = kernel.run(op);
    kernel.put(x, &x_before)?;
    done
}

/// A matrix (rows, 2F) with the halves of each row changed into each other.
fn swapped(x: &[f32], width: usize) -> Vec<f32> {
    let halves = |row: &[f32]| [&row[width..], &row[..width]].concat();
    x.chunks_exact(2 * width).flat_map(halves).collect()
}

/// The number of the row's gate and of its factor, of element `i` of (rows, F).
fn pair(i: usize, width: usize) -> (usize, usize) {
    let gate = i / width * 2 * width + i % width;
    (gate, gate + width)
}

/// Where element `i` of (rows, 2F) has its partner in (rows, F), and whether it is a gate.
fn partner(i: usize, width: usize) -> (usize, bool) {
    (i / (2 * width) * width + i % width, i % (2 * width) < width)
}

/// What the activation gives for each gate, in the order of (rows, F).
fn activated(k: &mut Kernel, op: GateForward) -> Result<Vec<f32>, CpuError> {
    let x = k.get(op.x)?;
    let y = k.get(op.y)?;
    let ones: Vec<f32> =
        x.iter().enumerate().map(|(i, &x)| if partner(i, op.width).1 { x } else { 1.0 }).collect();
    run_on(k, op, op.x, &ones)?;
    let gates = k.get(op.y)?;
    k.put(op.y, &y)?;
    Ok(gates)
}

/// Another activation where it is `this`.
fn instead(activation: Activation, this: Activation, other: Activation) -> Activation {
    if activation == this { other } else { activation }
}

fn instead_of(activate: Option<Activate>, this: Activation, other: Activation) -> Option<Activate> {
    activate.map(|a| Activate { activation: instead(a.activation, this, other), ..a })
}

fn told(op: &GateRows) -> Told {
    Told { live: op.live, rows: op.gate.rows, words: vec![] }
}

use Activation::{GeluErf, GeluTanh, Relu, ReluSquared, Silu};

pub(crate) const FAULTS: &[Fault] = faults! {
    LinearForward {
        "ReLU is not squared" => |k, op| {
            k.run(LinearForward { activate: instead_of(op.activate, ReluSquared, Relu), ..op })
        };
        "SiLU is taken for GELU" => |k, op| {
            k.run(LinearForward { activate: instead_of(op.activate, Silu, GeluTanh), ..op })
        };
    }
    LinearBackward {
        "ReLU squared has the derivative of ReLU" => |k, op| {
            k.run(LinearBackward { activate: instead_of(op.activate, ReluSquared, Relu), ..op })
        };
        "the derivative of SiLU is that of GELU" => |k, op| {
            k.run(LinearBackward { activate: instead_of(op.activate, Silu, GeluErf), ..op })
        };
        "the derivative of SiLU is the sigmoid" => |k, op| {
            let (Some(d_x), Some(Activate { activation: Silu, input: Some(input) })) = (op.d_x, op.activate) else {
                return k.run(op);
            };
            k.run(LinearBackward { activate: None, ..op })?;
            let input = k.get(input)?;
            k.edit(d_x, |i, d| d / (1.0 + (-input[i]).exp()))
        };
    }
    ActivationForward {
        "ReLU is not squared" => |k, op| {
            k.run(minigpt_core::op::ActivationForward { activation: instead(op.activation, ReluSquared, Relu), ..op })
        };
        "the sigmoid is taken for SiLU" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if op.activation == Silu { 1.0 / (1.0 + (-x[i]).exp()) } else { y })
        };
        "an exponential of SiLU that overflows is NaN" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if op.activation == Silu && x[i] < -88.0 { f32::NAN } else { y })
        };
    }
    GateForward {
        "the halves are swapped" => |k, op| {
            let x = k.get(op.x)?;
            run_on(k, op, op.x, &swapped(&x, op.width))
        };
        "gates and factors are read in turn" => |k, op| {
            let x = k.get(op.x)?;
            let width = op.width;
            let in_turn = |i: usize| {
                let (row, column) = (i / (2 * width), i % (2 * width));
                x[row * 2 * width + if column < width { 2 * column } else { 2 * (column - width) + 1 }]
            };
            let other: Vec<f32> = (0..x.len()).map(in_turn).collect();
            run_on(k, op, op.x, &other)
        };
        "the matrix is halved, and not its rows" => |k, op| {
            let x = k.get(op.x)?;
            let (width, half) = (op.width, x.len() / 2);
            let halved = |i: usize| {
                let (place, is_gate) = partner(i, width);
                x[if is_gate { place } else { half + place }]
            };
            let other: Vec<f32> = (0..x.len()).map(halved).collect();
            run_on(k, op, op.x, &other)
        };
        "the factor is forgotten" => |k, op| {
            let gates = activated(k, op)?;
            k.run(op)?;
            k.edit(op.y, |i, _| gates[i])
        };
        "it is added and not multiplied" => |k, op| {
            let (gates, x) = (activated(k, op)?, k.get(op.x)?);
            k.run(op)?;
            k.edit(op.y, |i, _| gates[i] + x[pair(i, op.width).1])
        };
        "the activation is forgotten" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, _| {
                let (gate, up) = pair(i, op.width);
                x[gate] * x[up]
            })
        };
        "one GELU is taken for the other" => |k, op| {
            k.run(GateForward { activation: instead(op.activation, GeluErf, GeluTanh), ..op })
        };
        "ReLU is not squared" => |k, op| {
            k.run(GateForward { activation: instead(op.activation, ReluSquared, Relu), ..op })
        };
        "SiLU is taken for GELU" => |k, op| {
            k.run(GateForward { activation: instead(op.activation, Silu, GeluTanh), ..op })
        };
        "a row's tail that fills no vector of 8 is left out" => |k, op| {
            let before = k.get(op.y)?;
            k.run(op)?;
            let whole = op.width / 8 * 8;
            k.edit(op.y, |i, y| if i % op.width >= whole { before[i] } else { y })
        };
        "the tail of a row's gates goes on in its factors" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            let last = op.width - 1;
            let wrong = op.width % 16 != 0;
            k.edit(op.y, |i, y| if wrong && i % op.width == last { y + x[pair(i, op.width).1 - last] } else { y })
        };
        "columns from 512 on are wrong" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if i % op.width >= 512 { y + 0.3 } else { y })
        };
        "rows from 300 on are wrong" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |i, y| if i / op.width >= 300 { y + 0.3 } else { y })
        };
        "rows counted in 16 bits" => |k, op| {
            let before = k.get(op.y)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if i / op.width >= 65_536 { before[i] } else { y })
        };
        "large gates overflow" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.y, |i, y| if x[pair(i, op.width).0] < -90.0 { f32::NAN } else { y })
        };
        "NaN becomes 0" => |k, op| {
            k.run(op)?;
            k.edit(op.y, |_, y| if y.is_nan() { 0.0 } else { y })
        };
        "NaN of one row reaches the next" => |k, op| {
            k.run(op)?;
            let y = k.get(op.y)?;
            k.edit(op.y, |i, x| if i >= op.width && y[i - op.width].is_nan() { f32::NAN } else { x })
        };
        "the result is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.y, 3);
            Ok(())
        };
        "the offset of the result is ignored" => |k, op| {
            k.run(op)?;
            let Some(there) = k.at_zero(op.y) else { return Ok(()) };
            let y = k.get(op.y)?;
            k.put(there, &y)?;
            k.edit(op.y, |_, _| f32::NAN)
        };
        "the gates are changed where they lie" => |k, op| {
            let gates = activated(k, op)?;
            k.run(op)?;
            k.edit(op.x, |i, x| match partner(i, op.width) {
                (place, true) => gates[place],
                _ => x,
            })
        };
        "an input of an earlier call is used, for many rows" => |k, op| {
            if op.rows < 100 { k.run(op) } else { k.run_on_stale(op, op.x) }
        };
    }
    GateBackward {
        "the halves of the input are swapped" => |k, op| {
            let x = k.get(op.x)?;
            run_on(k, op, op.x, &swapped(&x, op.width))
        };
        "the halves of the gradient are swapped" => |k, op| {
            k.run(op)?;
            let d_x = k.get(op.d_x)?;
            k.put(op.d_x, &swapped(&d_x, op.width))
        };
        "the derivative is forgotten" => |k, op| {
            let (x, d_y) = (k.get(op.x)?, k.get(op.d_y)?);
            k.run(op)?;
            k.edit(op.d_x, |i, d| match partner(i, op.width) {
                (place, true) => d_y[place] * x[i + op.width],
                _ => d,
            })
        };
        "the factor is forgotten in the gate's gradient" => |k, op| {
            let x = k.get(op.x)?;
            let ones: Vec<f32> =
                x.iter().enumerate().map(|(i, &x)| if partner(i, op.width).1 { x } else { 1.0 }).collect();
            run_on(k, op, op.x, &ones)
        };
        "the factor's gradient has the gate and not its activation" => |k, op| {
            let (x, d_y) = (k.get(op.x)?, k.get(op.d_y)?);
            k.run(op)?;
            k.edit(op.d_x, |i, d| match partner(i, op.width) {
                (place, false) => d_y[place] * x[i - op.width],
                _ => d,
            })
        };
        "only the gates have a gradient" => |k, op| {
            k.run(op)?;
            k.edit(op.d_x, |i, d| if partner(i, op.width).1 { d } else { 0.0 })
        };
        "the gradient is added to what is there" => |k, op| {
            let before = k.get(op.d_x)?;
            k.run(op)?;
            k.edit(op.d_x, |i, d| d + before[i])
        };
        "one GELU is taken for the other" => |k, op| {
            k.run(GateBackward { activation: instead(op.activation, GeluTanh, GeluErf), ..op })
        };
        "ReLU is not squared" => |k, op| {
            k.run(GateBackward { activation: instead(op.activation, ReluSquared, Relu), ..op })
        };
        "SiLU is taken for GELU" => |k, op| {
            k.run(GateBackward { activation: instead(op.activation, Silu, GeluErf), ..op })
        };
        "ReLU's derivative at 0 is 1" => |k, op| {
            let (x, d_y) = (k.get(op.x)?, k.get(op.d_y)?);
            k.run(op)?;
            k.edit(op.d_x, |i, d| match partner(i, op.width) {
                (place, true) if op.activation == Relu && x[i] == 0.0 => d_y[place] * x[i + op.width],
                _ => d,
            })
        };
        "a row's tail that fills no vector of 8 is left out" => |k, op| {
            let before = k.get(op.d_x)?;
            k.run(op)?;
            let whole = op.width / 8 * 8;
            k.edit(op.d_x, |i, d| if i % op.width >= whole { before[i] } else { d })
        };
        "the tail of a row's gates is written over its factors" => |k, op| {
            k.run(op)?;
            let wrong = op.width % 16 != 0;
            k.edit(op.d_x, |i, d| if wrong && i % (2 * op.width) == op.width { 0.0 } else { d })
        };
        "rows from 300 on are wrong" => |k, op| {
            k.run(op)?;
            k.edit(op.d_x, |i, d| if i / (2 * op.width) >= 300 { d + 0.3 } else { d })
        };
        "rows counted in 16 bits" => |k, op| {
            let before = k.get(op.d_x)?;
            k.run(op)?;
            k.edit(op.d_x, |i, d| if i / (2 * op.width) >= 65_536 { before[i] } else { d })
        };
        "the derivative is NaN for large gates" => |k, op| {
            let x = k.get(op.x)?;
            k.run(op)?;
            k.edit(op.d_x, |i, d| if partner(i, op.width).1 && x[i].abs() > 88.0 { f32::NAN } else { d })
        };
        "it is written past its end" => |k, op| {
            k.run(op)?;
            k.write_past(op.d_x, 1);
            Ok(())
        };
        "a gradient of an earlier call is used, for many rows" => |k, op| {
            if op.rows < 100 { k.run(op) } else { k.run_on_stale(op, op.d_y) }
        };
        "d_y is changed where it lies" => |k, op| {
            k.run(op)?;
            k.edit(op.d_y, |i, d| if i + 1 == op.rows * op.width { d + 1.0 } else { d })
        };
    }
    GateRows {
        "all rows are written" => |k, op| k.run(op.gate);
        "a whole tile of 8 rows is written" => |k, op| told(&op).run_tiles(k, op, 8);
        "a whole warp of rows is written" => |k, op| told(&op).run_tiles(k, op, 32);
        "the first dead row is cleared" => |k, op| {
            let live = told(&op).live(k)?;
            k.run(op)?;
            k.edit(op.gate.y, |i, y| if i / op.gate.width == live { 0.0 } else { y })
        };
        "live of a recorded list" => |k, op| told(&op).run_recorded(k, op);
        "live of the last call" => |k, op| told(&op).run_late(k, op);
        "of more than there are all are written, and more" => |k, op| {
            told(&op).run_uncapped(k, op, op.gate.y, op.gate.width)
        };
        "the last of an odd number of rows is left out" => |k, op| {
            let (told, live) = (told(&op), told(&op).live(k)?);
            told.run_as(k, op, if live > 2 { live / 2 * 2 } else { live })
        };
        "a single live row is left out" => |k, op| {
            let (told, live) = (told(&op), told(&op).live(k)?);
            told.run_as(k, op, if live == 1 && op.gate.rows > 1 { 0 } else { live })
        };
        "live is read with a sign" => |k, op| {
            let signed = (k.words(op.live)?[0] as i32).max(0) as usize;
            told(&op).run_as(k, op, signed.min(op.gate.rows))
        };
        "live is counted in 16 bits" => |k, op| {
            let (told, live) = (told(&op), told(&op).live(k)?);
            told.run_as(k, op, live & 0xffff)
        };
        "nothing live is everything" => |k, op| {
            let (told, live) = (told(&op), told(&op).live(k)?);
            told.run_as(k, op, if live == 0 { op.gate.rows } else { live })
        };
        "what is no number in a dead row reaches the last live one" => |k, op| {
            let (live, x) = (told(&op).live(k)?, k.get(op.gate.x)?);
            k.run(op)?;
            let width = op.gate.width;
            let broken = x.get(live * 2 * width).is_some_and(|x| x.is_nan());
            k.edit(op.gate.y, |i, y| if broken && i / width + 1 == live { f32::NAN } else { y })
        };
        "the halves are swapped where a single row is live" => |k, op| {
            if told(&op).live(k)? != 1 {
                return k.run(op);
            }
            let x = k.get(op.gate.x)?;
            run_on(k, op, op.gate.x, &swapped(&x, op.gate.width))
        };
        "the rows lie as far apart as those of the result" => |k, op| {
            let live = told(&op).live(k)?;
            let (x, width) = (k.get(op.gate.x)?, op.gate.width);
            let mut other = x.clone();
            for row in 0..live {
                other[row * 2 * width..][..2 * width].copy_from_slice(&x[row * width..][..2 * width]);
            }
            run_on(k, op, op.gate.x, &other)
        };
    }
};
