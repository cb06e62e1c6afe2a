//! The model and its training against PyTorch's numbers. `golden/make_golden.py` says where they come from.

#[path = "golden/load.rs"]
mod load;

use std::collections::BTreeSet;

use load::Golden;
use minigpt_core::op::IGNORE;
use minigpt_core::{Dtype, Plan};

/// The values of every variant of a config, as text.
fn variants(golden: &Golden) -> Vec<String> {
    let c = &golden.config;
    let scale = format!("{:?}", c.attention_scale);
    vec![
        format!("position {:?}", c.position),
        format!("norm {:?}", c.norm),
        // Custom factors are one variant.
        format!("attention_scale {}", scale.split('(').next().unwrap()),
        format!("activation {:?}", c.activation),
        format!("residual {}", c.residual),
        format!("bias {}", c.bias),
        format!("tied_embeddings {}", c.tied_embeddings),
    ]
}

#[test]
fn the_goldens_cover_every_pair_of_variants() {
    let rows: Vec<Vec<String>> = load::all().iter().map(variants).collect();
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
        for (row, &target) in logits.values.chunks_exact(vocab).zip(&golden.targets[0]) {
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
