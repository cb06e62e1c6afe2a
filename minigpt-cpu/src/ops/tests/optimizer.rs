//! From the gradient to the next weights.

use super::*;

#[test]
fn the_optimizer_is_the_references_over_several_chunks() {
    for (apply, weight_decay, rate) in [(1.0, 0.1, 1.0), (1.0, 0.0, 3.0), (0.0, 0.1, 1.0)] {
        assert_like_the_reference(1e-6, |bench| {
            let n = 40_000;
            let mut scalars = [0.0; scalar::LEN];
            scalars[scalar::APPLY] = apply;
            scalars[scalar::GRAD_SCALE] = 0.5;
            scalars[scalar::LEARNING_RATE] = 0.1;
            let squares: Vec<f32> = (0..n).map(|_| bench.rng.uniform() as f32).collect();
            let op = AdamW {
                params: bench.normal(n),
                grads: bench.normal(n),
                m: bench.normal(n),
                v: bench.values(&squares),
                scalars: bench.values(&scalars),
                counters: bench.words(&[2; counter::LEN]),
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay,
                rate,
            };
            (op.into(), [op.params, op.m, op.v].into())
        });
    }
}

#[test]
fn newton_and_schulz_are_the_references_whichever_way_the_matrix_lies() {
    // Deep, wide, more rows than a task has; small beside every tile.
    for (rows, cols) in [(1, 1), (1, 63), (65, 1), (7, 7), (31, 450), (450, 31), (200, 210), (130, 97)] {
        for steps in [0, 1, 2, 5] {
            assert_like_the_reference(1e-4, |bench| {
                let x = bench.normal(rows * cols);
                (NewtonSchulz { x, rows, cols, steps }.into(), [x].into())
            });
        }
    }
}

#[test]
fn the_parts_of_muon_and_gradient_descent_are_the_references_over_several_chunks() {
    for apply in [1.0, 0.0] {
        let n = 40_001;
        let scalars = |bench: &mut Bench| {
            let mut scalars = [0.5; scalar::LEN];
            scalars[scalar::APPLY] = apply;
            bench.values(&scalars)
        };
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, velocity) = (scalars(bench), bench.normal(n));
            let (grads, direction) = (bench.normal(n), bench.poison(n));
            let op = Momentum { grads, velocity, direction, scalars, momentum: 0.9, nesterov: true };
            (op.into(), [velocity, direction].into())
        });
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, params, direction) = (scalars(bench), bench.normal(n), bench.normal(n));
            let op = Descend { params, direction, scalars, weight_decay: 0.3, rate: 0.5, scale: 1.5 };
            (op.into(), [params].into())
        });
        for velocity in [true, false] {
            assert_like_the_reference(1e-6, |bench| {
                let (scalars, params, grads) = (scalars(bench), bench.normal(n), bench.normal(n));
                let velocity = velocity.then(|| bench.normal(n));
                let momentum = if velocity.is_some() { 0.9 } else { 0.0 };
                let (nesterov, weight_decay, rate) = (true, 0.3, 0.5);
                let op = Sgd { params, grads, velocity, scalars, momentum, nesterov, weight_decay, rate };
                (op.into(), [params].into_iter().chain(velocity).collect())
            });
        }
        assert_like_the_reference(1e-6, |bench| {
            let (scalars, counters) = (scalars(bench), bench.words(&[3; counter::LEN]));
            let (params, average) = (bench.normal(n), bench.normal(n));
            (Average { params, average, scalars, counters, decay: 0.9 }.into(), [average].into())
        });
    }
}

#[test]
fn squares_are_summed_in_double_precision() {
    // In f32 the ones would be lost beside 2^26.
    let mut x = std::vec![1.0; 40_001];
    x[0] = 8192.0;
    for isa in Isa::available() {
        let mut bench = Bench::new(isa);
        let op = SquaredNorm { x: bench.values(&x), scalars: bench.poison(scalar::LEN) };
        bench.cpu.run(&op.into()).unwrap();
        assert_eq!(bench.read(op.scalars)[scalar::GRAD_SQUARED], 67_108_864.0 + 40_000.0);
    }
}
