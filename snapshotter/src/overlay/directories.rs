//! Where the files of snapshots are.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::RootAttributes;
use crate::error::Error;
use crate::state::{Kind, SnapshotId};

/// The directories under the snapshotter's root.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    snapshots: PathBuf,
    mounts: PathBuf,
    empty: PathBuf,
    state: PathBuf,
}

impl Directories {
    /// Makes what is missing. Only the owner may enter: snapshots have the users' ids and setuid files of images.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        // Mounts name these directories in options, where a relative path would depend on the reader.
        fs::create_dir_all(root).map_err(Error::io("make directory", root))?;
        let root = root.canonicalize().map_err(Error::io("resolve", root))?;
        let directories = Self {
            snapshots: root.join("snapshots"),
            mounts: root.join("mounts"),
            empty: root.join("empty"),
            state: root.join("snapshots.redb"),
        };
        for path in [&directories.snapshots, &directories.mounts, &directories.empty] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(Error::io("make directory", path))?;
        }
        Ok(directories)
    }

    /// The database.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// What a snapshot adds to its parents.
    pub(crate) fn upper(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join("fs")
    }

    /// overlayfs's work directory.
    pub(crate) fn work(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join("work")
    }

    /// A directory that stays empty, for overlays that have nothing beneath.
    pub(crate) fn empty(&self) -> &Path {
        &self.empty
    }

    /// Where images are mounted.
    pub(crate) fn mounts(&self) -> &Path {
        &self.mounts
    }

    /// Where the image of a bootstrap snapshot is mounted.
    pub(crate) fn mountpoint(&self, id: SnapshotId) -> PathBuf {
        self.mounts.join(id.to_string())
    }

    /// Makes the directories of a new snapshot.
    pub(crate) fn create(
        &self,
        id: SnapshotId,
        kind: Kind,
        attributes: &RootAttributes,
    ) -> Result<(), Error> {
        let make = |path: &Path, mode| {
            DirBuilder::new().mode(mode).create(path).map_err(Error::io("make directory", path))
        };
        make(&self.snapshot(id), 0o700)?;
        let upper = self.upper(id);
        make(&upper, 0o755)?;
        if kind == Kind::Active {
            make(&self.work(id), 0o711)?;
        }
        attributes.apply(&upper)
    }

    /// Deletes the directories of a snapshot; fine if there are none.
    pub(crate) fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        let path = self.snapshot(id);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", path)(error)),
            _ => Ok(()),
        }
    }

    /// Deletes the mount point of a snapshot; fine if there is none. Fails while something is mounted there.
    pub(crate) fn remove_mountpoint(&self, id: SnapshotId) -> Result<(), Error> {
        let path = self.mountpoint(id);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("delete mount point", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The snapshots that have directories.
    pub(crate) fn list(&self) -> Result<Vec<SnapshotId>, Error> {
        numbered(&self.snapshots)
    }

    /// The snapshots that have mount points.
    pub(crate) fn list_mountpoints(&self) -> Result<Vec<SnapshotId>, Error> {
        numbered(&self.mounts)
    }

    fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots.join(id.to_string())
    }
}

/// Entries whose names are ids. Others are not ours to touch.
fn numbered(path: &Path) -> Result<Vec<SnapshotId>, Error> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        ids.extend(id.map(SnapshotId));
    }
    ids.sort_unstable();
    Ok(ids)
}
