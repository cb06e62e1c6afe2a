//! Given vectors in the place of the first tokens: what they give, the gradient back to them, training and decoding with them.

#[path = "support/small.rs"]
mod small;

use core::convert::Infallible;

use minigpt_core::model::Extras;
use minigpt_core::op::IGNORE;
use minigpt_core::probe::{Recording, TensorKind};
use minigpt_core::rng::{Rng, Stream};
use minigpt_core::train::PieceLoss;
use minigpt_core::{
    Batch, Bias, Checkpoint, ConfigError, Decoder, Dtype, Error, EvalWindows, GptConfig, Mask, Model, Norm,
    Position, Recompute, Reference, SampleConfig, TrainConfig, Trainer,
};
use small::Small;

const PREFIX: usize = 3;
const TEXT: usize = 5;
const BATCH: usize = 2;
const VOCAB: usize = 11;

fn config(mask: Mask, position: Position) -> GptConfig {
    GptConfig {
        layers: 2,
        heads: 2,
        d_model: 8,
        d_ff: 12,
        prefix: PREFIX,
        mask,
        position,
        bias: Bias::ALL,
        ..GptConfig::new(VOCAB, PREFIX + TEXT)
    }
}

const MASKS: [Mask; 3] = [Mask::Causal, Mask::Prefix, Mask::None];
const POSITIONS: [Position; 4] = [Position::Learned, Position::Sinusoidal, Position::ROTARY, Position::None];

fn normals(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..count).map(|_| rng.normal()).collect()
}

fn tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed, Stream::User);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

/// With weights wide enough for every position to matter.
fn model(config: GptConfig) -> Model<Reference<f64>> {
    let model = Model::new(Reference::new(), config, 7).unwrap();
    widen(&model);
    model
}

fn widen<B: minigpt_core::Backend<Elem = f64>>(model: &Model<B>) {
    let names: Vec<(String, usize)> =
        model.parameters().map(|(t, _)| (t.name.clone(), t.region.len)).collect();
    for (seed, (name, len)) in names.into_iter().enumerate() {
        let centre = if name.contains("ln_") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let values: Vec<f64> = normals(seed as u64, len).iter().map(|x| centre + 0.4 * x).collect();
        assert!(model.set_parameter(&name, &values).unwrap());
    }
}

fn assert_near(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{i}: {a} {b}");
    }
}

#[test]
fn vectors_of_tokens_stand_for_these_tokens() {
    for position in POSITIONS {
        let with = config(Mask::Causal, position);
        let without = GptConfig { prefix: 0, ..with.clone() };
        let (with, without) = (model(with), model(without));
        let table = without.parameter("wte.weight").unwrap().unwrap();
        let all = tokens(1, BATCH * (PREFIX + TEXT));
        let mut vectors = Vec::new();
        let mut text = Vec::new();
        for sequence in all.chunks(PREFIX + TEXT) {
            for &token in &sequence[..PREFIX] {
                vectors.extend(&table[token as usize * 8..][..8]);
            }
            text.extend(&sequence[PREFIX..]);
        }
        let found = with.logits_with(&vectors, &text, BATCH, TEXT).unwrap();
        let whole = without.logits(&all, BATCH, PREFIX + TEXT).unwrap();
        let expected: Vec<f64> = whole
            .chunks((PREFIX + TEXT) * VOCAB)
            .flat_map(|sequence| sequence[PREFIX * VOCAB..].to_vec())
            .collect();
        assert_near(&found, &expected);
    }
}

#[test]
fn a_prefix_sees_itself_both_ways_and_what_comes_behind_it_only_without_a_mask() {
    let (vectors, text) = (normals(3, PREFIX * 8), tokens(4, TEXT));
    for mask in MASKS {
        let model = model(config(mask, Position::Learned));
        let logits = |vectors: &[f64], text: &[u32]| model.logits_with(vectors, text, 1, TEXT).unwrap();
        let before = logits(&vectors, &text);
        // The last vector changes what stands at the first position, if that sees it.
        let first = |vectors: &[f64]| {
            let mut recording = Recording::of(|at| at.kind == TensorKind::ResidualOutput);
            model.observe_with(vectors, &text, 1, TEXT, &mut recording).unwrap();
            recording.iter().map(|(_, values)| values[..8].to_vec()).collect::<Vec<_>>()
        };
        let mut other = vectors.clone();
        other[(PREFIX - 1) * 8..].iter_mut().for_each(|x| *x += 1.0);
        assert_eq!(first(&vectors) == first(&other), mask == Mask::Causal, "{mask:?}");

        let mut later = text.clone();
        later[TEXT - 1] = (later[TEXT - 1] + 1) % VOCAB as u32;
        let after = logits(&vectors, &later);
        let unseen = (TEXT - 1) * VOCAB;
        assert_eq!(before[..unseen] == after[..unseen], mask != Mask::None, "{mask:?}");
    }
}

