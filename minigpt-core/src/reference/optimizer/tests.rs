//! By hand, and against the papers.

use super::*;
use crate::reference::check::assert_close;

/// 4 targets, a mean loss of 2.5 and a mean gradient of norm 3.
fn start() -> ([f64; scalar::LEN], [u32; counter::LEN]) {
    let mut scalars = [0.125; scalar::LEN];
    scalars[scalar::LOSS_SUM] = 10.0;
    scalars[scalar::TARGETS] = 4.0;
    scalars[scalar::GRAD_SQUARED] = 144.0;
    let mut counters = [77; counter::LEN];
    counters[counter::TOKENS] = u32::MAX - 1;
    counters[counter::TOKENS + 1] = 8;
    counters[counter::STEP] = 7;
    counters[counter::UPDATES] = 2;
    counters[counter::SKIPPED] = 5;
    counters[counter::SKIPPED_IN_A_ROW] = 3;
    (scalars, counters)
}

#[test]
fn a_finite_step_gives_means_and_clip() {
    let (mut scalars, mut counters) = start();
    finish_step(&mut scalars, &mut counters, 0.75);
    let factor = 0.75 / (3.0 + 1e-6);
    // The host's learning rate stays, and so does what nothing has a place for.
    let expected = [0.0, 0.0, 144.0, 2.5, 3.0, factor / 4.0, 0.125, 0.125, 0.125, 1.0];
    assert_close(&scalars[..10], &expected, 1e-15);
    assert_eq!(scalars[10..], [0.125; 6]);
    let mut after = [77; counter::LEN];
    // The 64-bit count of tokens carries: 2^32 - 2 + 4.
    after[counter::TOKENS] = 2;
    after[counter::TOKENS + 1] = 9;
    after[counter::STEP] = 8;
    after[counter::UPDATES] = 3;
    after[counter::SKIPPED] = 5;
    after[counter::SKIPPED_IN_A_ROW] = 0;
    assert_eq!(counters, after);
}

#[test]
fn a_gradient_below_the_clip_is_only_divided_by_the_targets() {
    for clip in [3.1, f64::INFINITY] {
        let (mut scalars, mut counters) = start();
        finish_step(&mut scalars, &mut counters, clip);
        assert_eq!(scalars[scalar::GRAD_SCALE], 0.25);
    }
}

#[test]
fn a_gradient_of_zero_is_a_step_like_any_other() {
    let (mut scalars, mut counters) = start();
    scalars[scalar::GRAD_SQUARED] = 0.0;
    finish_step(&mut scalars, &mut counters, 1.0);
    assert_eq!((scalars[scalar::GRAD_SCALE], scalars[scalar::APPLY]), (0.25, 1.0));
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    for (place, value) in [
        (scalar::LOSS_SUM, f64::NAN),
        (scalar::LOSS_SUM, f64::INFINITY),
        (scalar::GRAD_SQUARED, f64::NAN),
        (scalar::GRAD_SQUARED, f64::INFINITY),
        (scalar::TARGETS, 0.0),
    ] {
        let (mut scalars, mut counters) = start();
        scalars[place] = value;
        let targets = scalars[scalar::TARGETS] as u32;
        finish_step(&mut scalars, &mut counters, 1.0);
        assert_eq!(scalars[scalar::APPLY], 0.0);
        assert_eq!(scalars[scalar::GRAD_SCALE], 0.0);
        assert_eq!(scalars[scalar::LEARNING_RATE], 0.125);
        assert_eq!((scalars[scalar::LOSS_SUM], scalars[scalar::TARGETS]), (0.0, 0.0));
        assert_eq!(scalars[scalar::LOSS].is_finite(), place == scalar::GRAD_SQUARED);
        assert_eq!(counters[counter::STEP], 8);
        assert_eq!(counters[counter::UPDATES], 2);
        assert_eq!(counters[counter::SKIPPED], 6);
        assert_eq!(counters[counter::SKIPPED_IN_A_ROW], 4);
        assert_eq!(counters[counter::TOKENS], (u32::MAX - 1).wrapping_add(targets));
    }
}

#[test]
fn no_targets_is_skipped_even_with_sums_of_zero() {
    let mut scalars = [0.0f64; scalar::LEN];
    let mut counters = [0; counter::LEN];
    finish_step(&mut scalars, &mut counters, 1.0);
    assert_eq!(scalars[scalar::APPLY], 0.0);
    assert_eq!(counters[counter::SKIPPED], 1);
    assert_eq!(counters[counter::TOKENS], 0);
}

