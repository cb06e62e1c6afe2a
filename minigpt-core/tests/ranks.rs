//! N ranks train as one: they draw its windows, drop what it drops, and go on from one another's checkpoints.

#[path = "support/small.rs"]
mod small;

use minigpt_core::model::Extras;
use minigpt_core::train::{PieceLoss, Sums};
use minigpt_core::{
    Backend, Bias, Checkpoint, Error, GptConfig, Model, Rank, Real, Reference, ReferenceError, TrainConfig,
    Trainer, Windows,
};
use small::Small;

const TIME: usize = 5;

fn text() -> Vec<u32> {
    (0..200).map(|i| (i * i + i / 7) % 11).collect()
}

fn config(dropout: f64) -> GptConfig {
    let base = GptConfig::new(11, TIME);
    GptConfig { layers: 2, heads: 2, d_model: 6, d_ff: 9, bias: Bias::ALL, dropout, ..base }
}

/// Two micro-batches of `batch` sequences a step, with clipping, so that the norm must be that of all ranks.
fn settings(batch: usize, rank: Rank) -> TrainConfig {
    TrainConfig { batch, time: TIME, accumulation: 2, clip: 0.3, rank, ..TrainConfig::constant(1e-2) }
}

/// `count` trainers that have 6 sequences of a micro-batch together.
fn group<B: Backend>(backend: impl Fn() -> B, dropout: f64, count: u32) -> Vec<Trainer<B>> {
    let trainer = |index| {
        let model = Model::new(backend(), config(dropout), 1).unwrap();
        Trainer::new(&model, settings(6 / count as usize, Rank { index, count })).unwrap()
    };
    (0..count).map(trainer).collect()
}

/// The sums of all, rank by rank.
fn total<B: Backend>(ranks: &mut [Trainer<B>]) -> Sums<B::Elem> {
    let (mut total, mut sums) = (Sums::default(), Sums::default());
    for rank in ranks {
        rank.read_sums(&mut sums).unwrap();
        total.add(&sums).unwrap();
    }
    total
}

fn finish<B: Backend>(ranks: &mut [Trainer<B>]) {
    let total = total(ranks);
    for rank in ranks {
        rank.write_sums(&total).unwrap();
        rank.finish_step().unwrap();
    }
}

fn steps<B: Backend>(ranks: &mut [Trainer<B>], count: usize) {
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    for _ in 0..count {
        ranks.iter_mut().for_each(|rank| rank.accumulate(&windows).unwrap());
        finish(ranks);
    }
}

fn parameters<B: Backend>(trainer: &Trainer<B>) -> Vec<f64> {
    let model = trainer.model();
    let values = |name| model.parameter(name).unwrap().unwrap().into_iter().map(Real::to_f64);
    model.parameters().flat_map(|(tensor, _)| values(&tensor.name)).collect()
}