fn trainer(config: GptConfig, recompute: Recompute, rows: usize) -> Trainer<Small<f64>> {
    let model = Model::new(Small::<f64>::new(usize::MAX, rows), config, 7).unwrap();
    widen(&model);
    let settings = TrainConfig { batch: BATCH, time: TEXT, recompute, ..TrainConfig::constant(1e-2) };
    Trainer::new(&model, settings).unwrap()
}

fn batch() -> (Vec<f64>, Vec<u32>, Vec<u32>) {
    let mut targets = tokens(6, BATCH * TEXT);
    targets[2] = IGNORE;
    (normals(5, BATCH * PREFIX * 8), tokens(2, BATCH * TEXT), targets)
}

#[test]
fn the_gradient_back_to_the_vectors_matches_finite_differences() {
    let (vectors, inputs, targets) = batch();
    for (mask, position) in MASKS.into_iter().flat_map(|mask| POSITIONS.map(|position| (mask, position))) {
        for (dropout, recompute) in [(0.0, Recompute::Cheap), (0.2, Recompute::Blocks)] {
            let config = GptConfig { dropout, ..config(mask, position) };
            // Fresh each time, so that the dropout masks are the same.
            let step = |vectors: &[f64]| {
                let mut trainer = trainer(config.clone(), recompute, usize::MAX);
                trainer.set_prefix(vectors).unwrap();
                trainer.micro_step(&inputs, &targets).unwrap();
                trainer
            };
            let gradient = step(&vectors).prefix_gradient().unwrap();
            assert_eq!(gradient.len(), vectors.len());
            let largest = gradient.iter().fold(0.0f64, |most, d| most.max(d.abs()));
            assert!(largest > 1e-3, "{mask:?} {position:?}: nothing comes back");
            for i in (0..vectors.len()).step_by(5) {
                let loss = |by: f64| {
                    let mut vectors = vectors.clone();
                    vectors[i] += by;
                    step(&vectors).loss().unwrap().unwrap()
                };
                let numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                let error = (gradient[i] - numeric).abs() / largest;
                assert!(error < 1e-6, "{mask:?} {position:?} {i}: {} {numeric}", gradient[i]);
            }
        }
    }
}

/// All that a micro-step leaves: loss, gradient by the vectors, and by each parameter.
fn left(mut trainer: Trainer<Small<f64>>) -> (f64, Vec<f64>, Vec<Vec<f64>>) {
    let names: Vec<String> = trainer.model().parameters().map(|(tensor, _)| tensor.name.clone()).collect();
    let gradients = names.iter().map(|name| trainer.gradient(name).unwrap().unwrap()).collect();
    (trainer.loss().unwrap().unwrap(), trainer.prefix_gradient().unwrap(), gradients)
}

