//! [`Groups`]: which optimizer trains which parameters.
//!
//! A parameter belongs to a group by what it is, its [`ParameterKind`], and not by how it began. So each is in exactly one, and
//! four [`Group`]s say all there is to say: an optimizer with its numbers, a weight decay, and a factor on the learning rate.

/// What a parameter is: which group trains it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterKind {
    /// The embeddings of tokens and of positions. The first is the head too, if the two are tied.
    Embedding,
    /// The weight of a linear layer in a block.
    Matrix,
    /// The matrix of the head, if it has one of its own.
    Head,
    /// Biases, and the weights of norms.
    Vector,
}

/// How gradients become updates. [`crate::reference::optimizer`] has the formulas.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Optimizer {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101). Keeps two numbers for each parameter.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
    /// Gradient descent, with momentum unless it is 0 (Sutskever et al. 2013, as PyTorch writes it). Keeps one number for each
    /// parameter, or without momentum none.
    Sgd {
        /// How much of the velocity stays from step to step. 0: there is none.
        momentum: f64,
        /// Whether the update looks ahead along the velocity (Nesterov 1983).
        nesterov: bool,
    },
    /// Momentum whose update is brought near the closest orthogonal matrix (Jordan et al. 2024, "Muon",
    /// <https://kellerjordan.github.io/posts/muon/>). For matrices only. Keeps one number for each parameter.
    ///
    /// Matrices that lie in one are orthogonalised one by one: the weights of queries, keys and values, and those of a gate and
    /// what it gates.
    Muon {
        /// How much of the velocity stays from step to step.
        momentum: f64,
        /// Whether the update looks ahead along the velocity.
        nesterov: bool,
        /// Iterations of Newton and Schulz, 1 to [`Optimizer::MOST_STEPS`]. 5 are enough.
        steps: u32,
    },
}

impl Optimizer {
    /// The most numbers that an optimizer keeps for each parameter.
    pub const MOST_STATES: usize = 2;

    /// The most iterations that Muon may take.
    pub const MOST_STEPS: u32 = 64;

    /// Keller Jordan's Muon: momentum 0.95, with a look ahead, and 5 iterations.
    pub const MUON: Optimizer = Optimizer::Muon { momentum: 0.95, nesterov: true, steps: 5 };

    /// What it keeps for each parameter, as many numbers as the parameter has of each: the names that checkpoints have for it.
    pub const fn states(&self) -> &'static [&'static str] {
        match self {
            Optimizer::AdamW { .. } => &["adam.m", "adam.v"],
            Optimizer::Sgd { momentum: 0.0, .. } => &[],
            Optimizer::Sgd { .. } => &["sgd.momentum"],
            Optimizer::Muon { .. } => &["muon.momentum"],
        }
    }
}

/// How some of the parameters are trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// What makes updates of gradients.
    pub optimizer: Optimizer,
    /// Decoupled weight decay: each update takes this share of a weight, times the learning rate.
    pub weight_decay: f64,
    /// The group's learning rate is the schedule's times this.
    pub rate: f64,
}

/// How all parameters are trained: a [`Group`] for each [kind](ParameterKind).
///
/// ```
/// use minigpt_core::config::{Group, Groups, Optimizer};
/// // AdamW as usual, but embeddings learn at a tenth of the rate and do not decay.
/// let usual = Groups::adamw(0.9, 0.99, 0.1);
/// let groups = Groups { embeddings: Group { rate: 0.1, weight_decay: 0.0, ..usual.embeddings }, ..usual };
/// assert_eq!(groups.matrices.weight_decay, 0.1);
/// assert_eq!(groups.vectors.weight_decay, 0.0);
/// // And gradient descent for the head.
/// let sgd = Optimizer::Sgd { momentum: 0.9, nesterov: true };
/// let groups = Groups { head: Group { optimizer: sgd, ..groups.head }, ..groups };
/// assert_eq!(groups.head.optimizer.states(), ["sgd.momentum"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    /// Of the embeddings of tokens and positions, and of a head that is tied to them.
    pub embeddings: Group,
    /// Of the weights of linear layers in blocks.
    pub matrices: Group,
    /// Of a head that has a matrix of its own.
    pub head: Group,
    /// Of biases, and of the weights of norms.
    pub vectors: Group,
}

impl Groups {
    /// How many times AdamW's learning rate Muon's is in [`Groups::muon`]: 0.02, Keller Jordan's, where AdamW has 1e-3.
    pub const MUON_RATE: f64 = 20.0;

    /// AdamW for all, with an eps of 1e-8. Vectors do not decay: a norm's weight has no reason to be near 0.
    pub const fn adamw(beta1: f64, beta2: f64, weight_decay: f64) -> Self {
        Groups::all(Optimizer::AdamW { beta1, beta2, eps: 1e-8 }, weight_decay)
    }

    /// Gradient descent for all. Vectors do not decay.
    pub const fn sgd(momentum: f64, nesterov: bool, weight_decay: f64) -> Self {
        Groups::all(Optimizer::Sgd { momentum, nesterov }, weight_decay)
    }

