//! From the loss to the update.

use minigpt_core::backend::{read_elems, read_u32, write_elems};
use minigpt_core::op::*;
use minigpt_core::reference::cross_entropy::cross_entropy;
use minigpt_core::reference::newton_schulz::{newton_schulz, room};
use minigpt_core::reference::optimizer::*;
use minigpt_core::{Backend, Span};

use super::memory::Memory;

#[test]
fn cross_entropy_may_write_over_its_logits() {
    let mut memory = Memory::new();
    let (rows, vocab) = (3, 4);
    let (logits_span, logits) = memory.random(rows * vocab);
    let ids = [3, IGNORE, 0];
    let targets = memory.put_u32(&ids);
    let losses_span = memory.room(rows);
    let (scalars_span, mut scalars) = memory.random(scalar::LEN);

    cross_entropy(&logits, &ids, None, None, &mut scalars, rows, vocab);
    let op = CrossEntropy {
        logits: logits_span,
        targets,
        d_logits: None,
        losses: None,
        scalars: scalars_span,
        rows,
        vocab,
    };
    memory.expect(op, &[(scalars_span, &scalars)]);

    let (mut d_logits, mut losses) = (vec![0.0; rows * vocab], vec![0.0; rows]);
    cross_entropy(&logits, &ids, Some(&mut d_logits), Some(&mut losses), &mut scalars, rows, vocab);
    let in_place = CrossEntropy { d_logits: Some(logits_span), losses: Some(losses_span), ..op };
    memory.expect(in_place, &[(logits_span, &d_logits), (losses_span, &losses), (scalars_span, &scalars)]);
}

#[test]
fn a_step_is_closed_and_applied() {
    let mut memory = Memory::new();
    let (clip, beta1, beta2) = (1.0, 0.9, 0.99);
    let (grads_span, grads) = memory.random(9);
    let (params_span, mut params) = memory.random(9);
    let (m_span, mut m) = memory.random(9);
    let mut v: Vec<f64> = m.iter().map(|m| m * m).collect();
    let v_span = memory.put(&v);
    let mut scalars = vec![0.0; scalar::LEN];
    (scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]) = (8.0, 4.0);
    scalars[scalar::LEARNING_RATE] = 0.1;
    let scalars_span = memory.put(&scalars);
    let mut counters = vec![3; counter::LEN];
    let counters_span = memory.put_u32(&counters);

    scalars[scalar::GRAD_SQUARED] = squared_norm(&grads);
    assert!(scalars[scalar::GRAD_SQUARED] > 0.0);
    let norm = SquaredNorm { x: grads_span, scalars: scalars_span };
    memory.expect(norm, &[(scalars_span, &scalars)]);

    // Counters are not of the type that `expect` compares: read them for themselves.
    next_draw(&mut counters);
    memory.backend.run(&NextDraw { counters: counters_span }.into()).unwrap();
    assert_eq!(read_u32(&mut memory.backend, counters_span).unwrap(), counters);

    finish_step(&mut scalars, &mut counters, clip);
    let finish = FinishStep { scalars: scalars_span, counters: counters_span, clip };
    memory.backend.run(&finish.into()).unwrap();
    assert_eq!(read_elems(&mut memory.backend, scalars_span).unwrap(), scalars);
    assert_eq!(read_u32(&mut memory.backend, counters_span).unwrap(), counters);

    let (eps, weight_decay, rate) = (1e-8, 0.1, 0.5);
    adamw(&mut params, &grads, &mut m, &mut v, &scalars, &counters, beta1, beta2, eps, weight_decay, rate);
    let update = AdamW {
        params: params_span,
        grads: grads_span,
        m: m_span,
        v: v_span,
        scalars: scalars_span,
        counters: counters_span,
        beta1,
        beta2,
        eps,
        weight_decay,
        rate,
    };
    memory.expect(update, &[(params_span, &params), (m_span, &m), (v_span, &v)]);

    write_elems(&mut memory.backend, scalars_span.slice(scalar::APPLY, 1), &[0.0]).unwrap();
    memory.expect(update, &[]);
}

