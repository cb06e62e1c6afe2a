//! Any logits and settings give a token that may be chosen, or an error.

use arbitrary::{Result, Unstructured};
use minigpt_core::{SampleConfig, Sampler};

use super::draw;

/// Settings, then logits and recent tokens.
pub fn sampler(data: &[u8]) {
    let _ = sample(&mut Unstructured::new(data));
}

fn sample(u: &mut Unstructured<'_>) -> Result<()> {
    let config = SampleConfig {
        temperature: draw::float(u)?,
        top_k: if u.arbitrary()? { Some(draw::dimension(u)?) } else { None },
        top_p: if u.arbitrary()? { Some(draw::float(u)?) } else { None },
        min_p: if u.arbitrary()? { Some(draw::float(u)?) } else { None },
        repetition_penalty: if u.arbitrary()? { Some(draw::float(u)?) } else { None },
        repetition_window: draw::dimension(u)?,
        seed: u.arbitrary()?,
    };
    let vocab_size = u.int_in_range(0..=40usize)?;
    let made = Sampler::new(config, vocab_size);
    assert_eq!(made.is_ok(), config.validate().is_ok() && vocab_size > 0);
    let Ok(mut first) = made else { return Ok(()) };
    let mut second = Sampler::new(config, vocab_size).expect("it was made before");

    for _ in 0..u.int_in_range(1..=4)? {
        let logits: Vec<f32> =
            (0..vocab_size).map(|_| draw::float(u).map(|logit| logit as f32)).collect::<Result<_>>()?;
        let recent: Vec<u32> =
            (0..u.int_in_range(0..=6)?).map(|_| u.int_in_range(0..=41)).collect::<Result<_>>()?;
        let probabilities = first.distribution(&logits, &recent).map(<[f64]>::to_vec);
        let token = first.sample(&logits, &recent);
        assert_eq!(second.sample(&logits, &recent).is_ok(), token.is_ok());
        match (probabilities, token) {
            (Ok(probabilities), Ok(token)) => {
                let sum: f64 = probabilities.iter().sum();
                assert!((sum - 1.0).abs() < 1e-9, "{probabilities:?}");
                assert!(probabilities.iter().all(|p| (0.0..=1.0).contains(p)), "{probabilities:?}");
                assert!(probabilities[token as usize] > 0.0, "{token} of {probabilities:?}");
                assert_ne!(logits[token as usize], f32::NEG_INFINITY);
                let kept = probabilities.iter().filter(|p| **p > 0.0).count();
                assert!(kept <= config.top_k.unwrap_or(vocab_size));
            }
            (Err(expected), Err(error)) => {
                // Compared as text, because the logit that it names may be NaN.
                assert_eq!(expected.to_string(), error.to_string());
                let broken = logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
                let unknown = recent.iter().any(|token| *token as usize >= vocab_size);
                let below = f64::from(logits.iter().fold(f32::NEG_INFINITY, |max, logit| max.max(*logit)));
                let none = below * config.repetition_penalty.unwrap_or(1.0) == f64::NEG_INFINITY;
                assert!(broken || unknown || none, "{error}");
            }
            (expected, found) => panic!("{expected:?} and {found:?}"),
        }
        let (state, again) = (first.sample(&logits, &recent), second.sample(&logits, &recent));
        assert_eq!(state.ok(), again.ok(), "the same seed draws the same token");
    }
    Ok(())
}
