//! Which parameters a plan trains, and where their gradients lie and what optimizers keep.

use alloc::vec::Vec;

use super::{ALIGN, Layout, Parameters, Plan, Purpose, Region, Tensor};
use crate::config::{ConfigError, Group, Groups, Optimizer};

/// Parameters that lie side by side and are all trained.
///
/// A gradient has the same place in a stretch of gradients as its parameter in the stretch of parameters, and so has its moving
/// average. With nothing frozen there is one stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Among the parameters.
    pub parameters: Region,
    /// Among the gradients.
    pub gradients: Region,
    /// Among what optimizers keep, if there is a moving average.
    pub average: Option<Region>,
}

/// What a training keeps of a parameter from step to step, besides itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct States<T> {
    /// What its optimizer keeps, in the order of [`Optimizer::states`].
    pub optimizer: [Option<T>; Optimizer::MOST_STATES],
    /// Its moving average.
    pub average: Option<T>,
}

/// What a moving average is called in checkpoints.
pub(crate) const AVERAGE: &str = "ema";

impl<T> Default for States<T> {
    /// None.
    fn default() -> Self {
        States { optimizer: core::array::from_fn(|_| None), average: None }
    }
}

impl<T> States<T> {
    /// Those that are there, each with its name in the checkpoints of a parameter of this group.
    pub(crate) fn named(&self, group: &Group) -> impl Iterator<Item = (&'static str, &T)> {
        let own = group.optimizer.states().iter().copied().zip(&self.optimizer);
        own.chain([(AVERAGE, &self.average)]).filter_map(|(name, state)| Some((name, state.as_ref()?)))
    }

    /// The one of that name.
    pub(crate) fn get(&self, group: &Group, name: &str) -> Option<&T> {
        self.named(group).find(|(found, _)| *found == name).map(|(_, state)| state)
    }

    /// The same for each one's image under `f`.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> States<U> {
        States { optimizer: self.optimizer.map(|state| state.map(&mut f)), average: self.average.map(f) }
    }
}

/// What an optimizer goes over at once: parameters side by side whose groups are alike, or one matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// How.
    pub group: Group,
    /// Among the parameters.
    pub parameters: Region,
    /// Among the gradients.
    pub gradients: Region,
    /// What the optimizer keeps of them.
    pub states: [Option<Region>; Optimizer::MOST_STATES],
    /// Rows and columns, if the optimizer needs to know them: Muon.
    pub matrix: Option<[usize; 2]>,
}

