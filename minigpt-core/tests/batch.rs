//! Sequences side by side: each has what it would have alone, whatever its neighbours do, wherever it stands, and whatever
//! dead memory holds.

#[macro_use]
#[path = "support/forwarding.rs"]
mod forwarding;

use std::sync::atomic::{AtomicU32, Ordering};

use minigpt_core::backend::fall_back;
use minigpt_core::model::Sequence;
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::{
    Activation, Backend, Batch, Bias, Buffer, Chosen, Decoder, Device, Dtype, Error, GptConfig, Model,
    NormPlace, Op, OpKind, Position, Real, Reference, ReferenceError, SampleConfig, SampleError, Sampler,
    Span,
};

const VOCAB: usize = 13;
const CONTEXT: usize = 9;

fn configs() -> Vec<GptConfig> {
    let base = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(VOCAB, CONTEXT) };
    vec![
        GptConfig { bias: Bias::ALL, ..base.clone() },
        GptConfig { norm_place: NormPlace::Post, position: Position::ROTARY, ..base.clone() },
        GptConfig {
            norm_place: NormPlace::None,
            residual: false,
            position: Position::Sinusoidal,
            tied_embeddings: false,
            activation: Activation::Relu,
            ..base
        },
    ]
}

/// The reference on memory that holds NaN, and words that name nothing, until it is written. Of the attentions to come it fails
/// at the one of this number, if it is not 0.
#[derive(Default)]
struct Poisoned {
    inner: Reference<f32>,
    failing: AtomicU32,
}

impl Backend for Poisoned {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: release write read copy fill sync);
    fn alloc(&mut self, bytes: usize) -> Result<Buffer, ReferenceError> {
        let buffer = self.inner.alloc(bytes)?;
        let all = Span { buffer, dtype: Dtype::U32, offset: 0, len: bytes / 4 };
        self.inner.write(all, &vec![0xff; all.len * 4])?;
        Ok(buffer)
    }
    fn run(&mut self, op: &Op) -> Result<(), ReferenceError> {
        let failing = self.failing.get_mut();
        if op.kind() == OpKind::AttentionRows && *failing > 0 {
            *failing -= 1;
            if *failing == 0 {
                return Err(ReferenceError::OutOfMemory { bytes: 1 });
            }
        }
        self.inner.run(op)
    }
}

/// A model whose numbers are spread widely enough that every part of it matters.
fn model<B: Backend>(backend: B, config: &GptConfig) -> Model<B> {
    let model = Model::new(backend, config.clone(), 3).unwrap();
    let mut rng = Rng::new(5, Stream::User);
    let names: Vec<String> = model.parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    for name in names {
        let mut values = model.parameter(&name).unwrap().unwrap();
        values.iter_mut().for_each(|x| *x = B::Elem::from_f64(x.to_f64() + 0.4 * rng.normal()));
        model.set_parameter(&name, &values).unwrap();
    }
    model
}

