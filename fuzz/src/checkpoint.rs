//! Any bytes make a model that runs, or an error.

use minigpt_core::checkpoint::{Limits, LoadError, Role, Stream};
use minigpt_core::{
    Backend, Checkpoint, Decoder, Error, GptConfig, Model, Reference, ReferenceError, SampleConfig, Sampler,
    Trainer,
};

/// What a tiny machine opens.
const LIMITS: Limits = Limits { vocab_size: 256, context: 32, batch: 64, ..Limits::DEFAULT };

/// The bytes of a file.
pub fn checkpoint_load(data: &[u8]) {
    let checkpoint = match Checkpoint::open(data) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(error.offset <= data.len() as u64, "{error}");
            return;
        }
    };
    let whole = checkpoint.verify();
    assert!(checkpoint.config().validate().is_ok());
    let mut header = Vec::new();
    let stream = Stream::open(data, &mut header, &LIMITS);
    match &stream {
        Ok(stream) => assert_eq!(stream.config(), checkpoint.config()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for tensor in checkpoint.tensors() {
        assert_eq!(tensor.offset % 64, 0);
        assert_eq!(tensor.bytes, &data[tensor.offset..tensor.offset + tensor.bytes.len()]);
        assert_eq!(checkpoint.tensor(tensor.name), Some(tensor));
    }
    if !is_tiny(checkpoint.config()) {
        let _ = checkpoint.parameters();
        let _ = checkpoint.states();
        return;
    }
    // Running a model takes ten times as long as loading it, and strangers' bytes matter to the latter.
    let runs = crc32fast::hash(data).is_multiple_of(16);
    load(&checkpoint, &whole, stream.ok(), runs);
    if checkpoint.training().is_some() {
        resume(&checkpoint, data, &whole, runs);
    } else if checkpoint.tensors().any(|tensor| tensor.role == Role::Training) {
        let _ = checkpoint.states();
    }
}

/// Whether a model is loaded, and not only its header.
fn is_tiny(config: &GptConfig) -> bool {
    let GptConfig { vocab_size, context, layers, d_model, d_ff, .. } = *config;
    layers <= 4 && d_model <= 16 && config.d_qkv() <= 96 && context <= 32 && d_ff <= 64 && vocab_size <= 256
}

fn load(
    checkpoint: &Checkpoint<'_>,
    whole: &Result<(), LoadError>,
    stream: Option<Stream<'_, &[u8]>>,
    runs: bool,
) {
    let borrowed = Model::borrow(Reference::<f32>::new(), checkpoint);
    let loaded = Model::load(Reference::<f32>::new(), checkpoint);
    let streamed = stream.map(|stream| Model::load_from(Reference::<f32>::new(), stream));
    if let Some(streamed) = &streamed {
        assert_eq!(streamed.is_ok(), loaded.is_ok(), "{:?}", streamed.as_ref().err());
    }
    match loaded {
        Ok(model) => {
            assert_eq!(whole, &Ok(()));
            if !runs {
                return;
            }
            let logits = run(&model);
            if let Ok(model) = borrowed {
                assert_eq!(run(&model), logits, "borrowed weights compute what copied ones do");
            }
            if let Some(Ok(model)) = streamed {
                assert_eq!(run(&model), logits, "streamed weights compute what copied ones do");
            }
        }
        Err(Error::Load(error)) => {
            assert!(!error.to_string().is_empty());
            assert!(whole.is_ok() || whole == &Err(error), "damage is found first");
        }
        Err(error) => panic!("a tiny model is refused: {error}"),
    }
}

fn resume(checkpoint: &Checkpoint<'_>, data: &[u8], whole: &Result<(), LoadError>, runs: bool) {
    let Some(training) = checkpoint.training() else { return };
    let (batch, time) = (training.config.batch, training.config.time);
    if batch.saturating_mul(time) > LIMITS.batch as usize {
        return;
    }
    match Trainer::resume(Reference::<f32>::new(), checkpoint) {
        Ok(mut trainer) => {
            assert_eq!(whole, &Ok(()));
            assert_eq!(trainer.state().as_ref(), Ok(&training.state));
            if runs {
                let mut header = Vec::new();
                let stream = Stream::open(data, &mut header, &LIMITS).expect("it is within the limits");
                let streamed = Trainer::resume_from(Reference::<f32>::new(), stream);
                assert_eq!(streamed.expect("it is whole").state().as_ref(), Ok(&training.state));
                let vocab_size = checkpoint.config().vocab_size;
                let tokens: Vec<u32> = (0..batch * time).map(|i| (i % vocab_size) as u32).collect();
                let GptConfig { prefix, d_model, .. } = *checkpoint.config();
                trainer
                    .set_prefix(&vec![0.5; batch * prefix * d_model])
                    .expect("they are as many as the model has");
                trainer.micro_step(&tokens, &tokens).expect("the tokens are the model's");
                match trainer.finish_step() {
                    Ok(()) | Err(Error::LearningRate { .. }) => {}
                    Err(error) => panic!("memory was there: {error}"),
                }
                trainer.metrics().expect("the reference always answers");
            }
        }
        Err(Error::Load(_) | Error::Setting { .. } | Error::Config(_) | Error::NothingToTrain) => {}
        Err(error) => panic!("a tiny run is refused: {error}"),
    }
}

/// Feeds and generates past the context, and returns the last logits as bits: NaN is equal to NaN.
fn run<B>(model: &Model<B>) -> Vec<u32>
where
    B: Backend<Elem = f32, Error = ReferenceError>,
{
    let GptConfig { vocab_size, context, prefix, d_model, .. } = *model.config();
    let prompt: Vec<u32> = (0..=context).map(|place| (place * 7 % vocab_size) as u32).collect();
    let mut decoder = Decoder::new(model, context).expect("the model is tiny");
    if prefix > 0 {
        decoder.begin_with(&vec![0.5; prefix * d_model]).expect("they are as many as the model has");
    }
    decoder.feed(&prompt).expect("the prompt is in the vocabulary");
    let mut sampler = Sampler::new(SampleConfig::greedy(), vocab_size).expect("the vocabulary is not empty");
    for token in decoder.generate(&mut sampler).take(2) {
        match token {
            Ok(token) => assert!((token as usize) < vocab_size),
            // Weights may be NaN or infinite.
            Err(Error::Sample(error)) => assert!(!error.to_string().is_empty()),
            Err(error) => panic!("a tiny model does not run: {error}"),
        }
    }
    let bits = |logit: &f32| if logit.is_nan() { u32::MAX } else { logit.to_bits() };
    decoder.logits().iter().map(bits).collect()
}
