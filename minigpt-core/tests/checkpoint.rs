//! Checkpoints: what is written is read, what is damaged is found, and no bytes break the reader.

#[path = "support/by_hand.rs"]
#[expect(dead_code, reason = "shared with the golden files")]
mod by_hand;
#[path = "support/checkpoints.rs"]
mod support;

use std::cell::Cell;

use minigpt_core::checkpoint::{
    self, Checkpoint, Contents, Fault, Limits, LoadError, Role, SaveError, TensorSpec, Training, Write,
};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Activation, AttentionScale, Bias, ByteTokenizer, ConfigError, Dtype, GptConfig, Mask, Norm, NormPlace,
    Pairing, Plan, Position, TokenizerError,
};
use support::*;

fn fault(bytes: &[u8]) -> Fault {
    Checkpoint::open(bytes).unwrap_err().fault
}

/// A checkpoint of this config without tensors.
fn bare(config: &GptConfig) -> Vec<u8> {
    let mut file = Vec::new();
    let contents = Contents { config, tokenizer: None, training: None, metadata: &[], tensors: &[] };
    checkpoint::write(&mut file, &contents, fill).unwrap();
    file
}

#[test]
fn everything_comes_back() {
    let file = small_checkpoint();
    let checkpoint = Checkpoint::open_verified(&file).unwrap();
    assert_eq!(checkpoint.config(), &small_config());
    assert_eq!(checkpoint.tokenizer(), Some(&small_tokenizer()));
    assert_eq!(checkpoint.training(), Some(&small_training()));
    assert_eq!(checkpoint.metadata(), METADATA);

    let specs = training_specs(&small_config());
    assert_eq!(checkpoint.tensors().len(), specs.len());
    for (i, (spec, view)) in specs.iter().zip(checkpoint.tensors()).enumerate() {
        assert_eq!((view.name, view.role, view.dtype), (spec.name.as_str(), spec.role, spec.dtype));
        assert_eq!((view.rows, view.cols), (spec.rows, spec.cols));
        assert_eq!(view.bytes.len(), 4 * spec.rows * spec.cols);
        assert!(view.bytes.iter().enumerate().all(|(j, byte)| *byte == tensor_byte(i, j)));
        assert!(view.offset.is_multiple_of(64));
        assert_eq!(view.bytes.as_ptr(), file[view.offset..].as_ptr(), "not in place");
        assert_eq!(checkpoint.tensor(&spec.name), Some(view));
    }
    assert_eq!(checkpoint.tensor("no such tensor"), None);
    assert_eq!(file.len() % 64, 0);
}

/// Every variant of every field, all other fields as in one config that is nowhere the default.
fn every_kind_of_config() -> Vec<GptConfig> {
    let base =
        GptConfig { d_model: 8, d_ff: 5, bias: Bias::ALL, residual: false, ..GptConfig::new(300, 70_000) };
    let mut configs = vec![base.clone(), GptConfig { norm_eps: 1e-12, layers: 1_000_000, ..base.clone() }];
    let mut push = |config: GptConfig| configs.push(config);
    for (kv_heads, d_head) in [(Some(1), None), (Some(4), Some(300)), (Some(2), Some(2))] {
        push(GptConfig { kv_heads, d_head, ..base.clone() });
    }
    for pairing in [Pairing::Adjacent, Pairing::Halves] {
        for base_of_angles in [10_000.0, 1.0] {
            push(GptConfig { position: Position::Rotary { base: base_of_angles, pairing }, ..base.clone() });
        }
    }
    for position in [Position::Learned, Position::Sinusoidal, Position::None] {
        push(GptConfig { position, ..base.clone() });
    }
    for (mask, prefix) in
        [(Mask::Causal, 0), (Mask::Causal, 300), (Mask::Prefix, 1), (Mask::None, 0), (Mask::None, 69_999)]
    {
        push(GptConfig { mask, prefix, ..base.clone() });
    }
    for norm in [Norm::Layer, Norm::Rms] {
        for norm_place in [NormPlace::Pre, NormPlace::Post, NormPlace::None] {
            for qk_norm in [false, true] {
                push(GptConfig { norm, norm_place, qk_norm, ..base.clone() });
            }
        }
    }
    for attention_scale in
        [AttentionScale::InverseSqrt, AttentionScale::None, AttentionScale::Custom(-0.0625)]
    {
        push(GptConfig { attention_scale, ..base.clone() });
    }
    for activation in [
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Silu,
    ] {
        for gated in [false, true] {
            push(GptConfig { activation, gated, ..base.clone() });
        }
    }
    for bits in 0..8 {
        let bias = Bias { qkv: bits & 1 > 0, linear: bits & 2 > 0, norm: bits & 4 > 0 };
        push(GptConfig { bias, residual: true, tied_embeddings: bits & 1 > 0, dropout: 0.5, ..base.clone() });
    }
    configs
}

