//! Every target of the CPU backend in one table, beside PyTorch where Python has it:
//! `cargo bench -p minigpt-benches --bench summary`, in about ten minutes.
//!
//! `PYTHON` names the Python; `-- --pairs 5` takes fewer rounds, `-- --only M` one part: S, M, memory, decode, llama,
//! products or odd. The candidates take turns, a few steps each, on a machine that it waits for to be quiet. A target holds if
//! the lower bound of the 95 % bootstrap interval of the ratio's median holds it.

use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use minigpt_benches::decode;
use minigpt_benches::machine;
use minigpt_benches::peaks::Peaks;
use minigpt_benches::products;
use minigpt_benches::program::Flags;
use minigpt_benches::rivals::Rival;
use minigpt_benches::rounds::{Pairs, Ratio, median, seconds, seconds_each};
use minigpt_benches::shape::{Generation, Shape, Training};
use minigpt_benches::torch::{self, Torch};
use minigpt_core::{Dtype, Precision, Recompute, TrainConfig};
use minigpt_cpu::Cpu;

type Outcome<T> = Result<T, String>;

#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    flags: Flags,
    /// Trains M for some steps with such settings, prints the megabytes that it took, and ends: how the summary
    /// measures memory.
    #[arg(long, hide = true, value_name = "SETTINGS")]
    memory: Option<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let usual = TrainConfig::constant(1e-3);
    let done = match options.memory.as_deref() {
        Some("blocks") => print_memory(&TrainConfig { recompute: Recompute::Blocks, ..usual }),
        Some("bf16") => print_memory(&TrainConfig { precision: Precision::Bf16, ..usual }),
        Some(_) => print_memory(&usual),
        None => Summary::new(options.flags).and_then(Summary::run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn cpu(threads: usize) -> Outcome<Cpu<'static>> {
    Cpu::builder().threads(threads).build().map_err(message)
}

fn training(shape: &Shape, threads: usize) -> Outcome<Training<Cpu<'static>>> {
    Training::new(shape, cpu(threads)?).map_err(message)
}

/// One line of the table at the end.
struct Line {
    what: String,
    found: String,
    target: String,
    held: bool,
}

struct Summary {
    flags: Flags,
    peaks: Peaks,
    /// Why there is no torch.
    no_torch: Option<String>,
    lines: Vec<Line>,
}

impl Summary {
    fn new(flags: Flags) -> Outcome<Summary> {
        flags.begin();
        let threads = machine::threads();
        let mut peaks = Peaks::measure(threads, flags.rounds()).map_err(message)?;
        let no_torch = match torch::sgemm(&Shape::tiny(), threads) {
            Ok((gflops, library)) => {
                peaks = peaks.or_sgemm(gflops, library);
                None
            }
            Err(error) => Some(error),
        };
        println!("{peaks}");
        if let Some(reason) = &no_torch {
            println!("PyTorch is missing, its lines are left out: {reason}");
        }
        Ok(Summary { flags, peaks, no_torch, lines: Vec::new() })
    }

    fn run(mut self) -> Outcome<()> {
        // A test runs every part on the smallest model.
        let tested =
            |shape: Shape| if self.flags.bench { shape } else { Shape { name: shape.name, ..Shape::tiny() } };
        let [small, medium, llama] = [Shape::small(), Shape::medium(), Shape::llama_medium()].map(tested);
        for (shape, target, share, threads) in [(&small, 1.8, 0.6, 1.65), (&medium, 1.4, 0.75, 1.85)] {
            if self.flags.wants(shape.name) {
                self.step(shape, target, share, threads)?;
            }
        }
        for (part, run) in [
            ("memory", Summary::memory as fn(&mut Summary, &Shape) -> Outcome<()>),
            ("decode", Summary::decode),
        ] {
            if self.flags.wants(part) {
                run(&mut self, &medium)?;
            }
        }
        if self.flags.wants("bf16") {
            self.precision(&small)?;
            self.precision(&medium)?;
        }
        if self.flags.wants("llama") {
            self.families(&llama, &medium)?;
        }
        if self.flags.wants("products") {
            self.products(&small)?;
            self.products(&medium)?;
        }
        if self.flags.wants("odd") {
            self.odd()?;
        }
        println!("\n{:<58}{:>26}{:>10}", "", "measured", "target");
        for Line { what, found, target, held } in &self.lines {
            println!("{what:<58}{found:>26}{target:>10}  {}", if *held { "held" } else { "MISSED" });
        }
        Ok(())
    }

