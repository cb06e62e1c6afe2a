//! Stores a trained model in fewer bits, and says what that costs:
//! `cargo run --release --example quantize`, then `-- --format q8_0 --out small.mgpt` to keep one. `--format f32` keeps the
//! model without what only training needs: a third of the file, to be given away.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use minigpt_core::checkpoint::{Checkpoint, TensorView};
use minigpt_core::data::EvalWindows;
use minigpt_core::model::Extras;
use minigpt_core::reference::weights::decode_weight;
use minigpt_core::{Dtype, Model, Recompute, TrainConfig, Trainer};
use minigpt_cpu::Cpu;
use minigpt_examples::corpus::{self, Search, TextOptions, Vocabulary};
use minigpt_examples::options::{CheckpointOptions, check_out, open};
use minigpt_examples::{Outcome, finish, memory, say};

/// Store a model in fewer bits: its size, its loss on the validation split, and the error of each tensor.
#[derive(Debug, Parser)]
#[command(name = "quantize")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
    /// The text to evaluate on; else the one that the run was trained on.
    #[command(flatten)]
    text: TextOptions,
    /// Only this format; else all. In f32 a model is what it was, without what only training needs.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Save the model in that format.
    #[arg(long, value_name = "FILE", requires = "format")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    #[value(name = "f32")]
    F32,
    #[value(name = "f16")]
    F16,
    #[value(name = "bf16")]
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<Format> for Dtype {
    fn from(format: Format) -> Dtype {
        match format {
            Format::F32 => Dtype::F32,
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::Bf16,
            Format::Q8_0 => Dtype::Q8_0,
            Format::Q4_0 => Dtype::Q4_0,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    finish(|| run(&options).map(|()| 0))
}

fn run(options: &Options) -> Outcome<()> {
    let loaded = options.checkpoint.load()?;
    if let Some(out) = &options.out {
        check_out(out, &loaded.path)?;
    }
    let checkpoint = open(&loaded.bytes)?;
    if let (Some(Format::F32), Some(out)) = (options.format, &options.out) {
        return save_exact(&checkpoint, loaded.bytes.len(), out);
    }
    let tokenizer =
        checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: no text has its tokens")?;
    let (search, vocabulary) = (Search::from_environment(), Vocabulary::Fixed(tokenizer));
    let corpus = corpus::read_of_checkpoint(&search, &options.text, &loaded, vocabulary)?;
    for note in &corpus.notes {
        say(note)?;
    }
    say(format_args!("{} on {}", loaded.path.display(), corpus.origin))?;
    let windows = EvalWindows::new(corpus.validation(), checkpoint.config().context)?;

    let settings = evaluation(windows.time());
    let parameters = settings.plan(checkpoint.config(), &Cpu::new()?)?.bytes.parameters;
    // Beside the model that is evaluated: all its weights, and those in one format; but no longer what was loaded.
    let more = parameters.saturating_mul(2).saturating_sub(loaded.bytes.len());
    memory::check_evaluation(&Cpu::new()?, checkpoint.config(), &settings, more)?;

    let mut exact = Vec::new();
    Model::load(Cpu::new()?, &checkpoint)?.write(&mut exact, &extras_of(&checkpoint))?;
    drop(loaded);
    let exact_bytes = exact.len();
    let loss = loss_of(&exact, &windows)?;
    say(format_args!("{:<8}{:>12}{:>10}{:>11}{:>11}", "stored", "bytes", "of f32", "val_loss", "more"))?;
    say(format_args!("{:<8}{exact_bytes:>12}{:>9.1}%{loss:>11.4}{:>11}", "F32", 100.0, ""))?;

    let mut columns = Vec::new();
    // The line of f32 is there already.
    for format in Format::value_variants().iter().filter(|format| **format != Format::F32) {
        if options.format.is_some_and(|only| only != *format) {
            continue;
        }
        let dtype = Dtype::from(*format);
        let file = quantized(&exact, dtype, options.out.as_deref())?;
        let its = loss_of(&file, &windows)?;
        let share = 100.0 * file.len() as f64 / exact_bytes as f64;
        let name = format!("{dtype:?}");
        say(format_args!("{name:<8}{:>12}{share:>9.1}%{its:>11.4}{:>+11.5}", file.len(), its - loss))?;
        columns.push((name, errors(&exact, &file)?));
    }
    if let Some(out) = &options.out {
        say(format_args!("saved: {}", out.display()))?;
    }
    if columns.is_empty() { Ok(()) } else { print_errors(&exact, &columns) }
}

/// Saves the model as it is, without what only training needs. That takes no text.
fn save_exact(checkpoint: &Checkpoint<'_>, before: usize, out: &Path) -> Outcome<()> {
    let cpu = Cpu::new()?;
    memory::check_decoding(&cpu, checkpoint.config(), 1, Dtype::F32)?;
    Model::load(cpu, checkpoint)?.save(out, &extras_of(checkpoint))?;
    let (path, after) = (out.display(), std::fs::metadata(out).map_or(0, |file| file.len()));
    say(format_args!("{path}: {after} bytes, of {before}; the weights are the same"))
}

/// What goes along with the model.
fn extras_of<'a>(checkpoint: &'a Checkpoint<'a>) -> Extras<'a> {
    Extras { tokenizer: checkpoint.tokenizer(), metadata: checkpoint.metadata() }
}

/// The file of the same model in another format, saved at `out` too.
fn quantized(exact: &[u8], dtype: Dtype, out: Option<&Path>) -> Outcome<Vec<u8>> {
    let exact = open(exact)?;
    let extras = extras_of(&exact);
    let small = Model::borrow(Cpu::new()?, &exact)?.quantized(Cpu::new()?, dtype)?;
    if let Some(path) = out {
        small.save(path, &extras)?;
    }
    let mut file = Vec::new();
    small.write(&mut file, &extras)?;
    Ok(file)
}

/// The mean loss on the validation text, in nats per token. The weights are widened first: the same numbers, at the
/// speed of f32.
fn loss_of(file: &[u8], windows: &EvalWindows<'_>) -> Outcome<f64> {
    let model = Model::load(Cpu::new()?, &open(file)?)?;
    Ok(Trainer::new(&model, evaluation(windows.time()))?.evaluate(windows)?)
}

/// Nothing is kept for a backward pass that there is not.
fn evaluation(time: usize) -> TrainConfig {
    TrainConfig { batch: 16, time, recompute: Recompute::Blocks, ..TrainConfig::constant(0.0) }
}

/// How far each tensor is off, as the root of the mean square, beside that of its numbers; `None` where it is stored as
/// it was.
fn errors(exact: &[u8], file: &[u8]) -> Outcome<Vec<Option<f64>>> {
    let (exact, file) = (open(exact)?, open(file)?);
    let error = |tensor: TensorView<'_>| {
        let small = file.tensor(tensor.name);
        let small = small.ok_or_else(|| format!("{} is not in the smaller model", tensor.name))?;
        let weights = numbers(&tensor);
        let off = root_mean_square(numbers(&small).iter().zip(&weights).map(|(a, b)| a - b));
        let share = off / root_mean_square(weights.iter().copied()).max(f64::MIN_POSITIVE);
        Ok((small.dtype != tensor.dtype).then_some(share))
    };
    exact.tensors().map(error).collect()
}

/// The [`errors`] of each format.
fn print_errors(exact: &[u8], columns: &[(String, Vec<Option<f64>>)]) -> Outcome<()> {
    let heading: String = columns.iter().map(|(name, _)| format!("{name:>10}")).collect();
    say(format_args!("\n{:<28}{:>14}{:>10}{heading}", "error, as a share of rms", "shape", "rms"))?;
    for (i, tensor) in open(exact)?.tensors().enumerate() {
        let rms = root_mean_square(numbers(&tensor).into_iter());
        let shape = format!("{} x {}", tensor.rows, tensor.cols);
        let error = |error: Option<f64>| match error {
            Some(share) => format!("{:>9.3}%", 100.0 * share),
            None => format!("{:>10}", "as it was"),
        };
        let errors: String = columns.iter().map(|(_, errors)| error(errors[i])).collect();
        say(format_args!("{:<28}{shape:>14}{rms:>10.5}{errors}", tensor.name))?;
    }
    Ok(())
}

fn numbers(tensor: &TensorView<'_>) -> Vec<f64> {
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    decode_weight(tensor.bytes, tensor.dtype, &mut values, tensor.rows, tensor.cols);
    values
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(|x| x * x).sum::<f64>() / count).sqrt()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use minigpt_examples::options::load_which;
    use minigpt_examples::testing::Scratch;

    use super::*;

    #[test]
    fn a_model_to_give_away_is_what_it_was_without_what_only_training_needs() {
        let scratch = Scratch::new();
        let trained = scratch.trained(&"the quick brown fox; ".repeat(40), "--iterations 24").unwrap();
        let given = scratch.path("given.mgpt");
        let quantize = |flags: &[&str]| {
            let folder = scratch.path("run");
            let words = ["quantize", "--checkpoint", folder.to_str().unwrap()];
            run(&Options::try_parse_from(words.iter().chain(flags))?)
        };
        quantize(&["--format", "f32", "--out", given.to_str().unwrap()]).unwrap();
        let (before, after) =
            (fs::read(&trained.checkpoint).unwrap(), load_which(&given, None).unwrap().bytes);
        // The weights and two moments of each were in it before.
        assert!(2 * after.len() < before.len(), "{} of {} bytes", after.len(), before.len());
        let (before, after) = (open(&before).unwrap(), open(&after).unwrap());
        assert!(after.training().is_none() && before.training().is_some());
        assert_eq!((after.config(), after.tokenizer()), (before.config(), before.tokenizer()));
        for tensor in after.tensors() {
            assert!(before.tensor(tensor.name).unwrap().bytes == tensor.bytes, "{}", tensor.name);
        }
        // It can be trained on as a new run, by what the trainer says of it.
        let copy = scratch.path("copy");
        fs::create_dir(&copy).unwrap();
        fs::copy(&given, copy.join("step-0000000024.mgpt")).unwrap();
        let words =
            format!("train --resume --out {} --data {}", copy.display(), scratch.path("text.txt").display());
        let error = train(&words).unwrap_err().to_string();
        assert!(error.contains("--from in place of --resume"), "{error}");
        let from = format!("--from {} --iterations 2 --sample 0", given.display());
        train(&words.replace("--resume", &from)).unwrap();
        // It goes on from there in fewer bits, on its own text.
        let other = scratch.path("other.txt");
        fs::write(&other, "ANOTHER TEXT".repeat(20)).unwrap();
        let (given, text) = (given.to_str().unwrap(), scratch.path("text.txt"));
        let data = |path: &Path| {
            let words =
                ["quantize", "--checkpoint", given, "--format", "q8_0", "--data", path.to_str().unwrap()];
            run(&Options::try_parse_from(words)?)
        };
        let error = data(&other).unwrap_err().to_string();
        assert!(error.contains("are not among the 17") && error.contains("other.txt"), "{error}");
        data(&text).unwrap();
        // And all formats are shown where none is named.
        quantize(&[]).unwrap();
    }

    fn train(words: &str) -> Outcome<()> {
        let options = minigpt_examples::training::Options::try_parse_from(words.split(' '))?;
        minigpt_examples::training::train(&options, || false).map(drop)
    }
}
