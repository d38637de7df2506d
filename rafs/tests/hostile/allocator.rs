//! An allocator that counts what all threads take.
#![allow(unsafe_code, reason = "an allocator is unsafe by nature; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    /// The most at a time.
    pub(crate) peak: usize,
    /// In all, whatever was given back.
    pub(crate) total: usize,
}

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

/// What is measured is what the process takes, so tests run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Holds back all other tests, as long as it lives.
pub(crate) struct Alone(#[expect(dead_code, reason = "held, not used")] MutexGuard<'static, ()>);

/// Waits until no other test runs. Every test of this binary begins with it.
pub(crate) fn alone() -> Alone {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    IS_ALONE.set(true);
    Alone(guard)
}

impl Drop for Alone {
    fn drop(&mut self) {
        IS_ALONE.set(false);
    }
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn take(size: usize) {
    let now = NOW.fetch_add(size, Relaxed) + size;
    PEAK.fetch_max(now, Relaxed);
    TOTAL.fetch_add(size, Relaxed);
}

fn give(size: usize) {
    NOW.fetch_sub(size, Relaxed);
}

// SAFETY: every call is the system allocator's, as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        give(layout.size());
        take(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What all threads take while `work` is done.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Used) {
    assert!(IS_ALONE.get(), "a test that measures begins with alone()");
    let start = NOW.load(Relaxed);
    PEAK.store(start, Relaxed);
    TOTAL.store(0, Relaxed);
    let result = work();
    let peak = PEAK.load(Relaxed).saturating_sub(start);
    (result, Used { peak, total: TOTAL.load(Relaxed) })
}