fn difference<B: Backend>(a: &Trainer<B>, b: &Trainer<B>) -> f64 {
    let pairs = parameters(a).into_iter().zip(parameters(b));
    pairs.fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

fn written<B: Backend>(trainer: &Trainer<B>) -> Vec<u8> {
    let mut file = Vec::new();
    trainer.write(&mut file, &Extras::default()).unwrap();
    file
}

/// Trains one rank and `count` ranks, on backends that take so many rows at once, and holds them against one another.
fn hold(dropout: f64, rows: [usize; 2], count: u32) {
    let backend = |rows| move || Small::<f64>::new(usize::MAX, rows);
    let mut one = group(backend(rows[0]), dropout, 1);
    let mut ranks = group(backend(rows[1]), dropout, count);
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    for _ in 0..5 {
        one[0].step(&windows).unwrap();
    }
    steps(&mut ranks, 5);

    let apart = difference(&one[0], &ranks[0]);
    assert!(apart < 1e-10, "dropout {dropout}, {rows:?} rows at once, {count} ranks: {apart:e}");
    let [expected, found] = [&mut one[0], &mut ranks[0]].map(|trainer| trainer.metrics().unwrap());
    assert!((expected.loss - found.loss).abs() < 1e-10 && found.grad_norm > 0.3, "{expected:?} {found:?}");
    assert_eq!((expected.tokens, expected.step), (found.tokens, found.step));
    assert_eq!(one[0].state().unwrap(), ranks[0].state().unwrap());
    let files: Vec<_> = ranks.iter().map(written).collect();
    assert!(files.iter().all(|file| *file == files[0]), "the ranks differ");
}

#[test]
fn ranks_train_as_one_with_the_whole_batch() {
    for dropout in [0.0, 0.3] {
        // As a whole or in slices, which are uneven where a rank has three sequences.
        for rows in [[usize::MAX; 2], [usize::MAX, 2 * TIME], [4 * TIME, usize::MAX], [1; 2]] {
            hold(dropout, rows, 2);
        }
        hold(dropout, [usize::MAX; 2], 3);
    }
}

#[test]
fn the_ranks_differ_in_their_windows_and_in_what_they_drop() {
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    let mut ranks = group(Reference::<f64>::new, 0.3, 2);
    ranks.iter_mut().for_each(|rank| rank.accumulate(&windows).unwrap());
    let [a, b] = [0, 1].map(|rank| total(&mut ranks[rank..=rank]));
    assert_ne!(a.loss, b.loss);

    // On the same windows too, unless nothing is dropped.
    let tokens = &text[..3 * TIME];
    for (dropout, same) in [(0.0, true), (0.3, false)] {
        let losses: Vec<_> = group(Reference::<f64>::new, dropout, 2)
            .iter_mut()
            .map(|rank| {
                rank.micro_step(tokens, tokens).unwrap();
                rank.loss().unwrap()
            })
            .collect();
        assert_eq!(losses[0] == losses[1], same, "dropout {dropout}");
    }
}

#[test]
fn ranks_with_a_loss_of_their_own_drop_what_one_does() {
    let text = text();
    let mut one = group(Reference::<f64>::new, 0.3, 1);
    let mut ranks = group(Reference::<f64>::new, 0.3, 2);
    let add = |trainer: &mut Trainer<Reference<f64>>, tokens: &[u32]| {
        let loss = |mut piece: minigpt_core::train::Piece<'_, f64>| {
            let mut sums = PieceLoss::default();
            for row in piece.rows() {
                row.d_logits.copy_from_slice(row.logits);
                sums.loss += row.logits.iter().map(|x| 0.5 * x * x).sum::<f64>();
                sums.targets += 1.0;
            }
            Ok::<_, ReferenceError>(sums)
        };
        trainer.micro_step_with(tokens, loss).unwrap();
    };
    for _ in 0..3 {
        add(&mut one[0], &text[..6 * TIME]);
        one[0].finish_step().unwrap();
        add(&mut ranks[0], &text[..3 * TIME]);
        add(&mut ranks[1], &text[3 * TIME..6 * TIME]);
        finish(&mut ranks);
    }
    assert!(difference(&one[0], &ranks[0]) < 1e-10);
}

#[test]
fn the_summed_gradients_of_ranks_are_those_of_one_in_f32() {
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    for dropout in [0.0, 0.3] {
        let mut one = group(Reference::<f32>::new, dropout, 1);
        let mut ranks = group(Reference::<f32>::new, dropout, 2);
        for trainer in one.iter_mut().chain(&mut ranks) {
            trainer.accumulate(&windows).unwrap();
        }
        let [expected, found] = [total(&mut one), total(&mut ranks)];
        assert_eq!(expected.targets, found.targets);
        for tensor in one[0].plan().parameters.list() {
            let part = tensor.region.offset / 4..tensor.region.offset / 4 + tensor.region.len;
            let pairs = expected.gradients[part.clone()].iter().zip(&found.gradients[part]);
            let largest = pairs.clone().fold(0.0, |largest: f32, (a, _)| largest.max(a.abs()));
            let worst = pairs.fold(0.0, |worst: f32, (a, b)| worst.max((a - b).abs()));
            assert!(worst <= 1e-6 * largest && largest > 0.0, "{}: {worst:e} {largest:e}", tensor.name);
        }
    }
}

