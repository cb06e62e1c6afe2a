//! Nothing is left out, nothing is there twice, and what is kept lies where its parameter does.

use alloc::vec::Vec;

use super::*;
use crate::config::{GptConfig, ParameterKind};
use crate::memory::Dtype;

fn config() -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 1,
        d_model: 3,
        d_ff: 5,
        bias: crate::config::Bias::ALL,
        ..GptConfig::new(7, 4)
    }
}

fn plan() -> Plan {
    Plan::training(&config(), Dtype::F32, 1, 4).unwrap()
}

#[test]
fn with_nothing_frozen_there_is_one_stretch_of_all() {
    let plan = plan();
    let all = Region { offset: 0, len: plan.parameter_span };
    assert_eq!(plan.stretches, [Stretch { parameters: all, gradients: all, average: None }]);
    assert_eq!(plan.gradients, plan.parameters.map(|tensor| Some(tensor.region)));
    assert_eq!((plan.gradient_span, plan.bytes.gradients), (plan.parameter_span, plan.bytes.parameters));
    assert_eq!(plan.bytes.optimizer, 2 * plan.bytes.parameters);
    assert_eq!(plan.clone().freezing(|_| false), plan);
}

#[test]
fn adamw_goes_over_all_that_decays_and_over_all_that_does_not() {
    let plan = plan();
    let [matrices, vectors] = plan.updates[..] else { panic!("{:?}", plan.updates) };
    assert_eq!((matrices.group, vectors.group), (plan.groups.matrices, plan.groups.vectors));
    assert_eq!(matrices.parameters.len + vectors.parameters.len, plan.parameter_span);
    for update in [matrices, vectors] {
        let Region { offset, len } = update.parameters;
        assert_eq!((update.gradients, update.matrix), (update.parameters, None));
        let moments =
            [Some(Region { offset, len }), Some(Region { offset: offset + plan.bytes.gradients, len })];
        assert_eq!(update.states, moments);
    }
}

/// How a parameter is covered by the updates and by the stretches.
fn covered(plan: &Plan, tensor: &Tensor, gradient: Region, states: &States<Region>) {
    let inside = |of: Region, region: Region| {
        (of.offset..of.offset + 4 * of.len).contains(&region.offset)
            && region.offset + 4 * region.len <= of.offset + 4 * of.len
    };
    let mut numbers = 0;
    for update in &plan.updates {
        let whole = inside(update.parameters, tensor.region);
        if !whole && !inside(tensor.region, update.parameters) {
            continue;
        }
        let shift = |of: Region, region: Region| of.offset as isize - region.offset as isize;
        let behind = shift(tensor.region, update.parameters);
        assert_eq!(shift(gradient, update.gradients), behind, "{}", tensor.name);
        for (state, of) in states.optimizer.iter().zip(update.states) {
            assert_eq!(state.zip(of).map(|(state, of)| shift(state, of)), state.map(|_| behind));
            assert_eq!(state.is_some(), of.is_some());
        }
        assert_eq!(update.group, *plan.groups.of(tensor.kind));
        numbers += if whole { tensor.region.len } else { update.parameters.len };
    }
    assert_eq!(numbers, tensor.region.len, "{}", tensor.name);
    let mut stretches = plan.stretches.iter().filter(|stretch| inside(stretch.parameters, tensor.region));
    let stretch = stretches.next().unwrap();
    assert!(inside(stretch.gradients, gradient) && stretches.next().is_none());
    assert_eq!(stretch.average.is_some(), plan.average.is_some());
    let averaged = stretch.average.zip(states.average).map(|(of, state)| state.offset - of.offset);
    assert_eq!(averaged, states.average.map(|_| tensor.region.offset - stretch.parameters.offset));
}