#[test]
fn slices_and_recomputation_change_nothing_and_a_loss_of_ones_own_is_the_same() {
    let (vectors, inputs, targets) = batch();
    let config = GptConfig { dropout: 0.1, ..config(Mask::Prefix, Position::Learned) };
    let begun = |recompute, rows| {
        let mut trainer = trainer(config.clone(), recompute, rows);
        trainer.set_prefix(&vectors).unwrap();
        trainer
    };
    let step = |recompute, rows| {
        let mut trainer = begun(recompute, rows);
        trainer.micro_step(&inputs, &targets).unwrap();
        left(trainer)
    };
    let whole = step(Recompute::Nothing, usize::MAX);
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        assert_eq!(step(recompute, usize::MAX), whole, "{recompute:?}");
        let sliced = step(recompute, 1);
        assert_near(&sliced.1, &whole.1);
        sliced.2.iter().zip(&whole.2).for_each(|(a, b)| assert_near(a, b));
    }

    let mut own = begun(Recompute::Nothing, usize::MAX);
    let mut rows = Vec::new();
    own.micro_step_with(&inputs, |mut piece| {
        let mut sums = PieceLoss::default();
        for row in piece.rows() {
            rows.push((row.number, row.sequence, row.position));
            let target = targets[row.number];
            if target == IGNORE {
                continue;
            }
            let total: f64 = row.logits.iter().map(|x| x.exp()).sum();
            for (v, (&logit, d)) in row.logits.iter().zip(row.d_logits).enumerate() {
                *d = logit.exp() / total - f64::from(v == target as usize);
            }
            sums.loss += total.ln() - row.logits[target as usize];
            sums.targets += 1.0;
        }
        Ok::<_, Infallible>(sums)
    })
    .unwrap();
    let expected: Vec<_> = (0..BATCH * TEXT).map(|n| (n, n / TEXT, n % TEXT)).collect();
    assert_eq!(rows, expected);
    let own = left(own);
    assert!((own.0 - whole.0).abs() < 1e-12);
    assert_near(&own.1, &whole.1);
    own.2.iter().zip(&whole.2).for_each(|(a, b)| assert_near(a, b));
}

#[test]
fn a_frozen_model_still_tells_the_vectors_gradient() {
    let (vectors, inputs, targets) = batch();
    let all = model(config(Mask::Prefix, Position::Learned));
    let settings = TrainConfig { batch: BATCH, time: TEXT, ..TrainConfig::constant(1e-2) };
    let gradient = |mut trainer: Trainer<Reference<f64>>| {
        trainer.set_prefix(&vectors).unwrap();
        trainer.micro_step(&inputs, &targets).unwrap();
        let gradient = trainer.prefix_gradient().unwrap();
        trainer.finish_step().unwrap();
        assert_eq!(trainer.metrics().unwrap().skipped, 0);
        gradient
    };
    let before = all.parameter("wte.weight").unwrap();
    let frozen = gradient(Trainer::freezing(&all, settings.clone(), |_| true).unwrap());
    assert_eq!(all.parameter("wte.weight").unwrap(), before);
    assert_eq!(gradient(Trainer::new(&all, settings.clone()).unwrap()), frozen);
    assert_ne!(all.parameter("wte.weight").unwrap(), before);

    let none = model(GptConfig { prefix: 0, mask: Mask::Causal, ..config(Mask::Causal, Position::Learned) });
    assert!(matches!(Trainer::freezing(&none, settings, |_| true).unwrap_err(), Error::NothingToTrain));
}

#[test]
fn a_model_with_a_prefix_learns_to_read_it_and_goes_on_from_its_checkpoint() {
    // What follows is told by the vectors alone.
    let settings = TrainConfig { batch: 2, time: TEXT, ..TrainConfig::constant(1e-2) };
    let config = GptConfig { norm: Norm::Layer, ..config(Mask::Prefix, Position::Learned) };
    let start = Model::new(Reference::<f64>::new(), config, 1).unwrap();
    let mut trainer = Trainer::new(&start, settings.clone()).unwrap();
    let pictures: [Vec<f64>; 2] = [normals(1, PREFIX * 8), normals(2, PREFIX * 8)];
    let texts: [[u32; TEXT + 1]; 2] = [[0, 1, 2, 3, 4, 5], [0, 9, 8, 7, 6, 5]];
    let step = |trainer: &mut Trainer<Reference<f64>>| {
        trainer.set_prefix(&pictures.concat()).unwrap();
        let inputs = [&texts[0][..TEXT], &texts[1][..TEXT]].concat();
        let targets = [&texts[0][1..], &texts[1][1..]].concat();
        trainer.micro_step(&inputs, &targets).unwrap();
        trainer.finish_step().unwrap();
    };
    for _ in 0..120 {
        step(&mut trainer);
    }
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    for _ in 0..30 {
        step(&mut trainer);
    }
    assert!(trainer.metrics().unwrap().loss < 0.05, "{}", trainer.metrics().unwrap().loss);

    let checkpoint = Checkpoint::open_verified(&file).unwrap();
    let mut resumed = Trainer::resume(Reference::<f64>::new(), &checkpoint).unwrap();
    for _ in 0..30 {
        step(&mut resumed);
    }
    let (mut end, mut same) = (Vec::new(), Vec::new());
    trainer.write(&mut end, &Extras::default()).unwrap();
    resumed.write(&mut same, &Extras::default()).unwrap();
    assert_eq!(end, same);

    let mut decoder = Decoder::new(resumed.model(), 2).unwrap();
    for (picture, text) in pictures.iter().zip(texts) {
        decoder.begin_with(picture).unwrap();
        decoder.feed(&[0]).unwrap();
        for pair in text[1..].windows(2) {
            let best = (0..VOCAB).max_by(|&a, &b| decoder.logits()[a].total_cmp(&decoder.logits()[b]));
            assert_eq!(best, Some(pair[0] as usize));
            decoder.feed(&pair[..1]).unwrap();
        }
    }
}

