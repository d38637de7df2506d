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
use crate::daemon::{Condition, describe};
use crate::error::Error;
use crate::nydus::{self, Images, Layer};
use crate::overlay::Directories;
use crate::state::{SnapshotId, State};
use crate::tasks::blocking;

/// Images unmounted at the same time: one that is busy keeps a thread of the daemon for a while.
const UNMOUNTED_AT_ONCE: usize = 4;
/// How long the daemon may take to delete blobs.
const KEEP_DEADLINE: Duration = Duration::from_secs(10);

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
        self.forget_images(|id| gone(id) && !failed.contains(id)).await;
        for &id in candidates.directories.iter().filter(|id| gone(id) && !failed.contains(id)) {
            let directories = self.directories.clone();
            if let Err(error) = blocking(move || directories.remove(id)).await {
                warn!(snapshot = %id, error = describe(&error), "cannot delete a snapshot; trying again later");
            }
        }
        // Where there is no daemon yet, it is told once it is there.
        if matches!(self.daemon.condition(), Condition::Ready(_)) {
            self.keep_blobs_of_images().await;
        }
        Ok(())
    }

    /// Frees all of the cache but what images need that are pulled or mounted, also what a lost record named.
    pub(super) async fn free_blobs(&self) {
        let _alone = self.cleaning.lock().await;
        self.keep_blobs_of_images().await;
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

    /// What is cached is the daemon's knowledge: it is told what to keep, so that nothing is forgotten with a record.
    async fn keep_blobs_of_images(&self) {
        if let Err(error) = self.keep_blobs().await {
            warn!(error = describe(&error), "cannot free cached blobs; trying again later");
        }
    }

    async fn keep_blobs(&self) -> Result<(), Error> {
        let kept = self.on_state(blobs_of_images).await?;
        let kept: Vec<BlobId> = kept.iter().filter_map(|blob| blob.parse().ok()).collect();
        let freed = self.daemon.client(KEEP_DEADLINE).keep(&kept).await;
        let freed = freed.map_err(|error| Error::Daemon { problem: describe(&error) })?;
        if !freed.freed.is_empty() {
            let in_use = freed.in_use.len();
            info!(blobs = freed.freed.len(), bytes = freed.freed_bytes, in_use, "freed cached blobs");
        }
        Ok(())
    }

    /// Forgets what images read from that are gone.
    async fn forget_images(&self, gone: impl Fn(&SnapshotId) -> bool) {
        let forgotten = self
            .on_state(|state| state.images())
            .await
            .map(|images| images.into_iter().map(|(id, _)| id).filter(gone).collect::<Vec<_>>());
        let forgotten = match forgotten {
            Ok(ids) if ids.is_empty() => Ok(()),
            Ok(ids) => self.on_state(move |state| state.forget_images(&ids)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = forgotten {
            warn!(error = describe(&error), "cannot forget images");
        }
    }
}

/// The blobs of images that are pulled or mounted, also for the node itself.
fn blobs_of_images(state: &State) -> Result<BTreeSet<String>, Error> {
    let mut blobs: BTreeSet<String> =
        state.images()?.into_iter().flat_map(|(_, image)| image.blobs).collect();
    state.walk(|_, record| {
        if Layer::of_record(&record) == Layer::Blob {
            blobs.extend(nydus::blob_of(&record).map(ToOwned::to_owned));
        }
        Ok(true)
    })?;
    blobs.extend(state.node_images()?.iter().flat_map(|stored| &stored.image.blobs).map(ToString::to_string));
    state.each_lazy_layer(|_, layer| blobs.extend(layer.blobs.iter().map(ToString::to_string)))?;
    Ok(blobs)
}

/// Unmounts an image, and removes where it was.
pub(super) async fn unmount(images: &Images, directories: Directories, id: SnapshotId) -> Result<(), Error> {
    images.unmount(id, directories.mountpoint(id)).await?;
    blocking(move || directories.remove_mountpoint(id)).await
}

/// What is there, with or without a record.
struct Present {
    /// Snapshots with directories.
    directories: Vec<SnapshotId>,
    /// Snapshots with a mount point, or with a mount in the daemon.
    mounted: BTreeSet<SnapshotId>,
}