#[test]
fn sequences_that_come_and_go_have_the_bits_that_each_has_alone() {
    for config in configs() {
        for (slots, rows) in [(1, 1), (3, 2), (4, 7), (5, 64)] {
            let alone_on = model(Reference::<f32>::new(), &config);
            let mut batch = Batch::new(&model(Poisoned::default(), &config), slots, rows).unwrap();
            let mut rng = Rng::new(rows as u64, Stream::User);
            let mut members: Vec<(Sequence, Decoder<Reference<f32>>)> = Vec::new();
            let mut compared = 0;
            for _ in 0..120 {
                if rng.below(4) == 0 && !members.is_empty() {
                    let (gone, _) = members.swap_remove(rng.below(members.len() as u64) as usize);
                    batch.leave(gone).unwrap();
                }
                match batch.join() {
                    Some(sequence) => members.push((sequence, Decoder::new(&alone_on, CONTEXT).unwrap())),
                    None => assert_eq!(members.len(), slots),
                }
                for (sequence, decoder) in &mut members {
                    // Some are silent in this step, some have a token, and some more than the context holds.
                    let count = [0, 1, 1, 1, 3, 2 * CONTEXT + 3][rng.below(6) as usize];
                    let tokens: Vec<u32> = (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect();
                    if count > 0 {
                        batch.feed(*sequence, &tokens).unwrap();
                        decoder.feed(&tokens).unwrap();
                    }
                }
                // Often enough for some to get through, and seldom enough for some to be fed before they are.
                for _ in 0..1 + rng.below(12) {
                    assert_eq!(batch.step().unwrap(), []);
                }
                for (sequence, decoder) in &members {
                    if batch.waiting(*sequence).unwrap() == 0 {
                        assert_eq!(batch.logits(*sequence).unwrap(), decoder.logits(), "{config:?}");
                        compared += 1;
                    }
                    assert_eq!(batch.window(*sequence).unwrap(), decoder.window());
                    assert_eq!(batch.recent(*sequence).unwrap(), decoder.recent());
                }
            }
            assert!(compared > 40, "{compared}");
            assert_eq!((batch.len(), batch.is_empty()), (members.len(), members.is_empty()));
        }
    }
}

/// Settings of every kind.
fn settings(seed: u64) -> SampleConfig {
    let plain = SampleConfig { seed, ..SampleConfig::default() };
    match seed % 5 {
        0 => SampleConfig { temperature: 0.0, repetition_penalty: Some(1.3), ..plain },
        1 => SampleConfig { temperature: 0.8, top_k: Some(4), ..plain },
        2 => SampleConfig { top_p: Some(0.8), repetition_penalty: Some(1.5), repetition_window: 5, ..plain },
        3 => SampleConfig { min_p: Some(0.1), repetition_penalty: Some(1.2), repetition_window: 99, ..plain },
        _ => plain,
    }
}

#[test]
fn the_device_chooses_the_tokens_that_a_sampler_chooses() {
    for config in configs() {
        let alone_on = model(Reference::<f64>::new(), &config);
        let mut batch = Batch::new(&model(Reference::<f64>::new(), &config), 4, 6).unwrap();
        let (mut members, mut texts) = (Vec::new(), Vec::new());
        let mut joined = 0;
        while texts.len() < 10 {
            if joined < 10
                && let Some(sequence) = batch.join()
            {
                let prompt: Vec<u32> = (0..=joined * 3 % 11).map(|i| (i * 5 + joined) % 13).collect();
                batch.feed(sequence, &prompt).unwrap();
                batch.generate(sequence, settings(joined.into()), &[], 30).unwrap();
                members.push((sequence, joined, prompt, Vec::new()));
                joined += 1;
            }
            let chosen = batch.step().unwrap().to_vec();
            for chosen in chosen {
                let at = members.iter().position(|member| member.0 == chosen.sequence).unwrap();
                members[at].3.push(chosen.token.unwrap());
                if chosen.ended {
                    let (sequence, seed, prompt, text) = members.swap_remove(at);
                    batch.leave(sequence).unwrap();
                    texts.push((seed, prompt, text));
                }
            }
        }
        assert!(!batch.is_generating() && batch.is_empty());
        for (seed, prompt, text) in texts {
            let mut decoder = Decoder::new(&alone_on, 4).unwrap();
            decoder.feed(&prompt).unwrap();
            let mut sampler = Sampler::new(settings(seed.into()), VOCAB).unwrap();
            let expected: Vec<u32> = decoder.generate(&mut sampler).take(30).map(Result::unwrap).collect();
            assert_eq!(text, expected, "{seed}, {config:?}");
        }
    }
}

/// A sequence by itself: a decoder, and what it is to generate by, with which stops, and how many tokens yet.
struct Alone {
    sequence: Sequence,
    decoder: Decoder<Reference<f32>>,
    generates: Option<(Sampler, Vec<u32>, usize)>,
}

/// One of the things that a program may do with sequences at any time.
fn act(
    rng: &mut Rng,
    batch: &mut Batch<Reference<f32>>,
    members: &mut Vec<Alone>,
    model: &Model<Reference<f32>>,
) {
    let GptConfig { context, vocab_size: vocab, .. } = *model.config();
    let what = rng.below(16);
    if what < 3 {
        let decoder = Decoder::new(model, context).unwrap();
        let joined = batch.join().map(|sequence| Alone { sequence, decoder, generates: None });
        return members.extend(joined);
    }
    if members.is_empty() {
        return;
    }
    let at = rng.below(members.len() as u64) as usize;
    let Alone { sequence, decoder, generates } = &mut members[at];
    match what {
        3 => {
            batch.leave(*sequence).unwrap();
            members.swap_remove(at);
        }
        4..=8 => {
            let count = [1, 1, 2, context, 2 * context + 1, 3 * context + 2][rng.below(6) as usize];
            let tokens: Vec<u32> = (0..count).map(|_| rng.below(vocab as u64) as u32).collect();
            batch.feed(*sequence, &tokens).unwrap();
            decoder.feed(&tokens).unwrap();
        }
        _ => {
            let (config, most) = (settings(rng.below(99)), [0, 1, 3, 40][rng.below(4) as usize]);
            let stop: Vec<u32> = (0..rng.below(2) as u32).collect();
            let result = batch.generate(*sequence, config, &stop, most);
            if decoder.window().is_empty() {
                return assert_eq!(result, Err(Error::EmptyPrompt));
            }
            result.unwrap();
            *generates = (most > 0).then(|| (Sampler::new(config, vocab).unwrap(), stop, most));
        }
    }
}

#[test]
fn whoever_joins_feeds_generates_and_leaves_in_any_order_has_what_a_decoder_and_a_sampler_have() {
    let mut generated = 0;
    for (vocab, context, slots, rows) in
        [(1, 1, 2, 1), (7, 1, 3, 4), (7, 2, 3, 1), (1, 3, 2, 4), (7, 3, 1, 2), (7, 5, 4, 64), (5, 9, 3, 4)]
    {
        let config = GptConfig { vocab_size: vocab, context, ..configs()[0].clone() };
        let [model, alone_on] = [(); 2].map(|()| model(Reference::<f32>::new(), &config));
        let mut batch = Batch::new(&model, slots, rows).unwrap();
        let (mut rng, mut members) = (Rng::new(rows as u64, Stream::User), Vec::new());
        for _ in 0..400 {
            for _ in 0..1 + rng.below(4) {
                act(&mut rng, &mut batch, &mut members, &alone_on);
            }
            let before: Vec<usize> =
                members.iter().map(|alone| batch.waiting(alone.sequence).unwrap()).collect();
            let chosen = batch.step().unwrap().to_vec();
            for (Alone { sequence, decoder, generates }, before) in members.iter_mut().zip(before) {
                let found: Vec<_> = chosen.iter().filter(|chosen| chosen.sequence == *sequence).collect();
                let waiting = batch.waiting(*sequence).unwrap();
                match generates {
                    // A step takes it further, if not through.
                    _ if found.is_empty() && waiting > 0 => {
                        assert!((1..=rows).contains(&(before - waiting)), "{before}, {waiting}");
                    }
                    Some((sampler, stop, left)) => {
                        let token = sampler.sample(decoder.logits(), decoder.recent()).unwrap();
                        decoder.feed(&[token]).unwrap();
                        *left -= 1;
                        let ended = *left == 0 || stop.contains(&token);
                        assert!(found.len() == 1 && found[0].token == Ok(token) && found[0].ended == ended);
                        generated += 1;
                        if ended {
                            *generates = None;
                        }
                    }
                    None => {
                        assert_eq!(found.len(), 0);
                        assert_eq!(batch.logits(*sequence).unwrap(), decoder.logits());
                    }
                }
                assert_eq!(batch.window(*sequence).unwrap(), decoder.window());
                assert_eq!(batch.recent(*sequence).unwrap(), decoder.recent());
            }
            assert_eq!(batch.is_generating(), members.iter().any(|alone| alone.generates.is_some()));
        }
    }
    assert!(generated > 1000, "{generated}");
}

#[test]
fn a_sequence_ends_where_it_is_told_to_and_goes_on_if_it_is_asked() {
    let mut batch = Batch::new(&model(Reference::<f64>::new(), &configs()[0]), 1, 4).unwrap();
    let sequence = batch.join().unwrap();
    batch.feed(sequence, &[1, 2]).unwrap();
    let greedy = SampleConfig::greedy();
    let generated = |batch: &mut Batch<Reference<f64>>, stop: &[u32], most: usize| {
        batch.generate(sequence, greedy, stop, most).unwrap();
        let mut tokens = Vec::new();
        while batch.is_generating() {
            for chosen in batch.step().unwrap() {
                tokens.push(chosen.token.unwrap());
                assert_eq!(chosen.ended, tokens.len() == most || stop.contains(&tokens[tokens.len() - 1]));
            }
        }
        tokens
    };
    let whole = generated(&mut batch, &[], 12);
    assert_eq!(generated(&mut batch, &[], 0), []);
    let mut window = [&[1, 2], &whole[..]].concat();
    assert_eq!(batch.recent(sequence).unwrap(), window.split_off(window.len().saturating_sub(2 * CONTEXT)));

    // The same again, up to the first token of its kind, and from there on; with the logits looked at between.
    batch.leave(sequence).unwrap();
    let sequence = batch.join().unwrap();
    batch.feed(sequence, &[1, 2]).unwrap();
    let stop = whole[5];
    let first = whole.iter().position(|&token| token == stop).unwrap();
    let generated = |batch: &mut Batch<Reference<f64>>, stop: &[u32], most: usize| {
        batch.generate(sequence, greedy, stop, most).unwrap();
        let mut tokens = Vec::new();
        while batch.is_generating() {
            tokens.extend(batch.step().unwrap().iter().map(|chosen| chosen.token.unwrap()));
        }
        tokens
    };
    let begun = generated(&mut batch, &[stop], 12);
    assert_eq!(begun, whole[..=first]);
    assert_eq!(batch.step().unwrap(), []);
    assert!(batch.logits(sequence).unwrap().iter().any(|&logit| logit != 0.0));
    assert_eq!(generated(&mut batch, &[], 11 - first), whole[first + 1..]);
}

#[test]
fn numbers_that_are_broken_end_a_sequence_and_no_other() {
    let good = model(Reference::<f64>::new(), &configs()[0]);
    let mut table = good.parameter("wte.weight").unwrap().unwrap();
    // Whoever sees token 3 is broken; all logits but its own are numbers for the others.
    table[3 * 8] = f64::NAN;
    good.set_parameter("wte.weight", &table).unwrap();
    let mut batch = Batch::new(&good, 2, 8).unwrap();
    let (broken, other) = (batch.join().unwrap(), batch.join().unwrap());
    batch.feed(broken, &[1, 3]).unwrap();
    batch.feed(other, &[1, 2]).unwrap();
    batch.generate(broken, SampleConfig::default(), &[], 5).unwrap();
    let chosen = batch.step().unwrap();
    assert_eq!(chosen.len(), 1);
    assert!(chosen[0].ended && chosen[0].sequence == broken);
    assert!(matches!(chosen[0].token, Err(SampleError::Logit { token: 0, .. })), "{:?}", chosen[0]);
    assert_eq!(batch.waiting(broken).unwrap(), 0);
    assert!(batch.logits(broken).unwrap()[0].is_nan());
    assert!(!batch.is_generating());
    assert!(batch.logits(other).unwrap()[0].is_finite());
}

#[test]
fn who_was_broken_may_try_again_also_if_the_penalty_reaches_back_to_the_oldest_token() {
    let model = model(Reference::<f64>::new(), &configs()[0]);
    let good = model.parameter("wte.weight").unwrap().unwrap();
    let mut bad = good.clone();
    bad[3 * 8] = f64::NAN;
    model.set_parameter("wte.weight", &bad).unwrap();
    let mut batch = Batch::new(&model, 2, CONTEXT).unwrap();
    let (broken, other) = (batch.join().unwrap(), batch.join().unwrap());
    // As many as are kept: there the choice takes the place of the oldest.
    let mut prompt: Vec<u32> = (0..2 * CONTEXT as u32).map(|i| 4 + i % 9).collect();
    prompt[2 * CONTEXT - 1] = 3;
    batch.feed(broken, &prompt).unwrap();
    batch.feed(other, &[1, 2]).unwrap();
    let config =
        SampleConfig { repetition_penalty: Some(1.5), repetition_window: 99, ..SampleConfig::greedy() };
    for _ in 0..2 {
        batch.generate(broken, config, &[], 1).unwrap();
        let chosen = batch.step().unwrap();
        assert!(chosen.len() == 1 && matches!(chosen[0].token, Err(SampleError::Logit { .. })), "{chosen:?}");
        assert_eq!(batch.window(other).unwrap(), [1, 2]);
    }
    // With good weights the last position, which runs again, is as if it had never been broken.
    model.set_parameter("wte.weight", &good).unwrap();
    batch.generate(broken, config, &[], 1).unwrap();
    let chosen = batch.step().unwrap()[0];
    let mut decoder = Decoder::new(&model, CONTEXT).unwrap();
    decoder.feed(&prompt).unwrap();
    assert_eq!(decoder.recent().len(), 2 * CONTEXT);
    let expected = Sampler::new(config, VOCAB).unwrap().sample(decoder.logits(), decoder.recent());
    assert_eq!(chosen.token, expected);
}

/// The reference, which is wrong about the tokens that it chose.
#[derive(Default)]
struct Lying(Reference<f32>);

impl Backend for Lying {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(0: alloc release write copy fill sync run);
    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), ReferenceError> {
        self.0.read(from, bytes)?;
        // Of all words, a batch reads the choices alone.
        if from.dtype == Dtype::U32 {
            bytes.copy_from_slice(&(VOCAB as u32).to_le_bytes());
        }
        Ok(())
    }
}

