//! Checkpoints that come in piece by piece: the same model, and the same damage found.

#[path = "support/models.rs"]
#[expect(dead_code, reason = "shared with the golden files")]
mod models;
#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "shared with the tests of the format")]
mod support;

use std::fmt::Debug;

use minigpt_core::checkpoint::{Fault, Limits, LoadError, Read, Stream, StreamError};
use minigpt_core::model::Extras;
use minigpt_core::rng::{Rng, Stream as Draws};
use minigpt_core::{
    Backend, Checkpoint, Dtype, Error, GptConfig, Model, Reference, TrainConfig, Trainer, Windows,
};

type Single = Reference<f32>;

/// Brings a random number of bytes at a time.
struct Dribble<'a> {
    bytes: &'a [u8],
    rng: Rng,
}

impl Read for Dribble<'_> {
    type Error = &'static str;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, &'static str> {
        let count = (1 + self.rng.below(70) as usize).min(bytes.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(count);
        bytes[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

fn dribble(bytes: &[u8]) -> Dribble<'_> {
    Dribble { bytes, rng: Rng::new(bytes.len() as u64, Draws::User) }
}

fn logits<B: Backend>(model: Model<B>) -> Vec<B::Elem> {
    models::logits(&model)
}

#[test]
fn a_streamed_model_computes_what_a_loaded_one_does_in_every_config_and_format() {
    for config in models::configs().into_iter().chain(models::wide_configs()) {
        for format in models::FORMATS {
            let file = models::checkpoint_of(&config, format, None, &[]);
            let loaded = Model::load(Single::new(), &Checkpoint::open(&file).unwrap()).unwrap();
            let mut header = Vec::new();
            let stream = Stream::open(dribble(&file), &mut header, &Limits::DEFAULT).unwrap();
            assert_eq!(stream.config(), &config);
            let streamed = Model::load_from(Single::new(), stream).unwrap();
            for ((parameter, dtype), spec) in streamed.parameters().zip(models::specs(&config, format)) {
                // The reference has f32, so f64 is the only type that it cannot keep.
                let kept = if spec.dtype == Dtype::F64 { Dtype::F32 } else { spec.dtype };
                assert_eq!(dtype, kept, "{}", parameter.name);
            }
            assert_eq!(logits(streamed), logits(loaded), "{format:?}, {config:?}");
        }
    }
}

#[test]
fn a_row_longer_than_a_chunk_is_put_together() {
    // The second matrix of the feed-forward layer has rows of 80,001 numbers: 640 kB of f64, 45 kB of Q4_0.
    let config = GptConfig { layers: 1, heads: 1, d_model: 2, d_ff: 80_001, ..GptConfig::new(7, 6) };
    for format in [Dtype::F64, Dtype::Q4_0] {
        let file = models::checkpoint_of(&config, format, None, &[]);
        let loaded = Model::load(Single::new(), &Checkpoint::open(&file).unwrap()).unwrap();
        let mut header = Vec::new();
        let stream = Stream::open(&file[..], &mut header, &Limits::DEFAULT).unwrap();
        assert_eq!(logits(Model::load_from(Single::new(), stream).unwrap()), logits(loaded));
    }
}

#[test]
fn a_model_streamed_in_the_backends_numbers_can_be_trained_and_another_not() {
    for (format, trainable) in [(Dtype::F32, true), (Dtype::Bf16, false)] {
        let file = models::checkpoint_of(&models::base(), format, None, &[]);
        let mut header = Vec::new();
        let stream = Stream::open(&file[..], &mut header, &Limits::DEFAULT).unwrap();
        let model = Model::load_from(Single::new(), stream).unwrap();
        match Trainer::new(&model, TrainConfig { time: 6, ..TrainConfig::constant(1e-3) }) {
            Ok(_) => assert!(trainable),
            Err(error) => assert_eq!((trainable, error), (false, Error::Frozen)),
        }
    }
}

#[test]
fn a_run_resumed_from_a_stream_goes_on_bit_for_bit() {
    let text: Vec<u32> = (0..200).map(|i| i * i % 7).collect();
    let windows = Windows::new(&text, 6).unwrap();
    let config = GptConfig { dropout: 0.2, ..models::base() };
    let settings = TrainConfig { batch: 2, time: 6, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&Model::new(Single::new(), config, 1).unwrap(), settings).unwrap();
    (0..3).for_each(|_| trainer.step(&windows).unwrap());
    let mut half_way = Vec::new();
    trainer.write(&mut half_way, &Extras::default()).unwrap();

    let mut header = Vec::new();
    let stream = Stream::open(dribble(&half_way), &mut header, &Limits::DEFAULT).unwrap();
    let mut resumed = Trainer::resume_from(Single::new(), stream).unwrap();
    let ends = [&mut trainer, &mut resumed].map(|trainer| {
        (0..3).for_each(|_| trainer.step(&windows).unwrap());
        let mut end = Vec::new();
        trainer.write(&mut end, &Extras::default()).unwrap();
        end
    });
    assert!(ends[0] == ends[1]);

    // A model alone is no run, and a run is also a model.
    let inference = models::checkpoint_of(&models::base(), Dtype::F32, None, &[]);
    let stream = Stream::open(&inference[..], &mut header, &Limits::DEFAULT).unwrap();
    let refused = Trainer::resume_from(Single::new(), stream).unwrap_err();
    assert_eq!(refused, StreamError::Load(Error::NoTraining));
    let stream = Stream::open(&half_way[..], &mut header, &Limits::DEFAULT).unwrap();
    assert!(Model::load_from(Single::new(), stream).is_ok());
}

/// Opens the stream and reads all of it.
fn read<R: Read<Error: Debug>>(input: R) -> Result<(), StreamError<R::Error, LoadError>> {
    let mut header = Vec::new();
    let stream = Stream::open(input, &mut header, &Limits::DEFAULT)?;
    match Model::load_from(Single::new(), stream) {
        Ok(_) => Ok(()),
        Err(StreamError::Load(Error::Load(error))) => Err(StreamError::Load(error)),
        Err(StreamError::Read { offset, error }) => Err(StreamError::Read { offset, error }),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn every_flipped_bit_of_a_stream_is_found() {
    let mut file = support::small_checkpoint();
    for i in 0..file.len() {
        for bit in 0..8 {
            file[i] ^= 1 << bit;
            assert!(read(&file[..]).is_err(), "bit {bit} of byte {i}");
            file[i] ^= 1 << bit;
        }
    }
    assert_eq!(read(&file[..]), Ok(()));
}

#[test]
fn every_truncation_of_a_stream_and_anything_behind_it_is_found() {
    let mut file = support::small_checkpoint();
    for length in 0..file.len() {
        match read(dribble(&file[..length])) {
            Err(StreamError::Load(LoadError { offset, fault: Fault::Truncated { needed, found } })) => {
                assert_eq!((offset, found), (length as u64, length as u64));
                assert!(needed > found && needed <= file.len() as u64);
            }
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    let offset = file.len() as u64;
    file.push(0);
    let fault = Fault::Trailing { bytes: 1 };
    assert_eq!(read(&file[..]), Err(StreamError::Load(LoadError { offset, fault })));
}

#[test]
fn a_stream_finds_damage_at_the_byte_where_memory_does() {
    let file = support::small_checkpoint();
    for i in 0..file.len() {
        let mut damaged = file.clone();
        damaged[i] ^= 0x10;
        let in_memory = Checkpoint::open_verified(&damaged).unwrap_err();
        assert_eq!(read(&damaged[..]), Err(StreamError::Load(in_memory)), "byte {i}");
    }
}

/// Fails when `room` bytes have been read.
struct Breaks<'a> {
    bytes: &'a [u8],
    room: usize,
}

impl Read for Breaks<'_> {
    type Error = &'static str;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, &'static str> {
        if self.room == 0 {
            return Err("card removed");
        }
        let count = bytes.len().min(self.room);
        self.room -= count;
        Ok(self.bytes.read(&mut bytes[..count]).unwrap())
    }
}

#[test]
fn a_reader_that_fails_at_any_byte_gives_its_error_and_the_place() {
    let bytes = &support::small_checkpoint()[..];
    for room in 0..=bytes.len() {
        let expected = StreamError::Read { offset: room as u64, error: "card removed" };
        assert_eq!(read(Breaks { bytes, room }), Err(expected));
    }
    assert_eq!(read(Breaks { bytes, room: bytes.len() + 1 }), Ok(()));
}

/// Says that it filled more than it was given.
struct Boaster;

impl Read for Boaster {
    type Error = ();

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ()> {
        Ok(bytes.len() + 1)
    }
}

#[test]
fn a_reader_that_counts_too_many_bytes_breaks_nothing() {
    assert!(matches!(read(Boaster), Err(StreamError::Load(LoadError { offset: 0, fault: Fault::Magic }))));
}
