//! Room on this machine's disk: what is kept there meanwhile takes no more than a setting says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::StoreError;

/// What room is for, in words for whoever has too little of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiskUse {
    /// What takes it: a plural.
    pub what: &'static str,
    /// The setting that says how much there is.
    pub setting: &'static str,
    /// Whose this is that finds room together, such as `all builds`.
    pub of: &'static str,
    /// What whoever needs it can do to need less.
    pub instead: &'static str,
}

/// Room in a folder, for all that a process keeps there for one purpose.
#[derive(Debug)]
pub struct DiskSpace {
    dir: PathBuf,
    limit: u64,
    left: AtomicU64,
    purpose: &'static DiskUse,
}

/// What somebody takes of a [`DiskSpace`], given back when this is dropped.
#[derive(Debug)]
pub struct DiskShare {
    space: Arc<DiskSpace>,
    /// In bytes.
    taken: AtomicU64,
}

impl DiskSpace {
    /// Room for `bytes` in the folder `dir`.
    pub fn new(dir: &Path, bytes: u64, purpose: &'static DiskUse) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), limit: bytes, left: AtomicU64::new(bytes), purpose })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bytes that still fit.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

impl DiskShare {
    /// Nothing yet, of `space`.
    pub fn of(space: &Arc<DiskSpace>) -> Self {
        Self { space: Arc::clone(space), taken: AtomicU64::new(0) }
    }

    /// The room that it is a part of.
    pub fn space(&self) -> &Arc<DiskSpace> {
        &self.space
    }

    /// Takes so many bytes more.
    ///
    /// # Errors
    ///
    /// When they do not fit; nothing is taken then.
    pub fn take(&self, bytes: u64) -> Result<(), StoreError> {
        let DiskSpace { dir, limit, left, purpose } = &*self.space;
        let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        let full = |_| StoreError::DiskFull { purpose, path: dir.clone(), limit: *limit };
        taken.map_err(full)?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back so many bytes of what it took, before the rest.
    pub fn give_back(&self, bytes: u64) {
        let less = |taken: u64| Some(taken.saturating_sub(bytes));
        let before = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_default();
        self.space.left.fetch_add(before.min(bytes), Ordering::Relaxed);
    }

    /// Leaves what it took to `other`, of the same room.
    pub fn leave_to(self, other: &Self) {
        other.taken.fetch_add(self.taken.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for DiskShare {
    fn drop(&mut self) {
        self.space.left.fetch_add(*self.taken.get_mut(), Ordering::Relaxed);
    }
}
