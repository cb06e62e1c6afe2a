//! Generation of one sequence by weight format, each beside a reading of as many bytes as one token takes: all weights
//! once (of an embedding that is not the head only a row) and the cache of keys and values as far as it is filled. The
//! prefill of a prompt takes turns with the product of two square matrices by the `gemm` crate.

use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Backend, Decoder, Dtype, Error, GptConfig, Model, SampleConfig, Sampler, Span};
use minigpt_cpu::{Cpu, CpuError};

use crate::Shape;
use crate::peaks::{SGEMM_SIDE, sgemm};
use crate::rivals::Rival;
use crate::rounds::{Ratio, median, seconds};

type Failure = Error<CpuError>;

/// The weight formats, f32 first.
const FORMATS: [Dtype; 5] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0];

/// A model in one weight format, and a text in the making.
struct Text {
    dtype: Dtype,
    model: Model<Cpu<'static>>,
    decoder: Decoder<Cpu<'static>>,
    sampler: Sampler,
    /// A buffer as large as what a token reads, on a backend of its own.
    as_many: Span,
    prompt: Vec<u32>,
}

impl Text {
    fn new(
        exact: &Model<Cpu<'static>>,
        dtype: Dtype,
        cpu: Cpu<'static>,
        reader: &mut Cpu<'static>,
    ) -> Result<Text, Failure> {
        let model = exact.quantized(cpu, dtype)?;
        let config = model.config().clone();
        let len = bytes_per_token(&model).div_ceil(4);
        let buffer = reader.alloc(len * 4).map_err(Error::Backend)?;
        let as_many = Span { buffer, dtype: Dtype::F32, offset: 0, len };
        reader.fill(as_many, 1.0).map_err(Error::Backend)?;
        let decoder = Decoder::new(&model, config.context)?;
        let settings =
            SampleConfig { temperature: 0.8, top_k: Some(200), seed: 1, ..SampleConfig::default() };
        let sampler = Sampler::new(settings, config.vocab_size)?;
        let mut rng = Rng::new(1, Stream::User);
        let prompt = (0..config.context).map(|_| rng.below(config.vocab_size as u64) as u32).collect();
        Ok(Text { dtype, model, decoder, sampler, as_many, prompt })
    }

    /// Seconds for one token, on average over the second quarter to the last of the context.
    fn token(&mut self) -> Result<f64, Failure> {
        let (from, count) = generated(self.model.config());
        self.decoder.reset();
        self.decoder.feed(&self.prompt[..from])?;
        // The first one has its logits already.
        let mut text = self.decoder.generate(&mut self.sampler);
        text.next().transpose()?;
        let mut result = Ok(());
        let time = seconds(|| result = text.take(count).try_for_each(|token| token.map(|_| ())));
        result.map(|()| time / count as f64)
    }

    /// Seconds for reading what a token reads.
    fn reading(&self, reader: &mut Cpu<'static>) -> Result<f64, Failure> {
        let mut result = Ok(0.0);
        let time = seconds(|| result = reader.read_through(self.as_many));
        result.map(|_| time).map_err(Error::Backend)
    }

    /// Seconds for a prompt of a whole context in one pass.
    fn prefill(&mut self) -> Result<f64, Failure> {
        self.decoder.reset();
        let mut result = Ok(());
        let time = seconds(|| result = self.decoder.feed(&self.prompt));
        result.map(|()| time)
    }
}

/// After how many tokens the clock starts, and how many are timed: the cache is never full.
fn generated(config: &GptConfig) -> (usize, usize) {
    (config.context / 4, config.context - config.context / 4 - 1)
}

