//! From the loss to the update.

use minigpt_core::Backend;
use minigpt_core::backend::{read_elems, read_u32, write_elems};
use minigpt_core::op::*;
use minigpt_core::reference::cross_entropy::cross_entropy;
use minigpt_core::reference::optimizer::*;

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

    finish_step(&mut scalars, &mut counters, clip, beta1, beta2);
    let finish = FinishStep { scalars: scalars_span, counters: counters_span, clip, beta1, beta2 };
    memory.backend.run(&finish.into()).unwrap();
    assert_eq!(read_elems(&mut memory.backend, scalars_span).unwrap(), scalars);
    assert_eq!(read_u32(&mut memory.backend, counters_span).unwrap(), counters);

    let (decayed, eps, weight_decay) = (5, 1e-8, 0.1);
    adamw(&mut params, &grads, &mut m, &mut v, &scalars, decayed, beta1, beta2, eps, weight_decay);
    let update = AdamW {
        params: params_span,
        grads: grads_span,
        m: m_span,
        v: v_span,
        scalars: scalars_span,
        decayed,
        beta1,
        beta2,
        eps,
        weight_decay,
    };
    memory.expect(update, &[(params_span, &params), (m_span, &m), (v_span, &v)]);

    write_elems(&mut memory.backend, scalars_span.slice(scalar::APPLY, 1), &[0.0]).unwrap();
    memory.expect(update, &[]);
}

#[test]
fn a_stretch_is_filled_and_nothing_beside_it() {
    let mut memory = Memory::new();
    let (span, mut values) = memory.random(9);
    values[2..7].fill(0.75);
    memory.expect(Fill { to: span.slice(2, 5), value: 0.75 }, &[(span, &values)]);
}