#[test]
fn every_kind_of_config_comes_back() {
    let configs = every_kind_of_config();
    for config in &configs {
        let by_hand = header(2, &[(b"CONF", 1, by_hand::conf(config)), (b"TENS", 1, varint(0))]);
        let file = bare(config);
        assert!(file == by_hand, "{config:?} is written otherwise than the prose says");
        let checkpoint = Checkpoint::open_verified(&file).unwrap();
        assert_eq!(checkpoint.config(), config);
        assert_eq!(checkpoint.tokenizer(), None);
        assert_eq!(checkpoint.training(), None);
        assert!(checkpoint.metadata().is_empty());
        assert_eq!(checkpoint.tensors().len(), 0);
    }
}

#[test]
fn every_dtype_comes_back_in_chunks_of_whole_units() {
    let dtypes = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::U32];
    let specs: Vec<TensorSpec> = dtypes
        .iter()
        .map(|&dtype| TensorSpec {
            name: format!("{dtype:?}"),
            role: Role::Training,
            dtype,
            rows: 301,
            cols: 77,
        })
        .collect();
    let contents = Contents {
        config: &GptConfig::new(256, 4),
        tokenizer: Some(&ByteTokenizer.into()),
        training: None,
        metadata: &[],
        tensors: &specs,
    };
    let mut file = Vec::new();
    checkpoint::write(&mut file, &contents, |i, offset, bytes| {
        let unit = dtypes[i].unit().1;
        assert!(offset.is_multiple_of(unit) && bytes.len().is_multiple_of(unit) && !bytes.is_empty());
        assert!(bytes.len() <= 32 << 10);
        fill(i, offset, bytes)
    })
    .unwrap();
    let checkpoint = Checkpoint::open_verified(&file).unwrap();
    assert_eq!(checkpoint.tokenizer(), Some(&ByteTokenizer.into()));
    // 77 columns are 3 blocks of 32.
    let row_bytes = [77 * 8, 77 * 4, 77 * 2, 77 * 2, 3 * 34, 3 * 18, 77 * 4];
    for (i, view) in checkpoint.tensors().enumerate() {
        assert_eq!((view.dtype, view.bytes.len()), (dtypes[i], 301 * row_bytes[i]));
        assert!(view.bytes.iter().enumerate().all(|(j, byte)| *byte == tensor_byte(i, j)));
    }
}

#[test]
fn the_same_contents_write_the_same_bytes() {
    assert_eq!(small_checkpoint(), small_checkpoint());
}

#[test]
fn every_flipped_bit_is_found() {
    let mut file = small_checkpoint();
    for i in 0..file.len() {
        for bit in 0..8 {
            file[i] ^= 1 << bit;
            assert!(Checkpoint::open_verified(&file).is_err(), "bit {bit} of byte {i}");
            file[i] ^= 1 << bit;
        }
    }
    assert!(Checkpoint::open_verified(&file).is_ok());
}

#[test]
fn damage_of_the_header_is_found_without_reading_the_payload() {
    let mut file = small_checkpoint();
    let payload = Checkpoint::open(&file).unwrap().tensors().next().unwrap().offset;
    for i in 0..payload {
        file[i] ^= 0x10;
        assert!(Checkpoint::open(&file).is_err(), "byte {i}");
        file[i] ^= 0x10;
    }
    file[payload] ^= 1;
    let error = Checkpoint::open(&file).unwrap().verify().unwrap_err();
    assert_eq!(error.offset, payload as u64);
    assert!(error.to_string().contains("wte.weight"), "{error}");
}

