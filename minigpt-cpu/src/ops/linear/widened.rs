//! Many rows with a weight in fewer bits: it is widened on its way into panels.

use crate::arch::Vector;
use crate::context::{Job, Team};
use crate::gemm::register_tile;
use crate::ops::weight::{Format, Weight, row_of, with_format};
use crate::par::Chunks;

/// The most lanes that a vector has.
const LANES: usize = 16;

/// As [`crate::gemm::pack_transposed`], from a weight of `cols` columns in any format.
pub(super) fn pack_transposed(team: &mut Team<'_>, weight: Weight<'_>, cols: usize, packed: &mut [f32]) {
    let panel = register_tile(team.simd.isa()).1;
    team.for_each(Chunks::new(packed, panel * cols), &Pack { weight, cols, panel });
}

struct Pack<'a> {
    weight: Weight<'a>,
    cols: usize,
    panel: usize,
}

impl Job<Chunks<'_, f32>> for Pack<'_> {
    #[inline(always)]
    fn run<V: Vector>(&self, t: V::Token, index: usize, packed: &mut [f32]) {
        with_format!(self.weight, |units: W| self.panel::<V, W>(t, units, index * self.panel, packed));
    }
}

impl Pack<'_> {
    /// Packs the rows of the weight from `first` on, as many as a panel has, and zeros for those that are not there.
    #[inline(always)]
    fn panel<V: Vector, W: Format>(&self, t: V::Token, units: &[W::Unit], first: usize, packed: &mut [f32]) {
        let (cols, panel) = (self.cols, self.panel);
        let rows = units.len() / cols.div_ceil(W::ELEMENTS);
        let mut square = [0.0; LANES * LANES];
        for lane in (0..panel).step_by(V::LANES) {
            let there = V::LANES.min(rows.saturating_sub(first + lane));
            if there < V::LANES {
                square.fill(0.0);
            }
            for col in (0..cols).step_by(V::LANES) {
                let width = V::LANES.min(cols - col);
                for i in 0..there {
                    let row = row_of::<W>(units, first + lane + i, cols);
                    let whole = width == V::LANES;
                    let w = if whole { W::load::<V>(t, row, col) } else { W::load_rest::<V>(t, row, col) };
                    w.store(&mut square[i * V::LANES..]);
                }
                let to = &mut packed[col * panel + lane..];
                if width == V::LANES {
                    V::transpose(t, &square, V::LANES, to, panel);
                } else {
                    for c in 0..width {
                        for i in 0..V::LANES {
                            to[c * panel + i] = square[i * V::LANES + c];
                        }
                    }
                }
            }
        }
    }
}
