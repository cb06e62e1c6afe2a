//! A disk for tests, on which nothing lasts before it is synced.
//!
//! It fails at a chosen call, or loses its power there. [`Simulated::after_power_cut`] then goes through what may be
//! left: each name is the last that was synced or any that it was given since; each write since the last sync is there,
//! or its first half, or only the length that it gave the file, or nothing. Any of these goes with any other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use super::disk::Disk;
use super::replace::folder_of;
use crate::rng::{Rng, Stream};

/// What goes wrong, at which call; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Trouble {
    /// Nothing.
    None,
    /// The call fails, a write after half of its bytes; later calls succeed.
    Fails(usize),
    /// The power goes off while the call is under way.
    PowerCut(usize),
}

/// A call that does nothing, to show what it is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Broken {
    Nothing,
    Sync,
    SyncFolder,
}

#[derive(Debug, Clone)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

impl Change {
    /// In how many ways it may be there or not.
    fn outcomes(&self) -> usize {
        match self {
            Change::Write { .. } => 4,
            Change::SetLen(_) => 2,
        }
    }

    /// 0 is not at all, 1 is all of it.
    fn apply(&self, contents: &mut Vec<u8>, outcome: usize, hole: u8) {
        match self {
            _ if outcome == 0 => {}
            Change::SetLen(len) => contents.resize(*len, hole),
            Change::Write { at, bytes } => {
                let there = match outcome {
                    1 => bytes.len(),
                    2 => bytes.len() / 2,
                    _ => 0,
                };
                let len = if outcome == 2 { at + there } else { at + bytes.len() };
                contents.resize(contents.len().max(len), hole);
                contents[*at..at + there].copy_from_slice(&bytes[..there]);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Contents {
    synced: Vec<u8>,
    since: Vec<Change>,
    lock: Weak<()>,
}

impl Contents {
    fn now(&self) -> Vec<u8> {
        let mut contents = self.synced.clone();
        for change in &self.since {
            change.apply(&mut contents, 1, 0);
        }
        contents
    }
}

/// What a name leads to: the number of a file, or nothing.
#[derive(Debug, Default)]
struct Name {
    synced: Option<usize>,
    since: Vec<Option<usize>>,
}

impl Name {
    fn now(&self) -> Option<usize> {
        *self.since.last().unwrap_or(&self.synced)
    }

    fn candidate(&self, outcome: usize) -> Option<usize> {
        if outcome == 0 { self.synced } else { self.since[outcome - 1] }
    }
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, Name>,
}

impl State {
    fn lookup(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).and_then(Name::now).ok_or(io::ErrorKind::NotFound.into())
    }

    fn set(&mut self, path: &Path, file: Option<usize>) {
        self.names.entry(path.to_path_buf()).or_default().since.push(file);
    }
}

#[derive(Debug)]
pub(super) struct Simulated {
    state: RefCell<State>,
    calls: Cell<usize>,
    trouble: Trouble,
    broken: Broken,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    file: usize,
    /// Where the next write goes.
    at: Cell<usize>,
    _lock: Option<Rc<()>>,
}

impl Simulated {
    pub(super) fn new(trouble: Trouble, broken: Broken) -> Self {
        Simulated { state: RefCell::default(), calls: Cell::new(0), trouble, broken }
    }

    /// With these files on it, synced.
    pub(super) fn with_files<'a>(
        trouble: Trouble,
        broken: Broken,
        files: impl IntoIterator<Item = (&'a Path, &'a [u8])>,
    ) -> Self {
        let disk = Simulated::new(trouble, broken);
        for (path, bytes) in files {
            let State { files, names } = &mut *disk.state.borrow_mut();
            names.insert(path.into(), Name { synced: Some(files.len()), since: Vec::new() });
            files.push(Contents { synced: bytes.into(), ..Contents::default() });
        }
        disk
    }

    /// How many calls there were.
    pub(super) fn calls(&self) -> usize {
        self.calls.get()
    }

    /// All names that were ever given to a file.
    pub(super) fn names_given(&self) -> usize {
        self.state.borrow().names.len()
    }

    /// All files, by name.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.state.borrow();
        let file = |(path, name): (&PathBuf, &Name)| Some((path.clone(), state.files[name.now()?].now()));
        state.names.iter().filter_map(file).collect()
    }

    /// Counts a call that changes the disk, and does `change` unless the trouble prevents it. When the power goes off
    /// the change is under way: it may be there or not.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        match self.count()? {
            Fate::Normal => change(&mut self.state.borrow_mut()),
            Fate::Failing => Err(io::ErrorKind::StorageFull.into()),
            Fate::LastOne => {
                change(&mut self.state.borrow_mut())?;
                Err(no_power())
            }
        }
    }

    fn count(&self) -> io::Result<Fate> {
        let call = self.calls.get() + 1;
        self.calls.set(call);
        match self.trouble {
            Trouble::PowerCut(at) if call > at => Err(no_power()),
            Trouble::PowerCut(at) if call == at => Ok(Fate::LastOne),
            Trouble::Fails(at) if call == at => Ok(Fate::Failing),
            _ => Ok(Fate::Normal),
        }
    }

    /// Calls `check` with what may be on the disk when the power is back: every possibility if there are at most `limit`,
    /// else so many, drawn at random, and those in which a single change, or all but one, is missing. Returns whether it
    /// was every possibility.
    pub(super) fn after_power_cut(&self, limit: usize, mut check: impl FnMut(Simulated)) -> bool {
        let state = self.state.borrow();
        let mut radix: Vec<usize> = state.names.values().map(|name| 1 + name.since.len()).collect();
        let reachable: BTreeSet<usize> = state
            .names
            .values()
            .flat_map(|name| (0..=name.since.len()).filter_map(|outcome| name.candidate(outcome)))
            .collect();
        for &file in &reachable {
            radix.extend(state.files[file].since.iter().map(Change::outcomes));
        }
        // What fills holes: zeros, or what the disk held there before.
        radix.push(2);
        let count = radix.iter().try_fold(1usize, |product, &digit| product.checked_mul(digit));
        if let Some(count) = count.filter(|&count| count <= limit) {
            for mut number in 0..count {
                let digits = radix.iter().map(|&radix| {
                    let digit = number % radix;
                    number /= radix;
                    digit
                });
                check(state.after(&digits.collect::<Vec<_>>(), &reachable));
            }
            return true;
        }
        for base in [0, 1] {
            for place in 0..radix.len() {
                for digit in 0..radix[place] {
                    let mut digits: Vec<usize> =
                        radix.iter().map(|&radix| if base == 0 { 0 } else { 1.min(radix - 1) }).collect();
                    digits[place] = digit;
                    check(state.after(&digits, &reachable));
                }
            }
        }
        let mut rng = Rng::new(self.calls() as u64, Stream::User);
        for _ in 0..limit {
            let digits: Vec<usize> = radix.iter().map(|&radix| rng.below(radix as u64) as usize).collect();
            check(state.after(&digits, &reachable));
        }
        false
    }
}