/// The scalars and counters of update number 7.
fn seventh(memory: &mut Memory) -> ((Span, Vec<f64>), (Span, Vec<u32>)) {
    let (mut scalars, mut counters) = (vec![0.0; scalar::LEN], vec![0; counter::LEN]);
    (scalars[scalar::APPLY], scalars[scalar::GRAD_SCALE]) = (1.0, 0.25);
    (scalars[scalar::LEARNING_RATE], counters[counter::UPDATES]) = (0.1, 7);
    ((memory.put(&scalars), scalars), (memory.put_u32(&counters), counters))
}

#[test]
fn gradient_descent_goes_with_a_velocity_or_without() {
    let mut memory = Memory::new();
    let (params_span, mut params) = memory.random(9);
    let (grads_span, grads) = memory.random(9);
    let (velocity_span, mut velocity) = memory.random(9);
    let ((scalars_span, scalars), _) = seventh(&mut memory);
    let op = Sgd {
        params: params_span,
        grads: grads_span,
        velocity: Some(velocity_span),
        scalars: scalars_span,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 0.1,
        rate: 2.0,
    };
    sgd(&mut params, &grads, Some(&mut velocity), &scalars, 0.9, true, 0.1, 2.0);
    memory.expect(op, &[(params_span, &params), (velocity_span, &velocity)]);
    sgd(&mut params, &grads, None, &scalars, 0.0, false, 0.1, 2.0);
    let plain = Sgd { velocity: None, momentum: 0.0, nesterov: false, ..op };
    memory.expect(plain, &[(params_span, &params)]);
    // What momentum there is must lie somewhere.
    memory.backend.run(&Sgd { velocity: None, ..op }.into()).unwrap_err();
}

#[test]
fn muon_is_momentum_orthogonalised_and_gone_down() {
    let mut memory = Memory::new();
    let (rows, cols) = (4, 3);
    let (params_span, mut params) = memory.random(rows * cols);
    let (grads_span, grads) = memory.random(rows * cols);
    let (velocity_span, mut velocity) = memory.random(rows * cols);
    let (x, mut direction) = memory.random(rows * cols);
    let ((scalars_span, scalars), _) = seventh(&mut memory);

    momentum(&grads, &mut velocity, &mut direction, &scalars, 0.95, true);
    let op = Momentum {
        grads: grads_span,
        velocity: velocity_span,
        direction: x,
        scalars: scalars_span,
        momentum: 0.95,
        nesterov: true,
    };
    memory.expect(op, &[(velocity_span, &velocity), (x, &direction)]);
    newton_schulz(&mut direction, &mut vec![0.0; room(rows, cols)], rows, cols, 5);
    memory.expect(NewtonSchulz { x, rows, cols, steps: 5 }, &[(x, &direction)]);
    descend(&mut params, &direction, &scalars, 0.1, 2.0, 1.5);
    let down = Descend {
        params: params_span,
        direction: x,
        scalars: scalars_span,
        weight_decay: 0.1,
        rate: 2.0,
        scale: 1.5,
    };
    memory.expect(down, &[(params_span, &params)]);

    // In a step that is skipped the direction is 0, and nothing else is anything else.
    write_elems(&mut memory.backend, scalars_span.slice(scalar::APPLY, 1), &[0.0]).unwrap();
    memory.expect(down, &[]);
    memory.expect(op, &[(x, &[0.0; 12])]);
}

#[test]
fn an_average_follows_the_parameters() {
    let mut memory = Memory::new();
    let (params_span, params) = memory.random(9);
    let (average_span, mut mean) = memory.random(9);
    let ((scalars_span, scalars), (counters_span, counters)) = seventh(&mut memory);
    average(&params, &mut mean, &scalars, &counters, 0.99);
    let op = Average {
        params: params_span,
        average: average_span,
        scalars: scalars_span,
        counters: counters_span,
        decay: 0.99,
    };
    memory.expect(op, &[(average_span, &mean)]);
}

#[test]
fn a_stretch_is_filled_and_nothing_beside_it() {
    let mut memory = Memory::new();
    let (span, mut values) = memory.random(9);
    values[2..7].fill(0.75);
    memory.expect(Fill { to: span.slice(2, 5), value: 0.75 }, &[(span, &values)]);
}