/// What a full pass gives behind the last token of a window.
fn full(model: &Model<Reference<f64>>, vectors: &[f64], window: &[u32]) -> Vec<f64> {
    let logits = model.logits_with(vectors, window, 1, window.len()).unwrap();
    logits[logits.len() - VOCAB..].to_vec()
}

#[test]
fn decoding_equals_a_full_pass_also_behind_the_cut_of_the_window() {
    let vectors = normals(8, PREFIX * 8);
    for (mask, position) in MASKS.into_iter().flat_map(|mask| POSITIONS.map(|position| (mask, position))) {
        for rows in [1, 2, 4, 64] {
            let model = model(config(mask, position));
            let mut decoder = Decoder::new(&model, rows).unwrap();
            decoder.begin_with(&vectors).unwrap();
            assert_eq!(decoder.window(), &[] as &[u32]);
            assert!(decoder.logits().iter().any(|&logit| logit != 0.0));
            for (i, piece) in [2, 1, 1, 3, 1, 1, 1, 1, 4].into_iter().enumerate() {
                decoder.feed(&tokens(i as u64, piece)).unwrap();
                assert!(decoder.window().len() <= TEXT);
                assert_near(decoder.logits(), &full(&model, &vectors, decoder.window()));
            }
            // A text begun anew has nothing of the one before.
            let others = normals(9, PREFIX * 8);
            decoder.begin_with(&others).unwrap();
            decoder.feed(&[3]).unwrap();
            assert_near(decoder.logits(), &full(&model, &others, &[3]));
        }
    }
}

#[test]
fn the_first_token_is_told_by_the_prefix_alone() {
    let vectors = normals(8, PREFIX * 8);
    for mask in [Mask::Causal, Mask::Prefix] {
        let model = model(config(mask, Position::Learned));
        let mut decoder = Decoder::new(&model, 4).unwrap();
        decoder.begin_with(&vectors).unwrap();
        // The last position of the prefix, at which a full pass has no logits: by the stream that the head reads.
        let mut recording = Recording::of(|at| at.kind == TensorKind::FinalNorm);
        model.observe_with(&vectors, &[0], 1, 1, &mut recording).unwrap();
        let (_, stream) = recording.iter().next().unwrap();
        let table = model.parameter("wte.weight").unwrap().unwrap();
        let last = &stream[(PREFIX - 1) * 8..][..8];
        let expected: Vec<f64> =
            table.chunks(8).map(|row| row.iter().zip(last).map(|(a, b)| a * b).sum()).collect();
        assert_near(decoder.logits(), &expected);
    }
}