#[test]
fn updates_have_all_that_is_trained_once_and_nothing_else() {
    let all = [Groups::adamw(0.9, 0.99, 0.1), Groups::muon(0.9, 0.99, 0.1), Groups::sgd(0.9, true, 0.1)];
    let mixed = Groups { head: all[2].head, embeddings: all[1].matrices, ..all[0] };
    let plain = Groups::sgd(0.0, false, 0.0);
    for config in
        [config(), GptConfig { gated: true, tied_embeddings: false, heads: 3, kv_heads: Some(1), ..config() }]
    {
        for groups in [all[0], all[1], all[2], mixed, plain] {
            for average in [None, Some(0.5)] {
                let plan = Plan::training(&config, Dtype::F32, 1, 4).unwrap();
                let whole = plan.optimizing(&groups, average).unwrap();
                // Every third, and a whole block.
                let mut count = 0;
                let some = whole.clone().freezing(|tensor| {
                    count += 1;
                    count % 3 == 0 || tensor.name.starts_with("h.1.")
                });
                assert!(some.trained().all(|tensor| !tensor.name.starts_with("h.1.")));
                assert!(some.bytes.gradients < whole.bytes.gradients);
                // Which optimizers there are and what is frozen are asked for in any order, and what was frozen before is no
                // matter.
                let usual = some.clone().optimizing(&all[0], None).unwrap();
                assert_eq!(usual.optimizing(&groups, average).unwrap(), some);
                assert_eq!(some.clone().freezing(|_| false), whole);
                for plan in [&whole, &some] {
                    let places: Vec<Region> = plan.gradients.list().into_iter().flatten().copied().collect();
                    assert_eq!((places.len(), plan.states.len()), (plan.trained().count(), places.len()));
                    for ((tensor, gradient), states) in plan.trained().zip(places).zip(&plan.states) {
                        covered(plan, tensor, gradient, states);
                    }
                    let mut kept: Vec<Region> = plan.kept().map(|(_, _, region)| region).collect();
                    kept.push(plan.direction);
                    kept.sort_by_key(|region| (region.offset, region.len));
                    let mut end = 0;
                    for region in &kept {
                        assert_eq!(region.offset, end);
                        end = (region.offset + 4 * region.len).next_multiple_of(ALIGN);
                    }
                    assert_eq!(end, plan.bytes.optimizer);
                }
            }
        }
    }
}

#[test]
fn muon_has_each_matrix_for_itself() {
    let config =
        GptConfig { layers: 1, heads: 4, kv_heads: Some(2), d_head: Some(2), gated: true, ..config() };
    let plan = Plan::training(&config, Dtype::F32, 1, 4).unwrap();
    let plan = plan.optimizing(&Groups::muon(0.9, 0.99, 0.1), None).unwrap();
    let matrices: Vec<[usize; 2]> = plan.updates.iter().filter_map(|update| update.matrix).collect();
    // Queries, keys, values; the way out; gate and up; down.
    assert_eq!(matrices, [[8, 3], [4, 3], [4, 3], [3, 8], [5, 3], [5, 3], [3, 5]]);
    assert_eq!(plan.direction.len, 24);
    // Embeddings and vectors have both moments, matrices a velocity, and beside them there is one direction.
    let bytes = |kind| -> usize {
        let of_kind = plan.trained().filter(|tensor| tensor.kind == kind);
        of_kind.map(|tensor| (4 * tensor.region.len).next_multiple_of(ALIGN)).sum()
    };
    let two = bytes(ParameterKind::Embedding) + bytes(ParameterKind::Vector);
    assert_eq!(
        plan.bytes.optimizer,
        2 * two + bytes(ParameterKind::Matrix) + (4 * 24usize).next_multiple_of(ALIGN)
    );
}

#[test]
fn a_plan_for_inference_has_nothing_to_freeze() {
    let config = GptConfig::new(7, 4);
    let plan = Plan::smallest(&config, Dtype::F32).unwrap();
    assert_eq!(plan.clone().freezing(|_| false), plan);
    assert_eq!(plan.clone().optimizing(&Groups::muon(0.9, 0.99, 0.1), Some(0.5)).unwrap(), plan);
    assert_eq!((plan.trained().count(), plan.bytes.gradients, plan.stretches.len()), (0, 0, 0));
    assert_eq!((plan.states.len(), plan.updates.len(), plan.bytes.optimizer), (0, 0, 0));
}
