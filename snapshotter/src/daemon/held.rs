//! Descriptors of the mounts. While one is held, its mount outlives the daemon: who reads from it waits for the next one.
//! The service manager has duplicates of them (see [`left`]), for the day that both end at once.
//!
//! Nothing here, nor anything else in this process, may open a file on such a mount. Closing it asks the daemon, and
//! starting a daemon, or ending, closes files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{Client, ClientError, Handover, MountStatus};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{Daemon, describe, left};

/// How long a daemon may take for one mount: longer than its own patience with a registry, which some need.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(40);
/// How many mounts it is given at once.
const ADOPTIONS_AT_ONCE: usize = 16;
/// How often it is asked for one that it refuses …
const ATTEMPTS: u32 = 4;
/// … with this pause …
const PAUSE: Duration = Duration::from_millis(250);
/// … and no longer than this, as all others wait for the last one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many daemons in a row may end while they take a mount over, before that mount is thought to be the reason.
const ENDED_DAEMONS: u32 = 5;

/// A mount and its descriptor.
#[derive(Debug)]
struct HeldMount {
    handover: Handover,
    descriptor: OwnedFd,
    /// Daemons in a row that ended while they took it over.
    ended: AtomicU32,
}

/// The mounts that are held, by their ids in the daemon.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<BTreeMap<String, Arc<HeldMount>>>);

impl Held {
    /// What the service manager has of an earlier process.
    pub(super) fn of_manager() -> Self {
        let held = left::take_back().into_iter().map(|(id, (handover, descriptor))| {
            (id, Arc::new(HeldMount { handover, descriptor, ended: AtomicU32::new(0) }))
        });
        Self(Mutex::new(held.collect()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<HeldMount>>> {
        // No code that holds it can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_held(&self, id: &str, mount: &Arc<HeldMount>) -> bool {
        self.lock().get(id).is_some_and(|held| Arc::ptr_eq(held, mount))
    }

    fn let_go(&self, id: &str, mount: &Arc<HeldMount>) {
        let mut held = self.lock();
        if held.get(id).is_some_and(|held| Arc::ptr_eq(held, mount)) {
            held.remove(id);
            left::forget(id);
        }
    }
}

impl Daemon {
    /// Holds a mount from now on. Without this it is as it always was: it ends with its daemon.
    pub(crate) async fn hold(&self, client: &Client, id: &str) {
        match client.handover(id).await {
            Ok((handover, descriptor)) => {
                let mount = HeldMount { handover, descriptor, ended: AtomicU32::new(0) };
                let mut held = self.held.lock();
                left::leave(id, &mount.handover, mount.descriptor.as_fd());
                held.insert(id.to_owned(), Arc::new(mount));
            }
            Err(error @ ClientError::Reported { kind: ErrorKind::Invalid | ErrorKind::Unknown, .. }) => {
                debug!(mount = id, error = describe(&error), "this mount ends with its daemon");
            }
            Err(error) => warn!(mount = id, error = describe(&error), "this mount ends with its daemon"),
        }
    }

    /// Holds a mount no longer, which is to be unmounted.
    pub(crate) fn release(&self, id: &str) {
        let mut held = self.held.lock();
        if held.remove(id).is_some() {
            left::forget(id);
        }
    }

    /// Has the daemon serve what is held and it does not serve yet, and holds what it serves in `ours`. A mount that it
    /// refuses is let go, to be mounted again. An error: the daemon ended meanwhile; everything is held on.
    pub(super) async fn take_over(&self, ours: &Path, served: &[MountStatus]) -> Result<(), String> {
        let ids: BTreeSet<&str> = served.iter().map(|mount| mount.id.as_str()).collect();
        let mut lacking: Vec<_> =
            self.held.lock().iter().map(|(id, mount)| (id.clone(), Arc::clone(mount))).collect();
        lacking.retain(|(id, _)| !ids.contains(id.as_str()));
        let permits = Arc::new(Semaphore::new(ADOPTIONS_AT_ONCE));
        let mut adopting = JoinSet::new();
        for (id, mount) in lacking {
            let (client, held) = (self.client(ADOPTION_DEADLINE), Arc::clone(&self.held));
            let permits = Arc::clone(&permits);
            adopting.spawn(async move {
                let _permit = permits.acquire_owned().await;
                adopt(&client, &held, &id, &mount).await
            });
        }
        let mut result = Ok(());
        while let Some(ended) = adopting.join_next().await {
            let ended = ended.map_err(|error| error.to_string());
            result = result.and(ended.and_then(|adopted| adopted.map_err(|error| describe(&error))));
        }
        result?;
        let client = self.client(ADOPTION_DEADLINE);
        for mount in served.iter().filter(|mount| mount.mountpoint.starts_with(ours)) {
            self.hold(&client, &mount.id).await;
        }
        Ok(())
    }
}

/// Has the daemon go on serving a mount, or lets go of it. An error: the daemon ended meanwhile.
async fn adopt(client: &Client, held: &Held, id: &str, mount: &Arc<HeldMount>) -> Result<(), ClientError> {
    let begun = Instant::now();
    let mut attempts = 0;
    loop {
        attempts += 1;
        match client.adopt(&mount.handover, mount.descriptor.as_fd()).await {
            Ok(()) => break,
            Err(error @ (ClientError::Connect { .. } | ClientError::Broken { .. })) => {
                let in_work = matches!(error, ClientError::Broken { .. });
                if in_work && mount.ended.fetch_add(1, Ordering::Relaxed) + 1 >= ENDED_DAEMONS {
                    warn!(
                        mount = id,
                        "too many daemons ended while they took over this mount; letting it go"
                    );
                    held.let_go(id, mount);
                }
                return Err(error);
            }
            Err(error) if attempts < ATTEMPTS && begun.elapsed() < PATIENCE && held.is_held(id, mount) => {
                debug!(mount = id, error = describe(&error), "the daemon does not take over a mount yet");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                warn!(
                    mount = id,
                    error = describe(&error),
                    "the daemon cannot take over a mount; letting it go"
                );
                held.let_go(id, mount);
                return Ok(());
            }
        }
    }
    mount.ended.store(0, Ordering::Relaxed);
    if held.is_held(id, mount) {
        info!(mount = id, "taken over");
        return Ok(());
    }
    // Somebody released it to have it unmounted, which this daemon may have answered before it had the mount.
    client.umount(id).await
}
