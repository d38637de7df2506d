//! A folder of this process in a directory that several processes may share.
//!
//! A file without a name goes with its process, however that ends. A folder goes when whoever has it is dropped, which a process that
//! is killed does not come to. So it is locked (`flock`) as long as somebody has it: the kernel ends that with the process, and the
//! next process removes what nobody has. What cleans `/var/tmp` by age (systemd-tmpfiles) leaves alone what is locked, too.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::geteuid;
use tempfile::TempDir;
use tokio::runtime::{Handle, RuntimeFlavor};

/// What the names of these folders begin with. Nothing else in the directory is touched.
const PREFIX: &str = "nydus-cluster-spool-";

/// How often a folder is made at most: between its making and its lock, another process may take it for one that nobody has.
const ATTEMPTS: usize = 16;

/// A folder that is gone with this and, if the process is killed, when the next one calls [`SpoolFolder::remove_abandoned`].
///
/// Gigabytes may be in it. Whoever drops it waits until it is removed, and what else is to be done on this thread of a runtime is done on
/// another meanwhile.
#[derive(Debug)]
pub struct SpoolFolder {
    path: PathBuf,
    /// There until this is dropped. Removed before its lock ends.
    folder: Option<TempDir>,
    /// Where folders cannot be locked none is taken for abandoned, and this is none.
    _lock: Option<File>,
}

impl SpoolFolder {
    /// Makes one in the directory `dir`, for this user alone.
    ///
    /// # Errors
    ///
    /// When `dir` cannot be written to.
    pub async fn new(dir: &Path) -> io::Result<Self> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || Self::make(&dir)).await?
    }

    fn make(dir: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(dir)?;
            match lock(folder.path()) {
                Ok(Some(lock)) => return Ok(Self::of(folder, Some(lock))),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, dir = %dir.display(), "folders cannot be locked here");
                    return Ok(Self::of(folder, None));
                }
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "other processes remove each folder that is made there",
        ))
    }

    fn of(folder: TempDir, lock: Option<File>) -> Self {
        Self { path: folder.path().to_owned(), folder: Some(folder), _lock: lock }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folders in the directory `dir` that processes of this user left which were killed, and says so in the log. Those
    /// that a living process has stay. Blocks on the disk.
    pub fn remove_abandoned(dir: &Path) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => {
                let dir = dir.display();
                return tracing::warn!(%error, %dir, "cannot look for what processes left that were killed");
            }
        };
        let is_ours = |entry: &fs::DirEntry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        for entry in entries.map_while(Result::ok).filter(is_ours) {
            let path = entry.path();
            match remove_if_abandoned(&path) {
                Ok(true) => {
                    tracing::info!(path = %path.display(), "removed what a process left that was killed");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot remove what a process left that was killed")
                }
            }
        }
    }
}

impl Drop for SpoolFolder {
    fn drop(&mut self) {
        let folder = self.folder.take();
        aside(|| drop(folder));
    }
}

/// Does `work`, which blocks, while what else there is for this thread is done on another. A runtime of one thread has no other.
fn aside(work: impl FnOnce()) {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Whether a folder was there that nobody had.
fn remove_if_abandoned(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && found.uid() == geteuid().as_raw() => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(false),
    }
    // Held until all of it is gone: nobody else has it, and nobody else removes it.
    let Some(_lock) = lock(path)? else { return Ok(false) };
    fs::remove_dir_all(path)?;
    Ok(true)
}

/// Locks the folder at `path`; `None` if somebody else has it, or it is not there any more.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match open(path, flags, Mode::empty()) {
        Ok(folder) => File::from(folder),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match folder.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever had it before may have removed it in the meantime.
    let own = folder.metadata()?;
    let is_there =
        fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino()));
    Ok(is_there.then_some(folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A folder as a process leaves it that is killed.
    fn abandoned(dir: &Path) {
        let mut folder = SpoolFolder::make(dir).unwrap();
        fs::write(folder.path().join("blob"), "content").unwrap();
        let _ = folder.folder.take().unwrap().keep();
    }

    #[test]
    fn what_nobody_has_any_more_is_removed_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let in_use = SpoolFolder::make(dir.path()).unwrap();
        fs::write(in_use.path().join("blob"), "content").unwrap();
        abandoned(dir.path());
        // What is called as one of ours, and is none.
        let (file, link) = (format!("{PREFIX}file"), format!("{PREFIX}link"));
        fs::write(dir.path().join(&file), "").unwrap();
        symlink("other", dir.path().join(&link)).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("other/file"), "").unwrap();

        SpoolFolder::remove_abandoned(dir.path());
        let kept = in_use.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = vec![kept, file, link, "other".to_owned()];
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        assert_eq!(fs::read(in_use.path().join("blob")).unwrap(), b"content");
        assert!(dir.path().join("other/file").exists());
        drop(in_use);
        assert_eq!(names(dir.path()).len(), 3);
    }

    #[test]
    fn a_folder_that_is_made_while_others_are_removed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    SpoolFolder::remove_abandoned(dir.path());
                }
            });
            for _ in 0..200 {
                let folder = SpoolFolder::make(dir.path()).unwrap();
                fs::write(folder.path().join("blob"), "content").unwrap();
                abandoned(dir.path());
                assert_eq!(fs::read(folder.path().join("blob")).unwrap(), b"content");
            }
            ended.store(true, Ordering::Relaxed);
        });
        SpoolFolder::remove_abandoned(dir.path());
        assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_blocks_holds_nobody_else_up() {
        let (begun, begins) = oneshot::channel();
        let (done, waits) = mpsc::channel();
        let blocked = tokio::spawn(async move {
            aside(|| {
                begun.send(()).unwrap();
                waits.recv_timeout(Duration::from_secs(20)).expect("another task of the one worker goes on");
            });
        });
        begins.await.unwrap();
        tokio::spawn(async move { done.send(()).unwrap() }).await.unwrap();
        blocked.await.unwrap();
    }
}
