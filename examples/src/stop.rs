//! Signals that ask a program to end: it ends when its work is saved.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag};

use crate::generation::Interruption;

/// Makes a file that may grow no further an error of the write, and not the end of the process.
///
/// # Errors
/// If the system refuses.
pub fn heed_file_limit() -> io::Result<()> {
    #[cfg(unix)]
    flag::register(signal_hook::consts::SIGXFSZ, Arc::default())?;
    Ok(())
}

/// Who asks a training to end.
pub trait Signals {
    /// From here on there is something to save.
    ///
    /// # Errors
    /// If the system refuses.
    fn take_over(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether it is to end.
    fn asked(&self) -> bool;

    /// From here on there is nothing to save any more.
    fn give_back(&self) {}
}

impl<F: Fn() -> bool> Signals for F {
    fn asked(&self) -> bool {
        self()
    }
}

/// Whether this process was asked to end: by Ctrl-C, by SIGTERM as service managers send it, or, on Unix, by SIGHUP,
/// when its terminal is closed. Until it takes them over they end the process as usual.
#[derive(Debug, Default)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
    taken: Mutex<Vec<SigId>>,
}

impl Stop {
    fn take(&self, signal: i32) -> io::Result<SigId> {
        flag::register_usize(signal, Arc::clone(&self.signal), signal as usize)
    }

    /// What the process ends with: 128 and the number of the signal, as shells have it; 0 if none came.
    pub fn exit_code(&self) -> u8 {
        match self.signal.load(Ordering::SeqCst) {
            0 => 0,
            signal => exit_code(signal as i32),
        }
    }
}

impl Signals for &Stop {
    /// Who presses Ctrl-C twice does not want to wait: the second ends the process at once.
    fn take_over(&self) -> io::Result<()> {
        let pressed = Arc::new(AtomicBool::new(false));
        let mut ids = vec![
            flag::register_conditional_shutdown(SIGINT, exit_code(SIGINT).into(), Arc::clone(&pressed))?,
            flag::register(SIGINT, pressed)?,
            self.take(SIGINT)?,
            self.take(SIGTERM)?,
        ];
        #[cfg(unix)]
        {
            use signal_hook::consts::SIGHUP;
            // nohup has the process ignore it, and it stays so.
            if !ignored(SIGHUP) {
                ids.push(self.take(SIGHUP)?);
            }
        }
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).append(&mut ids);
        Ok(())
    }

    fn asked(&self) -> bool {
        self.signal.load(Ordering::SeqCst) != 0
    }

    fn give_back(&self) {
        for id in self.taken.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            signal_hook::low_level::unregister(id);
        }
        // What has been taken over once stays so, without anything to do; who takes Ctrl-C over next says what it does.
        let always = Arc::new(AtomicBool::new(true));
        let _ = flag::register_conditional_default(SIGTERM, Arc::clone(&always));
        #[cfg(unix)]
        if !ignored(signal_hook::consts::SIGHUP) {
            let _ = flag::register_conditional_default(signal_hook::consts::SIGHUP, always);
        }
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