#[test]
fn every_truncation_is_found() {
    let file = small_checkpoint();
    for length in 0..file.len() {
        let error = Checkpoint::open(&file[..length]).unwrap_err();
        assert!(matches!(error.fault, Fault::Truncated { .. }), "{length} bytes: {error}");
        assert_eq!(error.offset, length as u64);
    }
}

#[test]
fn trailing_bytes_are_refused() {
    let mut file = small_checkpoint();
    let end = file.len() as u64;
    file.extend([0; 64]);
    assert_eq!(Checkpoint::open(&file), Err(LoadError { offset: end, fault: Fault::Trailing { bytes: 64 } }));
}

#[test]
fn padding_must_be_zero() {
    let file = small_checkpoint();
    let checkpoint = Checkpoint::open(&file).unwrap();
    let first = checkpoint.tensors().next().unwrap();
    let mut damaged = file.clone();
    let end = first.offset + first.bytes.len();
    damaged[end] = 1;
    let error = Checkpoint::open_verified(&damaged).unwrap_err();
    assert_eq!(error, LoadError { offset: end as u64, fault: Fault::Padding });

    let header_end = u32::from_le_bytes(file[8..12].try_into().unwrap()) as usize;
    assert!(header_end < first.offset, "the test needs padding behind the header");
    let mut damaged = file.clone();
    damaged[header_end] = 1;
    assert_eq!(
        Checkpoint::open(&damaged),
        Err(LoadError { offset: header_end as u64, fault: Fault::Padding })
    );
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    assert_eq!(fault(b"PK\x03\x04 and so on"), Fault::Magic);
    assert!(matches!(fault(b""), Fault::Truncated { .. }));
    let newer = Checkpoint::open(&header(3, &[])).unwrap_err();
    assert_eq!(newer.fault, Fault::Version { found: 3 });
    assert_eq!(
        newer.to_string(),
        "checkpoint, byte 4: format version 3 is newer than 2, the newest that this program reads: \
         update the program"
    );
    assert_eq!(fault(&header(u32::MAX, &[])), Fault::Version { found: u32::MAX });
    assert_eq!(fault(&header(0, &[])), Fault::Version { found: 0 });
}

#[test]
fn a_header_made_by_hand_from_the_prose_is_read() {
    for (version, conf) in [(1, conf_of_version_1 as fn(_, _, _) -> _), (2, conf)] {
        let index = [varint(1), record("w", 2, 3, 0, 24)].concat();
        let mut file = header(version, &[(b"TENS", 1, index), (b"CONF", 0, conf(4, 0.25, 1e-5))]);
        file.resize(file.len() + 64, 0);
        let checkpoint = Checkpoint::open(&file).unwrap();
        let expected = GptConfig {
            layers: 4,
            heads: 1,
            d_model: 2,
            d_ff: 3,
            dropout: 0.25,
            norm_eps: 1e-5,
            ..GptConfig::new(5, 3)
        };
        assert_eq!(checkpoint.config(), &expected);
        assert_eq!(checkpoint.tensor("w").unwrap().bytes, [0; 24]);
    }
}

#[test]
fn a_config_of_version_1_is_the_model_that_it_was_and_no_other() {
    // Learned, pre, 1/sqrt(d_k), residuals, GELU by erf, no bias: six bytes behind six numbers.
    let open = |choices: [(usize, u8); 2]| {
        let mut conf = conf_of_version_1(4, 0.0, 1e-5);
        choices.into_iter().for_each(|(place, choice)| conf[place] = choice);
        let file = header(1, &[(b"CONF", 1, conf), (b"TENS", 1, varint(0))]);
        Checkpoint::open(&file).map(|checkpoint| checkpoint.config().clone()).map_err(|error| error.fault)
    };
    let [position, norm_place, activation, bias] = [6, 7, 10, 11];
    let plain = open([(position, 0), (bias, 0)]).unwrap();
    assert_eq!(
        open([(position, 2), (bias, 1)]),
        Ok(GptConfig {
            position: Position::Rotary { base: 10_000.0, pairing: Pairing::Adjacent },
            bias: Bias::ALL,
            ..plain.clone()
        })
    );
    assert_eq!(
        open([(norm_place, 2), (activation, 2)]),
        Ok(GptConfig { norm_place: NormPlace::None, activation: Activation::Relu, ..plain })
    );
    // What only version 2 tells apart.
    for choice in [(position, 4), (norm_place, 3), (activation, 3), (activation, 4)] {
        assert_eq!(open([choice; 2]), Err(Fault::Malformed { tag: *b"CONF" }), "{choice:?}");
    }
}

