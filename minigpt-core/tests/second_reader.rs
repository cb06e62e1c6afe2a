//! The specification of the format is good enough to write a reader from: `python/reader.py` reads what this library
//! writes, and its models compute the same.
//!
//! Not among the tests of plain `cargo test`, because it needs Python 3 with numpy:
//! `MINIGPT_PYTHON=python3 cargo test -p minigpt-core --test second_reader`.

#[path = "support/by_hand.rs"]
#[expect(dead_code, reason = "shared with the tests of schedules")]
mod by_hand;
#[path = "support/models.rs"]
#[expect(dead_code, reason = "shared with the golden files")]
mod models;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minigpt_core::checkpoint::{self, Contents, Role, Training};
use minigpt_core::model::Extras;
use minigpt_core::{
    Activation, AnyTokenizer, AttentionScale, Backend, Checkpoint, Decay, Dtype, GptConfig, Groups, Mask,
    Model, Norm, NormPlace, Pairing, Position, Precision, Reference, TrainConfig, Trainer,
};
use models::{TOKENS, given};
use serde_json::{Value, json};

/// What the reader says of these files, whose models take no given vectors.
fn read(files: &[PathBuf], tokens: &[u32]) -> Vec<Value> {
    let files: Vec<_> = files.iter().map(|file| (file, Vec::new())).collect();
    read_behind(&files, tokens)
}

