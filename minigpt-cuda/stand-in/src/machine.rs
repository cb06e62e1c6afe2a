//! The machine behind the driver: memory that is not the host's, and streams that run only when they must.

use std::collections::BTreeMap;
use std::env;
use std::ffi::c_void;
use std::mem;
use std::ptr;
use std::slice;

/// A `CUresult`.
pub(crate) type Status = i32;

pub(crate) const SUCCESS: Status = 0;
pub(crate) const INVALID_VALUE: Status = 1;
pub(crate) const OUT_OF_MEMORY: Status = 2;
pub(crate) const NOT_INITIALIZED: Status = 3;
pub(crate) const INVALID_DEVICE: Status = 101;
pub(crate) const INVALID_CONTEXT: Status = 201;
pub(crate) const INVALID_HANDLE: Status = 400;
pub(crate) const ILLEGAL_ADDRESS: Status = 700;
pub(crate) const NOT_SUPPORTED: Status = 801;

/// Bytes of device memory unless `MINIGPT_STAND_IN_MEMORY` says otherwise.
const MEMORY: usize = 1 << 30;
/// Device addresses begin here, where no host has memory: using one on the host faults.
const FIRST_ADDRESS: u64 = 0x00C0_DA00_0000_0000;
/// Every allocation is aligned to this, and this much space between two belongs to neither.
const ALIGN: usize = 256;
/// What new memory holds, so that nobody gets away with taking it for zero.
const GARBAGE: u8 = 0xA5;

pub(crate) struct Machine {
    pub(crate) initialised: bool,
    /// How often the one context is retained.
    pub(crate) retained: usize,
    pub(crate) total: usize,
    pub(crate) free: usize,
    /// Calls that are to fail, and with what.
    failures: Vec<(String, Status)>,
    memory: BTreeMap<u64, Vec<u8>>,
    next_address: u64,
    locked: BTreeMap<usize, Vec<u64>>,
    streams: BTreeMap<usize, Vec<Work>>,
    next_stream: usize,
}

/// What a stream has yet to do. Host addresses are kept as numbers and used when the work runs, which is as late as
/// the driver API allows.
pub(crate) enum Work {
    ToDevice { to: u64, from: usize, bytes: usize },
    ToHost { to: usize, from: u64, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, word: Vec<u8>, count: usize },
}

impl Machine {
    pub(crate) fn new() -> Self {
        let total =
            env::var("MINIGPT_STAND_IN_MEMORY").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(MEMORY);
        let failures = env::var("MINIGPT_STAND_IN_FAIL").unwrap_or_default();
        let failures = failures
            .split(',')
            .filter_map(|failure| failure.split_once('='))
            .filter_map(|(call, code)| Some((call.to_owned(), code.parse().ok()?)));
        Machine {
            initialised: false,
            retained: 0,
            total,
            free: total,
            failures: failures.collect(),
            memory: BTreeMap::new(),
            next_address: FIRST_ADDRESS,
            locked: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 1,
        }
    }

    /// The code that this call was told to fail with.
    pub(crate) fn told_to_fail(&self, call: &str) -> Option<Status> {
        self.failures.iter().find(|(name, _)| name == call).map(|&(_, code)| code)
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if bytes > self.free {
            return Err(OUT_OF_MEMORY);
        }
        let mut memory = Vec::new();
        memory.try_reserve_exact(bytes).map_err(|_| OUT_OF_MEMORY)?;
        memory.resize(bytes, GARBAGE);
        let address = self.next_address;
        self.next_address += (bytes.next_multiple_of(ALIGN) + ALIGN) as u64;
        self.free -= bytes;
        self.memory.insert(address, memory);
        Ok(address)
    }

    /// Frees an allocation at once. Queued work that still uses it then fails.
    pub(crate) fn release(&mut self, address: u64) -> Result<(), Status> {
        self.free += self.memory.remove(&address).ok_or(INVALID_VALUE)?.len();
        Ok(())
    }