#[test]
fn unknown_sections_are_skipped_or_refused_as_their_flag_says() {
    let with = |flags| {
        let (conf, tens) = (conf(4, 0.0, 1e-5), varint(0));
        header(2, &[(b"CONF", 1, conf), (b"NEWS", flags, vec![1, 2, 3]), (b"TENS", 1, tens)])
    };
    assert!(Checkpoint::open_verified(&with(0)).is_ok());
    let refused = Checkpoint::open(&with(1)).unwrap_err();
    assert_eq!(refused.fault, Fault::UnknownSection { tag: *b"NEWS" });
    assert!(refused.to_string().contains("section NEWS"), "{refused}");
    assert_eq!(fault(&with(2)), Fault::SectionFlags { tag: *b"NEWS", flags: 2 });
}

#[test]
fn sections_are_there_once_and_fit() {
    let (conf, none) = (|| conf(4, 0.0, 1e-5), || varint(0));
    let missing = |tag| Fault::MissingSection { tag };
    assert_eq!(fault(&header(2, &[])), missing(*b"CONF"));
    assert_eq!(fault(&header(2, &[(b"CONF", 1, conf())])), missing(*b"TENS"));
    assert_eq!(fault(&header(2, &[(b"TENS", 1, none())])), missing(*b"CONF"));
    assert_eq!(
        fault(&header(2, &[(b"CONF", 1, conf()), (b"TENS", 1, none()), (b"TENS", 1, none())])),
        Fault::RepeatedSection { tag: *b"TENS" }
    );
    let trailing = [conf(), vec![0]].concat();
    assert_eq!(
        fault(&header(2, &[(b"CONF", 1, trailing), (b"TENS", 1, none())])),
        Fault::SectionLength { tag: *b"CONF" }
    );
    let short = conf()[..20].to_vec();
    assert_eq!(
        fault(&header(2, &[(b"CONF", 1, short), (b"TENS", 1, none())])),
        Fault::Malformed { tag: *b"CONF" }
    );
    // A section that is longer than the header, and one whose head does not fit.
    let mut long = header(2, &[(b"CONF", 1, conf())]);
    let end = u32::from_le_bytes(long[8..12].try_into().unwrap()) as usize - 4;
    long.truncate(end);
    long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    seal(&mut long);
    assert_eq!(fault(&long), Fault::SectionLength { tag: *b"CONF" });
    let mut stub = b"MGPT\x02\0\0\0\0\0\0\0CONF\0\0\0".to_vec();
    seal(&mut stub);
    assert!(matches!(fault(&stub), Fault::SectionLength { .. }));
}

#[test]
fn the_header_length_must_be_one() {
    for length in [0u32, 1, 12, 15] {
        let mut file = small_checkpoint();
        file[8..12].copy_from_slice(&length.to_le_bytes());
        assert_eq!(fault(&file), Fault::HeaderLength { found: length });
    }
    let mut file = small_checkpoint();
    file[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(fault(&file), Fault::Limit { field: "header", found: 0xFFFF_FFFF, .. }));
    let error = Checkpoint::open_within(&file, &Limits::NONE).unwrap_err();
    assert!(matches!(error.fault, Fault::Truncated { needed: 0xFFFF_FFFF, .. }));
}

#[test]
fn invalid_configs_are_refused() {
    let open = |body| fault(&header(2, &[(b"CONF", 1, body), (b"TENS", 1, varint(0))]));
    assert!(matches!(open(conf(4, f64::NAN, 1e-5)), Fault::Config(ConfigError::Dropout { .. })));
    assert!(matches!(open(conf(4, 0.0, f64::NAN)), Fault::Config(ConfigError::NormEps { .. })));
    assert_eq!(open(conf(0, 0.0, 1e-5)), Fault::Config(ConfigError::Zero { field: "layers" }));
    // More than 32 bits.
    assert_eq!(open(conf(1 << 32, 0.0, 1e-5)), Fault::Malformed { tag: *b"CONF" });
}