    /// [`Optimizer::MUON`] for the matrices of blocks, and AdamW for the rest, as its author advises: embeddings and the head
    /// are matrices of another kind, since each token has its own row.
    ///
    /// The schedule's learning rate is AdamW's; Muon's is [`MUON_RATE`](Groups::MUON_RATE) times that, because its updates have
    /// the same size whatever the gradient's. Its decay is as much smaller, so that a step takes the same share of all matrices.
    pub const fn muon(beta1: f64, beta2: f64, weight_decay: f64) -> Self {
        let rest = Groups::adamw(beta1, beta2, weight_decay);
        let (rate, weight_decay) = (Groups::MUON_RATE, weight_decay / Groups::MUON_RATE);
        Groups { matrices: Group { optimizer: Optimizer::MUON, weight_decay, rate }, ..rest }
    }

    const fn all(optimizer: Optimizer, weight_decay: f64) -> Self {
        let group = Group { optimizer, weight_decay, rate: 1.0 };
        let vectors = Group { weight_decay: 0.0, ..group };
        Groups { embeddings: group, matrices: group, head: group, vectors }
    }

    /// The group of the parameters of this kind.
    pub const fn of(&self, kind: ParameterKind) -> &Group {
        match kind {
            ParameterKind::Embedding => &self.embeddings,
            ParameterKind::Matrix => &self.matrices,
            ParameterKind::Head => &self.head,
            ParameterKind::Vector => &self.vectors,
        }
    }

    /// The most that a learning rate is multiplied with before anything else is.
    #[cfg(feature = "train")]
    pub(crate) fn largest_factor(&self) -> f64 {
        let factor = |group: &Group| {
            // The root of the most rows that there are.
            let scale: f64 = if let Optimizer::Muon { .. } = group.optimizer { 65_536.0 } else { 1.0 };
            group.rate * scale.max(group.weight_decay)
        };
        [&self.embeddings, &self.matrices, &self.head, &self.vectors]
            .into_iter()
            .map(factor)
            .fold(1.0, f64::max)
    }

    /// AdamW's settings, if nothing else trains and as [`Groups::adamw`] has it: beta1, beta2, eps and weight decay.
    pub(crate) fn as_adamw(&self) -> Option<[f64; 4]> {
        let Group { optimizer: Optimizer::AdamW { beta1, beta2, eps }, weight_decay, .. } = self.matrices
        else {
            return None;
        };
        let plain = Groups::all(self.matrices.optimizer, weight_decay);
        (*self == plain).then_some([beta1, beta2, eps, weight_decay])
    }

    /// Those of [`as_adamw`](Groups::as_adamw).
    pub(crate) const fn from_adamw([beta1, beta2, eps, weight_decay]: [f64; 4]) -> Self {
        Groups::all(Optimizer::AdamW { beta1, beta2, eps }, weight_decay)
    }
}

/// The fields of a group that is called so, in the order in which [`Group::refused`] counts them.
#[cfg(feature = "train")]
macro_rules! fields {
    ($name:literal) => {
        [
            concat!($name, ".beta1"),
            concat!($name, ".beta2"),
            concat!($name, ".eps"),
            concat!($name, ".momentum"),
            concat!($name, ".steps"),
            concat!($name, ".weight_decay"),
            concat!($name, ".rate"),
        ]
    };
}

#[cfg(feature = "train")]
const FIELDS: [[&str; 7]; 4] = [
    fields!("groups.embeddings"),
    fields!("groups.matrices"),
    fields!("groups.head"),
    fields!("groups.vectors"),
];

#[cfg(feature = "train")]
impl Group {
    /// The number of the first setting that has no meaning, and what it must be.
    fn refused(&self) -> Option<(usize, &'static str)> {
        const UNIT: &str = "at least 0 and below 1";
        const FINITE: &str = "a finite number, 0 or above";
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        // What an optimizer does not have is as good as any.
        let (mut betas, mut small, mut momentum, mut steps) = ([0.0; 2], 1.0, 0.0, 1);
        match self.optimizer {
            Optimizer::AdamW { beta1, beta2, eps } => (betas, small) = ([beta1, beta2], eps),
            Optimizer::Sgd { momentum: velocity, .. } => momentum = velocity,
            Optimizer::Muon { momentum: velocity, steps: count, .. } => (momentum, steps) = (velocity, count),
        }
        let rules = [
            (unit(betas[0]), UNIT),
            (unit(betas[1]), UNIT),
            // Where it rounded to 0, a parameter without a gradient would be 0 / 0.
            (small.is_finite() && small >= f64::from(f32::MIN_POSITIVE), "above 0, such as 1e-8"),
            (unit(momentum), UNIT),
            ((1..=Optimizer::MOST_STEPS).contains(&steps), "at least 1 and at most 64, such as 5"),
            (finite(self.weight_decay), FINITE),
            (finite(self.rate), FINITE),
        ];
        let found = rules.iter().position(|(holds, _)| !holds)?;
        Some((found, rules[found].1))
    }
}

