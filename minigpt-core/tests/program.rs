//! The program of a plan: what it prints is what runs, its counts are those of the plan, and the scratch that is reserved for
//! it is enough.

#[macro_use]
#[path = "support/forwarding.rs"]
mod forwarding;

use std::collections::BTreeMap;

use minigpt_core::op::Program;
use minigpt_core::probe::Recording;
use minigpt_core::{
    Backend, Bias, Decoder, Dtype, EvalWindows, GptConfig, Model, NormPlace, Op, Plan, Position, Recompute,
    Reference, ReferenceError, TrainConfig, Trainer, Windows,
};

/// The reference, which takes 16 rows at once, remembers what it ran, and refuses an op for which it has reserved too little
/// scratch: each needs as many bytes as it reads and writes.
#[derive(Default)]
struct Recorder {
    inner: Reference<f32>,
    ran: Vec<Op>,
    reserved: usize,
}

impl Backend for Recorder {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.ran.push(*op);
        let bytes = self.workspace_bytes(&[*op]);
        if bytes > self.reserved {
            return Err(ReferenceError::OutOfMemory { bytes });
        }
        self.inner.run(op)
    }
    fn workspace_bytes(&self, ops: &[Op]) -> usize {
        ops.iter().map(|op| op.bytes() as usize).max().unwrap_or(0)
    }
    fn reserve(&mut self, bytes: usize) -> Result<(), Self::Error> {
        self.reserved = self.reserved.max(bytes);
        Ok(())
    }
    fn rows_at_once(&self) -> usize {
        16
    }
}

fn configs() -> Vec<GptConfig> {
    let base = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(11, 8) };
    vec![
        GptConfig { dropout: 0.1, bias: Bias::ALL, ..base.clone() },
        GptConfig { norm_place: NormPlace::Post, position: Position::ROTARY, ..base.clone() },
        GptConfig { norm_place: NormPlace::None, residual: false, tied_embeddings: false, ..base },
    ]
}

/// Every field of each op, with the buffers numbered in the order in which they come.
fn told<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Vec<String> {
    let mut numbers = BTreeMap::new();
    let mut renumbered = |op: &Op| {
        let text = format!("{op:?}");
        let mut parts = text.split("Buffer(");
        let mut told = String::from(parts.next().expect("one part"));
        for part in parts {
            let (number, rest) = part.split_once(')').expect("a number in brackets");
            let next = numbers.len();
            told += &format!("Buffer({}){rest}", numbers.entry(String::from(number)).or_insert(next));
        }
        told
    };
    ops.into_iter().map(&mut renumbered).collect()
}

fn ops(program: &Program) -> impl Iterator<Item = &Op> {
    program.steps().iter().map(|step| &step.op)
}

#[test]
fn the_program_of_a_training_plan_is_what_a_step_runs() {
    for config in configs() {
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
            let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
            // Five sequences of 8 tokens, two at a time.
            let settings = TrainConfig { batch: 5, time: 8, recompute, ..TrainConfig::constant(1e-3) };
            let mut trainer = Trainer::new(&model, settings).unwrap();
            trainer.micro_step(&[3; 40], &[4; 40]).unwrap();
            trainer.finish_step().unwrap();
            let program = trainer.plan().program().unwrap();
            let ran = model.device().inspect(|recorder| told(&recorder.ran));
            assert_eq!(told(ops(&program)), ran);
            if recompute == Recompute::Nothing {
                assert_eq!(program.flops(), trainer.plan().training_flops(5));
            }
        }
    }
}

#[test]
fn the_program_of_an_inference_plan_is_what_a_pass_runs() {
    for config in configs() {
        let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
        model.logits(&[1; 12], 2, 6).unwrap();
        let plan = Plan::inference(&config, Dtype::F32, 2, 6).unwrap();
        let program = plan.program().unwrap();
        assert_eq!(told(ops(&program)), model.device().inspect(|recorder| told(&recorder.ran)));
    }
}