#[test]
fn invalid_tokenizers_are_refused() {
    let open = |body| {
        fault(&header(2, &[(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"TENS", 1, varint(0)), (b"TOKN", 0, body)]))
    };
    let chars = |text| [vec![1], string(text)].concat();
    assert_eq!(open(chars("")), Fault::Tokenizer(TokenizerError::EmptyVocabulary));
    assert!(matches!(open(chars("ba")), Fault::Tokenizer(TokenizerError::Unordered { .. })));
    assert!(matches!(open(chars("aa")), Fault::Tokenizer(TokenizerError::Unordered { .. })));
    assert_eq!(open(chars("abcdef")), Fault::Vocabulary { tokens: 6, vocab_size: 5 });
    assert_eq!(open(vec![0]), Fault::Vocabulary { tokens: 256, vocab_size: 5 });
    assert_eq!(open(vec![2]), Fault::Malformed { tag: *b"TOKN" });
    assert_eq!(open(vec![1, 2, 0xFF, 0xFE]), Fault::Malformed { tag: *b"TOKN" });
}

#[test]
fn hostile_indexes_are_refused() {
    let open = |records: &[Vec<u8>]| {
        let index = [varint(records.len() as u64), records.concat()].concat();
        let mut file = header(2, &[(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"TENS", 1, index)]);
        file.resize(file.len() + 128, 0);
        fault(&file)
    };
    let name = || "a".to_string();
    let long = "x".repeat(256);
    assert_eq!(open(&[record("", 1, 1, 0, 4)]), Fault::NameLength { bytes: 0 });
    assert_eq!(open(&[record(&long, 1, 1, 0, 4)]), Fault::NameLength { bytes: 256 });
    assert_eq!(open(&[record("a", 0, 1, 0, 0)]), Fault::TensorSize { name: name() });
    assert_eq!(open(&[record("a", 1, 0, 0, 0)]), Fault::TensorSize { name: name() });
    let max = u64::from(u32::MAX);
    assert_eq!(open(&[record("a", max, max, 0, 4)]), Fault::TensorSize { name: name() });
    assert_eq!(open(&[record("a", 1, 1, 0, 8)]), Fault::TensorLength { name: name(), expected: 4, found: 8 });
    // In the header's place, misaligned, overlapping, apart, and at the end of all numbers.
    for offset in [4, 64, 1, u64::MAX, u64::MAX - 63] {
        let fault = open(&[record("a", 1, 1, offset, 4)]);
        assert_eq!(fault, Fault::TensorOffset { name: name(), expected: 0, found: offset });
    }
    for offset in [0, 4, 65, 128] {
        let fault = open(&[record("b", 1, 1, 0, 4), record("a", 1, 1, offset, 4)]);
        assert_eq!(fault, Fault::TensorOffset { name: name(), expected: 64, found: offset });
    }
    assert_eq!(
        open(&[record("a", 1, 1, 0, 4), record("a", 1, 1, 64, 4)]),
        Fault::RepeatedTensor { name: name() }
    );
    let mut training = record("t", 1, 1, 0, 4);
    training[2] = 1;
    assert_eq!(open(&[training, record("a", 1, 1, 64, 4)]), Fault::TensorOrder { name: name() });
    // Two tensors of 2^63 bytes: their sum is more than 64 bits.
    let half = record("a", 1 << 31, 1 << 30, 0, 1 << 63);
    let other = record("b", 1 << 31, 1 << 30, 1 << 63, 1 << 63);
    assert_eq!(open(&[half.clone(), other]), Fault::TensorSize { name: "b".into() });
    assert!(matches!(open(&[half]), Fault::Truncated { .. }));
}

