//! Freeing what removed snapshots leave: mounts, cached blobs, directories.
//!
//! What to free is not remembered but found, by comparing what is there with what the records name. So it makes no
//! difference whether a snapshot was removed a second ago or before a crash, and whatever fails is found again next time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fuse_daemon::control::BlobId;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::Snapshotter;
use crate::daemon::describe;
use crate::error::Error;
use crate::nydus::{self, Images, Layer};
use crate::overlay::Directories;
use crate::state::{MountedImage, SnapshotId};
use crate::tasks::blocking;

/// Images unmounted at the same time: one that is busy keeps a thread of the daemon for a while.
const UNMOUNTED_AT_ONCE: usize = 4;
/// How long the daemon may take to delete blobs.
const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

impl Snapshotter {
    /// Frees what no snapshot needs any more. Failures concern one snapshot each, are logged and found again next time.
    pub(crate) async fn cleanup(&self) -> Result<(), Error> {
        let _alone = self.cleaning.lock().await;
        // In this order: what is seen before the records are read, and has none, has lost it or is being made.
        let candidates = self.present().await?;
        let pending = self.pending.current();
        let live = self.on_state(|state| state.ids()).await?;
        let gone = |id: &SnapshotId| !live.contains(id) && !pending.contains(id);
        let failed = self.unmount_all(candidates.mounted.iter().copied().filter(gone).collect()).await;
        self.free_blobs(|id| gone(id) && !failed.contains(id)).await;
        for &id in candidates.directories.iter().filter(|id| gone(id) && !failed.contains(id)) {
            let directories = self.directories.clone();
            if let Err(error) = blocking(move || directories.remove(id)).await {
                warn!(snapshot = %id, error = describe(&error), "cannot delete a snapshot; trying again later");
            }
        }
        Ok(())
    }

    async fn present(&self) -> Result<Present, Error> {
        let directories = self.directories.clone();
        let (on_disk, mountpoints) =
            blocking(move || Ok((directories.list()?, directories.list_mountpoints()?))).await?;
        let mut mounted: BTreeSet<_> = mountpoints.into_iter().collect();
        // Without a daemon nothing of it is mounted elsewhere.
        mounted.extend(self.images.mounted(self.directories.mounts()).await.unwrap_or_default());
        Ok(Present { directories: on_disk, mounted })
    }

    /// Unmounts images, some at a time: containerd's garbage collection waits for us. Gives those that are still mounted.
    async fn unmount_all(&self, mut waiting: VecDeque<SnapshotId>) -> BTreeSet<SnapshotId> {
        let all: BTreeSet<_> = waiting.iter().copied().collect();
        let mut failed = BTreeSet::new();
        let mut unmounting = JoinSet::new();
        loop {
            while unmounting.len() < UNMOUNTED_AT_ONCE
                && let Some(id) = waiting.pop_front()
            {
                let (images, directories) = (Arc::clone(&self.images), self.directories.clone());
                unmounting.spawn(async move { (id, unmount(&images, directories, id).await) });
            }
            match unmounting.join_next().await {
                None => return failed,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((id, Err(error)))) => {
                    warn!(snapshot = %id, error = describe(&error), "cannot unmount an image; trying again later");
                    failed.insert(id);
                    if matches!(error, Error::Daemon { .. }) {
                        // A daemon that does not do it for one would let all others wait as long.
                        failed.extend(waiting.drain(..));
                    }
                }
                // Which one is not known: none of them may lose its directory.
                Some(Err(error)) => {
                    warn!(%error, "unmounting ended in a bug");
                    failed.extend(&all);
                }
            }
        }
    }

    /// Frees the cache of blobs that images that are gone used and no other does.
    async fn free_blobs(&self, gone: impl Fn(&SnapshotId) -> bool) {
        let images = match self.on_state(|state| state.images()).await {
            Ok(images) => images,
            Err(error) => return warn!(error = describe(&error), "cannot free cached blobs"),
        };
        let (gone, kept): (Vec<_>, Vec<_>) = images.into_iter().partition(|(id, _)| gone(id));
        if gone.is_empty() {
            return;
        }
        if let Err(error) = self.free_blobs_of(&gone, &kept).await {
            warn!(error = describe(&error), "cannot free cached blobs; trying again later");
        }
    }

    async fn free_blobs_of(&self, gone: &[MountedBy], kept: &[MountedBy]) -> Result<(), Error> {
        let mut used: BTreeSet<String> = kept.iter().flat_map(|(_, image)| image.blobs.clone()).collect();
        used.extend(self.blobs_of_layers().await?);
        let unused: BTreeSet<_> =
            gone.iter().flat_map(|(_, image)| &image.blobs).filter(|blob| !used.contains(*blob)).collect();
        let unused: Vec<BlobId> = unused.into_iter().filter_map(|blob| blob.parse().ok()).collect();
        if !unused.is_empty() {
            let removed = self.daemon.client(REMOVE_DEADLINE).remove_blobs(&unused).await;
            let removed = removed.map_err(|error| Error::Daemon { problem: describe(&error) })?;
            let (freed, in_use) = (removed.removed.len(), removed.in_use.len());
            info!(freed, in_use, "freed cached blobs");
        }
        let ids: Vec<_> = gone.iter().map(|(id, _)| *id).collect();
        self.on_state(move |state| state.forget_images(&ids)).await
    }

    /// The blobs of images that are pulled, mounted or not.
    async fn blobs_of_layers(&self) -> Result<BTreeSet<String>, Error> {
        self.on_state(|state| {
            let mut blobs = BTreeSet::new();
            state.walk(|_, record| {
                if Layer::of(&record.labels) == Layer::Blob {
                    blobs.extend(nydus::blob_of(&record).map(ToOwned::to_owned));
                }
                Ok(true)
            })?;
            Ok(blobs)
        })
        .await
    }
}

async fn unmount(images: &Images, directories: Directories, id: SnapshotId) -> Result<(), Error> {
    images.unmount(id, directories.mountpoint(id)).await?;
    blocking(move || directories.remove_mountpoint(id)).await
}

/// An image and the snapshot of its bootstrap.
type MountedBy = (SnapshotId, MountedImage);

/// What is there, with or without a record.
struct Present {
    /// Snapshots with directories.
    directories: Vec<SnapshotId>,
    /// Snapshots with a mount point, or with a mount in the daemon.
    mounted: BTreeSet<SnapshotId>,
}
