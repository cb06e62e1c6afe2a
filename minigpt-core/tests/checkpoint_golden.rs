//! Golden files of the format, kept forever: what was written once is read, and computes the same bits.
//!
//! Those of the newest version are also what the writer writes today. Only a change before the first release may need to write
//! them anew, with `MINIGPT_WRITE_GOLDEN=1 cargo test -p minigpt-core --test checkpoint_golden`, and then run the tests again.
//! Those of older versions are only read: no program writes them any more.

#[path = "support/by_hand.rs"]
#[expect(dead_code, reason = "shared with the tests of schedules")]
mod by_hand;
#[path = "support/models.rs"]
#[expect(dead_code, reason = "shared with the test of the second reader")]
mod models;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use minigpt_core::checkpoint::{self, Contents, Fault, Limits, Stream, TensorSpec, VERSION};
use minigpt_core::model::Extras;
use minigpt_core::{Backend, Checkpoint, Dtype, Import, Model, Real, Reference};
use models::Golden;
use support::{conf, header, varint};

/// The files of a version as they are kept, by name.
macro_rules! files {
    ($version:literal: $($name:literal)*) => {
        &[$(($name, include_bytes!(concat!("golden/v", $version, "/", $name, ".mgpt")))),*]
    };
}

type Files = &'static [(&'static str, &'static [u8])];

const VERSION_1: Files = files!(
    1: "training" "chars" "bytes" "f64" "f16" "bf16" "q8_0" "q4_0" "optional_section" "required_section"
);

const VERSION_2: Files = files!(
    2: "training" "chars" "bytes" "f64" "f16" "bf16" "q8_0" "q4_0" "optional_section" "required_section"
    "newer_version" "wide" "prefix"
);

/// The CRC-32 of the logits of each golden model.
const LOGITS: [(&str, u32); 9] = [
    ("chars", 0x0c5c_0614),
    ("bytes", 0x6f7c_b370),
    ("f64", 0xd038_078c),
    ("f16", 0xdd88_05f7),
    ("bf16", 0x7b24_2dd1),
    ("q8_0", 0x5844_95e5),
    ("q4_0", 0x0a5d_b72b),
    ("wide", 0xc050_a737),
    ("prefix", 0x8418_2585),
];

fn find(files: Files, name: &str) -> &'static [u8] {
    files.iter().find(|(file, _)| *file == name).expect(name).1
}

/// The golden models of a version, and their files.
fn goldens(files: Files) -> impl Iterator<Item = (Golden, &'static [u8])> {
    let all = models::goldens().into_iter().chain(models::wide_goldens());
    all.filter_map(move |golden| {
        let file = files.iter().find(|(name, _)| *name == golden.name)?.1;
        Some((golden, file))
    })
}

fn by_hand_of(golden: &Golden) -> Vec<u8> {
    let Golden { config, format, tokenizer, metadata, .. } = golden;
    by_hand::file(config, *format, tokenizer.as_ref(), metadata, models::stored)
}

/// The files of the newest version, made anew.
fn made() -> Vec<(&'static str, Vec<u8>)> {
    let with = |version, flags| {
        let sections =
            [(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"NEWS", flags, vec![1, 2, 3]), (b"TENS", 1, varint(0))];
        header(version, &sections)
    };
    let mut files = vec![("training", support::small_checkpoint())];
    files.extend(models::goldens().iter().map(|golden| (golden.name, golden.write())));
    files.push(("optional_section", with(2, 0)));
    files.push(("required_section", with(2, 1)));
    files.push(("newer_version", with(u32::MAX, 0)));
    files.extend(models::wide_goldens().iter().map(|golden| (golden.name, golden.write())));
    files
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

#[test]
fn what_is_written_today_is_the_golden_files() {
    let made = made();
    if std::env::var_os("MINIGPT_WRITE_GOLDEN").is_some() {
        for (name, bytes) in &made {
            std::fs::write(format!("{FOLDER}/v2/{name}.mgpt"), bytes).unwrap();
        }
    }
    assert!(made.iter().map(|(name, _)| name).eq(VERSION_2.iter().map(|(name, _)| name)));
    for ((name, bytes), (_, kept)) in made.iter().zip(VERSION_2) {
        assert!(kept == bytes, "the writer writes another file than {FOLDER}/v2/{name}.mgpt");
    }
}

#[test]
fn the_prose_makes_the_bytes_that_the_writer_writes() {
    for golden in models::goldens().iter().chain(&models::wide_goldens()) {
        let kept = find(VERSION_2, golden.name);
        assert!(kept == by_hand_of(golden), "{}", golden.name);
    }
}

// Miri, which runs the other tests on a big-endian machine, has no folders.
#[cfg(not(miri))]
#[test]
fn every_golden_file_is_tested() {
    for (folder, files) in [("v1", VERSION_1), ("v2", VERSION_2)] {
        assert_eq!(std::fs::read_dir(format!("{FOLDER}/{folder}")).unwrap().count(), files.len());
    }
}

/// The CRC-32 of the logits' little-endian bytes.
fn logits_of<B: Backend>(model: Model<B>) -> u32 {
    let logits = models::logits(&model);
    assert!(logits.iter().all(|x| x.to_f64().is_finite()));
    let size = size_of::<B::Elem>();
    let mut bytes = vec![0; logits.len() * size];
    for (bytes, logit) in bytes.chunks_exact_mut(size).zip(&logits) {
        logit.to_le_slice(bytes);
    }
    crc32fast::hash(&bytes)
}

/// In every way in which a model can be loaded.
fn loaded<B: Import<'static> + Default>(name: &str, file: &'static [u8]) -> u32 {
    let checkpoint = Checkpoint::open_verified(file).unwrap();
    let logits = logits_of(Model::load(B::default(), &checkpoint).unwrap());
    assert_eq!(logits_of(Model::borrow(B::default(), &checkpoint).unwrap()), logits, "{name}, borrowed");
    let mut header = Vec::new();
    let stream = Stream::open(file, &mut header, &Limits::DEFAULT).unwrap();
    assert_eq!(logits_of(Model::load_from(B::default(), stream).unwrap()), logits, "{name}, streamed");
    logits
}

