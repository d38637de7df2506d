//! Memory that the worker's process decodes into. The front's process reads it by its file: it maps nothing, so that nobody
//! can have it end by a page that is not there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

/// Windows begin at multiples of this, so that no page has two.
const ALIGNMENT: usize = 4096;

/// A file without a name, of `bytes` bytes for good.
pub(crate) fn memory(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Such a file, mapped to be written.
pub(crate) struct Arena {
    map: MmapRaw,
    file: File,
    windows: Mutex<Windows>,
    freed: Condvar,
}

#[derive(Default)]
struct Windows {
    taken: BTreeMap<usize, Taken>,
    /// Whether one was taken since memory was given back.
    used: bool,
}

/// A part of the arena that is in use.
struct Taken {
    len: usize,
    /// Nobody here writes to it any longer: it is free when the reader has read it.
    handed_over: bool,
}

/// A part of an arena that nobody else writes to. Dropped, it is free.
pub(crate) struct Window {
    arena: Arc<Arena>,
    at: usize,
    len: usize,
}

impl Arena {
    /// Maps `bytes` bytes of a file of [`memory`].
    pub(crate) fn map(file: OwnedFd, bytes: usize) -> io::Result<Arc<Self>> {
        let file = File::from(file);
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the shared memory is too small"));
        }
        let map = MmapOptions::new().len(bytes).map_raw(&file)?;
        Ok(Arc::new(Self { map, file, windows: Mutex::default(), freed: Condvar::new() }))
    }

    /// A window of `len` bytes, at the lowest place that is free; waits until there is one. `None`: the arena is smaller.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<Window> {
        if len > self.map.len() {
            return None;
        }
        let mut windows = self.lock();
        loop {
            if let Some(at) = gap(&windows.taken, len, self.map.len()) {
                windows.used = true;
                windows.taken.insert(at, Taken { len: len.max(1), handed_over: false });
                return Some(Window { arena: Arc::clone(self), at, len });
            }
            windows = self.freed.wait(windows).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Frees what was handed over at this place.
    pub(crate) fn release(&self, at: usize) {
        let mut windows = self.lock();
        if windows.taken.get(&at).is_some_and(|taken| taken.handed_over) {
            windows.taken.remove(&at);
            self.freed.notify_all();
        }
    }

    /// Gives the memory back, unless it is in use; whether there was some to give.
    pub(crate) fn trim(&self) -> bool {
        let mut windows = self.lock();
        let idle = windows.taken.is_empty() && std::mem::take(&mut windows.used);
        if idle {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // It is only a saving.
            let _ = fallocate(&self.file, hole, 0, self.map.len() as u64);
        }
        idle
    }

    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest place where `len` bytes are free.
fn gap(windows: &BTreeMap<usize, Taken>, len: usize, end: usize) -> Option<usize> {
    let mut at = 0_usize;
    for (start, taken) in windows {
        if at.checked_add(len)? <= *start {
            return Some(at);
        }
        at = (start + taken.len).next_multiple_of(ALIGNMENT);
    }
    (at.checked_add(len)? <= end).then_some(at)
}

impl Window {
    /// Leaves it to the reader until it is released: where it is.
    pub(crate) fn hand_over(mut self) -> usize {
        if let Some(taken) = self.arena.lock().taken.get_mut(&self.at) {
            taken.handed_over = true;
        }
        // Nothing is left to be written, or to be freed by `drop`.
        self.len = 0;
        self.at
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut windows = self.arena.lock();
        if windows.taken.get(&self.at).is_some_and(|taken| !taken.handed_over) {
            windows.taken.remove(&self.at);
            self.arena.freed.notify_all();
        }
    }
}

impl Deref for Window {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `deref_mut`; the other process only reads.
        unsafe { std::slice::from_raw_parts(self.arena.map.as_ptr().add(self.at), self.len) }
    }
}

impl DerefMut for Window {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the bytes are within the mapping, which lives as long as the arena that this holds, and within the file,
        // whose size is sealed. No two windows that can be written overlap: a place is free again only when its window was
        // dropped, or was handed over, after which it has no bytes. The other process reads, by its file, and does not write.
        unsafe { std::slice::from_raw_parts_mut(self.arena.map.as_mut_ptr().add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn windows_do_not_overlap_and_what_is_written_is_read_by_the_file() {
        let file = memory("test", 1 << 20).unwrap();
        let reader = File::from(file.try_clone().unwrap());
        let arena = Arena::map(file, 1 << 20).unwrap();
        let mut first = arena.take(5000).unwrap();
        let mut second = arena.take(5000).unwrap();
        first.fill(1);
        second.fill(2);
        let (first, second) = (first.hand_over(), second.hand_over());
        assert_eq!((first, second), (0, 8192));
        let mut bytes = [0; 5000];
        reader.read_exact_at(&mut bytes, second as u64).unwrap();
        assert_eq!(bytes, [2; 5000]);
        // The lowest place that is free.
        arena.release(first);
        assert_eq!(arena.take(4000).unwrap().at, 0);
        assert!(arena.take((1 << 20) + 1).is_none());
    }

    #[test]
    fn what_was_not_handed_over_cannot_be_released_by_the_reader() {
        let arena = Arena::map(memory("test", 16_384).unwrap(), 16_384).unwrap();
        let window = arena.take(4096).unwrap();
        arena.release(0);
        let other = arena.take(4096).unwrap();
        assert_eq!((window.at, other.at), (0, 4096));
        drop(window);
        assert_eq!(arena.take(4096).unwrap().at, 0);
    }

    #[test]
    fn who_finds_no_room_waits_until_there_is_some() {
        let arena = Arena::map(memory("test", 8192).unwrap(), 8192).unwrap();
        let place = arena.take(8192).unwrap().hand_over();
        let waiting = Arc::clone(&arena);
        let waits = std::thread::spawn(move || waiting.take(100).unwrap().at);
        arena.release(place);
        assert_eq!(waits.join().unwrap(), 0);
    }

    #[test]
    fn the_size_cannot_be_changed() {
        let file = memory("test", 8192).unwrap();
        assert!(ftruncate(&file, 0).is_err());
        assert!(ftruncate(&file, 16_384).is_err());
    }
}
