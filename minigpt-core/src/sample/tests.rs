//! Each sampler on distributions whose answer is known.

use super::*;
use alloc::string::ToString;
use alloc::vec;

const PLAIN: SampleConfig = SampleConfig {
    temperature: 1.0,
    top_k: None,
    top_p: None,
    min_p: None,
    repetition_penalty: None,
    repetition_window: 64,
    seed: 0,
};

/// The logits of weights 1 : 2 : 3 : 4.
fn one_to_four() -> [f64; 4] {
    [1.0, 2.0, 3.0, 4.0].map(libm::log)
}

fn distribution(config: SampleConfig, logits: &[f64], recent: &[u32]) -> Vec<f64> {
    Sampler::new(config, logits.len()).unwrap().distribution(logits, recent).unwrap().to_vec()
}

/// Holds the distribution against weights: a weight of 0 must give a probability of exactly 0.
#[track_caller]
fn assert_weights(config: SampleConfig, logits: &[f64], recent: &[u32], weights: &[f64]) {
    let found = distribution(config, logits, recent);
    let sum: f64 = weights.iter().sum();
    assert_eq!(found.len(), weights.len());
    for (probability, weight) in found.iter().zip(weights) {
        let same = if *weight == 0.0 {
            *probability == 0.0
        } else {
            (probability - weight / sum).abs() <= 1e-14 * weight / sum
        };
        assert!(same, "{found:?} against weights {weights:?}");
    }
}

fn error(config: SampleConfig, logits: &[f64], recent: &[u32]) -> SampleError {
    Sampler::new(config, logits.len()).unwrap().distribution(logits, recent).unwrap_err()
}

#[test]
fn the_plain_distribution_is_the_softmax() {
    assert_weights(PLAIN, &one_to_four(), &[], &[1.0, 2.0, 3.0, 4.0]);
    assert_weights(PLAIN, &[-7.0], &[], &[1.0]);
    assert_weights(PLAIN, &[1000.0, 999.0, -1e300], &[], &[1.0, libm::exp(-1.0), 0.0]);
    assert_eq!(PLAIN, SampleConfig::default());
}

#[test]
fn temperature_is_the_power_of_the_weights() {
    let at = |temperature| SampleConfig { temperature, ..PLAIN };
    assert_weights(at(0.5), &one_to_four(), &[], &[1.0, 4.0, 9.0, 16.0]);
    assert_weights(at(0.25), &one_to_four(), &[], &[1.0, 16.0, 81.0, 256.0]);
    assert_weights(at(2.0), &[4.0, 9.0].map(libm::log), &[], &[2.0, 3.0]);
}

#[test]
fn extreme_temperatures_do_not_overflow() {
    let at = |temperature| SampleConfig { temperature, ..PLAIN };
    assert_weights(at(1e-3), &[-5000.0, 88.0, 87.0], &[], &[0.0, 1.0, 0.0]);
    assert_weights(at(1e-3), &[2.0, 2.0, 1.0], &[], &[0.5, 0.5, 0.0]);
    assert_weights(at(100.0), &[300.0, 0.0, 200.0], &[], &[1.0, libm::exp(-3.0), libm::exp(-1.0)]);
    assert_weights(at(f64::MIN_POSITIVE), &[f64::MAX, f64::MIN, f64::MAX], &[], &[0.5, 0.0, 0.5]);
    assert_weights(at(5e-324), &[0.0, -5e-324, 1.0], &[], &[0.0, 0.0, 1.0]);
    assert_weights(at(f64::MAX), &[0.0, 1e9, f64::NEG_INFINITY], &[], &[0.5, 0.5, 0.0]);
}

