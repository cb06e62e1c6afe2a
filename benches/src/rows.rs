//! Decoding by rows: what it costs that a pass has room for more rows than are live, and what sequences gain side by side.

use minigpt_core::model::Sequence;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Batch, Decoder, Error, Model, SampleConfig, Sampler};
use minigpt_cpu::{Cpu, CpuError};

use crate::Shape;
use crate::rounds::{Ratio, seconds, seconds_each};

type Failure = Error<CpuError>;
type OnCpu = Cpu<'static>;

/// A number of tokens, and how many times as fast one way is as another.
pub type Line = (usize, Ratio);

fn model(shape: &Shape, threads: usize) -> Result<Model<OnCpu>, Failure> {
    Model::new(Cpu::builder().threads(threads).build().map_err(Error::Backend)?, shape.config.clone(), 1)
}

fn tokens(shape: &Shape, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(count as u64, Stream::User);
    (0..count).map(|_| rng.below(shape.config.vocab_size as u64) as u32).collect()
}

/// Prompts of several lengths, by a decoder with room for the whole context at once, and by one that was made for just as many
/// tokens: how many times as fast the first is.
///
/// # Errors
/// If the models do not fit into memory.
pub fn prompts(shape: &Shape, threads: usize, rounds: usize) -> Result<Vec<Line>, Failure> {
    let (model, context) = (model(shape, threads)?, shape.config.context);
    let mut whole = Decoder::new(&model, context)?;
    let mut lengths = vec![1, 5, 17, 100.min(context), context];
    lengths.dedup();
    let mut lines = Vec::new();
    for length in lengths {
        let prompt = tokens(shape, length);
        let mut fitting = Decoder::new(&model, length)?;
        // Short ones some times over, so that the clock's grain does not show.
        let times = (context / length).clamp(1, 40);
        let mut each = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (decoder, all) in [&mut fitting, &mut whole].into_iter().zip(&mut each) {
                let mut result = Ok(());
                let time = seconds_each(times, || {
                    decoder.reset();
                    result = decoder.feed(&prompt);
                });
                result?;
                // The first round is not counted.
                all.extend((round > 0).then_some(time));
            }
        }
        lines.push((length, Ratio::of(&each[0], &each[1])));
    }
    Ok(lines)
}

/// So many tokens of each of `count` sequences that generate in a batch of 64 slots.
fn generate(batch: &mut Batch<OnCpu>, count: usize, length: usize) -> Result<(), Failure> {
    let sequences: Vec<Sequence> = (0..count).filter_map(|_| batch.join()).collect();
    for (seed, &sequence) in sequences.iter().enumerate() {
        batch.feed(sequence, &[0])?;
        let settings = SampleConfig { temperature: 0.8, seed: seed as u64, ..SampleConfig::default() };
        batch.generate(sequence, settings, &[], length)?;
    }
    while batch.is_generating() {
        batch.step()?;
    }
    sequences.into_iter().try_for_each(|sequence| batch.leave(sequence))
}

/// Sequences that generate side by side in 64 slots, for several numbers of them: how many times as many tokens a second they
/// have together as a decoder of one has.
///
/// # Errors
/// If the models do not fit into memory.
pub fn side_by_side(shape: &Shape, threads: usize, rounds: usize) -> Result<Vec<Line>, Failure> {
    const SLOTS: usize = 64;
    let (model, length) = (model(shape, threads)?, shape.config.context - 1);
    let mut decoder = Decoder::new(&model, 1)?;
    let settings = SampleConfig { temperature: 0.8, ..SampleConfig::default() };
    let mut sampler = Sampler::new(settings, shape.config.vocab_size)?;
    let mut batch = Batch::new(&model, SLOTS, SLOTS)?;
    let mut lines = Vec::new();
    for count in [1, 2, 4, 8, 16, SLOTS] {
        let mut each = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            let mut result = Ok(());
            let alone = seconds(|| {
                decoder.reset();
                result = decoder.feed(&[0]).and_then(|()| {
                    decoder.generate(&mut sampler).take(length).try_for_each(|token| token.map(|_| ()))
                });
            });
            result?;
            let mut result = Ok(());
            let together = seconds(|| result = generate(&mut batch, count, length));
            result?;
            if round > 0 {
                each[0].push(alone * count as f64);
                each[1].push(together);
            }
        }
        lines.push((count, Ratio::of(&each[0], &each[1])));
    }
    Ok(lines)
}
