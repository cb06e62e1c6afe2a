//! The ops of a training step with operands of their own, to be run one by one.

use minigpt_core::backend::{write_elems, write_u32};
use minigpt_core::op::{
    self, Activate, AdamW, AttentionBackward, AttentionForward, AttentionShape, CrossEntropy,
    EmbeddingBackward, EmbeddingForward, Fill, LinearBackward, LinearForward, NewtonSchulz, NormBackward,
    NormForward, Normalize, SquaredNorm,
};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, Dtype, Op, Plan, Span};

use crate::Shape;

/// Makes operands on a backend.
struct Operands<'b, B> {
    backend: &'b mut B,
    rng: Rng,
}

impl<'b, B: Backend<Elem = f32>> Operands<'b, B> {
    fn new(backend: &'b mut B) -> Self {
        Operands { backend, rng: Rng::new(1, Stream::User) }
    }

    fn span(&mut self, dtype: Dtype, len: usize) -> Result<Span, B::Error> {
        Ok(Span { buffer: self.backend.alloc(len * 4)?, dtype, offset: 0, len })
    }

    /// Standard normal numbers.
    fn floats(&mut self, len: usize) -> Result<Span, B::Error> {
        let span = self.span(Dtype::F32, len)?;
        let values: Vec<f32> = (0..len).map(|_| self.rng.normal() as f32).collect();
        write_elems(self.backend, span, &values)?;
        Ok(span)
    }

    fn tokens(&mut self, len: usize, vocab: usize) -> Result<Span, B::Error> {
        let span = self.span(Dtype::U32, len)?;
        let values: Vec<u32> = (0..len).map(|_| self.rng.below(vocab as u64) as u32).collect();
        write_u32(self.backend, span, &values)?;
        Ok(span)
    }
}

/// The ops of one linear layer, without bias and activation.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// y = x W^T.
    pub forward: Op,
    /// W's gradient alone: += d_y^T x.
    pub d_weight: Op,
    /// Both gradients: d_x = d_y W as well.
    pub backward: Op,
}

/// A linear layer over `rows` rows.
///
/// # Errors
/// If the operands do not fit into memory.
pub fn linear<B: Backend<Elem = f32>>(
    backend: &mut B,
    rows: usize,
    d_in: usize,
    d_out: usize,
) -> Result<Linear, B::Error> {
    let mut new = Operands::new(backend);
    let (x, weight) = (new.floats(rows * d_in)?, new.floats(d_out * d_in)?);
    let (y, d_y) = (new.floats(rows * d_out)?, new.floats(rows * d_out)?);
    let (d_x, d_weight) = (new.floats(rows * d_in)?, new.floats(d_out * d_in)?);
    let forward = LinearForward {
        x,
        weight,
        bias: None,
        activate: None,
        dropout: None,
        residual: None,
        y,
        rows,
        d_in,
        d_out,
    };
    let backward = LinearBackward {
        x,
        weight,
        d_y,
        dropout: None,
        d_x: Some(d_x),
        accumulate: false,
        activate: None,
        d_weight: Some(d_weight),
        d_bias: None,
        rows,
        d_in,
        d_out,
    };
    let d_weight = LinearBackward { d_x: None, ..backward };
    Ok(Linear { forward: forward.into(), d_weight: d_weight.into(), backward: backward.into() })
}