#[test]
fn lists_longer_than_their_bytes_are_refused() {
    for (tag, flags) in [(b"TENS", 1), (b"META", 0)] {
        for count in [1, 1000, u64::from(u32::MAX)] {
            let mut sections = vec![(b"CONF", 1, conf(4, 0.0, 1e-5)), (tag, flags, varint(count))];
            if tag != b"TENS" {
                sections.push((b"TENS", 1, varint(0)));
            }
            assert_eq!(fault(&header(2, &sections)), Fault::SectionLength { tag: *tag });
        }
        let body = varint(u64::MAX);
        let sections = [(b"CONF", 1, conf(4, 0.0, 1e-5)), (tag, flags, body), (b"TENS", 1, varint(0))];
        assert_eq!(
            fault(&header(2, &sections[..if tag == b"TENS" { 2 } else { 3 }])),
            Fault::Malformed { tag: *tag }
        );
    }
}

#[test]
fn metadata_needs_keys() {
    let body = [varint(1), string(""), string("value")].concat();
    let file = header(2, &[(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"META", 0, body), (b"TENS", 1, varint(0))]);
    assert_eq!(fault(&file), Fault::EmptyKey);
}

#[test]
fn parameters_and_states_are_those_of_the_plan() {
    let file = small_checkpoint();
    let checkpoint = Checkpoint::open(&file).unwrap();
    let plan = Plan::training(&small_config(), Dtype::F32, 1, 1).unwrap();
    let parameters = checkpoint.parameters().unwrap();
    let states = checkpoint.states().unwrap();
    let planned = plan.parameters.list();
    assert_eq!((parameters.len(), states.len()), (planned.len(), planned.len()));
    for (i, tensor) in planned.iter().enumerate() {
        assert_eq!(parameters[i].name, tensor.name);
        let [Some(first), Some(second)] = states[i].unwrap().optimizer else { panic!("{}", tensor.name) };
        assert_eq!(first.name, format!("adam.m/{}", tensor.name));
        assert_eq!(second.name, format!("adam.v/{}", tensor.name));
        for view in [parameters[i], first, second] {
            assert_eq!((view.rows, view.cols), (tensor.rows, tensor.cols));
        }
    }
}

#[test]
fn tensors_that_do_not_fit_the_model_are_named() {
    let save = |change: &dyn Fn(&mut Vec<TensorSpec>)| {
        let config = small_config();
        let mut tensors = training_specs(&config);
        change(&mut tensors);
        let contents =
            Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &tensors };
        let mut file = Vec::new();
        checkpoint::write(&mut file, &contents, fill).unwrap();
        file
    };
    let parameters = |file: &[u8]| Checkpoint::open(file).unwrap().parameters().map(|_| ());
    let states = |file: &[u8]| Checkpoint::open(file).unwrap().states().map(|_| ());

    let missing = save(&|tensors| tensors.retain(|t| t.name != "h.0.mlp.c_fc.weight"));
    let fault = parameters(&missing).unwrap_err().fault;
    assert_eq!(fault, Fault::MissingTensor { name: "h.0.mlp.c_fc.weight".into() });
    assert_eq!(states(&missing), Ok(()));

    let other = save(&|tensors| {
        let name = "h.1.mlp.c_fc.weight".into();
        tensors.insert(1, TensorSpec { name, ..tensors[0].clone() });
    });
    let fault = parameters(&other).unwrap_err().fault;
    assert_eq!(fault, Fault::UnknownTensor { name: "h.1.mlp.c_fc.weight".into() });

    let turned = save(&|tensors| {
        let turned = tensors.iter_mut().find(|t| t.name == "h.0.mlp.c_fc.weight").unwrap();
        (turned.rows, turned.cols) = (turned.cols, turned.rows);
    });
    let error = parameters(&turned).unwrap_err();
    let name = "h.0.mlp.c_fc.weight".into();
    assert_eq!(error.fault, Fault::TensorShape { name, expected: (3, 2), found: (2, 3) });
    // The offset is that of the tensor's record: the length of its name, then the name.
    assert_eq!(&turned[error.offset as usize + 1..][..19], b"h.0.mlp.c_fc.weight");

    let inference = save(&|tensors| tensors.retain(|t| t.role == Role::Parameter));
    assert_eq!(parameters(&inference), Ok(()));
    assert!(matches!(states(&inference).unwrap_err().fault, Fault::MissingTensor { .. }));

    let without = |names: &[&str]| save(&|tensors| tensors.retain(|t| !names.contains(&t.name.as_str())));
    let (first, second) = ("adam.m/h.0.mlp.c_fc.weight", "adam.v/h.0.mlp.c_fc.weight");
    for (gone, other) in [(first, second), (second, first)] {
        let fault = states(&without(&[gone])).unwrap_err().fault;
        assert_eq!(fault, Fault::MissingTensor { name: gone.into() }, "without {gone} and with {other}");
    }
    // Without both, the parameter was frozen.
    let frozen = without(&[first, second]);
    let found = Checkpoint::open(&frozen).unwrap().states().unwrap();
    let absent: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_none()).collect();
    let parameter = Checkpoint::open(&frozen).unwrap().parameters().unwrap()[absent[0]];
    assert_eq!((absent.len(), parameter.name), (1, "h.0.mlp.c_fc.weight"));
    // Where all are, there was no training: then there is nothing to go on from.
    let none = save(&|tensors| tensors.retain(|t| !t.name.starts_with("adam.")));
    assert_eq!(states(&none).unwrap_err().fault, Fault::MissingTensor { name: "adam.m/wte.weight".into() });

    let more = save(&|tensors| {
        let name = "adam.v/other".into();
        tensors.push(TensorSpec { name, role: Role::Training, dtype: Dtype::F32, rows: 1, cols: 1 });
    });
    assert_eq!(parameters(&more), Ok(()));
    assert_eq!(states(&more).unwrap_err().fault, Fault::UnknownTensor { name: "adam.v/other".into() });

    let misplaced = save(&|tensors| tensors.iter_mut().for_each(|t| t.role = Role::Parameter));
    assert!(matches!(states(&misplaced).unwrap_err().fault, Fault::MissingTensor { .. }));
    assert!(matches!(parameters(&misplaced).unwrap_err().fault, Fault::UnknownTensor { .. }));
}