#[test]
fn each_part_of_a_block_goes_forward_and_comes_back() {
    let [config, ..] = &configs()[..] else { panic!("there are configs") };
    let program = Plan::training(config, Dtype::F32, 1, 8).unwrap().program().unwrap();
    let parts = |backward: bool| -> Vec<String> {
        let is_backward = |op: &Op| op.kind().name().ends_with("Backward");
        let steps = program.steps().iter().filter(|step| is_backward(&step.op) == backward);
        steps.filter(|step| step.name.layer.is_some()).map(|step| step.name.to_string()).collect()
    };
    let (forward, mut backward) = (parts(false), parts(true));
    backward.reverse();
    assert_eq!(forward, backward);
    assert_eq!(forward.len(), 2 * 7);
}

#[test]
fn a_program_prints_a_line_for_each_step_and_their_sums() {
    let config = GptConfig { layers: 1, heads: 2, d_model: 64, d_ff: 256, ..GptConfig::new(65, 32) };
    let program = Plan::training(&config, Dtype::F32, 4, 32).unwrap().program().unwrap();
    let text = program.to_string();
    assert_eq!(text.lines().count(), program.steps().len() + 2, "{text}");
    let qkv = text.lines().find(|line| line.contains("h.0.attention.qkv")).unwrap();
    // 128 rows of 64 to 192: x, weight and result, and two operations for each product.
    let numbers = 128 * 64 + 64 * 192 + 128 * 192;
    assert_eq!((4 * numbers, 2 * 128 * 64 * 192), (180_224, 3_145_728));
    for part in ["LinearForward", "rows 128, in 64, out 192", "180.2 kB", "3.1 MFLOP"] {
        assert!(qkv.contains(part), "{qkv}");
    }
    assert!(
        text.ends_with("FLOP") && text.contains(&format!("{:>4} steps in all", program.steps().len())),
        "{text}"
    );
}

#[test]
fn what_is_reserved_is_enough_for_whatever_runs() {
    let text: Vec<u32> = (0..200).map(|i| i * i % 11).collect();
    let (windows, eval) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text[..90], 8).unwrap());
    for config in configs() {
        for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
            // Five sequences go as two, two and one; eleven evaluated ones leave one alone.
            let settings = TrainConfig { batch: 5, time: 8, recompute, ..TrainConfig::constant(1e-3) };
            let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
            let mut trainer = Trainer::new(&model, settings).unwrap();
            trainer.step(&windows).unwrap();
            trainer.evaluate(&eval).unwrap();
            trainer.observe_step(&windows, &mut Recording::of(|_| true)).unwrap();
            let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
            model.observe(&text[..24], 3, 8, &mut Recording::of(|_| true)).unwrap();
        }
        for prefill in [1, 3, 8] {
            let model = Model::new(Recorder::default(), config.clone(), 1).unwrap();
            let mut decoder = Decoder::new(&model, prefill).unwrap();
            text.chunks(5).for_each(|piece| decoder.feed(piece).unwrap());
            let small = model.quantized(Recorder::default(), Dtype::Q8_0).unwrap();
            Decoder::new(&small, prefill).unwrap().feed(&text[..7]).unwrap();
        }
    }
}

#[test]
fn what_is_reserved_is_enough_for_what_a_probe_adds() {
    // The (T, T) matrices of attention are larger than anything that the program itself reads and writes.
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 64) };
    let model = Model::new(Recorder::default(), config, 1).unwrap();
    model.logits(&[1; 64], 1, 64).unwrap();
    let before = model.device().inspect(|recorder| recorder.reserved);
    model.observe(&[1; 64], 1, 64, &mut Recording::of(|_| true)).unwrap();
    assert!(model.device().inspect(|recorder| recorder.reserved) > before);
}

#[test]
fn the_memory_of_a_plan_is_on_no_backend() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 4) };
    let mut backend = Reference::<f32>::new();
    for _ in 0..20 {
        backend.alloc(1 << 16).unwrap();
    }
    let program = Plan::training(&config, Dtype::F32, 1, 4).unwrap().program().unwrap();
    for op in ops(&program) {
        assert!(matches!(backend.run(op), Err(ReferenceError::NoBuffer { .. })), "{op:?}");
    }
}

#[test]
fn a_batch_beyond_all_memory_is_planned_at_once() {
    let config = GptConfig { layers: 1, heads: 1, d_model: 4, d_ff: 4, ..GptConfig::new(3, 4) };
    let plan = Plan::training(&config, Dtype::F32, 1 << 40, 4).unwrap();
    // As many as there are rows would take days.
    assert!(plan.workspace_bytes(&Recorder::default()) > 1 << 40);
}

