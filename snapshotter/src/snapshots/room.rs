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
use crate::daemon::describe;
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
            let generation = self.daemon.ready().await;
            match self.make_room(&mut idle).await {
                Ok(true) => {}
                // Another daemon may have one.
                Ok(false) => self.daemon.gone(generation).await,
                // A daemon that is away is told of by others.
                Err(error) => debug!(error = describe(&error), "cannot look at the cache"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Looks once; whether there is a quota.
    async fn make_room(&self, idle: &mut Idle) -> Result<bool, Error> {
        let Some(cache) = self.images.cache().await? else { return Ok(false) };
        let Some(quota) = cache.quota_bytes else { return Ok(false) };
        let now = Instant::now();
        let found = self.idle_images().await?;
        idle.retain(|id, _| found.contains(id));
        for id in found {
            idle.entry(id).or_insert(now);
        }
        if is_nearly_full(cache, quota) {
            let mut order: Vec<_> = idle.iter().map(|(id, since)| (*since, *id)).collect();
            order.sort_unstable();
            for (_, id) in order {
                self.unmount_idle(id).await?;
            }
        }
        Ok(true)
    }

    /// Images that are mounted, and have no containers.
    async fn idle_images(&self) -> Result<Vec<SnapshotId>, Error> {
        let mut mounted = self.images.mounted(self.directories.mounts()).await?;
        let in_use = self.images_in_use().await?;
        mounted.retain(|id| in_use.iter().all(|image| image.id != *id));
        Ok(mounted)
    }

    /// Unmounts an image, unless somebody uses it or is about to.
    async fn unmount_idle(&self, id: SnapshotId) -> Result<(), Error> {
        let Some(_going) = self.images.let_go(id) else { return Ok(()) };
        // Looked at again, as nobody can begin to use it now.
        if self.images_in_use().await?.iter().any(|image| image.id == id) {
            return Ok(());
        }
        match cleanup::unmount(&self.images, self.directories.clone(), id).await {
            Ok(()) => {
                info!(snapshot = %id, "the cache is nearly full: unmounted an image that no container uses");
            }
            Err(error) => {
                warn!(snapshot = %id, error = describe(&error), "cannot unmount an image that no container uses");
            }
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
        let is_nearly_full = |bytes, quota| {
            let cache = CacheTotals { blobs: 1, bytes, quota_bytes: Some(quota), evictable_bytes: None };
            is_nearly_full(cache, quota)
        };
        assert!(!is_nearly_full(700, 800) && is_nearly_full(701, 800) && is_nearly_full(900, 800));
        assert!(is_nearly_full(u64::MAX, 800) && !is_nearly_full(0, 0));
    }
}
