//! Long work that shows it is under way: a bar for people, lines for a log.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a log gets a line, at most.
const PERIOD: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Steps of training.
    Steps,
    /// Bytes that are read.
    Bytes,
    /// Windows that are evaluated.
    Windows,
}

/// Work of a known length under way. On a terminal it is a bar; else a line on the error output every ten seconds, so
/// that a log never falls silent.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u64,
    unit: Unit,
    bar: Option<ProgressBar>,
    period: Duration,
    begun: Instant,
    /// When the last line was written, and how much was done at first.
    written: Cell<Instant>,
    first: Cell<Option<u64>>,
}

impl Progress {
    /// Nothing is done yet of `total`.
    pub fn new(what: &str, total: u64, unit: Unit) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(what, total, unit));
        Progress { bar, ..Self::in_lines(what, total, unit, PERIOD) }
    }

    fn in_lines(what: &str, total: u64, unit: Unit, period: Duration) -> Self {
        let now = Instant::now();
        Progress {
            what: what.into(),
            total,
            unit,
            bar: None,
            period,
            begun: now,
            written: Cell::new(now),
            first: Cell::new(None),
        }
    }

    /// Says that `done` are done, and what else there is to say.
    pub fn at(&self, done: u64, message: impl Display) {
        if self.first.get().is_none() {
            self.first.set(Some(done));
            self.bar.iter().for_each(|bar| bar.set_position(done));
            self.bar.iter().for_each(ProgressBar::reset_eta);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_string());
        } else if let Some(line) = self.line(done, &message) {
            // A log that takes no more is no reason to end the work.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// The next line of a log, if it is time for one.
    fn line(&self, done: u64, message: &dyn Display) -> Option<String> {
        if self.written.get().elapsed() < self.period {
            return None;
        }
        self.written.set(Instant::now());
        let counted = |n: u64| match self.unit {
            Unit::Bytes => crate::options::human(usize::try_from(n).unwrap_or(usize::MAX)),
            Unit::Steps | Unit::Windows => n.to_string(),
        };
        let unit = match self.unit {
            Unit::Steps => " steps",
            Unit::Bytes => "",
            Unit::Windows => " windows",
        };
        let made = done.saturating_sub(self.first.get().unwrap_or(0)) as f64;
        let coming = self.total.saturating_sub(done) as f64;
        let left = self.begun.elapsed().as_secs_f64() / made * coming;
        let left = if left.is_finite() { format!(", {left:.0} s left") } else { String::new() };
        let message = message.to_string();
        let message = if message.is_empty() { message } else { format!(": {message}") };
        Some(format!("{}: {} of {}{unit}{message}{left}", self.what, counted(done), counted(self.total)))
    }

    /// Does something that writes lines of its own.
    pub fn suspend<R>(&self, work: impl FnOnce() -> R) -> R {
        match &self.bar {
            Some(bar) => bar.suspend(work),
            None => work(),
        }
    }

    /// It is done, or given up: the bar goes.
    pub fn done(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn bar(what: &str, total: u64, unit: Unit) -> ProgressBar {
    let count = match unit {
        Unit::Steps | Unit::Windows => "{pos}/{len}",
        Unit::Bytes => "{bytes}/{total_bytes}",
    };
    let bar = ProgressBar::new(total).with_prefix(what.to_string());
    match ProgressStyle::with_template(&format!("{{prefix}} {{bar:30}} {count}  {{msg}}  {{eta}} left")) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_a_line_in_each_period_and_no_more() {
        let progress = Progress::in_lines("training", 200, Unit::Steps, Duration::ZERO);
        progress.at(100, "");
        let line = progress.line(150, &"loss 2.500").unwrap();
        assert!(
            line.starts_with("training: 150 of 200 steps: loss 2.500, ") && line.ends_with(" s left"),
            "{line}"
        );
        let bytes = Progress::in_lines("reading", 3_000_000, Unit::Bytes, Duration::ZERO);
        assert!(bytes.line(1_500_000, &"").unwrap().starts_with("reading: 1.5 MB of 3.0 MB"));
        let seldom = Progress::in_lines("training", 200, Unit::Steps, Duration::from_secs(3600));
        assert_eq!(seldom.line(150, &""), None);
    }
}
