//! The backends beside each other: the reference, the CPU on each of its instruction sets, and CUDA where there is a
//! device with kernels. Every kind of op of S, and the whole step of tiny and S.
//!
//! For matrix products and attention an "element" is a floating-point operation, so that Gelem/s are GFLOP/s; for the
//! other ops the rate is in bytes read and written, and for steps in tokens.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use minigpt_benches::operands::ops;
use minigpt_benches::shape::{Shape, Training};
use minigpt_benches::{about_cuda, cpus};
use minigpt_core::{Backend, Op, Reference};

fn op<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: &mut B, op: &Op) {
    group.throughput(match op.flops() {
        0 => Throughput::Bytes(op.bytes()),
        flops => Throughput::Elements(flops),
    });
    group.bench_function(name, |bench| {
        bench.iter(|| backend.run(op).and_then(|()| backend.sync()).expect("the op is valid"));
    });
}

fn all_ops(criterion: &mut Criterion) {
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
    for (i, (name, reference_op)) in reference_ops.iter().enumerate() {
        let mut group = criterion.benchmark_group(*name);
        // Few and short: some ops take the reference tens of milliseconds.
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        op(&mut group, "reference", &mut reference, reference_op);
        for (name, cpu, ops) in &mut cpus {
            op(&mut group, name, cpu, &ops[i].1);
        }
        group.finish();
    }
}

fn step<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: B, shape: &Shape) {
    let mut training = Training::new(shape, backend).expect("the training fits into memory");
    group.throughput(Throughput::Elements(shape.rows() as u64));
    group.bench_function(name, |bench| bench.iter(|| training.step()));
}

fn steps(criterion: &mut Criterion) {
    for shape in [Shape::tiny(), Shape::small()] {
        let mut group = criterion.benchmark_group(format!("train step {}", shape.name));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        step(&mut group, "reference", Reference::<f32>::new(), &shape);
        for (name, cpu) in cpus().expect("the CPU backend starts") {
            step(&mut group, &name, cpu, &shape);
        }
        group.finish();
    }
}

criterion_group!(benches, all_ops, steps);
criterion_main!(benches);
