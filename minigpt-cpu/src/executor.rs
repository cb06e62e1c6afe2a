//! [`Executor`]: runs the tasks of one op on the backend's threads.
//!
//! The threads are a small team that belongs to the backend, so it works the same inside a caller's own thread
//! pool. A region costs no allocation, and while regions follow each other closely no system call: the team spins
//! for some microseconds before it sleeps. Which thread runs which task is left to chance; so **what a task computes
//! must not depend on its thread, and the cut into tasks must be a function of the shapes alone**: then every number
//! of threads gives the same bits.

/// One task of a region, on the thread that runs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    index: usize,
    worker: usize,
}

impl Task {
    /// Which task of the region it is: each index is given out once.
    pub(crate) fn index(self) -> usize {
        self.index
    }

    /// The same task, as number `index` of a part of the region.
    pub(crate) fn renumbered(self, index: usize) -> Task {
        Task { index, ..self }
    }

    /// Which thread runs it, 0 being the caller: a thread runs one task at a time.
    pub(crate) fn worker(self) -> usize {
        self.worker
    }
}

/// Runs tasks, on one thread or on a team.
#[derive(Debug)]
pub(crate) struct Executor {
    #[cfg(feature = "std")]
    team: Option<team::Team>,
}

impl Executor {
    /// On the calling thread alone.
    pub(crate) fn single() -> Self {
        Executor {
            #[cfg(feature = "std")]
            team: None,
        }
    }

    /// On `threads` threads, of which the caller is one.
    ///
    /// # Errors
    /// If the system refuses to start them.
    #[cfg(feature = "std")]
    pub(crate) fn team(threads: usize) -> Result<Self, crate::CpuError> {
        Ok(Executor { team: if threads > 1 { Some(team::Team::new(threads)?) } else { None } })
    }

    /// How many threads there are, the caller included.
    pub(crate) fn threads(&self) -> usize {
        #[cfg(feature = "std")]
        if let Some(team) = &self.team {
            return team.threads();
        }
        1
    }

    /// Calls `f` once for each task index below `tasks`, and returns when all are done.
    ///
    /// # Panics
    /// If a task panics, when all threads have left the region.
    pub(crate) fn run(&mut self, tasks: usize, f: &(dyn Fn(Task) + Sync)) {
        #[cfg(feature = "std")]
        if tasks > 1
            && let Some(team) = &mut self.team
        {
            return team.run(tasks, f);
        }
        for index in 0..tasks {
            f(Task { index, worker: 0 });
        }
    }
}

#[cfg(feature = "std")]
mod team {
    use std::any::Any;
    use std::boxed::Box;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::vec::Vec;

    use super::Task;
    use crate::CpuError;
    use crate::par::Loan;
    use crate::sync::{
        Arc, AtomicBool, AtomicUsize, Builder, JoinHandle, Mutex, Ordering::*, park, spin_loop, yield_now,
    };

    /// How often a thread looks for work before it sleeps: some tens of microseconds, longer than the gap between
    /// two ops of a step and far shorter than what a user would notice on the power meter.
    ///
    /// Under Miri and Loom, where all threads take turns on one, looking again only takes time from the others.
    const SPINS: u32 = match () {
        () if cfg!(loom) => 0,
        () if cfg!(miri) => 4,
        () => 1 << 12,
    };

    struct Shared {
        loan: Loan,
        stop: AtomicBool,
        /// How many helpers have begun.
        begun: AtomicUsize,
        /// For each helper, whether it sleeps or is about to.
        asleep: Vec<AtomicBool>,
        panic: Mutex<Option<Box<dyn Any + Send>>>,
    }

    pub(super) struct Team {
        shared: Arc<Shared>,
        helpers: Vec<JoinHandle<()>>,
    }

    impl std::fmt::Debug for Team {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Team").field("threads", &self.threads()).finish()
        }
    }

    impl Team {
        pub(super) fn new(threads: usize) -> Result<Self, CpuError> {
            let failed = CpuError::Thread { asked: threads };
            // The gate counts those inside in 16 bits.
            if threads > usize::from(u16::MAX) {
                return Err(failed);
            }
            let shared = Arc::new(Shared {
                loan: Loan::new(),
                stop: AtomicBool::new(false),
                begun: AtomicUsize::new(0),
                asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
                panic: Mutex::new(None),
            });
            let mut team = Team { shared, helpers: Vec::with_capacity(threads - 1) };
            for worker in 1..threads {
                let shared = Arc::clone(&team.shared);
                let helper = Builder::new().name("minigpt-cpu".into()).spawn(move || help(&shared, worker));
                // Dropping the team stops those that were started.
                team.helpers.push(helper.map_err(|_| failed.clone())?);
            }
            // What the system allocates when a thread begins must not be counted to a step.
            while team.shared.begun.load(Acquire) < team.helpers.len() {
                yield_now();
            }
            Ok(team)
        }

        pub(super) fn threads(&self) -> usize {
            self.helpers.len() + 1
        }

        pub(super) fn run(&mut self, tasks: usize, f: &(dyn Fn(Task) + Sync)) {
            let next = AtomicUsize::new(0);
            let drain = |worker: usize| {
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    if index >= tasks {
                        break;
                    }
                    f(Task { index, worker });
                }
            };
            let shared = &*self.shared;
            let guarded = |worker: usize| {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drain(worker))) {
                    // The tasks that are left would be wasted.
                    next.store(tasks, Relaxed);
                    if let Ok(mut slot) = shared.panic.lock() {
                        slot.get_or_insert(panic);
                    }
                }
            };
            shared.loan.lend(&guarded, || {
                for (helper, asleep) in self.helpers.iter().zip(&shared.asleep).take(tasks - 1) {
                    if asleep.load(Acquire) {
                        helper.thread().unpark();
                    }
                }
                guarded(0);
            });
            let panic = shared.panic.lock().ok().and_then(|mut slot| slot.take());
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
        }
    }

    impl Drop for Team {
        fn drop(&mut self) {
            self.shared.stop.store(true, Release);
            for helper in self.helpers.drain(..) {
                helper.thread().unpark();
                // A helper never panics: tasks are caught.
                let _ = helper.join();
            }
        }
    }

    /// The life of a helper: work, spin, sleep.
    fn help(shared: &Shared, worker: usize) {
        shared.begun.fetch_add(1, Release);
        let asleep = &shared.asleep[worker - 1];
        let mut seen = 0;
        let mut spins = 0;
        while !shared.stop.load(Acquire) {
            if shared.loan.borrow(&mut seen, worker) {
                spins = 0;
            } else if spins < SPINS {
                spins += 1;
                spin_loop();
            } else {
                asleep.store(true, Release);
                // The lender opens the gate before it looks who is asleep, and this thread looks at the gate after it
                // said so: one of the two sees the other.
                while !shared.stop.load(Acquire) && !shared.loan.is_open(seen) {
                    park();
                }
                asleep.store(false, Release);
                spins = 0;
            }
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests;
