//! Rotary positions: queries and keys are turned by an angle that grows with their position.
//!
//! ```text
//! angle(p, i) = p 10000^(-2i/D)
//! (x[2i], x[2i + 1])  becomes  (x[2i] cos - x[2i + 1] sin,  x[2i] sin + x[2i + 1] cos)
//!
//! qkv     (B, T, 3, H, D)    queries and keys change, values stay
//! table   (positions, D)     D/2 pairs (cos, sin) for each position
//! ```
//!
//! Turning q by angle(p) and k by angle(s) turns their product by the difference: the score depends on p - s only,
//! which is what "how far back" means.
//!
//! A rotation is linear, y = Q x, and orthogonal: Q^T Q = 1. So d_x = Q^T d_y, and Q^T is the turn back. That is all
//! there is to the gradient, and `inverse` is all that it needs.
//!
//! Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, section 3.2.

use super::position::frequency;
use crate::real::Real;

/// Fills `table`, (positions, D), with pairs (cos, sin), computed in f64 and rounded once. Rows that are not whole
/// are left as they are.
///
/// ```
/// let mut table = [0.0f64; 4];
/// minigpt_core::reference::rotary::rotary_table(&mut table, 2);
/// assert_eq!(table, [1.0, 0.0, 1f64.cos(), 1f64.sin()]);
/// ```
pub fn rotary_table<R: Real>(table: &mut [R], d_head: usize) {
    for p in 0..table.len().checked_div(d_head).unwrap_or(0) {
        for i in 0..d_head / 2 {
            let angle = p as f64 * frequency(i, d_head);
            table[p * d_head + 2 * i] = R::from_f64(libm::cos(angle));
            table[p * d_head + 2 * i + 1] = R::from_f64(libm::sin(angle));
        }
    }
}

/// Turns the queries and keys of `qkv`, or turns them back if `inverse`. `table` begins at the first row's
/// position: (T, D).
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::reference::rotary::rotary;
/// let mut qkv = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // q, k, v of one token, one head, D = 2
/// let quarter_turn = [0.0, 1.0];
/// rotary(&mut qkv, &quarter_turn, false, 1, 1, 1, 2);
/// assert_eq!(qkv, [-2.0, 1.0, -4.0, 3.0, 5.0, 6.0]);
/// ```
pub fn rotary<R: Real>(
    qkv: &mut [R],
    table: &[R],
    inverse: bool,
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
) {
    let d_model = heads * d_head;
    for b in 0..batch {
        for t in 0..time {
            let turns = &table[t * d_head..][..d_head];
            // Queries and keys side by side, one head after the other: the first 2C of the row's 3C.
            let row = &mut qkv[(b * time + t) * 3 * d_model..][..2 * d_model];
            for head in 0..2 * heads {
                for i in 0..d_head / 2 {
                    let (cos, sin) = (turns[2 * i], turns[2 * i + 1]);
                    let sin = if inverse { -sin } else { sin };
                    let at = head * d_head + 2 * i;
                    let (even, odd) = (row[at], row[at + 1]);
                    row[at] = even * cos - odd * sin;
                    row[at + 1] = even * sin + odd * cos;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_gradient, random, weighted_sum};
    use super::*;
    use alloc::vec;

    #[test]
    fn the_table_holds_cosine_and_sine_of_the_papers_angles() {
        let d_head = 6;
        let mut table = [f64::NAN; 5 * 6];
        rotary_table(&mut table, d_head);
        for p in 0..5 {
            for i in 0..3 {
                let angle = p as f64 * 10_000f64.powf(-2.0 * i as f64 / 6.0);
                assert_close(&table[p * 6 + 2 * i..][..2], &[angle.cos(), angle.sin()], 1e-15);
            }
        }
        let mut uneven = [9.0; 5];
        rotary_table(&mut uneven, 4);
        assert_eq!(uneven[4], 9.0);
        rotary_table(&mut uneven, 0);
    }

    #[test]
    fn every_pair_of_queries_and_keys_is_turned_by_its_positions_angle() {
        let (batch, time, heads, d_head) = (2, 3, 2, 4);
        let before = random(1, batch * time * 3 * heads * d_head);
        let mut table = vec![0.0; time * d_head];
        rotary_table(&mut table, d_head);
        let mut qkv = before.clone();
        rotary(&mut qkv, &table, false, batch, time, heads, d_head);
        for pair in 0..before.len() / 2 {
            let (part, t) = (pair / 4 % 3, pair / 12 % time);
            let angle = t as f64 * 10_000f64.powf(-((pair % 2) as f64) / 2.0);
            let (x, y) = (before[2 * pair], before[2 * pair + 1]);
            let turned = [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()];
            let expected = if part == 2 { [x, y] } else { turned };
            assert_close(&qkv[2 * pair..][..2], &expected, 1e-14);
        }
    }

    #[test]
    fn gradient_is_the_turn_back() {
        let (batch, time, heads, d_head) = (2, 3, 3, 2);
        let len = batch * time * 3 * heads * d_head;
        let (qkv, weights) = (random(1, len), random(2, len));
        let mut table = vec![0.0; time * d_head];
        rotary_table(&mut table, d_head);
        let mut d_qkv = weights.clone();
        rotary(&mut d_qkv, &table, true, batch, time, heads, d_head);
        assert_gradient("qkv", &d_qkv, &qkv, |qkv| {
            let mut turned = qkv.to_vec();
            rotary(&mut turned, &table, false, batch, time, heads, d_head);
            weighted_sum(&turned, &weights)
        });
        rotary(&mut d_qkv, &table, false, batch, time, heads, d_head);
        assert_close(&d_qkv, &weights, 1e-14);
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let d_head = 4;
        let mut table = vec![0.0; 9 * d_head];
        rotary_table(&mut table, d_head);
        let row = random(1, 3 * d_head);
        let turned = |p: usize| {
            let mut qkv = row.clone();
            rotary(&mut qkv, &table[p * d_head..], false, 1, 1, 1, d_head);
            qkv
        };
        let score = |q: usize, k: usize| -> f64 {
            let (q, k) = (turned(q), turned(k));
            (0..d_head).map(|i| q[i] * k[d_head + i]).sum()
        };
        assert_close(&[score(3, 1), score(8, 6)], &[score(2, 0), score(2, 0)], 1e-14);
        assert!((score(3, 1) - score(3, 2)).abs() > 1e-3);
    }
}
