//! Which optimizer trains what: the flags, and the library's groups that they stand for.

use minigpt_core::config::Group;
use minigpt_core::{Groups, Optimizer};

use super::names::OptimizerName;
use super::options::{Settings, typed};
use super::schedule;
use crate::Outcome;

impl OptimizerName {
    /// Its groups, with nanoGPT's settings.
    fn groups(self) -> Groups {
        match self {
            OptimizerName::Adamw => Groups::adamw(0.9, 0.99, 0.1),
            OptimizerName::Muon => Groups::muon(0.9, 0.99, 0.1),
            // A hundred times AdamW's rate, so a hundredth of its decay.
            OptimizerName::Sgd => Groups::sgd(0.9, true, 1e-3),
        }
    }

    /// Its groups in place of `kept`, whose settings they keep where they mean the same; and the learning rate that goes with
    /// them, if that of `kept` does not.
    fn in_place_of(self, kept: &Groups) -> (Groups, Option<f64>) {
        let mut groups = self.groups();
        keep_betas(&mut groups, kept);
        // Gradients as they are need another rate than what is divided by their size, and another decay with it.
        if [Some(self), OptimizerName::of(kept)].contains(&Some(OptimizerName::Sgd)) {
            let rate = usual_rate(&groups);
            return (groups, Some(rate));
        }
        decay_by(&mut groups, kept.embeddings.weight_decay * kept.embeddings.rate);
        (groups, None)
    }

    /// What trains the matrices of these groups.
    fn of(groups: &Groups) -> Option<Self> {
        match groups.matrices.optimizer {
            Optimizer::AdamW { .. } => Some(OptimizerName::Adamw),
            Optimizer::Sgd { .. } => Some(OptimizerName::Sgd),
            Optimizer::Muon { .. } => Some(OptimizerName::Muon),
            _ => None,
        }
    }
}

/// All four, to be changed.
fn each(groups: &mut Groups) -> [&mut Group; 4] {
    [&mut groups.embeddings, &mut groups.matrices, &mut groups.head, &mut groups.vectors]
}

/// The largest learning rate that what trains the matrices usually has.
pub(super) fn usual_rate(groups: &Groups) -> f64 {
    match groups.matrices.optimizer {
        Optimizer::Sgd { .. } => 0.1,
        _ => schedule::USUAL_RATE,
    }
}

/// Gives all of AdamW the betas and the eps that it has in `kept`, if it is there.
fn keep_betas(groups: &mut Groups, kept: &Groups) {
    let kept = [kept.embeddings, kept.matrices, kept.head, kept.vectors].map(|group| group.optimizer);
    let Some(adamw) = kept.into_iter().find(|optimizer| matches!(optimizer, Optimizer::AdamW { .. })) else {
        return;
    };
    for group in each(groups) {
        if matches!(group.optimizer, Optimizer::AdamW { .. }) {
            group.optimizer = adamw;
        }
    }
}

/// Sets the decay of all that decays. A step takes the same share of it, whatever its learning rate.
fn decay_by(groups: &mut Groups, decay: f64) {
    for group in [&mut groups.embeddings, &mut groups.matrices, &mut groups.head] {
        group.weight_decay = decay / group.rate;
    }
}

/// The groups that the flags ask for where a run has had `kept`; and the learning rate that goes with them, if they are new and
/// it is another.
///
/// # Errors
/// If a flag sets what no optimizer of the run has.
pub(super) fn over(settings: &Settings, kept: &Groups) -> Outcome<(Groups, Option<f64>)> {
    let new = settings.optimizer.filter(|name| OptimizerName::of(kept) != Some(*name));
    let (mut groups, rate) = new.map_or((*kept, None), |new| new.in_place_of(kept));
    let has_adamw = each(&mut groups).iter().any(|group| matches!(group.optimizer, Optimizer::AdamW { .. }));
    let given = [("--beta1", settings.beta1), ("--beta2", settings.beta2), ("--eps", settings.eps)];
    if let Some((flag, _)) = given.iter().find(|(_, value)| value.is_some() && !has_adamw) {
        return Err(format!(
            "{flag} is AdamW's, and nothing is trained by it: leave it out, or take --optimizer adamw"
        )
        .into());
    }
    for group in each(&mut groups) {
        if let Optimizer::AdamW { beta1, beta2, eps } = &mut group.optimizer {
            *beta1 = settings.beta1.unwrap_or(*beta1);
            *beta2 = settings.beta2.unwrap_or(*beta2);
            *eps = settings.eps.unwrap_or(*eps);
        }
    }
    if let Some(decay) = settings.weight_decay {
        decay_by(&mut groups, decay);
    }
    Ok((groups, rate))
}