/// The reference gives the same bits on every machine, little-endian or big-endian.
#[test]
fn golden_models_of_every_version_compute_the_same_bits_on_every_machine() {
    for files in [VERSION_1, VERSION_2] {
        for (golden, file) in goldens(files) {
            let name = golden.name;
            let logits = match golden.format {
                Dtype::F64 => loaded::<Reference<f64>>(name, file),
                _ => loaded::<Reference<f32>>(name, file),
            };
            let expected = LOGITS.iter().find(|(other, _)| *other == name).expect(name).1;
            assert_eq!(logits, expected, "{name}: {logits:#x}");
        }
    }
}

#[test]
fn golden_headers_hold_what_was_put_in() {
    for files in [VERSION_1, VERSION_2] {
        let training = Checkpoint::open_verified(find(files, "training")).unwrap();
        assert_eq!(training.config(), &support::small_config());
        assert_eq!(training.tokenizer(), Some(&support::small_tokenizer()));
        assert_eq!(training.training(), Some(&support::small_training()));
        assert_eq!(training.metadata(), support::METADATA);
        let states = training.states().unwrap();
        assert_eq!(states.iter().flatten().count(), training.parameters().unwrap().len());
        assert!(goldens(files).count() >= 7);
        for (golden, file) in goldens(files) {
            let checkpoint = Checkpoint::open_verified(file).unwrap();
            assert_eq!(checkpoint.config(), &golden.config, "{}", golden.name);
            assert_eq!(checkpoint.tokenizer(), golden.tokenizer.as_ref(), "{}", golden.name);
            assert_eq!(checkpoint.metadata(), golden.metadata, "{}", golden.name);
        }
    }
}

/// The contents of a checkpoint, written again.
fn copied(file: &[u8]) -> Vec<u8> {
    let checkpoint = Checkpoint::open_verified(file).unwrap();
    let views: Vec<_> = checkpoint.tensors().collect();
    let spec = |view: &checkpoint::TensorView<'_>| TensorSpec {
        name: view.name.into(),
        role: view.role,
        dtype: view.dtype,
        rows: view.rows,
        cols: view.cols,
    };
    let contents = Contents {
        config: checkpoint.config(),
        tokenizer: checkpoint.tokenizer(),
        training: checkpoint.training(),
        metadata: checkpoint.metadata(),
        tensors: &views.iter().map(spec).collect::<Vec<_>>(),
    };
    let mut copy = Vec::new();
    checkpoint::write(&mut copy, &contents, |i, offset, bytes| {
        bytes.copy_from_slice(&views[i].bytes[offset..][..bytes.len()]);
        Ok::<(), core::convert::Infallible>(())
    })
    .unwrap();
    copy
}

/// The model that a checkpoint holds, in the types that it is stored in, written again.
fn rewritten<B: Import<'static>>(backend: B, file: &'static [u8]) -> Vec<u8> {
    let checkpoint = Checkpoint::open_verified(file).unwrap();
    let extras = Extras { tokenizer: checkpoint.tokenizer(), metadata: checkpoint.metadata() };
    let (mut header, mut copy) = (Vec::new(), Vec::new());
    let stream = Stream::open(file, &mut header, &Limits::DEFAULT).unwrap();
    Model::load_from(backend, stream).unwrap().write(&mut copy, &extras).unwrap();
    copy
}

#[test]
fn what_was_read_of_an_older_version_is_written_as_the_newest() {
    let training = find(VERSION_1, "training");
    assert!(copied(training) == find(VERSION_2, "training"));
    for (golden, file) in goldens(VERSION_1) {
        let newest = find(VERSION_2, golden.name);
        assert!(copied(file) == newest, "{}", golden.name);
        let written = match golden.format {
            Dtype::F64 => rewritten(Reference::<f64>::new(), file),
            _ => rewritten(Reference::<f32>::new(), file),
        };
        assert!(written == newest, "{}", golden.name);
    }
}

#[test]
fn an_unknown_section_of_a_golden_file_is_skipped_or_refused_and_a_newer_version_is_refused() {
    for files in [VERSION_1, VERSION_2] {
        let optional = Checkpoint::open_verified(find(files, "optional_section")).unwrap();
        assert_eq!(optional.config().layers, 4);
        let refused = Checkpoint::open(find(files, "required_section")).unwrap_err();
        assert_eq!(refused.fault, Fault::UnknownSection { tag: *b"NEWS" });
        let message = "this checkpoint cannot be used without its section NEWS, which this program does not know: \
                       update the program";
        let text = refused.to_string();
        assert!(text.starts_with("checkpoint, byte ") && text.ends_with(message), "{text}");
    }
    let refused = Checkpoint::open(find(VERSION_2, "newer_version")).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "checkpoint, byte 4: format version 4294967295 is newer than {VERSION}, the newest that this program \
             reads: update the program"
        )
    );
}