impl State {
    /// The disk that these outcomes leave.
    fn after(&self, outcomes: &[usize], reachable: &BTreeSet<usize>) -> Simulated {
        let (names, changes) = outcomes.split_at(self.names.len());
        let (&hole, changes) = changes.split_last().unwrap();
        let mut changes = changes.iter();
        let mut files = BTreeMap::new();
        for &file in reachable {
            let Contents { synced, since, .. } = &self.files[file];
            let mut contents = synced.clone();
            for change in since {
                change.apply(&mut contents, *changes.next().unwrap(), [0, 0xA5][hole]);
            }
            files.insert(file, contents);
        }
        let names = self.names.iter().zip(names);
        let left = names.filter_map(|((path, name), &outcome)| {
            Some((path.as_path(), files[&name.candidate(outcome)?].as_slice()))
        });
        Simulated::with_files(Trouble::None, Broken::Nothing, left)
    }
}

enum Fate {
    Normal,
    Failing,
    LastOne,
}

fn no_power() -> io::Error {
    io::Error::other("the power is off")
}

impl Disk for Simulated {
    type File = Handle;

    fn create(&self, path: &Path) -> io::Result<Handle> {
        self.change(|state| {
            if state.lookup(path).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let lock = Rc::new(());
            let file = state.files.len();
            state.files.push(Contents { lock: Rc::downgrade(&lock), ..Contents::default() });
            state.set(path, Some(file));
            Ok(Handle { file, at: Cell::new(0), _lock: Some(lock) })
        })
    }

