//! In f32 the reference gives the same bits on every target: a digest of every function's results is pinned here.
//!
//! A digest may only change together with a formula, an order of summation or a version of `libm`; never with the
//! machine, the compiler, the profile or a feature of another crate.

use minigpt_core::config::schedule::{Decay, Schedule};
use minigpt_core::op::{AttentionShape, IGNORE, counter, scalar};
use minigpt_core::reference::Rows;
use minigpt_core::reference::activation::{activate, derivative};
use minigpt_core::reference::attention::*;
use minigpt_core::reference::cross_entropy::cross_entropy;
use minigpt_core::reference::dropout::Mask;
use minigpt_core::reference::gate::*;
use minigpt_core::reference::linear::*;
use minigpt_core::reference::norm::*;
use minigpt_core::reference::optimizer::*;
use minigpt_core::reference::position::sinusoidal_table;
use minigpt_core::reference::rotary::*;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Activation, Pairing, Real};

/// FNV-1a over the little-endian bytes.
fn digest<R: Real>(values: &[R]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut bytes = [0; 8];
    let size = size_of::<R>();
    for &value in values {
        value.to_le_slice(&mut bytes);
        for &byte in &bytes[..size] {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// One (name, digest) for each function, all fed with the same stream of normal numbers.
fn digests<R: Real>() -> Vec<(&'static str, u64)> {
    let mut rng = Rng::new(2, Stream::User);
    let mut random = |len: usize| -> Vec<R> { (0..len).map(|_| R::from_f64(rng.normal())).collect() };
    let (batch, time, heads, d_head) = (2, 9, 3, 6);
    let (rows, wide, hidden) = (batch * time, heads * d_head, 37);
    let mask = Mask::new(0.1, 4, &[1, 2, 3, 4]);
    let mut found = Vec::new();

    for (name, activation) in
        [("gelu tanh", Activation::GeluTanh), ("gelu erf", Activation::GeluErf), ("relu", Activation::Relu)]
    {
        let x = random(500);
        let values: Vec<R> =
            x.iter().flat_map(|&x| [activate(activation, x), derivative(activation, x)]).collect();
        found.push((name, digest(&values)));
    }

    let (x, weight, bias, d_y) = (random(rows * wide), random(wide), random(wide), random(rows * wide));
    let [mut y, mut d_x] = [(); 2].map(|()| vec![R::zero(); rows * wide]);
    let [mut mean, mut rstd] = [(); 2].map(|()| vec![R::zero(); rows]);
    let [mut d_weight, mut d_bias] = [(); 2].map(|()| vec![R::zero(); wide]);
    let apart = [&x, &d_y].map(|data| Rows { data, stride: wide });
    for [forward, backward] in [["norm forward", "norm backward"], ["RMS norm forward", "RMS norm backward"]]
    {
        let layer = forward == "norm forward";
        let kept = layer.then_some(&mut mean[..]);
        norm_forward(apart[0], &weight, Some(&bias), &mut y, kept, &mut rstd, rows, 1, wide, 1e-5);
        let means = if layer { &mean[..] } else { &[] };
        found.push((forward, digest(&[&y[..], means, &rstd].concat())));
        d_weight.fill(R::zero());
        d_bias.fill(R::zero());
        let with_bias = Some(&mut d_bias[..]);
        norm_backward(
            apart[0],
            &weight,
            layer.then_some(&mean[..]),
            &rstd,
            apart[1],
            &mut d_x,
            false,
            Some(&mut d_weight),
            with_bias,
            rows,
            1,
            wide,
        );
        found.push((backward, digest(&[&d_x[..], &d_weight, &d_bias].concat())));
    }

    let (weight, bias, d_z) = (random(hidden * wide), random(hidden), random(rows * hidden));
    let mut z = vec![R::zero(); rows * hidden];
    linear_forward(&x, &weight, Some(&bias), None, None, Some(&mask), None, &mut z, rows, wide, hidden);
    found.push(("linear forward", digest(&z)));
    let mut d_weight = vec![R::zero(); hidden * wide];
    let with_x = Some(&mut d_x[..]);
    linear_backward(
        &x,
        &weight,
        &d_z,
        Some(&mask),
        None,
        with_x,
        false,
        Some(&mut d_weight),
        None,
        rows,
        wide,
        hidden,
    );
    found.push(("linear backward", digest(&[&d_x[..], &d_weight].concat())));

    let mut table = vec![R::zero(); time * d_head];
    sinusoidal_table(&mut table, d_head);
    found.push(("sinusoidal table", digest(&table)));
    rotary_table(&mut table, d_head, 10_000.0);
    found.push(("rotary table", digest(&table)));
    let mut qkv = random(3 * rows * wide);
    // Queries and keys, which lie side by side.
    rotary(&mut qkv, 3 * wide, &table, Pairing::Adjacent, false, batch, time, 2 * heads, d_head);
    found.push(("rotary", digest(&qkv)));

    let mut lse = vec![R::zero(); batch * heads * time];
    let mut row = vec![R::zero(); time];
    let [q, k, v] = [0, wide, 2 * wide].map(|first| Rows { data: &qkv[first..], stride: 3 * wide });
    let shape = AttentionShape { batch, time, heads, kv_heads: heads, d_head, scale: 0.4, prefix: 0 };
    attention_forward(q, k, v, Some(&mask), &mut y, &mut lse, &mut row, &shape);
    found.push(("attention forward", digest(&[&y[..], &lse].concat())));
    let [mut d_q, mut d_k, mut d_v] = [(); 3].map(|()| vec![R::zero(); rows * wide]);
    attention_backward(q, k, v, &y, &lse, &d_y, Some(&mask), &mut d_q, &mut d_k, &mut d_v, &shape);
    let side_by_side: Vec<R> = (0..rows)
        .flat_map(|row| [&d_q, &d_k, &d_v].map(|part| &part[row * wide..][..wide]).concat())
        .collect();
    found.push(("attention backward", digest(&side_by_side)));

    let targets: Vec<u32> = (0..rows).map(|r| if r == 5 { IGNORE } else { r as u32 % 37 }).collect();
    let mut scalars = vec![R::zero(); scalar::LEN];
    let mut d_logits = vec![R::zero(); rows * hidden];
    cross_entropy(&z, &targets, Some(&mut d_logits), None, &mut scalars, rows, hidden);
    found.push(("cross-entropy", digest(&[&d_logits[..], &scalars].concat())));

    let mut counters = [3; counter::LEN];
    let schedule = Schedule { peak: 0.1, floor: 0.01, warmup: 1, steps: 9, decay: Decay::Cosine };
    scalars[scalar::GRAD_SQUARED] = R::from_f64(squared_norm(&d_weight));
    scalars[scalar::LEARNING_RATE] = R::from_f64(schedule.learning_rate(counters[counter::STEP]));
    finish_step(&mut scalars, &mut counters, 1.0);
    // In the places that they once had among the scalars.
    scalars[7..9].copy_from_slice(&bias_corrections(&counters, [0.9, 0.99]));
    found.push(("finish step", digest(&scalars)));
    let [mut m, mut v] = [(); 2].map(|()| vec![R::zero(); weight.len()]);
    let mut params = weight;
    for (part, weight_decay) in [(0..300, 0.1), (300..params.len(), 0.0)] {
        let [params, m, v] = [&mut params, &mut m, &mut v].map(|all| &mut all[part.clone()]);
        let grads = &d_weight[part];
        adamw(params, grads, m, v, &scalars, &counters, 0.9, 0.99, 1e-8, weight_decay, 1.0);
    }
    found.push(("adamw", digest(&[params, m, v].concat())));

    for (name, activation) in [("relu squared", Activation::ReluSquared), ("silu", Activation::Silu)] {
        let x = random(500);
        let values: Vec<R> =
            x.iter().flat_map(|&x| [activate(activation, x), derivative(activation, x)]).collect();
        found.push((name, digest(&values)));
    }
    let (x, d_y) = (random(rows * 2 * wide), random(rows * wide));
    let mut d_x = vec![R::zero(); x.len()];
    gate_forward(&x, Activation::Silu, &mut y, rows, wide);
    gate_backward(&x, &d_y, Activation::Silu, &mut d_x, rows, wide);
    found.push(("gate", digest(&[&y[..], &d_x].concat())));
    found
}

#[test]
fn single_precision_gives_the_same_bits_everywhere() {
    let pinned = [
        ("gelu tanh", 0x3b99_9b61_35f4_3150),
        ("gelu erf", 0x63db_4e35_8478_3e36),
        ("relu", 0x3db4_16a3_bc4d_233f),
        ("norm forward", 0x1ef0_e812_cbf9_9b98),
        ("norm backward", 0x0a41_ec3d_456a_2e1d),
        ("RMS norm forward", 0x9c95_e342_5577_77c0),
        ("RMS norm backward", 0x932a_ba1f_4011_91e3),
        ("linear forward", 0x9bba_5907_0968_3295),
        ("linear backward", 0xc05f_c8ac_e464_47bd),
        ("sinusoidal table", 0x671e_6089_172a_aa3b),
        ("rotary table", 0x5388_1f0c_0415_069b),
        ("rotary", 0xb5cc_3ba5_5d6e_34a0),
        ("attention forward", 0x3d5c_a4ca_bb6a_b605),
        ("attention backward", 0x80e4_3dc8_62b7_4bb5),
        ("cross-entropy", 0x4f58_88c8_1484_2964),
        ("finish step", 0x1596_5481_5cfe_b54b),
        ("adamw", 0x8b76_4160_34af_0335),
        ("relu squared", 0xee98_c3c9_576c_51e8),
        ("silu", 0x8bd5_f9dc_f0d5_61ce),
        ("gate", 0x0fe2_d6ef_8f1d_170d),
    ];
    assert_eq!(digests::<f32>(), pinned);
}

#[test]
fn double_precision_gives_the_same_bits_everywhere() {
    let pinned = [
        ("gelu tanh", 0x46e5_4ef0_1052_8bb1),
        ("gelu erf", 0xfb01_efaf_4bae_a59a),
        ("relu", 0x7339_44ad_8302_a83c),
        ("norm forward", 0xd5d9_c8c0_7dd1_45af),
        ("norm backward", 0x44b2_091a_81df_a3cd),
        ("RMS norm forward", 0x9a77_7d99_8791_3411),
        ("RMS norm backward", 0x6599_0d8f_9604_e4e9),
        ("linear forward", 0x4f78_5c5d_6198_33da),
        ("linear backward", 0xeba3_42c8_354e_57c8),
        ("sinusoidal table", 0x1b63_13ca_028c_335f),
        ("rotary table", 0x9819_a085_7b34_c047),
        ("rotary", 0x0575_5405_9b64_a695),
        ("attention forward", 0x33fc_f914_7780_2e00),
        ("attention backward", 0xdaab_14ac_097d_c5b3),
        ("cross-entropy", 0x02b5_dd99_af1e_555a),
        ("finish step", 0xcca2_c7ab_0a68_80ea),
        ("adamw", 0x1d9e_783f_a997_2905),
        ("relu squared", 0x881d_ac0c_a98d_3b1f),
        ("silu", 0x8335_d35b_31b7_ec1d),
        ("gate", 0x9ff6_3bc0_099d_246b),
    ];
    assert_eq!(digests::<f64>(), pinned);
}
