//! What a stranger's checkpoint may ask for, and how a program is told.

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use minigpt_core::checkpoint::{Fault, Limits, LoadError, Stream, StreamError};
use minigpt_core::model::Extras;
use minigpt_core::{Checkpoint, GptConfig, Model, Position, Reference};
use support::small_checkpoint;

fn open(file: &[u8], limits: &Limits) -> Result<(), LoadError> {
    let checkpoint = Checkpoint::open_within(file, limits)?;
    checkpoint.parameters()?;
    checkpoint.states().map(|_| ())
}

fn stream(file: &[u8], limits: &Limits) -> Result<(), LoadError> {
    let mut header = Vec::new();
    match Stream::open(file, &mut header, limits) {
        Ok(_) => Ok(()),
        Err(StreamError::Load(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn each_limit_is_the_largest_that_is_allowed_and_its_error_names_it() {
    let file = small_checkpoint();
    let header = u64::from(u32::from_le_bytes(file[8..12].try_into().unwrap()));
    let payload = file.len() as u64 - header.next_multiple_of(64);
    // One layer and width 2: 4 numbers of keys and values, and twice 2 tokens of history, for each of 3 positions.
    let cache = (4 + 2 * 2) * 4 * 3;
    type Set = fn(&mut Limits, u64);
    let cases: [(&str, u64, Set); 8] = [
        ("header", header, |limits, value| limits.header = value),
        ("tensors", 30, |limits, value| limits.tensors = value),
        ("metadata", 3, |limits, value| limits.metadata = value),
        ("payload", payload, |limits, value| limits.payload = value),
        ("vocab_size", 5, |limits, value| limits.vocab_size = value),
        ("context", 3, |limits, value| limits.context = value),
        ("cache", cache, |limits, value| limits.cache = Some(value)),
        ("batch", 12 * 3, |limits, value| limits.batch = value),
    ];
    for (field, found, set) in cases {
        let mut limits = Limits::DEFAULT;
        set(&mut limits, found);
        assert_eq!(open(&file, &limits), Ok(()), "{field}");
        assert_eq!(stream(&file, &limits), Ok(()), "{field}");

        set(&mut limits, found - 1);
        let fault = Fault::Limit { field, found, limit: found - 1 };
        // Only a stream can claim more bytes than it has; the cache and the batch need nothing before the tensors do.
        if field != "payload" {
            assert_eq!(open(&file, &limits).unwrap_err().fault, fault);
        }
        if field != "cache" && field != "batch" {
            assert_eq!(stream(&file, &limits).unwrap_err().fault, fault);
        }
        let message = fault.to_string();
        assert!(message.contains(&format!("its {field} would be {found}")), "{message}");
        assert!(message.contains(&format!("Limits whose `{field}`")), "{message}");
    }
}

#[test]
fn a_context_that_its_bytes_do_not_justify_is_refused_before_memory_is_asked_for() {
    for position in [Position::None, Position::ROTARY, Position::Sinusoidal] {
        let config =
            GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, position, ..GptConfig::new(5, 64) };
        let model = Model::new(Reference::<f32>::new(), config.clone(), 1).unwrap();
        let mut file = Vec::new();
        model.write(&mut file, &Extras::default()).unwrap();
        // As a stranger would: a context of 2^20 in place of 64, in a header whose checksum is right.
        let config_at = 12 + 12 + 1;
        assert_eq!(file[config_at], 64);
        let huge = |context: &[u8]| {
            let end = u32::from_le_bytes(file[8..12].try_into().unwrap()) as usize - 4;
            let mut sections = file[12..end].to_vec();
            let length = u32::from_le_bytes(sections[8..12].try_into().unwrap()) + context.len() as u32 - 1;
            sections[8..12].copy_from_slice(&length.to_le_bytes());
            sections.splice(config_at - 12..config_at - 11, context.iter().copied());
            let mut stranger = [&file[..12], &sections].concat();
            support::seal(&mut stranger);
            stranger.extend(&file[(end + 4).next_multiple_of(64)..]);
            stranger
        };
        let stranger = huge(&support::varint(1 << 20));
        let checkpoint = Checkpoint::open_verified(&stranger).unwrap();
        assert_eq!(checkpoint.config().context, 1 << 20);
        let cache = |result: Result<Model<Reference<f32>>, minigpt_core::Error<_>>| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("its cache would be"), "{error}");
        };
        cache(Model::load(Reference::new(), &checkpoint));
        cache(Model::borrow(Reference::new(), &checkpoint));
        let mut header = Vec::new();
        let stream = Stream::open(&stranger[..], &mut header, &Limits::DEFAULT).unwrap();
        let error = Model::load_from(Reference::<f32>::new(), stream).unwrap_err().to_string();
        assert!(error.contains("its cache would be"), "{error}");

        let beyond = Checkpoint::open(&huge(&support::varint((1 << 20) + 1))).unwrap_err();
        assert!(matches!(beyond.fault, Fault::Limit { field: "context", .. }));
        // Who trusts the file loads it.
        let trusted = Checkpoint::open_within(&stranger, &Limits::NONE).unwrap();
        assert!(trusted.parameters().is_ok());
    }
}

#[test]
fn a_stream_of_known_length_cannot_claim_more() {
    let file = small_checkpoint();
    assert_eq!(stream(&file, &Limits::of_length(file.len() as u64)), Ok(()));
    let error = stream(&file, &Limits::of_length(100)).unwrap_err();
    assert!(matches!(error.fault, Fault::Limit { field: "payload", limit: 100, .. }), "{error}");
}