/// `count` ranks that go on from a checkpoint.
fn resumed(file: &[u8], count: u32) -> Vec<Trainer<Reference<f64>>> {
    let checkpoint = Checkpoint::open_verified(file).unwrap();
    let kept = &checkpoint.training().unwrap().config;
    let resume = |index| {
        let rank = Rank { index, count };
        let settings = TrainConfig { batch: 6 / count as usize, rank, ..kept.clone() };
        Trainer::resume_with(Reference::new(), &checkpoint, settings).unwrap()
    };
    (0..count).map(resume).collect()
}

#[test]
fn a_run_goes_on_with_as_many_ranks_as_there_are() {
    let mut whole = group(Reference::<f64>::new, 0.3, 2);
    steps(&mut whole, 2);
    let file = written(&whole[0]);
    steps(&mut whole, 3);

    // As many ranks: the same bits.
    let mut again = resumed(&file, 2);
    steps(&mut again, 3);
    assert!(written(&again[0]) == written(&whole[0]), "the run goes on otherwise");
    // Others: as near as one is to two.
    for count in [1, 3, 6] {
        let mut others = resumed(&file, count);
        steps(&mut others, 3);
        assert!(difference(&others[0], &whole[0]) < 1e-10, "{count} ranks");
        assert_eq!(others[0].state().unwrap(), whole[0].state().unwrap());
    }
    // What is saved says nothing of ranks.
    let kept = Trainer::resume(Reference::<f64>::new(), &Checkpoint::open(&file).unwrap()).unwrap();
    assert_eq!((kept.config().rank, kept.config().batch), (Rank::ALONE, 3));
}

#[test]
fn a_rank_that_is_none_is_refused() {
    let model = Model::new(Reference::<f64>::new(), config(0.0), 1).unwrap();
    let file = written(&group(Reference::<f64>::new, 0.0, 2)[1]);
    for rank in [Rank { index: 0, count: 0 }, Rank { index: 2, count: 2 }, Rank { index: u32::MAX, count: 1 }]
    {
        let error = Trainer::new(&model, settings(3, rank)).unwrap_err();
        let message = "the training setting `rank` must be an index below a count of at least 1";
        assert_eq!(error.to_string(), message);
        let checkpoint = Checkpoint::open(&file).unwrap();
        let resumed = Trainer::resume_with(Reference::<f64>::new(), &checkpoint, settings(3, rank));
        assert_eq!(resumed.unwrap_err().to_string(), message);
    }
}

#[test]
fn a_rank_finishes_no_step_without_the_others_and_loses_nothing_by_trying() {
    let text = text();
    let windows = Windows::new(&text, TIME).unwrap();
    let rank = Rank { index: 1, count: 2 };
    let refused = |result: Result<(), _>| assert_eq!(result, Err(Error::SumsNotShared { rank }));
    let mut ranks = group(Reference::<f64>::new, 0.3, 2);
    let mut tried = group(Reference::<f64>::new, 0.3, 2);
    steps(&mut ranks, 2);

    refused(tried[1].step(&windows));
    refused(tried[1].observe_step(&windows, &mut minigpt_core::probe::Recording::of(|_| true)));
    steps(&mut tried, 1);
    tried.iter_mut().for_each(|rank| rank.accumulate(&windows).unwrap());
    refused(tried[1].finish_step());
    finish(&mut tried);
    assert!(written(&tried[1]) == written(&ranks[1]));

    // A micro-batch after the exchange is in none of the sums.
    let total = total(&mut tried);
    tried[1].write_sums(&total).unwrap();
    tried[1].micro_step(&text[..3 * TIME], &text[..3 * TIME]).unwrap();
    refused(tried[1].finish_step());
    let message = Error::<ReferenceError>::SumsNotShared { rank }.to_string();
    assert!(
        message.starts_with("rank 1 of 2 has not got the sums of all ranks: call accumulate"),
        "{message}"
    );
}
