//! Signals that ask a program to end: it ends when its work is saved.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::generation::Interruption;

/// Whether this process was asked to end: by Ctrl-C, by SIGTERM as service managers send it, or, on Unix, by SIGHUP,
/// when its terminal is closed.
#[derive(Debug, Clone)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Takes over the signals from here on. Who presses Ctrl-C twice does not want to wait: the second ends the process
    /// at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop { signal: Arc::default() };
        let pressed = Arc::new(AtomicBool::new(false));
        flag::register_conditional_shutdown(SIGINT, exit_code(SIGINT).into(), Arc::clone(&pressed))?;
        flag::register(SIGINT, pressed)?;
        stop.take(SIGINT)?;
        stop.take(SIGTERM)?;
        #[cfg(unix)]
        {
            use signal_hook::consts::{SIGHUP, SIGXFSZ};
            // A file that may grow no further is an error of the write then, and not the end of the process.
            flag::register(SIGXFSZ, Arc::default())?;
            // nohup has the process ignore it, and it stays so.
            if !ignored(SIGHUP) {
                stop.take(SIGHUP)?;
            }
        }
        Ok(stop)
    }

    fn take(&self, signal: i32) -> io::Result<()> {
        flag::register_usize(signal, Arc::clone(&self.signal), signal as usize).map(|_| ())
    }

    /// Whether a signal came.
    pub fn asked(&self) -> bool {
        self.signal.load(Ordering::SeqCst) != 0
    }

    /// What the process ends with if one did: 128 and its number, as shells have it.
    pub fn exit_code(&self) -> u8 {
        exit_code(self.signal.load(Ordering::SeqCst) as i32)
    }
}

fn exit_code(signal: i32) -> u8 {
    128 + signal as u8
}

/// Whether the process ignores the signal, as far as the system tells; Linux does.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Ctrl-C in a conversation: while the model answers it ends the answer, else the process.
#[derive(Debug)]
pub struct Interrupts {
    interrupted: Arc<AtomicBool>,
    idle: Arc<AtomicBool>,
}

impl Interrupts {
    /// Takes over the signal from here on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn new() -> io::Result<Self> {
        let interrupts = Interrupts { interrupted: Arc::default(), idle: Arc::new(AtomicBool::new(true)) };
        flag::register_conditional_shutdown(SIGINT, exit_code(SIGINT).into(), Arc::clone(&interrupts.idle))?;
        flag::register(SIGINT, Arc::clone(&interrupts.interrupted))?;
        Ok(interrupts)
    }
}

impl Interruption for Interrupts {
    fn answering(&self, answering: bool) {
        self.interrupted.store(false, Ordering::SeqCst);
        self.idle.store(!answering, Ordering::SeqCst);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}
