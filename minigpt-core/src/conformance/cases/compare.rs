//! What a backend's op gives, beside what the oracle's gives.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::config::{Activation, Precision};
use crate::conformance::placed::{Placed, Recording};
use crate::conformance::{FLOOR, Line, UNIT, bound, error_above};
use crate::memory::Dtype;
use crate::op::*;
use crate::real::Real;

/// Compares each operand that the op changes with the oracle's.
pub(super) fn check<R: Real>(
    placed: &Placed,
    held: &[Vec<u8>],
    (op, operands): (&Op, &Operands),
    (true_op, truth): (&Op, &mut Recording),
    line: &mut Line,
) -> Result<(), String> {
    let true_operands = true_op.operands().map_err(|error| format!("{error} in {true_op:?}"))?;
    // The gradients of queries and keys are sums of the same terms, of large ones that cancel out in the one and not in the
    // other: the three are held to the digits of the largest.
    let beside = match true_op {
        Op::AttentionBackward(_) => {
            let written = true_operands.iter().filter(|operand| operand.access == Access::Write);
            let numbers = written.flat_map(|operand| without_gaps(truth.read(operand.span), operand.columns));
            largest(&numbers.collect::<Vec<_>>())
        }
        _ => 0.0,
    };
    for (mine, theirs) in operands.iter().zip(true_operands.iter()) {
        if mine.access == Access::Read {
            continue;
        }
        let (found, oracle) = (placed.numbers::<R>(held, mine.span), truth.read(theirs.span));
        if found.len() != oracle.len() || found.len() != mine.span.len {
            return Err(format!(
                "{} has {} numbers, {} of the oracle's",
                mine.name,
                found.len(),
                oracle.len()
            ));
        }
        let [mut found, mut oracle] = [found, oracle].map(|all| without_gaps(all, mine.columns));
        let rounding = Rounding::of::<R>(op, operands, mine, placed);
        let in_f32 = bound(op.kind(), R::DTYPE);
        // Counters are right or wrong, not near.
        let exact = mine.span.dtype == Dtype::U32;
        let mut note = |place: usize, floor: f64, found: &[f64], oracle: &[f64]| {
            let (e, i) = error_above(floor, found, oracle);
            let scale = floor.max(largest(oracle));
            let e = match op.precision() {
                _ if e == 0.0 => 0.0,
                _ if exact => f64::INFINITY,
                Precision::F32 => e,
                Precision::Bf16 => e / (in_f32 + rounding.at_most(scale) / scale),
            };
            line.note(e, || {
                let (name, place) = (mine.name, place + i);
                format!("{name}[{place}] {:.7e}, oracle {:.7e}; {}", found[i], oracle[i], op.sizes())
            });
        };
        // A probability less one has the digits of one, and so have the logarithm of a number near one, and GELU of a number
        // far below 0.
        let like_one = match op {
            Op::CrossEntropy(_) => matches!(mine.name, "d_logits" | "losses"),
            Op::LinearForward(layer) | Op::LinearRows(LinearRows { linear: layer, .. }) => {
                mine.name == "y" && layer.activate.is_some()
            }
            Op::ActivationForward(_) | Op::GateForward(_) | Op::GateBackward(_) | Op::GateRows(_) => true,
            _ => false,
        };
        let floor = if like_one { 0.1 } else { FLOOR.max(beside) };
        // A tenth of the loss is not made good by a large gradient: scalars are compared one by one.
        let each = if mine.name == "scalars" { 1 } else { found.len().max(1) };
        for (part, (found, oracle)) in found.chunks(each).zip(oracle.chunks(each)).enumerate() {
            note(part * each, floor, found, oracle);
        }
        if rounding.applies {
            let scale = floor.max(largest(&oracle));
            let of = |what| format!("{} {what}: {op:?}", mine.name);
            rounding.check(&found, &oracle, scale, in_f32).map_err(of)?;
        }
        // The gradient beside that of the target is a probability, small where the vocabulary is large, and is compared with
        // the others of its row.
        if let (Op::CrossEntropy(loss), "d_logits") = (true_op, mine.name) {
            let rows = found.chunks_mut(loss.vocab).zip(oracle.chunks_mut(loss.vocab));
            for ((row, (found, oracle)), target) in rows.enumerate().zip(truth.read(loss.targets)) {
                if let Some(place) = oracle.get_mut(target as usize) {
                    (*place, found[target as usize]) = (0.0, 0.0);
                    note(row * loss.vocab, 1e-6, found, oracle);
                }
            }
        }
    }
    Ok(())
}

