//! Which parameters a plan trains, and where their gradients and moments lie.

use alloc::vec::Vec;

use super::{Layout, Plan, Purpose, Region, Tensor};
use crate::config::ConfigError;

/// Parameters that lie side by side and are all trained: an optimizer goes over them in one pass.
///
/// A gradient has the same place in a stretch of gradients as its parameter in the stretch of parameters, and so have the
/// moments. With nothing frozen there is one stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Among the parameters.
    pub parameters: Region,
    /// Among the gradients, and among the moments.
    pub gradients: Region,
    /// Its first elements, which weight decay applies to.
    pub decayed: usize,
}

impl Plan {
    /// The same plan of a training that leaves some parameters as they are: those that `frozen` says. They have no gradients
    /// and no moments, and no bytes for them, and the backward pass ends where nothing below is trained. What forward and
    /// backward compute keeps its room. A plan for inference stays as it is.
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
    pub fn freezing(mut self, frozen: impl FnMut(&Tensor) -> bool) -> Plan {
        if self.purpose == Purpose::Training {
            // A part of what has been laid out already: there is nothing that could be too large.
            let _ = self.freeze(frozen);
        }
        self
    }

    /// The parameters that are trained, in the order of the model.
    pub fn trained(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters
            .list()
            .into_iter()
            .zip(self.gradients.list())
            .filter_map(|(tensor, region)| region.is_some().then_some(tensor))
    }

    /// Lays out gradients and moments, in the order in which the parameters lie. A parameter's bytes are a multiple of the
    /// alignment, with the gap behind it, so that what is contiguous there is contiguous here.
    pub(super) fn freeze(&mut self, mut frozen: impl FnMut(&Tensor) -> bool) -> Result<(), ConfigError> {
        let tensors = self.parameters.list();
        let trained: Vec<bool> = tensors.iter().map(|tensor| !frozen(tensor)).collect();
        let of_kind = |matrix| {
            let (tensors, trained) = (&tensors, &trained);
            (0..tensors.len()).filter(move |&i| trained[i] && tensors[i].is_matrix() == matrix)
        };

        let unit = self.elem.unit().1;
        let mut layout = Layout::new(self.elem, "gradients");
        let mut regions = alloc::vec![None; tensors.len()];
        let mut stretches: Vec<Stretch> = Vec::new();
        for i in of_kind(true).chain(of_kind(false)) {
            let region = tensors[i].region;
            let place = layout.push(&[region.len])?;
            regions[i] = Some(place);
            let len = (layout.end - place.offset) / unit;
            let decayed = if tensors[i].is_matrix() { len } else { 0 };
            match stretches.last_mut() {
                Some(last) if last.parameters.offset + last.parameters.len * unit == region.offset => {
                    last.parameters.len += len;
                    last.gradients.len += len;
                    last.decayed += decayed;
                }
                _ => stretches.push(Stretch {
                    parameters: Region { len, ..region },
                    gradients: Region { len, ..place },
                    decayed,
                }),
            }
        }
        let optimizer = layout.end.checked_mul(2).ok_or(ConfigError::TooLarge { field: "optimizer" })?;
        let mut next = regions.into_iter();
        self.gradients = self.parameters.map(|_| next.next().flatten());
        self.gradient_span = layout.end / unit;
        self.stretches = stretches;
        (self.bytes.gradients, self.bytes.optimizer) = (layout.end, optimizer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GptConfig;
    use crate::memory::Dtype;

    fn plan() -> Plan {
        let config = GptConfig {
            layers: 2,
            heads: 1,
            d_model: 3,
            d_ff: 5,
            bias: crate::config::Bias::ALL,
            ..GptConfig::new(7, 4)
        };
        Plan::training(&config, Dtype::F32, 1, 4).unwrap()
    }

    #[test]
    fn with_nothing_frozen_there_is_one_stretch_of_all() {
        let plan = plan();
        let all = Region { offset: 0, len: plan.parameter_span };
        assert_eq!(plan.stretches, [Stretch { parameters: all, gradients: all, decayed: plan.decayed }]);
        assert_eq!(plan.gradients, plan.parameters.map(|tensor| Some(tensor.region)));
        assert_eq!((plan.gradient_span, plan.bytes.gradients), (plan.parameter_span, plan.bytes.parameters));
        assert_eq!(plan.bytes.optimizer, 2 * plan.bytes.parameters);
        assert_eq!(plan.clone().freezing(|_| false), plan);
    }

    #[test]
    fn stretches_have_all_that_is_trained_once_and_nothing_else() {
        // Every third, and a whole block.
        let mut count = 0;
        let frozen = |tensor: &Tensor| {
            count += 1;
            count % 3 == 0 || tensor.name.starts_with("h.1.")
        };
        let (whole, plan) = (plan(), plan().freezing(frozen));
        let (mut covered, mut end) = (0, 0);
        for stretch in &plan.stretches {
            assert_eq!(stretch.parameters.len, stretch.gradients.len);
            assert_eq!(stretch.gradients.offset, end);
            end += 4 * stretch.gradients.len;
            for (tensor, gradient) in plan.parameters.list().into_iter().zip(plan.gradients.list()) {
                let Some(offset) = tensor.region.offset.checked_sub(stretch.parameters.offset) else {
                    continue;
                };
                if offset >= 4 * stretch.parameters.len {
                    continue;
                }
                let expected = Region { offset: stretch.gradients.offset + offset, len: tensor.region.len };
                assert_eq!(*gradient, Some(expected), "{}", tensor.name);
                assert_eq!(offset < 4 * stretch.decayed, tensor.is_matrix(), "{}", tensor.name);
                covered += 1;
            }
        }
        assert!(plan.stretches.len() > 3 && covered == plan.trained().count());
        assert_eq!((end, end), (plan.bytes.gradients, 4 * plan.gradient_span));
        assert!(plan.trained().all(|tensor| !tensor.name.starts_with("h.1.")));
        assert!(plan.bytes.gradients < whole.bytes.gradients);
        assert_eq!(plan.bytes.total() + 3 * (whole.bytes.gradients - end), whole.bytes.total());
        // What was frozen before is no matter.
        assert_eq!(plan.freezing(|_| false), whole);
    }

    #[test]
    fn a_plan_for_inference_has_nothing_to_freeze() {
        let config = GptConfig::new(7, 4);
        let plan = Plan::smallest(&config, Dtype::F32).unwrap();
        assert_eq!(plan.clone().freezing(|_| false), plan);
        assert_eq!((plan.trained().count(), plan.bytes.gradients, plan.stretches.len()), (0, 0, 0));
    }
}
