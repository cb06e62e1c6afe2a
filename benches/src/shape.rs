//! [`Shape`]: the models that the benchmarks run.

use minigpt_core::config::TrainConfig;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::train::Trainer;
use minigpt_core::{Backend, Decoder, Error, GptConfig, Model, SampleConfig, Sampler, Windows};

/// A model and the batch that it is trained with.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What the benchmarks call it.
    pub name: &'static str,
    /// The model.
    pub config: GptConfig,
    /// Sequences in a batch (B).
    pub batch: usize,
    /// Tokens in a sequence (T).
    pub time: usize,
}

impl Shape {
    /// Layers, heads, width, context and batch, over a vocabulary.
    pub fn new(
        name: &'static str,
        [layers, heads, d_model, context, batch]: [usize; 5],
        vocab: usize,
    ) -> Self {
        let config =
            GptConfig { layers, heads, d_model, d_ff: 4 * d_model, ..GptConfig::new(vocab, context) };
        Shape { name, config, batch, time: context }
    }

    /// So small that fixed costs show: 2 layers, 4 heads, width 64, context 32, batch 4.
    pub fn tiny() -> Self {
        Shape::new("tiny", [2, 4, 64, 32, 4], 65)
    }

    /// S, the `cpu` preset of the training example: 4 layers, 4 heads, width 128, context 64, batch 12.
    pub fn small() -> Self {
        Shape::new("S", [4, 4, 128, 64, 12], 65)
    }

    /// M: 6 layers, 6 heads, width 384, context 256, batch 8.
    pub fn medium() -> Self {
        Shape::new("M", [6, 6, 384, 256, 8], 65)
    }

    /// M as Llama has its blocks, with as many parameters within a hundredth: three heads of queries share one of keys and
    /// values, and what that saves is in the feed-forward layers.
    pub fn llama_medium() -> Self {
        let Shape { config: GptConfig { layers, heads, d_model, vocab_size, context, .. }, batch, .. } =
            Shape::medium();
        let config = GptConfig {
            layers,
            heads,
            kv_heads: Some(2),
            d_model,
            d_ff: 1184,
            tied_embeddings: true,
            ..GptConfig::llama(vocab_size, context)
        };
        Shape { name: "Llama M", config, batch, time: context }
    }

    /// Shapes in which nothing is a multiple of a vector, each beside the round one next to it.
    pub fn odd_and_round() -> [(Self, Self); 2] {
        [
            // Width 60 in 5 heads of 12.
            (Shape::new("60 wide", [4, 5, 60, 33, 24], 97), Shape::new("64 wide", [4, 4, 64, 32, 24], 96)),
            // As large as S, the same fields odd.
            (Shape::new("odd S", [4, 5, 120, 65, 12], 97), Shape::new("round S", [4, 4, 128, 64, 12], 96)),
        ]
    }

    /// How many rows the linear layers see: batch times tokens.
    pub fn rows(&self) -> usize {
        self.batch * self.time
    }

    /// (d_in, d_out) of each kind of linear layer, with its name.
    pub fn linear_layers(&self) -> [(&'static str, usize, usize); 5] {
        let (c, f, v) = (self.config.d_model, self.config.d_ff, self.config.vocab_size);
        let attended = self.config.d_attention();
        [
            ("qkv", c, self.config.d_qkv()),
            ("proj", attended, c),
            ("up", c, self.config.d_up()),
            ("down", f, c),
            ("head", c, v),
        ]
    }

    /// Random tokens to train on: the speed does not depend on what they say.
    fn text(&self) -> Vec<u32> {
        let mut rng = Rng::new(1, Stream::User);
        (0..64 * self.time + 1).map(|_| rng.below(self.config.vocab_size as u64) as u32).collect()
    }
}

/// A training, ready for its next step.
#[derive(Debug)]
pub struct Training<B: Backend> {
    trainer: Trainer<B>,
    text: Vec<u32>,
    time: usize,
}

impl<B: Backend> Training<B> {
    /// Of a new model of this shape.
    ///
    /// # Errors
    /// If it does not fit into memory.
    pub fn new(shape: &Shape, backend: B) -> Result<Self, Error<B::Error>> {
        Training::with(shape, backend, &TrainConfig::constant(1e-3))
    }

    /// The same, with settings of which the batch and its length are the shape's.
    ///
    /// # Errors
    /// As [`Training::new`].
    pub fn with(shape: &Shape, backend: B, settings: &TrainConfig) -> Result<Self, Error<B::Error>> {
        let model = Model::new(backend, shape.config.clone(), 1)?;
        let (batch, time) = (shape.batch, shape.time);
        let settings = TrainConfig { batch, time, ..settings.clone() };
        Ok(Training { trainer: Trainer::new(&model, settings)?, text: shape.text(), time: shape.time })
    }

    /// One step: windows drawn, forward, backward, clipping, update; waits for it. Gives the loss.
    ///
    /// # Panics
    /// If the backend fails.
    pub fn step(&mut self) -> f64 {
        let windows = Windows::new(&self.text, self.time).expect("the text is longer than a window");
        self.trainer.step(&windows).expect("the windows fit the model");
        self.trainer.metrics().expect("the backend works").loss
    }

    /// Floating-point operations of a step's matrix products.
    pub fn flops(&self) -> f64 {
        self.trainer.plan().training_flops(self.trainer.config().batch) as f64
    }
}

/// One sequence in the making, sampled at temperature 0.8 from the 200 likeliest tokens, from random weights.
#[derive(Debug)]
pub struct Generation<B: Backend> {
    decoder: Decoder<B>,
    sampler: Sampler,
}

impl<B: Backend> Generation<B> {
    /// Of a new model of this shape.
    ///
    /// # Errors
    /// If it does not fit into memory.
    pub fn new(shape: &Shape, backend: B) -> Result<Self, Error<B::Error>> {
        let model = Model::new(backend, shape.config.clone(), 1)?;
        let mut decoder = Decoder::new(&model, shape.config.context)?;
        decoder.feed(&[0])?;
        let settings =
            SampleConfig { temperature: 0.8, top_k: Some(200), seed: 1, ..SampleConfig::default() };
        let sampler = Sampler::new(settings, shape.config.vocab_size).expect("the settings are valid");
        Ok(Generation { decoder, sampler })
    }

    /// Generates so many tokens.
    ///
    /// # Panics
    /// If the backend fails.
    pub fn tokens(&mut self, count: usize) {
        for token in self.decoder.generate(&mut self.sampler).take(count) {
            token.expect("the backend works");
        }
    }
}