/// The largest magnitude of what is finite.
fn largest(numbers: &[f64]) -> f64 {
    numbers.iter().filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()))
}

/// The rows of an operand, without what lies between them.
fn without_gaps(all: Vec<f64>, columns: Option<Columns>) -> Vec<f64> {
    match columns {
        Some(Columns { width, stride }) => {
            all.chunks(stride).flat_map(|row| &row[..width]).copied().collect()
        }
        None => all,
    }
}

/// What the rounding to bf16 may do to a result, as the docs of the suite have it.
struct Rounding {
    /// Whether the result is rounded at all.
    applies: bool,
    /// How many units of the largest number.
    steps: f64,
    /// The largest of what the result is not as large as, although a step on the way to it may have been.
    beside: f64,
    /// Whether a backend may round more than what has a name.
    open: bool,
}

impl Rounding {
    fn of<R: Real>(op: &Op, operands: &Operands, result: &Operand, placed: &Placed) -> Self {
        let before = |name| {
            operands.get(name).map_or(0.0, |operand| {
                largest(&without_gaps(placed.before::<R>(operand.span), operand.columns))
            })
        };
        let applies = result.kind == OperandKind::Rounded && result.span.dtype == Dtype::Bf16;
        let one_if = |condition: bool| f64::from(u8::from(condition));
        let scaled = |dropout: &Option<Dropout>| dropout.map_or(1.0, |d| 1.0 / (1.0 - d.probability));
        let (steps, beside) = match op {
            Op::EmbeddingForward(op) => (1.0 + one_if(op.dropout.is_some()), 0.0),
            Op::LinearForward(op) | Op::LinearRows(LinearRows { linear: op, .. }) if result.name == "y" => {
                // An error of z is by the factor z f'(z) / f(z) larger in f(z); below 0, |z f'(z)| is at most 0.27.
                let (step, least) = match op.activate.map(|activate| activate.activation) {
                    None => (0.0, 0.0),
                    Some(Activation::ReluSquared) => (2.0, 0.0),
                    Some(_) => (1.3, 0.21),
                };
                let later = one_if(op.dropout.is_some()) + one_if(op.residual.is_some());
                (1.0 + step + later, before("residual").max(least))
            }
            Op::LinearBackward(op) => {
                (1.0 + one_if(op.activate.is_some() || op.accumulate), one_if(op.accumulate) * before("d_x"))
            }
            Op::NormBackward(op) => (1.0 + one_if(op.accumulate), one_if(op.accumulate) * before("d_x")),
            Op::GateForward(_) | Op::GateRows(_) | Op::GateBackward(_) => (2.0, 0.0),
            Op::AttentionForward(op) => (1.0, scaled(&op.dropout) * before("v")),
            Op::AttentionRows(_) => (1.0, before("values")),
            Op::AttentionBackward(_) => (2.0, 0.0),
            Op::GatherRows(_) | Op::Narrow(_) | Op::Fill(_) => (0.0, 0.0),
            _ => (1.0, 0.0),
        };
        let open =
            matches!(op.kind(), OpKind::AttentionForward | OpKind::AttentionBackward | OpKind::AttentionRows);
        Rounding { applies, steps, beside, open }
    }