#[test]
fn counters_stay_at_their_end() {
    let (mut scalars, _) = start();
    let mut counters = [u32::MAX; counter::LEN];
    finish_step(&mut scalars, &mut counters, 1.0);
    assert_eq!(counters[counter::STEP], u32::MAX);
    assert_eq!(counters[counter::UPDATES], u32::MAX);
    assert_eq!(bias_corrections::<f64>(&counters, [0.9, 0.99]), [1.0, 1.0]);
    assert_eq!(average_share::<f64>(&counters, 0.9), 1.0 - 0.9);
}

#[test]
fn squares_are_summed_in_double_precision() {
    assert_eq!(squared_norm::<f64>(&[]), 0.0);
    assert_eq!(squared_norm(&[1.0, -2.0, 3.0f64]), 14.0);
    // In f32 the ones would be lost beside 2^26.
    let mut x = [1.0f32; 101];
    x[0] = 8192.0;
    assert_eq!(squared_norm(&x), 67_108_864.0 + 100.0);
}

#[test]
fn the_draw_number_carries_into_its_high_word_only() {
    let mut counters = [3; counter::LEN];
    next_draw(&mut counters);
    assert_eq!(counters[..5], [3, 3, 4, 3, 3]);
    counters[counter::DRAW] = u32::MAX;
    next_draw(&mut counters);
    assert_eq!(counters[..5], [3, 3, 0, 4, 3]);
}

fn applied() -> [f64; scalar::LEN] {
    let mut scalars = [0.0; scalar::LEN];
    scalars[scalar::APPLY] = 1.0;
    scalars[scalar::GRAD_SCALE] = 0.5;
    scalars[scalar::LEARNING_RATE] = 0.1;
    scalars
}

/// Counters of update number `update`.
fn at(update: u32) -> [u32; counter::LEN] {
    let mut counters = [0; counter::LEN];
    counters[counter::UPDATES] = update;
    counters
}

#[test]
fn adamw_matches_numbers_worked_out_by_hand() {
    for (weight_decay, kept) in [(0.4, 0.92), (0.0, 1.0)] {
        let (mut p, mut m, mut v) = ([2.0], [3.0], [0.5]);
        adamw(&mut p, &[12.0], &mut m, &mut v, &applied(), &at(2), 0.5, 0.75, 0.25, weight_decay, 2.0);
        // g = 6; m = 1.5 + 3 = 4.5; v = 0.375 + 0.25 * 36 = 9.375.
        assert_eq!((m, v), ([4.5], [9.375]));
        // m^ = 4.5 / 0.75 = 6; v^ = 9.375 / 0.4375. The learning rate is 2 * 0.1, and the decay 0.2 * 0.4 comes first.
        let step = 0.2 * 6.0 / ((9.375f64 / 0.4375).sqrt() + 0.25);
        assert_close(&p, &[2.0 * kept - step], 1e-15);
    }
}

#[test]
fn ten_updates_match_the_papers_algorithm() {
    let (b1, b2, eps, lr, decay) = (0.9f64, 0.95f64, 1e-8, 0.02, 0.1);
    let (mut p, mut m, mut v) = ([0.3, -0.7, 1.1], [0.0; 3], [0.0; 3]);
    let (mut theta, mut mt, mut vt) = (p, [0.0f64; 3], [0.0f64; 3]);
    let mut scalars = applied();
    scalars[scalar::LEARNING_RATE] = lr;
    for t in 1..=10 {
        let gradient: [f64; 3] = core::array::from_fn(|i| (t as f64 * (i + 1) as f64).sin());
        let (grads, counters) = (gradient.map(|g| 2.0 * g), at(t as u32));
        adamw(&mut p, &grads, &mut m, &mut v, &scalars, &counters, b1, b2, eps, decay, 1.0);
        for i in 0..3 {
            mt[i] = b1 * mt[i] + (1.0 - b1) * gradient[i];
            vt[i] = b2 * vt[i] + (1.0 - b2) * gradient[i].powi(2);
            let adam = mt[i] / (1.0 - b1.powi(t)) / ((vt[i] / (1.0 - b2.powi(t))).sqrt() + eps);
            theta[i] -= lr * (adam + decay * theta[i]);
        }
        // The paper decays and steps at once, the code one after the other: the step does not read the weight.
        assert_close(&p, &theta, 1e-14);
    }
}

