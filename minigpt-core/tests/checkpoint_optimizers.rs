//! The section of a checkpoint that says which optimizer trains what, and what is kept because of it.

#[allow(dead_code)]
#[path = "support/checkpoints.rs"]
mod support;

use minigpt_core::checkpoint::{self, Checkpoint, Contents, Fault, TensorSpec, TrainState, Training};
use minigpt_core::config::Optimizer;
use minigpt_core::{Dtype, GptConfig, Group, Groups, Plan, Precision, TrainConfig};
use support::{conf, fill, header, string, varint};

fn fault(bytes: &[u8]) -> Fault {
    Checkpoint::open(bytes).unwrap_err().fault
}

/// TRAN and OPTM as the prose has them: four optimizers with their numbers, an average, and two that are frozen.
fn optimizers_by_hand() -> (Vec<u8>, Vec<u8>) {
    let doubles = |numbers: &[f64]| -> Vec<u8> { numbers.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let counters: Vec<u8> = (0..16).flat_map(varint).collect();
    let training = [
        [varint(12), varint(3), varint(4)].concat(),
        doubles(&[1e-3, 1e-4]),
        [varint(100), varint(2000), vec![2]].concat(),
        doubles(&[1.0, 0.0, 0.0, 0.0, 0.0]),
        varint(1337),
        counters,
        varint(9),
    ];
    let optimizers = [
        [vec![0], doubles(&[0.9, 0.99, 1e-8, 0.1, 1.0])].concat(),
        [vec![2], doubles(&[0.95]), vec![1, 5], doubles(&[0.005, 20.0])].concat(),
        [vec![1], doubles(&[0.5]), vec![0], doubles(&[0.0, 30.0])].concat(),
        [vec![0], doubles(&[0.8, 0.9, 1e-6, 0.0, 0.5])].concat(),
        [vec![1], doubles(&[0.999])].concat(),
        [vec![2], string("wpe.weight"), string("ln_f.weight")].concat(),
    ];
    (training.concat(), optimizers.concat())
}

#[test]
fn optimizers_are_read_as_the_prose_has_them() {
    let (training, optimizers) = optimizers_by_hand();
    let sections = |optimizers: &[u8]| {
        let conf = (b"CONF", 1, conf(4, 0.0, 1e-5));
        header(
            2,
            &[conf, (b"TRAN", 0, training.clone()), (b"OPTM", 0, optimizers.to_vec()), (b"TENS", 1, vec![0])],
        )
    };
    let file = sections(&optimizers);
    let opened = Checkpoint::open(&file).unwrap();
    let found = opened.training().unwrap();
    let adamw = |beta1, beta2, eps| Optimizer::AdamW { beta1, beta2, eps };
    let group = |optimizer, weight_decay, rate| Group { optimizer, weight_decay, rate };
    assert_eq!(
        found.config.groups,
        Groups {
            embeddings: group(adamw(0.9, 0.99, 1e-8), 0.1, 1.0),
            matrices: group(Optimizer::MUON, 0.005, 20.0),
            head: group(Optimizer::Sgd { momentum: 0.5, nesterov: false }, 0.0, 30.0),
            vectors: group(adamw(0.8, 0.9, 1e-6), 0.0, 0.5),
        }
    );
    assert_eq!(found.config.average, Some(0.999));
    assert_eq!(found.frozen, ["wpe.weight", "ln_f.weight"]);

    // It is written as it was read, and so is one in bf16.
    for precision in [Precision::F32, Precision::Bf16] {
        let end = if precision == Precision::Bf16 { vec![1] } else { Vec::new() };
        let file = sections(&[&optimizers[..], &end].concat());
        let opened = Checkpoint::open(&file).unwrap();
        let found = opened.training().unwrap();
        assert_eq!(found.config.precision, precision);
        let contents = Contents {
            config: opened.config(),
            tokenizer: None,
            training: Some(found),
            metadata: &[],
            tensors: &[],
        };
        let mut again = Vec::new();
        checkpoint::write(&mut again, &contents, fill).unwrap();
        assert!(again == file);
    }
    // No other end, and nothing behind it.
    let other = [&optimizers[..], &[2]].concat();
    assert_eq!(fault(&sections(&other)), Fault::Malformed { tag: *b"OPTM" });
    let more = [&optimizers[..], &[1, 0]].concat();
    assert_eq!(fault(&sections(&more)), Fault::SectionLength { tag: *b"OPTM" });

    // Cut short anywhere, or longer, it is damaged, and no length makes the reader take memory for it.
    for end in 0..optimizers.len() {
        let fault = fault(&sections(&optimizers[..end]));
        assert!(
            matches!(fault, Fault::Malformed { tag } | Fault::SectionLength { tag } if tag == *b"OPTM"),
            "{fault}"
        );
    }
    let head = optimizers.len() - [string("wpe.weight"), string("ln_f.weight")].concat().len() - 1;
    let with = |frozen: &[Vec<u8>]| sections(&[&optimizers[..head], &frozen.concat()].concat());
    assert_eq!(fault(&with(&[varint(u32::MAX.into())])), Fault::SectionLength { tag: *b"OPTM" });
    assert_eq!(fault(&with(&[varint(1), string(""), vec![0; 9]])), Fault::NameLength { bytes: 0 });
    // Names that no parameter has are not even counted.
    assert_eq!(fault(&with(&[varint(2), string("k"), string("l")])), Fault::SectionLength { tag: *b"OPTM" });
    assert_eq!(fault(&with(&[varint(1), string(&"n".repeat(256))])), Fault::NameLength { bytes: 256 });
    assert_eq!(fault(&with(&[varint(0), vec![0]])), Fault::SectionLength { tag: *b"OPTM" });
    // And without a training it is of nothing.
    let conf = (b"CONF", 1, conf(4, 0.0, 1e-5));
    let alone = header(2, &[conf, (b"OPTM", 0, optimizers), (b"TENS", 1, vec![0])]);
    assert_eq!(fault(&alone), Fault::MissingSection { tag: *b"TRAN" });
}

#[test]
fn states_that_are_not_those_of_the_groups_are_named() {
    const FROZEN: &str = "h.0.mlp.c_fc.weight";
    let config = GptConfig {
        layers: 2,
        heads: 1,
        d_model: 8,
        d_ff: 12,
        gated: true,
        tied_embeddings: false,
        ..GptConfig::new(7, 6)
    };
    let groups = Groups::muon(0.9, 0.99, 0.1);
    let settings = TrainConfig { time: 6, groups, average: Some(0.9), ..TrainConfig::constant(1e-2) };
    let plan = Plan::training(&config, Dtype::F32, 1, 6).unwrap();
    let plan = plan.optimizing(&settings.groups, settings.average).unwrap();
    let plan = plan.freezing(|tensor| tensor.name == FROZEN);
    let fault = |frozen: &[&str], change: &dyn Fn(&mut Vec<TensorSpec>)| {
        let mut tensors = TensorSpec::training(&plan);
        change(&mut tensors);
        let state = TrainState { counters: [1; 16], windows_drawn: 0 };
        let frozen = frozen.iter().map(|name| name.to_string()).collect();
        let training = Training { config: settings.clone(), state, frozen };
        let contents = Contents {
            config: &config,
            tokenizer: None,
            training: Some(&training),
            metadata: &[],
            tensors: &tensors,
        };
        let mut file = Vec::new();
        checkpoint::write(&mut file, &contents, fill).unwrap();
        let opened = Checkpoint::open(&file).unwrap();
        assert_eq!(opened.training(), Some(&training));
        opened.states().err().map(|error| error.fault)
    };
    assert_eq!(fault(&[FROZEN], &|_| {}), None);
    for gone in ["muon.momentum/h.1.mlp.c_fc.weight", "adam.v/wte.weight", "ema/lm_head.weight"] {
        let missing = fault(&[FROZEN], &|tensors| tensors.retain(|tensor| tensor.name != gone));
        assert_eq!(missing, Some(Fault::MissingTensor { name: gone.into() }));
    }
    // What another optimizer would keep, and the shape of another parameter.
    let first = |tensors: &Vec<TensorSpec>, name: &str| tensors.iter().position(|tensor| tensor.name == name);
    let stray = fault(&[FROZEN], &|tensors| {
        let velocity = first(tensors, "muon.momentum/h.1.mlp.c_fc.weight").unwrap();
        tensors.push(TensorSpec { name: "adam.m/h.1.mlp.c_fc.weight".into(), ..tensors[velocity].clone() });
    });
    assert_eq!(stray, Some(Fault::UnknownTensor { name: "adam.m/h.1.mlp.c_fc.weight".into() }));
    let turned = fault(&[FROZEN], &|tensors| {
        let velocity = first(tensors, "muon.momentum/h.1.mlp.c_fc.weight").unwrap();
        (tensors[velocity].rows, tensors[velocity].cols) = (8, 24);
    });
    assert!(
        matches!(turned, Some(Fault::TensorShape { expected: (24, 8), found: (8, 24), .. })),
        "{turned:?}"
    );
    // One too many is frozen, one too few, and one that is not there.
    let velocity = "muon.momentum/h.1.mlp.c_fc.weight";
    let more = fault(&[FROZEN, "h.1.mlp.c_fc.weight"], &|_| {});
    assert_eq!(more, Some(Fault::UnknownTensor { name: velocity.into() }));
    let fewer = fault(&[], &|_| {});
    assert_eq!(fewer, Some(Fault::MissingTensor { name: format!("muon.momentum/{FROZEN}") }));
    let unknown = fault(&[FROZEN, "nobody"], &|_| {});
    assert_eq!(unknown, Some(Fault::UnknownTensor { name: "nobody".into() }));
}
