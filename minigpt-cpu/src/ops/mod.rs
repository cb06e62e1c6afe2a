//! The ops, one file for each family. Each fast op names the reference function that it must equal.

mod activation;
mod attention;
#[cfg(feature = "bf16")]
pub(crate) mod bf16;
mod cache;
mod cross_entropy;
mod draw;
mod embedding;
mod empty;
mod gate;
mod lanes;
pub(crate) mod linear;
mod norm;
mod optimizer;
mod rotary;
mod rows;
mod sample;
#[cfg(all(test, feature = "std"))]
mod tests;
mod weight;

#[cfg(feature = "train")]
use minigpt_core::op::LinearBackward;
use minigpt_core::op::{GateRows, LinearRows, NormRows};
use minigpt_core::{Op, OpKind, Precision};

use crate::context::{Context, Machine};
use crate::error::CpuError;
use weight::Weight;

/// Whether every op of inference has a kernel, whatever its shape and the formats of its weights.
pub(crate) const COMPLETE: bool = Weight::READS_ALL;

/// The kinds of ops that have a kernel: all, but for the one that is only about bf16 where there is none for that.
pub(crate) const KERNELS: &[OpKind] = if HAS_BF16 { OpKind::ALL } else { WITHOUT_BF16 };

const HAS_BF16: bool = cfg!(feature = "bf16") && Weight::READS_ALL;

#[cfg(feature = "train")]
const WITHOUT_BF16: &[OpKind] = &{
    let mut kinds = [OpKind::Fill; OpKind::ALL.len() - 1];
    let (mut i, mut count) = (0, 0);
    while i < OpKind::ALL.len() {
        if !matches!(OpKind::ALL[i], OpKind::Narrow) {
            kinds[count] = OpKind::ALL[i];
            count += 1;
        }
        i += 1;
    }
    kinds
};
#[cfg(not(feature = "train"))]
const WITHOUT_BF16: &[OpKind] = OpKind::ALL;

