//! Making room in a cache that has a quota: an image that no container uses is unmounted, so that what is cached of it may give way.
//!
//! An image stays mounted after its last container, so that the next one starts at once. As long as it is mounted its blobs are in
//! use, and a daemon that runs for months would have nothing to let go of. Once the cache is nearly full, images without
//! containers are unmounted, those that had their last container longest ago first: that is then the order in which their blobs give way.
//! The next container has its image mounted again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fuse_daemon::control::CacheTotals;
use tracing::{debug, info, warn};

use super::{Snapshotter, cleanup};
use crate::daemon::{Condition, describe};
use crate::error::Error;
use crate::state::SnapshotId;

/// How often the cache is looked at.
const PAUSE: Duration = Duration::from_secs(10);

/// The part of the quota that is left free while all images stay mounted.
const FREE_FRACTION: u64 = 8;

/// Images without containers, by since when.
type Idle = BTreeMap<SnapshotId, Instant>;

impl Snapshotter {
    /// Does so whenever it is needed; never returns.
    pub(crate) async fn keep_room(&self) {
        let mut idle = Idle::new();
        loop {
            tokio::time::sleep(PAUSE).await;
            if !matches!(self.daemon.condition(), Condition::Ready(_)) {
                continue;
            }
            if let Err(error) = self.make_room(&mut idle).await {
                // A daemon that is away is told of by others.
                debug!(error = describe(&error), "cannot look at the cache");
            }
        }
    }

    async fn make_room(&self, idle: &mut Idle) -> Result<(), Error> {
        let Some(cache) = self.images.cache().await? else { return Ok(()) };
        let Some(quota) = cache.quota_bytes else { return Ok(()) };
        let now = Instant::now();
        let found = self.idle_images().await?;
        idle.retain(|id, _| found.contains(id));
        for id in found {
            idle.entry(id).or_insert(now);
        }
        if is_nearly_full(cache, quota) && !idle.is_empty() {
            let mut order: Vec<_> = idle.iter().map(|(id, since)| (*since, *id)).collect();
            order.sort_unstable();
            self.unmount_idle(order.into_iter().map(|(_, id)| id).collect()).await?;
        }
        Ok(())
    }

    /// Images that are mounted, and have no containers.
    async fn idle_images(&self) -> Result<Vec<SnapshotId>, Error> {
        let mut mounted = self.images.mounted(self.directories.mounts()).await?;
        let in_use = self.images_in_use().await?;
        mounted.retain(|id| in_use.iter().all(|image| image.id != *id));
        Ok(mounted)
    }

    /// Unmounts these, one after the other, but those that somebody uses, or is about to.
    async fn unmount_idle(&self, order: Vec<SnapshotId>) -> Result<(), Error> {
        let mut going = self.images.let_go(order.iter().copied());
        // Looked at again, as nobody can begin to use one of them now.
        for image in self.images_in_use().await? {
            going.settle(image.id);
        }
        for id in order {
            if !going.contains(id) {
                continue;
            }
            match cleanup::unmount(&self.images, self.directories.clone(), id).await {
                Ok(()) => {
                    info!(snapshot = %id, "the cache is nearly full: unmounted an image that no container uses")
                }
                Err(error) => {
                    warn!(snapshot = %id, error = describe(&error), "cannot unmount an image that no container uses")
                }
            }
            going.settle(id);
        }
        Ok(())
    }
}

fn is_nearly_full(cache: CacheTotals, quota: u64) -> bool {
    cache.bytes.saturating_add(quota / FREE_FRACTION) > quota
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_nearly_full_before_it_is_full() {
        let is_nearly_full =
            |bytes, quota| is_nearly_full(CacheTotals { blobs: 1, bytes, quota_bytes: Some(quota) }, quota);
        assert!(!is_nearly_full(700, 800) && is_nearly_full(701, 800) && is_nearly_full(900, 800));
        assert!(is_nearly_full(u64::MAX, 800) && !is_nearly_full(0, 0));
    }
}