#[test]
fn a_token_that_is_none_is_not_believed() {
    let model = Model::new(Lying::default(), configs()[0].clone(), 1).unwrap();
    let mut batch = Batch::new(&model, 1, 4).unwrap();
    let sequence = batch.join().unwrap();
    batch.feed(sequence, &[1]).unwrap();
    batch.generate(sequence, SampleConfig::greedy(), &[], 3).unwrap();
    let chosen = batch.step().unwrap();
    assert!(chosen.len() == 1 && chosen[0].token.is_err() && chosen[0].ended, "{chosen:?}");
    assert_eq!(batch.window(sequence).unwrap(), [1]);
}

/// The reference, which counts how often it is read.
#[derive(Default)]
struct Counting {
    inner: Reference<f32>,
    reads: usize,
}

impl Backend for Counting {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write copy fill sync run);
    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), ReferenceError> {
        self.reads += 1;
        self.inner.read(from, bytes)
    }
}

#[test]
fn the_choices_of_a_pass_are_read_at_once() {
    let model = model(Counting::default(), &long_config());
    let mut batch = Batch::new(&model, 5, 8).unwrap();
    generating(&mut batch, 5);
    let reads = || model.device().inspect(|backend| backend.reads);
    for _ in 0..3 {
        let before = reads();
        assert_eq!(batch.step().unwrap().len(), 5);
        assert_eq!(reads() - before, 1);
    }
}