/// What the reader says of these files, each with the vectors that its model is given before the tokens.
fn read_behind(files: &[(&PathBuf, Vec<Vec<f64>>)], tokens: &[u32]) -> Vec<Value> {
    let python = std::env::var_os("MINIGPT_PYTHON").unwrap_or_else(|| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/reader.py");
    let tokens = tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new(&python);
    command.arg(script);
    for (file, given) in files {
        command.arg(file).arg(&tokens).arg(json!(given).to_string());
    }
    let output = command.output().unwrap_or_else(|e| {
        panic!("cannot run {}: {e}; set MINIGPT_PYTHON to a Python 3 that has numpy", python.display())
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the reader failed; it needs numpy (`pip install numpy`): {errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), files.len());
    answers
}

/// The config as the reader prints it.
fn as_json(config: &GptConfig) -> Value {
    let mut json = json!({
        "vocab_size": config.vocab_size, "context": config.context, "layers": config.layers,
        "heads": config.heads, "kv_heads": config.kv_heads, "d_model": config.d_model,
        "d_head": config.d_head, "d_ff": config.d_ff, "prefix": config.prefix,
        "position": match config.position {
            Position::Learned => "learned",
            Position::Sinusoidal => "sinusoidal",
            Position::Rotary { .. } => "rotary",
            _ => "none",
        },
        "mask": match config.mask {
            Mask::Causal => "causal",
            Mask::Prefix => "prefix",
            _ => "none",
        },
        "norm": if config.norm == Norm::Layer { "layer" } else { "rms" },
        "norm_place": match config.norm_place {
            NormPlace::Pre => "pre",
            NormPlace::Post => "post",
            _ => "none",
        },
        "qk_norm": config.qk_norm,
        "attention_scale": match config.attention_scale {
            AttentionScale::Custom(scale) => json!(scale),
            AttentionScale::InverseSqrt => json!("inverse_sqrt"),
            _ => json!("none"),
        },
        "residual": config.residual,
        "activation": match config.activation {
            Activation::GeluTanh => "gelu_tanh",
            Activation::GeluErf => "gelu_erf",
            Activation::Relu => "relu",
            Activation::ReluSquared => "relu_squared",
            _ => "silu",
        },
        "gated": config.gated,
        "qkv_bias": config.bias.qkv, "linear_bias": config.bias.linear, "norm_bias": config.bias.norm,
        "dropout": config.dropout,
        "tied_embeddings": config.tied_embeddings, "norm_eps": config.norm_eps,
    });
    if let Position::Rotary { base, pairing } = config.position {
        json["rotary_base"] = json!(base);
        json["rotary_pairing"] = json!(if pairing == Pairing::Halves { "halves" } else { "adjacent" });
    }
    json
}

/// The largest difference between the reader's logits and those of a backend, as a share of the largest logit.
fn difference<B: Backend>(backend: B, file: &[u8], answer: &Value) -> f64
where
    f64: From<B::Elem>,
{
    let checkpoint = Checkpoint::open_verified(file).unwrap();
    let model = Model::load(backend, &checkpoint).unwrap();
    let expected = models::logits(&model);
    let rows = answer["logits"].as_array().unwrap();
    // The reader tells the logits behind given vectors too.
    let rows = &rows[checkpoint.config().prefix..];
    assert_eq!(rows.len(), TOKENS.len());
    let found: Vec<f64> =
        rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()));
    let largest = found.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = found.iter().zip(expected).fold(0.0, |max: f64, (a, b)| max.max((a - f64::from(b)).abs()));
    assert!(largest > 1e-3, "the logits say nothing");
    worst / largest.max(1.0)
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("minigpt-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_second_reader_gives_the_logits_of_every_config_in_every_format() {
    let folder = Folder::new("second-reader");
    let (mut paths, mut files, mut configs) = (Vec::new(), Vec::new(), Vec::new());
    for (i, config) in models::configs().into_iter().enumerate() {
        for format in models::FORMATS {
            let file = models::checkpoint_of(&config, format, None, &[]);
            let path = folder.0.join(format!("{i}-{format:?}.mgpt"));
            fs::write(&path, &file).unwrap();
            paths.push(path);
            files.push(file);
            configs.push(config.clone());
        }
    }
    let (mut worst32, mut worst64) = (0.0f64, 0.0f64);
    for (i, answer) in read(&paths, &TOKENS).iter().enumerate() {
        let name = paths[i].display();
        assert_eq!(answer["config"], as_json(&configs[i]), "{name}");
        let single = difference(Reference::<f32>::new(), &files[i], answer);
        let double = difference(Reference::<f64>::new(), &files[i], answer);
        assert!(single <= 1e-5, "{name}: {single:e} from f32");
        assert!(double <= 1e-12, "{name}: {double:e} from f64");
        (worst32, worst64) = (worst32.max(single), worst64.max(double));
    }
    println!("{} checkpoints; at most {worst32:e} from f32 and {worst64:e} from f64", files.len());
}

/// The given vectors, one by one.
fn rows_of(config: &GptConfig) -> Vec<Vec<f64>> {
    given(config).chunks(config.d_model).map(<[f64]>::to_vec).collect()
}

#[test]
fn the_second_reader_gives_the_logits_of_what_only_version_2_has() {
    let folder = Folder::new("second-reader-wide");
    let configs = models::wide_configs();
    let mut files = Vec::new();
    for (i, config) in configs.iter().enumerate() {
        let by_hand = by_hand::file(config, Dtype::F32, None, &[], models::stored);
        let written = models::checkpoint_of(config, Dtype::F32, None, &[]);
        assert!(written == by_hand, "{config:?} is written otherwise than the prose says");
        let path = folder.0.join(format!("{i}.mgpt"));
        fs::write(&path, &by_hand).unwrap();
        files.push((path, by_hand));
    }
    let asked: Vec<_> =
        files.iter().zip(&configs).map(|((path, _), config)| (path, rows_of(config))).collect();
    for ((config, (_, file)), answer) in configs.iter().zip(&files).zip(read_behind(&asked, &TOKENS)) {
        assert_eq!(answer["config"], as_json(config));
        assert_eq!(answer["logits"].as_array().unwrap().len(), config.prefix + TOKENS.len(), "{config:?}");
        let double = difference(Reference::<f64>::new(), file, &answer);
        assert!(double <= 1e-12, "{config:?}: {double:e}");
    }
}

#[test]
fn embeddings_that_the_second_reader_is_given_are_the_tokens_that_they_stand_for() {
    let folder = Folder::new("second-reader-prefix");
    let path = folder.0.join("prefix.mgpt");
    let plain = models::base();
    let file = models::checkpoint_of(&plain, Dtype::F32, None, &[]);
    let behind = GptConfig { prefix: 2, ..plain };
    fs::write(&path, by_hand::file(&behind, Dtype::F32, None, &[], models::stored)).unwrap();
    let checkpoint = Checkpoint::open_verified(&file).unwrap();
    let rows: Vec<&[u8]> = checkpoint.tensor("wte.weight").unwrap().bytes.chunks_exact(4 * 8).collect();
    let numbers = |row: &[u8]| -> Vec<f64> {
        row.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()).into()).collect()
    };
    let given = TOKENS[..2].iter().map(|token| numbers(rows[*token as usize])).collect();
    let answer = &read_behind(&[(&path, given)], &TOKENS[2..])[0];
    assert!(difference(Reference::<f64>::new(), &file, answer) <= 1e-12);
}

