//! Storages of registries, one for each state of our own program.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};

/// How the directory of each begins.
const PREFIX: &str = "of-";
/// How many others than the one that is opened are kept: tests and the demonstration are different builds of the program.
const OTHERS: usize = 1;

/// A storage that is in use, and so is not removed.
#[derive(Debug)]
pub(super) struct Storage {
    dir: PathBuf,
    root: PathBuf,
    _used: Flock<File>,
}

impl Storage {
    /// Opens the storage for the program with this stamp below `dir`, and removes those that nobody uses and that were used long ago.
    ///
    /// The caller holds the lock of `dir`.
    pub(super) fn open(dir: &Path, stamp: &str) -> Result<Self> {
        let own = dir.join(format!("{PREFIX}{}", &stamp[..16.min(stamp.len())]));
        fs::create_dir_all(&own).with_context(|| format!("creating {}", own.display()))?;
        let used = lock(&own, FlockArg::LockSharedNonblock)?.context("the storage is being removed")?;
        // The children have it open too: a demonstration's registry goes on serving when the process that started it has ended.
        fcntl(&*used, FcntlArg::F_SETFD(FdFlag::empty()))?;
        used.set_modified(SystemTime::now())?;
        remove_old(dir, &own)?;
        Ok(Self { root: own.join("registry"), dir: own, _used: used })
    }

    /// The registry's root directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The file that says what a step was done with.
    pub(super) fn marker(&self, step: &str) -> PathBuf {
        self.dir.join(format!(".{step}"))
    }
}

fn remove_old(dir: &Path, own: &Path) -> Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) && entry.path() != own {
            let used = fs::metadata(lock_file(&entry.path())).and_then(|found| found.modified());
            others.push((used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
    others.sort();
    others.reverse();
    for (_, old) in others.into_iter().skip(OTHERS) {
        if lock(&old, FlockArg::LockExclusiveNonblock)?.is_some() {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    Ok(())
}

fn lock_file(storage: &Path) -> PathBuf {
    storage.join(".used")
}

/// The lock of a storage, unless others hold it.
fn lock(storage: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    let path = lock_file(storage);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(io::Error::from(error)).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_in_use_outlives_newer_ones() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let is_there = |storage: &Storage| storage.dir.exists();
        let served = Storage::open(dir.path(), "served")?;
        fs::create_dir(served.root())?;
        for stamp in ["first", "second", "third"] {
            Storage::open(dir.path(), stamp)?;
        }
        assert!(is_there(&served));
        let left = fs::read_dir(dir.path())?.count();
        assert_eq!(left, 3, "the one in use, the newest, and the one before it");
        let path = served.dir.clone();
        drop(served);
        Storage::open(dir.path(), "fourth")?;
        assert!(!path.exists());
        Ok(())
    }
}