#[test]
fn who_has_left_or_belongs_elsewhere_is_refused() {
    let device = Device::new(Reference::<f32>::new());
    let model = Model::new(&device, configs()[0].clone(), 1).unwrap();
    let [mut batch, mut other] = [(); 2].map(|()| Batch::new(&model, 2, 4).unwrap());
    // On another device buffers may have the same numbers.
    let apart = Model::new(Reference::<f32>::new(), configs()[0].clone(), 1).unwrap();
    let mut apart = Batch::new(&apart, 2, 4).unwrap();
    let (gone, foreign) = (batch.join().unwrap(), other.join().unwrap());
    let elsewhere = apart.join().unwrap();
    batch.leave(gone).unwrap();
    let next = batch.join().unwrap();
    assert_ne!(gone, next);
    assert!(batch.feed(elsewhere, &[1]).is_err() && apart.feed(foreign, &[1]).is_err());
    for stranger in [gone, foreign, elsewhere] {
        assert_eq!(batch.feed(stranger, &[1]), Err(Error::NoSequence));
        assert_eq!(batch.generate(stranger, SampleConfig::greedy(), &[], 1), Err(Error::NoSequence));
        assert_eq!(batch.leave(stranger), Err(Error::NoSequence));
        assert_eq!(batch.logits(stranger), Err(Error::NoSequence));
        assert_eq!(batch.window(stranger), Err(Error::NoSequence));
        assert_eq!(batch.recent(stranger), Err(Error::NoSequence));
        assert_eq!(batch.waiting(stranger), Err(Error::NoSequence));
    }
    assert_eq!(batch.feed(next, &[]), Err(Error::EmptyPrompt));
    assert_eq!(batch.feed(next, &[1, 13]), Err(Error::Token { token: 13, index: 1, vocab: 13 }));
    assert_eq!(batch.generate(next, SampleConfig::greedy(), &[], 1), Err(Error::EmptyPrompt));
    batch.feed(next, &[1]).unwrap();
    let unknown = Error::Token { token: 13, index: 1, vocab: 13 };
    assert_eq!(batch.generate(next, SampleConfig::greedy(), &[0, 13], 1), Err(unknown));
    let hot = SampleConfig { temperature: -1.0, ..SampleConfig::default() };
    assert!(matches!(batch.generate(next, hot, &[], 1), Err(Error::Sample(_))));
    for (slots, rows) in [(0, 1), (1, 0)] {
        assert!(matches!(Batch::new(&model, slots, rows), Err(Error::Config(_))));
    }
    assert!(Batch::new(&model, usize::MAX / 2, 1).is_err());
}