    /// The largest error that it may make of a result whose largest number this is.
    fn at_most(&self, scale: f64) -> f64 {
        if self.applies { self.steps * UNIT * (scale + self.beside) } else { 0.0 }
    }

    /// That a result is rounded where it is to be, and to the nearest: what is wrong with it, if anything is.
    fn check(&self, found: &[f64], oracle: &[f64], scale: f64, in_f32: f64) -> Result<(), String> {
        if self.open { lean(found, oracle, scale) } else { others(found, oracle, scale * in_f32) }
    }
}

/// That hardly any number is another than the oracle's: one in a hundred, and of fewer than a hundred one.
fn others(found: &[f64], oracle: &[f64], apart: f64) -> Result<(), String> {
    let pairs = found.iter().zip(oracle);
    let others = pairs.filter(|(x, y)| (**x - **y).abs() > apart).count();
    if others <= (found.len() / 100).max(1) {
        return Ok(());
    }
    let share = 100.0 * others as f64 / found.len() as f64;
    Err(format!(
        "is not rounded as it should be: {others} of {} numbers, {share:.1} %, are others",
        found.len()
    ))
}

/// That the numbers are not smaller than the oracle's on the whole, as they are if what is behind the last bit is cut off, and
/// not larger: less than a quarter of a unit of each, among those that have their digits.
fn lean(found: &[f64], oracle: &[f64], scale: f64) -> Result<(), String> {
    let pairs = found.iter().zip(oracle).filter(|(x, y)| x.is_finite() && y.is_finite());
    let (mut count, mut sum) = (0, 0.0);
    for (x, y) in pairs.filter(|(_, y)| y.abs() > scale / 16.0) {
        count += 1;
        sum += (x.abs() - y.abs()) / (UNIT * libm::exp2(libm::floor(libm::log2(y.abs()))));
    }
    let mean = sum / f64::from(count);
    if count < 1000 || mean.abs() < 0.25 {
        return Ok(());
    }
    Err(format!("is not rounded to the nearest: on the whole {mean:.2} units away from 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::rounded::round;

    /// Numbers of f32, and what they are as bf16.
    fn numbers(count: usize) -> (Vec<f64>, Vec<f64>) {
        let exact: Vec<f64> = (0..count).map(|i| 1.0 + libm::sqrt(i as f64 + 0.5)).collect();
        let rounded = exact.iter().map(|&x| round(x)).collect();
        (exact, rounded)
    }

    #[test]
    fn one_in_a_hundred_or_one_of_fewer_may_be_others() {
        for (count, may) in [(1, 1), (3, 1), (99, 1), (199, 1), (299, 2), (400, 4), (1000, 10)] {
            let (_, oracle) = numbers(count);
            let mut found = oracle.clone();
            found[..may].iter_mut().for_each(|x| *x += UNIT);
            assert_eq!(others(&found, &oracle, 1e-4), Ok(()));
            if may < count {
                found[may] += UNIT;
                assert!(others(&found, &oracle, 1e-4).is_err(), "{count}");
                assert_eq!(others(&found, &oracle, 2.0 * UNIT), Ok(()));
            }
        }
    }

    #[test]
    fn what_is_cut_off_leans_and_what_is_rounded_does_not() {
        let (exact, oracle) = numbers(5000);
        let cut: Vec<f64> =
            exact.iter().map(|&x| f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))).collect();
        let scale = largest(&oracle);
        assert_eq!(lean(&oracle, &oracle, scale), Ok(()));
        assert_eq!(lean(&exact, &oracle, scale), Ok(()));
        let error = lean(&cut, &oracle, scale).unwrap_err();
        assert!(error.contains("-0.5"), "{error}");
        let [below, under] = [&cut, &oracle].map(|all| all.iter().map(|x| -x).collect::<Vec<_>>());
        assert!(lean(&below, &under, scale).is_err());
        assert_eq!(lean(&cut[..900], &oracle[..900], scale), Ok(()), "of few nobody knows");
    }
}
