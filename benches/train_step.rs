//! The whole training step, in tokens per second: on the reference, the CPU backend in plain Rust, and the same with
//! SIMD.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use minigpt_benches::{Shape, about_cuda, cpus};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::train::{TrainConfig, Trainer};
use minigpt_core::{Backend, Model, Reference, Windows};

fn measure<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, backend: B, shape: &Shape) {
    let Shape { config, batch, time, .. } = shape.clone();
    let mut rng = Rng::new(1, Stream::User);
    let text: Vec<u32> = (0..10_000).map(|_| rng.below(config.vocab_size as u64) as u32).collect();
    let windows = Windows::new(&text, time).expect("the text is longer than a window");
    let model = Model::new(backend, config, 1).expect("the model fits into memory");
    let settings = TrainConfig { batch, time, ..TrainConfig::constant(1e-3) };
    let mut trainer = Trainer::new(model, settings).expect("the training fits into memory");
    group.throughput(Throughput::Elements((batch * time) as u64));
    group.bench_function(name, |bench| {
        bench.iter(|| {
            trainer.step(&windows).expect("the windows fit the model");
            // Waits for the step.
            trainer.metrics().expect("the backend works").loss
        });
    });
}

fn all(criterion: &mut Criterion) {
    println!("{}", about_cuda());
    for shape in [Shape::tiny(), Shape::small()] {
        let mut group = criterion.benchmark_group(format!("train step {}", shape.name));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        measure(&mut group, "reference", Reference::<f32>::new(), &shape);
        for (name, cpu) in cpus().expect("the CPU backend starts") {
            measure(&mut group, &name, cpu, &shape);
        }
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