#[test]
fn after_a_failure_of_the_backend_all_sequences_are_as_new() {
    let model = model(Poisoned::default(), &configs()[0]);
    // In the first pass of a step, in its second one, and in the second layer of that.
    for attention in [1, 3, 4] {
        let mut batch = Batch::new(&model, 2, 4).unwrap();
        let (a, b) = (batch.join().unwrap(), batch.join().unwrap());
        batch.feed(a, &[1, 2, 3]).unwrap();
        batch.step().unwrap();
        let expected = batch.logits(a).unwrap().to_vec();
        // A prompt of which some is through, and a sequence that generates.
        batch.feed(a, &[5; 6]).unwrap();
        batch.step().unwrap();
        batch.feed(b, &[4]).unwrap();
        batch.generate(b, SampleConfig::greedy(), &[], 3).unwrap();
        model.device().inspect(|backend| backend.failing.store(attention, Ordering::Relaxed));
        batch.step().unwrap_err();
        model.device().inspect(|backend| assert_eq!(backend.failing.load(Ordering::Relaxed), 0));
        assert!(!batch.is_generating());
        for sequence in [a, b] {
            assert_eq!(batch.window(sequence).unwrap(), []);
            assert_eq!(batch.waiting(sequence), Ok(0));
            batch.feed(sequence, &[1, 2, 3]).unwrap();
        }
        assert_eq!(batch.step().unwrap(), []);
        assert_eq!(batch.logits(a).unwrap(), expected);
        assert_eq!(batch.logits(b).unwrap(), expected);
    }
}

