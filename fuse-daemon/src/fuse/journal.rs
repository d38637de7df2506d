//! Requests that were taken from the kernel and not answered, for the daemon after this one, where the kernel does not repeat
//! them (before Linux 6.9): who waits for one whose daemon died would wait for ever.
//!
//! One file a mount, next to the daemon's socket and so in memory, of fixed size:
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `NYDJOURN` |
//! | 8 | 8 | device | the mount's number, little-endian |
//! | 4096 + 512 n | 512 | request n | as the kernel sent it; where its id (8 bytes from the ninth on) is 0, there is none |
//!
//! The kernel itself puts a request there when it is read, since the file is mapped where it is read to: there is no moment
//! at which only the daemon has it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use rustix::fs::{FallocateFlags, fallocate};

use super::negotiated::Negotiated;
use crate::sys::Pages;

const MAGIC: &[u8; 8] = b"NYDJOURN";
/// Where the header has the mount's number.
const DEVICE: Range<usize> = 8..16;
const HEADER_BYTES: usize = 4096;
/// What a request has at most that is answered: a name has 255 bytes.
pub(super) const SLOT_BYTES: usize = 512;
/// Requests that may be under way: more wait in the kernel.
const SLOTS: usize = 256;
const BYTES: usize = HEADER_BYTES + SLOTS * SLOT_BYTES;

/// Held by who gives a journal its name, or takes it away: the kernel gives the number of a mount that ends to the next one at once.
static NAMES: Mutex<()> = Mutex::new(());
/// Where a request has its id, `unique` of `struct fuse_in_header`; and an answer has it too.
pub(super) const ID: Range<usize> = 8..16;

/// Where journals are, and when they are kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Their directory.
    pub dir: PathBuf,
    /// Also where the kernel repeats requests.
    pub always: bool,
}

impl JournalConfig {
    /// Whether a kernel that offers this needs a journal.
    pub(super) fn is_needed(&self, negotiated: Negotiated) -> bool {
        self.always || !negotiated.repeats_requests()
    }

    /// An empty one for a mount.
    pub(super) fn begin(&self, device: u64) -> io::Result<(Journal, Pages)> {
        std::fs::create_dir_all(&self.dir)?;
        let path = self.path(device);
        // A file of its own: the one of the mount that had this number before may still be written to.
        let new = path.with_extension("new");
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // All of it now: a page that cannot be had later would end this process.
        fallocate(&file, FallocateFlags::empty(), 0, BYTES as u64)?;
        file.write_all_at(&device.to_le_bytes(), DEVICE.start as u64)?;
        file.write_all_at(MAGIC, 0)?;
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::rename(&new, &path)?;
        drop(names);
        Journal::over(file, path)
    }

    /// That of the daemon before, and what that had not answered, in the order of ids.
    pub(super) fn go_on(&self, device: u64) -> io::Result<(Journal, Pages, Vec<Vec<u8>>)> {
        let path = self.path(device);
        let file = File::options().read(true).write(true).open(&path)?;
        let mut bytes = vec![0; BYTES];
        file.read_exact_at(&mut bytes, 0)?;
        if bytes[..DEVICE.start] != *MAGIC || bytes[DEVICE] != device.to_le_bytes() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is another mount's"));
        }
        let (journal, pages) = Journal::over(file, path)?;
        let mut pending = Vec::new();
        for (slot, request) in bytes[HEADER_BYTES..].chunks_exact(SLOT_BYTES).enumerate() {
            let (Some(id), Some(length)) = (id(request), length(request)) else { continue };
            journal.lock().take(slot, id);
            pending.push((id, request[..length.min(SLOT_BYTES)].to_vec()));
        }
        pending.sort();
        Ok((journal, pages, pending.into_iter().map(|(_, request)| request).collect()))
    }

    fn path(&self, device: u64) -> PathBuf {
        self.dir.join(device.to_string())
    }
}

/// What is noted of one mount.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    slots: Mutex<Slots>,
    freed: Condvar,
}

#[derive(Debug)]
struct Slots {
    free: Vec<usize>,
    /// By id.
    taken: HashMap<u64, usize>,
    closed: bool,
}

impl Slots {
    fn take(&mut self, slot: usize, id: u64) {
        self.free.retain(|free| *free != slot);
        self.taken.insert(id, slot);
    }
}

impl Journal {
    fn over(file: File, path: PathBuf) -> io::Result<(Self, Pages)> {
        warn_of_disk(&file, &path);
        let pages = Pages::map(&file, BYTES)?;
        let slots = Slots { free: (0..SLOTS).collect(), taken: HashMap::new(), closed: false };
        Ok((Self { file, path, slots: Mutex::new(slots), freed: Condvar::new() }, pages))
    }