/// What a token has to read: the weights, and the keys and values of a cache as long as it is on average.
fn bytes_per_token(model: &Model<Cpu<'static>>) -> usize {
    let config = model.config();
    let weights = model.parameters().map(|(tensor, dtype)| {
        let bytes = dtype.bytes(tensor.rows * dtype.padded(tensor.cols)).unwrap_or(0);
        let looked_up = tensor.name == "wpe.weight" || tensor.name == "wte.weight" && !config.tied_embeddings;
        if looked_up { bytes / tensor.rows } else { bytes }
    });
    let (from, count) = generated(config);
    // A token sees itself too.
    let seen = from + 1 + count / 2;
    weights.sum::<usize>() + 2 * config.layers * config.kv_heads() * config.d_head() * 4 * seen
}

/// Floating-point operations of a prompt of a whole context: matrix products and the causal half of attention, and the
/// head for the last position.
fn prefill_flops(config: &GptConfig) -> f64 {
    let [l, c, f, v, t] =
        [config.layers, config.d_model, config.d_ff, config.vocab_size, config.context].map(|n| n as f64);
    let [qkv, attended, up] = [config.d_qkv(), config.d_attention(), config.d_up()].map(|n| n as f64);
    let weights = c * (qkv + attended + up) + c * f;
    2.0 * t * l * weights + 2.0 * l * attended * t * (t + 1.0) + 2.0 * v * c
}

/// How a model generates in one weight format. Ratios are of rounds.
#[derive(Debug, Clone)]
pub struct Decoding {
    /// The format.
    pub dtype: Dtype,
    /// Bytes that a token reads.
    pub bytes: f64,
    /// Seconds for a token.
    pub token: f64,
    /// Its share of the bandwidth of reading as many bytes.
    pub of_bandwidth: Ratio,
    /// Tokens per second over those of f32.
    pub over_f32: Ratio,
    /// Seconds for a prompt of a whole context.
    pub prefill: f64,
    /// The prefill's GFLOP/s in each round.
    pub prefill_gflops: Vec<f64>,
    /// The prefill's share of the rate of SGEMM by the `gemm` crate.
    pub of_sgemm: Ratio,
    /// How many ops ran on the reference.
    pub fallbacks: u64,
}

/// Every format in turns, and GFLOP/s of SGEMM in the same rounds.
///
/// # Errors
/// If the models do not fit into memory.
pub fn measure(shape: &Shape, threads: usize, rounds: usize) -> Result<(Vec<Decoding>, f64), Failure> {
    let cpu = || Cpu::builder().threads(threads).build().map_err(Error::Backend);
    let exact = Model::new(cpu()?, shape.config.clone(), 1)?;
    let mut reader = cpu()?;
    let mut texts = FORMATS
        .into_iter()
        .map(|dtype| Text::new(&exact, dtype, cpu()?, &mut reader))
        .collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![Vec::new(); FORMATS.len()];
    let mut readings = times.clone();
    let mut prefills = times.clone();
    let mut products = Vec::new();
    for round in 0..=rounds {
        // The first round is not counted.
        let keep = |times: &mut Vec<f64>, time| times.extend((round > 0).then_some(time));
        for (i, text) in texts.iter_mut().enumerate() {
            keep(&mut readings[i], text.reading(&mut reader)?);
            keep(&mut times[i], text.token()?);
            keep(&mut prefills[i], text.prefill()?);
        }
        keep(&mut products, sgemm(Rival::Gemm(threads), SGEMM_SIDE, 1));
    }
    let decodings = texts.iter().enumerate().map(|(i, text)| {
        let flops = prefill_flops(text.model.config());
        let prefill_gflops: Vec<f64> = prefills[i].iter().map(|time| flops / time / 1e9).collect();
        Decoding {
            dtype: text.dtype,
            bytes: (text.as_many.len * 4) as f64,
            token: median(&times[i]),
            of_bandwidth: Ratio::of(&readings[i], &times[i]),
            over_f32: Ratio::of(&times[0], &times[i]),
            prefill: median(&prefills[i]),
            of_sgemm: Ratio::of(&prefill_gflops, &products),
            prefill_gflops,
            fallbacks: text.model.device().inspect(Cpu::fallbacks),
        }
    });
    Ok((decodings.collect(), median(&products)))
}