/// A context that a prompt of many pieces fits in, and the neighbours' tokens without a cut.
fn long_config() -> GptConfig {
    GptConfig { context: 64, ..configs()[0].clone() }
}

/// The neighbours of a prompt: all other slots, each with a token in every step from here on.
fn generating<B: Backend>(batch: &mut Batch<B>, count: usize) -> Vec<Sequence> {
    let neighbours: Vec<Sequence> = (0..count).map(|_| batch.join().unwrap()).collect();
    for (i, &neighbour) in neighbours.iter().enumerate() {
        batch.feed(neighbour, &[i as u32]).unwrap();
        batch.generate(neighbour, settings(i as u64), &[], 60).unwrap();
    }
    neighbours
}

fn tokens_of(chosen: &[Chosen], sequence: Sequence) -> Vec<u32> {
    let of_it = chosen.iter().filter(|chosen| chosen.sequence == sequence);
    of_it.map(|chosen| chosen.token.unwrap()).collect()
}

#[test]
fn neighbours_of_a_long_prompt_have_a_token_in_every_step_and_it_has_the_bits_that_it_has_alone() {
    const ROWS: usize = 8;
    let model = model(Reference::<f32>::new(), &long_config());
    let prompt: Vec<u32> = (0..5 * ROWS as u32 + 3).map(|i| i * i % 13).collect();
    let mut alone = Decoder::new(&model, ROWS).unwrap();
    alone.feed(&prompt).unwrap();

    let mut batch = Batch::new(&model, 4, ROWS).unwrap();
    let neighbours = generating(&mut batch, 3);
    batch.step().unwrap();
    let long = batch.join().unwrap();
    batch.feed(long, &prompt).unwrap();
    let mut texts = vec![Vec::new(); 3];
    for step in 1..=6 {
        let chosen = batch.step().unwrap().to_vec();
        for (text, &neighbour) in texts.iter_mut().zip(&neighbours) {
            text.extend(tokens_of(&chosen, neighbour));
            assert_eq!(text.len(), step);
        }
        assert_eq!(batch.waiting(long), Ok(prompt.len().saturating_sub(step * ROWS)));
        let is_through = batch.logits(long).unwrap().iter().any(|&logit| logit != 0.0);
        assert_eq!(is_through, step == 6);
    }
    assert_eq!(batch.logits(long).unwrap(), alone.logits());

    // The neighbours have what they have without it.
    let mut without = Batch::new(&model, 4, ROWS).unwrap();
    let neighbours = generating(&mut without, 3);
    without.step().unwrap();
    let mut expected = vec![Vec::new(); 3];
    for _ in 0..6 {
        let chosen = without.step().unwrap().to_vec();
        expected.iter_mut().zip(&neighbours).for_each(|(text, &own)| text.extend(tokens_of(&chosen, own)));
    }
    assert_eq!(texts, expected);
}