    /// A place for a request; waits until there is one. `None`: none is taken any more.
    pub(super) fn free_slot(&self) -> Option<usize> {
        let mut slots = self.lock();
        loop {
            if slots.closed {
                return None;
            }
            if let Some(slot) = slots.free.pop() {
                return Some(slot);
            }
            slots = self.freed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Where a slot is in the file.
    pub(super) fn range(slot: usize) -> Range<usize> {
        let start = HEADER_BYTES + slot * SLOT_BYTES;
        start..start + SLOT_BYTES
    }

    /// The slot has a request that will be answered.
    pub(super) fn taken(&self, slot: usize, id: u64) {
        self.lock().take(slot, id);
    }

    /// The slot has no request, or one that nobody waits for.
    pub(super) fn give_back(&self, slot: usize) {
        self.clear(slot);
        self.lock().free.push(slot);
        self.freed.notify_one();
    }

    /// The kernel has the answer to a request.
    pub(super) fn answered(&self, id: u64) {
        let slot = self.lock().taken.remove(&id);
        if let Some(slot) = slot {
            self.give_back(slot);
        }
    }

    /// The mount is gone, and the journal with it.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
        let _names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let deleted =
            self.has_name().and_then(|has| if has { std::fs::remove_file(&self.path) } else { Ok(()) });
        if let Err(error) = deleted {
            tracing::debug!(path = %self.path.display(), %error, "cannot delete a journal");
        }
    }

    /// Whether its name is not another mount's by now.
    fn has_name(&self) -> io::Result<bool> {
        let (own, named) = (self.file.metadata()?, std::fs::metadata(&self.path)?);
        Ok((own.dev(), own.ino()) == (named.dev(), named.ino()))
    }

    fn clear(&self, slot: usize) {
        let at = (Self::range(slot).start + ID.start) as u64;
        if let Err(error) = self.file.write_all_at(&[0; 8], at) {
            tracing::warn!(path = %self.path.display(), %error, "cannot note an answer");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is written to a disk is protected from being written to meanwhile, until somebody does and faults. Who is being killed
/// may not fault, so the kernel has nowhere to copy a request to, and answers it with EIO.
fn warn_of_disk(file: &File, path: &Path) {
    static WARNED: Once = Once::new();
    if fstatfs(file).is_ok_and(|found| found.filesystem_type() != TMPFS_MAGIC) {
        WARNED.call_once(|| {
            tracing::warn!(path = %path.display(),
                "the journal is not in memory: a program may meet an error when the daemon is killed; have the daemon's socket in /run");
        });
    }
}

/// The id of a request or an answer, if it has one.
pub(super) fn id(message: &[u8]) -> Option<u64> {
    let id = message.get(ID)?.try_into().ok().map(u64::from_ne_bytes)?;
    (id != 0).then_some(id)
}

/// The length that a request says that it has.
fn length(request: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(request.get(..4)?.try_into().ok()?)).ok()
}

/// Where the journals are of a daemon that listens there.
pub(crate) fn dir_beside(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".journals");
    socket.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes one: its length, and its id.
    fn request(id: u64, length: u32) -> Vec<u8> {
        let mut request = vec![0x11; length as usize];
        request[..4].copy_from_slice(&length.to_ne_bytes());
        request[ID].copy_from_slice(&id.to_ne_bytes());
        request
    }

    #[test]
    fn what_was_taken_and_not_answered_is_there_for_the_next_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { dir: dir.path().join("journals"), always: true };
        let (journal, mut pages) = config.begin(7).unwrap();
        for (id, length) in [(30, 40), (10, 60), (20, 80)] {
            let slot = journal.free_slot().unwrap();
            pages.part(Journal::range(slot))[..length as usize].copy_from_slice(&request(id, length));
            journal.taken(slot, id);
        }
        // Taken, and the daemon dies before it knows.
        let slot = journal.free_slot().unwrap();
        pages.part(Journal::range(slot))[..44].copy_from_slice(&request(40, 44));
        journal.answered(20);
        drop((journal, pages));

        let (journal, _, pending) = config.go_on(7).unwrap();
        assert_eq!(pending, [request(10, 60), request(30, 40), request(40, 44)]);
        for id in [10, 30, 40] {
            journal.answered(id);
        }
        assert!(config.go_on(7).unwrap().2.is_empty());
        assert!(config.go_on(8).is_err());
        journal.close();
        assert!(config.go_on(7).is_err());
    }

    #[test]
    fn the_end_of_a_mount_does_not_touch_the_journal_of_the_next_one_of_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { dir: dir.path().to_owned(), always: true };
        let note = |journal: &Journal, pages: &mut Pages, id| {
            let slot = journal.free_slot().unwrap();
            pages.part(Journal::range(slot))[..40].copy_from_slice(&request(id, 40));
            journal.taken(slot, id);
        };
        let (ending, mut old_pages) = config.begin(7).unwrap();
        note(&ending, &mut old_pages, 10);
        let (journal, mut pages) = config.begin(7).unwrap();
        note(&journal, &mut pages, 20);
        // The last answer, which nobody hears.
        ending.answered(10);
        ending.close();
        assert_eq!(config.go_on(7).unwrap().2, [request(20, 40)]);
        journal.close();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn who_finds_all_slots_taken_waits_for_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { dir: dir.path().to_owned(), always: true };
        let (journal, _pages) = config.begin(7).unwrap();
        let slots: Vec<usize> = (0..SLOTS).map(|_| journal.free_slot().unwrap()).collect();
        journal.taken(slots[9], 99);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| journal.free_slot());
            journal.answered(99);
            assert_eq!(waits.join().unwrap(), Some(slots[9]));
            let waits = scope.spawn(|| journal.free_slot());
            journal.close();
            assert_eq!(waits.join().unwrap(), None);
        });
    }
}
