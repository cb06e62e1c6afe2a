//! A forward pass that is observed.

use alloc::vec::Vec;

use super::{Model, stage};
use crate::backend::{Backend, read_elems, write_elems};
use crate::error::Error;
use crate::memory::zeros;
#[cfg(feature = "train")]
use crate::op::{CrossEntropy, IGNORE};
#[cfg(feature = "train")]
use crate::probe::TensorKind;
use crate::probe::{Observation, Probe};

impl<B: Backend> Model<B> {
    /// The [logits](Model::logits) of every position, bit for bit, while `probe` sees what it [wants](Probe::wants) of the
    /// pass.
    ///
    /// Of the losses at each position, the targets are the tokens that follow; the last position has none.
    ///
    /// # Errors
    /// As [`logits`](Model::logits), memory including that for what is wanted; and whatever `probe` says.
    pub fn observe(
        &self,
        tokens: &[u32],
        batch: usize,
        time: usize,
        probe: &mut dyn Probe<B::Elem>,
    ) -> Result<Vec<B::Elem>, Error<B::Error>> {
        if self.config().prefix > 0 {
            return Err(Error::NoPrefix { prefix: self.config().prefix });
        }
        self.observe_with(&[], tokens, batch, time, probe)
    }

    /// As [`observe`](Model::observe), with given vectors before the tokens of each sequence: `prefix` (B, P, C).
    ///
    /// # Errors
    /// As [`observe`](Model::observe), and if `prefix` has another length.
    pub fn observe_with(
        &self,
        prefix: &[B::Elem],
        tokens: &[u32],
        batch: usize,
        time: usize,
        probe: &mut dyn Probe<B::Elem>,
    ) -> Result<Vec<B::Elem>, Error<B::Error>> {
        let workspace = self.workspace_for(tokens, batch, time)?;
        let given = workspace.prefix(prefix)?;
        let mut staging = zeros("staging", tokens.len() * 4)?;
        let (pass, logits) = (workspace.pass(self), workspace.logits());
        // Its targets take the place of the tokens, which nothing reads any more then.
        #[cfg(feature = "train")]
        let loss = CrossEntropy {
            logits,
            targets: pass.tokens(),
            d_logits: None,
            losses: None,
            scalars: workspace.scalars(),
            rows: tokens.len(),
            vocab: self.config().vocab_size,
        };
        let (device, config) = (self.device(), self.config());
        let mut observation =
            Observation::new(device, config, [batch, workspace.plan.time], probe, |sink| {
                pass.infer(sink)?;
                #[cfg(feature = "train")]
                sink.put(None, "loss", loss)?;
                core::ops::ControlFlow::Continue(())
            })?;
        write_elems(&mut *device.lock(), given, prefix).map_err(Error::Backend)?;
        device.lock().write(pass.tokens(), stage(tokens, &mut staging)).map_err(Error::Backend)?;
        observation.run(|sink| pass.infer(sink))?;
        #[cfg(feature = "train")]
        if observation.wants(TensorKind::Loss) {
            let mut targets = zeros("targets", tokens.len())?;
            next_tokens(tokens, time, &mut targets);
            device.lock().write(pass.tokens(), stage(&targets, &mut staging)).map_err(Error::Backend)?;
            observation.run(|sink| sink.put(None, "loss", loss))?;
        }
        read_elems(&mut *device.lock(), logits).map_err(Error::Backend)
    }
}

/// For each token of each sequence the one that follows.
#[cfg(feature = "train")]
fn next_tokens(tokens: &[u32], time: usize, next: &mut [u32]) {
    for (tokens, next) in tokens.chunks(time).zip(next.chunks_mut(time)) {
        let following = tokens.iter().skip(1).chain([&IGNORE]);
        next.iter_mut().zip(following).for_each(|(next, &token)| *next = token);
    }
}