#[test]
fn the_second_reader_reads_the_golden_files_of_both_versions() {
    for folder in ["v1", "v2"] {
        golden_files_are_read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2");
    for golden in models::wide_goldens() {
        let path = folder.join(golden.name).with_extension("mgpt");
        let answer = &read_behind(&[(&path, rows_of(&golden.config))], &TOKENS)[0];
        assert_eq!(answer["config"], as_json(&golden.config), "{}", golden.name);
    }
}

fn golden_files_are_read(folder: &Path) {
    let goldens = models::goldens();
    let paths: Vec<PathBuf> =
        goldens.iter().map(|golden| folder.join(golden.name).with_extension("mgpt")).collect();
    for (golden, answer) in goldens.iter().zip(read(&paths, &TOKENS)) {
        let name = golden.name;
        assert_eq!(answer["config"], as_json(&golden.config), "{name}");
        let tokenizer = match &golden.tokenizer {
            None => Value::Null,
            Some(AnyTokenizer::Byte(_)) => json!({ "kind": "bytes", "chars": null }),
            Some(AnyTokenizer::Char(chars)) => {
                json!({ "kind": "chars", "chars": chars.chars().iter().collect::<String>() })
            }
            Some(other) => panic!("the second reader does not know {other:?}"),
        };
        assert_eq!(answer["tokenizer"], tokenizer, "{name}");
        let metadata = if golden.metadata.is_empty() { Value::Null } else { json!(golden.metadata) };
        assert_eq!(answer["metadata"], metadata, "{name}");
        assert_eq!(answer["training"], Value::Null, "{name}");
        let file = fs::read(folder.join(name).with_extension("mgpt")).unwrap();
        let difference = difference(Reference::<f64>::new(), &file, &answer);
        assert!(difference <= 1e-12, "{name}: {difference:e}");
    }
}

#[test]
fn the_second_reader_reads_a_training_checkpoint() {
    let folder = Folder::new("second-reader-training");
    let path = folder.0.join("training.mgpt");
    // Its weights are bytes without meaning, so only the header is compared.
    fs::write(&path, support::small_checkpoint()).unwrap();
    let answer = &read(&[path], &[])[0];
    assert_eq!(answer["config"], as_json(&support::small_config()));
    assert_eq!(answer["metadata"], json!(support::METADATA));
    assert_eq!(answer["training"], training_as_json(&support::small_training()));
    let names: Vec<&str> =
        answer["tensors"].as_array().unwrap().iter().map(|t| t[0].as_str().unwrap()).collect();
    let specs = support::training_specs(&support::small_config());
    assert!(names.iter().eq(specs.iter().map(|spec| &spec.name)));
    let trained = specs.iter().filter(|spec| spec.role == Role::Parameter).map(|spec| json!(spec.name));
    assert_eq!(answer["trained"], trained.collect::<Value>());
}

/// The training section as the reader prints it.
fn training_as_json(Training { config, state, .. }: &Training) -> Value {
    let schedule = config.schedule;
    let mut json = json!({
        "batch": config.batch, "time": config.time, "accumulation": config.accumulation,
        "peak": schedule.peak, "floor": schedule.floor, "warmup": schedule.warmup,
        "steps": schedule.steps, "decay": "cosine", "clip": null, "beta1": 0.9,
        "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "optimizers": null,
        "seed": config.seed, "counters": state.counters, "windows_drawn": state.windows_drawn,
    });
    match schedule.decay {
        Decay::Constant => json["decay"] = json!("constant"),
        Decay::Linear => json["decay"] = json!("linear"),
        Decay::Stable { decay_steps } => {
            json["decay"] = json!("stable");
            json["decay_steps"] = json!(decay_steps);
        }
        _ => {}
    }
    json
}

#[test]
fn the_second_reader_knows_every_decay() {
    let folder = Folder::new("second-reader-decay");
    let decays = [Decay::Constant, Decay::Linear, Decay::Cosine, Decay::Stable { decay_steps: 300 }];
    let trainings = decays.map(|decay| {
        let mut training = support::small_training();
        training.config.schedule.decay = decay;
        training
    });
    let paths: Vec<PathBuf> = (0..4).map(|i| folder.0.join(format!("{i}.mgpt"))).collect();
    for (path, training) in paths.iter().zip(&trainings) {
        support::with_small_contents(|contents| {
            let contents = Contents { training: Some(training), ..contents.clone() };
            checkpoint::save(path, &contents, support::fill)
        })
        .unwrap();
    }
    for (training, answer) in trainings.iter().zip(read(&paths, &[])) {
        assert_eq!(answer["training"], training_as_json(training));
    }
}

#[test]
fn the_second_reader_sees_what_is_frozen() {
    let folder = Folder::new("second-reader-frozen");
    let path = folder.0.join("frozen.mgpt");
    let model = Model::new(Reference::<f32>::new(), models::base(), 1).unwrap();
    let settings = TrainConfig { batch: 1, time: 5, ..TrainConfig::constant(0.1) };
    let in_a_norm = |name: &str| name.contains("ln_");
    let mut trainer = Trainer::freezing(&model, settings, |tensor| !in_a_norm(&tensor.name)).unwrap();
    trainer.micro_step(&TOKENS, &TOKENS).unwrap();
    trainer.finish_step().unwrap();
    trainer.save(&path, &Extras::default()).unwrap();
    let answer = &read(std::slice::from_ref(&path), &TOKENS)[0];
    let names = model.parameters().map(|(tensor, _)| &tensor.name).filter(|name| in_a_norm(name));
    assert_eq!(answer["trained"], names.map(|name| json!(name)).collect::<Value>());
    assert!(difference(Reference::<f64>::new(), &fs::read(&path).unwrap(), answer) <= 1e-12);
}

#[test]
fn the_second_reader_sees_who_trains_what() {
    let folder = Folder::new("second-reader-optimizers");
    let path = folder.0.join("optimizers.mgpt");
    let model = Model::new(Reference::<f32>::new(), models::base(), 1).unwrap();
    let muon = Groups::muon(0.9, 0.99, 0.1);
    // Nothing is kept of vectors, which is why the file must say what of them is frozen.
    let groups = Groups { vectors: Groups::sgd(0.0, true, 0.0).vectors, ..muon };
    let settings = TrainConfig { batch: 1, time: 5, groups, ..TrainConfig::constant(0.1) };
    for (average, precision) in [(None, Precision::Bf16), (Some(0.75), Precision::F32)] {
        let settings = TrainConfig { average, precision, ..settings.clone() };
        let frozen = |name: &str| name.contains("ln_1") || name == "h.0.attn.c_proj.weight";
        let mut trainer = Trainer::freezing(&model, settings, |tensor| frozen(&tensor.name)).unwrap();
        trainer.micro_step(&TOKENS, &TOKENS).unwrap();
        trainer.finish_step().unwrap();
        trainer.save(&path, &Extras::default()).unwrap();
        let answer = &read(std::slice::from_ref(&path), &TOKENS)[0];
        let names = |is: bool| -> Value {
            let all = model.parameters().map(|(tensor, _)| &tensor.name);
            all.filter(|name| frozen(name) == is).map(|name| json!(name)).collect()
        };
        assert_eq!(answer["trained"], names(false));
        let adamw = json!({
            "optimizer": "adamw", "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "rate": 1.0,
        });
        assert_eq!(
            answer["training"]["optimizers"],
            json!({
                "embeddings": adamw, "head": adamw, "average": average, "frozen": names(true),
                "precision": if precision == Precision::Bf16 { "bf16" } else { "f32" },
                "matrices": {
                    "optimizer": "muon", "momentum": 0.95, "nesterov": true, "steps": 5, "weight_decay": 0.1 / 20.0,
                    "rate": 20.0,
                },
                "vectors": {
                    "optimizer": "sgd", "momentum": 0.0, "nesterov": true, "weight_decay": 0.0, "rate": 1.0,
                },
            })
        );
        assert!(difference(Reference::<f64>::new(), &fs::read(&path).unwrap(), answer) <= 1e-12);
    }
}
