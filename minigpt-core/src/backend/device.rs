//! [`Device`]: one backend, shared by everything that lives on it.

use alloc::vec::Vec;
use core::fmt;

use super::Backend;
use crate::memory::{Buffer, Dtype, Span};

#[cfg(feature = "std")]
mod shared {
    use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

    /// A pointer to what several own.
    pub(crate) type Shared<T> = alloc::sync::Arc<T>;
    pub(super) type Guard<'a, T> = MutexGuard<'a, T>;

    #[derive(Debug, Default)]
    pub(super) struct Lock<T>(Mutex<T>);

    // After a panic on another thread the lock is taken as usual. What it guards may be half done then, but a second panic,
    // in a destructor, would abort the program.
    impl<T> Lock<T> {
        pub(super) fn new(content: T) -> Self {
            Lock(Mutex::new(content))
        }

        pub(super) fn lock(&self) -> Guard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Without waiting; `None` if somebody else has it.
        pub(super) fn try_lock(&self) -> Option<Guard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }

        pub(super) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(not(feature = "std"))]
mod shared {
    use core::cell::{RefCell, RefMut};

    /// A pointer to what several own.
    pub(crate) type Shared<T> = alloc::rc::Rc<T>;
    pub(super) type Guard<'a, T> = RefMut<'a, T>;

    #[derive(Debug, Default)]
    pub(super) struct Lock<T>(RefCell<T>);

    impl<T> Lock<T> {
        pub(super) fn new(content: T) -> Self {
            Lock(RefCell::new(content))
        }

        pub(super) fn lock(&self) -> Guard<'_, T> {
            self.0.borrow_mut()
        }

        /// Without waiting; `None` if somebody else has it.
        pub(super) fn try_lock(&self) -> Option<Guard<'_, T>> {
            self.0.try_borrow_mut().ok()
        }

        pub(super) fn into_inner(self) -> T {
            self.0.into_inner()
        }
    }
}

pub(crate) use shared::Shared;

/// A backend and all that lives on it. A clone is another handle on the same device.
///
/// Models, trainers and decoders each hold a handle, so any number of them share one backend, its threads and its
/// scratch. What they took they give back when they are dropped; the backend itself goes with the last handle.
///
/// With the feature `std` a device sits behind a lock, and goes to other threads if its backend may: each pass has it for
/// itself. The lock is not a queue: a thread that trains without a pause takes it again at once, and others may wait for
/// some of its steps. Without `std`, a device and all that lives on it stay on one thread.
///
/// What belongs to a device, its buffers, stays inside this crate: a program that wants to run ops of its own keeps a
/// [`Backend`] to itself.
///
/// ```
/// use minigpt_core::{Decoder, Device, GptConfig, Model, Reference, TrainConfig, Trainer, Windows};
/// let device = Device::new(Reference::<f32>::new());
/// let config = GptConfig { layers: 1, heads: 2, d_model: 8, d_ff: 16, ..GptConfig::new(5, 4) };
/// let model = Model::new(&device, config.clone(), 1)?;
/// let other = Model::new(&device, config, 2)?;
///
/// let mut trainer = Trainer::new(&model, TrainConfig { time: 4, ..TrainConfig::constant(0.1) })?;
/// let mut decoders = [Decoder::new(&model, 4)?, Decoder::new(&other, 4)?];
/// trainer.step(&Windows::new(&[0u32, 1, 2, 3, 4, 0, 1], 4)?)?;
/// for decoder in &mut decoders {
///     decoder.feed(&[0, 1])?;
/// }
/// assert_ne!(decoders[0].logits(), decoders[1].logits());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Device<B: Backend>(Shared<Inner<B>>);

struct Inner<B> {
    backend: shared::Lock<B>,
    /// What was dropped while the backend was in use, to be given back by whoever uses it next.
    dropped: shared::Lock<Vec<Dropped>>,
}

/// What goes back to a backend.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dropped {
    Buffer(Buffer),
    /// The number of a program that was prepared.
    Program(u64),
}

impl<B: Backend> Device<B> {
    /// A device of its own. Wherever a device is asked for, a backend will do as well: it becomes one.
    pub fn new(backend: B) -> Self {
        Device(Shared::new(Inner { backend: shared::Lock::new(backend), dropped: shared::Lock::default() }))
    }

    /// What `look` sees in the backend: its settings, or what it has counted.
    ///
    /// `look` must not use the device, or anything that lives on it: it would wait for itself, or panic without the feature
    /// `std`. It may drop what lives on it.
    ///
    /// ```
    /// use minigpt_core::{Backend, Device, Reference};
    /// let device = Device::new(Reference::<f32>::new());
    /// assert_eq!(device.inspect(|backend| backend.rows_at_once()), usize::MAX);
    /// ```
    pub fn inspect<R>(&self, look: impl FnOnce(&B) -> R) -> R {
        look(&self.lock())
    }