#[cfg(feature = "train")]
impl Groups {
    /// The first setting that has no meaning, and what it must be.
    pub(crate) fn validate(&self) -> Result<(), (&'static str, &'static str)> {
        let groups = [&self.embeddings, &self.matrices, &self.head, &self.vectors];
        for (group, fields) in groups.into_iter().zip(FIELDS) {
            if let Some((field, must)) = group.refused() {
                return Err((fields[field], must));
            }
        }
        match self.vectors.optimizer {
            Optimizer::Muon { .. } => {
                Err(("groups.vectors.optimizer", "AdamW or SGD, since Muon orthogonalises matrices"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ParameterKind; 4] =
        [ParameterKind::Embedding, ParameterKind::Matrix, ParameterKind::Head, ParameterKind::Vector];

    #[test]
    fn only_vectors_do_not_decay() {
        for groups in [Groups::adamw(0.9, 0.95, 0.1), Groups::sgd(0.9, false, 0.1)] {
            let decays = KINDS.map(|kind| groups.of(kind).weight_decay);
            assert_eq!(decays, [0.1, 0.1, 0.1, 0.0]);
            assert!(KINDS.iter().all(|&kind| groups.of(kind).optimizer == groups.matrices.optimizer));
            assert!(KINDS.iter().all(|&kind| groups.of(kind).rate == 1.0));
        }
    }

    #[test]
    fn muon_trains_matrices_and_adamw_the_rest() {
        let (groups, rest) = (Groups::muon(0.9, 0.95, 0.1), Groups::adamw(0.9, 0.95, 0.1));
        assert_eq!(Groups { matrices: rest.matrices, ..groups }, rest);
        assert_eq!(groups.matrices.optimizer, Optimizer::MUON);
        // A step takes as much of a matrix as of an embedding.
        let pull = |group: Group| group.rate * group.weight_decay;
        assert!((pull(groups.matrices) - pull(groups.embeddings)).abs() < 1e-16);
    }

    #[test]
    fn adamw_alone_is_known_from_what_it_is() {
        let adamw = [0.9, 0.99, 1e-6, 0.1];
        assert_eq!(Groups::from_adamw(adamw).as_adamw(), Some(adamw));
        let usual = Groups::adamw(0.9, 0.99, 0.1);
        assert_eq!(usual.as_adamw(), Some([0.9, 0.99, 1e-8, 0.1]));
        for other in [
            Groups { head: Group { rate: 0.5, ..usual.head }, ..usual },
            Groups { vectors: Group { weight_decay: 0.1, ..usual.vectors }, ..usual },
            Groups { embeddings: Groups::sgd(0.0, false, 0.1).embeddings, ..usual },
            Groups::sgd(0.9, true, 0.1),
            Groups::muon(0.9, 0.99, 0.1),
        ] {
            assert_eq!(other.as_adamw(), None);
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn each_setting_without_meaning_is_named_with_its_group() {
        let good = Groups::muon(0.9, 0.99, 0.1);
        assert_eq!(good.validate(), Ok(()));
        let muon = |momentum, steps| Optimizer::Muon { momentum, nesterov: true, steps };
        let of = |optimizer| Group { optimizer, ..good.matrices };
        let adamw = |beta1, beta2, eps| of(Optimizer::AdamW { beta1, beta2, eps });
        for (groups, field) in [
            (Groups { embeddings: adamw(1.0, 0.9, 1e-8), ..good }, "groups.embeddings.beta1"),
            (Groups { head: adamw(0.9, -0.1, 1e-8), ..good }, "groups.head.beta2"),
            (Groups { vectors: adamw(0.9, 0.9, 0.0), ..good }, "groups.vectors.eps"),
            (Groups { vectors: adamw(0.9, 0.9, f64::INFINITY), ..good }, "groups.vectors.eps"),
            (Groups { matrices: of(muon(f64::NAN, 5)), ..good }, "groups.matrices.momentum"),
            (Groups { matrices: of(muon(0.9, 0)), ..good }, "groups.matrices.steps"),
            (Groups { matrices: of(muon(0.9, 65)), ..good }, "groups.matrices.steps"),
            (Groups { head: Groups::sgd(1.0, true, 0.0).head, ..good }, "groups.head.momentum"),
            (Groups { head: Group { weight_decay: -1.0, ..good.head }, ..good }, "groups.head.weight_decay"),
            (Groups { head: Group { rate: f64::NAN, ..good.head }, ..good }, "groups.head.rate"),
            (Groups { vectors: of(muon(0.9, 5)), ..good }, "groups.vectors.optimizer"),
        ] {
            assert_eq!(groups.validate().err().map(|(field, _)| field), Some(field));
        }
        for groups in [
            Groups::sgd(0.0, false, 0.0),
            Groups { embeddings: good.matrices, head: good.matrices, ..good },
            Groups { matrices: of(muon(0.0, 64)), ..good },
        ] {
            assert_eq!(groups.validate(), Ok(()));
        }
    }
}