#[test]
fn texts_side_by_side_have_each_its_own_prefix() {
    for (mask, cache) in [(Mask::Causal, Dtype::F64), (Mask::Prefix, Dtype::F64), (Mask::None, Dtype::F64)] {
        let model = model(config(mask, Position::ROTARY));
        let mut batch = Batch::with_cache(&model, 3, 4, cache).unwrap();
        let sequences: Vec<_> = (0..3).map(|_| batch.join().unwrap()).collect();
        let mut alone: Vec<_> = (0..3).map(|_| Decoder::with_cache(&model, 4, cache).unwrap()).collect();
        for (i, (&sequence, decoder)) in sequences.iter().zip(&mut alone).enumerate() {
            let vectors = normals(20 + i as u64, PREFIX * 8);
            batch.begin_with(sequence, &vectors).unwrap();
            decoder.begin_with(&vectors).unwrap();
        }
        for round in 0..9u64 {
            // The second joins a round later than the others, and the third has had nothing but its prefix at first.
            for (i, (&sequence, decoder)) in sequences.iter().zip(&mut alone).enumerate() {
                if round >= i as u64 {
                    let fed = tokens(round * 7 + i as u64, 1 + (round as usize + i) % 2);
                    batch.feed(sequence, &fed).unwrap();
                    decoder.feed(&fed).unwrap();
                }
            }
            while sequences.iter().any(|&sequence| batch.waiting(sequence).unwrap() > 0) {
                batch.step().unwrap();
            }
            for (&sequence, decoder) in sequences.iter().zip(&alone) {
                assert_eq!(batch.window(sequence).unwrap(), decoder.window());
                assert_near(batch.logits(sequence).unwrap(), decoder.logits());
            }
        }
        let greedy = SampleConfig::greedy();
        batch.generate(sequences[1], greedy, &[], 6).unwrap();
        let mut chosen = Vec::new();
        while batch.is_generating() {
            chosen.extend(batch.step().unwrap().iter().map(|chosen| chosen.token.unwrap()));
        }
        let mut sampler = minigpt_core::Sampler::new(greedy, VOCAB).unwrap();
        let expected: Vec<u32> = alone[1].generate(&mut sampler).take(6).map(Result::unwrap).collect();
        assert_eq!(chosen, expected);
    }
}

#[test]
fn vectors_that_are_no_numbers_break_one_text_and_not_its_neighbours() {
    let model = model(config(Mask::Prefix, Position::Learned));
    let mut batch = Batch::new(&model, 2, 4).unwrap();
    let [broken, good] = [batch.join().unwrap(), batch.join().unwrap()];
    batch.begin_with(broken, &[f64::NAN; PREFIX * 8]).unwrap();
    batch.begin_with(good, &normals(8, PREFIX * 8)).unwrap();
    for _ in 0..3 {
        for sequence in [broken, good] {
            batch.generate(sequence, SampleConfig::greedy(), &[], 1).unwrap();
        }
        for chosen in batch.step().unwrap() {
            assert_eq!(chosen.token.is_ok(), chosen.sequence == good);
        }
    }
    assert_eq!(batch.recent(good).unwrap().len(), 3);
}

#[test]
fn a_training_of_the_vectors_alone_goes_on_from_its_checkpoint() {
    let (vectors, inputs, targets) = batch();
    let settings = TrainConfig { batch: BATCH, time: TEXT, ..TrainConfig::constant(1e-2) };
    let frozen = model(config(Mask::Prefix, Position::Learned));
    let mut trainer = Trainer::freezing(&frozen, settings, |_| true).unwrap();
    let step = |trainer: &mut Trainer<Reference<f64>>| {
        trainer.set_prefix(&vectors).unwrap();
        trainer.micro_step(&inputs, &targets).unwrap();
        trainer.finish_step().unwrap();
        (trainer.prefix_gradient().unwrap(), trainer.metrics().unwrap())
    };
    step(&mut trainer);
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    let mut resumed =
        Trainer::resume(Reference::<f64>::new(), &Checkpoint::open_verified(&file).unwrap()).unwrap();
    assert_eq!(step(&mut resumed), step(&mut trainer));
    assert_eq!(resumed.model().parameter("wte.weight").unwrap(), frozen.parameter("wte.weight").unwrap());
}

#[test]
fn evaluation_reads_each_windows_own_vectors_however_the_batch_is_cut() {
    let (vectors, ..) = batch();
    let text = tokens(30, 6 * TEXT + 1);
    let loss = |vectors: &[f64], rows| {
        let mut trainer = trainer(config(Mask::Prefix, Position::Learned), Recompute::Nothing, rows);
        trainer.set_prefix(vectors).unwrap();
        trainer.evaluate(&EvalWindows::new(&text, TEXT).unwrap()).unwrap()
    };
    let whole = loss(&vectors, usize::MAX);
    assert!((loss(&vectors, 1) - whole).abs() < 1e-12);
    let (first, second) = vectors.split_at(PREFIX * 8);
    assert_ne!(loss(&[second, first].concat(), usize::MAX), whole);
}