    /// Waits for all work that was given so far.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn sync(&self) -> Result<(), B::Error> {
        self.lock().sync()
    }

    /// The backend, if nothing else lives on the device any more; else the handle as it was.
    ///
    /// # Errors
    /// The handle, if there are others.
    pub fn into_backend(self) -> Result<B, Self> {
        drop(self.lock());
        Shared::try_unwrap(self.0).map(|inner| inner.backend.into_inner()).map_err(Device)
    }

    /// A number that no other device has while this one is there.
    pub(crate) fn number(&self) -> usize {
        Shared::as_ptr(&self.0).addr()
    }

    /// The backend, for as long as the guard lives.
    pub(crate) fn lock(&self) -> shared::Guard<'_, B> {
        let mut backend = self.0.backend.lock();
        self.give_back(&mut backend);
        backend
    }

    /// Gives back what was dropped meanwhile. A backend that will not take a buffer back keeps it until it is dropped itself.
    fn give_back(&self, backend: &mut B) {
        for dropped in self.0.dropped.lock().drain(..) {
            match dropped {
                Dropped::Buffer(buffer) => {
                    let _ = backend.release(buffer);
                }
                Dropped::Program(number) => backend.forget(number),
            }
        }
    }

    /// Gives something back as soon as may be. Never waits, since this may be inside a use of the backend: then whoever uses it
    /// next gives it back.
    pub(super) fn drop_later(&self, what: Dropped) {
        let mut dropped = self.0.dropped.lock();
        if dropped.try_reserve(1).is_ok() {
            dropped.push(what);
        }
        drop(dropped);
        if let Some(mut backend) = self.0.backend.try_lock() {
            self.give_back(&mut backend);
        }
    }

    /// `bytes` zeros, which are given back when the result is dropped.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Allocation<B>, B::Error> {
        let buffer = self.lock().alloc(bytes)?;
        Ok(self.own(buffer))
    }

    /// Takes charge of a buffer of this device's backend, which nothing else gives back.
    pub(crate) fn own(&self, buffer: Buffer) -> Allocation<B> {
        Allocation { device: self.clone(), buffer }
    }
}

impl<B: Backend> Clone for Device<B> {
    fn clone(&self) -> Self {
        Device(Shared::clone(&self.0))
    }
}

impl<B: Backend> fmt::Debug for Device<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl<B: Backend> From<B> for Device<B> {
    fn from(backend: B) -> Self {
        Device::new(backend)
    }
}

impl<B: Backend> From<&Device<B>> for Device<B> {
    fn from(device: &Device<B>) -> Self {
        device.clone()
    }
}

/// A buffer that goes back to its device when this is dropped.
#[derive(Debug)]
pub(crate) struct Allocation<B: Backend> {
    device: Device<B>,
    buffer: Buffer,
}

impl<B: Backend> Allocation<B> {
    pub(crate) fn buffer(&self) -> Buffer {
        self.buffer
    }

    /// Its first `len` elements.
    pub(crate) fn span(&self, dtype: Dtype, len: usize) -> Span {
        Span { buffer: self.buffer, dtype, offset: 0, len }
    }
}

impl<B: Backend> Drop for Allocation<B> {
    fn drop(&mut self) {
        self.device.drop_later(Dropped::Buffer(self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;

    #[test]
    fn what_is_dropped_is_given_back_and_the_backend_comes_out_last() {
        let device = Device::new(Reference::<f32>::new());
        let (kept, gone) = (device.alloc(8).unwrap(), device.alloc(8).unwrap());
        let [kept_span, gone_span] = [&kept, &gone].map(|allocation| allocation.span(Dtype::F32, 2));
        drop(gone);
        assert!(device.lock().fill(gone_span, 1.0).is_err());
        device.lock().fill(kept_span, 1.0).unwrap();
        let device = device.into_backend().unwrap_err();
        drop(kept);
        let mut backend = device.into_backend().unwrap();
        assert!(backend.fill(kept_span, 1.0).is_err());
    }

    #[test]
    fn what_is_dropped_while_the_device_is_in_use_is_given_back_by_the_next() {
        let device = Device::new(Reference::<f32>::new());
        let gone = device.alloc(8).unwrap();
        let span = gone.span(Dtype::F32, 2);
        device.inspect(|_| drop(gone));
        assert!(device.lock().fill(span, 1.0).is_err());
        let gone = device.alloc(8).unwrap();
        let span = gone.span(Dtype::F32, 2);
        device.inspect(|_| drop(gone));
        assert!(device.into_backend().unwrap().fill(span, 1.0).is_err());
    }

    #[cfg(feature = "std")]
    #[test]
    fn a_panic_on_another_thread_leaves_the_device_usable() {
        let device = Device::new(Reference::<f32>::new());
        let shared = device.clone();
        let thread = std::thread::spawn(move || shared.inspect(|_| panic!("on purpose")));
        assert!(thread.join().is_err());
        assert!(device.alloc(4).is_ok());
    }
}
