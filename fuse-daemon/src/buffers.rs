//! Buffers that threads take for a moment, so that reads allocate nothing: as many as are in use at once, and none once
//! nobody reads. A buffer for each thread would stay for as long as that, which is as long as its mount.

use std::sync::PoisonError;

use crate::sync::{Mutex, MutexGuard};

/// Larger buffers are given back after use: the kernel's largest read of 1 MiB fits.
const KEPT_BYTES: usize = 1 << 20;

/// Buffers that are kept for the next who needs one.
const KEPT: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<BufferPool>);

#[derive(Debug, Default)]
struct BufferPool {
    /// The one that was used last is taken first.
    free: Vec<Vec<u8>>,
    /// Whether one was taken since it was last looked.
    used: bool,
    /// Whether one was taken since memory was last given back.
    to_give_back: bool,
}

impl Buffers {
    /// Has `work` use `len` bytes, which hold anything at first.
    pub(crate) fn with<T>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.take();
        // Only what was never used is zeroed here.
        if buffer.len() < len {
            buffer = vec![0; len];
        }
        let result = work(&mut buffer[..len]);
        self.put_back(buffer);
        result
    }

    /// Has memory that was taken otherwise be given back with the buffers.
    pub(crate) fn note_use(&self) {
        let mut pool = self.lock();
        (pool.used, pool.to_give_back) = (true, true);
    }

    /// Frees what nobody has used since it was last called; whether this is the first time since somebody did.
    pub(crate) fn let_go(&self) -> bool {
        let mut pool = self.lock();
        let idle = !std::mem::take(&mut pool.used) && std::mem::take(&mut pool.to_give_back);
        if idle {
            pool.free = Vec::new();
        }
        idle
    }

    fn take(&self) -> Vec<u8> {
        self.note_use();
        self.lock().free.pop().unwrap_or_default()
    }

    fn put_back(&self, buffer: Vec<u8>) {
        let mut pool = self.lock();
        if pool.free.len() < KEPT && buffer.capacity() <= KEPT_BYTES {
            pool.free.push(buffer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BufferPool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_given_back_once_nobody_uses_them() {
        let buffers = Buffers::default();
        buffers.with(100, |buffer| buffer.fill(7));
        // The same bytes: nothing was allocated, or zeroed.
        buffers.with(50, |buffer| assert_eq!(buffer, [7; 50]));
        // Just used: for who reads on.
        assert!(!buffers.let_go());
        buffers.with(100, |buffer| assert_eq!(buffer, [7; 100]));
        assert!(!buffers.let_go());
        assert!(buffers.let_go());
        assert!(!buffers.let_go());
        buffers.with(100, |buffer| assert_eq!(buffer, [0; 100]));
    }

    #[test]
    fn who_works_within_another_s_work_has_a_buffer_of_its_own() {
        let buffers = Buffers::default();
        buffers.with(10, |outer| {
            outer.fill(1);
            buffers.with(10, |inner| inner.fill(2));
            assert_eq!(outer, [1; 10]);
        });
    }

    #[test]
    fn what_is_larger_than_any_read_is_not_kept() {
        let buffers = Buffers::default();
        buffers.with(KEPT_BYTES + 1, |buffer| buffer.fill(1));
        assert!(buffers.lock().free.is_empty());
    }
}
