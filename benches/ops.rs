//! The main ops at the shapes of S, on the reference, the CPU backend in plain Rust, and the same with SIMD.
//!
//! For matrix products and attention an "element" is a floating-point operation, so that Gelem/s are GFLOP/s; for the
//! other ops the rate is in bytes read and written.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use minigpt_benches::{Shape, about_cuda, cpus};
use minigpt_core::backend::{write_elems, write_u32};
use minigpt_core::op::{
    self, Activate, AdamW, AttentionBackward, AttentionForward, CrossEntropy, LayerNormBackward,
    LayerNormForward, LinearBackward, LinearForward,
};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, Dtype, Op, Plan, Reference, Span};

/// Makes operands on a backend.
struct Operands<'b, B> {
    backend: &'b mut B,
    rng: Rng,
}

impl<B: Backend<Elem = f32>> Operands<'_, B> {
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

/// The ops of a training step that take its time, each under its name.
fn ops<B: Backend<Elem = f32>>(backend: &mut B, shape: &Shape) -> Result<Vec<(&'static str, Op)>, B::Error> {
    let Shape { config, batch, time, .. } = shape;
    let (batch, time, rows) = (*batch, *time, batch * time);
    let (width, d_ff, vocab, heads) = (config.d_model, config.d_ff, config.vocab_size, config.heads);
    let (d_head, scale, activation) = (config.d_head(), config.score_scale(), config.activation);
    let mut new = Operands { backend, rng: Rng::new(1, Stream::User) };
    let scalars = new.floats(op::scalar::LEN)?;
    // A step that is applied, at a learning rate that leaves the numbers finite however often it is repeated.
    let mut step = [0.0; op::scalar::LEN];
    step[op::scalar::APPLY] = 1.0;
    step[op::scalar::LEARNING_RATE] = 1e-6;
    step[op::scalar::GRAD_SCALE] = 1e-3;
    (step[op::scalar::CORRECTION1], step[op::scalar::CORRECTION2]) = (0.1, 0.01);
    write_elems(new.backend, scalars, &step)?;

    let forward = |new: &mut Operands<'_, B>, d_in, d_out, activate| -> Result<Op, B::Error> {
        Ok(LinearForward {
            x: new.floats(rows * d_in)?,
            weight: new.floats(d_out * d_in)?,
            bias: None,
            activate,
            dropout: None,
            residual: None,
            y: new.floats(rows * d_out)?,
            rows,
            d_in,
            d_out,
        }
        .into())
    };
    let backward = |new: &mut Operands<'_, B>, d_in, d_out, activate| -> Result<Op, B::Error> {
        Ok(LinearBackward {
            x: new.floats(rows * d_in)?,
            weight: new.floats(d_out * d_in)?,
            d_y: new.floats(rows * d_out)?,
            dropout: None,
            d_x: Some(new.floats(rows * d_in)?),
            accumulate: false,
            activate,
            d_weight: new.floats(d_out * d_in)?,
            d_bias: None,
            rows,
            d_in,
            d_out,
        }
        .into())
    };
    let activate = Some(Activate { activation, input: Some(new.floats(rows * d_ff)?) });
    let mut all = vec![
        ("linear forward, C to 3C", forward(&mut new, width, 3 * width, None)?),
        ("linear forward, C to F, GELU", forward(&mut new, width, d_ff, activate)?),
        ("linear backward, C to 3C", backward(&mut new, width, 3 * width, None)?),
        ("linear backward, F to C, GELU", backward(&mut new, d_ff, width, activate)?),
    ];

    let (qkv, out) = (new.floats(rows * 3 * width)?, new.floats(rows * width)?);
    let lse = new.floats(batch * heads * time)?;
    let attention = AttentionForward { qkv, out, lse, batch, time, heads, d_head, scale, dropout: None };
    // The backward pass needs a true result.
    new.backend.run(&attention.into())?;
    let (d_out, d_qkv) = (new.floats(rows * width)?, new.floats(rows * 3 * width)?);
    all.push(("attention forward", attention.into()));
    all.push((
        "attention backward",
        AttentionBackward { qkv, out, lse, d_out, d_qkv, batch, time, heads, d_head, scale, dropout: None }
            .into(),
    ));

    let (x, weight, y) = (new.floats(rows * width)?, new.floats(width)?, new.floats(rows * width)?);
    let (mean, rstd, eps) = (new.floats(rows)?, new.floats(rows)?, config.norm_eps);
    let norm = LayerNormForward { x, weight, bias: None, y, mean, rstd, rows, width, eps };
    new.backend.run(&norm.into())?;
    let (d_y, d_x, d_weight) = (new.floats(rows * width)?, new.floats(rows * width)?, new.floats(width)?);
    let accumulate = false;
    all.push(("layernorm forward", norm.into()));
    all.push((
        "layernorm backward",
        LayerNormBackward {
            x,
            weight,
            mean,
            rstd,
            d_y,
            d_x,
            accumulate,
            d_weight,
            d_bias: None,
            rows,
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
    let (len, decayed) = (plan.parameter_span, plan.decayed);
    let (params, grads, m) = (new.floats(len)?, new.floats(len)?, new.floats(len)?);
    let v = new.span(Dtype::F32, len)?;
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.99, 1e-8, 0.1);
    all.push((
        "AdamW",
        AdamW { params, grads, m, v, scalars, decayed, beta1, beta2, eps, weight_decay }.into(),
    ));
    Ok(all)
}

fn measure<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: &mut B, op: &Op) {
    group.throughput(match op.flops() {
        0 => Throughput::Bytes(op.bytes()),
        flops => Throughput::Elements(flops),
    });
    group.bench_function(name, |bench| {
        bench.iter(|| backend.run(op).and_then(|()| backend.sync()).expect("the op is valid"));
    });
}

fn all(criterion: &mut Criterion) {
    println!("{}", about_cuda());
    let shape = Shape::small();
    let mut reference = Reference::<f32>::new();
    let reference_ops = ops(&mut reference, &shape).expect("the operands fit into memory");
    let mut cpus: Vec<_> = cpus()
        .expect("the CPU backend starts")
        .into_iter()
        .map(|(name, mut cpu)| {
            let ops = ops(&mut cpu, &shape).expect("the operands fit into memory");
            (name, cpu, ops)
        })
        .collect();
    for (i, (name, op)) in reference_ops.iter().enumerate() {
        let mut group = criterion.benchmark_group(*name);
        // Few and short: some ops take the reference tens of milliseconds.
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        measure(&mut group, "reference", &mut reference, op);
        for (name, cpu, ops) in &mut cpus {
            measure(&mut group, name, cpu, &ops[i].1);
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
