//! Golden files of the format, kept forever: what was written once is read, and computes the same bits.
//!
//! Each is also what the writer writes today. Only a change before the first release may need to write them anew, with
//! `MINIGPT_WRITE_GOLDEN=1 cargo test -p minigpt-core --test checkpoint_golden`, and then run the tests again.

#[path = "support/models.rs"]
#[expect(dead_code, reason = "shared with the test of the second reader")]
mod models;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use minigpt_core::checkpoint::{Fault, Limits, Stream};
use minigpt_core::{Backend, Checkpoint, Dtype, Import, Model, Real, Reference};
use models::TOKENS;
use support::{conf, header, varint};

/// Each golden file as it is kept, by name.
const FILES: [(&str, &[u8]); 11] = [
    ("training", include_bytes!("golden/v1/training.mgpt")),
    ("chars", include_bytes!("golden/v1/chars.mgpt")),
    ("bytes", include_bytes!("golden/v1/bytes.mgpt")),
    ("f64", include_bytes!("golden/v1/f64.mgpt")),
    ("f16", include_bytes!("golden/v1/f16.mgpt")),
    ("bf16", include_bytes!("golden/v1/bf16.mgpt")),
    ("q8_0", include_bytes!("golden/v1/q8_0.mgpt")),
    ("q4_0", include_bytes!("golden/v1/q4_0.mgpt")),
    ("optional_section", include_bytes!("golden/v1/optional_section.mgpt")),
    ("required_section", include_bytes!("golden/v1/required_section.mgpt")),
    ("newer_version", include_bytes!("golden/v1/newer_version.mgpt")),
];

/// The CRC-32 of the logits of each golden model.
const LOGITS: [(&str, u32); 7] = [
    ("chars", 0x0c5c_0614),
    ("bytes", 0x6f7c_b370),
    ("f64", 0xd038_078c),
    ("f16", 0xdd88_05f7),
    ("bf16", 0x7b24_2dd1),
    ("q8_0", 0x5844_95e5),
    ("q4_0", 0x0a5d_b72b),
];

fn golden(name: &str) -> &'static [u8] {
    FILES.iter().find(|(file, _)| *file == name).expect(name).1
}

/// The same files, made anew.
fn made() -> Vec<(&'static str, Vec<u8>)> {
    let with = |version, flags| {
        let sections =
            [(b"CONF", 1, conf(4, 0.0, 1e-5)), (b"NEWS", flags, vec![1, 2, 3]), (b"TENS", 1, varint(0))];
        header(version, &sections)
    };
    let mut files = vec![("training", support::small_checkpoint())];
    files.extend(models::goldens().iter().map(|golden| (golden.name, golden.write())));
    files.push(("optional_section", with(1, 0)));
    files.push(("required_section", with(1, 1)));
    files.push(("newer_version", with(2, 0)));
    files
}

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1");

#[test]
fn what_is_written_today_is_the_golden_files() {
    let made = made();
    if std::env::var_os("MINIGPT_WRITE_GOLDEN").is_some() {
        for (name, bytes) in &made {
            std::fs::write(format!("{FOLDER}/{name}.mgpt"), bytes).unwrap();
        }
    }
    assert!(made.iter().map(|(name, _)| name).eq(FILES.iter().map(|(name, _)| name)));
    for ((name, bytes), (_, kept)) in made.iter().zip(FILES) {
        assert!(kept == bytes, "the writer writes another file than {FOLDER}/{name}.mgpt");
    }
}

// Miri, which runs the other tests on a big-endian machine, has no folders.
#[cfg(not(miri))]
#[test]
fn every_golden_file_is_tested() {
    assert_eq!(std::fs::read_dir(FOLDER).unwrap().count(), FILES.len());
}

/// The CRC-32 of the logits' little-endian bytes.
fn logits_of<B: Backend>(model: Model<B>) -> u32 {
    let logits = model.logits(&TOKENS, 1, TOKENS.len()).unwrap();
    assert!(logits.iter().all(|x| x.to_f64().is_finite()));
    let size = size_of::<B::Elem>();
    let mut bytes = vec![0; logits.len() * size];
    for (bytes, logit) in bytes.chunks_exact_mut(size).zip(&logits) {
        logit.to_le_slice(bytes);
    }
    crc32fast::hash(&bytes)
}

/// In every way in which a model can be loaded.
fn loaded<B: Import<'static> + Default>(name: &str) -> u32 {
    let checkpoint = Checkpoint::open_verified(golden(name)).unwrap();
    let logits = logits_of(Model::load(B::default(), &checkpoint).unwrap());
    assert_eq!(logits_of(Model::borrow(B::default(), &checkpoint).unwrap()), logits, "{name}, borrowed");
    let mut header = Vec::new();
    let stream = Stream::open(golden(name), &mut header, &Limits::DEFAULT).unwrap();
    assert_eq!(logits_of(Model::load_from(B::default(), stream).unwrap()), logits, "{name}, streamed");
    logits
}

/// The reference gives the same bits on every machine, little-endian or big-endian.
#[test]
fn golden_models_compute_the_same_bits_on_every_machine() {
    let computed: Vec<(&str, u32)> = models::goldens()
        .iter()
        .map(|golden| match golden.format {
            Dtype::F64 => (golden.name, loaded::<Reference<f64>>(golden.name)),
            _ => (golden.name, loaded::<Reference<f32>>(golden.name)),
        })
        .collect();
    assert_eq!(computed, LOGITS);
}

#[test]
fn golden_headers_hold_what_was_put_in() {
    let training = Checkpoint::open_verified(golden("training")).unwrap();
    assert_eq!(training.config(), &support::small_config());
    assert_eq!(training.tokenizer(), Some(&support::small_tokenizer()));
    assert_eq!(training.training(), Some(&support::small_training()));
    assert_eq!(training.metadata(), support::METADATA);
    assert_eq!(training.moments().unwrap().iter().flatten().count(), training.parameters().unwrap().len());
    for model in models::goldens() {
        let checkpoint = Checkpoint::open_verified(golden(model.name)).unwrap();
        assert_eq!(checkpoint.config(), &model.config, "{}", model.name);
        assert_eq!(checkpoint.tokenizer(), model.tokenizer.as_ref(), "{}", model.name);
        assert_eq!(checkpoint.metadata(), model.metadata, "{}", model.name);
    }
}

#[test]
fn an_unknown_section_of_a_golden_file_is_skipped_or_refused_and_a_newer_version_is_refused() {
    assert_eq!(Checkpoint::open_verified(golden("optional_section")).unwrap().config().layers, 4);
    let refused = |name| Checkpoint::open(golden(name)).unwrap_err();
    assert_eq!(refused("required_section").fault, Fault::UnknownSection { tag: *b"NEWS" });
    assert_eq!(
        refused("required_section").to_string(),
        "checkpoint, byte 53: this checkpoint cannot be used without its section NEWS, which this program does \
         not know: update the program"
    );
    assert_eq!(
        refused("newer_version").to_string(),
        "checkpoint, byte 4: format version 2 is newer than 1, the newest that this program reads: update the \
         program"
    );
}