#[test]
fn a_prompt_gets_through_however_many_generate_and_its_first_token_comes_where_it_ends() {
    // Also where fewer tokens go through at once than there are neighbours.
    for rows in [1, 2, 3, 7] {
        let model = model(Reference::<f64>::new(), &long_config());
        let prompt: Vec<u32> = (0..29).map(|i| i * i % 13).collect();
        let mut alone = Decoder::new(&model, rows).unwrap();
        alone.feed(&prompt).unwrap();
        let mut sampler = Sampler::new(settings(2), VOCAB).unwrap();
        let expected: Vec<u32> = alone.generate(&mut sampler).take(9).map(Result::unwrap).collect();

        let mut batch = Batch::new(&model, 4, rows).unwrap();
        let neighbours = generating(&mut batch, 3);
        let long = batch.join().unwrap();
        batch.feed(long, &prompt).unwrap();
        batch.generate(long, settings(2), &[], 9).unwrap();
        let mut text = Vec::new();
        for step in 1..prompt.len().div_ceil(rows) + 9 {
            let chosen = batch.step().unwrap().to_vec();
            text.extend(tokens_of(&chosen, long));
            assert_eq!(text.len(), (step + 1).saturating_sub(prompt.len().div_ceil(rows)));
            for &neighbour in &neighbours {
                assert_eq!(tokens_of(&chosen, neighbour).len(), 1);
            }
        }
        assert_eq!(text, expected, "{rows}");
    }
}

