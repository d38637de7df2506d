//! Whose turn it is to make a bootstrap: the trees of all layers of an image, or its tar, are in memory meanwhile, so there is room for
//! some. Of those from one host one is made at a time: where it does not answer, others wait that are from there too, and nobody else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, Semaphore, SemaphorePermit};

use crate::control::BackendSpec;
use crate::process::SourceHost;

/// What bootstraps that are made at once may take together, in MiB.
pub(super) const ROOM_MIB: u32 = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct MakingTurns {
    /// One permit a MiB.
    room: Semaphore,
    /// Those who have a turn hold them, and those who wait.
    known: Mutex<HashMap<MakingKey, Weak<tokio::sync::Mutex<()>>>>,
}

/// What one at a time has.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum MakingKey {
    /// The folder that a bootstrap is written to.
    Folder(PathBuf),
    /// Where what it is made of comes from.
    Host(Option<SourceHost>),
}

/// The right to make a bootstrap, until this is dropped.
#[derive(Debug)]
pub(super) struct MakingTurn<'a> {
    _room: Option<SemaphorePermit<'a>>,
    _host: OwnedMutexGuard<()>,
    _folder: OwnedMutexGuard<()>,
}

impl Default for MakingTurns {
    fn default() -> Self {
        Self { room: Semaphore::new(ROOM_MIB as usize), known: Mutex::default() }
    }
}

impl MakingTurns {
    /// Waits for the turn to write to a folder what comes from the first of `backends`, and takes so many MiB. In this order, so that
    /// nobody takes room while waiting for something else.
    pub(super) async fn take(&self, folder: &Path, backends: &[BackendSpec], mib: u32) -> MakingTurn<'_> {
        let folder = self.lock_of(MakingKey::Folder(folder.to_owned())).lock_owned().await;
        let host = MakingKey::Host(backends.first().map(SourceHost::of));
        let host = self.lock_of(host).lock_owned().await;
        // It is never closed.
        let room = self.room.acquire_many(mib.clamp(1, ROOM_MIB)).await.ok();
        MakingTurn { _room: room, _host: host, _folder: folder }
    }

    fn lock_of(&self, key: MakingKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = known.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        known.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        known.insert(key, Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn folder(number: usize) -> PathBuf {
        PathBuf::from(format!("/{number}"))
    }

    fn of(host: &str, name: &str) -> [BackendSpec; 1] {
        [BackendSpec::Registry { repository: format!("{host}.example/{name}") }]
    }

    #[test]
    fn from_one_host_or_in_one_folder_one_is_made_at_a_time_and_in_all_as_many_as_there_is_room_for() {
        const AT_ONCE: usize = 4;
        let turns = MakingTurns::default();
        let (one, other) = (folder(1), folder(2));
        let take = |folder: &Path, host: &str, name: &str| {
            turns.take(folder, &of(host, name), ROOM_MIB / AT_ONCE as u32).now_or_never()
        };
        let first = take(&one, "a", "app").expect("nobody has a turn");
        assert!(take(&other, "a", "other").is_none() && take(&one, "b", "app").is_none());
        let second = take(&other, "b", "app").expect("another host");
        drop(first);
        let again = take(&one, "a", "app").expect("the first is over");
        drop((second, again));

        let folders: Vec<_> = (0..=AT_ONCE).map(folder).collect();
        let each = folders.iter().enumerate();
        let mut taken: Vec<_> =
            each.filter_map(|(number, folder)| take(folder, &format!("h{number}"), "app")).collect();
        assert_eq!(taken.len(), AT_ONCE);
        taken.pop();
        assert!(take(&folders[AT_ONCE], "last", "app").is_some());
        let large = |mib| turns.take(&folders[AT_ONCE], &of("large", "app"), mib).now_or_never();
        assert!(large(u32::MAX).is_none() && large(0).is_some());
        drop(taken);
        assert!(large(u32::MAX).is_some());
        drop(take(&one, "a", "app"));
        assert_eq!(turns.known.lock().unwrap().len(), 2, "what nobody has is forgotten");
    }
}