#[test]
fn what_could_not_be_loaded_is_not_written() {
    let config = small_config();
    let spec = |name: &str| TensorSpec {
        name: name.into(),
        role: Role::Parameter,
        dtype: Dtype::F32,
        rows: 1,
        cols: 1,
    };
    let save = |contents: &Contents<'_>| {
        let mut file = Vec::new();
        let fault = match checkpoint::write(&mut file, contents, fill) {
            Err(SaveError::Invalid(fault)) => fault,
            other => panic!("{other:?}"),
        };
        assert!(file.is_empty());
        fault
    };
    let good = Contents { config: &config, tokenizer: None, training: None, metadata: &[], tensors: &[] };
    let tensors = |tensors: &[TensorSpec]| save(&Contents { tensors, ..good.clone() });

    assert_eq!(tensors(&[spec("a"), spec("a")]), Fault::RepeatedTensor { name: "a".into() });
    assert_eq!(tensors(&[spec("")]), Fault::NameLength { bytes: 0 });
    assert_eq!(tensors(&[TensorSpec { rows: 0, ..spec("a") }]), Fault::TensorSize { name: "a".into() });
    let wide = TensorSpec { rows: usize::MAX, cols: usize::MAX, ..spec("a") };
    assert_eq!(tensors(&[wide]), Fault::TensorSize { name: "a".into() });
    let invalid = GptConfig { heads: 7, ..config.clone() };
    assert!(matches!(save(&Contents { config: &invalid, ..good.clone() }), Fault::Config(_)));
    // The file has 32 bits for a number, where a machine may have more.
    if let Ok(beyond) = usize::try_from(1_u64 << 32) {
        let large = GptConfig { context: beyond, ..config.clone() };
        assert!(matches!(save(&Contents { config: &large, ..good.clone() }), Fault::Config(_)));
        let mut training: Training = small_training();
        training.config.batch = beyond;
        assert!(matches!(save(&Contents { training: Some(&training), ..good.clone() }), Fault::Config(_)));
    }
    let bytes = ByteTokenizer.into();
    assert!(matches!(
        save(&Contents { tokenizer: Some(&bytes), ..good.clone() }),
        Fault::Vocabulary { tokens: 256, vocab_size: 5 }
    ));
    assert_eq!(save(&Contents { metadata: &[("", "x")], ..good.clone() }), Fault::EmptyKey);
}