    /// A line whose target the bound must hold.
    fn ratio(&mut self, what: String, pairs: &Pairs, target: f64) {
        let ratio = pairs.ratio();
        if pairs.disturbed > 0 {
            println!(
                "{what}: others kept the machine busy in {} of {} rounds",
                pairs.disturbed, ratio.rounds
            );
        }
        self.at_least(what, ratio, target);
    }

    fn at_least(&mut self, what: String, ratio: Ratio, target: f64) {
        let (found, held) = (ratio.to_string(), ratio.lower >= target);
        self.lines.push(Line { what, found, target: format!("{target:.2}"), held });
    }

    /// A line of GFLOP/s in each round, as a share of the best SGEMM.
    fn of_peak(&mut self, what: String, gflops: &[f64], target: f64) {
        self.at_least(what, Ratio::of(gflops, &vec![self.peaks.sgemm; gflops.len()]), target);
    }

    /// A line of a percentage that must not be above the target.
    fn at_most(&mut self, what: String, found: f64, target: f64) {
        let (held, found) = (found <= target, format!("{found:.1} %"));
        self.lines.push(Line { what, found, target: format!("<= {target:.1} %"), held });
    }

    /// Where torch is and works for this shape.
    fn torch(&self, shape: &Shape) -> Option<Torch> {
        if self.no_torch.is_some() {
            return None;
        }
        Torch::start(shape, self.peaks.threads).map_err(|error| println!("PyTorch fails: {error}")).ok()
    }

    /// The training step: beside torch, beside one thread, and as a share of the peak.
    fn step(&mut self, shape: &Shape, target: f64, share: f64, threads_target: f64) -> Outcome<()> {
        let threads = self.peaks.threads;
        let mut all = training(shape, threads)?;
        let (name, flops) = (shape.name, all.flops());
        let once = seconds_each(3, || all.step());
        // Some hundred milliseconds a turn, after as many steps as bring the caches back from the other.
        let turn = if self.flags.bench { ((0.3 / once) as usize).max(1) } else { 1 };
        let warm = if once < 0.1 { 2 } else { 0 };

        if let Some(mut torch) = self.torch(shape) {
            let mode = best_mode(&mut torch, self.flags.bench, turn)?;
            let pairs = Pairs::take(
                self.flags.rounds(),
                &[torch.id()],
                || {
                    settle();
                    seconds_each(warm, || all.step());
                    Ok::<f64, String>(seconds_each(turn, || all.step()))
                },
                || {
                    settle();
                    if warm > 0 {
                        torch.steps(mode, warm)?;
                    }
                    torch.steps(mode, turn)
                },
            )?;
            println!(
                "{name}: a step takes {:.2} ms, torch {mode} {:.2} ms",
                median(&pairs.ours) * 1e3,
                median(&pairs.theirs) * 1e3
            );
            // What no library here could do better, whatever the ratio that one wishes for.
            let bound = flops / (self.peaks.sgemm * 1e9);
            println!(
                "{name}: a step all at the rate of the best SGEMM would take {:.2} ms, {:.2} times as fast as torch",
                bound * 1e3,
                median(&pairs.theirs) / bound
            );
            self.ratio(format!("training step of {name}, times as fast as torch {mode}"), &pairs, target);
        }

        let mut one = training(shape, 1)?;
        let pairs = Pairs::take(
            self.flags.rounds(),
            &[],
            || Ok::<f64, String>(seconds_each(turn, || all.step())),
            || Ok(seconds_each(turn.div_ceil(threads), || one.step())),
        )?;
        let time = median(&pairs.ours);
        println!(
            "{name}: {:.2} ms on {threads} threads, {:.2} ms on one; {:.0} tokens/s, {:.1} GFLOP/s",
            time * 1e3,
            median(&pairs.theirs) * 1e3,
            shape.rows() as f64 / time,
            flops / time / 1e9
        );
        let of_peak: Vec<f64> = pairs.ours.iter().map(|time| flops / time / 1e9).collect();
        self.of_peak(format!("training step of {name}, share of the SGEMM peak"), &of_peak, share);
        self.ratio(format!("training step of {name}, {threads} threads over one"), &pairs, threads_target);
        Ok(())
    }

