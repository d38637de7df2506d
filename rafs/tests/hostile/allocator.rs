//! An allocator that counts what each thread takes.
#![allow(unsafe_code, reason = "an allocator is unsafe by nature; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Bytes that a thread took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    now: usize,
    /// The most at a time.
    pub(crate) peak: usize,
    /// In all, whatever was given back.
    pub(crate) total: usize,
}

thread_local! {
    static USED: Cell<Used> = const { Cell::new(Used { now: 0, peak: 0, total: 0 }) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn take(size: usize) {
    // A thread that ends has no counter any more.
    let _ = USED.try_with(|used| {
        let Used { now, peak, total } = used.get();
        let now = now + size;
        used.set(Used { now, peak: peak.max(now), total: total + size });
    });
}

fn give(size: usize) {
    // What another thread took may be given back here.
    let _ = USED.try_with(|used| used.set(Used { now: used.get().now.saturating_sub(size), ..used.get() }));
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

/// What this thread takes while it works.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Used) {
    USED.set(Used::default());
    let result = work();
    (result, USED.get())
}