/// Takes `room` bytes and fails at the next.
struct Full {
    room: usize,
}

impl Write for Full {
    type Error = &'static str;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.room = self.room.checked_sub(bytes.len()).ok_or("full")?;
        Ok(())
    }
}

#[test]
fn a_sink_that_fails_at_any_byte_gives_its_error() {
    let length = small_checkpoint().len();
    for room in 0..=length {
        let result = with_small_contents(|contents| checkpoint::write(Full { room }, contents, fill));
        let expected = if room == length { Ok(()) } else { Err(SaveError::Write("full")) };
        assert_eq!(result, expected, "room for {room} bytes");
    }
}

#[test]
fn a_tensor_that_cannot_be_read_gives_its_error() {
    let reads = Cell::new(0);
    let save = |fail_at| {
        reads.set(0);
        with_small_contents(|contents| {
            checkpoint::write(Vec::new(), contents, |_, _, bytes| {
                bytes.fill(0);
                reads.set(reads.get() + 1);
                if reads.get() == fail_at { Err("device lost") } else { Ok(()) }
            })
        })
    };
    assert_eq!(save(0), Ok(()));
    let all = reads.get();
    // 10 parameters with two moments each, all read twice.
    assert_eq!(all, 60);
    for fail_at in 1..=all {
        match save(fail_at) {
            Err(SaveError::Read { error: "device lost", .. }) => {}
            other => panic!("{other:?} at read {fail_at}"),
        }
    }
}

#[test]
fn a_tensor_that_changes_while_it_is_saved_is_noticed() {
    let reads = Cell::new(0u32);
    let result = with_small_contents(|contents| {
        checkpoint::write(Vec::new(), contents, |_, _, bytes| {
            reads.set(reads.get() + 1);
            bytes.fill(reads.get() as u8);
            Ok::<(), ()>(())
        })
    });
    assert_eq!(result, Err(SaveError::Changed { tensor: "wte.weight".into() }));
}

/// Opens and verifies in every way; only a panic can fail.
fn exercise(bytes: &[u8]) -> bool {
    let Ok(checkpoint) = Checkpoint::open(bytes) else { return false };
    let _ = checkpoint.verify();
    let _ = checkpoint.parameters();
    let _ = checkpoint.states();
    for view in checkpoint.tensors() {
        assert_eq!(checkpoint.tensor(view.name), Some(view));
    }
    true
}

#[test]
fn random_damage_never_panics() {
    let original = small_checkpoint();
    let header_end = u32::from_le_bytes(original[8..12].try_into().unwrap()) as usize;
    let mut rng = Rng::new(2024, Stream::User);
    let mut opened = 0;
    for round in 0..20_000 {
        let mut file = original.clone();
        for _ in 0..=rng.below(4) {
            // Most damage goes where the structure is.
            let end = if rng.below(8) == 0 { file.len() } else { header_end };
            let at = rng.below(end as u64) as usize;
            match rng.below(5) {
                0 => file[at] = rng.next_u32() as u8,
                1 => file[at] ^= 1 << rng.below(8),
                2 => file[at] = [0, 1, 0x7F, 0x80, 0xFF][rng.below(5) as usize],
                3 => file[at] = file[at].wrapping_add(1),
                _ => {
                    let from = rng.below(end as u64) as usize;
                    let length = (rng.below(16) as usize).min(end - from.max(at));
                    file.copy_within(from..from + length, at);
                }
            }
        }
        if rng.below(8) == 0 {
            file.truncate(rng.below(file.len() as u64) as usize);
        }
        // With the checksum made good again, the damage reaches the parser.
        if round % 4 != 0 && file.len() >= header_end {
            file[8..12].copy_from_slice(&(header_end as u32).to_le_bytes());
            let crc = crc32fast::hash(&file[..header_end - 4]);
            file[header_end - 4..header_end].copy_from_slice(&crc.to_le_bytes());
        }
        opened += usize::from(exercise(&file));
    }
    assert!(opened > 1000, "only {opened} of the damaged files got past the parser");
}
