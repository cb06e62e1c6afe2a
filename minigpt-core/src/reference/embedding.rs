//! Embedding: a token becomes the row of a table, plus the row of its position.
//!
//! ```text
//! out[b, t] = token_embedding[tokens[b, t]] + position_embedding[start + t]      then dropout
//!
//! tokens               (B, T)    ids below V
//! token_embedding      (V, C)
//! position_embedding   (start + T or more, C)
//! out                  (B, T, C)
//! ```
//!
//! A lookup is a product with a one-hot vector, so its gradient goes to the one row that was looked up. A token that
//! occurs many times gets the sum:
//!
//! ```text
//! d_token_embedding[v]    += sum over (b, t) with tokens[b, t] = v of d_out[b, t]
//! d_position_embedding[t] += sum over b of d_out[b, t]
//! ```
//!
//! where d_out has gone back through the dropout first.

use super::dropout::{Mask, drop_out};
use crate::real::Real;

/// Embeds `tokens`, which must be below V. `position_embedding` begins at the first token's position: (T, C).
///
/// # Panics
/// If a slice does not fit its shape or a token is outside the table; [`fall_back`](crate::backend::fall_back) checks both.
///
/// ```
/// use minigpt_core::reference::embedding::embedding_forward;
/// let token_embedding = [1.0, 2.0, 3.0, 4.0]; // (V, C) = (2, 2)
/// let position_embedding = [10.0, 20.0, 30.0, 40.0]; // (T, C) = (2, 2)
/// let mut out = [0.0; 4];
/// embedding_forward(&[1, 1], &token_embedding, Some(&position_embedding), None, &mut out, 1, 2, 2);
/// assert_eq!(out, [13.0, 24.0, 33.0, 44.0]);
/// ```
pub fn embedding_forward<R: Real>(
    tokens: &[u32],
    token_embedding: &[R],
    position_embedding: Option<&[R]>,
    dropout: Option<&Mask>,
    out: &mut [R],
    batch: usize,
    time: usize,
    d_model: usize,
) {
    for b in 0..batch {
        for t in 0..time {
            let row = b * time + t;
            let token = tokens[row] as usize;
            for c in 0..d_model {
                let mut sum = token_embedding[token * d_model + c];
                if let Some(position) = position_embedding {
                    sum += position[t * d_model + c];
                }
                let index = row * d_model + c;
                out[index] = drop_out(dropout, index, sum);
            }
        }
    }
}

/// Adds to the gradients of both tables, if they are given. `d_position_embedding` is (T, C).
///
/// # Panics
/// As [`embedding_forward`].
pub fn embedding_backward<R: Real>(
    tokens: &[u32],
    d_out: &[R],
    dropout: Option<&Mask>,
    mut d_token_embedding: Option<&mut [R]>,
    mut d_position_embedding: Option<&mut [R]>,
    batch: usize,
    time: usize,
    d_model: usize,
) {
    for b in 0..batch {
        for t in 0..time {
            let row = b * time + t;
            let token = tokens[row] as usize;
            for c in 0..d_model {
                let index = row * d_model + c;
                let d_sum = drop_out(dropout, index, d_out[index]);
                if let Some(d_token) = d_token_embedding.as_deref_mut() {
                    d_token[token * d_model + c] += d_sum;
                }
                if let Some(d_position) = d_position_embedding.as_deref_mut() {
                    d_position[t * d_model + c] += d_sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;

    #[test]
    fn gradient_matches_finite_differences() {
        let mask = Mask::new(0.4, 2, &[1, 0, 5, 0]);
        for (batch, time, d_model, vocab) in [(1, 2, 4, 1), (2, 3, 5, 4), (3, 2, 4, 7)] {
            let tokens: vec::Vec<u32> = (0..batch * time).map(|i| ((i * i + 1) % vocab) as u32).collect();
            let table = random(1, vocab * d_model);
            let positions = random(2, time * d_model);
            let weights = random(3, batch * time * d_model);
            for (dropout, with_position) in [(None, true), (Some(&mask), true), (None, false)] {
                let forward = |table: &[f64], positions: &[f64]| {
                    let mut out = vec![f64::NAN; batch * time * d_model];
                    let positions = with_position.then_some(positions);
                    embedding_forward(&tokens, table, positions, dropout, &mut out, batch, time, d_model);
                    weighted_sum(&out, &weights)
                };
                // The gradients begin at 1: the op adds to them.
                let mut d_table = vec![1.0; table.len()];
                let mut d_positions = vec![1.0; positions.len()];
                let d_position = with_position.then_some(&mut d_positions[..]);
                embedding_backward(
                    &tokens,
                    &weights,
                    dropout,
                    Some(&mut d_table),
                    d_position,
                    batch,
                    time,
                    d_model,
                );
                let added: fn(f64) -> f64 = |d| d - 1.0;
                let d_table: vec::Vec<f64> = d_table.into_iter().map(added).collect();
                let d_positions: vec::Vec<f64> = d_positions.into_iter().map(added).collect();
                assert_gradient("token_embedding", &d_table, &table, |t| forward(t, &positions));
                if with_position {
                    assert_gradient("position_embedding", &d_positions, &positions, |p| forward(&table, p));
                }
            }
        }
    }

    #[test]
    fn a_token_that_occurs_twice_gets_the_sum() {
        let (mut d_table, mut d_positions) = ([0.0; 4], [0.0; 2]);
        let d_out = [1.0, 20.0, 300.0];
        embedding_backward(
            &[2, 0, 2],
            &d_out,
            None,
            Some(&mut d_table),
            Some(&mut d_positions[..1]),
            3,
            1,
            1,
        );
        assert_eq!((d_table, d_positions), ([20.0, 0.0, 301.0, 0.0], [321.0, 0.0]));
        // One of them without the other.
        embedding_backward(&[2, 0, 2], &d_out, None, Some(&mut d_table), None, 3, 1, 1);
        embedding_backward(&[2, 0, 2], &d_out, None, None, Some(&mut d_positions), 3, 1, 1);
        assert_eq!((d_table, d_positions), ([40.0, 0.0, 602.0, 0.0], [642.0, 0.0]));
    }
}
