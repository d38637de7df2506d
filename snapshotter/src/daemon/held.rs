//! Descriptors of the mounts. While one is held, its mount outlives the daemon: who reads from it waits for the next one.
//! The service manager has duplicates of them (see [`left`]), for the day that both end at once.
//!
//! Nothing here, nor anything else in this process, may open a file on such a mount. Closing it asks the daemon, and
//! starting a daemon, or ending, closes files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use fuse_daemon::control::protocol::ErrorKind;
use fuse_daemon::control::{Client, ClientError, Handover};
use tracing::debug;

use super::{Daemon, describe, left};
use crate::sys;

/// A mount and its descriptor.
#[derive(Debug)]
pub(super) struct HeldMount {
    pub(super) handover: Handover,
    pub(super) descriptor: OwnedFd,
    /// What is left with the manager besides.
    about: Option<left::About>,
    /// What counts against it: how daemons in a row ended while they took it over.
    pub(super) ended: AtomicU32,
    /// Since when the daemon refuses it, if it does.
    refused: Mutex<Option<Instant>>,
}

impl HeldMount {
    fn new(handover: Handover, descriptor: OwnedFd, about: Option<left::About>) -> Arc<Self> {
        Arc::new(Self { handover, descriptor, about, ended: AtomicU32::new(0), refused: Mutex::default() })
    }

    /// The daemon refuses it for now, or no longer. Gives since when it has.
    pub(super) fn note_refusal(&self, is_refused: bool) -> Option<Instant> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = is_refused.then(|| refused.unwrap_or_else(Instant::now));
        *refused
    }

    fn is_refused(&self) -> bool {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether it is the mount that has this descriptor.
    fn is_of(&self, descriptor: &OwnedFd) -> bool {
        sys::is_same_file(self.descriptor.as_fd(), descriptor.as_fd())
    }

    /// Has the manager know what it is now, whose duplicate of the descriptor stays; the file by which it does, if there is one.
    fn say_again(&self, handover: &Handover) -> Option<left::About> {
        let about = self.about.as_ref()?;
        left::say_again(about, handover).ok()?;
        Some(Arc::clone(about))
    }
}

/// The mounts that are held, by their ids in the daemon.
#[derive(Debug, Default)]
pub(super) struct Held {
    mounts: Mutex<BTreeMap<String, Arc<HeldMount>>>,
    /// How often some mount was released.
    releases: AtomicU64,
}

/// Some of them.
pub(super) type HeldMounts = Vec<(String, Arc<HeldMount>)>;

impl Held {
    /// What the service manager has of an earlier process.
    pub(super) fn of_manager() -> Self {
        let held = left::take_back().into_iter();
        let held = held.map(|(id, (handover, descriptor, about))| {
            (id, HeldMount::new(handover, descriptor, Some(about)))
        });
        Self { mounts: Mutex::new(held.collect()), releases: AtomicU64::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<HeldMount>>> {
        // No code that holds it can panic half-way through a change.
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// All but those.
    pub(super) fn without(&self, ids: &BTreeSet<&str>) -> HeldMounts {
        let held = self.lock();
        let others = held.iter().filter(|(id, _)| !ids.contains(id.as_str()));
        others.map(|(id, mount)| (id.clone(), Arc::clone(mount))).collect()
    }

    /// Those that the daemon refuses.
    pub(super) fn refused(&self) -> HeldMounts {
        let mut held = self.without(&BTreeSet::new());
        held.retain(|(_, mount)| mount.is_refused());
        held
    }

    pub(super) fn is_held(&self, id: &str, mount: &Arc<HeldMount>) -> bool {
        self.lock().get(id).is_some_and(|held| Arc::ptr_eq(held, mount))
    }

    fn releases(&self) -> u64 {
        self.releases.load(Ordering::Acquire)
    }

    /// Holds a mount that the daemon has handed over since `releases` were counted; whether nothing was released meanwhile, which may
    /// have been this one.
    fn take(&self, id: &str, handover: Handover, descriptor: OwnedFd, releases: u64) -> bool {
        let mut held = self.lock();
        if self.releases() != releases {
            return false;
        }
        // What is left with the manager stays there: else there would be none for a moment.
        let before = held.get(id).filter(|held| held.is_of(&descriptor)).cloned();
        if before.as_ref().is_some_and(|before| before.handover == handover) {
            return true;
        }
        let about = before.and_then(|before| before.say_again(&handover));
        let about = about.or_else(|| left::leave(id, &handover, descriptor.as_fd()));
        held.insert(id.to_owned(), HeldMount::new(handover, descriptor, about));
        true
    }

    fn release(&self, id: &str) {
        let mut held = self.lock();
        self.releases.fetch_add(1, Ordering::AcqRel);
        if held.remove(id).is_some() {
            left::forget(id);
        }
    }

    pub(super) fn let_go(&self, id: &str, mount: &Arc<HeldMount>) {
        let mut held = self.lock();
        if held.get(id).is_some_and(|held| Arc::ptr_eq(held, mount)) {
            held.remove(id);
            left::forget(id);
        }
    }
}

impl Daemon {
    /// Holds a mount from now on. Without this it is as it always was: it ends with its daemon.
    ///
    /// # Errors
    ///
    /// It is not held: the daemon did not answer.
    pub(crate) async fn hold(&self, client: &Client, id: &str) -> Result<(), ClientError> {
        loop {
            let releases = self.held.releases();
            let (handover, descriptor) = match client.handover(id).await {
                Ok(handed_over) => handed_over,
                Err(error @ ClientError::Reported { kind: ErrorKind::Invalid | ErrorKind::Unknown, .. }) => {
                    debug!(mount = id, error = describe(&error), "this mount ends with its daemon");
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if self.held.take(id, handover, descriptor, releases) {
                return Ok(());
            }
        }
    }

    /// Holds a mount no longer, which is to be unmounted, or was: whoever asked the daemon for it in between holds nothing then.
    pub(crate) fn release(&self, id: &str) {
        self.held.release(id);
    }

    /// Whether a mount is held that the daemon does not serve, as it cannot take it over for now. Programs wait for it.
    pub(crate) fn is_refused(&self, id: &str) -> bool {
        self.held.lock().get(id).is_some_and(|mount| mount.is_refused())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use fuse_daemon::control::{MountRequest, Negotiated};

    use super::*;

    #[test]
    fn what_was_released_while_the_daemon_handed_it_over_is_not_held() {
        let held = Held::default();
        let take = |releases| {
            let mount = MountRequest {
                id: "i".to_owned(),
                bootstrap: "/b".into(),
                mountpoint: "/m".into(),
                image: "i".to_owned(),
                backends: Vec::new(),
            };
            let negotiated = Negotiated { minor: 1, flags: 2, max_readahead: 3 };
            let handover = Handover { mount, device: 7, negotiated };
            held.take("i", handover, File::open("/dev/null").unwrap().into(), releases)
        };
        let before = held.releases();
        held.release("i");
        assert!(!take(before) && held.is_empty());
        assert!(take(held.releases()) && held.len() == 1);
        held.release("i");
        assert!(held.is_empty());
    }
}
