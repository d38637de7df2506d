//! Files and folders that appear whole or not at all, and are there after a loss of power.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::failed;
use crate::server::error::Failure;

/// How many entries are known to be on the disk: some 200 bytes each. What is not known is synced once more.
const KNOWN_ENTRIES: usize = 8192;

/// Brings the entries of a folder to the disk.
pub(super) type SyncFolder = Box<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// The files below a root. A file outlives a loss of power when the entries of it and of each folder above it are on the disk.
///
/// Requests share folders and files: who finds one that another request has just made cannot tell from that whether it is on
/// the disk. So whoever answers for a file has each entry on the way to it synced that is not known to be on the disk,
/// whoever made it.
pub(super) struct Folders {
    root: PathBuf,
    sync: SyncFolder,
    /// Files and folders whose entries are on the disk, and those of all folders above.
    known: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    /// Those below `root`, whose entries `sync` brings to the disk.
    pub(super) fn new(root: &Path, sync: SyncFolder) -> Self {
        Self { root: root.to_owned(), sync, known: Mutex::default() }
    }

    /// Creates `folder` and what is missing above it. They need not be on the disk yet.
    pub(super) fn create(&self, folder: &Path) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for folder in folder.ancestors() {
            if folder.try_exists().map_err(failed("looking for", folder))? {
                break;
            }
            missing.push(folder.to_owned());
        }
        self.forget(&missing);
        fs::create_dir_all(folder).map_err(failed("creating folder", folder))
    }

    /// Writes a small file under another name, and moves it to `path` when it is on the disk. It is found there after a
    /// loss of power.
    pub(super) fn write(&self, path: &Path, content: &[u8]) -> Result<(), Failure> {
        self.create(parent_of(path))?;
        let temporary = temporary_for(path)?;
        let write = || {
            let mut file = File::create_new(&temporary)?;
            file.write_all(content)?;
            file.sync_all()
        };
        let written = write().map_err(failed("writing", path)).and_then(|()| self.rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Moves a file that is on the disk to `to`, whose folder exists. It is found there after a loss of power.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), Failure> {
        self.forget(&[to.to_owned()]);
        fs::rename(from, to).map_err(failed("moving a file to", to))?;
        // Whatever is known by now of `to`: it need not be of this move.
        self.bring_to_disk(to, true)
    }

    /// Sees to it that the file or folder `path`, which may be another request's, is found after a loss of power.
    pub(super) fn keep(&self, path: &Path) -> Result<(), Failure> {
        self.bring_to_disk(path, false)
    }

    fn bring_to_disk(&self, path: &Path, is_new: bool) -> Result<(), Failure> {
        let mut synced = Vec::new();
        let mut entry = path;
        while entry != self.root && (is_new && entry == path || !self.lock().contains(entry)) {
            let Some(folder) = entry.parent() else { break };
            (self.sync)(folder).map_err(failed("syncing folder", folder))?;
            synced.push(entry.to_owned());
            entry = folder;
        }
        let mut known = self.lock();
        if known.len() + synced.len() > KNOWN_ENTRIES {
            known.clear();
        }
        known.extend(synced);
        Ok(())
    }

    /// What is about to be made at `paths` is not on the disk, whatever was there before.
    fn forget(&self, paths: &[PathBuf]) {
        let mut known = self.lock();
        for path in paths {
            known.remove(path);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Creates the folder that holds everything, if it is missing, so that it outlives a loss of power.
pub(in crate::server) fn create_root(root: &Path) -> io::Result<()> {
    let named = |folder: &&Path| !folder.as_os_str().is_empty();
    let missing: Vec<&Path> = root.ancestors().filter(named).take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(root)?;
    for folder in missing {
        let above = folder.parent().filter(named);
        sync_folder(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Brings the entries of `folder` to the disk.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that a path of the layout is in.
pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A name of its own in the folder of `path`, that CNCF distribution passes over.
fn temporary_for(path: &Path) -> Result<PathBuf, Failure> {
    Ok(path.with_file_name(format!(".new-{}", random_id()?)))
}

/// A random UUID (version 4), the form of upload ids.
pub(super) fn random_id() -> Result<String, Failure> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed("reading", source))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex::encode(bytes);
    Ok([&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Folders that note which of them were synced.
    fn noted(root: &Path) -> (Folders, Arc<Mutex<Vec<PathBuf>>>) {
        let all = Arc::<Mutex<Vec<PathBuf>>>::default();
        let noted = all.clone();
        let sync = move |folder: &Path| {
            noted.lock().unwrap().push(folder.to_owned());
            sync_folder(folder)
        };
        (Folders::new(root, Box::new(sync)), all)
    }

    #[test]
    fn random_ids_are_version_4_uuids_and_differ() {
        let (one, other) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(one, other);
        let lengths: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!((lengths.as_slice(), &one[14..15]), (&[8, 4, 4, 4, 12][..], "4"));
    }

    #[test]
    fn a_file_written_atomically_leaves_nothing_next_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, _) = noted(dir.path());
        let path = dir.path().join("a/b/link");
        folders.write(&path, b"one").unwrap();
        folders.write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn every_folder_on_the_way_to_a_file_is_synced_until_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let under = |name: &str| dir.path().join(name);
        let (folders, synced) = noted(dir.path());
        let taken = || std::mem::take(&mut *synced.lock().unwrap());
        // Whoever made them.
        fs::create_dir_all(under("a/b")).unwrap();
        folders.write(&under("a/b/link"), b"x").unwrap();
        assert_eq!(taken(), [under("a/b"), under("a"), dir.path().to_owned()]);
        folders.write(&under("a/b/link"), b"x").unwrap();
        assert_eq!(taken(), [under("a/b")], "what is written is synced, however often");
        folders.keep(&under("a/b/link")).unwrap();
        assert!(taken().is_empty());
        folders.write(&under("a/c/link"), b"x").unwrap();
        assert_eq!(taken(), [under("a/c"), under("a")]);
        // Folders that were removed and made again are others.
        fs::remove_dir_all(under("a")).unwrap();
        folders.create(&under("a/b")).unwrap();
        folders.write(&under("a/b/link"), b"x").unwrap();
        assert_eq!(taken(), [under("a/b"), under("a"), dir.path().to_owned()]);
    }

    #[test]
    fn a_folder_that_cannot_be_synced_is_an_error_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let failing = |_: &Path| Err(io::Error::other("no disk"));
        let folders = Folders::new(dir.path(), Box::new(failing));
        let path = dir.path().join("a/link");
        for _ in 0..2 {
            let error = folders.write(&path, b"x").unwrap_err().to_string();
            assert!(error.contains("syncing folder") && error.contains("no disk"), "{error}");
            assert!(folders.keep(&path).is_err(), "it is there, and not for good");
        }
    }

    #[test]
    fn a_missing_root_is_created_with_all_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b/root");
        create_root(&root).unwrap();
        create_root(&root).unwrap();
        assert!(root.is_dir());
    }
}