#[test]
fn a_step_takes_each_of_several_prompts_one_piece_further() {
    let model = model(Reference::<f32>::new(), &long_config());
    let mut batch = Batch::new(&model, 3, 8).unwrap();
    let members = [(); 3].map(|()| batch.join().unwrap());
    let waiting = |batch: &Batch<Reference<f32>>| members.map(|member| batch.waiting(member).unwrap());
    for (member, count) in members.into_iter().zip([20, 3, 11]) {
        batch.feed(member, &vec![1; count]).unwrap();
    }
    assert_eq!(waiting(&batch), [20, 3, 11]);
    batch.step().unwrap();
    assert_eq!(waiting(&batch), [12, 0, 3]);
    // As many as go through at once, also where they go in two passes, since a piece ends where it would end alone.
    batch.feed(members[1], &[1; 9]).unwrap();
    batch.step().unwrap();
    assert_eq!(waiting(&batch), [4, 1, 0]);
    batch.step().unwrap();
    assert_eq!(waiting(&batch), [0, 0, 0]);
    // To choose a token, the last one runs again.
    batch.generate(members[0], SampleConfig::greedy(), &[], 2).unwrap();
    assert_eq!(waiting(&batch), [1, 0, 0]);
    assert_eq!(batch.step().unwrap().len(), 1);
    assert_eq!(waiting(&batch), [1, 0, 0]);
}

/// The reference, with a kernel of its own for whole linear layers.
#[derive(Default)]
struct WithKernel {
    inner: Reference<f32>,
    ran: AtomicU32,
}

impl Backend for WithKernel {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), ReferenceError> {
        let Op::LinearForward(_) = op else { return fall_back(self, op) };
        *self.ran.get_mut() += 1;
        self.inner.run(op)
    }
    fn kernels(&self) -> &'static [OpKind] {
        &[OpKind::LinearForward]
    }
}

#[test]
fn live_rows_go_to_the_kernel_for_whole_ops_that_a_backend_lists() {
    let config = &configs()[0];
    let model = model(WithKernel::default(), config);
    let mut decoder = Decoder::new(&model, CONTEXT).unwrap();
    decoder.feed(&[1, 2, 3]).unwrap();
    // Four in each block, and the head.
    model.device().inspect(|backend| assert_eq!(backend.ran.load(Ordering::Relaxed), 2 * 4 + 1));
}

#[test]
fn who_has_ended_leaves_if_it_is_asked_to_and_no_other() {
    let mut batch = Batch::new(&model(Reference::<f32>::new(), &configs()[0]), 3, 8).unwrap();
    let [short, long, silent] = [(); 3].map(|()| batch.join().unwrap());
    for sequence in [short, long, silent] {
        batch.feed(sequence, &[1, 2]).unwrap();
    }
    batch.generate(short, SampleConfig::greedy(), &[], 1).unwrap();
    batch.generate(long, SampleConfig::greedy(), &[], 2).unwrap();
    assert_eq!([short, long, silent].map(|sequence| batch.generates(sequence).unwrap()), [true, true, false]);
    assert_eq!(batch.step().unwrap().len(), 2);
    batch.leave_ended();
    assert_eq!(batch.generates(short), Err(Error::NoSequence));
    // Once is enough, also if the slot has a new owner.
    let next = batch.join().unwrap();
    batch.leave_ended();
    assert_eq!(batch.generates(next), Ok(false));
    assert_eq!(batch.step().unwrap().len(), 1);
    batch.leave_ended();
    assert_eq!(batch.len(), 2);
    assert!(batch.window(silent).is_ok() && batch.window(next).is_ok());
}
