//! Generates from a checkpoint where it lies on disk: nothing is read before it is needed, and processes that map the
//! same file share its memory. `cargo run --release --example mmap -- --prompt "ROMEO:"`

use std::io::{stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use minigpt_core::Model;
use minigpt_core::checkpoint::newest_path;
use minigpt_cpu::Cpu;
use minigpt_examples::generation::{Limits, SamplingOptions, Terminal, Writer, samples};
use minigpt_examples::options::{CheckpointOptions, Which, best, open};
use minigpt_examples::prompt::{PromptOptions, default_start};
use minigpt_examples::{Outcome, finish, mapped, memory};

/// Generate text from a checkpoint that is mapped into memory.
#[derive(Debug, Parser)]
#[command(name = "mmap")]
struct Options {
    #[command(flatten)]
    checkpoint: CheckpointOptions,
    #[command(flatten)]
    prompt: PromptOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
    /// How many tokens, at most.
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Check every byte first: for files that may be damaged. Reads all of them.
    #[arg(long)]
    verify: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (mut input, mut out, mut log) = (stdin().lock(), stdout().lock(), stderr());
    let terminal = Terminal { input: &mut input, out: &mut out, log: &mut log };
    finish(|| run(&options, terminal).map(|()| 0))
}

fn run(options: &Options, mut terminal: Terminal<'_>) -> Outcome<()> {
    let file = file(&options.checkpoint)?;
    let path = file.display();
    let cpu = Cpu::new()?;
    let begun = Instant::now();
    let bytes = mapped(&file)?;
    let checkpoint = open(&bytes).map_err(|e| format!("{path}: {e}"))?;
    if options.verify {
        checkpoint.verify().map_err(|e| format!("{path}: {e}"))?;
    }
    let mapping = begun.elapsed();
    let tokenizer =
        checkpoint.tokenizer().ok_or("this checkpoint has no tokenizer: its tokens have no text")?;
    let limits =
        Limits { tokens: options.tokens, stops: options.sampling.stops(&options.prompt, tokenizer)? };
    let start = default_start(&checkpoint, tokenizer);
    let prompt = options.prompt.read(tokenizer, start, &mut terminal.input)?;
    let prefill = prompt.tokens.len();
    memory::check_decoding_in_place(&cpu, checkpoint.config(), prefill)?;
    // What lies between is not opening: the prompt, and how much memory there is.
    let begun = Instant::now();
    let model = Model::borrow(cpu, &checkpoint)?;
    let opening = mapping + begun.elapsed();
    let _ = writeln!(
        terminal.log,
        "{:.1} MB opened in {:.3} ms; {} bytes of them were copied",
        bytes.len() as f64 / 1e6,
        opening.as_secs_f64() * 1e3,
        model.copied_bytes()
    );
    let mut writer = Writer::new(&model, tokenizer, start, prefill)?;
    let ways = (&options.sampling, options.sampling.seed.resolve(), 1);
    samples(&mut writer, &prompt, ways, &limits, &mut terminal)
}

/// The file to map: of a run's folder the newest by its name, which is not read here.
fn file(options: &CheckpointOptions) -> Outcome<PathBuf> {
    match (options.checkpoint.is_dir(), options.which) {
        (true, Some(Which::Best)) => best(&options.checkpoint),
        (true, _) => match newest_path(&options.checkpoint)? {
            Some(path) => Ok(path),
            None => Ok(options.load()?.path),
        },
        (false, None) => Ok(options.checkpoint.clone()),
        // It says that there is no choice.
        (false, Some(_)) => Ok(options.load()?.path),
    }
}

#[cfg(test)]
mod tests {
    use minigpt_examples::testing::{PAST_ITS_BEST, Scratch};

    use super::*;

    const TEXT: &str = "the quick brown fox jumps over the lazy dog; ";

    fn generated(scratch: &Scratch, flags: &str) -> Outcome<(String, String)> {
        let checkpoint = scratch.path("run");
        let words = ["mmap", "--checkpoint", checkpoint.to_str().unwrap()];
        let options = Options::try_parse_from(words.into_iter().chain(flags.split_whitespace()))?;
        let (mut out, mut log) = (Vec::new(), Vec::new());
        run(&options, Terminal { input: &mut &b"the fox"[..], out: &mut out, log: &mut log })?;
        Ok((String::from_utf8(out)?, String::from_utf8(log)?))
    }

    #[test]
    fn a_model_of_one_line_writes_without_a_prompt_and_nothing_is_copied() {
        let scratch = Scratch::new();
        scratch.trained(&TEXT.repeat(40), "--iterations 24").unwrap();
        let (text, log) = generated(&scratch, "--tokens 12 --verify").unwrap();
        assert_eq!(text.chars().count(), 13, "{text:?}");
        assert!(log.contains("; 0 bytes of them were copied"), "{log}");
        let (long, log) = generated(&scratch, "--tokens 12 --prompt-file - --stop ;").unwrap();
        assert!(long.starts_with("the fox") && log.contains("7 prompt tokens"), "{long} {log}");
        let message = generated(&scratch, "--temperature -1").unwrap_err().to_string();
        assert!(message.starts_with("--temperature -1 is not"), "{message}");
    }

    #[test]
    fn of_a_run_it_is_the_last_unless_it_is_to_be_the_best() {
        let scratch = Scratch::new();
        let summary = scratch.trained(&TEXT.repeat(40), PAST_ITS_BEST).unwrap();
        assert_ne!(summary.best.unwrap().step, summary.iterations);
        let text = |flags: &str| generated(&scratch, flags).unwrap().0;
        assert_eq!(text(""), text("--which last"));
        assert_ne!(text(""), text("--which best"));
        std::fs::create_dir(scratch.path("empty")).unwrap();
        std::fs::rename(scratch.path("run"), scratch.path("run.moved")).unwrap();
        std::fs::rename(scratch.path("empty"), scratch.path("run")).unwrap();
        let message = generated(&scratch, "").unwrap_err().to_string();
        assert!(
            message.contains("there is no checkpoint of a run in") && message.contains("train first"),
            "{message}"
        );
    }
}