/// The flags that make these groups, with their values; one that does not apply has none.
pub(super) fn values(groups: &Groups) -> [(&'static str, String); 5] {
    let name = match OptimizerName::of(groups) {
        Some(OptimizerName::Adamw) => "adamw",
        Some(OptimizerName::Sgd) => "sgd",
        Some(OptimizerName::Muon) => "muon",
        None => "another",
    };
    let Group { optimizer, weight_decay, rate } = groups.embeddings;
    let [beta1, beta2, eps] = match optimizer {
        Optimizer::AdamW { beta1, beta2, eps } => [beta1, beta2, eps].map(typed),
        _ => [const { String::new() }; 3],
    };
    [
        ("--optimizer", name.into()),
        ("--beta1", beta1),
        ("--beta2", beta2),
        ("--eps", eps),
        ("--weight-decay", typed(weight_decay * rate)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_every_group_that_they_are_about() {
        let settings = Settings {
            optimizer: Some(OptimizerName::Muon),
            beta2: Some(0.95),
            weight_decay: Some(0.2),
            ..Settings::default()
        };
        let (groups, rate) = over(&settings, &Groups::adamw(0.9, 0.99, 0.1)).unwrap();
        assert_eq!((groups, rate), (Groups::muon(0.9, 0.95, 0.2), None));
        // What a run has stays, but for what is given.
        let later = Settings { beta1: Some(0.8), optimizer: settings.optimizer, ..Settings::default() };
        assert_eq!(over(&later, &groups).unwrap().0, Groups::muon(0.8, 0.95, 0.2));
        assert_eq!(over(&Settings::default(), &groups).unwrap(), (groups, None));
    }

    #[test]
    fn another_optimizer_keeps_the_settings_that_it_shares() {
        let muon = Settings { optimizer: Some(OptimizerName::Muon), ..Settings::default() };
        let adamw = Settings { optimizer: Some(OptimizerName::Adamw), ..Settings::default() };
        let kept = Groups::adamw(0.8, 0.95, 0.2);
        let (groups, rate) = over(&muon, &kept).unwrap();
        assert_eq!((groups, rate), (Groups::muon(0.8, 0.95, 0.2), None));
        assert_eq!(over(&adamw, &groups).unwrap(), (kept, None));
        // What is given counts all the same.
        let given = Settings { beta2: Some(0.9), weight_decay: Some(0.3), ..muon };
        assert_eq!(over(&given, &kept).unwrap().0, Groups::muon(0.8, 0.9, 0.3));
    }

    #[test]
    fn gradient_descent_comes_with_a_rate_of_its_own_and_without_betas() {
        let sgd = Settings { optimizer: Some(OptimizerName::Sgd), ..Settings::default() };
        let (groups, rate) = over(&sgd, &Groups::adamw(0.9, 0.99, 0.1)).unwrap();
        assert_eq!(rate, Some(0.1));
        assert_eq!(over(&sgd, &groups).unwrap(), (groups, None));
        // And away from it, the rate that is usual for all others comes back.
        for name in [OptimizerName::Adamw, OptimizerName::Muon] {
            let away = Settings { optimizer: Some(name), ..Settings::default() };
            assert_eq!(over(&away, &groups).unwrap(), (name.groups(), Some(1e-3)));
        }
        let error = over(&Settings { beta1: Some(0.5), ..sgd }, &groups).unwrap_err().to_string();
        assert!(error.starts_with("--beta1 is AdamW's"), "{error}");
    }
}