#[test]
fn what_is_missing_or_too_much_is_said() {
    let with = model(config(Mask::Prefix, Position::Learned));
    let settings = TrainConfig { batch: BATCH, time: TEXT, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(&with, settings.clone()).unwrap();
    let (vectors, inputs, targets) = batch();
    let missing = Error::NoPrefix { prefix: PREFIX };
    assert_eq!(trainer.micro_step(&inputs, &targets).unwrap_err(), missing);
    assert!(missing.to_string().starts_with("this model begins with 3 given vectors: give them first"));
    assert_eq!(with.logits(&inputs, BATCH, TEXT).unwrap_err(), missing);
    let length = Error::PrefixLength { found: 47, expected: 48 };
    assert_eq!(trainer.set_prefix(&vectors[1..]).unwrap_err(), length);
    assert_eq!(with.logits_with(&vectors[1..], &inputs, BATCH, TEXT).unwrap_err(), length);
    trainer.set_prefix(&vectors).unwrap();
    trainer.micro_step(&inputs, &targets).unwrap();

    let mut decoder = Decoder::new(&with, 4).unwrap();
    assert_eq!(decoder.feed(&[1]).unwrap_err(), missing);
    assert_eq!(decoder.begin_with(&vectors).unwrap_err(), Error::PrefixLength { found: 48, expected: 24 });
    decoder.begin_with(&vectors[..24]).unwrap();
    decoder.reset();
    assert_eq!(decoder.feed(&[1]).unwrap_err(), missing);
    let mut batch = Batch::new(&with, 1, 4).unwrap();
    let sequence = batch.join().unwrap();
    assert_eq!(batch.feed(sequence, &[1]).unwrap_err(), missing);
    assert_eq!(batch.generate(sequence, SampleConfig::greedy(), &[], 1).unwrap_err(), missing);

    let without =
        model(GptConfig { prefix: 0, mask: Mask::Causal, ..config(Mask::Causal, Position::Learned) });
    let mut decoder = Decoder::new(&without, 4).unwrap();
    decoder.feed(&[1]).unwrap();
    decoder.begin_with(&[]).unwrap();
    assert!(decoder.window().is_empty() && decoder.logits().iter().all(|&logit| logit == 0.0));
    let mut trainer = Trainer::new(&without, settings.clone()).unwrap();
    let none = trainer.set_prefix(&vectors).unwrap_err();
    assert_eq!(none, Error::PrefixLength { found: 48, expected: 0 });
    assert!(
        none.to_string().starts_with("48 numbers as given vectors for a model without a prefix: give none")
    );
    trainer.micro_step(&inputs, &targets).unwrap();

    // Prefix and tokens share the context.
    let long = TrainConfig { time: TEXT + 1, ..settings };
    let beyond = ConfigError::BeyondContext { time: TEXT + 1, prefix: PREFIX, context: PREFIX + TEXT };
    assert_eq!(Trainer::new(&with, long).unwrap_err(), Error::Config(beyond));
    assert!(
        beyond
            .to_string()
            .ends_with(&format!("use sequences of at most {TEXT} tokens or a model with a longer context"))
    );
    let filled = GptConfig { prefix: 8, ..config(Mask::Prefix, Position::Learned) };
    assert_eq!(filled.validate(), Err(ConfigError::PrefixFillsContext { prefix: 8, context: 8 }));
    let none = GptConfig { prefix: 0, ..config(Mask::Prefix, Position::Learned) };
    assert_eq!(none.validate(), Err(ConfigError::NoPrefixToSee));
}

#[test]
fn the_largest_batch_is_found_without_going_through_its_sequences() {
    let settings = TrainConfig { time: TEXT, ..TrainConfig::constant(1e-3) };
    let config = config(Mask::Prefix, Position::Learned);
    let largest = |bytes| settings.largest_batch(&config, &Reference::<f64>::new(), bytes).unwrap();
    let (small, large) = (largest(1 << 20), largest(1 << 40));
    assert!(small > 10 && large > 100_000 * small, "{small} {large}");
}
