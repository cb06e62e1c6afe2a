//! What a program that embeds minigpt relies on: what may move between threads, and what errors tell.

#![cfg(feature = "std")]

use std::error::Error as _;

use minigpt_core::checkpoint::{
    Fault, FileError, Limits, LoadError, LoadFileError, SaveError, Stream, StreamError,
};
use minigpt_core::{
    AnyTokenizer, Checkpoint, ConfigError, Decoder, Error, GptConfig, Model, Plan, Reference, ReferenceError,
    Sampler, StreamDecoder, TokenizerError, Trainer, Windows,
};

type Single = Reference<f32>;

#[test]
fn all_that_a_program_keeps_may_be_sent_to_and_shared_with_other_threads() {
    fn both<T: Send + Sync>() {}
    both::<Single>();
    both::<Model<Single>>();
    both::<Decoder<Single>>();
    both::<Trainer<Single>>();
    both::<Sampler>();
    both::<Windows<'_>>();
    both::<Plan>();
    both::<GptConfig>();
    both::<AnyTokenizer>();
    both::<StreamDecoder>();
    both::<Checkpoint<'_>>();
    both::<Stream<'_, &[u8]>>();
    both::<Limits>();
}

#[test]
fn every_error_is_one_that_another_thread_can_report() {
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<ConfigError>();
    error::<TokenizerError>();
    error::<LoadError>();
    error::<ReferenceError>();
    error::<Error<ReferenceError>>();
    error::<SaveError<Error<ReferenceError>, std::io::Error>>();
    error::<StreamError<std::io::Error>>();
    error::<StreamError<std::io::Error, Error<ReferenceError>>>();
    error::<FileError>();
    error::<LoadFileError>();
}

#[test]
fn errors_lead_to_their_cause() {
    let config = ConfigError::Zero { field: "heads" };
    let load = LoadError { offset: 24, fault: Fault::Config(config) };
    let stream: StreamError<std::io::Error, Error<ReferenceError>> =
        StreamError::Load(Error::Load(load.clone()));
    let mut chain = Vec::new();
    let mut next = stream.source();
    while let Some(error) = next {
        chain.push(error.to_string());
        next = error.source();
    }
    assert_eq!(chain, [load.to_string(), load.to_string(), config.to_string()]);

    let tokenizer = LoadError { offset: 0, fault: Fault::Tokenizer(TokenizerError::EmptyVocabulary) };
    assert!(tokenizer.source().unwrap().is::<TokenizerError>());
    assert!(LoadError { offset: 0, fault: Fault::Magic }.source().is_none());
    let device = || std::io::Error::other("the card was removed");
    let read: StreamError<std::io::Error> = StreamError::Read { offset: 3, error: device() };
    assert!(read.source().unwrap().is::<std::io::Error>());
    let saved: SaveError<ReferenceError, std::io::Error> = SaveError::Write(device());
    assert!(saved.source().unwrap().is::<std::io::Error>());
    let unread: SaveError<ReferenceError, std::io::Error> =
        SaveError::Read { tensor: "w".into(), error: ReferenceError::OutOfMemory { bytes: 1 } };
    assert!(unread.source().unwrap().is::<ReferenceError>());
    assert!(SaveError::<ReferenceError, std::io::Error>::OutOfMemory { bytes: 1 }.source().is_none());
}
