//! Signals that ask a program to end: it ends when its work is saved.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

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
            use signal_hook::consts::SIGHUP;
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
