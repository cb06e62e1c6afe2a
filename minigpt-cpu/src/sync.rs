//! What threads share: of std, or of Loom, which runs a program in every order that its threads may take. `.ci/run` says
//! how.

#[cfg(not(all(test, loom)))]
pub(crate) use self::system::*;
#[cfg(all(test, loom))]
pub(crate) use ::loom::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    sync::{Arc, Mutex},
    thread::{Builder, JoinHandle, park, yield_now},
};

#[cfg(not(all(test, loom)))]
mod system {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::sync::{Arc, Mutex};
    pub(crate) use std::thread::{Builder, JoinHandle, park, yield_now};

    /// A cell as Loom has it, which is told when a pointer is in use.
    pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) fn new(value: T) -> Self {
            UnsafeCell(value.into())
        }

        /// Calls `f` with the place, to read.
        pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Calls `f` with the place, to write.
        pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}
