//! Making room in a cache that has a quota: an image that no container uses is unmounted, so that what is cached of it may give way.
//!
//! An image stays mounted after its last container, so that the next one starts at once. As long as it is mounted its blobs are in
//! use, and a daemon that runs for months would have nothing to let go of. Once the cache is nearly full of what is in use, images
//! without containers are unmounted, those that were used longest ago first, until enough may give way: that is then the order in which
//! their blobs do. The next container has its image mounted again.

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

/// The part of the quota that is free, or may give way at once, while all images stay mounted.
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
        let Some(mut cache) = self.images.cache().await? else { return Ok(false) };
        if cache.quota_bytes.is_none() {
            return Ok(false);
        }
        let now = Instant::now();
        let found = self.idle_images().await?;
        idle.retain(|id, _| found.contains(id));
        for id in found {
            idle.entry(id).or_insert(now);
        }
        let mut order: Vec<SnapshotId> = idle.keys().copied().collect();
        // Containers may have come and gone since it was last looked; of those that ended in between, who began last counts.
        order.sort_by_key(|id| {
            let used = self.images.last_used(*id);
            (idle.get(id).copied().max(used), used)
        });
        for id in order {
            if has_room(cache) {
                break;
            }
            self.unmount_idle(id).await?;
            // Its blobs may be in use by others.
            let Some(now) = self.images.cache().await? else { return Ok(false) };
            cache = now;
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

/// Whether enough of the cache is free, or may give way. A daemon that does not say what may has all that is idle unmounted.
fn has_room(cache: CacheTotals) -> bool {
    let Some(quota) = cache.quota_bytes else { return true };
    let in_use = cache.bytes.saturating_sub(cache.evictable_bytes.unwrap_or(0));
    in_use.saturating_add(quota / FREE_FRACTION) <= quota
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_room_until_it_is_nearly_full_of_what_is_in_use() {
        let has_room = |bytes, evictable_bytes, quota| {
            has_room(CacheTotals { blobs: 1, bytes, quota_bytes: Some(quota), evictable_bytes })
        };
        assert!(has_room(700, None, 800) && !has_room(701, None, 800) && !has_room(900, None, 800));
        assert!(has_room(800, Some(100), 800) && !has_room(800, Some(99), 800));
        assert!(!has_room(u64::MAX, Some(0), 800) && has_room(0, Some(0), 0) && has_room(0, Some(9), 800));
    }
}
