//! Rotary positions: queries and keys are turned by an angle that grows with their position.
//!
//! ```text
//! angle(p, i) = p base^(-2i/D)
//! (a, b)  becomes  (a cos - b sin,  a sin + b cos)      for pair i of a head:
//!
//! adjacent    a = x[2i],  b = x[2i + 1]
//! halves      a = x[i],   b = x[i + D/2]
//!
//! x       (B, T, H, D)       its rows may lie apart; turned in place
//! table   (positions, D)     D/2 pairs (cos, sin) for each position
//! ```
//!
//! Turning q by angle(p) and k by angle(s) turns their product by the difference: the score depends on p - s only,
//! which is what "how far back" means. The larger the base, the slower the slowest pairs turn, and the further apart positions
//! can lie that they still tell apart. Which elements are a pair does not matter to a model that learns it, only to one that
//! comes from elsewhere: the two pairings are one another's with the elements of a head in another order.
//!
//! A rotation is linear, y = Q x, and orthogonal: Q^T Q = 1. So d_x = Q^T d_y, and Q^T is the turn back. That is all
//! there is to the gradient, and `inverse` is all that it needs.
//!
//! Source: Su et al. 2021, "RoFormer", arXiv:2104.09864, section 3.2.

use super::position::frequency;
use crate::config::Pairing;
use crate::real::Real;

/// Fills `table`, (positions, D), with pairs (cos, sin), computed in f64 and rounded once. Rows that are not whole
/// are left as they are.
///
/// ```
/// let mut table = [0.0f64; 4];
/// minigpt_core::reference::rotary::rotary_table(&mut table, 2, 10_000.0);
/// assert_eq!(table, [1.0, 0.0, 1f64.cos(), 1f64.sin()]);
/// ```
pub fn rotary_table<R: Real>(table: &mut [R], d_head: usize, base: f64) {
    for p in 0..table.len().checked_div(d_head).unwrap_or(0) {
        for i in 0..d_head / 2 {
            let angle = p as f64 * frequency(base, i, d_head);
            table[p * d_head + 2 * i] = R::from_f64(libm::cos(angle));
            table[p * d_head + 2 * i + 1] = R::from_f64(libm::sin(angle));
        }
    }
}

