//! Locks, atomics, threads and files of what is model-checked (see [`crate::model`]): those of std, and in the model those of
//! loom, which goes through the orders in which threads can use them.

use std::fs::File;

#[cfg(not(all(test, feature = "model")))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic},
    thread,
};

#[cfg(all(test, feature = "model"))]
pub(crate) use loom::{
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
};

/// Atomics that are never dropped: what is shared by std's `Arc`, whose count loom does not see, would seem to be dropped while
/// others use it.
#[cfg(all(test, feature = "model"))]
pub(crate) mod atomic {
    use std::mem::ManuallyDrop;
    use std::ops::Deref;

    pub(crate) use loom::sync::atomic::{Ordering, fence};

    macro_rules! kept {
        ($($name:ident: $value:ty),*) => { $(
            #[derive(Debug)]
            pub(crate) struct $name(ManuallyDrop<loom::sync::atomic::$name>);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(ManuallyDrop::new(loom::sync::atomic::$name::new(value)))
                }
            }

            impl Default for $name {
                fn default() -> Self {
                    Self::new(<$value>::default())
                }
            }

            impl Deref for $name {
                type Target = loom::sync::atomic::$name;

                fn deref(&self) -> &Self::Target {
                    &self.0
                }
            }
        )* };
    }

    kept!(AtomicBool: bool, AtomicU64: u64, AtomicUsize: usize);
}

/// A thread to start, which is called so.
pub(crate) fn named(name: String) -> thread::Builder {
    let thread = thread::Builder::new().name(name);
    // Those of the model have little of their own.
    #[cfg(all(test, feature = "model"))]
    let thread = thread.stack_size(STACK_WORDS);
    thread
}

#[cfg(all(test, feature = "model"))]
const STACK_WORDS: usize = 1 << 15;

/// Whether this is the model: it has no clock, and little memory.
pub(crate) const IS_MODEL: bool = cfg!(all(test, feature = "model"));

/// A file that several threads use at once, without a lock.
#[derive(Debug)]
pub(crate) struct SharedFile {
    file: File,
    /// Each use is a step of its own to the model. The kernel has its own locks for a file, so one sees all before it.
    #[cfg(all(test, feature = "model"))]
    uses: atomic::AtomicUsize,
}

impl SharedFile {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(all(test, feature = "model"))]
            uses: atomic::AtomicUsize::new(0),
        }
    }

    /// The file, for one use of it.
    pub(crate) fn once(&self) -> &File {
        #[cfg(all(test, feature = "model"))]
        self.uses.fetch_add(1, atomic::Ordering::AcqRel);
        &self.file
    }
}
