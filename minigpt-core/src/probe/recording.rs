//! [`Recording`]: a probe that keeps what it sees.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::{Point, Probe, TensorKind};
use crate::memory::InvalidOp;
use crate::plan::Tensor;
use crate::real::Real;

/// A probe that keeps the tensors that a closure wants. Of each it keeps the latest: it can observe one step after the other.
///
/// ```
/// use minigpt_core::probe::{Recording, TensorKind};
/// use minigpt_core::{GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
/// let config = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(Reference::<f32>::new(), config, 1)?;
/// let mut trainer = Trainer::new(&model, TrainConfig { time: 4, ..TrainConfig::constant(0.1) })?;
/// let mut recording = Recording::of(|at| at.kind == TensorKind::Activation || at.kind == TensorKind::Loss)
///     .with_gradients_of(|parameter| parameter.name == "wte.weight");
/// trainer.observe_step(&Windows::new(&[0u32, 1, 2, 3, 4, 0, 1], 4)?, &mut recording)?;
///
/// let activations = recording.value(1, TensorKind::Activation).ok_or("not observed")?;
/// let gradients = recording.gradient(1, TensorKind::Activation).ok_or("not observed")?;
/// assert_eq!((activations.len(), gradients.len()), (4 * 16, 4 * 16)); // (B, T, F)
/// assert_eq!(recording.value(None, TensorKind::Loss).map(|losses| losses.len()), Some(4));
/// assert_eq!(recording.parameter_gradient("wte.weight").map(|g| g.len()), Some(5 * 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Recording<R, W> {
    wants: W,
    wants_gradient: fn(&Tensor) -> bool,
    tensors: Vec<(Point, Vec<R>)>,
    gradients: Vec<(String, Vec<R>)>,
}

impl<R, W: FnMut(&Point) -> bool> Recording<R, W> {
    /// One of the tensors that `wants` says yes to. All of them: `|_| true`.
    pub fn of(wants: W) -> Self {
        Recording { wants, wants_gradient: |_| false, tensors: Vec::new(), gradients: Vec::new() }
    }
}

impl<R, W> Recording<R, W> {
    /// Also of the gradients of the parameters that `wants` says yes to.
    #[must_use]
    pub fn with_gradients_of(self, wants: fn(&Tensor) -> bool) -> Self {
        Recording { wants_gradient: wants, ..self }
    }

    /// The values of the tensor, `layer` being the number of its block, or `None` for one in no block. `None` if it was not
    /// seen.
    pub fn value(&self, layer: impl Into<Option<usize>>, kind: TensorKind) -> Option<&[R]> {
        self.find(layer.into(), kind, false)
    }

    /// The gradient of the summed loss with respect to the tensor, as [`value`](Recording::value).
    pub fn gradient(&self, layer: impl Into<Option<usize>>, kind: TensorKind) -> Option<&[R]> {
        self.find(layer.into(), kind, true)
    }

    fn find(&self, layer: Option<usize>, kind: TensorKind, gradient: bool) -> Option<&[R]> {
        self.iter()
            .find(|(at, _)| (at.layer, at.kind, at.gradient) == (layer, kind, gradient))
            .map(|(_, values)| values)
    }

    /// The gradient of the parameter called `name`: of the mean loss over the targets of the step so far.
    pub fn parameter_gradient(&self, name: &str) -> Option<&[R]> {
        self.gradients.iter().find(|(of, _)| of == name).map(|(_, values)| &values[..])
    }

    /// All tensors and gradients of tensors, in the order in which they came first.
    pub fn iter(&self) -> impl Iterator<Item = (&Point, &[R])> {
        self.tensors.iter().map(|(at, values)| (at, &values[..]))
    }

    /// All gradients of parameters with the parameters' names.
    pub fn parameter_gradients(&self) -> impl Iterator<Item = (&str, &[R])> {
        self.gradients.iter().map(|(name, values)| (&name[..], &values[..]))
    }

    /// Forgets all that it has seen.
    pub fn clear(&mut self) {
        self.tensors.clear();
        self.gradients.clear();
    }
}

/// Puts `values` in the place of those that came before under the same key, or behind the others.
fn keep<K, R>(
    list: &mut Vec<(K, Vec<R>)>,
    is_same: impl Fn(&K) -> bool,
    key: impl FnOnce() -> Result<K, InvalidOp>,
    values: Vec<R>,
) -> Result<(), InvalidOp> {
    if let Some((_, place)) = list.iter_mut().find(|(known, _)| is_same(known)) {
        *place = values;
        return Ok(());
    }
    list.try_reserve(1).map_err(|_| no_room((list.len() + 1).saturating_mul(size_of::<(K, Vec<R>)>())))?;
    list.push((key()?, values));
    Ok(())
}

fn no_room(bytes: usize) -> InvalidOp {
    InvalidOp::HostMemory { operand: "recording", bytes }
}

impl<R: Real, W: FnMut(&Point) -> bool> Probe<R> for Recording<R, W> {
    fn wants(&mut self, at: &Point) -> bool {
        (self.wants)(at)
    }

    fn see(&mut self, at: &Point, values: Vec<R>) -> Result<(), InvalidOp> {
        let key = |at: &Point| (at.layer, at.kind, at.gradient);
        // A batch of another shape takes the place of the one before.
        if let Some((known, _)) = self.tensors.iter_mut().find(|(known, _)| key(known) == key(at)) {
            *known = *at;
        }
        keep(&mut self.tensors, |known| known == at, || Ok(*at), values)
    }

    fn wants_gradient(&mut self, of: &Tensor) -> bool {
        (self.wants_gradient)(of)
    }

    fn see_gradient(&mut self, of: &Tensor, values: Vec<R>) -> Result<(), InvalidOp> {
        let name = || {
            let mut name = String::new();
            name.try_reserve_exact(of.name.len()).map_err(|_| no_room(of.name.len()))?;
            name.push_str(&of.name);
            Ok(name)
        };
        keep(&mut self.gradients, |known| *known == of.name, name, values)
    }
}

impl<R, W> fmt::Debug for Recording<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = self.tensors.iter().map(|(at, _)| at);
        f.debug_set().entries(tensors).entries(self.gradients.iter().map(|(name, _)| name)).finish()
    }
}
