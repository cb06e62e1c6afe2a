//! Where the time goes, of any model: `cargo run --release --example profile -- --shape 6,6,384,256,8`, or
//! `-- --checkpoint PATH` for one of your own.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use minigpt_core::checkpoint::Checkpoint;
use minigpt_core::{
    Backend, Decoder, GptConfig, Model, Plan, Real, SampleConfig, Sampler, TrainConfig, Trainer, Windows,
};
use minigpt_examples::memory::Remedy;
use minigpt_examples::options::{
    BackendName, CheckpointOptions, OnBackend, PrecisionName, RecomputeName, Which, human, on_backend, open,
};
use minigpt_examples::profiled::{Bound, Ceilings, Cost, Profiled};
use minigpt_examples::{Outcome, finish, memory, say};
use serde_json::json;

/// Time the training step and decoding of a model of any shape, op by op.
#[derive(Debug, Clone, Parser)]
#[command(name = "profile")]
struct Options {
    /// Layers, heads, width, context and batch; or S for 4,4,128,64,12, or M for 6,6,384,256,8.
    #[arg(long, default_value = "S", value_parser = shape)]
    shape: Shape,
    /// Time this model instead of one of a shape: a checkpoint, or the folder of a run.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["shape", "vocab"])]
    checkpoint: Option<PathBuf>,
    /// Which checkpoint of a run's folder (last).
    #[arg(long, value_enum, requires = "checkpoint")]
    which: Option<Which>,
    /// Sequences in a batch; else what --shape says, or the settings in the checkpoint.
    #[arg(long)]
    batch: Option<usize>,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 65)]
    vocab: usize,
    /// What to time.
    #[arg(long, value_enum, default_value = "all")]
    mode: Mode,
    /// Threads; else as many as the machine offers.
    #[arg(long)]
    threads: Option<usize>,
    /// What the backward pass computes again, to save memory.
    #[arg(long, value_enum, default_value = "nothing")]
    recompute: RecomputeName,
    /// What is rounded in a training step.
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionName,
    /// How long to time each.
    #[arg(long, default_value_t = 6.0)]
    seconds: f64,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendName,
    /// Print a line of JSON for each timing and no tables.
    #[arg(long)]
    json: bool,
    /// Time nothing: print what runs, op by op, with the sizes, bytes and operations of each.
    #[arg(long, conflicts_with_all = ["json", "seconds"])]
    program: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// The training step.
    Step,
    /// Decoding, one sequence.
    Gen,
    /// Both.
    All,
}

#[derive(Debug, Clone)]
struct Shape {
    name: String,
    numbers: [usize; 5],
}

fn shape(text: &str) -> Result<Shape, String> {
    let list = match text {
        "S" => "4,4,128,64,12",
        "M" => "6,6,384,256,8",
        other => other,
    };
    let numbers: Result<Vec<usize>, _> = list.split(',').map(|number| number.trim().parse()).collect();
    let numbers = numbers
        .ok()
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or("five numbers are needed: layers,heads,width,context,batch, such as 4,4,128,64,12")?;
    Ok(Shape { name: text.into(), numbers })
}

fn main() -> ExitCode {
    let options = Options::parse();
    finish(|| run(&options).map(|()| 0))
}

fn run(options: &Options) -> Outcome<()> {
    if !(options.seconds > 0.0 && options.seconds < 1e6) {
        return Err("--seconds must be above 0".into());
    }
    match &options.checkpoint {
        None => profile(&of_shape(options)),
        Some(file) => {
            let checkpoint = CheckpointOptions { checkpoint: file.clone(), which: options.which };
            let loaded = checkpoint.load()?;
            let checkpoint = open(&loaded.bytes)?;
            let trained = checkpoint.training().map(|training| training.config.batch);
            profile(&Subject {
                options,
                name: file.display().to_string(),
                config: checkpoint.config().clone(),
                batch: options.batch.or(trained).unwrap_or(1),
                checkpoint: Some(&checkpoint),
            })
        }
    }
}

/// What is timed.
struct Subject<'a> {
    options: &'a Options,
    name: String,
    config: GptConfig,
    batch: usize,
    /// Where its weights are; else they are drawn.
    checkpoint: Option<&'a Checkpoint<'a>>,
}

impl Subject<'_> {
    fn model<B: Backend>(&self, backend: B) -> Outcome<Model<B>> {
        Ok(match self.checkpoint {
            Some(checkpoint) => Model::load(backend, checkpoint)?,
            None => Model::new(backend, self.config.clone(), 1)?,
        })
    }
}