#[test]
fn greedy_is_the_first_of_the_largest() {
    let mut sampler = Sampler::new(SampleConfig::greedy(), 5).unwrap();
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0, 3.0], &[]), Ok(1));
    assert_eq!(sampler.distribution(&[1.0, 3.0, 3.0, 2.0, 3.0], &[]).unwrap(), [0.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(sampler.sample(&[0.5; 5], &[]), Ok(0));
    assert_eq!(sampler.sample(&[-3.0, -2.0, -1.0, -2.0, -0.5], &[]), Ok(4));
    assert_eq!(sampler.sample(&[f64::NEG_INFINITY, -1e300, -2e300, -2e300, -2e300], &[]), Ok(1));
}

#[test]
fn greedy_ignores_every_cut() {
    let config =
        SampleConfig { top_k: Some(3), top_p: Some(0.9), min_p: Some(0.1), ..SampleConfig::greedy() };
    assert_weights(config, &one_to_four(), &[], &[0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn top_k_keeps_the_k_largest() {
    let at = |top_k| SampleConfig { top_k: Some(top_k), ..PLAIN };
    let logits = [3.0, 1.0, 4.0, 2.0].map(libm::log);
    assert_weights(at(1), &logits, &[], &[0.0, 0.0, 1.0, 0.0]);
    assert_weights(at(2), &logits, &[], &[3.0, 0.0, 4.0, 0.0]);
    assert_weights(at(3), &logits, &[], &[3.0, 0.0, 4.0, 2.0]);
    for k in [4, 5, usize::MAX] {
        assert_weights(at(k), &logits, &[], &[3.0, 1.0, 4.0, 2.0]);
    }
}

#[test]
fn ties_at_a_cut_go_to_the_lowest_ids() {
    let tied = [1.0, 3.0, 3.0, 3.0, 0.0];
    assert_weights(SampleConfig { top_k: Some(2), ..PLAIN }, &tied, &[], &[0.0, 1.0, 1.0, 0.0, 0.0]);
    assert_weights(SampleConfig { top_k: Some(1), ..PLAIN }, &[-0.0, 0.0], &[], &[1.0, 0.0]);
    assert_weights(SampleConfig { top_p: Some(0.4), ..PLAIN }, &[5.0; 4], &[], &[1.0, 1.0, 0.0, 0.0]);
}

#[test]
fn top_k_of_one_is_greedy_at_any_temperature() {
    // At 1e300 every weight is 1: only the logits tell them apart.
    for temperature in [1e-3, 1.0, 1e300] {
        let config = SampleConfig { temperature, top_k: Some(1), ..PLAIN };
        assert_weights(config, &[1.0, 2.0, 1.5], &[], &[0.0, 1.0, 0.0]);
    }
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    let at = |top_p| SampleConfig { top_p: Some(top_p), ..PLAIN };
    let logits = [3.0, 1.0, 4.0, 2.0].map(libm::log);
    assert_weights(at(0.3), &logits, &[], &[0.0, 0.0, 1.0, 0.0]);
    assert_weights(at(0.41), &logits, &[], &[3.0, 0.0, 4.0, 0.0]);
    assert_weights(at(0.69), &logits, &[], &[3.0, 0.0, 4.0, 0.0]);
    assert_weights(at(0.71), &logits, &[], &[3.0, 0.0, 4.0, 2.0]);
    assert_weights(at(0.91), &logits, &[], &[3.0, 1.0, 4.0, 2.0]);
    // Equal logits have weights of exactly 1, so a share can be met exactly.
    assert_weights(at(0.5), &[2.0; 4], &[], &[1.0, 1.0, 0.0, 0.0]);
    assert_weights(at(0.5f64.next_up()), &[2.0; 4], &[], &[1.0, 1.0, 1.0, 0.0]);
}

#[test]
fn top_p_keeps_at_least_one_and_1_keeps_all() {
    let at = |top_p| SampleConfig { top_p: Some(top_p), ..PLAIN };
    for top_p in [5e-324, 1e-300, 1e-9] {
        assert_weights(at(top_p), &[1.0, 2.0, 2.0], &[], &[0.0, 1.0, 0.0]);
    }
    // The second weight is lost in the sum of the two, but stays.
    assert_weights(at(1.0), &[0.0, -50.0], &[], &[1.0, libm::exp(-50.0)]);
    assert_weights(at(1.0f64.next_down()), &[0.0, -50.0], &[], &[1.0, 0.0]);
}

#[test]
fn min_p_is_relative_to_the_largest() {
    let at = |min_p| SampleConfig { min_p: Some(min_p), ..PLAIN };
    let logits = [3.0, 1.0, 4.0, 2.0].map(libm::log);
    assert_weights(at(0.0), &logits, &[], &[3.0, 1.0, 4.0, 2.0]);
    assert_weights(at(0.24), &logits, &[], &[3.0, 1.0, 4.0, 2.0]);
    assert_weights(at(0.26), &logits, &[], &[3.0, 0.0, 4.0, 2.0]);
    assert_weights(at(0.74), &logits, &[], &[3.0, 0.0, 4.0, 0.0]);
    assert_weights(at(1.0), &logits, &[], &[0.0, 0.0, 4.0, 0.0]);
    assert_weights(at(1.0), &[7.0, 7.0, 6.0], &[], &[1.0, 1.0, 0.0]);
    // A weight that equals the bound stays.
    let weight = libm::exp(-1.0);
    assert_weights(at(weight), &[0.0, -1.0], &[], &[1.0, weight]);
    assert_weights(at(weight.next_up()), &[0.0, -1.0], &[], &[1.0, 0.0]);
}

#[test]
fn the_cuts_follow_the_stated_order() {
    let logits = one_to_four();
    // Temperature before top-p: 16 / 30 reaches a half, 4 / 10 does not.
    let hot = SampleConfig { top_p: Some(0.5), ..PLAIN };
    assert_weights(hot, &logits, &[], &[0.0, 0.0, 3.0, 4.0]);
    assert_weights(SampleConfig { temperature: 0.5, ..hot }, &logits, &[], &[0.0, 0.0, 0.0, 1.0]);
    // Top-k before top-p: of 3 and 4 the latter is more than half.
    assert_weights(SampleConfig { top_k: Some(2), ..hot }, &logits, &[], &[0.0, 0.0, 0.0, 1.0]);
    // Top-p before min-p: after min-p alone, 4 / 7 would reach 0.55.
    let config = SampleConfig { top_p: Some(0.55), min_p: Some(0.6), ..PLAIN };
    assert_weights(config, &logits, &[], &[0.0, 0.0, 3.0, 4.0]);
    // The penalty before everything: it makes another token the largest.
    let penalty = SampleConfig { repetition_penalty: Some(4.0), ..PLAIN };
    let config = SampleConfig { top_k: Some(1), ..penalty };
    assert_weights(config, &logits, &[3], &[0.0, 0.0, 1.0, 0.0]);
    assert_weights(SampleConfig { temperature: 0.0, ..penalty }, &logits, &[3], &[0.0, 0.0, 1.0, 0.0]);
    // And before the temperature: ln 4 / 2 = ln 2, squared 4.
    let config = SampleConfig { temperature: 0.5, repetition_penalty: Some(2.0), ..PLAIN };
    assert_weights(config, &logits, &[3], &[1.0, 4.0, 9.0, 4.0]);
}

#[test]
fn the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones() {
    let config = SampleConfig { repetition_penalty: Some(1.25), ..PLAIN };
    // 2 / 1.25 = 1.6, -2 x 1.25 = -2.5, 0 stays; token 3 did not occur.
    let weights = [1.6, -2.5, 0.0, 2.0].map(libm::exp);
    assert_weights(config, &[2.0, -2.0, 0.0, 2.0], &[0, 1, 2], &weights);
    let one = SampleConfig { repetition_penalty: Some(1.0), ..PLAIN };
    assert_weights(one, &one_to_four(), &[0, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0]);
    assert_weights(PLAIN, &one_to_four(), &[3, 3, 3], &[1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn a_repeated_token_is_penalised_once() {
    let config = SampleConfig { repetition_penalty: Some(2.0), ..PLAIN };
    assert_weights(config, &[1.0, 4.0], &[1, 1, 1, 1], &[libm::exp(1.0), libm::exp(2.0)]);
}

#[test]
fn the_repetition_penalty_looks_at_the_last_window_only() {
    let config = SampleConfig { repetition_penalty: Some(2.0), repetition_window: 2, ..PLAIN };
    let logits = [2.0; 4];
    let weights = |logits: [f64; 4]| logits.map(libm::exp);
    assert_weights(config, &logits, &[0, 1, 2], &weights([2.0, 1.0, 1.0, 2.0]));
    assert_weights(config, &logits, &[3, 2], &weights([2.0, 2.0, 1.0, 1.0]));
    assert_weights(config, &logits, &[3], &weights([2.0, 2.0, 2.0, 1.0]));
    assert_weights(config, &logits, &[], &[1.0; 4]);
    // What lies before the window is not looked at.
    assert_weights(config, &logits, &[99, 0, 1], &weights([1.0, 1.0, 2.0, 2.0]));
    assert_eq!(error(config, &logits, &[0, 4, 1]), SampleError::Token { token: 4, vocab_size: 4 });
    assert_eq!(PLAIN.repetition_window, SampleConfig::greedy().repetition_window);
}

#[test]
fn minus_infinity_is_never_chosen() {
    let never = f64::NEG_INFINITY;
    assert_weights(PLAIN, &[never, 1.0, never, 1.0], &[], &[0.0, 1.0, 0.0, 1.0]);
    assert_weights(SampleConfig { top_k: Some(3), ..PLAIN }, &[never, 1.0, never], &[], &[0.0, 1.0, 0.0]);
    assert_weights(SampleConfig { top_p: Some(0.99), ..PLAIN }, &[never, 1.0, never], &[], &[0.0, 1.0, 0.0]);
    let penalty = SampleConfig { repetition_penalty: Some(1.5), ..PLAIN };
    assert_weights(penalty, &[never, 0.0, 0.0], &[0], &[0.0, 1.0, 1.0]);
    for config in [PLAIN, SampleConfig::greedy()] {
        assert_eq!(error(config, &[never; 3], &[]), SampleError::NoCandidate);
        // A penalty so large that the last logit leaves the range of f64.
        let config = SampleConfig { repetition_penalty: Some(2.0), ..config };
        assert_eq!(error(config, &[f64::MIN], &[0]), SampleError::NoCandidate);
    }
}

#[test]
fn broken_logits_are_an_error() {
    for config in [PLAIN, SampleConfig::greedy()] {
        let infinite = error(config, &[0.0, 1.0, f64::INFINITY], &[]);
        assert_eq!(infinite, SampleError::Logit { token: 2, logit: f64::INFINITY });
        let nan = error(config, &[0.0, f64::NAN, f64::INFINITY], &[]);
        assert!(matches!(nan, SampleError::Logit { token: 1, logit } if logit.is_nan()), "{nan}");
    }
    let mut sampler = Sampler::new(PLAIN, 3).unwrap();
    for found in [0, 2, 4] {
        let wrong = sampler.sample(&vec![0.0f32; found], &[]);
        assert_eq!(wrong, Err(SampleError::LogitCount { expected: 3, found }));
    }
}

#[test]
fn pick_inverts_the_cumulative_distribution() {
    let halves = [0.25, 0.0, 0.5, 0.25, 0.0];
    for (uniform, token) in [
        (0.0, 0),
        (0.25f64.next_down(), 0),
        (0.25, 2),
        (0.5, 2),
        (0.75f64.next_down(), 2),
        (0.75, 3),
        (1.0f64.next_down(), 3),
    ] {
        assert_eq!(pick(&halves, uniform), token, "{uniform}");
    }
    assert_eq!(pick(&[0.0, 0.0, 1.0], 0.0), 2);
    // Ten tenths fall short of the largest uniform number: the last possible token takes the rest.
    let mut tenths = [0.1; 11];
    tenths[10] = 0.0;
    assert_eq!(pick(&tenths, 1.0f64.next_down()), 9);
}

/// Pearson's statistic of 20000 draws against the weights; a token of weight 0 must never come.
fn chi_square(config: SampleConfig, recent: &[u32], weights: [f64; 4]) -> f64 {
    let draws = 20_000;
    let mut sampler = Sampler::new(SampleConfig { seed: 1, ..config }, 4).unwrap();
    let mut counts = [0.0; 4];
    for _ in 0..draws {
        counts[sampler.sample(&one_to_four(), recent).unwrap() as usize] += 1.0;
    }
    let sum: f64 = weights.iter().sum();
    let mut chi = 0.0;
    for (count, weight) in counts.into_iter().zip(weights) {
        let expected: f64 = weight / sum * f64::from(draws);
        if weight == 0.0 {
            assert_eq!(count, 0.0);
        } else {
            chi += (count - expected) * (count - expected) / expected;
        }
    }
    chi
}

#[test]
fn draws_follow_the_known_distributions_at_the_level_of_a_thousandth() {
    // The 99.9 % quantiles of chi-square with 1, 2 and 3 degrees of freedom.
    let [one, two, three] = [10.828, 13.816, 16.266];
    let hot = SampleConfig { temperature: 0.5, ..PLAIN };
    let top_k = SampleConfig { top_k: Some(3), ..PLAIN };
    let top_p = SampleConfig { top_p: Some(0.6), ..PLAIN };
    let min_p = SampleConfig { min_p: Some(0.4), ..PLAIN };
    let penalty = SampleConfig { repetition_penalty: Some(2.0), ..PLAIN };
    for (config, recent, weights, bound) in [
        (PLAIN, &[][..], [1.0, 2.0, 3.0, 4.0], three),
        (hot, &[], [1.0, 4.0, 9.0, 16.0], three),
        (top_k, &[], [0.0, 2.0, 3.0, 4.0], two),
        (top_p, &[], [0.0, 0.0, 3.0, 4.0], one),
        (min_p, &[], [0.0, 2.0, 3.0, 4.0], two),
        (penalty, &[3], [1.0, 2.0, 3.0, 2.0], three),
    ] {
        let chi = chi_square(config, recent, weights);
        assert!(chi < bound, "{config:?}: {chi} is above {bound}");
    }
    // The test can fail: draws at temperature 1 are not those of 0.5.
    assert!(chi_square(PLAIN, &[], [1.0, 4.0, 9.0, 16.0]) > three);
}

#[test]
fn each_draw_takes_one_uniform_of_the_sample_stream() {
    let config = SampleConfig { seed: 123, ..PLAIN };
    let mut sampler = Sampler::new(config, 4).unwrap();
    assert_eq!(sampler.config(), &config);
    let mut rng = Rng::new(123, Stream::Sample);
    for draw in 0..100 {
        let expected = pick(&distribution(config, &one_to_four(), &[]), rng.uniform());
        assert_eq!(sampler.sample(&one_to_four(), &[]), Ok(expected), "draw {draw}");
        // Neither a look at the distribution nor a failed call draws.
        sampler.distribution(&one_to_four(), &[]).unwrap();
        sampler.sample(&[f64::NAN; 4], &[]).unwrap_err();
    }
    let mut greedy = Sampler::new(SampleConfig { seed: 5, ..SampleConfig::greedy() }, 4).unwrap();
    greedy.sample(&one_to_four(), &[]).unwrap();
    assert_eq!(greedy.rng.position(), 2);
}

#[test]
fn a_seed_gives_the_same_tokens_on_every_target() {
    let config = SampleConfig {
        temperature: 0.9,
        top_k: Some(12),
        top_p: Some(0.95),
        min_p: Some(0.01),
        repetition_penalty: Some(1.1),
        repetition_window: 4,
        seed: 2026,
    };
    let mut sampler = Sampler::new(config, 16).unwrap();
    let mut tokens = Vec::new();
    for step in 0..16u16 {
        let logits: Vec<f32> = (0..16u16).map(|i| f32::from((i * 7 + step * 5) % 16) * 0.25 - 2.0).collect();
        tokens.push(sampler.sample(&logits, &tokens).unwrap());
    }
    // Found by an independent implementation in another language.
    assert_eq!(tokens, [11, 6, 0, 1, 1, 7, 7, 4, 14, 4, 11, 10, 0, 8, 12, 0]);
}

#[test]
fn nothing_is_allocated_after_new() {
    let config = SampleConfig { top_k: Some(3), top_p: Some(0.9), min_p: Some(0.1), ..PLAIN };
    let mut sampler = Sampler::new(config, 4).unwrap();
    let memory = |s: &Sampler| {
        let buffers = (s.logits.as_ptr(), s.probabilities.as_ptr(), s.candidates.as_ptr());
        (buffers, [s.logits.capacity(), s.probabilities.capacity(), s.candidates.capacity()])
    };
    let before = memory(&sampler);
    assert_eq!(before.1, [4; 3]);
    for _ in 0..10 {
        sampler.sample(&one_to_four(), &[0, 1]).unwrap();
    }
    assert_eq!(memory(&sampler), before);
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |config: SampleConfig| {
        let error = config.validate().unwrap_err();
        assert_eq!(Sampler::new(config, 4).unwrap_err().to_string(), error.to_string());
        error
    };
    for temperature in [-1.0, -5e-324, f64::INFINITY] {
        let error = refused(SampleConfig { temperature, ..PLAIN });
        assert_eq!(error, SampleError::Temperature { temperature });
    }
    assert_eq!(refused(SampleConfig { top_k: Some(0), ..PLAIN }), SampleError::TopK);
    for top_p in [0.0, -0.5, 1.0f64.next_up()] {
        assert_eq!(refused(SampleConfig { top_p: Some(top_p), ..PLAIN }), SampleError::TopP { top_p });
    }
    for min_p in [-5e-324, 1.0f64.next_up()] {
        assert_eq!(refused(SampleConfig { min_p: Some(min_p), ..PLAIN }), SampleError::MinP { min_p });
    }
    for penalty in [0.0, 1.0f64.next_down(), -2.0, f64::INFINITY] {
        let error = refused(SampleConfig { repetition_penalty: Some(penalty), ..PLAIN });
        assert_eq!(error, SampleError::RepetitionPenalty { penalty });
    }
    let error = refused(SampleConfig { repetition_window: 0, ..PLAIN });
    assert_eq!(error, SampleError::RepetitionWindow);
    let nan = f64::NAN;
    for config in [
        SampleConfig { temperature: nan, ..PLAIN },
        SampleConfig { top_p: Some(nan), ..PLAIN },
        SampleConfig { min_p: Some(nan), ..PLAIN },
        SampleConfig { repetition_penalty: Some(nan), ..PLAIN },
    ] {
        assert!(refused(config).to_string().contains("NaN"), "{config:?}");
    }
}

#[test]
fn settings_at_the_ends_of_their_ranges_are_accepted() {
    for config in [
        SampleConfig { temperature: f64::MAX, ..PLAIN },
        SampleConfig { temperature: 0.0, ..PLAIN },
        SampleConfig { top_k: Some(1), ..PLAIN },
        SampleConfig { top_k: Some(usize::MAX), ..PLAIN },
        SampleConfig { top_p: Some(5e-324), ..PLAIN },
        SampleConfig { top_p: Some(1.0), ..PLAIN },
        SampleConfig { min_p: Some(0.0), ..PLAIN },
        SampleConfig { min_p: Some(1.0), ..PLAIN },
        SampleConfig { repetition_penalty: Some(1.0), ..PLAIN },
        SampleConfig { repetition_penalty: Some(f64::MAX), ..PLAIN },
        SampleConfig { repetition_window: 1, ..PLAIN },
    ] {
        assert_eq!(config.validate(), Ok(()), "{config:?}");
    }
}

#[test]
fn a_vocabulary_that_cannot_be_counted_is_refused() {
    assert_eq!(Sampler::new(PLAIN, 0).unwrap_err(), SampleError::VocabSize { vocab_size: 0 });
    if let Some(vocab_size) = usize::try_from(u32::MAX).ok().and_then(|most| most.checked_add(1)) {
        assert_eq!(Sampler::new(PLAIN, vocab_size).unwrap_err(), SampleError::VocabSize { vocab_size });
    }
}

#[test]
fn errors_say_what_to_do() {
    for (error, message) in [
        (
            SampleError::Temperature { temperature: -0.5 },
            "temperature -0.5 is not a finite number of at least 0: 0 is greedy, 1 samples what the model says",
        ),
        (SampleError::TopK, "top-k of 0 keeps no token: use 1 or more, or none to keep all"),
        (
            SampleError::TopP { top_p: 1.5 },
            "top-p 1.5 is not above 0 and at most 1: 1 keeps all, 0.9 is common",
        ),
        (SampleError::MinP { min_p: 2.0 }, "min-p 2 is not between 0 and 1: 0 keeps all, 0.05 is common"),
        (
            SampleError::RepetitionPenalty { penalty: 0.5 },
            "repetition penalty 0.5 is not a finite number of at least 1: 1 changes nothing, 1.2 is common",
        ),
        (
            SampleError::RepetitionWindow,
            "a repetition window of 0 looks at no token: use 1 or more, and no penalty to turn it off",
        ),
        (
            SampleError::VocabSize { vocab_size: 0 },
            "a vocabulary of 0 tokens cannot be sampled from: use 1 to 4294967295",
        ),
        (
            SampleError::LogitCount { expected: 65, found: 64 },
            "64 logits for a vocabulary of 65: give those of one position, from the model that the sampler was \
             made for",
        ),
        (
            SampleError::Logit { token: 3, logit: f64::NAN },
            "the logit of token 3 is NaN: the model's numbers are broken; go back to an earlier checkpoint, and \
             if training made it so, use a lower learning rate",
        ),
        (
            SampleError::NoCandidate,
            "every logit is minus infinity: leave at least one token that may be chosen",
        ),
        (
            SampleError::Token { token: 70, vocab_size: 65 },
            "recent token 70 is not below the vocabulary's size of 65: use the tokenizer that the model was \
             trained with",
        ),
        (
            SampleError::OutOfMemory,
            "the sampler's scratch, 20 bytes a token of the vocabulary, does not fit in memory",
        ),
    ] {
        assert_eq!(error.to_string(), message);
    }
}