/// Runs `op`, which was checked and is not under bf16, if there is a kernel for it; says whether there was. What only training
/// runs is left to the reference where some dimension is 0, so that kernels need not think of it.
pub(crate) fn run(context: &mut Context<'_, '_>, op: &Op) -> Result<bool, CpuError> {
    if empty::run(&mut context.views, op)? {
        return Ok(true);
    }
    match op {
        #[cfg(feature = "train")]
        Op::LinearBackward(LinearBackward { rows, d_in, d_out, .. })
            if [*rows, *d_in, *d_out].contains(&0) =>
        {
            return Ok(false);
        }
        Op::LinearForward(op) if Weight::reads(op.weight.dtype) => linear::linear_forward(context, op)?,
        #[cfg(feature = "train")]
        Op::LinearBackward(op) => linear::linear_backward(context, op)?,
        Op::EmbeddingForward(op) if Weight::reads(op.token_embedding.dtype) => {
            embedding::forward(context, op)?
        }
        #[cfg(feature = "train")]
        Op::EmbeddingBackward(op) if op.d_out.len > 0 => embedding::backward(context, op)?,
        Op::NormForward(op) => norm::forward(context, op)?,
        #[cfg(feature = "train")]
        Op::NormBackward(op) if ![op.rows, op.groups, op.width].contains(&0) => norm::backward(context, op)?,
        #[cfg(feature = "train")]
        Op::ActivationForward(op) if op.y.len > 0 => activation::forward(context, op)?,
        Op::GateForward(op) => gate::forward(context, op)?,
        #[cfg(feature = "train")]
        Op::GateBackward(op) if op.d_x.len > 0 => gate::backward(context, op)?,
        Op::Rotary(op) => rotary::rotary(context, op)?,
        Op::AttentionForward(op) => attention::forward(context, op)?,
        #[cfg(feature = "train")]
        Op::AttentionBackward(op) if op.out.len > 0 => attention::backward(context, op)?,
        Op::AttentionScores(op) => attention::scores(context, op)?,
        Op::EmbeddingRows(op) if Weight::reads(op.token_embedding.dtype) => {
            rows::embedding(context, op)?;
        }
        Op::NormRows(NormRows { live, norm }) => {
            let live = rows::live_rows(&mut context.views, *live, norm.rows)?;
            norm::forward(context, &norm.first_rows(live))?;
        }
        Op::LinearRows(LinearRows { live, linear: op }) if Weight::reads(op.weight.dtype) => {
            let live = rows::live_rows(&mut context.views, *live, op.rows)?;
            if live > 0 {
                linear::linear_forward(context, &op.first_rows(live))?;
            }
        }
        Op::GateRows(GateRows { live, gate }) => {
            let live = rows::live_rows(&mut context.views, *live, gate.rows)?;
            gate::forward(context, &gate.first_rows(live))?;
        }
        Op::RotaryRows(op) => rows::rotary(context, op)?,
        Op::CacheAppend(op) if Weight::reads(op.keys.dtype) => rows::append(context, op)?,
        Op::AttentionRows(op) if Weight::reads(op.keys.dtype) => attention::rows(context, op)?,
        Op::GatherRows(op) => rows::gather(context, op)?,
        Op::Sample(op) => sample::sample(context, op)?,
        #[cfg(feature = "train")]
        Op::CrossEntropy(op) if op.logits.len > 0 => cross_entropy::cross_entropy(context, op)?,
        #[cfg(feature = "train")]
        Op::SquaredNorm(op) => optimizer::squared_norm(context, op)?,
        #[cfg(feature = "train")]
        Op::NextDraw(op) => draw::next_draw(context, op)?,
        #[cfg(feature = "train")]
        Op::FinishStep(op) => optimizer::finish_step(context, op)?,
        #[cfg(feature = "train")]
        Op::AdamW(op) => optimizer::adamw(context, op)?,
        #[cfg(feature = "train")]
        Op::Sgd(op) => optimizer::sgd(context, op)?,
        #[cfg(feature = "train")]
        Op::Momentum(op) => optimizer::momentum(context, op)?,
        #[cfg(feature = "train")]
        Op::NewtonSchulz(op) if op.x.len > 0 => optimizer::newton_schulz::newton_schulz(context, op)?,
        #[cfg(feature = "train")]
        Op::Descend(op) => optimizer::descend(context, op)?,
        #[cfg(feature = "train")]
        Op::Average(op) => optimizer::average(context, op)?,
        #[cfg(feature = "train")]
        Op::Fill(op) => context.views.f32_mut("to", op.to)?.fill(op.value as f32),
        _ => return Ok(false),
    }
    Ok(true)
}

/// How many f32 of scratch `op` needs.
pub(crate) fn scratch_floats(op: &Op, machine: Machine) -> usize {
    if op.precision() == Precision::Bf16 {
        #[cfg(feature = "bf16")]
        return bf16::scratch_floats(op, machine);
        #[cfg(not(feature = "bf16"))]
        return 0;
    }
    match op {
        Op::LinearForward(op) => linear::forward_scratch_floats(op, machine),
        #[cfg(feature = "train")]
        Op::LinearBackward(op) => linear::backward_scratch_floats(op),
        #[cfg(feature = "train")]
        Op::NormBackward(op) => norm::backward_scratch_floats(op),
        Op::AttentionForward(op) => attention::forward_scratch_floats(op, machine),
        #[cfg(feature = "train")]
        Op::AttentionBackward(op) => attention::backward_scratch_floats(op, machine),
        Op::LinearRows(op) => linear::forward_scratch_floats(&op.linear, machine),
        Op::Sample(op) => sample::scratch_floats(op, machine),
        Op::AttentionRows(op) if op.keys.len > 0 => attention::rows_scratch_floats(op, machine),
        #[cfg(feature = "train")]
        Op::CrossEntropy(op) => cross_entropy::scratch_floats(op),
        #[cfg(feature = "train")]
        Op::SquaredNorm(op) => optimizer::scratch_floats(op.x.len),
        #[cfg(feature = "train")]
        Op::NewtonSchulz(op) => optimizer::newton_schulz::scratch_floats(op, machine),
        _ => 0,
    }
}