fn of_shape(options: &Options) -> Subject<'_> {
    let [layers, heads, d_model, context, batch] = options.shape.numbers;
    let config = GptConfig {
        layers,
        heads,
        d_model,
        d_ff: d_model.saturating_mul(4),
        ..GptConfig::new(options.vocab, context)
    };
    let name = options.shape.name.clone();
    Subject { options, name, config, batch: options.batch.unwrap_or(batch), checkpoint: None }
}

fn profile(subject: &Subject<'_>) -> Outcome<()> {
    let options = subject.options;
    // Each in a backend of its own, so that the peak of memory is its own too if only one is asked for.
    if options.mode != Mode::Gen {
        on_backend(options.backend, options.threads, Step(subject))?;
    }
    if options.mode != Mode::Step {
        on_backend(options.backend, options.threads, Generation(subject))?;
    }
    Ok(())
}

fn threads(options: &Options) -> usize {
    match options.backend {
        BackendName::Cpu => options
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        BackendName::Reference => 1,
    }
}

fn peer(options: &Options) -> &'static str {
    match options.backend {
        BackendName::Cpu => "minigpt",
        BackendName::Reference => "minigpt-reference",
    }
}

/// Times `work` again and again for `seconds`, at least three times.
fn times(seconds: f64, mut work: impl FnMut() -> Outcome<()>) -> Outcome<Vec<Duration>> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut times = Vec::new();
    while Instant::now() < end || times.len() < 3 {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

fn peak_mb() -> Option<f64> {
    memory::peak().map(|bytes| rounded(bytes as f64 / f64::from(1 << 20), 1))
}

/// The program of a plan as a table.
fn print_program(what: &str, plan: &Plan) -> Outcome<()> {
    say(format_args!("{what}\n{}\n", plan.program()?))
}

struct Step<'a>(&'a Subject<'a>);

impl OnBackend for Step<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        let subject = self.0;
        let (options, context, batch) = (subject.options, subject.config.context, subject.batch);
        let vocab = subject.config.vocab_size;
        let recompute = options.recompute.into();
        let precision = options.precision.into();
        let settings =
            TrainConfig { batch, time: context, recompute, precision, ..TrainConfig::constant(1e-3) };
        let remedy =
            Remedy { batch: "name it with --batch", model: "profile a smaller model or a shorter context" };
        if options.program {
            let plan = settings.plan(&subject.config, &backend)?;
            let what = format!("a training step of {}, batch {batch}", subject.name);
            return print_program(&what, &plan);
        }
        memory::check_training(&backend, &subject.config, &settings, 0, &remedy)?;
        let mut trainer = Trainer::new(&subject.model(Profiled::new(backend))?, settings)?;
        let parameters = trainer.model().parameter_count();
        let mut rng = minigpt_core::rng::Rng::new(1, minigpt_core::rng::Stream::User);
        let tokens: Vec<u32> = (0..context * 64 + 1).map(|_| rng.below(vocab as u64) as u32).collect();
        let windows = Windows::new(&tokens, context)?;
        let step = |trainer: &mut Trainer<Profiled<B>>| -> Outcome<f64> {
            trainer.step(&windows)?;
            Ok(trainer.metrics()?.loss)
        };
        let first = step(&mut trainer)?;
        for _ in 0..2 {
            step(&mut trainer)?;
        }
        trainer.model().device().inspect(Profiled::reset);
        let mut last = first;
        let times = times(options.seconds, || {
            last = step(&mut trainer)?;
            Ok(())
        })?;
        let (median, least) = (times[times.len() / 2].as_secs_f64(), times[0].as_secs_f64());
        let tokens_per_s = (batch * context) as f64 / median;
        let gflops = trainer.plan().training_flops(batch) as f64 / median / 1e9;
        if options.json {
            let line = json!({
                "peer": peer(options), "config": subject.name, "threads": threads(options),
                "params": parameters, "ms": rounded(median * 1e3, 3), "ms_min": rounded(least * 1e3, 3),
                "tok_s": tokens_per_s.round() as u64, "gflops": rounded(gflops, 1), "rss_mb": peak_mb(),
                "steps": times.len(), "loss0": rounded(first, 4), "loss": rounded(last, 4),
            });
            say(line)?;
            return Ok(());
        }
        say(format_args!(
            "training step: {:.3} ms (median of {}, least {:.3}), {tokens_per_s:.0} tokens/s, {gflops:.1} GFLOP/s, \
             {parameters} parameters, {} threads",
            median * 1e3,
            times.len(),
            least * 1e3,
            threads(options)
        ))?;
        let bytes = trainer.plan().bytes;
        for (name, bytes) in bytes.categories().into_iter().filter(|(_, bytes)| *bytes > 0) {
            say(format_args!("  {name:<14}{:>12}", human(bytes)))?;
        }
        let (costs, workspace) = trainer
            .model()
            .device()
            .inspect(|backend| (backend.costs(), trainer.plan().workspace_bytes(backend)));
        say(format_args!("  {:<14}{:>12}\n", "workspace", human(workspace)))?;
        let bytes = bytes.total();
        // The training goes first, so that the measurement of reading has room.
        drop(trainer);
        table(&costs, times.iter().sum(), times.len(), &Ceilings::measure(threads(options), bytes)?)
    }
}

