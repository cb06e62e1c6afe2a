//! The program of a plan: what it prints is what runs, and its counts are those of the plan.

use minigpt_core::op::Program;
use minigpt_core::plan::Logits;
use minigpt_core::{
    Backend, Buffer, Dtype, GptConfig, Model, Norm, Op, Plan, Position, Recompute, Reference, ReferenceError,
    Span, TrainConfig, Trainer,
};

/// The reference, which takes 16 rows at once and remembers what it ran.
#[derive(Default)]
struct Recorder {
    inner: Reference<f32>,
    ran: Vec<Op>,
}

impl Backend for Recorder {
    type Elem = f32;
    type Error = ReferenceError;

    fn alloc(&mut self, bytes: usize) -> Result<Buffer, Self::Error> {
        self.inner.alloc(bytes)
    }
    fn release(&mut self, buffer: Buffer) -> Result<(), Self::Error> {
        self.inner.release(buffer)
    }
    fn write(&mut self, to: Span, bytes: &[u8]) -> Result<(), Self::Error> {
        self.inner.write(to, bytes)
    }
    fn read(&mut self, from: Span, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.inner.read(from, bytes)
    }
    fn copy(&mut self, from: Span, to: Span) -> Result<(), Self::Error> {
        self.inner.copy(from, to)
    }
    fn fill(&mut self, to: Span, value: f64) -> Result<(), Self::Error> {
        self.inner.fill(to, value)
    }
    fn sync(&mut self) -> Result<(), Self::Error> {
        self.inner.sync()
    }
    fn run(&mut self, op: &Op) -> Result<(), Self::Error> {
        self.ran.push(*op);
        self.inner.run(op)
    }
    fn rows_at_once(&self) -> usize {
        16
    }
}

fn configs() -> Vec<GptConfig> {
    let base = GptConfig { layers: 2, heads: 2, d_model: 8, d_ff: 12, ..GptConfig::new(11, 8) };
    vec![
        GptConfig { dropout: 0.1, bias: true, ..base.clone() },
        GptConfig { norm: Norm::Post, position: Position::Rotary, ..base.clone() },
        GptConfig { norm: Norm::None, residual: false, tied_embeddings: false, ..base },
    ]
}

/// What each op is and how large.
fn shapes<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Vec<String> {
    ops.into_iter().map(|op| format!("{} {}", op.kind().name(), op.sizes())).collect()
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
            let ran = model.device().inspect(|recorder| shapes(&recorder.ran));
            assert_eq!(shapes(ops(&program)), ran);
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
        let plan = Plan::inference(&config, Dtype::F32, 2, 6, Logits::All, 0).unwrap();
        let program = plan.program().unwrap();
        assert_eq!(shapes(ops(&program)), model.device().inspect(|recorder| shapes(&recorder.ran)));
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
