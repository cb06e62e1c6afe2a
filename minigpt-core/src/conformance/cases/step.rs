//! Random steps, from the loss to the update.

use alloc::vec;
use alloc::vec::Vec;

use super::{Fill, Memory, ODD, coin, counters, normals, pick};
use crate::op::*;
use crate::rng::Rng;
use crate::train::schedule::{Decay, Schedule};

pub(super) fn cross_entropy(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let (rows, vocab) = (pick(rng, &ODD), pick(rng, &[2, 7, 65, 97, 256, 1000]));
    // Large logits overflow a softmax that does not subtract the largest first.
    let deviation = if rng.below(3) == 0 { 60.0 } else { 2.0 };
    let (with_gradient, in_place, with_losses) = (coin(rng), coin(rng), coin(rng));
    let targets =
        (0..rows).map(|_| if rng.below(8) == 0 { IGNORE } else { rng.below(vocab as u64) as u32 }).collect();
    let broken = rng.below(4) == 0;
    let mut values = normals(rng, rows * vocab, deviation);
    if broken {
        let place = rng.below(values.len() as u64) as usize;
        values[place] = [f64::NEG_INFINITY, f64::INFINITY, f64::NAN][rng.below(3) as usize];
    }
    let logits = memory.span(rows * vocab, Fill::Values(values));
    // The loss must show what is broken; what the gradient then is does not matter.
    let with_gradient = with_gradient && !broken;
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

pub(super) fn squared_norm(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    SquaredNorm {
        x: memory.span(pick(rng, &[1, 7, 64, 1000, 4097, 70_001]), Fill::Normal(0.1)),
        scalars: memory.span(scalar::LEN, Fill::Normal(1.0)),
    }
    .into()
}

pub(super) fn next_draw(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let mut start = vec![0; counter::LEN];
    // Now and then the carry into the high word.
    start[counter::DRAW] = if coin(rng) { u32::MAX } else { rng.next_u32() };
    NextDraw { counters: memory.span(counter::LEN, Fill::Words(start)) }.into()
}

pub(super) fn finish_step(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let broken = rng.below(4);
    let mut scalars = normals(rng, scalar::LEN, 1.0);
    scalars[scalar::LOSS_SUM] = if broken == 0 { f64::NAN } else { 1234.5 };
    scalars[scalar::TARGETS] = 500.0;
    scalars[scalar::GRAD_SQUARED] = if broken == 1 { f64::INFINITY } else { 9e5 * rng.uniform() };
    let decay = [Decay::Constant, Decay::Linear, Decay::Cosine][rng.below(3) as usize];
    FinishStep {
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        counters: memory.span(counter::LEN, counters(rng)),
        schedule: Schedule { peak: 1e-3, floor: 1e-4, warmup: 10, steps: 40, decay },
        clip: if coin(rng) { 1.0 } else { f64::INFINITY },
        beta1: 0.9,
        beta2: 0.99,
    }
    .into()
}

pub(super) fn adamw(rng: &mut Rng, memory: &mut dyn Memory) -> Op {
    let n = pick(rng, &[1, 7, 63, 65, 1000, 4099]);
    let apply = rng.below(4) > 0;
    let mut scalars = vec![0.0; scalar::LEN];
    scalars[scalar::GRAD_SCALE] = if apply { 0.01 } else { 0.0 };
    scalars[scalar::LEARNING_RATE] = 1e-2;
    scalars[scalar::CORRECTION1] = 0.1;
    scalars[scalar::CORRECTION2] = 0.0199;
    scalars[scalar::APPLY] = if apply { 1.0 } else { 0.0 };
    let mut grads = normals(rng, n, 3.0);
    if !apply {
        // A skipped step must not let a broken gradient through.
        grads[n / 2] = f64::NAN;
    }
    let (mut m, v) = (normals(rng, n, 0.1), normals(rng, n, 0.1));
    let mut v: Vec<f64> = v.into_iter().map(f64::abs).collect();
    // A parameter that has never had a gradient: only eps keeps 0 / 0 away.
    (grads[0], m[0], v[0]) = (if apply { 0.0 } else { grads[0] }, 0.0, 0.0);
    AdamW {
        params: memory.span(n, Fill::Normal(1.0)),
        grads: memory.span(n, Fill::Values(grads)),
        m: memory.span(n, Fill::Values(m)),
        v: memory.span(n, Fill::Values(v)),
        scalars: memory.span(scalar::LEN, Fill::Values(scalars)),
        decayed: rng.below(n as u64 + 1) as usize,
        beta1: 0.9,
        beta2: 0.99,
        // The larger one is seen in the result.
        eps: if coin(rng) { 1e-8 } else { 0.3 },
        weight_decay: 0.1,
    }
    .into()
}