/// The reference, which keeps programs. It knows what was prepared, and what was run outside of a program.
#[derive(Default)]
struct Keeping {
    inner: Reference<f32>,
    prepared: Vec<Option<Vec<Op>>>,
    replays: usize,
    alone: usize,
    refuses: bool,
}

impl Keeping {
    fn kept(&self) -> usize {
        self.prepared.iter().flatten().count()
    }
}

impl Backend for Keeping {
    type Elem = f32;
    type Error = ReferenceError;

    forward!(inner: alloc release write read copy fill sync);
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.alone += 1;
        self.inner.run(op)
    }
    fn keeps_programs(&self) -> bool {
        true
    }
    fn prepare(&mut self, ops: &[Op]) -> Result<u64, Self::Error> {
        // After one that it takes.
        if self.refuses && self.kept() > 0 {
            return Err(ReferenceError::OutOfMemory { bytes: ops.len() });
        }
        self.prepared.push(Some(ops.to_vec()));
        Ok(self.prepared.len() as u64 - 1)
    }
    fn replay(&mut self, number: u64, ops: &[Op]) -> Result<(), Self::Error> {
        assert_eq!(self.prepared[number as usize].as_deref(), Some(ops));
        self.replays += 1;
        ops.iter().try_for_each(|op| self.inner.run(op))
    }
    fn forget(&mut self, number: u64) {
        assert!(self.prepared[number as usize].take().is_some());
    }
}

/// Losses of a training with evaluations between, and then the logits of a decoder that is fed pieces of all lengths.
fn numbers<B: Backend<Elem = f32>>(model: &Model<B>) -> (Vec<f64>, Vec<f32>) {
    let text: Vec<u32> = (0..200).map(|i| i * i % 11).collect();
    let (windows, eval) = (Windows::new(&text, 8).unwrap(), EvalWindows::new(&text[..90], 8).unwrap());
    let settings = TrainConfig { batch: 5, time: 8, accumulation: 2, ..TrainConfig::constant(1e-2) };
    let mut trainer = Trainer::new(model, settings).unwrap();
    let mut losses = Vec::new();
    for _ in 0..3 {
        trainer.step(&windows).unwrap();
        losses.extend([trainer.metrics().unwrap().loss, trainer.evaluate(&eval).unwrap()]);
    }
    let mut decoder = Decoder::new(model, 70).unwrap();
    let mut logits = Vec::new();
    for piece in [1, 2, 7, 1, 8, 3] {
        decoder.feed(&text[..piece]).unwrap();
        logits.extend_from_slice(decoder.logits());
    }
    (losses, logits)
}

#[test]
fn what_a_backend_keeps_is_prepared_once_replayed_and_forgotten() {
    for config in configs() {
        let model = Model::new(Keeping::default(), config.clone(), 1).unwrap();
        assert_eq!(numbers(&model), numbers(&Model::new(Reference::<f32>::new(), config, 1).unwrap()));
        // What begins a step, a micro-step and an update; and passes of one row and of eight, which is all that there is
        // room for.
        model.device().inspect(|backend| {
            assert_eq!((backend.prepared.len(), backend.kept()), (3 + 2, 0));
            assert_eq!(backend.replays, 3 * (1 + 2 + 1) + 6);
            // Evaluations alone.
            assert!(backend.alone > 0);
        });
        let mut decoder = Decoder::new(&model, 3).unwrap();
        let before = model.device().inspect(|backend| backend.alone);
        decoder.feed(&[1, 2, 3, 4]).unwrap();
        model.device().inspect(|backend| assert_eq!((backend.alone, backend.kept()), (before, 2)));
    }
}

#[test]
fn a_backend_that_can_keep_no_more_is_left_as_it_was() {
    let [config, ..] = &configs()[..] else { panic!("there are configs") };
    let model = Model::new(Keeping { refuses: true, ..Keeping::default() }, config.clone(), 1).unwrap();
    assert!(Decoder::new(&model, 8).is_err_and(|error| error.is_out_of_memory()));
    assert!(
        Trainer::new(&model, TrainConfig { time: 8, ..TrainConfig::constant(1.0) })
            .is_err_and(|error| error.is_out_of_memory())
    );
    model.device().inspect(|backend| assert_eq!((backend.prepared.len(), backend.kept()), (2, 0)));
}
