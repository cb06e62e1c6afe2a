//! [`Device`]: one backend, shared by everything that lives on it.

use core::fmt;

use super::Backend;
use crate::memory::{Buffer, Dtype, Span};

#[cfg(feature = "std")]
mod shared {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// What several own.
    pub(crate) type Shared<T> = alloc::sync::Arc<T>;
    pub(super) type Guard<'a, B> = MutexGuard<'a, B>;

    #[derive(Debug)]
    pub(super) struct Lock<B>(Mutex<B>);

    impl<B> Lock<B> {
        pub(super) fn new(backend: B) -> Self {
            Lock(Mutex::new(backend))
        }

        pub(super) fn lock(&self) -> Guard<'_, B> {
            // A panic elsewhere has left the backend between two calls, or inside one that gave up: what it holds may be
            // wrong then, but a second panic in a destructor would end the program.
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn into_inner(self) -> B {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(not(feature = "std"))]
mod shared {
    use core::cell::{RefCell, RefMut};

    /// What several own.
    pub(crate) type Shared<T> = alloc::rc::Rc<T>;
    pub(super) type Guard<'a, B> = RefMut<'a, B>;

    #[derive(Debug)]
    pub(super) struct Lock<B>(RefCell<B>);

    impl<B> Lock<B> {
        pub(super) fn new(backend: B) -> Self {
            Lock(RefCell::new(backend))
        }

        pub(super) fn lock(&self) -> Guard<'_, B> {
            self.0.borrow_mut()
        }

        pub(super) fn into_inner(self) -> B {
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
/// itself. Without, a device and all that lives on it stay on one thread.
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
/// trainer.step(&Windows::new(&[0, 1, 2, 3, 4, 0, 1], 4)?)?;
/// for decoder in &mut decoders {
///     decoder.feed(&[0, 1])?;
/// }
/// assert_ne!(decoders[0].logits(), decoders[1].logits());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Device<B: Backend>(Shared<shared::Lock<B>>);

impl<B: Backend> Device<B> {
    /// A device of its own. Wherever a device is asked for, a backend will do as well: it becomes one.
    pub fn new(backend: B) -> Self {
        Device(Shared::new(shared::Lock::new(backend)))
    }

    /// What `look` sees in the backend: its settings, or what it has counted.
    ///
    /// `look` must not use the device, or anything that lives on it: it would wait for itself, or panic without the feature
    /// `std`.
    ///
    /// ```
    /// use minigpt_core::{Backend, Device, Reference};
    /// let device = Device::new(Reference::<f32>::new());
    /// assert_eq!(device.inspect(|backend| backend.rows_at_once()), usize::MAX);
    /// ```
    pub fn inspect<R>(&self, look: impl FnOnce(&B) -> R) -> R {
        look(&self.0.lock())
    }

    /// Waits for all work that was given so far.
    ///
    /// # Errors
    /// If any of it failed.
    pub fn sync(&self) -> Result<(), B::Error> {
        self.0.lock().sync()
    }

    /// The backend, if nothing else lives on the device any more; else the handle as it was.
    ///
    /// # Errors
    /// The handle, if there are others.
    pub fn into_backend(self) -> Result<B, Self> {
        Shared::try_unwrap(self.0).map(shared::Lock::into_inner).map_err(Device)
    }

    /// The backend, for as long as the guard lives.
    pub(crate) fn lock(&self) -> shared::Guard<'_, B> {
        self.0.lock()
    }

    /// `bytes` zeros, which are given back when the result is dropped.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Allocation<B>, B::Error> {
        let buffer = self.lock().alloc(bytes)?;
        Ok(self.own(buffer))
    }

    /// A buffer of this device's backend that nothing else gives back.
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
        // A backend that will not take a buffer back keeps it until it is dropped itself.
        let _ = self.device.lock().release(self.buffer);
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
