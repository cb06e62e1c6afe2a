//! Random steps, from the loss to their end.

use alloc::vec;
use alloc::vec::Vec;

use super::rows::harden;
use super::{Draw, Fill, Memory, Sizes, counters};
use crate::memory::Dtype;
use crate::op::{CrossEntropy, FinishStep, IGNORE, Narrow, NextDraw, Op, SquaredNorm, counter, scalar};

pub(super) fn cross_entropy(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = draw.rows(Sizes(33, 130, 257, 400), Sizes(33, 1100, 40_000, 50_257), 2);
    // An exponential is worth some multiply-adds.
    let vocab = vocab.min((draw.work / 40).max(24));
    let rows = rows.min(draw.work / 40 / vocab).max(1);
    // Large logits overflow a softmax that does not subtract the largest first.
    let deviation = if draw.variant() { 60.0 } else { 2.0 };
    let (with_gradient, with_losses) =
        (draw.turn(&[true, true, true, false]), draw.turn(&[true, false, true]));
    let in_place = draw.variant();
    let last = vocab as u32 - 1;
    let mut targets: Vec<u32> =
        (0..rows).map(|_| if draw.below(8) == 0 { IGNORE } else { draw.below(vocab) as u32 }).collect();
    // The last of the vocabulary, a row that does not count, and one that does.
    targets[0] = last;
    if let Some(target) = targets.get_mut(1) {
        *target = IGNORE;
    }
    let broken: usize = draw.turn(&[0, 1, 0, 2, 0, 3, 0, 0]);
    let mut values = draw.normals(rows * vocab, deviation);
    for row in values.chunks_exact_mut(vocab) {
        // One stands out, anywhere.
        row[draw.below(vocab)] *= 3.0;
    }
    if let Some(&number) = [f64::NEG_INFINITY, f64::INFINITY, f64::NAN].get(broken.wrapping_sub(1)) {
        // In the first row, which counts.
        values[draw.below(vocab)] = number;
    }
    if draw.variant() && rows > 1 {
        // Whatever an ignored row holds.
        values[vocab + draw.below(vocab)] = f64::NAN;
    }
    let logits = memory.span(rows * vocab, Fill::Values(values));
    // The loss must show what is broken; what the gradient then is does not matter.
    let with_gradient = with_gradient && broken == 0;
    let mut scalars = vec![0.0; scalar::LEN];
    (scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]) = (3.5, 2.0);
    CrossEntropy {
        logits,
        targets: memory.span(rows, Fill::Words(targets)),
        d_logits: with_gradient
            .then(|| if in_place { logits } else { memory.span(rows * vocab, Fill::Poison) }),
        losses: with_losses.then(|| memory.span(rows, Fill::Poison)),
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        rows,
        vocab,
    }
    .into()
}

/// How many numbers: few, some thousands, or more than 65,536, and once more than 262,144.
pub(super) fn count(draw: &mut Draw) -> usize {
    let parts = draw.size(Sizes(2, 40, 529, 1100));
    let many = if draw.is_tall() { 262_144 } else { 0 };
    // Any remainder, beside what the parts leave; or whole tiles.
    let rest = if draw.is_even() { 0 } else { 1 + draw.below(124) };
    (many + 128 * (parts - 1) + rest).clamp(1, draw.work)
}

pub(super) fn squared_norm(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let mut x = {
        let (n, deviation) = (count(draw), if draw.variant() { 1e4 } else { 0.1 });
        draw.normals(n, deviation)
    };
    if draw.variant() {
        let place = draw.below(x.len());
        x[place] = f64::NAN;
    }
    SquaredNorm {
        x: memory.span(x.len(), Fill::Values(x)),
        scalars: memory.span(scalar::LEN, Fill::Normal(1.0)),
    }
    .into()
}

pub(super) fn next_draw(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let mut start: Vec<u32> = (0..counter::LEN).map(|_| draw.rng.next_u32()).collect();
    // Now and then the carry into the high word.
    if draw.variant() {
        start[counter::DRAW] = u32::MAX;
    }
    NextDraw { counters: memory.span(counter::LEN, Fill::Words(start)) }.into()
}

pub(super) fn finish_step(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let broken = draw.turn(&[Some(0), None, Some(1), Some(2), None, Some(3), Some(4), None]);
    let mut scalars = draw.normals(scalar::LEN, 1.0);
    scalars[scalar::LOSS_SUM] = 1234.5;
    scalars[scalar::TARGETS] = 500.0;
    scalars[scalar::GRAD_SQUARED] = 9e5 * draw.rng.uniform();
    if let Some(broken) = broken {
        let (place, value) = [
            (scalar::LOSS_SUM, f64::NAN),
            (scalar::GRAD_SQUARED, f64::INFINITY),
            (scalar::GRAD_SQUARED, f64::NAN),
            (scalar::LOSS_SUM, f64::INFINITY),
            (scalar::TARGETS, 0.0),
        ][broken];
        scalars[place] = value;
    }
    FinishStep {
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        counters: memory.span(counter::LEN, counters(draw)),
        clip: if draw.variant() { f64::INFINITY } else { 1.0 },
    }
    .into()
}

pub(super) fn narrow(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    let n = count(draw);
    let mut numbers = draw.normals(n, 1.0);
    if draw.below(3) > 0 {
        harden(draw, &mut numbers);
    }
    Narrow {
        from: memory.span(n, Fill::Values(numbers)),
        // NaN, as 16 bits.
        to: memory.span(n, Fill::Stored(Dtype::Bf16, vec![0xff; 2 * n])),
    }
    .into()
}

pub(super) fn fill(draw: &mut Draw, memory: &mut dyn Memory) -> Op {
    // The nearest bf16 is not the one towards zero.
    let (n, value) = (count(draw), draw.turn(&[0.0, -0.71]));
    crate::op::Fill { to: memory.span(n, Fill::Poison), value }.into()
}
