//! PyTorch as a neighbour that can be timed in turns: `torch_baseline.py`, run by `$PYTHON` or `python3`.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::Shape;

/// What it answers, or why it does not.
pub type Answer<T> = Result<T, String>;

/// The ways in which it trains, as the script names them.
pub const MODES: [&str; 3] = ["eager", "fused", "compile"];

/// A process that trains and generates when it is told to.
#[derive(Debug)]
pub struct Torch {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

fn script(what: &str, shape: &Shape, threads: usize) -> Command {
    let python = env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let config = &shape.config;
    let numbers =
        [config.layers, config.heads, config.d_model, shape.time, shape.batch].map(|n| n.to_string());
    let mut command = Command::new(python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/torch_baseline.py"))
        .args([what, "--shape", &numbers.join(","), "--vocab", &config.vocab_size.to_string()])
        .args(["--threads", &threads.to_string()])
        // Tuning that is meant for other programs would hold numpy's library back.
        .env_remove("OPENBLAS_CORETYPE")
        .env_remove("OPENBLAS_L2_SIZE")
        .env("OMP_NUM_THREADS", threads.to_string());
    command
}

/// One line of JSON.
fn parse(line: &str) -> Answer<Value> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line:?}"))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(error.into()),
        None => Ok(value),
    }
}

fn number(value: &Value, field: &str) -> Answer<f64> {
    value.get(field).and_then(Value::as_f64).ok_or_else(|| format!("no {field} in {value}"))
}

/// Runs the script for one answer.
fn once(mut command: Command) -> Answer<Value> {
    let output = command.output().map_err(|error| format!("cannot start Python: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().last() {
        Some(line) if output.status.success() => parse(line),
        _ => Err(last_line(&output.stderr)),
    }
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("Python said nothing").into()
}

/// GFLOP/s of a product of two 1024 x 1024 matrices by the best of its libraries, and which that is.
///
/// # Errors
/// If there is no torch.
pub fn sgemm(shape: &Shape, threads: usize) -> Answer<(f64, &'static str)> {
    let answer = once(script("sgemm", shape, threads))?;
    let rates = answer.get("gflops").ok_or("no gflops")?;
    let rate = |name: &str| rates.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let (torch, numpy) = (rate("torch"), rate("numpy"));
    Ok(if torch >= numpy { (torch, "torch.mm") } else { (numpy, "numpy") })
}

/// Megabytes that training adds to those that the import of torch took, at their peak.
///
/// # Errors
/// If there is no torch.
pub fn memory_growth(shape: &Shape, threads: usize, mode: &str) -> Answer<f64> {
    let mut command = script("memory", shape, threads);
    command.args(["--mode", mode]);
    number(&once(command)?, "growth_mb")
}

impl Torch {
    /// Starts it for models of this shape.
    ///
    /// # Errors
    /// If there is no Python or no torch.
    pub fn start(shape: &Shape, threads: usize) -> Answer<Torch> {
        let mut child = script("serve", shape, threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start Python: {error}"))?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        let mut torch = Torch { child, commands, answers: BufReader::new(answers) };
        torch.ask("modes")?;
        // Warnings of a long-lived process would fill the pipe and stop it.
        if let Some(mut errors) = torch.child.stderr.take() {
            std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        }
        Ok(torch)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn ask(&mut self, command: &str) -> Answer<Value> {
        let commands = self.commands.as_mut().ok_or("it has ended")?;
        let mut line = String::new();
        let said = writeln!(commands, "{command}")
            .and_then(|()| commands.flush())
            .and_then(|()| self.answers.read_line(&mut line));
        match said {
            Ok(read) if read > 0 => parse(&line),
            _ => {
                let mut errors = Vec::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = stderr.read_to_end(&mut errors);
                }
                Err(last_line(&errors))
            }
        }
    }

    /// Seconds of each of `count` training steps.
    ///
    /// # Errors
    /// If the mode does not work here, or the process has ended.
    pub fn steps(&mut self, mode: &str, count: usize) -> Answer<f64> {
        Ok(number(&self.ask(&format!("steps {mode} {count}"))?, "seconds")? / count as f64)
    }

    /// Seconds of each of `count` generated tokens.
    ///
    /// # Errors
    /// If the process has ended.
    pub fn decode(&mut self, count: usize) -> Answer<f64> {
        Ok(number(&self.ask(&format!("decode {count}"))?, "seconds")? / count as f64)
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_numbers_or_reasons() {
        let answer = parse(r#"{"seconds": 0.5}"#).unwrap();
        assert_eq!(number(&answer, "seconds"), Ok(0.5));
        assert_eq!(number(&answer, "growth_mb").unwrap_err(), r#"no growth_mb in {"seconds":0.5}"#);
        assert_eq!(parse(r#"{"error": "no compiler"}"#).unwrap_err(), "no compiler");
        assert!(parse("Segmentation fault").is_err());
        assert_eq!(last_line(b"Traceback\nerror: there is no torch\n\n"), "error: there is no torch");
    }
}