impl Plan {
    /// The same plan of a training that leaves some parameters as they are: those that `frozen` says. They have no gradients
    /// and nothing that optimizers keep, and no bytes for them, and the backward pass ends where nothing below is trained. What
    /// forward and backward compute keeps its room. A plan for inference stays as it is.
    ///
    /// With tied embeddings the head is the token embedding: freezing `wte.weight` freezes both.
    ///
    /// ```
    /// use minigpt_core::{Bias, Dtype, GptConfig, Plan};
    /// let config = GptConfig { tied_embeddings: false, ..GptConfig::new(65, 64) };
    /// let whole = Plan::training(&config, Dtype::F32, 12, 64)?;
    /// let head = whole.clone().freezing(|tensor| tensor.name != "lm_head.weight");
    /// assert_eq!(head.bytes.gradients, 4 * 65 * config.d_model);
    /// assert_eq!(head.bytes.optimizer, 2 * head.bytes.gradients);
    /// assert!(head.program()?.flops() < whole.program()?.flops() / 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn freezing(mut self, mut frozen: impl FnMut(&Tensor) -> bool) -> Plan {
        if self.purpose == Purpose::Training {
            let trained: Vec<bool> =
                self.parameters.list().into_iter().map(|tensor| !frozen(tensor)).collect();
            // A part of what has been laid out already: there is nothing that could be too large.
            let _ = self.lay_out_training(&trained);
        }
        self
    }

    /// The same plan of a training by other optimizers, with a moving average of the weights if `average` is some decay. A plan
    /// for inference stays as it is. [`TrainConfig::plan`](crate::TrainConfig::plan) is that of all its settings.
    ///
    /// # Errors
    /// If what is kept is too large to be counted.
    ///
    /// ```
    /// use minigpt_core::{Dtype, GptConfig, Groups, Plan};
    /// let adamw = Plan::training(&GptConfig::new(65, 64), Dtype::F32, 12, 64)?;
    /// assert_eq!(adamw.bytes.optimizer, 2 * adamw.bytes.gradients);
    /// let sgd = adamw.clone().optimizing(&Groups::sgd(0.9, true, 0.0), None)?;
    /// assert_eq!(sgd.bytes.optimizer, sgd.bytes.gradients);
    /// let averaged = sgd.optimizing(&Groups::sgd(0.0, false, 0.0), Some(0.999))?;
    /// assert_eq!(averaged.bytes.optimizer, averaged.bytes.gradients);
    /// # Ok::<(), minigpt_core::ConfigError>(())
    /// ```
    pub fn optimizing(mut self, groups: &Groups, average: Option<f64>) -> Result<Plan, ConfigError> {
        if self.purpose == Purpose::Training {
            let trained: Vec<bool> = self.gradients.list().into_iter().map(Option::is_some).collect();
            (self.groups, self.average) = (*groups, average);
            self.lay_out_training(&trained)?;
        }
        Ok(self)
    }

    /// The parameters that are trained, in the order of the model.
    pub fn trained(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters
            .list()
            .into_iter()
            .zip(self.gradients.list())
            .filter_map(|(tensor, region)| region.is_some().then_some(tensor))
    }

    /// What is kept of the parameters that are trained, in the order of checkpoints: all of one name, then all of the next.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&'static str, &Tensor, Region)> {
        let names = ["adam.m", "adam.v", "sgd.momentum", "muon.momentum", AVERAGE];
        names.into_iter().flat_map(move |name| {
            let each = self.trained().zip(&self.states);
            each.filter_map(move |(tensor, states)| {
                states.get(self.groups.of(tensor.kind), name).map(|region| (name, tensor, *region))
            })
        })
    }

    /// The rows of each matrix that lies in a parameter; 0 where there is none.
    fn parts(&self) -> Parameters<[usize; 3]> {
        let config = &self.config;
        let (queries, keys) = (config.d_attention(), config.kv_heads() * config.d_head());
        let mut parts = self.parameters.map(|tensor| [tensor.rows, 0, 0]);
        for block in &mut parts.blocks {
            block.qkv.weight = [queries, keys, keys];
            if config.gated {
                block.up.weight = [config.d_ff, config.d_ff, 0];
            }
        }
        parts
    }

    /// Lays out gradients and what optimizers keep of what is `trained`, in the order in which the parameters lie: matrices and
    /// then vectors. A parameter's bytes are a multiple of the alignment, with the gap behind it, so that what is contiguous
    /// there is contiguous here.
    pub(super) fn lay_out_training(&mut self, trained: &[bool]) -> Result<(), ConfigError> {
        let tensors = self.parameters.list();
        let of_kind = |matrix| {
            let tensors = &tensors;
            (0..tensors.len()).filter(move |&i| trained[i] && tensors[i].is_matrix() == matrix)
        };
        let order: Vec<usize> = of_kind(true).chain(of_kind(false)).collect();

        let mut layout = Layout::new(self.elem, "gradients");
        let mut regions = alloc::vec![None; tensors.len()];
        for &i in &order {
            regions[i] = Some(layout.push(&[tensors[i].region.len])?);
        }
        let mut kept = Layout::new(self.elem, "optimizer");
        let mut states = alloc::vec![States::default(); tensors.len()];
        for which in 0..Optimizer::MOST_STATES {
            for &i in &order {
                if which < self.groups.of(tensors[i].kind).optimizer.states().len() {
                    states[i].optimizer[which] = Some(kept.push(&[tensors[i].region.len])?);
                }
            }
        }
        for &i in order.iter().filter(|_| self.average.is_some()) {
            states[i].average = Some(kept.push(&[tensors[i].region.len])?);
        }

        let mut laid = Laid::new(self.elem.unit().1);
        let parts = self.parts();
        let parts = parts.list();
        for &i in &order {
            let Some(gradients) = regions[i] else { continue };
            let (tensor, group) = (tensors[i], self.groups.of(tensors[i].kind));
            laid.add(&Trained { tensor, gradients, states: &states[i], group, parts: *parts[i] });
        }
        let direction = kept.push(&[laid.largest])?;
        let trained_states = trained.iter().zip(states).filter(|(trained, _)| **trained);
        self.states = trained_states.map(|(_, states)| states).collect();
        let mut next = regions.into_iter();
        self.gradients = self.parameters.map(|_| next.next().flatten());
        self.gradient_span = layout.end / self.elem.unit().1;
        (self.stretches, self.updates, self.direction) = (laid.stretches, laid.updates, direction);
        (self.bytes.gradients, self.bytes.optimizer) = (layout.end, kept.end);
        Ok(())
    }
}