/// Where the time of `count` rounds went that took `total` together, and how near each op came to the ceiling that
/// bounds it.
fn table(
    costs: &[(minigpt_core::OpKind, Cost)],
    total: Duration,
    count: usize,
    ceilings: &Ceilings,
) -> Outcome<()> {
    say(format_args!(
        "{:<18}{:>6}{:>10}{:>8}{:>9}{:>8}{:>10}{:>8}  {:<10}{:>7}",
        "op", "calls", "ms", "share", "GFLOP/s", "GB/s", "bytes", "flop/B", "bound by", "of it"
    ))?;
    let rounds = count as f64;
    let share = |time: f64| 100.0 * time / total.as_secs_f64();
    let mut accounted = 0.0;
    for (kind, cost) in costs {
        let seconds = cost.time.as_secs_f64();
        accounted += seconds;
        let bound = ceilings.bound(cost);
        let name = match bound {
            Bound::Arithmetic => "arithmetic",
            Bound::Memory => "memory",
        };
        say(format_args!(
            "{:<18}{:>6.0}{:>10.3}{:>7.1}%{:>9.1}{:>8.1}{:>10}{:>8.1}  {name:<10}{:>6.0}%",
            kind.name(),
            cost.calls as f64 / rounds,
            seconds / rounds * 1e3,
            share(seconds),
            cost.flops as f64 / seconds / 1e9,
            cost.bytes as f64 / seconds / 1e9,
            human((cost.bytes as f64 / rounds) as usize),
            cost.flops as f64 / cost.bytes as f64,
            100.0 * ceilings.share(cost),
        ))?;
    }
    let rest = (total.as_secs_f64() - accounted).max(0.0);
    say(format_args!("{:<18}{:>6}{:>10.3}{:>7.1}%", "the rest", "", rest / rounds * 1e3, share(rest)))?;
    say(format_args!(
        "the machine: {:.0} GFLOP/s of multiply-adds in registers, {:.1} GB/s of reading {}; beyond {:.1} flop/B \
         arithmetic is the bound\n",
        ceilings.gflops,
        ceilings.gb,
        human(ceilings.read),
        ceilings.gflops / ceilings.gb
    ))
}

struct Generation<'a>(&'a Subject<'a>);

impl OnBackend for Generation<'_> {
    type Result = ();

    fn run<B: Backend>(self, backend: B) -> Outcome<()> {
        /// Tokens of one timing, as many as the comparison generates.
        const TOKENS: usize = 500;
        let subject = self.0;
        let options = subject.options;
        if options.program {
            let plan = Plan::decoding(&subject.config, B::Elem::DTYPE, 1, 1)?;
            return print_program(&format!("a token of {}, with a full cache", subject.name), &plan);
        }
        memory::check_decoding(&backend, &subject.config, subject.config.context, B::Elem::DTYPE)?;
        let model = subject.model(Profiled::new(backend))?;
        let context = model.config().context;
        let mut decoder = Decoder::new(&model, context)?;
        let settings =
            SampleConfig { temperature: 0.8, top_k: Some(200), seed: 1, ..SampleConfig::default() };
        let mut sampler = Sampler::new(settings, subject.config.vocab_size)?;
        let mut generate = |count: usize| -> Outcome<()> {
            decoder.reset();
            decoder.feed(&[0])?;
            for token in decoder.generate(&mut sampler).take(count) {
                token?;
            }
            Ok(())
        };
        generate(16)?;
        model.device().inspect(Profiled::reset);
        let times = times(options.seconds, || generate(TOKENS))?;
        let speed = |time: Duration| TOKENS as f64 / time.as_secs_f64();
        let (median, best) = (speed(times[times.len() / 2]), speed(times[0]));
        if options.json {
            let line = json!({
                "peer": format!("{}+kv", peer(options)), "mode": "gen", "config": subject.name,
                "threads": threads(options), "tokens": TOKENS, "tok_s": rounded(median, 1),
                "best": rounded(best, 1), "rss_mb": peak_mb(),
            });
            say(line)?;
            return Ok(());
        }
        say(format_args!("decoding, one sequence: {median:.1} tokens/s (best {best:.1}); a token:\n"))?;
        let ceilings = Ceilings::measure(threads(options), decoder.plan().bytes.total())?;
        let costs = model.device().inspect(Profiled::costs);
        table(&costs, times.iter().sum(), times.len() * TOKENS, &ceilings)
    }
}