/// Turns every head of `x`, whose rows lie `stride` apart, or turns them back if `inverse`. `table` begins at the first row's
/// position: (T, D).
///
/// # Panics
/// If a slice does not fit its shape.
///
/// ```
/// use minigpt_core::{Pairing, reference::rotary::rotary};
/// let quarter_turn = [0.0, 1.0, 0.0, 1.0];
/// let mut x = [1.0, 2.0, 3.0, 4.0]; // one token, one head, D = 4
/// rotary(&mut x, 4, &quarter_turn, Pairing::Adjacent, false, 1, 1, 1, 4);
/// assert_eq!(x, [-2.0, 1.0, -4.0, 3.0]);
///
/// let mut x = [1.0, 2.0, 3.0, 4.0];
/// rotary(&mut x, 4, &quarter_turn, Pairing::Halves, false, 1, 1, 1, 4);
/// assert_eq!(x, [-3.0, -4.0, 1.0, 2.0]);
/// ```
pub fn rotary<R: Real>(
    x: &mut [R],
    stride: usize,
    table: &[R],
    pairing: Pairing,
    inverse: bool,
    batch: usize,
    time: usize,
    heads: usize,
    d_head: usize,
) {
    // From one pair to the next, and from its first element to its second.
    let (step, across) = match pairing {
        Pairing::Adjacent => (2, 1),
        Pairing::Halves => (1, d_head / 2),
    };
    for b in 0..batch {
        for t in 0..time {
            let turns = &table[t * d_head..][..d_head];
            let row = &mut x[(b * time + t) * stride..][..heads * d_head];
            for head in 0..heads {
                for i in 0..d_head / 2 {
                    let (cos, sin) = (turns[2 * i], turns[2 * i + 1]);
                    let sin = if inverse { -sin } else { sin };
                    let at = head * d_head + step * i;
                    let (first, second) = (row[at], row[at + across]);
                    row[at] = first * cos - second * sin;
                    row[at + across] = first * sin + second * cos;
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

    const PAIRINGS: [Pairing; 2] = [Pairing::Adjacent, Pairing::Halves];

    #[test]
    fn the_table_holds_cosine_and_sine_of_the_papers_angles() {
        let d_head = 6;
        for base in [10_000.0, 500_000.0] {
            let mut table = [f64::NAN; 5 * 6];
            rotary_table(&mut table, d_head, base);
            for p in 0..5 {
                for i in 0..3 {
                    let angle = p as f64 * base.powf(-2.0 * i as f64 / 6.0);
                    assert_close(&table[p * 6 + 2 * i..][..2], &[angle.cos(), angle.sin()], 1e-15);
                }
            }
        }
        let mut uneven = [9.0; 5];
        rotary_table(&mut uneven, 4, 1e4);
        assert_eq!(uneven[4], 9.0);
        rotary_table(&mut uneven, 0, 1e4);
    }

    #[test]
    fn every_pair_is_turned_by_its_positions_angle_and_nothing_else_is() {
        let (batch, time, heads, d_head, stride) = (2, 3, 2, 6, 15);
        let before = random(1, batch * time * stride);
        let mut table = vec![0.0; time * d_head];
        rotary_table(&mut table, d_head, 100.0);
        for pairing in PAIRINGS {
            let mut x = before.clone();
            rotary(&mut x, stride, &table, pairing, false, batch, time, heads, d_head);
            for (row, (x, before)) in x.chunks(stride).zip(before.chunks(stride)).enumerate() {
                assert_eq!(x[12..], before[12..]);
                for (head, i) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)] {
                    let angle = (row % time) as f64 * 100f64.powf(-2.0 * i as f64 / 6.0);
                    let places = match pairing {
                        Pairing::Adjacent => [2 * i, 2 * i + 1],
                        Pairing::Halves => [i, i + 3],
                    };
                    let [a, b] = places.map(|place| before[head * d_head + place]);
                    let turned = [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()];
                    assert_close(&places.map(|place| x[head * d_head + place]), &turned, 1e-14);
                }
            }
        }
    }

    #[test]
    fn gradient_is_the_turn_back() {
        let (batch, time, heads, d_head) = (2, 3, 3, 4);
        let (stride, len) = (heads * d_head, batch * time * heads * d_head);
        let (x, weights) = (random(1, len), random(2, len));
        let mut table = vec![0.0; time * d_head];
        rotary_table(&mut table, d_head, 1e4);
        for pairing in PAIRINGS {
            let mut d_x = weights.clone();
            rotary(&mut d_x, stride, &table, pairing, true, batch, time, heads, d_head);
            assert_gradient("x", &d_x, &x, |x| {
                let mut turned = x.to_vec();
                rotary(&mut turned, stride, &table, pairing, false, batch, time, heads, d_head);
                weighted_sum(&turned, &weights)
            });
            rotary(&mut d_x, stride, &table, pairing, false, batch, time, heads, d_head);
            assert_close(&d_x, &weights, 1e-14);
        }
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let d_head = 4;
        let mut table = vec![0.0; 9 * d_head];
        rotary_table(&mut table, d_head, 1e4);
        let row = random(1, 2 * d_head);
        for pairing in PAIRINGS {
            let turned = |p: usize| {
                let mut qk = row.clone();
                rotary(&mut qk, 2 * d_head, &table[p * d_head..], pairing, false, 1, 1, 2, d_head);
                qk
            };
            let score = |q: usize, k: usize| -> f64 {
                let (q, k) = (turned(q), turned(k));
                (0..d_head).map(|i| q[i] * k[d_head + i]).sum()
            };
            assert_close(&[score(3, 1), score(8, 6)], &[score(2, 0), score(2, 0)], 1e-14);
            assert!((score(3, 1) - score(3, 2)).abs() > 1e-3);
        }
    }
}