/// The kinds of op of a training step, each under its name; of the linear layers, the two with an activation.
///
/// # Errors
/// If the operands do not fit into memory.
pub fn ops<B: Backend<Elem = f32>>(
    backend: &mut B,
    shape: &Shape,
) -> Result<Vec<(&'static str, Op)>, B::Error> {
    let Shape { config, batch, time, .. } = shape;
    let (batch, time, rows) = (*batch, *time, batch * time);
    let (width, d_ff, vocab, heads) = (config.d_model, config.d_ff, config.vocab_size, config.heads);
    let (d_head, scale, activation) = (config.d_head(), config.score_scale(), config.activation);
    let mut new = Operands::new(backend);
    let scalars = new.floats(op::scalar::LEN)?;
    // A step that is applied, at a learning rate that leaves the numbers finite however often it is repeated.
    let mut step = [0.0; op::scalar::LEN];
    step[op::scalar::APPLY] = 1.0;
    step[op::scalar::LEARNING_RATE] = 1e-6;
    step[op::scalar::GRAD_SCALE] = 1e-3;
    write_elems(new.backend, scalars, &step)?;

    let pre_activation = new.floats(rows * d_ff)?;
    let activate = Some(Activate { activation, input: Some(pre_activation) });
    let with_activation = |op: Op| match op {
        Op::LinearForward(op) => LinearForward { activate, ..op }.into(),
        Op::LinearBackward(op) => LinearBackward { activate, ..op }.into(),
        other => other,
    };
    let mut all = vec![
        ("linear forward, GELU", with_activation(linear(new.backend, rows, width, d_ff)?.forward)),
        ("linear backward, GELU", with_activation(linear(new.backend, rows, d_ff, width)?.backward)),
    ];

    let (tokens, embedding) = (new.tokens(rows, vocab)?, new.floats(vocab * width)?);
    let (positions, out) = (Some(new.floats(time * width)?), new.floats(rows * width)?);
    let (d_model, dropout) = (width, None);
    all.push((
        "embedding forward",
        EmbeddingForward {
            tokens,
            token_embedding: embedding,
            position_embedding: positions,
            out,
            batch,
            time,
            d_model,
            vocab,
            dropout,
        }
        .into(),
    ));
    all.push((
        "embedding backward",
        EmbeddingBackward {
            tokens,
            d_out: out,
            d_token_embedding: Some(embedding),
            d_position_embedding: positions,
            batch,
            time,
            d_model,
            vocab,
            dropout,
        }
        .into(),
    ));

    let (d_qkv, shared) = (config.d_qkv(), config.kv_heads() * d_head);
    let parts = |qkv: Span| {
        let [q, k, v] = [(0, width), (width, shared), (width + shared, shared)];
        [q, k, v].map(|(first, width)| qkv.columns(first, width, d_qkv))
    };
    let [q, k, v] = parts(new.floats(rows * d_qkv)?);
    let (out, lse) = (new.floats(rows * width)?, new.floats(batch * heads * time)?);
    let shape = AttentionShape { batch, time, heads, kv_heads: config.kv_heads(), d_head, scale, prefix: 0 };
    let attention = AttentionForward { q, k, v, out, lse, shape, dropout: None };
    // The backward pass needs a true result.
    new.backend.run(&attention.into())?;
    let (d_out, [d_q, d_k, d_v]) = (new.floats(rows * width)?, parts(new.floats(rows * d_qkv)?));
    all.push(("attention forward", attention.into()));
    all.push((
        "attention backward",
        AttentionBackward { q, k, v, out, lse, d_out, d_q, d_k, d_v, shape, dropout: None }.into(),
    ));

    let (x, weight, y) = (new.floats(rows * width)?, new.floats(width)?, new.floats(rows * width)?);
    let (mean, rstd, eps) = (new.floats(rows)?, new.floats(rows)?, config.norm_eps);
    let (kind, groups, bias) = (Normalize::Layer { mean }, 1, None);
    let (x, y) = (x.rows(width), y.rows(width));
    let norm = NormForward { kind, x, weight, bias, y, rstd, rows, groups, width, eps };
    new.backend.run(&norm.into())?;
    let (d_y, d_x, d_weight) = (new.floats(rows * width)?, new.floats(rows * width)?, new.floats(width)?);
    let accumulate = false;
    all.push(("norm forward", norm.into()));
    all.push((
        "norm backward",
        NormBackward {
            kind,
            x,
            weight,
            rstd,
            d_y: d_y.rows(width),
            d_x: d_x.rows(width),
            accumulate,
            d_weight: Some(d_weight),
            d_bias: None,
            rows,
            groups,
            width,
        }
        .into(),
    ));

    let (logits, d_logits) = (new.floats(rows * vocab)?, Some(new.floats(rows * vocab)?));
    let targets = new.tokens(rows, vocab)?;
    // It adds to scalars, which AdamW does not look at.
    all.push((
        "cross-entropy",
        CrossEntropy { logits, targets, d_logits, losses: None, scalars, rows, vocab }.into(),
    ));

    let plan = Plan::training(config, Dtype::F32, batch, time).expect("the shape is valid");
    let len = plan.parameter_span;
    let (params, grads, m) = (new.floats(len)?, new.floats(len)?, new.floats(len)?);
    let (v, zeroed) = (new.span(Dtype::F32, len)?, new.span(Dtype::F32, len)?);
    let (beta1, beta2, eps, weight_decay, rate) = (0.9, 0.99, 1e-8, 0.1, 1.0);
    let counters = new.tokens(op::counter::LEN, 1)?;
    write_u32(new.backend, counters, &[100; op::counter::LEN])?;
    all.push(("fill", Fill { to: zeroed, value: 0.0 }.into()));
    all.push(("squared norm", SquaredNorm { x: grads, scalars }.into()));
    all.push((
        "AdamW",
        AdamW { params, grads, m, v, scalars, counters, beta1, beta2, eps, weight_decay, rate }.into(),
    ));
    all.push((
        "Newton-Schulz of the way up",
        NewtonSchulz { x: new.floats(width * d_ff)?, rows: d_ff, cols: width, steps: 5 }.into(),
    ));
    Ok(all)
}