    /// Host memory that the driver hands out; page-locked in a real one.
    pub(crate) fn allocate_host(&mut self, bytes: usize) -> Result<*mut c_void, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let words = bytes.div_ceil(8);
        let mut memory = Vec::new();
        memory.try_reserve_exact(words).map_err(|_| OUT_OF_MEMORY)?;
        memory.resize(words, 0u64);
        let host: *mut c_void = memory.as_mut_ptr().cast();
        self.locked.insert(host.expose_provenance(), memory);
        Ok(host)
    }

    /// Frees host memory, when no work can use it any more.
    pub(crate) fn release_host(&mut self, host: *mut c_void) -> Result<(), Status> {
        let streams: Vec<usize> = self.streams.keys().copied().collect();
        streams.into_iter().try_for_each(|stream| self.run(stream))?;
        self.locked.remove(&host.addr()).map(drop).ok_or(INVALID_VALUE)
    }

    pub(crate) fn open_stream(&mut self) -> usize {
        let stream = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(stream, Vec::new());
        stream
    }

    pub(crate) fn close_stream(&mut self, stream: usize) -> Result<(), Status> {
        self.run(stream)?;
        self.streams.remove(&stream);
        Ok(())
    }

    /// Checks work as the driver does, and queues it.
    pub(crate) fn queue(&mut self, stream: usize, work: Work) -> Result<(), Status> {
        match &work {
            Work::ToDevice { to, from, bytes } => {
                self.at(*to, *bytes)?;
                host_exists(*from, *bytes)?;
            }
            Work::ToHost { to, from, bytes } => {
                self.at(*from, *bytes)?;
                host_exists(*to, *bytes)?;
            }
            Work::Copy { to, from, bytes } => {
                self.at(*to, *bytes)?;
                self.at(*from, *bytes)?;
            }
            Work::Fill { to, word, count } => {
                if !to.is_multiple_of(word.len() as u64) {
                    return Err(INVALID_VALUE);
                }
                self.at(*to, word.len().checked_mul(*count).ok_or(INVALID_VALUE)?)?;
            }
        }
        self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?.push(work);
        Ok(())
    }

    /// Runs what a stream has queued, in order.
    pub(crate) fn run(&mut self, stream: usize) -> Result<(), Status> {
        let queue = mem::take(self.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?);
        queue.into_iter().try_for_each(|work| self.perform(work)).map_err(|_| ILLEGAL_ADDRESS)
    }

    fn perform(&mut self, work: Work) -> Result<(), Status> {
        match work {
            Work::ToDevice { bytes: 0, .. } | Work::ToHost { bytes: 0, .. } => {}
            Work::ToDevice { to, from, bytes } => {
                let from = ptr::with_exposed_provenance::<u8>(from);
                // SAFETY: whoever queued this must keep the host memory until it has synchronised.
                let from = unsafe { slice::from_raw_parts(from, bytes) };
                self.at(to, bytes)?.copy_from_slice(from);
            }
            Work::ToHost { to, from, bytes } => {
                let from = self.at(from, bytes)?;
                let to = ptr::with_exposed_provenance_mut::<u8>(to);
                // SAFETY: whoever queued this must keep the host memory, and leave it alone, until it has
                // synchronised.
                unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, bytes) };
            }
            Work::Copy { to, from, bytes } => {
                let from = self.at(from, bytes)?.to_vec();
                self.at(to, bytes)?.copy_from_slice(&from);
            }
            Work::Fill { to, word, count } => {
                for place in self.at(to, word.len() * count)?.chunks_exact_mut(word.len()) {
                    place.copy_from_slice(&word);
                }
            }
        }
        Ok(())
    }

    /// Gives up all that belongs to the context.
    pub(crate) fn reset(&mut self) {
        self.memory.clear();
        self.locked.clear();
        self.streams.clear();
        self.free = self.total;
    }

    /// Device memory from `address` on, if it all lies in one allocation.
    fn at(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Status> {
        let (base, memory) = self.memory.range_mut(..=address).next_back().ok_or(INVALID_VALUE)?;
        let start = usize::try_from(address - base).map_err(|_| INVALID_VALUE)?;
        let end = start.checked_add(bytes).ok_or(INVALID_VALUE)?;
        memory.get_mut(start..end).ok_or(INVALID_VALUE)
    }
}

fn host_exists(host: usize, bytes: usize) -> Result<(), Status> {
    if host == 0 && bytes > 0 { Err(INVALID_VALUE) } else { Ok(()) }
}
