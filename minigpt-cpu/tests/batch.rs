//! Sequences side by side on the kernels of the CPU: within rounding what each has alone, and bit for bit wherever as many rows
//! are in a pass as the same kernels serve: one or two, three or four, and from five on.
#![cfg(feature = "std")]

use minigpt_core::model::Sequence;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{Batch, Bias, Decoder, GptConfig, Model, Position, SampleConfig, Sampler};
use minigpt_cpu::{Cpu, Isa};

const VOCAB: usize = 61;

fn config() -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 3,
        d_model: 72,
        d_ff: 200,
        position: Position::ROTARY,
        bias: Bias::ALL,
        ..GptConfig::new(VOCAB, 96)
    }
}

fn model(isa: Isa, threads: usize) -> Model<Cpu<'static>> {
    let model = Model::new(Cpu::builder().isa(isa).threads(threads).build().unwrap(), config(), 3).unwrap();
    let mut rng = Rng::new(5, Stream::User);
    let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    for name in names {
        let mut values = model.parameter(&name).unwrap().unwrap();
        values.iter_mut().for_each(|x| *x += 0.05 * rng.normal() as f32);
        model.set_parameter(&name, &values).unwrap();
    }
    model
}

fn tokens(rng: &mut Rng, count: usize) -> Vec<u32> {
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

#[test]
fn ragged_batches_are_near_what_each_sequence_has_alone() {
    for isa in Isa::available() {
        let model = model(isa, 2);
        let mut batch = Batch::new(&model, 7, 64).unwrap();
        let mut rng = Rng::new(1, Stream::User);
        let mut members: Vec<(Sequence, Decoder<Cpu<'_>>)> = Vec::new();
        for step in 0..60 {
            if step % 9 == 8 {
                let (gone, _) = members.swap_remove(rng.below(members.len() as u64) as usize);
                batch.leave(gone).unwrap();
            }
            if let Some(sequence) = batch.join() {
                members.push((sequence, Decoder::new(&model, 96).unwrap()));
            }
            for (sequence, decoder) in &mut members {
                let count = [0, 1, 1, 1, 2, 30, 150][rng.below(7) as usize];
                if count > 0 {
                    let tokens = tokens(&mut rng, count);
                    batch.feed(*sequence, &tokens).unwrap();
                    decoder.feed(&tokens).unwrap();
                }
            }
            while members.iter().any(|(sequence, _)| batch.waiting(*sequence).unwrap() > 0) {
                batch.step().unwrap();
            }
            for (sequence, decoder) in &members {
                let (found, alone) = (batch.logits(*sequence).unwrap(), decoder.logits());
                let largest = alone.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                let error = found.iter().zip(alone).fold(0.0_f32, |most, (x, y)| most.max((x - y).abs()));
                assert!(error <= 1e-5 * largest, "{isa}, step {step}: {error:e} of {largest}");
            }
        }
        model.device().inspect(|cpu| assert_eq!(cpu.fallbacks(), 0));
    }
}

/// The logits of one sequence, a prompt and then token by token, beside `others` that have a token in each step, after
/// `before` sequences that joined ahead of it. Slots that are not taken hold what an earlier sequence left.
fn beside(model: &Model<Cpu<'static>>, others: usize, before: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut batch = Batch::new(model, 9, 96).unwrap();
    let mut rng = Rng::new(seed, Stream::User);
    let left: Vec<Sequence> = (0..9).map(|_| batch.join().unwrap()).collect();
    for sequence in &left {
        batch.feed(*sequence, &tokens(&mut rng, 40)).unwrap();
    }
    batch.step().unwrap();
    left.into_iter().for_each(|sequence| batch.leave(sequence).unwrap());

    let mut joined: Vec<Sequence> = (0..=others).map(|_| batch.join().unwrap()).collect();
    let own = joined.remove(before);
    for sequence in &joined {
        let length = 1 + rng.below(20) as usize;
        batch.feed(*sequence, &tokens(&mut rng, length)).unwrap();
    }
    batch.step().unwrap();
    let mut text = Rng::new(77, Stream::User);
    let mut logits = Vec::new();
    // A prompt of as many tokens as tiles take, and one of fewer: alone in its pass but for single tokens.
    for count in [21, 6, 1, 1, 1, 1, 40, 1, 1, 37, 1, 1] {
        batch.feed(own, &tokens(&mut text, count)).unwrap();
        for sequence in &joined {
            batch.feed(*sequence, &tokens(&mut rng, 1)).unwrap();
        }
        batch.step().unwrap();
        logits.push(batch.logits(own).unwrap().to_vec());
    }
    logits
}

#[test]
fn neighbours_places_and_dead_rows_change_no_bit() {
    for isa in Isa::available() {
        let model = model(isa, 2);
        for class in [0..2, 2..4, 4..9_usize] {
            let expected = beside(&model, class.start, 0, 1);
            for others in class {
                for (before, seed) in [(0, 2), (others / 2, 3), (others, 4)] {
                    let found = beside(&model, others, before, seed);
                    assert!(found == expected, "{isa}: {before} before it of {others} others");
                }
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for isa in Isa::available() {
        let [one, three] = [1, 3].map(|threads| beside(&model(isa, threads), 5, 2, 1));
        assert!(one == three, "{isa}");
    }
}

#[test]
fn the_device_chooses_as_a_sampler_does() {
    for isa in Isa::available() {
        let model = model(isa, 2);
        let settings = |seed| SampleConfig {
            seed,
            temperature: 0.9,
            top_k: (seed % 2 == 0).then_some(20),
            top_p: (seed % 3 == 0).then_some(0.9),
            min_p: (seed % 4 == 0).then_some(0.02),
            repetition_penalty: (seed % 5 == 0).then_some(1.1),
            ..SampleConfig::default()
        };
        for seed in 0..12 {
            let mut batch = Batch::new(&model, 1, 8).unwrap();
            let sequence = batch.join().unwrap();
            batch.feed(sequence, &[1, 2, 3]).unwrap();
            batch.generate(sequence, settings(seed), &[], 120).unwrap();
            let mut text = Vec::new();
            while batch.is_generating() {
                text.extend(batch.step().unwrap().iter().map(|chosen| chosen.token.unwrap()));
            }
            let mut decoder = Decoder::new(&model, 8).unwrap();
            decoder.feed(&[1, 2, 3]).unwrap();
            let mut sampler = Sampler::new(settings(seed), VOCAB).unwrap();
            let expected: Vec<u32> = decoder.generate(&mut sampler).take(120).map(Result::unwrap).collect();
            assert_eq!(text, expected, "{isa}, seed {seed}");
        }
        model.device().inspect(|cpu| assert_eq!(cpu.fallbacks(), 0));
    }
}