    /// A step in bf16 and one in f32 in turns.
    fn precision(&mut self, shape: &Shape) -> Outcome<()> {
        let threads = self.peaks.threads;
        let settings = TrainConfig { precision: Precision::Bf16, ..TrainConfig::constant(1e-3) };
        let mut rounded = Training::with(shape, cpu(threads)?, &settings).map_err(message)?;
        let mut whole = training(shape, threads)?;
        seconds_each(2, || (rounded.step(), whole.step()));
        let turn =
            if self.flags.bench { ((0.3 / seconds_each(1, || whole.step())) as usize).max(1) } else { 1 };
        let pairs = Pairs::take(
            self.flags.rounds(),
            &[],
            || Ok::<f64, String>(seconds_each(turn, || rounded.step())),
            || Ok(seconds_each(turn, || whole.step())),
        )?;
        println!(
            "{}: a step takes {:.2} ms in bf16, {:.2} ms in f32",
            shape.name,
            median(&pairs.ours) * 1e3,
            median(&pairs.theirs) * 1e3
        );
        self.ratio(format!("training step of {} in bf16, times as fast as in f32", shape.name), &pairs, 0.5);
        Ok(())
    }

    /// A step of each in turns, each by its own operations: what a block of another shape costs beyond them.
    fn families(&mut self, shape: &Shape, other: &Shape) -> Outcome<()> {
        let threads = self.peaks.threads;
        let (mut ours, mut theirs) = (training(shape, threads)?, training(other, threads)?);
        let (our_flops, their_flops) = (ours.flops(), theirs.flops());
        seconds_each(2, || (ours.step(), theirs.step()));
        let pairs = Pairs::take(
            self.flags.rounds(),
            &[],
            || Ok::<f64, String>(seconds_each(1, || ours.step()) / our_flops),
            || Ok(seconds_each(1, || theirs.step()) / their_flops),
        )?;
        println!(
            "{}: {:.1} GFLOP/s, {} {:.1}",
            shape.name,
            1e-9 / median(&pairs.ours),
            other.name,
            1e-9 / median(&pairs.theirs)
        );
        self.ratio(
            format!("training step of {}, FLOP/s over those of {}", shape.name, other.name),
            &pairs,
            1.0 / 1.1,
        );
        Ok(())
    }

    /// Memory that training takes, each in a process of its own.
    fn memory(&mut self, shape: &Shape) -> Outcome<()> {
        let theirs = match self.no_torch {
            None => Some(torch::memory_growth(shape, self.peaks.threads, "fused")?),
            Some(_) => None,
        };
        if let Some(theirs) = theirs {
            println!("memory of training {} by torch, beyond its import: {theirs:.0} MB", shape.name);
        }
        let mut first = None;
        for (settings, how, target) in [
            ("nothing", "", 50.0),
            ("blocks", ", blocks computed again", 100.0 / 3.0),
            ("bf16", ", in bf16", 50.0),
        ] {
            let output = Command::new(std::env::current_exe().map_err(message)?)
                .args(["--memory", settings])
                .args(self.flags.bench.then_some("--bench"))
                .output()
                .map_err(message)?;
            let ours: f64 = String::from_utf8_lossy(&output.stdout)
                .trim()
                .parse()
                .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
            println!("memory of training {}{how}: {ours:.0} MB", shape.name);
            let whole = *first.get_or_insert(ours);
            if settings == "bf16" {
                let what = format!("memory of training {} in bf16, of f32's", shape.name);
                self.at_most(what, 100.0 * ours / whole, 84.0);
            }
            if let Some(theirs) = theirs {
                let what = format!("memory of training {}{how}, of torch's", shape.name);
                self.at_most(what, 100.0 * ours / theirs, target);
            }
        }
        Ok(())
    }

