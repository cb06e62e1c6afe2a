//! The model and its training against PyTorch's numbers. `golden/make_golden.py` says where they come from.
//!
//! On `Reference<f64>` every tensor agrees within 1e-9 of its largest element, and every loss and norm within 1e-9 of
//! itself.

#[path = "golden/load.rs"]
mod load;

use std::collections::{BTreeMap, BTreeSet};

use load::{Golden, Tensor};
use minigpt_core::op::IGNORE;
use minigpt_core::{Activation, Bias, Decoder, Dtype, GptConfig, Mask, Plan, Position, Reference};

/// The values of every variant of a GPT-2, as text.
fn variants(golden: &Golden) -> [String; 7] {
    let c = &golden.config;
    let kind = |value: String| value.split(['(', ' ']).next().unwrap().to_string();
    [
        // Rotary positions are one variant, and custom factors another.
        format!("position {}", kind(format!("{:?}", c.position))),
        format!("norm_place {:?}", c.norm_place),
        format!("attention_scale {}", kind(format!("{:?}", c.attention_scale))),
        format!("activation {:?}", c.activation),
        format!("residual {}", c.residual),
        format!("bias {}", c.bias == Bias::ALL),
        format!("tied_embeddings {}", c.tied_embeddings),
    ]
}

/// What else a config can have, as text.
fn pieces(golden: &Golden) -> Vec<String> {
    let c = &golden.config;
    let mut pieces = vec![
        format!("mask {:?}, a prefix: {}, {}", c.mask, c.prefix > 0, variants(golden)[0]),
        format!("norm {:?} {:?}, {}", c.norm, c.norm_place, c.bias.norm),
        format!("activation {:?}, gated: {}", c.activation, c.gated),
        format!("bias qkv {}, linear {}, norm {}", c.bias.qkv, c.bias.linear, c.bias.norm),
    ];
    if c.kv_heads() < c.heads {
        pieces.push(format!("{} of heads share keys", if c.kv_heads() == 1 { "all" } else { "some" }));
    }
    if c.d_attention() != c.d_model {
        pieces.push(format!("heads {}", if c.d_attention() > c.d_model { "wider" } else { "narrower" }));
    }
    if c.qk_norm {
        pieces.push(format!("qk_norm {:?}", c.norm));
    }
    if let Position::Rotary { base, pairing } = c.position {
        pieces.push(format!("rotary {base} {pairing:?}"));
    }
    pieces
}

#[test]
fn the_goldens_cover_every_pair_of_variants() {
    // The activations of a GPT-2: more than that is a piece.
    let plain =
        |golden: &Golden| !matches!(golden.config.activation, Activation::ReluSquared | Activation::Silu);
    let rows: Vec<[String; 7]> = load::all().iter().filter(|golden| plain(golden)).map(variants).collect();
    let values: Vec<BTreeSet<&String>> = (0..7).map(|v| rows.iter().map(|row| &row[v]).collect()).collect();
    let counts: Vec<usize> = values.iter().map(BTreeSet::len).collect();
    assert_eq!(counts, [4, 3, 3, 3, 2, 2, 2], "{values:?}");
    for a in 0..values.len() {
        for b in a + 1..values.len() {
            for first in &values[a] {
                for second in &values[b] {
                    let together = rows.iter().any(|row| row[a] == **first && row[b] == **second);
                    assert!(together, "no golden has both {first} and {second}");
                }
            }
        }
    }
}

#[test]
fn the_goldens_have_every_piece_of_a_wider_model() {
    let found: BTreeSet<String> = load::all().iter().flat_map(pieces).collect();
    for piece in [
        "some of heads share keys",
        "all of heads share keys",
        "heads wider",
        "heads narrower",
        "rotary 10000 Adjacent",
        "rotary 100 Adjacent",
        "rotary 10000 Halves",
        "rotary 500000 Halves",
        "mask Causal, a prefix: true, position Learned",
        "mask Prefix, a prefix: true, position Learned",
        "mask Prefix, a prefix: true, position Rotary",
        "mask None, a prefix: true, position Sinusoidal",
        "mask None, a prefix: false, position Sinusoidal",
        "norm Rms Pre, true",
        "norm Rms Pre, false",
        "norm Rms Post, true",
        "norm Rms Post, false",
        "qk_norm Layer",
        "qk_norm Rms",
        "activation ReluSquared, gated: false",
        "activation Silu, gated: false",
        "activation Silu, gated: true",
        "activation GeluErf, gated: true",
        "activation Relu, gated: true",
        "bias qkv true, linear false, norm false",
        "bias qkv false, linear true, norm false",
        "bias qkv false, linear false, norm true",
        "bias qkv false, linear true, norm true",
    ] {
        assert!(found.contains(piece), "no golden has {piece}: {found:#?}");
    }
}