#[test]
fn momentum_is_a_sum_of_gradients_that_fades() {
    for nesterov in [false, true] {
        let (mut p, mut v) = ([1.0], [0.0]);
        let gradients = [3.0, -1.0, 2.0, 0.5];
        for (t, &g) in gradients.iter().enumerate() {
            let before = p[0];
            sgd(&mut p, &[2.0 * g], Some(&mut v), &applied(), 0.75, nesterov, 0.2, 0.5);
            // What is left of each earlier gradient.
            let fading = |ahead: usize| -> f64 {
                gradients[..=t]
                    .iter()
                    .enumerate()
                    .map(|(i, g)| g * 0.75f64.powi((t - i + ahead) as i32))
                    .sum()
            };
            assert_close(&v, &[fading(0)], 1e-15);
            let direction = if nesterov { g + fading(1) } else { fading(0) };
            assert_close(&p, &[before * (1.0 - 0.05 * 0.2) - 0.05 * direction], 1e-15);
        }
    }
}

#[test]
fn without_a_velocity_the_gradient_is_the_direction() {
    let (mut plain, mut zero, mut v) = ([1.0, -2.0], [1.0, -2.0], [7.0, 7.0]);
    sgd(&mut plain, &[3.0, 5.0], None, &applied(), 0.0, true, 0.1, 1.0);
    sgd(&mut zero, &[3.0, 5.0], Some(&mut v), &applied(), 0.0, true, 0.1, 1.0);
    assert_eq!(plain, zero);
    assert_close(&plain, &[0.99 - 0.15, -1.98 - 0.25], 1e-15);
}

#[test]
fn muons_momentum_is_that_of_gradient_descent() {
    for nesterov in [false, true] {
        let (mut p, mut v) = ([0.0, 0.0], [0.5, -0.25]);
        let (mut velocity, mut direction) = (v, [f64::NAN; 2]);
        let scalars = applied();
        momentum(&[2.0, 6.0], &mut velocity, &mut direction, &scalars, 0.5, nesterov);
        sgd(&mut p, &[2.0, 6.0], Some(&mut v), &scalars, 0.5, nesterov, 0.0, 1.0);
        assert_eq!(velocity, v);
        assert_eq!(p, direction.map(|d| -0.1 * d));
    }
}

#[test]
fn an_average_of_a_constant_is_that_constant_and_forgets_its_beginning() {
    let mut mean = [100.0];
    for t in 1..=1000 {
        average(&[2.0], &mut mean, &applied(), &at(t), 0.99);
        if t == 1 {
            assert_close(&mean, &[(2.0 * 100.0 + 9.0 * 2.0) / 11.0], 1e-13);
        }
    }
    assert_close(&mean, &[2.0], 1e-2);
    // What is there already stays to the last bit, also in f32 and with a decay that it has no room for.
    let (mut mean, scalars) = ([0.3f32], applied().map(|x| x as f32));
    (1..=100_000).for_each(|t| average(&[0.3], &mut mean, &scalars, &at(t), 0.99999));
    assert_eq!(mean, [0.3]);
}

#[test]
fn a_skipped_update_touches_nothing() {
    let mut scalars = applied();
    scalars[scalar::APPLY] = 0.0;
    let (mut p, mut m, mut v) = ([2.0], [3.0], [0.5]);
    let broken = [f64::NAN];
    adamw(&mut p, &broken, &mut m, &mut v, &scalars, &at(2), 0.5, 0.75, 0.25, 0.4, 1.0);
    sgd(&mut p, &broken, Some(&mut v), &scalars, 0.5, true, 0.1, 1.0);
    descend(&mut p, &broken, &scalars, 0.1, 1.0, 1.0);
    average(&broken, &mut m, &scalars, &at(2), 0.5);
    let mut direction = broken;
    momentum(&broken, &mut v, &mut direction, &scalars, 0.5, true);
    assert_eq!((p, m, v), ([2.0], [3.0], [0.5]));
    assert_eq!(direction, [0.0]);
}

#[test]
fn without_decay_the_sign_of_a_zero_stays() {
    let mut p = [-0.0f32];
    let scalars = applied().map(|x| x as f32);
    descend(&mut p, &[0.0], &scalars, 0.0, 1.0, 1.0);
    assert!(p[0].is_sign_negative());
}