    fn open(&self, path: &Path) -> io::Result<Handle> {
        self.change(|state| {
            let file = state.lookup(path).unwrap_or_else(|_| {
                state.files.push(Contents::default());
                state.set(path, Some(state.files.len() - 1));
                state.files.len() - 1
            });
            Ok(Handle { file, at: Cell::new(0), _lock: None })
        })
    }

    fn try_lock(&self, path: &Path) -> io::Result<Option<Handle>> {
        self.change(|state| {
            let file = state.lookup(path)?;
            if state.files[file].lock.strong_count() > 0 {
                return Ok(None);
            }
            let lock = Rc::new(());
            state.files[file].lock = Rc::downgrade(&lock);
            Ok(Some(Handle { file, at: Cell::new(0), _lock: Some(lock) }))
        })
    }

    fn write(&self, handle: &Handle, bytes: &[u8]) -> io::Result<()> {
        let fate = self.count()?;
        let there = if matches!(fate, Fate::Failing) { bytes.len() / 2 } else { bytes.len() };
        let change = Change::Write { at: handle.at.get(), bytes: bytes[..there].into() };
        handle.at.set(handle.at.get() + there);
        self.state.borrow_mut().files[handle.file].since.push(change);
        match fate {
            Fate::Normal => Ok(()),
            Fate::Failing => Err(io::ErrorKind::StorageFull.into()),
            Fate::LastOne => Err(no_power()),
        }
    }

    fn set_len(&self, handle: &Handle, len: u64) -> io::Result<()> {
        let len = len as usize;
        self.change(|state| {
            state.files[handle.file].since.push(Change::SetLen(len));
            handle.at.set(len);
            Ok(())
        })
    }

    fn set_permissions(&self, _: &Handle, _: Permissions) -> io::Result<()> {
        self.change(|_| Ok(()))
    }

    fn sync(&self, handle: &Handle) -> io::Result<()> {
        match self.count()? {
            Fate::Failing => Err(io::ErrorKind::StorageFull.into()),
            Fate::LastOne => Err(no_power()),
            Fate::Normal if self.broken == Broken::Sync => Ok(()),
            Fate::Normal => {
                let contents = &mut self.state.borrow_mut().files[handle.file];
                contents.synced = contents.now();
                contents.since.clear();
                Ok(())
            }
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.change(|state| Ok(state.files[state.lookup(path)?].now()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|state| {
            let file = state.lookup(from)?;
            state.set(from, None);
            state.set(to, Some(file));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|state| {
            state.lookup(path)?;
            state.set(path, None);
            Ok(())
        })
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        match self.count()? {
            Fate::Failing => Err(io::ErrorKind::StorageFull.into()),
            Fate::LastOne => Err(no_power()),
            Fate::Normal if self.broken == Broken::SyncFolder => Ok(()),
            Fate::Normal => {
                let mut state = self.state.borrow_mut();
                for (_, name) in state.names.iter_mut().filter(|(path, _)| folder_of(path) == folder) {
                    *name = Name { synced: name.now(), since: vec![] };
                }
                Ok(())
            }
        }
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.change(|state| {
            let here =
                state.names.iter().filter(|(path, name)| folder_of(path) == folder && name.now().is_some());
            Ok(here.map(|(path, _)| format!("{}", path.file_name().unwrap().display())).collect())
        })
    }
}