#[test]
fn the_plan_names_and_shapes_parameters_as_the_goldens_do() {
    for golden in load::all() {
        let plan = Plan::training(&golden.config, Dtype::F64, golden.batch, golden.time).unwrap();
        let mut planned = BTreeSet::new();
        for tensor in plan.parameters.list() {
            let shape = if tensor.is_matrix() { vec![tensor.rows, tensor.cols] } else { vec![tensor.cols] };
            for (what, tensors) in
                [("param", &golden.params), ("grad", &golden.grads), ("after", &golden.after)]
            {
                let found = tensors.get(&tensor.name);
                let found = found.unwrap_or_else(|| panic!("{}: no {what} {}", golden.name, tensor.name));
                assert_eq!(found.shape, shape, "{}: {what} {}", golden.name, tensor.name);
            }
            planned.insert(tensor.name.clone());
        }
        assert_eq!(golden.params.keys().cloned().collect::<BTreeSet<_>>(), planned, "{}", golden.name);
        assert_eq!(golden.grads.len(), planned.len(), "{}", golden.name);
        assert_eq!(golden.after.len(), planned.len(), "{}", golden.name);
    }
}

#[test]
fn the_goldens_are_consistent_in_themselves() {
    let (mut clipped, mut unclipped, mut ignored) = (0, 0, 0);
    for golden in load::all() {
        let Golden { name, config, training, batch, time, logits, .. } = &golden;
        let vocab = config.vocab_size;
        assert_eq!(logits.shape, [*batch, *time, vocab], "{name}");
        assert_eq!(golden.losses.len(), training.steps, "{name}");
        assert_eq!(golden.grad_norms.len(), training.steps, "{name}");
        assert!(golden.tokens.iter().flatten().all(|&id| (id as usize) < vocab), "{name}");

        for factor in
            [training.learning_rate, training.beta1, training.beta2, training.eps, training.weight_decay]
        {
            assert!(factor > 0.0 && factor < 1.0, "{name}: {factor}");
        }
        assert!(training.after <= training.steps, "{name}");

        // The loss from the logits: mean of ln sum exp - logit of the target.
        let (mut sum, mut count) = (0.0, 0.0);
        // Given vectors have no targets.
        let expected = golden.expected_logits();
        assert!(
            golden.tokens.iter().chain(&golden.targets).all(|ids| ids.len() == batch * golden.length()),
            "{name}"
        );
        for (row, &target) in expected.chunks_exact(vocab).zip(&golden.targets[0]) {
            if target == IGNORE {
                continue;
            }
            sum += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target as usize];
            count += 1.0;
        }
        assert!((sum / count - golden.loss).abs() < 1e-12 * golden.loss, "{name}");
        assert_eq!(golden.losses[0], golden.loss, "{name}");

        let squares = golden.grads.values().flat_map(|g| &g.values).map(|g| g * g);
        let norm = squares.sum::<f64>().sqrt();
        assert!((norm - golden.grad_norms[0]).abs() < 1e-12 * norm, "{name}");

        clipped += golden.grad_norms.iter().filter(|&&norm| norm > training.clip).count();
        unclipped += golden.grad_norms.iter().filter(|&&norm| norm < training.clip).count();
        ignored += golden.targets.iter().flatten().filter(|&&id| id == IGNORE).count();
    }
    assert!(clipped > 0 && unclipped > 0 && ignored > 0, "{clipped} {unclipped} {ignored}");
}

/// That no element of `found` is off by more than 1e-9 of the largest in `expected`.
#[track_caller]
fn agree(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0, |max: f64, (a, b)| max.max((a - b).abs()));
    assert!(worst <= 1e-9 * largest, "{what}: off by {worst:e} of {largest:e}");
    // `max` passes over what is not a number.
    assert!(found.iter().all(|x| x.is_finite()), "{what} is not finite");
}

fn agree_all(
    golden: &Golden,
    what: &str,
    expected: &BTreeMap<String, Tensor>,
    mut found: impl FnMut(&str) -> Vec<f64>,
) {
    for (name, tensor) in expected {
        agree(&format!("{}: {what} {name}", golden.name), &found(name), &tensor.values);
    }
}

#[test]
fn logits_equal_pytorchs() {
    for golden in load::all() {
        let model = golden.model(Reference::<f64>::new());
        agree(&golden.name, &golden.logits(&model), &golden.expected_logits());
    }
}