    /// Decoding one sequence: by weight format, and beside torch over a cache of its own.
    fn decode(&mut self, shape: &Shape) -> Outcome<()> {
        // From one refill of the cache to the next, so that every turn has the same lengths.
        let turn = shape.time / 2;
        let mut ours = Generation::new(shape, cpu(self.peaks.threads)?).map_err(message)?;
        if let Some(mut torch) = self.torch(shape) {
            let pairs = Pairs::take(
                self.flags.rounds(),
                &[torch.id()],
                || {
                    settle();
                    Ok::<f64, String>(seconds(|| ours.tokens(turn)) / turn as f64)
                },
                || {
                    settle();
                    torch.decode(turn)
                },
            )?;
            println!(
                "{}: decodes {:.0} tokens/s, torch {:.0}",
                shape.name,
                1.0 / median(&pairs.ours),
                1.0 / median(&pairs.theirs)
            );
            self.ratio(format!("decoding {} in f32, times as fast as torch", shape.name), &pairs, 1.0);
        }
        let (decodings, _) =
            decode::measure(shape, self.peaks.threads, self.flags.rounds()).map_err(message)?;
        for decoding in decodings {
            let name = format!("decoding {} in {:?}", shape.name, decoding.dtype);
            match decoding.dtype {
                Dtype::F32 => {
                    self.at_least(format!("{name}, share of the bandwidth"), decoding.of_bandwidth, 0.75);
                    let what = format!("prefill of {}, share of the SGEMM peak", shape.name);
                    // In turns with the best library, if that is the one that took turns.
                    if self.peaks.best == Rival::Gemm(self.peaks.threads).name() {
                        self.at_least(what, decoding.of_sgemm, 0.65);
                    } else {
                        self.of_peak(what, &decoding.prefill_gflops, 0.65);
                    }
                }
                Dtype::Bf16 => self.at_least(format!("{name}, times as fast as f32"), decoding.over_f32, 1.6),
                Dtype::Q8_0 => self.at_least(format!("{name}, times as fast as f32"), decoding.over_f32, 2.5),
                _ => {}
            }
        }
        Ok(())
    }

    /// Each product beside the `gemm` crate's: the slowest one is the line.
    fn products(&mut self, shape: &Shape) -> Outcome<()> {
        let all = products::compare(shape, self.peaks.threads, self.flags.rounds(), self.flags.bench)
            .map_err(message)?;
        let ratios: Vec<(String, Ratio)> =
            all.into_iter().map(|product| (product.name, Ratio::of(&product.gemm, &product.ours))).collect();
        let worst = ratios.iter().min_by(|a, b| a.1.lower.total_cmp(&b.1.lower));
        if let Some((name, ratio)) = worst {
            let what = format!("slowest product of {} ({name}) over gemm's", shape.name);
            self.at_least(what, *ratio, 1.0);
        }
        Ok(())
    }

    /// Models that are not round beside their round neighbours.
    fn odd(&mut self) -> Outcome<()> {
        for (odd, round) in Shape::odd_and_round() {
            let mut odd_training = training(&odd, self.peaks.threads)?;
            let mut round_training = training(&round, self.peaks.threads)?;
            let (odd_flops, round_flops) = (odd_training.flops(), round_training.flops());
            let turn = if self.flags.bench { 5 } else { 1 };
            let pairs = Pairs::take(
                self.flags.rounds(),
                &[],
                || Ok::<f64, String>(seconds_each(turn, || odd_training.step()) / odd_flops),
                || Ok(seconds_each(turn, || round_training.step()) / round_flops),
            )?;
            self.ratio(format!("rate of {} over that of {}", odd.name, round.name), &pairs, 0.75);
        }
        Ok(())
    }
}

/// The threads of the one whose turn is over spin for a while before they sleep.
fn settle() {
    sleep(Duration::from_millis(20));
}

/// The fastest of torch's modes here. torch.compile needs a C++ compiler, and is left out where it fails.
fn best_mode(torch: &mut Torch, measure: bool, turn: usize) -> Outcome<&'static str> {
    let modes = if measure { &torch::MODES[..] } else { &torch::MODES[..1] };
    let mut best = None;
    for &mode in modes {
        let times: Result<Vec<f64>, String> = (0..3).map(|_| torch.steps(mode, turn)).collect();
        match times {
            Ok(times) => {
                let time = median(&times);
                println!("  torch {mode}: {:.2} ms", time * 1e3);
                if best.is_none_or(|(_, least)| time < least) {
                    best = Some((mode, time));
                }
            }
            Err(error) => println!("  torch {mode} fails: {error}"),
        }
    }
    best.map(|(mode, _)| mode).ok_or_else(|| "PyTorch trains in no mode".into())
}

/// Trains for some steps and prints how many megabytes that took at their peak.
fn print_memory(settings: &TrainConfig) -> Outcome<()> {
    let unknown = "this system does not tell how much memory a program takes";
    let before = machine::resident_mb().ok_or(unknown)?;
    let cpu = cpu(machine::threads())?;
    let mut training = Training::with(&Shape::medium(), cpu, settings).map_err(message)?;
    let steps = if std::env::args().any(|flag| flag == "--bench") { 4 } else { 1 };
    for _ in 0..steps {
        training.step();
    }
    println!("{}", machine::peak_mb().ok_or(unknown)? - before);
    Ok(())
}
