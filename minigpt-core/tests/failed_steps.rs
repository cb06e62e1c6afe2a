//! A step that the backend fails: it is dropped as a whole, and the run goes on as if it had not been, or had been.

#[macro_use]
#[path = "support/forwarding.rs"]
mod forwarding;

use std::sync::atomic::{AtomicU32, Ordering};

use minigpt_core::model::Extras;
use minigpt_core::{
    Backend, Checkpoint, Decay, GptConfig, Model, Op, OpKind, Reference, ReferenceError, Schedule, Span,
    TrainConfig, Trainer, Windows,
};

/// The reference, which fails the ops of one kind while it is told to; or the writes of four bytes: the learning rate's.
struct Failing {
    inner: Reference<f32>,
    at: Option<OpKind>,
    /// How often it still fails.
    times: AtomicU32,
}

impl Failing {
    fn new(at: Option<OpKind>) -> Self {
        Failing { inner: Reference::new(), at, times: AtomicU32::new(0) }
    }

    fn fail(&self, at: Option<OpKind>, bytes: usize) -> Result<(), ReferenceError> {
        let times = self.times.load(Ordering::Relaxed);
        if at != self.at || times == 0 || at.is_none() && bytes != 4 {
            return Ok(());
        }
        self.times.store(times - 1, Ordering::Relaxed);
        Err(ReferenceError::OutOfMemory { bytes })
    }
}

impl Backend for Failing {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release read copy fill sync);
    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), Self::Error> {
        self.fail(None, bytes.len())?;
        self.inner.write(to, bytes)
    }
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.fail(Some(op.kind()), 1)?;
        self.inner.run(op)
    }
}

fn trainer<B: Backend>(backend: B) -> Trainer<B> {
    let config = GptConfig { layers: 1, heads: 1, d_model: 8, d_ff: 8, ..GptConfig::new(5, 4) };
    let schedule = Schedule { peak: 1.0, floor: 0.0, warmup: 0, steps: 10, decay: Decay::Linear };
    let settings = TrainConfig { batch: 2, time: 4, schedule, ..TrainConfig::constant(0.1) };
    Trainer::new(&Model::new(backend, config, 1).unwrap(), settings).unwrap()
}

#[test]
fn a_step_that_failed_leaves_no_gradient_and_the_learning_rate_goes_by_the_devices_count() {
    let text: Vec<u32> = (0..90).map(|i| i * i % 5).collect();
    let windows = Windows::new(&text, 4).unwrap();
    // Where it fails, and how many steps the device has counted of the one that failed.
    for (at, counted) in [
        (None, 0),
        (Some(OpKind::EmbeddingBackward), 0),
        (Some(OpKind::SquaredNorm), 0),
        (Some(OpKind::FinishStep), 0),
        (Some(OpKind::AdamW), 1),
    ] {
        let mut run = trainer(Failing::new(at));
        (0..3).for_each(|_| run.step(&windows).unwrap());
        run.model().device().inspect(|backend| backend.times.store(1, Ordering::Relaxed));
        run.step(&windows).unwrap_err();

        // A run that goes on from what there is now does the same.
        let mut file = Vec::new();
        run.write(&mut file, &Extras::default()).unwrap();
        let mut resumed =
            Trainer::resume(Reference::<f32>::new(), &Checkpoint::open_verified(&file).unwrap()).unwrap();
        run.step(&windows).unwrap();
        resumed.step(&windows).unwrap();
        let metrics = run.metrics().unwrap();
        assert_eq!(metrics, resumed.metrics().unwrap(), "{at:?}");
        assert_eq!(metrics.step, 3 + counted + 1, "{at:?}");
        let expected = run.config().schedule.learning_rate(3 + counted);
        assert_eq!(metrics.learning_rate, f64::from(expected as f32), "{at:?}");
    }
}