#[test]
fn what_follows_a_prefix_has_pytorchs_logits_before_there_is_a_token() {
    let mut compared = 0;
    for golden in load::all() {
        let GptConfig { prefix, d_model, vocab_size, mask, .. } = golden.config;
        // Without a mask, PyTorch's prefix sees what follows.
        if prefix == 0 || mask == Mask::None {
            continue;
        }
        let model = golden.model(Reference::<f64>::new());
        let mut decoder = Decoder::new(&model, 4).unwrap();
        for (b, vectors) in golden.prefixes[0].chunks(prefix * d_model).enumerate() {
            decoder.begin_with(vectors).unwrap();
            let row = b * golden.time + prefix - 1;
            let expected = &golden.logits.values[row * vocab_size..][..vocab_size];
            agree(&golden.name, decoder.logits(), expected);
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared}");
}

#[test]
fn the_loss_and_every_gradient_equal_pytorchs() {
    for golden in load::all() {
        let mut trainer = golden.trainer(Reference::<f64>::new(), golden.batch);
        golden.step(&mut trainer, 0);
        let metrics = trainer.metrics().unwrap();
        agree(&golden.name, &[metrics.loss], &[golden.loss]);
        let count = golden.targets[0].iter().filter(|&&id| id != IGNORE).count();
        assert_eq!(metrics.tokens, count as u64, "{}", golden.name);
        agree_all(&golden, "gradient of", &golden.grads, |name| trainer.gradient(name).unwrap().unwrap());
        if let Some(expected) = &golden.prefix_grad {
            let found = trainer.prefix_gradient().unwrap();
            agree(&format!("{}: gradient of the prefix", golden.name), &found, &expected.values);
        }
    }
}

#[test]
fn adamw_changes_the_weights_as_pytorchs_does() {
    for golden in load::all() {
        let mut trainer = golden.trainer(Reference::<f64>::new(), golden.batch);
        for i in 0..golden.training.after {
            golden.step(&mut trainer, i);
        }
        agree_all(&golden, "after 10 steps,", &golden.after, |name| {
            trainer.model().parameter(name).unwrap().unwrap()
        });
    }
}

#[test]
fn other_optimizers_change_the_weights_as_pytorchs_do() {
    let goldens = load::optimizers();
    assert_eq!(goldens.len(), 6);
    for (golden, groups) in goldens {
        for batch in [golden.batch, 1] {
            let mut trainer = golden.trainer_by(Reference::<f64>::new(), batch, groups);
            for i in 0..golden.training.steps {
                golden.step(&mut trainer, i);
                let metrics = trainer.metrics().unwrap();
                let what = format!("{}, step {i}", golden.name);
                agree(&what, &[metrics.loss], &[golden.losses[i]]);
                agree(&what, &[metrics.grad_norm], &[golden.grad_norms[i]]);
                if i + 1 == golden.training.after {
                    agree_all(&golden, "after 10 steps,", &golden.after, |name| {
                        trainer.model().parameter(name).unwrap().unwrap()
                    });
                }
            }
        }
    }
}

/// Trains for as long as PyTorch did, in micro-batches of `batch` sequences, and compares each loss and norm.
fn retrace(golden: &Golden, batch: usize) {
    let mut trainer = golden.trainer(Reference::<f64>::new(), batch);
    for i in 0..golden.training.steps {
        golden.step(&mut trainer, i);
        let metrics = trainer.metrics().unwrap();
        let what = format!("{}, step {i}, micro-batches of {batch}", golden.name);
        agree(&what, &[metrics.loss], &[golden.losses[i]]);
        agree(&what, &[metrics.grad_norm], &[golden.grad_norms[i]]);
    }
}

#[test]
fn fifty_steps_have_pytorchs_losses() {
    for golden in load::all() {
        retrace(&golden, golden.batch);
    }
}

#[test]
fn micro_batches_of_one_sequence_train_as_pytorchs_whole_batch() {
    for golden in load::all() {
        retrace(&golden, 1);
    }
}

#[test]
fn single_precision_stays_within_a_thousandth_of_pytorchs_losses() {
    for golden in load::all() {
        let mut trainer = golden.trainer(Reference::<f32>::new(), golden.batch);
        for i in 0..golden.training.steps {
            golden.step(&mut trainer, i);
            let loss = trainer.metrics().unwrap().loss;
            assert!((loss - golden.losses[i]).abs() <= 1e-3, "{}, step {i}: {loss}", golden.name);
        }
    }
}
