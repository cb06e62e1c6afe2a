//! What an op has at hand: its spans as slices, scratch, threads, an instruction set.

use alloc::vec::Vec;

use crate::arch::{Isa, Kernel, Simd, Vector};
use crate::error::CpuError;
use crate::executor::Executor;
use crate::memory::{Line, lines};
use crate::par::{self, Parts, Views};

/// What an op has at hand. Its fields are borrowed apart, so that slices, scratch and threads can be used at once.
pub(crate) struct Context<'m, 'a> {
    pub(crate) views: Views<'m, 'a>,
    pub(crate) scratch: Room<'m>,
    pub(crate) team: Team<'m>,
}

/// Threads and the instruction set that they run.
pub(crate) struct Team<'m> {
    pub(crate) executor: &'m mut Executor,
    pub(crate) simd: Simd,
}

/// What the size of scratch may depend on besides the op.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
}

/// Work that is done part by part, written once over the vector.
pub(crate) trait Job<P: Parts>: Sync {
    /// Does part number `index`. Must be `#[inline(always)]`, as [`Kernel::run`].
    fn run<V: Vector>(&self, token: V::Token, index: usize, part: P::Part<'_>);
}

/// The scratch of an op.
pub(crate) enum Room<'m> {
    /// All that the backend has.
    All(&'m mut Scratch),
    /// What a [block](crate::par::BLOCK) leaves of it.
    #[cfg(feature = "bf16")]
    Rest(&'m mut [f32]),
}

impl Room<'_> {
    /// As [`Scratch::floats`].
    pub(crate) fn floats(&mut self, len: usize) -> Result<&mut [f32], CpuError> {
        match self {
            Room::All(scratch) => scratch.floats(len),
            #[cfg(feature = "bf16")]
            Room::Rest(rest) => {
                rest.get_mut(..len).ok_or(CpuError::OutOfMemory { bytes: len.saturating_mul(4) })
            }
        }
    }
}

impl Team<'_> {
    /// The same, for a while.
    #[cfg(feature = "bf16")]
    pub(crate) fn lend(&mut self) -> Team<'_> {
        Team { executor: self.executor, simd: self.simd }
    }

    /// Does the whole job on all threads.
    pub(crate) fn for_each<P: Parts>(&mut self, parts: P, job: &impl Job<P>) {
        struct Entry<'j, 't, P: Parts, J> {
            job: &'j J,
            index: usize,
            part: P::Part<'t>,
        }
        impl<P: Parts, J: Job<P>> Kernel for Entry<'_, '_, P, J> {
            type Output = ();
            #[inline(always)]
            fn run<V: Vector>(self, token: V::Token) {
                self.job.run::<V>(token, self.index, self.part);
            }
        }
        let simd = self.simd;
        par::for_each(self.executor, parts, |index, part| {
            simd.dispatch(Entry::<P, _> { job, index, part });
        });
    }

    /// How many threads there are, and what they run.
    pub(crate) fn machine(&self) -> Machine {
        Machine { threads: self.executor.threads(), isa: self.simd.isa() }
    }
}

/// The backend's scratch: one stretch that the ops use in turn.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
}

impl Scratch {
    /// `len` numbers, 64-byte aligned, with whatever an earlier op left in them.
    ///
    /// Grows only if [`Backend::reserve`](minigpt_core::Backend::reserve) was not told of this op's.
    pub(crate) fn floats(&mut self, len: usize) -> Result<&mut [f32], CpuError> {
        let bytes = len.checked_mul(4).ok_or(CpuError::OutOfMemory { bytes: usize::MAX })?;
        if bytes > self.bytes() {
            // The old one first, so that the two never stand side by side.
            let before = core::mem::take(&mut self.lines).len() * Line::BYTES;
            match lines(bytes) {
                Ok(grown) => self.lines = grown,
                Err(error) => {
                    // Others on the device rely on what there was.
                    self.lines = lines(before).unwrap_or_default();
                    return Err(error);
                }
            }
        }
        Ok(&mut par::floats(&mut self.lines)[..len])
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * Line::BYTES
    }
}

/// `len` f32, and as many more as fill the last cache line: what follows in scratch begins on a line of its own.
pub(crate) const fn whole_lines(len: usize) -> usize {
    match len.checked_next_multiple_of(Line::BYTES / 4) {
        Some(whole) => whole,
        None => usize::MAX,
    }
}