/// What is trained, as far as it is laid out.
struct Laid {
    /// Bytes of a number.
    unit: usize,
    stretches: Vec<Stretch>,
    updates: Vec<Update>,
    /// The numbers of the largest matrix that Muon has.
    largest: usize,
}

/// A parameter that is trained.
struct Trained<'p> {
    tensor: &'p Tensor,
    gradients: Region,
    states: &'p States<Region>,
    group: &'p Group,
    /// The rows of each matrix that lies in it; 0 where there is none.
    parts: [usize; 3],
}

impl Laid {
    fn new(unit: usize) -> Self {
        Laid { unit, stretches: Vec::new(), updates: Vec::new(), largest: 0 }
    }

    /// Makes `to` longer by `by`, with the gaps behind both, if that lies right behind it.
    fn join(&self, to: &mut Region, by: Region) {
        to.len = (by.offset - to.offset) / self.unit + self.padded(by);
    }

    fn is_behind(&self, before: Region, region: Region) -> bool {
        before.offset + before.len * self.unit == region.offset
    }

    /// With the gap behind it.
    fn padded(&self, region: Region) -> usize {
        (region.len * self.unit).next_multiple_of(ALIGN) / self.unit
    }

    /// The next of the parameters that are trained.
    fn add(&mut self, trained: &Trained<'_>) {
        let Trained { tensor, gradients, states, group, .. } = *trained;
        let whole = |region: Region| Region { len: self.padded(region), ..region };
        let parameters = whole(tensor.region);
        let last = self.stretches.last().copied();
        match last.filter(|last| self.is_behind(last.parameters, parameters)) {
            Some(Stretch { mut parameters, gradients: mut joined, mut average }) => {
                self.join(&mut parameters, tensor.region);
                self.join(&mut joined, gradients);
                if let (Some(average), Some(by)) = (&mut average, states.average) {
                    self.join(average, by);
                }
                self.stretches.pop();
                self.stretches.push(Stretch { parameters, gradients: joined, average });
            }
            None => {
                let (gradients, average) = (whole(gradients), states.average.map(whole));
                self.stretches.push(Stretch { parameters, gradients, average });
            }
        }
        match group.optimizer {
            Optimizer::Muon { .. } => self.add_matrices(trained),
            _ => self.add_numbers(trained),
        }
    }

    /// Numbers that are trained each for itself.
    fn add_numbers(&mut self, trained: &Trained<'_>) {
        let Trained { tensor: &Tensor { region: parameters, .. }, gradients, states, group, .. } = *trained;
        let last = self.updates.last().copied();
        let like = |last: &Update| {
            last.group == *group && self.is_behind(last.parameters, parameters) && last.matrix.is_none()
        };
        if let Some(mut update) = last.filter(like) {
            self.join(&mut update.parameters, parameters);
            self.join(&mut update.gradients, gradients);
            for (state, by) in update.states.iter_mut().zip(states.optimizer) {
                if let (Some(state), Some(by)) = (state, by) {
                    self.join(state, by);
                }
            }
            self.updates.pop();
            self.updates.push(update);
            return;
        }
        let whole = |region: Region| Region { len: self.padded(region), ..region };
        self.updates.push(Update {
            group: *group,
            parameters: whole(parameters),
            gradients: whole(gradients),
            states: states.optimizer.map(|state| state.map(whole)),
            matrix: None,
        });
    }

    /// The matrices that lie in a parameter, of so many rows each.
    fn add_matrices(&mut self, trained: &Trained<'_>) {
        let Trained { tensor, gradients, states, group, parts } = *trained;
        let mut first = 0;
        for rows in parts.into_iter().filter(|&rows| rows > 0) {
            let len = rows * tensor.cols;
            let part = |region: Region| Region { offset: region.offset + first * self.unit, len };
            self.updates.push(Update {
                group: *group,
                parameters: part(tensor.region),
                gradients: part(gradients),
                states: states.optimizer.map(|state| state.map(part)),
                matrix: Some([rows, tensor.cols]),
            });
            first += len;
            self.largest = self.largest.max(len);
        }
    }
}

#[cfg(test)]
mod tests;
